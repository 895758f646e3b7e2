//! What the daemon decides, without input and output: `(now, event) -> actions`.
//!
//! No sockets, no clock, no threads, no configuration file: the time is a parameter, randomness comes from a
//! seed. The timer thread feeds it events and carries out its actions in their order; the simulation does
//! the same for many nodes at once in virtual time. This room knows `wire` alone.
//!
//! One gate decides that a peer is up: `peer::State::Up`. Whatever else wants to know asks for the
//! actions that follow from it.

mod admit;
mod cause;
mod kernel;
mod peer;
#[cfg(test)]
mod tests;
mod types;

pub use admit::{Admission, Admitted, Door, Known, Refused};
pub use cause::EndCause;
pub use types::{
    Action, AttachId, AttemptId, ConnId, ConnState, Event, Moment, PeerKey, Role, SessionId, Settings, Via,
    View,
};

use std::time::Duration;

use kernel::Kernel;
use peer::{Peer, State};

use crate::wire::Class;

/// Time between two connect ticks: what the C daemon has, and what the kernel module expects, since it uses
/// each connection state to retry its own handshakes.
pub const CONNECT_TICK: Duration = Duration::from_secs(5);
/// Time between two looks for the kernel module, and for who owns which log.
pub const LOOK_TICK: Duration = Duration::from_secs(1);
/// Waits between the attempts of a connect round are 1, 2, 4, 8 and 16 s: the first, doubled so often.
pub const ROUND_WAITS: u32 = 5;
/// How long an attempt may take before the core gives it up, whatever became of its report. Longer than
/// the connecting side's own limit, so that this is only the safety net.
pub const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);
/// How long one link of a pair may wait for the other.
pub const HALF_LIMIT: Duration = Duration::from_secs(5);
/// A session that ends younger than this counts as a flap, and the next attempt waits.
pub const FLAP_AGE: Duration = Duration::from_secs(1);
/// How often the time is doubled for which a peer that never keeps up is held off.
pub const HOLD_DOUBLINGS: u32 = 5;
/// This part of a ping interval is left, after too many pings were not answered, for reading ACKs that came.
const READ_SHARE: u32 = 10;
/// How long queues may drain at an orderly end.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// Whether there is anything to look at again and again: the kernel module, or who owns which log.
fn looks(settings: &Settings) -> bool {
    settings.check_modules || !settings.resources.is_empty()
}

/// Everything one daemon decides.
#[derive(Debug)]
pub struct Core {
    settings: Settings,
    peers: Vec<Peer>,
    kernel: Kernel,
    rng: fastrand::Rng,
    connect_tick: Moment,
    look_tick: Option<Moment>,
    stopping: bool,
    next_id: u64,
    stalls: u64,
}

impl Core {
    /// A core at the start of its daemon: the first [`Core::tick`] starts the first connect round.
    pub fn new(settings: Settings, now: Moment) -> Self {
        Core {
            peers: settings.peers.iter().map(|&(key, role)| Peer::new(key, role)).collect(),
            kernel: Kernel::Detached,
            rng: fastrand::Rng::with_seed(settings.seed),
            connect_tick: now,
            look_tick: looks(&settings).then_some(now),
            stopping: false,
            next_id: 0,
            stalls: 0,
            settings,
        }
    }

    /// Puts new settings in force. Peers that are gone from them have been unwanted before; new ones are off
    /// until they are wanted. What follows is added to `out`.
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
        for peer in &mut self.peers {
            if let State::Up(up) = &mut peer.state {
                up.next_ping = up.next_ping.min(now + settings.ping_interval);
            }
        }
        let resources = self.settings.resources != settings.resources;
        self.settings = settings;
        self.look_tick = looks(&self.settings).then(|| self.look_tick.unwrap_or(now));
        if resources {
            self.tell_kernel(out);
        }
    }

    /// When [`Core::tick`] wants to be called next, at the latest.
    pub fn deadline(&self) -> Moment {
        let peers = self.peers.iter().filter_map(|peer| peer.state.deadline());
        let others = self.look_tick.into_iter().chain(self.kernel.deadline());
        peers.chain(others).fold(self.connect_tick, Moment::min)
    }

    /// How often heartbeat verdicts were suspended because the daemon itself had been stalled.
    pub fn stalls(&self) -> u64 {
        self.stalls
    }

    /// What the kernel module is to believe now.
    pub fn conn_state(&self) -> ConnState {
        let mut state = ConnState::default();
        for &resource in &self.settings.resources {
            state.sites.insert(resource, Default::default());
        }
        for peer in self.peers.iter().filter(|peer| peer.state.is_up()) {
            state.add(peer.key);
        }
        state
    }

    /// Every peer as it stands, for those who want to know.
    pub fn views(&self) -> impl Iterator<Item = View> {
        self.peers.iter().map(Peer::view)
    }

    /// The peers that are up.
    pub fn up(&self) -> impl Iterator<Item = PeerKey> {
        self.peers.iter().filter(|peer| peer.state.is_up()).map(|peer| peer.key)
    }

    /// Takes one event and adds what follows from it to `out`. An event about something that is gone by now
    /// (an old session, an attempt given up) is answered by closing what it brought.
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
                // Up never turns into another Up in one step: the kernel module hears of the end and of
                // the beginning, each for itself, before anything of the new session is read.
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
            Event::Knock { peer } => {
                if let Some(peer) = self.peer(peer) {
                    peer.knock(now);
                }
                self.dial_due(now, out);
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
            Event::KernelHello { class, conn } => self.kernel_hello(now, class, conn, out),
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
            Event::ModuleGone => self.stop(1, out),
            Event::Stop => self.stop(0, out),
        }
    }

    /// Does what is due by now. Ping ACKs that came in since the last tick must have been told before.
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

    /// Starts the attempts whose time has come.
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

    fn kernel_hello(&mut self, now: Moment, class: Class, conn: ConnId, out: &mut Vec<Action>) {
        let attach = AttachId(self.fresh_id());
        if self.stopping || !self.kernel.hello(now, class, conn, attach, out) {
            out.push(Action::RefuseKernel { conn });
        } else if self.kernel.is_attached() {
            // A session that lost data while nobody was attached must not be shown as unbroken.
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
        self.dial_due(now, out);
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
        self.peers.iter_mut().find(|peer| peer.key == key)
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}
