//! A primary that lost a site: whether it goes on at once, waits for that site, a majority, or the fencing handler.
//!
//! Must never let writes go on while any of these is waited for. Called by the core.

use super::Core;
use super::event::{Action, Note, Refusal};
use super::role::Change;
use super::superblock::Then;
use crate::nbd::disk::format::{DiskFlags, SlotFlags};
use crate::nbd::mirror::Rotate;
use crate::nbd::mirror::promotion::Fencing;
use crate::wire::{Mask, SiteId};

impl Core {
    /// A site that had the data was lost.
    pub(super) fn freeze_for(&mut self, site: SiteId) {
        let slot = self.store.wanted.slots.iter().find(|slot| slot.site == Some(site));
        if slot.is_some_and(|slot| slot.flags.contains(SlotFlags::OUTDATED)) {
            // It left in order, and cannot become primary.
            return;
        }
        let mask = Mask::of(site.get());
        if self.config.tuning.can_fence {
            if !self.fencing.contains(site.get()) {
                self.fencing = self.fencing | mask;
                self.out.push(Action::Fence(site));
            }
        } else if self.config.tuning.freeze {
            self.freeze(mask, "a site was lost");
        }
    }

    fn freeze(&mut self, sites: Mask, why: &'static str) {
        self.frozen = self.frozen | sites;
        self.note(Note::Frozen(why));
    }

    /// A site has the data again, or is being brought to it: nothing waits for it any more, and nothing is owed.
    pub(super) fn came_back(&mut self, site: SiteId) {
        let others = !Mask::of(site.get()).0;
        self.owed.0 &= others;
        let was_waiting = !self.frozen.is_empty() || !self.fencing.is_empty();
        (self.frozen.0, self.fencing.0) = (self.frozen.0 & others, self.fencing.0 & others);
        if was_waiting && self.frozen.is_empty() && self.fencing.is_empty() {
            self.note(Note::Thawed);
        }
        self.note_quorum();
    }

    /// A person says that writes go on. Where a majority decides, a person cannot.
    pub(super) fn resume(&mut self) -> Result<(), Refusal> {
        if self.waits_for_majority() {
            return Err(Refusal::Majority);
        }
        self.thaw();
        Ok(())
    }

    pub(super) fn thaw(&mut self) {
        if !self.frozen.is_empty() || !self.fencing.is_empty() {
            (self.frozen, self.fencing) = (Mask(0), Mask(0));
            self.note(Note::Thawed);
        }
        self.make_claim();
        self.release();
    }

    /// Marks on disk, and for other sites, that this primary answers nothing for want of a majority.
    pub(super) fn note_quorum(&mut self) {
        let lacks = self.lacks_quorum();
        let flags = self.store.wanted.flags;
        if !self.is_primary() || flags.contains(DiskFlags::LOST_QUORUM) == lacks {
            return;
        }
        self.store.wanted.flags.set(DiskFlags::LOST_QUORUM, lacks);
        self.change(Then::Nothing);
        self.quorum_in = self.store.version;
        self.note(if lacks { Note::Frozen("there is no majority of sites in sync") } else { Note::Thawed });
    }

    /// The handler ended for a site.
    pub(super) fn fenced(&mut self, site: SiteId, status: i32) {
        let (result, mask) = (Fencing::from_exit_status(status), Mask::of(site.get()));
        self.note(Note::Fenced(site, result));
        let is_linked =
            self.peer_of(site).and_then(|i| self.peers.get(i)).is_some_and(|peer| peer.session != 0);
        if result == Fencing::Done && !is_linked {
            self.store.wanted.note_outdated(mask);
            self.change(Then::Nothing);
        }
        if let Change::Fencing { waits, fenced } = self.role_change {
            if waits.contains(site.get()) {
                return self.fenced_for_promotion(site, result, Mask(waits.0 & !mask.0), fenced | mask);
            }
        }
        if !self.fencing.contains(site.get()) {
            return;
        }
        self.fencing.0 &= !mask.0;
        match result {
            Fencing::Done => {}
            Fencing::IsPrimary => self.freeze(mask, "the fencing handler says that a lost site is primary"),
            Fencing::Failed if self.config.tuning.freeze => {
                self.freeze(mask, "the fencing handler failed for a lost site")
            }
            Fencing::Failed => {}
        }
        self.make_claim();
        self.release();
    }

    fn fenced_for_promotion(&mut self, site: SiteId, result: Fencing, waits: Mask, fenced: Mask) {
        if result == Fencing::Done && !waits.is_empty() {
            self.role_change = Change::Fencing { waits, fenced };
            return;
        }
        self.role_change = Change::None;
        let answer = match result {
            Fencing::Done => self.promote(false, fenced),
            _ => Err(Refusal::Fencing(site, result)),
        };
        if answer.is_err() || self.is_primary() {
            self.out.push(Action::Answer(answer));
        }
    }
}
