//! A follower: carries out the primary's stream, in its order where ranges overlap, and confirms.
//!
//! "Written" and "stable" are confirmed apart. Must never carry out a write of a generation that is not durable here, nor
//! in an extent that a crash would forget. Called by the core.

use std::time::Duration;

use bytes::Bytes;

use super::Core;
use super::event::Note;
use super::op::{Op, Origin, Work};
use super::packet::{self, Fields};
use super::peer::Part;
use super::superblock::Then;
use crate::nbd::disk::format::DiskFlags;
use crate::nbd::mirror::control::StateNote;
use crate::nbd::mirror::{Generation, Role, Rotate};
use crate::nbd::server::Failure;
use crate::wire::{Mask, PacketType, SiteId};

/// The count of writes goes up so often: a snapshot that is older is known to be one, for a write of the superblock each.
const COUNT_EVERY: Duration = Duration::from_secs(300);

/// The errcode of a disk that failed: the system's EIO.
pub const EIO: i16 = -5;

impl Core {
    pub(super) fn data(&mut self, i: usize, fields: &Fields, payload: Bytes) {
        if self.follows.is_none() {
            self.follow_promised(i);
        }
        let Some(peer) = self.peers.get(i).filter(|peer| self.follows == Some(peer.site)) else {
            return self.lose(i, "it writes and is not the primary");
        };
        let (session, told) = (peer.session, peer.told);
        if told != Some((fields.generation, fields.missing)) {
            self.learn(i, fields);
        }
        self.hear_stable(i, fields.value);
        let name = if fields.len == 0 { payload.clone() } else { Bytes::new() };
        if fields.len > 0 {
            let (start, end) = (fields.offset, fields.offset + u64::from(fields.len));
            let work = match fields.flags {
                flags if flags & (packet::ZEROES | packet::TRIM) != 0 => {
                    Work::Zero(flags & packet::TRIM != 0)
                }
                _ if payload.len() as u64 != end - start => return self.lose(i, "a write of a wrong length"),
                _ => Work::Write(payload),
            };
            let id = self.ops.insert(Op::new(Origin::Follow(i, session, fields.seq), start, end, work));
            if let Some(peer) = self.peers.get_mut(i) {
                peer.inbound.push_back((fields.seq, false));
            }
            if let Some(resync) = self.peers.get_mut(i).and_then(|peer| peer.resync.as_mut()) {
                resync.busy = self.now;
            }
            let chunks = self.chunks(start, end);
            let epoch = self.epochs.begin(chunks.clone());
            if let Some(op) = self.ops.get_mut(id) {
                op.epoch = epoch;
                // Its extents; and the superblock, if it is not durable as this packet needs it.
                op.blocks = 1;
            }
            for peer in &mut self.peers {
                if fields.missing.contains(peer.site.get()) {
                    peer.keep_bits(chunks.clone());
                    if let Some(map) = self.bitmaps.get_mut(peer.slot) {
                        map.set(chunks.clone());
                    }
                }
            }
            self.enqueue(id);
            let flags = self.store.wanted.flags;
            let is_equal = self.peers.get(i).is_some_and(|peer| peer.part == Part::Equal);
            // Another primary answers in this generation from now on, and what this one left is settled. A half-synced disk
            // has its own generation as long as the resync has not ended.
            let mut past = DiskFlags::PRIMARY;
            if is_equal {
                past |= DiskFlags::UNANSWERED;
            }
            let is_past = flags.without(past) != flags;
            let is_first = is_equal && !flags.contains(DiskFlags::UP_TO_DATE);
            if !flags.contains(DiskFlags::WRITING) || is_past || is_first {
                self.store.wanted.begin_writes();
                self.store.wanted.flags.set(past, false);
                // That it outlived an earlier primary says nothing about this one.
                self.store.wanted.flags.set(DiskFlags::UP_TO_DATE, is_equal);
                self.counted = self.now;
                self.change(Then::Counted);
            }
            if self.store.version > self.store.durable {
                if let Some(op) = self.ops.get_mut(id) {
                    op.blocks += 1;
                }
                self.change(Then::Unblock(id));
            }
            self.activate_follow(id);
            self.unblock(id);
            self.want_extents();
        }
        if fields.flags & packet::BARRIER != 0 {
            let own = self.epochs.close();
            if let Some(peer) = self.peers.get_mut(i) {
                peer.barriers.push_back((fields.epoch, own));
            }
            self.name_came(i, &name, own);
            self.flushes.asked = self.flushes.asked.max(own);
            self.sync_if_due();
            self.confirm_stable();
        }
    }

    /// The stream tells a generation, or sites that miss it, that it did not tell before.
    fn learn(&mut self, i: usize, fields: &Fields) {
        let is_target = self.is_target_of(i);
        let Some(peer) = self.peers.get_mut(i) else { return };
        let before =
            peer.told.replace((fields.generation, fields.missing)).map_or(Mask(0), |(_, missing)| missing);
        let newly = Mask(fields.missing.0 & !before.0);
        self.mark_unstable(newly);
        if is_target {
            // The end of the resync tells the rest.
            return;
        }
        let fresh = Generation::from_bits(fields.generation);
        self.store.wanted.adopt(fresh, fields.missing);
        let caught_up: Vec<_> = self
            .peers
            .iter()
            .filter(|peer| !fields.missing.contains(peer.site.get()))
            .map(|peer| (peer.site, peer.slot))
            .collect();
        for (site, slot) in caught_up {
            self.store.wanted.finish_source(site);
            if let Some(map) = self.bitmaps.get_mut(slot) {
                map.clear(0..u64::MAX);
            }
        }
        (0..self.peers.len()).for_each(|i| self.restore_evicted(i));
        self.change(Then::Told);
        if let Some(peer) = self.peers.get_mut(i) {
            peer.told_in = self.store.version;
        }
    }

    /// Marks what is not known to be stable everywhere for some sites.
    pub(super) fn mark_unstable(&mut self, sites: Mask) {
        let stable = self.flushes.told;
        for peer in self.peers.iter_mut().filter(|peer| sites.contains(peer.site.get())) {
            let Some(map) = self.bitmaps.get_mut(peer.slot) else { continue };
            for chunks in self.epochs.unstable(stable) {
                peer.keep_bits(chunks.clone());
                map.set(chunks);
            }
        }
    }

    /// The primary has sent the number of its last epoch that is stable everywhere.
    fn hear_stable(&mut self, i: usize, epoch: u64) {
        let Some(peer) = self.peers.get_mut(i) else { return };
        let mut told = None;
        while let Some((_, own)) =
            peer.barriers.front().filter(|(theirs, _)| *theirs <= epoch.min(peer.confirmed))
        {
            told = Some(*own);
            peer.barriers.pop_front();
        }
        if let Some(own) = told {
            self.flushes.told = self.flushes.told.max(own);
            self.stability_changed();
        }
    }

    pub(super) fn follow_done(
        &mut self,
        id: u32,
        i: usize,
        session: u64,
        seq: u64,
        result: Result<Bytes, Failure>,
    ) {
        self.ops.remove(id);
        let is_present = self.peers.get(i).is_some_and(|peer| peer.session == session);
        match result {
            Ok(_) if is_present => {
                if let Some(peer) = self.peers.get_mut(i) {
                    peer.note_written(seq);
                    let written = peer.written[0];
                    self.batches_written(written);
                }
            }
            Ok(_) | Err(Failure::Shutdown) => {}
            Err(failure) => {
                if is_present {
                    self.send(
                        i,
                        PacketType::SD_DATA_ACK,
                        Fields { errcode: EIO, ..Fields::default() },
                        Bytes::new(),
                    );
                    self.lose(i, "a write of it failed here");
                }
                if failure != Failure::NoSpace {
                    self.local_disk_failed("a write failed");
                }
            }
        }
    }

    /// Confirms what is written since it was last confirmed.
    pub(super) fn confirm_written(&mut self) {
        for i in 0..self.peers.len() {
            let Some(peer) = self.peers.get_mut(i).filter(|peer| peer.written[0] > peer.written[1]) else {
                continue;
            };
            peer.written[1] = peer.written[0];
            let value = peer.written[0];
            self.send(i, PacketType::SD_DATA_ACK, Fields { value, ..Fields::default() }, Bytes::new());
        }
    }

    /// Confirms the epochs that are stable here.
    pub(super) fn confirm_stable(&mut self) {
        let local = self.flushes.local;
        for i in 0..self.peers.len() {
            self.write_down(i);
            // The generation of what is confirmed has to be durable, too.
            let durable = self.store.durable;
            let Some(peer) = self.peers.get_mut(i).filter(|peer| peer.told_in <= durable) else { continue };
            let stable =
                peer.barriers.iter().take_while(|(_, own)| *own <= local).last().map(|(theirs, _)| *theirs);
            let Some(epoch) = stable.filter(|epoch| *epoch > peer.confirmed) else { continue };
            peer.confirmed = epoch;
            peer.written[1] = peer.written[0];
            let fields = Fields { value: peer.written[0], epoch, flags: packet::STABLE, ..Fields::default() };
            self.send(i, PacketType::SD_DATA_ACK, fields, Bytes::new());
        }
    }

    /// Tells a site this one's role, and its count of writes: a disk that is rolled back is known by it.
    pub(super) fn send_state(&mut self, i: usize) {
        let block = &self.store.wanted;
        let note = StateNote {
            role: self.role,
            flags: block.flags,
            current: block.current,
            write_counter: block.write_counter,
        };
        self.send(i, PacketType::SC_STATE, Fields::default(), Bytes::from(note.encode()));
    }

    pub(super) fn state_came(&mut self, i: usize, payload: &[u8]) {
        let Some(site) = self.peers.get(i).map(|peer| peer.site) else { return };
        let Some(note) = StateNote::decode(payload) else { return };
        let known = self.store.wanted.slots.iter().find(|slot| slot.site == Some(site));
        if known.is_some_and(|slot| slot.stable < note.write_counter) {
            self.store.wanted.hear(site, note.write_counter);
            self.change(Then::Nothing);
        }
        if note.role == Role::Secondary {
            self.peer_left_role(i);
        }
    }

    /// The count goes up as long as there are writes: an older state of this disk is known by a lower one.
    pub(super) fn tick_count(&mut self) {
        let is_due = self.now.saturating_sub(self.counted) > COUNT_EVERY;
        if is_due && self.epochs.in_current() > 0 && self.store.wanted.flags.contains(DiskFlags::WRITING) {
            self.counted = self.now;
            self.store.wanted.begin_writes();
            self.change(Then::Counted);
        }
    }

    /// Follows a site from now on. What other followers have is the primary's business until it has gone.
    pub(super) fn follow(&mut self, i: usize) {
        for (n, peer) in self.peers.iter_mut().enumerate() {
            if n != i {
                peer.part = Part::Idle;
            }
        }
        if let Some(peer) = self.peers.get_mut(i) {
            self.follows = Some(peer.site);
            (peer.told, peer.confirmed) = (None, 0);
            peer.barriers.clear();
            peer.names.clear();
            peer.inbound.clear();
            let (site, is_equal): (SiteId, _) = (peer.site, peer.part == Part::Equal);
            self.note(Note::Joined(site));
            if is_equal && self.store.wanted.flags.contains(DiskFlags::PRIMARY) {
                // It answers from now on, at a far site even before anything comes here: this one was primary before it.
                self.store.wanted.flags.set(DiskFlags::PRIMARY, false);
                self.change(Then::Nothing);
            }
        }
    }
}
