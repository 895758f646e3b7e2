//! One TCP link that carries packets: its reading end and its writing end.
//!
//! A link knows packets, but not their destinations: a [`Sink`] takes what the reading end found. Peers and the
//! kernel module have the same two links each, a data link and a meta link. The encoding on the wire is the job of
//! the link's [`LinkCodec`].
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod busy_poll;
mod closed;
mod codec;
mod framer;
pub mod lz4;
mod pair;
mod piped;
mod reader;
mod sender;
mod sink;
pub mod tap;
mod token;
mod write_state;
mod zero_copy;

/// The parts of std that [`token`] is made of; its model has loom's in their place.
mod sync {
    pub use std::sync::atomic::{AtomicBool, Ordering::SeqCst, fence};
    pub use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
    pub use std::thread::{Thread, current, park};
}

pub use closed::{Closed, CodecError};
pub use codec::{Connection, Decode, Encode, LinkCodec};
pub use framer::{Framer, Item, MAX_CHUNK, Run};
pub use pair::{Lost, Pair};
pub use piped::Piped;
pub use reader::{Reading, read_link};
pub use sender::LinkSender;
pub use sink::{Sink, TakesPipes};
pub use write_state::{Deferred, Receiver};
pub use zero_copy::LARGE;
