//! The world: virtual time, the queue of what is to happen, and the steps of each node.
//!
//! One thread, one queue ordered by time, one seeded source of randomness: a seed gives the same run each
//! time. A step of a node is what its timer thread does in one turn: take an event, tick if something is
//! due, carry out what the core decided. Every step is checked (`check.rs`).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use hadmd::daemon::core::reload::difference;
use hadmd::daemon::core::{Action, AttemptId, ConnId, Event, LinkSight, Moment, Role, SessionId};
use hadmd::wire::{Class, PeerKey};

use crate::net::{Conn, Message, Side};
use crate::node::{End, File, Held, HeldOf, Node, addr, allowed, key};
use crate::trace::{Note, Trace};

/// Nodes of a world.
pub const NODES: usize = 32;
/// Longest delay of another thread's report while faults are injected.
pub const LATE_REPORT: Duration = Duration::from_millis(500);
/// Longest time for which a handed-over connection may lie around: longer than any attempt lives.
const LATE_OFFER: Duration = Duration::from_secs(12);

/// Something that is to happen.
#[derive(Clone, Debug)]
pub enum Task {
    Start {
        node: usize,
    },
    Wake {
        node: usize,
        until: Moment,
    },
    Tick {
        node: usize,
        run: u32,
        at: Moment,
    },
    /// Another thread of the daemon tells the timer thread.
    Report {
        node: usize,
        run: u32,
        event: Event,
    },
    /// The reactor hands a connection over.
    Offer {
        node: usize,
        run: u32,
        end: End,
    },
    KernelHello {
        node: usize,
        run: u32,
        class: Class,
    },
    Read {
        node: usize,
        run: u32,
        end: End,
        message: Message,
    },
    /// A call of a peer that may not call, or that is to be called.
    Hello {
        node: usize,
        run: u32,
        from: usize,
    },
    /// A reader that waits for the kernel module looks again.
    Patience {
        node: usize,
        run: u32,
        peer: usize,
        session: SessionId,
    },
    DialLimit {
        node: usize,
        run: u32,
        attempt: AttemptId,
    },
    /// The daemon reads its changed configuration file.
    Reload {
        node: usize,
        run: u32,
        edit: Edit,
    },
    Syn {
        conn: u64,
        resend: Duration,
    },
    Arrive {
        conn: u64,
        side: usize,
    },
    Resend {
        conn: u64,
        side: usize,
    },
    Reset {
        conn: u64,
        side: usize,
    },
    /// The kernel module of a node looks after its links.
    Module {
        node: usize,
    },
    /// Some kernel module sends data.
    Chat,
    Fault,
    /// The session of a pair breaks.
    Break {
        node: usize,
        peer: usize,
    },
}

/// A change of a configuration file.
#[derive(Clone, Copy, Debug)]
pub enum Edit {
    /// A peer is no longer in it.
    Remove(usize),
    /// A peer has another port.
    Change(usize),
    /// The resource has no runsite here any more.
    NoResource,
    /// Everything is in it again.
    Whole,
}

struct Due(Moment, u64, Task);

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.1 == other.1
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

pub struct World {
    pub now: Moment,
    pub rng: fastrand::Rng,
    queue: BinaryHeap<Reverse<Due>>,
    queued: u64,
    pub nodes: Vec<Node>,
    pub conns: BTreeMap<u64, Conn>,
    pub last_conn: u64,
    pub blocked_until: Vec<Vec<Moment>>,
    pub trace: Trace,
    pub ping: Duration,
    pub max: u32,
    /// Until when faults are injected.
    pub chaos_until: Moment,
    /// Everything is healed and was linked: nothing may change any more.
    pub quiet: bool,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        // Some seeds have only nodes that do not speak the extension, like C daemons; some only ones that do.
        let extended = rng.u32(0..=10);
        let mut world = World {
            now: Moment::ZERO,
            nodes: (0..NODES).map(|id| Node::new(id, NODES, rng.u32(0..10) < extended)).collect(),
            ping: Duration::from_secs(rng.u64(1..=5)),
            max: rng.u32(2..=5),
            rng,
            queue: BinaryHeap::new(),
            queued: 0,
            conns: BTreeMap::new(),
            last_conn: 0,
            blocked_until: vec![vec![Moment::ZERO; NODES]; NODES],
            trace: Trace::new(seed),
            chaos_until: Moment::ZERO,
            quiet: false,
        };
        for node in 0..NODES {
            let at = world.up_to(Duration::from_secs(2));
            world.later(at, Task::Start { node });
            world.later(at, Task::Module { node });
        }
        world.later(Duration::ZERO, Task::Chat);
        world
    }

    pub fn later(&mut self, wait: Duration, task: Task) {
        self.queued += 1;
        self.queue.push(Reverse(Due(self.now + wait, self.queued, task)));
    }

    /// Returns true if faults are injected now.
    pub fn chaos(&self) -> bool {
        self.now < self.chaos_until
    }

    pub fn up_to(&mut self, limit: Duration) -> Duration {
        limit.mul_f64(self.rng.f64())
    }

    /// Another thread of the daemon reports; the timer thread hears of it a little later.
    pub fn report(&mut self, node: usize, event: Event) {
        let mut wait = Duration::from_micros(self.rng.u64(10..300));
        if self.chaos() && self.rng.u32(0..20) == 0 {
            wait = self.up_to(LATE_REPORT.min(self.chaos_until - self.now));
        }
        let run = self.nodes[node].run;
        self.later(wait, Task::Report { node, run, event });
    }

    /// The reactor hands over a connection that is through its handshake.
    pub fn offer(&mut self, node: usize, end: End) {
        let mut wait = Duration::from_micros(self.rng.u64(10..300));
        if self.chaos() && self.rng.u32(0..200) == 0 {
            wait = self.up_to(LATE_OFFER.min(self.chaos_until - self.now));
            self.trace.note(self.now, node, Note::Fault("late offer", wait));
        }
        if self.now < self.nodes[node].lose_reports_until && self.rng.u32(0..4) == 0 {
            self.trace.note(self.now, node, Note::Fault("lost offer", Duration::ZERO));
            return self.close(end);
        }
        let run = self.nodes[node].run;
        self.later(wait, Task::Offer { node, run, end });
    }

    pub fn run_until(&mut self, end: Moment) {
        while self.queue.peek().is_some_and(|Reverse(due)| due.0 <= end) {
            let Some(Reverse(Due(at, _, task))) = self.queue.pop() else { break };
            self.now = at;
            self.perform(task);
        }
        self.now = end;
    }

    fn perform(&mut self, task: Task) {
        match task {
            Task::Start { node } => self.start(node),
            Task::Wake { node, until } if self.nodes[node].stalled == Some(until) => self.wake(node),
            Task::Wake { .. } => {}
            Task::Syn { conn, resend } => self.syn(conn, resend),
            Task::Arrive { conn, side } => self.arrive(conn, side, false),
            Task::Resend { conn, side } => self.arrive(conn, side, true),
            Task::Reset { conn, side } => self.reset(conn, side),
            Task::Module { node } => self.module(node),
            Task::Chat => self.chat(),
            Task::Fault => self.inject(),
            Task::Break { node, peer } => self.break_pair(node, peer),
            Task::Tick { node, .. }
            | Task::Report { node, .. }
            | Task::Offer { node, .. }
            | Task::KernelHello { node, .. }
            | Task::Read { node, .. }
            | Task::Hello { node, .. }
            | Task::Patience { node, .. }
            | Task::Reload { node, .. }
            | Task::DialLimit { node, .. } => self.at_process(node, task),
        }
    }

    /// Does what the daemon of this node does, or keeps it until the daemon runs again.
    pub fn at_process(&mut self, id: usize, task: Task) {
        let node = &mut self.nodes[id];
        if node.stalled.is_some() {
            return node.backlog.push_back(task);
        }
        let current = |run| node.core.is_some() && node.run == run;
        match task {
            Task::Tick { run, at, .. } if current(run) && node.tick_at == at => self.step(id, None),
            Task::Report { run, event, .. } if current(run) => self.step(id, Some(event)),
            Task::Offer { run, end, .. } if current(run) => self.offered(id, end),
            Task::KernelHello { run, class, .. } if current(run) => {
                let conn = self.hold(id, class, HeldOf::Kernel { acked: false });
                self.step(id, Some(Event::KernelHello { class, conn, uid: Some(0) }));
            }
            Task::Read { run, end, message, .. } if current(run) => self.read(id, end, message),
            Task::Hello { run, from, .. } if current(run) => self.strange_hello(id, from),
            Task::Patience { run, peer, session, .. } if current(run) => {
                let since = node.session(peer, session).and_then(|session| session.held_up);
                if let Some(since) = since {
                    self.wait_for_kernel(id, peer, session, self.now - since);
                }
            }
            Task::Reload { run, edit, .. } if current(run) => self.reload(id, edit),
            Task::DialLimit { run, attempt, .. } if current(run) => self.dial_failed(id, attempt),
            _ => {}
        }
    }

    pub fn start(&mut self, node: usize) {
        if self.nodes[node].core.is_none() {
            let seed = self.rng.u64(..);
            self.nodes[node].start(self.now, NODES, self.ping, self.max, seed);
            self.step(node, None);
        }
    }

    /// A stalled daemon runs again and finds everything at once; its timer thread may come before its
    /// readers or after them.
    pub fn wake(&mut self, node: usize) {
        self.nodes[node].stalled = None;
        self.nodes[node].woke = self.now;
        if self.rng.bool() {
            self.step(node, None);
        }
        let backlog = std::mem::take(&mut self.nodes[node].backlog);
        for task in backlog {
            self.at_process(node, task);
        }
        if self.nodes[node].core.is_some() {
            self.step(node, None);
        }
    }

    fn hold(&mut self, node: usize, class: Class, of: HeldOf) -> ConnId {
        let node = &mut self.nodes[node];
        node.next_conn += 1;
        let conn = ConnId(node.next_conn);
        node.held.insert(conn, Held { class, since: self.now, of });
        conn
    }

    fn offered(&mut self, node: usize, end: End) {
        let (Some(via), Some(conn)) = (self.via(end), self.conns.get(&end.0)) else { return };
        let (class, peer) = (conn.class, conn.nodes[1 - end.1]);
        let id = self.hold(node, class, HeldOf::Link { peer, end });
        if let Some(conn) = self.conns.get_mut(&end.0) {
            conn.sides[end.1] = Side::Held(id);
        }
        self.step(node, Some(Event::LinkReady { peer: key(peer), class, conn: id, via }));
    }

    /// One turn of a node's timer thread.
    pub fn step(&mut self, id: usize, event: Option<Event>) {
        let now = self.now;
        let mut actions = Vec::new();
        self.trace.events += 1;
        if let Some(event) = event {
            self.expect(id, &event);
            self.trace.note(now, id, Note::Event(event.clone()));
            if let Some(core) = &mut self.nodes[id].core {
                core.handle(now, event, &mut actions);
            }
        }
        let node = &mut self.nodes[id];
        if let Some(core) = node.core.as_mut().filter(|core| core.deadline() <= now) {
            self.trace.note(now, id, Note::Tick);
            for (peer, of) in node.peers.iter_mut().enumerate() {
                if let Some(session) = of.session.as_mut().filter(|session| session.held_up.is_some()) {
                    session.heard = now;
                    core.handle(now, Event::Heard { peer: key(peer), session: session.id }, &mut actions);
                }
                if let Some(session) = of.session.as_mut().filter(|session| session.acks > 0) {
                    let count = std::mem::take(&mut session.acks);
                    let acks = Event::PingAcks { peer: key(peer), session: session.id, count };
                    core.handle(now, acks, &mut actions);
                }
            }
            core.tick(now, &mut actions);
        }
        for action in actions {
            self.trace.note(now, id, Note::Action(action.clone()));
            self.carry_out(id, action);
        }
        self.check_step(id);
        let node = &mut self.nodes[id];
        let deadline = node.core.as_ref().map(|core| core.deadline());
        if let Some(at) = deadline.filter(|at| *at != node.tick_at) {
            node.tick_at = at;
            let run = node.run;
            self.later(at.saturating_sub(now), Task::Tick { node: id, run, at });
        }
    }

    /// Puts a changed file in force, in the steps of the timer thread: peers that go or change are unwanted first, then
    /// the core gets its new settings, then everybody in the file is wanted, and missing peers are called at once.
    pub fn reload(&mut self, id: usize, edit: Edit) {
        let (now, ping, max) = (self.now, self.ping, self.max);
        let node = &self.nodes[id];
        let mut file = node.file.clone();
        match edit {
            Edit::Remove(other) => drop(file.peers.remove(&other)),
            Edit::Change(other) => {
                file.peers.entry(other).and_modify(|port| *port += 1);
            }
            Edit::NoResource => file.resource = false,
            Edit::Whole => {
                file.resource = true;
                File::whole(id, NODES).peers.into_iter().for_each(|(other, port)| {
                    file.peers.entry(other).or_insert(port);
                });
            }
        }
        let found = difference(&node.model(&node.file, ping, max), &node.model(&file, ping, max));
        let fates = self.check_difference(id, &file, &found);
        let wanted: Vec<bool> = node.peers.iter().map(|peer| peer.wanted).collect();
        for &other in fates.gone.iter().chain(&fates.changed) {
            self.step(id, Some(Event::Wanted { peer: key(other), wanted: false }));
        }
        let seed = self.rng.u64(..);
        let node = &mut self.nodes[id];
        if node.file.resource != file.resource {
            node.moved = now;
        }
        node.admission.allowed = allowed(&file);
        node.file = file;
        for &other in fates.gone.iter().chain(&fates.added) {
            let fresh = node.peer(other);
            let before = std::mem::replace(&mut node.peers[other], fresh);
            let clean = before.session.is_none() && before.attempt.is_none();
            if !clean {
                self.trace.fail(now, id, &format!("node {other} is removed, and yet: {before:?}"));
            }
        }
        let settings = node.settings(ping, max, seed);
        let mut actions = Vec::new();
        if let Some(core) = &mut node.core {
            core.reconfigure(now, settings, &mut actions);
        }
        for action in actions {
            self.trace.note(now, id, Note::Action(action.clone()));
            self.carry_out(id, action);
        }
        let configured: Vec<usize> = self.nodes[id].file.peers.keys().copied().collect();
        for &other in &configured {
            let wanted = fates.added.contains(&other) || wanted[other];
            self.step(id, Some(Event::Wanted { peer: key(other), wanted }));
        }
        for other in configured {
            let peer = &self.nodes[id].peers[other];
            if peer.role == Role::Caller && peer.window.is_some() {
                self.step(id, Some(Event::PeerAlive { peer: key(other) }));
            }
        }
        self.step(id, None);
        self.check_configured(id);
    }

    /// Returns what a machine's system knows of one end of a connection.
    fn sight(&mut self, (conn, side): End, limit: Duration) -> Option<LinkSight> {
        let [from, to] = self.conns.get(&conn).map(|conn| [conn.nodes[side], conn.nodes[1 - side]])?;
        let open = !self.blocked(from, to) && !self.blocked(to, from);
        let now = self.now;
        let conn = self.conns.get_mut(&conn)?;
        if open {
            conn.open_at[side] = now;
        }
        let silent = now - conn.open_at[side];
        // A probe each quarter of the time.
        let unanswered = silent.as_millis() / (limit.as_millis() / 4).max(1);
        Some(LinkSight {
            unacked: if open { 0 } else { conn.waiting(side) },
            acked: Some(conn.delivered(side)),
            unanswered: unanswered as u32,
            repeat: Duration::from_millis(200),
            acked_ago: silent,
            heard_ago: silent,
            shut: Some(false),
        })
    }

    fn look_at_links(&mut self, id: usize) {
        let node = &self.nodes[id];
        let Some(limit) = node.core.as_ref().map(|core| core.link_limit()) else { return };
        let sessions =
            node.peers.iter().enumerate().filter_map(|(other, peer)| Some((other, peer.session.as_ref()?)));
        let sessions: Vec<_> = sessions.map(|(other, session)| (other, session.id, session.ends)).collect();
        for (other, session, ends) in sessions {
            for class in Class::BOTH {
                let Some(sight) = self.sight(ends[class.index()], limit) else { continue };
                let Some(core) = &mut self.nodes[id].core else { return };
                let seen = Event::LinkSeen { peer: key(other), session, class, sight };
                let mut actions = Vec::new();
                core.handle(self.now, seen.clone(), &mut actions);
                // There are many looks, and next to nothing follows from most.
                if !actions.is_empty() {
                    self.trace.note(self.now, id, Note::Event(seen));
                }
                for action in actions {
                    self.trace.note(self.now, id, Note::Action(action.clone()));
                    self.carry_out(id, action);
                }
            }
        }
    }

    fn carry_out(&mut self, id: usize, action: Action) {
        self.check_action(id, &action);
        let index = |peer: PeerKey| usize::from(peer.id());
        match action {
            Action::Dial { peer, attempt } => self.dial(id, index(peer), attempt),
            Action::CancelDial { attempt } => self.cancel(id, attempt),
            Action::OpenSession { peer, session } => {
                let ends = self.nodes[id].session(index(peer), session).map(|session| {
                    session.opened = true;
                    session.ends
                });
                for end in ends.into_iter().flatten() {
                    self.read_waiting(id, end);
                }
            }
            Action::Ping { peer, session, .. } => {
                if let Some(session) = self.nodes[id].session(index(peer), session) {
                    session.pings += 1;
                    let end = session.ends[Class::Meta.index()];
                    self.send(end, Message::Ping);
                }
            }
            Action::CheckOwnership => {
                let node = &self.nodes[id];
                let addrs = node.floats.then(|| node.floating()).into_iter().chain([addr(id)]).collect();
                self.report(id, Event::AddressesHeld { addrs });
            }
            Action::LookAtLinks => self.look_at_links(id),
            Action::Stop { .. } => {
                self.drop_ends(id, false);
                self.nodes[id].forget();
            }
            _ => {}
        }
    }

    /// The kernel module dials each link that it misses.
    fn module(&mut self, id: usize) {
        let wait = Duration::from_millis(self.rng.u64(800..1200));
        self.later(wait, Task::Module { node: id });
        let mut classes = Class::BOTH;
        self.rng.shuffle(&mut classes);
        for class in classes {
            let node = &self.nodes[id];
            let free = node.module.links[class.index()].is_none();
            if node.module.present && node.core.is_some() && node.stalled.is_none() && free {
                let run = node.run;
                let wait = Duration::from_micros(self.rng.u64(50..5000));
                // Sometimes it comes to only one of the two, sometimes it calls twice.
                let calls = if self.chaos() { [0, 1, 1, 1, 2][self.rng.usize(0..5)] } else { 1 };
                for _ in 0..calls {
                    self.later(wait, Task::KernelHello { node: id, run, class });
                }
            }
        }
    }

    fn chat(&mut self) {
        self.later(Duration::from_millis(10), Task::Chat);
        let (from, to) = (self.rng.usize(0..NODES), self.rng.usize(0..NODES));
        let node = &self.nodes[from];
        if node.module.attach.is_none() {
            return;
        }
        if let Some(ends) = node.peers.get(to).and_then(|peer| Some(peer.session.as_ref()?.ends)) {
            let (class, message) = match self.rng.bool() {
                true => (Class::Data, Message::Data),
                false => (Class::Meta, Message::Meta),
            };
            self.send(ends[class.index()], message);
        }
    }
}
