//! The promises, checked at every step: what the kernel module believes, sessions, connections, attempts,
//! heartbeats, and that there is no dead end.
//!
//! The expectations are computed from events and actions alone, never from the core's states.

use std::time::Duration;

use hadmd::control::Fate;
use hadmd::daemon::core::reload::Difference;
use hadmd::daemon::core::{
    ATTEMPT_LIMIT, Action, CONNECT_TICK, ConnId, EndCause, Event, HALF_LIMIT, LOOK_TICK, Role, SessionId, Via,
};
use hadmd::wire::{Class, Mask, PeerKey};

use crate::net::{Conn, Side};
use crate::node::{End, File, HeldOf, Node, Session, resource};
use crate::world::{LATE_REPORT, NODES, World};

/// Rounding of virtual time.
const GRAIN: Duration = Duration::from_millis(1);

fn index(peer: PeerKey) -> usize {
    usize::from(peer.id())
}

fn sessions(node: &Node) -> Mask {
    let up = node.peers.iter().enumerate().filter(|(_, peer)| peer.session.is_some());
    up.fold(Mask::default(), |mask, (id, _)| mask | Mask::of(id as u8))
}

/// The peers whose fate a reload decides, by their ids.
pub struct Fates {
    pub gone: Vec<usize>,
    pub added: Vec<usize>,
    pub changed: Vec<usize>,
}

impl World {
    fn ensure(&self, node: usize, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.trace.fail(self.now, node, &what());
        }
    }

    /// Notes the expectations that follow from an event.
    pub fn expect(&mut self, id: usize, event: &Event) {
        let now = self.now;
        let node = &mut self.nodes[id];
        match *event {
            Event::DialFailed { peer, attempt } => {
                let peer = &mut node.peers[index(peer)];
                if peer.attempt.is_some_and(|(current, _)| current == attempt) {
                    peer.failed(now, CONNECT_TICK);
                }
            }
            Event::LinkReady { peer, class, via: Via::Accepted { epoch, .. }, .. } => {
                // One link alone replaces nothing.
                let whole = node.held.values().any(|held| match held.of {
                    HeldOf::Link { peer: of, end } if of == index(peer) && held.class != class => {
                        let with = self.conns.get(&end.0).map(|conn| conn.epoch);
                        with.is_some_and(|with| with.is_none() || epoch.is_none() || with == epoch)
                    }
                    _ => false,
                });
                if let Some(session) = node.peers[index(peer)].session.as_mut().filter(|_| whole) {
                    session.replaced = true;
                }
            }
            Event::PeerAlive { peer } => node.peers[index(peer)].note_alive(now),
            Event::DataDropped { peer, session } => {
                if let Some(session) = node.session(index(peer), session) {
                    session.marked = true;
                }
            }
            // Of a peer that a reload has removed.
            Event::Wanted { peer, .. } if !node.peers[index(peer)].configured => {}
            Event::Wanted { peer, wanted } => {
                let peer = &mut node.peers[index(peer)];
                if wanted && !peer.wanted && peer.role == Role::Caller {
                    peer.tries = 0;
                    peer.window = Some((now, now));
                } else if !wanted {
                    peer.window = None;
                }
                peer.wanted = wanted;
            }
            Event::AddressesHeld { ref addrs } => node.seen = addrs.contains(&node.floating()),
            _ => {}
        }
    }

    /// Takes a connection out of the core's hands.
    fn take(&mut self, id: usize, conn: ConnId) -> (Class, HeldOf) {
        match self.nodes[id].held.remove(&conn) {
            Some(held) => (held.class, held.of),
            None => self.trace.fail(self.now, id, &format!("{conn:?} is used, but is not the core's to use")),
        }
    }

    fn take_link(&mut self, id: usize, conn: ConnId, class: Class, of: usize) -> End {
        match self.take(id, conn) {
            (held, HeldOf::Link { peer, end }) if held == class && peer == of => end,
            other => {
                self.trace.fail(self.now, id, &format!("{conn:?} is no {class} link of {of}: {other:?}"))
            }
        }
    }

    /// One action, before it is carried out.
    pub fn check_action(&mut self, id: usize, action: &Action) {
        match *action {
            Action::Dial { peer, attempt } => {
                self.ensure(id, attempt > self.nodes[id].last_attempt, || "attempt id used twice".into());
                self.nodes[id].last_attempt = attempt;
                self.check_dial(id, index(peer));
                let peer = &mut self.nodes[id].peers[index(peer)];
                (peer.attempt, peer.window, peer.seen_alive) = (Some((attempt, self.now)), None, false);
                peer.last_dial = Some(self.now);
                self.trace.dials += 1;
            }
            Action::CancelDial { attempt } => {
                let (now, node) = (self.now, &mut self.nodes[id]);
                let is = |peer: &&mut crate::node::Peer| peer.attempt.is_some_and(|(a, _)| a == attempt);
                let Some(peer) = node.peers.iter_mut().find(is) else {
                    return self.ensure(id, false, || format!("{attempt:?} is cancelled, but not in flight"));
                };
                let age = peer.attempt.map_or(Duration::ZERO, |(_, at)| now - at);
                peer.failed(now, CONNECT_TICK);
                let wanted = peer.wanted;
                if !wanted {
                    (peer.window, peer.tries, peer.seen_alive) = (None, 0, false);
                }
                self.ensure(id, !wanted || age >= ATTEMPT_LIMIT, || format!("{attempt:?} cancelled early"));
            }
            Action::Close { conn } => match self.take(id, conn) {
                (_, HeldOf::Link { end, .. }) => self.close(end),
                (class, HeldOf::Kernel { .. }) => self.nodes[id].module.links[class.index()] = None,
            },
            Action::StartSession { peer, session, data, meta } => {
                let peer = index(peer);
                let ends = [(data, Class::Data), (meta, Class::Meta)];
                let ends = ends.map(|(conn, class)| self.take_link(id, conn, class, peer));
                self.start_session(id, peer, session, ends);
            }
            Action::OpenSession { peer, session } => {
                let node = &mut self.nodes[id];
                let told =
                    node.module.told.as_ref().is_some_and(|(_, state)| state.nodes.contains(peer.id()));
                let known = node.module.attach.is_none() || (told && !node.module.stale);
                let opened = node.session(index(peer), session).map(|session| session.opened);
                self.ensure(id, opened == Some(false), || format!("{session:?} opened: {opened:?}"));
                self.ensure(id, known, || format!("{session:?} opened before the kernel module was told"));
            }
            Action::EndSession { peer, session, ref cause } => {
                self.end_session(id, index(peer), session, cause);
            }
            Action::Ping { peer, session, unanswered } => {
                let max = self.max;
                let there =
                    self.nodes[id].session(index(peer), session).is_some_and(|session| session.opened);
                let lawful = there && (1..=max).contains(&unanswered);
                self.ensure(id, lawful, || format!("ping {unanswered} of {max}, session there: {there}"));
            }
            Action::AckKernel { conn, class } => {
                let node = &mut self.nodes[id];
                let fresh = match node.held.get_mut(&conn) {
                    Some(held) if held.class == class => match &mut held.of {
                        HeldOf::Kernel { acked } => !std::mem::replace(acked, true),
                        HeldOf::Link { .. } => false,
                    },
                    _ => false,
                };
                node.module.links[class.index()] = Some(conn);
                self.ensure(id, fresh, || {
                    format!("{conn:?} is no {class} link of a kernel module to answer")
                });
            }
            Action::RefuseKernel { conn, .. } => {
                let (class, _) = self.take(id, conn);
                let node = &self.nodes[id];
                let taken = node
                    .held
                    .values()
                    .any(|held| held.class == class && matches!(held.of, HeldOf::Kernel { acked: true }));
                let lawful = taken || node.module.attach.is_some();
                self.ensure(id, lawful, || "a kernel module was refused with none attached".into());
            }
            Action::AttachKernel { attach, data, meta } => {
                for (conn, class) in [(data, Class::Data), (meta, Class::Meta)] {
                    let (held, of) = self.take(id, conn);
                    let lawful = held == class && matches!(of, HeldOf::Kernel { acked: true });
                    self.ensure(id, lawful, || {
                        format!("{conn:?} attached as {class} link, is {held}: {of:?}")
                    });
                }
                let module = &mut self.nodes[id].module;
                let free = module.attach.replace(attach).is_none();
                (module.told, module.stale) = (None, true);
                self.ensure(id, free, || "a second kernel module attached".into());
            }
            Action::DetachKernel { attach, .. } => {
                let module = &mut self.nodes[id].module;
                let current = module.attach.take() == Some(attach);
                (module.told, module.links) = (None, [None; 2]);
                self.ensure(id, current, || "a kernel module detached that was not attached".into());
            }
            Action::TellKernel { ref state } => {
                let node = &mut self.nodes[id];
                let up = sessions(node);
                let sites = node.file.resource.then_some(Mask::default());
                let lawful = node.module.attach.is_some()
                    && state.nodes == up
                    && state.sites.get(&resource()) == sites.as_ref();
                node.module.told = Some((self.now, state.clone()));
                node.module.stale = false;
                self.ensure(id, lawful, || format!("the kernel module is told {state:?}, up is {up:?}"));
            }
            Action::Stalled => *self.trace.faults.entry("stall noticed").or_default() += 1,
            Action::OwnershipChanged { ref changes, ref owned } => {
                let node = &mut self.nodes[id];
                let owns = node.is_owner();
                // A resource that is no longer configured has no change to report.
                let change = node.file.resource.then_some((resource(), owns));
                let right = changes.iter().eq(change.iter()) && owned.contains(&resource()) == owns;
                let news = node.owns != owns;
                node.owns = owns;
                self.ensure(id, news && right, || format!("{action:?} is no news or not what was seen"));
            }
            Action::CheckModules
            | Action::CheckOwnership
            | Action::LookAtLinks
            | Action::HoldOff { .. }
            | Action::Stop { .. } => {}
        }
    }

    fn check_dial(&self, id: usize, other: usize) {
        let (now, node) = (self.now, &self.nodes[id]);
        let peer = &node.peers[other];
        self.ensure(id, !self.quiet, || format!("node {other} is called, though everything is linked"));
        self.ensure(id, peer.configured && peer.wanted && peer.role == Role::Caller, || {
            format!("node {other} is not to be called")
        });
        let free = peer.attempt.is_none() && peer.session.is_none();
        self.ensure(id, free, || {
            format!("node {other} is called while {:?}, {:?}", peer.attempt, peer.session)
        });
        let in_time = peer.window.is_some_and(|(from, to)| from <= now && now <= to.max(node.woke));
        self.ensure(id, in_time, || {
            format!(
                "node {other} is called at the wrong time: due in {:?}, last {:?}",
                peer.window, peer.last_dial
            )
        });
    }

    fn start_session(&mut self, id: usize, other: usize, session: SessionId, ends: [End; 2]) {
        let conns = ends.map(|(conn, _)| self.conns.get(&conn).map(|conn| (conn.attempt, conn.epoch)));
        let node = &mut self.nodes[id];
        let told = node.module.told.as_ref().is_some_and(|(_, state)| state.nodes.contains(other as u8));
        let seen = node.module.attach.is_none() || !(told || node.module.stale);
        let known = node.peers[other].configured;
        let fresh = session > node.last_session && node.peers[other].session.is_none();
        node.last_session = session;
        node.module.stale |= node.module.attach.is_some();
        let now = self.now;
        let peer = &mut node.peers[other];
        let [data, meta] = conns;
        let paired = match (peer.role, data, meta) {
            (Role::Caller, Some((data, _)), Some((meta, _))) => {
                data == meta && peer.attempt.is_some_and(|(attempt, _)| attempt == data)
            }
            (Role::Acceptor, Some((_, data)), Some((_, meta))) => {
                data.is_none() || meta.is_none() || data == meta
            }
            // A link that broke meanwhile is found out by reading it.
            _ => true,
        };
        (peer.attempt, peer.window) = (None, None);
        peer.session = Some(Session {
            id: session,
            ends,
            since: now,
            opened: false,
            pings: 0,
            unread: Default::default(),
            answered: 0,
            acks: 0,
            heard: now,
            reported: false,
            marked: false,
            held_up: None,
            behind: Default::default(),
            replaced: false,
        });
        for (conn, side) in ends {
            if let Some(conn) = self.conns.get_mut(&conn) {
                conn.sides[side] = Side::Session(session);
            }
        }
        self.trace.started += 1;
        self.ensure(id, known, || format!("{session:?} with node {other}, which is not configured"));
        self.ensure(id, fresh, || format!("{session:?} with node {other} starts inside another one"));
        self.ensure(id, seen, || format!("the end of the session before {session:?} was not told"));
        self.ensure(id, paired, || format!("{session:?} pairs links of two attempts: {conns:?}"));
    }

    fn end_session(&mut self, id: usize, other: usize, session: SessionId, cause: &EndCause) {
        let (now, max) = (self.now, self.max);
        let node = &mut self.nodes[id];
        node.module.stale |= node.module.attach.is_some();
        let peer = &mut node.peers[other];
        let Some(ended) = peer.session.take().filter(|ended| ended.id == session) else {
            return self.ensure(id, false, || format!("{session:?} ends, but is not there"));
        };
        let innocent =
            matches!(cause, EndCause::KernelDetached | EndCause::DataDropped | EndCause::PeersKernel);
        peer.lost(now, ended.since, innocent);
        let unwanted = !peer.wanted;
        if unwanted {
            peer.window = None;
        }
        self.ensure(id, *cause != EndCause::Unwanted || unwanted, || {
            format!("{session:?} with node {other} ends as unwanted, which it is not")
        });
        if let EndCause::Dead(class, time) = *cause {
            let limit = self.nodes[id].core.as_ref().map_or(Duration::ZERO, |core| core.link_limit());
            let (conn, side) = ended.ends[class.index()];
            let open = self.conns.get(&conn).map_or(Duration::ZERO, |conn| conn.open_at[side]);
            self.ensure(id, time >= limit && now - open >= limit, || {
                format!("{session:?} with node {other} ends after {time:?} of silence; its way was open at {open:?}")
            });
            *self.trace.faults.entry("link found dead").or_default() += 1;
        }
        for end in ended.ends {
            self.close(end);
        }
        self.trace.ended += 1;
        if let EndCause::Link(_, of, _) = cause {
            let own = *of == format!("{session:?} closed");
            self.ensure(id, own, || format!("{session:?} with node {other} ends, but {of}"));
        }
        // An ACK that came only now may be too late.
        let in_time = ended.unread.iter().filter(|&&at| at + self.ping / 5 < now).count();
        let silent = ended.pings - ended.answered - in_time;
        self.ensure(id, *cause != EndCause::Heartbeat || silent >= max as usize, || {
            format!("node {other} answered all but {silent} of {} pings, and yet: {cause}", ended.pings)
        });
        self.ensure(id, !self.quiet, || format!("{session:?} with node {other} ends in peace: {cause}"));
    }

    /// Checks the promises that hold after each step of a node.
    pub fn check_step(&self, id: usize) {
        let (now, node) = (self.now, &self.nodes[id]);
        let Some(core) = &node.core else { return };
        let deadline = core.deadline();
        self.ensure(id, deadline > now, || format!("spins: deadline is {deadline:?}"));
        self.ensure(id, deadline <= now + CONNECT_TICK, || format!("sleeps until {deadline:?}"));
        let up = sessions(node);
        let gate = core.up().fold(Mask::default(), |mask, peer| mask | peer.mask());
        self.ensure(id, gate == up, || format!("the core has {gate:?} up, sessions are {up:?}"));
        if node.module.attach.is_some() {
            let told = node.module.told.as_ref().filter(|_| !node.module.stale);
            let right = told.is_some_and(|(_, state)| *state == core.conn_state());
            self.ensure(id, right, || format!("the kernel module believes {told:?}, up is {up:?}"));
            let age = told.map_or(Duration::MAX, |(at, _)| now - (*at).max(node.woke));
            self.ensure(id, age <= CONNECT_TICK + GRAIN, || {
                format!("the kernel module was told {age:?} ago")
            });
        }
        let owns = core.owned().contains(&resource());
        self.ensure(id, owns == node.owns && owns == node.is_owner(), || {
            format!("owns the log: {owns}, told: {}, the address was seen: {}", node.owns, node.seen)
        });
        // A look each second, and the thread that looks.
        let late = now > node.moved.max(node.woke) + LOOK_TICK + LATE_REPORT * 2;
        self.ensure(id, !late || owns == (node.floats && node.file.resource), || {
            format!("owns the log: {owns}, and not its address")
        });
        let mut held = Mask::default();
        for (conn, kept) in &node.held {
            let limit = match kept.of {
                HeldOf::Link { peer, .. } => {
                    let twice = held.contains(peer as u8);
                    self.ensure(id, !twice, || format!("the core keeps two links of node {peer}"));
                    held = held | Mask::of(peer as u8);
                    if peer < id { ATTEMPT_LIMIT } else { HALF_LIMIT }
                }
                HeldOf::Kernel { .. } => HALF_LIMIT,
            };
            let over = now > (kept.since + limit).max(node.woke) + GRAIN;
            self.ensure(id, !over, || format!("{conn:?} leaks: {kept:?}"));
        }
        for (other, peer) in node.peers.iter().enumerate() {
            self.check_peer(node, other, peer);
        }
    }

    fn check_peer(&self, node: &Node, other: usize, peer: &crate::node::Peer) {
        let (now, id) = (self.now, node.id);
        let absent =
            peer.session.is_none() && peer.attempt.is_none() && peer.window.is_none() && !peer.wanted;
        self.ensure(id, peer.configured || absent, || {
            format!("node {other} is not configured, and yet: {peer:?}")
        });
        if let Some(session) = &peer.session {
            self.check_ways(node, other, session);
            let limit = self.ping * (self.max + 1) + self.ping / 10 + GRAIN;
            let silent = now - session.heard.max(node.woke);
            self.ensure(id, silent <= limit, || {
                format!("node {other} is silent for {silent:?} and still up")
            });
            let marked = session.marked && node.module.attach.is_some();
            self.ensure(id, !marked, || {
                format!("the session with node {other} has a hole and was not ended")
            });
            self.ensure(id, !session.replaced, || format!("node {other} called again and was not accepted"));
            self.ensure(id, session.opened, || format!("the session with node {other} is not read"));
        } else if peer.wanted && peer.role == Role::Caller {
            let way = match (peer.attempt, peer.window) {
                (Some((_, at)), None) => now <= (at + ATTEMPT_LIMIT).max(node.woke) + GRAIN,
                (None, Some((_, to))) => now <= to.max(node.woke),
                _ => false,
            };
            self.ensure(id, way, || {
                format!("no way back to node {other}: attempt {:?}, due in {:?}", peer.attempt, peer.window)
            });
        }
    }

    /// Ends of links whose way is blocked are found within the limit and a few looks.
    fn check_ways(&self, node: &Node, other: usize, session: &Session) {
        let Some(core) = &node.core else { return };
        let limit = core.link_limit() + core.link_limit() / 2 + GRAIN;
        let open = session.ends.iter().filter_map(|(conn, side)| Some(self.conns.get(conn)?.open_at[*side]));
        let oldest = open.min().unwrap_or(self.now).max(node.woke).max(session.since);
        let silent = self.now - oldest;
        let blocked = self.blocked(node.id, other) || self.blocked(other, node.id);
        self.ensure(node.id, !blocked || silent <= limit, || {
            format!("a link of node {other} is dead for {silent:?} and still up")
        });
    }

    /// Compares the difference that the core finds with the files themselves; returns the fates by id.
    pub fn check_difference(&self, id: usize, file: &File, found: &Difference) -> Fates {
        let old = &self.nodes[id].file;
        let of = |fate| found.of(fate).map(index).collect::<Vec<_>>();
        let fates = Fates { gone: of(Fate::Removed), added: of(Fate::Added), changed: of(Fate::Changed) };
        let gone = old.peers.keys().filter(|peer| !file.peers.contains_key(peer));
        let added = file.peers.keys().filter(|peer| !old.peers.contains_key(peer));
        let changed =
            file.peers.iter().filter(|(peer, port)| old.peers.get(peer).is_some_and(|old| old != *port));
        let right = found.refused.is_empty()
            && fates.gone.iter().eq(gone)
            && fates.added.iter().eq(added)
            && fates.changed.iter().eq(changed.map(|(peer, _)| peer))
            && found.settings.is_empty() == (old.resource == file.resource);
        self.ensure(id, right, || format!("from {old:?} to {file:?} the difference is {found:?}"));
        fates
    }

    /// Checks that the core has exactly the peers of the file.
    pub fn check_configured(&self, id: usize) {
        let node = &self.nodes[id];
        let Some(core) = &node.core else { return };
        let mut peers: Vec<_> = core.views().map(|view| index(view.key)).collect();
        peers.sort_unstable();
        self.ensure(id, peers.iter().eq(node.file.peers.keys()), || {
            format!("the core has {peers:?}: {:?}", node.file)
        });
    }

    /// The first pair that is not linked with the same pair of connections on both sides, or the first node
    /// without its kernel module.
    pub fn missing(&self) -> Option<(usize, usize)> {
        let ends = |from: usize, to: usize| {
            let session = self.nodes[from].peers.get(to)?.session.as_ref()?;
            Some(session.ends.map(|(conn, _)| conn))
        };
        let linked = |a, b| {
            let conns = ends(a, b).filter(|conns| ends(b, a) == Some(*conns));
            conns.is_some_and(|conns| conns.iter().all(|id| self.conns.get(id).is_some_and(Conn::flows)))
        };
        for a in 0..NODES {
            if self.nodes[a].module.attach.is_none() {
                return Some((a, a));
            }
            if let Some(b) = (a + 1..NODES).find(|&b| !linked(a, b)) {
                return Some((a, b));
            }
        }
        None
    }
}
