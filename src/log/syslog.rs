//! The thread that feeds syslog. The syslog crate's connection may block and does not come back by itself:
//! here it is built anew when it fails, and what cannot be told to syslog goes to stderr.

use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;
use log::Level;
use syslog::{Facility, Formatter3164, Logger, LoggerBackend};

use super::{Line, to_stderr};

/// Time between two attempts to reach a system log that is not there.
const RETRY: Duration = Duration::from_secs(1);

type Syslog = Logger<LoggerBackend, Formatter3164>;

fn connect() -> Option<Syslog> {
    let formatter = Formatter3164 {
        facility: Facility::LOG_DAEMON,
        hostname: None,
        process: "hadmd".into(),
        pid: std::process::id(),
    };
    syslog::unix(formatter).ok()
}

/// Writes lines until their senders are gone.
pub(super) fn write(lines: &Receiver<Line>) {
    let mut syslog = connect();
    let mut tried = Instant::now();
    for line in lines {
        let (level, text) = match line {
            Line::Text(level, text) => (level, text),
            Line::Flush(done) => {
                let _ = done.send(());
                continue;
            }
        };
        if syslog.is_none() && tried.elapsed() >= RETRY {
            tried = Instant::now();
            syslog = connect();
        }
        let mut told = syslog.as_mut().is_some_and(|log| send(log, level, &text));
        if !told && syslog.take().is_some() {
            // The system log was restarted: its socket is another one now.
            tried = Instant::now();
            syslog = connect();
            told = syslog.as_mut().is_some_and(|log| send(log, level, &text));
        }
        if !told {
            to_stderr(level, &text);
        }
    }
}

fn send(syslog: &mut Syslog, level: Level, text: &str) -> bool {
    let sent = match level {
        Level::Error => syslog.err(text),
        Level::Warn => syslog.warning(text),
        Level::Info => syslog.info(text),
        Level::Debug | Level::Trace => syslog.debug(text),
    };
    sent.is_ok()
}
