//! Who gets a packet: the table of what is connected now, and the two sinks that look it up.
//!
//! Readers look at a snapshot, taken anew for whatever a read brought. Because a session stands in the table
//! before the kernel module hears of it, packets that the kernel module sends after hearing find it there.

mod from_kernel;
mod from_peer;

pub use from_kernel::FromKernel;
pub use from_peer::FromPeer;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, PoisonError, RwLock};

use crate::core::PeerKey;
use crate::device::Device;
use crate::link::Run;
use crate::peer::{Record, Session};
use crate::queue::Counter;
use crate::wire::{MAX_IDS, NodeId, Scope};

/// One configured peer and its session, if it has one.
#[derive(Clone)]
pub struct Entry {
    /// The peer.
    pub record: Arc<Record>,
    /// Its session.
    pub session: Option<Arc<Session>>,
}

/// What is connected.
#[derive(Clone, Default)]
pub struct Table {
    /// The kernel module, if one is attached.
    pub device: Option<Arc<Device>>,
    /// Every configured peer.
    pub peers: BTreeMap<PeerKey, Entry>,
    /// The nodes of `peers` by id, so that a packet costs no search.
    nodes: [Option<Entry>; MAX_IDS as usize],
}

impl Table {
    /// Sets or removes a peer's session.
    fn set_session(&mut self, key: PeerKey, session: Option<Arc<Session>>) {
        if let Some(entry) = self.peers.get_mut(&key) {
            entry.session = session;
            if let PeerKey::Node(node) = key
                && let Some(place) = self.nodes.get_mut(usize::from(node.get()))
            {
                *place = Some(entry.clone());
            }
        }
    }

    fn node(&self, id: u8) -> Option<&Entry> {
        self.nodes.get(usize::from(id))?.as_ref()
    }
}

/// Packets from the kernel module that went nowhere, by cause.
#[derive(Debug, Default)]
pub struct Strays {
    /// The local node's own bit in `node_to`.
    pub own_bit: Counter,
    /// Bits of nodes that are not configured.
    pub unknown_id: Counter,
    /// No bit at all in `node_to`.
    pub nobody: Counter,
    /// Site packets for a resource whose log this node does not own, or does not know.
    pub no_resource: Counter,
    /// Types that are not relayed.
    pub unrelayed: Counter,
    /// Heartbeats, which are the daemon's own.
    pub heartbeat: Counter,
}

impl Strays {
    /// Each counter with its name in words.
    pub fn list(&self) -> [(&'static str, u64); 6] {
        [
            ("own bit", self.own_bit.get()),
            ("unknown id", self.unknown_id.get()),
            ("no addressee", self.nobody.get()),
            ("unknown resource", self.no_resource.get()),
            ("type not relayed", self.unrelayed.get()),
            ("heartbeat", self.heartbeat.get()),
        ]
    }
}

/// The table, shared by every reader.
pub struct Switch {
    /// The local node.
    pub local: NodeId,
    /// What the kernel module sent in vain.
    pub strays: Strays,
    // Held only to take or replace the reference.
    table: RwLock<Arc<Table>>,
    stopping: AtomicBool,
}

impl Switch {
    /// A table of these peers, none connected.
    pub fn new(local: NodeId, records: impl IntoIterator<Item = Arc<Record>>) -> Arc<Self> {
        let mut table = Table::default();
        for record in records {
            let key = record.key;
            table.peers.insert(key, Entry { record, session: None });
            table.set_session(key, None);
        }
        Arc::new(Switch {
            local,
            strays: Strays::default(),
            table: RwLock::new(Arc::new(table)),
            stopping: AtomicBool::new(false),
        })
    }

    /// What is connected now.
    pub fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn update(&self, change: impl FnOnce(&mut Table)) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = Table::clone(&table);
        change(&mut next);
        *table = Arc::new(next);
    }

    /// Sets or removes a peer's session.
    pub fn set_session(&self, key: PeerKey, session: Option<Arc<Session>>) {
        self.update(|table| table.set_session(key, session));
    }

    /// Sets or removes the kernel module.
    pub fn set_device(&self, device: Option<Arc<Device>>) {
        self.update(|table| table.device = device);
    }

    /// From now on what is read is dropped and counted; what is queued still leaves.
    pub fn stop(&self) {
        self.stopping.store(true, SeqCst);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(SeqCst)
    }

    /// Calls `each` for every peer that packets from the kernel module are for. Bits that are nobody's are
    /// ignored and counted.
    fn addressees<'t>(&self, table: &'t Table, run: &Run, mut each: impl FnMut(&'t Entry)) {
        let packets = u64::from(run.load.packets);
        match run.scope {
            Scope::Site => self.strays.no_resource.add(packets),
            Scope::Node if run.node_to.is_empty() => self.strays.nobody.add(packets),
            Scope::Node => {
                for id in run.node_to.ids() {
                    match table.node(id) {
                        Some(entry) => each(entry),
                        None if id == self.local.get() => self.strays.own_bit.add(packets),
                        None => self.strays.unknown_id.add(packets),
                    }
                }
            }
        }
    }
}
