//! Calls of the operator's programs, each on a thread of its own.
//!
//! Must never keep the mirror waiting: the core hears of the end by an event, or needs none. Called by the mirror.

use std::sync::Arc;

use super::handlers::{Call, FAILED, Handler};
use super::mirror::Mirror;
use crate::nbd::core::Event;
use crate::sys;
use crate::wire::SiteId;

impl Mirror {
    /// Has the fencing handler called by a thread of its own.
    pub(super) fn fence(self: &Arc<Self>, site: SiteId) {
        let handler = self.lock().handlers.fencing.clone();
        let fenced = move |mirror: &Arc<Mirror>, status| mirror.handle(Event::Fenced(site, status));
        if !self.call(handler, site, fenced) {
            self.handle(Event::Fenced(site, FAILED));
        }
    }

    /// Has the helper of a split brain called by a thread of its own.
    pub(super) fn call_helper(self: &Arc<Self>, site: SiteId) {
        let handler = self.lock().handlers.helper.clone();
        self.record(Some(site), "split brain", "the helper is called: the changes here are to be given up");
        self.call(handler, site, |_, _| {});
    }

    /// Returns false if there is no program to call, or no thread for it.
    fn call(
        self: &Arc<Self>,
        handler: Option<Handler>,
        site: SiteId,
        then: impl FnOnce(&Arc<Mirror>, i32) + Send + 'static,
    ) -> bool {
        let Some(handler) = handler else { return false };
        let state = self.lock();
        let generation = state.core.superblock().current;
        let hosts = state.handlers.hosts.iter().find(|(of, _)| *of == site);
        let hosts = hosts.map_or_else(String::new, |(_, hosts)| hosts.clone());
        drop(state);
        let mirror = Arc::clone(self);
        let job = move || {
            let (resource, id, own) = (mirror.name.as_str(), mirror.id, mirror.site);
            let call = Call { resource, id, own, other: site, hosts: &hosts, generation };
            let status = handler.call(&call);
            then(&mirror, status);
        };
        sys::spawn("handler", job).is_ok()
    }
}
