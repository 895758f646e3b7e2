//! The source of a resync: gives the content of ranges, and clears bits when the target has it on stable storage.
//!
//! While a range is read no write of it is admitted, and the content goes into the stream in between: so the target never
//! goes back to an older version. Called by the core.

use bytes::Bytes;

use super::event::Note;
use super::op::{Op, Origin, Work};
use super::packet::{self, Fields, PIECE};
use super::peer::{Part, Stage};
use super::superblock::Then;
use super::{Core, mutated};
use crate::nbd::mirror::{Rotate, record};
use crate::nbd::server::Failure;
use crate::wire::PacketType;

impl Core {
    /// Returns true if the range is being read for a target, or for a comparison: writes of it wait.
    pub(super) fn is_locked(&self, start: u64, end: u64) -> bool {
        let meets = |(s, e): &(u64, u64)| *s < end && start < *e;
        let locks = self.peers.iter().filter_map(|peer| peer.resync.as_ref());
        locks.flat_map(|resync| &resync.locks).any(meets)
            || self.verify.as_ref().is_some_and(|verify| verify.lock.is_some_and(|lock| meets(&lock)))
    }

    pub(super) fn bits_of_target(&mut self, i: usize, fields: &Fields, payload: &[u8]) {
        self.unite(i, payload);
        if fields.flags & packet::END == 0 {
            return;
        }
        if let Some(resync) = self.peers.get_mut(i).and_then(|peer| peer.resync.as_mut()) {
            resync.has_bits = true;
        }
        self.answer_bits(i);
        let fits = fields.flags & packet::STAGED != 0;
        if fits {
            self.stage_begins(i);
        }
        self.note_way(i, fits);
    }

    /// Gives the target this end's bits, once writes go there: a write before that is one of the bits.
    pub(super) fn answer_bits(&mut self, i: usize) {
        let is_joined = |peer: &super::Peer| peer.stage == Stage::Joined && peer.part == Part::Source;
        let has_bits = |peer: &super::Peer| peer.resync.as_ref().is_some_and(|resync| resync.has_bits);
        if self.peers.get(i).is_some_and(|peer| is_joined(peer) && has_bits(peer)) {
            self.send_bits(i, PacketType::SD_DBM_REP);
        }
    }

    pub(super) fn resync_request(&mut self, i: usize, fields: &Fields) {
        let is_read = fields.flags & packet::REPLY != 0;
        let Some(peer) = self.peers.get_mut(i) else { return };
        if !is_read && self.paused.contains(peer.site.get()) {
            if let Some(resync) = peer.resync.as_mut() {
                resync.parked.push(*fields);
            }
            return;
        }
        let session = peer.session;
        if fields.flags & packet::END != 0 {
            return self.end_asked(i, fields.flags & packet::STAGED != 0);
        }
        let (start, end) = (fields.offset, fields.offset + u64::from(fields.len));
        if fields.len == 0 || u64::from(fields.len) > PIECE || (!is_read && peer.resync.is_none()) {
            return;
        }
        let mut op = Op::new(Origin::Source(i, session), start, end, Work::Read);
        if is_read {
            // The number by which the asking site knows it.
            op.payload = Bytes::copy_from_slice(&fields.value.to_le_bytes());
        } else if let Some(resync) = peer.resync.as_mut() {
            if !mutated!(self, ResyncUnlocked) {
                resync.locks.push_back((start, end));
            }
        }
        let id = self.ops.insert(op);
        self.enqueue(id);
        self.unblock(id);
    }

    pub(super) fn source_read(&mut self, id: u32, i: usize, session: u64, result: Result<Bytes, Failure>) {
        let Some(op) = self.ops.remove(id) else { return };
        let mut fields = Fields { offset: op.start, len: (op.end - op.start) as u32, ..Fields::default() };
        let is_read = !op.payload.is_empty();
        if is_read {
            fields.flags = packet::REPLY;
            fields.value = op.payload.first_chunk().copied().map_or(0, u64::from_le_bytes);
        }
        let is_present = self.peers.get(i).is_some_and(|peer| peer.session == session);
        let failed = result.is_err() || !self.is_local;
        if is_present {
            if failed {
                fields.errcode = -5;
            }
            self.send(i, PacketType::SD_RSDATA, fields, result.unwrap_or_default());
        }
        if let Some(resync) = self.resync_of(i, session).filter(|_| !is_read) {
            if resync.is_staged {
                resync.copied += op.end - op.start;
            }
            if let Some(at) = resync.locks.iter().position(|lock| *lock == (op.start, op.end)) {
                resync.locks.remove(at);
            }
        }
        if failed {
            self.local_disk_failed("a read for another site failed");
        }
        if !self.held.is_empty() {
            self.admit_held();
        }
    }

    pub(super) fn resync_ack(&mut self, i: usize, fields: &Fields, payload: &[u8]) {
        let Some(peer) = self.peers.get_mut(i).filter(|peer| peer.part == Part::Source) else { return };
        let (slot, site) = (peer.slot, peer.site);
        let is_staged = peer.resync.as_ref().is_some_and(|resync| resync.is_staged);
        if is_staged && (peer.is_only_marked() || fields.flags & packet::END == 0) {
            // Nothing of it is on the target's disk before the end.
            return;
        }
        if is_staged {
            if let Some(map) = self.bitmaps.get_mut(slot) {
                map.clear(0..u64::MAX);
            }
            self.restore_evicted(i);
        } else if fields.flags & packet::STABLE != 0 {
            if let Some(map) = self.bitmaps.get_mut(slot) {
                packet::runs(payload).for_each(|run| _ = map.clear(run));
            }
            self.restore_evicted(i);
        }
        if fields.flags & packet::END != 0 {
            let Some(peer) = self.peers.get_mut(i) else { return };
            (peer.part, peer.resync) = (Part::Equal, None);
            self.store.wanted.finish_source(site);
            self.change(Then::Nothing);
            // After a crash with a resync under way this disk would count, and not what both have answered since.
            self.quorum_in = self.store.version;
            self.note(Note::Resynced(site));
            self.caught_up(i);
            self.came_back(site);
            if self.is_primary() {
                self.barrier();
            }
            self.release();
        }
    }

    /// The target has all it asked for.
    fn end_asked(&mut self, i: usize, is_staged: bool) {
        let resync = self.peers.get(i).filter(|peer| peer.part == Part::Source);
        let Some(resync) = resync.and_then(|peer| peer.resync.as_ref()) else { return };
        if resync.is_staged != is_staged || is_staged && resync.is_end_told {
            return;
        }
        if is_staged {
            self.stage_ends(i);
        } else if !self.has_no_bits_but_evicted(i) {
            return self.send_bits(i, PacketType::SD_DBM_REP);
        }
        let facts = self.facts(i);
        if let Some(resync) = self.peers.get_mut(i).and_then(|peer| peer.resync.as_mut()) {
            resync.is_end_told = true;
        }
        let fields = self.stream_fields(Fields { flags: packet::END, ..Fields::default() });
        self.send(i, PacketType::SD_RSDATA, fields, Bytes::from(record::encode(&facts)));
    }
}
