//! The witness as a site with a disk uses it: a vote where the sites alone have no majority.
//!
//! The witness has voted for this site when it has durably stored the generation that this site serves: no other site's
//! data descends from that, so that no other site can be voted for. The vote lasts until a site that has the data is lost.
//! Must never take a vote from what a site that may have gone on knows, nor from a witness that knows nothing. Called by
//! the core.

use std::time::Duration;

use bytes::Bytes;

use super::claim::Claim;
use super::event::{Action, Note, Refusal};
use super::packet::{self, Fields};
use super::peer::{Part, Stage};
use super::role::Change;
use super::superblock::Then;
use super::{Core, Peer, mutated};
use crate::nbd::disk::format::{DiskFlags, Superblock};
use crate::nbd::mirror::control::Phase;
use crate::nbd::mirror::promotion::{Objection, Witness as Content};
use crate::nbd::mirror::witness::{Answer, Ask, Swap};
use crate::nbd::mirror::{Generation, Rotate};
use crate::wire::{Mask, PacketType, SiteId};

/// Time after which the witness is asked again, for its content or for an answer that did not come.
const AGAIN: Duration = Duration::from_secs(1);

/// Time that a handshake with a connected site takes at most, if its program runs: a few round trips, and a sync.
const MEETING: Duration = Duration::from_secs(2);

/// The generations that are noted as passed. The witness has one, and what is still on its way to it is of the last seconds; were one
/// missing, it would take the other site to be promoted, and nothing would be lost.
const PASSED: usize = 64;

/// The knowledge of the witness.
#[derive(Clone, Debug, Default)]
pub struct Witness {
    /// It is connected.
    linked: bool,
    /// It has answered since it is connected.
    is_heard: bool,
    /// Its content, as it answered last; an empty generation if it never did.
    content: Content,
    /// The request that is not answered yet, and if it asks for a vote.
    asked: Option<(u64, bool)>,
    /// When it was asked last.
    since: Duration,
    /// Generations that what is served here descends from, and the history does not name; and such that were never answered in, and never will
    /// be, as their sites have given them up.
    passed: Vec<Generation>,
    /// The superblock before a promotion that waits for the vote, and the sites that were connected then.
    before: Option<(Box<Superblock>, Mask)>,
}

impl Witness {
    /// Notes a passed generation, and forgets the one that was noted first where there are too many.
    fn note_passed(&mut self, former: Generation) {
        self.passed.retain(|other| *other != former);
        let excess = self.passed.len().saturating_sub(PASSED - 1);
        self.passed.drain(..excess);
        self.passed.push(former);
    }
}

/// The state of the witness, as this site sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WitnessState {
    /// It is not connected, or does not answer.
    Away,
    /// It knows nothing yet, and votes for nobody.
    Blank,
    /// It knows what is here, or what that descends from.
    Agrees,
    /// It knows of later writes, at these sites.
    Newer(Mask),
}

impl Core {
    /// The witness's state; `None` without a witness.
    pub fn witness_state(&self) -> Option<(SiteId, WitnessState)> {
        let state = match self.witness() {
            None => WitnessState::Away,
            Some(content) if !content.current.has_data() => WitnessState::Blank,
            Some(content) if self.descends_from(content.current) => WitnessState::Agrees,
            Some(content) => WitnessState::Newer(content.holders),
        };
        Some((self.config.witness?, state))
    }

    /// The witness's content, if it is connected and has answered.
    pub fn witness(&self) -> Option<Content> {
        Some(self.witness.content).filter(|_| self.witness.is_heard)
    }

    /// The generation that a primary serves.
    fn served(&self) -> Generation {
        self.elsewhere.unwrap_or(self.store.wanted.current)
    }

    /// Returns true if the witness has voted for what this site serves.
    pub(super) fn has_witness_vote(&self) -> bool {
        self.config.witness.is_some()
            && self.owed.is_empty()
            && self.witness.content.current.is_same_data(self.served())
    }

    /// Returns true if this site's data descends from the content of the witness.
    fn descends_from(&self, former: Generation) -> bool {
        let block = &self.store.wanted;
        if mutated!(self, IgnoreWitness) {
            return former.has_data();
        }
        let mut ancestors =
            block.history.iter().copied().chain(block.slots.iter().map(|slot| slot.generation));
        former.is_same_data(self.served())
            || former.is_same_data(block.current)
            || ancestors.any(|ancestor| former.is_same_data(ancestor))
            || self.witness.passed.contains(&former)
    }

    /// Returns true if the witness can be asked for a vote. One that knows nothing has none: it may have forgotten.
    pub(super) fn has_witness(&self) -> bool {
        self.witness.is_heard && self.descends_from(self.witness.content.current)
    }

    /// The content for a promotion: nothing if the witness knows nothing. The generation is this site's own if its data
    /// descends from what the witness knows.
    pub(super) fn witness_for_promotion(&self) -> Option<Content> {
        let content = self.witness().filter(|content| content.current.has_data())?;
        match self.descends_from(content.current) {
            true => Some(Content { current: self.store.wanted.current, ..content }),
            false => Some(content),
        }
    }

    /// The sites with the data that this one serves.
    fn holders(&self) -> Mask {
        let own = if self.is_local { Mask::of(self.config.site.get()) } else { Mask(0) };
        let equal = self.peers.iter().filter(|peer| peer.has_all());
        equal.fold(own, |mask, peer| mask | Mask::of(peer.site.get()))
    }

    pub(super) fn witness_connected(&mut self, sites: Mask) {
        let Some(site) = self.config.witness else { return };
        let linked = sites.contains(site.get());
        let was_linked = std::mem::replace(&mut self.witness.linked, linked);
        match (was_linked, linked) {
            (false, true) => self.ask_witness(false),
            (true, false) => self.witness_lost("the connection to the witness ended"),
            _ => {}
        }
    }

    fn witness_lost(&mut self, why: &'static str) {
        let Some(site) = self.config.witness else { return };
        if std::mem::take(&mut self.witness.is_heard) {
            self.note(Note::Lost(site, why));
        }
        let was_voting = self.witness.asked.take().is_some_and(|(_, is_vote)| is_vote);
        if was_voting {
            self.vote_ended();
        }
    }

    /// Asks for the content or for a vote.
    fn ask_witness(&mut self, is_vote: bool) {
        let Some(site) = self.config.witness.filter(|_| self.witness.linked) else { return };
        let number = self.random.u64(..);
        let fresh = Content { current: self.served(), holders: self.holders() };
        let swap = Swap { seen: self.witness.content.current, fresh };
        let ask = Ask { number, swap: Some(swap).filter(|_| is_vote) };
        (self.witness.asked, self.witness.since) = (Some((number, is_vote)), self.now);
        let payload = Bytes::from(ask.encode());
        let (own, resource) = (self.config.site, self.config.resource);
        let kind = PacketType::SC_PRI_PRO;
        let header = packet::encode(kind, resource, own, site, &Fields::default(), payload.len());
        self.out.push(Action::Send(site, header, payload));
    }

    pub(super) fn witness_answers(&mut self, payload: &[u8]) {
        let Some(Answer { number, content }) = Answer::decode(payload) else { return };
        if !self.witness.linked || self.witness.asked.is_none_or(|(asked, _)| asked != number) {
            return;
        }
        self.witness.asked = None;
        if !std::mem::replace(&mut self.witness.is_heard, true) {
            if let Some(site) = self.config.witness {
                self.note(Note::Joined(site));
            }
        }
        if !content.current.has_data() && self.is_primary() && self.has_witness_vote() {
            // Its memory was made anew, and it votes for nobody before it knows what this primary serves.
            let former = std::mem::replace(&mut self.witness.content, content);
            self.ask_witness(true);
            self.witness.content = former;
            return;
        }
        self.witness.content = content;
        let wants_vote =
            self.claim == Claim::Witnessing || matches!(self.role_change, Change::Witnessing { .. });
        match wants_vote {
            true if content.current.is_same_data(self.served()) => self.vote_ended(),
            true if self.may_ask_witness() => self.ask_witness(true),
            true => self.vote_ended(),
            false => {
                self.note_quorum();
                self.make_claim();
                self.release();
            }
        }
    }

    fn may_ask_witness(&self) -> bool {
        match self.role_change {
            Change::Witnessing { forced: true, .. } => self.witness.is_heard,
            _ => self.has_witness(),
        }
    }

    /// The witness has voted, has refused, or is gone.
    fn vote_ended(&mut self) {
        if let Change::Witnessing { .. } = self.role_change {
            return self.promotion_voted();
        }
        if self.claim == Claim::Witnessing {
            self.claim_voted();
        }
    }

    /// Returns true if this site and those that are not missing are more than half of all that vote.
    pub(super) fn has_sites_for(&self, missing: Mask) -> bool {
        let far = self.config.asynchronous;
        let voters = |sites: Mask| (sites.0 & !far.0).count_ones();
        let all = voters(self.store.wanted.members);
        (all - voters(Mask(missing.0 & self.store.wanted.members.0))) * 2 > all + 1
    }

    /// Returns true if a site may be about to say what it has: a vote against it now could give up what was answered.
    pub(super) fn is_meeting(&self) -> bool {
        let meets = |peer: &Peer| {
            let is_new = self.now.saturating_sub(peer.apart_since) < MEETING;
            let may_replicate = peer.decision.is_none_or(|(decision, _)| decision.replicates());
            // It has what is not here, however long the session takes to begin.
            let counts =
                peer.decision.is_some_and(|(decision, _)| decision.target() == Some(self.config.site));
            peer.linked
                && peer.stage != Stage::Joined
                && (peer.session != 0 || counts || is_new && may_replicate)
        };
        self.config.witness.is_some() && self.voters().any(meets)
    }

    fn linked_voters(&self) -> Mask {
        let linked = self.voters().filter(|peer| peer.linked);
        linked.fold(Mask(0), |mask, peer| mask | Mask::of(peer.site.get()))
    }

    /// Returns true if the witness has to vote for a promotion that these sites miss.
    pub(super) fn needs_vote(&self, missing: Mask) -> bool {
        self.config.witness.is_some() && !self.has_sites_for(missing)
    }

    /// A promotion that these sites miss is about to draw its generation. None of them may get that from here while it can
    /// still be refused.
    pub(super) fn prepare_vote(&mut self, missing: Mask) {
        self.witness.before = None;
        if !self.needs_vote(missing) {
            return;
        }
        for i in 0..self.peers.len() {
            if self.peers.get(i).is_some_and(|peer| !peer.is_equal()) {
                self.lose_for(i, "a promotion here waits for the witness", false);
            }
        }
        self.owed = Mask(0);
        self.witness.before = Some((Box::new(self.store.wanted.clone()), self.linked_voters()));
    }

    /// The witness has voted for this site, or not.
    fn promotion_voted(&mut self) {
        let Change::Witnessing { ballot, missing, forced } = self.role_change else { return };
        let before = self.witness.before.take();
        // A site that came while the vote was waited for may have what is not here, as in `is_meeting`.
        let has_come =
            !forced && before.as_ref().is_some_and(|(_, then)| self.linked_voters().0 & !then.0 != 0);
        let has_voted = self.witness.content.current.is_same_data(self.served());
        if has_voted && self.follows.is_none() && self.is_local && !has_come {
            return self.begin_role(ballot, missing);
        }
        let refusal = if has_voted && has_come { Refusal::Busy } else { self.no_vote() };
        (self.role_change, self.owed) = (Change::None, Mask(0));
        if let Some((before, _)) = before {
            // Without an answer nobody knows what it stored.
            let is_open = !self.witness.is_heard;
            self.store.wanted.undo_promotion(&before, is_open || has_voted);
        }
        self.tell_voters(ballot, Phase::Abort);
        self.change(Then::Greet);
        self.refuse(refusal);
    }

    /// Begins to wait for the witness's vote. It may have stored another site's generation since this one looked.
    pub(super) fn want_vote(&mut self) {
        match self.may_ask_witness() {
            true => self.ask_witness(true),
            false => self.vote_ended(),
        }
    }

    /// A site has joined: what one of the two had drawn and never answered in is given up, unless the other takes it.
    pub(super) fn note_void(&mut self, i: usize) {
        let Some(Peer { own: Some((own, _)), theirs: Some((theirs, _)), part, .. }) = self.peers.get(i)
        else {
            return;
        };
        let (facts, other) = match part {
            Part::Source | Part::Equal => (theirs, own),
            Part::Target => (own, theirs),
            Part::Idle => return,
        };
        let current = facts.current;
        let is_void = facts.flags.contains(DiskFlags::UNANSWERED) && current != other.current;
        self.note_passed(Some(current).filter(|_| is_void));
    }

    /// Notes a generation that is none to be kept back for.
    pub(super) fn note_passed(&mut self, former: Option<Generation>) {
        if let Some(former) = former.filter(|_| self.config.witness.is_some()) {
            self.witness.note_passed(former);
        }
    }

    pub(super) fn tick_witness(&mut self) {
        let is_late = self.now.saturating_sub(self.witness.since) >= AGAIN;
        match self.witness.asked {
            _ if self.config.witness.is_none() || !self.witness.linked => {}
            None if self.owes_witness() => self.ask_witness(true),
            None if is_late => self.ask_witness(false),
            Some(_) if is_late => {
                self.witness_lost("the witness does not answer");
                self.ask_witness(false);
            }
            _ => {}
        }
    }

    /// Returns true if the witness is to store what this primary serves, though the sites alone have a majority: so it can vote when
    /// they have none any more.
    fn owes_witness(&self) -> bool {
        let seen = self.witness.content;
        let wanted = Content { current: self.served(), holders: self.holders() };
        let has_sites = self.is_primary() && self.owed.is_empty() && !self.lacks_quorum();
        let is_settled =
            self.claim == Claim::Idle && !self.store.wanted.flags.contains(DiskFlags::UNANSWERED);
        // All sites are equal: their agreement counts.
        let are_all_equal = self.is_local && self.voters().all(Peer::is_equal);
        let may_tell = !seen.current.has_data() || are_all_equal || self.descends_from(seen.current);
        self.witness.is_heard
            && has_sites
            && is_settled
            && may_tell
            && wanted.current.has_data()
            && seen != wanted
    }

    /// The reason for which the witness did not vote.
    fn no_vote(&self) -> Refusal {
        match self.witness() {
            _ if !self.is_local => Refusal::Objections(vec![Objection::Failed]),
            Some(content) if content.current.has_data() && !self.descends_from(content.current) => {
                Refusal::Objections(vec![Objection::WitnessKnowsNewer(content.holders)])
            }
            _ => Refusal::Missing(self.config.witness.map_or(Mask(0), |site: SiteId| Mask::of(site.get()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_passed_generations_are_kept() {
        let mut witness = Witness::default();
        let drawn = |n: u64| Generation::draw(n << 8, true);
        (0..1000).for_each(|n| witness.note_passed(drawn(n)));
        // Noted again, it is the newest.
        witness.note_passed(drawn(950));
        (1000..1060).for_each(|n| witness.note_passed(drawn(n)));
        assert_eq!(witness.passed.len(), PASSED);
        assert!(witness.passed.contains(&drawn(950)) && witness.passed.contains(&drawn(1059)));
        assert!(!witness.passed.contains(&drawn(949)));
    }
}
