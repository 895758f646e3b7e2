//! Who gets a packet: the table of what is connected now, and the two sinks that look it up.
//!
//! Readers look at a snapshot, taken anew for whatever a read brought. Because a session stands in the table
//! before the kernel module hears of it, packets that the kernel module sends after hearing find it there.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod from_kernel;
mod from_peer;

pub use from_kernel::FromKernel;
pub use from_peer::FromPeer;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, PoisonError, RwLock};

use log::Level;

use crate::core::PeerKey;
use crate::device::Device;
use crate::limited;
use crate::link::Run;
use crate::peer::{Record, Session};
use crate::queue::Counter;
use crate::wire::{NodeId, ResourceId, Scope, SiteId};

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
    /// Resources whose log this node owns.
    pub owned: BTreeSet<ResourceId>,
}

impl Table {
    /// The links to a site that are for packets of this resource. A packet for all resources takes one of
    /// the links to the site, the first that is up.
    fn site(&self, dev_id: u8, site: SiteId) -> Option<&Entry> {
        if let Ok(resource) = ResourceId::try_from(u32::from(dev_id)) {
            return self.peers.get(&PeerKey::Site(resource, site));
        }
        let mut entries = self.owned.iter().filter_map(|&id| self.peers.get(&PeerKey::Site(id, site)));
        let first = entries.clone().next();
        entries.find(|entry| entry.session.is_some()).or(first)
    }

    /// Whether site packets with this device number can go anywhere from here.
    fn owns(&self, dev_id: u8) -> bool {
        match ResourceId::try_from(u32::from(dev_id)) {
            Ok(resource) => self.owned.contains(&resource),
            Err(_) => !self.owned.is_empty(),
        }
    }
}

/// Packets that went nowhere, by cause; from the kernel module, but for the last one.
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
    /// Heartbeats and connection states, which are the daemon's own.
    pub daemons_own: Counter,
    /// Connection states that a peer sent.
    pub foreign_state: Counter,
}

impl Strays {
    /// Each counter with its name in words.
    pub fn list(&self) -> [(&'static str, u64); 7] {
        [
            ("own bit", self.own_bit.get()),
            ("unknown id", self.unknown_id.get()),
            ("no addressee", self.nobody.get()),
            ("unknown resource", self.no_resource.get()),
            ("type not relayed", self.unrelayed.get()),
            ("daemon's own type", self.daemons_own.get()),
            ("connection state of a peer", self.foreign_state.get()),
        ]
    }
}

/// The table, shared by every reader.
pub struct Switch {
    node: NodeId,
    site: SiteId,
    /// What the kernel module sent in vain.
    pub strays: Strays,
    // Held only to take or replace the reference.
    table: RwLock<Arc<Table>>,
    stopping: AtomicBool,
}

impl Switch {
    /// A table of these peers, none connected, seen from the local node and site.
    pub fn new((node, site): (NodeId, SiteId), records: impl IntoIterator<Item = Arc<Record>>) -> Arc<Self> {
        let mut table = Table::default();
        for record in records {
            table.peers.insert(record.key, Entry { record, session: None });
        }
        Arc::new(Switch {
            node,
            site,
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
        self.update(|table| {
            if let Some(entry) = table.peers.get_mut(&key) {
                entry.session = session;
            }
        });
    }

    /// Adds a peer, without a session.
    pub fn add_peer(&self, record: Arc<Record>) {
        self.update(|table| drop(table.peers.insert(record.key, Entry { record, session: None })));
    }

    /// Removes a peer whose session has ended.
    pub fn remove_peer(&self, key: PeerKey) {
        self.update(|table| drop(table.peers.remove(&key)));
    }

    /// Sets or removes the kernel module.
    pub fn set_device(&self, device: Option<Arc<Device>>) {
        self.update(|table| table.device = device);
    }

    /// Sets the resources whose log this node owns.
    pub fn set_owned(&self, owned: BTreeSet<ResourceId>) {
        self.update(|table| table.owned = owned);
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
        if run.scope == Scope::Site && !table.owns(run.dev_id) {
            self.strays.no_resource.add(packets);
            return limited!(
                Level::Warn,
                ("no resource", u64::from(run.dev_id)),
                "dropped site packets of the kernel module: resource {} is not configured here, or this node does \
                 not own its log",
                run.dev_id
            );
        }
        if run.node_to.is_empty() {
            self.strays.nobody.add(packets);
        }
        for id in run.node_to.ids() {
            let (entry, own) = match run.scope {
                Scope::Node => {
                    let node = NodeId::try_from(u32::from(id)).ok();
                    (node.and_then(|node| table.peers.get(&PeerKey::Node(node))), self.node.get())
                }
                Scope::Site => {
                    let site = SiteId::try_from(u32::from(id)).ok();
                    (site.and_then(|site| table.site(run.dev_id, site)), self.site.get())
                }
            };
            match entry {
                Some(entry) => each(entry),
                None if id == own => self.strays.own_bit.add(packets),
                None => self.strays.unknown_id.add(packets),
            }
        }
    }
}
