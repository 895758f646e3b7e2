//! `status --watch` on a terminal of 80x24: it fits, scrolls, goes on after a restart, and leaves the terminal as it was;
//! and that an error is one line.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::support::*;

const ROWS: usize = 24;
const COLUMNS: usize = 80;

/// The content of a terminal, as far as the programs use it. Going over an edge is a failure: a real one would scroll.
struct Picture {
    cells: Vec<Vec<char>>,
    at: (usize, usize),
    rest: Vec<u8>,
    /// All that came.
    raw: Vec<u8>,
    wrong: Option<String>,
}

impl Picture {
    fn new() -> Self {
        let cells = vec![vec![' '; COLUMNS]; ROWS];
        Picture { cells, at: (0, 0), rest: Vec::new(), raw: Vec::new(), wrong: None }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.raw.extend_from_slice(bytes);
        self.rest.extend_from_slice(bytes);
        let text = String::from_utf8_lossy(&self.rest).into_owned();
        let mut rest = text.as_str();
        while let Some(c) = rest.chars().next() {
            let (row, column) = self.at;
            let mut used = c.len_utf8();
            match c {
                '\r' => self.at.1 = 0,
                '\n' if row + 1 == ROWS => self.wrong = Some("a line too many".into()),
                '\n' => self.at.0 += 1,
                '\x1b' => {
                    let Some(end) = rest.find(|c: char| c.is_ascii_alphabetic()) else { break };
                    match &rest[1..=end] {
                        "[H" => self.at = (0, 0),
                        "[K" => self.cells[row][column.min(COLUMNS)..].fill(' '),
                        "[J" => {
                            self.cells[row][column.min(COLUMNS)..].fill(' ');
                            self.cells[row + 1..].fill(vec![' '; COLUMNS]);
                        }
                        code if code.ends_with('m') => {}
                        other => self.wrong = Some(format!("unknown: {other:?}")),
                    }
                    used = end + 1;
                }
                c if column < COLUMNS => {
                    self.cells[row][column] = c;
                    self.at.1 += 1;
                }
                _ => self.wrong = Some("a line too long".into()),
            }
            rest = &rest[used..];
        }
        self.rest = rest.as_bytes().to_vec();
    }

    fn lines(&self) -> Vec<String> {
        self.cells.iter().map(|row| row.iter().collect::<String>().trim_end().to_owned()).collect()
    }
}

struct Terminal {
    child: Child,
    master: std::fs::File,
    slave: OwnedFd,
    picture: Arc<(Mutex<Picture>, Condvar)>,
}

impl Terminal {
    fn start(command: &mut Command) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let path = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let slave = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let size = Winsize { ws_row: ROWS as u16, ws_col: COLUMNS as u16, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).unwrap();
        let end = || Stdio::from(slave.try_clone().unwrap());
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let master = std::fs::File::from(master);
        let picture = Arc::new((Mutex::new(Picture::new()), Condvar::new()));
        let (mut reading, filling) = (master.try_clone().unwrap(), Arc::clone(&picture));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = reading.read(&mut bytes) {
                filling.0.lock().unwrap().take(&bytes[..n]);
                filling.1.notify_all();
            }
        });
        Terminal { child, master, slave: slave.into(), picture }
    }

    /// Waits until the screen is so.
    #[track_caller]
    fn wait(&self, what: &str, so: impl Fn(&[String]) -> bool) -> Vec<String> {
        let end = Instant::now() + PATIENCE;
        let mut picture = self.picture.0.lock().unwrap();
        loop {
            assert_eq!(picture.wrong, None, "{}", String::from_utf8_lossy(&picture.raw));
            let lines = picture.lines();
            if so(&lines) {
                return lines;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(picture);
                panic!("no {what} in\n{}", lines.join("\n"));
            }
            picture = self.picture.1.wait_timeout(picture, left).unwrap().0;
        }
    }

    fn press(&self, keys: &str) {
        (&self.master).write_all(keys.as_bytes()).unwrap();
    }

    fn raw(&self) -> String {
        String::from_utf8_lossy(&self.picture.0.lock().unwrap().raw).into_owned()
    }

    /// Returns true if it echoes and waits for whole lines, as before.
    fn is_restored(&self) -> bool {
        let modes = tcgetattr(&self.slave).unwrap().local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A child that does not outlive its test, also where that fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn hadmctl(config: &ConfigFile, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
    command.env_remove("NO_COLOR").env("TERM", "xterm");
    command.arg("--control").arg(config.control(0)).args(args);
    command
}

fn has(lines: &[String], part: &str) -> bool {
    lines.iter().any(|line| line.contains(part))
}

#[test]
fn thirty_one_peers_fit_a_small_screen_and_scroll() {
    let harness = Harness::new(32);
    let peer = harness.call(31);
    let mut terminal = Terminal::start(&mut hadmctl(&harness.config, &["status", "--watch"]));
    let first = terminal.wait("footer", |lines| lines[ROWS - 1].contains("of 31; arrow"));
    assert!(first[0].starts_with("hadmd ") && has(&first, "connected: 1 of 31"), "{first:#?}");
    assert!(has(&first, "node 1 ") && !has(&first, "node 31 "), "{first:#?}");
    assert_eq!(first.iter().filter(|line| line.starts_with("node ")).count(), ROWS - 5, "{first:#?}");
    assert!(!terminal.is_restored(), "keys are read one by one");
    terminal.press("\x1b[6~");
    let connected = |line: &String| line.starts_with("node 31 ") && line.contains("connected");
    let last = terminal.wait("last peer", |lines| lines.iter().any(connected));
    assert!(!has(&last, "node 1 "), "{last:#?}");
    // Bytes of a second, for people.
    harness.assert_carries(&peer);
    terminal.wait("rate", |lines| has(lines, " 0 B      0 B"));
    terminal.press("\x1b[A\x1b[A");
    terminal.wait("scrolled back", |lines| lines[ROWS - 1].starts_with("11 to 29 of 31"));
    terminal.press("g");
    terminal.wait("first peer", |lines| has(lines, "node 1 "));
    assert!(terminal.raw().contains("\x1b[32mconnected"), "colours");
    terminal.press("q");
    redial("end", PATIENCE, || terminal.child.try_wait().unwrap().filter(|ended| ended.success()));
    assert!(terminal.is_restored());
    harness.stop();
}

#[test]
fn a_watch_goes_on_after_a_restart_of_the_daemon() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let daemon = Daemon::start(&net, &config, 0);
    let mut screen = Terminal::start(&mut hadmctl(&config, &["status", "--watch"]));
    let mut pipe = hadmctl(&config, &["status", "--watch", "--json"]);
    let mut pipe = Killed(pipe.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(pipe.0.stdout.take().unwrap()));
    let pid = |line: String| line.split("\"pid\":").nth(1).unwrap().split(',').next().unwrap().to_owned();
    let first = pid(lines.next().unwrap().unwrap());
    screen.wait("peer", |lines| has(lines, "node 1 "));
    daemon.stop();
    // The last that was known stays.
    let is_old =
        |lines: &[String]| lines[0].starts_with("NOT NOW: cannot reach the daemon") && has(lines, "node 1 ");
    screen.wait("trouble", is_old);
    let daemon = Daemon::start(&net, &config, 0);
    screen.wait("daemon", |lines| lines[0].starts_with("hadmd ") && has(lines, "node 1 "));
    assert!(lines.any(|line| pid(line.unwrap()) != first), "the new daemon's");
    kill_process(Pid::from_child(&screen.child), Signal::TERM).unwrap();
    redial("end", PATIENCE, || screen.child.try_wait().unwrap());
    assert!(screen.is_restored());
    daemon.stop();
}

/// A script's `timeout` puts its command into the background of the terminal, where a change of the terminal's settings
/// stops a program.
#[test]
fn a_watch_in_the_background_of_its_terminal_shows_and_ends() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let daemon = Daemon::start(&net, &config, 0);
    let program = env!("CARGO_BIN_EXE_hadmctl");
    let control = config.control(0);
    let script =
        format!("timeout 2 {program} --control {} status --watch; echo ended: $?", control.display());
    // A session of its own, of which the terminal is the controlling one; bounded, since nothing else ends it.
    let mut session = Command::new("timeout");
    session.args(["-k", "1", "60", "setsid", "--ctty", "--wait", "sh", "-c", &script]).env("TERM", "xterm");
    let screen = Terminal::start(&mut session);
    screen.wait("peer", |lines| has(lines, "node 1 "));
    screen.wait("end", |lines| has(lines, "ended: 124"));
    assert!(screen.is_restored());
    daemon.stop();
}

#[test]
fn a_terminal_that_wants_no_colours_or_can_do_nothing_gets_none() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let daemon = Daemon::start(&net, &config, 0);
    let quiet = Terminal::start(hadmctl(&config, &["status", "--watch"]).env("NO_COLOR", "1"));
    quiet.wait("peer", |lines| has(lines, "node 1 "));
    assert!(quiet.raw().contains("\x1b[H") && !quiet.raw().contains("\x1b[3"), "{}", quiet.raw());
    let dumb = Terminal::start(hadmctl(&config, &["status", "--watch"]).env("TERM", "dumb"));
    dumb.wait("peer", |lines| has(lines, "node 1 "));
    assert!(!dumb.raw().contains('\x1b'), "{}", dumb.raw());
    for args in [&["status"][..], &["doctor"]] {
        let coloured = Terminal::start(&mut hadmctl(&config, args));
        redial("colours", PATIENCE, || coloured.raw().contains("\x1b[31m").then_some(()));
        let mut plain = Terminal::start(hadmctl(&config, args).env("NO_COLOR", "1"));
        redial("end", PATIENCE, || plain.child.try_wait().unwrap());
        redial("answer", PATIENCE, || plain.raw().contains("not attached").then_some(()));
        assert!(!plain.raw().contains('\x1b'), "{args:?}");
    }
    daemon.stop();
}

/// The error stands alone, and names the way to the usage.
#[test]
fn usage_errors_are_one_line() {
    for program in [
        env!("CARGO_BIN_EXE_hadmd"),
        env!("CARGO_BIN_EXE_hadmctl"),
        env!("CARGO_BIN_EXE_hadm-probe"),
        env!("CARGO_BIN_EXE_hadm-nbd"),
    ] {
        let output = Command::new(program).arg("--no-such-option").output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{program}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("--no-such-option") && text.contains("--help"), "{text}");
    }
}
