//! The core's interface: events in, actions out.
//!
//! Plain values without a socket, a clock or a thread. Made and read by the timer thread and by the simulation.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::cause::EndCause;
pub use crate::control::{PeerState, Role};
use crate::wire::{Class, Mask, PeerKey, ResourceId};

/// A point in time: the monotonic time since the daemon's start.
pub type Moment = Duration;

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

/// The configuration of a core.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Every peer that this node may have, and its role: the one that calls or the one that is called.
    pub peers: Vec<(PeerKey, Role)>,
    /// Resources that have a runsite at the local site, each with that runsite's floating address: each resource has a
    /// connection state and a log owner of its own.
    pub resources: Vec<(ResourceId, IpAddr)>,
    /// Time between pings.
    pub ping_interval: Duration,
    /// Unanswered pings that end a session.
    pub max_ping_count: u32,
    /// Longest time that a peer may hold up the others before its session is ended.
    pub slow_timeout: Duration,
    /// Users that may attach as the kernel module; `None`: all, also from another machine.
    pub kernel_users: Option<Vec<u32>>,
    /// True if the core looks for the kernel module.
    pub check_modules: bool,
    /// Seed of the jitter.
    pub seed: u64,
}

/// The origin of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// This side called, in this attempt.
    Dialed(AttemptId),
    /// The peer called.
    Accepted {
        /// The epoch that it wrote on both links of this call, if it uses the hello extension.
        epoch: Option<u64>,
        /// The address from which it called.
        source: IpAddr,
    },
}

/// This machine's counters of one link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkSight {
    /// Segments that were sent and not acknowledged.
    pub unacked: u32,
    /// Bytes acknowledged since the connection began, where the system counts them.
    pub acked: Option<u64>,
    /// Probes to a silent peer that were not answered since it was last heard.
    pub unanswered: u32,
    /// Time that the system waits before its next retransmission.
    pub repeat: Duration,
    /// Time since the last acknowledgement came.
    pub acked_ago: Duration,
    /// Time since anything came.
    pub heard_ago: Duration,
    /// True if the peer's system has reported a closed window, where this one remembers that.
    pub shut: Option<bool>,
}

/// The reason for which a link of a kernel module is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelRefusal {
    /// One is attached already, or waits for its other half.
    Second,
    /// The user that owns the socket may not attach, or is not known.
    User,
    /// The waiting half is this user's, and not that of the new link.
    OtherUser(Option<u32>),
    /// The daemon ends.
    Ending,
}

/// An event: the input of the core.
#[derive(Clone, Debug)]
pub enum Event {
    /// A link to a peer is through its hello.
    LinkReady {
        /// The peer.
        peer: PeerKey,
        /// The link's class.
        class: Class,
        /// The connection.
        conn: ConnId,
        /// The link's origin.
        via: Via,
    },
    /// An attempt failed; the connecting side has closed its connections.
    DialFailed {
        /// The peer.
        peer: PeerKey,
        /// The attempt.
        attempt: AttemptId,
    },
    /// A sign of life from a peer that this side has to call.
    PeerAlive {
        /// The peer.
        peer: PeerKey,
    },
    /// A session cannot go on.
    SessionLost {
        /// The peer.
        peer: PeerKey,
        /// The session.
        session: SessionId,
        /// The cause.
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
        /// The number of ACKs.
        count: u32,
    },
    /// Something was read from the peer's meta link since the last time, or could have been if the kernel module had
    /// read the packets before it.
    Heard {
        /// The peer.
        peer: PeerKey,
        /// The session.
        session: SessionId,
    },
    /// The system's counters of a session's link, asked for by [`Action::LookAtLinks`].
    LinkSeen {
        /// The peer.
        peer: PeerKey,
        /// The session.
        session: SessionId,
        /// The link's class.
        class: Class,
        /// The counters.
        sight: LinkSight,
    },
    /// A kernel module opens one of its links.
    KernelHello {
        /// The link's class.
        class: Class,
        /// The connection.
        conn: ConnId,
        /// The user that owns the socket, where that is known.
        uid: Option<u32>,
    },
    /// A connection that waits for its other half is gone. No thread reads it, so its loss is found by a look.
    ConnLost {
        /// The connection.
        conn: ConnId,
    },
    /// One of the kernel module's links is gone.
    KernelLost {
        /// The stay.
        attach: AttachId,
        /// The reason, in words.
        why: String,
    },
    /// A peer is to be linked, or no longer: log ownership moved, or the operator asked for it.
    Wanted {
        /// The peer.
        peer: PeerKey,
        /// True if it is to be linked.
        wanted: bool,
    },
    /// A look at this machine, asked for by [`Action::CheckOwnership`] or made for another reason.
    AddressesHeld {
        /// Every address of the machine that can be bound.
        addrs: Vec<IpAddr>,
    },
    /// The kernel module is no longer loaded.
    ModuleGone,
    /// The daemon is asked to end.
    Stop,
}

/// The connection state that the kernel module gets: the connected peers.
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

    /// Returns the peers that are connected in both states.
    pub fn common(&self, other: &ConnState) -> ConnState {
        let mut both = self.clone();
        both.nodes = self.nodes & other.nodes;
        for (id, mask) in &mut both.sites {
            *mask = *mask & other.sites.get(id).copied().unwrap_or_default();
        }
        both
    }
}

/// An action, to be carried out in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Call the peer: open both links, send a hello on both at once.
    Dial {
        /// The peer.
        peer: PeerKey,
        /// The attempt's id, which its report repeats.
        attempt: AttemptId,
    },
    /// Give an attempt up: close its connections and report nothing.
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
    /// The kernel module has its new connection state: begin to read what the peer sends.
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
        /// The cause.
        cause: EndCause,
    },
    /// Refuse the peer's calls for a time, since it did not keep up again and again. Comes before the end of its
    /// session.
    HoldOff {
        /// The end of that time.
        peer: PeerKey,
        /// Until when.
        until: Moment,
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
    /// Read the system's counters of every session's links.
    LookAtLinks,
    /// Heartbeat verdicts were suspended: the daemon had been stalled.
    Stalled,
    /// Answer one kernel link's handshake.
    AckKernel {
        /// The connection.
        conn: ConnId,
        /// The link's class.
        class: Class,
    },
    /// Close a kernel link without an answer.
    RefuseKernel {
        /// The connection.
        conn: ConnId,
        /// The reason.
        why: KernelRefusal,
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
        /// The reason, in words.
        why: String,
    },
    /// Send the kernel module its connection state.
    TellKernel {
        /// The state.
        state: ConnState,
    },
    /// Look whether the kernel module is loaded.
    CheckModules,
    /// Look at the addresses of this machine: log ownership follows from them.
    CheckOwnership,
    /// This node owns the logs of these resources from now on, and no others. The wanted peers follow from it.
    OwnershipChanged {
        /// Resources of this site that it has begun to own (true) or no longer owns (false), in the order of their
        /// ids.
        changes: Vec<(ResourceId, bool)>,
        /// All resources that it owns.
        owned: BTreeSet<ResourceId>,
    },
    /// Stop accepting, let the queues drain for this time, and end with this exit code.
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
    /// The peer's key.
    pub key: PeerKey,
    /// The caller of the two sides.
    pub role: Role,
    /// Its state.
    pub state: PeerState,
    /// The end of a state that ends by itself: the next attempt, the end of a wait, the next ping.
    pub until: Option<Moment>,
    /// Unanswered pings.
    pub unanswered: u32,
}
