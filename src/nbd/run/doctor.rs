//! Examines what is served: the attachment, each mirror's state, its disk and metadata.
//!
//! Reads only, also while everything is in use. Each finding says what it is, and what helps; only what keeps a mirror
//! from doing its duty counts as wrong. Called by the control socket.

use std::path::Path;
use std::sync::Arc;

use rustix::fs::statvfs;
use serde_json::{Value, json};

use super::mirror::Mirror;
use super::shared::Shared;
use super::status::{PeerView, View, view, witness_word};
use super::witness::Witness;
use crate::config::Resource;
use crate::nbd::core::{Part, Stage, WitnessState};
use crate::nbd::disk::check::check;
use crate::nbd::disk::format::DiskFlags;
use crate::nbd::mirror::outcome::Bytes;
use crate::wire::{ResourceId, SiteId};

/// Something that was looked at.
struct Finding {
    is_well: bool,
    what: String,
    says: String,
    advice: Option<String>,
}

impl Finding {
    fn well(what: impl Into<String>, says: impl Into<String>) -> Self {
        Finding { is_well: true, what: what.into(), says: says.into(), advice: None }
    }

    /// A good state with some advice.
    fn note(what: impl Into<String>, says: impl Into<String>, advice: impl Into<String>) -> Self {
        Finding { advice: Some(advice.into()), ..Self::well(what, says) }
    }

    fn wrong(what: impl Into<String>, says: impl Into<String>, advice: impl Into<String>) -> Self {
        Finding { is_well: false, ..Self::note(what, says, advice) }
    }
}

/// Examines these mirrors, and these resources of which this site is the witness.
pub fn examine(shared: &Shared, mirrors: &[&Arc<Mirror>], witnesses: &[&Arc<Witness>]) -> Value {
    let server = shared.attachment.server();
    let mut found = vec![match shared.attachment.is_attached() {
        true => Finding::well("daemon", format!("attached to hadmd at {server}")),
        false => Finding::wrong(
            "daemon",
            format!("not attached to hadmd at {server}: no other site can be reached"),
            "start hadmd with --no-kmod-check, or correct <serverip> and <serverport>",
        ),
    }];
    found.push(match shared.unprotected.as_slice() {
        [] => Finding::well("protection", "memory is locked, and the system knows that disks depend on it"),
        parts => Finding::note(
            "protection",
            parts.join("; "),
            "only for clients on this machine does it matter: give it CAP_IPC_LOCK and CAP_SYS_RESOURCE",
        ),
    });
    let config = shared.config();
    for mirror in mirrors {
        let view = view(mirror);
        found.push(of_disk(mirror, &view));
        if let Some(resource) = config.resources.iter().find(|resource| resource.id == mirror.id) {
            found.extend(of_metadata(mirror, resource));
            found.extend(of_space(mirror, resource));
            found.extend(mirror.could_grow().map(|says| {
                let advice = format!(
                    "once the disks of all sites are larger, at the primary: hadmctl disk grow {}",
                    mirror.name
                );
                Finding::note(format!("{}: size", mirror.name), says, advice)
            }));
        }
        found.extend(view.peers.iter().map(|peer| of_peer(mirror, peer)));
        found.extend(view.witness.map(|(site, state)| of_vote(mirror, site, state)));
    }
    witnesses.iter().for_each(|witness| found.extend(of_witness(witness)));
    let is_well = found.iter().all(|finding| finding.is_well);
    let finding = |found: &Finding| json!({ "well": found.is_well, "what": found.what, "says": found.says, "advice": found.advice });
    json!({ "well": is_well, "found": found.iter().map(finding).collect::<Vec<_>>() })
}

fn of_disk(mirror: &Mirror, view: &View) -> Finding {
    let name = &mirror.name;
    let what = format!("{name}: disk");
    let says = format!("{}, {}", view.role.word(), view.disk);
    if view.flags.contains(DiskFlags::SPLIT_BRAIN) {
        return Finding::wrong(
            what,
            format!("{says}; split brain: two sites wrote without each other"),
            format!(
                "choose the site whose changes go, and there: hadmctl disk secondary {name}, hadmctl disk discard {name}"
            ),
        );
    }
    if view.waits_for_majority {
        return Finding::wrong(
            what,
            format!("{says}; writes wait for a majority of the sites in sync"),
            "start hadm-nbd at another site, or the witness",
        );
    }
    if view.is_frozen {
        return Finding::wrong(
            what,
            format!("{says}; writes wait for a lost site"),
            format!("bring the site back, or let them go on: hadmctl disk resume {name}"),
        );
    }
    match view.disk {
        "up to date" => Finding::well(what, says),
        "consistent" if view.follows.is_some() => Finding::well(what, says),
        "failed" => Finding::wrong(
            what,
            format!("{says}: it gave an error, and is out until it is resynced"),
            "look for its error in the kernel's log, replace it if need be, and start hadm-nbd again",
        ),
        "inconsistent" => Finding::wrong(
            what,
            format!("{says}: a resync to it has not ended"),
            "connect the site that it is copied from",
        ),
        "outdated" => {
            Finding::wrong(what, format!("{says}: another site has newer data"), "connect that site")
        }
        "just created" if view.flags.contains(DiskFlags::ZEROED) => Finding::note(
            what,
            format!("{says}, all zeroes: it has no data yet"),
            format!("when all sites are in sync, and none is primary: hadmctl disk primary {name}"),
        ),
        "just created" => Finding::wrong(
            what,
            format!("{says}: it has no data yet"),
            format!("at the site whose content counts: hadmctl disk primary {name} --force"),
        ),
        _ => {
            Finding::note(what, format!("{says}: nobody is primary"), format!("hadmctl disk primary {name}"))
        }
    }
}

fn of_metadata(mirror: &Mirror, resource: &Resource) -> Vec<Finding> {
    let what = format!("{}: metadata", mirror.name);
    match check(resource, mirror.site) {
        Ok(report) if report.problems.is_empty() => vec![Finding::well(what, report.summary)],
        Ok(report) => {
            let problem = |problem: &String| {
                Finding::wrong(
                    what.clone(),
                    problem.clone(),
                    "examine the device that it is on; hadm-nbd dump shows all of it",
                )
            };
            report.problems.iter().map(problem).collect()
        }
        Err(why) => vec![Finding::wrong(what, why, "correct the configuration, or restore the disk")],
    }
}

/// A file with holes needs space when they are written to.
fn of_space(mirror: &Mirror, resource: &Resource) -> Option<Finding> {
    let at = resource.runsite(mirror.site)?;
    let file = std::fs::metadata(&at.disk).ok().filter(std::fs::Metadata::is_file)?;
    let system = statvfs(Path::new(&at.disk)).ok()?;
    let holes = file.len().saturating_sub(std::os::unix::fs::MetadataExt::blocks(&file).saturating_mul(512));
    let free = system.f_bavail.saturating_mul(system.f_frsize);
    let what = format!("{}: space", mirror.name);
    let says =
        format!("{} of {} not allocated, {} free in its file system", Bytes(holes), at.disk, Bytes(free));
    Some(match holes {
        0 => Finding::well(what, format!("{} is allocated as a whole", at.disk)),
        _ if holes <= free => Finding::well(what, says),
        _ => Finding::note(
            what,
            format!("{says}: writes fail for want of space once that is used up"),
            format!("make room, or allocate it now: fallocate -l {} {}", file.len(), at.disk),
        ),
    })
}

fn of_peer(mirror: &Mirror, peer: &PeerView) -> Finding {
    let name = &mirror.name;
    let what = format!("{name}: {}", peer.site);
    let says = peer.sentence();
    match (peer.stage, peer.part) {
        (Stage::Joined, Part::Equal | Part::Idle) => Finding::well(what, says),
        (Stage::Joined, Part::Source | Part::Target) => {
            Finding::note(what, says, format!("wait for its end: hadmctl disk status {name} --watch"))
        }
        (Stage::Preparing | Stage::Ready, _) => Finding::note(what, says, "wait a moment"),
        (Stage::Apart, _) if peer.is_held => {
            Finding::wrong(what, says, format!("hadmctl disk connect {name} {}", peer.site.get()))
        }
        (Stage::Apart, _) if peer.is_linked => Finding::wrong(
            what,
            says,
            "see that hadm-nbd runs there; if it says why it does not replicate, do as it says",
        ),
        (Stage::Apart, _) => Finding::wrong(what, says, way(mirror.id, peer.site)),
    }
}

/// The remedy where a site cannot be reached.
fn way(resource: ResourceId, site: SiteId) -> String {
    format!("hadmctl doctor {}:{} examines the way there", resource.get(), site.get())
}

/// The verdict of the witness about the data here.
fn of_vote(mirror: &Mirror, site: SiteId, state: WitnessState) -> Finding {
    let what = format!("{}: witness", mirror.name);
    let says = format!("{site} {}", witness_word(state));
    match state {
        WitnessState::Agrees => Finding::well(what, says),
        WitnessState::Blank => {
            Finding::note(what, says, "it votes once a primary and the other site have been in sync")
        }
        WitnessState::Newer(sites) => {
            Finding::wrong(what, format!("{says} at sites {sites}"), "start hadm-nbd at one of these sites")
        }
        WitnessState::Away => Finding::wrong(
            what,
            format!("{says}: of two sites that lose each other none goes on"),
            format!("see that hadm-nbd runs there; {}", way(mirror.id, site)),
        ),
    }
}

/// A resource of which this site is the witness.
fn of_witness(witness: &Witness) -> Vec<Finding> {
    let what = format!("{}: disk", witness.name);
    let mut found = vec![match witness.knowledge() {
        (says, true) => Finding::well(what, says),
        (says, false) => {
            Finding::wrong(what, says, "see to the file system of <witness>, and start hadm-nbd anew")
        }
    }];
    found.extend(witness.sites().into_iter().map(|(site, is_linked)| {
        let what = format!("{}: {site}", witness.name);
        match is_linked {
            true => Finding::well(what, format!("{site} connected")),
            false => Finding::wrong(what, format!("{site} not connected"), way(witness.id, site)),
        }
    }));
    found
}
