//! Disks that are lost for good, and new ones in their place: with metadata as init makes them.
//!
//! One site at a time, and only while another one has all that was answered. Used by the world alone.

use super::disk::{BLOCK, Data, Meta};
use super::world::{SIZE, World};
use crate::nbd::core::{Core, Mutation};
use crate::nbd::disk::format::{DiskFlags, EXTENT_SHIFT, Superblock, tag_of};
use crate::nbd::mirror::Generation;

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
