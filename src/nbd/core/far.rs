//! A far site: one whose copy may be behind. Clients' writes do not wait for it.
//!
//! At the primary the data packets for it go out in order, behind a window of what it has not confirmed; what has to wait is
//! kept in a queue with a ceiling, over which the site counts as lost. The activity log waits for no far site either: an
//! extent leaves with bits for what may be missing there, and they go once it is not. Must never send a packet of the
//! stream before an earlier one. Called by the core.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;

use super::packet::Fields;
use super::{Core, Peer};
use crate::nbd::disk::format::Checkpoint;
use crate::wire::{Class, PacketType, SiteId};

/// Bytes of writes under way that the site has not confirmed: the daemon's link is shared with other sites, and what is in it
/// holds them up. 40 MB/s at a round trip of 100 ms. This and the ceilings below are small in the simulator, so that they are met.
const WINDOW: usize = if cfg!(test) { 32 << 10 } else { 4 << 20 };

/// Bytes that wait behind the window at most; a site with more counts as lost, and bits take over.
const QUEUE_MAX: usize = if cfg!(test) { 256 << 10 } else { 64 << 20 };

/// Ranges not known to be stable at a far site that are kept, of which the core has twice the room.
const RANGES_MAX: usize = if cfg!(test) { 1 << 7 } else { 1 << 15 };

/// A packet counts as this many bytes beside its payload.
const HEAD: usize = 256;

/// The writes on their way to a far site.
#[derive(Debug, Default)]
pub struct Far {
    queue: VecDeque<Waiting>,
    queued: usize,
    /// Writes that are not confirmed: number, bytes, when they were made.
    flying: VecDeque<(u64, usize, Duration)>,
    in_flight: usize,
    /// Checkpoints that it does not surely have, with the epoch of the barrier that was sent for each in this session.
    pub checkpoints: VecDeque<(Checkpoint, Option<u64>)>,
    /// Since when the site lacks something, after a session ended.
    left: Option<Duration>,
}

#[derive(Debug)]
struct Waiting {
    kind: PacketType,
    fields: Fields,
    payload: Bytes,
    since: Duration,
}

/// The distance of a site's copy from the primary's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lag {
    /// Bytes of writes that are queued or under way, without those that only bits tell of.
    pub bytes: u64,
    /// Time since the oldest write that the site may not have.
    pub age: Duration,
    /// Bytes that the queue still takes.
    pub room: u64,
}

impl Far {
    /// Ends with the session: from here on bits tell what is missing.
    pub fn end(&mut self) {
        let mut checkpoints = std::mem::take(&mut self.checkpoints);
        checkpoints.iter_mut().for_each(|(_, epoch)| *epoch = None);
        *self = Far { left: self.oldest(), checkpoints, ..Far::default() };
    }

    /// Returns true if nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.flying.is_empty() && self.queue.is_empty()
    }

    fn oldest(&self) -> Option<Duration> {
        let flying = self.flying.front().map(|(_, _, since)| *since);
        self.left.or(flying).or(self.queue.front().map(|waiting| waiting.since))
    }

    fn is_open(&self, kind: PacketType) -> bool {
        kind != PacketType::SD_DATA || self.in_flight < WINDOW
    }
}

/// Returns true if a packet has its place in the stream.
pub fn is_in_stream(kind: PacketType) -> bool {
    kind.relayed().is_some_and(|(class, _)| class == Class::Data) && kind != PacketType::SD_DATA_ACK
}

impl Core {
    /// Returns how far a site is behind; `None` if it is not a far one.
    pub fn lag(&self, site: SiteId) -> Option<Lag> {
        let far = self.peers.get(self.peer_of(site)?)?.far.as_ref()?;
        Some(Lag {
            bytes: (far.queued + far.in_flight) as u64,
            age: far.oldest().map_or(Duration::ZERO, |since| self.now.saturating_sub(since)),
            room: QUEUE_MAX.saturating_sub(far.queued) as u64,
        })
    }

    /// Sends a packet of the stream, or queues it.
    pub(super) fn send_in_turn(&mut self, i: usize, kind: PacketType, fields: Fields, payload: Bytes) {
        let since = self.now;
        let Some(peer) = self.peers.get_mut(i) else { return };
        let Some(far) = peer.far.as_mut() else { return };
        if far.is_idle() {
            peer.progress = since;
        }
        if far.queue.is_empty() && far.is_open(kind) {
            return self.transmit_far(i, kind, fields, payload, since);
        }
        // A part of a larger buffer would keep all of it.
        let payload = Bytes::copy_from_slice(&payload);
        far.queued += payload.len() + HEAD;
        far.queue.push_back(Waiting { kind, fields, payload, since });
    }

    fn transmit_far(
        &mut self,
        i: usize,
        kind: PacketType,
        mut fields: Fields,
        payload: Bytes,
        since: Duration,
    ) {
        let bytes = payload.len() + HEAD;
        if kind == PacketType::SD_DATA && fields.missing == self.missing() {
            // The epoch that is stable by now, and not when it was queued; but a packet from before the loss of a site must not
            // say that everything is stable there.
            fields.value = self.stable_everywhere();
        }
        let seq = self.transmit(i, kind, fields, payload);
        if kind == PacketType::SD_DATA && fields.len > 0 {
            if let Some(far) = self.peers.get_mut(i).and_then(|peer| peer.far.as_mut()) {
                far.flying.push_back((seq, bytes, since));
                far.in_flight += bytes;
            }
        }
    }

    /// The site has written all up to this packet: the next ones go.
    pub(super) fn far_confirmed(&mut self, i: usize, seq: u64) {
        let Some(far) = self.peers.get_mut(i).and_then(|peer| peer.far.as_mut()) else { return };
        while let Some((_, bytes, _)) = far.flying.front().copied().filter(|(of, _, _)| *of <= seq) {
            far.flying.pop_front();
            far.in_flight -= bytes;
        }
        while let Some(far) = self.peers.get_mut(i).and_then(|peer| peer.far.as_mut()) {
            let Some(next) = far.queue.front().filter(|next| far.is_open(next.kind)) else { return };
            far.queued -= next.payload.len() + HEAD;
            let Some(next) = far.queue.pop_front() else { return };
            self.transmit_far(i, next.kind, next.fields, next.payload, next.since);
        }
    }

    /// A far site has all but what is on its way.
    pub(super) fn caught_up(&mut self, i: usize) {
        if let Some(far) = self.peers.get_mut(i).and_then(|peer| peer.far.as_mut()) {
            far.left = None;
        }
    }

    /// A write is marked for a far site that takes none.
    pub(super) fn note_behind(&mut self, i: usize) {
        let now = self.now;
        if let Some(far) = self.peers.get_mut(i).and_then(|peer| peer.far.as_mut()) {
            far.left.get_or_insert(now);
        }
    }

    /// Far sites that are too far behind are lost.
    pub(super) fn lose_latecomers(&mut self) {
        if !self.is_primary() || self.config.asynchronous.is_empty() {
            return;
        }
        let is_crowded = self.epochs.kept() > RANGES_MAX;
        let stable = self.stable_in_sync();
        for i in 0..self.peers.len() {
            let Some(peer) = self.peers.get_mut(i).filter(|peer| peer.takes_writes()) else { continue };
            let Some(far) = &peer.far else { continue };
            if far.queued > QUEUE_MAX || is_crowded && peer.stable < stable {
                peer.not_before = self.now + self.config.tuning.slow;
                self.lose(i, "its queue is full: bits mark what it does not have");
            }
        }
    }

    /// Followers keep what they do not know to be stable everywhere, and no write may come to say it.
    pub(super) fn tick_far(&mut self) {
        let stable = self.stable_everywhere();
        if !self.is_primary() || self.config.asynchronous.is_empty() || stable <= self.said_stable {
            return;
        }
        self.said_stable = stable;
        let fields = self.stream_fields(Fields::default());
        for i in 0..self.peers.len() {
            if self.peers.get(i).is_some_and(Peer::takes_writes) {
                self.send(i, PacketType::SD_DATA, fields, Bytes::new());
            }
        }
    }

    /// The last epoch that is stable at every site whose copy may not be behind.
    pub(super) fn stable_in_sync(&self) -> u64 {
        self.stable_at(|peer: &Peer| peer.takes_writes() && peer.far.is_none())
    }

    /// Extents that have to leave before every site has what was written to them: bits mark it for those sites that may not. A
    /// follower cannot know which these are.
    pub(super) fn leavers_of_far(&mut self, protected: &RangeInclusive<u32>) -> Vec<u32> {
        let is_primary = self.is_primary();
        let stable = if is_primary { self.stable_in_sync() } else { self.flushes.local };
        let everywhere = self.stable_everywhere();
        let leavers = self.activity.choose_leavers(stable, protected);
        let chunks: Vec<_> = leavers.iter().map(|extent| self.chunks_of_extent(*extent)).collect();
        for range in self.epochs.unstable(everywhere) {
            for extent in &chunks {
                let both = range.start.max(extent.start)..range.end.min(extent.end);
                for peer in self.peers.iter_mut().filter(|peer| !is_primary || peer.far.is_some()) {
                    let Some(map) = self.bitmaps.get_mut(peer.slot) else { continue };
                    for chunk in both.clone() {
                        let is_new = map.set(chunk..chunk + 1) > 0;
                        let entry = peer.evicted.entry(chunk).or_default();
                        *entry = (stable, entry.1 || is_new);
                    }
                }
            }
        }
        leavers
    }

    /// Takes the bits of extents that left off again where everything in them is stable everywhere by now.
    pub(super) fn settle_evicted(&mut self) {
        let everywhere = self.stable_everywhere();
        for peer in self.peers.iter_mut().filter(|peer| !peer.evicted.is_empty()) {
            let Some(map) = self.bitmaps.get_mut(peer.slot) else { continue };
            peer.evicted.retain(|chunk, (epoch, is_only)| {
                if *epoch <= everywhere && *is_only {
                    map.clear(*chunk..*chunk + 1);
                }
                *epoch > everywhere
            });
        }
    }

    /// Bits were cleared for another reason than that writes are stable: those of extents that left stay.
    pub(super) fn restore_evicted(&mut self, i: usize) {
        let Some(peer) = self.peers.get_mut(i) else { return };
        let Some(map) = self.bitmaps.get_mut(peer.slot) else { return };
        for (chunk, (_, is_only)) in &mut peer.evicted {
            *is_only |= map.set(*chunk..*chunk + 1) > 0;
        }
    }

    /// Returns true if a site's bits mark nothing but what is on its way.
    pub(super) fn has_no_bits_but_evicted(&self, i: usize) -> bool {
        let Some(peer) = self.peers.get(i) else { return true };
        let on_the_way = peer.evicted.values().filter(|(_, is_only)| *is_only).count() as u64;
        self.bitmaps.get(peer.slot).is_none_or(|map| map.count() == on_the_way)
    }
}
