//! What is wrong with a configuration file, and where.
//!
//! Readers note problems by byte offset and go on; lines and columns are worked out once, at the end. A
//! message never repeats its own place, so that whoever prints it chooses the form. Used by all of this room.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// How much a problem weighs.
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
    /// Whether the file is refused for it.
    pub severity: Severity,
    /// What was found, and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.severity == Severity::Warning { "warning: " } else { "" };
        write!(f, "{}:{}: {mark}{}", self.line, self.col, self.message)
    }
}

/// Why there is no configuration; shown with a line per problem, each opening with the file's name.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be opened or read.
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system said.
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
        /// Everything found, warnings too, in the order of the file; at least one is an error.
        problems: Vec<Problem>,
    },
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

/// Collects what readers of one text find.
pub(super) struct Notes<'a> {
    pub(super) text: &'a str,
    found: RefCell<Vec<(usize, Severity, String)>>,
}

impl<'a> Notes<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Notes { text, found: RefCell::default() }
    }

    pub(super) fn error(&self, at: usize, message: String) {
        self.found.borrow_mut().push((at, Severity::Error, message));
    }

    pub(super) fn warning(&self, at: usize, message: String) {
        self.found.borrow_mut().push((at, Severity::Warning, message));
    }

    /// Everything noted, in the order of the text. One pass over the text, however much was found.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        let mut found = self.found.into_inner();
        found.sort_by_key(|(at, ..)| *at);
        let (mut line, mut col, mut seen) = (1_u32, 1_u32, 0);
        let place = |(at, severity, message)| {
            for c in self.text.get(seen..at).unwrap_or_default().chars() {
                (line, col) =
                    if c == '\n' { (line.saturating_add(1), 1) } else { (line, col.saturating_add(1)) };
            }
            seen = at;
            Problem { line, col, severity, message }
        };
        found.into_iter().map(place).collect()
    }
}
