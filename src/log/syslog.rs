//! The system log. The syslog crate's connection does not come back by itself: here it is built anew when it
//! fails.

use std::time::{Duration, Instant};

use ::syslog::{Facility, Formatter3164, Logger, LoggerBackend};
use log::Level;

/// Time between two attempts to reach a system log that is not there.
const RETRY: Duration = Duration::from_secs(1);

/// A connection to the system log, or the wish for one.
pub(super) struct Syslog {
    logger: Option<Logger<LoggerBackend, Formatter3164>>,
    tried: Instant,
}

impl Syslog {
    /// Connects, now if possible, else with a later line.
    pub fn connect() -> Self {
        let formatter = Formatter3164 {
            facility: Facility::LOG_DAEMON,
            hostname: None,
            process: "hadmd".into(),
            pid: std::process::id(),
        };
        Syslog { logger: ::syslog::unix(formatter).ok(), tried: Instant::now() }
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
