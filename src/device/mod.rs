//! The kernel module's side: its two links, and what it is told of its peers.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod announce;

use std::io;
use std::net::TcpStream;
use std::sync::Arc;

use bytes::Bytes;

use crate::core::{AttachId, ConnState};
use crate::link::{Closed, Connection, Pair, Sink};
use crate::queue::Hold;
use crate::wire::{Class, Header, NodeId, PacketType, SiteId};

use announce::Announcer;

/// One stay of a kernel module.
pub struct Device {
    /// Which stay.
    pub id: AttachId,
    pair: Pair,
    announcer: Arc<Announcer>,
}

/// What opens the names of the kernel links' threads.
const NAME: &str = "kernel";

impl Device {
    /// Starts the writing ends of both links. `lost` is told when a link is gone.
    ///
    /// # Errors
    /// The system has no room for another thread.
    pub fn start(
        id: AttachId,
        streams: [TcpStream; 2],
        (node, site): (NodeId, SiteId),
        lost: impl Fn(Class, Closed) + Send + Sync + 'static,
    ) -> io::Result<Arc<Self>> {
        let pair = Pair::start(NAME, streams.map(Connection::from), Arc::new(lost))?;
        Ok(Arc::new(Device { id, pair, announcer: Announcer::new(node, site) }))
    }

    /// Starts to read both links.
    ///
    /// # Errors
    /// As [`Device::start`].
    pub fn open<S: Sink + Send + 'static, G: Clone + Send + 'static>(
        &self,
        max_packet: u32,
        guard: &G,
        sink: impl Fn(Class) -> S,
    ) -> io::Result<()> {
        self.pair.open(NAME, NAME, max_packet, guard, sink)
    }

    /// Queues packets for the kernel module.
    pub fn put(&self, class: Class, bytes: Bytes, hold: Hold) {
        self.pair.outlet(class).put(bytes, hold);
    }

    /// Tells the kernel module who is connected. It learns of every peer that left and came back, however
    /// long it did not read, and of nothing else that is out of date.
    pub fn tell(&self, state: ConnState) {
        if self.announcer.tell(state) {
            self.pair.outlet(Class::Meta).put_late(Arc::clone(&self.announcer) as _);
        }
    }

    /// Whether the kernel module has closed one of its links, noticed or not.
    pub fn hung_up(&self) -> bool {
        self.pair.hung_up()
    }

    /// Closes both links; what is queued is dropped.
    pub fn close(&self) {
        self.pair.close();
    }

    /// Tells the kernel module that nothing more will come.
    pub fn finish(&self) {
        self.pair.finish();
    }
}

/// The answer to a handshake packet of the kernel module. `dev_id` is repeated.
pub fn handshake_ack(class: Class, dev_id: u8) -> Header {
    let kind = match class {
        Class::Data => PacketType::KERN_HANDSHAKE_D_ACK,
        Class::Meta => PacketType::KERN_HANDSHAKE_M_ACK,
    };
    Header { dev_id, ..Header::new(kind) }
}
