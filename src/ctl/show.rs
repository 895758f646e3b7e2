//! Answers of the daemon as text for people.
#![allow(clippy::indexing_slicing, reason = "a JSON value gives null for what it has not")]

use std::fmt::Write;

use serde_json::Value;

use crate::control::particulars;

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub(super) fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

/// Seconds as people say them.
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
fn size(bytes: f64) -> String {
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

/// One screen about the daemon and its peers; with an earlier status, also what moved since then.
pub(super) fn status(status: &Value, before: Option<&Value>, colour: bool) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        let _ = writeln!(out, "{text}");
    };
    line(format!(
        "hadmd {}  node {} ({}) of site {}  up {}  configuration {}",
        text(&status["version"]),
        status["node"],
        text(&status["hostname"]),
        status["site"],
        span(status["uptime_s"].as_f64().unwrap_or_default()),
        text(&status["configuration"]),
    ));
    let keys: Vec<&str> = status["keys"].as_array().into_iter().flatten().map(text).collect();
    if !keys.is_empty() {
        line(format!("encrypts with key {}", keys.join(", else ")));
    }
    let kernel = match status["kernel"]["since_s"].as_f64() {
        Some(since) => coloured(&format!("attached for {}", span(since)), "32", colour),
        None => coloured("not attached", "31", colour),
    };
    line(format!("kernel module {kernel}  at {}", text(&status["server"])));
    for (what, list) in [("went nowhere", &status["strays"]), ("refused calls", &status["refused"])] {
        let some = list.as_object().into_iter().flatten().filter(|(_, n)| number(n) > 0);
        let some: Vec<String> = some.map(|(cause, n)| format!("{cause} {n}")).collect();
        if !some.is_empty() {
            line(format!("{what}: {}", some.join(", ")));
        }
    }
    if number(&status["stalls"]) > 0 {
        line(format!("heartbeat verdicts suspended: {}", status["stalls"]));
    }
    for peer in status["peers"].as_array().into_iter().flatten() {
        let earlier = before.and_then(|before| {
            before["peers"].as_array()?.iter().find(|earlier| earlier["peer"] == peer["peer"])
        });
        line(String::new());
        peer_lines(peer, earlier, colour, &mut line);
    }
    out
}

fn peer_lines(peer: &Value, earlier: Option<&Value>, colour: bool, line: &mut impl FnMut(String)) {
    let state = text(&peer["state"]);
    let code = match state {
        "connected" => "32",
        "off" => "2",
        _ => "31",
    };
    let age = peer["age_s"].as_f64().map(|age| format!(" for {}", span(age))).unwrap_or_default();
    let mut head = format!(
        "{:<22} {}{age}  {} ({})",
        text(&peer["peer"]),
        coloured(state, code, colour),
        text(&peer["address"]),
        text(&peer["role"]),
    );
    if peer["connected"] == true {
        head += &match peer["version"].as_str() {
            Some(version) => format!("  hadmd {version}"),
            None => "  no hello extension".into(),
        };
        if let Some((cipher, key)) = peer["cipher"].as_str().zip(peer["key"].as_str()) {
            let _ = write!(head, "  encrypted ({cipher}, key {key})");
        }
        if peer["same_config"] == false {
            head += &coloured("  other configuration", "33", colour);
        }
    }
    if peer["held"] == true {
        head += "  disconnected by the operator";
    }
    if let Some(next) = peer["next_attempt_s"].as_f64() {
        let _ = write!(head, "  next call in {}", span(next));
    }
    line(head);
    let rtt = peer["rtt_us"].as_u64().map_or("-".into(), |rtt| format!("{rtt} us"));
    line(format!(
        "  rtt {rtt}  unanswered pings {}  sessions {}  calls {}",
        peer["unanswered"], peer["sessions"], peer["attempts"]
    ));
    if let Some(error) = peer["last_error"].as_str() {
        line(format!("  last error: {error}"));
    }
    if let Some(compress) = compress(peer) {
        line(compress);
    }
    for (stream, books) in peer["books"].as_object().into_iter().flatten() {
        if number(&books["received"]) == 0 {
            continue;
        }
        let dropped: Vec<String> = books["dropped"]
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, n)| number(n) > 0)
            .map(|(cause, n)| format!("{cause} {n}"))
            .collect();
        let dropped = if dropped.is_empty() { "0".into() } else { dropped.join(", ") };
        let moved = |field: &str| {
            let then = &earlier?["books"][stream.as_str()][field];
            number(&books[field]).checked_sub(number(then))
        };
        let rate =
            moved("forwarded_bytes").zip(moved("forwarded")).map_or(String::new(), |(bytes, packets)| {
                format!("  now {}/s {packets} packets/s", size(bytes as f64))
            });
        line(format!(
            "  {:<8} {:>10} packets {:>9} forwarded  {:>6} packets {:>9} queued  dropped {dropped}{rate}",
            stream.replace('_', " "),
            number(&books["forwarded"]),
            size(number(&books["forwarded_bytes"]) as f64),
            number(&books["queued"]),
            size(number(&books["queued_bytes"]) as f64),
        ));
    }
}

/// What is compressed between two sites, and how much it gains.
fn compress(peer: &Value) -> Option<String> {
    let compress = peer["compress"].as_object()?;
    let mut out = match compress["used"].as_str() {
        Some(method) => format!("  compress {method}"),
        None if peer["connected"] != true => "  compress not connected".into(),
        None if compress["wanted"].is_null() => "  compress not wanted here any more".into(),
        None => "  compress not wanted by the other side".into(),
    };
    for direction in ["in", "out"] {
        let bytes = |field: &str| compress[direction][field].as_f64().unwrap_or_default();
        let (plain, wire) = (bytes("plain_bytes"), bytes("wire_bytes"));
        if wire > 0.0 {
            let _ = write!(out, "  {direction} {} as {} ({:.2})", size(plain), size(wire), plain / wire);
        }
    }
    Some(out)
}

/// What a reload does, or would do.
pub(super) fn plan(plan: &Value) -> String {
    let mut out = String::new();
    for (what, list) in [("needs a restart", &plan["refused"]), ("setting", &plan["settings"])] {
        for entry in list.as_array().into_iter().flatten() {
            let _ = writeln!(out, "{what}: {}", text(entry));
        }
    }
    for peer in plan["peers"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "{}: {}", text(&peer["peer"]), text(&peer["fate"]));
    }
    out
}

/// What is connected, as the lines that an event stream begins with.
pub(super) fn snapshot(status: &Value) -> String {
    let mut out = String::new();
    let attached = if status["kernel"]["attached"] == true { "attached" } else { "detached" };
    let _ = writeln!(out, "now: kernel module {attached}");
    for peer in status["peers"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "now: {} {}", text(&peer["peer"]), text(&peer["state"]));
    }
    out
}

/// One change.
pub(super) fn event(event: &Value) -> String {
    match event["peer"].as_str() {
        Some(_) => transition(event),
        None => format!("{} {}: {}", text(&event["time"]), text(&event["to"]), text(&event["cause"])),
    }
}

/// One transition of a peer.
pub(super) fn transition(transition: &Value) -> String {
    format!(
        "{} {} {} -> {}: {}{}",
        text(&transition["time"]),
        text(&transition["peer"]),
        text(&transition["from"]),
        text(&transition["to"]),
        text(&transition["cause"]),
        transition.as_object().map(particulars).unwrap_or_default(),
    )
}

/// One packet header.
pub(super) fn header(event: &Value) -> String {
    let to: Vec<String> = event["node_to"].as_array().into_iter().flatten().map(Value::to_string).collect();
    let mut out = format!(
        "{} {}: {} dev {} from {} to {{{}}} len {}",
        text(&event["time"]),
        text(&event["link"]),
        text(&event["name"]),
        event["dev_id"],
        event["node_from"],
        to.join(","),
        event["len"],
    );
    if number(&event["left_out"]) > 0 {
        let _ = write!(out, " ({} headers before this one left out)", event["left_out"]);
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
