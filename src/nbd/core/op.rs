//! An operation on the data disk: a write of a client, of the primary, of a resync, or a read that has its place among
//! them. It runs when nothing blocks it: an earlier operation on the same bytes, its extents, the superblock.
//!
//! Must never run one twice, nor out of the order in which those on the same bytes were admitted. Used by the core alone.

use bytes::Bytes;

use super::event::{Action, Ticket};
use super::{Core, activity, mutated};
use crate::nbd::server::Failure;
use crate::wire::Mask;

/// Tickets of operations.
pub const TICKET_OP: u8 = 1;
/// The ticket of a sync.
pub const TICKET_SYNC: u8 = 2;
/// The ticket of a write of the superblock.
pub const TICKET_SUPERBLOCK: u8 = 3;
/// The ticket of a write of bitmaps, or of an activity record.
pub const TICKET_LOG: u8 = 4;
/// Tickets of clients' reads.
pub const TICKET_READ: u8 = 5;

/// The ticket of a write of the ordered log.
pub const TICKET_REDO: u8 = 6;

impl Ticket {
    /// The ticket of the entry of this number.
    pub(super) fn new(kind: u8, number: u32) -> Self {
        Ticket(u64::from(kind) << 32 | u64::from(number))
    }

    pub(super) fn kind(self) -> u8 {
        (self.0 >> 32) as u8
    }

    pub(super) fn number(self) -> u32 {
        self.0 as u32
    }
}

/// The origin of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A client's request, by its entry.
    Client(u32),
    /// A packet of the primary: the peer, the session, the number.
    Follow(usize, u64, u64),
    /// Content from the source of a resync: the peer, the session.
    Resync(usize, u64),
    /// A read for the target of a resync, or for a primary without a disk.
    Source(usize, u64),
    /// A read for digests that a site sent: the peer, the session.
    Compare(usize, u64),
    /// A write of the ordered log, carried out again at the start.
    Replay,
    /// A read of this site's own content, whose digests a site compares: the peer, the session.
    Digest(usize, u64),
}

/// The kind of the operation.
#[derive(Clone, Debug)]
pub enum Work {
    /// Write.
    Write(Bytes),
    /// Zeroes; true: a hole will do.
    Zero(bool),
    /// Read.
    Read,
    /// Nothing here: this site's disk is out.
    Elsewhere,
}

/// An operation.
#[derive(Debug)]
pub struct Op {
    pub origin: Origin,
    pub start: u64,
    pub end: u64,
    pub work: Work,
    pub epoch: u64,
    /// The event that it waits for.
    pub blocks: u32,
    /// Those that wait for it.
    pub followers: Vec<u32>,
    /// Sites that have not confirmed it.
    pub pending: Mask,
    /// It is done here.
    pub is_done: bool,
    /// Some disk has it: this site's, or that of a site that said so.
    pub is_kept: bool,
    /// It counts in its extents and in its epoch.
    pub counts: bool,
    /// Digests that it is compared with, for [`Origin::Compare`].
    pub payload: Bytes,
}

impl Op {
    /// An operation that nothing blocks yet.
    pub fn new(origin: Origin, start: u64, end: u64, work: Work) -> Self {
        Op {
            origin,
            start,
            end,
            work,
            epoch: 0,
            blocks: 0,
            followers: Vec::new(),
            pending: Mask(0),
            is_done: false,
            is_kept: false,
            counts: false,
            payload: Bytes::new(),
        }
    }
}

impl Core {
    /// Gives an operation its place behind those on the same bytes; it is blocked once more, by the caller, until
    /// [`Core::unblock`].
    pub(super) fn enqueue(&mut self, id: u32) {
        let Some(op) = self.ops.get_mut(id) else { return };
        op.blocks += 1;
        let (start, end) = (op.start, op.end);
        let unordered = mutated!(self, Unordered);
        let (ops, order) = (&mut self.ops, &mut self.order);
        let mut waits = 0;
        order.insert(start, end, id, |owner| {
            if let Some(before) = ops.get_mut(owner).filter(|_| !unordered) {
                before.followers.push(id);
                waits += 1;
            }
        });
        if let Some(op) = self.ops.get_mut(id) {
            op.blocks += waits;
        }
    }

    /// One thing that an operation waited for has come; it runs if it was the last.
    pub(super) fn unblock(&mut self, id: u32) {
        let Some(op) = self.ops.get_mut(id) else { return };
        op.blocks = op.blocks.saturating_sub(1);
        if op.blocks > 0 {
            return;
        }
        let ticket = Ticket::new(TICKET_OP, id);
        let (start, len) = (op.start, op.end - op.start);
        let action = match &op.work {
            Work::Write(data) => Action::Write(ticket, start, data.clone()),
            Work::Zero(trim) => Action::Zero(ticket, start, len, *trim),
            Work::Read => Action::Read(ticket, start, len),
            Work::Elsewhere => return self.op_done(id, Ok(Bytes::new())),
        };
        self.out.push(action);
    }

    /// Counts an operation in its extents, which are active, and in its epoch.
    pub(super) fn count(&mut self, id: u32) {
        let Some(op) = self.ops.get_mut(id) else { return };
        op.counts = true;
        self.activity.begin(activity::extents(op.start, op.end), op.epoch);
    }

    pub(super) fn op_done(&mut self, id: u32, result: Result<Bytes, Failure>) {
        let Some(op) = self.ops.get_mut(id).filter(|op| !op.is_done) else { return };
        op.is_done = true;
        let (origin, start, end, epoch, counts) = (op.origin, op.start, op.end, op.epoch, op.counts);
        let followers = std::mem::take(&mut op.followers);
        self.order.remove(start, end, id);
        if counts {
            self.activity.end(activity::extents(start, end));
        }
        if epoch != 0 {
            self.epochs.end(epoch);
        }
        match origin {
            Origin::Client(_) => self.client_write_done(id, result),
            Origin::Follow(i, session, seq) => self.follow_done(id, i, session, seq, result),
            Origin::Resync(i, session) => self.resync_written(id, i, session, result),
            Origin::Source(i, session) => self.source_read(id, i, session, result),
            Origin::Compare(i, session) => self.compared_read(id, i, session, result),
            Origin::Replay => self.replayed(id, &result),
            Origin::Digest(i, session) => self.digest_read(id, i, session, result),
        }
        for follower in followers {
            self.unblock(follower);
        }
        if epoch != 0 {
            self.sync_if_due();
        }
        self.settle_if_drained();
    }
}
