//! The problems of a configuration file, with their positions.
//!
//! Readers note problems by byte offset and go on; lines and columns are computed once, at the end. A
//! message never repeats its own position, so that the caller chooses the form. Used by all of this module.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::path::PathBuf;

use super::in_order;

/// The severity of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file is read, but something in it has no effect.
    Warning,
}

/// One finding in a configuration file; shown as `LINE:COL: message`, warnings with the word before the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub col: u32,
    /// Its severity.
    pub severity: Severity,
    /// The fault and the remedy.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.severity == Severity::Warning { "warning: " } else { "" };
        write!(f, "{}:{}: {mark}{}", self.line, self.col, self.message)
    }
}

/// The reason why there is no configuration; shown with a line per problem, each of which begins with the file's
/// name.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be opened or read.
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// The file is longer than [`FILE_MAX`](super::FILE_MAX) bytes.
    TooLong {
        /// The file.
        file: PathBuf,
    },
    /// The file was read and refused.
    Refused {
        /// The file.
        file: PathBuf,
        /// All problems, warnings too, in the order of the file; at least one is an error.
        problems: Vec<Problem>,
    },
}

/// The beginning of the message that this machine's host name is none of the nodes'.
pub(super) const NO_NODE: &str = "no node has this machine's host name";

impl ConfigError {
    /// Returns true if the only problem of the file is that no node in it is this machine.
    pub fn is_unknown_host(&self) -> bool {
        let ConfigError::Refused { problems, .. } = self else { return false };
        let mut errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
        errors.all(|problem| problem.message.starts_with(NO_NODE))
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::Unreadable { file, error } => write!(
                f,
                "{}: cannot be read ({error}); give the configuration file with -c FILE and let this user read it",
                file.display()
            ),
            ConfigError::TooLong { file } => write!(
                f,
                "{}: longer than {} bytes, so this is no configuration file; give the right one with -c FILE",
                file.display(),
                super::FILE_MAX
            ),
            ConfigError::Refused { file, problems } => {
                for (i, problem) in problems.iter().enumerate() {
                    let end = if i == 0 { "" } else { "\n" };
                    write!(f, "{end}{}:{problem}", file.display())?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for ConfigError {}

/// Most errors, and most warnings, that are kept of one text: more than anybody reads before the next attempt.
pub(super) const KEPT_MAX: usize = 100;
/// Longest message in bytes: the longest that repeats no part of the file needs half of it.
const MESSAGE_MAX: usize = 1000;

/// Collects the problems of one text: the first errors and warnings, and the number of the others.
pub(super) struct Notes<'a> {
    pub(super) text: &'a str,
    errors: RefCell<Kept>,
    warnings: RefCell<Kept>,
}

/// The problems of one severity, by byte offset.
#[derive(Default)]
struct Kept {
    found: Vec<(usize, String)>,
    more: usize,
}

impl Kept {
    fn note(&mut self, at: usize, message: impl FnOnce() -> String) {
        if self.found.len() >= KEPT_MAX {
            self.more = self.more.saturating_add(1);
            return;
        }
        self.found.push((at, shorten(message(), MESSAGE_MAX)));
    }
}

/// Returns the text, with its end left out where it is longer than `most` bytes.
pub(super) fn shorten(mut text: String, most: usize) -> String {
    if text.len() > most {
        let end = (0..=most).rev().find(|&end| text.is_char_boundary(end)).unwrap_or_default();
        text.truncate(end);
        text.push_str("...");
    }
    text
}

impl<'a> Notes<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Notes { text, errors: RefCell::default(), warnings: RefCell::default() }
    }

    /// Notes an error. The message is made only if it is kept.
    pub(super) fn error(&self, at: usize, message: impl FnOnce() -> String) {
        self.errors.borrow_mut().note(at, message);
    }

    /// Notes a warning. The message is made only if it is kept.
    pub(super) fn warning(&self, at: usize, message: impl FnOnce() -> String) {
        self.warnings.borrow_mut().note(at, message);
    }

    /// Returns everything kept, in the order of the text, and last the number of the others. One pass over the text,
    /// however many there are.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        let kept = [
            (Severity::Error, "errors", self.errors.into_inner()),
            (Severity::Warning, "warnings", self.warnings.into_inner()),
        ];
        let mut all = Vec::new();
        let mut left_out = Vec::new();
        for (severity, what, kept) in kept {
            all.extend(kept.found.into_iter().map(|(at, message)| (at, severity, message)));
            if kept.more > 0 {
                left_out.push((
                    severity,
                    format!("and {} more {what}: mend the first ones and ask again", kept.more),
                ));
            }
        }
        let (mut line, mut col, mut seen) = (1_u32, 1_u32, 0);
        let place = |(at, severity, message)| {
            for c in self.text.get(seen..at).unwrap_or_default().chars() {
                (line, col) =
                    if c == '\n' { (line.saturating_add(1), 1) } else { (line, col.saturating_add(1)) };
            }
            seen = at;
            Problem { line, col, severity, message }
        };
        let mut problems: Vec<Problem> =
            in_order(all.into_iter(), |(at, ..)| *at).into_iter().map(place).collect();
        let more = left_out.into_iter().map(|(severity, message)| Problem { line, col, severity, message });
        problems.extend(more);
        problems
    }
}
