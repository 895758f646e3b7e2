//! The payloads of SC_STATE, SC_PRI_PRO, SC_DEVDOWN and their acknowledgements between sites with a record.
//!
//! Each opens with a mark of eight bytes that no structure of the C module begins with, and may be longer than the part
//! that is read here, so that a later version can append. Must act on nothing by itself: an acknowledgement of
//! SC_DEVDOWN, which takes a C module's disk down, only ends the wait of the leaving site. Called by the volume's state
//! machine.

use super::Generation;
use super::ballot::Ballot;
use super::facts::Role;
use super::record::Cursor;
use crate::nbd::disk::format::DiskFlags;
use crate::wire::SiteId;

/// The state of a site, sent when it changes, for status, for people and for voters: SC_STATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateNote {
    /// The site's role.
    pub role: Role,
    /// The state of its disk.
    pub flags: DiskFlags,
    /// The generation of its data.
    pub current: Generation,
    /// Its durable count of writes.
    pub write_counter: u64,
}

/// A step of a promotion: SC_PRI_PRO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The request for a vote; carries the candidate's generation.
    Prepare(Generation),
    /// The candidate is primary.
    Commit,
    /// The ballot failed.
    Abort,
}

/// A vote: SC_PRI_PRO_ACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// The ballot's number.
    pub number: u64,
    /// True for yes.
    pub agrees: bool,
    /// The site that is the reason against it, if there is one.
    pub because_of: Option<SiteId>,
}

/// The notice of a site that leaves in order: SC_DEVDOWN. Its acknowledgement is empty, or repeats it as not outdated: the
/// primary has no disk, and nothing goes on without this site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leave {
    /// True if the site has marked its disk as outdated, durably.
    pub outdated: bool,
    /// The generation in which the site leaves.
    pub current: Generation,
    /// The site's durable count of writes.
    pub write_counter: u64,
}

const STATE: &[u8; 8] = b"HADMDST1";
const PROMOTE: &[u8; 8] = b"HADMDPP1";
const VOTE: &[u8; 8] = b"HADMDPV1";
const LEAVE: &[u8; 8] = b"HADMDDD1";

/// The id that stands for no site.
const NO_SITE: u8 = 255;

fn open<'a>(payload: &'a [u8], mark: &[u8; 8]) -> Option<Cursor<'a>> {
    payload.strip_prefix(mark).map(Cursor)
}

fn flag(byte: u8) -> Option<bool> {
    (byte <= 1).then_some(byte == 1)
}

impl StateNote {
    /// Returns the payload.
    pub fn encode(&self) -> Vec<u8> {
        let role = [u8::from(self.role == Role::Primary), 0, 0, 0];
        let flags = self.flags.bits().to_le_bytes();
        let current = self.current.bits().to_le_bytes();
        [&STATE[..], &role, &flags, &current, &self.write_counter.to_le_bytes()].concat()
    }

    /// Reads the payload.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let mut from = open(payload, STATE)?;
        let [role, _, _, _] = from.take()?;
        Some(StateNote {
            role: if flag(role)? { Role::Primary } else { Role::Secondary },
            flags: DiskFlags::from_bits(from.u32()?)?,
            current: Generation::from_bits(from.u64()?),
            write_counter: from.u64()?,
        })
    }
}

impl Phase {
    /// Returns the payload, for this ballot.
    pub fn encode(&self, ballot: Ballot) -> Vec<u8> {
        let (phase, current) = match self {
            Phase::Prepare(current) => (1, *current),
            Phase::Commit => (2, Generation::NONE),
            Phase::Abort => (3, Generation::NONE),
        };
        let head = [phase, ballot.candidate.get(), 0, 0, 0, 0, 0, 0];
        [&PROMOTE[..], &head, &ballot.number.to_le_bytes(), &current.bits().to_le_bytes()].concat()
    }

    /// Reads the payload of a packet from `sender`, which has to be the candidate.
    pub fn decode(payload: &[u8], sender: SiteId) -> Option<(Ballot, Self)> {
        let mut from = open(payload, PROMOTE)?;
        let phase = from.u8()?;
        let candidate = from.site().filter(|candidate| *candidate == sender)?;
        let [_, _, _, _, _, _] = from.take()?;
        let ballot = Ballot { candidate, number: from.u64()? };
        let current = Generation::from_bits(from.u64()?);
        let phase = match phase {
            1 => Phase::Prepare(current),
            2 => Phase::Commit,
            3 => Phase::Abort,
            _ => return None,
        };
        Some((ballot, phase))
    }
}

impl Vote {
    /// Returns the payload.
    pub fn encode(&self) -> Vec<u8> {
        let site = self.because_of.map_or(NO_SITE, SiteId::get);
        [&VOTE[..], &[self.agrees.into(), site, 0, 0, 0, 0, 0, 0], &self.number.to_le_bytes()].concat()
    }

    /// Reads the payload.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let mut from = open(payload, VOTE)?;
        let [agrees, site, _, _, _, _, _, _] = from.take()?;
        let because_of = match site {
            NO_SITE => None,
            site => Some(SiteId::try_from(u32::from(site)).ok()?),
        };
        Some(Vote { number: from.u64()?, agrees: flag(agrees)?, because_of })
    }
}

impl Leave {
    /// Returns the payload.
    pub fn encode(&self) -> Vec<u8> {
        let head = [u8::from(self.outdated), 0, 0, 0, 0, 0, 0, 0];
        [&LEAVE[..], &head, &self.current.bits().to_le_bytes(), &self.write_counter.to_le_bytes()].concat()
    }

    /// Reads the payload.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let mut from = open(payload, LEAVE)?;
        let [outdated, _, _, _, _, _, _, _] = from.take()?;
        let current = Generation::from_bits(from.u64()?);
        Some(Leave { outdated: flag(outdated)?, current, write_counter: from.u64()? })
    }
}
