//! One TCP link that carries packets: its reading end and its writing end.
//!
//! A link knows packets, but not where they go: a [`Sink`] takes what the reading end found. Peers and the
//! kernel module are made of the same links, a data link and a meta link each. What a link's bytes wear on the
//! wire is its [`Coat`]'s affair.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod coat;
mod intake;
pub mod lz4;
mod outlet;
mod pair;
mod reader;
pub mod tap;
mod token;

/// What [`token`] is made of; its model is made of the same things of loom's.
mod sync {
    pub use std::sync::atomic::{AtomicBool, Ordering::SeqCst, fence};
    pub use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
    pub use std::thread::{Thread, current, park};
}

pub use coat::{Coat, CoatError, Connection, Decode, Encode};
pub use intake::{Intake, Item, MAX_CHUNK, Run};
pub use outlet::{Late, Outlet};
pub use pair::{Lost, Pair};
pub use reader::{Closed, Sink, read_link};
