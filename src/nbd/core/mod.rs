//! The state machine of a mirrored disk at one site: `(now, event) -> actions`, one for each resource.
//!
//! No files, sockets, clocks or threads; a payload is a handle that is passed on unread. Never answers a write before
//! what its answer promises holds, and never submits one whose extent a crash would forget. Called by the runner, one
//! event after the other, and by the simulator.
//!
//! ```text
//! request -> extents active? -> numbered, sent, written -> written at all sites -> answered
//!               no: record                overlapping ones one after the other     a site lost: generation first
//! Apart -> handshake -> Preparing (superblock, bitmap) -> Ready -> Joined -> Apart
//! ```

#![allow(
    clippy::arithmetic_side_effects,
    reason = "sizes and places are checked where they come in: see `packet`"
)]

mod activity;
mod apply;
mod catch_up;
mod checkpoint;
mod claim;
mod connect;
mod demotion;
mod epochs;
mod event;
mod far;
mod fence;
mod flush;
mod grow;
mod log;
mod loss;
mod mutation;
mod obstacle;
mod op;
mod order;
mod orders;
mod packet;
pub(crate) mod peer;
mod redo;
mod resync;
mod role;
mod size;
mod slab;
mod source;
mod state;
mod superblock;
mod target;
mod tune;
mod verify;
mod witness;
mod write;

#[cfg(test)]
#[path = "../../../tests/nbd_sim/mod.rs"]
mod sim;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use self::activity::Activity;
use self::epochs::Epochs;
use self::flush::Flushes;
use self::log::Log;
#[cfg(test)]
pub(crate) use self::mutation::Mutation;
use self::mutation::mutated;
#[cfg(test)]
use self::op::Work;
use self::op::{Op, Origin};
use self::order::Order;
use self::peer::Peer;
use self::slab::Slab;
use self::superblock::Store;
use super::disk::Bitmap;
use super::disk::format::{Batch, Checkpoint, DiskFlags, Superblock};
use super::mirror::ballot::Ballots;
use super::mirror::{Generation, Role, Rotate};
use super::server::Failure;
use crate::wire::{Class, Mask, PacketType, SiteId};

pub use self::event::{Action, Command, Config, Event, Note, Refusal, Request, RequestId, Ticket, Way};
pub use self::far::Lag;
pub use self::obstacle::Obstacle;
pub use self::packet::{PIECE, encode_header};
pub use self::peer::{Part, Stage};
pub use self::tune::Tuning;
pub use self::witness::WitnessState;

/// The content that was found on the metadata's device.
#[derive(Clone, Debug)]
pub struct Found {
    /// The superblock.
    pub superblock: Superblock,
    /// The extents that the activity log has, and the sequence number of its record.
    pub active: Vec<u32>,
    /// The record's number.
    pub record: u64,
    /// The bitmaps, by slot.
    pub bitmaps: Vec<Bitmap>,
    /// The whole batches of the ordered log.
    pub batches: Vec<Batch>,
}

/// A client's request, of which parts may be under way.
struct Pending {
    id: RequestId,
    left: u32,
    fua: bool,
    failed: Option<Failure>,
}

/// The state machine.
pub struct Core {
    config: Config,
    random: fastrand::Rng,
    now: Duration,
    out: Vec<Action>,
    peers: Vec<Peer>,
    role: Role,
    /// The primary whose writes come here.
    follows: Option<SiteId>,
    store: Store,
    bitmaps: Vec<Bitmap>,
    log: Log,
    activity: Activity,
    epochs: Epochs,
    order: Order,
    ops: Slab<Op>,
    pending: Slab<Pending>,
    flushes: Flushes,
    redo: redo::Redo,
    /// The last checkpoint, and the epoch that has to be stable here before it is written down.
    named: Option<(Checkpoint, u64)>,
    /// Client's writes that may not begin yet.
    held: VecDeque<u32>,
    /// Client's reads that wait for a majority.
    held_reads: Vec<u32>,
    /// Requests that are done, and may not be answered before a generation is durable wherever it has to be.
    gated: Vec<u32>,
    /// Sites that had the data and were lost: what is answered from now on belongs to a new generation.
    owed: Mask,
    claim: claim::Claim,
    /// The version of the superblock that says whether there is a majority, or that a resync from here has ended: before it
    /// is durable nothing is answered.
    quorum_in: u64,
    /// Sites that writes wait for, until they are back or a person says that they may go on.
    frozen: Mask,
    /// Sites for which the fencing handler is being called, as they were lost.
    fencing: Mask,
    /// Sites with which no resync goes on.
    paused: Mask,
    /// The site that was asked for its record, and when.
    asked: Option<(SiteId, Duration)>,
    /// When the count of writes went up last.
    counted: Duration,
    ballots: Ballots,
    /// The data disk takes reads and writes.
    is_local: bool,
    /// A former primary is gone, and what it sent is being settled.
    settling: Option<loss::Settling>,
    settle_asked: Option<loss::Settling>,
    is_leaving_asked: bool,
    /// The end of the role waits until a generation is durable.
    is_leave_held: bool,
    /// The last epoch that the stream said to be stable everywhere.
    said_stable: u64,
    /// The generation that a primary without a disk serves from other sites.
    elsewhere: Option<Generation>,
    role_change: role::Change,
    witness: witness::Witness,
    reads: Slab<resync::RemoteRead>,
    verify: Option<verify::Verify>,
    growth: Option<grow::Growth>,
    /// The primary whose size was taken, and until when no other site is met.
    grown_by: Option<(usize, Duration)>,
    /// Sites that want to know how large the disk here is.
    lookers: Mask,
    /// The size before the mirror grew, until the new part is copied: little differs behind it.
    grown_from: u64,
    /// The size that this site, a far one, takes with the resync under way; 0 if it is not larger.
    taking: u64,
    stopped: bool,
    #[cfg(test)]
    pub(crate) mutation: Option<Mutation>,
    /// Writes of this primary, in their order.
    #[cfg(test)]
    pub(crate) history: Vec<(u64, u64, Work)>,
}

impl Core {
    /// The state machine of a disk as it was found. Events come after this; actions are there at once.
    pub fn new(config: Config, found: Found, now: Duration) -> Self {
        let Found { superblock, active, record, mut bitmaps, batches } = found;
        bitmaps.resize_with(super::disk::format::SLOTS, || Bitmap::new(config.layout.chunks()));
        let crashed = superblock.flags.contains(DiskFlags::WRITING);
        let left = if crashed { active } else { Vec::new() };
        let mut core = Core {
            random: fastrand::Rng::with_seed(config.seed),
            now,
            out: Vec::new(),
            peers: Vec::new(),
            role: Role::Secondary,
            follows: None,
            store: Store::new(superblock),
            bitmaps,
            log: Log::new(record),
            activity: Activity::new(config.follow_max, &left, 1),
            epochs: Epochs::new(2),
            order: Order::default(),
            ops: Slab::default(),
            pending: Slab::default(),
            flushes: Flushes::default(),
            redo: redo::Redo::default(),
            named: None,
            held: VecDeque::new(),
            held_reads: Vec::new(),
            gated: Vec::new(),
            owed: Mask(0),
            claim: claim::Claim::Idle,
            quorum_in: 0,
            frozen: Mask(0),
            fencing: Mask(0),
            paused: Mask(0),
            asked: None,
            counted: now,
            ballots: Ballots::default(),
            is_local: true,
            settling: Some(loss::Settling::Start),
            settle_asked: None,
            is_leaving_asked: false,
            is_leave_held: false,
            said_stable: 0,
            elsewhere: None,
            role_change: role::Change::None,
            witness: witness::Witness::default(),
            reads: Slab::default(),
            verify: None,
            growth: None,
            grown_by: None,
            lookers: Mask(0),
            grown_from: u64::MAX,
            taking: 0,
            stopped: false,
            config,
            #[cfg(test)]
            mutation: None,
            #[cfg(test)]
            history: Vec::new(),
        };
        let own = Mask::of(core.config.site.get());
        let sites = core.config.peers.iter().fold(own, |all, site| all | Mask::of(site.get()));
        for site in core.store.wanted.retain(sites).ids() {
            if let Ok(site) = SiteId::try_from(u32::from(site)) {
                core.note(Note::Forgotten(site));
            }
        }
        for site in core.config.peers.clone() {
            if core.store.wanted.admit(site) {
                let slot = core.store.wanted.slot_of(site).unwrap_or(0);
                let mut peer = Peer::new(site, slot.into());
                let far = core.config.asynchronous;
                if far.contains(site.get()) || far.contains(core.config.site.get()) {
                    peer.far = Some(Box::default());
                }
                core.peers.push(peer);
            }
        }
        core.store.wanted.members = core.store.wanted.members | own;
        let grown = redo::size_in(&batches, core.store.wanted.log_void);
        core.store.wanted.agreed_size = core.store.wanted.agreed_size.max(grown);
        core.limit_bitmaps();
        for extent in left {
            let chunks = core.chunks_of_extent(extent);
            core.mark_all(chunks);
        }
        core.replay(batches);
        core.change(superblock::Then::Nothing);
        // Writes of an earlier program may still be in a cache: nothing counts as stable before a sync.
        core.settle_if_drained();
        core
    }

    /// Carries out an event; what follows from it is there at [`Core::drain`].
    pub fn handle(&mut self, now: Duration, event: Event) {
        self.now = now;
        match event {
            Event::Request(id, request) => self.request(id, request),
            Event::Done(ticket, result) => self.done(ticket, result),
            Event::Packet { class, header, payload } => self.packet(class, &header, payload),
            Event::Connected(sites) => self.connected(sites),
            Event::Tick => self.tick(),
            Event::Command(command) => self.command(command),
            Event::Fenced(site, status) => self.fenced(site, status),
            Event::Looked(size) => self.looked(size),
        }
    }

    /// Gives all actions that are to be carried out, in their order. To be called when all events that are there are
    /// handled: confirmations to other sites are put together until then.
    pub fn drain(&mut self, into: &mut Vec<Action>) {
        self.lose_latecomers();
        self.confirm_written();
        into.append(&mut self.out);
    }

    fn peer_of(&self, site: SiteId) -> Option<usize> {
        self.peers.iter().position(|peer| peer.site == site)
    }

    fn note(&mut self, note: Note) {
        self.out.push(Action::Note(note));
    }

    fn chunks(&self, start: u64, end: u64) -> std::ops::Range<u64> {
        let shift = self.config.layout.chunk_shift;
        start >> shift..(end.saturating_sub(1) >> shift) + 1
    }

    fn chunks_of_extent(&self, extent: u32) -> std::ops::Range<u64> {
        let shift = super::disk::format::EXTENT_SHIFT;
        let end = (u64::from(extent) + 1) << shift;
        self.chunks(u64::from(extent) << shift, end.min(self.size()).max(1))
    }

    /// Marks chunks as different at every other site.
    fn mark_all(&mut self, chunks: std::ops::Range<u64>) {
        for peer in &mut self.peers {
            peer.keep_bits(chunks.clone());
            if let Some(map) = self.bitmaps.get_mut(peer.slot) {
                map.set(chunks.clone());
            }
        }
    }

    fn is_primary(&self) -> bool {
        self.role == Role::Primary
    }

    /// The sites that do not have the data of the present generation.
    fn missing(&self) -> Mask {
        let absent = |peer: &&Peer| !peer.is_equal();
        let mask =
            self.peers.iter().filter(absent).fold(Mask(0), |mask, peer| mask | Mask::of(peer.site.get()));
        if self.is_local { mask } else { mask | Mask::of(self.config.site.get()) }
    }

    fn tick(&mut self) {
        for i in 0..self.peers.len() {
            let slow = self.config.tuning.slow;
            let Some(peer) = self.peers.get_mut(i) else { continue };
            let is_idle = peer.outstanding.is_empty() && peer.far.as_ref().is_none_or(|far| far.is_idle());
            if is_idle && (peer.stable >= self.flushes.asked || peer.is_only_marked()) {
                peer.progress = self.now;
            }
            let late = self.now.saturating_sub(peer.progress) > slow;
            let is_joined = peer.stage == Stage::Joined;
            if late && peer.session != 0 && (!is_joined || self.role == Role::Primary) {
                peer.not_before = self.now + slow;
                self.lose(i, "it confirmed nothing for too long");
            } else if peer.linked && peer.session == 0 && self.now >= peer.not_before {
                self.greet_if_alone(i);
            }
        }
        self.tick_role();
        self.tick_witness();
        self.tick_orders();
        self.tick_count();
        self.tick_resync();
        self.tick_log();
        self.tick_far();
        self.tick_growth();
    }

    /// Sends a packet of the session; nothing if there is none. Its number; 0 if that is not known yet.
    fn send(&mut self, i: usize, kind: PacketType, fields: packet::Fields, payload: Bytes) -> u64 {
        let is_far = self.peers.get(i).is_some_and(|peer| peer.far.is_some() && peer.session != 0);
        if is_far && far::is_in_stream(kind) {
            self.send_in_turn(i, kind, fields, payload);
            return 0;
        }
        self.transmit(i, kind, fields, payload)
    }

    fn transmit(&mut self, i: usize, kind: PacketType, mut fields: packet::Fields, payload: Bytes) -> u64 {
        let Some(peer) = self.peers.get_mut(i) else { return 0 };
        let class = kind.relayed().map_or(0, |(class, _)| class.index());
        let Some(last) = peer.sent.get_mut(class) else { return 0 };
        if peer.session == 0 && !matches!(kind, PacketType::SC_HS | PacketType::SC_HS_ACK) {
            return 0;
        }
        // A record may be asked for at any time, and has no place in the streams.
        if peer.session != 0 && !matches!(kind, PacketType::SC_HS | PacketType::SC_HS_ACK) {
            *last += 1;
            (fields.nonce, fields.seq) = (peer.session, *last);
        }
        let (from, to) = (self.config.site, peer.site);
        let header = packet::encode(kind, self.config.resource, from, to, &fields, payload.len());
        self.out.push(Action::Send(to, header, payload));
        fields.seq
    }

    fn packet(&mut self, class: Class, header: &[u8; crate::wire::HEADER_LEN], payload: Bytes) {
        let size = self.size_in_sessions();
        let Some((kind, own, from, fields)) = packet::decode(header, self.config.resource, size) else {
            return;
        };
        if Some(from) == self.config.witness && kind == PacketType::SC_PRI_PRO_ACK && !self.stopped {
            return self.witness_answers(&payload);
        }
        let Some(i) = self.peer_of(from).filter(|_| own == class && !self.stopped) else { return };
        match kind {
            PacketType::SC_HS => return self.hello(i, &fields, &payload),
            PacketType::SC_HS_ACK => return self.statement(i, &payload),
            _ => {}
        }
        let accept_gaps = mutated!(self, AcceptGaps);
        let Some(peer) = self.peers.get_mut(i) else { return };
        // The daemon may deliver what an earlier session queued.
        if peer.session == 0 || (fields.nonce != peer.session && !accept_gaps) {
            return;
        }
        let Some(last) = peer.received.get_mut(class.index()) else { return };
        if fields.seq != *last + 1 && !accept_gaps {
            return self.lose(i, "a packet is missing in its stream");
        }
        *last = fields.seq;
        if let Some(resync) = peer.resync.as_mut().filter(|_| kind != PacketType::SD_DATA) {
            resync.moved = self.now;
        }
        match kind {
            PacketType::SC_STARTREP => self.peer_is_ready(i),
            PacketType::SC_STATE => self.state_came(i, &payload),
            PacketType::SC_PRI_PRO => self.peer_promotes(i, &payload),
            PacketType::SC_PRI_PRO_ACK => self.vote_came(i, &payload),
            PacketType::SC_DEVDOWN => self.peer_leaves(i, &payload),
            PacketType::SC_DEVDOWN_ACK => self.leave_heard(i, &payload),
            _ if peer.stage != Stage::Joined && peer.stage != Stage::Ready => {}
            PacketType::SD_DATA | PacketType::SD_FSYNC_MD5 => self.stream_came(i, kind, fields, payload),
            PacketType::SD_DATA_ACK => self.data_ack(i, &fields),
            PacketType::SD_DBM_REQ => self.bits_of_target(i, &fields, &payload),
            PacketType::SD_DBM_REP => self.bits_of_source(i, &fields, &payload),
            PacketType::SD_DSYNC_REQ => self.resync_request(i, &fields),
            PacketType::SD_RSDATA => self.resync_data(i, &fields, payload),
            PacketType::SD_RSDATA_ACK => self.resync_ack(i, &fields, &payload),
            PacketType::SD_FSYNC_DATA => self.differences(i, &fields, &payload),
            _ => {}
        }
    }

    fn done(&mut self, ticket: Ticket, result: Result<Bytes, Failure>) {
        match ticket.kind() {
            op::TICKET_OP => self.op_done(ticket.number(), result),
            op::TICKET_SYNC => self.synced(result),
            op::TICKET_SUPERBLOCK => self.superblock_stored(result),
            op::TICKET_LOG => self.log_stored(result),
            op::TICKET_REDO => self.redo_stored(&result),
            op::TICKET_READ => self.client_read_done(ticket.number(), result),
            _ => {}
        }
    }

    /// A fresh generation.
    fn draw(&mut self) -> Generation {
        Generation::draw(self.random.u64(..), true)
    }
}
