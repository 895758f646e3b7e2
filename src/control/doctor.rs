//! The examination of peers: what the daemon knows of each, what its calls come to, and a verdict with advice.
//!
//! It runs on the thread of the client that asked. A session that is up is never touched: its peer is asked
//! nothing but whether its port still answers, and only if it is a hadmd that this side has to call. Peers that
//! this side has to call and that are missing are called by the daemon itself, as it would by itself a little
//! later. Peers with larger ids may not be called; of them, only the port is tried.
#![allow(clippy::indexing_slicing, reason = "a JSON value gives null for what it has not")]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use serde_json::{Value, json};

use super::port::{Port, try_ports};
use super::verdict::{self, Finding};
use super::{Ask, BACKLOG, Request, good};
use crate::connect::DIAL_LIMIT;
use crate::core::PeerKey;

/// How long calls may take: a second until the daemon may call again, the call, and its being told.
const CALLS_LIMIT: Duration = DIAL_LIMIT.saturating_add(Duration::from_secs(2));

/// Examines one peer, or this node and all of them; a line for the client, or `None` when the daemon ends.
pub fn examine(asks: &Sender<Ask>, only: Option<PeerKey>) -> Option<Value> {
    // Heard from before the calls begin, so that none of their ends is missed.
    let changes = ask(asks, Request::Events)?;
    changes.recv().ok()?;
    let mut before = ask(asks, Request::Doctor(only))?.recv().ok()?;
    if before["ok"] != true {
        return Some(before);
    }
    let before = before.get_mut("data").map(Value::take).unwrap_or_default();
    let selected = |peer: &&Value| only.is_none_or(|only| peer["peer"] == only.to_string());
    let peers = |status: &Value| -> Vec<Value> {
        status["peers"].as_array().into_iter().flatten().filter(selected).cloned().collect()
    };
    let first = peers(&before);
    let ports = ports(&first, before["address"].as_str());
    let begun = Instant::now();
    let status = loop {
        let status = ask(asks, Request::Status)?.recv().ok()?.get_mut("data").map(Value::take)?;
        let settled = peers(&status).iter().all(|peer| {
            let earlier = first.iter().find(|earlier| earlier["peer"] == peer["peer"]);
            earlier.is_none_or(|earlier| is_settled(earlier, peer))
        });
        if settled || changes.recv_timeout(CALLS_LIMIT.saturating_sub(begun.elapsed())).is_err() {
            break status;
        }
    };
    let checks = if only.is_none() { local(&status) } else { Vec::new() };
    let found: Vec<Value> = peers(&status)
        .into_iter()
        .map(|peer| {
            let port = ports.iter().find(|(name, _)| *name == peer["peer"]).map(|(_, port)| port);
            let finding = verdict::of(&peer, port, status["address"].as_str().unwrap_or_default());
            finding.into_json(peer, port)
        })
        .collect();
    let well = checks.iter().chain(&found).all(|finding| finding["well"] == true);
    Some(good(json!({
        "well": well, "node": status["node"], "hostname": status["hostname"], "checks": checks, "peers": found,
    })))
}

fn ask(asks: &Sender<Ask>, request: Request) -> Option<Receiver<Value>> {
    let (reply, lines) = bounded(BACKLOG);
    asks.send(Ask { request, config: None, reply }).ok()?;
    Some(lines)
}

/// Tries the ports that may be tried, and only where it tells something.
fn ports(peers: &[Value], own: Option<&str>) -> Vec<(Value, Port)> {
    let own = own.and_then(|own| own.parse::<SocketAddr>().ok()).map(|own| own.ip());
    let wanted = peers.iter().filter(|peer| {
        let called_from_here = peer["role"] == "caller";
        match peer["connected"] == true {
            // A C daemon closes its port while all its peers are there.
            true => called_from_here && peer["version"].is_string(),
            false => !called_from_here && peer["state"] != "off",
        }
    });
    let (names, targets): (Vec<Value>, Vec<(SocketAddr, IpAddr)>) = wanted
        .filter_map(|peer| {
            let to: SocketAddr = peer["address"].as_str()?.parse().ok()?;
            let from = peer["from"].as_str().and_then(|from| from.parse().ok()).or(own)?;
            Some((peer["peer"].clone(), (to, from)))
        })
        .unzip();
    names.into_iter().zip(try_ports(&targets)).collect()
}

/// Whether the call that was asked for has come to its end, or will not be made now.
fn is_settled(before: &Value, now: &Value) -> bool {
    let state = now["state"].as_str().unwrap_or_default();
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let awaited = number(&before["attempts"]).saturating_add(u64::from(before["state"] != "dialing"));
    let ended = state != "dialing" && number(&now["call"]["number"]) >= awaited;
    let held_off = state == "waiting" && now["next_attempt_s"].as_f64().is_some_and(|left| left > 1.5);
    now["role"] != "caller" || matches!(state, "connected" | "off") || ended || held_off
}

/// What can be said of this node itself.
fn local(status: &Value) -> Vec<Value> {
    let text = |field: &str| status[field].as_str().unwrap_or_default();
    let address = text("address").parse::<SocketAddr>().ok();
    let held = address.is_some_and(|address| is_held(address.ip()));
    let machine = rustix::system::uname();
    let machine = machine.nodename().to_string_lossy();
    let stalls = status["stalls"].as_u64().unwrap_or_default();
    let kernel = status["kernel"]["since_s"].as_f64();
    let mut checks = vec![
        match held {
            true => Finding::well("address", format!("{} is on this machine", text("address"))),
            false => Finding::wrong(
                "address",
                format!("{} is on no interface of this machine", text("address")),
                "Correct ipaddr of this node, or give the address to an interface.",
            ),
        },
        Finding::well(
            "hostname",
            match text("hostname") == machine {
                true => format!("this machine is {machine}"),
                false => format!("this machine is {machine}; it runs as {} by --hostname", text("hostname")),
            },
        ),
        match kernel {
            Some(since) => Finding::well("kernel module", format!("attached for {since:.0} s")),
            None => Finding::wrong(
                "kernel module",
                format!("not attached at {}", text("server")),
                "Load hadm_kmod, or for a trial start hadm-probe; compare serverip and serverport.",
            ),
        },
        Finding::well(
            "heartbeats",
            match stalls {
                0 => "judged without a pause".into(),
                n => format!("not judged {n} times, since this daemon had not run for a while"),
            },
        ),
    ];
    let peers = status["peers"].as_array().into_iter().flatten();
    if peers.clone().any(|peer| peer["resource"].is_u64()) {
        let owned: Vec<String> =
            status["owned"].as_array().into_iter().flatten().map(Value::to_string).collect();
        let says = match owned.is_empty() {
            true => "this node owns the log of no resource".into(),
            false => format!("this node owns the log of resource {}", owned.join(", ")),
        };
        checks.push(Finding::well("log", says));
    }
    checks.into_iter().map(|check| check.into_check()).collect()
}

/// Whether this machine has the address. All of 127.0.0.0/8 is here, though no interface lists it.
fn is_held(address: IpAddr) -> bool {
    let listed = if_addrs::get_if_addrs().unwrap_or_default();
    let listed = listed.iter().any(|interface| interface.ip() == address);
    listed || address.is_loopback() && UdpSocket::bind((address, 0)).is_ok()
}
