//! The core's state of another site: the handshake, the session, its streams, and the operations under way with it.
//!
//! States and numbers only; what follows from them the other files of the core decide. Used by the core alone.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use super::far::Far;
use super::resync::Resync;
use crate::nbd::disk::format::Checkpoint;
use crate::nbd::mirror::{Decision, Facts, Generation, Statement};
use crate::wire::{Mask, SiteId};

/// The progress on the way to replication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// No session: not connected, or the handshake is under way or failed.
    Apart,
    /// Both ends agreed; what follows from it is being made durable.
    Preparing,
    /// Ready to receive; the other end is not yet.
    Ready,
    /// Both are ready.
    Joined,
}

/// The purpose of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The disks are equal.
    Equal,
    /// This site is the source of a resync.
    Source,
    /// This site is its target.
    Target,
    /// A third site is primary: nothing passes between the two.
    Idle,
}

/// Another site.
pub struct Peer {
    /// The site.
    pub site: SiteId,
    /// Its slot in the superblock, and the number of its bitmap.
    pub slot: usize,
    /// The daemon says that it is connected.
    pub linked: bool,
    /// This site's last record in the handshake, as sent.
    pub own: Option<(Facts, Vec<u8>)>,
    /// The other site's last record.
    pub theirs: Option<(Facts, Vec<u8>)>,
    /// Its last facts, of any handshake or of an answer.
    pub known: Option<Box<Facts>>,
    /// Its generation when the helper of a split brain was called last.
    pub helped: Option<Generation>,
    /// The consequence of both records.
    pub decision: Option<(Decision, Statement)>,
    /// When it was connected, or the last session ended.
    pub apart_since: Duration,
    /// No handshake before this time.
    pub not_before: Duration,
    /// The last session, as long as the program runs.
    pub last_session: u64,
    /// The present session; 0 without one.
    pub session: u64,
    /// Its progress.
    pub stage: Stage,
    /// Its purpose.
    pub part: Part,
    /// The other end is ready to receive.
    pub is_ready: bool,
    /// The begin of a resync into this disk is durable but for the mark on the disk, which waits for the source to be ready.
    pub awaits_source: bool,
    /// Numbers of the last packets sent, by class.
    pub sent: [u64; 2],
    /// Numbers of the last packets received, by class.
    pub received: [u64; 2],
    /// At a primary: packets that the site has not confirmed as written, with their operations.
    pub outstanding: VecDeque<(u64, u32)>,
    /// At a primary: the last of its own epochs that the site confirmed as stable.
    pub stable: u64,
    /// When it last confirmed something, or had nothing to confirm.
    pub progress: Duration,
    /// At a follower: data packets that are not written yet, or behind such a one.
    pub inbound: VecDeque<(u64, bool)>,
    /// The last data packet such that it and all before it are written; the last that was confirmed.
    pub written: [u64; 2],
    /// At a follower: the primary's epochs that were closed, with its own numbers for them.
    pub barriers: VecDeque<(u64, u64)>,
    /// At a follower: checkpoints, with the own epochs that have to be stable.
    pub names: VecDeque<(Checkpoint, u64)>,
    /// At a primary: the last checkpoint has not been sent in this session.
    pub is_name_due: bool,
    /// At a follower: the version of the superblock that has the last generation of the stream.
    pub told_in: u64,
    /// The last of the primary's epochs that was confirmed as stable.
    pub confirmed: u64,
    /// The generation, and the sites that miss it, that last came in the primary's stream.
    pub told: Option<(u64, Mask)>,
    /// The resync that is under way.
    pub resync: Option<Resync>,
    /// The writes on their way, if it is not waited for.
    pub far: Option<Box<Far>>,
    /// At a target: the last catch-up as one batch became too large for it.
    pub is_too_large: bool,
    /// Chunks of extents that left the activity log before their writes were stable everywhere: the epoch that has to be, and
    /// true if nothing else set the bit.
    pub evicted: BTreeMap<u64, (u64, bool)>,
}

impl Peer {
    /// A site of which nothing is known yet.
    pub fn new(site: SiteId, slot: usize) -> Self {
        Peer {
            site,
            slot,
            linked: false,
            own: None,
            theirs: None,
            known: None,
            helped: None,
            decision: None,
            apart_since: Duration::ZERO,
            not_before: Duration::ZERO,
            last_session: 0,
            session: 0,
            stage: Stage::Apart,
            part: Part::Idle,
            is_ready: false,
            awaits_source: false,
            sent: [0; 2],
            received: [0; 2],
            outstanding: VecDeque::new(),
            stable: 0,
            progress: Duration::ZERO,
            inbound: VecDeque::new(),
            written: [0; 2],
            barriers: VecDeque::new(),
            names: VecDeque::new(),
            is_name_due: true,
            told_in: 0,
            confirmed: 0,
            told: None,
            resync: None,
            far: None,
            is_too_large: false,
            evicted: BTreeMap::new(),
        }
    }

    /// Forgets the session and the handshake, and gives the operations that waited for it.
    pub fn reset(&mut self) -> VecDeque<(u64, u32)> {
        let outstanding = std::mem::take(&mut self.outstanding);
        let mut far = self.far.take();
        far.iter_mut().for_each(|far| far.end());
        *self = Peer {
            linked: self.linked,
            apart_since: self.apart_since,
            not_before: self.not_before,
            last_session: self.last_session,
            known: self.known.take(),
            helped: self.helped,
            far,
            is_too_large: self.is_too_large,
            ..Peer::new(self.site, self.slot)
        };
        outstanding
    }

    /// Returns true if writes of a primary go there.
    pub fn takes_writes(&self) -> bool {
        self.stage == Stage::Joined && self.part != Part::Idle
    }

    /// Returns true if bits mark each write that is sent there: it takes all of them as one batch.
    pub fn is_only_marked(&self) -> bool {
        self.resync.as_ref().is_some_and(|resync| resync.is_staged && !resync.is_end_told)
    }

    /// Returns true if it has to confirm that what it was sent is stable, or else bits mark it.
    pub fn confirms(&self) -> bool {
        self.takes_writes() && !self.is_only_marked()
    }

    /// Returns true if its disk is equal, but for what is under way.
    pub fn is_equal(&self) -> bool {
        self.takes_writes() && self.part == Part::Equal
    }

    /// Returns true if its disk is equal, and it has every write that was answered.
    pub fn has_all(&self) -> bool {
        self.is_equal() && self.far.is_none()
    }

    /// Chunks are marked for another reason than that an extent left.
    pub fn keep_bits(&mut self, chunks: Range<u64>) {
        self.evicted.range_mut(chunks).for_each(|(_, (_, is_only))| *is_only = false);
    }

    /// A data packet of the primary is written here.
    pub fn note_written(&mut self, seq: u64) {
        if let Ok(at) = self.inbound.binary_search_by_key(&seq, |(seq, _)| *seq) {
            if let Some((_, done)) = self.inbound.get_mut(at) {
                *done = true;
            }
        }
        while let Some((seq, true)) = self.inbound.front() {
            // A write that is kept for a batch counts as written before.
            self.written[0] = self.written[0].max(*seq);
            self.inbound.pop_front();
        }
    }
}
