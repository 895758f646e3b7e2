//! The state of each peer outside the core, in one map: its statistics, its history, the remains of its last session.
//!
//! A reload adds and removes peers here and nowhere else, and nothing of a removed peer stays: neither here, nor in
//! the router's table, nor among the refused calls. Owned by the timer thread; a snapshot has a copy.

use std::collections::HashMap;
use std::sync::Arc;

use super::history::PeerHistory;
use crate::daemon::connect::Refusals;
use crate::daemon::peer::PeerStatistics;
use crate::daemon::queue::Budget;
use crate::daemon::route::Router;
use crate::wire::{NodeId, PeerKey, SiteId};

/// The state of one peer. Its session is in the router's table, its connection state in the core.
#[derive(Clone, Default)]
struct Peer {
    history: PeerHistory,
    /// Budgets of packets from its last session that may still be queued for the kernel module.
    previous: Option<[Arc<Budget>; 2]>,
}

/// Every configured peer. A copy shares all entries; a later change copies the changed entry only.
#[derive(Clone, Default)]
pub(super) struct Peers(Arc<HashMap<PeerKey, Arc<Peer>>>);

impl Peers {
    /// Returns a map of these peers without any history, and the router with them in its table. `local` is this node.
    pub fn start(
        local: (NodeId, SiteId),
        keys: impl IntoIterator<Item = PeerKey> + Clone,
    ) -> (Self, Arc<Router>) {
        let router = Router::new(local, keys.clone().into_iter().map(PeerStatistics::new));
        (Peers(Arc::new(keys.into_iter().map(|key| (key, Arc::default())).collect())), router)
    }

    /// Adds a peer without any history.
    pub fn add(&mut self, key: PeerKey, router: &Router) {
        router.add_peer(PeerStatistics::new(key));
        Arc::make_mut(&mut self.0).insert(key, Arc::default());
    }

    /// Removes a peer whose session has ended, with all its state.
    pub fn remove(&mut self, key: PeerKey, router: &Router, refusals: &Refusals) {
        router.remove_peer(key);
        refusals.forget(key);
        Arc::make_mut(&mut self.0).remove(&key);
    }

    /// Returns true if the peer is configured.
    pub fn has(&self, key: PeerKey) -> bool {
        self.0.contains_key(&key)
    }

    /// Returns a peer's history.
    pub fn history(&self, key: PeerKey) -> Option<&PeerHistory> {
        self.0.get(&key).map(|peer| &peer.history)
    }

    /// Returns a peer's history for changes; `None` for a peer that a reload has removed.
    pub fn history_mut(&mut self, key: PeerKey) -> Option<&mut PeerHistory> {
        self.peer(key).map(|peer| &mut peer.history)
    }

    /// Returns the budgets of packets from a peer's last session that may still be queued for the kernel module.
    pub fn previous(&self, key: PeerKey) -> Option<&[Arc<Budget>; 2]> {
        self.0.get(&key)?.previous.as_ref()
    }

    /// Keeps the budgets of a session that begins for the next one.
    pub fn keep(&mut self, key: PeerKey, inbound: &[Arc<Budget>; 2]) {
        if let Some(peer) = self.peer(key) {
            peer.previous = Some(inbound.clone());
        }
    }

    fn peer(&mut self, key: PeerKey) -> Option<&mut Peer> {
        if !self.has(key) {
            return None;
        }
        Arc::make_mut(&mut self.0).get_mut(&key).map(Arc::make_mut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u32) -> PeerKey {
        PeerKey::Node(NodeId::try_from(id).unwrap())
    }

    #[test]
    fn nothing_of_a_removed_peer_stays() {
        let ids = (NodeId::try_from(0).unwrap(), SiteId::try_from(0).unwrap());
        let refusals = Refusals::default();
        let (mut peers, router) = Peers::start(ids, [node(1)]);
        peers.add(node(2), &router);
        for id in [1, 2] {
            peers.history_mut(node(id)).unwrap().held = true;
            refusals.note(node(id), "came too early".into());
        }
        let statistics = Arc::downgrade(&router.table().peers[&node(1)].statistics);
        let budgets = [1, 2].map(|size| Budget::new(size, Arc::default()));
        peers.keep(node(1), &budgets);
        let left = budgets.map(|budget| Arc::downgrade(&budget));
        assert!(peers.previous(node(1)).is_some() && left.iter().all(|budget| budget.upgrade().is_some()));

        peers.remove(node(1), &router, &refusals);
        assert!(!peers.has(node(1)) && !router.table().peers.contains_key(&node(1)));
        assert!(peers.history(node(1)).is_none() && peers.previous(node(1)).is_none());
        assert!(refusals.last(node(1)).is_none());
        assert!(statistics.upgrade().is_none() && left.iter().all(|budget| budget.upgrade().is_none()));
        // A late event of an old session or call does not bring the peer back.
        assert!(peers.history_mut(node(1)).is_none());
        peers.keep(node(1), &[1, 2].map(|size| Budget::new(size, Arc::default())));
        assert!(!peers.has(node(1)));

        peers.add(node(1), &router);
        assert!(!peers.history(node(1)).unwrap().held && peers.previous(node(1)).is_none());
        assert!(peers.history(node(2)).unwrap().held && refusals.last(node(2)).is_some());
    }
}
