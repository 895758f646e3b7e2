//! A primary's generation: a new one is drawn when writes go on without a site that had the data, not at the loss itself.
//!
//! It is durable here and at every site in sync before anything is answered in it, and marked as not answered until then:
//! a crash in between must not look like a second history. Must never draw one while writes have to wait, nor let
//! anything be answered that a lost site may not have before. Called by the core.

use super::superblock::Then;
use super::{Core, Peer};
use crate::nbd::disk::format::{DiskFlags, SlotFlags};
use crate::nbd::mirror::Rotate;
use crate::wire::Mask;

/// The progress of a new generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// There is none.
    Idle,
    /// It has to be durable here, in this version, and at each site in sync, with this epoch.
    Telling { version: u64, epoch: u64 },
    /// The witness has to store it, as the sites alone have no majority.
    Witnessing,
    /// The mark that nothing was answered in it is being taken off, in this version.
    Confirming { version: u64 },
}

impl Core {
    /// Returns true if what is done may be answered.
    pub(super) fn may_answer(&self) -> bool {
        let is_settled =
            !self.needs_claim() && self.claim == Claim::Idle && self.quorum_in <= self.store.durable;
        !self.is_primary() || is_settled && !self.is_silenced()
    }

    fn needs_claim(&self) -> bool {
        !self.owed.is_empty() || self.is_local && self.store.wanted.flags.contains(DiskFlags::UNANSWERED)
    }

    /// Returns true if nothing may be answered, whatever it is: this site alone does not decide.
    pub(super) fn is_silenced(&self) -> bool {
        self.waits_for_others() || self.is_joining()
    }

    /// Returns true while a lost site or a majority is waited for.
    fn waits_for_others(&self) -> bool {
        !self.frozen.is_empty() || !self.fencing.is_empty() || self.lacks_quorum()
    }

    /// Returns true if a majority of the sites decides, as there are enough of them.
    pub(super) fn is_by_majority(&self) -> bool {
        let sites = self.voters().count() + usize::from(self.has_vote());
        self.config.witness.is_some() || self.config.quorum && sites > 2
    }

    /// Returns true if it takes a majority, and there is none.
    pub(super) fn lacks_quorum(&self) -> bool {
        self.is_by_majority() && !self.has_majority()
    }

    /// Returns true if more than half of the sites have equal disks, and this one is among them. Sites that left in order
    /// do not count.
    pub(super) fn has_majority(&self) -> bool {
        let has_vote = self.has_vote();
        let equal =
            self.voters().filter(|peer| peer.is_equal()).count() + usize::from(self.is_local && has_vote);
        let all = self.voters().count() + usize::from(has_vote) + usize::from(self.config.witness.is_some());
        let equal = equal + usize::from(equal > 0 && self.has_witness_vote());
        if equal * 2 > all {
            return true;
        }
        let slots = &self.store.wanted.slots;
        let has_left = |peer: &&Peer| {
            let mut of_peer = slots.iter().filter(|slot| slot.site == Some(peer.site));
            peer.session == 0 && of_peer.any(|slot| slot.flags.contains(SlotFlags::OUTDATED))
        };
        equal * 2 > all - self.voters().filter(has_left).count()
    }

    /// The other sites that count for a majority: not those whose copy may be behind.
    pub(super) fn voters(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().filter(|peer| !self.config.asynchronous.contains(peer.site.get()))
    }

    fn has_vote(&self) -> bool {
        !self.config.asynchronous.contains(self.config.site.get())
    }

    /// Draws a generation if one is owed and writes may go on.
    pub(super) fn make_claim(&mut self) {
        let can_claim = !self.is_silenced() || self.lacks_only_witness();
        if self.is_primary() && self.claim == Claim::Idle && self.needs_claim() && can_claim {
            self.draw_claim();
        }
    }

    /// Returns true if nothing but the witness's vote is waited for, and it can be asked.
    fn lacks_only_witness(&self) -> bool {
        let waits = !self.frozen.is_empty() || !self.fencing.is_empty() || self.is_joining();
        let has_disk = self.is_local || self.peers.iter().any(Peer::has_all);
        !waits && has_disk && self.has_witness() && self.role_change == super::role::Change::None
    }

    /// Draws a generation, or takes the mark of one off that was never answered in.
    pub(super) fn draw_claim(&mut self) {
        let owed = std::mem::take(&mut self.owed);
        let fresh = self.draw();
        if owed.is_empty() {
            // There is one already, drawn by a promotion.
        } else if self.is_local {
            self.store.wanted.lose(owed, fresh);
            self.store.wanted.flags.set(DiskFlags::UNANSWERED, true);
        } else {
            let former = self.elsewhere.replace(fresh);
            self.note_passed(former);
        }
        self.change(Then::Nothing);
        let version = self.store.version;
        self.claim = Claim::Telling { version, epoch: self.epochs.current() };
        self.barrier();
        self.step_claim();
    }

    fn confirm_claim(&mut self) {
        self.store.wanted.flags.set(DiskFlags::UNANSWERED, false);
        self.change(Then::Nothing);
        self.claim = Claim::Confirming { version: self.store.version };
    }

    /// The superblock is durable up to some version, or a site reported what is stable there, or is lost.
    pub(super) fn step_claim(&mut self) {
        match self.claim {
            Claim::Idle => self.release(),
            Claim::Telling { version, epoch } => {
                let knows = |peer: &Peer| !peer.has_all() || peer.stable >= epoch;
                if self.store.durable < version || !self.peers.iter().all(knows) {
                    return;
                }
                if self.lacks_quorum() && self.lacks_only_witness() {
                    self.claim = Claim::Witnessing;
                    return self.want_vote();
                }
                let is_marked = self.is_local && self.store.wanted.flags.contains(DiskFlags::UNANSWERED);
                // A primary that leaves the role while it waits, for a majority or the fencing of a lost site, has answered
                // nothing since the loss: its claim gives way to that of the sites that go on.
                match is_marked && self.owed.is_empty() && !self.waits_for_others() {
                    true => self.confirm_claim(),
                    false => self.end_claim(),
                }
            }
            Claim::Witnessing => {}
            Claim::Confirming { version } if self.store.durable >= version => self.end_claim(),
            Claim::Confirming { .. } => {}
        }
    }

    /// The witness has voted, or refused.
    pub(super) fn claim_voted(&mut self) {
        self.note_quorum();
        if !self.is_local && self.lacks_quorum() {
            // No mark on a disk here says that it is still to be asked for.
            self.owed = self.owed | Mask::of(self.config.site.get());
        }
        let is_marked = self.is_local && self.store.wanted.flags.contains(DiskFlags::UNANSWERED);
        match is_marked && self.owed.is_empty() && !self.lacks_quorum() {
            true => self.confirm_claim(),
            false => self.end_claim(),
        }
    }

    fn end_claim(&mut self) {
        self.claim = Claim::Idle;
        // A site was lost meanwhile.
        self.make_claim();
        self.release();
        if std::mem::take(&mut self.is_leave_held) {
            self.bits_of_leaver_stored();
        }
    }

    /// Answers what may be answered now, and admits what waited.
    pub(super) fn release(&mut self) {
        if !self.gated.is_empty() {
            let gated = std::mem::take(&mut self.gated);
            gated.into_iter().for_each(|pending| self.answer(pending));
        }
        if !self.held.is_empty() {
            self.admit_held();
        }
        self.release_reads();
    }
}
