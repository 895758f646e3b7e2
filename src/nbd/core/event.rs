//! The core's events and actions.
//!
//! Plain values: no sockets, files or clocks. The runner reports each event once and carries out each action once; what
//! it reports about an action bears the action's ticket. Used by the runner and by the simulator.

use bytes::Bytes;

use super::obstacle::Obstacle;
use super::tune::Tuning;
use crate::nbd::disk::format::{Block, Checkpoint, Layout};
use crate::nbd::mirror::promotion::{Fencing, Objection};
use crate::nbd::server::Failure;
use crate::wire::{Class, HEADER_LEN, Mask, ResourceId, SiteId};

/// The way in which a far site gets what is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As one batch.
    AtOnce,
    /// The same, if what differs, by a comparison, fits into one.
    Compared,
    /// As any other site: the copy is inconsistent until the end.
    InPieces,
}

/// Which action a completion belongs to; opaque to the runner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A client's request, by a number that the runner gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// The request of a client. Ranges are in bytes, not empty, and lie inside the disk.
#[derive(Clone, Debug)]
pub enum Request {
    /// Read.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Write.
    Write {
        /// First byte.
        offset: u64,
        /// The bytes to write.
        data: Bytes,
        /// Stable at every connected site before it is answered.
        fua: bool,
    },
    /// The range reads as zeroes afterwards.
    Zeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
        /// Stable at every connected site before it is answered.
        fua: bool,
        /// No space needs to be allocated for it.
        trim: bool,
    },
    /// Make stable what was answered.
    Flush,
}

/// The request of a person, or of a cluster manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Become primary; sites in `fenced` are known to be unable to write.
    Promote {
        /// Even if something may be lost by it.
        force: bool,
        /// Sites that a fencing handler dealt with.
        fenced: Mask,
    },
    /// Leave the role of the primary, in order.
    Demote,
    /// Give up this site's changes at the next connect.
    Discard,
    /// Go on without the sites that are missing, where a loss or a fencing handler that failed froze the disk.
    Resume,
    /// Stop resyncs with these sites, or let them go on; a restart of the program lets them go on, too.
    PauseResync {
        /// The sites.
        sites: Mask,
        /// True: stop.
        paused: bool,
    },
    /// Copy from the primary to the other one of this site and that one, which are in sync: one of the two is primary.
    Resync {
        /// The other site.
        site: SiteId,
        /// Everything, compared by digest; false: what bits mark, as after [`Command::Verify`].
        full: bool,
    },
    /// Ask a site for its record, for [`super::Core::plan`], without a handshake.
    Ask {
        /// The site.
        site: SiteId,
    },
    /// Leave the mirror in order, before the program stops: the primary that goes on hears that this disk will be old. Of no
    /// use to a primary, which demotes itself first.
    Leave,
    /// Name this point of the stream, at a primary.
    Checkpoint(Checkpoint),
    /// Compare this primary's disk with a site's while both are in use.
    Verify {
        /// The site.
        site: SiteId,
    },
    /// Mirror as much as the smallest disk has by now; [`Event::Looked`] of the disk here comes first.
    Grow,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A client's request.
    Request(RequestId, Request),
    /// An action with a ticket is done. Reads give their bytes, everything else nothing.
    Done(Ticket, Result<Bytes, Failure>),
    /// A packet from a site came whole.
    Packet {
        /// The link it came on.
        class: Class,
        /// Its header.
        header: Box<[u8; HEADER_LEN]>,
        /// The state after it.
        payload: Bytes,
    },
    /// The daemon has sent the connected sites; may come again without a change.
    Connected(Mask),
    /// Time has passed: at least ten times a second.
    Tick,
    /// A command; the answer is [`Action::Answer`].
    Command(Command),
    /// The fencing handler ended for a site, with this exit status; any number that is none if it could not be run or did
    /// not end in time.
    Fenced(SiteId, i32),
    /// The metadata covers this many bytes of the data disk, which may have grown.
    Looked(u64),
}

/// Something to be done. Those without a ticket are not reported about.
#[derive(Clone, Debug)]
pub enum Action {
    /// Write to the data disk.
    Write(Ticket, u64, Bytes),
    /// Write zeroes to the data disk, from this byte on, this many; a hole will do if the last is true.
    Zero(Ticket, u64, u64, bool),
    /// Read from the data disk, from this byte on, this many.
    Read(Ticket, u64, u64),
    /// Sync the data disk: what was reported as written before this is stable when it is done.
    Sync(Ticket),
    /// Write these blocks of the metadata, in any order, then sync them.
    Store(Ticket, Vec<(u64, Box<Block>)>),
    /// Send a packet to a site, behind those sent to it before on the same link.
    Send(SiteId, Box<[u8; HEADER_LEN]>, Bytes),
    /// Answer a client's request.
    Reply(RequestId, Result<Bytes, Failure>),
    /// Answer the command.
    Answer(Result<(), Refusal>),
    /// Serve the disk to clients, or stop it.
    Serve(bool),
    /// Call the fencing handler for a site; [`Event::Fenced`] has to follow. Only if [`Tuning::can_fence`].
    Fence(SiteId),
    /// Cover all of the data disk with metadata, if it has grown; [`Event::Looked`] has to follow.
    Look,
    /// Call the program of a split brain with a site: the changes here are to go, and this site is primary.
    CallHelper(SiteId),
    /// Tell people.
    Note(Note),
}

/// The reason for which a command is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The objections to this site as primary.
    Objections(Vec<Objection>),
    /// The fencing handler did not exclude this site.
    Fencing(SiteId, Fencing),
    /// These sites are not connected, or do not answer.
    Missing(Mask),
    /// The disk here is half-synced, failed or was never filled.
    NotUsable,
    /// The other command under way comes first.
    Busy,
    /// It does not fit the present role.
    Role,
    /// No such site, or it is not in sync.
    Site,
    /// Writes wait for a majority of the sites.
    Majority,
    /// The mirror does not grow.
    Growth(Obstacle),
    /// No site has a copy that may be behind.
    NoneFar,
    /// Too many checkpoints are on their way to this site.
    Crowded(SiteId),
}

/// Something that people should know.
#[derive(Clone, Debug, PartialEq)]
pub enum Note {
    /// The decision of a handshake, in words.
    Decision(SiteId, String),
    /// A handshake led to nothing, in words.
    Refused(SiteId, String),
    /// The mirror at a site is in use.
    Joined(SiteId),
    /// It is not any more, and why.
    Lost(SiteId, &'static str),
    /// A resync ended: both disks are equal.
    Resynced(SiteId),
    /// The data disk, or the metadata's, failed, and is out until it is resynced.
    DiskFailed(&'static str),
    /// A site, this one or a far one, has all that was written before a checkpoint on stable storage.
    Reached(SiteId, Checkpoint),
    /// A catch-up of a far site, this or the other one, begins.
    CatchUp {
        /// The other site.
        site: SiteId,
        /// Bytes that may have to be copied.
        bytes: u64,
        /// Bytes that the far site's ordered log takes at once.
        room: u64,
        /// The way that the far site has chosen.
        way: Way,
    },
    /// A verify ended: chunks compared, and chunks that differ.
    Verified(SiteId, u64, u64),
    /// A site is no part of the mirror any more: it is not configured.
    Forgotten(SiteId),
    /// Writes wait, and why; [`Note::Thawed`] ends it.
    Frozen(&'static str),
    /// Writes go on.
    Thawed,
    /// The result of the fencing handler for a site.
    Fenced(SiteId, Fencing),
    /// This many bytes are mirrored from now on.
    Grown(u64),
}

/// The settings of the core.
#[derive(Clone, Debug)]
pub struct Config {
    /// This site.
    pub site: SiteId,
    /// The resource.
    pub resource: ResourceId,
    /// The random name of the metadata's device.
    pub device: [u8; 16],
    /// The places of the metadata.
    pub layout: Layout,
    /// The other sites that have a mirror.
    pub peers: Vec<SiteId>,
    /// The sites whose copy may be behind: a write does not wait for any other site at them, nor for them anywhere.
    pub asynchronous: Mask,
    /// Most active extents as primary: at least 4, at most `follow_max`.
    pub active_max: usize,
    /// Most active extents otherwise: at least what any other site has as primary, or its writes would wait for room that
    /// comes with no barrier; at most [`crate::nbd::disk::format::ACTIVE_MAX`].
    pub follow_max: usize,
    /// Of three sites and more, a majority with equal disks decides: without it a primary's writes wait, and with it a site
    /// may become primary though others are missing. So with a witness, which counts as a site.
    pub quorum: bool,
    /// The site that has no disk, and votes.
    pub witness: Option<SiteId>,
    /// The choices that may change while the core runs.
    pub tuning: Tuning,
    /// Name and version, for the peers' people.
    pub software: String,
    /// Random; all the random numbers of the core come from it.
    pub seed: u64,
}
