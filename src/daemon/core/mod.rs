//! The decisions of the daemon, without input and output: `(now, event) -> actions`.
//!
//! No sockets, no clock, no threads, no configuration file: the time is a parameter, randomness comes from a
//! seed. The timer thread feeds it events and carries out its actions in their order; the simulation does
//! the same for many nodes at once in virtual time. This module imports `wire` alone.
//!
//! One gate decides that a peer is up: `peer::State::Up`. Everything else follows from the actions that come with it.

mod admit;
mod cause;
mod kernel;
mod link;
mod ownership;
mod patience;
mod peer;
pub mod reload;
#[cfg(test)]
mod tests;
mod types;

pub use admit::{Admission, Admitted, AllowedPeer, ListenerKind, Refused};
pub use cause::EndCause;
pub use patience::{MetaPatience, QueueSight};
pub use types::{
    Action, AttachId, AttemptId, ConnId, ConnState, Event, KernelRefusal, LinkSight, Moment, Role, SessionId,
    Settings, Via, View,
};

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use kernel::Kernel;
use ownership::Ownership;
use peer::{Peer, State};

use crate::wire::{Class, PeerKey, ResourceId};

/// Time between two connect ticks: the C daemon's value, which the kernel module expects, since it retries its own
/// handshakes with each connection state.
pub const CONNECT_TICK: Duration = Duration::from_secs(5);
/// Time between two looks for the kernel module and for the addresses that log ownership follows from.
pub const LOOK_TICK: Duration = Duration::from_secs(1);
/// Waits between the attempts of a connect round are 1, 2, 4, 8 and 16 s: 1 s doubled four times.
pub const ROUND_WAITS: u32 = 5;
/// Longest time of an attempt before the core gives it up, even if its report never comes. Longer than the connecting
/// side's own limit, so that this is only the safety net.
pub const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);
/// Longest time that one link of a pair waits for the other.
pub const HALF_LIMIT: Duration = Duration::from_secs(5);
/// A session that ends younger than this counts as a flap, and the next attempt waits.
pub const FLAP_AGE: Duration = Duration::from_secs(1);
/// Most doublings of the time for which a peer that never keeps up is held off.
pub const HOLD_DOUBLINGS: u32 = 5;
/// The part (1 / this) of a ping interval that is left, after too many unanswered pings, for reading ACKs that came.
const READ_SHARE: u32 = 10;
/// Longest time for queues to drain at an orderly end.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// Returns true if the look tick has work: the kernel module or log ownership to check.
fn looks(settings: &Settings) -> bool {
    settings.check_modules || !settings.resources.is_empty()
}

/// Returns the index of each peer: there may be thousands.
fn places(peers: &[Peer]) -> HashMap<PeerKey, usize> {
    peers.iter().enumerate().map(|(at, peer)| (peer.key, at)).collect()
}

/// The state of all decisions of one daemon.
#[derive(Debug)]
pub struct Core {
    settings: Settings,
    peers: Vec<Peer>,
    /// The index of each peer in `peers`.
    places: HashMap<PeerKey, usize>,
    kernel: Kernel,
    ownership: Ownership,
    rng: fastrand::Rng,
    connect_tick: Moment,
    look_tick: Option<Moment>,
    /// The time of the next look at the links, while there is a session.
    link_tick: Moment,
    stopping: bool,
    next_id: u64,
    stalls: u64,
}

impl Core {
    /// Returns a core at the start of its daemon: the first [`Core::tick`] starts the first connect round.
    pub fn new(settings: Settings, now: Moment) -> Self {
        let peers: Vec<Peer> = settings.peers.iter().map(|&(key, role)| Peer::new(key, role)).collect();
        Core {
            places: places(&peers),
            peers,
            kernel: Kernel::Detached,
            ownership: Ownership::default(),
            rng: fastrand::Rng::with_seed(settings.seed),
            connect_tick: now,
            look_tick: looks(&settings).then_some(now),
            link_tick: now,
            stopping: false,
            next_id: 0,
            stalls: 0,
            settings,
        }
    }

    /// Puts new settings in force. Peers that they no longer contain have been unwanted before; new ones are off
    /// until they are wanted. The resulting actions are added to `out`.
    pub fn reconfigure(&mut self, now: Moment, settings: Settings, out: &mut Vec<Action>) {
        let mut before = std::mem::take(&mut self.peers);
        let peers = settings.peers.iter().map(|&(key, role)| {
            if let Some(at) = before.iter().position(|peer| peer.key == key) {
                return before.swap_remove(at);
            }
            let mut peer = Peer::new(key, role);
            peer.state = State::Off;
            peer
        });
        self.peers = peers.collect();
        self.places = places(&self.peers);
        for peer in &mut self.peers {
            if let State::Up(up) = &mut peer.state {
                up.next_ping = up.next_ping.min(now + settings.ping_interval);
            }
        }
        self.link_tick = self.link_tick.min(now + settings.link_look());
        let ids = |of: &[(ResourceId, _)]| of.iter().map(|(id, _)| *id).collect::<Vec<_>>();
        let resources = ids(&self.settings.resources) != ids(&settings.resources);
        self.settings = settings;
        self.look_tick = looks(&self.settings).then(|| self.look_tick.unwrap_or(now));
        if resources {
            self.tell_kernel(out);
        }
        out.extend(self.ownership.judge(&self.settings.resources));
    }

    /// Returns the latest time at which [`Core::tick`] has to be called next.
    pub fn deadline(&self) -> Moment {
        let peers = self.peers.iter().filter_map(|peer| peer.state.deadline());
        let links = self.up().next().map(|_| self.link_tick);
        let others = self.look_tick.into_iter().chain(self.kernel.deadline()).chain(links);
        peers.chain(others).fold(self.connect_tick, Moment::min)
    }

    /// Returns how many times heartbeat verdicts were suspended because the daemon itself had been stalled.
    pub fn stalls(&self) -> u64 {
        self.stalls
    }

    /// Returns the time for which nothing may be acknowledged on a link.
    pub fn link_limit(&self) -> Duration {
        self.settings.link_limit()
    }

    /// Returns the connection with which a kernel module's link of this class and user would make a pair if its hello
    /// were the next event, and the id of that stay.
    pub fn completes_kernel(&self, class: Class, uid: Option<u32>) -> Option<(ConnId, AttachId)> {
        let fits = !self.stopping && self.may_attach(uid);
        let other = self.kernel.waits_for(class, uid).filter(|_| fits)?;
        Some((other, AttachId(self.next_id + 1)))
    }

    /// Returns the connection state that the kernel module is to have now.
    pub fn conn_state(&self) -> ConnState {
        let mut state = ConnState::default();
        for &(resource, _) in &self.settings.resources {
            state.sites.insert(resource, Default::default());
        }
        for peer in self.peers.iter().filter(|peer| peer.state.is_up()) {
            state.add(peer.key);
        }
        state
    }

    /// Returns the resources whose log this node owns.
    pub fn owned(&self) -> &BTreeSet<ResourceId> {
        &self.ownership.owned
    }

    /// Returns every peer as it stands, for status reports.
    pub fn views(&self) -> impl Iterator<Item = View> {
        self.peers.iter().map(Peer::view)
    }

    /// Returns the peers that are up.
    pub fn up(&self) -> impl Iterator<Item = PeerKey> {
        self.peers.iter().filter(|peer| peer.state.is_up()).map(|peer| peer.key)
    }

    /// Takes one event and adds the resulting actions to `out`. An event about something that is gone already (an old
    /// session, a cancelled attempt) is answered by closing the connections that it brought.
    pub fn handle(&mut self, now: Moment, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::LinkReady { peer: key, class, conn, via } => {
                let session = SessionId(self.fresh_id());
                let (stopping, ping_in) = (self.stopping, self.settings.ping_interval);
                let Some(peer) = self.peer(key).filter(|_| !stopping) else {
                    return out.push(Action::Close { conn });
                };
                if peer.is_replaced_by(now, class, via) {
                    self.end_session(now, key, None, EndCause::Replaced, out);
                }
                let Some(peer) = self.peer(key) else { return };
                let was_up = peer.state.is_up();
                peer.link_ready(now, (class, conn, via), session, ping_in, out);
                let is_up = peer.state.is_up();
                // Up never turns into another Up in one step: the kernel module hears of the end and of the beginning
                // separately, before anything of the new session is read.
                if was_up != is_up {
                    self.tell_kernel(out);
                }
                if is_up && !was_up {
                    out.push(Action::OpenSession { peer: key, session });
                }
            }
            Event::DialFailed { peer, attempt } => {
                let mut rng = self.rng.fork();
                if let Some(peer) = self.peer(peer) {
                    peer.dial_failed(now, attempt, &mut rng, out);
                }
            }
            Event::PeerAlive { peer } => {
                if let Some(peer) = self.peer(peer) {
                    peer.note_alive(now);
                }
                self.dial_if_due(now, peer, out);
            }
            Event::SessionLost { peer, session, cause } => {
                self.end_session(now, peer, Some(session), cause, out)
            }
            Event::DataDropped { peer, session } => {
                if self.kernel.is_attached() {
                    self.end_session(now, peer, Some(session), EndCause::DataDropped, out);
                } else if let Some(State::Up(up)) = self.peer(peer).map(|peer| &mut peer.state) {
                    up.marked |= up.session == session;
                }
            }
            Event::PingAcks { peer, session, count } => match self.peer(peer).map(|peer| &mut peer.state) {
                Some(State::Up(up)) if up.session == session => {
                    up.unanswered = up.unanswered.saturating_sub(count);
                }
                _ => {}
            },
            Event::LinkSeen { peer: key, session, class, sight } => {
                let limit = self.settings.link_limit();
                let Some(State::Up(up)) = self.peer(key).map(|peer| &mut peer.state) else { return };
                let [data, meta] = &mut up.links;
                let link = if class == Class::Data { data } else { meta };
                if let Some(time) = link.judge(now, &sight, limit).filter(|_| up.session == session) {
                    self.end_session(now, key, Some(session), EndCause::Dead(class, time), out);
                }
            }
            Event::Heard { peer, session } => match self.peer(peer).map(|peer| &mut peer.state) {
                Some(State::Up(up)) if up.session == session => up.unanswered = 0,
                _ => {}
            },
            Event::KernelHello { class, conn, uid } => self.kernel_hello(now, (class, conn, uid), out),
            Event::ConnLost { conn } => {
                if self.kernel.half_lost(conn) {
                    out.push(Action::Close { conn });
                }
                let mut rng = self.rng.fork();
                for peer in &mut self.peers {
                    peer.conn_lost(now, conn, &mut rng, out);
                }
            }
            Event::KernelLost { attach, why } => {
                if self.kernel.lost(attach) {
                    out.push(Action::DetachKernel { attach, why });
                    self.end_sessions(now, |_| true, EndCause::KernelDetached, out);
                }
            }
            Event::Wanted { peer, wanted } => self.want(now, peer, wanted, out),
            Event::AddressesHeld { addrs } => {
                self.ownership.hold(addrs);
                out.extend(self.ownership.judge(&self.settings.resources));
            }
            Event::ModuleGone => self.stop(1, out),
            Event::Stop => self.stop(0, out),
        }
    }

    /// Does what is due by now. Ping ACKs that came in since the last tick must have been reported before.
    pub fn tick(&mut self, now: Moment, out: &mut Vec<Action>) {
        if self.stopping {
            return;
        }
        if self.look_tick.is_some_and(|due| due <= now) {
            self.look_tick = Some(now + LOOK_TICK);
            if self.settings.check_modules {
                out.push(Action::CheckModules);
            }
            if !self.settings.resources.is_empty() {
                out.push(Action::CheckOwnership);
            }
        }
        if let Some(conn) = self.kernel.expire(now) {
            out.push(Action::Close { conn });
        }
        if self.connect_tick <= now {
            self.connect_tick = now + CONNECT_TICK;
            for peer in &mut self.peers {
                peer.connect_tick(now);
            }
            self.tell_kernel(out);
        }
        self.heartbeats(now, out);
        self.look_at_links(now, out);
        let mut rng = self.rng.fork();
        for peer in &mut self.peers {
            peer.expire(now, &mut rng, out);
        }
        self.dial_due(now, out);
    }

    fn heartbeats(&mut self, now: Moment, out: &mut Vec<Action>) {
        let interval = self.settings.ping_interval;
        let ups = self.peers.iter().filter_map(|peer| peer.state.up());
        if ups.clone().any(|up| up.next_ping + interval / 2 < now) {
            // It was this daemon that slept, not its peers: ACKs may be waiting unread.
            self.stalls += 1;
            out.push(Action::Stalled);
            for peer in &mut self.peers {
                if let State::Up(up) = &mut peer.state {
                    up.unanswered = 0;
                    up.doubted = false;
                }
            }
        }
        let mut dead = Vec::new();
        for peer in &mut self.peers {
            let State::Up(up) = &mut peer.state else { continue };
            if up.next_ping > now {
                continue;
            }
            if up.unanswered >= self.settings.max_ping_count {
                // After a stall that ended just now, ACKs may be there that no thread has read yet.
                let grace = interval / READ_SHARE;
                if std::mem::replace(&mut up.doubted, true) && now <= up.next_ping + grace {
                    dead.push(peer.key);
                } else {
                    up.next_ping = now + grace;
                }
                continue;
            }
            up.doubted = false;
            up.unanswered += 1;
            up.next_ping = now + interval;
            out.push(Action::Ping { peer: peer.key, session: up.session, unanswered: up.unanswered });
        }
        for key in dead {
            self.end_session(now, key, None, EndCause::Heartbeat, out);
        }
    }

    fn look_at_links(&mut self, now: Moment, out: &mut Vec<Action>) {
        if now < self.link_tick || self.up().next().is_none() {
            return;
        }
        let look = self.settings.link_look();
        if self.link_tick + look / 2 < now {
            let ups = self.peers.iter_mut().filter_map(|peer| match &mut peer.state {
                State::Up(up) => Some(up),
                _ => None,
            });
            ups.flat_map(|up| &mut up.links).for_each(link::Watch::forget);
        }
        self.link_tick = now + look;
        out.push(Action::LookAtLinks);
    }

    /// Starts the attempts that are due.
    fn dial_due(&mut self, now: Moment, out: &mut Vec<Action>) {
        if self.stopping {
            return;
        }
        for at in 0..self.peers.len() {
            let id = self.fresh_id();
            if let Some(peer) = self.peers.get_mut(at) {
                peer.dial_if_due(now, AttemptId(id), out);
            }
        }
    }

    /// Starts this peer's attempt if it is due.
    fn dial_if_due(&mut self, now: Moment, key: PeerKey, out: &mut Vec<Action>) {
        let (id, stopping) = (AttemptId(self.fresh_id()), self.stopping);
        if let Some(peer) = self.peer(key).filter(|_| !stopping) {
            peer.dial_if_due(now, id, out);
        }
    }

    fn may_attach(&self, uid: Option<u32>) -> bool {
        let users = self.settings.kernel_users.as_ref();
        users.is_none_or(|users| uid.is_some_and(|uid| users.contains(&uid)))
    }

    fn kernel_hello(
        &mut self,
        now: Moment,
        (class, conn, uid): (Class, ConnId, Option<u32>),
        out: &mut Vec<Action>,
    ) {
        let attach = AttachId(self.fresh_id());
        let taken = match (self.may_attach(uid), self.stopping) {
            (false, _) => Err(KernelRefusal::User),
            (true, true) => Err(KernelRefusal::Ending),
            (true, false) => self.kernel.hello(now, (class, conn, uid), attach, out),
        };
        if let Err(why) = taken {
            out.push(Action::RefuseKernel { conn, why });
        } else if self.kernel.is_attached() {
            // A session that lost data while no kernel module was attached must not be shown as unbroken.
            self.end_sessions(now, |up| up.marked, EndCause::DataDropped, out);
            self.tell_kernel(out);
        }
    }

    fn end_session(
        &mut self,
        now: Moment,
        key: PeerKey,
        session: Option<SessionId>,
        cause: EndCause,
        out: &mut Vec<Action>,
    ) {
        let mut rng = self.rng.fork();
        let slow_timeout = self.settings.slow_timeout;
        let Some(peer) = self.peer(key) else { return };
        let current = peer.state.session();
        if current.is_some() && (session.is_none() || session == current) {
            peer.end(now, cause, slow_timeout, &mut rng, out);
            self.tell_kernel(out);
        }
    }

    fn end_sessions(
        &mut self,
        now: Moment,
        which: impl Fn(&peer::Up) -> bool,
        cause: EndCause,
        out: &mut Vec<Action>,
    ) {
        for peer in &mut self.peers {
            if peer.state.up().is_some_and(&which) {
                peer.end(now, cause.clone(), self.settings.slow_timeout, &mut self.rng, out);
            }
        }
    }

    fn want(&mut self, now: Moment, key: PeerKey, wanted: bool, out: &mut Vec<Action>) {
        let mut rng = self.rng.fork();
        let slow_timeout = self.settings.slow_timeout;
        let Some(peer) = self.peer(key) else { return };
        let was_up = peer.state.is_up();
        peer.want(now, wanted, slow_timeout, &mut rng, out);
        if was_up && !wanted {
            self.tell_kernel(out);
        }
        self.dial_if_due(now, key, out);
    }

    fn tell_kernel(&mut self, out: &mut Vec<Action>) {
        if self.kernel.is_attached() {
            out.push(Action::TellKernel { state: self.conn_state() });
        }
    }

    fn stop(&mut self, code: u8, out: &mut Vec<Action>) {
        if !self.stopping {
            self.stopping = true;
            out.push(Action::Stop { drain: DRAIN_LIMIT, code });
        }
    }

    fn peer(&mut self, key: PeerKey) -> Option<&mut Peer> {
        self.peers.get_mut(*self.places.get(&key)?)
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}
