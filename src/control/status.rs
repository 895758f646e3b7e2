//! The status: the reported state of a daemon and its peers.
//!
//! `hadmctl status`, the first line of a stream of events, the doctor and the metrics all work from it. Plain values:
//! the daemon makes them, its clients show them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde_json::{Value, json};

use super::json::{Fields, Json, fields, objects, unexpected};
use super::transition::Transition;
use super::words::{CallVerdict, CauseKind, Outcome, PeerState, Role};
use crate::wire::{Class, Compression, NodeId, PeerKey, ResourceId, SiteId};

/// Upper bounds of the times of pings in microseconds: from within a rack to a link that is about to be given up.
pub const PING_BOUNDS_US: [u64; 9] = [100, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000];

/// Numbers by cause.
pub type ByCause = BTreeMap<String, u64>;

/// The reported state of a daemon.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// The version of `hadmd`.
    pub version: String,
    /// The number of its process.
    pub pid: u32,
    /// Seconds since its start.
    pub uptime_s: f64,
    /// Conditions that are waited for.
    pub waiting: Vec<Wait>,
    /// The part that exists once the configuration is loaded.
    pub running: Option<Box<Running>>,
    /// Every peer.
    pub peers: Vec<PeerStatus>,
}

impl Json for Status {
    fn json(&self) -> Value {
        let running = self.running.as_ref().map(|running| running.json());
        // Before the start there is no kernel module with a time.
        let mut all = running.unwrap_or_else(|| json!({"kernel": {"attached": false}}));
        if let Some(fields) = all.as_object_mut() {
            self.version.put("version", fields);
            self.pid.put("pid", fields);
            self.uptime_s.put("uptime_s", fields);
            self.waiting.put("waiting", fields);
            self.peers.put("peers", fields);
        }
        all
    }

    fn read(value: &Value) -> Result<Self, String> {
        let fields = fields(value)?;
        let started = fields.get("node").is_some_and(|node| !node.is_null());
        Ok(Status {
            version: Json::take("version", fields)?,
            pid: Json::take("pid", fields)?,
            uptime_s: Json::take("uptime_s", fields)?,
            waiting: Json::take("waiting", fields)?,
            running: started.then(|| Running::read(value)).transpose()?.map(Box::new),
            peers: Json::take("peers", fields)?,
        })
    }
}

/// A condition that is waited for: a sentence in JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// An address of this node is missing: the address, and its purpose.
    Address(String),
    /// Anything else, in words.
    Other(String),
}

/// The beginning of the sentence about a missing address.
const ADDRESS: &str = "address ";

impl std::fmt::Display for Wait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Wait::Address(what) => write!(f, "{ADDRESS}{what}"),
            Wait::Other(what) => f.write_str(what),
        }
    }
}

impl Json for Wait {
    fn json(&self) -> Value {
        self.to_string().into()
    }

    fn read(value: &Value) -> Result<Self, String> {
        let text = String::read(value)?;
        let missing = text.strip_prefix(ADDRESS).map(|what| Wait::Address(what.into()));
        Ok(missing.unwrap_or(Wait::Other(text)))
    }
}

/// The peer's key: several fields of an object, the name of the peer among them.
impl Json for PeerKey {
    fn json(&self) -> Value {
        match self {
            PeerKey::Node(node) => json!({"peer": self.to_string(), "node": node.get()}),
            PeerKey::Site(resource, site) => {
                json!({"peer": self.to_string(), "site": site.get(), "resource": resource.get()})
            }
        }
    }

    fn read(value: &Value) -> Result<Self, String> {
        Self::take("peer", fields(value)?)
    }

    fn put(&self, _name: &str, fields: &mut Fields) {
        if let Value::Object(own) = self.json() {
            fields.extend(own);
        }
    }

    fn take(_name: &str, fields: &Fields) -> Result<Self, String> {
        match fields.contains_key("site") {
            true => Ok(PeerKey::Site(Json::take("resource", fields)?, Json::take("site", fields)?)),
            false => Json::take("node", fields).map(PeerKey::Node),
        }
    }
}

objects! {
    /// The reported state of a daemon whose configuration is loaded.
    Running {
        /// The local node.
        node: NodeId,
        /// Its site.
        site: SiteId,
        /// Its name in the configuration.
        hostname: Option<String>,
        /// The address at which other nodes call it.
        address: Option<SocketAddr>,
        /// The address at which the kernel module connects.
        server: SocketAddr,
        /// The digest of the configuration, in hexadecimal digits.
        configuration: String,
        /// The warnings about its file.
        warnings: Warnings,
        /// The ids of the keys, the newest first, in hexadecimal digits.
        keys: Vec<String>,
        /// The resources whose logs this node owns.
        owned: Vec<ResourceId>,
        /// The kernel module.
        kernel: Kernel,
        /// Packets without a recipient, by cause.
        strays: ByCause,
        /// Refused connections, by cause.
        refused: ByCause,
        /// Number of times that heartbeats were not judged, since the daemon had not run.
        stalls: u64,
    }

    /// The kernel module.
    Kernel {
        /// True if it is attached.
        attached: bool,
        /// Seconds since then.
        since_s: Option<f64>,
    }

    /// The reported state of a peer.
    PeerStatus {
        /// The peer's key.
        peer: PeerKey,
        /// Its name for people: a node's host name, or a site's resource and hosts, as `data at beta`.
        name: Option<String>,
        /// The host names of the node, or of the nodes of the site that may run the resource.
        hosts: Option<Vec<String>>,
        /// The name of a site's resource.
        resource_name: Option<String>,
        /// The caller of the two sides.
        role: Role,
        /// The address at which it is called.
        address: Option<SocketAddr>,
        /// The address from which it is called.
        from: Option<IpAddr>,
        /// Its state.
        state: PeerState,
        /// False as long as no name server has given its address.
        address_known: bool,
        /// True if the operator keeps it disconnected.
        held: bool,
        /// True if there is a session.
        connected: bool,
        /// Seconds since the session began.
        age_s: Option<f64>,
        /// The other end of the session.
        source: Option<SocketAddr>,
        /// The version that the peer has sent; empty if it has sent none.
        version: Option<String>,
        /// True if it has the same configuration; `None` if it has not sent a digest.
        same_config: Option<bool>,
        /// The elements that are not the same there, each as its name and id; empty if it has sent no digests of them.
        differences: Vec<String>,
        /// The resources whose logs it owns; `None` if it has not sent them.
        owned: Option<Vec<ResourceId>>,
        /// The cipher of the session.
        cipher: Option<String>,
        /// The id of the key, in hexadecimal digits.
        key: Option<String>,
        /// Sessions that began.
        sessions: u64,
        /// Sessions that ended since the peer sent a packet that it may not send.
        violations: u64,
        /// Calls made to it.
        attempts: u64,
        /// Seconds to the next call.
        next_attempt_s: Option<f64>,
        /// The reason why the last session ended, or the last call failed.
        last_error: Option<String>,
        /// The last call to it.
        call: Option<Call>,
        /// The last refused call of it.
        turned_away: Option<TurnedAway>,
        /// True if it sends views.
        views: bool,
        /// Pings that are not answered.
        unanswered: u32,
        /// Microseconds from the last ping to its answer.
        rtt_us: Option<u64>,
        /// The times of all pings that were answered.
        pings: Option<Pings>,
        /// The compression of its data, where it is configured or used.
        compress: Option<Compress>,
        /// The data that went without a copy; `None` where that is not tried: it is switched off, or there is no session,
        /// or its data are encrypted or compressed.
        zero_copied: Option<ZeroCopied>,
        /// The number of transitions of each kind.
        transitions: Vec<TransitionCount>,
        /// The last transition.
        last_transition: Option<Arc<Transition>>,
        /// The last transition that ended a session.
        last_end: Option<Arc<Transition>>,
        /// The packet counters. The doctor leaves them out.
        counters "books": PeerCounters,
    }

    /// Pings by the time to their answer.
    Pings {
        /// Pings that took longer than the bound before and not longer than this one, of [`PING_BOUNDS_US`]; the last one:
        /// longer than all.
        counts: Vec<u64>,
        /// All times together, in microseconds.
        sum_us: u64,
    }

    /// The last call to a peer.
    Call {
        /// Its number, counted from 1.
        number: u64,
        /// Its progress, step by step.
        steps: Vec<String>,
        /// The verdict on the other side after a failure.
        verdict: Option<CallVerdict>,
        /// The reason why it failed.
        why: Option<String>,
    }

    /// A refused call of a peer.
    TurnedAway {
        /// Seconds since then.
        age_s: f64,
        /// The reason.
        why: String,
    }

    /// The compression of a peer's data.
    Compress {
        /// The configured compression.
        wanted: Option<Compression>,
        /// The compression that the session uses.
        used: Option<Compression>,
        /// Data from the peer.
        inbound "in": Compressed,
        /// Data to the peer.
        out: Compressed,
    }

    /// Data that was compressed in one direction.
    Compressed {
        /// Bytes before.
        plain_bytes: u64,
        /// Bytes after.
        wire_bytes: u64,
    }

    /// Data packets that went from link to link without a copy.
    ZeroCopied {
        /// Bytes from the peer, headers included.
        in_bytes: u64,
        /// Bytes to the peer, headers included.
        out_bytes: u64,
    }

    /// A number of transitions of one kind.
    TransitionCount {
        /// The outcome.
        to: Outcome,
        /// The kind of the cause.
        kind: CauseKind,
        /// The number of transitions.
        count: u64,
    }

    /// The packet counters of one stream: received = forwarded + queued + dropped.
    PacketCounts {
        /// Packets taken from their source.
        received: u64,
        /// Their bytes, headers included.
        received_bytes: u64,
        /// Packets written to their destination.
        forwarded: u64,
        /// Their bytes, headers included.
        forwarded_bytes: u64,
        /// Packets that wait.
        queued: u64,
        /// Their bytes, headers included.
        queued_bytes: u64,
        /// Packets dropped.
        dropped: ByCause,
    }
}

impl PeerStatus {
    /// Returns the peer's key and name, for people.
    pub fn label(&self) -> String {
        self.peer.label(self.name.as_deref())
    }

    /// Returns true if it is to be connected: not a site whose links another node of this site has.
    pub fn is_expected(&self) -> bool {
        self.state != PeerState::Off || self.held || !self.address_known
    }
}

impl Compress {
    /// Returns both directions, each with its word.
    pub fn directions(&self) -> [(&'static str, &Compressed); 2] {
        [("in", &self.inbound), ("out", &self.out)]
    }
}

/// A stream of packets between the kernel module and a peer, as seen from the kernel module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stream {
    /// The class of the link.
    pub class: Class,
    /// True if it goes out to the peer.
    pub out: bool,
}

impl Stream {
    /// Every stream, in the order of their names.
    pub const ALL: [Stream; 4] = [
        Stream { class: Class::Data, out: false },
        Stream { class: Class::Data, out: true },
        Stream { class: Class::Meta, out: false },
        Stream { class: Class::Meta, out: true },
    ];

    /// Returns `in` or `out`.
    pub const fn direction(self) -> &'static str {
        if self.out { "out" } else { "in" }
    }

    /// Returns the name of its field.
    fn field(self) -> String {
        format!("{}_{}", self.class, self.direction())
    }
}

/// The packet counters of a peer, by stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PeerCounters(pub Vec<(Stream, PacketCounts)>);

impl PeerCounters {
    /// Returns the counters of a stream, if there are any.
    pub fn of(&self, stream: Stream) -> Option<&PacketCounts> {
        self.0.iter().find(|(found, _)| *found == stream).map(|(_, counts)| counts)
    }
}

impl Json for PeerCounters {
    fn json(&self) -> Value {
        let mut map = Fields::new();
        map.extend(self.0.iter().map(|(stream, counts)| (stream.field(), counts.json())));
        map.into()
    }

    fn read(value: &Value) -> Result<Self, String> {
        let all = fields(value)?;
        let streams = Stream::ALL.into_iter().filter(|stream| all.contains_key(&stream.field()));
        let read = |stream: Stream| Ok((stream, Json::take(&stream.field(), all)?));
        streams.map(read).collect::<Result<_, String>>().map(PeerCounters)
    }

    fn put(&self, name: &str, fields: &mut Fields) {
        if !self.0.is_empty() {
            fields.insert(name.into(), self.json());
        }
    }

    fn take(name: &str, fields: &Fields) -> Result<Self, String> {
        fields.get(name).map_or(Ok(PeerCounters::default()), |books| {
            Self::read(books).map_err(|why| format!("{name}: {why}"))
        })
    }
}

/// A peer by its name alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerName(pub PeerKey);

impl Json for PeerName {
    fn json(&self) -> Value {
        self.0.to_string().into()
    }

    fn read(value: &Value) -> Result<Self, String> {
        let name = String::read(value)?;
        // In the form in which the id types and `PeerKey` write themselves.
        let key = match name.split_once(" of ") {
            None => name.parse().ok(),
            Some((site, resource)) => {
                let site = site.strip_prefix("site ").and_then(|site| site.parse::<u32>().ok());
                let resource = resource.strip_prefix("resource ").and_then(|id| id.parse::<u32>().ok());
                let site = site.and_then(|site| SiteId::try_from(site).ok());
                let resource = resource.and_then(|id| ResourceId::try_from(id).ok());
                resource.zip(site).map(|(resource, site)| PeerKey::Site(resource, site))
            }
        };
        key.map_or_else(|| unexpected("the name of a peer", value), |key| Ok(PeerName(key)))
    }
}

/// Warnings about a file, a line each; no field if there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Warnings(pub Vec<String>);

impl Json for Warnings {
    fn json(&self) -> Value {
        self.0.json()
    }

    fn read(value: &Value) -> Result<Self, String> {
        Option::read(value).map(|list| Warnings(list.unwrap_or_default()))
    }

    fn put(&self, name: &str, fields: &mut Fields) {
        if !self.0.is_empty() {
            fields.insert(name.into(), self.json());
        }
    }
}
