//! The system log. The syslog crate's connection does not come back by itself: here it is built anew when it
//! fails.

use std::io::Write;
use std::time::{Duration, Instant};

use ::syslog::{Error, Facility, LogFormat, Logger, LoggerBackend, Severity};
use log::Level;

/// Time between two attempts to reach a system log that is not there.
const RETRY: Duration = Duration::from_secs(1);

/// A line without a time stamp: the system log puts its own there. The crate's format has one in UTC, which
/// system logs take for local time.
#[derive(Clone)]
struct Format;

impl LogFormat<&str> for Format {
    fn format<W: Write>(&self, to: &mut W, severity: Severity, text: &str) -> Result<(), Error> {
        let priority = Facility::LOG_DAEMON as u8 | severity as u8;
        write!(to, "<{priority}>hadmd[{}]: {text}", std::process::id()).map_err(Error::Write)
    }
}

/// A connection to the system log, or the wish for one.
pub(super) struct Syslog {
    logger: Option<Logger<LoggerBackend, Format>>,
    tried: Instant,
}

impl Syslog {
    /// Connects, now if possible, else with a later line.
    pub fn connect() -> Self {
        Syslog { logger: ::syslog::unix(Format).ok(), tried: Instant::now() }
    }
    /// Writes a line; `false` if the system log did not take it.
    pub fn write(&mut self, level: Level, text: &str) -> bool {
        if self.send(level, text) {
            return true;
        }
        // Where there was a connection, the system log was restarted: its socket is another one now.
        if self.logger.is_some() || self.tried.elapsed() >= RETRY {
            *self = Syslog::connect();
        }
        self.send(level, text)
    }

    fn send(&mut self, level: Level, text: &str) -> bool {
        let Some(logger) = &mut self.logger else { return false };
        let sent = match level {
            Level::Error => logger.err(text),
            Level::Warn => logger.warning(text),
            Level::Info => logger.info(text),
            Level::Debug | Level::Trace => logger.debug(text),
        };
        sent.is_ok()
    }
}
