//! The status as Prometheus text exposition, version 0.0.4.
#![allow(clippy::indexing_slicing, reason = "a JSON value gives null for what it has not")]

use std::fmt::Write;

use serde_json::Value;

/// One family of metrics: name, type, help.
type Family = (&'static str, &'static str, &'static str);

const UP: Family = ("hadm_up", "gauge", "Whether the daemon answers.");
const KERNEL: Family = ("hadm_kernel_attached", "gauge", "Whether a kernel module is attached.");
const UPTIME: Family = ("hadm_uptime_seconds", "gauge", "Seconds since the daemon's start.");
const STALLS: Family =
    ("hadm_stalls_total", "counter", "Heartbeat verdicts suspended because the daemon had stalled.");
const STRAYS: Family =
    ("hadm_strays_total", "counter", "Packets of the kernel module that went nowhere, by cause.");
const REFUSED: Family = ("hadm_refused_total", "counter", "Calls that were turned away, by cause.");
const CONNECTED: Family = ("hadm_peer_connected", "gauge", "Whether the peer is connected.");
const SESSIONS: Family = ("hadm_peer_sessions_total", "counter", "Sessions begun with the peer.");
const ATTEMPTS: Family = ("hadm_peer_attempts_total", "counter", "Calls made to the peer.");
const ENCRYPTED: Family = ("hadm_peer_encrypted", "gauge", "Whether the peer's links are encrypted.");
const VIOLATIONS: Family =
    ("hadm_peer_violations_total", "counter", "Sessions ended because the peer sent what no peer may send.");
const UNANSWERED: Family =
    ("hadm_peer_unanswered_pings", "gauge", "Pings to the peer that were not answered.");
const RTT: Family = ("hadm_peer_rtt_seconds", "gauge", "Time from the last ping to its answer.");
const TRANSITIONS: Family =
    ("hadm_peer_transitions_total", "counter", "Changes of the peer's state, by what it became and why.");
const LAST: Family = (
    "hadm_peer_last_transition_timestamp_seconds",
    "gauge",
    "When the peer's state changed last; the labels tell what hadmctl why tells of it.",
);
const LAST_AGE: Family =
    ("hadm_peer_last_session_seconds", "gauge", "How long the last session lasted that ended.");
const LAST_RTT: Family =
    ("hadm_peer_last_session_rtt_seconds", "gauge", "The last round trip of the last session that ended.");
const LAST_QUEUED: Family = (
    "hadm_peer_last_session_queued_bytes",
    "gauge",
    "Memory that waited to be written to the peer when its last session ended.",
);
const RECEIVED: Family = ("hadm_packets_received_total", "counter", "Packets taken from their source.");
const RECEIVED_BYTES: Family =
    ("hadm_received_bytes_total", "counter", "Bytes taken from their source, headers included.");
const FORWARDED: Family =
    ("hadm_packets_forwarded_total", "counter", "Packets written to their destination's socket.");
const FORWARDED_BYTES: Family = (
    "hadm_forwarded_bytes_total",
    "counter",
    "Bytes written to their destination's socket, headers included.",
);
const QUEUED: Family = ("hadm_packets_queued", "gauge", "Packets that wait.");
const QUEUED_BYTES: Family = ("hadm_queued_bytes", "gauge", "Bytes that wait, headers included.");
const SQUEEZED: Family =
    ("hadm_compress_plain_bytes_total", "counter", "Bytes of the data packets that were compressed.");
const SQUEEZED_WIRE: Family = (
    "hadm_compress_wire_bytes_total",
    "counter",
    "Bytes of the frames that carried compressed data packets.",
);
const DROPPED: Family = ("hadm_packets_dropped_total", "counter", "Packets dropped, by cause.");

struct Text(String);

impl Text {
    /// A family with its samples; one without samples is left out.
    fn family(&mut self, (name, kind, help): Family, samples: impl IntoIterator<Item = (String, f64)>) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = match labels.as_str() {
                "" => writeln!(self.0, "{name} {value}"),
                labels => writeln!(self.0, "{name}{{{labels}}} {value}"),
            };
        }
    }
}

/// A label with its value; what would end the value is escaped.
fn label(name: &str, value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{name}=\"{value}\"")
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| f64::from(value.as_bool().unwrap_or_default()))
}

/// Each cause of an object of counters, as a label.
fn causes(counters: &Value) -> Vec<(String, f64)> {
    let counters = counters.as_object().into_iter().flatten();
    counters.map(|(cause, n)| (label("cause", cause), number(n))).collect()
}

/// The fields that are words, as labels.
fn words(value: &Value, fields: &[&str]) -> String {
    let some = fields.iter().filter_map(|field| Some(label(field, value[*field].as_str()?)));
    some.collect::<Vec<_>>().join(",")
}

/// The text for a status as [`super::Request::Status`] gives it.
pub fn render(status: &Value) -> String {
    let mut text = Text(String::new());
    let alone = |value: &Value| [(String::new(), number(value))];
    text.family(UP, [(String::new(), 1.0)]);
    text.family(KERNEL, alone(&status["kernel"]["attached"]));
    text.family(UPTIME, alone(&status["uptime_s"]));
    text.family(STALLS, alone(&status["stalls"]));
    text.family(STRAYS, causes(&status["strays"]));
    text.family(REFUSED, causes(&status["refused"]));
    let peers: Vec<(String, &Value)> = status["peers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|peer| (label("peer", peer["peer"].as_str().unwrap_or_default()), peer))
        .collect();
    let encrypted = peers.iter().map(|(name, peer)| (name.clone(), f64::from(peer["key"].is_string())));
    text.family(ENCRYPTED, encrypted);
    for (family, field) in [
        (CONNECTED, "connected"),
        (SESSIONS, "sessions"),
        (VIOLATIONS, "violations"),
        (ATTEMPTS, "attempts"),
        (UNANSWERED, "unanswered"),
    ] {
        text.family(family, peers.iter().map(|(name, peer)| (name.clone(), number(&peer[field]))));
    }
    let rtts = peers.iter().filter(|(_, peer)| peer["rtt_us"].is_u64());
    text.family(RTT, rtts.map(|(name, peer)| (name.clone(), number(&peer["rtt_us"]) / 1e6)));
    let transitions = peers.iter().flat_map(|(name, peer)| {
        let all = peer["transitions"].as_array().into_iter().flatten();
        all.map(move |by| (format!("{name},{}", words(by, &["to", "kind"])), number(&by["count"])))
    });
    text.family(TRANSITIONS, transitions);
    let last = peers.iter().filter(|(_, peer)| peer["last_transition"].is_object()).map(|(name, peer)| {
        let last = &peer["last_transition"];
        let labels = words(last, &["from", "to", "kind", "link", "errno_name", "by"]);
        (format!("{name},{labels}"), number(&last["unix_s"]))
    });
    text.family(LAST, last);
    for (family, field, unit) in
        [(LAST_AGE, "age_s", 1.0), (LAST_RTT, "rtt_us", 1e6), (LAST_QUEUED, "queued_bytes", 1.0)]
    {
        let ends = peers.iter().filter(|(_, peer)| peer["last_end"][field].is_number());
        text.family(family, ends.map(|(name, peer)| (name.clone(), number(&peer["last_end"][field]) / unit)));
    }
    let mut rows = Vec::new();
    for (name, peer) in &peers {
        for (stream, books) in peer["books"].as_object().into_iter().flatten() {
            let (class, direction) = stream.split_once('_').unwrap_or((stream, ""));
            let labels = [name.clone(), label("class", class), label("direction", direction)].join(",");
            rows.push((labels, books));
        }
    }
    for (family, field) in [
        (RECEIVED, "received"),
        (RECEIVED_BYTES, "received_bytes"),
        (FORWARDED, "forwarded"),
        (FORWARDED_BYTES, "forwarded_bytes"),
        (QUEUED, "queued"),
        (QUEUED_BYTES, "queued_bytes"),
    ] {
        text.family(family, rows.iter().map(|(labels, books)| (labels.clone(), number(&books[field]))));
    }
    let dropped = rows.iter().flat_map(|(labels, books)| {
        causes(&books["dropped"]).into_iter().map(move |(cause, n)| (format!("{labels},{cause}"), n))
    });
    text.family(DROPPED, dropped);
    for (family, field) in [(SQUEEZED, "plain_bytes"), (SQUEEZED_WIRE, "wire_bytes")] {
        let samples =
            peers.iter().filter(|(_, peer)| peer["compress"].is_object()).flat_map(|(name, peer)| {
                ["in", "out"].map(|direction| {
                    let labels = [name.clone(), label("direction", direction)].join(",");
                    (labels, number(&peer["compress"][direction][field]))
                })
            });
        text.family(family, samples);
    }
    text.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn samples_follow_help_and_type() {
        let status = json!({
            "uptime_s": 1.5, "stalls": 0, "kernel": {"attached": true},
            "strays": {"own bit": 2}, "refused": {},
            "peers": [{
                "peer": "node 1", "connected": true, "sessions": 1, "attempts": 2, "unanswered": 0,
                "rtt_us": 250,
                "compress": {"used": "lz4", "out": {"plain_bytes": 90, "wire_bytes": 30}, "in": {}},
                "books": {"data_out": {"received": 5, "forwarded": 4, "queued": 1, "dropped": {"not connected": 0}}},
            }],
        });
        let text = render(&status);
        for line in [
            "hadm_kernel_attached 1",
            "hadm_strays_total{cause=\"own bit\"} 2",
            "hadm_peer_rtt_seconds{peer=\"node 1\"} 0.00025",
            "hadm_packets_received_total{peer=\"node 1\",class=\"data\",direction=\"out\"} 5",
            "# TYPE hadm_packets_dropped_total counter",
            "hadm_compress_plain_bytes_total{peer=\"node 1\",direction=\"out\"} 90",
            "hadm_compress_wire_bytes_total{peer=\"node 1\",direction=\"out\"} 30",
            "hadm_packets_dropped_total{peer=\"node 1\",class=\"data\",direction=\"out\",cause=\"not connected\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(!text.contains("hadm_refused_total"));
    }

    #[test]
    fn labels_are_escaped() {
        assert_eq!(label("a", "x\"y\\z\n"), r#"a="x\"y\\z\n""#);
    }
}
