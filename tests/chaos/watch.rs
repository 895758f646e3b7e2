//! The watchers beside the kernel modules: of every daemon's process, its memory, its events on its control socket,
//! and how late this process itself is.

use std::io::BufRead;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::daemon::Daemon;
use super::ledger::{Change, Ledger};

/// D4: KiB that a daemon with this many peers may take: S × (10 MiB + 6 × B) + 2 × B with B = 128 KiB, and the program
/// itself.
fn ceiling(peers: u64) -> u64 {
    peers * (10 * 1024 + 6 * 128) + 2 * 128 + 8 * 1024
}

fn spawn(name: String, run: impl FnOnce() + Send + 'static) {
    thread::Builder::new().name(name).spawn(run).unwrap();
}

/// Starts the watchers; they last as long as the process.
pub fn start(ledger: &Arc<Ledger>, daemons: &Arc<Vec<Daemon>>) {
    let noted = ledger.clone();
    spawn("noise".into(), move || noise(&noted));
    for node in 0..ledger.nodes {
        let (ledger_, daemons_) = (ledger.clone(), daemons.clone());
        spawn(format!("events{node}"), move || {
            loop {
                // Not there, or just restarted.
                let _ = events(&ledger_, &daemons_[node]);
                thread::park_timeout(Duration::from_millis(20));
            }
        });
    }
    let (ledger, daemons) = (ledger.clone(), daemons.clone());
    spawn("memory".into(), move || {
        loop {
            for daemon in daemons.iter() {
                process(&ledger, daemon);
            }
            thread::park_timeout(Duration::from_millis(50));
        }
    });
}

/// Returns for how long this machine's processors have been idle, one after the other.
fn idle() -> Duration {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = text.split_whitespace().skip(4).take(2).filter_map(|ticks| ticks.parse::<u64>().ok());
    Duration::from_millis(fields.sum::<u64>() * 10)
}

fn noise(ledger: &Ledger) {
    const NAP: Duration = Duration::from_millis(5);
    // Many times what the system counts in.
    const LOOK: Duration = Duration::from_millis(50);
    let (mut looked, mut idle_then, mut busy) = (Instant::now(), idle(), Duration::ZERO);
    loop {
        let before = Instant::now();
        thread::park_timeout(NAP);
        let mut state = ledger.lock();
        let now = Instant::now();
        let late = (now - before).saturating_sub(NAP);
        if late > Duration::from_millis(3) {
            state.noise.push((now, late));
        }
        if now - looked >= LOOK {
            let idle_now = idle();
            busy += (now - looked).saturating_sub(idle_now.saturating_sub(idle_then));
            (looked, idle_then) = (now, idle_now);
            state.busy.push((now, busy));
        }
    }
}

/// Reads one daemon's events until it hangs up.
fn events(ledger: &Ledger, daemon: &Daemon) -> std::io::Result<()> {
    let (_, mut lines) = daemon.ask(json!({"v": 1, "cmd": "events"}), None)?;
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 {
        let value: Value = serde_json::from_str(&line)?;
        line.clear();
        let event = &value["event"];
        let text = |name: &str| event[name].as_str().unwrap_or_default();
        let (node, at) = (daemon.node, Instant::now());
        let mut state = ledger.lock();
        if state.over {
            return Ok(());
        }
        let peer = event["node"].as_u64().or(event["site"].as_u64());
        match (peer, text("to")) {
            (Some(peer), to @ ("connected" | "disconnected")) => {
                let (peer, up) = (peer as usize, to == "connected");
                state.changes.push(Change { node, peer, up, at });
                state.say(format!("daemon {node}: node {peer} {to}: {}", text("cause")));
                if up {
                    state.counts.sessions += 1;
                    continue;
                }
                if text("cause").starts_with("refused packet") {
                    state.violate(ledger, format!("D1: daemon {node}, node {peer}: {}", text("cause")));
                }
                // Without the figures and addresses in it.
                let cause = text("cause").split(" bytes into").next().unwrap_or_default();
                let cause = cause.trim_end_matches(|c: char| c.is_ascii_digit()).to_string();
                *state.counts.ended.entry(cause).or_default() += 1;
            }
            (Some(peer), to) => state.say(format!("daemon {node}: node {peer} {to}: {}", text("cause"))),
            (None, to) => state.say(format!("daemon {node}: {to}: {}", text("cause"))),
        }
    }
    Ok(())
}

fn process(ledger: &Ledger, daemon: &Daemon) {
    if let Some(text) = daemon.died() {
        ledger.violate(text);
    }
    let Some(memory) = daemon.memory() else { return };
    let mut state = ledger.lock();
    state.counts.rss_samples += 1;
    state.counts.peak_rss = state.counts.peak_rss.max(memory);
    let ceiling = ceiling(ledger.nodes as u64 - 1);
    if memory > ceiling {
        let text = format!("D4: the daemon of node {} takes {memory} KiB, over {ceiling}", daemon.node);
        state.violate(ledger, text);
    }
}

/// PacketCounters of a daemon at rest: received = forwarded + queued + dropped.
///
/// # Errors
/// Which do not balance.
pub fn counters(ledger: &Ledger, daemon: &Daemon) -> Result<(), String> {
    let status = daemon.ask(json!({"v": 1, "cmd": "status"}), Some(Duration::from_secs(10)));
    let (status, _) = status.map_err(|error| format!("no status of node {}: {error}", daemon.node))?;
    let peers = status["data"]["peers"].as_array().cloned().unwrap_or_default();
    if peers.len() != ledger.nodes - 1 {
        return Err(format!("node {} shows peers {peers:?}", daemon.node));
    }
    for peer in peers {
        for way in ["data_in", "data_out", "meta_in", "meta_out"] {
            let counters = &peer["books"][way];
            let count = |name: &str| counters[name].as_u64();
            let dropped =
                counters["dropped"].as_object().map(|all| all.values().filter_map(Value::as_u64).sum());
            let sums = (count("received"), count("forwarded"), count("queued"), dropped);
            let (Some(received), Some(forwarded), Some(queued), Some(dropped)) = sums else {
                return Err(format!("node {} has no books {way} of {}", daemon.node, peer["peer"]));
            };
            let dropped: u64 = dropped;
            if queued != 0 || received != forwarded + queued + dropped {
                let peer = &peer["peer"];
                return Err(format!("D4: books of node {}, {peer} {way}, at rest: {counters}", daemon.node));
            }
            ledger.lock().counts.balanced += 1;
        }
    }
    Ok(())
}
