//! The target of a resync: asks for what bits mark, or for what differs by digest, and becomes equal at the end.
//!
//! Inconsistent is durable before the first write, consistent only after the last one, a sync, and the source's word. A bit
//! is cleared only when the content is on stable storage. Called by the core.

use bytes::Bytes;

use super::Core;
use super::event::Note;
use super::flush::AfterSync;
use super::op::{Op, Origin, Work};
use super::packet::{self, Fields};
use super::peer::Part;
use super::resync::Unit;
use super::superblock::Then;
use crate::nbd::mirror::{Generation, Rotate, record};
use crate::nbd::server::Failure;
use crate::wire::PacketType;

/// Bytes that are written before a sync makes them stable and their bits are cleared.
const FRESH: u64 = 32 << 20;

impl Core {
    pub(super) fn is_target_of(&self, i: usize) -> bool {
        self.peers.get(i).is_some_and(|peer| peer.part == Part::Target)
    }

    pub(super) fn bits_of_source(&mut self, i: usize, fields: &Fields, payload: &[u8]) {
        if !self.is_target_of(i) {
            return;
        }
        self.unite(i, payload);
        if fields.flags & packet::END == 0 {
            return;
        }
        let Some(peer) = self.peers.get(i) else { return };
        let (slot, session) = (peer.slot, peer.session);
        if self.peers.len() == 1 {
            return self.bits_known(i);
        }
        // The copied content may be unlike that of a third site.
        let Some(copied) = self.bitmaps.get(slot).cloned() else { return };
        for other in self.peers.iter().filter(|peer| peer.slot != slot) {
            if let Some(map) = self.bitmaps.get_mut(other.slot) {
                map.unite(&copied);
            }
        }
        self.flush_bits_for(i, session);
    }

    /// All that may differ is marked, durably.
    pub(super) fn bits_known(&mut self, i: usize) {
        if self.is_marked_too_large(i) {
            return;
        }
        if let Some(resync) = self.peers.get_mut(i).and_then(|peer| peer.resync.as_mut()) {
            (resync.has_bits, resync.is_end_asked, resync.cursor) = (true, false, 0);
        }
        self.ask(i);
    }

    /// Asks for as much as there is room for; for the end if nothing is left.
    pub(super) fn ask(&mut self, i: usize) {
        let now = self.now;
        let chunk = self.config.layout.chunk();
        let size = self.size_in_sessions();
        while self.is_target_of(i) {
            let Some(peer) = self.peers.get_mut(i).filter(|peer| !self.paused.contains(peer.site.get()))
            else {
                return;
            };
            let (slot, session) = (peer.slot, peer.session);
            let Some(resync) = peer.resync.as_mut().filter(|resync| resync.has_bits && !resync.is_end_asked)
            else {
                return;
            };
            let longest = resync.longest(now);
            let Some(map) = self.bitmaps.get(slot) else { return };
            let Some(run) = map.next_run(resync.cursor, (longest / chunk).max(1)) else {
                if resync.staged.is_some() {
                    return self.ask_staged(i);
                }
                if resync.cursor > 0 && map.count() > 0 {
                    // Bits behind: they are under way, or were set since.
                    if resync.units.is_empty() && resync.fresh.is_empty() && !resync.is_syncing {
                        resync.cursor = 0;
                        continue;
                    }
                    return self.sync_fresh(i, true);
                }
                if map.count() > 0 || !resync.units.is_empty() {
                    return;
                }
                resync.is_end_asked = true;
                let fields = Fields { flags: packet::END, ..Fields::default() };
                self.send(i, PacketType::SD_DSYNC_REQ, fields, Bytes::new());
                return;
            };
            let (start, end) = (run.start * chunk, (run.end * chunk).min(size));
            if !resync.has_room(now, end - start) {
                return;
            }
            resync.cursor = run.end;
            resync.spend(end - start);
            // A part that both disks got anew reads as zeroes at both, for the most part.
            let compares = resync.staged.as_ref().is_some_and(|staged| staged.compares);
            let full = resync.full || compares || start >= self.grown_from;
            resync.units.push(Unit { start, end, left: usize::from(!full) });
            if full {
                let id = self.ops.insert(Op::new(Origin::Digest(i, session), start, end, Work::Read));
                self.enqueue(id);
                self.unblock(id);
            } else {
                self.want(i, start, end);
            }
        }
    }

    /// Asks for the content of a range.
    pub(super) fn want(&mut self, i: usize, start: u64, end: u64) {
        let fields = Fields { offset: start, len: (end - start) as u32, ..Fields::default() };
        self.send(i, PacketType::SD_DSYNC_REQ, fields, Bytes::new());
    }

    pub(super) fn resync_data(&mut self, i: usize, fields: &Fields, payload: Bytes) {
        if fields.flags & packet::REPLY != 0 {
            return self.remote_part(i, fields, &payload);
        }
        if !self.is_target_of(i) {
            return;
        }
        if fields.errcode != 0 {
            return self.lose(i, "the source cannot read its disk");
        }
        if fields.flags & packet::END != 0 {
            return self.end_came(i, &payload);
        }
        if payload.len() as u64 != u64::from(fields.len) || payload.is_empty() {
            return self.lose(i, "content of a wrong length");
        }
        if self.is_staging(i) {
            return self.stage(i, PacketType::SD_RSDATA, *fields, payload);
        }
        let session = self.peers.get(i).map_or(0, |peer| peer.session);
        let end = fields.offset + u64::from(fields.len);
        let id =
            self.ops.insert(Op::new(Origin::Resync(i, session), fields.offset, end, Work::Write(payload)));
        self.enqueue(id);
        self.unblock(id);
    }

    pub(super) fn resync_written(&mut self, id: u32, i: usize, session: u64, result: Result<Bytes, Failure>) {
        let Some(op) = self.ops.remove(id) else { return };
        if let Err(failure) = result {
            if self.resync_of(i, session).is_some() {
                self.lose(i, "a write of the resync failed here");
            }
            if op.epoch != 0 {
                self.carry_out_failed(failure);
            } else if failure == Failure::Io {
                self.local_disk_failed("a write failed");
            }
            return;
        }
        self.part_done(i, session, op.start, op.end);
    }

    /// A part of what was asked for is written, or all of a piece was found equal.
    pub(super) fn part_done(&mut self, i: usize, session: u64, start: u64, end: u64) {
        let Some(resync) = self.resync_of(i, session) else { return };
        let found = resync.units.iter().position(|unit| unit.start <= start && end <= unit.end);
        let Some(at) = found else { return };
        let Some(unit) = resync.units.get_mut(at) else { return };
        unit.left = unit.left.saturating_sub(1);
        if unit.left == 0 {
            let unit = resync.units.swap_remove(at);
            resync.fresh.push(unit.start..unit.end);
        }
        let fresh: u64 = resync.fresh.iter().map(|piece| piece.end - piece.start).sum();
        self.sync_fresh(i, fresh >= FRESH);
        self.ask(i);
    }

    fn sync_fresh(&mut self, i: usize, is_due: bool) {
        let Some(peer) = self.peers.get_mut(i) else { return };
        let session = peer.session;
        let Some(resync) = peer.resync.as_mut() else { return };
        if resync.is_syncing || resync.fresh.is_empty() || !(is_due || resync.units.is_empty()) {
            return;
        }
        resync.is_syncing = true;
        let n = resync.fresh.len();
        self.after_sync(AfterSync::Resync(i, session, n));
    }

    pub(super) fn resync_stable(&mut self, i: usize, session: u64, n: usize) {
        let (shift, size) = (self.config.layout.chunk_shift, self.size());
        let Some(resync) = self.resync_of(i, session) else { return };
        resync.is_syncing = false;
        let pieces: Vec<_> = resync.fresh.drain(..n.min(resync.fresh.len())).collect();
        // A piece covers whole chunks, but for the last one of the disk.
        let runs: Vec<_> = pieces
            .iter()
            .map(|piece| (piece.start >> shift, piece.end))
            .map(|(first, end)| (first, if end >= size { u64::MAX >> 1 } else { end >> shift }))
            .map(|(first, end)| (first, end - first))
            .collect();
        if let Some(map) = self.peers.get(i).and_then(|peer| self.bitmaps.get_mut(peer.slot)) {
            runs.iter().for_each(|(first, n)| _ = map.clear(*first..first + n));
        }
        let fields = Fields { flags: packet::STABLE, ..Fields::default() };
        self.send(i, PacketType::SD_RSDATA_ACK, fields, Bytes::from(packet::encode_runs(&runs)));
        self.sync_fresh(i, false);
        self.ask(i);
    }

    /// The source says that this was all, and what the target is from now on.
    fn end_came(&mut self, i: usize, payload: &[u8]) {
        let Some(site) = self.peers.get(i).map(|peer| peer.site) else { return };
        let Ok(facts) = record::decode(payload, site, self.config.resource) else {
            return self.lose(i, "the end of the resync is not understood");
        };
        if self.is_staging(i) {
            return self.end_staged(i, Box::new(facts));
        }
        // Everything that came before it has to be written and stable.
        let epoch = self.epochs.close();
        self.flushes.asked = self.flushes.asked.max(epoch);
        if let Some(resync) = self.peers.get_mut(i).and_then(|peer| peer.resync.as_mut()) {
            resync.ending = Some((Box::new(facts), epoch));
        }
        self.sync_if_due();
        self.finish_targets();
    }

    /// Ends the resyncs whose last write is stable.
    pub(super) fn finish_targets(&mut self) {
        let local = self.flushes.local;
        for i in 0..self.peers.len() {
            let Some(peer) = self.peers.get_mut(i) else { continue };
            let session = peer.session;
            let ending =
                peer.resync.as_mut().and_then(|resync| resync.ending.take_if(|(_, epoch)| *epoch <= local));
            let Some((facts, epoch)) = ending else { continue };
            (peer.part, peer.resync) = (Part::Equal, None);
            self.grown_from = u64::MAX;
            let told = peer.told;
            self.outcount(&facts);
            let equal = self.store.wanted.finish_target(&facts);
            if self.follows.is_none() {
                // Nobody writes, and all is stable: otherwise the two would be compared anew with each handshake, for ever.
                self.store.wanted.settle();
            }
            for peer in self.peers.iter().filter(|peer| equal.contains(peer.site.get())) {
                if let Some(map) = self.bitmaps.get_mut(peer.slot) {
                    map.clear(0..u64::MAX);
                }
            }
            if let Some((generation, missing)) = told {
                self.store.wanted.adopt(Generation::from_bits(generation), missing);
            }
            // Of what was written before, nothing is missing at the source.
            self.flushes.told = self.flushes.told.max(epoch);
            self.change(Then::TargetDone(i, session));
        }
    }

    pub(super) fn target_durable(&mut self, i: usize, session: u64) {
        // The size that came with it is durable without it now.
        self.redo.release();
        self.step_redo(i);
        let Some(peer) = self.peers.get(i).filter(|peer| peer.session == session) else { return };
        let site = peer.site;
        self.send(
            i,
            PacketType::SD_RSDATA_ACK,
            Fields { flags: packet::END, ..Fields::default() },
            Bytes::new(),
        );
        self.note(Note::Resynced(site));
        self.greet_all();
    }
}
