//! `hadmctl summary`: the daemon, its peers and the disks in one line, for a prompt or the message of the day.
//!
//! Always says something, and soon: also of a daemon that is not there or does not answer. Called by the command.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::daemon::Daemon;
use super::json::{list, text};
use super::{Failure, read, wait};
use crate::control::{PeerStatus, Request, Status};

/// Peers that are named; of more only the number is given.
const NAMED: usize = 3;

/// Prints the line.
///
/// # Errors
/// What is not well: the daemon does not answer, a peer is not connected, no kernel module is attached, a disk is not in
/// sync.
pub(super) fn summary(
    control: &Path,
    disks: &Path,
    timeout: Duration,
    json: bool,
    out: &mut impl Write,
) -> Result<(), Failure> {
    // Half of the time to connect, the other half to answer, and both programs at the same time.
    let half = timeout / 2;
    let ask = |program, path: &Path| Daemon::connect_to(program, path, half)?.ask(&Request::Status);
    let (daemon, nbd) = std::thread::scope(|scope| {
        let nbd = disks.exists().then(|| scope.spawn(|| ask("hadm-nbd", disks)));
        let daemon = ask("hadmd", control).and_then(|status| read(&status));
        (daemon, nbd.and_then(|nbd| nbd.join().ok()))
    });
    let (mut well, mut parts) = (true, Vec::new());
    let expected: Vec<&PeerStatus> = daemon.as_ref().map_or(Vec::new(), |status: &Status| {
        status.peers.iter().filter(|peer| peer.is_expected()).collect()
    });
    let missing: Vec<&PeerStatus> = expected.iter().copied().filter(|peer| !peer.connected).collect();
    let running = daemon.as_ref().ok().and_then(|status| status.running.as_ref());
    match (&daemon, running) {
        (Err(Failure::NotThere(_)), _) => parts.push("hadmd is not running".into()),
        (Err(Failure::NoAnswer(_)), _) => parts.push("hadmd does not answer".into()),
        (Err(failure), _) => parts.push(failure.to_string()),
        (Ok(_), None) => parts.push("hadmd has not started yet".into()),
        (Ok(_), Some(running)) => {
            let name = running.hostname.as_deref().unwrap_or_default();
            let connected = expected.len().saturating_sub(missing.len());
            let mut peers =
                format!("{} ({name}): {connected} of {} peers connected", running.node, expected.len());
            if !missing.is_empty() {
                let mut names: Vec<String> = missing.iter().take(NAMED).map(|peer| peer.label()).collect();
                if missing.len() > NAMED {
                    names.push(format!("{} more", missing.len().saturating_sub(NAMED)));
                }
                peers += &format!(", not {}", names.join(", "));
            }
            parts.push(peers);
            if !running.kernel.attached {
                parts.push("no kernel module".into());
            }
        }
    }
    well &= missing.is_empty() && running.is_some_and(|running| running.kernel.attached);
    let mut shown = Vec::new();
    match &nbd {
        None => {}
        Some(Err(failure)) => {
            well = false;
            parts.push(match failure {
                Failure::NotThere(_) => "hadm-nbd is not running".into(),
                Failure::NoAnswer(_) => "hadm-nbd does not answer".into(),
                failure => failure.to_string(),
            });
        }
        Some(Ok(status)) => {
            for resource in list(status.value(), "resources") {
                let (words, disk, is_well) = disk(resource);
                well &= is_well;
                parts.push(words);
                shown.push(disk);
            }
        }
    }
    let line = parts.join("; ");
    if json {
        let missing: Vec<Value> = missing.iter().map(|peer| wait::brief(peer)).collect();
        let summary = json!({
            "well": well,
            "text": line,
            "answers": daemon.is_ok(),
            "node": running.map(|running| running.node.get()),
            "hostname": running.and_then(|running| running.hostname.clone()),
            "kernel_attached": running.is_some_and(|running| running.kernel.attached),
            "peers": expected.len(),
            "missing": missing,
            "disks": shown,
        });
        writeln!(out, "{summary}")?;
    } else {
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    match daemon {
        // The line says why already.
        Err(failure) => Err(Failure::Shown(failure.status())),
        Ok(_) if well => Ok(()),
        Ok(_) => Err(Failure::Unwell),
    }
}

/// A disk in words and as JSON, and true if it is well.
fn disk(resource: &Value) -> (String, Value, bool) {
    let (name, role, disk) = (text(resource, "name"), text(resource, "role"), text(resource, "disk"));
    let sites = list(resource, "peers").count();
    let in_sync =
        list(resource, "peers").filter(|peer| peer.get("in_sync") == Some(&Value::Bool(true))).count();
    let is_frozen = resource.get("frozen") == Some(&Value::Bool(true));
    let mut words = format!("{name} {role}, {disk}, {in_sync} of {sites} sites in sync");
    if is_frozen {
        words += ", writes wait";
    }
    let is_usable = matches!(disk, "up to date" | "consistent");
    let is_well = is_usable && in_sync == sites && !is_frozen;
    let shown = json!({ "name": name, "role": role, "disk": disk, "sites": sites, "in_sync": in_sync,
        "frozen": is_frozen, "well": is_well });
    (words, shown, is_well)
}
