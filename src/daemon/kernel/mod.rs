//! The kernel module's side: its two links, and the connection states sent to it.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod announce;

use std::io;
use std::net::TcpStream;
use std::sync::Arc;

use crate::attach::Program;
use crate::daemon::core::{AttachId, ConnState};
use crate::daemon::link::{Closed, Connection, Pair, Piped, Reading, Run, Sink};
use crate::daemon::queue::Permit;
use crate::wire::{Class, Device, Header, NodeId, PacketType, SiteId};

use announce::Announcer;

/// One attachment of a kernel module.
pub struct KernelModule {
    /// The id of this attachment.
    pub id: AttachId,
    pair: Pair,
    announcer: Arc<Announcer>,
}

/// The prefix of the names of the kernel links' threads.
const NAME: &str = "kernel";

impl KernelModule {
    /// Starts the writing ends of both links. `lost` is called when a link is gone.
    ///
    /// # Errors
    /// The system is out of threads.
    pub fn start(
        id: AttachId,
        streams: [TcpStream; 2],
        (node, site): (NodeId, SiteId),
        lost: impl Fn(Class, Closed) + Send + Sync + 'static,
    ) -> io::Result<Arc<Self>> {
        let pair = Pair::start(NAME, streams.map(Connection::from), Arc::new(lost))?;
        Ok(Arc::new(KernelModule { id, pair, announcer: Announcer::new(node, site) }))
    }

    /// Starts to read both links.
    ///
    /// # Errors
    /// As [`KernelModule::start`].
    pub fn open<S: Sink + Send + 'static, G: Clone + Send + 'static>(
        &self,
        reading: Reading,
        guard: &G,
        sink: impl Fn(Class) -> S,
    ) -> io::Result<()> {
        self.pair.open(NAME, None, reading, guard, sink)
    }

    /// Gives packets to a program in this process from now on, and no more to the links; to be called before any is queued.
    pub fn set_program(&self, program: &Arc<dyn Program>) {
        for class in Class::BOTH {
            let program = Arc::clone(program);
            self.pair.sender(class).set_receiver(Box::new(move |packets| program.take(class, packets)));
        }
    }

    /// Returns true if packets to the kernel module may lie in pipes.
    pub fn takes_pipes(&self) -> bool {
        !self.pair.sender(Class::Data).has_receiver()
    }

    /// Queues packets for the kernel module.
    pub fn put(&self, run: Run, piped: Option<Piped>, permit: Permit) {
        self.pair.sender(run.class).put_run(run.bytes, piped, permit);
    }

    /// Sends the connection state to the kernel module. It learns of every peer that left and came back, however long
    /// it did not read, and of nothing else that is out of date.
    pub fn tell(&self, state: ConnState) {
        if self.announcer.tell(state) {
            self.pair.sender(Class::Meta).put_deferred(Arc::clone(&self.announcer) as _);
        }
    }

    /// Returns true if the kernel module has closed one of its links, noticed or not.
    pub fn hung_up(&self) -> bool {
        self.pair.hung_up()
    }

    /// Closes both links; queued packets are dropped.
    pub fn close(&self) {
        self.pair.close();
    }

    /// Ends the sending direction towards the kernel module.
    pub fn finish(&self) {
        self.pair.finish();
    }
}

/// Returns the answer to a handshake packet of the kernel module. `device` is repeated.
pub fn handshake_ack(class: Class, device: Device) -> Header {
    let kind = match class {
        Class::Data => PacketType::KERN_HANDSHAKE_D_ACK,
        Class::Meta => PacketType::KERN_HANDSHAKE_M_ACK,
    };
    Header { device, ..Header::new(kind) }
}
