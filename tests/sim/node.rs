//! One simulated daemon around a real core, and beside it what an observer knows of each peer.
//!
//! The observer's view is kept apart from the core's states on purpose: the checks compare the two. Used by
//! the world (`world.rs`), the network (`net.rs`) and the checks (`check.rs`).

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use hadmd::core::{
    Admission, AttachId, AttemptId, ConnId, ConnState, Core, Known, Moment, PeerKey, Role, SessionId,
    Settings,
};
use hadmd::wire::{Class, NodeId, ResourceId, SiteId};

use crate::world::Task;

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
    /// Ping ACKs that were read and not told to the core.
    pub acks: u32,
    /// When a ping ACK was read last.
    pub heard: Moment,
    /// Data was dropped while no kernel module was attached, and that was reported.
    pub reported: bool,
    /// ... and the core knows.
    pub marked: bool,
    /// The peer said hello anew.
    pub replaced: bool,
}

/// What an observer expects of one peer.
#[derive(Debug)]
pub struct Peer {
    pub role: Role,
    pub wanted: bool,
    pub session: Option<Session>,
    pub attempt: Option<(AttemptId, Moment)>,
    /// Between which moments the next attempt must begin.
    pub window: Option<(Moment, Moment)>,
    pub tries: u32,
    pub flaps: u32,
    pub last_dial: Option<Moment>,
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
    /// Whether it tries to attach.
    pub present: bool,
    /// Its links, data first, as far as the daemon has answered.
    pub links: [Option<ConnId>; 2],
    pub attach: Option<AttachId>,
    pub told: Option<(Moment, ConnState)>,
    /// Sessions began or ended since it was told.
    pub stale: bool,
}

pub struct Node {
    pub id: usize,
    /// How often the machine has started its daemon.
    pub run: u32,
    pub core: Option<Core>,
    pub powered: bool,
    pub extended: bool,
    pub admission: Admission,
    pub peers: Vec<Peer>,
    pub held: BTreeMap<ConnId, Held>,
    pub next_conn: u64,
    pub flights: BTreeMap<AttemptId, Vec<u64>>,
    pub module: Module,
    pub stalled: Option<Moment>,
    /// What came in during the stall.
    pub backlog: VecDeque<Task>,
    /// When the last stall ended.
    pub woke: Moment,
    pub tick_at: Moment,
    pub lose_reports_until: Moment,
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

impl Node {
    pub fn new(id: usize, count: usize, extended: bool) -> Self {
        let others = (0..count).filter(|&other| other != id);
        let known = others.map(|other| Known {
            key: key(other),
            addr: addr(other),
            port: 0,
            wanted: true,
            compress: None,
        });
        Node {
            id,
            run: 0,
            core: None,
            powered: true,
            extended,
            admission: Admission {
                node: node_id(id),
                site: SiteId::try_from(0).unwrap(),
                known: known.collect(),
                strict: true,
            },
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
            last_session: SessionId(0),
            last_attempt: AttemptId(0),
        }
    }

    /// The daemon starts: a fresh core that knows nothing of before.
    pub fn start(&mut self, now: Moment, count: usize, ping: Duration, max: u32, seed: u64) {
        let role = |other| if other < self.id { Role::Caller } else { Role::Acceptor };
        let others = (0..count).filter(|&other| other != self.id);
        let settings = Settings {
            peers: others.map(|other| (key(other), role(other))).collect(),
            resources: vec![resource()],
            ping_interval: ping,
            max_ping_count: max,
            slow_timeout: Duration::from_secs(10),
            check_modules: false,
            seed,
        };
        let peer = |other| Peer {
            role: role(other),
            wanted: other != self.id,
            session: None,
            attempt: None,
            // The first tick calls everyone at once.
            window: (other < self.id).then_some((now, now)),
            tries: 0,
            flaps: 0,
            last_dial: None,
        };
        self.peers = (0..count).map(peer).collect();
        self.core = Some(Core::new(settings, now));
        self.run += 1;
        self.powered = true;
        self.woke = now;
        self.last_session = SessionId(0);
        self.last_attempt = AttemptId(0);
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
        self.module = Module { present: self.module.present, ..Default::default() };
    }

    pub fn session(&mut self, peer: usize, id: SessionId) -> Option<&mut Session> {
        self.peers.get_mut(peer)?.session.as_mut().filter(|session| session.id == id)
    }
}

impl Peer {
    /// The attempt in flight came to nothing.
    pub fn failed(&mut self, now: Moment, idle: Duration) {
        self.attempt = None;
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

    /// The session ended: the caller calls again at once, unless its sessions flap.
    pub fn lost(&mut self, now: Moment, since: Moment) {
        self.flaps = if now - since < Duration::from_secs(1) { self.flaps + 1 } else { 0 };
        self.tries = 0;
        if self.role == Role::Caller {
            let wait = match self.flaps {
                0 => Duration::from_millis(20),
                n => Duration::from_secs(1 << (n - 1).min(4)),
            };
            self.window = Some(jittered(now, wait));
        }
    }

    /// The peer gave a sign of life.
    pub fn knocked(&mut self, now: Moment) {
        let soon = self.last_dial.map_or(now, |last| now.max(last + Duration::from_secs(1)));
        if let Some((from, to)) = &mut self.window {
            (*from, *to) = (soon.min(*from), soon.min(*to));
        }
    }
}

fn jittered(now: Moment, wait: Duration) -> (Moment, Moment) {
    let grain = Duration::from_micros(1);
    (now + wait.mul_f64(0.8) - grain, now + wait.mul_f64(1.2) + grain)
}
