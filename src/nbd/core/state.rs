//! The state of the core as others may see it: role, disk, and the relation to each site.
//!
//! Changes nothing. Called by the runner, for status, metrics and reads, and by the simulator.

use super::Core;
use super::peer::{Part, Stage};
use crate::nbd::disk::Bitmap;
use crate::nbd::disk::format::Superblock;
use crate::nbd::mirror::Role;
use crate::wire::SiteId;

impl Core {
    /// The role at present.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The primary whose writes come here.
    pub fn follows(&self) -> Option<SiteId> {
        self.follows
    }

    /// Returns true if writes wait: for a person, a lost site, a majority or the fencing handler.
    pub fn is_frozen(&self) -> bool {
        self.is_primary() && (!self.frozen.is_empty() || !self.fencing.is_empty() || self.lacks_quorum())
    }

    /// Returns true if writes wait for a majority: no command lets them go on.
    pub fn waits_for_majority(&self) -> bool {
        self.is_primary() && self.lacks_quorum()
    }

    /// Returns true if resyncs with a site wait for [`super::Command::PauseResync`].
    pub fn is_paused(&self, site: SiteId) -> bool {
        self.paused.contains(site.get())
    }

    /// The superblock as it is, or is about to be, on disk.
    pub fn superblock(&self) -> &Superblock {
        &self.store.wanted
    }

    /// Returns true if this site is primary, and its disk good.
    pub fn reads_locally(&self) -> bool {
        self.role == Role::Primary && self.is_local
    }

    /// Returns true if reads may be answered from the local disk without asking.
    pub fn reads_at_once(&self) -> bool {
        self.reads_locally() && self.may_read()
    }

    /// Bytes that may differ from a site's disk, as far as bits tell.
    pub fn out_of_sync(&self, site: SiteId) -> u64 {
        let map = self.peer_of(site).and_then(|i| self.peers.get(i)).and_then(|p| self.bitmaps.get(p.slot));
        map.map_or(0, |map| map.count().saturating_mul(self.config.layout.chunk()))
    }

    /// The relation of a site to this one: the progress of the session, and its purpose.
    pub fn peer_state(&self, site: SiteId) -> Option<(Stage, Part)> {
        self.peer_of(site).and_then(|i| self.peers.get(i)).map(|peer| (peer.stage, peer.part))
    }

    /// The bitmap of a slot, for status and checks.
    pub fn bitmap(&self, site: SiteId) -> Option<&Bitmap> {
        self.bitmaps.get(self.peers.get(self.peer_of(site)?)?.slot)
    }
}
