//! Two sites of a mirrored disk on this machine: a daemon and a `hadm-nbd` each, of any build, over loopback; in one process or
//! in two.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::fio::{self, Job};
use crate::nbd::Client;
use crate::others::Folder;
use crate::support::Daemon;
use crate::{Build, Meeting, RANGE};

/// Longest time for programs to be ready, and for a resync.
const PATIENCE: Duration = Duration::from_secs(120);

/// The sites beside the primary.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One that writes wait for.
    Near,
    /// One that they do not wait for.
    Far,
    /// None.
    Alone,
}

/// Two sites, or one, the first one primary.
pub struct Mirror {
    pub build: Build,
    sites: [Vec<Daemon>; 2],
    folder: Folder,
    servers: [u16; 2],
    kind: Kind,
}

impl Mirror {
    /// Starts both with a clean disk of `size` bytes, and waits until they are in sync.
    pub fn start(build: Build, disks: &Path, size: u64) -> Self {
        Self::start_as(build, disks, size, Kind::Near)
    }

    /// The same with sites of some kind.
    pub fn start_as(build: Build, disks: &Path, size: u64, kind: Kind) -> Self {
        let what = match kind {
            Kind::Near => "",
            Kind::Far => "-far",
            Kind::Alone => "-alone",
        };
        let folder = Folder::new(disks, &format!("{}{what}", build.name.replace([',', ' '], "")));
        // All are taken before any is given back.
        let taken = [(); 6].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = taken.map(|listener| listener.local_addr().unwrap().port());
        let site = |id: usize| {
            format!(
                "<site><id>{id}</id><mode>stand alone</mode><nodes><node><id>0</id><hostname>n{id}</hostname>\
                 <ipaddr>127.0.0.1</ipaddr><port>{}</port></node></nodes></site>",
                ports[id]
            )
        };
        let runsite = |id: usize| {
            let path = |what: &str| folder.0.join(format!("{what}{id}")).display().to_string();
            format!(
                "<runsite><id>{id}</id><ip>127.0.0.1</ip><port>{}</port><protocol>{}</protocol><disk>{}</disk>\
                 <bwr_disk>{}</bwr_disk><runnodes><id>0</id></runnodes></runsite>",
                ports[2 + id],
                if (kind, id) == (Kind::Far, 1) { "async" } else { "sync" },
                path("disk"),
                path("meta")
            )
        };
        let xml = format!(
            "<hadm><global><serverip>127.0.0.1</serverip><serverport>{}</serverport><pingtimeout>2</pingtimeout>\
             <maxpingcount>5</maxpingcount></global><sites>{}{}</sites><resources><resource><id>0</id><name>data</name>\
             <runsites>{}{}</runsites></resource></resources></hadm>",
            ports[4],
            site(0),
            site(1),
            runsite(0),
            if kind == Kind::Alone { String::new() } else { runsite(1) }
        );
        std::fs::write(folder.0.join("hadm.xml"), xml).unwrap();
        let mut mirror =
            Mirror { build, sites: [Vec::new(), Vec::new()], folder, servers: [ports[4], ports[5]], kind };
        for site in 0..if kind == Kind::Alone { 1 } else { 2 } {
            File::create(mirror.disk(site)).unwrap().set_len(size).unwrap();
            mirror.init(site);
            mirror.start_site(site);
        }
        if kind != Kind::Alone {
            mirror.wait_in_sync();
        }
        mirror.disk_command(0, &["primary", "--force", "data"]);
        mirror
    }

    pub fn disk(&self, site: usize) -> PathBuf {
        self.path("disk", site)
    }

    fn path(&self, what: &str, site: usize) -> PathBuf {
        self.folder.0.join(format!("{what}{site}"))
    }

    fn program(&self, name: &str, site: usize) -> Command {
        let mut command = Command::new(self.build.programs.join(name));
        command.arg("-c").arg(self.folder.0.join("hadm.xml")).args(["--hostname", &format!("n{site}")]);
        command
    }

    fn init(&self, site: usize) {
        let log = if self.kind == Kind::Far { "64M" } else { "0" };
        let done = self
            .program("hadm-nbd", site)
            .args(["init", "--clean", "--log-size", log, "data"])
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    pub fn start_site(&mut self, site: usize) {
        let server = format!("127.0.0.1:{}", self.servers[site]);
        let link = self.path("link", site).display().to_string();
        let meeting = self.build.meeting;
        let daemon = (meeting != Meeting::Process).then(|| {
            let mut command = self.program("hadmd", site);
            command.args(["--no-kmod-check", "--log", "stderr", "--server", &server]);
            if meeting == Meeting::Unix {
                command.args(["--server", &link]);
            }
            let daemon = Daemon::spawn(command.arg("--control").arg(self.path("daemon", site)), "hadmd");
            daemon.wait_log(" ready:", PATIENCE);
            daemon
        });
        let sockets = self.path("sockets", site);
        std::fs::create_dir_all(&sockets).unwrap();
        let mut command = self.program("hadm-nbd", site);
        command.args(["run", "--log", "stderr", "--server"]);
        command.arg(if meeting == Meeting::Unix { &link } else { &server });
        if meeting == Meeting::Process {
            command.arg("--with-daemon").arg("--daemon-control").arg(self.path("daemon", site));
        }
        command.arg("--sockets").arg(sockets);
        let disk = Daemon::spawn(command.arg("--control").arg(self.path("control", site)), "hadm-nbd");
        disk.wait_log("  ready:", PATIENCE);
        self.sites[site] = [disk].into_iter().chain(daemon).collect();
    }

    pub fn stop_site(&mut self, site: usize) {
        self.sites[site].drain(..).for_each(Daemon::kill9);
        self.wait_for(|status| !status["peers"][0]["linked"].as_bool().unwrap_or(true));
    }

    /// A primary's disk for NBD's clients.
    pub fn uri(&self, site: usize) -> String {
        format!("nbd+unix:///data?socket={}", self.socket(site).display())
    }

    /// Its socket.
    pub fn socket(&self, site: usize) -> PathBuf {
        self.path("sockets", site).join("data.nbd")
    }

    /// Sends a signal to a site's `hadm-nbd`.
    pub fn signal(&self, site: usize, signal: Signal) {
        self.sites[site][0].signal(signal);
    }

    /// Waits until nothing is on its way to the far site.
    pub fn wait_caught_up(&self) {
        self.wait_for(|status| {
            let peer = &status["peers"][0];
            peer["in_sync"] == true && peer["behind"]["bytes"] == 0 && peer["out_of_sync"] == 0
        });
    }

    /// Waits until the far site lacks something.
    pub fn wait_behind(&self) {
        self.wait_for(|status| status["peers"][0]["behind"]["bytes"].as_u64().is_some_and(|bytes| bytes > 0));
    }

    /// Moves the role in order; the time until the other site serves.
    pub fn switch_over(&self, from: usize, to: usize) -> Duration {
        let began = Instant::now();
        self.disk_command(from, &["secondary", "data"]);
        self.wait_at(to, |status| status["follows"].is_null());
        self.disk_command(to, &["primary", "data"]);
        began.elapsed()
    }

    fn disk_command(&self, site: usize, args: &[&str]) -> String {
        let mut command = Command::new(self.build.programs.join("hadmctl"));
        command.arg("--control").arg(self.path("control", site)).args(["--timeout", "60", "disk"]);
        let done = command.args(args).output().unwrap();
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    fn wait_for(&self, is_so: impl Fn(&Value) -> bool) {
        self.wait_at(0, is_so);
    }

    fn wait_at(&self, site: usize, is_so: impl Fn(&Value) -> bool) {
        let end = Instant::now() + PATIENCE;
        // A program started for each look would take the time that is measured.
        let client = UnixStream::connect(self.path("control", site)).unwrap();
        let mut answers = BufReader::new(&client).lines();
        loop {
            writeln!(&client, "{{\"v\": 1, \"cmd\": \"status\"}}").unwrap();
            let answer = answers.next().unwrap().unwrap();
            let status = serde_json::from_str::<Value>(&answer).unwrap()["data"]["resources"][0].take();
            assert!(status.is_object(), "{answer}");
            if is_so(&status) {
                return;
            }
            assert!(Instant::now() < end, "{status}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn wait_in_sync(&self) {
        self.wait_for(|status| status["peers"][0]["in_sync"] == true);
    }

    pub fn wait_resyncing(&self) {
        self.wait_for(|status| status["peers"][0]["state"] == "resync to it");
    }

    /// Waits until a resync of everything has copied this many bytes.
    pub fn wait_copied(&self, bytes: u64) {
        let size = self.disk(0).metadata().unwrap().len();
        self.wait_for(|status| {
            status["peers"][0]["out_of_sync"].as_u64().is_some_and(|left| left + bytes <= size)
        });
    }

    pub fn is_in_sync(&self) -> bool {
        self.disk_command(0, &["status", "data"]).contains("site 1 in sync")
    }

    /// Has the other site begin again with an empty disk.
    pub fn begin_full_resync(&mut self) {
        self.stop_site(1);
        let size = self.disk(1).metadata().unwrap().len();
        std::fs::remove_file(self.path("meta", 1)).unwrap();
        File::create(self.disk(1)).unwrap().set_len(size).unwrap();
        self.init(1);
        self.start_site(1);
        self.wait_resyncing();
    }

    /// Writes everything while the other site is away; how long that site takes to be in sync once it is back.
    pub fn resync_by_bitmap(&mut self, size: u64) -> Duration {
        self.disk_command(0, &["disconnect", "data", "1"]);
        fio::nbd(&self.uri(0), Job { kind: "write", block: "1m", depth: 4 }.of(size), None);
        self.wait_for(|status| status["peers"][0]["out_of_sync"].as_u64() == Some(size));
        let began = Instant::now();
        self.disk_command(0, &["connect", "data", "1"]);
        self.wait_in_sync();
        began.elapsed()
    }

    /// Gives all of the disk back to the system.
    pub fn trim_all(&self) {
        const TRIM: u16 = 4;
        let mut client = Client::greeted(&self.socket(0));
        client.go("data", &[]);
        let size = self.disk(0).metadata().unwrap().len();
        for at in (0..size).step_by(1 << 30) {
            assert_eq!(client.ask(TRIM, 0, at, (size - at).min(1 << 30) as u32), 0);
        }
        self.wait_for(|status| status["peers"][0]["out_of_sync"].as_u64() == Some(size));
    }

    /// A value of /proc/PID/status of a site's `hadm-nbd`, in KiB.
    pub fn memory(&self, site: usize, name: &str) -> u64 {
        self.sites[site][0].status(name)
    }
}

/// The side-by-side rows use a part of the disk.
const _: () = assert!(RANGE <= 1 << 30);
