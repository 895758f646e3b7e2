//! The log: lines to stderr with time stamps, or to syslog (facility daemon).
//!
//! A terminal that is stopped or a system log that is slow must not block a thread that logs: lines wait in a bounded
//! queue for a thread that writes them, and lines beyond its capacity are left out and counted. Lines that a peer or
//! client can cause at will go through [`limited!`](crate::limited!). Every module logs through it.

mod limit;
mod syslog;

use limit::tell_all;
pub use limit::{Cause, left_out_pending, limited, tell_left_out};

use std::io::Write;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use crossbeam::channel::{self, Receiver, Sender};
use log::{Level, LevelFilter, Log, Metadata, Record};

use self::syslog::Syslog;
use crate::sys;
use crate::sys::Counter;

/// Lines that may wait to be written. At some 200 bytes a line, that is 800 KiB.
const QUEUE: usize = 4096;

/// Logs a line, but at most one a second for the same cause; the next one contains the number of those left out.
#[macro_export]
macro_rules! limited {
    ($level:expr, $cause:expr, $($text:tt)+) => {
        $crate::logging::limited($level, $cause, format_args!($($text)+))
    };
}

/// The target of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Standard error, with time stamps.
    Stderr,
    /// The system log, facility daemon.
    Syslog,
}

/// A message to the log thread.
enum Line {
    Text {
        at: SystemTime,
        level: Level,
        text: String,
    },
    /// A request for a reply once all lines before it are written.
    Flush(Sender<()>),
}

struct Logger {
    lines: Sender<Line>,
    left_out: Counter,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Directs the `log` crate's macros to the target, under the name of this program. To be called once, at the start.
///
/// # Errors
/// The log thread could not be started, or a logger is installed already.
pub fn install(program: &'static str, target: Target, level: LevelFilter) -> Result<(), String> {
    let (lines, written) = channel::bounded(QUEUE);
    sys::spawn("log", move || write(program, target, &written))
        .map_err(|error| format!("cannot start the log thread: {error}"))?;
    let logger = LOGGER.get_or_init(|| Logger { lines, left_out: Counter::default() });
    log::set_logger(logger).map_err(|error| error.to_string())?;
    log::set_max_level(level);
    Ok(())
}

/// Returns true if standard error is systemd's journal, which has a line for the system log already.
pub fn is_stderr_journal() -> bool {
    let stderr = rustix::fs::fstat(std::io::stderr()).map(|file| format!("{}:{}", file.st_dev, file.st_ino));
    stderr.is_ok_and(|place| std::env::var("JOURNAL_STREAM").is_ok_and(|stream| stream == place))
}

/// Makes a panic in any thread of `program` end the process with exit status 1 after it is logged, so that the
/// service manager starts a whole daemon instead of a half-dead one going on. To be called once, after [`install`].
pub fn end_on_panic(program: &'static str) {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        log::error!("defect in {program}, ending: {panic}");
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
        if self.enabled(record.metadata()) {
            tell_all();
            put(SystemTime::now(), record.level(), record.args().to_string());
        }
    }

    /// Waits until all lines before are written, but not longer than a second.
    fn flush(&self) {
        tell_all();
        let (done, wait) = channel::bounded(1);
        let deadline = Instant::now() + Duration::from_secs(1);
        if self.lines.send_deadline(Line::Flush(done), deadline).is_ok() {
            let _ = wait.recv_deadline(deadline);
        }
    }
}

/// Queues the text for the log thread, as one message for each of its lines.
fn put(at: SystemTime, level: Level, text: String) {
    let Some(logger) = LOGGER.get() else { return };
    for line in text.lines().filter(|line| !line.is_empty()) {
        let left_out = logger.left_out.get();
        let text = match left_out {
            0 => line.to_owned(),
            n => format!("{line} ({n} lines before this one were left out: the log is too slow)"),
        };
        match logger.lines.try_send(Line::Text { at, level, text }) {
            Ok(()) => logger.left_out.sub(left_out),
            Err(_) => logger.left_out.add(1),
        }
    }
}

/// Writes lines until the process ends.
fn write(program: &'static str, target: Target, lines: &Receiver<Line>) {
    let mut system = (target == Target::Syslog).then(|| Syslog::connect(program));
    for line in lines {
        match line {
            Line::Flush(done) => drop(done.send(())),
            Line::Text { at, level, text } => {
                if !system.as_mut().is_some_and(|system| system.write(at, level, &text)) {
                    let at = humantime::format_rfc3339_millis(at);
                    // A closed stderr is no reason to stop the daemon.
                    let _ = std::io::stderr().write_all(format!("{at} {level:<5} {text}\n").as_bytes());
                }
            }
        }
    }
}
