//! Scenarios of a mirror that becomes larger: refusals, crashes at each step, a site that was away.
//!
//! Scripted runs of the simulator, without faults of its own. Each waits for a state, and never for a time.

use super::disk::BLOCK;
use super::scenarios::{PROMOTE, is_answered, promote, value};
use super::world::{SIZE, SMALL, World, site_id};
use crate::nbd::core::{Command, Config, Core, Event, Mutation, Obstacle, Refusal, Request};
use crate::nbd::disk::format::DiskFlags;
use crate::nbd::mirror::Role;
use crate::wire::Mask;

/// A block of the new part that no site has, and one with other content at each.
const NEW: u64 = SIZE / BLOCK - 1;
const UNLIKE: usize = (SIZE / 2 / BLOCK + 55) as usize;

/// Sites in sync, the first primary, and disks that were made larger since.
fn small(sites: usize, tweak: fn(&mut Config)) -> World {
    let mut world = World::scripted_small(sites, tweak);
    assert!(world.until(are_in_sync), "{:?}", world.failure);
    assert_eq!(promote(&mut world, 0, PROMOTE), Ok(()));
    let id = world.write(0, 3, 7);
    assert!(is_answered(&mut world, id));
    let id = world.request(0, Request::Flush);
    assert!(is_answered(&mut world, id));
    world
}

fn are_in_sync(world: &World) -> bool {
    (1..world.sites.len()).all(|i| world.in_sync(0, i) && world.in_sync(i, 0))
}

fn sizes(world: &World) -> Vec<u64> {
    world.sites.iter().map(|site| site.core.as_ref().map_or(0, Core::size)).collect()
}

fn grow(world: &mut World) -> Result<(), Refusal> {
    world.look(0);
    world.command(0, Command::Grow)
}

fn refused(obstacle: Obstacle) -> Result<(), Refusal> {
    Err(Refusal::Growth(obstacle))
}

#[test]
fn a_mirror_becomes_as_large_as_its_disks() {
    for sites in [2, 3] {
        let mut world = small(sites, |_| {});
        assert_eq!(sizes(&world), vec![SMALL; sites]);
        assert_eq!(grow(&mut world), Ok(()));
        // At once; the copy of the new part may go on.
        let id = world.write(0, NEW, 9);
        assert!(is_answered(&mut world, id));
        assert!(world.until(are_in_sync), "{:?}", world.notes);
        assert_eq!(sizes(&world), vec![SIZE; sites]);
        let first = value(&world, 0, UNLIKE);
        assert!(first != 0 && (1..sites).all(|i| value(&world, i, UNLIKE) == first));
        assert_eq!(
            grow(&mut world),
            refused(Obstacle::Small { site: site_id(0), size: SIZE, mirrored: SIZE })
        );
        // A write there outlives the primary.
        let id = world.write(0, NEW, 10);
        assert!(is_answered(&mut world, id));
        world.crash(0, true);
        let fenced = Command::Promote { force: true, fenced: Mask::of(0) };
        assert_eq!(promote(&mut world, 1, fenced), Ok(()));
        assert_eq!((sizes(&world)[1], value(&world, 1, NEW as usize)), (SIZE, 10));
    }
}

#[test]
fn what_cannot_grow_is_refused() {
    let mut world = small(2, |_| {});
    assert_eq!(world.command(1, Command::Grow), refused(Obstacle::Secondary(Some(site_id(0)))));
    // Its own disk is as small as before.
    let too_small = Obstacle::Small { site: site_id(0), size: SMALL, mirrored: SMALL };
    assert_eq!(world.command(0, Command::Grow), refused(too_small));
    world.cut(0, 1);
    assert_eq!(grow(&mut world), refused(Obstacle::Apart(Mask::of(1))));
    world.cut(0, 1);
    assert!(world.until(are_in_sync));
    assert_eq!(sizes(&world), [SMALL; 2]);
    // The other goes away while it is asked, and a second command meanwhile is too early.
    world.event(0, Event::Command(Command::Grow));
    world.crash(1, false);
    assert_eq!(world.command(0, Command::Grow), Err(Refusal::Busy));
    let silent = |world: &World| world.answers.iter().any(|(_, answer)| answer.is_err());
    world.answers.clear();
    assert!(world.until(silent), "{:?}", world.answers);
    assert_eq!(world.answers[0].1, refused(Obstacle::Silent(Mask::of(1))));
    world.restart(1);
    assert!(world.until(are_in_sync));
    assert_eq!(grow(&mut world), Ok(()));
    // A far site's disk is as small as before.
    let mut far = small_far(None);
    far.sites[1].meta.layout.data_size = SMALL - 1;
    far.look(0);
    let too_small = Obstacle::Small { site: site_id(1), size: SMALL, mirrored: SMALL };
    assert_eq!(far.command(0, Command::Grow), refused(too_small));
}

/// A far site, and what was written before the mirror grows.
fn small_far(mutation: Option<Mutation>) -> World {
    let mut world = World::scripted_small_far(mutation);
    assert!(world.until(are_in_sync), "{:?}", world.notes);
    assert_eq!(promote(&mut world, 0, PROMOTE), Ok(()));
    let id = world.write(0, 3, 7);
    assert!(is_answered(&mut world, id));
    assert!(world.until(|world| value(world, 1, 3) == 7));
    world
}

/// The far copy has the old size with the content from before, or the new one with that from after, also when its power goes
/// at any step; every crash compares it with the states of the primary.
#[test]
fn a_far_copy_takes_a_size_with_its_content() {
    let (mut old, mut new) = (0, 0);
    for step in 0..60 {
        let mut world = small_far(None);
        world.look(0);
        world.event(0, Event::Command(Command::Grow));
        assert!(world.until(|world| sizes(world)[0] == SIZE), "{:?}", world.notes);
        for n in [NEW, 3] {
            let id = world.write(0, n, 9);
            assert!(is_answered(&mut world, id));
        }
        world.run_for(step * 5000);
        world.crash(1, step % 2 == 0);
        assert!(world.failure.is_none(), "step {step}: {:?}", world.failure);
        let block = world.sites[1].meta.superblock().unwrap();
        assert!(block.flags.contains(DiskFlags::CONSISTENT), "step {step}: {}", block.flags);
        world.restart(1);
        match sizes(&world)[1] {
            SMALL => old += 1,
            _ => new += 1,
        }
        assert!(world.until(are_in_sync), "step {step}: {:?}", world.notes);
        assert!(world.until(|world| value(world, 1, 3) == 9), "step {step}");
        assert_eq!((sizes(&world)[1], value(&world, 1, NEW as usize)), (SIZE, 9), "step {step}");
        assert_eq!(value(&world, 1, UNLIKE), value(&world, 0, UNLIKE), "step {step}");
    }
    assert!(old > 5 && new > 5, "{old} of the old size, {new} of the new");
}

/// One site, or both, end at any step, in any way: afterwards both have one size, the old one or the new, with one content, and the
/// mirror can grow.
#[test]
fn a_crash_at_any_step_leaves_one_size() {
    let (mut old, mut new) = (0, 0);
    for step in 0..24 {
        for (crashed, power) in [(1, false), (2, true), (3, true)] {
            let mut world = small(2, |_| {});
            world.look(0);
            world.event(0, Event::Command(Command::Grow));
            world.run_for(step * 1000);
            let sites = (0..2).filter(|i| crashed >> i & 1 == 1);
            sites.clone().for_each(|i| world.crash(i, power));
            sites.for_each(|i| world.restart(i));
            assert!(world.until(are_in_sync), "step {step}, {crashed}, {power}: {:?}", world.notes);
            let found = sizes(&world);
            assert_eq!(found[0], found[1], "step {step}, {crashed}, {power}");
            match found[0] == SIZE {
                true => new += 1,
                false => old += 1,
            }
            if world.sites[0].core.as_ref().unwrap().role() != Role::Primary {
                assert_eq!(promote(&mut world, 0, PROMOTE), Ok(()), "step {step}, {crashed}, {power}");
            }
            while sizes(&world)[0] < SIZE {
                match grow(&mut world) {
                    Ok(()) => {}
                    Err(Refusal::Busy) => world.run_for(10_000),
                    other => panic!("step {step}, {crashed}, {power}: {other:?}"),
                }
            }
            assert!(world.until(are_in_sync));
            let unlike = (0..(SIZE / BLOCK) as usize)
                .find(|block| value(&world, 0, *block) != value(&world, 1, *block));
            assert_eq!(unlike, None, "step {step}, {crashed}, {power}");
            assert_eq!(value(&world, 1, 3), 7);
        }
    }
    assert!(old > 10 && new > 10, "{old} of the old size, {new} of the new");
}

/// A site that left between its answer and the new size takes it when it is back.
#[test]
fn a_site_that_was_away_takes_the_size() {
    let mut world = small(3, |_| {});
    world.look(0);
    world.event(0, Event::Command(Command::Grow));
    let has_answered = |world: &World| world.sites.iter().all(|site| site.meta.layout.data_size == SIZE);
    assert!(world.until(has_answered));
    assert!(world.until(|world| world.sites[0].core.as_ref().is_some_and(|core| core.size_to_come() > 0)));
    world.crash(2, false);
    assert!(world.until(|world| world.in_sync(0, 1) && sizes(world)[1] == SIZE), "{:?}", world.notes);
    let id = world.write(0, NEW, 12);
    assert!(is_answered(&mut world, id));
    world.crash(1, false);
    world.restart(2);
    assert!(world.until(|world| world.in_sync(0, 2) && world.in_sync(2, 0)), "{:?}", world.notes);
    assert_eq!((sizes(&world)[2], value(&world, 2, NEW as usize)), (SIZE, 12));
    assert_eq!(value(&world, 2, UNLIKE), value(&world, 0, UNLIKE));
}
