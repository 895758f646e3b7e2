//! Where log lines go: to stderr with time stamps, or to syslog (facility daemon) by a thread of its own.
//!
//! Nothing here may block whoever logs: syslog lines wait in a bounded queue, and what has no room there is
//! left out and counted. Lines that a peer or client can cause at will go through [`limited!`].

mod limit;
mod syslog;

pub use limit::{Cause, left_out_pending, limited, tell_left_out};

use std::fmt;
use std::io::Write;
use std::time::{Duration, Instant, SystemTime};

use crossbeam::channel::{self, Receiver, Sender};
use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::sys;

/// Lines that may wait for syslog. At some 200 bytes a line, that is 200 KiB.
const QUEUE: usize = 1024;

/// Logs a line, but at most one a second for the same cause; the next one tells how many were left out.
#[macro_export]
macro_rules! limited {
    ($level:expr, $cause:expr, $($text:tt)+) => {
        $crate::log::limited($level, $cause, format_args!($($text)+))
    };
}

/// Where log lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Standard error, with time stamps.
    Stderr,
    /// The system log, facility daemon.
    Syslog,
}

/// One line for the syslog thread, or a question whether it has written all before it.
enum Line {
    Text(Level, String),
    Flush(Sender<()>),
}

struct Logger {
    syslog: Option<Sender<Line>>,
    left_out: crate::queue::Counter,
}

/// Directs the `log` crate's macros to the target. To be called once, at the start.
///
/// # Errors
/// The thread for syslog could not be started, or a logger is installed already.
pub fn install(target: Target, level: LevelFilter) -> Result<(), String> {
    let syslog = match target {
        Target::Stderr => None,
        Target::Syslog => {
            let (sender, lines) = channel::bounded(QUEUE);
            sys::spawn("log", move || syslog::write(&lines))
                .map_err(|error| format!("cannot start the log thread: {error}"))?;
            Some(sender)
        }
    };
    let logger = Logger { syslog, left_out: Default::default() };
    log::set_boxed_logger(Box::new(logger)).map_err(|error| error.to_string())?;
    log::set_max_level(level);
    Ok(())
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let Some(syslog) = &self.syslog else { return to_stderr(record.level(), record.args()) };
        let left_out = self.left_out.get();
        let text = match left_out {
            0 => record.args().to_string(),
            n => format!("{} ({n} lines left out before this one: syslog was too slow)", record.args()),
        };
        match syslog.try_send(Line::Text(record.level(), text)) {
            Ok(()) => self.left_out.sub(left_out),
            Err(_) => self.left_out.add(1),
        }
    }

    /// Waits up to a second until syslog has what was logged before.
    fn flush(&self) {
        if let Some(syslog) = &self.syslog {
            let (done, wait): (_, Receiver<()>) = channel::bounded(1);
            let deadline = Instant::now() + Duration::from_secs(1);
            if syslog.send_deadline(Line::Flush(done), deadline).is_ok() {
                let _ = wait.recv_deadline(deadline);
            }
        }
    }
}

/// One line to stderr, in one write, so that lines of several threads do not mix.
fn to_stderr(level: Level, text: &dyn fmt::Display) {
    let now = humantime::format_rfc3339_millis(SystemTime::now());
    let line = format!("{now} {level:<5} {text}\n");
    // A closed stderr is no reason to stop the daemon.
    let _ = std::io::stderr().write_all(line.as_bytes());
}
