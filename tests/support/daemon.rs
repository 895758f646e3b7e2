//! The built daemon as a child process, with its log captured.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{ConfigFile, PATIENCE, PacketCounters, Subnet};

/// A directory of this test's own, removed on drop.
pub struct TempDir {
    pub path: PathBuf,
}

impl TempDir {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("hadmd-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        TempDir { path }
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// A running (or ended) daemon. Dropping it kills it, and prints its log when the test is failing.
pub struct Daemon {
    child: Child,
    name: String,
    log: Arc<Log>,
}

#[derive(Default)]
struct Log {
    state: Mutex<(Vec<String>, bool)>,
    changed: Condvar,
}

impl Daemon {
    /// The bare binary.
    pub fn binary() -> Command {
        Command::new(env!("CARGO_BIN_EXE_hadmd"))
    }

    /// The command line of node `id`'s daemon, without `--no-kmod-check` or `--modules`.
    pub fn command(net: &Subnet, config: &ConfigFile, id: u8) -> Command {
        let mut command = Self::binary();
        command.arg("-c").arg(&config.path).args(["--hostname", &format!("n{id}")]);
        command.args(["--server", &net.server(id).to_string(), "--log", "stderr", "-v"]);
        command.arg("--control").arg(config.control(id));
        command
    }

    /// Starts node `id`'s daemon without the module check, and waits until it is ready.
    #[track_caller]
    pub fn start(net: &Subnet, config: &ConfigFile, id: u8) -> Self {
        let mut command = Self::command(net, config, id);
        let daemon = Self::spawn(command.arg("--no-kmod-check"), &format!("n{id}"));
        daemon.wait_log(" ready:", PATIENCE);
        daemon
    }

    /// Starts a command line as it is; waits for nothing.
    pub fn spawn(command: &mut Command, name: &str) -> Self {
        let piped = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = piped.spawn().expect("the daemon starts");
        let stderr = child.stderr.take().unwrap();
        let log = Arc::new(Log::default());
        let filling = log.clone();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stderr);
            let mut line = Vec::new();
            while matches!(lines.read_until(b'\n', &mut line), Ok(n) if n > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_string();
                filling.state.lock().unwrap().0.push(text);
                filling.changed.notify_all();
                line.clear();
            }
            filling.state.lock().unwrap().1 = true;
            filling.changed.notify_all();
        });
        Daemon { child, name: name.into(), log }
    }

    #[track_caller]
    fn wait<T>(&self, what: &str, limit: Duration, mut found: impl FnMut(&[String], bool) -> Option<T>) -> T {
        let end = Instant::now() + limit;
        let mut state = self.log.state.lock().unwrap();
        loop {
            if let Some(value) = found(&state.0, state.1) {
                return value;
            }
            let Some(left) = end.checked_duration_since(Instant::now()) else {
                // Not under the lock: the log is printed while the panic unwinds.
                drop(state);
                panic!("{}: no {what} within {limit:?}", self.name);
            };
            state = self.log.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Waits for a log line that contains `text`, and gives it.
    #[track_caller]
    pub fn wait_log(&self, text: &str, limit: Duration) -> String {
        let line = self.wait(&format!("log line with `{text}`"), limit, |lines, ended| {
            match lines.iter().find(|line| line.contains(text)) {
                Some(line) => Some(Some(line.clone())),
                None => ended.then_some(None),
            }
        });
        line.unwrap_or_else(|| panic!("{} ended without a log line with `{text}`", self.name))
    }

    /// Returns the number of log lines so far that contain `text`.
    pub fn log_count(&self, text: &str) -> usize {
        self.log.state.lock().unwrap().0.iter().filter(|line| line.contains(text)).count()
    }

    /// The log so far.
    pub fn log(&self) -> Vec<String> {
        self.log.state.lock().unwrap().0.clone()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Kills it with -9 and waits for its end.
    pub fn kill9(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end.
    pub fn term(&self) {
        self.signal(Signal::TERM);
    }

    /// Waits until it has ended: its stderr is closed by then.
    #[track_caller]
    pub fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        self.wait("end of the process", limit, |_, ended| ended.then_some(()));
        self.child.wait().unwrap()
    }

    /// Asks it to end, waits for exit code 0, and checks its counters.
    #[track_caller]
    pub fn stop(mut self) -> PacketCounters {
        self.term();
        let status = self.wait_exit(PATIENCE);
        assert_eq!(status.code(), Some(0), "{}: {status}", self.name);
        PacketCounters::assert_balance(&self.log())
    }

    /// Returns true if the process still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    fn proc(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{file}", self.child.id()))
    }

    /// A value of /proc/PID/status, such as `VmRSS` or `VmHWM` (KiB) or `Threads`.
    pub fn status(&self, name: &str) -> u64 {
        let text = std::fs::read_to_string(self.proc("status")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(self.proc("fd")).unwrap().count()
    }

    /// Processor time used so far, in clock ticks (10 ms on Linux).
    pub fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(self.proc("stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let skip = log.len().saturating_sub(200);
            eprintln!("--- log of {} ({skip} lines left out) ---\n{}", self.name, log[skip..].join("\n"));
        }
    }
}
