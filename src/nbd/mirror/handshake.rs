//! The decision at a connect, from both sites' facts alone: the direction of the copy, and the part to be copied.
//!
//! Both ends compute it and must come to the same, so the two are put in the order of their ids first, and nothing else
//! is looked at. Must never let a site without good data be the source for one that has it, nor call two disks
//! equal that may differ. Called at every connect, by the dry run, and by the simulator.

use super::Generation;
use super::choices::RoleConflict;
use super::facts::{Facts, PeerSlot};
use super::outcome::{Decision, Outcome, Reach, Row, Why};
use super::policy::resolve;
use crate::nbd::disk::format::{DiskFlags, SlotFlags};
use crate::wire::SiteId;

/// Decides from both sites' facts; the order in which they are given does not matter.
pub fn decide(one: &Facts, other: &Facts) -> Decision {
    let pair = if one.site <= other.site { Pair { a: one, b: other } } else { Pair { a: other, b: one } };
    pair.decide()
}

/// The two sites; `a` has the lower id.
#[derive(Clone, Copy)]
struct Pair<'a> {
    a: &'a Facts,
    b: &'a Facts,
}

/// A copy in one direction, before roles and disk states are looked at.
struct Copying<'a> {
    source: &'a Facts,
    target: &'a Facts,
    reach: Reach,
    row: Row,
    /// True if the generations are equal: either direction keeps what was answered.
    arbitrary: bool,
}

/// The place in the newer disk's facts that names the generation of the older disk.
enum Trace {
    /// The newer one's slot for the older.
    Own,
    /// Its slot for a third site.
    Third(SiteId),
    /// Its history.
    History,
}

impl Trace {
    fn reach(&self) -> (Reach, Row) {
        match self {
            Trace::Own => (Reach::Bitmap { of: None }, Row::Bitmap),
            Trace::Third(site) => (Reach::Bitmap { of: Some(*site) }, Row::BitmapOfThird),
            Trace::History => (Reach::Full, Row::History),
        }
    }
}

impl<'a> Pair<'a> {
    fn decide(self) -> Decision {
        let Pair { a, b } = self;
        if let Some(why) = self.obstacle() {
            return self.decision(Row::Obstacle, Outcome::Refuse(why));
        }
        match (a.is_primary(), b.is_primary()) {
            (true, true) => return self.two_primaries(),
            // The other site follows a primary that is neither of the two.
            (true, false) if b.follows.is_some_and(|primary| primary != a.site) => {
                return self.primary_and_follower(a, b);
            }
            (false, true) if a.follows.is_some_and(|primary| primary != b.site) => {
                return self.primary_and_follower(b, a);
            }
            _ => {}
        }
        // A live primary decides with each of its own; two of its followers differ by the writes under way.
        let third = |site: &SiteId| *site != a.site && *site != b.site;
        if let Some(primary) = a.follows.or(b.follows).filter(third) {
            let other = b.follows.filter(third).is_some_and(|other| other != primary);
            return match other {
                true => self.split_brain(Row::DualPrimary, false),
                false => self.decision(Row::OtherPrimary, Outcome::Defer { primary }),
            };
        }
        match (a.current.has_data(), b.current.has_data()) {
            (false, false) => self.both_blank(),
            (true, false) => self.copy(a, b, Reach::Full, Row::OneJustCreated),
            (false, true) => self.copy(b, a, Reach::Full, Row::OneJustCreated),
            (true, true) if a.current == b.current => self.equal(),
            (true, true) => self.by_lineage(),
        }
    }

    /// Two primaries: one that lost its quorum has answered nothing since, and gives way to data that descends from its own.
    fn two_primaries(self) -> Decision {
        let Pair { a, b } = self;
        let lost = |site: &Facts| site.flags.contains(DiskFlags::LOST_QUORUM);
        let (source, target) = match (lost(a), lost(b)) {
            (true, false) => (b, a),
            (false, true) => (a, b),
            _ => return self.split_brain(Row::DualPrimary, self.common_slots()),
        };
        let found = match source.current == target.current {
            true => Some(Trace::Own),
            false => trace(target, source).or_else(|| trace_answered(target, source)),
        };
        let Some(found) = found else { return self.split_brain(Row::DualPrimary, self.common_slots()) };
        let (reach, _) = found.reach();
        let copying = Copying { source, target, reach, row: Row::LostQuorum, arbitrary: false };
        self.settle(copying, true)
    }

    /// A primary meets a site that follows another one.
    fn primary_and_follower(self, primary: &Facts, follower: &Facts) -> Decision {
        let descends = primary.current == follower.current || trace(primary, follower).is_some();
        let Some(other) =
            follower.follows.filter(|_| descends && primary.flags.contains(DiskFlags::LOST_QUORUM))
        else {
            return self.split_brain(Row::DualPrimary, false);
        };
        let decision = self.decision(Row::OtherPrimary, Outcome::Defer { primary: other });
        Decision { demote: Some(primary.site), ..decision }
    }

    /// Returns the reason that forbids replication no matter which site has the newer data.
    fn obstacle(self) -> Option<Why> {
        let Pair { a, b } = self;
        if a.site == b.site {
            return Some(Why::SameSite(a.site));
        }
        if a.resource != b.resource {
            return Some(Why::Resource { a: a.resource, b: b.resource });
        }
        if a.device == b.device {
            return Some(Why::SameDevice);
        }
        if a.policies != b.policies {
            return Some(Why::Policies);
        }
        let agreed = a.agreed_size.max(b.agreed_size);
        if let Some(small) = [a, b].into_iter().find(|site| site.size < agreed) {
            return Some(Why::TooSmall { site: small.site, size: small.size, agreed });
        }
        match (a.is_rolled_back(b), b.is_rolled_back(a)) {
            (true, true) => Some(Why::RolledBack(a.site)),
            _ => None,
        }
    }

    fn both_blank(self) -> Decision {
        let Pair { a, b } = self;
        if a.current.is_just_created() && b.current.is_just_created() {
            let zeroed = |site: &Facts| site.flags.contains(DiskFlags::ZEROED) && site.is_usable();
            return match zeroed(a) && zeroed(b) {
                true => self.decision(Row::BothZeroed, Outcome::NoSync),
                false => self.decision(Row::BothJustCreated, Outcome::JustCreatedBoth),
            };
        }
        self.decision(Row::OneJustCreated, Outcome::Refuse(Why::NoGoodData))
    }

    /// Decides between two sites of the same generation.
    fn equal(self) -> Decision {
        let Pair { a, b } = self;
        let either = |holds: &dyn Fn(&Facts, &Facts) -> bool| holds(a, b) || holds(b, a);
        let only = |holds: &dyn Fn(&Facts, &Facts) -> bool| match (holds(a, b), holds(b, a)) {
            (true, false) => Some((a, b)),
            (false, true) => Some((b, a)),
            _ => None,
        };
        let copy = |(source, target): (&'a Facts, &'a Facts), row| {
            let reach = Reach::Bitmap { of: None };
            self.finish(Copying { source, target, reach, row, arbitrary: true })
        };
        if !a.is_usable() && !b.is_usable() {
            return self.decision(Row::DiskState, Outcome::Refuse(Why::NoGoodData));
        }
        // The mark says so even where the generation does not: a snapshot was restored.
        if let Some((target, source)) = only(&|site, peer| site.is_rolled_back(peer)) {
            return copy((source, target), Row::RolledBack);
        }
        if let Some(pair) = only(&|site, _| site.is_usable()) {
            return copy(pair, Row::DiskState);
        }
        let unfinished = |site: &Facts, peer: &Facts| {
            site.bitmap_of(peer.site).is_some()
                || site.has_noted(peer.site, SlotFlags::SYNC_SOURCE)
                || site.has_noted(peer.site, SlotFlags::FULL_SYNC_DUE)
        };
        let restarted = a.last_session == 0 || a.last_session != b.last_session;
        let led = a.is_primary() || b.is_primary();
        let unsettled = |site: &Facts| site.flags.contains(DiskFlags::WRITING) && (restarted || !led);
        let differs = either(&|site, peer| {
            unfinished(site, peer)
                || site.out_of_sync(peer.site) != 0
                || site.is_crashed_primary()
                || unsettled(site)
        });
        if !differs {
            return self.decision(if restarted { Row::BothDown } else { Row::Reconnected }, Outcome::NoSync);
        }
        if let Some(pair) = only(&|site, _| site.is_primary()) {
            return copy(pair, Row::PrimaryPresent);
        }
        if let Some(pair) = only(&|site, _| !site.is_outdated()) {
            return copy(pair, Row::DiskState);
        }
        // It went on without the other, which then got all of it from a third site, and outlived it. A third site that writes
        // did not wait for may not have had all.
        let is_passed = |site: &Facts, peer: &Facts| {
            let is_far = |slot: &PeerSlot| slot.flags.contains(SlotFlags::ASYNCHRONOUS);
            site.is_crashed_primary()
                && !site.slots.iter().any(is_far)
                && peer.has_outlived()
                && !peer.is_crashed_primary()
                && site.slot(peer.site).is_some()
                && !site.has_noted(peer.site, SlotFlags::FULL_SYNC_DUE)
        };
        // A far site may have heard of that end, and of later writes, last.
        let is_behind = |site: &Facts, peer: &Facts| {
            site.asynchronous && !peer.asynchronous && !site.is_crashed_primary()
        };
        let counts = |site: &Facts, peer: &Facts| {
            unfinished(site, peer) && !is_passed(site, peer) && !is_behind(site, peer)
        };
        if let Some(pair) = only(&counts) {
            return copy(pair, Row::MissedEnd);
        }
        if let Some((crashed, other)) = only(&|site, _| site.is_crashed_primary()) {
            return match () {
                // The site answered writes that the other never got.
                () if a.asynchronous || b.asynchronous => copy((crashed, other), Row::AsynchronousCrash),
                () if other.has_outlived() => copy((other, crashed), Row::Survivor),
                () => copy((crashed, other), Row::BothDown),
            };
        }
        if either(&|site, _| site.is_crashed_primary()) {
            // One may have followed the other since, and have outlived it before the first write came.
            let later = only(&|site, _| !site.has_outlived()).filter(|_| a.asynchronous || b.asynchronous);
            return match later {
                Some(pair) => copy(pair, Row::AsynchronousCrash),
                None => copy((a, b), Row::BothDown),
            };
        }
        if let Some(pair) = only(&|site, _| site.flags.contains(DiskFlags::LOST_QUORUM)) {
            return copy(pair, Row::LostQuorum);
        }
        if let Some(pair) = only(&|site, _| !site.asynchronous) {
            // The other may lack writes that were answered.
            return copy(pair, Row::Survivors);
        }
        // Survivors of a dead primary: each may have some of its last writes, none of them answered. Where only one is known to
        // have outlived it, the other may have gone with it, and a third that is copied over the other would lose answers.
        let survivor =
            only(&|site, _| site.has_outlived()).or_else(|| only(&|site, _| site.last_session != 0));
        copy(survivor.unwrap_or((a, b)), Row::Survivors)
    }

    /// Decides between two sites of different generations, both of which stand for data.
    fn by_lineage(self) -> Decision {
        let Pair { a, b } = self;
        if let Some(before) = a.before_claim(b) {
            return Pair { a: &before, b }.equal();
        }
        if let Some(before) = b.before_claim(a) {
            return Pair { a, b: &before }.equal();
        }
        match (trace(a, b), trace(b, a)) {
            (Some(_), Some(_)) => self.split_brain(Row::Contradiction, false),
            (Some(found), None) => self.take_newer(b, a, &found),
            (None, Some(found)) => self.take_newer(a, b, &found),
            (None, None) => self.parted(),
        }
    }

    /// Decides between two sites of which neither descends from the other.
    fn parted(self) -> Decision {
        let Pair { a, b } = self;
        match (trace_answered(a, b), trace_answered(b, a)) {
            // Nothing was answered in either: the primary's goes on, or that of the disk that is not half-synced.
            (Some(_), Some(found)) if a.is_primary() || a.is_usable() && !b.is_usable() => {
                self.take_newer(a, b, &found)
            }
            (Some(found), _) => self.take_newer(b, a, &found),
            (None, Some(found)) => self.take_newer(a, b, &found),
            (None, None) if self.common_slots() => self.split_brain(Row::SplitBrainBitmap, true),
            (None, None) => {
                let is_shared = |generation: Generation| b.ancestors().any(|other| other == generation);
                match a.ancestors().any(is_shared) {
                    true => self.split_brain(Row::SplitBrainHistory, false),
                    false => self.unrelated(),
                }
            }
        }
    }

    /// Decides between two disks that have nothing in common: a person may say that the content of one is to go.
    fn unrelated(self) -> Decision {
        let decision = self.split_brain(Row::Unrelated, false);
        match decision.outcome {
            Outcome::SplitBrain { .. } => Decision { outcome: Outcome::Unrelated, ..decision },
            _ => decision,
        }
    }

    fn take_newer(self, newer: &'a Facts, older: &'a Facts, found: &Trace) -> Decision {
        let (reach, row) = found.reach();
        self.copy(newer, older, reach, row)
    }

    /// Returns true if the bitmaps of both count from the same generation.
    fn common_slots(self) -> bool {
        self.a.bitmap_of(self.b.site).is_same_data(self.b.bitmap_of(self.a.site))
    }

    fn split_brain(self, row: Row, bitmap: bool) -> Decision {
        let Pair { a, b } = self;
        let reach = if bitmap { Reach::Bitmap { of: None } } else { Reach::Full };
        let discards = |site: &Facts| site.flags.contains(DiskFlags::DISCARD);
        let victim = match (discards(a), discards(b)) {
            (true, true) => return self.decision(row, Outcome::Refuse(Why::BothDiscard)),
            (true, false) => Some((a.site, false)),
            (false, true) => Some((b.site, false)),
            // If bitmaps do not help, a person has to decide.
            (false, false) if bitmap => resolve(a, b).map(|victim| (victim.site, victim.demote)),
            (false, false) => None,
        };
        let Some((victim, demote)) = victim else {
            return self.decision(row, Outcome::SplitBrain { bitmap });
        };
        let (source, target) = if victim == a.site { (b, a) } else { (a, b) };
        // The two may not overrule a primary elsewhere that one of them follows.
        if source.follows.or(target.follows).is_some_and(|p| p != source.site && p != target.site) {
            return self.decision(row, Outcome::SplitBrain { bitmap });
        }
        self.settle(Copying { source, target, reach, row, arbitrary: false }, demote)
    }

    fn copy(self, source: &'a Facts, target: &'a Facts, reach: Reach, row: Row) -> Decision {
        self.finish(Copying { source, target, reach, row, arbitrary: false })
    }

    /// Lets a person's choice and the states of the disks change the direction.
    fn finish(self, mut copying: Copying<'a>) -> Decision {
        let Copying { source, target, .. } = copying;
        let discards = |site: &Facts| site.flags.contains(DiskFlags::DISCARD);
        let is_good = target.is_usable()
            && !target.is_outdated()
            && target.current.has_data()
            && !target.is_rolled_back(source);
        if discards(source) && !discards(target) && is_good {
            (copying.source, copying.target, copying.row) = (target, source, Row::Discard);
        }
        self.settle(copying, false)
    }

    /// Returns the outcome of a copy, or the reason why it may not be made.
    fn settle(self, copying: Copying<'a>, demote: bool) -> Decision {
        let Copying { source, target, mut reach, row, arbitrary } = copying;
        let refuse = |why| self.decision(row, Outcome::Refuse(why));
        if source.is_rolled_back(target) {
            return refuse(Why::RolledBack(source.site));
        }
        if !source.is_usable() || !source.current.has_data() {
            return refuse(if target.is_usable() { Why::HalfSynced(source.site) } else { Why::NoGoodData });
        }
        let blank = !target.current.has_data() || !target.is_usable();
        if source.is_outdated() && !target.is_outdated() && !blank {
            return refuse(Why::Outdated(source.site));
        }
        let mut demoted = demote.then_some(target.site);
        // A primary without a good disk may be copied to while it serves through its source, but not beside another.
        let serves = target.is_primary() && (target.is_usable() || source.is_primary());
        if serves && demoted.is_none() {
            match target.policies.conflict {
                // It has answered nothing since, and a majority went on without it.
                _ if !arbitrary && target.flags.contains(DiskFlags::LOST_QUORUM) => {
                    demoted = Some(target.site);
                }
                RoleConflict::Violently if !arbitrary => demoted = Some(target.site),
                _ => return refuse(Why::PrimaryIsOlder { primary: target.site, newer: source.site }),
            }
        }
        if !bits_are_complete(source, target) {
            reach = Reach::Full;
        }
        let outcome = Outcome::Sync { source: source.site, target: target.site, reach };
        Decision { demote: demoted, ..self.decision(row, outcome) }
    }

    fn decision(self, row: Row, outcome: Outcome) -> Decision {
        let Pair { a, b } = self;
        let agreed = a.agreed_size.max(b.agreed_size);
        Decision {
            row,
            outcome,
            demote: None,
            size: if agreed == 0 { a.size.min(b.size) } else { agreed },
            chunk_shift: a.chunk_shift.max(b.chunk_shift),
        }
    }
}

/// Returns the place in the newer site's facts that names the older one's generation.
fn trace(older: &Facts, newer: &Facts) -> Option<Trace> {
    trace_of(older.current, older.site, newer)
}

/// Returns the place in the newer site's facts that names the generation before the older one's, in which nothing was
/// answered: that is no history of its own.
fn trace_answered(older: &Facts, newer: &Facts) -> Option<Trace> {
    let former = older.answered().filter(|_| older.flags.contains(DiskFlags::UNANSWERED))?;
    trace_of(former, older.site, newer)
}

/// Returns the place in the newer site's facts that names this generation of that site.
fn trace_of(generation: Generation, older: SiteId, newer: &Facts) -> Option<Trace> {
    if generation.is_same_data(newer.bitmap_of(older)) {
        return Some(Trace::Own);
    }
    // A resync clears the third site's bits bit by bit, so that they no longer mark all that this site misses.
    let is_whole = |slot: &PeerSlot| {
        !slot.flags.contains(SlotFlags::SYNC_SOURCE) && !slot.flags.contains(SlotFlags::FULL_SYNC_DUE)
    };
    let mut thirds = newer.slots.iter().filter(|slot| generation.is_same_data(slot.generation));
    if let Some(third) = thirds.clone().find(|slot| is_whole(slot)) {
        return Some(Trace::Third(third.site));
    }
    let is_former = newer.history.iter().any(|former| generation.is_same_data(*former));
    (is_former || thirds.next().is_some()).then_some(Trace::History)
}

/// Returns true if the bits of both together mark everything in which the target may differ from the source.
fn bits_are_complete(source: &Facts, target: &Facts) -> bool {
    let due = |site: &Facts, peer: &Facts| {
        site.slot(peer.site).is_none() || site.has_noted(peer.site, SlotFlags::FULL_SYNC_DUE)
    };
    if due(source, target) || due(target, source) || target.is_rolled_back(source) {
        return false;
    }
    if target.flags.contains(DiskFlags::FAILED) {
        return false;
    }
    // A resync that did not end left content of another source on the disk, and no bits for this one.
    let is_target = |slot: &PeerSlot| slot.flags.contains(SlotFlags::SYNC_TARGET);
    let from_others = target.slots.iter().any(|slot| slot.site != source.site && is_target(slot));
    let from_source = target.has_noted(source.site, SlotFlags::SYNC_TARGET)
        && source.has_noted(target.site, SlotFlags::SYNC_SOURCE);
    !from_others && (target.is_usable() || from_source)
}
