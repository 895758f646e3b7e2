//! A peer: its record, which lasts as long as the daemon, and its session, the pair of links from both up to
//! either down. A node of the local site and a site are peers alike.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod session;

pub use session::{DATA_CEILING, Limits, META_CEILING, Put, Session};

use std::sync::Arc;

use crate::core::PeerKey;
use crate::link::lz4::Squeezed;
use crate::queue::Books;
use crate::wire::Class;

/// Which way packets go, seen from this daemon's kernel module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the kernel module to the peer.
    Out,
    /// From the peer to the kernel module.
    In,
}

impl Direction {
    /// Both directions.
    pub const BOTH: [Direction; 2] = [Direction::Out, Direction::In];

    /// `out` or `in`.
    pub const fn name(self) -> &'static str {
        match self {
            Direction::Out => "out",
            Direction::In => "in",
        }
    }
}

/// What is kept of a peer across its sessions.
#[derive(Debug)]
pub struct Record {
    /// Which peer.
    pub key: PeerKey,
    books: [Arc<Books>; 4],
    squeezed: [Arc<Squeezed>; 2],
}

impl Record {
    /// A record with empty books.
    pub fn new(key: PeerKey) -> Arc<Self> {
        Arc::new(Record { key, books: Default::default(), squeezed: Default::default() })
    }

    /// The books of one class and direction.
    pub fn books(&self, direction: Direction, class: Class) -> &Arc<Books> {
        let [data_out, meta_out, data_in, meta_in] = &self.books;
        match (direction, class) {
            (Direction::Out, Class::Data) => data_out,
            (Direction::Out, Class::Meta) => meta_out,
            (Direction::In, Class::Data) => data_in,
            (Direction::In, Class::Meta) => meta_in,
        }
    }

    /// What was compressed on its data link in one direction.
    pub fn squeezed(&self, direction: Direction) -> &Arc<Squeezed> {
        let [out, inbound] = &self.squeezed;
        match direction {
            Direction::Out => out,
            Direction::In => inbound,
        }
    }

    /// What opens the names of its threads; the system cuts thread names after 15 bytes.
    fn thread_name(&self) -> String {
        match self.key {
            PeerKey::Node(node) => format!("node{}", node.get()),
            PeerKey::Site(resource, site) => format!("s{}r{}", site.get(), resource.get()),
        }
    }
}
