//! Scenarios that chance seldom brings about: split brains, freezes, fencing, majorities, and the orders of a person.
//!
//! Scripted runs of the simulator, without faults of its own. Each waits for a state, and never for a time.

use super::world::{SIZE, World, site_id};
use crate::nbd::core::peer::Part;
use crate::nbd::core::{Command, Config, Mutation, Note, Refusal, Request, Tuning};
use crate::nbd::disk::format::DiskFlags;
use crate::nbd::mirror::Role;
use crate::nbd::mirror::promotion::{Fencing, Objection};
use crate::wire::Mask;

const FORCED: Command = Command::Promote { force: true, fenced: Mask(0) };
pub const PROMOTE: Command = Command::Promote { force: false, fenced: Mask(0) };

/// Sites in sync, of which the first is primary and has written 7 to block 3.
pub fn mirrored(sites: usize, tweak: fn(&mut Config)) -> World {
    mirrored_with(sites, None, tweak)
}

fn mirrored_with(sites: usize, mutation: Option<Mutation>, tweak: fn(&mut Config)) -> World {
    let mut world = World::scripted(sites, mutation, tweak);
    assert!(world.until(|world| (1..sites).all(|i| world.in_sync(0, i))), "{:?}", world.failure);
    assert_eq!(promote(&mut world, 0, PROMOTE), Ok(()));
    let id = world.write(0, 3, 7);
    assert!(is_answered(&mut world, id));
    world
}

/// Promotes a site, once it has settled what a primary left that is gone.
pub fn promote(world: &mut World, i: usize, command: Command) -> Result<(), Refusal> {
    loop {
        match world.command(i, command) {
            Err(Refusal::Busy) => world.run_for(10_000),
            result => return result,
        }
    }
}

pub fn is_answered(world: &mut World, id: u64) -> bool {
    world.until(|world| world.replies.contains_key(&id)) && world.replies[&id].is_ok()
}

pub fn value(world: &World, site: usize, block: usize) -> u64 {
    world.sites[site].data.now[block]
}

fn role(world: &World, site: usize) -> Role {
    world.sites[site].core.as_ref().unwrap().role()
}

fn flags(world: &World, site: usize) -> DiskFlags {
    world.sites[site].core.as_ref().unwrap().superblock().flags
}

/// M4: two histories that both answered writes are kept apart until a person says which one goes.
#[test]
fn a_split_brain_overwrites_nothing_until_a_person_decides() {
    let mut world = mirrored(2, |_| {});
    world.cut(0, 1);
    assert_eq!(promote(&mut world, 1, FORCED), Ok(()));
    let (a, b) = (world.write(0, 10, 100), world.write(1, 10, 200));
    assert!(is_answered(&mut world, a) && is_answered(&mut world, b));
    world.cut(0, 1);
    assert!(world.until(|world| (0..2).all(|i| flags(world, i).contains(DiskFlags::SPLIT_BRAIN))));
    world.run_for(20_000_000);
    assert_eq!((value(&world, 0, 10), value(&world, 1, 10)), (100, 200));
    // Both go on.
    let (a, b) = (world.write(0, 11, 101), world.write(1, 12, 201));
    assert!(is_answered(&mut world, a) && is_answered(&mut world, b));
    assert_eq!(world.command(1, Command::Demote), Ok(()));
    world.run_for(5_000_000);
    assert_eq!((value(&world, 0, 12), value(&world, 1, 11)), (0, 0), "nobody said whose changes go");
    assert_eq!(world.command(1, Command::Discard), Ok(()));
    assert!(world.until(|world| world.in_sync(0, 1)), "{:?}", world.notes);
    for (block, expected) in [(3, 7), (10, 100), (11, 101), (12, 0)] {
        assert_eq!((value(&world, 0, block), value(&world, 1, block)), (expected, expected));
    }
    assert!((0..2).all(|i| !flags(&world, i).contains(DiskFlags::SPLIT_BRAIN)));
}

/// Lets a secondary come back with the state that it had before the last writes. Returns true if it is called equal, and is
/// not.
fn is_twin_taken(mutation: Option<Mutation>) -> bool {
    let mut world = mirrored_with(2, mutation, |_| {});
    let yesterday = (world.sites[1].data.clone(), world.sites[1].meta.clone());
    world.run_for(400_000_000);
    // In an extent that the old activity log does not have.
    let ids: Vec<_> = (0..8).map(|n| world.write(0, 3072 + n, n + 1)).collect();
    assert!(ids.into_iter().all(|id| is_answered(&mut world, id)));
    world.run_for(2_000_000);
    world.crash(1, true);
    (world.sites[1].data, world.sites[1].meta) = yesterday;
    world.restart(1);
    assert!(world.until(|world| world.in_sync(0, 1) && world.in_sync(1, 0)), "{:?}", world.notes);
    world.sites[0].data.now != world.sites[1].data.now
}

/// The tenth mistake: a snapshot of yesterday is a disk that lacks what was written since, whatever its generation says.
#[test]
fn a_disk_that_was_rolled_back_is_compared_from_end_to_end() {
    assert!(!is_twin_taken(None));
    assert!(is_twin_taken(Some(Mutation::TakeTwin)), "the mutant was not found");
}

/// Writes a block while a resync reads its chunk. Returns true if the older content comes after the newer one.
fn is_hot_chunk_set_back(mutation: Option<Mutation>) -> bool {
    let mut world = mirrored_with(2, mutation, |_| {});
    world.cut(0, 1);
    let id = world.write(0, 5, 1);
    assert!(is_answered(&mut world, id));
    world.cut(0, 1);
    assert!(world.until(|world| world.is_reading(0)), "{:?}", world.notes);
    let id = world.write(0, 5, 2);
    assert!(is_answered(&mut world, id) && world.until(|world| world.in_sync(0, 1)), "{:?}", world.failure);
    world.run_for(1_000_000);
    assert_eq!(value(&world, 0, 5), 2);
    value(&world, 1, 5) != 2
}

/// The sixth mistake: what a resync read before a write must not come after it.
#[test]
fn a_hot_chunk_never_goes_back_during_its_resync() {
    assert!(!is_hot_chunk_set_back(None));
    assert!(is_hot_chunk_set_back(Some(Mutation::ResyncUnlocked)), "the mutant was not found");
}

#[test]
fn a_frozen_primary_answers_no_write_until_the_site_is_back_or_a_person_says_so() {
    let mut world = mirrored(2, |config| config.tuning.freeze = true);
    world.cut(0, 1);
    let held = world.write(0, 20, 1);
    world.run_for(10_000_000);
    assert!(!world.replies.contains_key(&held));
    assert!(world.sites[0].core.as_ref().unwrap().is_frozen());
    world.cut(0, 1);
    assert!(is_answered(&mut world, held), "it is back");
    assert!(world.until(|world| world.in_sync(0, 1)));
    assert_eq!(value(&world, 1, 20), 1);
    world.cut(0, 1);
    let held = world.write(0, 21, 2);
    world.run_for(5_000_000);
    assert!(!world.replies.contains_key(&held));
    assert_eq!(world.command(0, Command::Resume), Ok(()));
    assert!(is_answered(&mut world, held));
    // Also by a configuration without it.
    world.cut(0, 1);
    assert!(world.until(|world| world.in_sync(0, 1)));
    world.cut(0, 1);
    let held = world.write(0, 22, 3);
    world.run_for(5_000_000);
    assert!(!world.replies.contains_key(&held));
    let core = world.sites[0].core.as_mut().unwrap();
    let tuning = Tuning { freeze: false, ..core.config.tuning };
    core.tune(tuning);
    assert!(is_answered(&mut world, held));
    // Writes that were answered alone are known as such.
    assert!(matches!(promote(&mut world, 1, PROMOTE), Err(Refusal::Objections(_))));
}

/// A primary that only lost a site, and wrote nothing since, has no history of its own.
#[test]
fn a_loss_without_a_write_is_no_second_history() {
    let mut world = mirrored(2, |_| {});
    world.cut(0, 1);
    world.run_for(5_000_000);
    world.crash(0, true);
    assert_eq!(promote(&mut world, 1, Command::Promote { force: false, fenced: Mask::of(0) }), Ok(()));
    let id = world.write(1, 30, 3);
    assert!(is_answered(&mut world, id));
    world.cut(0, 1);
    world.restart(0);
    assert!(world.until(|world| world.in_sync(1, 0)), "{:?}", world.notes);
    assert_eq!(value(&world, 0, 30), 3);
}

#[test]
fn a_primary_asks_the_fencing_handler_before_it_goes_on_alone() {
    // In the simulator the handler succeeds for a site that is off, and fails for any other.
    let mut world = mirrored(2, |config| (config.tuning.can_fence, config.tuning.freeze) = (true, true));
    world.crash(1, true);
    let id = world.write(0, 20, 1);
    assert!(is_answered(&mut world, id));
    assert!(world.notes.contains(&(0, Note::Fenced(site_id(1), Fencing::Done))), "{:?}", world.notes);
    world.restart(1);
    assert!(world.until(|world| world.in_sync(0, 1)));
    world.cut(0, 1);
    let held = world.write(0, 21, 1);
    assert!(world.until(|world| world.notes.contains(&(0, Note::Fenced(site_id(1), Fencing::Failed)))));
    world.run_for(2_000_000);
    assert!(!world.replies.contains_key(&held));
    world.cut(0, 1);
    assert!(is_answered(&mut world, held));
}

/// A cluster manager ends the role of the machine that is cut off, and has it fenced by the other one.
#[test]
fn a_primary_that_leaves_the_role_while_a_lost_site_is_not_fenced_gives_way() {
    for is_promoted in [true, false] {
        let mut world = mirrored(2, |config| (config.tuning.can_fence, config.tuning.freeze) = (true, true));
        let id = world.write(0, 20, 1);
        assert!(is_answered(&mut world, id));
        world.cut(0, 1);
        assert!(world.until(|world| world.notes.contains(&(0, Note::Fenced(site_id(1), Fencing::Failed)))));
        assert_eq!(world.command(0, Command::Demote), Ok(()));
        if is_promoted {
            let fenced = Command::Promote { force: false, fenced: Mask::of(0) };
            assert_eq!(promote(&mut world, 1, fenced), Ok(()));
            let id = world.write(1, 20, 2);
            assert!(is_answered(&mut world, id));
        }
        world.cut(0, 1);
        assert!(world.until(|world| world.in_sync(1, 0)), "{is_promoted}: {:?}", world.notes);
        let expected = if is_promoted { 2 } else { 1 };
        assert_eq!((value(&world, 0, 20), value(&world, 1, 20)), (expected, expected));
    }
}

#[test]
fn a_promotion_asks_the_fencing_handler_for_a_primary_that_is_gone() {
    let mut world = mirrored(2, |config| config.tuning.can_fence = true);
    world.crash(0, true);
    assert_eq!(promote(&mut world, 1, PROMOTE), Ok(()));
    let mut world = mirrored(2, |config| config.tuning.can_fence = true);
    world.cut(0, 1);
    assert_eq!(promote(&mut world, 1, PROMOTE), Err(Refusal::Fencing(site_id(0), Fencing::Failed)));
}

#[test]
fn a_primary_without_a_majority_is_silent_and_gives_way() {
    let mut world = mirrored(3, |config| config.quorum = true);
    world.cut(0, 1);
    world.cut(0, 2);
    let held = world.write(0, 20, 1);
    // Another site may be primary by now.
    let read = world.request(0, Request::Read { offset: 3 * 4096, len: 4096 });
    world.run_for(5_000_000);
    assert!(!world.replies.contains_key(&held) && !world.replies.contains_key(&read));
    assert!(flags(&world, 0).contains(DiskFlags::LOST_QUORUM));
    assert!(world.until(|world| world.in_sync(1, 2)), "{:?}", world.notes);
    assert_eq!(promote(&mut world, 1, PROMOTE), Ok(()));
    let id = world.write(1, 20, 2);
    assert!(is_answered(&mut world, id));
    world.cut(0, 1);
    world.cut(0, 2);
    assert!(world.until(|world| world.in_sync(1, 0) && world.in_sync(1, 2)), "{:?}", world.notes);
    assert_eq!(role(&world, 0), Role::Secondary);
    assert!(world.replies[&held].is_err() && world.replies[&read].is_err());
    assert_eq!((0..3).map(|i| value(&world, i, 20)).collect::<Vec<_>>(), [2, 2, 2]);
}

/// It would wait for ever otherwise: no other site can be promoted beside a primary, however silent.
#[test]
fn a_primary_without_a_majority_gives_way_to_secondaries_with_newer_data() {
    let mut world = mirrored(3, |config| config.quorum = true);
    world.cut(0, 1);
    world.cut(0, 2);
    let held = world.write(0, 20, 1);
    assert!(world.until(|world| world.in_sync(1, 2)), "{:?}", world.notes);
    assert_eq!(promote(&mut world, 1, PROMOTE), Ok(()));
    let id = world.write(1, 20, 2);
    assert!(is_answered(&mut world, id));
    assert_eq!(world.command(1, Command::Demote), Ok(()));
    world.cut(0, 1);
    world.cut(0, 2);
    assert!(world.until(|world| (1..3).all(|i| world.in_sync(0, i))), "{:?}", world.notes);
    assert!(world.replies[&held].is_err());
    assert_eq!((0..3).map(|i| value(&world, i, 20)).collect::<Vec<_>>(), [2, 2, 2]);
}

#[test]
fn a_primary_that_has_its_majority_again_answers_what_waited() {
    let mut world = mirrored(3, |config| config.quorum = true);
    world.cut(0, 1);
    world.cut(0, 2);
    let held = world.write(0, 20, 1);
    let read = world.request(0, Request::Read { offset: 3 * 4096, len: 4096 });
    world.run_for(2_000_000);
    world.cut(0, 2);
    assert!(is_answered(&mut world, held) && is_answered(&mut world, read), "{:?}", world.notes);
}

#[test]
fn one_of_three_goes_on_where_the_others_left_in_order() {
    let mut world = mirrored(3, |config| config.quorum = true);
    for i in [1, 2] {
        assert_eq!(world.command(i, Command::Leave), Ok(()));
        world.crash(i, false);
        assert!(flags(&world, 0).bits() & DiskFlags::LOST_QUORUM.bits() == 0);
    }
    let id = world.write(0, 20, 5);
    assert!(is_answered(&mut world, id));
    world.crash(0, false);
    world.restart(1);
    world.run_for(2_000_000);
    let refused = promote(&mut world, 1, PROMOTE).unwrap_err();
    assert!(
        matches!(&refused, Refusal::Objections(all) if all.contains(&Objection::Outdated)),
        "{refused:?}"
    );
    world.restart(0);
    assert!(world.until(|world| world.in_sync(0, 1)));
    assert_eq!(value(&world, 1, 20), 5);
}

#[test]
fn two_candidates_at_once_are_never_both_primary() {
    for seed in 0..20 {
        let mut world = World::scripted(3, None, |_| {});
        world.random = fastrand::Rng::with_seed(seed);
        assert!(world.until(|world| world.in_sync(0, 1) && world.in_sync(1, 2) && world.in_sync(0, 2)));
        world.event(0, crate::nbd::core::Event::Command(PROMOTE));
        world.event(1, crate::nbd::core::Event::Command(PROMOTE));
        assert!(world.until(|world| world.answers.len() == 2), "{:?}", world.answers);
        let primaries = (0..3).filter(|i| role(&world, *i) == Role::Primary).count();
        assert!(primaries <= 1, "{:?}", world.answers);
    }
}

#[test]
fn verify_finds_what_differs_and_a_resync_by_bitmap_copies_it() {
    let mut world = mirrored(2, |_| {});
    world.sites[1].data.write(&(40, vec![99]));
    assert_eq!(world.command(0, Command::Verify { site: site_id(1) }), Ok(()));
    assert!(world.until(|world| world.notes.iter().any(|(_, note)| matches!(note, Note::Verified(_, _, 1)))));
    world.run_for(2_000_000);
    assert_eq!(value(&world, 1, 40), 99, "it only marks");
    assert_eq!(world.command(1, Command::Resync { site: site_id(0), full: false }), Ok(()));
    assert!(world.until(|world| world.in_sync(0, 1) && world.in_sync(1, 0) && value(world, 1, 40) == 0));
}

#[test]
fn a_full_resync_by_command_finds_what_no_bit_marks() {
    for by in [0, 1] {
        let mut world = mirrored(2, |_| {});
        world.sites[1].data.write(&(41, vec![98]));
        assert_eq!(world.command(by, Command::Resync { site: site_id(1 - by), full: true }), Ok(()));
        assert!(world.until(|world| value(world, 1, 41) == 0 && world.in_sync(0, 1)), "{:?}", world.notes);
    }
    let mut world = mirrored(3, |_| {});
    assert!(
        world.command(1, Command::Resync { site: site_id(2), full: true }).is_err(),
        "neither is primary"
    );
}

#[test]
fn a_paused_resync_goes_on_where_it_was() {
    for by in [0, 1] {
        let mut world = mirrored(2, |_| {});
        world.cut(0, 1);
        let ids: Vec<_> = (0..64).map(|n| world.write(0, n * 16, n + 1)).collect();
        assert!(ids.into_iter().all(|id| is_answered(&mut world, id)));
        let other = Mask::of(1 - by as u8);
        let pause = |paused| Command::PauseResync { sites: other, paused };
        assert_eq!(world.command(by, pause(true)), Ok(()));
        world.cut(0, 1);
        let is_source = |world: &World| {
            let state = world.sites[0].core.as_ref().and_then(|core| core.peer_state(site_id(1)));
            state.is_some_and(|(_, part)| part == Part::Source)
        };
        assert!(world.until(is_source), "{:?}", world.notes);
        world.run_for(20_000_000);
        assert!(is_source(&world) && value(&world, 1, 63 * 16) == 0, "{:?}", world.notes);
        assert!(world.sites[by].core.as_ref().unwrap().is_paused(site_id(1 - by)));
        assert_eq!(world.command(by, pause(false)), Ok(()));
        assert!(world.until(|world| world.in_sync(0, 1)));
        assert_eq!(value(&world, 1, 63 * 16), 64);
    }
}

#[test]
fn a_plan_tells_what_a_connect_would_do_and_does_nothing() {
    let mut world = mirrored(2, |_| {});
    let plan = |world: &World, by: usize| {
        let core = world.sites[by].core.as_ref().unwrap();
        core.plan(site_id(1 - by)).map(|lines| lines.join("; ")).unwrap_or_default()
    };
    assert_eq!(world.command(0, Command::Ask { site: site_id(1) }), Ok(()));
    assert!(plan(&world, 0).contains("in sync: nothing to copy"), "{}", plan(&world, 0));
    world.cut(0, 1);
    let id = world.write(0, 50, 5);
    assert!(is_answered(&mut world, id));
    assert!(plan(&world, 0).contains("from 0 to 1"), "{}", plan(&world, 0));
    assert_eq!(world.command(0, Command::Ask { site: site_id(1) }), Err(Refusal::Missing(Mask::of(1))));
    assert_eq!(value(&world, 1, 50), 0);
}

#[test]
fn a_stop_on_error_ends_the_role_with_errors() {
    let mut world = mirrored(2, |config| config.tuning.stop_on_error = true);
    world.sites[0].fail_sync = true;
    let flush = world.request(0, Request::Flush);
    assert!(world.until(|world| world.replies.contains_key(&flush)));
    assert!(world.replies[&flush].is_err());
    assert_eq!(role(&world, 0), Role::Secondary);
    assert!(flags(&world, 0).contains(DiskFlags::FAILED));
    let late = world.write(0, 1, 1);
    assert!(world.replies[&late].is_err());
}

#[test]
fn a_local_flush_waits_for_no_other_site() {
    let mut world = mirrored(2, |config| config.tuning.flush_local = true);
    world.sites[1].is_stuck = true;
    let flush = world.request(0, Request::Flush);
    assert!(is_answered(&mut world, flush));
    assert!(world.in_sync(0, 1), "the other site was not given up for it");
}

#[test]
fn a_discard_reads_as_zeroes_at_every_site() {
    let mut world = mirrored(3, |_| {});
    let trim = Request::Zeroes { offset: 0, len: 16 * 4096, fua: true, trim: true };
    let id = world.request(0, trim);
    assert!(is_answered(&mut world, id));
    assert_eq!((0..3).map(|i| value(&world, i, 3)).collect::<Vec<_>>(), [0, 0, 0]);
}

/// Of two sizes the smaller counts, whichever site is primary: nothing is written behind it, and nothing is left to copy.
#[test]
fn of_two_sizes_the_smaller_counts() {
    for larger in [0, 1] {
        let tweak: fn(&mut Config) = match larger {
            0 => |config| config.layout.data_size += if config.site == site_id(0) { 1 << 20 } else { 0 },
            _ => |config| config.layout.data_size += if config.site == site_id(1) { 1 << 20 } else { 0 },
        };
        let mut world = World::scripted(2, None, tweak);
        assert!(world.until(|world| world.in_sync(0, 1) && world.in_sync(1, 0)), "{:?}", world.notes);
        assert_eq!(world.command(0, Command::Promote { force: true, fenced: Mask(0) }), Ok(()));
        let last = SIZE / 4096 - 1;
        let good = world.write(0, last, 7);
        let bad = world.write(0, last + 1, 8);
        assert!(world.until(|world| world.replies.len() == 2));
        assert!(world.replies[&good].is_ok() && world.replies[&bad].is_err(), "{:?}", world.replies);
        assert_eq!([0, 1].map(|site| value(&world, site, last as usize)), [7, 7]);
    }
}

/// The last answer and the end of the role come in the same breath: the end waits for a site that the answer did not wait for.
#[test]
fn the_end_of_a_role_waits_for_a_far_site() {
    let mut world = mirrored(2, |config| config.asynchronous = Mask::of(1));
    world.sites[1].is_stuck = true;
    let write = world.write(0, 3, 8);
    assert!(is_answered(&mut world, write));
    let flush = world.request(0, Request::Flush);
    assert_eq!(world.command(0, Command::Demote), Ok(()));
    assert!(world.replies[&flush].is_ok());
    let core = world.sites[0].core.as_ref().unwrap();
    assert_eq!(core.peers[0].stable + 1, core.epochs.current(), "the far site has it on stable storage");
}
