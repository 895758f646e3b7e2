//! Scenarios of three sites whose primary dies: what it lost with its power, and a survivor has, counts.
//!
//! Scripted runs of the simulator, without faults of its own. Each waits for a state, and never for a time.

use super::scenarios::{is_answered, mirrored, value};
use super::world::{World, site_id};
use crate::nbd::core::Command;
use crate::nbd::core::peer::{Part, Stage};
use crate::nbd::disk::format::DiskFlags;
use crate::wire::Mask;

/// Lets a write be answered that the primary loses with its power.
fn lose_a_write(world: &mut World, block: u64, number: u64) {
    let before = world.sites[0].data.clone();
    let id = world.write(0, block, number);
    assert!(is_answered(world, id));
    world.crash(0, true);
    world.sites[0].data = before;
}

fn has_outlived(world: &World, site: usize) -> bool {
    let block = world.sites[site].meta.superblock();
    block.is_some_and(|block| !block.flags.contains(DiskFlags::UP_TO_DATE))
}

/// Of two survivors one was killed with the primary, and its disk does not say that it outlived it. Were it copied to the
/// other, nothing would speak against the primary any more.
#[test]
fn the_survivor_that_knows_of_the_death_counts() {
    let mut world = mirrored(3, |_| {});
    lose_a_write(&mut world, 5, 50);
    world.crash(1, false);
    assert!(world.until(|world| has_outlived(world, 2)), "{:?}", world.notes);
    world.crash(2, false);
    world.restart(1);
    world.restart(2);
    assert!(world.until(|world| world.in_sync(1, 2) && world.in_sync(2, 1)), "{:?}", world.notes);
    world.restart(0);
    assert!(world.until(|world| world.in_sync(0, 1) && world.in_sync(0, 2)), "{:?}", world.notes);
    assert_eq!([0, 1, 2].map(|site| value(&world, site, 5)), [50, 50, 50]);
}

/// The primary died while a site was copied to, which the third then brought to what was answered: the unfinished copy says
/// nothing any more.
#[test]
fn a_survivor_that_the_third_site_completed_counts() {
    let mut world = mirrored(3, |_| {});
    world.crash(1, false);
    let id = world.write(0, 4, 40);
    assert!(is_answered(&mut world, id));
    let pause = Command::PauseResync { sites: Mask::of(1), paused: true };
    assert_eq!(world.command(0, pause), Ok(()));
    world.restart(1);
    let is_source = |world: &World| {
        let state = world.sites[0].core.as_ref().and_then(|core| core.peer_state(site_id(1)));
        state == Some((Stage::Joined, Part::Source))
    };
    assert!(world.until(is_source), "{:?}", world.notes);
    lose_a_write(&mut world, 5, 50);
    assert!(world.until(|world| world.in_sync(1, 2) && world.in_sync(2, 1)), "{:?}", world.notes);
    world.cut(0, 2);
    world.restart(0);
    assert!(world.until(|world| world.in_sync(0, 1)), "{:?}", world.notes);
    assert_eq!([0, 1].map(|site| value(&world, site, 5)), [50, 50]);
}
