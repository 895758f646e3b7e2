//! The role: becoming primary by a ballot, so that two sites cannot both succeed.
//!
//! The conditions are those of [`promotion`](crate::nbd::mirror::promotion). Must never promote a disk that is half-synced,
//! outdated or of unknown history without force, nor one at all that a site within reach objects to. Called by the core.

use std::time::Duration;

use bytes::Bytes;

use super::event::{Action, Command, Refusal};
use super::packet::Fields;
use super::peer::{Part, Stage};
use super::superblock::Then;
use super::{Core, Peer, mutated};
use crate::nbd::disk::format::DiskFlags;
use crate::nbd::mirror::ballot::{Ballot, Step};
use crate::nbd::mirror::control::{Phase, Vote};
use crate::nbd::mirror::promotion::{Candidacy, Objection, Reachable, Verdict, assess, force};
use crate::nbd::mirror::{Decision, Facts, Outcome, Reach, Role, Rotate};
use crate::wire::{Mask, PacketType, SiteId};

/// A change of the role that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// None.
    None,
    /// The fencing handler is being called for the sites in `waits`; those in `fenced` are excluded.
    Fencing { waits: Mask, fenced: Mask },
    /// A ballot is open.
    Asking { forced: bool, since: Duration },
    /// The superblock is being written; these sites are missing in it.
    Storing { ballot: Ballot, missing: Mask, forced: bool },
    /// The witness has to store the new generation.
    Witnessing { ballot: Ballot, missing: Mask, forced: bool },
    /// Requests under way are waited for.
    Leaving,
    /// This site leaves the mirror in order: it is being marked as outdated, and the others hear of it.
    Departing { since: Duration },
    /// It has left.
    Left,
}

impl Change {
    /// Returns true if clients begin nothing new.
    pub fn is_leaving(self) -> bool {
        self == Change::Leaving
    }

    /// Returns true if the witness is being asked.
    pub fn is_witnessing(self) -> bool {
        matches!(self, Change::Witnessing { .. })
    }

    /// Returns true if this site has drawn what it is about to serve: a site that is lost now had the data.
    pub fn is_won(self) -> bool {
        matches!(self, Change::Storing { .. } | Change::Witnessing { .. })
    }
}

impl Core {
    pub(super) fn command(&mut self, command: Command) {
        let result = match command {
            Command::Promote { force, fenced } => match self.promote(force, fenced) {
                Ok(()) if !self.is_primary() => return,
                result => result,
            },
            Command::Demote if !self.is_primary() => Err(Refusal::Role),
            Command::Demote if self.role_change != Change::None => Err(Refusal::Busy),
            Command::Demote => return self.demote(),
            Command::Leave => match self.leave() {
                Ok(()) if self.role_change != Change::Left => return,
                result => result,
            },
            Command::Discard if self.is_primary() => Err(Refusal::Role),
            Command::Discard => {
                self.store.wanted.discard();
                self.change(Then::Greet);
                Ok(())
            }
            Command::Resume => self.resume(),
            Command::Checkpoint(name) => self.name_point(name),
            Command::Verify { site } => self.begin_verify(site),
            Command::Grow => match self.grow() {
                Ok(()) => return,
                refused => refused,
            },
            Command::PauseResync { sites, paused } => {
                self.pause(sites, paused);
                Ok(())
            }
            Command::Resync { site, full } => self.resync_anew(site, full),
            Command::Ask { site } => match self.ask_record(site) {
                Ok(()) => return,
                refused => refused,
            },
        };
        self.out.push(Action::Answer(result));
    }

    pub(super) fn refuse(&mut self, refusal: Refusal) {
        self.out.push(Action::Answer(Err(refusal)));
    }

    pub(super) fn promote(&mut self, forced: bool, fenced: Mask) -> Result<(), Refusal> {
        if self.is_primary() {
            return Ok(());
        }
        if self.role_change != Change::None || self.stopped {
            return Err(Refusal::Busy);
        }
        if let Some(primary) = self.follows {
            return Err(Refusal::Objections(vec![Objection::OtherPrimary(primary)]));
        }
        let own = self.facts_with(0, 0);
        let seen: Vec<_> = self.peers.iter().filter_map(|peer| self.seen(&own, peer)).collect();
        let reachable: Vec<_> =
            seen.iter().map(|(facts, decision)| Reachable { facts, decision: *decision }).collect();
        let candidacy = Candidacy {
            own: &own,
            reachable: &reachable,
            fenced,
            can_fence: self.config.tuning.can_fence,
            quorum: self.is_by_majority(),
            asynchronous: self.config.asynchronous,
            has_witness: self.config.witness.is_some(),
            witness: self.witness_for_promotion(),
        };
        if forced {
            force(&candidacy).map_err(Refusal::Objections)?;
        }
        let verdict = assess(&candidacy);
        // Writes that a former primary left are being settled.
        let is_busy = self.is_settling() || self.redo.is_busy() || !forced && self.is_meeting();
        match verdict {
            _ if forced && !is_busy => self.open_ballot(true),
            Verdict::Refused(_) if mutated!(self, PromoteHalfSynced) && !is_busy => self.open_ballot(false),
            Verdict::Refused(objections) if !forced => Err(Refusal::Objections(objections)),
            _ if is_busy => Err(Refusal::Busy),
            Verdict::Already | Verdict::Allowed { .. } => self.open_ballot(false),
            Verdict::Refused(objections) => Err(Refusal::Objections(objections)),
            Verdict::Fence(sites) => {
                self.role_change = Change::Fencing { waits: sites, fenced };
                sites.ids().filter_map(|id| SiteId::try_from(u32::from(id)).ok()).for_each(|site| {
                    self.out.push(Action::Fence(site));
                });
                Ok(())
            }
        }
    }

    /// A site within reach, and what is to happen between the two as it stands now.
    fn seen(&self, own: &Facts, peer: &Peer) -> Option<(Facts, Decision)> {
        let (facts, _) = peer.theirs.as_ref().filter(|_| peer.linked)?;
        let (decision, _) = peer.decision?;
        if peer.stage != Stage::Joined && (peer.session != 0 || decision.replicates()) {
            // It has no vote before the handshake is at its end.
            return None;
        }
        let mut facts = facts.clone();
        if peer.session != 0 {
            // It was primary when it said so.
            facts.role = if self.follows == Some(peer.site) { Role::Primary } else { Role::Secondary };
            facts.follows = None;
        }
        let sync = |source, target| Outcome::Sync { source, target, reach: Reach::Bitmap { of: None } };
        let outcome = match peer.part {
            _ if peer.session == 0 => decision.outcome,
            Part::Equal => Outcome::NoSync,
            Part::Source => sync(own.site, peer.site),
            Part::Target => sync(peer.site, own.site),
            Part::Idle => return None,
        };
        Some((facts, Decision { outcome, ..decision }))
    }

    /// Asks every site that there is a session with.
    fn open_ballot(&mut self, forced: bool) -> Result<(), Refusal> {
        let voters = self.peers.iter().filter(|peer| peer.stage == Stage::Joined);
        let voters = voters.fold(Mask(0), |mask, peer| mask | Mask::of(peer.site.get()));
        let ballot = Ballot { candidate: self.config.site, number: self.random.u64(..) };
        match self.ballots.open(ballot, voters) {
            Err(objection) => Err(Refusal::Objections(vec![objection])),
            Ok(step) => {
                self.role_change = Change::Asking { forced, since: self.now };
                self.tell_voters(ballot, Phase::Prepare(self.store.wanted.current));
                self.step_ballot(step, None);
                Ok(())
            }
        }
    }

    pub(super) fn tell_voters(&mut self, ballot: Ballot, phase: Phase) {
        let payload = Bytes::from(phase.encode(ballot));
        for i in 0..self.peers.len() {
            if self.peers.get(i).is_some_and(|peer| peer.stage == Stage::Joined) {
                self.send(i, PacketType::SC_PRI_PRO, Fields::default(), payload.clone());
            }
        }
    }

    /// The ballot of this site goes on. `because` says why it failed, if it did.
    fn step_ballot(&mut self, step: Step, because: Option<Refusal>) {
        let Change::Asking { forced, .. } = self.role_change else { return };
        match step {
            Step::Wait => {}
            Step::Commit(ballot) => self.store_promotion(ballot, forced),
            Step::Abort(ballot) => {
                self.role_change = Change::None;
                self.tell_voters(ballot, Phase::Abort);
                self.refuse(because.unwrap_or(Refusal::Busy));
            }
        }
    }

    /// A site wants to become primary, or did, or does not any more.
    pub(super) fn peer_promotes(&mut self, i: usize, payload: &[u8]) {
        let Some(peer) = self.peers.get(i) else { return };
        let (site, part) = (peer.site, peer.part);
        let Some((ballot, phase)) = Phase::decode(payload, site) else { return };
        let current = match phase {
            Phase::Commit if self.ballots.end(ballot) => return self.follow(i),
            // Its first write came before, on the other link.
            Phase::Commit if self.follows == Some(site) => return,
            Phase::Commit => return self.lose(i, "it became primary without this site's vote"),
            Phase::Abort => {
                self.ballots.end(ballot);
                return;
            }
            Phase::Prepare(current) => current,
        };
        let objection = match (self.follows, part) {
            _ if self.is_primary() => Some(Objection::OtherPrimary(self.config.site)),
            (Some(primary), _) => Some(Objection::OtherPrimary(primary)),
            (None, Part::Source) => Some(Objection::Newer(self.config.site)),
            (None, Part::Equal) if current != self.store.wanted.current => Some(Objection::Busy(site)),
            (None, Part::Idle) => Some(Objection::Busy(site)),
            _ if self.is_settling() => Some(Objection::Busy(site)),
            // Its own ballot is won, or it leaves.
            _ if !matches!(self.role_change, Change::None | Change::Asking { .. }) => {
                Some(Objection::Busy(self.config.site))
            }
            _ => None,
        };
        let vote = self.ballots.vote(ballot, objection);
        let because_of = vote.err().map(|objection| match objection {
            Objection::OtherPrimary(site) | Objection::Newer(site) | Objection::Busy(site) => site,
            _ => self.config.site,
        });
        let answer = Vote { number: ballot.number, agrees: vote.is_ok(), because_of };
        if let Ok(Some(yielded)) = vote {
            let busy = Refusal::Objections(vec![Objection::Busy(site)]);
            self.step_ballot(Step::Abort(yielded), Some(busy));
        }
        self.send(i, PacketType::SC_PRI_PRO_ACK, Fields::default(), Bytes::from(answer.encode()));
    }

    /// A site writes that this one gave its vote: it is primary. Returns at once for any other.
    pub(super) fn follow_promised(&mut self, i: usize) {
        let Some(site) = self.peers.get(i).map(|peer| peer.site) else { return };
        if let Some(ballot) = self.ballots.promised().filter(|ballot| ballot.candidate == site) {
            self.ballots.end(ballot);
            self.follow(i);
        }
    }

    pub(super) fn vote_came(&mut self, i: usize, payload: &[u8]) {
        let Some(site) = self.peers.get(i).map(|peer| peer.site) else { return };
        let Some(vote) = Vote::decode(payload) else { return };
        let step = self.ballots.count(site, vote.number, vote.agrees);
        let own = self.config.site;
        let objection = match vote.because_of {
            // Because of this site itself: the two are not at the same point yet.
            Some(other) if other != site && other != own => Objection::OtherPrimary(other),
            _ => Objection::Busy(site),
        };
        self.step_ballot(step, Some(Refusal::Objections(vec![objection])));
    }

    fn store_promotion(&mut self, ballot: Ballot, forced: bool) {
        let missing = self.missing();
        self.mark_unstable(missing);
        self.owed = Mask(0);
        self.role_change = Change::Storing { ballot, missing, forced };
        self.prepare_vote(missing);
        let fresh = self.draw();
        let former = self.store.wanted.current;
        let size = self.first_size();
        self.store.wanted.promote(missing, forced, size, fresh);
        self.limit_bitmaps();
        if !forced && former.has_data() && self.store.wanted.current != former {
            // Until the first answer it is only a claim, which must not stand against another site's.
            self.store.wanted.flags.set(DiskFlags::UNANSWERED, true);
        }
        self.store.wanted.begin_writes();
        self.void_log();
        self.change(Then::Promoted);
    }

    pub(super) fn promoted(&mut self) {
        let Change::Storing { ballot, missing, forced } = self.role_change else { return };
        if self.needs_vote(missing) && (!forced || self.witness().is_some()) {
            self.role_change = Change::Witnessing { ballot, missing, forced };
            return self.want_vote();
        }
        self.begin_role(ballot, missing);
    }

    pub(super) fn begin_role(&mut self, ballot: Ballot, missing: Mask) {
        self.role_change = Change::None;
        self.role = Role::Primary;
        self.activity.resize(self.config.active_max);
        let before = self.epochs.current() - 1;
        for i in 0..self.peers.len() {
            let now = self.now;
            if let Some(peer) = self.peers.get_mut(i).filter(|peer| peer.takes_writes()) {
                (peer.stable, peer.progress) = (before, now);
            }
        }
        self.tell_voters(ballot, Phase::Commit);
        (0..self.peers.len()).for_each(|i| self.send_state(i));
        self.owed = self.owed | Mask(self.missing().0 & !missing.0);
        self.note_quorum();
        self.barrier();
        self.out.push(Action::Serve(true));
        self.out.push(Action::Answer(Ok(())));
        // Handshakes under way were about a secondary.
        self.change(Then::Greet);
    }

    /// Silence is no vote.
    pub(super) fn tick_role(&mut self) {
        if let Change::Asking { since, .. } = self.role_change {
            if self.now.saturating_sub(since) > self.config.tuning.slow {
                let step = self.ballots.time_out();
                self.step_ballot(step, Some(Refusal::Busy));
            }
        }
    }

    /// A site was lost while it was asked, or while it held a promise.
    pub(super) fn promotion_lost(&mut self, site: SiteId) {
        let (step, _) = self.ballots.lose(site);
        self.step_ballot(step, Some(Refusal::Missing(Mask::of(site.get()))));
    }
}
