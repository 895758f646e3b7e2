//! Where log lines go: to stderr with time stamps, or to syslog (facility daemon).
//!
//! Whoever logs must not be blocked by a terminal that is stopped or a system log that is slow: lines wait in
//! a bounded queue for a thread that writes them, and what has no room there is left out and counted. Lines
//! that a peer or client can cause at will go through [`limited!`](crate::limited!).

mod limit;
mod syslog;

pub use limit::{Cause, left_out_pending, limited, tell_left_out};

use std::io::Write;
use std::time::{Duration, Instant, SystemTime};

use crossbeam::channel::{self, Receiver, Sender};
use log::{Level, LevelFilter, Log, Metadata, Record};

use self::syslog::Syslog;
use crate::queue::Counter;
use crate::sys;

/// Lines that may wait to be written. At some 200 bytes a line, that is 800 KiB.
const QUEUE: usize = 4096;

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

/// What waits for the log thread.
enum Line {
    Text {
        at: SystemTime,
        level: Level,
        text: String,
    },
    /// A question whether all before it has been written.
    Flush(Sender<()>),
}

struct Logger {
    lines: Sender<Line>,
    left_out: Counter,
}

/// Directs the `log` crate's macros to the target. To be called once, at the start.
///
/// # Errors
/// The log thread could not be started, or a logger is installed already.
pub fn install(target: Target, level: LevelFilter) -> Result<(), String> {
    let (lines, written) = channel::bounded(QUEUE);
    sys::spawn("log", move || write(target, &written))
        .map_err(|error| format!("cannot start the log thread: {error}"))?;
    let logger = Logger { lines, left_out: Counter::default() };
    log::set_boxed_logger(Box::new(logger)).map_err(|error| error.to_string())?;
    log::set_max_level(level);
    Ok(())
}

/// From now on a panic in any thread is logged and ends the process with exit status 1, so that the service
/// manager starts a whole daemon instead of a half-dead one going on. To be called once, after [`install`].
pub fn end_on_panic() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        log::error!("defect in hadmd, ending: {panic}");
        log::logger().flush();
        default(panic);
        std::process::exit(1);
    }));
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let left_out = self.left_out.get();
        let text = match left_out {
            0 => record.args().to_string(),
            n => format!("{} ({n} lines before this one were left out: the log is too slow)", record.args()),
        };
        match self.lines.try_send(Line::Text { at: SystemTime::now(), level: record.level(), text }) {
            Ok(()) => self.left_out.sub(left_out),
            Err(_) => self.left_out.add(1),
        }
    }

    /// Waits until what was logged before is written, but not longer than a second.
    fn flush(&self) {
        let (done, wait) = channel::bounded(1);
        let deadline = Instant::now() + Duration::from_secs(1);
        if self.lines.send_deadline(Line::Flush(done), deadline).is_ok() {
            let _ = wait.recv_deadline(deadline);
        }
    }
}

/// The log thread: writes lines until the process ends.
fn write(target: Target, lines: &Receiver<Line>) {
    let mut system = (target == Target::Syslog).then(Syslog::connect);
    for line in lines {
        match line {
            Line::Flush(done) => drop(done.send(())),
            Line::Text { at, level, text } => {
                if !system.as_mut().is_some_and(|system| system.write(level, &text)) {
                    let at = humantime::format_rfc3339_millis(at);
                    // A closed stderr is no reason to stop the daemon.
                    let _ = std::io::stderr().write_all(format!("{at} {level:<5} {text}\n").as_bytes());
                }
            }
        }
    }
}
