//! The effects of an event on the generations, flags and slots of a superblock.
//!
//! Each function takes the superblock as it is on disk and makes of it the one that has to be durable before the fact it
//! describes may become visible; nothing here may write. A superblock that could not be written means that this disk
//! has failed: the old one must not be used on. Called by the volume's state machine.

use super::Generation;
use super::facts::Facts;
use super::outcome::{Decision, Outcome, Reach};
use crate::nbd::disk::format::{DiskFlags, Slot, SlotFlags, Superblock};
use crate::wire::{Mask, SiteId};

/// Changes to a superblock, in place. The caller works on a copy, makes that durable, and only then acts.
pub trait Rotate {
    /// Gives a site a slot. Returns false if none is free.
    fn admit(&mut self, site: SiteId) -> bool;

    /// Only these sites are configured with a disk, at a start of the program: the others are members no more, and have no
    /// slot. One that comes back all the same is known by its generation, and compared from end to end. Returns the sites
    /// that were forgotten.
    fn retain(&mut self, sites: Mask) -> Mask;

    /// At a primary, sites were lost that had the data, or have not confirmed all of it as stable, or were sent the end of
    /// a resync and may have taken it. To be durable here, and at every site that stays connected ([`Rotate::adopt`]),
    /// before any write is answered that one of the lost has not confirmed stable: a survivor that does not know of the
    /// loss would take the lost site for its equal. The bits of those writes count from the old generation.
    fn lose(&mut self, lost: Mask, fresh: Generation);

    /// At a secondary, the stream brought a new generation, and the sites that miss it. To be durable before the first
    /// write of it is carried out, together with bits for the missing sites in all extents that are active here: writes of
    /// the old generation in them may never have reached those sites.
    fn adopt(&mut self, fresh: Generation, missing: Mask);

    /// At a secondary, the primary vanished without leaving in order. To be durable, after a sync of the data disk,
    /// before this site meets that primary again: it notes that this site went on.
    fn outlive_primary(&mut self);

    /// This site becomes primary. A fresh generation is taken if a member is missing, if the disk was just created, or
    /// if it was forced. `size` is the served size in bytes from now on if no size was agreed before. To be durable
    /// before the first read or write is served.
    fn promote(&mut self, missing: Mask, forced: bool, size: u64, fresh: Generation);

    /// The promotion before which the superblock was this is refused, and nothing was served. If the generation that it drew `may_count`
    /// for the witness, it becomes a former one. To be durable before this site meets others.
    fn undo_promotion(&mut self, before: &Superblock, may_count: bool);

    /// This site leaves the role in order: no write is in flight, all are stable here and at each connected site, and
    /// bits for those that are missing are durable.
    fn demote(&mut self);

    /// No write is in flight any more, here or from the primary, and all are stable: after this a crash needs no look at
    /// the activity log.
    fn settle(&mut self);

    /// The handshake found the disks equal, or a resync made them so. The peer's bits may be dropped.
    fn join(&mut self, peer: &Facts, decision: &Decision);

    /// A resync is about to begin, with this site as its source or target. At the source it has to be durable after the
    /// united bits are, at the target before the first write of the resync. The target's relation to other sites
    /// no longer counts: its handshakes with them start anew.
    fn begin_resync(&mut self, peer: &Facts, decision: &Decision);

    /// The resync into this disk has ended: all of it is written and synced. `source` is the source's facts at the
    /// end. To be durable before the end is acknowledged; only then may the source [`Rotate::finish_source`].
    ///
    /// Returns the sites that are now known to be equal: bits for them may be dropped. The bitmap for every other site
    /// keeps its bits, and takes those of the chunks that the resync copied in addition.
    fn finish_target(&mut self, source: &Facts) -> Mask;

    /// The target has acknowledged the durable end of the resync from this disk.
    fn finish_source(&mut self, target: SiteId);

    /// The content of a site that remembers this count comes to this disk. Where it is higher than this disk's, it was that of
    /// another disk in its place, or of a later state of it: from now on this one counts above it, and above the little more
    /// that a third site may remember. Otherwise they would take it for a restored snapshot for ever.
    fn outcount(&mut self, remembered: u64);

    /// This site leaves in order while another one goes on as primary: its data will be old.
    fn leave(&mut self);

    /// A site left in order, or was fenced: it marked itself outdated, or cannot come back unnoticed.
    fn note_outdated(&mut self, sites: Mask);

    /// The connection to a site is lost.
    fn disconnect(&mut self, site: SiteId);

    /// A handshake found a split brain.
    fn latch_split_brain(&mut self);

    /// A person gives this site's changes up.
    fn discard(&mut self);

    /// The data disk failed, a flush among others. A primary that goes on through other sites sends them a fresh
    /// generation in the stream, with its own site as missing: this disk stays in the old one.
    fn fail(&mut self);

    /// The first write since this site settled is about to be carried out, primary or not. To be durable before, and to
    /// be sent to the peers ([`Rotate::hear`]): a disk that is rolled back is known by its count.
    fn begin_writes(&mut self);

    /// Another site has sent its durable count of writes.
    fn hear(&mut self, site: SiteId, counter: u64);
}

fn slot(block: &mut Superblock, site: SiteId) -> Option<&mut Slot> {
    block.slots.iter_mut().find(|slot| slot.site == Some(site))
}

/// Puts a generation in front of the history, if it is not in it yet and is not the current one.
fn remember(block: &mut Superblock, former: Generation) {
    if !former.has_data() || former == block.current || block.history.contains(&former) {
        return;
    }
    // Nothing was answered in it: the one before stays the first.
    let at = usize::from(block.flags.contains(DiskFlags::UNANSWERED));
    let Some(behind) = block.history.get_mut(at..) else { return };
    behind.rotate_right(1);
    if let Some(place) = block.history.get_mut(at) {
        *place = former;
    }
}

/// Takes a new current generation; the bits for the missing sites count from the old one.
fn renew(block: &mut Superblock, fresh: Generation, missing: Mask, was_primary: bool) {
    let old = block.current;
    for slot in &mut block.slots {
        let is_missing = slot.site.is_some_and(|site| missing.contains(site.get()));
        // A slot that is in use goes on counting from where it began.
        if is_missing && !slot.generation.is_some() && old.has_data() {
            slot.generation = old.noting(was_primary);
        } else if is_missing && !old.has_data() {
            // The site has nothing of this mirror's data, or its data is unknown: bits say nothing.
            slot.flags.set(SlotFlags::FULL_SYNC_DUE, true);
        }
    }
    block.current = fresh;
    block.flags.set(DiskFlags::ZEROED, false);
    remember(block, old);
}

/// Returns true if the mirror has no further site: none that could have newer data.
fn is_pair(block: &Superblock, peer: SiteId) -> bool {
    block.slots.iter().filter_map(|slot| slot.site).all(|site| site == peer)
}

/// Returns true if this disk is not outdated and the mirror has no further site that could have newer data.
fn is_newest_of_two(block: &Superblock, peer: SiteId) -> bool {
    is_pair(block, peer) && !block.flags.contains(DiskFlags::OUTDATED)
}

impl Rotate for Superblock {
    fn admit(&mut self, site: SiteId) -> bool {
        if slot(self, site).is_some() {
            return true;
        }
        let Some(free) = self.slots.iter_mut().find(|slot| slot.site.is_none()) else { return false };
        *free = Slot { site: Some(site), flags: SlotFlags::FULL_SYNC_DUE, ..Slot::default() };
        self.members = self.members | Mask::of(site.get());
        true
    }

    fn retain(&mut self, sites: Mask) -> Mask {
        let gone = Mask(self.members.0 & !sites.0);
        for i in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(i) else { break };
            if slot.site.is_some_and(|site| !sites.contains(site.get())) {
                let former = std::mem::take(slot).generation;
                remember(self, former);
            }
        }
        self.members = Mask(self.members.0 & sites.0);
        gone
    }

    fn lose(&mut self, lost: Mask, fresh: Generation) {
        renew(self, fresh.noting(true), lost, true);
        for site in &mut self.slots {
            if site.site.is_some_and(|id| lost.contains(id.get())) {
                site.flags.set(SlotFlags::CONNECTED, false);
            }
        }
    }

    fn adopt(&mut self, fresh: Generation, missing: Mask) {
        if fresh != self.current {
            renew(self, fresh.noting(false), missing, false);
            self.flags.set(DiskFlags::UNANSWERED, false);
        }
    }

    fn outlive_primary(&mut self) {
        self.flags.set(DiskFlags::UP_TO_DATE, false);
    }

    fn promote(&mut self, missing: Mask, forced: bool, size: u64, fresh: Generation) {
        let usable = self.flags.contains(DiskFlags::CONSISTENT) && !self.flags.contains(DiskFlags::FAILED);
        if !usable {
            // A forced generation descends from nothing that another site has: none may take it for newer.
            self.current = Generation::NONE;
            self.history = Default::default();
            for slot in &mut self.slots {
                slot.generation = Generation::NONE;
                slot.flags.set(SlotFlags::FULL_SYNC_DUE, true);
            }
        }
        if forced || !missing.is_empty() || !self.current.has_data() {
            renew(self, fresh.noting(true), missing, false);
        }
        for slot in &mut self.slots {
            slot.flags.set(SlotFlags::SYNC_TARGET, false);
        }
        self.flags |= DiskFlags::CONSISTENT | DiskFlags::UP_TO_DATE | DiskFlags::PRIMARY | DiskFlags::WRITING;
        self.flags = self
            .flags
            .without(DiskFlags::OUTDATED | DiskFlags::FAILED | DiskFlags::DISCARD | DiskFlags::LOST_QUORUM);
        if self.agreed_size == 0 {
            self.agreed_size = size;
        }
    }

    fn undo_promotion(&mut self, before: &Superblock, may_count: bool) {
        let (drawn, has_failed) = (self.current, self.flags.contains(DiskFlags::FAILED));
        (self.current, self.history) = (before.current, before.history);
        (self.flags, self.agreed_size) = (before.flags.without(DiskFlags::WRITING), before.agreed_size);
        if has_failed {
            self.fail();
        }
        for former in &before.slots {
            let Some(slot) = former.site.and_then(|site| slot(self, site)) else { continue };
            slot.generation = former.generation;
            for flag in [SlotFlags::FULL_SYNC_DUE, SlotFlags::SYNC_TARGET] {
                slot.flags.set(flag, former.flags.contains(flag));
            }
        }
        if may_count {
            remember(self, drawn);
        }
    }

    fn demote(&mut self) {
        self.flags = self.flags.without(DiskFlags::PRIMARY | DiskFlags::WRITING);
    }

    fn settle(&mut self) {
        self.flags.set(DiskFlags::WRITING, false);
    }

    fn join(&mut self, peer: &Facts, decision: &Decision) {
        // Equal disks: either both are outdated or none is, and of two sites none can be.
        if !peer.is_outdated() || is_pair(self, peer.site) {
            self.flags.set(DiskFlags::OUTDATED, false);
        }
        if peer.flags.contains(DiskFlags::UP_TO_DATE) || is_newest_of_two(self, peer.site) {
            self.flags |= DiskFlags::UP_TO_DATE;
        }
        self.flags = self.flags.without(DiskFlags::SPLIT_BRAIN | DiskFlags::DISCARD);
        // It may have grown since the records were sent.
        self.agreed_size = self.agreed_size.max(decision.size);
        if let Some(slot) = slot(self, peer.site) {
            let former = std::mem::take(&mut slot.generation);
            slot.flags = SlotFlags::SEEN | SlotFlags::CONNECTED;
            slot.stable = slot.stable.max(peer.write_counter);
            remember(self, former);
        }
    }

    fn begin_resync(&mut self, peer: &Facts, decision: &Decision) {
        let Outcome::Sync { source, .. } = decision.outcome else { return };
        let is_source = source != peer.site;
        // Only data that descends from a generation of this site can be continued by it: changes that are given up are
        // found by the discarding site's mark instead.
        let is_ancestor = |block: &Superblock, former: Generation| {
            former == block.current
                || block.history.contains(&former)
                || block.slots.iter().any(|slot| slot.generation == former)
        };
        let since = match () {
            () if !peer.current.has_data() => Some(self.current),
            () if is_ancestor(self, peer.current) => Some(peer.current),
            // The generation that it drew and never answered in is given up.
            () => peer.answered().filter(|former| is_ancestor(self, *former)),
        };
        if is_source && is_newest_of_two(self, peer.site) {
            self.flags |= DiskFlags::UP_TO_DATE;
        }
        if !is_source {
            self.flags =
                self.flags.without(DiskFlags::CONSISTENT | DiskFlags::UP_TO_DATE | DiskFlags::ZEROED);
            if decision.row.is_given_up() {
                self.flags |= DiskFlags::DISCARD;
            }
            // The source may yet be overwritten by a site that it did not go on without. Nobody can answer anything in its
            // claim as long as this disk misses a part of it.
            let is_claim = peer.current.is_same_data(self.current)
                && peer.flags.contains(DiskFlags::UNANSWERED)
                && !peer.is_primary();
            if is_claim {
                self.flags |= DiskFlags::UNANSWERED;
            }
            // From here on bits mark the progress, and the generation that they belong to is the source's.
            if !self.current.has_data() {
                self.current = peer.current.noting(false);
            }
        }
        self.agreed_size = self.agreed_size.max(decision.size);
        let Some(slot) = slot(self, peer.site) else { return };
        slot.flags |= SlotFlags::SEEN | SlotFlags::CONNECTED;
        slot.flags.set(SlotFlags::SYNC_SOURCE, is_source);
        slot.flags.set(SlotFlags::SYNC_TARGET, !is_source);
        // A full resync has set all bits, durably, before this.
        slot.flags.set(SlotFlags::FULL_SYNC_DUE, false);
        slot.stable = slot.stable.max(peer.write_counter);
        // A connect after an interruption finds it by the target's generation, and goes on with the bits.
        if let Some(since) = since.filter(|_| is_source) {
            slot.generation = since.noting(slot.generation.was_primary());
        }
    }

    fn finish_target(&mut self, source: &Facts) -> Mask {
        self.flags.set(DiskFlags::UNANSWERED, false);
        self.current = source.current.noting(false);
        // Its own former generations may be those of changes that were given up: only the source's count.
        let ancestors: Vec<_> = source.ancestors().collect();
        self.history = Default::default();
        ancestors.iter().rev().for_each(|former| remember(self, *former));
        self.flags = self.flags.without(
            DiskFlags::FAILED
                | DiskFlags::DISCARD
                | DiskFlags::SPLIT_BRAIN
                | DiskFlags::PRIMARY
                | DiskFlags::LOST_QUORUM
                | DiskFlags::ZEROED,
        );
        self.flags |= DiskFlags::CONSISTENT;
        self.flags.set(DiskFlags::UP_TO_DATE, source.flags.contains(DiskFlags::UP_TO_DATE));
        self.flags.set(DiskFlags::OUTDATED, source.is_outdated() && !is_pair(self, source.site));
        let mut equal_sites = Mask::of(source.site.get());
        for slot in &mut self.slots {
            let Some(site) = slot.site else { continue };
            slot.flags.set(SlotFlags::SYNC_TARGET, false);
            // A secondary's knowledge of a third site that is away may be out of date; a primary hears of changes at once.
            let is_equal = site == source.site
                || source.slot(site).is_some_and(|theirs| {
                    let is_fresh = source.is_primary() || theirs.flags.contains(SlotFlags::CONNECTED);
                    is_fresh
                        && !theirs.generation.is_some()
                        && theirs.out_of_sync == 0
                        && !theirs.flags.contains(SlotFlags::FULL_SYNC_DUE)
                });
            if is_equal {
                slot.generation = Generation::NONE;
                slot.flags = slot
                    .flags
                    .without(SlotFlags::SYNC_SOURCE | SlotFlags::FULL_SYNC_DUE | SlotFlags::OUTDATED);
                equal_sites = equal_sites | Mask::of(site.get());
            } else if !ancestors.contains(&slot.generation) && slot.generation != source.current {
                let had_bits = slot.generation.is_some();
                slot.generation = Generation::NONE;
                slot.flags
                    .set(SlotFlags::FULL_SYNC_DUE, had_bits || slot.flags.contains(SlotFlags::FULL_SYNC_DUE));
            }
        }
        if let Some(slot) = slot(self, source.site) {
            slot.stable = slot.stable.max(source.write_counter);
        }
        equal_sites
    }

    fn finish_source(&mut self, target: SiteId) {
        let Some(slot) = slot(self, target) else { return };
        let former = std::mem::take(&mut slot.generation);
        slot.flags = slot.flags.without(
            SlotFlags::SYNC_SOURCE | SlotFlags::SYNC_TARGET | SlotFlags::FULL_SYNC_DUE | SlotFlags::OUTDATED,
        );
        remember(self, former);
        self.flags.set(DiskFlags::SPLIT_BRAIN, false);
        if is_pair(self, target) {
            self.flags.set(DiskFlags::OUTDATED, false);
        }
    }

    fn outcount(&mut self, remembered: u64) {
        if remembered > self.write_counter {
            self.write_counter = remembered.saturating_add(1 << 20);
        }
    }

    fn leave(&mut self) {
        self.flags.set(DiskFlags::OUTDATED, true);
        self.flags.set(DiskFlags::UP_TO_DATE, false);
    }

    fn note_outdated(&mut self, sites: Mask) {
        for slot in &mut self.slots {
            if slot.site.is_some_and(|site| sites.contains(site.get())) {
                slot.flags |= SlotFlags::OUTDATED;
            }
        }
    }

    fn disconnect(&mut self, site: SiteId) {
        if let Some(slot) = slot(self, site) {
            slot.flags.set(SlotFlags::CONNECTED, false);
        }
    }

    fn latch_split_brain(&mut self) {
        self.flags |= DiskFlags::SPLIT_BRAIN;
    }

    fn discard(&mut self) {
        self.flags |= DiskFlags::DISCARD;
    }

    fn fail(&mut self) {
        self.flags |= DiskFlags::FAILED;
        self.flags.set(DiskFlags::UP_TO_DATE, false);
    }

    fn begin_writes(&mut self) {
        self.flags.set(DiskFlags::WRITING, true);
        self.write_counter = self.write_counter.saturating_add(1);
    }

    fn hear(&mut self, site: SiteId, counter: u64) {
        if let Some(slot) = slot(self, site) {
            slot.stable = slot.stable.max(counter);
        }
    }
}

/// Returns true if a resync has to set every bit before it begins.
pub fn sets_all_bits(decision: &Decision) -> bool {
    matches!(decision.outcome, Outcome::Sync { reach: Reach::Full, .. })
}
