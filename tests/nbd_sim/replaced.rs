//! Disks that are lost for good, and new ones in their place: with metadata as init makes them.
//!
//! By chance, for the world: one site at a time, and only while another one has all that was answered. And scripted, without
//! faults of its own.

use super::disk::{BLOCK, Data, Meta};
use super::scenarios::{PROMOTE, is_answered, promote, value};
use super::world::{SIZE, World};
use crate::nbd::core::{Command, Core, Mutation};
use crate::nbd::disk::format::{DiskFlags, EXTENT_SHIFT, Superblock, tag_of};
use crate::nbd::mirror::Generation;
use crate::wire::Mask;

impl World {
    /// Disks are lost and replaced; every fourth world has a witness, and every fourth sites whose copy may be behind.
    pub fn replacing(seed: u64, mutation: Option<Mutation>) -> Self {
        let mut world = match seed % 4 {
            1 => World::far(seed, mutation),
            3 => World::witnessed(seed, mutation),
            _ => World::new(seed, mutation),
        };
        world.replaces = true;
        world
    }

    /// Returns true if no answered write is on this site's disk alone, and every site that writes wait for has all of them.
    fn is_dispensable(&self, i: usize) -> bool {
        let Some(p) = self.serving else { return false };
        let has_disk = self.sites[p].core.as_ref().is_some_and(Core::reads_locally);
        let heirs = self.sites[p].heirs;
        let needed = |j: &usize| *j != i && *j != p && self.asynchronous >> j & 1 == 0;
        (0..self.sites.len()).filter(needed).all(|j| heirs >> j & 1 == 1)
            && (if p == i { heirs != 0 } else { has_disk })
    }

    /// The disks of a site are lost, and there are new ones. Returns false if that would lose more than a site.
    pub fn replace(&mut self, i: usize) -> bool {
        if !self.is_dispensable(i) {
            return false;
        }
        self.crash(i, true);
        self.model.cut(i);
        self.counts.replacements += 1;
        let is_clean = self.random.bool();
        let device = self.random.u128(..).to_le_bytes();
        // Seconds since 1970 are far above what a disk counts; a clock may be wrong.
        let write_counter = if self.random.bool() { 1 << 30 } else { 0 };
        let mut superblock = Superblock {
            current: Generation::JUST_CREATED,
            sequence: 1,
            write_counter,
            ..Superblock::default()
        };
        let clean = DiskFlags::CONSISTENT | DiskFlags::UP_TO_DATE | DiskFlags::ZEROED;
        superblock.flags.set(clean, is_clean);
        let site = &mut self.sites[i];
        site.device = device;
        site.meta = Meta::new(site.meta.layout, tag_of(&device), &superblock);
        site.data = Data::new(SIZE / BLOCK);
        if !is_clean {
            let extents = (0..SIZE >> EXTENT_SHIFT).map(|extent| (extent << EXTENT_SHIFT) / BLOCK);
            extents.for_each(|first| (0..60).for_each(|n| site.data.put(first + n, 1 << 51 | n)));
        }
        true
    }
}

/// Sites in sync, of which the first is primary; all have counted their writes for long. And the second one's disks as they were new.
fn worn(sites: usize, mutation: Option<Mutation>) -> (World, (Data, Meta)) {
    let mut world = World::scripted(sites, mutation, |_| {});
    let new = (world.sites[1].data.clone(), world.sites[1].meta.clone());
    assert!(world.until(|world| (1..sites).all(|i| world.in_sync(0, i))));
    assert_eq!(promote(&mut world, 0, PROMOTE), Ok(()));
    for n in 0..3 {
        let id = world.write(0, n, n + 1);
        assert!(is_answered(&mut world, id));
        world.run_for(400_000_000);
    }
    (world, new)
}

/// The second site gets its new disks.
fn renew(world: &mut World, new: (Data, Meta)) {
    world.crash(1, true);
    (world.sites[1].data, world.sites[1].meta) = new;
    world.restart(1);
}

/// The role goes from the first site to the second.
fn switch(world: &mut World, fenced: Mask) {
    assert!(world.until(|world| world.in_sync(0, 1) && world.in_sync(1, 0)), "{:?}", world.notes);
    assert_eq!(world.command(0, Command::Demote), Ok(()));
    let follows = |world: &World| world.sites[1].core.as_ref().unwrap().follows;
    assert!(world.until(|world| follows(world).is_none()));
    assert_eq!(promote(world, 1, Command::Promote { force: false, fenced }), Ok(()));
}

/// A new disk in the place of one that has counted its writes for long: neither it nor the other site refuses it later, and
/// it is compared as a whole once, even where the line is cut in the middle of that.
#[test]
fn a_disk_that_replaces_another_is_no_older_state_of_it() {
    let (mut world, new) = worn(2, None);
    renew(&mut world, new);
    let resync =
        |world: &World| world.sites[1].core.as_ref()?.peers[0].resync.as_ref().map(|resync| resync.full);
    assert!(world.until(|world| resync(world) == Some(true) && world.is_reading(1)));
    world.cut(0, 1);
    assert!(world.until(|world| resync(world).is_none()));
    world.cut(0, 1);
    assert!(world.until(|world| resync(world).is_some()));
    assert_eq!(resync(&world), Some(false), "it goes on where it was");
    switch(&mut world, Mask(0));
    assert_eq!(world.sites[0].data.now, world.sites[1].data.now);
    world.cut(0, 1);
    let id = world.write(1, 9, 9);
    assert!(is_answered(&mut world, id));
    world.cut(0, 1);
    assert!(world.until(|world| world.in_sync(1, 0)), "{:?}", world.notes);
    assert_eq!(value(&world, 0, 9), 9);
}

/// A site gets a new disk, whose count begins anew, while a third is away, and is promoted then. Returns true if the third, which
/// remembers the old disk's count, meets it.
fn is_new_disk_met(mutation: Option<Mutation>) -> bool {
    let (mut world, new) = worn(3, mutation);
    world.crash(2, false);
    renew(&mut world, new);
    switch(&mut world, Mask::of(2));
    let id = world.write(1, 9, 9);
    assert!(is_answered(&mut world, id));
    world.restart(2);
    world.until(|world| world.in_sync(1, 2) && value(world, 2, 9) == 9)
}

#[test]
fn a_new_disk_counts_above_what_a_third_site_remembers() {
    assert!(is_new_disk_met(None));
    assert!(!is_new_disk_met(Some(Mutation::CountAnew)), "the mutant was not found");
}
