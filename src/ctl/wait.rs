//! `hadmctl wait`: returns when a peer is connected, or all are.
//!
//! The daemon reports every change; with each, the state is asked for anew. Nothing is asked without a change. Called by the
//! command.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::daemon::Daemon;
use super::{Failure, names, read};
use crate::control::{Json, PeerStatus, Request, Status};

/// Time between two questions to a daemon that has not started yet: it reports no changes then.
const START_PERIOD: Duration = Duration::from_millis(200);

/// Waits until the peer that this text means is connected, or all are that are to be.
///
/// # Errors
/// The time is up, and how the peers stand then; or the daemon does not know the peer, or ends.
pub(super) fn wait(
    peer: Option<&str>,
    limit: Option<Duration>,
    (control, timeout): (&Path, Duration),
    json: bool,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let begun = Instant::now();
    let until = limit.and_then(|limit| begun.checked_add(limit));
    let is_over = || until.is_some_and(|until| Instant::now() >= until);
    let mut changes = None;
    let (well, missing, status) = loop {
        // A connection of its own each time: the daemon hangs up on one that is silent.
        let status: Status = read(&Daemon::connect(control, timeout)?.ask(&Request::Status)?)?;
        let missing = missing(peer, &status)?;
        let well = status.running.is_some() && missing.is_empty();
        if well || is_over() {
            break (well, missing, status);
        }
        match &mut changes {
            _ if status.running.is_none() => {
                let left =
                    until.map_or(START_PERIOD, |until| until.saturating_duration_since(Instant::now()));
                std::thread::park_timeout(START_PERIOD.min(left));
            }
            // Changes from before the stream began are in the next status.
            None => {
                let mut stream = Daemon::connect(control, timeout)?;
                stream.ask(&Request::Events)?;
                changes = Some(stream);
            }
            Some(stream) => stream.wait_for_event(until)?,
        }
    };
    let waited = begun.elapsed().as_secs_f64();
    if json {
        let peers: Vec<Value> = missing.iter().map(brief).collect();
        writeln!(out, "{}", json!({ "well": well, "waited_s": waited, "missing": peers }))?;
    } else if !well {
        match &status.running {
            None => writeln!(out, "the daemon has not started yet")?,
            Some(_) => {
                for peer in &missing {
                    writeln!(out, "{}: {}", peer.label(), peer.state)?;
                }
            }
        }
    }
    if well { Ok(()) } else { Err(Failure::Unwell) }
}

/// A peer in short.
pub(super) fn brief(peer: &PeerStatus) -> Value {
    let mut brief = peer.peer.json();
    if let Some(fields) = brief.as_object_mut() {
        fields.insert("name".into(), json!(peer.name));
        fields.insert("state".into(), peer.state.json());
    }
    brief
}

/// The peers that are waited for and are not connected.
fn missing(peer: Option<&str>, status: &Status) -> Result<Vec<PeerStatus>, Failure> {
    let wanted = match peer {
        // Its name is known once the daemon has its configuration.
        Some(_) if status.running.is_none() => None,
        Some(name) => Some(names::one(name, status)?),
        None => None,
    };
    let is_wanted = |peer: &&PeerStatus| match wanted {
        Some(key) => peer.peer == key,
        None => peer.is_expected(),
    };
    Ok(status.peers.iter().filter(is_wanted).filter(|peer| !peer.connected).cloned().collect())
}
