//! The way of a client's request at the primary, up to its answer.
//!
//! Never begins a write outside the active extents, and never answers one before every site that counts has it, and the
//! generation is durable that tells that the others do not. Called by the core.

use bytes::Bytes;

use super::claim::Claim;
use super::event::{Action, Request, RequestId, Ticket};
use super::op::{Op, Origin, TICKET_READ, Work};
use super::packet::{self, Fields, PIECE};
use super::resync::RemoteRead;
use super::{Core, Pending, activity, demotion, mutated};
use crate::nbd::disk::format::{DiskFlags, EXTENT_SHIFT};
use crate::nbd::server::Failure;
use crate::wire::{Mask, PacketType};

/// Ranges not known to be stable everywhere that may be kept, 24 bytes each; then writes wait for a sync.
const RECENT_MAX: usize = 1 << 16;

impl Core {
    pub(super) fn request(&mut self, id: RequestId, request: Request) {
        if !self.is_primary() || self.role_change.is_leaving() {
            return self.out.push(Action::Reply(id, Err(Failure::Shutdown)));
        }
        let (offset, len, fua) = match &request {
            Request::Read { offset, len } => (*offset, u64::from(*len), false),
            Request::Write { offset, data, fua } => (*offset, data.len() as u64, *fua),
            Request::Zeroes { offset, len, fua, .. } => (*offset, u64::from(*len), *fua),
            Request::Flush => return self.client_flush(id),
        };
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.size());
        if len == 0 || !fits {
            return self.out.push(Action::Reply(id, Err(Failure::Invalid)));
        }
        let end = offset + len;
        match request {
            Request::Read { .. } => self.client_read(id, offset, end),
            Request::Write { data, .. } => {
                let pieces = len.div_ceil(PIECE);
                let pending = Pending { id, left: pieces as u32, fua, failed: None };
                let pending = self.pending.insert(pending);
                if pieces == 1 {
                    return self.admit(Op::new(Origin::Client(pending), offset, end, Work::Write(data)));
                }
                let mut rest = data;
                let mut at = offset;
                while !rest.is_empty() {
                    let piece = rest.split_to(rest.len().min(PIECE as usize));
                    let next = at + piece.len() as u64;
                    self.admit(Op::new(Origin::Client(pending), at, next, Work::Write(piece)));
                    at = next;
                }
            }
            Request::Zeroes { trim, .. } => {
                // Cut at extents, so that a long one needs no more active extents at once than a short one.
                let pieces = ((end - 1) >> EXTENT_SHIFT) - (offset >> EXTENT_SHIFT) + 1;
                let pending = self.pending.insert(Pending { id, left: pieces as u32, fua, failed: None });
                let mut at = offset;
                while at < end {
                    let next = (((at >> EXTENT_SHIFT) + 1) << EXTENT_SHIFT).min(end);
                    self.admit(Op::new(Origin::Client(pending), at, next, Work::Zero(trim)));
                    at = next;
                }
            }
            Request::Flush => {}
        }
    }

    fn admit(&mut self, op: Op) {
        let id = self.ops.insert(op);
        // Whatever waits is not overtaken for ever: the oldest one's extents stay once they are active.
        if !self.try_begin(id) {
            self.held.push_back(id);
            self.want_extents();
            self.fail_without_disks();
        }
    }

    /// Begins the writes that may begin now.
    pub(super) fn admit_held(&mut self) {
        for _ in 0..self.held.len() {
            let Some(id) = self.held.pop_front() else { break };
            if !self.try_begin(id) {
                self.held.push_back(id);
            }
        }
        self.want_extents();
    }

    /// Returns true if writes have to wait, whatever they are.
    fn is_closed(&self) -> bool {
        self.is_silenced()
            || self.role_change.is_leaving()
            || self.epochs.kept() > RECENT_MAX
            || (!self.is_local && !self.peers.iter().any(super::Peer::has_all))
    }

    /// Begins a client's write: from here on it has its number. Returns false if it has to wait.
    fn try_begin(&mut self, id: u32) -> bool {
        if self.is_closed() {
            return false;
        }
        let Some(op) = self.ops.get_mut(id) else { return true };
        let (start, end) = (op.start, op.end);
        if !self.activity.touch(activity::extents(start, end)) || self.is_locked(start, end) {
            return false;
        }
        self.make_claim();
        let chunks = self.chunks(start, end);
        let epoch = self.epochs.begin(chunks.clone());
        let is_local = self.is_local;
        let Some(op) = self.ops.get_mut(id) else { return true };
        op.epoch = epoch;
        let mut fields = Fields { offset: start, len: (end - start) as u32, ..Fields::default() };
        let payload = match &op.work {
            Work::Write(data) => data.clone(),
            Work::Zero(trim) => {
                fields.flags = packet::ZEROES | if *trim { packet::TRIM } else { 0 };
                Bytes::new()
            }
            _ => Bytes::new(),
        };
        #[cfg(test)]
        self.history.push((start, end, op.work.clone()));
        if !is_local {
            op.work = Work::Elsewhere;
        }
        let pending = self.replicate(id, fields, &payload, chunks);
        if let Some(op) = self.ops.get_mut(id) {
            op.pending = pending;
        }
        self.count(id);
        self.enqueue(id);
        self.unblock(id);
        if self.epochs.in_current() >= super::flush::EPOCH_MAX {
            self.barrier();
        }
        true
    }

    /// Sends a write to every site that takes writes, and marks it for the others. The sites that have to confirm.
    fn replicate(&mut self, id: u32, fields: Fields, payload: &Bytes, chunks: std::ops::Range<u64>) -> Mask {
        let fields = self.stream_fields(fields);
        let mut pending = Mask(0);
        for i in 0..self.peers.len() {
            let Some(peer) = self.peers.get(i) else { continue };
            if !peer.takes_writes() {
                if let Some(map) = self.bitmaps.get_mut(peer.slot) {
                    map.set(chunks.clone());
                }
                self.note_behind(i);
                continue;
            }
            if peer.far.is_some() {
                self.mark_if_staged(i, chunks.clone());
                self.send(i, PacketType::SD_DATA, fields, payload.clone());
                continue;
            }
            pending = pending | Mask::of(peer.site.get());
            let seq = self.send(i, PacketType::SD_DATA, fields, payload.clone());
            let now = self.now;
            if let Some(peer) = self.peers.get_mut(i) {
                if peer.outstanding.is_empty() {
                    peer.progress = now;
                }
                peer.outstanding.push_back((seq, id));
            }
        }
        pending
    }

    /// A packet of this primary's stream: what every one of them tells.
    pub(super) fn stream_fields(&self, fields: Fields) -> Fields {
        Fields {
            epoch: self.epochs.current(),
            value: self.stable_everywhere(),
            generation: self.elsewhere.unwrap_or(self.store.wanted.current).bits(),
            missing: self.missing(),
            ..fields
        }
    }

    pub(super) fn data_ack(&mut self, i: usize, fields: &Fields) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(i) else { return };
        if fields.errcode != 0 {
            peer.not_before = now + self.config.tuning.slow;
            return self.lose(i, "its disk failed");
        }
        peer.progress = now;
        if peer.far.is_some() {
            self.far_confirmed(i, fields.value);
        }
        let Some(peer) = self.peers.get(i) else { return };
        let site = Mask::of(peer.site.get());
        while let Some((seq, id)) = self.peers.get(i).and_then(|peer| peer.outstanding.front().copied()) {
            if seq > fields.value {
                break;
            }
            if let Some(peer) = self.peers.get_mut(i) {
                peer.outstanding.pop_front();
            }
            if let Some(op) = self.ops.get_mut(id) {
                op.is_kept = true;
            }
            self.confirmed(id, site);
        }
        if mutated!(self, WrittenIsStable) {
            let stable = self.epochs.current() - 1;
            if let Some(peer) = self.peers.get_mut(i) {
                peer.stable = stable;
            }
        }
        if fields.flags & packet::STABLE != 0 {
            // An epoch that was not closed cannot be stable.
            let epoch = fields.epoch.min(self.epochs.current() - 1);
            if let Some(peer) = self.peers.get_mut(i) {
                peer.stable = peer.stable.max(epoch);
            }
            self.stability_changed();
        }
    }

    /// A site has a write, or is not waited for any more.
    pub(super) fn confirmed(&mut self, id: u32, site: Mask) {
        if let Some(op) = self.ops.get_mut(id) {
            op.pending = Mask(op.pending.0 & !site.0);
            self.finish_write(id);
        }
    }

    pub(super) fn client_write_done(&mut self, id: u32, result: Result<Bytes, Failure>) {
        match result {
            Err(failure) => self.local_write_failed(id, failure),
            Ok(_) => {
                if let Some(op) = self.ops.get_mut(id) {
                    op.is_kept |= !matches!(op.work, Work::Elsewhere);
                }
            }
        }
        self.finish_write(id);
    }

    fn finish_write(&mut self, id: u32) {
        let Some(op) = self.ops.get(id).filter(|op| op.is_done && op.pending.is_empty()) else { return };
        let Origin::Client(pending) = op.origin else { return };
        let is_kept = op.is_kept;
        self.ops.remove(id);
        let Some(request) = self.pending.get_mut(pending) else { return };
        if !is_kept {
            // No disk here, and the site that should have had it is gone.
            request.failed = request.failed.or(Some(Failure::Io));
        }
        request.left -= 1;
        if request.left > 0 {
            return;
        }
        if request.fua && request.failed.is_none() {
            return self.flush_for(pending);
        }
        self.answer(pending);
    }

    /// Answers a request that is done, once the generation is durable that it needs.
    pub(super) fn answer(&mut self, pending: u32) {
        if !self.may_answer() && !mutated!(self, GenerationLate) {
            let is_ending = self.role_change.is_leaving() && self.is_silenced();
            let is_promise =
                |pending: &&mut Pending| pending.failed.is_none() && !demotion::is_leave(pending.id);
            match self.pending.get_mut(pending).filter(is_promise) {
                Some(request) if is_ending => request.failed = Some(Failure::Shutdown),
                Some(_) => {
                    self.gated.push(pending);
                    return self.make_claim();
                }
                None => {}
            }
        }
        if let Some(Pending { id, failed, .. }) = self.pending.remove(pending) {
            if demotion::is_leave(id) {
                return self.leave_flushed();
            }
            self.out.push(Action::Reply(id, failed.map_or(Ok(Bytes::new()), Err)));
        }
        self.leave_if_drained();
    }

    fn client_read(&mut self, id: RequestId, start: u64, end: u64) {
        let read = RemoteRead { id, start, end, peer: None };
        let number = self.reads.insert(read);
        if self.may_read() {
            return self.begin_read(number);
        }
        self.held_reads.push(number);
        self.make_claim();
    }

    fn begin_read(&mut self, number: u32) {
        let Some(read) = self.reads.get_mut(number) else { return };
        let (start, end) = (read.start, read.end);
        if self.is_local {
            self.out.push(Action::Read(Ticket::new(TICKET_READ, number), start, end - start));
        } else {
            self.read_elsewhere(number);
        }
    }

    /// Returns true if this primary's content counts: where a majority decides, another site may have been promoted by it, and
    /// what is here may be undone.
    pub(super) fn may_read(&self) -> bool {
        let has_answered = !self.store.wanted.flags.contains(DiskFlags::UNANSWERED)
            && !matches!(self.claim, Claim::Confirming { .. });
        !self.is_by_majority() || !self.lacks_quorum() && has_answered
    }

    /// Begins the reads that waited for a majority, if there is one.
    pub(super) fn release_reads(&mut self) {
        if self.held_reads.is_empty() {
            return;
        }
        if !self.may_read() {
            // They came while nothing could be claimed, and nobody may write.
            return self.make_claim();
        }
        let held = std::mem::take(&mut self.held_reads);
        held.into_iter().for_each(|number| self.begin_read(number));
    }

    /// Ends the reads that wait for a majority: this site leaves the role.
    pub(super) fn fail_held_reads(&mut self) {
        for number in std::mem::take(&mut self.held_reads) {
            self.answer_read(number, Err(Failure::Shutdown));
        }
    }

    pub(super) fn client_read_done(&mut self, number: u32, result: Result<Bytes, Failure>) {
        match result {
            Ok(data) => self.answer_read(number, Ok(data)),
            Err(Failure::Io) => {
                self.local_disk_failed("a read failed");
                self.read_elsewhere(number);
            }
            Err(failure) => self.answer_read(number, Err(failure)),
        }
    }

    pub(super) fn answer_read(&mut self, number: u32, result: Result<Bytes, Failure>) {
        if let Some(read) = self.reads.remove(number) {
            self.out.push(Action::Reply(read.id, result));
        }
    }
}
