//! The kernel module's side of a daemon: attaching, packets out of a stream, and the daemon's connection states.
//!
//! A program that stands in for the kernel module knows its daemon by the bytes on two links alone. This module must
//! never print, end the process or know what the packets carry. `probe` and `nbd` use it.
//!
//! - `link`: the two links, connecting and attaching.
//! - `reader`: packets out of a byte stream.
//! - `states`: connection states out of the packets on the meta link.
//! - `group`: nodes, and the sites of a resource.
//! - `in_process`: the meeting point with a daemon in the same process.

mod group;
mod in_process;
mod link;
mod reader;
mod states;

pub use group::{Group, Peer};
pub use in_process::{InProcess, Intake, Parts, Program};
pub use link::{AttachError, HANDSHAKE_LIMIT, Links, Server, is_closed};
pub use reader::{Packet, PacketReader};
pub use states::{ConnState, StateReader, States};
