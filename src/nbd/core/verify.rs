//! Digests: the first half of a full resync, and the comparison of two disks in use.
//!
//! BLAKE3 cut to 128 bits, for every 4 KiB. The reads have their place among the writes, and the digests theirs in the
//! stream, so a difference is one. What cannot be read is different. Called by the core.

use bytes::Bytes;

use super::event::{Note, Refusal};
use super::op::{Op, Origin, Work};
use super::packet::{self, Fields, PIECE};
use super::{Core, Peer};
use crate::nbd::server::Failure;
use crate::wire::{PacketType, SiteId};

/// Bytes under one digest.
const LEAF: usize = 4096;

/// Bytes of a digest.
const DIGEST: usize = 16;

/// Pieces under way to a far site at most: each comes back when it has all before it.
const FAR_PIECES: u32 = 8;

/// A comparison under way.
pub struct Verify {
    /// The site whose disk is compared.
    pub peer: usize,
    /// The piece that is being read: writes of it wait.
    pub lock: Option<(u64, u64)>,
    next: u64,
    /// Pieces under way.
    asked: u32,
    chunks: u64,
    different: u64,
}

fn leaves(data: &[u8]) -> Vec<u8> {
    let digest = |leaf: &[u8]| *blake3::hash(leaf).as_bytes();
    data.chunks(LEAF).flat_map(|leaf| digest(leaf).into_iter().take(DIGEST)).collect()
}

impl Core {
    pub(super) fn digest_read(&mut self, id: u32, i: usize, session: u64, result: Result<Bytes, Failure>) {
        let Some(op) = self.ops.remove(id) else { return };
        if self.peers.get(i).is_none_or(|peer| peer.session != session) {
            return;
        }
        let fields = Fields { offset: op.start, len: (op.end - op.start) as u32, ..Fields::default() };
        // A chunk that cannot be read has no digest: the other end finds it different.
        let digests = result.map(|data| leaves(&data)).unwrap_or_default();
        self.send(i, PacketType::SD_FSYNC_MD5, fields, Bytes::from(digests));
        if let Some(verify) = self.verify.as_mut() {
            verify.lock = None;
            self.admit_held();
            self.step_verify();
        }
    }

    /// A site sent digests of its content.
    pub(super) fn digests(&mut self, i: usize, fields: &Fields, payload: &Bytes) {
        let Some(session) = self.peers.get(i).map(|peer| peer.session) else { return };
        if fields.len == 0 || u64::from(fields.len) > PIECE {
            return;
        }
        let end = fields.offset + u64::from(fields.len);
        let mut op = Op::new(Origin::Compare(i, session), fields.offset, end, Work::Read);
        op.payload = payload.clone();
        let id = self.ops.insert(op);
        self.enqueue(id);
        self.unblock(id);
    }

    pub(super) fn compared_read(&mut self, id: u32, i: usize, session: u64, result: Result<Bytes, Failure>) {
        let Some(op) = self.ops.remove(id) else { return };
        if self.peers.get(i).is_none_or(|peer| peer.session != session) {
            return;
        }
        let Ok(data) = result else {
            return self.local_disk_failed("a read for another site failed");
        };
        let own = leaves(&data);
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let mut theirs = op.payload.chunks_exact(DIGEST);
        for (n, digest) in own.chunks_exact(DIGEST).enumerate() {
            if theirs.next() == Some(digest) {
                continue;
            }
            let start = op.start + (n * LEAF) as u64;
            let len = (op.end - start).min(LEAF as u64);
            match runs.last_mut() {
                Some((first, n)) if *first + *n == start => *n += len,
                _ => runs.push((start, len)),
            }
        }
        let fields = Fields { offset: op.start, len: (op.end - op.start) as u32, ..Fields::default() };
        self.send(i, PacketType::SD_FSYNC_DATA, fields, Bytes::from(packet::encode_runs(&runs)));
    }

    /// The other end tells which ranges of a piece differ.
    pub(super) fn differences(&mut self, i: usize, fields: &Fields, payload: &[u8]) {
        let (start, end) = (fields.offset, fields.offset + u64::from(fields.len));
        let inside = |run: &std::ops::Range<u64>| start <= run.start && run.start < run.end && run.end <= end;
        let runs: Vec<_> = packet::runs(payload).filter(inside).collect();
        if self.verify.as_ref().is_some_and(|verify| verify.peer == i) {
            return self.verified(i, start, end, &runs);
        }
        let Some(session) = self.peers.get(i).map(|peer| peer.session) else { return };
        if self.is_staging(i) {
            return self.stage_differences(i, (start, end), runs);
        }
        if runs.is_empty() {
            return self.part_done(i, session, start, end);
        }
        let Some(resync) = self.resync_of(i, session) else { return };
        let found = resync.units.iter_mut().find(|unit| (unit.start, unit.end) == (start, end));
        let Some(unit) = found else { return };
        unit.left = runs.len();
        for run in runs {
            self.want(i, run.start, run.end);
        }
    }

    pub(super) fn begin_verify(&mut self, site: SiteId) -> Result<(), Refusal> {
        let found = self.peer_of(site).filter(|i| self.peers.get(*i).is_some_and(Peer::is_equal));
        let peer = found.filter(|_| self.is_primary() && self.is_local).ok_or(Refusal::Site)?;
        if self.verify.is_some() {
            return Err(Refusal::Busy);
        }
        self.verify = Some(Verify { peer, lock: None, next: 0, asked: 0, chunks: 0, different: 0 });
        self.step_verify();
        Ok(())
    }

    /// Compares the next piece, if there are not enough under way.
    pub(super) fn step_verify(&mut self) {
        let size = self.size();
        let Some(verify) = self.verify.as_mut().filter(|verify| verify.lock.is_none()) else { return };
        let Some(peer) = self.peers.get(verify.peer) else { return };
        let (session, most) = (peer.session, if peer.far.is_some() { FAR_PIECES } else { 1 });
        let (start, end) = (verify.next, (verify.next + PIECE).min(size));
        if verify.asked >= most || start >= end && verify.asked > 0 {
            return;
        }
        if start >= end {
            let (peer, chunks, different) = (verify.peer, verify.chunks, verify.different);
            self.verify = None;
            if let Some(site) = self.peers.get(peer).map(|peer| peer.site) {
                self.note(Note::Verified(site, chunks, different));
            }
            return;
        }
        (verify.lock, verify.next, verify.asked) = (Some((start, end)), end, verify.asked + 1);
        let id = self.ops.insert(Op::new(Origin::Digest(verify.peer, session), start, end, Work::Read));
        self.enqueue(id);
        self.unblock(id);
    }

    fn verified(&mut self, i: usize, start: u64, end: u64, runs: &[std::ops::Range<u64>]) {
        let compared = self.chunks(start, end);
        let different: Vec<_> = runs.iter().map(|run| self.chunks(run.start, run.end)).collect();
        let mut n = 0;
        if let Some(peer) = self.peers.get_mut(i) {
            // It is copied at the next connect; nothing starts by itself.
            for chunks in different {
                peer.keep_bits(chunks.clone());
                n += self.bitmaps.get_mut(peer.slot).map_or(0, |map| map.set(chunks));
            }
        }
        if let Some(verify) = self.verify.as_mut() {
            verify.chunks += compared.end - compared.start;
            verify.different += n;
            verify.asked = verify.asked.saturating_sub(1);
        }
        self.step_verify();
    }
}
