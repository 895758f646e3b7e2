//! The promises that the daemon keeps towards kernel modules and peers, one file each, and what they rest on.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

#[path = "../support/mod.rs"]
mod support;

mod authkey;
mod cut_through;
mod d1_faithful;
mod d2_no_silent_hole;
mod d3_isolation;
mod d4_bounded;
mod d5_truthful;
mod d6_hostile;
mod exhaustion;
mod extension;
mod heartbeat;
mod hostile_network;
mod kernel_side;
mod kernel_user;
mod links;
mod progress;
mod waiting;
mod zero_copy;
