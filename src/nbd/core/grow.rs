//! A mirror that becomes larger while it is in use: the disks first, then the size that all agree on.
//!
//! Each site covers its larger disk with metadata before it says so. The primary asks all of them, and the smallest counts.
//! The marks of the new part are durable before the new size is; a site that was not there for it takes the size, with marks
//! of its own, before the next handshake ends. So a crash at any point leaves one size or the other, and a new part that
//! is copied. Must never take a size that a site's metadata does not cover. Called by the core.

use std::time::Duration;

use bytes::Bytes;

use super::event::{Action, Note, Refusal};
use super::obstacle::Obstacle;
use super::packet::{self, Fields};
use super::superblock::Then;
use super::{Core, Peer, mutated};
use crate::nbd::mirror::{Outcome, Role, record};
use crate::wire::{Mask, PacketType, SiteId};

/// Stands for all slots, whose bits are written before a new size.
pub const BITS_OF_GROWTH: u64 = 2;

/// A site looks at its disk, and writes 2 MiB of metadata for each TiB of it, in this time, or it does not answer at all.
const PATIENCE: Duration = Duration::from_secs(30);

/// A primary whose size was taken has this time for the copy to begin; then other sites count, too. Far longer than a
/// handshake, and shorter than people wait.
const FIRST: Duration = Duration::from_secs(2);

/// A growth under way.
#[derive(Debug)]
pub enum Growth {
    /// These sites look at their disks.
    Asking { since: Duration, left: Mask },
    /// The marks of the new part, then the new size, are being made durable.
    Raising { mirrored: u64, size: u64, by: By },
}

/// The origin of a new size.
#[derive(Clone, Copy, Debug)]
pub enum By {
    /// A command here.
    Order,
    /// A primary, which this site is to be copied from.
    Primary(usize),
    /// Another site.
    Site,
}

impl Core {
    /// A mirror is to become as large as the smallest of its disks.
    pub(super) fn grow(&mut self) -> Result<(), Refusal> {
        if self.growth.is_some() {
            return Err(Refusal::Busy);
        }
        self.check_growth()?;
        let left = self.sites_where(|_| true);
        self.growth = Some(Growth::Asking { since: self.now, left });
        for i in 0..self.peers.len() {
            self.send_record(i, packet::REPLY | packet::LOOK);
        }
        self.grow_if_known();
        Ok(())
    }

    fn sites_where(&self, holds: impl Fn(&Peer) -> bool) -> Mask {
        let found = self.peers.iter().filter(|peer| holds(peer));
        found.fold(Mask(0), |mask, peer| mask | Mask::of(peer.site.get()))
    }

    fn check_growth(&self) -> Result<(), Refusal> {
        let apart = self.sites_where(|peer| !peer.linked || peer.session == 0);
        let unequal = self.sites_where(|peer| !peer.is_equal());
        let obstacle = match () {
            () if !self.is_primary() => Obstacle::Secondary(self.follows),
            () if !self.is_local => Obstacle::Disk,
            () if !apart.is_empty() => Obstacle::Apart(apart),
            () if !unequal.is_empty() => Obstacle::Unequal(unequal),
            () if self.stopped || self.role_change != super::role::Change::None => return Err(Refusal::Busy),
            () => return Ok(()),
        };
        Err(Refusal::Growth(obstacle))
    }

    /// A site wants to know how large the disk here is now.
    pub(super) fn look_asked(&mut self, site: SiteId) {
        self.lookers = self.lookers | Mask::of(site.get());
        self.out.push(Action::Look);
    }

    /// The metadata covers this many bytes of the disk here.
    pub(super) fn looked(&mut self, size: u64) {
        if self.store.wanted.agreed_size > 0 {
            self.config.layout.data_size = self.config.layout.data_size.max(size);
        }
        let lookers = std::mem::replace(&mut self.lookers, Mask(0));
        for i in 0..self.peers.len() {
            if self.peers.get(i).is_some_and(|peer| lookers.contains(peer.site.get())) {
                self.send_record(i, packet::REPLY | packet::LOOK | packet::END);
            }
        }
    }

    /// A site said how large its disk is.
    pub(super) fn look_answered(&mut self, site: SiteId) {
        if let Some(Growth::Asking { left, .. }) = &mut self.growth {
            left.0 &= !Mask::of(site.get()).0;
            self.grow_if_known();
        }
    }

    fn grow_if_known(&mut self) {
        if matches!(self.growth, Some(Growth::Asking { left, .. }) if left.is_empty()) {
            self.growth = None;
            if let Err(refusal) = self.check_growth().and_then(|()| self.raise_to_smallest()) {
                self.out.push(Action::Answer(Err(refusal)));
            }
        }
    }

    fn raise_to_smallest(&mut self) -> Result<(), Refusal> {
        let theirs = self.peers.iter().filter_map(|peer| Some((peer.known.as_ref()?.size, peer.site)));
        let sizes = [(self.config.layout.data_size, self.config.site)].into_iter().chain(theirs);
        let mirrored = self.size();
        match sizes.min_by_key(|(size, _)| *size) {
            Some((size, _)) if size > mirrored => {
                self.raise(size, By::Order);
                Ok(())
            }
            smallest => {
                let (size, site) = smallest.unwrap_or((mirrored, self.config.site));
                Err(Refusal::Growth(Obstacle::Small { site, size, mirrored }))
            }
        }
    }

    /// Takes a size that another site took before, at the end of a handshake. Returns true if that has to be durable first: then
    /// the handshake begins anew.
    pub(super) fn takes_size(&mut self, i: usize, size: u64) -> bool {
        if self.store.wanted.agreed_size == 0 || size <= self.size() || self.takes_size_with_content(i) {
            return false;
        }
        if !matches!(self.growth, Some(Growth::Raising { .. })) {
            let theirs = self.peers.get(i).and_then(|peer| peer.theirs.as_ref());
            let is_primary = theirs.is_some_and(|(facts, _)| facts.role == Role::Primary);
            self.raise(size, if is_primary { By::Primary(i) } else { By::Site });
        }
        true
    }

    /// Returns true if this far site takes a larger size with the content that it is for: its copy is a state of the primary's,
    /// or is marked inconsistent.
    fn takes_size_with_content(&self, i: usize) -> bool {
        let own = self.config.site;
        let decision = self.peers.get(i).and_then(|peer| peer.decision.as_ref());
        let is_target = decision.is_some_and(
            |(decision, _)| matches!(decision.outcome, Outcome::Sync { source, .. } if source != own),
        );
        self.config.asynchronous.contains(own.get()) && is_target && !mutated!(self, SizeEarly)
    }

    /// A resync to here begins that brings a larger size: bits can mark the new part.
    pub(super) fn begin_larger(&mut self, size: u64) {
        if self.store.wanted.agreed_size > 0 && size > self.size() {
            self.taking = size;
            let chunks = size.div_ceil(self.config.layout.chunk());
            self.bitmaps.iter_mut().for_each(|map| map.grow(chunks, false));
        }
    }

    /// The copy is inconsistent from here on, or what makes it the larger state is durable.
    pub(super) fn take_larger(&mut self) {
        let size = std::mem::take(&mut self.taking);
        if size > 0 {
            self.grown_from = self.grown_from.min(self.size());
            self.store.wanted.agreed_size = self.store.wanted.agreed_size.max(size);
            self.note(Note::Grown(size));
        }
    }

    /// Such a resync has ended early.
    pub(super) fn forget_larger(&mut self) {
        if std::mem::take(&mut self.taking) > 0 {
            self.limit_bitmaps();
        }
    }

    /// Marks the new part as different everywhere, and then takes the size.
    fn raise(&mut self, size: u64, by: By) {
        let mirrored = self.size();
        let chunks = size.div_ceil(self.config.layout.chunk());
        self.bitmaps.iter_mut().for_each(|map| map.grow(chunks, false));
        let new = self.chunks(mirrored, size);
        if !mutated!(self, GrowUnmarked) {
            self.mark_all(new);
        }
        if self.growth.is_some() {
            // By a handshake while the sites are asked.
            self.out.push(Action::Answer(Err(Refusal::Busy)));
        }
        self.growth = Some(Growth::Raising { mirrored, size, by });
        self.grown_from = self.grown_from.min(mirrored);
        self.flush_bits_for(usize::MAX, BITS_OF_GROWTH);
    }

    /// The size that is being taken; 0 if none is.
    pub(super) fn size_to_come(&self) -> u64 {
        match self.growth {
            Some(Growth::Raising { size, .. }) => size,
            _ => 0,
        }
    }

    /// Returns true if another site than this is to be met first, as its size was taken.
    pub(super) fn is_grown_by_another(&self, i: usize) -> bool {
        self.grown_by.is_some_and(|(first, until)| first != i && self.now < until)
    }

    pub(super) fn bits_of_growth_stored(&mut self) {
        if let Some(Growth::Raising { size, .. }) = self.growth {
            self.store.wanted.agreed_size = self.store.wanted.agreed_size.max(size);
            self.change(Then::Grown);
        }
    }

    /// The size is durable: the other sites take it by a handshake, and the new part by a resync.
    pub(super) fn grown(&mut self) {
        let Some(Growth::Raising { size, by, .. }) = self.growth.take() else { return };
        self.note(Note::Grown(size));
        for i in 0..self.peers.len() {
            self.lose_for(i, "the mirror has grown", false);
        }
        match by {
            By::Order => self.out.push(Action::Answer(Ok(()))),
            By::Site => {}
            // Two that took the size from a primary are both copied to by it, and not one by the other for their marks.
            By::Primary(i) => {
                self.grown_by = Some((i, self.now + FIRST));
                self.change(Then::Greet);
            }
        }
    }

    pub(super) fn tick_growth(&mut self) {
        let Some(Growth::Asking { since, left }) = self.growth else { return };
        if self.now.saturating_sub(since) > PATIENCE {
            self.growth = None;
            self.out.push(Action::Answer(Err(Refusal::Growth(Obstacle::Silent(left)))));
        }
    }

    pub(super) fn send_record(&mut self, i: usize, flags: u64) {
        let record = record::encode(&self.facts(i));
        self.send(i, PacketType::SC_HS, Fields { flags, ..Fields::default() }, Bytes::from(record));
    }
}
