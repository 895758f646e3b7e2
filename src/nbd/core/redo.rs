//! A far site's ordered log: packets of the primary's stream are kept in order, and carried out in batches.
//!
//! A batch is all that came while the one before was being written to the log. Once it is durable there its writes may reach the
//! disk in any order, for a start carries them out again: so the disk is at every moment a state that the primary's had. Its
//! half of the log is free when the disk has it on stable storage. Must never carry out a write of the stream before its
//! batch is durable, nor leave a batch valid when another writer begins. Called by the core.

use std::collections::VecDeque;

use bytes::Bytes;

use super::event::{Action, Ticket};
use super::flush::AfterSync;
use super::op::{Op, Origin, TICKET_REDO, Work};
use super::packet::{self, Fields};
use super::peer::Part;
use super::superblock::Then;
use super::{Core, mutated};
use crate::nbd::disk::format::{Batch, LogWrite, tag_of};
use crate::nbd::server::Failure;
use crate::wire::PacketType;

/// A packet of the stream that waits.
type Packet = (PacketType, Fields, Bytes);

/// The state of the ordered log.
#[derive(Debug, Default)]
pub struct Redo {
    /// The number of the last batch.
    last: u64,
    /// The packets that are in no batch yet, and the bytes that they take in one.
    staged: VecDeque<Packet>,
    /// The batch that is being written, and what it has.
    writing: Option<(u64, Vec<Packet>)>,
    /// Batches that the disk does not surely have: number, the last packet that writes, and true if the sync is asked for.
    unstable: VecDeque<(u64, u64, bool)>,
}

/// Stands for the last packet of a batch that is on the disk at the end of a catch-up, and not before.
const HELD: u64 = u64::MAX;

impl Redo {
    /// Returns true if something waits, or is not known to be on the disk.
    pub fn is_busy(&self) -> bool {
        self.writing.is_some() || !self.staged.is_empty() || !self.unstable.is_empty()
    }

    /// Returns true while a batch is being written.
    pub fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// Returns the number of the next batch.
    pub fn next_number(&self) -> u64 {
        self.last + 1
    }

    /// A batch is being written of which another file of the core has the content.
    pub fn write_alone(&mut self, number: u64) {
        self.last = number;
        self.writing = Some((number, Vec::new()));
    }

    /// This batch, which is durable, is not on the disk before [`Redo::release`].
    pub fn hold(&mut self, number: u64) {
        self.unstable.push_back((number, HELD, true));
    }

    /// The disk has the batch that was held.
    pub fn release(&mut self) {
        self.unstable.retain(|(_, last, _)| *last != HELD);
    }

    /// The session is over: what is in no batch is not carried out.
    pub fn abandon(&mut self) {
        self.staged.clear();
        if let Some((_, packets)) = &mut self.writing {
            packets.clear();
        }
    }
}

/// Returns the write of a packet as it stands in a batch.
pub fn write_of(fields: &Fields, payload: &Bytes) -> LogWrite {
    match fields.flags & (packet::ZEROES | packet::TRIM) {
        0 => LogWrite::Data(fields.offset, payload.clone()),
        flags => LogWrite::Zero(fields.offset, fields.len, flags & packet::TRIM != 0),
    }
}

/// Returns the bytes that batches which count say are mirrored; 0 if none does.
pub fn size_in(batches: &[Batch], void: u64) -> u64 {
    let counting = batches.iter().filter(|batch| batch.number > void).flat_map(|batch| &batch.writes);
    let sizes = counting.map(|write| if let LogWrite::Size(size) = write { *size } else { 0 });
    sizes.max().unwrap_or(0)
}

impl Core {
    /// Carries out again what an earlier run may have left undone.
    pub(super) fn replay(&mut self, mut batches: Vec<Batch>) {
        let void = self.store.wanted.log_void;
        self.redo.last = batches.iter().map(|batch| batch.number).fold(void, u64::max);
        let newest = self.redo.last;
        batches.retain(|batch| batch.number > void && batch.number + 1 >= newest);
        batches.sort_by_key(|batch| batch.number);
        for write in batches.into_iter().flat_map(|batch| batch.writes) {
            let (start, len) = write.range();
            let work = match write {
                LogWrite::Data(_, data) => Work::Write(data),
                LogWrite::Zero(_, _, trim) => Work::Zero(trim),
                // See `size_in`.
                LogWrite::Size(_) => continue,
            };
            let chunks = self.chunks(start, start + len);
            self.mark_all(chunks);
            let id = self.ops.insert(Op::new(Origin::Replay, start, start + len, work));
            self.enqueue(id);
            self.unblock(id);
        }
    }

    pub(super) fn replayed(&mut self, id: u32, result: &Result<Bytes, Failure>) {
        self.ops.remove(id);
        if result.is_err() {
            self.local_disk_failed("a write of the ordered log failed");
        }
    }

    /// Returns true if what comes from this peer goes through the log.
    fn is_logged(&self, i: usize) -> bool {
        let Some(peer) = self.peers.get(i).filter(|peer| peer.far.is_some()) else { return false };
        let is_whole =
            peer.part == Part::Equal || peer.resync.as_ref().is_some_and(|resync| resync.ending.is_some());
        is_whole
            && self.follows == Some(peer.site)
            && self.config.layout.log_half() > 1
            && !mutated!(self, Unlogged)
    }

    /// A packet of the stream came.
    pub(super) fn stream_came(&mut self, i: usize, kind: PacketType, fields: Fields, payload: Bytes) {
        if self.follows.is_none() && kind == PacketType::SD_DATA {
            self.follow_promised(i);
        }
        let is_primary = self.peers.get(i).is_some_and(|peer| self.follows == Some(peer.site));
        let is_word = kind == PacketType::SD_DATA && fields.len == 0 && fields.flags & packet::BARRIER == 0;
        if is_word && !is_primary {
            // It says what is stable everywhere, and came later than the end of the role, on the other link.
            return;
        }
        if mutated!(self, NamedEarly) && fields.len == 0 {
            self.name_came(i, &payload, 0);
            self.write_down(i);
        }
        if self.is_staging(i) {
            if kind == PacketType::SD_DATA && !is_word {
                self.stage(i, kind, fields, payload);
            }
            return;
        }
        if !self.is_logged(i) {
            let writes = kind == PacketType::SD_DATA && fields.len > 0;
            if is_primary && writes && self.store.wanted.log_void < self.redo.last {
                self.void_log();
                self.change(Then::Nothing);
            }
            return self.take(i, kind, &fields, payload);
        }
        if kind == PacketType::SD_DATA && fields.len > 0 {
            let is_whole = fields.flags & (packet::ZEROES | packet::TRIM) != 0
                || payload.len() as u64 == u64::from(fields.len);
            if !is_whole || write_of(&fields, &payload).size() > Batch::room(&self.config.layout) {
                return self.lose(i, "a write of a wrong length, or larger than the ordered log");
            }
        }
        self.redo.staged.push_back((kind, fields, payload));
        self.step_redo(i);
    }

    fn take(&mut self, i: usize, kind: PacketType, fields: &Fields, payload: Bytes) {
        match kind {
            PacketType::SD_DATA => self.data(i, fields, payload),
            PacketType::SD_FSYNC_MD5 => self.digests(i, fields, &payload),
            _ => {}
        }
    }

    /// Begins the next batch, if there is something for it and a half of the log is free.
    pub(super) fn step_redo(&mut self, i: usize) {
        while self.redo.writing.is_none() {
            let is_write = |(kind, fields, _): &Packet| *kind == PacketType::SD_DATA && fields.len > 0;
            let Some(first) = self.redo.staged.front() else { return };
            if !is_write(first) {
                let Some((kind, fields, payload)) = self.redo.staged.pop_front() else { return };
                self.take(i, kind, &fields, payload);
                continue;
            }
            if self.redo.unstable.len() > 1 && !mutated!(self, RunAhead) {
                return;
            }
            let (mut room, mut packets, mut writes) =
                (Batch::room(&self.config.layout), Vec::new(), Vec::new());
            while let Some(next) = self.redo.staged.front() {
                if is_write(next) {
                    let write = write_of(&next.1, &next.2);
                    let Some(left) = room.checked_sub(write.size()) else { break };
                    room = left;
                    writes.push(write);
                }
                packets.extend(self.redo.staged.pop_front());
            }
            self.redo.last = self.redo.next_number();
            let batch = Batch { number: self.redo.last, writes };
            let blocks = batch.encode(&self.config.layout, tag_of(&self.config.device));
            self.redo.writing = Some((batch.number, packets));
            self.out.push(Action::Store(Ticket::new(TICKET_REDO, 0), blocks));
        }
    }

    pub(super) fn redo_stored(&mut self, result: &Result<Bytes, Failure>) {
        if result.is_err() {
            return self.metadata_failed();
        }
        let Some((number, packets)) = self.redo.writing.take() else { return };
        if packets.is_empty() && self.is_catch_up_stored(number) {
            return;
        }
        let Some(i) = self.follows.and_then(|site| self.peer_of(site)).filter(|_| !packets.is_empty()) else {
            // It is void when everything is settled.
            return self.settle_if_drained();
        };
        let session = self.peers.get(i).map_or(0, |peer| peer.session);
        let writes =
            packets.iter().filter(|(kind, fields, _)| *kind == PacketType::SD_DATA && fields.len > 0);
        let last = writes.last().map_or(0, |(_, fields, _)| fields.seq);
        self.redo.unstable.push_back((number, last, false));
        for (kind, fields, payload) in packets {
            if self.peers.get(i).is_some_and(|peer| peer.session == session) {
                self.take(i, kind, &fields, payload);
            }
        }
        self.step_redo(i);
    }

    /// The packets up to this number are written: batches that end there wait for a sync.
    pub(super) fn batches_written(&mut self, seq: u64) {
        let written = self.redo.unstable.iter_mut().filter(|(_, last, is_asked)| *last <= seq && !*is_asked);
        let numbers: Vec<_> = written
            .map(|(number, _, is_asked)| {
                *is_asked = true;
                *number
            })
            .collect();
        if let Some(number) = numbers.last() {
            self.after_sync(AfterSync::Batch(*number));
        }
    }

    /// The disk has all batches up to this one.
    pub(super) fn batches_stable(&mut self, number: u64) {
        self.redo.unstable.retain(|(of, last, _)| *of > number || *last == HELD);
        if let Some(i) = self.follows.and_then(|site| self.peer_of(site)) {
            self.step_redo(i);
        }
    }

    /// No batch is to be carried out again, once the superblock is durable: the disk has them all, and another writer begins.
    pub(super) fn void_log(&mut self) {
        self.redo.unstable.clear();
        if !mutated!(self, NeverVoid) {
            self.store.wanted.log_void = self.redo.last;
        }
    }
}
