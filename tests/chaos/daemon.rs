//! A node's daemon: its files, its process, its control socket. An end that the injector did not ask for is a violation.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::judge::SLOW;
use super::world::{self, NODE_PORT, SERVER, SITE_PORT, Shape, dir, ip};

/// The users of the daemons: the limit on threads counts them by user, and binds no root.
const FIRST_USER: u32 = 1_000_000;
/// Longest payload that a peer may send; with its header it stays below the size the ceiling is given for.
const MAX_PACKET: usize = 128 * 1024 - 128;
/// Longest time of an orderly end: queues drain for some seconds, and it may be stopped meanwhile.
const ENDS: Duration = Duration::from_secs(20);

/// The variations of a node's configuration.
#[derive(Clone, Copy)]
pub struct Settings {
    pub ping: f64,
    pub without: Option<usize>,
    pub broken: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { ping: 0.4, without: None, broken: false }
    }
}

/// One node's daemon.
pub struct Daemon {
    pub node: usize,
    nodes: usize,
    user: u32,
    pub home: PathBuf,
    /// With since when it is asked to end.
    child: Mutex<Option<(Child, Option<Instant>)>>,
}

/// The library that fakes the wall clock, which a file then steps; `None` where it is not installed.
pub fn faketime() -> Option<PathBuf> {
    let machines = fs::read_dir("/usr/lib").ok()?.flatten();
    machines.map(|dir| dir.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.exists())
}

impl Daemon {
    pub fn new(node: usize, nodes: usize) -> Self {
        let home = dir().join(format!("n{node}"));
        // Unlike those of a run beside this one, which has another process there.
        let user = FIRST_USER + fastrand::u32(..10_000_000) * 8 + node as u32;
        fs::create_dir_all(home.join("log")).unwrap();
        world::run("mount", &["-t", "tmpfs", "-o", "size=2m", "log", home.join("log").to_str().unwrap()]);
        chown(&home, Some(user), Some(user)).unwrap();
        if Shape::get().authkey {
            let key = home.join("key");
            fs::write(
                &key,
                format!(
                    "{}\n",
                    "6b1f03a9c4e85d27".to_owned()
                        + "90d2f7b85c1e4a36"
                        + "e8135f0c7ab2946d"
                        + "21c97e64b30fd58a"
                ),
            )
            .unwrap();
            fs::set_permissions(&key, fs::Permissions::from_mode(0o400)).unwrap();
            chown(&key, Some(user), Some(user)).unwrap();
        }
        let daemon = Daemon { node, nodes, user, home, child: Mutex::new(None) };
        daemon.step_clock(0);
        daemon
    }

    pub fn config(&self) -> PathBuf {
        self.home.join("hadm.xml")
    }

    /// The cluster's key, as the daemon's user has it.
    fn key(&self) -> PathBuf {
        self.home.join("key")
    }

    /// The name of a peer on the control socket.
    pub fn name(peer: usize) -> String {
        if Shape::get().sites { format!("0:{peer}") } else { peer.to_string() }
    }

    /// The ports from which node `caller` holds its data link and its meta link with this one, as far as the
    /// daemon says it in time.
    pub fn ports(&self, caller: usize) -> Option<[u16; 2]> {
        let asked = self.ask(json!({"v": 1, "cmd": "status"}), Some(Duration::from_millis(300))).ok()?;
        let peers = asked.0["data"]["peers"].as_array()?.clone();
        let is = |peer: &&Value| peer["node"] == caller || peer["site"] == caller;
        let source = peers.iter().find(is)?["source"].as_str()?.to_string();
        let data: u16 = source.rsplit(':').next()?.parse().ok()?;
        let own = format!("{:04X}", Shape::get().port());
        let from = format!("{:08X}", u32::from_le_bytes(ip(caller).octets()));
        let table = world::at(self.node, || fs::read_to_string("/proc/thread-self/net/tcp").ok())?;
        let meta = table.lines().skip(1).find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (local, remote) = (fields.get(1)?.split_once(':')?, fields.get(2)?.split_once(':')?);
            let port = u16::from_str_radix(remote.1, 16).ok()?;
            let other = local.1 == own && remote.0 == from && fields.get(3) == Some(&"01") && port != data;
            other.then_some(port)
        })?;
        Some([data, meta])
    }

    fn control(&self) -> PathBuf {
        self.home.join("control")
    }

    pub fn log(&self) -> PathBuf {
        self.home.join("log/hadmd.log")
    }

    /// Writes the configuration; the daemon reads it when it starts or is asked to.
    pub fn configure(&self, settings: Settings) {
        let mut xml = format!(
            "<hadm><global><serverip>{}</serverip><serverport>{}</serverport><pingtimeout>{}</pingtimeout>\
             <maxpingcount>4</maxpingcount><peeraddr>strict</peeraddr><maxpacket>{MAX_PACKET}</maxpacket>\
             <slowtimeout>{}</slowtimeout>{}</global><sites>",
            SERVER.ip(),
            SERVER.port(),
            settings.ping,
            SLOW.as_secs_f64(),
            if Shape::get().authkey {
                format!("<authkey>{}</authkey>", self.key().display())
            } else {
                String::new()
            },
        );
        let shape = Shape::get();
        let nodes = || (0..self.nodes).filter(|id| Some(*id) != settings.without);
        let node = |id, machine| {
            let ip = ip(machine);
            format!(
                "<node><id>{id}</id><hostname>n{machine}</hostname><ipaddr>{ip}</ipaddr><port>{NODE_PORT}</port></node>"
            )
        };
        let site = |id: usize, nodes: String| {
            format!("<site><id>{id}</id><mode>share</mode><nodes>{nodes}</nodes></site>")
        };
        let mut resources = String::new();
        if shape.sites {
            xml.extend(nodes().map(|id| site(id, node(0, id))));
            let compress = if shape.compress { "<compress>lz4</compress>" } else { "" };
            let runsites = nodes().map(|id| {
                format!(
                    "<runsite><id>{id}</id><ip>{}</ip><port>{SITE_PORT}</port>{compress}<protocol>async</protocol>\
                     <disk>/dev/sdb</disk><bwr_disk>/dev/sdc</bwr_disk><runnodes><id>0</id></runnodes></runsite>",
                    ip(id)
                )
            });
            let runsites = runsites.collect::<String>();
            resources =
                format!("<resource><id>0</id><name>r0</name><runsites>{runsites}</runsites></resource>");
        } else {
            xml += &site(0, nodes().map(|id| node(id, id)).collect());
        }
        xml += &match settings.broken {
            true => "</oops>".into(),
            false => format!("</sites><resources>{resources}</resources></hadm>"),
        };
        fs::write(self.config(), xml).unwrap();
    }

    pub fn step_clock(&self, seconds: i64) {
        fs::write(self.home.join("clock"), format!("{seconds:+}")).unwrap();
    }

    /// Starts it, unless it runs, with a good configuration.
    pub fn start(&self) {
        let mut child = self.child.lock().unwrap();
        if child.is_some() {
            return;
        }
        self.configure(Settings::default());
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        let mut command = Command::new(dir().join("hadmd"));
        command.arg("-c").arg(self.config()).args(["--hostname", &format!("n{}", self.node)]);
        command.args(["--log", "stderr", "-v", "--no-kmod-check", "--control"]).arg(self.control());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).uid(self.user).gid(self.user);
        if let Some(library) = faketime() {
            command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", self.home.join("clock"));
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("FAKETIME_CACHE_DURATION", "1");
        }
        *child = Some((world::at(self.node, || command.spawn().unwrap()), None));
    }

    pub fn kill(&self) {
        if let Some((mut child, _)) = self.child.lock().unwrap().take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Asks it to end; it may be stopped.
    pub fn ask_to_end(&self) {
        if let Some((_, asked)) = &mut *self.child.lock().unwrap() {
            *asked = Some(Instant::now());
        }
        self.signal(Signal::CONT);
        self.signal(Signal::TERM);
    }

    /// Returns true if it has ended, if it was asked to.
    ///
    /// # Errors
    /// It ended otherwise than it should, or not at all.
    pub fn has_ended(&self) -> Result<bool, String> {
        let mut running = self.child.lock().unwrap();
        let Some((child, Some(asked))) = &mut *running else { return Ok(true) };
        match child.try_wait().unwrap() {
            Some(status) => {
                *running = None;
                let good = status.code() == Some(0);
                if good { Ok(true) } else { Err(format!("node {} ended with {status}", self.node)) }
            }
            None if asked.elapsed() > ENDS => {
                Err(format!("node {} did not end within {ENDS:?} of SIGTERM", self.node))
            }
            None => Ok(false),
        }
    }

    pub fn signal(&self, signal: Signal) {
        if let Some((child, _)) = &*self.child.lock().unwrap() {
            let _ = kill_process(Pid::from_child(child), signal);
        }
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.lock().unwrap().as_ref().map(|(child, _)| child.id())
    }

    /// Returns the way of its end, if it ended without being asked to.
    pub fn died(&self) -> Option<String> {
        let mut running = self.child.lock().unwrap();
        let (child, _) = running.as_mut().filter(|(_, asked)| asked.is_none())?;
        let status = child.try_wait().unwrap()?;
        Some(format!("the daemon of node {} ended by itself: {status}", self.node))
    }

    /// Sets the limit on a resource (`nofile`, `nproc`), `None` is a high one. As the daemon's user: root may be
    /// denied it.
    pub fn limit(&self, resource: &str, limit: Option<u64>) {
        let Some(pid) = self.pid() else { return };
        let limit = format!("--{resource}={}:", limit.unwrap_or(1000));
        let mut prlimit = Command::new("prlimit");
        let prlimit = prlimit.args(["--pid", &pid.to_string(), &limit]).uid(self.user).gid(self.user);
        let output = prlimit.output().unwrap();
        let gone = !Path::new(&format!("/proc/{pid}/fd")).exists();
        assert!(output.status.success() || gone, "{limit}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A value of /proc/PID/status in KiB.
    pub fn memory(&self) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid()?)).ok()?;
        text.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok())
    }

    /// Asks the daemon; the answer and a reader of what comes after it.
    pub fn ask(&self, request: Value, limit: Option<Duration>) -> io::Result<(Value, BufReader<UnixStream>)> {
        let mut stream = UnixStream::connect(self.control())?;
        stream.set_read_timeout(limit)?;
        writeln!(stream, "{request}")?;
        let mut lines = BufReader::new(stream);
        let mut line = String::new();
        lines.read_line(&mut line)?;
        Ok((serde_json::from_str(&line)?, lines))
    }
}
