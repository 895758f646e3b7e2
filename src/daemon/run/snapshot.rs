//! The reported state of this daemon at one moment.
//!
//! The timer thread takes snapshots, which costs it a few copies of references; another thread makes text of them,
//! which costs milliseconds for each hundred peers. Nothing here may wait for the timer thread or make it wait.

use std::sync::Arc;
use std::time::Instant;

use super::history::PeerHistory;
use super::peers::Peers;
use super::views::OwnViews;
use super::{Coordinator, hex, owner};
use crate::config::keys::Keys;
use crate::config::{Config, is_stand_in};
use crate::control::{
    ByCause, Compress, Compressed, Kernel, PacketCounts, PeerCounters, PeerState, PeerStatus, Pings, Running,
    Status, Stream, TurnedAway, Wait, Warnings, ZeroCopied,
};
use crate::daemon::connect::Refusals;
use crate::daemon::core::{Moment, View};
use crate::daemon::peer::{Direction, PeerStatistics, Session};
use crate::daemon::route::{Entry, Table};
use crate::sys::Counter;
use crate::wire::{Compression, Extension, PeerKey};

/// The state at the moment `now`. Counters are read when they are reported, and may be newer.
pub(super) struct Snapshot {
    pub now: Moment,
    pub config: Arc<Config>,
    pub table: Arc<Table>,
    pub known: Peers,
    pub own_views: OwnViews,
    digest: [u8; 8],
    record: Arc<Extension>,
    warnings: Vec<String>,
    peers: Vec<View>,
    refusals: Arc<Refusals>,
    strays: Vec<(&'static str, u64)>,
    refused: Vec<(&'static str, u64)>,
    attached_since: Option<Instant>,
    waits: Vec<Wait>,
    stalls: u64,
}

impl Coordinator {
    /// Returns the state as it is now.
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            now: self.now(),
            config: Arc::clone(&self.config),
            table: self.router.table(),
            known: self.peers.clone(),
            own_views: self.views.own.clone(),
            digest: self.digest,
            record: Arc::clone(&self.record),
            warnings: self.warnings.clone(),
            peers: self.core.views().collect(),
            refusals: Arc::clone(&self.reactor.refusals),
            strays: self.router.unroutable.list().to_vec(),
            refused: self.refused(),
            attached_since: self.kernel.attached_since,
            waits: self.waits(),
            stalls: self.core.stalls(),
        }
    }
}

fn by_cause(list: &[(&str, u64)]) -> ByCause {
    // Not collected: that would sort, with some KiB of code for each type.
    let mut counters = ByCause::new();
    counters.extend(list.iter().map(|&(what, n)| (what.to_string(), n)));
    counters
}

fn packet_counters(statistics: &PeerStatistics) -> PeerCounters {
    let counts = |stream: Stream| {
        let direction = if stream.out { Direction::Out } else { Direction::In };
        let snapshot = statistics.counters(direction, stream.class).snapshot();
        let dropped: Vec<_> = snapshot.dropped.iter().map(|(cause, n)| (cause.words(), *n)).collect();
        let counts = PacketCounts {
            received: snapshot.received,
            received_bytes: snapshot.received_bytes,
            forwarded: snapshot.forwarded,
            forwarded_bytes: snapshot.forwarded_bytes,
            queued: snapshot.queued,
            queued_bytes: snapshot.queued_bytes,
            dropped: by_cause(&dropped),
        };
        (stream, counts)
    };
    PeerCounters(Stream::ALL.map(counts).into())
}

/// Returns the wanted, agreed and actual compression of a peer's data; `None` where compression is not configured.
fn compress(
    wanted: Option<Compression>,
    statistics: &PeerStatistics,
    connected: Option<&PeerHistory>,
) -> Option<Compress> {
    let done = |direction| {
        let done = statistics.compression_stats(direction);
        Compressed { plain_bytes: done.plain.get(), wire_bytes: done.wire.get() }
    };
    let (inbound, out) = (done(Direction::In), done(Direction::Out));
    let used = connected.and_then(|history| history.compression);
    let is_spoken_of = wanted.is_some() || inbound.plain_bytes > 0 || out.plain_bytes > 0;
    is_spoken_of.then_some(Compress { wanted, used, inbound, out })
}

/// Returns the data that went without a copy; `None` where that is not tried.
fn zero_copied(
    config: &Config,
    statistics: &PeerStatistics,
    connected: Option<&PeerHistory>,
) -> Option<ZeroCopied> {
    let history = connected.filter(|_| config.zero_copy)?;
    let plain = history.encryption.is_none() && history.compression.is_none();
    let [out, inbound] = &statistics.zero_copied;
    plain.then(|| ZeroCopied { in_bytes: inbound.get(), out_bytes: out.get() })
}

impl Snapshot {
    /// Returns the status as it was then.
    pub fn status(&self) -> Status {
        let (table, local) = (&self.table, self.config.local_node());
        let peers = self.peers.iter().filter_map(|view| {
            let entry = table.peers.get(&view.key)?;
            Some(self.peer_status(view, entry))
        });
        let running = Running {
            node: self.config.node,
            site: self.config.site,
            hostname: local.map(|node| node.hostname.clone()),
            address: local.map(|node| node.addr),
            server: self.config.server,
            configuration: hex(&self.digest),
            warnings: Warnings(self.warnings.clone()),
            keys: self.config.keys.iter().flat_map(Keys::ids).map(|id| id.to_string()).collect(),
            owned: table.owned.iter().copied().collect(),
            kernel: Kernel {
                attached: table.kernel.is_some(),
                since_s: self.attached_since.map(|since| since.elapsed().as_secs_f64()),
            },
            strays: by_cause(&self.strays),
            refused: by_cause(&self.refused),
            stalls: self.stalls,
        };
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_s: self.now.as_secs_f64(),
            waiting: self.waits.clone(),
            running: Some(Box::new(running)),
            peers: peers.collect(),
        }
    }

    fn peer_status(&self, view: &View, entry: &Entry) -> PeerStatus {
        let (statistics, session) = (&*entry.statistics, entry.session.as_deref());
        let history = self.known.history(view.key);
        let connected = history.filter(|_| session.is_some());
        let encryption = connected.and_then(|history| history.encryption);
        let hello = connected.and_then(|history| history.record.as_deref());
        // As of now, or as of its hello.
        let told = session.and_then(Session::view).and_then(|(view, _)| view.record);
        let told = told.as_ref().or(hello);
        let differing = told.map(|theirs| self.record.differences(theirs)).unwrap_or_default();
        let call = owner::call(&self.config, view.key);
        let refused = self.refusals.last(view.key);
        let resource = match view.key {
            PeerKey::Node(_) => None,
            PeerKey::Site(resource, _) => Some(resource),
        };
        let waits = (view.state == PeerState::Waiting).then_some(view.until).flatten();
        PeerStatus {
            peer: view.key,
            name: Some(self.config.name(view.key)),
            hosts: Some(self.config.hosts(view.key).into_iter().map(Into::into).collect()),
            resource_name: resource.and_then(|id| self.config.resource_name(id)).map(Into::into),
            role: view.role,
            address: call.map(|(to, _)| to),
            from: call.map(|(_, from)| from),
            state: view.state,
            address_known: !call.is_some_and(|(to, _)| is_stand_in(to.ip())),
            held: history.is_some_and(|history| history.held),
            connected: session.is_some(),
            age_s: history.and_then(|history| history.since).map(|since| since.elapsed().as_secs_f64()),
            source: connected.and_then(|history| history.source),
            version: hello.map(|record| record.version.clone().unwrap_or_default()),
            same_config: told.and_then(|theirs| self.record.has_same_config(theirs)),
            differences: differing.iter().map(ToString::to_string).collect(),
            owned: told.and_then(|theirs| theirs.owned.clone()),
            cipher: encryption.map(|encryption| encryption.cipher.into()),
            key: encryption.map(|encryption| encryption.key.to_string()),
            sessions: history.map_or(0, |history| history.sessions),
            violations: history.map_or(0, |history| history.violations),
            attempts: history.map_or(0, |history| history.attempts),
            next_attempt_s: waits.map(|at| at.saturating_sub(self.now).as_secs_f64()),
            last_error: history.and_then(|history| history.last_error.clone()),
            call: history.and_then(PeerHistory::call),
            turned_away: refused.map(|(at, why)| TurnedAway { age_s: at.elapsed().as_secs_f64(), why }),
            views: session.is_some_and(Session::exchanges_views),
            unanswered: view.unanswered,
            rtt_us: session.and_then(Session::rtt).map(|rtt| rtt.as_micros() as u64),
            pings: Some(Pings {
                counts: statistics.ping_times.counts.iter().map(Counter::get).collect(),
                sum_us: statistics.ping_times.sum_us.get(),
            }),
            compress: compress(owner::compression(&self.config, view.key), statistics, connected),
            zero_copied: zero_copied(&self.config, statistics, connected),
            transitions: history.map(PeerHistory::transitions_by).unwrap_or_default(),
            last_transition: history.and_then(|history| history.transitions.back().cloned()),
            last_end: history.and_then(|history| history.last_end.clone()),
            counters: packet_counters(statistics),
        }
    }
}
