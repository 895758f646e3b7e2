//! The words the core speaks with its surroundings: events in, actions out.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use super::cause::EndCause;
use crate::wire::{Class, Mask, NodeId, ResourceId, Scope, SiteId};

/// A point in time: how long after the daemon's start (monotonic).
pub type Moment = Duration;

/// Which peer: a node of the local site, or a site as seen from one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerKey {
    /// A node of the local site.
    Node(NodeId),
    /// The log owner of this resource at this site.
    Site(ResourceId, SiteId),
}

impl PeerKey {
    /// The address space of the links to this peer.
    pub const fn scope(self) -> Scope {
        match self {
            PeerKey::Node(_) => Scope::Node,
            PeerKey::Site(..) => Scope::Site,
        }
    }

    /// The peer's id in its scope.
    pub const fn id(self) -> u8 {
        match self {
            PeerKey::Node(node) => node.get(),
            PeerKey::Site(_, site) => site.get(),
        }
    }

    /// A number that no other peer has.
    pub const fn code(self) -> u64 {
        match self {
            PeerKey::Node(node) => node.get() as u64,
            PeerKey::Site(resource, site) => 1 << 16 | (resource.get() as u64) << 8 | site.get() as u64,
        }
    }

    /// The peer's bit in `node_to` of its scope.
    pub const fn mask(self) -> Mask {
        Mask::of(self.id())
    }
}

impl fmt::Display for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerKey::Node(node) => write!(f, "{node}"),
            PeerKey::Site(resource, site) => write!(f, "{site} of {resource}"),
        }
    }
}

/// Who calls: the side with the larger id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// This side calls the peer.
    Caller,
    /// The peer calls this side.
    Acceptor,
}

macro_rules! handle {
    ($(#[$doc:meta] $name:ident,)*) => {$(
        #[$doc]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);
    )*};
}

handle! {
    /// A TCP connection that is through its handshake and waits for a decision.
    ConnId,
    /// One attempt to call a peer, both links.
    AttemptId,
    /// One session with a peer.
    SessionId,
    /// One stay of a kernel module.
    AttachId,
}

/// What a core is told at its birth.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Every peer this node may have, and who calls.
    pub peers: Vec<(PeerKey, Role)>,
    /// Resources that have a runsite at the local site: each has a connection state of its own.
    pub resources: Vec<ResourceId>,
    /// Time between pings.
    pub ping_interval: Duration,
    /// Unanswered pings that end a session.
    pub max_ping_count: u32,
    /// How long a peer may hold up the others before its session is ended.
    pub slow_timeout: Duration,
    /// Whether to look for the kernel module.
    pub check_modules: bool,
    /// Seed of the jitter.
    pub seed: u64,
}

/// How a link came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// This side called, in this attempt.
    Dialed(AttemptId),
    /// The peer called.
    Accepted {
        /// What it wrote on both links of this call, if it speaks the extension.
        epoch: Option<u64>,
        /// From where.
        source: IpAddr,
    },
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A link to a peer is through its hello.
    LinkReady {
        /// The peer.
        peer: PeerKey,
        /// Which of the pair.
        class: Class,
        /// The connection.
        conn: ConnId,
        /// Who called.
        via: Via,
    },
    /// An attempt came to nothing; the connecting side has closed what it had of it.
    DialFailed {
        /// The peer.
        peer: PeerKey,
        /// The attempt.
        attempt: AttemptId,
    },
    /// A sign of life from a peer that this side has to call.
    Knock {
        /// The peer.
        peer: PeerKey,
    },
    /// A session cannot go on.
    SessionLost {
        /// The peer.
        peer: PeerKey,
        /// The session.
        session: SessionId,
        /// Why.
        cause: EndCause,
    },
    /// A data packet of this session was dropped because no kernel module is attached.
    DataDropped {
        /// The peer.
        peer: PeerKey,
        /// The session.
        session: SessionId,
    },
    /// Ping ACKs that came in since the last time.
    PingAcks {
        /// The peer.
        peer: PeerKey,
        /// The session.
        session: SessionId,
        /// How many.
        count: u32,
    },
    /// A kernel module asks for one of its links.
    KernelHello {
        /// Which of the pair.
        class: Class,
        /// The connection.
        conn: ConnId,
    },
    /// A connection that waits for its other half is gone. Nobody reads it, so somebody has to look.
    ConnLost {
        /// The connection.
        conn: ConnId,
    },
    /// One of the kernel module's links is gone.
    KernelLost {
        /// Which stay.
        attach: AttachId,
        /// Why, in words.
        why: String,
    },
    /// A peer is to be linked, or no longer: log ownership moved, or the operator said so.
    Wanted {
        /// The peer.
        peer: PeerKey,
        /// Whether it is to be linked.
        wanted: bool,
    },
    /// The kernel module is no longer loaded.
    ModuleGone,
    /// The daemon is asked to end.
    Stop,
}

/// What the kernel module is told: who is connected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnState {
    /// Connected nodes of the local site.
    pub nodes: Mask,
    /// Connected sites of each resource that has a runsite here.
    pub sites: BTreeMap<ResourceId, Mask>,
}

impl ConnState {
    /// Adds one peer.
    pub fn add(&mut self, peer: PeerKey) {
        match peer {
            PeerKey::Node(_) => self.nodes = self.nodes | peer.mask(),
            PeerKey::Site(resource, _) => {
                let sites = self.sites.entry(resource).or_default();
                *sites = *sites | peer.mask();
            }
        }
    }

    /// Who is connected in both.
    pub fn common(&self, other: &ConnState) -> ConnState {
        let mut both = self.clone();
        both.nodes = self.nodes & other.nodes;
        for (id, mask) in &mut both.sites {
            *mask = *mask & other.sites.get(id).copied().unwrap_or_default();
        }
        both
    }
}

/// What is to be done, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Call the peer: both links, hello on both at once.
    Dial {
        /// The peer.
        peer: PeerKey,
        /// The attempt, repeated in what is reported of it.
        attempt: AttemptId,
    },
    /// Give an attempt up: close what there is of it and report nothing.
    CancelDial {
        /// The attempt.
        attempt: AttemptId,
    },
    /// Close a connection that came through its handshake and is not needed.
    Close {
        /// The connection.
        conn: ConnId,
    },
    /// Both links are there: make the session and let the kernel's packets reach it.
    StartSession {
        /// The peer.
        peer: PeerKey,
        /// The new session.
        session: SessionId,
        /// Its data link.
        data: ConnId,
        /// Its meta link.
        meta: ConnId,
    },
    /// The kernel module has been told: begin to read what the peer sends.
    OpenSession {
        /// The peer.
        peer: PeerKey,
        /// The session.
        session: SessionId,
    },
    /// Close both links, drop and count what is queued.
    EndSession {
        /// The peer.
        peer: PeerKey,
        /// The session.
        session: SessionId,
        /// Why.
        cause: EndCause,
    },
    /// Send a ping.
    Ping {
        /// The peer.
        peer: PeerKey,
        /// The session.
        session: SessionId,
        /// Unanswered pings, this one counted.
        unanswered: u32,
    },
    /// Heartbeat verdicts were suspended: the daemon had been stalled.
    Stalled,
    /// Answer one kernel link's handshake.
    AckKernel {
        /// The connection.
        conn: ConnId,
        /// Which of the pair.
        class: Class,
    },
    /// Close a kernel link without an answer: a kernel module is attached already.
    RefuseKernel {
        /// The connection.
        conn: ConnId,
    },
    /// Both kernel links are there: take packets from them.
    AttachKernel {
        /// The new stay.
        attach: AttachId,
        /// Its data link.
        data: ConnId,
        /// Its meta link.
        meta: ConnId,
    },
    /// Close both kernel links, drop and count what is queued.
    DetachKernel {
        /// The stay.
        attach: AttachId,
        /// Why, in words.
        why: String,
    },
    /// Tell the kernel module who is connected.
    TellKernel {
        /// Who.
        state: ConnState,
    },
    /// Look whether the kernel module is loaded.
    CheckModules,
    /// Look which resources this node owns the log of.
    CheckOwnership,
    /// Stop accepting, let the queues drain for so long, and end with this exit code.
    Stop {
        /// Longest time for draining.
        drain: Duration,
        /// Exit code.
        code: u8,
    },
}

/// One peer as it stands.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Which peer.
    pub key: PeerKey,
    /// Who calls.
    pub role: Role,
    /// Its state in one word: `off`, `idle`, `waiting`, `dialing`, `half` or `connected`.
    pub state: &'static str,
    /// When the state ends by itself: the next attempt, the end of a wait, the next ping.
    pub until: Option<Moment>,
    /// Unanswered pings.
    pub unanswered: u32,
}

impl std::str::FromStr for PeerKey {
    type Err = String;

    /// Reads `N` or `node N` for a node, `R:S` for site S of resource R.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.trim().parse::<u32>().ok();
        let key = match text.split_once(':') {
            None => number(text.strip_prefix("node").unwrap_or(text))
                .and_then(|node| NodeId::try_from(node).ok())
                .map(PeerKey::Node),
            Some((resource, site)) => number(resource)
                .and_then(|resource| ResourceId::try_from(resource).ok())
                .zip(number(site).and_then(|site| SiteId::try_from(site).ok()))
                .map(|(resource, site)| PeerKey::Site(resource, site)),
        };
        key.ok_or_else(|| {
            format!("{text:?} is no peer: it must be N for node N, or R:S for site S of resource R")
        })
    }
}
