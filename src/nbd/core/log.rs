//! The activity log and the bitmaps on disk: one write of them at a time.
//!
//! An extent leaves only after its bits are durable, and what its writes wrote is stable at every site that takes them.
//! Must never write a record whose leavers have unsaved bits. Called by the core.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use super::event::{Action, Ticket};
use super::op::{Origin, TICKET_LOG};
use super::{Core, activity, mutated};
use crate::nbd::disk::Bitmap;
use crate::nbd::disk::format::{ActivityRecord, Block, Layout, tag_of};
use crate::nbd::server::Failure;

/// Bits that were cleared, or set under the activity log's cover, may be written this much later.
const LAZY: Duration = Duration::from_secs(2);

/// Blocks of bitmaps in one lazy write.
const LAZY_BLOCKS: usize = 64;

/// Extents without a write for so long leave, so that a crash marks little.
const IDLE: Duration = Duration::from_secs(20);

#[derive(Debug)]
enum Stage {
    Idle,
    /// Bits of extents that are about to leave are being written.
    Bits,
    /// A record is being written, with these new extents.
    Record(Vec<u32>),
    /// Bits are being written; these peers wait for them.
    Flush(Vec<(usize, u64)>),
}

/// The state of the log.
#[derive(Debug)]
pub struct Log {
    stage: Stage,
    record: u64,
    /// Operations of a primary that wait for extents.
    pub waiting: VecDeque<u32>,
    /// Peers whose handshake waits for the bits of their slot.
    flush_for: Vec<(usize, u64)>,
    last_lazy: Duration,
    /// When, and at which time of the activity log, idleness was looked at.
    idle: (Duration, u64),
}

impl Log {
    /// The log whose last record has this number.
    pub fn new(record: u64) -> Self {
        Log {
            stage: Stage::Idle,
            record,
            waiting: VecDeque::new(),
            flush_for: Vec::new(),
            last_lazy: Duration::ZERO,
            idle: (Duration::ZERO, 0),
        }
    }
}

impl Core {
    /// Makes extents active that writes wait for, if any.
    pub(super) fn want_extents(&mut self) {
        if !matches!(self.log.stage, Stage::Idle) || self.stopped {
            return;
        }
        if !self.log.flush_for.is_empty() {
            return self.flush_bits_now();
        }
        if !self.activity.is_wanted() {
            return;
        }
        let oldest = self.held.front().or(self.log.waiting.front()).and_then(|id| self.ops.get(*id));
        let protected = oldest.map_or(0..=0, |op| activity::extents(op.start, op.end));
        let stable = if mutated!(self, EvictEarly) { u64::MAX } else { self.stable_everywhere() };
        let mut leavers = self.activity.choose_leavers(stable, &protected);
        if self.activity.excess() > 0 && !self.config.asynchronous.is_empty() {
            leavers.extend(self.leavers_of_far(&protected));
        }
        if self.activity.excess() > 0 {
            self.hasten_stability();
        }
        self.send_away(&leavers);
    }

    /// Something has to become stable before extents can leave.
    fn hasten_stability(&mut self) {
        if self.is_primary() && self.epochs.in_current() > 0 {
            self.barrier();
        } else if !self.is_primary() {
            self.flushes.asked = self.flushes.asked.max(self.epochs.complete());
            self.sync_if_due();
        }
    }

    fn send_away(&mut self, leavers: &[u32]) {
        let mut blocks = Vec::new();
        for extent in leavers {
            let chunks = self.chunks_of_extent(*extent);
            let pieces = Bitmap::piece_of(chunks.start)..Bitmap::piece_of(chunks.end - 1) + 1;
            self.take_dirty(pieces, None, &mut blocks);
        }
        if blocks.is_empty() || mutated!(self, EvictEarly) {
            return self.write_record(leavers.is_empty());
        }
        self.log.stage = Stage::Bits;
        self.out.push(Action::Store(Ticket::new(TICKET_LOG, 0), blocks));
    }

    /// The blocks of pieces that differ from what was written, in the bitmap of one slot or of all.
    fn take_dirty(&mut self, pieces: Range<u64>, slot: Option<usize>, blocks: &mut Vec<(u64, Box<Block>)>) {
        let (layout, tag, record) = (self.config.layout, tag_of(&self.config.device), self.log.record);
        let slots: Vec<_> = self.peers.iter().map(|peer| peer.slot).collect();
        for of in slots.into_iter().filter(|of| slot.is_none_or(|slot| slot == *of)) {
            let Some(map) = self.bitmaps.get_mut(of) else { continue };
            let mut at = pieces.start;
            while let Some(piece) = map.next_dirty(at).filter(|piece| *piece < pieces.end) {
                // At most 31 slots.
                let number = layout.bitmap_block(of as u8, piece);
                blocks.push((number, Box::new(map.take_block(piece, record, number, tag))));
                at = piece + 1;
            }
        }
    }

    fn write_record(&mut self, needs_new: bool) {
        let new = self.activity.take_wanted();
        if new.is_empty() && needs_new {
            self.log.stage = Stage::Idle;
            return;
        }
        self.log.record += 1;
        let number = Layout::activity_block(self.log.record);
        let extents = self.activity.record(&new);
        let Ok(record) = ActivityRecord::new(self.log.record, extents) else {
            return self.metadata_failed();
        };
        let block = record.encode(number, tag_of(&self.config.device));
        self.log.stage = Stage::Record(new);
        self.out.push(Action::Store(Ticket::new(TICKET_LOG, 0), vec![(number, Box::new(block))]));
    }

    pub(super) fn log_stored(&mut self, result: Result<Bytes, Failure>) {
        if result.is_err() {
            return self.metadata_failed();
        }
        match std::mem::replace(&mut self.log.stage, Stage::Idle) {
            Stage::Idle => {}
            Stage::Bits => return self.write_record(false),
            Stage::Record(new) => {
                self.activity.recorded(&new);
                for id in std::mem::take(&mut self.log.waiting) {
                    self.activate_follow(id);
                }
                self.admit_held();
            }
            Stage::Flush(peers) => {
                for (i, session) in peers {
                    self.bits_prepared(i, session);
                }
            }
        }
        self.want_extents();
    }

    /// An operation of the primary goes on if its extents are active, and waits if not.
    pub(super) fn activate_follow(&mut self, id: u32) {
        let Some(op) = self.ops.get(id) else { return };
        let first = self.log.waiting.front().and_then(|id| self.ops.get(*id)).map_or(op.epoch, |op| op.epoch);
        // A stream that runs ahead: a later epoch may not take the room that an earlier one needs to become stable.
        let is_early = !self.config.asynchronous.is_empty() && first < op.epoch;
        if !is_early && self.activity.touch(activity::extents(op.start, op.end)) {
            self.count(id);
            self.unblock(id);
        } else {
            self.log.waiting.push_back(id);
        }
    }

    /// Writes all bits of a peer's slot; then its handshake goes on.
    pub(super) fn flush_bits_for(&mut self, i: usize, session: u64) {
        self.log.flush_for.push((i, session));
        self.want_extents();
    }

    fn flush_bits_now(&mut self) {
        let peers = std::mem::take(&mut self.log.flush_for);
        let mut blocks = Vec::new();
        for (i, _) in &peers {
            if *i == usize::MAX || self.is_target_of(*i) {
                self.take_dirty(0..u64::MAX, None, &mut blocks);
            } else if let Some(slot) = self.peers.get(*i).map(|peer| peer.slot) {
                self.take_dirty(0..u64::MAX, Some(slot), &mut blocks);
            }
        }
        self.log.stage = Stage::Flush(peers);
        if blocks.is_empty() {
            return self.log_stored(Ok(Bytes::new()));
        }
        self.out.push(Action::Store(Ticket::new(TICKET_LOG, 0), blocks));
    }

    pub(super) fn tick_log(&mut self) {
        self.want_extents();
        if !matches!(self.log.stage, Stage::Idle) || self.stopped {
            return;
        }
        let (looked, time) = self.log.idle;
        if self.now.saturating_sub(looked) > IDLE {
            self.log.idle = (self.now, self.activity.time());
            let leavers = self.activity.choose_idle(self.stable_everywhere(), time);
            if !leavers.is_empty() {
                return self.send_away(&leavers);
            }
            // A write that is not stable yet can leave the next time.
            if self.activity.len() > 0 {
                self.hasten_stability();
            }
        }
        if self.now.saturating_sub(self.log.last_lazy) > LAZY {
            self.log.last_lazy = self.now;
            let mut blocks = Vec::new();
            let mut dirty = self.bitmaps.iter().filter_map(|map| map.next_dirty(0)).min();
            while let Some(piece) = dirty.filter(|_| blocks.len() < LAZY_BLOCKS) {
                self.take_dirty(piece..piece + 1, None, &mut blocks);
                dirty = self.bitmaps.iter().filter_map(|map| map.next_dirty(piece + 1)).min();
            }
            if !blocks.is_empty() {
                self.log.stage = Stage::Flush(Vec::new());
                self.out.push(Action::Store(Ticket::new(TICKET_LOG, 0), blocks));
            }
        }
    }

    /// Operations of a session that is over, and that still wait for extents, are not carried out.
    pub(super) fn drop_waiting(&mut self, i: usize) {
        let (ops, log) = (&self.ops, &mut self.log);
        let of_peer =
            |id: &u32| ops.get(*id).is_some_and(|op| matches!(op.origin, Origin::Follow(p, ..) if p == i));
        let dropped: Vec<_> = log.waiting.iter().copied().filter(of_peer).collect();
        log.waiting.retain(|id| !of_peer(id));
        for id in dropped {
            self.op_done(id, Err(Failure::Shutdown));
        }
    }
}
