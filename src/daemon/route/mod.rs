//! The recipients of a packet: the table of connected peers, and the two sinks that look it up.
//!
//! Readers look at a snapshot, taken anew for the bytes of each read. Because a session stands in the table before
//! the kernel module learns of it, packets that the kernel module sends after that find it there.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod from_kernel;
mod from_peer;
mod intake;

pub use from_kernel::FromKernel;
pub use from_peer::FromPeer;
pub use intake::FromProcess;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, PoisonError, RwLock};

use log::Level;

use crate::daemon::kernel::KernelModule;
use crate::daemon::link::Run;
use crate::daemon::peer::{PeerStatistics, Session};
use crate::limited;
use crate::sys::Counter;
use crate::wire::{Device, NodeId, PeerKey, ResourceId, Scope, SiteId};

/// One configured peer and its session, if it has one.
#[derive(Clone)]
pub struct Entry {
    /// The peer.
    pub statistics: Arc<PeerStatistics>,
    /// The peer's session.
    pub session: Option<Arc<Session>>,
}

/// The kernel module and the peers with their sessions.
#[derive(Clone, Default)]
pub struct Table {
    /// The kernel module, if one is attached.
    pub kernel: Option<Arc<KernelModule>>,
    /// Every configured peer.
    pub peers: BTreeMap<PeerKey, Entry>,
    /// Resources whose log this node owns.
    pub owned: BTreeSet<ResourceId>,
}

impl Table {
    /// Returns the links to a site that are for packets of this resource. A packet for all resources takes one of the
    /// links to the site, the first that is up.
    fn site(&self, device: Device, site: SiteId) -> Option<&Entry> {
        if let Device::One(resource) = device {
            return self.peers.get(&PeerKey::Site(resource, site));
        }
        let mut entries = self.owned.iter().filter_map(|&id| self.peers.get(&PeerKey::Site(id, site)));
        let first = entries.clone().next();
        entries.find(|entry| entry.session.is_some()).or(first)
    }

    /// Returns the peer that has this id in packets like these.
    fn entry(&self, run: &Run, id: u8) -> Option<&Entry> {
        let id = u32::from(id);
        match run.scope {
            Scope::Node => self.peers.get(&PeerKey::Node(NodeId::try_from(id).ok()?)),
            Scope::Site => self.site(run.device, SiteId::try_from(id).ok()?),
        }
    }

    /// Returns the session to which packets like these go as they are, and to no other.
    fn only_plain(&self, run: &Run) -> Option<&Session> {
        let mut ids = run.node_to.ids();
        let (Some(id), None) = (ids.next(), ids.next()) else { return None };
        self.entry(run, id)?.session.as_deref().filter(|session| session.is_plain())
    }

    /// Returns true if site packets for this device can go anywhere from here.
    fn owns(&self, device: Device) -> bool {
        match device {
            Device::One(resource) => self.owned.contains(&resource),
            Device::All => !self.owned.is_empty(),
        }
    }
}

/// Counters of packets without a destination, by cause; from the kernel module, but for the last one.
#[derive(Debug, Default)]
pub struct Unroutable {
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
    /// Heartbeats and connection states, which only daemons send.
    pub daemons_own: Counter,
    /// Connection states that a peer sent.
    pub foreign_state: Counter,
}

impl Unroutable {
    /// Returns each counter with its name in words.
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
pub struct Router {
    node: NodeId,
    site: SiteId,
    /// The counters of the kernel module's packets without a destination.
    pub unroutable: Unroutable,
    // Locked only to take or replace the reference.
    table: RwLock<Arc<Table>>,
    stopping: AtomicBool,
}

impl Router {
    /// Returns a table of these peers, none connected, seen from the local node and site.
    pub fn new(
        (node, site): (NodeId, SiteId),
        statistics: impl IntoIterator<Item = Arc<PeerStatistics>>,
    ) -> Arc<Self> {
        let mut table = Table::default();
        for statistics in statistics {
            table.peers.insert(statistics.key, Entry { statistics, session: None });
        }
        Arc::new(Router {
            node,
            site,
            unroutable: Unroutable::default(),
            table: RwLock::new(Arc::new(table)),
            stopping: AtomicBool::new(false),
        })
    }

    /// Returns the present table.
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
    pub fn add_peer(&self, statistics: Arc<PeerStatistics>) {
        self.update(|table| drop(table.peers.insert(statistics.key, Entry { statistics, session: None })));
    }

    /// Removes a peer whose session has ended.
    pub fn remove_peer(&self, key: PeerKey) {
        self.update(|table| drop(table.peers.remove(&key)));
    }

    /// Sets or removes the kernel module.
    pub fn set_kernel(&self, kernel: Option<Arc<KernelModule>>) {
        self.update(|table| table.kernel = kernel);
    }

    /// Sets the resources whose log this node owns.
    pub fn set_owned(&self, owned: BTreeSet<ResourceId>) {
        self.update(|table| table.owned = owned);
    }

    /// Drops and counts everything read from now on; queued packets still leave.
    pub fn stop(&self) {
        self.stopping.store(true, SeqCst);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(SeqCst)
    }

    /// Calls `each` for every recipient of packets from the kernel module. Bits of no peer are ignored and counted.
    fn recipients<'t>(&self, table: &'t Table, run: &Run, mut each: impl FnMut(&'t Entry)) {
        let packets = u64::from(run.cost.packets);
        if run.scope == Scope::Site && !table.owns(run.device) {
            self.unroutable.no_resource.add(packets);
            return limited!(
                Level::Warn,
                ("no resource", u64::from(u8::from(run.device))),
                "dropped site packets of the kernel module: resource {} is not configured here, or this node does \
                 not own its log",
                run.device
            );
        }
        if run.node_to.is_empty() {
            self.unroutable.nobody.add(packets);
        }
        let own = match run.scope {
            Scope::Node => self.node.get(),
            Scope::Site => self.site.get(),
        };
        for id in run.node_to.ids() {
            match table.entry(run, id) {
                Some(entry) => each(entry),
                None if id == own => self.unroutable.own_bit.add(packets),
                None => self.unroutable.unknown_id.add(packets),
            }
        }
    }
}
