//! The exit statuses that all programs share, beside 0 for success.
//!
//! Numbers only; scripts and service managers depend on them. Used by the binaries and the daemon's start.

/// Something failed, or is not as it should be: a peer, or what was checked.
pub const FAILED: u8 = 1;
/// The command line or the configuration is wrong, or it names a peer that is not configured.
pub const USAGE: u8 = 2;
/// The daemon is not there: no program listens at its control socket, or it ended while it was asked.
pub const NOT_THERE: u8 = 3;
/// The daemon accepts connections and does not answer, or with something that is no answer.
pub const NO_ANSWER: u8 = 4;
/// The daemon refuses, or the system on its behalf.
pub const REFUSED: u8 = 5;
