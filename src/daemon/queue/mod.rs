//! The bounds of the queues, and the counters of packets.
//!
//! To queue packets, the caller first gets a [`Permit`] from the [`Budget`] that pays for it: the budget has a
//! ceiling in bytes, the permit gives its share back when it is dropped. The same permit tells the [`PacketCounters`]
//! whether its packets were forwarded or dropped, so that no packet can leave them unnoticed. This module knows no
//! other one of the daemon, not even packets.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod budget;
mod counters;
mod hold_up;

pub use budget::{Budget, Cost, Permit, Refusal};
pub use counters::{CounterSnapshot, DropCause, PacketCounters};
pub use hold_up::{HoldUps, Look};
