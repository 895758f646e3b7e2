//! Answers of the daemon as text for people.
//!
//! Formats and decides nothing. Called by the commands.

use std::fmt::Write;

use crate::control::{
    ByCause, Compress, Event, PeerFate, PeerState, PeerStatus, Plan, SeenHeader, Status, Transition,
};

/// Formats seconds for people.
pub(super) fn span(seconds: f64) -> String {
    let whole = seconds as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        3600..86_400 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3600),
    }
}

/// Bytes in units of 1000.
pub(super) fn size(bytes: f64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB"];
    let (mut rest, mut unit) = (bytes, 0);
    while rest >= 1000.0 && unit + 1 < units.len() {
        rest /= 1000.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0);
    format!("{rest:.digits$} {}", units.get(unit).unwrap_or(&"B"))
}

pub(super) fn coloured(word: &str, code: &str, colour: bool) -> String {
    if colour { format!("\x1b[{code}m{word}\x1b[0m") } else { word.into() }
}

/// Returns the causes with a count that is not 0, each with its count.
fn causes(list: &ByCause) -> Vec<String> {
    list.iter().filter(|(_, n)| **n > 0).map(|(cause, n)| format!("{cause} {n}")).collect()
}

/// All about the daemon and its peers.
pub(super) fn status(status: &Status, colour: bool) -> String {
    let mut lines = daemon_lines(status, colour);
    for peer in status.peers.iter().filter(|_| status.running.is_some()) {
        lines.push(String::new());
        peer_lines(peer, colour, &mut |text| lines.push(text));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// The state of the daemon itself.
pub(super) fn daemon_lines(status: &Status, colour: bool) -> Vec<String> {
    let waiting = status.waiting.iter().map(|wait| coloured(&format!("waiting: {wait}"), "33", colour));
    let Some(running) = &status.running else {
        let mut lines = vec![format!("hadmd {}  not started yet", status.version)];
        lines.extend(waiting);
        return lines;
    };
    let mut lines = vec![format!(
        "hadmd {}  node {} ({}) of {}  up {}  configuration {}",
        status.version,
        running.node.get(),
        running.hostname.as_deref().unwrap_or_default(),
        running.site,
        span(status.uptime_s),
        running.configuration,
    )];
    if !running.keys.is_empty() {
        lines.push(format!("encrypts with key {}", running.keys.join(", else ")));
    }
    let kernel = match running.kernel.since_s {
        Some(since) => coloured(&format!("attached for {}", span(since)), "32", colour),
        None => coloured("not attached", "31", colour),
    };
    lines.push(format!("kernel module {kernel}  at {}", running.server));
    lines.extend(waiting);
    for (what, list) in [("went nowhere", &running.strays), ("refused calls", &running.refused)] {
        let some = causes(list);
        if !some.is_empty() {
            lines.push(format!("{what}: {}", some.join(", ")));
        }
    }
    if running.stalls > 0 {
        lines.push(format!("heartbeat verdicts suspended: {}", running.stalls));
    }
    lines
}

/// The colour of a state.
pub(super) fn state_code(state: PeerState) -> &'static str {
    match state {
        PeerState::Connected => "32",
        PeerState::Off => "2",
        _ => "31",
    }
}

fn peer_lines(peer: &PeerStatus, colour: bool, line: &mut impl FnMut(String)) {
    let code = state_code(peer.state);
    let age = peer.age_s.map(|age| format!(" for {}", span(age))).unwrap_or_default();
    let mut head = format!(
        "{:<22} {}{age}  {} ({})",
        peer.label(),
        coloured(peer.state.word(), code, colour),
        peer.address.map(|address| address.to_string()).unwrap_or_default(),
        peer.role,
    );
    if peer.connected {
        head += &match &peer.version {
            Some(version) => format!("  hadmd {version}"),
            None => "  no hello extension".into(),
        };
        if let Some((cipher, key)) = peer.cipher.as_ref().zip(peer.key.as_ref()) {
            let _ = write!(head, "  encrypted ({cipher}, key {key})");
        }
        if peer.same_config == Some(false) {
            head += &coloured("  other configuration", "33", colour);
            if !peer.differences.is_empty() {
                let _ = write!(head, " ({})", peer.differences.join(", "));
            }
        }
    }
    if peer.held {
        head += "  disconnected by the operator";
    }
    if let Some(next) = peer.next_attempt_s {
        let _ = write!(head, "  next call in {}", span(next));
    }
    line(head);
    let rtt = peer.rtt_us.map_or("-".into(), |rtt| format!("{rtt} us"));
    line(format!(
        "  rtt {rtt}  unanswered pings {}  sessions {}  calls {}",
        peer.unanswered, peer.sessions, peer.attempts
    ));
    if let Some(error) = &peer.last_error {
        line(format!("  last error: {error}"));
    }
    if let Some(compress) = &peer.compress {
        line(compress_line(compress, peer.connected));
    }
    if let Some(zero_copied) = peer.zero_copied.as_ref().filter(|it| (it.in_bytes, it.out_bytes) != (0, 0)) {
        let [inbound, out] = [zero_copied.in_bytes, zero_copied.out_bytes].map(|bytes| size(bytes as f64));
        line(format!("  without a copy  in {inbound}  out {out}"));
    }
    for (stream, counts) in &peer.counters.0 {
        if counts.received == 0 {
            continue;
        }
        let dropped = causes(&counts.dropped);
        let dropped = if dropped.is_empty() { "0".into() } else { dropped.join(", ") };
        line(format!(
            "  {:<8} {:>10} packets {:>9} forwarded  {:>6} packets {:>9} queued  dropped {dropped}",
            format!("{} {}", stream.class, stream.direction()),
            counts.forwarded,
            size(counts.forwarded_bytes as f64),
            counts.queued,
            size(counts.queued_bytes as f64),
        ));
    }
}

/// Returns the compression between two sites, and its gain.
fn compress_line(compress: &Compress, connected: bool) -> String {
    let mut out = match compress.used {
        Some(method) => format!("  compress {}", method.name()),
        None if !connected => "  compress not connected".into(),
        None if compress.wanted.is_none() => "  compress not wanted here any more".into(),
        None => "  compress not in this session: one of the two sides did not want it when it began".into(),
    };
    for (direction, done) in compress.directions() {
        let (plain, wire) = (done.plain_bytes as f64, done.wire_bytes as f64);
        if wire > 0.0 {
            let _ = write!(out, "  {direction} {} as {} ({:.2})", size(plain), size(wire), plain / wire);
        }
    }
    out
}

/// Returns the changes that a reload makes, or would make.
pub(super) fn plan(plan: &Plan) -> String {
    let mut out = String::new();
    for warning in &plan.warnings.0 {
        let _ = writeln!(out, "{warning}");
    }
    for (what, list) in [("needs a restart", &plan.refused), ("setting", &plan.settings)] {
        for entry in list {
            let _ = writeln!(out, "{what}: {entry}");
        }
    }
    for PeerFate { peer, fate, .. } in &plan.peers {
        let _ = writeln!(out, "{}: {fate}", peer.0);
    }
    out
}

/// Returns the connections, as the lines that an event stream begins with.
pub(super) fn snapshot(status: &Status) -> String {
    let mut out = String::new();
    let attached = status.running.as_ref().is_some_and(|running| running.kernel.attached);
    let _ = writeln!(out, "now: kernel module {}", if attached { "attached" } else { "detached" });
    for peer in &status.peers {
        let _ = writeln!(out, "now: {} {}", peer.label(), peer.state);
    }
    out
}

/// Returns one line of a stream.
pub(super) fn event(event: &Event) -> String {
    match event {
        Event::Peer(one) => transition(one),
        Event::Daemon(change) => format!("{} {}: {}", change.time, change.to, change.cause),
        Event::Header(seen) => header(seen),
    }
}

/// Returns transitions of a peer, a line each.
pub(super) fn transitions(transitions: &[Transition]) -> String {
    transitions.iter().map(|one| transition(one) + "\n").collect()
}

/// Returns one transition of a peer.
fn transition(transition: &Transition) -> String {
    let Transition { time, peer, name, from, to, cause, details, .. } = transition;
    let peer = peer.label(name.as_deref());
    format!("{time} {peer} {from} -> {to}: {cause}{details}")
}

/// Returns one packet header.
fn header(seen: &SeenHeader) -> String {
    let to: Vec<String> = seen.node_to.iter().map(u8::to_string).collect();
    let mut out = format!(
        "{} {}: {} dev {} from {} to {{{}}} len {}",
        seen.time,
        seen.link,
        seen.name,
        seen.dev_id,
        seen.node_from,
        to.join(","),
        seen.len,
    );
    if seen.left_out > 0 {
        let _ = write!(out, " ({} headers before this one left out)", seen.left_out);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_read_well() {
        assert_eq!([size(999.0), size(1000.0), size(1.25e9)], ["999 B", "1.0 kB", "1.2 GB"]);
        let spans = [span(0.25), span(61.0), span(3660.0), span(90_000.0)];
        assert_eq!(spans, ["0.2 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]);
    }
}
