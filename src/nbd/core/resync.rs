//! A resync's state at either end, its pace, and reads from another site's disk.
//!
//! The target asks, the source answers; bits tell both how far it is, so that it goes on after any interruption. Must not
//! starve the clients' writes, nor be starved by them. Called by the core.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use super::event::RequestId;
use super::packet::{self, Fields, PIECE};
use super::{Core, Peer};
use crate::nbd::mirror::Facts;
use crate::nbd::server::Failure;
use crate::wire::PacketType;

/// Bytes asked for and not here yet while no client writes: what keeps a fast link and a disk busy.
const WINDOW: u64 = 16 << 20;

/// The same while clients write: two small requests, so that a write waits for little.
const BUSY_WINDOW: u64 = 256 << 10;

/// Bytes of one request while clients write.
pub const BUSY_PIECE: u64 = 128 << 10;

/// So long after a client's write the disk counts as in use.
const BUSY: Duration = Duration::from_millis(200);

/// A piece that was asked for.
#[derive(Debug)]
pub struct Unit {
    pub start: u64,
    pub end: u64,
    /// Parts that are not written yet; none is known before the digests are compared.
    pub left: usize,
}

/// A target's catch-up as one batch.
#[derive(Debug, Default)]
pub struct Staged {
    /// All that came, in the order of the stream.
    pub packets: Vec<(PacketType, Fields, Bytes)>,
    /// Bytes that the writes take in a batch.
    pub bytes: u64,
    /// True if all that is marked is compared first.
    pub compares: bool,
    /// True if nothing is left to compare.
    pub is_compared: bool,
    /// Ranges that were found different and are not asked for yet, and the bytes of all of them.
    pub wanted: VecDeque<Range<u64>>,
    pub differing: u64,
    /// The end came: the batch's number, 0 without any write. It may be durable.
    pub batch: Option<u64>,
}

/// A resync under way.
#[derive(Debug)]
pub struct Resync {
    /// Everything is looked at, by digest.
    pub full: bool,
    /// The other end's bits are here, all of them.
    pub has_bits: bool,
    /// Target: the next bit to look at.
    pub cursor: u64,
    /// Target: what was asked for.
    pub units: Vec<Unit>,
    /// Target: pieces written, or found equal, and not stable yet.
    pub fresh: Vec<Range<u64>>,
    /// Target: a sync for the first pieces is under way.
    pub is_syncing: bool,
    /// Target: the source said that this was all, and the epoch that has to be stable first.
    pub ending: Option<(Box<Facts>, u64)>,
    /// Target: the end was asked for.
    pub is_end_asked: bool,
    /// Target: bytes that may be asked for now, by the configured rate.
    budget: u64,
    /// Target: what the rate allows in an eighth of a second.
    pace: u64,
    /// When the budget was filled last, and when a client's write came.
    filled: Duration,
    pub busy: Duration,
    /// When something of it came last.
    pub moved: Duration,
    /// Source: ranges that are being read.
    pub locks: VecDeque<(u64, u64)>,
    /// Source: requests that wait while it is paused.
    pub parked: Vec<Fields>,
    /// Source: the target heard that this was all, and may count itself as equal.
    pub is_end_told: bool,
    /// Source: the target takes all of it as one batch.
    pub is_staged: bool,
    /// Target: all of it is taken as one batch.
    pub staged: Option<Staged>,
    /// Bytes of content that were sent, or came for the batch.
    pub copied: u64,
}

impl Resync {
    /// A resync of everything, or of what bits mark.
    pub fn new(full: bool) -> Self {
        Resync {
            full,
            has_bits: false,
            cursor: 0,
            units: Vec::new(),
            fresh: Vec::new(),
            is_syncing: false,
            ending: None,
            is_end_asked: false,
            budget: 0,
            pace: PIECE,
            filled: Duration::ZERO,
            busy: Duration::ZERO,
            moved: Duration::ZERO,
            locks: VecDeque::new(),
            parked: Vec::new(),
            is_end_told: false,
            is_staged: false,
            staged: None,
            copied: 0,
        }
    }

    /// The longest piece that may be asked for now.
    pub fn longest(&self, now: Duration) -> u64 {
        if self.is_busy(now) { BUSY_PIECE.min(self.pace) } else { PIECE.min(self.pace) }
    }

    /// Returns true if a piece of this many bytes may be asked for now: the rate has to allow all of them, and the window, but for a
    /// chunk that is larger than all of it.
    pub fn has_room(&self, now: Duration, bytes: u64) -> bool {
        let window = if self.is_busy(now) { BUSY_WINDOW } else { WINDOW };
        let asked: u64 = self.units.iter().map(|unit| unit.end - unit.start).sum();
        bytes <= self.budget && (asked == 0 || asked + bytes <= window)
    }

    fn is_busy(&self, now: Duration) -> bool {
        !self.busy.is_zero() && now.saturating_sub(self.busy) < BUSY
    }

    /// This many bytes were asked for.
    pub fn spend(&mut self, bytes: u64) {
        self.budget = self.budget.saturating_sub(bytes);
    }

    /// The first range that was found different is asked for.
    pub fn take_staged(&mut self, piece: &Range<u64>) {
        if let Some(staged) = self.staged.as_mut() {
            staged.wanted.pop_front();
        }
        self.spend(piece.end - piece.start);
        self.units.push(Unit { start: piece.start, end: piece.end, left: 1 });
    }

    fn refill(&mut self, now: Duration, rate: u64, least: u64) {
        let is_busy = self.is_busy(now);
        let passed = now.saturating_sub(self.filled).min(Duration::from_secs(1)).as_millis() as u64;
        self.filled = now;
        let a_second = match (is_busy, rate) {
            // It gives way, and yet ends.
            (true, 0) => least.max(BUSY_PIECE * 8),
            (true, rate) => least.max(BUSY_PIECE * 8).min(rate),
            (false, 0) => u64::MAX / 2000,
            (false, rate) => rate,
        };
        self.pace = a_second / 8;
        let most = a_second.max(PIECE);
        self.budget = self.budget.saturating_add(a_second.saturating_mul(passed) / 1000).min(most);
    }
}

/// A client's read.
pub struct RemoteRead {
    pub id: RequestId,
    pub start: u64,
    pub end: u64,
    /// The site that is asked, and what it has given.
    pub peer: Option<(usize, Vec<u8>)>,
}

impl Core {
    pub(super) fn tick_resync(&mut self) {
        let (rate, least) = (self.config.tuning.resync_rate, self.config.tuning.resync_min);
        for i in 0..self.peers.len() {
            let Some(peer) = self.peers.get_mut(i) else { continue };
            if let Some(resync) = peer.resync.as_mut() {
                resync.refill(self.now, rate, least);
                // Pieces that are not asked for yet, for the rate's sake, cannot come.
                let waits = resync.has_bits && resync.units.is_empty() && !resync.is_end_asked;
                if resync.moved.is_zero() || waits {
                    resync.moved = self.now;
                }
                if self.paused.contains(peer.site.get()) {
                    resync.moved = resync.moved.max(self.now.saturating_sub(self.config.tuning.slow));
                }
                // All of it has come, and is being written here.
                let is_at_end = resync.staged.is_some() && resync.ending.is_some();
                let is_stuck = !is_at_end && self.now.saturating_sub(resync.moved) > self.config.tuning.slow;
                match is_stuck && self.is_target_of(i) {
                    true => self.lose(i, "the resync does not go on"),
                    false => self.ask(i),
                }
                self.tick_catch_up(i);
            }
        }
        self.step_verify();
    }

    /// The resync with a peer, if its session is still this one.
    pub(super) fn resync_of(&mut self, i: usize, session: u64) -> Option<&mut Resync> {
        self.peers.get_mut(i).filter(|peer| peer.session == session).and_then(|peer| peer.resync.as_mut())
    }

    /// Sends all runs of this end's bits.
    pub(super) fn send_bits(&mut self, i: usize, kind: PacketType) {
        const RUNS: usize = 4096;
        let Some(slot) = self.peers.get(i).map(|peer| peer.slot) else { return };
        let is_staged = self.is_staging(i);
        let mut at = 0;
        loop {
            let mut some = Vec::new();
            while let Some(run) = self.bitmaps.get(slot).and_then(|map| map.next_run(at, u64::MAX)) {
                if some.len() == RUNS {
                    break;
                }
                some.push((run.start, run.end - run.start));
                at = run.end;
            }
            let is_last = some.len() < RUNS;
            let mut fields = Fields { flags: if is_last { packet::END } else { 0 }, ..Fields::default() };
            if is_staged {
                fields.flags |= packet::STAGED;
            }
            self.send(i, kind, fields, Bytes::from(packet::encode_runs(&some)));
            if is_last {
                return;
            }
        }
    }

    pub(super) fn unite(&mut self, i: usize, payload: &[u8]) {
        let Some(peer) = self.peers.get_mut(i) else { return };
        if let Some(map) = self.bitmaps.get_mut(peer.slot) {
            packet::runs(payload).for_each(|run| {
                peer.keep_bits(run.clone());
                map.set(run);
            });
        }
    }

    /// Reads from a site that has the data; an error to the client if there is none.
    pub(super) fn read_elsewhere(&mut self, number: u32) {
        let Some(i) = self.peers.iter().position(Peer::has_all) else {
            return self.answer_read(number, Err(Failure::Io));
        };
        let Some(read) = self.reads.get_mut(number) else { return };
        let done = match &read.peer {
            Some((of, done)) if *of == i => done.clone(),
            _ => Vec::new(),
        };
        let offset = read.start + done.len() as u64;
        let len = (read.end - offset).min(PIECE) as u32;
        read.peer = Some((i, done));
        let fields = Fields { offset, len, flags: packet::REPLY, value: number.into(), ..Fields::default() };
        self.send(i, PacketType::SD_DSYNC_REQ, fields, Bytes::new());
    }

    /// A part of a read came from a site.
    pub(super) fn remote_part(&mut self, i: usize, fields: &Fields, payload: &[u8]) {
        let Some(number) = u32::try_from(fields.value).ok() else { return };
        let Some(read) = self.reads.get_mut(number) else { return };
        let Some((of, done)) = &mut read.peer else { return };
        if *of != i || fields.offset != read.start + done.len() as u64 {
            return;
        }
        if fields.errcode != 0 || payload.is_empty() {
            return self.answer_read(number, Err(Failure::Io));
        }
        done.extend_from_slice(payload);
        if (done.len() as u64) < read.end - read.start {
            return self.read_elsewhere(number);
        }
        let data = Bytes::from(std::mem::take(done));
        self.answer_read(number, Ok(data));
    }

    /// Reads that a lost site was asked for go to another one.
    pub(super) fn reads_lost(&mut self, i: usize) {
        let of_peer = |read: &RemoteRead| read.peer.as_ref().is_some_and(|(of, _)| *of == i);
        let numbers: Vec<_> =
            self.reads.iter().filter(|(_, read)| of_peer(read)).map(|(number, _)| number).collect();
        for number in numbers {
            if let Some(read) = self.reads.get_mut(number) {
                read.peer = None;
            }
            self.read_elsewhere(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_holds_for_pieces_that_come_at_once() {
        let mut resync = Resync::new(false);
        let (mut asked, mut now) = (0, Duration::from_secs(100));
        while now < Duration::from_secs(110) {
            resync.refill(now, 1 << 20, 64 << 10);
            while resync.has_room(now, PIECE) {
                resync.spend(PIECE);
                asked += PIECE;
            }
            now += Duration::from_millis(100);
        }
        assert!((9 << 20..=11 << 20).contains(&asked), "{asked}");
    }

    #[test]
    fn a_chunk_larger_than_the_window_is_asked_for_alone() {
        let mut resync = Resync::new(false);
        let now = Duration::from_secs(5);
        resync.busy = now;
        resync.refill(now, 0, 1 << 20);
        assert!(resync.has_room(now, PIECE));
        resync.units.push(Unit { start: 0, end: PIECE, left: 1 });
        assert!(!resync.has_room(now, 4096));
    }
}
