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
use super::peer::Part;
use super::role::Change;
use super::superblock::Then;
use super::{Core, Peer, mutated};
use crate::nbd::disk::format::DiskFlags;
use crate::nbd::mirror::control::Phase;
use crate::nbd::mirror::promotion::{Objection, Witness as Content};
use crate::nbd::mirror::witness::{Answer, Ask, Swap};
use crate::nbd::mirror::{Generation, Rotate};
use crate::wire::{Mask, PacketType, SiteId};

/// Time after which the witness is asked again, for its content or for an answer that did not come.
const AGAIN: Duration = Duration::from_secs(1);

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
    /// Generations that were never answered in, and never will be: their sites have given them up.
    void: Vec<Generation>,
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
            || self.witness.void.contains(&former)
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

    /// The witness has voted for this site, or not.
    fn promotion_voted(&mut self) {
        let Change::Witnessing { ballot, missing, former, .. } = self.role_change else { return };
        if self.has_witness_vote() && self.follows.is_none() && self.is_local {
            return self.begin_role(ballot, missing);
        }
        self.role_change = Change::None;
        let refusal = self.no_vote();
        self.store.wanted.demote();
        for flag in [DiskFlags::UP_TO_DATE, DiskFlags::OUTDATED, DiskFlags::LOST_QUORUM] {
            self.store.wanted.flags.set(flag, former.contains(flag));
        }
        self.tell_voters(ballot, Phase::Abort);
        // A site that copies from here, or has all, is to meet the generation that was drawn for nothing.
        (0..self.peers.len()).for_each(|i| self.lose_for(i, "a promotion here was refused", false));
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
        let facts = match part {
            Part::Source | Part::Equal => theirs,
            Part::Target => own,
            Part::Idle => return,
        };
        let current = facts.current;
        let is_void = facts.flags.contains(DiskFlags::UNANSWERED) && !self.witness.void.contains(&current);
        if self.config.witness.is_some() && is_void {
            self.witness.void.push(current);
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
        let may_tell = !seen.current.has_data() || self.descends_from(seen.current);
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
            Some(content) if content.current.has_data() && !self.descends_from(content.current) => {
                Refusal::Objections(vec![Objection::WitnessKnowsNewer(content.holders)])
            }
            _ => Refusal::Missing(self.config.witness.map_or(Mask(0), |site: SiteId| Mask::of(site.get()))),
        }
    }
}
