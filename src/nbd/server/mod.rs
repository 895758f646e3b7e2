//! The NBD server: negotiation, transmission, connections and their limits, on Unix and TCP sockets.
//!
//! Must know no disk but by [`Volume`], and must allocate nothing for a mere claim of a client. Called by `hadm-nbd`.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod budget;
mod buffer;
mod connection;
mod export;
mod listener;
mod negotiation;
mod option;
mod request;
mod together;
mod transmission;
mod volume;
mod wire;

pub use buffer::Buffer;
pub use export::{Export, Exports};
pub use listener::{Limits, Listener, Server};
pub use together::Together;
pub use volume::{Answer, Extent, Failure, Reply, Request, Volume};
pub use wire::Wire;

/// Largest payload of a READ or WRITE, in bytes. Clients that do not negotiate a limit assume this one.
pub const PAYLOAD_MAX: u32 = 32 << 20;
