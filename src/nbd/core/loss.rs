//! Losses: of another site, of the primary, of the local disk.
//!
//! The generation comes first: nothing that a lost site may not have is answered before it is durable. Must never let a
//! lost site's unstable writes go unmarked. Called by the core.

use bytes::Bytes;

use super::Core;
use super::event::{Action, Note};
use super::flush::AfterSync;
use super::op::{Origin, Work};
use super::peer::Part;
use super::role::Change;
use super::superblock::Then;
use crate::nbd::mirror::{Role, Rotate};
use crate::nbd::server::Failure;
use crate::wire::{Mask, PacketType};

/// Stands for all slots, whose bits are written when a former primary's writes are settled.
pub const BITS_OF_SETTLED: u64 = 1;

/// Writes and syncs that have to end before this site meets others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settling {
    /// Writes of an earlier run of the program.
    Start,
    /// Writes of a primary that is gone.
    Outlive,
    /// Writes of a primary that left the role in order: all of them are stable.
    Left,
}

impl Core {
    /// Ends the session with a site that is gone.
    pub(super) fn lose(&mut self, i: usize, why: &'static str) {
        self.lose_for(i, why, true);
    }

    /// Ends the session with a site, that is gone or that a new one is to begin with.
    pub(super) fn lose_for(&mut self, i: usize, why: &'static str, is_gone: bool) {
        let Some(peer) = self.peers.get_mut(i) else { return };
        let (site, slot, stable, session, part) =
            (peer.site, peer.slot, peer.stable, peer.session, peer.part);
        // A target that heard of the end may count itself as equal.
        let is_end_told = peer.resync.as_ref().is_some_and(|resync| resync.is_end_told);
        let (takes_writes, had_data) =
            (peer.takes_writes(), is_end_told || part == Part::Equal && session != 0);
        let is_far = peer.far.is_some();
        let staged = peer.resync.as_ref().and_then(|resync| resync.staged.as_ref());
        let is_carrying_out = staged.is_some_and(|staged| staged.batch.is_some());
        let outstanding = peer.reset();
        if session == 0 {
            return;
        }
        if part == Part::Target {
            self.forget_larger();
        }
        let Some(peer) = self.peers.get_mut(i) else { return };
        (peer.progress, peer.apart_since) = (self.now, self.now);
        let is_primary = self.is_primary();
        if is_primary && takes_writes {
            if let Some(map) = self.bitmaps.get_mut(slot) {
                self.epochs.unstable(stable).for_each(|chunks| _ = map.set(chunks));
            }
        }
        self.store.wanted.disconnect(site);
        if had_data && (is_primary || self.role_change.is_won()) {
            self.owed = self.owed | Mask::of(site.get());
        }
        if is_primary && had_data {
            if is_gone && !is_far {
                self.freeze_for(site);
            }
            self.note_quorum();
        }
        self.note(Note::Lost(site, why));
        for (_, id) in outstanding {
            self.confirmed(id, Mask::of(site.get()));
        }
        self.promotion_lost(site);
        self.reads_lost(i);
        self.verify = self.verify.take().filter(|verify| verify.peer != i);
        if self.follows == Some(site) || is_carrying_out {
            self.follows = None;
            self.redo.abandon();
            // A batch that was begun is carried out as a whole.
            if !self.redo.is_busy() {
                self.drop_waiting(i);
            }
            self.mark_unstable(Mask(u32::MAX));
            // From here on bits cover it.
            self.flushes.told = self.epochs.close();
            self.flushes.asked = self.flushes.told;
            self.settling = Some(Settling::Outlive);
            self.settle_if_drained();
        }
        if is_primary && had_data {
            self.barrier();
            self.fail_without_disks();
        }
        self.stability_changed();
        self.step_claim();
        if self.config.witness.is_some() {
            // Reads and writes wait until it has voted.
            self.make_claim();
        }
    }

    /// The primary left the role in order: all that it wrote is stable everywhere.
    pub(super) fn peer_left_role(&mut self, i: usize) {
        if self.peers.get(i).is_some_and(|peer| self.follows == Some(peer.site)) {
            self.follows = None;
            self.flushes.told = self.flushes.told.max(self.epochs.current() - 1);
            self.stability_changed();
            // Then it meets those that followed it, too: none of them could be promoted otherwise.
            self.settling.get_or_insert(Settling::Left);
            self.settle_if_drained();
        }
    }

    /// Returns true while there may be writes that are not stable here, of an earlier run or of a primary that is gone.
    pub(super) fn is_settling(&self) -> bool {
        self.settling.is_some_and(|settling| settling != Settling::Left)
    }

    /// Once nothing of a former primary's is under way: a sync, and then on to the handshakes.
    pub(super) fn settle_if_drained(&mut self) {
        if self.settling.is_none() || self.settle_asked.is_some() {
            return;
        }
        let of_peers =
            |op: &super::Op| matches!(op.origin, Origin::Follow(..) | Origin::Resync(..) | Origin::Replay);
        if self.redo.is_writing() || self.ops.iter().any(|(_, op)| of_peers(op)) {
            return;
        }
        self.settle_asked = self.settling;
        self.after_sync(AfterSync::Settled);
    }

    pub(super) fn settled(&mut self) {
        // Bits take over from the activity log.
        self.flush_bits_for(usize::MAX, BITS_OF_SETTLED);
    }

    pub(super) fn settled_bits_stored(&mut self) {
        if self.settle_asked.take() != self.settling {
            // A primary was lost meanwhile, and has written since the sync.
            return self.settle_if_drained();
        }
        let settling = self.settling.take();
        let is_written_again =
            self.follows.is_some() || self.is_primary() || self.role_change != Change::None;
        if settling == Some(Settling::Left) && is_written_again {
            return;
        }
        match settling {
            Some(Settling::Outlive) => self.store.wanted.outlive_primary(),
            Some(Settling::Left) => {}
            // The extents of the activity log are marked for everybody.
            Some(Settling::Start) | None => self.flushes.told = self.flushes.told.max(1),
        }
        self.store.wanted.settle();
        self.void_log();
        self.change(Then::Greet);
    }

    /// A client's write failed on the local disk.
    pub(super) fn local_write_failed(&mut self, id: u32, failure: Failure) {
        let Some(op) = self.ops.get(id) else { return };
        let (Origin::Client(pending), start, end) = (op.origin, op.start, op.end) else { return };
        if failure == Failure::Io {
            self.local_disk_failed("a write failed");
            if !self.is_local && self.peers.iter().any(super::Peer::has_all) {
                // The other sites have it.
                return;
            }
        }
        if let Some(request) = self.pending.get_mut(pending) {
            request.failed = Some(failure);
        }
        if self.is_local {
            // The others may have it: this disk's content counts, and is copied again.
            let chunks = self.chunks(start, end);
            self.mark_all(chunks);
            for i in 0..self.peers.len() {
                self.lose(i, "a write failed here and not there");
            }
        }
    }

    /// The data disk failed: out until it is resynced.
    pub(super) fn local_disk_failed(&mut self, why: &'static str) {
        if !self.is_local || self.stopped {
            return;
        }
        self.is_local = false;
        self.store.wanted.fail();
        self.note(Note::DiskFailed(why));
        if self.is_primary() && self.config.tuning.stop_on_error {
            self.change(Then::Nothing);
            self.fail_flushes();
            for i in 0..self.peers.len() {
                self.tell_failure(i);
            }
            self.step_down();
        } else if self.is_primary() {
            self.owed = self.owed | Mask::of(self.config.site.get());
            self.change(Then::Nothing);
            self.claim = super::claim::Claim::Idle;
            self.make_claim();
            self.fail_without_disks();
        } else {
            self.change(Then::Nothing);
            for i in 0..self.peers.len() {
                self.tell_failure(i);
                self.lose(i, "the disk here failed");
            }
        }
        let waiting: Vec<_> = self.ops.iter().filter(|(_, op)| op.blocks > 0).map(|(id, _)| id).collect();
        for id in waiting {
            if let Some(op) = self.ops.get_mut(id) {
                op.work = Work::Elsewhere;
            }
        }
        self.stability_changed();
    }

    /// Every write and flush that waits fails where no disk is left, here or at another site.
    pub(super) fn fail_without_disks(&mut self) {
        if self.is_local || !self.is_primary() || self.peers.iter().any(super::Peer::has_all) {
            return;
        }
        // Writes that were answered and not flushed may be lost with the last site: no flush may say that they are stable.
        self.fail_flushes();
        for id in std::mem::take(&mut self.held) {
            if let Some(Origin::Client(pending)) = self.ops.remove(id).map(|op| op.origin) {
                let Some(request) = self.pending.get_mut(pending) else { continue };
                (request.failed, request.left) = (Some(Failure::Io), request.left.saturating_sub(1));
                if request.left == 0 {
                    self.answer(pending);
                }
            }
        }
    }

    /// The other end hears it, and does not wait for what will not come.
    fn tell_failure(&mut self, i: usize) {
        let fields = super::packet::Fields { errcode: super::apply::EIO, ..Default::default() };
        self.send(i, PacketType::SD_DATA_ACK, fields, Bytes::new());
    }

    /// The metadata cannot be written: whatever is answered from now on could be forgotten.
    pub(super) fn metadata_failed(&mut self) {
        if std::mem::replace(&mut self.stopped, true) {
            return;
        }
        self.note(Note::DiskFailed("the metadata cannot be written"));
        let numbers: Vec<_> = self.pending.iter().map(|(number, _)| number).collect();
        for number in numbers {
            if let Some(request) = self.pending.remove(number) {
                self.out.push(Action::Reply(request.id, Err(Failure::Io)));
            }
        }
        self.role = Role::Secondary;
        self.fail_held_reads();
        self.out.push(Action::Serve(false));
        for i in 0..self.peers.len() {
            self.tell_failure(i);
            if let Some(peer) = self.peers.get_mut(i) {
                peer.reset();
            }
        }
    }
}
