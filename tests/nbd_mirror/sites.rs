//! The harness: two or three sites, their disks, daemons and mirrors, and the ways to ask them.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::namespaces::{A0, A1, B0, NAMES, Network, SERVER, own_ip};
use super::nbd::Client;
use super::support::{Daemon, TempDir};

/// Longest time of a resync, a promotion or the loss of a site on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Longest wait for a site.
pub const SLOW: Duration = Duration::from_secs(4);
pub const SIZE: u64 = 32 << 20;
pub const CHUNK: usize = 64 << 10;
/// The machines of sites 0, 1 and 2.
pub const MACHINES: [usize; 3] = [A0, B0, A1];
pub const FLUSH: u16 = 3;

/// Sites of one resource, `data`.
pub struct Sites {
    pub daemons: Vec<Option<Daemon>>,
    pub mirrors: Vec<Option<Daemon>>,
    pub net: Network,
    pub dir: TempDir,
    /// Elements for the section of all.
    pub global: String,
    /// Those that writes do not wait for.
    pub far: Vec<usize>,
    /// True if daemons and mirrors meet at Unix sockets.
    pub is_unix: bool,
    /// Those whose daemon and mirror are one process.
    pub in_one: Vec<usize>,
    /// Variables for each site's mirror; may be empty.
    pub environment: Vec<Vec<(&'static str, PathBuf)>>,
    /// The last site is a witness, without disks.
    pub has_witness: bool,
}

/// The machine of a site.
pub fn machine(site: usize) -> usize {
    MACHINES[site]
}

pub fn output(text: &Output) -> String {
    String::from_utf8_lossy(&[&text.stdout[..], &text.stderr].concat()).into_owned()
}

impl Sites {
    /// Makes disks and metadata, and starts everything; `more` is for the resource. `None` where there can be no namespaces.
    pub fn start(more: &str) -> Option<Self> {
        Self::start_with(more, |_| true)
    }

    /// The same, in sync, with site 0 as primary and a client of it.
    pub fn serving(more: &str) -> Option<(Self, Client)> {
        let pair = Self::start(more)?;
        pair.wait_in_sync();
        pair.hadmctl(0, &["primary", "data"]).unwrap();
        let client = pair.client(0);
        Some((pair, client))
    }

    /// As [`Sites::start`], with disks that `fill` writes to; it tells whether they are clean.
    pub fn start_with(more: &str, fill: impl Fn(&Sites) -> bool) -> Option<Self> {
        let mut pair = Self::prepare(2, more)?;
        let clean = if fill(&pair) { &["--clean"][..] } else { &[] };
        pair.all().for_each(|site| pair.init(site, clean));
        pair.all().for_each(|site| pair.start_site(site));
        Some(pair)
    }

    /// Sites with an empty disk each, nothing initialised.
    pub fn prepare(n: usize, more: &str) -> Option<Self> {
        Self::prepare_in(n, more, TempDir::new())
    }

    /// The same, with everything in a directory.
    pub fn prepare_in(n: usize, more: &str, dir: TempDir) -> Option<Self> {
        let net = Network::new()?;
        let none = || std::iter::repeat_with(|| None).take(n).collect();
        let (global, far, environment) = (String::new(), Vec::new(), Vec::new());
        let (daemons, mirrors) = (none(), none());
        let (is_unix, in_one, has_witness) = (false, Vec::new(), false);
        let sites =
            Sites { daemons, mirrors, net, dir, global, far, is_unix, in_one, environment, has_witness };
        sites.configure(more);
        for site in sites.all() {
            fs::File::create(sites.disk(site)).unwrap().set_len(SIZE).unwrap();
        }
        Some(sites)
    }

    pub fn all(&self) -> std::ops::Range<usize> {
        0..self.daemons.len()
    }

    #[track_caller]
    pub fn init(&self, site: usize, options: &[&str]) {
        let made = self.program(site).arg("init").args(options).arg("data").output().unwrap();
        assert!(made.status.success(), "{}", output(&made));
    }

    pub fn configure(&self, more: &str) {
        let site = |id: usize| {
            let (name, ip) = (NAMES[MACHINES[id]], own_ip(MACHINES[id]));
            format!(
                "<site><id>{id}</id><mode>stand alone</mode><nodes><node><id>0</id><hostname>{name}</hostname>\
                 <ipaddr>{ip}</ipaddr><port>7000</port></node></nodes></site>"
            )
        };
        let runsite = |id: usize| {
            let protocol = if self.far.contains(&id) { "async" } else { "sync" };
            let (disk, meta) = (self.disk(id), self.path("meta", id));
            let disks = match self.has_witness && id + 1 == self.all().len() {
                true => format!("<witness>{}</witness>", self.path("witness", id).display()),
                false => format!("<disk>{}</disk><bwr_disk>{}</bwr_disk>", disk.display(), meta.display()),
            };
            format!(
                "<runsite><id>{id}</id><ip>{}</ip><port>7100</port><protocol>{protocol}</protocol>{disks}\
                 <runnodes><id>0</id></runnodes></runsite>",
                own_ip(MACHINES[id]),
            )
        };
        let xml = format!(
            "<hadm><global><serverip>{}</serverip><serverport>{}</serverport><pingtimeout>1</pingtimeout>\
             <maxpingcount>5</maxpingcount><peeraddr>strict</peeraddr>\
             <slowtimeout>{}</slowtimeout>{}</global><sites>{}</sites>\
             <resources><resource><id>0</id><name>data</name>{more}<runsites>{}</runsites></resource></resources></hadm>",
            SERVER.ip(),
            SERVER.port(),
            SLOW.as_secs(),
            self.global,
            self.all().map(site).collect::<String>(),
            self.all().map(runsite).collect::<String>(),
        );
        fs::write(self.dir.path.join("hadm.xml"), xml).unwrap();
    }

    pub fn path(&self, what: &str, site: usize) -> PathBuf {
        self.dir.path.join(format!("{what}{site}"))
    }

    pub fn disk(&self, site: usize) -> PathBuf {
        self.path("disk", site)
    }

    /// `hadm-nbd` of a site, up to its command.
    pub fn program(&self, site: usize) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hadm-nbd"));
        command.arg("-c").arg(self.dir.path.join("hadm.xml")).args(["--hostname", NAMES[MACHINES[site]]]);
        command.stdin(Stdio::null());
        command
    }

    pub fn run(&self, site: usize) -> Command {
        let mut command = self.program(site);
        let sockets = self.path("sockets", site);
        fs::create_dir_all(&sockets).unwrap();
        command.args(["run", "-v", "--log", "stderr", "--control"]).arg(self.path("control", site));
        command.arg("--sockets").arg(sockets);
        if self.in_one.contains(&site) {
            command.arg("--with-daemon").arg("--daemon-control").arg(self.path("daemon", site));
        } else {
            self.add_link(&mut command, site);
        }
        command
    }

    fn add_link(&self, command: &mut Command, site: usize) {
        if self.is_unix {
            command.arg("--server").arg(self.path("link", site));
        }
    }

    pub fn start_daemon(&mut self, site: usize) {
        let at = MACHINES[site];
        let mut command = Daemon::binary();
        // A file of its own where the sites are not to meet as they are.
        let own = self.path("hadm.xml", site);
        let file = if own.exists() { own } else { self.dir.path.join("hadm.xml") };
        command.arg("-c").arg(file).args(["--hostname", NAMES[at], "--no-kmod-check"]);
        command.args(["--log", "stderr", "--control"]).arg(self.path("daemon", site));
        self.add_link(&mut command, site);
        let daemon = self.net.machines[at].inside(|| Daemon::spawn(&mut command, NAMES[at]));
        daemon.wait_log(" ready:", PATIENCE);
        self.daemons[site] = Some(daemon);
    }

    pub fn start_mirror(&mut self, site: usize) {
        let at = MACHINES[site];
        let mut command = self.run(site);
        if let Some(variables) = self.environment.get(site) {
            command.envs(variables.iter().cloned());
        }
        let mirror =
            self.net.machines[at].inside(|| Daemon::spawn(&mut command, &format!("hadm-nbd {site}")));
        // Not that of a daemon in its process.
        mirror.wait_log("  ready:", PATIENCE);
        self.mirrors[site] = Some(mirror);
    }

    pub fn start_site(&mut self, site: usize) {
        if !self.in_one.contains(&site) {
            self.start_daemon(site);
        }
        self.start_mirror(site);
    }

    /// The machine is gone, without a word.
    pub fn kill_site(&mut self, site: usize) {
        self.mirrors[site].take().unwrap().kill9();
        if let Some(daemon) = self.daemons[site].take() {
            daemon.kill9();
        }
    }

    pub fn hadmctl(&self, site: usize, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
        command.arg("--control").arg(self.path("control", site)).args(["--timeout", "60", "disk"]).args(args);
        let done = command.output().unwrap();
        if done.status.success() { Ok(output(&done)) } else { Err(output(&done)) }
    }

    pub fn status(&self, site: usize) -> Value {
        let text = self.hadmctl(site, &["status", "data", "--json"]).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["resources"][0].take()
    }

    /// Waits until a site's status sentence has this in it.
    #[track_caller]
    pub fn wait(&self, site: usize, part: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let sentence = self.status(site)["sentence"].as_str().unwrap().to_owned();
            if sentence.contains(part) {
                return sentence;
            }
            assert!(Instant::now() < end, "site {site}: no {part:?} in {sentence:?}");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Returns true if all sites call each other in sync and have nothing left to copy, and still do when they are asked
    /// again: one that has not noticed yet that another was away is asked a second time after that one is back.
    pub fn are_in_sync(&self) -> Result<(), String> {
        for site in self.all().chain(self.all()) {
            let state = self.status(site);
            let peers = state["peers"].as_array().unwrap();
            let is_good = |peer: &Value| peer["in_sync"] == true && peer["out_of_sync"] == 0;
            if peers.len() + 1 != self.all().len() || !peers.iter().all(is_good) {
                return Err(format!("site {site}: {}", state["sentence"]));
            }
        }
        Ok(())
    }

    #[track_caller]
    pub fn wait_in_sync(&self) {
        let end = Instant::now() + PATIENCE;
        while let Err(why) = self.are_in_sync() {
            assert!(Instant::now() < end, "not in sync: {why}");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// A client of a primary's.
    pub fn client(&self, site: usize) -> Client {
        let mut client = Client::greeted(&self.path("sockets", site).join("data.nbd"));
        client.go("data", &[]);
        client
    }

    #[track_caller]
    pub fn assert_equal(&self) {
        let first = fs::read(self.disk(0)).unwrap();
        for site in self.all().skip(1) {
            let other = fs::read(self.disk(site)).unwrap();
            let different = first.chunks(4096).zip(other.chunks(4096)).position(|(a, b)| a != b);
            assert_eq!(different, None, "the first 4 KiB that differ at site {site}");
        }
    }

    pub fn stop(mut self) {
        for site in self.all().rev() {
            for program in [self.mirrors[site].take(), self.daemons[site].take()] {
                let Some(mut program) = program else { continue };
                program.term();
                assert!(program.wait_exit(PATIENCE).success());
            }
        }
    }
}

/// Writes a chunk of this byte and reads the answer.
#[track_caller]
pub fn write(client: &mut Client, chunk: usize, byte: u8) {
    client.write(chunk as u64, (chunk * CHUNK) as u64, &vec![byte; CHUNK]);
    client.simple_reply(chunk as u64, 0);
}

#[track_caller]
pub fn assert_content(client: &mut Client, chunk: usize, byte: u8) {
    let found = client.read_disk((chunk * CHUNK) as u64, CHUNK as u32);
    assert!(found.iter().all(|b| *b == byte), "chunk {chunk}: {} instead of {byte}", found[0]);
}

/// The address of a site's export, for other clients.
pub fn uri(sites: &Sites, site: usize) -> String {
    format!("nbd+unix:///data?socket={}", sites.path("sockets", site).join("data.nbd").display())
}
