//! This daemon's own view, and the times at which it is sent to the peers that take views.
//!
//! A view is only ever its sender's own: a peer's view is sent to no other peer. Decides nothing. Used by the timer
//! thread; `mesh` shows it beside the views of others.

use std::collections::BTreeMap;

use super::Coordinator;
use crate::daemon::core::{CONNECT_TICK, Moment};
use crate::wire::{Extension, Mask, PeerKey, PeerView, ResourceId};

/// This daemon's own views.
#[derive(Default)]
pub(super) struct Views {
    /// The time at which they are sent next: with every change, and with every tick.
    pub due: Moment,
    pub own: OwnViews,
}

/// Connected nodes, and connected sites of each resource, each with the time since which they are.
pub(super) type OwnViews = BTreeMap<Option<ResourceId>, (Mask, Moment)>;

/// Returns the view that is valid at `now`.
pub(super) fn own_view(own: &OwnViews, now: Moment, scope: Option<ResourceId>) -> PeerView {
    let (mask, since) = own.get(&scope).copied().unwrap_or((Mask(0), now));
    PeerView { mask, unchanged: now.saturating_sub(since), record: None }
}

impl Coordinator {
    /// Sends this daemon's view to every peer that takes views, and sets the time of the next.
    pub(super) fn share_views(&mut self) {
        let now = self.now();
        self.views.due = now + CONNECT_TICK;
        let state = self.core.conn_state();
        // Made anew, so that nothing stays of a resource that a reload has removed.
        let before = std::mem::take(&mut self.views.own);
        let sites = state.sites.into_iter().map(|(resource, mask)| (Some(resource), mask));
        for (scope, mask) in sites.chain([(None, state.nodes)]) {
            let same = before.get(&scope).filter(|(known, _)| *known == mask);
            self.views.own.insert(scope, *same.unwrap_or(&(mask, now)));
        }
        let record = Extension {
            owned: Some(self.router.table().owned.iter().copied().collect()),
            digest: self.record.digest,
            parts: self.record.parts.clone(),
            ..Extension::default()
        };
        for session in self.sessions().iter().filter(|session| session.exchanges_views()) {
            let scope = match session.statistics.key {
                PeerKey::Node(_) => None,
                PeerKey::Site(resource, _) => Some(resource),
            };
            let view = own_view(&self.views.own, now, scope);
            let record = session.exchanges_records().then(|| record.clone());
            session.tell_view(&PeerView { record, ..view });
        }
    }
}
