//! The reasons for which a handshake ends early, in words for the log.
//!
//! Reasons only: the reactor decides what follows from one. Made by the handshake and its key agreement.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::control::decimal;
use crate::daemon::core::Refused;
use crate::wire::PeerKey;

/// The reason for which a handshake ends early.
#[derive(Debug)]
pub(super) enum Failure {
    /// The connection failed or was closed.
    Io(io::Error),
    /// The other side sent bytes that do not belong there.
    Malformed(String),
    /// Another id than the one that was called answers there.
    OtherId(SocketAddr, u8),
    /// The caller is not allowed.
    Refused(Refused),
    /// The caller is held off, for this much longer.
    HeldOff(PeerKey, Duration),
    /// One side has a key and the other none.
    Keyless(&'static str),
    /// No key is on both sides.
    OtherKeys(String),
    /// The other side has not proved that it holds the key.
    Unproved(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Io(error) => write!(f, "{error}"),
            Failure::Malformed(what) | Failure::OtherKeys(what) | Failure::Unproved(what) => {
                f.write_str(what)
            }
            Failure::Keyless(what) => f.write_str(what),
            Failure::HeldOff(peer, left) => write!(
                f,
                "{peer} did not keep up again and again, it is held off for {} s more",
                decimal(left.as_secs_f64(), 1)
            ),
            Failure::OtherId(at, id) => write!(f, "{at} answers as id {id}"),
            Failure::Refused(refused) => write!(f, "{refused}"),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Io(error)
    }
}
