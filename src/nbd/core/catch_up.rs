//! The catch-up of a far site as one batch: what bits mark is copied into its ordered log, and carried out as a whole.
//!
//! ```text
//! source                                       target, a far site with a consistent copy
//!   |<-- bits, STAGED ---------------------------|  nothing on its disk changes, nor in its superblock
//!   |--- bits ---------------------------------->|
//!   |<-- request of a range ---------------------|
//!   |--- content, and live writes, in turn ----->|  kept in memory in the order of the stream; writes are confirmed as written
//!   |<-- request of the end, STAGED -------------|  all that was marked is here
//!   |--- barrier, END -------------------------->|  one batch of all that came; durable; carried out; synced; the source's
//!   |<-- acknowledgement of the end -------------|  generation is durable
//! ```
//!
//! Each range is read at the source in the place of the stream in which it is sent, and later writes of it come behind: so
//! what came up to the end, in its order, makes of any content that differs in marked chunks alone the source's at the end.
//! Until the batch is durable the copy is what it was before, a crash or a loss leaves it there, and the next connect begins
//! anew. From then on it is the source's at the end: a start carries the batch out again. Writes behind the end are in the
//! batches of the normal way. The superblock follows the batch: if it is older, the copy is only newer than it says, and the
//! source's bits still mark all of it.
//!
//! So to the source such a target is, up to the end, like one that is away: it marks each write for it, though it sends it,
//! and waits for no confirmation that one is stable. At the end it closes the epoch: bits cover what came before, and what
//! comes after counts as everywhere. The bits go with the acknowledgement of the end, all at once.
//!
//! A catch-up takes this way if all that is marked fits into one batch ([`Core::catch_up_room`]), and both programs know it.
//! If it does not, the disks are compared first, for a crash marks whole extents: digests go to the source, and if what differs
//! fits, that alone is asked for. If writes make it larger than that, the target ends the session and takes the other way, in
//! which its copy is inconsistent until the end. Must never let any of it reach the disk before the batch is durable. Called by
//! the core.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use super::event::{Action, Note, Ticket, Way};
use super::op::{Op, Origin, TICKET_REDO, Work};
use super::packet::{self, Fields};
use super::peer::Part;
use super::redo::write_of;
use super::resync::Staged;
use super::{Core, mutated};
use crate::nbd::disk::format::{Batch, DiskFlags, LogWrite, tag_of};
use crate::nbd::mirror::facts::KNOWS_CATCH_UP;
use crate::nbd::mirror::{Facts, Outcome, Reach};
use crate::nbd::server::Failure;
use crate::wire::{PacketType, SiteId};

/// Most bytes of one catch-up, which is in memory until it is in the log.
const BYTES_MAX: u64 = 256 << 20;

/// Most packets of one: with their heads a quarter of the bytes, if each is of 4 KiB.
const PACKETS_MAX: usize = 1 << 16;

/// Most bytes that are compared before it is known whether the catch-up fits: the activity logs of both ends, and as much again
/// of what was written.
const COMPARED_MAX: u64 = 16 << 30;

/// A target that carries out what came says so often that it goes on.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// Returns true if the packet writes.
fn is_write(kind: PacketType, fields: &Fields) -> bool {
    fields.len > 0 && matches!(kind, PacketType::SD_DATA | PacketType::SD_RSDATA)
}

impl Core {
    /// Returns the bytes of writes that one batch takes here; 0 without an ordered log.
    pub(super) fn catch_up_room(&self) -> u64 {
        match self.config.layout.log_half() {
            0 | 1 => 0,
            _ => Batch::room(&self.config.layout).min(BYTES_MAX),
        }
    }

    /// Returns the bytes that a far site's ordered log takes at once, as the site said last; `None` if it is no far one, or never
    /// said so.
    pub fn room_of(&self, site: SiteId) -> Option<u64> {
        let is_far = self.config.asynchronous.contains(site.get());
        let known = self.peers.get(self.peer_of(site)?)?.known.as_ref()?;
        let knows = known.abilities & KNOWS_CATCH_UP != 0 && known.log_room > 0;
        (is_far && knows).then_some(known.log_room)
    }

    /// Returns the bytes that bits may still mark, at a primary, for a catch-up of this site as one batch; `None` where
    /// [`Core::room_of`] is.
    pub fn catch_up_room_left(&self, site: SiteId) -> Option<u64> {
        let room = self.room_of(site).filter(|_| self.is_primary())?;
        Some(room.saturating_sub(self.out_of_sync(site)))
    }

    /// Returns true if a catch-up as one batch is under way with a site.
    pub fn catches_up_at_once(&self, site: SiteId) -> bool {
        let peer = self.peer_of(site).and_then(|i| self.peers.get(i));
        peer.and_then(|peer| peer.resync.as_ref())
            .is_some_and(|resync| resync.is_staged || resync.staged.is_some())
    }

    /// Returns the bytes of a resync that are still to be sent.
    pub fn left_to_copy(&self, site: SiteId) -> u64 {
        let peer = self.peer_of(site).and_then(|i| self.peers.get(i));
        let copied = peer.and_then(|peer| peer.resync.as_ref()).map_or(0, |resync| resync.copied);
        self.out_of_sync(site).saturating_sub(copied)
    }

    fn way_of(&self, source: &Facts, bytes: u64) -> Way {
        // Three sites without a primary may each be copied to by one and then by the next, and what is broken off begins anew.
        let new = self.size_in_sessions() - self.size();
        let may_compare = self.peers.len() == 1 || source.is_primary();
        match () {
            () if bytes <= self.catch_up_room() => Way::AtOnce,
            () if bytes <= COMPARED_MAX + new && may_compare => Way::Compared,
            () => Way::InPieces,
        }
    }

    /// Target: chooses the way of the resync that is about to begin.
    pub(super) fn choose_way(&mut self, i: usize) {
        let (room, own) = (self.catch_up_room(), self.config.site);
        let flags = self.store.wanted.flags;
        let Some(was_too_large) = self.peers.get_mut(i).map(|peer| std::mem::take(&mut peer.is_too_large))
        else {
            return;
        };
        let Some(peer) = self.peers.get(i) else { return };
        let (Some((decision, _)), Some((mine, _)), Some((theirs, _))) =
            (&peer.decision, &peer.own, &peer.theirs)
        else {
            return;
        };
        let is_marked = matches!(decision.outcome, Outcome::Sync { reach: Reach::Bitmap { .. }, .. });
        let is_good = flags.contains(DiskFlags::CONSISTENT)
            && flags.without(DiskFlags::FAILED | DiskFlags::PRIMARY | DiskFlags::DISCARD) == flags
            && mine.current.has_data();
        let is_far = self.config.asynchronous.contains(own.get());
        let knows = |theirs: &Facts| theirs.abilities & KNOWS_CATCH_UP != 0;
        if !is_far
            || !is_good
            || !is_marked
            || decision.row.is_given_up()
            || room == 0
            || self.grown_from != u64::MAX
        {
            return;
        }
        // After a catch-up that did not end both mark the same.
        let own_marks = mine.out_of_sync(peer.site);
        let bytes = decision.bytes(mine, theirs).saturating_sub(own_marks).max(own_marks);
        let way = match knows(theirs) && !was_too_large {
            true => self.way_of(theirs, bytes),
            false => Way::InPieces,
        };
        let site = peer.site;
        if let Some(resync) =
            self.peers.get_mut(i).and_then(|peer| peer.resync.as_mut()).filter(|_| way != Way::InPieces)
        {
            resync.staged = Some(Staged { compares: way == Way::Compared, ..Staged::default() });
        }
        if bytes > 0 {
            self.note(Note::CatchUp { site, bytes, room, way });
        }
    }

    /// Target: all that may differ is marked. Returns true if that is too much: the session has ended.
    pub(super) fn is_marked_too_large(&mut self, i: usize) -> bool {
        let Some(site) = self.peers.get(i).map(|peer| peer.site).filter(|_| self.is_staging(i)) else {
            return false;
        };
        let theirs = self.peers.get(i).and_then(|peer| peer.theirs.as_ref());
        let Some(way) = theirs.map(|(theirs, _)| self.way_of(theirs, self.out_of_sync(site))) else {
            return false;
        };
        let resync = self.peers.get_mut(i).and_then(|peer| peer.resync.as_mut());
        if let Some(staged) = resync.and_then(|resync| resync.staged.as_mut()) {
            staged.compares |= way == Way::Compared;
        }
        let is_too_large = way == Way::InPieces;
        if is_too_large {
            self.end_as_too_large(i);
        }
        is_too_large
    }

    /// Target: these ranges of a piece differ. They are asked for when all is compared.
    pub(super) fn stage_differences(&mut self, i: usize, (start, end): (u64, u64), runs: Vec<Range<u64>>) {
        let room = self.catch_up_room();
        let Some(resync) = self.peers.get_mut(i).and_then(|peer| peer.resync.as_mut()) else { return };
        let Some(at) = resync.units.iter().position(|unit| (unit.start, unit.end) == (start, end)) else {
            return;
        };
        resync.units.swap_remove(at);
        let Some(staged) = resync.staged.as_mut() else { return };
        staged.differing += runs.iter().map(|run| run.end - run.start).sum::<u64>();
        staged.wanted.extend(runs);
        match staged.differing > room {
            true => self.end_as_too_large(i),
            false => self.ask(i),
        }
    }

    /// Target: nothing is left to ask for by bits. Asks for what was found different, and at last for the end.
    pub(super) fn ask_staged(&mut self, i: usize) {
        let now = self.now;
        while let Some(resync) = self.peers.get_mut(i).and_then(|peer| peer.resync.as_mut()) {
            let is_idle = resync.units.is_empty();
            let Some(staged) = resync.staged.as_mut().filter(|staged| staged.is_compared || is_idle) else {
                return;
            };
            staged.is_compared = true;
            let Some(piece) = staged.wanted.front().cloned() else {
                // The bits stay until all of it is carried out.
                if is_idle {
                    resync.is_end_asked = true;
                    let fields = Fields { flags: packet::END | packet::STAGED, ..Fields::default() };
                    self.send(i, PacketType::SD_DSYNC_REQ, fields, Bytes::new());
                }
                return;
            };
            if !resync.has_room(now, piece.end - piece.start) {
                return;
            }
            resync.take_staged(&piece);
            self.want(i, piece.start, piece.end);
        }
    }

    /// The next session takes the other way.
    fn end_as_too_large(&mut self, i: usize) {
        if let Some(peer) = self.peers.get_mut(i) {
            peer.is_too_large = true;
        }
        self.lose(i, "the catch-up is more than the ordered log here takes at once");
    }

    /// Source: tells people which way the target has chosen.
    pub(super) fn note_way(&mut self, i: usize, is_staged: bool) {
        let Some(peer) = self.peers.get(i).filter(|peer| peer.part == Part::Source) else { return };
        let is_usable = peer.theirs.as_ref().is_some_and(|(theirs, _)| theirs.is_usable());
        let (site, bytes) = (peer.site, self.out_of_sync(peer.site));
        if let Some(room) = self.room_of(site).filter(|_| is_usable && bytes > 0) {
            let way = match is_staged {
                true if bytes > room => Way::Compared,
                true => Way::AtOnce,
                false => Way::InPieces,
            };
            self.note(Note::CatchUp { site, bytes, room, way });
        }
    }

    /// Source: the target takes all of it as one batch. From here on bits mark what it is sent.
    pub(super) fn stage_begins(&mut self, i: usize) {
        let Some(peer) = self.peers.get_mut(i).filter(|peer| peer.far.is_some() && peer.part == Part::Source)
        else {
            return;
        };
        peer.keep_bits(0..u64::MAX);
        let (slot, stable, takes_writes) = (peer.slot, peer.stable, peer.takes_writes());
        let Some(resync) = peer.resync.as_mut() else { return };
        resync.is_staged = true;
        if let Some(map) = self.bitmaps.get_mut(slot).filter(|_| takes_writes) {
            self.epochs.unstable(stable).for_each(|chunks| _ = map.set(chunks));
        }
        self.stability_changed();
    }

    /// Source: marks a write that is sent to a target that takes all as one batch.
    pub(super) fn mark_if_staged(&mut self, i: usize, chunks: Range<u64>) {
        let Some(peer) = self.peers.get_mut(i).filter(|peer| peer.is_only_marked()) else { return };
        if mutated!(self, CatchUpUnmarked) {
            return;
        }
        peer.keep_bits(chunks.clone());
        if let Some(map) = self.bitmaps.get_mut(peer.slot) {
            map.set(chunks);
        }
    }

    /// Source: bits cover what was sent up to here, and what follows counts as what is sent to a site in sync.
    pub(super) fn stage_ends(&mut self, i: usize) {
        if self.is_primary() {
            self.barrier();
        }
        let closed = self.epochs.current() - 1;
        if let Some(peer) = self.peers.get_mut(i) {
            peer.stable = closed;
        }
    }

    /// Returns true if what comes from this peer is kept for the batch.
    pub(super) fn is_staging(&self, i: usize) -> bool {
        let resync = self.peers.get(i).and_then(|peer| peer.resync.as_ref());
        let staged = resync.and_then(|resync| resync.staged.as_ref());
        staged.is_some_and(|staged| staged.batch.is_none())
    }

    /// Target: keeps a packet of the stream.
    pub(super) fn stage(&mut self, i: usize, kind: PacketType, fields: Fields, payload: Bytes) {
        let room = self.catch_up_room();
        let is_data = kind == PacketType::SD_DATA;
        let is_primary = self.peers.get(i).is_some_and(|peer| self.follows == Some(peer.site));
        if is_data && !is_primary {
            return self.lose(i, "it writes and is not the primary");
        }
        let now = self.now;
        let Some(peer) = self.peers.get_mut(i) else { return };
        let Some(resync) = peer.resync.as_mut() else { return };
        let Some(staged) = resync.staged.as_mut() else { return };
        if is_write(kind, &fields) {
            let is_zero = is_data && fields.flags & (packet::ZEROES | packet::TRIM) != 0;
            if !is_zero && payload.len() as u64 != u64::from(fields.len) {
                return self.lose(i, "a write of a wrong length");
            }
            staged.bytes += write_of(&fields, &payload).size();
            match is_data {
                true => resync.busy = now,
                false => resync.copied += u64::from(fields.len),
            }
        }
        // A part of a larger buffer would keep all of it.
        staged.packets.push((kind, fields, Bytes::copy_from_slice(&payload)));
        if staged.bytes + LogWrite::Size(0).size() > room || staged.packets.len() > PACKETS_MAX {
            return self.end_as_too_large(i);
        }
        match is_data {
            true => peer.written[0] = fields.seq,
            false => {
                let (start, end) = (fields.offset, fields.offset + u64::from(fields.len));
                resync.units.retain(|unit| (unit.start, unit.end) != (start, end));
                self.ask(i);
            }
        }
    }

    /// Target: all is here. Writes the batch.
    pub(super) fn end_staged(&mut self, i: usize, facts: Box<Facts>) {
        let number = self.redo.next_number();
        let Some(resync) = self.peers.get_mut(i).and_then(|peer| peer.resync.as_mut()) else { return };
        resync.ending = Some((facts, u64::MAX));
        let Some(staged) = resync.staged.as_mut() else { return };
        let packets = staged.packets.iter().filter(|(kind, fields, _)| is_write(*kind, fields));
        let mut writes: Vec<_> = packets.map(|(_, fields, payload)| write_of(fields, payload)).collect();
        if self.taking > 0 {
            writes.push(LogWrite::Size(self.taking));
        }
        if writes.is_empty() || mutated!(self, CatchUpUnlogged) {
            staged.batch = Some(0);
            return self.carry_out(i);
        }
        staged.batch = Some(number);
        let batch = Batch { number, writes };
        let blocks = batch.encode(&self.config.layout, tag_of(&self.config.device));
        self.redo.write_alone(number);
        self.out.push(Action::Store(Ticket::new(TICKET_REDO, 0), blocks));
    }

    /// Target: a batch is durable. Returns true if it is that of a catch-up whose session goes on: then it is carried out.
    pub(super) fn is_catch_up_stored(&mut self, number: u64) -> bool {
        let is_of = |peer: &super::Peer| {
            let staged = peer.resync.as_ref().and_then(|resync| resync.staged.as_ref());
            staged.is_some_and(|staged| staged.batch == Some(number))
        };
        let Some(i) = self.peers.iter().position(is_of) else { return false };
        self.redo.hold(number);
        self.carry_out(i);
        self.step_redo(i);
        true
    }

    fn carry_out(&mut self, i: usize) {
        self.take_larger();
        let Some(peer) = self.peers.get_mut(i) else { return };
        let session = peer.session;
        let staged = peer.resync.as_mut().and_then(|resync| resync.staged.as_mut());
        for (kind, fields, payload) in
            staged.map(|staged| std::mem::take(&mut staged.packets)).unwrap_or_default()
        {
            match kind {
                PacketType::SD_DATA => self.data(i, &fields, payload),
                _ => self.write_content(i, session, &fields, payload),
            }
        }
        let epoch = self.epochs.close();
        self.flushes.asked = self.flushes.asked.max(epoch);
        let resync = self.resync_of(i, session);
        if let Some((_, needed)) = resync.and_then(|resync| resync.ending.as_mut()) {
            *needed = epoch;
        }
        self.sync_if_due();
        self.finish_targets();
    }

    fn write_content(&mut self, i: usize, session: u64, fields: &Fields, payload: Bytes) {
        let end = fields.offset + u64::from(fields.len);
        let mut op = Op::new(Origin::Resync(i, session), fields.offset, end, Work::Write(payload));
        op.epoch = self.epochs.begin(self.chunks(fields.offset, end));
        let id = self.ops.insert(op);
        self.enqueue(id);
        self.unblock(id);
    }

    /// A write of the batch failed: the disk has a part of it.
    pub(super) fn carry_out_failed(&mut self, failure: Failure) {
        if failure != Failure::Shutdown {
            self.local_disk_failed("a write of the ordered log failed");
        }
    }

    /// Target: says that it goes on while it carries out.
    pub(super) fn tick_catch_up(&mut self, i: usize) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(i) else { return };
        let value = peer.written[0];
        let Some(resync) = peer.resync.as_mut().filter(|resync| resync.ending.is_some()) else { return };
        let is_due = now.saturating_sub(resync.moved) > SIGN_OF_LIFE;
        if resync.staged.is_some() && is_due {
            resync.moved = now;
            self.send(i, PacketType::SD_DATA_ACK, Fields { value, ..Fields::default() }, Bytes::new());
        }
    }
}
