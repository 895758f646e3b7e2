//! Scenarios of three sites that lose one: what a dead primary lost with its power, and a survivor has, counts; what a lost
//! site lacks stays marked.
//!
//! Scripted runs of the simulator, without faults of its own. Each waits for a state, and never for a time.

use super::scenarios::{PROMOTE, is_answered, mirrored, promote, value};
use super::world::{World, site_id};
use crate::nbd::core::peer::{Part, Stage};
use crate::nbd::core::{Command, Note, Request};
use crate::nbd::disk::format::DiskFlags;
use crate::wire::Mask;

/// A block in another extent than the first ones, and its chunk.
const LOST: u64 = 5000;
const LOST_CHUNK: u64 = (LOST * 4096) >> 16;

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

/// Sites that followed the same primary meet once it has left the role: another one of them could not be promoted otherwise.
#[test]
fn followers_of_a_primary_that_left_its_role_meet() {
    let mut world = mirrored(3, |_| {});
    assert_eq!(world.command(0, Command::Demote), Ok(()));
    assert!(world.until(|world| world.in_sync(1, 2) && world.in_sync(2, 1)), "{:?}", world.notes);
    assert!(!world.notes.iter().any(|(_, note)| matches!(note, Note::Resynced(_))), "{:?}", world.notes);
    assert_eq!(world.command(1, PROMOTE), Ok(()));
    let id = world.write(1, 5, 50);
    assert!(is_answered(&mut world, id));
    assert!(world.until(|world| (0..3).all(|site| value(world, site, 5) == 50)), "{:?}", world.notes);
}

/// A primary's disk failed, and the only other good site leaves in order: nothing goes on without that, and its data count.
#[test]
fn the_only_copy_that_leaves_is_not_outdated() {
    let mut world = mirrored(3, |_| {});
    world.crash(2, false);
    let id = world.write(0, 5, 50);
    assert!(is_answered(&mut world, id));
    world.sites[0].fail_sync = true;
    world.request(0, Request::Flush);
    let has_failed = |world: &World| !world.sites[0].core.as_ref().unwrap().reads_locally();
    assert!(world.until(has_failed), "{:?}", world.notes);
    assert_eq!(world.command(1, Command::Leave), Ok(()));
    world.crash(0, false);
    world.crash(1, false);
    (0..3).for_each(|site| world.restart(site));
    let is_met = |world: &World| [(0, 1), (0, 2), (1, 2)].iter().all(|(a, b)| world.in_sync(*a, *b));
    assert!(world.until(is_met), "{:?}", world.notes);
    assert_eq!(promote(&mut world, 0, Command::Promote { force: false, fenced: Mask(0) }), Ok(()));
    assert_eq!([0, 1, 2].map(|site| value(&world, site, 5)), [50, 50, 50]);
}

/// Writes wait in the queue to a far site while another one is lost, which it has to keep marks for: they must not say that
/// everything before them is stable there.
#[test]
fn what_a_lost_site_lacks_stays_marked_at_a_far_one() {
    let mut world = mirrored(3, |config| config.asynchronous = Mask(6));
    let mark = |world: &World| {
        let marks = world.sites[1].core.as_ref().unwrap().bitmap(site_id(2)).unwrap();
        marks.next_run(LOST_CHUNK, 1).is_some_and(|run| run.start == LOST_CHUNK)
    };
    assert!(world.until(|world| value(world, 1, 3) == 7 && !mark(world)), "{:?}", world.notes);
    world.sites[2].is_stuck = true;
    let id = world.write(0, LOST, 50);
    assert!(is_answered(&mut world, id));
    let id = world.request(0, Request::Flush);
    assert!(is_answered(&mut world, id));
    let stable = |world: &World, site: usize| {
        let core = world.sites[0].core.as_ref().unwrap();
        core.peers[site - 1].stable + 1 == core.epochs.current()
    };
    assert!(world.until(|world| stable(world, 1)) && !stable(&world, 2), "{:?}", world.notes);
    (0..16).for_each(|n| _ = world.write(0, n, n + 1));
    world.crash(2, true);
    assert!(world.until(|world| value(world, 1, 15) == 16), "{:?}", world.notes);
    assert!(mark(&world));
}
