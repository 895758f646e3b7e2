//! The status as Prometheus text exposition, version 0.0.4.
//!
//! Pure; it names no metric that the manual does not. Used by the daemon's metrics server.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::words::decimal;
use super::{ByCause, Compressed, PacketCounts, PeerState, PeerStatus, Pings, Status, Transition};
use crate::wire::PeerKey;

/// One family of metrics: name, type, help.
type Family = (&'static str, &'static str, &'static str);

const UP: Family = ("hadm_up", "gauge", "Whether the daemon answers.");
const BUILD: Family = ("hadm_build_info", "gauge", "Always 1; the label is the daemon's version.");
const OWNER: Family = (
    "hadm_log_owner",
    "gauge",
    "Whether this node owns the resource's log for its site, of resources with other sites and those it owns.",
);
const KERNEL: Family = ("hadm_kernel_attached", "gauge", "Whether a kernel module is attached.");
const UPTIME: Family = ("hadm_uptime_seconds", "gauge", "Seconds since the daemon's start.");
const STALLS: Family =
    ("hadm_stalls_total", "counter", "Heartbeat verdicts suspended because the daemon had stalled.");
const STRAYS: Family =
    ("hadm_strays_total", "counter", "Packets of the kernel module that went nowhere, by cause.");
const REFUSED: Family = ("hadm_refused_total", "counter", "Calls that were turned away, by cause.");
const CONNECTED: Family = ("hadm_peer_connected", "gauge", "Whether the peer is connected.");
const WANTED: Family = (
    "hadm_peer_wanted",
    "gauge",
    "Whether the peer is to be connected: not if the operator says so, or another node owns the log.",
);
const STATE: Family = ("hadm_peer_state", "gauge", "1 for the state of the peer, 0 for the others.");
const SAME: Family = (
    "hadm_peer_same_configuration",
    "gauge",
    "Whether the connected peer's configuration is the same, where it can be compared.",
);
const SESSIONS: Family = ("hadm_peer_sessions_total", "counter", "Sessions begun with the peer.");
const ATTEMPTS: Family = ("hadm_peer_attempts_total", "counter", "Calls made to the peer.");
const ENCRYPTED: Family = ("hadm_peer_encrypted", "gauge", "Whether the peer's links are encrypted.");
const VIOLATIONS: Family =
    ("hadm_peer_violations_total", "counter", "Sessions ended because the peer sent what no peer may send.");
const UNANSWERED: Family =
    ("hadm_peer_unanswered_pings", "gauge", "Pings to the peer that were not answered.");
const RTT: Family = ("hadm_peer_rtt_seconds", "gauge", "Time from the last ping to its answer.");
const PINGS: Family =
    ("hadm_peer_ping_seconds", "histogram", "Time from the last ping to each answer of the peer.");
/// The bounds of [`super::PING_BOUNDS_US`] in seconds, as text: writing such numbers exactly takes much code.
const PING_BOUNDS: [&str; super::PING_BOUNDS_US.len() + 1] =
    ["0.0001", "0.0003", "0.001", "0.003", "0.01", "0.03", "0.1", "0.3", "1", "+Inf"];
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
    /// Adds a family with its samples; one without samples is left out.
    fn family(&mut self, family: Family, samples: impl IntoIterator<Item = (String, f64)>) {
        self.write(family, &mut samples.into_iter());
    }

    fn write(&mut self, (name, kind, help): Family, samples: &mut dyn Iterator<Item = (String, f64)>) {
        let mut samples = samples.peekable();
        if samples.peek().is_none() {
            return;
        }
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            // Times have microseconds; all else are whole numbers.
            let value = decimal(value, 6);
            let value = value.trim_end_matches('0').trim_end_matches('.');
            let _ = match labels.as_str() {
                suffix if suffix.starts_with('_') => writeln!(self.0, "{name}{suffix} {value}"),
                "" => writeln!(self.0, "{name} {value}"),
                labels => writeln!(self.0, "{name}{{{labels}}} {value}"),
            };
        }
    }
}

/// Returns a label with its value, escaped.
fn label(name: &str, value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{name}=\"{value}\"")
}

/// Returns each cause as a label, with its count.
fn causes(counters: &ByCause) -> impl Iterator<Item = (String, f64)> {
    counters.iter().map(|(cause, n)| (label("cause", cause), *n as f64))
}

/// Returns the labels of a last transition.
fn transition_labels(last: &Transition) -> String {
    let details = &last.details;
    let name = details.error.as_ref().and_then(|error| error.name.as_deref());
    let labels = [
        Some(("from", last.from.word())),
        Some(("to", last.to.word())),
        Some(("kind", last.kind.word())),
        details.link.map(|class| ("link", class.name())),
        name.map(|name| ("errno_name", name)),
        details.by.map(|by| ("by", by.word())),
    ];
    let some = labels.into_iter().flatten().map(|(name, value)| label(name, value));
    some.collect::<Vec<_>>().join(",")
}

/// The samples of a histogram, each with the end of its name.
fn histogram(name: &str, pings: Option<&Pings>) -> Vec<(String, f64)> {
    let Some(pings) = pings else { return Vec::new() };
    let mut samples = Vec::new();
    let mut sum = 0.0;
    for (bound, count) in PING_BOUNDS.iter().zip(&pings.counts) {
        sum += *count as f64;
        samples.push((format!("_bucket{{{name},le=\"{bound}\"}}"), sum));
    }
    samples.push((format!("_sum{{{name}}}"), pings.sum_us as f64 / 1e6));
    samples.push((format!("_count{{{name}}}"), sum));
    samples
}

/// Returns the text for a status.
pub fn render(status: &Status) -> String {
    let mut text = Text(String::new());
    let running = status.running.as_deref();
    let flag = |value: bool| f64::from(u8::from(value));
    let alone = |value: f64| [(String::new(), value)];
    text.family(UP, alone(1.0));
    text.family(BUILD, [(label("version", &status.version), 1.0)]);
    text.family(KERNEL, alone(flag(running.is_some_and(|running| running.kernel.attached))));
    text.family(UPTIME, alone(status.uptime_s));
    text.family(STALLS, alone(running.map_or(0, |running| running.stalls) as f64));
    text.family(STRAYS, running.into_iter().flat_map(|running| causes(&running.strays)));
    text.family(REFUSED, running.into_iter().flat_map(|running| causes(&running.refused)));
    let owners = running.into_iter().flat_map(|running| {
        let of_peers = status.peers.iter().filter_map(|peer| match peer.peer {
            PeerKey::Site(resource, _) => Some(resource),
            PeerKey::Node(_) => None,
        });
        let resources: BTreeSet<_> = of_peers.chain(running.owned.iter().copied()).collect();
        let id = |name: &str, id: u8| label(name, &id.to_string());
        resources.into_iter().map(move |resource| {
            let labels = [id("resource", resource.get()), id("site", running.site.get())].join(",");
            (labels, flag(running.owned.contains(&resource)))
        })
    });
    text.family(OWNER, owners);
    let peers: Vec<(String, &PeerStatus)> =
        status.peers.iter().map(|peer| (label("peer", &peer.peer.to_string()), peer)).collect();
    let each =
        |value: fn(&PeerStatus) -> f64| peers.iter().map(move |(name, peer)| (name.clone(), value(peer)));
    let some = |value: fn(&PeerStatus) -> Option<f64>| {
        peers.iter().filter_map(move |(name, peer)| Some((name.clone(), value(peer)?)))
    };
    text.family(ENCRYPTED, each(|peer| f64::from(peer.key.is_some())));
    text.family(SAME, some(|peer| peer.same_config.map(f64::from)));
    text.family(WANTED, each(|peer| f64::from(peer.state != PeerState::Off)));
    let states = peers.iter().flat_map(|(name, peer)| {
        PeerState::ALL.iter().map(move |state| {
            ([name.clone(), label("state", state.word())].join(","), f64::from(*state == peer.state))
        })
    });
    text.family(STATE, states);
    text.family(CONNECTED, each(|peer| f64::from(peer.connected)));
    text.family(SESSIONS, each(|peer| peer.sessions as f64));
    text.family(VIOLATIONS, each(|peer| peer.violations as f64));
    text.family(ATTEMPTS, each(|peer| peer.attempts as f64));
    text.family(UNANSWERED, each(|peer| peer.unanswered.into()));
    text.family(RTT, some(|peer| Some(peer.rtt_us? as f64 / 1e6)));
    text.family(PINGS, peers.iter().flat_map(|(name, peer)| histogram(name, peer.pings.as_ref())));
    let transitions = peers.iter().flat_map(|(name, peer)| {
        peer.transitions.iter().map(move |by| {
            let labels = [name.clone(), label("to", by.to.word()), label("kind", by.kind.word())];
            (labels.join(","), by.count as f64)
        })
    });
    text.family(TRANSITIONS, transitions);
    let last = peers.iter().filter_map(|(name, peer)| {
        let last = peer.last_transition.as_ref()?;
        Some((format!("{name},{}", transition_labels(last)), last.unix_s))
    });
    text.family(LAST, last);
    text.family(LAST_AGE, some(|peer| peer.last_end.as_ref()?.details.age_s));
    text.family(LAST_RTT, some(|peer| Some(peer.last_end.as_ref()?.details.session?.rtt_us? as f64 / 1e6)));
    text.family(LAST_QUEUED, some(|peer| Some(peer.last_end.as_ref()?.details.session?.queued_bytes as f64)));
    let mut rows: Vec<(String, &PacketCounts)> = Vec::new();
    for (name, peer) in &peers {
        for (stream, counters) in &peer.counters.0 {
            let direction = label("direction", stream.direction());
            let labels = [name.clone(), label("class", stream.class.name()), direction].join(",");
            rows.push((labels, counters));
        }
    }
    let count = |value: fn(&PacketCounts) -> u64| {
        rows.iter().map(move |(labels, counters)| (labels.clone(), value(counters) as f64))
    };
    text.family(RECEIVED, count(|counters| counters.received));
    text.family(RECEIVED_BYTES, count(|counters| counters.received_bytes));
    text.family(FORWARDED, count(|counters| counters.forwarded));
    text.family(FORWARDED_BYTES, count(|counters| counters.forwarded_bytes));
    text.family(QUEUED, count(|counters| counters.queued));
    text.family(QUEUED_BYTES, count(|counters| counters.queued_bytes));
    let dropped = rows.iter().flat_map(|(labels, counters)| {
        causes(&counters.dropped).map(move |(cause, n)| (format!("{labels},{cause}"), n))
    });
    text.family(DROPPED, dropped);
    let compressed = |value: fn(&Compressed) -> u64| {
        peers.iter().filter_map(|(name, peer)| Some((name, peer.compress.as_ref()?))).flat_map(
            move |(name, compress)| {
                compress.directions().map(|(direction, done)| {
                    ([name.clone(), label("direction", direction)].join(","), value(done) as f64)
                })
            },
        )
    };
    text.family(SQUEEZED, compressed(|done| done.plain_bytes));
    text.family(SQUEEZED_WIRE, compressed(|done| done.wire_bytes));
    text.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::samples;

    #[test]
    fn samples_follow_help_and_type() {
        let mut status = samples::status();
        status.peers[0].same_config = Some(false);
        let mut site = samples::peer();
        (site.peer, site.state) = ("6:1".parse().unwrap(), PeerState::Off);
        status.peers.push(site);
        status.running.as_mut().unwrap().owned = vec![5.try_into().unwrap()];
        let text = render(&status);
        for line in [
            "hadm_build_info{version=\"1\"} 1",
            "hadm_log_owner{resource=\"5\",site=\"7\"} 1",
            "hadm_log_owner{resource=\"6\",site=\"7\"} 0",
            "hadm_peer_wanted{peer=\"node 1\"} 1",
            "hadm_peer_wanted{peer=\"site 1 of resource 6\"} 0",
            "hadm_peer_state{peer=\"node 1\",state=\"waiting\"} 1",
            "hadm_peer_state{peer=\"node 1\",state=\"connected\"} 0",
            "hadm_peer_same_configuration{peer=\"node 1\"} 0",
            "hadm_peer_ping_seconds_bucket{peer=\"node 1\",le=\"0.0001\"} 0",
            "hadm_peer_ping_seconds_bucket{peer=\"node 1\",le=\"0.003\"} 4",
            "hadm_peer_ping_seconds_bucket{peer=\"node 1\",le=\"1\"} 4",
            "hadm_peer_ping_seconds_bucket{peer=\"node 1\",le=\"+Inf\"} 5",
            "hadm_peer_ping_seconds_sum{peer=\"node 1\"} 2.0025",
            "hadm_peer_ping_seconds_count{peer=\"node 1\"} 5",
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
    fn the_bounds_of_pings_are_those_that_are_counted() {
        let seconds = super::super::PING_BOUNDS_US.map(|us| (us as f64 / 1e6).to_string());
        assert_eq!(seconds.as_slice(), &PING_BOUNDS[..seconds.len()]);
    }

    #[test]
    fn labels_are_escaped() {
        assert_eq!(label("a", "x\"y\\z\n"), r#"a="x\"y\\z\n""#);
    }
}
