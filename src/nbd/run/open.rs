//! Opens a resource: its disks as the configuration has them, and the core made from what is on them.
//!
//! Must never serve or touch a disk of which anything is in doubt: that is an error with a remedy. Called by the program
//! at its start.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use log::warn;

use super::handlers::Handlers;
use super::link::Link;
use super::mirror::Mirror;
use crate::config::mirror::{Flush, NoPrimary, OnError, OnePrimary, Quorum, SplitBrain, TwoPrimaries};
use crate::config::{Config, Protocol, Resource, RunSite};
use crate::nbd::core::{self, Core, Found, Tuning};
use crate::nbd::disk::data::{DataDisk, UNIT};
use crate::nbd::disk::device::Access;
use crate::nbd::disk::format::{ACTIVE_MAX, DiskFlags, Layout, SlotFlags};
use crate::nbd::disk::init::{first_not_zero, runsite};
use crate::nbd::disk::store::{Loaded, Store};
use crate::nbd::mirror::choices::{self, Policies, RoleConflict, ZeroPrimaries};
use crate::wire::{Mask, SiteId};

/// Fewest blocks of an ordered log: each half takes the longest packet.
const LOG_MIN: u64 = 1024;

/// Opens a resource of this site.
///
/// # Errors
/// What is wrong with it, and the remedy.
pub fn open(config: &Config, resource: &Resource, link: &Arc<Link>) -> Result<Arc<Mirror>, String> {
    let site = config.site;
    let here = runsite(resource, site)?;
    let name = &resource.name;
    let tuning = tuning(config, here);
    let store = Store::open(Path::new(&here.bwr_disk), Access::Own)?;
    store.check_owner(resource.id, site)?;
    let layout = *store.layout();
    check_log(resource, &layout, &here.bwr_disk)?;
    let disk = DataDisk::open(Path::new(&here.disk), Access::Own, Some(layout.data_size))?;
    if disk.device().is_same(store.device()) {
        return Err(format!("resource {name:?}: disk and bwr_disk are one and the same; give it two"));
    }
    if disk.device().size >= disk.size().saturating_add(UNIT) {
        warn!(
            "resource {name:?}: disk {} has {} bytes, of which {} are mirrored, as its metadata says; for more of it give \
             `hadmctl disk grow {name}` at the primary",
            here.disk,
            disk.device().size,
            disk.size()
        );
    }
    let mut loaded =
        store.load().map_err(|error| format!("bwr_disk {} cannot be read: {error}", here.bwr_disk))?;
    for damage in &loaded.damaged {
        warn!("resource {name:?}: block {} of the metadata is not believed: {}", damage.number, damage.error);
    }
    doubt_zeroes(name, &disk, &mut loaded)?;
    let peers: Vec<SiteId> = resource.others(site).collect();
    if peers.len() > usize::from(layout.slots) {
        return Err(format!(
            "resource {name:?} has {} other sites, and its metadata has room for {}: make it anew with `hadm-nbd init \
             --slots {}`",
            peers.len(),
            layout.slots,
            peers.len()
        ));
    }
    let core = core::Config {
        site,
        resource: resource.id,
        device: store.label().uuid,
        layout,
        peers: peers.clone(),
        asynchronous: asynchronous(resource),
        active_max: here.mirror.active_extents as usize,
        follow_max: ACTIVE_MAX,
        quorum: here.mirror.quorum == Quorum::Majority,
        witness: resource.witness(),
        tuning,
        software: format!("hadm-nbd {}", env!("CARGO_PKG_VERSION")),
        seed: fastrand::u64(..),
    };
    let begun = Instant::now();
    let core = Core::new(core, found(name, loaded), begun.elapsed());
    let mirror =
        Mirror::start((resource.id, name.clone()), site, peers, core, (disk, store), Arc::clone(link), begun)
            .map_err(|error| format!("resource {name:?}: its threads cannot be started: {error}"))?;
    let handlers = Handlers::new(config, resource, here);
    handlers.look(name);
    mirror.lock().handlers = handlers;
    Ok(mirror)
}

/// Returns the sites whose copy may be behind.
fn asynchronous(resource: &Resource) -> Mask {
    let with_disk = resource.runsites.iter().filter(|runsite| runsite.witness.is_none());
    let far = with_disk.filter(|runsite| runsite.protocol == Protocol::Async);
    far.fold(Mask(0), |mask, runsite| mask | Mask::of(runsite.site.get()))
}

/// Checks that the metadata has the ordered log that a site needs whose primary does not wait for it.
fn check_log(resource: &Resource, layout: &Layout, place: &str) -> Result<(), String> {
    let blocks = layout.log_blocks;
    if asynchronous(resource).is_empty() || blocks >= LOG_MIN {
        return Ok(());
    }
    Err(format!(
        "resource {:?} has a runsite with <protocol>async</protocol>, and bwr_disk {place} has {} KiB for the ordered log: it takes \
         4 MiB at least, at every site; make the metadata anew with `hadm-nbd init --force --log-size 64M`, one \
         site after the other, each in sync before the next, and only then change <protocol>",
        resource.name,
        blocks.saturating_mul(4)
    ))
}

/// Returns the choices that a running mirror takes.
pub(super) fn tuning(config: &Config, here: &RunSite) -> Tuning {
    Tuning {
        slow: config.slow_timeout,
        freeze: here.mirror.freezes(),
        can_fence: here.mirror.fencing_handler().is_some(),
        flush_local: here.mirror.flush == Flush::Local,
        stop_on_error: here.mirror.on_error == OnError::Stop,
        resync_rate: here.mirror.resync_rate.unwrap_or(0),
        resync_min: here.mirror.resync_min,
        policies: policies(here.mirror.split_brain),
    }
}

/// Looks again at a disk that read as zeroes at init and was never in use: what was written to it since, behind the mirror's
/// back, would never be copied. Of a block device nothing tells the holes, and reading it all would take hours.
fn doubt_zeroes(name: &str, disk: &DataDisk, loaded: &mut Loaded) -> Result<(), String> {
    let Some(superblock) = &mut loaded.superblock else { return Ok(()) };
    let is_fresh = superblock.flags.contains(DiskFlags::ZEROED) && !superblock.current.has_data();
    if !is_fresh || disk.device().is_block {
        return Ok(());
    }
    if let Some(at) = first_not_zero(disk.device(), disk.size(), Some(disk))? {
        warn!(
            "resource {name:?}: its disk was initialised with --clean and does not read as zeroes any more, from byte \
             {at} on: it counts as one that was made without --clean"
        );
        superblock.flags.set(DiskFlags::CONSISTENT | DiskFlags::UP_TO_DATE | DiskFlags::ZEROED, false);
        superblock.slots.iter_mut().filter(|slot| slot.site.is_some()).for_each(|slot| {
            slot.flags.set(SlotFlags::FULL_SYNC_DUE, true);
        });
    }
    Ok(())
}

/// The state that was found, with everything that is not known taken for the worst.
fn found(name: &str, loaded: Loaded) -> Found {
    let Loaded { superblock, activity, mut bitmaps, batches, .. } = loaded;
    let is_known = superblock.is_some();
    // The default's disk may only become the target of a resync.
    let batches = if is_known { batches } else { Vec::new() };
    let superblock = superblock.unwrap_or_default();
    let is_log_lost = activity.is_none() && superblock.flags.contains(DiskFlags::WRITING);
    if !is_known || is_log_lost {
        let what = if is_known { "activity log" } else { "superblock" };
        warn!("resource {name:?}: its metadata has no valid {what}: all of the disk counts as different");
        bitmaps.iter_mut().for_each(|bitmap| _ = bitmap.set(0..u64::MAX));
    }
    let activity = activity.unwrap_or_default();
    Found { superblock, active: activity.extents().to_vec(), record: activity.sequence(), bitmaps, batches }
}

/// The policies as the core has them.
fn policies(configured: SplitBrain) -> Policies {
    let mut policies = Policies::default();
    match configured.zero {
        NoPrimary::Disconnect => {}
        NoPrimary::DiscardYounger => policies.zero = ZeroPrimaries::DiscardYounger,
        NoPrimary::DiscardOlder => policies.zero = ZeroPrimaries::DiscardOlder,
        NoPrimary::DiscardZeroChanges => policies.zero = ZeroPrimaries::DiscardZeroChanges,
        NoPrimary::DiscardLeastChanges => policies.zero = ZeroPrimaries::DiscardLeastChanges,
        NoPrimary::DiscardSite(site) => policies.discard_site = Some(site),
    }
    policies.one = match configured.one {
        OnePrimary::Disconnect => choices::OnePrimary::Disconnect,
        OnePrimary::Consensus => choices::OnePrimary::Consensus,
        OnePrimary::DiscardSecondary => choices::OnePrimary::DiscardSecondary,
        OnePrimary::Violently => choices::OnePrimary::Violently,
        OnePrimary::CallHelper => choices::OnePrimary::CallHelper,
    };
    policies.two = match configured.two {
        TwoPrimaries::Disconnect => choices::TwoPrimaries::Disconnect,
        TwoPrimaries::Violently => choices::TwoPrimaries::Violently,
        TwoPrimaries::CallHelper => choices::TwoPrimaries::CallHelper,
    };
    policies.conflict = RoleConflict::Disconnect;
    policies
}
