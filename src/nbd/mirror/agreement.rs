//! The acknowledgement of the handshake: each end states its decision, and with it proves which records it read.
//!
//! The session's nonce is made from both records as they were sent, so ends that read different records have different
//! sessions. Replication must not start unless both state the same. Called at every connect, after the decision.

use std::fmt;

use sha2::{Digest, Sha256};

use super::outcome::{Decision, Outcome, Reach, Why};
use super::record::Cursor;
use crate::wire::SiteId;

/// The errcode of every SC_HS_ACK: a C module ignores an acknowledgement with it, while 0 would make it take the sender
/// for its primary. Between ends that speak the record the payload decides.
pub const ACK_ERRCODE: i16 = -65;

/// Opens the payload of SC_HS_ACK.
const MARK: [u8; 8] = *b"HADMDSA1";

/// Bytes of the statement.
const LEN: usize = 80;

/// The statement of one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The nonce of the other end's record.
    pub nonce: u64,
    /// The session, from both records.
    pub session: u64,
    /// The decision, by numbers.
    pub decision: [u8; LEN - 24],
}

/// The reason for which two statements do not make a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disagreement {
    /// It does not have the form of a statement.
    Form,
    /// It answers an earlier record: not an error, a new statement is under way.
    Stale,
    /// The ends decided upon different records.
    Records,
    /// The ends came to different results.
    Decision,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Disagreement::Form => "its answer to the handshake is not understood",
            Disagreement::Stale => "it answered an earlier handshake",
            Disagreement::Records => "the handshake's records did not arrive as they were sent",
            Disagreement::Decision => {
                "the two sites decided differently, so nothing is replicated: upgrade the older one"
            }
        })
    }
}

impl std::error::Error for Disagreement {}

/// Returns the session's nonce, made from both records as sent, with their sites; never 0. The order does not matter.
pub fn session(one: (SiteId, &[u8]), other: (SiteId, &[u8])) -> u64 {
    let (low, high) = if one.0 <= other.0 { (one, other) } else { (other, one) };
    let mut hash = Sha256::new();
    for (site, record) in [low, high] {
        hash.update([site.get()]);
        hash.update((record.len() as u64).to_le_bytes());
        hash.update(record);
    }
    let digest: [u8; 32] = hash.finalize().into();
    digest.first_chunk().copied().map_or(1, u64::from_le_bytes).max(1)
}

impl Statement {
    /// Makes this end's statement about `decision`; `nonce` is that of the other end's record.
    pub fn new(nonce: u64, session: u64, decision: &Decision) -> Self {
        Statement { nonce, session, decision: numbers(decision) }
    }

    /// Returns the payload of SC_HS_ACK.
    pub fn encode(&self) -> Vec<u8> {
        [&MARK[..], &self.nonce.to_le_bytes(), &self.session.to_le_bytes(), &self.decision].concat()
    }

    /// Reads the payload of SC_HS_ACK; an end of a later version may have appended to it.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let mut from = Cursor(payload.strip_prefix(&MARK)?);
        Some(Statement { nonce: from.u64()?, session: from.u64()?, decision: from.take()? })
    }

    /// Compares this end's statement with the other end's payload; `own_nonce` is that of this end's latest record.
    ///
    /// # Errors
    /// The reason for which the two do not make a session.
    pub fn check(&self, payload: &[u8], own_nonce: u64) -> Result<(), Disagreement> {
        let other = Self::decode(payload).ok_or(Disagreement::Form)?;
        match () {
            () if other.nonce != own_nonce => Err(Disagreement::Stale),
            () if other.session != self.session => Err(Disagreement::Records),
            () if other.decision != self.decision => Err(Disagreement::Decision),
            () => Ok(()),
        }
    }
}

/// Returns the decision as numbers: equal decisions, and only those, have equal ones.
fn numbers(decision: &Decision) -> [u8; LEN - 24] {
    const NO_SITE: u8 = 255;
    let site = |site: Option<SiteId>| site.map_or(NO_SITE, SiteId::get);
    let (code, sites, amounts) = match decision.outcome {
        Outcome::NoSync => (0, [NO_SITE; 3], [0; 2]),
        Outcome::Defer { primary } => (1, [primary.get(), NO_SITE, NO_SITE], [0; 2]),
        Outcome::Sync { source, target, reach: Reach::Bitmap { of } } => {
            (2, [source.get(), target.get(), site(of)], [0; 2])
        }
        Outcome::Sync { source, target, reach: Reach::Full } => {
            (3, [source.get(), target.get(), NO_SITE], [0; 2])
        }
        Outcome::SplitBrain { bitmap } => (4, [u8::from(bitmap), NO_SITE, NO_SITE], [0; 2]),
        Outcome::Unrelated => (5, [NO_SITE; 3], [0; 2]),
        Outcome::JustCreatedBoth => (6, [NO_SITE; 3], [0; 2]),
        Outcome::Refuse(why) => why_numbers(why),
    };
    let mut to = [0; LEN - 24];
    to[0] = code;
    // The rows are numbered in the table.
    to[1] = decision.row as u8;
    to[2] = site(decision.demote);
    to[3] = decision.chunk_shift;
    to[4..7].copy_from_slice(&sites);
    to[8..16].copy_from_slice(&decision.size.to_le_bytes());
    let [first, second] = amounts;
    to[16..24].copy_from_slice(&first.to_le_bytes());
    to[24..32].copy_from_slice(&second.to_le_bytes());
    to
}

fn why_numbers(why: Why) -> (u8, [u8; 3], [u64; 2]) {
    const NO_SITE: u8 = 255;
    match why {
        Why::SameSite(site) => (16, [site.get(), NO_SITE, NO_SITE], [0; 2]),
        Why::Resource { a, b } => (17, [a.get(), b.get(), NO_SITE], [0; 2]),
        Why::SameDevice => (18, [NO_SITE; 3], [0; 2]),
        Why::Policies => (19, [NO_SITE; 3], [0; 2]),
        Why::TooSmall { site, size, agreed } => (20, [site.get(), NO_SITE, NO_SITE], [size, agreed]),
        Why::RolledBack(site) => (21, [site.get(), NO_SITE, NO_SITE], [0; 2]),
        Why::NoGoodData => (22, [NO_SITE; 3], [0; 2]),
        Why::HalfSynced(site) => (23, [site.get(), NO_SITE, NO_SITE], [0; 2]),
        Why::Outdated(site) => (24, [site.get(), NO_SITE, NO_SITE], [0; 2]),
        Why::PrimaryIsOlder { primary, newer } => (25, [primary.get(), newer.get(), NO_SITE], [0; 2]),
        Why::BothDiscard => (26, [NO_SITE; 3], [0; 2]),
    }
}
