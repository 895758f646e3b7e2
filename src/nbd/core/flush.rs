//! Barriers, syncs and what waits for them.
//!
//! A flush closes the epoch, and is answered when the epoch is stable here and at every site that takes writes. A sync
//! that failed is an error to every flush that waits, and the disk is out: it must never be tried again and called done.
//! Called by the core.

use std::collections::VecDeque;

use bytes::Bytes;

use super::event::{Action, RequestId, Ticket};
use super::op::TICKET_SYNC;
use super::packet::{self, Fields};
use super::peer::Peer;
use super::{Core, Pending, mutated};
use crate::nbd::server::Failure;
use crate::wire::PacketType;

/// Writes after which an epoch is closed without a flush, so that what is to be marked at a loss stays little.
pub const EPOCH_MAX: u32 = 2048;

/// The flushes that wait for a sync that begins from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterSync {
    /// A former primary is gone, and all it sent is written.
    Settled,
    /// Content from the source of a resync: the peer, the session, and how many ranges.
    Resync(usize, u64, usize),
    /// Batches of the ordered log up to this one.
    Batch(u64),
}

/// The state of the syncs.
#[derive(Debug, Default)]
pub struct Flushes {
    /// The last epoch that has to become stable for somebody.
    pub asked: u64,
    /// The last epoch that is stable on the local disk.
    pub local: u64,
    /// At a follower: the last epoch that is stable everywhere, as the primary has sent it.
    pub told: u64,
    /// The epoch that the sync under way makes stable.
    running: Option<u64>,
    waiting: Vec<AfterSync>,
    next: Vec<AfterSync>,
    /// Requests by the epoch they need.
    queue: VecDeque<(u64, u32)>,
}

impl Flushes {
    /// Forgets the requests that wait: they are answered elsewhere.
    pub fn forget_requests(&mut self) {
        self.queue.clear();
    }
}

impl Core {
    pub(super) fn client_flush(&mut self, id: RequestId) {
        let pending = self.pending.insert(Pending { id, left: 0, fua: false, failed: None });
        if mutated!(self, FlushLies) {
            return self.answer(pending);
        }
        self.flush_for(pending);
    }

    pub(super) fn flush_for(&mut self, pending: u32) {
        if self.epochs.in_current() > 0 {
            self.barrier();
        }
        let epoch = self.epochs.current() - 1;
        self.flushes.asked = self.flushes.asked.max(epoch);
        self.flushes.queue.push_back((epoch, pending));
        self.fail_without_disks();
        self.sync_if_due();
        self.settle_flushes();
    }

    /// Closes the epoch, here and at the sites that take writes.
    pub(super) fn barrier(&mut self) {
        let fields = self.stream_fields(Fields { flags: packet::BARRIER, ..Fields::default() });
        self.epochs.close();
        for i in 0..self.peers.len() {
            if self.peers.get(i).is_some_and(Peer::takes_writes) {
                let name = self.name_for(i, fields.epoch);
                self.send(i, PacketType::SD_DATA, fields, name);
            }
        }
        self.flushes.asked = self.flushes.asked.max(fields.epoch);
        self.sync_if_due();
    }

    /// Does something after a sync that begins from now on.
    pub(super) fn after_sync(&mut self, then: AfterSync) {
        self.flushes.next.push(then);
        self.sync_if_due();
    }

    pub(super) fn sync_if_due(&mut self) {
        let complete = self.epochs.complete();
        let flushes = &mut self.flushes;
        if flushes.running.is_some() || !self.is_local {
            return;
        }
        let is_due = flushes.local < flushes.asked && flushes.local < complete;
        if is_due || !flushes.next.is_empty() {
            flushes.running = Some(complete);
            flushes.waiting = std::mem::take(&mut flushes.next);
            self.out.push(Action::Sync(Ticket::new(TICKET_SYNC, 0)));
        }
    }

    pub(super) fn synced(&mut self, result: Result<Bytes, Failure>) {
        let Some(epoch) = self.flushes.running.take() else { return };
        let waiting = std::mem::take(&mut self.flushes.waiting);
        if result.is_err() {
            self.fail_flushes();
            return self.local_disk_failed("a sync failed");
        }
        self.flushes.local = self.flushes.local.max(epoch);
        for then in waiting {
            match then {
                AfterSync::Settled => self.settled(),
                AfterSync::Resync(i, session, n) => self.resync_stable(i, session, n),
                AfterSync::Batch(number) => self.batches_stable(number),
            }
        }
        self.confirm_stable();
        self.finish_targets();
        self.stability_changed();
        self.sync_if_due();
    }

    pub(super) fn fail_flushes(&mut self) {
        for (_, pending) in std::mem::take(&mut self.flushes.queue) {
            if let Some(request) = self.pending.get_mut(pending) {
                request.failed = Some(Failure::Io);
            }
            self.answer(pending);
        }
    }

    /// The last epoch of which everything is stable at every site that takes writes, or marked for it.
    pub(super) fn stable_everywhere(&self) -> u64 {
        self.stable_at(Peer::confirms)
    }

    /// The same of some sites.
    pub(super) fn stable_at(&self, counts: impl Fn(&Peer) -> bool) -> u64 {
        if !self.is_primary() {
            return self.flushes.local.min(self.flushes.told);
        }
        let own = if self.is_local { self.flushes.local } else { u64::MAX };
        let peers = self.peers.iter().filter(|peer| counts(peer));
        peers.map(|peer| peer.stable).fold(own, u64::min).min(self.epochs.current() - 1)
    }

    pub(super) fn stability_changed(&mut self) {
        self.settle_evicted();
        self.epochs.settle(self.stable_everywhere());
        self.settle_flushes();
        self.step_checkpoints();
        if self.claim != super::claim::Claim::Idle {
            self.step_claim();
        }
        if !self.held.is_empty() {
            self.admit_held();
        }
        self.want_extents();
    }

    fn settle_flushes(&mut self) {
        // An answer may be the last one before the end of the role, which waits for more.
        while let Some((epoch, pending)) = self.flushes.queue.front().copied() {
            if epoch > self.stable_for_flushes() {
                return;
            }
            self.flushes.queue.pop_front();
            self.answer(pending);
        }
    }

    /// The last epoch that is stable wherever a flush has to wait for it.
    fn stable_for_flushes(&self) -> u64 {
        let is_local = self.config.tuning.flush_local && self.is_local;
        match is_local {
            // So that nothing is lost by the end of the role, it waits for all.
            _ if self.role_change.is_leaving() && self.is_leaving_flushed() => self.stable_everywhere(),
            true => self.flushes.local,
            false => self.stable_in_sync(),
        }
    }
}
