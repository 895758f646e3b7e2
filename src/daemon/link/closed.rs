//! The reasons for which a link ends, in words for the log and for the code that ends the session.
//!
//! Reasons only: the core decides what follows from one. Made by the reading end and the codecs.

use std::fmt;
use std::io;

use crate::wire::Refusal;

/// The reason why a codec cannot encode or decode, in words. The link cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodecError(pub String);

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CodecError {}

/// The reason for which a link's reading end ended.
#[derive(Debug)]
pub enum Closed {
    /// The other side closed the link, this many bytes into a packet.
    Eof(usize),
    /// The system reports that the link is broken.
    Broken(io::Error),
    /// The other side sent a packet that is not allowed.
    Violation(Refusal),
    /// The bytes from the other side cannot be decoded.
    Codec(CodecError),
    /// The peer has sent that its kernel module ends the session.
    PeersKernel,
    /// The link's owner has ended the link.
    Ended,
}

impl Closed {
    /// Returns the system's error number, where that is the reason.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Closed::Broken(error) => error.raw_os_error(),
            _ => None,
        }
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Closed::Eof(0) => f.write_str("closed by the other side"),
            Closed::Eof(n) => write!(f, "closed by the other side, {n} bytes into a packet"),
            Closed::Broken(error) => write!(f, "{error}"),
            Closed::Violation(refusal) => write!(f, "{refusal}"),
            Closed::Codec(error) => write!(f, "{error}"),
            Closed::PeersKernel => f.write_str("its kernel module came or went"),
            Closed::Ended => f.write_str("ended here"),
        }
    }
}

impl From<Refusal> for Closed {
    fn from(refusal: Refusal) -> Self {
        Closed::Violation(refusal)
    }
}

impl From<CodecError> for Closed {
    fn from(error: CodecError) -> Self {
        Closed::Codec(error)
    }
}
