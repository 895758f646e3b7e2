//! The network: connections with two ends, latency, losses that TCP repairs, and machines that vanish.
//!
//! Bytes of a connection come in order or not at all. Where the way is blocked they are sent again, later and
//! later; an end that closed says so, an end without power says nothing, and a machine that knows nothing of
//! a connection resets it. Used by the world; decides nothing that a daemon decides, but for the reactor's
//! part of a handshake.

use std::collections::VecDeque;
use std::time::Duration;

use hadmd::daemon::core::{
    AttemptId, ConnId, EndCause, Event, ListenerKind, Moment, QueueSight, Refused, SessionId, Via,
};
use hadmd::wire::{Class, Hello, Mark, Scope};

use crate::node::{End, Node, SLOW_TIMEOUT, addr, key, node_id};
use crate::trace::Note;
use crate::world::{Task, World};

/// The connecting side's own limit.
const DIAL_LIMIT: Duration = Duration::from_secs(5);
const FIRST_RESEND: Duration = Duration::from_millis(300);
const LAST_RESEND: Duration = Duration::from_secs(8);

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Message {
    Hello,
    Ack,
    Ping,
    Pong,
    Data,
    /// Something for the kernel module on the meta link.
    Meta,
    Closed,
}

/// The state of one side of a connection, for the daemon that holds it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Side {
    Dialing,
    Accepting,
    /// On its way to the core.
    Offered,
    Held(ConnId),
    Session(SessionId),
    Gone,
}

#[derive(Default)]
struct Pipe {
    queue: VecDeque<Message>,
    stuck: Option<Duration>,
    last: Moment,
    delivered: u64,
}

pub struct Conn {
    pub nodes: [usize; 2],
    pub class: Class,
    pub attempt: AttemptId,
    pub epoch: Option<u64>,
    pub sides: [Side; 2],
    pipes: [Pipe; 2],
    /// When each side's last look found the way open in both directions.
    pub open_at: [Moment; 2],
    /// Messages that came in and are not read yet.
    unread: [VecDeque<Message>; 2],
}

impl Conn {
    /// Returns true if both ends have it in a session, and nothing waits to be sent again.
    pub fn flows(&self) -> bool {
        let stuck = self.pipes.iter().any(|pipe| pipe.stuck.is_some());
        !stuck && self.sides.iter().all(|side| matches!(side, Side::Session(_)))
    }

    /// Returns the number of messages of this side that wait to be sent again.
    pub fn waiting(&self, side: usize) -> u32 {
        let pipe = &self.pipes[side];
        if pipe.stuck.is_some() { pipe.queue.len() as u32 } else { 0 }
    }

    /// Returns the number of messages of this side that arrived.
    pub fn delivered(&self, side: usize) -> u64 {
        self.pipes[side].delivered
    }
}

impl World {
    pub fn blocked(&self, from: usize, to: usize) -> bool {
        self.now < self.blocked_until[from][to] || !self.nodes[to].powered
    }

    pub fn latency(&mut self, from: usize, to: usize) -> Duration {
        let base = 200 + 37 * ((from * 7 + to * 13) % 50) as u64;
        Duration::from_micros(base + self.rng.u64(0..base))
    }

    /// The reactor calls a peer: both links at once.
    pub fn dial(&mut self, from: usize, to: usize, attempt: AttemptId) {
        let both = self.nodes[from].extended && self.nodes[to].extended;
        let epoch = both.then(|| self.rng.u64(..));
        let mut flight = Vec::new();
        for class in Class::BOTH {
            self.last_conn += 1;
            let conn = Conn {
                nodes: [from, to],
                class,
                attempt,
                epoch,
                sides: [Side::Dialing, Side::Gone],
                pipes: Default::default(),
                open_at: [self.now; 2],
                unread: Default::default(),
            };
            self.conns.insert(self.last_conn, conn);
            flight.push(self.last_conn);
            let latency = self.latency(from, to);
            self.later(latency, Task::Syn { conn: self.last_conn, resend: Duration::from_secs(1) });
        }
        self.nodes[from].flights.insert(attempt, flight);
        let run = self.nodes[from].run;
        self.later(DIAL_LIMIT, Task::DialLimit { node: from, run, attempt });
    }

    pub fn syn(&mut self, id: u64, resend: Duration) {
        let Some(conn) = self.conns.get(&id) else { return };
        let [from, to] = conn.nodes;
        if conn.sides[0] == Side::Gone {
            self.conns.remove(&id);
        } else if self.blocked(from, to) || self.blocked(to, from) {
            self.later(resend, Task::Syn { conn: id, resend: resend * 2 });
        } else if self.nodes[to].core.is_none() {
            let latency = self.latency(to, from);
            self.later(latency, Task::Reset { conn: id, side: 0 });
        } else if let Some(conn) = self.conns.get_mut(&id) {
            conn.sides[1] = Side::Accepting;
            conn.open_at = [self.now; 2];
            conn.pipes[0].last = self.now + Duration::from_micros(500);
            self.send((id, 0), Message::Hello);
        }
    }

    /// Gives up what is in flight of an attempt and reports that it failed.
    pub fn dial_failed(&mut self, node: usize, attempt: AttemptId) {
        let Some(&conn) = self.nodes[node].flights.get(&attempt).and_then(|flight| flight.first()) else {
            return;
        };
        let peer = key(self.conns[&conn].nodes[1]);
        self.cancel(node, attempt);
        if self.now < self.nodes[node].lose_reports_until {
            self.trace.note(self.now, node, Note::Fault("lost report", Duration::ZERO));
        } else {
            self.report(node, Event::DialFailed { peer, attempt });
        }
    }

    pub fn cancel(&mut self, node: usize, attempt: AttemptId) {
        for conn in self.nodes[node].flights.remove(&attempt).into_iter().flatten() {
            self.close((conn, 0));
        }
    }

    pub fn send(&mut self, (id, side): End, message: Message) {
        let Some(conn) = self.conns.get(&id) else { return };
        let (from, to) = (conn.nodes[side], conn.nodes[1 - side]);
        let at = self.now + self.latency(from, to);
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let pipe = &mut conn.pipes[side];
        pipe.last = at.max(pipe.last + Duration::from_nanos(1));
        pipe.queue.push_back(message);
        let at = pipe.last - self.now;
        self.later(at, Task::Arrive { conn: id, side });
    }

    pub fn arrive(&mut self, id: u64, side: usize, again: bool) {
        let Some(conn) = self.conns.get(&id) else { return };
        let blocked = self.blocked(conn.nodes[side], conn.nodes[1 - side]);
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let pipe = &mut conn.pipes[side];
        if pipe.queue.is_empty() || (pipe.stuck.is_some() && !again) {
            return;
        }
        if blocked {
            let wait = pipe.stuck.map_or(FIRST_RESEND, |wait| LAST_RESEND.min(wait * 2));
            pipe.stuck = Some(wait);
            return self.later(wait, Task::Resend { conn: id, side });
        }
        // A message that is sent again takes along everything behind it.
        let count = if pipe.stuck.take().is_some() { pipe.queue.len() } else { 1 };
        let messages: Vec<_> = pipe.queue.drain(..count).collect();
        pipe.delivered += messages.len() as u64;
        for message in messages {
            self.receive((id, 1 - side), message);
        }
    }

    /// Something reached the machine; the daemon may not be able to look yet.
    fn receive(&mut self, (id, side): End, message: Message) {
        let Some(conn) = self.conns.get(&id) else { return };
        let (node, other) = (conn.nodes[side], conn.nodes[1 - side]);
        match conn.sides[side] {
            Side::Gone if conn.sides[1 - side] == Side::Gone => drop(self.conns.remove(&id)),
            Side::Gone if message != Message::Closed => {
                let latency = self.latency(node, other);
                self.later(latency, Task::Reset { conn: id, side: 1 - side });
            }
            Side::Gone => {}
            of => {
                if let (Side::Session(session), Message::Pong) = (of, message) {
                    if let Some(session) = self.nodes[node].session(other, session) {
                        session.unread.push_back(self.now);
                    }
                }
                let run = self.nodes[node].run;
                self.at_process(node, Task::Read { node, run, end: (id, side), message });
            }
        }
    }

    pub fn reset(&mut self, id: u64, side: usize) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let (to, from) = (conn.nodes[side], conn.nodes[1 - side]);
        if self.now >= self.blocked_until[from][to] && self.nodes[to].powered {
            self.receive((id, side), Message::Closed);
        }
    }

    /// Closes one end; the other one hears of it if it can.
    pub fn close(&mut self, (id, side): End) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if std::mem::replace(&mut conn.sides[side], Side::Gone) != Side::Gone {
            if conn.sides[1 - side] == Side::Gone && conn.pipes[1 - side].queue.is_empty() && side == 1 {
                self.conns.remove(&id);
            } else {
                self.send((id, side), Message::Closed);
            }
        }
    }

    /// The ends of one machine, when its daemon goes: closed, or (without power) just no longer there.
    pub fn drop_ends(&mut self, node: usize, silently: bool) {
        let ours = |conn: &Conn| (0..2).find(|&side| conn.nodes[side] == node);
        let ends: Vec<End> = self.conns.iter().filter_map(|(&id, conn)| Some((id, ours(conn)?))).collect();
        for (id, side) in ends {
            if !silently {
                self.close((id, side));
            } else if let Some(conn) = self.conns.get_mut(&id) {
                conn.sides[side] = Side::Gone;
                conn.pipes[side].queue.clear();
                if conn.sides == [Side::Gone; 2] {
                    self.conns.remove(&id);
                }
            }
        }
    }

    /// The daemon reads one message.
    pub fn read(&mut self, node: usize, (id, side): End, message: Message) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let other = conn.nodes[1 - side];
        match (conn.sides[side], message) {
            (Side::Gone, _) => {}
            (Side::Dialing, Message::Ack) => {
                conn.sides[side] = Side::Offered;
                let attempt = conn.attempt;
                if let Some(flight) = self.nodes[node].flights.get_mut(&attempt) {
                    flight.retain(|&conn| conn != id);
                }
                self.offer(node, (id, side));
            }
            (Side::Dialing, _) => {
                let attempt = conn.attempt;
                self.dial_failed(node, attempt);
            }
            (Side::Accepting, Message::Hello) => {
                let hello = hello(other, conn.class);
                let kind = ListenerKind::Node;
                match self.nodes[node].admission.admit(&hello, None, addr(other), kind) {
                    Ok(admitted) if admitted.peer == key(other) => {
                        conn.sides[side] = Side::Offered;
                        self.send((id, side), Message::Ack);
                        self.offer(node, (id, side));
                    }
                    // A reload has removed it.
                    Err(Refused::UnknownId(_)) if !self.nodes[node].peers[other].configured => {
                        self.close((id, side))
                    }
                    other => self.trace.fail(self.now, node, &format!("a lawful hello gave {other:?}")),
                }
            }
            (Side::Accepting, _) => self.close((id, side)),
            (Side::Offered | Side::Held(_), _) => conn.unread[side].push_back(message),
            (Side::Session(session), _) => self.session_reads(node, other, session, (id, side), message),
        }
    }

    fn session_reads(&mut self, node: usize, peer: usize, id: SessionId, end: End, message: Message) {
        let attached = self.nodes[node].module.attach.is_some();
        let now = self.now;
        let Some(session) = self.nodes[node].session(peer, id) else { return };
        if session.held_up.is_some() && end == session.ends[Class::Meta.index()] {
            return session.behind.push_back(message);
        }
        match message {
            Message::Meta if attached => self.wait_for_kernel(node, peer, id, Duration::ZERO),
            Message::Ping => self.send(end, Message::Pong),
            Message::Pong => {
                session.acks += 1;
                session.answered += 1;
                session.unread.pop_front();
                session.heard = now;
            }
            Message::Data if !attached && !session.reported => {
                session.reported = true;
                self.trace.note(now, node, Note::Fault("data dropped", Duration::ZERO));
                self.report(node, Event::DataDropped { peer: key(peer), session: id });
            }
            Message::Closed => {
                let cause = EndCause::Link(self.conns[&end.0].class, format!("{id:?} closed"), None);
                self.report(node, Event::SessionLost { peer: key(peer), session: id, cause });
            }
            _ => {}
        }
    }

    /// A meta packet is for a kernel module that may not read. Its queue is taken for full from the first packet on.
    pub fn wait_for_kernel(&mut self, node: usize, peer: usize, id: SessionId, waited: Duration) {
        const CEILING: usize = 1 << 20;
        let limit = (self.ping * self.max / 2).min(SLOW_TIMEOUT);
        let now = self.now;
        let Node { run, peers, module, .. } = &mut self.nodes[node];
        let stuck = module.stuck_until > now;
        if !stuck {
            module.taken = module.taken.wrapping_add(CEILING);
        }
        let sight = QueueSight { waited, moved: module.taken, ceiling: CEILING };
        let left = peers[peer].patience.look(sight, limit).filter(|_| stuck);
        let (run, until) = (*run, module.stuck_until);
        let Some(session) = peers[peer].session.as_mut().filter(|session| session.id == id) else { return };
        if let Some(left) = left {
            session.held_up = Some(now);
            let wait = left.min(until - now);
            return self.later(wait, Task::Patience { node, run, peer, session: id });
        }
        // It was taken, or there is no patience left and it is dropped: what came behind it is read.
        session.held_up = None;
        let end = session.ends[Class::Meta.index()];
        for message in std::mem::take(&mut session.behind) {
            self.session_reads(node, peer, id, end, message);
        }
    }

    /// Reads the messages that waited in a session's links.
    pub fn read_waiting(&mut self, node: usize, end: End) {
        let unread = self.conns.get_mut(&end.0).map(|conn| std::mem::take(&mut conn.unread[end.1]));
        for message in unread.into_iter().flatten() {
            self.read(node, end, message);
        }
    }

    pub fn via(&self, (id, side): End) -> Option<Via> {
        let conn = self.conns.get(&id)?;
        Some(if side == 0 {
            Via::Dialed(conn.attempt)
        } else {
            Via::Accepted { epoch: conn.epoch, source: addr(conn.nodes[0]) }
        })
    }

    /// Someone says hello who may not: told apart by the real admission.
    pub fn strange_hello(&mut self, node: usize, from: usize) {
        let class = if self.rng.bool() { Class::Data } else { Class::Meta };
        let source = if self.rng.u8(0..4) == 0 { addr(99) } else { addr(from) };
        match self.nodes[node].admission.admit(&hello(from, class), None, source, ListenerKind::Node) {
            Err(Refused::Direction(peer)) if from < node && source == addr(from) => {
                self.trace.note(self.now, node, Note::Fault("knock", Duration::ZERO));
                self.report(node, Event::PeerAlive { peer });
            }
            Err(Refused::UnknownId(_)) if !self.nodes[node].peers[from].configured => {}
            Err(Refused::Address { .. }) if source != addr(from) => {
                self.trace.note(self.now, node, Note::Fault("intruder", Duration::ZERO));
            }
            // A lawful caller's hello without anything behind it does no harm either; not simulated.
            Ok(_) if from > node && source == addr(from) => {}
            other => {
                self.trace.fail(self.now, node, &format!("hello of node {from} from {source}: {other:?}"))
            }
        }
    }
}

fn hello(from: usize, class: Class) -> Hello {
    Hello { id: node_id(from).get(), class, ack: false, scope: Scope::Node, addr: None, mark: Mark::Extended }
}
