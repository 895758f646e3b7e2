//! Tests of promotion: its conditions, the ballot in every order of its messages, and the payloads of its packets.

use std::collections::{BTreeSet, VecDeque};

use super::super::ballot::{Ballot, Ballots, Step};
use super::super::control::{Leave, Phase, StateNote, Vote};
use super::super::promotion::{
    Candidacy, Fencing, Objection, Reachable, Verdict, Witness, assess, force, may_go_on,
};
use super::*;
use crate::nbd::disk::format::Superblock;

fn alone(own: &Facts) -> Candidacy<'_> {
    Candidacy {
        own,
        reachable: &[],
        fenced: Mask::default(),
        can_fence: false,
        asynchronous: Mask::default(),
        quorum: false,
        has_witness: false,
        witness: None,
    }
}

fn refused(verdict: Verdict) -> Vec<Objection> {
    match verdict {
        Verdict::Refused(objections) => objections,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_site_alone_needs_fencing_an_outdated_peer_or_force() {
    let mut own = facts(0, 2);
    let missing = Mask::of(1);
    assert_eq!(refused(assess(&alone(&own))), [Objection::Unknown(missing)]);
    assert_eq!(assess(&Candidacy { can_fence: true, ..alone(&own) }), Verdict::Fence(missing));
    assert_eq!(assess(&Candidacy { fenced: missing, ..alone(&own) }), Verdict::Allowed { missing });
    let (forced, risks) = force(&alone(&own)).unwrap();
    assert_eq!(forced, missing);
    assert!(risks[0].contains("{1} cannot be reached and may be primary"), "{risks:?}");
    own.of(1).flags |= SlotFlags::OUTDATED;
    assert_eq!(assess(&alone(&own)), Verdict::Allowed { missing });
    own.role = Role::Primary;
    assert_eq!(assess(&alone(&own)), Verdict::Already);
}

#[test]
fn the_handlers_exit_status_says_whether_the_peer_is_out() {
    for (status, outcome) in [
        (3, Fencing::Done),
        (4, Fencing::Done),
        (7, Fencing::Done),
        (5, Fencing::Failed),
        (0, Fencing::Failed),
        (1, Fencing::Failed),
        (6, Fencing::IsPrimary),
    ] {
        assert_eq!(Fencing::from_exit_status(status), outcome, "{status}");
    }
}

#[test]
fn no_bad_disk_is_promoted_and_force_says_what_may_be_lost() {
    let bad = |change: fn(&mut Facts), objection: Objection| {
        let mut own = facts(0, 2);
        change(&mut own);
        let candidacy = Candidacy { fenced: Mask::of(1), ..alone(&own) };
        assert_eq!(refused(assess(&candidacy)), [objection]);
        let (_, risks) = force(&candidacy).unwrap();
        assert_eq!(risks[0], objection.to_string());
        risks
    };
    bad(|own| own.flags |= DiskFlags::FAILED, Objection::Failed);
    bad(|own| own.flags |= DiskFlags::OUTDATED, Objection::Outdated);
    bad(|own| own.current = Generation::JUST_CREATED, Objection::JustCreated);
    let risks = bad(
        |own| {
            own.flags.set(DiskFlags::CONSISTENT, false);
            own.of(1).flags |= SlotFlags::SYNC_TARGET;
            own.of(1).out_of_sync = 3 << 20;
        },
        Objection::HalfSynced,
    );
    assert_eq!(risks[1], "3.0 MiB were still to come from site 1");
}

/// A site that can be reached has newer data, which it cannot give: only a person may go on with the older.
#[test]
fn a_site_beside_one_with_newer_data_needs_force() {
    let (own, peer) = (facts(0, 2), facts(1, 2));
    for why in [Why::Outdated(peer.site), Why::HalfSynced(peer.site)] {
        let decision = Decision { outcome: Outcome::Refuse(why), ..decide(&own, &peer) };
        let reachable = [Reachable { facts: &peer, decision }];
        let candidacy = Candidacy { reachable: &reachable, quorum: true, ..alone(&own) };
        assert_eq!(refused(assess(&candidacy)), [Objection::Outdated]);
        assert!(force(&candidacy).is_ok());
        let newest_here = Decision { outcome: Outcome::Refuse(Why::Outdated(own.site)), ..decision };
        let reachable = [Reachable { facts: &peer, decision: newest_here }];
        assert!(matches!(assess(&Candidacy { reachable: &reachable, ..candidacy }), Verdict::Allowed { .. }));
    }
}

#[test]
fn not_even_force_goes_over_a_site_that_can_be_asked() {
    let (own, mut peer) = (facts(0, 2), facts(1, 2));
    let with = |peer: &Facts, objection: Option<Objection>| {
        let reachable = [Reachable { facts: peer, decision: decide(&own, peer) }];
        let candidacy = Candidacy { reachable: &reachable, ..alone(&own) };
        match objection {
            None => assert_eq!(assess(&candidacy), Verdict::Allowed { missing: Mask::default() }),
            Some(objection) => {
                assert_eq!(refused(assess(&candidacy)), [objection]);
                assert_eq!(force(&candidacy), Err(vec![objection]));
            }
        }
    };
    with(&peer, None);
    peer.role = Role::Primary;
    with(&peer, Some(Objection::OtherPrimary(site(1))));
    peer.role = Role::Secondary;
    peer.current = generation(2);
    peer.of(0).generation = generation(1);
    with(&peer, Some(Objection::Resyncing(site(1))));
}

#[test]
fn a_majority_promotes_unless_the_witness_knows_better() {
    let own = facts(0, 2);
    let witness = |current, holders| Some(Witness { current: generation(current), holders: Mask(holders) });
    let mut candidacy = Candidacy { quorum: true, has_witness: true, ..alone(&own) };
    assert_eq!(refused(assess(&candidacy)), [Objection::NoQuorum { present: 1, needed: 2 }]);
    assert!(!may_go_on(&candidacy));
    candidacy.witness = witness(1, 3);
    assert_eq!(assess(&candidacy), Verdict::Allowed { missing: Mask::of(1) });
    assert!(may_go_on(&candidacy));
    candidacy.witness = witness(2, 2);
    assert_eq!(refused(assess(&candidacy)), [Objection::WitnessKnowsNewer(Mask(2))]);
    // Two sites have no majority of their own.
    assert!(!may_go_on(&Candidacy { quorum: true, ..alone(&own) }));
    assert!(may_go_on(&alone(&own)));
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Message {
    Prepare(u64),
    Vote(u64, bool),
    End(u64, bool),
}

#[derive(Clone, Default)]
struct World {
    ballots: [Ballots; 3],
    primary: [bool; 3],
    follows: [bool; 3],
    // From, to; each pair in order.
    links: [[VecDeque<Message>; 3]; 3],
}

impl World {
    fn step(&mut self, own: usize, step: Step) {
        let (number, won) = match step {
            Step::Wait => return,
            Step::Commit(ballot) => (ballot.number, true),
            Step::Abort(ballot) => (ballot.number, false),
        };
        self.primary[own] |= won;
        for other in (0..3).filter(|other| *other != own) {
            self.links[own][other].push_back(Message::End(number, won));
        }
    }

    fn deliver(&mut self, from: usize, to: usize) {
        let Some(message) = self.links[from][to].pop_front() else { return };
        let ballot = |number| Ballot { candidate: site(from as u32), number };
        match message {
            Message::Prepare(number) => {
                let objection =
                    (self.primary[to] || self.follows[to]).then_some(Objection::OtherPrimary(site(9)));
                let vote = self.ballots[to].vote(ballot(number), objection);
                if let Ok(Some(yielded)) = vote {
                    self.step(to, Step::Abort(yielded));
                }
                self.links[to][from].push_back(Message::Vote(number, vote.is_ok()));
            }
            Message::Vote(number, agrees) => {
                let step = self.ballots[to].count(site(from as u32), number, agrees);
                self.step(to, step);
            }
            Message::End(number, won) => {
                self.ballots[to].end(ballot(number));
                self.follows[to] |= won;
            }
        }
    }
}

#[test]
fn in_no_order_of_messages_do_two_ballots_succeed() {
    let (mut seen, mut outcomes) = (BTreeSet::new(), BTreeSet::new());
    for candidates in [vec![0, 1], vec![0, 2], vec![1, 2], vec![0, 1, 2]] {
        let mut world = World::default();
        for own in candidates.iter().copied() {
            let voters = Mask(0b111 & !(1 << own));
            let ballot = Ballot { candidate: site(own as u32), number: 10 + own as u64 };
            assert_eq!(world.ballots[own].open(ballot, voters), Ok(Step::Wait));
            for other in (0..3).filter(|other| *other != own) {
                world.links[own][other].push_back(Message::Prepare(ballot.number));
            }
        }
        let mut todo = vec![world];
        while let Some(world) = todo.pop() {
            if !seen
                .insert(format!("{:?}{:?}{:?}{:?}", world.ballots, world.primary, world.follows, world.links))
            {
                continue;
            }
            let primaries = world.primary.iter().filter(|is| **is).count();
            assert!(primaries <= 1, "{:?}", world.primary);
            let pairs = (0..3).flat_map(|from| (0..3).map(move |to| (from, to)));
            let mut quiet = true;
            for (from, to) in pairs.filter(|(from, to)| !world.links[*from][*to].is_empty()) {
                quiet = false;
                let mut next = world.clone();
                next.deliver(from, to);
                todo.push(next);
            }
            if quiet {
                outcomes.insert((candidates.len(), primaries));
                // After every result no site is left bound.
                let idle = Ballots::default();
                assert!(world.ballots.iter().all(|ballots| *ballots == idle), "{:?}", world.ballots);
            }
        }
    }
    assert!(seen.len() > 1000 && outcomes.contains(&(2, 1)), "{} states, {outcomes:?}", seen.len());
}

#[test]
fn a_lost_voter_fails_a_ballot_and_a_lost_candidate_may_be_primary() {
    let ballot = Ballot { candidate: site(0), number: 1 };
    let mut candidate = Ballots::default();
    assert_eq!(candidate.open(ballot, Mask(0b110)), Ok(Step::Wait));
    assert_eq!(candidate.count(site(1), 2, true), Step::Wait);
    assert_eq!(candidate.count(site(1), 1, true), Step::Wait);
    assert_eq!(candidate.lose(site(1)), (Step::Wait, false));
    assert_eq!(candidate.lose(site(2)), (Step::Abort(ballot), false));
    assert_eq!(candidate.open(ballot, Mask::default()), Ok(Step::Commit(ballot)));
    let mut voter = Ballots::default();
    assert_eq!(voter.vote(ballot, None), Ok(None));
    assert_eq!(voter.time_out(), Step::Wait);
    let own = Ballot { candidate: site(1), number: 7 };
    assert_eq!(voter.open(own, Mask(0b101)), Err(Objection::Busy(site(0))));
    assert_eq!(voter.lose(site(0)), (Step::Wait, true));
    assert_eq!(voter.open(own, Mask(0b101)), Ok(Step::Wait));
}

#[test]
fn payloads_come_in_as_they_went_out_and_no_cut_does() {
    let ballot = Ballot { candidate: site(1), number: 77 };
    let state = StateNote {
        role: Role::Primary,
        flags: DiskFlags::CONSISTENT,
        current: generation(3),
        write_counter: 5,
    };
    let leave = Leave { outdated: true, current: generation(3), write_counter: 6 };
    let vote = Vote { number: 77, agrees: false, because_of: Some(site(2)) };
    assert_eq!(StateNote::decode(&state.encode()), Some(state));
    assert_eq!(Leave::decode(&leave.encode()), Some(leave));
    assert_eq!(Vote::decode(&vote.encode()), Some(vote));
    for phase in [Phase::Prepare(generation(3)), Phase::Commit, Phase::Abort] {
        assert_eq!(Phase::decode(&phase.encode(ballot), site(1)), Some((ballot, phase)));
        assert_eq!(Phase::decode(&phase.encode(ballot), site(2)), None);
    }
    for bytes in [state.encode(), leave.encode(), vote.encode(), Phase::Commit.encode(ballot)] {
        for len in 0..bytes.len() {
            let cut = &bytes[..len];
            let read = StateNote::decode(cut).is_some()
                || Leave::decode(cut).is_some()
                || Vote::decode(cut).is_some()
                || Phase::decode(cut, site(1)).is_some();
            assert!(!read, "{len} of {}", bytes.len());
        }
        let longer = [bytes.as_slice(), &[1, 2, 3]].concat();
        assert!(!longer.starts_with(b"HADMDST1") || StateNote::decode(&longer).is_some());
    }
}

/// A promotion that is refused leaves nothing but the generation that it drew, where that may have been stored elsewhere.
#[test]
fn a_refused_promotion_is_undone() {
    let mut before = Superblock { current: generation(1), ..Superblock::default() };
    before.flags |= DiskFlags::CONSISTENT | DiskFlags::PRIMARY;
    assert!(before.admit(site(1)));
    before.join(&facts(1, 2), &decide(&facts(0, 2), &facts(1, 2)));
    for may_count in [false, true] {
        let mut block = before.clone();
        block.promote(Mask::of(1), false, 1 << 20, generation(2));
        block.begin_writes();
        block.disconnect(site(1));
        block.undo_promotion(&before, may_count);
        assert_eq!(block.history.contains(&generation(2)), may_count);
        assert_eq!((block.current, block.flags), (before.current, before.flags));
        assert_eq!((block.slots[0].generation, block.agreed_size), (Generation::NONE, before.agreed_size));
        assert!(!block.slots[0].flags.contains(SlotFlags::CONNECTED) && block.write_counter > 0);
        block.fail();
        block.undo_promotion(&before, may_count);
        assert!(block.flags.contains(DiskFlags::FAILED));
    }
}
