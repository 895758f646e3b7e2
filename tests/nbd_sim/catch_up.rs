//! Catch-ups of a far site as one batch, step by step: ended at each point, held up, with a session that ends in the middle.
//!
//! Scripted runs of the simulator. Each waits for a state.

use super::disk::BLOCK;
use super::scenarios::{PROMOTE, is_answered, promote, value};
use super::world::{BLOCKS_OF_CHUNK, World, site_id};
use crate::nbd::core::{Command, Mutation, Note, Request, Way};
use crate::nbd::disk::format::{DiskFlags, EXTENT_SHIFT};
use crate::wire::Mask;

/// Chunks that are written while the far site is away.
const CHUNKS: u64 = 30;

/// A primary, and a far site that lacks [`CHUNKS`] and is catching up.
fn catching_up(mutation: Option<Mutation>, is_paused: bool) -> World {
    let mut world = World::scripted_far(mutation, true);
    assert!(world.until(|world| world.in_sync(0, 1)), "{:?}", world.failure);
    assert_eq!(promote(&mut world, 0, PROMOTE), Ok(()));
    let id = world.write(0, 3, 7);
    assert!(is_answered(&mut world, id));
    assert!(world.until(|world| value(world, 1, 3) == 7));
    world.cut(0, 1);
    for n in 0..CHUNKS {
        let id = world.write(0, n * BLOCKS_OF_CHUNK, 100 + n);
        assert!(is_answered(&mut world, id));
    }
    if is_paused {
        pause(&mut world, true);
    }
    world.cut(0, 1);
    let knows = |world: &World, i: usize| {
        world.sites[i].core.as_ref().is_some_and(|core| core.catches_up_at_once(site_id(1 - i)))
    };
    assert!(world.until(|world| knows(world, 0) && knows(world, 1)), "{:?}", world.failure);
    world
}

fn pause(world: &mut World, paused: bool) {
    assert_eq!(world.command(0, Command::PauseResync { sites: Mask::of(1), paused }), Ok(()));
}

fn flush(world: &mut World) {
    let id = world.request(0, Request::Flush);
    assert!(is_answered(world, id));
}

/// Returns true if the far site has all that the primary has, once it has caught up.
fn becomes_equal(world: &mut World) -> bool {
    let has_caught_up = |world: &World| {
        let lag = world.sites[0].core.as_ref().and_then(|core| core.lag(site_id(1)));
        world.in_sync(0, 1) && lag.is_some_and(|lag| lag.bytes == 0)
    };
    assert!(world.until(has_caught_up), "{:?}", world.failure);
    world.sites[0].data.now == world.sites[1].data.now
}

/// The power of the far site goes, or its program ends, later and later, until the catch-up is over before: each time the copy is a
/// state of the primary's, which every crash checks, and the next catch-up makes both equal.
#[test]
fn a_far_copy_is_a_state_of_the_primary_at_each_step_of_a_catch_up() {
    let (mut before, mut after) = (0, 0);
    // From the begin on, and from when the batch is being written.
    for (step, is_late) in (0..20).map(|step| (step, false)).chain((0..400).map(|step| (step, true))) {
        let mut world = catching_up(None, false);
        let id = world.write(0, 4 * BLOCKS_OF_CHUNK, 500);
        if is_late {
            let is_writing =
                |world: &World| world.sites[1].core.as_ref().is_some_and(|core| core.redo.is_writing());
            assert!(world.until(is_writing), "{:?}", world.failure);
        }
        world.run_for(step * if is_late { 100 } else { 5000 });
        let is_old = |world: &World| value(world, 1, 0) == 0;
        let is_done = is_late && !world.is_catching_up(1);
        world.crash(1, step % 2 == 0);
        assert!(world.failure.is_none(), "step {step}: {:?}", world.failure);
        let block = world.sites[1].meta.superblock().unwrap();
        assert!(block.flags.contains(DiskFlags::CONSISTENT), "step {step}: {}", block.flags);
        match is_old(&world) {
            true => before += 1,
            false => after += 1,
        }
        assert!(is_answered(&mut world, id));
        flush(&mut world);
        world.restart(1);
        assert!(becomes_equal(&mut world), "step {step}");
        if is_done {
            break;
        }
    }
    assert!(before > 30 && after > 10, "{before} before the batch was carried out, {after} after");
}

fn is_kept_over_a_break(mutation: Option<Mutation>) -> bool {
    let mut world = catching_up(mutation, true);
    let id = world.write(0, 50 * BLOCKS_OF_CHUNK, 500);
    assert!(is_answered(&mut world, id));
    // It is stable here, and waits for no other site.
    flush(&mut world);
    world.crash(1, true);
    pause(&mut world, false);
    world.restart(1);
    becomes_equal(&mut world)
}

/// A write that a far site was sent in a catch-up, and that is on no disk there, is marked.
#[test]
fn a_write_during_a_catch_up_that_breaks_off_is_not_forgotten() {
    assert!(is_kept_over_a_break(None));
    assert!(!is_kept_over_a_break(Some(Mutation::CatchUpUnmarked)));
}

/// Longer than a site is waited for: the session lasts, and the end of the role does not wait for it.
#[test]
fn a_catch_up_that_is_held_up_holds_nothing_up() {
    let mut world = catching_up(None, true);
    let id = world.write(0, 50 * BLOCKS_OF_CHUNK, 500);
    assert!(is_answered(&mut world, id));
    world.run_for(10_000_000);
    assert!(world.is_catching_up(1), "{:?}", world.notes);
    assert_eq!(value(&world, 1, 0), 0);
    assert_eq!(world.command(0, Command::Demote), Ok(()));
    pause(&mut world, false);
    assert!(world.until(|world| world.in_sync(0, 1)), "{:?}", world.failure);
    assert_eq!((value(&world, 1, 0), value(&world, 1, 50 * BLOCKS_OF_CHUNK as usize)), (100, 500));
}

/// A crash marks whole extents, of which little differs: the disks are compared, and the copy stays a state of the primary's.
#[test]
fn a_catch_up_after_a_crash_compares_what_is_marked() {
    for (crashed, power) in [(0, false), (0, true), (1, false), (1, true)] {
        let mut world = World::scripted_far(None, false);
        assert!(world.until(|world| world.in_sync(0, 1)), "{:?}", world.failure);
        assert_eq!(promote(&mut world, 0, PROMOTE), Ok(()));
        for extent in 0..3 {
            let id = world.write(0, (extent << EXTENT_SHIFT) / BLOCK, 7);
            assert!(is_answered(&mut world, id));
        }
        flush(&mut world);
        assert!(becomes_equal(&mut world));
        // A far site that is cut off settles what it has.
        let is_cut = crashed == 0;
        if is_cut {
            world.cut(0, 1);
        }
        let id = world.write(0, 5, 8);
        assert!(is_answered(&mut world, id));
        world.crash(crashed, power);
        world.notes.clear();
        world.restart(crashed);
        if is_cut {
            world.cut(0, 1);
        }
        let is_usable = |world: &World| {
            world.sites[1].meta.superblock().is_some_and(|block| block.flags.contains(DiskFlags::CONSISTENT))
        };
        let is_over = |world: &World| {
            !is_usable(world) || world.in_sync(0, 1) && value(world, 1, 5) == value(world, 0, 5)
        };
        assert!(world.until(is_over), "{:?}", world.failure);
        assert!(is_usable(&world), "{crashed}, {power}: {:?}", world.notes);
        let is_compared = |(site, note): &(usize, Note)| {
            *site == 1 && matches!(note, Note::CatchUp { way: Way::Compared, .. })
        };
        assert!(world.notes.iter().any(is_compared), "{:?}", world.notes);
    }
}
