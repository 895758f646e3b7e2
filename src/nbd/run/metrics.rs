//! The state of the mirrors as Prometheus metrics.
//!
//! Only tells; must never change anything. Called by the control socket.

use std::fmt::Write as _;
use std::sync::Arc;

use super::counters::{BOUNDS, Times};
use super::mirror::Mirror;
use super::status::{PeerView, View, view};
use crate::nbd::core::{Part, Stage, WitnessState};
use crate::nbd::disk::format::DiskFlags;
use crate::nbd::mirror::Role;

/// The state of all mirrors as Prometheus text exposition, version 0.0.4.
pub fn metrics(mirrors: &[Arc<Mirror>], is_attached: bool) -> String {
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, lines: &[String]| {
        _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        lines.iter().for_each(|line| _ = writeln!(text, "{line}"));
    };
    let label = |mirror: &Mirror| {
        let name = mirror.name.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        format!("resource=\"{}\",name=\"{name}\"", mirror.id.get())
    };
    let views: Vec<_> = mirrors.iter().map(|mirror| (mirror, label(mirror), view(mirror))).collect();
    let name = "hadm_nbd_attached";
    family(name, "gauge", "Whether there is a daemon.", &[format!("{name} {}", u8::from(is_attached))]);
    let mut of_all = |name: &str, help: &str, value: &dyn Fn(&Mirror, &View) -> u64| {
        let line = |(mirror, label, view): &(&Arc<Mirror>, String, View)| {
            format!("{name}{{{label}}} {}", value(mirror, view))
        };
        family(name, "gauge", help, &views.iter().map(line).collect::<Vec<_>>());
    };
    of_all("hadm_nbd_primary", "Whether this site is primary.", &|_, view| {
        (view.role == Role::Primary).into()
    });
    of_all("hadm_nbd_up_to_date", "Whether the disk here is up to date.", &|_, view| {
        (view.disk == "up to date").into()
    });
    of_all("hadm_nbd_frozen", "Whether writes wait for a lost site.", &|_, view| view.is_frozen.into());
    of_all("hadm_nbd_split_brain", "Whether two histories were met.", &|_, view| {
        view.flags.contains(DiskFlags::SPLIT_BRAIN).into()
    });
    of_all("hadm_nbd_witness", "Whether a witness is connected, and knows no later writes.", &|_, view| {
        view.witness.is_some_and(|(_, state)| state == WitnessState::Agrees).into()
    });
    of_all("hadm_nbd_clients", "Connections of NBD clients.", &|mirror, _| {
        mirror.export.connections() as u64
    });
    let mut of_peers = |name: &str, help: &str, value: &dyn Fn(&PeerView) -> u64| {
        let peers =
            views.iter().flat_map(|(_, label, view)| view.peers.iter().map(move |peer| (label, peer)));
        let line = |(label, peer): (&String, &PeerView)| {
            format!("{name}{{{label},site=\"{}\"}} {}", peer.site.get(), value(peer))
        };
        family(name, "gauge", help, &peers.map(line).collect::<Vec<_>>());
    };
    of_peers("hadm_nbd_linked", "Whether the daemon is connected with the site.", &|peer| {
        peer.is_linked.into()
    });
    of_peers("hadm_nbd_in_sync", "Whether the site's disk is equal.", &|peer| {
        (peer.stage == Stage::Joined && peer.part == Part::Equal).into()
    });
    let help = "Bytes that may differ at the site, as far as this site's bits tell.";
    of_peers("hadm_nbd_out_of_sync_bytes", help, &|peer| peer.out_of_sync);
    of_peers(
        "hadm_nbd_behind_bytes",
        "Bytes queued or under way to a site that writes do not wait for.",
        &|peer| peer.behind.map_or(0, |(lag, _)| lag.bytes),
    );
    of_peers("hadm_nbd_behind_seconds", "Age of the oldest write that such a site may not have.", &|peer| {
        peer.behind.map_or(0, |(lag, _)| lag.age.as_secs())
    });
    of_peers("hadm_nbd_queue_room_bytes", "Bytes that the queue for such a site still takes.", &|peer| {
        peer.behind.map_or(0, |(lag, _)| lag.room)
    });
    let help = "Checkpoints that such a site does not surely have.";
    of_peers("hadm_nbd_checkpoints_on_the_way", help, &|peer| peer.checkpoints.len() as u64);
    of_peers("hadm_nbd_resync_total_bytes", "Bytes of the resync that is under way.", &|peer| {
        peer.resync.as_ref().map_or(0, |resync| resync.total)
    });
    of_peers("hadm_nbd_resync_bytes_per_second", "Pace of the resync that is under way.", &|peer| {
        peer.resync.as_ref().map_or(0, |resync| resync.rate)
    });
    let mut of_some = |name: &str, help: &str, value: &dyn Fn(&PeerView) -> Option<u64>| {
        let peers =
            views.iter().flat_map(|(_, label, view)| view.peers.iter().map(move |peer| (label, peer)));
        let line = |(label, peer): (&String, &PeerView)| {
            Some(format!("{name}{{{label},site=\"{}\"}} {}", peer.site.get(), value(peer)?))
        };
        family(name, "gauge", help, &peers.filter_map(line).collect::<Vec<_>>());
    };
    of_some(
        "hadm_nbd_queue_full_seconds",
        "Seconds until the queue for such a site is full at the rate of late; absent while it does not grow.",
        &|peer| peer.behind?.1,
    );
    of_some(
        "hadm_nbd_catch_up_room_bytes",
        "Bytes that bits may still mark so that the site's ordered log takes its catch-up at once; absent where it is not known.",
        &|peer| Some(peer.catch_up?.0),
    );
    of_some(
        "hadm_nbd_catch_up_large_seconds",
        "Seconds until that room is used up at the rate of late; absent while it is not.",
        &|peer| peer.catch_up?.1,
    );
    let name = "hadm_nbd_bytes_total";
    let mut lines = Vec::new();
    for (mirror, label, _) in &views {
        let [read, written] = mirror.counters.bytes();
        lines.push(format!("{name}{{{label},direction=\"read\"}} {read}"));
        lines.push(format!("{name}{{{label},direction=\"written\"}} {written}"));
    }
    family(name, "counter", "Bytes that clients read and wrote.", &lines);
    let name = "hadm_nbd_request_seconds";
    let mut lines = Vec::new();
    for (mirror, label, _) in &views {
        for (kind, times) in mirror.counters.times() {
            histogram(name, &format!("{label},kind=\"{kind}\""), times, &mut lines);
        }
    }
    family(name, "histogram", "Time from a client's request to its answer.", &lines);
    let name = "hadm_nbd_disk_seconds";
    let mut lines = Vec::new();
    for (mirror, label, _) in &views {
        for (kind, times) in mirror.counters.accesses() {
            histogram(name, &format!("{label},kind=\"{kind}\""), times, &mut lines);
        }
    }
    family(name, "histogram", "Time that an access to the disk here took.", &lines);
    let name = "hadm_nbd_confirm_seconds";
    let mut lines = Vec::new();
    for (mirror, label, _) in &views {
        for (place, site) in mirror.peers.iter().enumerate() {
            if let Some(times) = mirror.counters.confirmations(place) {
                histogram(name, &format!("{label},site=\"{}\"", site.get()), times, &mut lines);
            }
        }
    }
    family(
        name,
        "histogram",
        "Time from a write that is sent to the site to its confirmation, of a part of all.",
        &lines,
    );
    text
}

/// The lines of one histogram.
fn histogram(name: &str, label: &str, times: &Times, lines: &mut Vec<String>) {
    let counts = times.cumulative();
    for (bound, count) in BOUNDS.iter().zip(&counts) {
        lines.push(format!("{name}_bucket{{{label},le=\"{}\"}} {count}", *bound as f64 / 1e6));
    }
    let all = counts.last().copied().unwrap_or_default();
    lines.push(format!("{name}_bucket{{{label},le=\"+Inf\"}} {all}"));
    lines.push(format!("{name}_sum{{{label}}} {}", times.micros() as f64 / 1e6));
    lines.push(format!("{name}_count{{{label}}} {all}"));
}
