//! Promotion: the conditions for it, and the objections by which two sites cannot be primary at once.
//!
//! Without `--force` no site may be promoted whose data is half-synced, outdated or of unknown history, nor while a site
//! that could be primary is out of reach and neither outdated, fenced nor outvoted. Force must first list the possible
//! losses, and never overrules a site that can be reached. Called by the volume's state machine and for the dry run.

use std::fmt;

use super::facts::Facts;
use super::outcome::{Bytes, Decision, Outcome, Why};
use crate::nbd::disk::format::{DiskFlags, SlotFlags};
use crate::wire::{Mask, SiteId};

/// The result of the fencing handler for a site that cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fencing {
    /// It is marked as outdated or inconsistent, or is switched off: it cannot go on as primary.
    Done,
    /// It is primary and goes on.
    IsPrimary,
    /// Nothing was reached.
    Failed,
}

impl Fencing {
    /// Reads the handler's exit status: 3 inconsistent, 4 outdated, 7 switched off; 6 refused by a primary.
    pub const fn from_exit_status(status: i32) -> Self {
        match status {
            3 | 4 | 7 => Fencing::Done,
            6 => Fencing::IsPrimary,
            _ => Fencing::Failed,
        }
    }
}

/// The durable memory of a witness, a site without a disk of this resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Witness {
    /// The newest generation that was sent to it.
    pub current: super::Generation,
    /// The sites that had its data.
    pub holders: Mask,
}

/// A site that can be reached, and the decision of the handshake with it.
#[derive(Clone, Copy, Debug)]
pub struct Reachable<'a> {
    /// The site's latest facts.
    pub facts: &'a Facts,
    /// The decision of the handshake with it.
    pub decision: Decision,
}

/// The facts that count for a promotion.
#[derive(Clone, Copy, Debug)]
pub struct Candidacy<'a> {
    /// The site that is to become primary.
    pub own: &'a Facts,
    /// The sites that can be reached.
    pub reachable: &'a [Reachable<'a>],
    /// Sites that a fencing handler has excluded.
    pub fenced: Mask,
    /// True if a fencing handler is configured.
    pub can_fence: bool,
    /// The sites whose copy may be behind: they have no vote.
    pub asynchronous: Mask,
    /// True if a primary without a majority freezes, so that a majority may promote.
    pub quorum: bool,
    /// True if a witness is configured.
    pub has_witness: bool,
    /// The witness's memory, if it can be reached.
    pub witness: Option<Witness>,
}

/// A reason against a promotion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objection {
    /// This site is primary.
    OtherPrimary(SiteId),
    /// A resync from this site, which can be reached, has not ended.
    Resyncing(SiteId),
    /// This site, which can be reached, has data that this one does not have.
    Newer(SiteId),
    /// The data disk failed.
    Failed,
    /// The disk is half-synced.
    HalfSynced,
    /// No site ever had data.
    JustCreated,
    /// Newer data is known to be elsewhere.
    Outdated,
    /// The witness knows of newer data at these sites.
    WitnessKnowsNewer(Mask),
    /// Too few sites can be reached.
    NoQuorum {
        /// Sites that can be reached, this one among them.
        present: u32,
        /// Sites that are needed.
        needed: u32,
    },
    /// One of these sites may be primary, and cannot be reached.
    Unknown(Mask),
    /// The copy may be behind what these sites, which cannot be reached, have answered.
    MayBeBehind(Mask),
    /// Another promotion, of this site, is under way.
    Busy(SiteId),
}

impl Objection {
    /// Returns true if `--force` may overrule the objection.
    pub const fn yields_to_force(self) -> bool {
        !matches!(
            self,
            Objection::OtherPrimary(_) | Objection::Resyncing(_) | Objection::Newer(_) | Objection::Busy(_)
        )
    }
}

impl fmt::Display for Objection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Objection::OtherPrimary(site) => write!(f, "{site} is primary: make it secondary first"),
            Objection::Resyncing(site) => {
                write!(f, "the resync from {site} has not ended: wait for it, or promote {site}")
            }
            Objection::Newer(site) => {
                write!(f, "{site} has data that is not here: promote {site}, or let it be settled first")
            }
            Objection::Failed => f.write_str("the data disk failed: what it holds may be anything"),
            Objection::HalfSynced => {
                f.write_str("the disk is half-synced: its content is a mixture that the mirror never had")
            }
            Objection::JustCreated => {
                f.write_str("the disk is just created: its content becomes that of the mirror")
            }
            Objection::Outdated => f.write_str("the disk is outdated: later writes are at another site only"),
            Objection::WitnessKnowsNewer(sites) => {
                write!(f, "the witness knows of later writes at sites {sites} only: start one of them")
            }
            Objection::NoQuorum { present, needed } => {
                write!(f, "{present} sites are here and it takes {needed}: start another one or the witness")
            }
            Objection::Unknown(sites) => write!(
                f,
                "sites {sites} cannot be reached and may be primary: what they wrote since would be parted from this \
                 site's (fence them, or make sure that they are off)"
            ),
            Objection::MayBeBehind(sites) => write!(
                f,
                "the copy here is an asynchronous one: the last writes that sites {sites} answered may not be here"
            ),
            Objection::Busy(site) => write!(f, "{site} is being promoted: try again"),
        }
    }
}

/// The answer to the wish to be primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is primary already.
    Already,
    /// Every site that can be reached has to agree in a ballot; these members miss later writes.
    Allowed {
        /// The members that are missing.
        missing: Mask,
    },
    /// The handler has to fence these first.
    Fence(Mask),
    /// The objections. If all of them yield to force, force overrules them, after they were shown.
    Refused(Vec<Objection>),
}

/// Assesses the promotion of a site, without force.
pub fn assess(candidacy: &Candidacy<'_>) -> Verdict {
    let own = candidacy.own;
    if own.is_primary() {
        return Verdict::Already;
    }
    let mut objections = Vec::new();
    for peer in candidacy.reachable {
        objections.extend(by_peer(own, peer));
    }
    objections.extend(by_disk(own, candidacy.reachable));
    objections.dedup();
    let absent = absent(candidacy);
    if candidacy.asynchronous.contains(own.site.get())
        && !absent.is_empty()
        && !is_equal_to_sync_site(candidacy)
    {
        objections.push(Objection::MayBeBehind(absent));
    }
    let unknown = unknown(candidacy);
    // All sites are here: their agreement counts.
    if let Some(witness) = candidacy.witness.filter(|_| !unknown.is_empty()) {
        if witness.current.has_data() && witness.current != own.current {
            objections.push(Objection::WitnessKnowsNewer(witness.holders));
        }
    }
    if !unknown.is_empty() {
        // Absent sites that are known to be out of the race are not counted.
        let needed = voters(candidacy).checked_div(2).unwrap_or_default().saturating_add(1);
        let present = present(candidacy);
        match () {
            () if candidacy.quorum && present >= needed => {}
            () if candidacy.can_fence && objections.is_empty() => return Verdict::Fence(unknown),
            () if candidacy.quorum => objections.push(Objection::NoQuorum { present, needed }),
            () => objections.push(Objection::Unknown(unknown)),
        }
    }
    match objections.is_empty() {
        true => Verdict::Allowed { missing: missing(candidacy) },
        false => Verdict::Refused(objections),
    }
}

/// Assesses a forced promotion; returns the members that will miss writes, and the possible losses in words.
///
/// # Errors
/// The objections that force does not overrule.
pub fn force(candidacy: &Candidacy<'_>) -> Result<(Mask, Vec<String>), Vec<Objection>> {
    let unfenced = Candidacy { can_fence: false, ..*candidacy };
    let objections = match assess(&unfenced) {
        Verdict::Refused(objections) => objections,
        Verdict::Already | Verdict::Allowed { .. } | Verdict::Fence(_) => Vec::new(),
    };
    let (soft, hard): (Vec<_>, Vec<_>) = objections.into_iter().partition(|o| o.yields_to_force());
    if !hard.is_empty() {
        return Err(hard);
    }
    let own = candidacy.own;
    let mut risks: Vec<String> = soft.iter().map(ToString::to_string).collect();
    let half = own.slots.iter().filter(|slot| slot.flags.contains(SlotFlags::SYNC_TARGET));
    risks.extend(
        half.map(|slot| format!("{} were still to come from {}", Bytes(slot.out_of_sync), slot.site)),
    );
    Ok((missing(candidacy), risks))
}

/// Returns true if a primary may go on: no quorum is configured, a majority is here, or all that are absent are known to
/// be out of the race.
pub fn may_go_on(candidacy: &Candidacy<'_>) -> bool {
    !candidacy.quorum
        || unknown(candidacy).is_empty()
        || present(candidacy).saturating_mul(2) > voters(candidacy)
}

fn by_peer(own: &Facts, peer: &Reachable<'_>) -> Option<Objection> {
    let site = peer.facts.site;
    if peer.facts.is_primary() {
        return Some(Objection::OtherPrimary(site));
    }
    if let Some(primary) = peer.facts.follows.filter(|primary| *primary != own.site) {
        return Some(Objection::OtherPrimary(primary));
    }
    match peer.decision.outcome {
        Outcome::Sync { target, .. } if target == own.site => Some(Objection::Resyncing(site)),
        Outcome::Refuse(Why::PrimaryIsOlder { newer, .. }) if newer == site => Some(Objection::Newer(site)),
        // It has newer data that it cannot give: that counts here as if this disk knew of it by itself.
        Outcome::Refuse(Why::HalfSynced(newer) | Why::Outdated(newer)) if newer == site => {
            Some(Objection::Outdated)
        }
        _ => None,
    }
}

fn by_disk(own: &Facts, reachable: &[Reachable<'_>]) -> Option<Objection> {
    let is_zeroed = own.flags.contains(DiskFlags::ZEROED)
        && !reachable.is_empty()
        && reachable.iter().all(|peer| peer.decision.outcome == Outcome::NoSync);
    match () {
        () if own.flags.contains(DiskFlags::FAILED) => Some(Objection::Failed),
        () if own.current.is_just_created() => (!is_zeroed).then_some(Objection::JustCreated),
        () if !own.is_usable() => Some(Objection::HalfSynced),
        () if own.is_outdated() => Some(Objection::Outdated),
        () => None,
    }
}

fn reachable(candidacy: &Candidacy<'_>) -> Mask {
    candidacy.reachable.iter().fold(Mask::default(), |mask, peer| mask | Mask::of(peer.facts.site.get()))
}

/// Returns the members other than this one that take no part in later writes.
fn missing(candidacy: &Candidacy<'_>) -> Mask {
    let with = candidacy.reachable.iter().filter(|peer| peer.decision.replicates());
    let with =
        with.fold(Mask::of(candidacy.own.site.get()), |mask, peer| mask | Mask::of(peer.facts.site.get()));
    Mask(candidacy.own.members.0 & !with.0)
}

/// Returns the members that cannot be reached.
fn absent(candidacy: &Candidacy<'_>) -> Mask {
    let own = candidacy.own;
    Mask(own.members.0 & !reachable(candidacy).0 & !Mask::of(own.site.get()).0)
}

/// Returns true if a site whose copy is never behind is here, and the two are equal.
fn is_equal_to_sync_site(candidacy: &Candidacy<'_>) -> bool {
    candidacy.reachable.iter().any(|peer| {
        peer.decision.outcome == Outcome::NoSync && !candidacy.asynchronous.contains(peer.facts.site.get())
    })
}

/// Returns the members that cannot be reached and could be primary.
fn unknown(candidacy: &Candidacy<'_>) -> Mask {
    let own = candidacy.own;
    let absent = own.members.0 & !reachable(candidacy).0 & !candidacy.fenced.0 & !Mask::of(own.site.get()).0;
    let out = own.slots.iter().filter(|slot| slot.flags.contains(SlotFlags::OUTDATED));
    let out = out.fold(Mask::default(), |mask, slot| mask | Mask::of(slot.site.get()));
    Mask(absent & !out.0)
}

/// Returns the number of sites that have a vote. A witness breaks ties between two sites and more.
fn voters(candidacy: &Candidacy<'_>) -> u32 {
    let members = candidacy.own.members.0 & !candidacy.asynchronous.0;
    members.count_ones().saturating_add(candidacy.has_witness.into())
}

fn present(candidacy: &Candidacy<'_>) -> u32 {
    let sites = reachable(candidacy) | Mask::of(candidacy.own.site.get());
    let voters = sites.0 & candidacy.own.members.0 & !candidacy.asynchronous.0;
    voters.count_ones().saturating_add(candidacy.witness.is_some().into())
}
