//! The exit statuses that all programs share, beside 0 for success.
//!
//! Numbers only; scripts and service managers depend on them. Used by the binaries and the daemon's start.

/// Something failed, or is not as it should be.
pub const FAILED: u8 = 1;
/// The command line or the configuration is wrong, or it names a peer that is not configured.
pub const USAGE: u8 = 2;
/// The daemon accepts connections and does not answer.
pub const NO_ANSWER: u8 = 4;
