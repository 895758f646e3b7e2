//! The system log. The syslog crate's connection does not come back by itself: here it is made again when it fails.
//!
//! Each message is one line of less than 1000 bytes, in the form of glibc's `syslog(3)`: what every system log files whole
//! and under the right name (hadmd(8) has the table). May block, and is used by the log thread alone.

use std::io::Write;
use std::time::{Duration, Instant, SystemTime};

use ::syslog::{Error, Facility, LogFormat, Logger, LoggerBackend, Severity};
use log::Level;

use crate::sys;

/// Time between two attempts to reach a system log that does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// The most bytes of a message, with all that is before its text. BusyBox keeps 1023, socklog 1024 less its own prefix.
const LONGEST: usize = 999;

/// The most bytes of the note that says how much was cut.
const NOTE: usize = 32;

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// The form of a line, with the time of its event as system logs understand it: local time, in seconds. Without it
/// journald keeps the whole message a second time.
#[derive(Clone)]
struct Format {
    program: &'static str,
}

impl LogFormat<(SystemTime, &str)> for Format {
    fn format<W: Write>(
        &self,
        to: &mut W,
        severity: Severity,
        (at, text): (SystemTime, &str),
    ) -> Result<(), Error> {
        let priority = Facility::LOG_DAEMON as u8 | severity as u8;
        let head = format!("<{priority}>{} {}[{}]: ", stamp(at), self.program, std::process::id());
        // One write is one message.
        write!(to, "{head}{}", cut(text, LONGEST.saturating_sub(head.len()))).map_err(Error::Write)
    }
}

/// Returns the time as RFC 3164 has it.
fn stamp(at: SystemTime) -> String {
    let [month, day, hour, minute, second] = sys::local_time(at);
    let month = MONTHS.get(month as usize).unwrap_or(&"Jan");
    format!("{month} {day:2} {hour:02}:{minute:02}:{second:02}")
}

/// Returns as much of the text as `room` bytes hold, with a note if that is not all.
fn cut(text: &str, room: usize) -> String {
    if text.len() <= room {
        return text.to_owned();
    }
    let mut end = room.saturating_sub(NOTE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let (kept, rest) = text.split_at(end);
    format!("{kept} ... ({} bytes cut)", rest.len())
}

/// A connection to the system log, or the state before the next attempt.
pub(super) struct Syslog {
    program: &'static str,
    logger: Option<Logger<LoggerBackend, Format>>,
    tried: Instant,
}

impl Syslog {
    /// Connects, now if possible, else with a later line.
    pub fn connect(program: &'static str) -> Self {
        Syslog { program, logger: ::syslog::unix(Format { program }).ok(), tried: Instant::now() }
    }

    /// Writes a line; `false` if the system log did not take it.
    pub fn write(&mut self, at: SystemTime, level: Level, text: &str) -> bool {
        if self.send(at, level, text) {
            return true;
        }
        // If there was a connection, the system log was restarted: its socket is another one now.
        if self.logger.is_some() || self.tried.elapsed() >= RETRY {
            *self = Syslog::connect(self.program);
        }
        self.send(at, level, text)
    }

    fn send(&mut self, at: SystemTime, level: Level, text: &str) -> bool {
        let Some(logger) = &mut self.logger else { return false };
        let line = (at, text);
        let sent = match level {
            Level::Error => logger.err(line),
            Level::Warn => logger.warning(line),
            Level::Info => logger.info(line),
            Level::Debug | Level::Trace => logger.debug(line),
        };
        sent.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_cut_between_characters_and_says_so() {
        assert_eq!(cut("short", 5), "short");
        let long = "\u{e4}".repeat(600);
        for room in 900..910 {
            let kept = cut(&long, room);
            assert!(kept.len() <= room && kept.len() > room - NOTE, "{room}: {}", kept.len());
            let (text, note) = kept.split_once(" ... (").unwrap();
            assert_eq!(
                text.len() + note.strip_suffix(" bytes cut)").unwrap().parse::<usize>().unwrap(),
                1200
            );
        }
    }

    #[test]
    fn a_stamp_has_the_width_that_system_logs_look_for() {
        for seconds in [0, 951_782_400, 1_764_352_800] {
            let stamp = stamp(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
            let bytes = stamp.as_bytes();
            assert_eq!(
                (bytes.len(), bytes[3], bytes[6], bytes[9], bytes[12]),
                (15, b' ', b' ', b':', b':'),
                "{stamp}"
            );
        }
    }
}
