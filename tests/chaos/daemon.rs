//! A node's daemon: its files, its process, its control socket. Whatever ends it but the injector is a violation.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::judge::SLOW;
use super::world::{self, NODE_PORT, SERVER, dir, ip};

/// The users of the daemons: the limit on threads counts them by user, and binds no root.
const FIRST_USER: u32 = 1_000_000;
/// Longest payload that a peer may send; with its header it stays below the size the ceiling is given for.
const MAX_PACKET: usize = 128 * 1024 - 128;
/// How long an orderly end may take: queues drain for some seconds, and it may be stopped meanwhile.
const ENDS: Duration = Duration::from_secs(20);

/// What a node's configuration may differ in.
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
        let daemon = Daemon { node, nodes, user, home, child: Mutex::new(None) };
        daemon.step_clock(0);
        daemon
    }

    pub fn config(&self) -> PathBuf {
        self.home.join("hadm.xml")
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
             <slowtimeout>{}</slowtimeout></global><sites><site><id>0</id><mode>share</mode><nodes>",
            SERVER.ip(),
            SERVER.port(),
            settings.ping,
            SLOW.as_secs_f64()
        );
        for id in (0..self.nodes).filter(|id| Some(*id) != settings.without) {
            let ip = ip(id);
            xml += &format!(
                "<node><id>{id}</id><hostname>n{id}</hostname><ipaddr>{ip}</ipaddr><port>{NODE_PORT}</port></node>"
            );
        }
        xml += if settings.broken { "</oops>" } else { "</nodes></site></sites><resources/></hadm>" };
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

    /// Whether it has ended, if it was asked to.
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

    /// Whether it ended though nobody asked it to, and how.
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
