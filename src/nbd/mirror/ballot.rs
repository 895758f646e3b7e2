//! The ballot of a promotion: prepare, a vote of each site that can be reached, commit.
//!
//! A site that voted for another one takes part in no second ballot until it knows how the first ended, so two
//! candidates that can reach one another, or a common voter, cannot both succeed. Must never count silence as a vote.
//! Called by the volume's state machine with the packets SC_PRI_PRO and SC_PRI_PRO_ACK.

use super::promotion::Objection;
use crate::wire::{Mask, SiteId};

/// A ballot, known by its candidate and a number that the candidate never uses twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ballot {
    /// The site that wants to be primary.
    pub candidate: SiteId,
    /// The ballot's number, random.
    pub number: u64,
}

/// The state of a site in a ballot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum State {
    #[default]
    Idle,
    /// The site is the candidate, and waits for the votes of these sites.
    Asking(Ballot, Mask),
    /// The site gave its vote.
    Promised(Ballot),
}

/// The next step of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: votes are missing, or the packet is of another ballot.
    Wait,
    /// All have agreed: become primary durably, then send the commit to them.
    Commit(Ballot),
    /// It failed: send the abort to all voters.
    Abort(Ballot),
}

/// A site's part in ballots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ballots {
    state: State,
}

impl Ballots {
    /// Opens a ballot among `voters`; without any voter it is won at once.
    ///
    /// # Errors
    /// Another ballot is under way.
    pub fn open(&mut self, ballot: Ballot, voters: Mask) -> Result<Step, Objection> {
        match self.state {
            State::Idle if voters.is_empty() => Ok(Step::Commit(ballot)),
            State::Idle => {
                self.state = State::Asking(ballot, voters);
                Ok(Step::Wait)
            }
            State::Asking(other, _) | State::Promised(other) => Err(Objection::Busy(other.candidate)),
        }
    }

    /// Gives or denies this site's vote to a candidate. `objection` is this site's own reason against it. If two sites are
    /// candidates at once, the lower id goes first, and the other's own ballot, which is returned, has to be aborted.
    ///
    /// # Errors
    /// The vote is no.
    pub fn vote(
        &mut self,
        ballot: Ballot,
        objection: Option<Objection>,
    ) -> Result<Option<Ballot>, Objection> {
        let yielded = match self.state {
            State::Promised(other) if other.candidate != ballot.candidate => {
                return Err(Objection::Busy(other.candidate));
            }
            State::Asking(own, _) if own.candidate < ballot.candidate => {
                return Err(Objection::Busy(own.candidate));
            }
            State::Asking(own, _) => Some(own),
            State::Promised(_) | State::Idle => None,
        };
        if let Some(objection) = objection {
            return Err(objection);
        }
        self.state = State::Promised(ballot);
        Ok(yielded)
    }

    /// Counts a vote that came from a site.
    pub fn count(&mut self, from: SiteId, number: u64, agrees: bool) -> Step {
        let State::Asking(ballot, waiting) = self.state else { return Step::Wait };
        if ballot.number != number || !waiting.contains(from.get()) {
            return Step::Wait;
        }
        let waiting = Mask(waiting.0 & !Mask::of(from.get()).0);
        self.state = if agrees && !waiting.is_empty() { State::Asking(ballot, waiting) } else { State::Idle };
        match agrees {
            true if waiting.is_empty() => Step::Commit(ballot),
            true => Step::Wait,
            false => Step::Abort(ballot),
        }
    }

    /// Ends a ballot by its candidate's packet. Returns true if this site had voted for it.
    pub fn end(&mut self, ballot: Ballot) -> bool {
        let ends = self.state == State::Promised(ballot);
        if ends {
            self.state = State::Idle;
        }
        ends
    }

    /// Returns the ballot that this site gave its vote in, and whose end it does not know.
    pub fn promised(&self) -> Option<Ballot> {
        match self.state {
            State::Promised(ballot) => Some(ballot),
            State::Idle | State::Asking(..) => None,
        }
    }

    /// Ends the wait for votes: the time is over.
    pub fn time_out(&mut self) -> Step {
        match self.state {
            State::Asking(ballot, _) => {
                self.state = State::Idle;
                Step::Abort(ballot)
            }
            State::Idle | State::Promised(_) => Step::Wait,
        }
    }

    /// Removes a lost site: a ballot that waits for its vote has failed. The second part is true if this site had voted for
    /// the lost site: then it may be primary, and counts as one that cannot be reached.
    pub fn lose(&mut self, site: SiteId) -> (Step, bool) {
        match self.state {
            State::Asking(_, waiting) if waiting.contains(site.get()) => (self.time_out(), false),
            State::Promised(ballot) if ballot.candidate == site => {
                self.state = State::Idle;
                (Step::Wait, true)
            }
            _ => (Step::Wait, false),
        }
    }
}
