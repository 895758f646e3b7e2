//! The NBD server, byte by byte, and against every error that a client can make.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

#[path = "nbd/mod.rs"]
mod nbd;

#[path = "nbd/negotiation.rs"]
mod negotiation;

#[path = "nbd/transmission.rs"]
mod transmission;

#[path = "nbd/connections.rs"]
mod connections;
