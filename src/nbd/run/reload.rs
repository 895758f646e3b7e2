//! A new configuration for what is served: its rates, patience and policies are put in force, the rest is named.
//!
//! Must never change a disk, a site or an address under clients: that takes a restart. Called at SIGHUP.

use std::sync::Arc;

use log::{info, warn};

use super::handlers::Handlers;
use super::mirror::Mirror;
use super::open::tuning;
use super::shared::Shared;
use crate::config::{Config, Resource, RunSite};

/// Puts a configuration in force as far as that goes without a restart.
pub fn reload(shared: &Shared, fresh: Config) {
    let old = shared.config();
    if fresh.server != old.server {
        warn!("reload: <serverip> and <serverport> need a restart");
    }
    if fresh.site != old.site {
        return warn!("reload: refused: this node is at {} now, and was at {}", fresh.site, old.site);
    }
    let mut is_taken = true;
    for mirror in &shared.mirrors {
        is_taken &= take(mirror, &old, &fresh);
    }
    for resource in fresh.resources.iter().filter(|resource| resource.runsite(fresh.site).is_some()) {
        if old.resources.iter().all(|known| known.id != resource.id) {
            warn!("reload: resource {:?} is new: it is served from the next start on", resource.name);
        }
    }
    if !is_taken {
        return info!("reload: done but for the parts named before");
    }
    *shared.lock_config() = Arc::new(fresh);
    info!("reload: done");
}

/// Puts a mirror's part of it in force; returns true if that was all of it.
fn take(mirror: &Arc<Mirror>, old: &Config, fresh: &Config) -> bool {
    let find = |config: &Config| -> Option<(Resource, RunSite)> {
        let resource = config.resources.iter().find(|resource| resource.id == mirror.id)?;
        Some((resource.clone(), resource.runsite(config.site)?.clone()))
    };
    let name = &mirror.name;
    let (Some((was, was_here)), Some((is, here))) = (find(old), find(fresh)) else {
        warn!("reload: resource {name:?} is not at this site any more: it is served until the next start");
        return false;
    };
    let sites = |resource: &Resource| resource.runsites.iter().map(|at| at.site).collect::<Vec<_>>();
    let protocols = |resource: &Resource| resource.runsites.iter().map(|at| at.protocol).collect::<Vec<_>>();
    let (then, now) = (&was_here.mirror, &here.mirror);
    let fixed = [
        ("<name>", was.name != is.name),
        ("<runsite>", sites(&was) != sites(&is)),
        ("<protocol>", protocols(&was) != protocols(&is)),
        ("<disk>", was_here.disk != here.disk),
        ("<bwr_disk>", was_here.bwr_disk != here.bwr_disk),
        ("<witness>", was.witness() != is.witness()),
        ("<quorum>", then.quorum != now.quorum),
        ("<activeextents>", then.active_extents != now.active_extents),
        ("<nbd>", then.nbd != now.nbd),
        ("<nbdclients>", then.nbd_clients != now.nbd_clients),
        ("<nbdmemory>", then.nbd_memory != now.nbd_memory),
    ];
    let fixed: Vec<_> = fixed.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect();
    if !fixed.is_empty() {
        warn!("reload: resource {name:?}: these need a restart, and stay as they are: {}", fixed.join(", "));
    }
    let handlers = Handlers::new(fresh, &is, &here);
    let are_handlers_new = mirror.lock().handlers != handlers;
    let tuned = tuning(fresh, &here);
    if are_handlers_new || tuning(old, &was_here) != tuned {
        handlers.look(name);
        let mut state = mirror.lock();
        state.core.tune(tuned);
        state.handlers = handlers;
        drop(state);
        mirror.record(None, "reload", "rates, patience or policies have changed");
        info!("reload: resource {name:?}: changed");
    }
    fixed.is_empty()
}
