//! One simulated daemon around a real core, and beside it what an observer knows of each peer.
//!
//! The observer's view is kept apart from the core's states on purpose: the checks compare the two. Used by
//! the world (`world.rs`), the network (`net.rs`) and the checks (`check.rs`).

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hadmd::daemon::core::reload::{Configured, Place};
use hadmd::daemon::core::{
    Admission, AllowedPeer, AttachId, AttemptId, ConnId, ConnState, Core, MetaPatience, Moment, Role,
    SessionId, Settings,
};
use hadmd::wire::{Class, NodeId, PeerKey, ResourceId, SiteId};

use crate::net::Message;
use crate::world::Task;

/// Longest time that a peer may hold up the others.
pub const SLOW_TIMEOUT: Duration = Duration::from_secs(10);

/// One end of a connection between nodes: which connection, and which side of it.
pub type End = (u64, usize);

/// A session as it is carried out.
#[derive(Clone, Debug)]
pub struct Session {
    pub id: SessionId,
    pub ends: [End; 2],
    pub since: Moment,
    pub opened: bool,
    pub pings: usize,
    /// When each ping ACK reached this machine that is not read yet.
    pub unread: VecDeque<Moment>,
    /// Ping ACKs that were read.
    pub answered: usize,
    /// Ping ACKs that were read and not reported to the core.
    pub acks: u32,
    /// When a ping ACK was read last.
    pub heard: Moment,
    /// Data was dropped while no kernel module was attached, and that was reported.
    pub reported: bool,
    /// ... and the core knows.
    pub marked: bool,
    /// Since when its meta link is not read, because the kernel module has to take something first; and what came
    /// in meanwhile.
    pub held_up: Option<Moment>,
    pub behind: VecDeque<Message>,
    /// The peer said hello anew.
    pub replaced: bool,
}

/// The configuration file of a node, as far as reloads change it.
#[derive(Clone, Debug, PartialEq)]
pub struct File {
    /// The port of every peer.
    pub peers: BTreeMap<usize, u16>,
    /// True if the resource has a runsite here.
    pub resource: bool,
}

impl File {
    /// Returns the whole cluster, as node `id` has it.
    pub fn whole(id: usize, count: usize) -> Self {
        File {
            peers: (0..count).filter(|&other| other != id).map(|other| (other, 1)).collect(),
            resource: true,
        }
    }
}

/// An observer's expectations of one peer.
#[derive(Debug)]
pub struct Peer {
    pub role: Role,
    /// False if a reload has removed it.
    pub configured: bool,
    pub wanted: bool,
    pub session: Option<Session>,
    pub attempt: Option<(AttemptId, Moment)>,
    /// Between which moments the next attempt must begin.
    pub window: Option<(Moment, Moment)>,
    pub tries: u32,
    pub flaps: u32,
    pub last_dial: Option<Moment>,
    /// The peer gave a sign of life while it was called.
    pub seen_alive: bool,
    /// The patience with the kernel module for its meta packets.
    pub patience: MetaPatience,
}

/// A connection that was handed to the core, until the core says what becomes of it.
#[derive(Debug)]
pub struct Held {
    pub class: Class,
    pub since: Moment,
    pub of: HeldOf,
}

#[derive(Debug)]
pub enum HeldOf {
    Link { peer: usize, end: End },
    Kernel { acked: bool },
}

/// The kernel module of one node.
#[derive(Debug, Default)]
pub struct Module {
    /// True if it tries to attach.
    pub present: bool,
    /// Its links, data first, as far as the daemon has answered.
    pub links: [Option<ConnId>; 2],
    pub attach: Option<AttachId>,
    pub told: Option<(Moment, ConnState)>,
    /// Sessions began or ended since its last state.
    pub stale: bool,
    /// Until when it reads nothing, and all the bytes that it has read.
    pub stuck_until: Moment,
    pub taken: usize,
}

pub struct Node {
    pub id: usize,
    /// Number of times that the machine has started its daemon.
    pub run: u32,
    pub core: Option<Core>,
    pub powered: bool,
    pub extended: bool,
    pub admission: Admission,
    pub file: File,
    pub peers: Vec<Peer>,
    pub held: BTreeMap<ConnId, Held>,
    pub next_conn: u64,
    pub flights: BTreeMap<AttemptId, Vec<u64>>,
    pub module: Module,
    pub stalled: Option<Moment>,
    /// Tasks that came in during the stall.
    pub backlog: VecDeque<Task>,
    /// When the last stall ended.
    pub woke: Moment,
    pub tick_at: Moment,
    pub lose_reports_until: Moment,
    /// True if the machine has the floating address of the resource, and since when that is so.
    pub floats: bool,
    pub moved: Moment,
    /// True if the daemon saw it there when it looked last, and owns the log by its report.
    pub seen: bool,
    pub owns: bool,
    pub last_session: SessionId,
    pub last_attempt: AttemptId,
}

pub fn key(id: usize) -> PeerKey {
    PeerKey::Node(node_id(id))
}

pub fn node_id(id: usize) -> NodeId {
    NodeId::try_from(id as u32).unwrap()
}

pub fn addr(id: usize) -> IpAddr {
    IpAddr::from([10, 0, 0, id as u8])
}

pub fn resource() -> ResourceId {
    ResourceId::try_from(0).unwrap()
}

/// Returns the peers of a file, as the check of callers has them.
pub fn allowed(file: &File) -> Vec<AllowedPeer> {
    let allowed = |&other: &usize| AllowedPeer {
        key: key(other),
        addr: addr(other),
        at: None,
        wanted: true,
        held: false,
        compress: None,
    };
    file.peers.keys().map(allowed).collect()
}

impl Node {
    pub fn new(id: usize, count: usize, extended: bool) -> Self {
        let file = File::whole(id, count);
        Node {
            id,
            run: 0,
            core: None,
            powered: true,
            extended,
            admission: Admission {
                node: node_id(id),
                site: SiteId::try_from(0).unwrap(),
                allowed: allowed(&file),
                strict: true,
            },
            file,
            peers: Vec::new(),
            held: BTreeMap::new(),
            next_conn: 0,
            flights: BTreeMap::new(),
            module: Module { present: true, ..Default::default() },
            stalled: None,
            backlog: VecDeque::new(),
            woke: Moment::ZERO,
            tick_at: Moment::MAX,
            lose_reports_until: Moment::ZERO,
            floats: id == 0,
            moved: Moment::ZERO,
            seen: false,
            owns: false,
            last_session: SessionId(0),
            last_attempt: AttemptId(0),
        }
    }

    /// The daemon starts: a fresh core that knows nothing of before.
    pub fn start(&mut self, now: Moment, count: usize, ping: Duration, max: u32, seed: u64) {
        self.file = File::whole(self.id, count);
        self.admission.allowed = allowed(&self.file);
        self.peers = (0..count).map(|other| self.peer(other)).collect();
        for (other, peer) in self.peers.iter_mut().enumerate() {
            peer.wanted = peer.configured;
            // The first tick calls everyone at once.
            peer.window = (other < self.id).then_some((now, now));
        }
        self.core = Some(Core::new(self.settings(ping, max, seed), now));
        self.run += 1;
        self.powered = true;
        self.woke = now;
        (self.seen, self.owns) = (false, false);
        self.last_session = SessionId(0);
        self.last_attempt = AttemptId(0);
    }

    fn role(&self, other: usize) -> Role {
        if other < self.id { Role::Caller } else { Role::Acceptor }
    }

    /// Returns the expectations of a peer that is in the file and not yet wanted.
    pub fn peer(&self, other: usize) -> Peer {
        Peer {
            role: self.role(other),
            configured: self.file.peers.contains_key(&other),
            wanted: false,
            session: None,
            attempt: None,
            window: None,
            tries: 0,
            flaps: 0,
            last_dial: None,
            seen_alive: false,
            patience: MetaPatience::default(),
        }
    }

    /// Returns the core's settings that follow from the file.
    pub fn settings(&self, ping: Duration, max: u32, seed: u64) -> Settings {
        Settings {
            peers: self.file.peers.keys().map(|&other| (key(other), self.role(other))).collect(),
            resources: self.file.resource.then(|| (resource(), self.floating())).into_iter().collect(),
            ping_interval: ping,
            max_ping_count: max,
            slow_timeout: SLOW_TIMEOUT,
            kernel_users: Some([0].into()),
            check_modules: false,
            seed,
        }
    }

    /// Returns the model of a file that a reload compares.
    pub fn model(&self, file: &File, ping: Duration, max: u32) -> Configured<&'static str> {
        let at = |addr, port| SocketAddr::new(addr, port);
        let meets = |(&other, &port): (&usize, &u16)| {
            let call = (self.role(other) == Role::Caller).then(|| (at(addr(other), port), addr(self.id)));
            (key(other), Place { port, call })
        };
        Configured {
            server: at([127, 0, 0, 1].into(), 1),
            node: self.admission.node,
            site: self.admission.site,
            local: Some(at(addr(self.id), 1)),
            ping_interval: ping,
            max_ping_count: max,
            max_packet: 1 << 20,
            slow_timeout: SLOW_TIMEOUT,
            busy_poll: Duration::ZERO,
            zero_copy: true,
            compress: Default::default(),
            kernel_user: "own".into(),
            peer_addr: "strict".into(),
            metrics: None,
            keys: "none",
            resources: file.resource.then(|| (resource(), at(self.floating(), 2))).into_iter().collect(),
            peers: file.peers.iter().map(meets).collect(),
        }
    }

    /// Returns true if it owns the log by the last look at its addresses.
    pub fn is_owner(&self) -> bool {
        self.seen && self.file.resource
    }

    /// The daemon is gone, with everything it knew.
    pub fn forget(&mut self) {
        self.core = None;
        self.peers.clear();
        self.held.clear();
        self.flights.clear();
        self.backlog.clear();
        self.stalled = None;
        self.tick_at = Moment::MAX;
        let Module { present, stuck_until, .. } = self.module;
        self.module = Module { present, stuck_until, ..Default::default() };
    }

    /// The floating address of the local runsite of the resource.
    pub fn floating(&self) -> IpAddr {
        IpAddr::from([10, 0, 1, 0])
    }

    pub fn session(&mut self, peer: usize, id: SessionId) -> Option<&mut Session> {
        self.peers.get_mut(peer)?.session.as_mut().filter(|session| session.id == id)
    }
}

impl Peer {
    /// The attempt in flight failed.
    pub fn failed(&mut self, now: Moment, idle: Duration) {
        self.attempt = None;
        if std::mem::take(&mut self.seen_alive) {
            let soon = self.soon(now);
            (self.tries, self.window) = (0, Some((soon, soon)));
            return;
        }
        let waits = [1, 2, 4, 8, 16];
        match waits.get(self.tries as usize) {
            Some(&wait) => {
                self.tries += 1;
                self.window = Some(jittered(now, Duration::from_secs(wait)));
            }
            None => {
                self.tries = 0;
                self.window = Some((now, now + idle));
            }
        }
    }

    /// The session ended: the caller calls again at once, unless its sessions flap. `innocent` are the peer and the
    /// link if the kernel module here came or went.
    pub fn lost(&mut self, now: Moment, since: Moment, innocent: bool) {
        let young = now - since < Duration::from_secs(1);
        self.flaps = if young { self.flaps + u32::from(!innocent) } else { 0 };
        self.tries = 0;
        if self.role == Role::Caller {
            let wait = match self.flaps {
                _ if innocent => Duration::from_millis(20),
                0 => Duration::from_millis(20),
                n => Duration::from_secs(1 << (n - 1).min(4)),
            };
            self.window = Some(jittered(now, wait));
        }
    }

    /// At most one attempt a second.
    fn soon(&self, now: Moment) -> Moment {
        self.last_dial.map_or(now, |last| now.max(last + Duration::from_secs(1)))
    }

    /// The peer gave a sign of life.
    pub fn note_alive(&mut self, now: Moment) {
        let soon = self.soon(now);
        self.seen_alive = self.attempt.is_some();
        if let Some((from, to)) = &mut self.window {
            (*from, *to) = (soon.min(*from), soon.min(*to));
            self.tries = 0;
        }
    }
}

fn jittered(now: Moment, wait: Duration) -> (Moment, Moment) {
    let grain = Duration::from_micros(1);
    (now + wait.mul_f64(0.8) - grain, now + wait.mul_f64(1.2) + grain)
}
