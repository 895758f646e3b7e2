//! Runs `hadm-probe` and collects what it prints; a directory for the files of one test.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Longest time for anything before a test gives up.
pub const LIMIT: Duration = Duration::from_secs(30);

/// A running probe. It is killed when the test ends early.
pub struct Probe {
    child: Child,
    out: Receiver<String>,
    err: Receiver<String>,
}

/// The end of a probe.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Probe {
    pub fn start(server: SocketAddr, args: &[&str]) -> Probe {
        let mut child = Command::new(env!("CARGO_BIN_EXE_hadm-probe"))
            .args(["--server", &server.to_string()])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (out, err) = (lines(child.stdout.take().unwrap()), lines(child.stderr.take().unwrap()));
        Probe { child, out, err }
    }

    /// The next line on stdout.
    pub fn line(&self) -> String {
        self.out.recv_timeout(LIMIT).unwrap_or_else(|e| panic!("no line: {e}; {}", rest(&self.err)))
    }

    /// Waits for a line on stderr that has this in it.
    pub fn hear(&self, part: &str) {
        let until = Instant::now() + LIMIT;
        while !self.err.recv_timeout(until - Instant::now()).unwrap().contains(part) {}
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn end(mut self) -> Ended {
        let (out, err) = (rest(&self.out), rest(&self.err));
        Ended { code: self.child.wait().unwrap().code(), out, err }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (to, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            if to.send(line.unwrap()).is_err() {
                return;
            }
        }
    });
    lines
}

/// Returns the rest of the output, up to the end of the stream.
fn rest(lines: &Receiver<String>) -> String {
    let until = Instant::now() + LIMIT;
    let mut all = String::new();
    loop {
        match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => all += &(line + "\n"),
            Err(RecvTimeoutError::Disconnected) => return all,
            Err(RecvTimeoutError::Timeout) => panic!("the probe does not end; so far: {all}"),
        }
    }
}

impl Ended {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    pub fn failed_saying(&self, part: &str) {
        assert!(self.code == Some(1) && self.err.contains(part), "{part:?} in {self:?}");
    }
}

/// A directory of its own that goes with the test.
pub struct Room(PathBuf);

impl Room {
    pub fn new() -> Room {
        let path = std::env::temp_dir().join(format!("hadm-probe-test-{:016x}", fastrand::u64(..)));
        fs::create_dir(&path).unwrap();
        Room(path)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// A file of random bytes.
    pub fn file(&self, name: &str, size: usize) -> (String, Vec<u8>) {
        let mut bytes = vec![0; size];
        fastrand::fill(&mut bytes);
        fs::write(self.0.join(name), &bytes).unwrap();
        (self.path(name), bytes)
    }

    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
