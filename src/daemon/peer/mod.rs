//! A peer: its record, which lasts as long as the daemon, and its session, the pair of links from both up to
//! either down. A node of the local site and a site are peers alike.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod session;

pub use session::{DATA_CEILING, Limits, META_CEILING, Put, Session};

use std::sync::{Arc, Mutex};

use crate::control::PING_BOUNDS_US;
use crate::daemon::core::MetaPatience;
use crate::daemon::link::lz4::CompressionStats;
use crate::daemon::queue::{HoldUps, PacketCounters};
use crate::sys::Counter;
use crate::wire::{Class, PeerKey};

/// The direction of packets, seen from this daemon's kernel module.
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

    /// Returns `out` or `in`.
    pub const fn name(self) -> &'static str {
        match self {
            Direction::Out => "out",
            Direction::In => "in",
        }
    }
}

/// The statistics of a peer, kept across its sessions.
#[derive(Debug)]
pub struct PeerStatistics {
    /// The peer's key.
    pub key: PeerKey,
    counters: [Arc<PacketCounters>; 4],
    compression_stats: [Arc<CompressionStats>; 2],
    /// Bytes of data packets that went without a copy, to the peer and from it.
    pub zero_copied: [Counter; 2],
    /// The hold-ups by class; no other lock is taken under these.
    hold_ups: [Mutex<HoldUps>; 2],
    /// The hold-ups of the peer's meta packets; no other lock is taken under this one.
    meta_patience: Mutex<MetaPatience>,
    /// The times from pings to their answers.
    pub ping_times: PingTimes,
}

/// Numbers of pings by the time to their answer.
#[derive(Debug, Default)]
pub struct PingTimes {
    /// By bound of [`PING_BOUNDS_US`]; the last one is for what took longer than all.
    pub counts: [Counter; PING_BOUNDS_US.len() + 1],
    /// The sum of all times in microseconds.
    pub sum_us: Counter,
}

impl PingTimes {
    /// Counts a ping with its time, in microseconds.
    fn add(&self, us: u64) {
        let at = PING_BOUNDS_US.iter().filter(|bound| us > **bound).count();
        self.counts.iter().skip(at).take(1).for_each(|counter| counter.add(1));
        self.sum_us.add(us);
    }
}

impl PeerStatistics {
    /// Returns statistics with all counters at zero.
    pub fn new(key: PeerKey) -> Arc<Self> {
        Arc::new(PeerStatistics {
            key,
            counters: Default::default(),
            compression_stats: Default::default(),
            zero_copied: Default::default(),
            hold_ups: Default::default(),
            meta_patience: Mutex::default(),
            ping_times: PingTimes::default(),
        })
    }

    /// Returns the counters of one class and direction.
    pub fn counters(&self, direction: Direction, class: Class) -> &Arc<PacketCounters> {
        let [data_out, meta_out, data_in, meta_in] = &self.counters;
        match (direction, class) {
            (Direction::Out, Class::Data) => data_out,
            (Direction::Out, Class::Meta) => meta_out,
            (Direction::In, Class::Data) => data_in,
            (Direction::In, Class::Meta) => meta_in,
        }
    }

    /// Returns the hold-ups of the kernel module's packets by this peer. Kept across sessions: a peer that reconnects
    /// after it held up the others may not do so again at once.
    pub fn hold_ups(&self, class: Class) -> &Mutex<HoldUps> {
        let [data, meta] = &self.hold_ups;
        match class {
            Class::Data => data,
            Class::Meta => meta,
        }
    }

    /// Returns the hold-ups of the peer's meta packets by a kernel module that does not read. Kept across sessions:
    /// packets that an earlier one has queued are in the way of the later one.
    pub fn meta_patience(&self) -> &Mutex<MetaPatience> {
        &self.meta_patience
    }

    /// Returns the compression counters of the data link in one direction.
    pub fn compression_stats(&self, direction: Direction) -> &Arc<CompressionStats> {
        let [out, inbound] = &self.compression_stats;
        match direction {
            Direction::Out => out,
            Direction::In => inbound,
        }
    }

    /// Returns the prefix of the peer's thread names; the system cuts thread names after 15 bytes.
    fn thread_name(&self) -> String {
        match self.key {
            PeerKey::Node(node) => format!("node{}", node.get()),
            PeerKey::Site(resource, site) => format!("s{}r{}", site.get(), resource.get()),
        }
    }
}
