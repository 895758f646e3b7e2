//! The decisions of a mirror: the site with the newer data, promotion, and the generations after a loss or a resync.
//!
//! Pure: must have no files, sockets, clocks, threads or random numbers of its own: callers hand them in. Called by the
//! volume's state machine, by `hadm-nbd` and by the simulator.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

pub mod agreement;
pub mod ballot;
pub mod choices;
pub mod control;
pub mod facts;
pub mod handshake;
pub mod outcome;
pub mod policy;
pub mod promotion;
pub mod record;
pub mod rotation;
pub mod witness;

pub use crate::nbd::disk::format::Generation;
pub use agreement::{ACK_ERRCODE, Disagreement, Statement, session};
pub use facts::{Facts, PeerSlot, Role};
pub use handshake::decide;
pub use outcome::{Decision, Outcome, Reach, Row, Why};
pub use rotation::Rotate;

#[cfg(test)]
mod tests;
