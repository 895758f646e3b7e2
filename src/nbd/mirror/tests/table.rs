//! Tests of each row of the table: its conditions and its outcome.

use std::collections::BTreeSet;

use super::super::choices::{OnePrimary, Policies, RoleConflict, TwoPrimaries, ZeroPrimaries};
use super::*;

const BITS: Reach = Reach::Bitmap { of: None };

fn sync(source: u32, target: u32, reach: Reach) -> Outcome {
    Outcome::Sync { source: site(source), target: site(target), reach }
}

struct Case {
    name: &'static str,
    sites: u32,
    set: fn(&mut Facts, &mut Facts),
    row: Row,
    outcome: Outcome,
}

fn parted(a: &mut Facts, b: &mut Facts) {
    for (facts, peer, current) in [(a, 1, 2), (b, 0, 3)] {
        facts.of(peer).generation = generation(1);
        facts.of(peer).out_of_sync = 1 << 20;
        facts.current = generation(current);
        facts.history = vec![generation(1)];
    }
}

fn cases() -> Vec<Case> {
    let case = |name, row, outcome, set| Case { name, sites: 2, set, row, outcome };
    let three = |name, row, outcome, set| Case { name, sites: 3, set, row, outcome };
    vec![
        case("copied device", Row::Obstacle, Outcome::Refuse(Why::SameDevice), |a, b| b.device = a.device),
        case("policies differ", Row::Obstacle, Outcome::Refuse(Why::Policies), |a, _| {
            a.policies.zero = ZeroPrimaries::DiscardYounger;
        }),
        case(
            "a disk became smaller",
            Row::Obstacle,
            Outcome::Refuse(Why::TooSmall { site: site(1), size: 4096, agreed: 1 << 30 }),
            |_, b| b.size = 4096,
        ),
        case("both new", Row::BothJustCreated, Outcome::JustCreatedBoth, |a, b| {
            a.current = Generation::JUST_CREATED;
            b.current = Generation::JUST_CREATED;
            b.flags |= DiskFlags::ZEROED;
        }),
        case("both new and zero", Row::BothZeroed, Outcome::NoSync, |a, b| {
            for facts in [a, b] {
                facts.current = Generation::JUST_CREATED;
                facts.flags |= DiskFlags::ZEROED;
            }
        }),
        case("one new", Row::OneJustCreated, sync(1, 0, Reach::Full), |a, _| {
            a.current = Generation::JUST_CREATED;
        }),
        case("one without superblock", Row::OneJustCreated, sync(0, 1, Reach::Full), |_, b| {
            b.current = Generation::NONE;
        }),
        case("no superblock on either", Row::OneJustCreated, Outcome::Refuse(Why::NoGoodData), |a, b| {
            a.current = Generation::NONE;
            b.current = Generation::JUST_CREATED;
        }),
        case("missed end", Row::MissedEnd, sync(1, 0, BITS), |_, b| b.of(0).generation = generation(9)),
        case("a survivor that a third site brought to it", Row::Survivor, sync(1, 0, BITS), |a, b| {
            a.flags |= DiskFlags::PRIMARY | DiskFlags::WRITING;
            a.of(1).generation = generation(9);
            b.flags.set(DiskFlags::UP_TO_DATE, false);
        }),
        case("a survivor that was copied to when it died", Row::Survivor, sync(1, 0, BITS), |a, b| {
            a.flags |= DiskFlags::PRIMARY | DiskFlags::WRITING;
            a.of(1).generation = generation(9);
            a.of(1).flags |= SlotFlags::SYNC_SOURCE;
            b.flags.set(DiskFlags::UP_TO_DATE, false);
        }),
        case("only reconnected", Row::Reconnected, Outcome::NoSync, |a, b| {
            (a.last_session, b.last_session) = (5, 5);
            a.role = Role::Primary;
            a.flags |= DiskFlags::PRIMARY | DiskFlags::WRITING;
            b.flags |= DiskFlags::WRITING;
        }),
        case("async, crash", Row::AsynchronousCrash, sync(0, 1, BITS), |a, b| {
            a.flags |= DiskFlags::PRIMARY | DiskFlags::WRITING;
            b.last_session = 5;
            (a.asynchronous, b.asynchronous) = (true, true);
        }),
        case("lost quorum", Row::LostQuorum, sync(1, 0, BITS), |a, b| {
            b.flags |= DiskFlags::LOST_QUORUM;
            a.of(1).out_of_sync = 4096;
        }),
        case("survivor", Row::Survivor, sync(1, 0, BITS), |a, b| {
            a.flags |= DiskFlags::PRIMARY | DiskFlags::WRITING;
            b.last_session = 5;
        }),
        case("survivor that restarted later", Row::Survivor, sync(1, 0, BITS), |a, b| {
            a.flags |= DiskFlags::PRIMARY | DiskFlags::WRITING;
            b.flags.set(DiskFlags::UP_TO_DATE, false);
        }),
        case("both down, one crashed", Row::BothDown, sync(1, 0, BITS), |_, b| {
            b.flags |= DiskFlags::PRIMARY | DiskFlags::WRITING;
        }),
        case("both crashed", Row::BothDown, sync(0, 1, BITS), |a, b| {
            a.flags |= DiskFlags::PRIMARY;
            b.flags |= DiskFlags::PRIMARY;
        }),
        case("both stopped in order", Row::BothDown, Outcome::NoSync, |_, _| {}),
        case("one went on", Row::Bitmap, sync(0, 1, BITS), |a, _| {
            a.current = generation(2);
            a.of(1).generation = generation(1).noting(true);
        }),
        three(
            "went on without a third that stood alike",
            Row::BitmapOfThird,
            sync(1, 0, Reach::Bitmap { of: Some(site(2)) }),
            |_, b| {
                b.current = generation(2);
                b.of(2).generation = generation(1);
            },
        ),
        three("the third's bits are half cleared", Row::History, sync(1, 0, Reach::Full), |_, b| {
            b.current = generation(2);
            b.of(2).generation = generation(1);
            b.of(2).flags |= SlotFlags::SYNC_SOURCE;
        }),
        case("old state", Row::History, sync(0, 1, Reach::Full), |a, _| {
            a.current = generation(4);
            a.history = vec![generation(3), generation(1)];
        }),
        case("split brain", Row::SplitBrainBitmap, Outcome::SplitBrain { bitmap: true }, parted),
        case("old split brain", Row::SplitBrainHistory, Outcome::SplitBrain { bitmap: false }, |a, b| {
            parted(a, b);
            b.of(0).generation = Generation::NONE;
        }),
        case("a history in which nothing was answered is none", Row::Bitmap, sync(1, 0, BITS), |a, b| {
            parted(a, b);
            a.flags |= DiskFlags::UNANSWERED;
            a.history = vec![generation(1)];
        }),
        case("a crash before the first answer is no lead", Row::Survivor, sync(1, 0, BITS), |a, b| {
            a.current = generation(2);
            a.history = vec![generation(1)];
            a.of(1).generation = generation(1);
            a.flags |= DiskFlags::UNANSWERED | DiskFlags::PRIMARY | DiskFlags::WRITING;
            b.last_session = 5;
        }),
        case("a half-synced copy of a claim is no lead", Row::DiskState, sync(1, 0, Reach::Full), |a, _| {
            a.current = generation(2);
            a.history = vec![generation(1)];
            a.flags |= DiskFlags::UNANSWERED;
            a.flags.set(DiskFlags::CONSISTENT, false);
        }),
        case("two primaries, of which one lost its quorum", Row::LostQuorum, sync(1, 0, BITS), |a, b| {
            (a.role, b.role) = (Role::Primary, Role::Primary);
            a.flags |= DiskFlags::LOST_QUORUM;
            b.current = generation(2);
            b.of(0).generation = generation(1);
        }),
        case("unrelated", Row::Unrelated, Outcome::Unrelated, |a, _| a.current = generation(7)),
        case("two primaries", Row::DualPrimary, Outcome::SplitBrain { bitmap: false }, |a, b| {
            (a.role, b.role) = (Role::Primary, Role::Primary);
        }),
        three(
            "primary, and follower of another",
            Row::DualPrimary,
            Outcome::SplitBrain { bitmap: false },
            |a, b| {
                a.role = Role::Primary;
                b.follows = Some(site(2));
            },
        ),
        three("both follow a third", Row::OtherPrimary, Outcome::Defer { primary: site(2) }, |a, b| {
            (a.follows, b.follows) = (Some(site(2)), Some(site(2)));
            a.current = generation(2);
        }),
        case("primary present", Row::PrimaryPresent, sync(1, 0, BITS), |a, b| {
            b.role = Role::Primary;
            a.flags |= DiskFlags::WRITING;
        }),
        case("half-synced, same generation", Row::DiskState, sync(1, 0, Reach::Full), |a, _| {
            a.flags.set(DiskFlags::CONSISTENT, false);
        }),
        case("resync goes on where it was", Row::DiskState, sync(1, 0, BITS), |a, b| {
            a.flags.set(DiskFlags::CONSISTENT, false);
            a.of(1).flags |= SlotFlags::SYNC_TARGET;
            b.of(0).flags |= SlotFlags::SYNC_SOURCE;
        }),
        case("failed disk", Row::DiskState, sync(0, 1, Reach::Full), |_, b| b.flags |= DiskFlags::FAILED),
        case("rolled back", Row::RolledBack, sync(0, 1, Reach::Full), |a, _| a.of(1).stable = 11),
        case("rolled back at the newer", Row::Bitmap, Outcome::Refuse(Why::RolledBack(site(0))), |a, b| {
            a.current = generation(2);
            a.of(1).generation = generation(1);
            b.of(0).stable = 11;
        }),
        case("survivors", Row::Survivors, sync(0, 1, BITS), |a, b| {
            (a.last_session, b.last_session) = (5, 5);
            a.flags |= DiskFlags::WRITING;
            b.flags |= DiskFlags::WRITING;
        }),
        case("survivors, of which one may have died, too", Row::Survivors, sync(1, 0, BITS), |a, b| {
            a.flags |= DiskFlags::WRITING;
            b.flags.set(DiskFlags::UP_TO_DATE, false);
        }),
        case("contradiction", Row::Contradiction, Outcome::SplitBrain { bitmap: false }, |a, b| {
            (a.current, b.current) = (generation(2), generation(3));
            (a.history, b.history) = (vec![generation(3)], vec![generation(2)]);
        }),
        case("a person's word turns it round", Row::Discard, sync(1, 0, BITS), |a, _| {
            a.current = generation(2);
            a.of(1).generation = generation(1);
            a.flags |= DiskFlags::DISCARD;
        }),
        case("a person's word ends a split brain", Row::SplitBrainBitmap, sync(1, 0, BITS), |a, b| {
            parted(a, b);
            a.flags |= DiskFlags::DISCARD;
        }),
        case(
            "a person's word between disks with nothing in common",
            Row::Unrelated,
            sync(1, 0, Reach::Full),
            |a, _| {
                a.current = generation(7);
                a.flags |= DiskFlags::DISCARD;
            },
        ),
        case("two such words for them", Row::Unrelated, Outcome::Refuse(Why::BothDiscard), |a, b| {
            a.current = generation(7);
            a.flags |= DiskFlags::DISCARD;
            b.flags |= DiskFlags::DISCARD;
        }),
        case("two such words", Row::SplitBrainBitmap, Outcome::Refuse(Why::BothDiscard), |a, b| {
            parted(a, b);
            a.flags |= DiskFlags::DISCARD;
            b.flags |= DiskFlags::DISCARD;
        }),
        case("newer, but half-synced", Row::Bitmap, Outcome::Refuse(Why::HalfSynced(site(0))), |a, _| {
            a.current = generation(2);
            a.of(1).generation = generation(1);
            a.flags.set(DiskFlags::CONSISTENT, false);
        }),
        case("newer, but outdated", Row::Bitmap, Outcome::Refuse(Why::Outdated(site(0))), |a, _| {
            a.current = generation(2);
            a.of(1).generation = generation(1);
            a.flags |= DiskFlags::OUTDATED;
        }),
        case(
            "a primary is older",
            Row::Bitmap,
            Outcome::Refuse(Why::PrimaryIsOlder { primary: site(1), newer: site(0) }),
            |a, b| {
                a.current = generation(2);
                a.of(1).generation = generation(1);
                b.role = Role::Primary;
            },
        ),
    ]
}

#[test]
fn each_row_leads_where_the_table_says_and_every_row_is_reached() {
    let mut reached = BTreeSet::new();
    for Case { name, sites, set, row, outcome } in cases() {
        let (mut a, mut b) = (facts(0, sites), facts(1, sites));
        set(&mut a, &mut b);
        let decision = decide(&a, &b);
        assert_eq!((decision.row, decision.outcome), (row, outcome), "{name}");
        assert_eq!(decision, decide(&b, &a), "{name}");
        assert_eq!(decision.sentence(&a, &b), decision.sentence(&b, &a), "{name}");
        reached.insert(row);
    }
    let missing: Vec<_> = Row::ALL.into_iter().filter(|row| !reached.contains(row)).collect();
    assert!(missing.is_empty(), "no case for {missing:?}");
}

#[test]
fn the_direction_follows_the_facts_and_not_the_ids() {
    // Rows whose direction is a tie-break take the lower id.
    let ties = [("both crashed"), ("survivors")];
    let swap = |id: SiteId| if id.get() < 2 { site(1 - u32::from(id.get())) } else { id };
    let exchange = |mut facts: Facts| {
        facts.site = swap(facts.site);
        facts.follows = facts.follows.map(swap);
        facts.slots.iter_mut().for_each(|slot| slot.site = swap(slot.site));
        facts
    };
    for Case { name, sites, set, .. } in cases() {
        let (mut a, mut b) = (facts(0, sites), facts(1, sites));
        set(&mut a, &mut b);
        let straight = decide(&a, &b);
        let exchanged = decide(&exchange(a), &exchange(b));
        assert_eq!(straight.row, exchanged.row, "{name}");
        if let (
            Outcome::Sync { source, target, reach },
            Outcome::Sync { source: other_source, target: other_target, reach: other_reach },
        ) = (straight.outcome, exchanged.outcome)
        {
            assert_eq!(reach, other_reach, "{name}");
            if !ties.contains(&name) {
                assert_eq!((swap(source), swap(target)), (other_source, other_target), "{name}");
            }
        }
    }
}

#[test]
fn policies_decide_only_what_is_clear() {
    use ZeroPrimaries as Zero;
    let both = |policies: Policies, set: fn(&mut Facts, &mut Facts)| {
        let (mut a, mut b) = (facts(0, 2), facts(1, 2));
        parted(&mut a, &mut b);
        set(&mut a, &mut b);
        (a.policies, b.policies) = (policies, policies);
        let decision = decide(&a, &b);
        match decision.outcome {
            Outcome::Sync { target, .. } => {
                assert!(decision.demote.is_none_or(|site| site == target));
                Some((target.get(), decision.demote.is_some()))
            }
            other => {
                assert!(matches!(other, Outcome::SplitBrain { .. }), "{other:?}");
                None
            }
        }
    };
    let zero = |zero| Policies { zero, ..Policies::default() };
    // Site 0 was primary when they parted; site 1 was promoted later, and changed less.
    let older: fn(&mut Facts, &mut Facts) = |a, b| {
        a.of(1).generation = generation(1).noting(true);
        b.of(0).out_of_sync = 4096;
    };
    assert_eq!(both(zero(Zero::Disconnect), older), None);
    assert_eq!(both(zero(Zero::DiscardYounger), older), Some((1, false)));
    assert_eq!(both(zero(Zero::DiscardOlder), older), Some((0, false)));
    assert_eq!(both(zero(Zero::DiscardLeastChanges), older), Some((1, false)));
    assert_eq!(both(zero(Zero::DiscardZeroChanges), older), None);
    assert_eq!(both(zero(Zero::DiscardZeroChanges), |a, _| a.of(1).out_of_sync = 0), Some((0, false)));
    for unclear in [Zero::DiscardYounger, Zero::DiscardOlder, Zero::DiscardLeastChanges] {
        assert_eq!(both(zero(unclear), |_, _| {}), None, "{unclear:?}");
    }
    let named = Policies { discard_site: Some(site(0)), ..Policies::default() };
    assert_eq!(both(named, |_, _| {}), Some((0, false)));

    // Site 0 is primary.
    let led: fn(&mut Facts, &mut Facts) = |a, _| a.role = Role::Primary;
    let one = |one, discard| Policies { one, discard_site: Some(site(discard)), ..Policies::default() };
    assert_eq!(both(one(OnePrimary::Disconnect, 1), led), None);
    assert_eq!(both(one(OnePrimary::Consensus, 1), led), Some((1, false)));
    assert_eq!(both(one(OnePrimary::Consensus, 0), led), None);
    assert_eq!(both(one(OnePrimary::DiscardSecondary, 0), led), Some((1, false)));
    assert_eq!(both(one(OnePrimary::Violently, 0), led), Some((0, true)));
    assert_eq!(both(one(OnePrimary::CallHelper, 1), led), Some((1, false)));
    assert_eq!(both(one(OnePrimary::CallHelper, 0), led), None);
    let dual: fn(&mut Facts, &mut Facts) = |a, b| (a.role, b.role) = (Role::Primary, Role::Primary);
    let two = |two| Policies { two, discard_site: Some(site(0)), ..Policies::default() };
    assert_eq!(both(two(TwoPrimaries::Disconnect), dual), None);
    assert_eq!(both(two(TwoPrimaries::Violently), dual), Some((0, true)));
    assert_eq!(both(two(TwoPrimaries::CallHelper), dual), None);
}

#[test]
fn a_primary_takes_newer_data_only_where_configured() {
    let (mut a, mut b) = (facts(0, 2), facts(1, 2));
    a.current = generation(2);
    a.of(1).generation = generation(1);
    b.role = Role::Primary;
    (a.policies.conflict, b.policies.conflict) = (RoleConflict::Violently, RoleConflict::Violently);
    let decision = decide(&a, &b);
    assert_eq!((decision.outcome, decision.demote), (sync(0, 1, BITS), Some(site(1))));
    assert!(decision.sentence(&a, &b).ends_with("from 0 to 1; site 1 leaves the primary's role"));
}

#[test]
fn sentences_tell_who_is_newer_and_how_much_there_is_to_copy() {
    let (mut a, mut b) = (facts(0, 2), facts(1, 2));
    b.current = generation(2);
    b.of(0).generation = generation(1);
    b.of(0).out_of_sync = 3_355_443;
    let says = |a: &Facts, b: &Facts| decide(a, b).sentence(b, a);
    assert_eq!(says(&a, &b), "site 1 has newer data: 3.2 MiB to copy, from 1 to 0");
    a.of(1).out_of_sync = 1 << 20;
    assert_eq!(says(&a, &b), "site 1 has newer data: up to 4.2 MiB to copy, from 1 to 0");
    a.current = Generation::JUST_CREATED;
    assert_eq!(says(&a, &b), "site 1 has newer data: 1.0 GiB to compare, from 1 to 0");
    (a.size, a.agreed_size, b.agreed_size, a.chunk_shift) = (1 << 29, 0, 0, 12);
    let plan = decide(&a, &b).plan(&a, &b).join("\n");
    for part in
        ["512.0 MiB to compare", "differ in size: 512.0 MiB counts", "grain: 64.0 KiB counts", "just created"]
    {
        assert!(plan.contains(part), "{part} is not in:\n{plan}");
    }
    assert_eq!(super::super::outcome::Bytes((1 << 40) - 1).to_string(), "1.0 TiB");
    assert_eq!(super::super::outcome::Bytes(1023).to_string(), "1023 bytes");
}
