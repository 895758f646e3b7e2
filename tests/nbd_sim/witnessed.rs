//! Scenarios of two sites and a witness whose answers are lost: what it has stored counts, and what was refused is undone.
//!
//! Scripted runs of the simulator, without faults of its own. Each waits for a state, and never for a time.

use super::scenarios::{PROMOTE, is_answered, promote, value};
use super::world::{World, site_id};
use crate::nbd::core::peer::{Part, Stage};
use crate::nbd::core::{Command, Refusal, Request, WitnessState};
use crate::nbd::disk::format::{DiskFlags, Superblock};
use crate::nbd::mirror::Generation;
use crate::wire::Mask;

const WITNESS: usize = 2;

/// Two sites in sync, of which the first is primary and has written 7 to block 3, and the witness knows it.
fn witnessed() -> World {
    let mut world = World::scripted_witnessed(None);
    assert!(world.until(|world| world.in_sync(0, 1)), "{:?}", world.failure);
    assert_eq!(promote(&mut world, 0, PROMOTE), Ok(()));
    let id = world.write(0, 3, 7);
    assert!(is_answered(&mut world, id));
    let agrees = |world: &World, site: usize| {
        let state = world.sites[site].core.as_ref().and_then(|core| core.witness_state());
        state.is_some_and(|(_, state)| state == WitnessState::Agrees)
    };
    assert!(world.until(|world| (0..2).all(|site| agrees(world, site))));
    assert_eq!(stored(&world), block(&world, 0).current);
    world
}

fn block(world: &World, site: usize) -> Superblock {
    world.sites[site].core.as_ref().unwrap().superblock().clone()
}

fn stored(world: &World) -> Generation {
    world.witness.unwrap().content.current
}

fn mute(world: &mut World, is_mute: bool) {
    world.witness.as_mut().unwrap().is_mute = is_mute;
}

/// Has site 1, alone with the witness, ask for a promotion whose answer is lost.
fn refused_without_an_answer() -> World {
    let mut world = witnessed();
    let former = block(&world, 1).current;
    world.cut(0, 1);
    world.cut(0, WITNESS);
    mute(&mut world, true);
    assert_eq!(promote(&mut world, 1, PROMOTE), Err(Refusal::Missing(Mask::of(WITNESS as u8))));
    let after = block(&world, 1);
    assert_eq!(after.current, former, "nothing was served in the new one");
    assert!(!after.flags.contains(DiskFlags::PRIMARY | DiskFlags::UNANSWERED));
    assert!(stored(&world) != former && after.history.contains(&stored(&world)));
    world
}

#[test]
fn what_the_witness_stored_without_an_answer_counts_at_the_next_try() {
    let mut world = refused_without_an_answer();
    mute(&mut world, false);
    while promote(&mut world, 1, PROMOTE).is_err() {
        world.run_for(100_000);
        assert!(world.failure.is_none(), "{:?}", world.failure);
    }
    assert_eq!(stored(&world), block(&world, 1).current);
    let id = world.write(1, 4, 8);
    assert!(is_answered(&mut world, id));
}

#[test]
fn where_both_sites_are_in_sync_what_they_agree_on_counts() {
    let mut world = refused_without_an_answer();
    world.crash(1, false);
    mute(&mut world, false);
    world.cut(0, 1);
    world.cut(0, WITNESS);
    world.restart(1);
    assert!(world.until(|world| world.in_sync(0, 1) && stored(world) == block(world, 0).current));
    let id = world.write(0, 3, 9);
    assert!(is_answered(&mut world, id));
    assert_eq!([0, 1].map(|site| value(&world, site, 3)), [9, 9]);
}

/// A resync to the other site ended while the promotion of its source was undone: each took the other's generation for newer.
#[test]
fn a_site_that_is_copied_to_gets_no_generation_that_may_be_refused() {
    let mut world = witnessed();
    world.crash(1, false);
    let id = world.write(0, 3, 8);
    assert!(is_answered(&mut world, id));
    assert_eq!(world.command(0, Command::Demote), Ok(()));
    let former = block(&world, 0).current;
    let pause = |paused| Command::PauseResync { sites: Mask::of(1), paused };
    assert_eq!(world.command(0, pause(true)), Ok(()));
    world.restart(1);
    let is_source = |world: &World| {
        let state = world.sites[0].core.as_ref().and_then(|core| core.peer_state(site_id(1)));
        state == Some((Stage::Joined, Part::Source))
    };
    assert!(world.until(is_source), "{:?}", world.notes);
    mute(&mut world, true);
    world.answers.clear();
    world.event(0, crate::nbd::core::Event::Command(PROMOTE));
    world.event(0, crate::nbd::core::Event::Command(pause(false)));
    let is_refused = |world: &World| world.answers.iter().any(|(_, answer)| answer.is_err());
    assert!(world.until(is_refused), "{:?}", world.answers);
    assert_eq!(block(&world, 0).current, former);
    assert!(world.until(|world| world.in_sync(0, 1) && world.in_sync(1, 0)), "{:?}", world.notes);
    assert_eq!([0, 1].map(|site| block(&world, site).current), [former, former]);
    assert_eq!(promote(&mut world, 1, PROMOTE), Ok(()));
    assert_eq!(value(&world, 1, 3), 8);
}

#[test]
fn a_primary_without_a_disk_asks_again() {
    let mut world = witnessed();
    mute(&mut world, true);
    world.sites[0].fail_sync = true;
    world.request(0, Request::Flush);
    assert!(world.until(|world| block(world, 0).flags.contains(DiskFlags::FAILED | DiskFlags::LOST_QUORUM)));
    world.run_for(5_000_000);
    mute(&mut world, false);
    let id = world.write(0, 4, 8);
    assert!(is_answered(&mut world, id));
    assert_eq!(value(&world, 1, 4), 8);
}
