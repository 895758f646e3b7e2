//! The examination of peers: the state of each, the outcome of calls, and a verdict with advice.
//!
//! It runs on the thread of the client that asked. A session that is up is never touched: its peer's port is tried,
//! and only if the peer is a hadmd that this side has to call. Missing peers that this side has to call are called by
//! the daemon itself, as it would by itself a little later. Peers with larger ids may not be called; only their port
//! is tried.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded, never};
use if_addrs::Interface;

use super::port::{Port, try_ports};
use super::{BACKLOG, ControlRequest, verdict};
use crate::control::{
    Answer, Check, CheckResult, Examination, ExaminedPeer, Line, PeerCounters, PeerState, PeerStatus,
    Request, Role, Running, Status, Wait, decimal,
};
use crate::daemon::connect::DIAL_LIMIT;
use crate::wire::{PeerKey, ResourceId};

/// Longest time for calls: a second until the daemon may call again, the call, and its report.
const CALLS_LIMIT: Duration = DIAL_LIMIT.saturating_add(Duration::from_secs(2));

/// Examines one peer, or this node and all its peers; returns a line for the client, or `None` when the daemon ends.
pub fn examine(control_requests: &Sender<ControlRequest>, only: Option<PeerKey>) -> Option<Line> {
    // Events come from before the calls begin, so that none of their ends is missed.
    let changes = ask(control_requests, Request::Events)?;
    changes.recv().ok()?;
    let before = match ask(control_requests, Request::Doctor(only))?.recv().ok()? {
        Line::Answer(Ok(Answer::Status(before))) => before,
        refused => return Some(refused),
    };
    let selected = |peer: &&PeerStatus| only.is_none_or(|only| peer.peer == only);
    let first: Vec<&PeerStatus> = before.peers.iter().filter(selected).collect();
    let own = before.running.as_ref().and_then(|running| running.address);
    let ports = ports(&first, own.map(|own| own.ip()));
    let begun = Instant::now();
    let status = loop {
        let status = match ask(control_requests, Request::Status)?.recv().ok()? {
            Line::Answer(Ok(Answer::Status(status))) => status,
            refused => return Some(refused),
        };
        let settled = status.peers.iter().filter(selected).all(|peer| {
            let earlier = first.iter().find(|earlier| earlier.peer == peer.peer);
            earlier.is_none_or(|earlier| is_settled(earlier, peer))
        });
        if settled || changes.recv_timeout(CALLS_LIMIT.saturating_sub(begun.elapsed())).is_err() {
            break status;
        }
    };
    let Status { waiting, running, peers, .. } = *status;
    // Only a daemon that has started gets here.
    let running = running?;
    let checks = if only.is_none() { local(&running, &waiting, &peers) } else { Vec::new() };
    let peers: Vec<ExaminedPeer> = peers
        .into_iter()
        .filter(|peer| selected(&peer))
        .map(|peer| {
            let port = ports.iter().find(|(key, _)| *key == peer.peer).map(|(_, port)| port);
            let found = verdict::of(&peer, port, running.address, !running.keys.is_empty());
            ExaminedPeer { peer: PeerStatus { counters: PeerCounters::default(), ..peer }, found }
        })
        .collect();
    let well = checks.iter().all(|check| check.well) && peers.iter().all(|peer| peer.found.well);
    let found = Examination { well, node: running.node, hostname: running.hostname, checks, peers };
    Some(Line::good(Answer::Examination(found)))
}

fn ask(control_requests: &Sender<ControlRequest>, request: Request) -> Option<Receiver<Line>> {
    let (reply, lines) = bounded(BACKLOG);
    control_requests.send(ControlRequest { request, config: None, reply, gone: never() }).ok()?;
    Some(lines)
}

/// Tries the ports that may be tried, where the result says something.
fn ports(peers: &[&PeerStatus], own: Option<IpAddr>) -> Vec<(PeerKey, Port)> {
    let wanted = peers.iter().filter(|peer| {
        let called_from_here = peer.role == Role::Caller;
        match peer.connected {
            // A C daemon closes its port while all its peers are connected.
            true => called_from_here && peer.version.is_some(),
            false => !called_from_here && peer.state != PeerState::Off,
        }
    });
    let target = |peer: &&PeerStatus| Some((peer.peer, (peer.address?, peer.from.or(own)?)));
    let (keys, targets): (Vec<PeerKey>, Vec<(SocketAddr, IpAddr)>) = wanted.filter_map(target).unzip();
    keys.into_iter().zip(try_ports(&targets)).collect()
}

/// Returns true if the requested call has come to its end, or will not be made now.
fn is_settled(before: &PeerStatus, now: &PeerStatus) -> bool {
    let dialed = u64::from(before.state != PeerState::Dialing);
    let awaited = before.attempts.saturating_add(dialed);
    let number = now.call.as_ref().map_or(0, |call| call.number);
    // The next call may have begun already.
    let ended = number >= awaited;
    let held_off = now.state == PeerState::Waiting && now.next_attempt_s.is_some_and(|left| left > 1.5);
    let settled = matches!(now.state, PeerState::Connected | PeerState::Off);
    now.role != Role::Caller || settled || ended || held_off
}

fn well(check: Check, says: String) -> CheckResult {
    CheckResult { check, well: true, says, advice: None }
}

fn wrong(check: Check, says: String, advice: &str) -> CheckResult {
    CheckResult { check, well: false, says, advice: Some(advice.into()) }
}

/// Returns the results for this node itself.
fn local(running: &Running, waiting: &[Wait], peers: &[PeerStatus]) -> Vec<CheckResult> {
    let address = running.address.map(|address| address.to_string()).unwrap_or_default();
    let hostname = running.hostname.as_deref().unwrap_or_default();
    let machine = rustix::system::uname();
    let machine = machine.nodename().to_string_lossy();
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    let down = interfaces.iter().find(|interface| {
        !interface.is_oper_up() && running.address.is_some_and(|address| address.ip() == interface.ip())
    });
    let mut checks = vec![
        match (running.address.is_some_and(|address| is_held(address.ip(), &interfaces)), down) {
            (true, None) => well(Check::Address, format!("{address} is on this machine")),
            (true, Some(down)) => wrong(
                Check::Address,
                format!("{address} is on {}, which is down", down.name),
                "Look at its cable and its switch; `ip link` shows the state.",
            ),
            (false, _) => wrong(
                Check::Address,
                format!("{address} is on no interface of this machine"),
                "Correct ipaddr of this node, or give the address to an interface.",
            ),
        },
        well(
            Check::Hostname,
            match hostname == machine {
                true => format!("this machine is {machine}"),
                false => {
                    format!("this machine is {machine}; the daemon runs as {hostname} since its start")
                }
            },
        ),
        match running.kernel.since_s {
            Some(since) => well(Check::Kernel, format!("attached for {} s", decimal(since, 0))),
            None => wrong(
                Check::Kernel,
                format!("not attached at {}", running.server),
                "Load hadm_kmod, or for a trial start hadm-probe; compare serverip and serverport.",
            ),
        },
        well(
            Check::Heartbeats,
            match running.stalls {
                0 => "judged without a pause".into(),
                n => format!("not judged {n} times, since this daemon had not run for a while"),
            },
        ),
    ];
    // A file with a warning is one that works: most are about what may go wrong one day.
    checks.extend(running.warnings.0.iter().map(|warning| CheckResult {
        advice: Some("Correct that line on every node, and reload.".into()),
        ..well(Check::Configuration, warning.clone())
    }));
    checks.extend(waiting.iter().filter_map(|wait| match wait {
        // The check of the address has reported it already.
        Wait::Address(_) => None,
        Wait::Other(what) => {
            let advice = "It is tried again by itself; look why it takes so long.";
            Some(wrong(Check::Waiting, what.clone(), advice))
        }
    }));
    checks.extend(logs(running, peers, &interfaces));
    checks
}

/// Returns a result for the log of each resource that other sites have, too: exactly one node here has to own it.
fn logs(running: &Running, peers: &[PeerStatus], interfaces: &[Interface]) -> Vec<CheckResult> {
    let nodes = || peers.iter().filter(|peer| matches!(peer.peer, PeerKey::Node(_)) && peer.connected);
    let of = |id: ResourceId, site: &PeerStatus| {
        let resource = match &site.resource_name {
            Some(name) => format!("{id} ({name})"),
            None => id.to_string(),
        };
        let address = site.from.map(|address| address.to_string()).unwrap_or_default();
        let is_here = running.owned.contains(&id);
        let owns = |peer: &&PeerStatus| peer.owned.as_ref().is_some_and(|owned| owned.contains(&id));
        let mut owners: Vec<String> = nodes().filter(owns).map(PeerStatus::label).collect();
        if is_here {
            owners.insert(0, "this node".into());
        }
        match &owners[..] {
            [owner] => match interfaces.iter().find(|interface| is_here && Some(interface.ip()) == site.from)
            {
                Some(interface) if !interface.is_oper_up() => wrong(
                    Check::Log,
                    format!(
                        "this node owns the log of {resource}, and the interface of {address}, {}, is down",
                        interface.name
                    ),
                    "Look at its cable and its switch, or give the address to a node whose interface is up.",
                ),
                _ => well(Check::Log, format!("{owner} owns the log of {resource}")),
            },
            [] if nodes().all(|peer| peer.owned.is_some()) => wrong(
                Check::Log,
                format!("no node here owns the log of {resource}: {address} is on none that is connected"),
                "Give that address to a node that may run the resource: until then the other sites reach nobody.",
            ),
            [] => well(
                Check::Log,
                format!(
                    "this node does not own the log of {resource}; not every node here says what it owns"
                ),
            ),
            owners => wrong(
                Check::Log,
                format!(
                    "{} nodes own the log of {resource}: {}; {address} is on each of them",
                    owners.len(),
                    owners.join(" and ")
                ),
                "Take that address from all but one: their sessions with other sites end each other.",
            ),
        }
    };
    let mut results = Vec::new();
    let mut last = None;
    for peer in peers {
        // Sites stand by resource.
        if let PeerKey::Site(resource, _) = peer.peer {
            if last.replace(resource) != Some(resource) {
                results.push(of(resource, peer));
            }
        }
    }
    results
}

/// Returns true if this machine has the address. It has all of 127.0.0.0/8, though no interface lists it.
fn is_held(address: IpAddr, interfaces: &[Interface]) -> bool {
    let listed = interfaces.iter().any(|interface| interface.ip() == address);
    listed || address.is_loopback() && UdpSocket::bind((address, 0)).is_ok()
}
