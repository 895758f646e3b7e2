//! The requests of the control socket, and their answers.
//!
//! A request names a command and, but for those of the whole program, a resource. Must let nobody change anything who is
//! not entitled to. Called by the control socket's threads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::mirror::Mirror;
use super::shared::Shared;
use super::witness::Witness;
use super::{doctor, metrics, status};
use crate::config::Config;
use crate::control::object;
use crate::nbd::core::{Command, Refusal};
use crate::nbd::disk::format::{CHECKPOINT_MAX, Checkpoint};
use crate::nbd::mirror::promotion::{Fencing, Objection};
use crate::wire::{Mask, PeerKey, SiteId};

/// Longest time of a change of the role before its client is referred to the status: longer than a lost site
/// is waited for by default, and than a disk that works takes for a flush.
const COMMAND_PATIENCE: Duration = Duration::from_secs(60);

/// Longest time for which a mirror may not be ready for a command because it has just begun, lost a site or promised another one its
/// turn: as long as such a promise holds, and a little more.
const BUSY_PATIENCE: Duration = Duration::from_secs(12);

/// Time between two tries.
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// Answers a request.
///
/// # Errors
/// Why not, in words.
pub fn answer(line: &str, shared: &Shared, is_privileged: bool) -> Result<Value, String> {
    let value = object(line, "this program")?;
    let word = |name: &str| value.get(name).and_then(Value::as_str);
    let command = word("cmd").ok_or("\"cmd\" is missing")?;
    if command == "status" {
        let (mirrors, witnesses) = chosen(shared, word("resource"))?;
        let server = shared.attachment.server().to_string();
        return Ok(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "server": server,
            "attached": shared.attachment.is_attached(),
            "resources": mirrors.into_iter().map(|mirror| with_hosts(mirror, &shared.config())).collect::<Vec<_>>(),
            "witnesses": witnesses.iter().map(|witness| witness.status()).collect::<Vec<_>>(),
        }));
    }
    if command == "metrics" {
        return Ok(metrics::metrics(&shared.mirrors, shared.attachment.is_attached()).into());
    }
    if command == "doctor" {
        let (mirrors, witnesses) = chosen(shared, word("resource"))?;
        return Ok(doctor::examine(shared, &mirrors, &witnesses));
    }
    if command == "why" {
        let mirror = find(shared, word("resource").ok_or("\"resource\" is missing")?)?;
        return Ok(mirror.lock().journal.events());
    }
    if command == "plan" {
        let mirror = find(shared, word("resource").ok_or("\"resource\" is missing")?)?;
        return Ok(plan(mirror, &sites(mirror, &value)?));
    }
    let known = [
        "primary",
        "secondary",
        "connect",
        "disconnect",
        "verify",
        "discard",
        "resync",
        "pause",
        "resume",
        "grow",
        "checkpoint",
    ];
    if !known.contains(&command) {
        return Err(format!("unknown command {command:?}"));
    }
    if !is_privileged {
        return Err(format!("{command} changes something: only root and hadm-nbd's own user may"));
    }
    let mirror = find(shared, word("resource").ok_or("\"resource\" is missing")?)?;
    let force = value.get("force").and_then(Value::as_bool).unwrap_or(false);
    let given = if force { format!("{command} --force") } else { command.to_owned() };
    mirror.record(None, "command", &given);
    match command {
        "primary" => give(mirror, Command::Promote { force, fenced: Mask(0) }),
        "secondary" => {
            // No client begins anything new; what each has in flight is answered.
            give(mirror, Command::Demote)
        }
        "discard" => give(mirror, Command::Discard),
        "pause" => give(mirror, Command::PauseResync { sites: mask(&sites(mirror, &value)?), paused: true }),
        "resume" => {
            give(mirror, Command::PauseResync { sites: mask(&sites(mirror, &value)?), paused: false })?;
            give(mirror, Command::Resume)
        }
        "resync" => {
            let full = value.get("full").and_then(Value::as_bool).unwrap_or(false);
            give(mirror, Command::Resync { site: peer(mirror, value.get("site"))?, full })
        }
        "grow" => {
            mirror.take_larger_disk().map_err(|why| format!("{}: {why}", mirror.name))?;
            give(mirror, Command::Grow)
        }
        "checkpoint" => {
            let name = word("name").ok_or("\"name\" is missing")?;
            let checkpoint = Checkpoint::new(name.as_bytes()).ok_or_else(|| {
                format!(
                    "{name:?} is no name for a checkpoint: take 1 to {CHECKPOINT_MAX} letters, digits and signs of ASCII, without \
                     spaces"
                )
            })?;
            give(mirror, Command::Checkpoint(checkpoint))
        }
        "verify" => give(mirror, Command::Verify { site: peer(mirror, value.get("site"))? }),
        _ => {
            let mask = mask(&sites(mirror, &value)?);
            mirror.hold(mask, command == "disconnect");
            Ok(Value::Null)
        }
    }
}

/// The state of a mirror, with the host names of the other sites.
fn with_hosts(mirror: &Mirror, config: &Config) -> Value {
    let mut status = status::status(mirror);
    let peers = status.get_mut("peers").and_then(Value::as_array_mut);
    for (peer, site) in peers.into_iter().flatten().zip(&mirror.peers) {
        if let Some(fields) = peer.as_object_mut() {
            fields.insert("hosts".into(), config.hosts(PeerKey::Site(mirror.id, *site)).into());
        }
    }
    status
}

/// The mirror of a name or, where no name fits, of an id.
/// A mirror or a witness of this site, or all of them.
type Chosen<'a> = (Vec<&'a Arc<Mirror>>, Vec<&'a Arc<Witness>>);

/// Returns what the wanted resource is here, or all that there is.
fn chosen<'a>(shared: &'a Shared, wanted: Option<&str>) -> Result<Chosen<'a>, String> {
    let is_wanted = |witness: &&Arc<Witness>| wanted.is_none_or(|wanted| witness.is_called(wanted));
    let witnesses: Vec<_> = shared.witnesses.iter().filter(is_wanted).collect();
    let mirrors = match wanted {
        Some(_) if !witnesses.is_empty() => Vec::new(),
        Some(wanted) => vec![find(shared, wanted)?],
        None => shared.mirrors.iter().collect(),
    };
    Ok((mirrors, witnesses))
}

fn find<'a>(shared: &'a Shared, wanted: &str) -> Result<&'a Arc<Mirror>, String> {
    let mirrors = &shared.mirrors;
    let by_name = mirrors.iter().find(|mirror| mirror.name == wanted);
    let by_id = || mirrors.iter().find(|mirror| Some(mirror.id.get()) == wanted.parse().ok());
    by_name.or_else(by_id).ok_or_else(|| {
        if shared.witnesses.iter().any(|witness| witness.is_called(wanted)) {
            return format!(
                "this site is the witness of {wanted:?}, and has no disk of it: ask at a site with a disk"
            );
        }
        let names: Vec<_> =
            mirrors.iter().map(|mirror| format!("{} ({})", mirror.name, mirror.id.get())).collect();
        format!("no resource {wanted:?} is served here; there are: {}", names.join(", "))
    })
}

/// The other site that is meant; the only one if none is named.
fn peer(mirror: &Mirror, given: Option<&Value>) -> Result<SiteId, String> {
    let names = || mirror.peers.iter().map(SiteId::to_string).collect::<Vec<_>>().join(", ");
    match (given, mirror.peers.as_slice()) {
        (None | Some(Value::Null), [only]) => Ok(*only),
        (None | Some(Value::Null), _) => Err(format!("say which site: {}", names())),
        (Some(given), peers) => {
            let found = peers.iter().find(|site| given.as_u64() == Some(site.get().into()));
            found
                .copied()
                .ok_or_else(|| format!("site {given} has no mirror of it; the others are: {}", names()))
        }
    }
}

/// The other site that a request names, or all of them.
fn sites(mirror: &Mirror, request: &Value) -> Result<Vec<SiteId>, String> {
    match request.get("site") {
        None | Some(Value::Null) => Ok(mirror.peers.clone()),
        given => Ok(vec![peer(mirror, given)?]),
    }
}

fn mask(sites: &[SiteId]) -> Mask {
    sites.iter().fold(Mask(0), |mask, site| mask | Mask::of(site.get()))
}

/// The consequences of a connect with each of these sites, by its own word if it can be asked.
fn plan(mirror: &Arc<Mirror>, sites: &[SiteId]) -> Value {
    let of = |site: &SiteId| {
        let asked = give(mirror, Command::Ask { site: *site });
        let mut lines = mirror.lock().core.plan(*site);
        if let Some(lines) = lines.as_mut() {
            lines.extend(mirror.could_grow().map(|says| format!("{}: {says}", mirror.site)));
        }
        json!({ "site": site.get(), "is_fresh": asked.is_ok(), "lines": lines })
    };
    sites.iter().map(of).collect::<Vec<_>>().into()
}

/// Returns true if it is only too early for the command.
fn is_passing(refusal: &Refusal) -> bool {
    match refusal {
        Refusal::Busy => true,
        Refusal::Objections(objections) => matches!(objections[..], [Objection::Busy(_)]),
        _ => false,
    }
}

fn give(mirror: &Arc<Mirror>, command: Command) -> Result<Value, String> {
    let name = &mirror.name;
    let until = Instant::now() + BUSY_PATIENCE;
    loop {
        let answer =
            mirror.command(command).ok_or_else(|| format!("{name}: another command is under way"))?;
        match answer.recv_timeout(COMMAND_PATIENCE) {
            Ok(Ok(())) => return Ok(status::status(mirror)),
            // Nothing tells when it is ready.
            Ok(Err(refusal)) if is_passing(&refusal) && Instant::now() < until => {
                std::thread::park_timeout(BUSY_PAUSE)
            }
            Ok(Err(refusal)) => return Err(format!("{name}: {}", words(refusal))),
            Err(_) => {
                let patience = COMMAND_PATIENCE.as_secs();
                return Err(format!("{name}: still under way after {patience} s: see the status"));
            }
        }
    }
}

/// Sites that cannot be reached, as a reason.
fn absent(sites: Mask) -> String {
    let ids: Vec<_> = sites.ids().map(|id| id.to_string()).collect();
    let names = format!("site{} {}", if ids.len() == 1 { "" } else { "s" }, ids.join(", "));
    let (is, it, them) = if ids.len() == 1 { ("is", "it", "it") } else { ("are", "they", "them") };
    format!(
        "{names} may have newer data and {is} not connected: bring {them} back, or use --force if {it} cannot be primary; \
         what only {it} had is lost then"
    )
}

fn words(refusal: Refusal) -> String {
    match refusal {
        Refusal::NotUsable => {
            "its disk here is half-synced, failed or was never filled: promote another site, or use --force, which \
             serves what is there"
                .into()
        }
        Refusal::Objections(objections) => {
            let words = objections.into_iter().map(|objection| match objection {
                Objection::Unknown(sites) => absent(sites),
                other if other.yields_to_force() => format!("{other} (--force overrules this)"),
                other => other.to_string(),
            });
            words.collect::<Vec<_>>().join("; ")
        }
        Refusal::Fencing(site, Fencing::IsPrimary) => {
            format!("the fencing handler says that {site} is primary: make it secondary first")
        }
        Refusal::Fencing(site, _) => format!(
            "the fencing handler could not keep {site} from going on: bring it back, or use --force if it cannot be primary"
        ),
        Refusal::Missing(sites) => absent(sites),
        Refusal::Majority => {
            "writes wait for a majority of the sites in sync: start another site, or the witness; one that never comes back is \
             taken out of the configuration of all others, which takes a restart"
                .into()
        }
        Refusal::Busy => "it is not ready for that: it has just begun, lost a site, or changes its role; try again".into(),
        Refusal::Role => "that does not fit its present role".into(),
        Refusal::Growth(obstacle) => obstacle.to_string(),
        Refusal::NoneFar => {
            "no site of it has <protocol>async</protocol>: the sites in sync have every write that was flushed, and a checkpoint \
             would say no more"
                .into()
        }
        Refusal::Crowded(site) => {
            format!("many checkpoints are on their way to {site} already: wait until it has the first of them")
        }
        Refusal::Site => "that site is not in sync, or this one is not primary".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::core::Obstacle;

    #[test]
    fn every_refusal_says_what_helps() {
        let site = SiteId::try_from(1).unwrap();
        for (refusal, part) in [
            (Refusal::NotUsable, "--force"),
            (Refusal::Objections(vec![Objection::Outdated]), "--force"),
            (
                Refusal::Objections(vec![Objection::Unknown(Mask::of(1))]),
                "site 1 may have newer data and is not connected",
            ),
            (Refusal::Fencing(site, Fencing::Failed), "--force"),
            (Refusal::Missing(Mask::of(1)), "site 1 may have newer data and is not connected"),
            (
                Refusal::Missing(Mask(6)),
                "sites 1, 2 may have newer data and are not connected: bring them back",
            ),
            (Refusal::Objections(vec![Objection::OtherPrimary(site)]), "site 1 is primary"),
            (Refusal::Busy, "try again"),
            (Refusal::Majority, "start another site"),
            (Refusal::Growth(Obstacle::Apart(Mask::of(1))), "bring it back"),
            (Refusal::Growth(Obstacle::Secondary(Some(site))), "give it at site 1"),
            (Refusal::NoneFar, "<protocol>async</protocol>"),
            (Refusal::Crowded(site), "wait"),
        ] {
            let words = words(refusal);
            assert!(words.contains(part), "{words}");
        }
    }
}
