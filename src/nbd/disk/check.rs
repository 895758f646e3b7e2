//! `hadm-nbd check`: compares a resource's disks at this site with the configuration, and looks for damage.
//!
//! Must change nothing and takes no lock, so that it may run beside `hadm-nbd`. Every problem is reported with its
//! meaning. Called by the command line.

use std::path::Path;

use super::data::DataDisk;
use super::device::Access;
use super::format::{ACTIVITY_BLOCKS, ACTIVITY_START, DiskFlags, LABEL_BLOCKS, SUPERBLOCK_BLOCKS};
use super::init::{open_store, runsite};
use super::store::{Damage, Loaded, Store};
use super::witness::WitnessFile;
use super::words;
use crate::config::Resource;
use crate::wire::SiteId;

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// A description of the disks in one line.
    pub summary: String,
    /// The problems, each with its meaning.
    pub problems: Vec<String>,
}

/// Checks both disks of a resource at this site.
///
/// # Errors
/// One of them cannot be used at all: a sentence with the remedy.
pub fn check(resource: &Resource, site: SiteId) -> Result<Report, String> {
    let at = runsite(resource, site)?;
    if let Some(path) = &at.witness {
        let file = WitnessFile::look(path, resource, site)?;
        let summary = format!("{} ({}) at {site}: {}", resource.id, resource.name, file.sentence());
        return Ok(Report { summary, problems: Vec::new() });
    }
    let store = open_store(resource, site, Access::Look)?;
    let layout = store.layout();
    let data = DataDisk::open(Path::new(&at.disk), Access::Look, Some(layout.data_size))?;
    if data.device().is_same(store.device()) {
        return Err(format!("<disk> and <bwr_disk> of {} are one and the same, {}", resource.id, at.disk));
    }
    let load = || store.load().map_err(|error| format!("bwr_disk {} cannot be read: {error}", at.bwr_disk));
    let mut loaded = load()?;
    if !loaded.damaged.is_empty() {
        // A block that was being written at the first look is whole at the second.
        let again = load()?;
        loaded.damaged.retain(|damage| again.damaged.contains(damage));
        loaded.superblock = again.superblock.or(loaded.superblock);
    }
    let mut problems: Vec<String> =
        loaded.damaged.iter().filter_map(|damage| meaning(damage, &store)).collect();
    let Some(superblock) = &loaded.superblock else {
        problems.insert(
            0,
            "no superblock is valid: nothing is known of this disk's data but that it may differ everywhere; all of it \
             is copied from another site"
                .to_owned(),
        );
        let summary = format!("{} ({}) at {site}: without a state", resource.id, resource.name);
        return Ok(Report { summary, problems });
    };
    let count = |n: u64| n.checked_shl(layout.chunk_shift.into()).unwrap_or(u64::MAX);
    let out: Vec<String> = out_of_sync(&loaded)
        .map(|(site, bits)| format!("{} out of sync with {site}", words::bytes(count(bits))))
        .collect();
    let state = match superblock.flags {
        flags if flags == DiskFlags::default() => "inconsistent".to_owned(),
        flags => flags.to_string(),
    };
    let summary = format!(
        "{} ({}) at {site}: {}, {} on {}, {}{}",
        resource.id,
        resource.name,
        state,
        words::bytes(layout.data_size),
        at.disk,
        if superblock.current.has_data() { "with data" } else { "just created" },
        out.iter().map(|out| format!(", {out}")).collect::<String>()
    );
    Ok(Report { summary, problems })
}

fn out_of_sync(loaded: &Loaded) -> impl Iterator<Item = (SiteId, u64)> {
    let slots = loaded.superblock.iter().flat_map(|superblock| superblock.slots);
    let counted = slots.zip(&loaded.bitmaps).filter_map(|(slot, bitmap)| Some((slot.site?, bitmap.count())));
    counted.filter(|(_, bits)| *bits > 0)
}

/// Returns the meaning of a damaged block; nothing where the damage means nothing.
fn meaning(damage: &Damage, store: &Store) -> Option<String> {
    let Damage { number, error } = damage;
    let ring = ACTIVITY_START..ACTIVITY_START.saturating_add(ACTIVITY_BLOCKS);
    let what = if LABEL_BLOCKS.contains(number) {
        "a copy of the label; the other one holds"
    } else if SUPERBLOCK_BLOCKS.contains(number) {
        "a copy of the superblock; the other one holds, if it is valid, and the next update mends this one"
    } else if ring.contains(number) {
        // A crash leaves such blocks behind. Nothing has relied on them.
        return None;
    } else if *number >= store.layout().bitmap_start {
        "a piece of a bitmap; all its chunks count as different, and are copied"
    } else {
        "an unused block"
    };
    Some(format!("bwr_disk {}, block {number}: {error} ({what})", store.device().path.display()))
}
