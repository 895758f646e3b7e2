//! One peer, as states: when it is called, when it is up, when its session ends.
//!
//! ```text
//! caller:    Idle --connect tick--> Waiting --due--> Dialing --both links--> Up
//!             ^                        ^                |                     |
//!             |                        +-- tries left --+                     |
//!             +------ tries used up --------------------+                     |
//!                                      +------------- session lost -----------+
//! acceptor:  Idle --link--> Half --the other link--> Up --session lost--> Idle, or Half
//!             ^              |                       ^ | if a link of the next pair is there
//!             +-- time out --+                       +-+ both links of a new pair
//! both:      any --not wanted--> Off --wanted--> Waiting (caller) or Idle (acceptor)
//! ```
//! No state is a dead end: `Waiting`, `Dialing`, `Half` and `Up` (its ping) have a deadline, `Idle` of a caller ends
//! at the next connect tick, `Idle` of an acceptor with the peer's next call.
//!
//! Pure: knows no socket and no clock. Used by the core alone.

use std::net::IpAddr;
use std::time::Duration;

use super::cause::EndCause;
use super::link::Watch;
use super::types::{Action, AttemptId, ConnId, Moment, PeerState, Role, SessionId, Via, View};
use super::{ATTEMPT_LIMIT, FLAP_AGE, HALF_LIMIT, HOLD_DOUBLINGS, ROUND_WAITS};
use crate::wire::{Class, PeerKey};

#[derive(Debug)]
pub(super) struct Peer {
    pub key: PeerKey,
    role: Role,
    pub state: State,
    /// Sessions in a row that ended younger than [`FLAP_AGE`].
    flaps: u32,
    /// Sessions in a row that ended because the peer did not keep up.
    slow: u32,
    /// The end of the time in which a peer that did not keep up again and again gets no session: each one would hold
    /// up the others for as long as a full queue may.
    held_off: Moment,
    /// The start of the last attempt: signs of life may not start attempts more often than once a second.
    last_dial: Option<Moment>,
}

#[derive(Debug)]
pub(super) enum State {
    Off,
    Idle,
    Waiting { until: Moment, tries: u32 },
    Dialing(Dialing),
    Half(Half),
    Up(Up),
}

/// A call in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dialing {
    attempt: AttemptId,
    tries: u32,
    ready: Option<(Class, ConnId)>,
    until: Moment,
    /// True if the peer gave a sign of life since: if this call fails, the next one is not to wait for long.
    seen_alive: bool,
}

/// One link of a caller, waiting for the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Half {
    class: Class,
    conn: ConnId,
    epoch: Option<u64>,
    source: IpAddr,
    since: Moment,
    until: Moment,
}

/// Longest time between the two links of one call: a caller opens both at once, links further apart may be of two
/// calls. Longer than a busy machine takes between two handshakes, shorter than any repeated SYN.
const APART: Duration = Duration::from_millis(100);
/// Time after such a pair in which the rest of the second call is waited for.
const REST_LIMIT: Duration = Duration::from_secs(1);

/// The other link of a call whose first link may have been paired with one that an earlier call left behind.
#[derive(Clone, Copy, Debug)]
struct Rest {
    class: Class,
    source: IpAddr,
    until: Moment,
}

impl Half {
    /// Returns the link that, if it comes, shows this half to be of an earlier call than the one that completes it at
    /// `now`.
    fn rest(&self, now: Moment) -> Option<Rest> {
        let apart = self.epoch.is_none() && now.saturating_sub(self.since) >= APART;
        apart.then_some(Rest { class: self.class, source: self.source, until: now + REST_LIMIT })
    }

    /// Returns true if a link completes this one: of one call as far as that is known, and from one address.
    fn fits(&self, class: Class, via: Via) -> bool {
        match via {
            Via::Accepted { epoch, source } => {
                let same = self.epoch.is_none() || epoch.is_none() || self.epoch == epoch;
                same && self.class != class && self.source == source
            }
            Via::Dialed(_) => false,
        }
    }
}

#[derive(Debug)]
pub(super) struct Up {
    pub session: SessionId,
    since: Moment,
    pub unanswered: u32,
    /// The time of the next ping, or of the verdict.
    pub next_ping: Moment,
    /// True if too many pings are unanswered: the next look decides.
    pub doubted: bool,
    /// True if data of this session was dropped while no kernel module was attached.
    pub marked: bool,
    /// The observations of its links, data first.
    pub links: [Watch; 2],
    /// The first link of a pair that is to replace this session. Alone it proves nothing: without a check of
    /// addresses anybody could end the session with it.
    next: Option<Half>,
    /// The link that would show that its links are of two calls.
    rest: Option<Rest>,
}

impl State {
    pub fn is_up(&self) -> bool {
        self.up().is_some()
    }

    pub fn session(&self) -> Option<SessionId> {
        self.up().map(|up| up.session)
    }

    pub fn up(&self) -> Option<&Up> {
        match self {
            State::Up(up) => Some(up),
            _ => None,
        }
    }

    pub fn deadline(&self) -> Option<Moment> {
        match self {
            State::Off | State::Idle => None,
            State::Waiting { until, .. } | State::Dialing(Dialing { until, .. }) => Some(*until),
            State::Half(half) => Some(half.until),
            State::Up(up) => Some(up.next.map_or(up.next_ping, |next| next.until.min(up.next_ping))),
        }
    }
}

/// Returns a wait with jitter, 0.8 to 1.2 of `wait`: nodes that lost each other at the same moment must not come back
/// at the same moment again and again.
fn jitter(wait: Duration, rng: &mut fastrand::Rng) -> Duration {
    wait.mul_f64(0.8 + 0.4 * rng.f64())
}

/// Returns wait number `n` of a connect round: 1, 2, 4, 8, 16 s.
fn round_wait(n: u32, rng: &mut fastrand::Rng) -> Duration {
    jitter(Duration::from_secs(1 << n.min(ROUND_WAITS - 1)), rng)
}

impl Peer {
    pub fn new(key: PeerKey, role: Role) -> Self {
        // The first look shows which node owns a resource's log.
        let state = match key {
            PeerKey::Node(_) => State::Idle,
            PeerKey::Site(..) => State::Off,
        };
        Peer { key, role, state, flaps: 0, slow: 0, held_off: Moment::ZERO, last_dial: None }
    }

    pub fn view(&self) -> View {
        let state = match self.state {
            State::Off => PeerState::Off,
            State::Idle => PeerState::Idle,
            State::Waiting { .. } => PeerState::Waiting,
            State::Dialing(_) => PeerState::Dialing,
            State::Half(_) => PeerState::Half,
            State::Up(_) => PeerState::Connected,
        };
        let unanswered = self.state.up().map_or(0, |up| up.unanswered);
        View { key: self.key, role: self.role, state, until: self.state.deadline(), unanswered }
    }

    /// Takes a link whose hello was accepted. `ping_in` is the time to the first ping of a session that begins.
    pub fn link_ready(
        &mut self,
        now: Moment,
        (class, conn, via): (Class, ConnId, Via),
        session: SessionId,
        ping_in: Duration,
        out: &mut Vec<Action>,
    ) {
        match (&mut self.state, via) {
            (State::Dialing(call), Via::Dialed(of)) if call.attempt == of => match call.ready {
                None => call.ready = Some((class, conn)),
                Some((first, other)) if first != class => {
                    self.up(now, (class, conn), other, session, ping_in, out);
                }
                Some(_) => out.push(Action::Close { conn }),
            },
            (state @ (State::Idle | State::Half(_) | State::Up(_)), Via::Accepted { epoch, source })
                if self.role == Role::Acceptor && now >= self.held_off =>
            {
                let half = Half { class, conn, epoch, source, since: now, until: now + HALF_LIMIT };
                let stale = match state {
                    State::Half(first) if first.fits(class, via) => {
                        let (other, rest) = (first.conn, first.rest(now));
                        self.up(now, (class, conn), other, session, ping_in, out);
                        if let State::Up(up) = &mut self.state {
                            up.rest = rest;
                        }
                        return;
                    }
                    State::Up(up) => up.next.replace(half),
                    State::Half(first) => Some(std::mem::replace(first, half)),
                    _ => {
                        *state = State::Half(half);
                        None
                    }
                };
                out.extend(stale.map(|stale| Action::Close { conn: stale.conn }));
            }
            _ => out.push(Action::Close { conn }),
        }
    }

    /// Returns true if this link completes a pair that is to replace the session, or shows that the session's links are
    /// of two calls: a caller without epochs may leave half a pair behind, to which the first link of its next call is
    /// joined. The session has to be ended first; then [`Peer::link_ready`] takes the link.
    pub fn is_replaced_by(&self, now: Moment, class: Class, via: Via) -> bool {
        let Some(up) = self.state.up() else { return false };
        let completes = up.next.is_some_and(|next| next.fits(class, via));
        let Via::Accepted { epoch: None, source } = via else { return completes };
        completes
            || up.rest.is_some_and(|rest| rest.class == class && rest.source == source && now <= rest.until)
    }

    fn up(
        &mut self,
        now: Moment,
        (class, conn): (Class, ConnId),
        other: ConnId,
        session: SessionId,
        ping_in: Duration,
        out: &mut Vec<Action>,
    ) {
        let (data, meta) = if class == Class::Data { (conn, other) } else { (other, conn) };
        out.push(Action::StartSession { peer: self.key, session, data, meta });
        self.state = State::Up(Up {
            session,
            since: now,
            unanswered: 0,
            next_ping: now + ping_in,
            doubted: false,
            marked: false,
            links: Default::default(),
            next: None,
            rest: None,
        });
    }

    pub fn dial_failed(
        &mut self,
        now: Moment,
        failed: AttemptId,
        rng: &mut fastrand::Rng,
        out: &mut Vec<Action>,
    ) {
        match self.state {
            State::Dialing(Dialing { attempt, tries, ready, seen_alive, .. }) if attempt == failed => {
                out.extend(ready.map(|(_, conn)| Action::Close { conn }));
                self.state = if seen_alive {
                    State::Waiting { until: self.next_dial(now), tries: 0 }
                } else if tries < ROUND_WAITS {
                    State::Waiting { until: now + round_wait(tries, rng), tries: tries + 1 }
                } else {
                    State::Idle
                };
            }
            _ => {}
        }
    }

    /// Closes the link that waits for its other half, if `which` is true for it.
    fn drop_half(&mut self, which: impl Fn(&Half) -> bool, out: &mut Vec<Action>) {
        let dropped = match &mut self.state {
            State::Half(half) if which(half) => {
                let half = *half;
                self.state = State::Idle;
                Some(half)
            }
            State::Up(up) => up.next.take_if(|next| which(next)),
            _ => None,
        };
        out.extend(dropped.map(|half| Action::Close { conn: half.conn }));
    }

    /// Gives up a link that was lost while it waited for its other half.
    pub fn conn_lost(&mut self, now: Moment, lost: ConnId, rng: &mut fastrand::Rng, out: &mut Vec<Action>) {
        match self.state {
            State::Half(_) | State::Up(_) => self.drop_half(|half| half.conn == lost, out),
            State::Dialing(Dialing { attempt, ready: Some((_, conn)), .. }) if conn == lost => {
                out.push(Action::CancelDial { attempt });
                self.dial_failed(now, attempt, rng, out);
            }
            _ => {}
        }
    }

    /// Returns the time from which the peer may be called again: not more often than once a second.
    fn next_dial(&self, now: Moment) -> Moment {
        let soon = self.last_dial.map_or(now, |last| now.max(last + Duration::from_secs(1)));
        soon.max(self.held_off)
    }

    /// Begins a new connect round: the peer is alive, or may be reached now.
    pub fn note_alive(&mut self, now: Moment) {
        let soon = self.next_dial(now);
        match &mut self.state {
            State::Waiting { until, tries } => (*until, *tries) = (soon.min(*until), 0),
            State::Dialing(call) => call.seen_alive = true,
            State::Idle if self.role == Role::Caller => self.state = State::Waiting { until: soon, tries: 0 },
            _ => {}
        }
    }

    /// Begins a new connect round for a peer that is missing and not being called.
    pub fn connect_tick(&mut self, now: Moment) {
        if matches!(self.state, State::Idle) && self.role == Role::Caller {
            self.state = State::Waiting { until: now, tries: 0 };
        }
    }

    pub fn dial_if_due(&mut self, now: Moment, attempt: AttemptId, out: &mut Vec<Action>) {
        match self.state {
            State::Waiting { until, tries } if until <= now => {
                self.last_dial = Some(now);
                let until = now + ATTEMPT_LIMIT;
                self.state =
                    State::Dialing(Dialing { attempt, tries, ready: None, until, seen_alive: false });
                out.push(Action::Dial { peer: self.key, attempt });
            }
            _ => {}
        }
    }

    /// Gives up attempts and half pairs whose time is over.
    pub fn expire(&mut self, now: Moment, rng: &mut fastrand::Rng, out: &mut Vec<Action>) {
        match self.state {
            State::Half(_) | State::Up(_) => self.drop_half(|half| half.until <= now, out),
            State::Dialing(Dialing { attempt, until, .. }) if until <= now => {
                out.push(Action::CancelDial { attempt });
                self.dial_failed(now, attempt, rng, out);
            }
            _ => {}
        }
    }

    /// Ends the session, if there is one; a caller calls again at once, unless its sessions flap. A peer
    /// that does not keep up for `slow_timeout` comes back at once the first time; then it is held off for
    /// that time, doubled with each further time.
    pub fn end(
        &mut self,
        now: Moment,
        cause: EndCause,
        slow_timeout: Duration,
        rng: &mut fastrand::Rng,
        out: &mut Vec<Action>,
    ) {
        let State::Up(Up { session, since, mut next, .. }) = self.state else { return };
        if cause == EndCause::Slow {
            out.extend(next.take().map(|half| Action::Close { conn: half.conn }));
            self.held_off = match self.slow {
                0 => now,
                n => now + slow_timeout * (1 << (n - 1).min(HOLD_DOUBLINGS)),
            };
            self.slow += 1;
        } else if now > since + 2 * slow_timeout {
            self.slow = 0;
        }
        // This comes before its links are closed: it may call again at once.
        if now < self.held_off {
            out.push(Action::HoldOff { peer: self.key, until: self.held_off });
        }
        let innocent = cause.is_kernel_modules() || cause == EndCause::PeersKernel;
        // The peer's own reports must not make this side call without end.
        let least = Duration::from_millis(if cause == EndCause::PeersKernel { 100 } else { 20 });
        out.push(Action::EndSession { peer: self.key, session, cause });
        self.flaps = match now < since + FLAP_AGE {
            true => self.flaps + u32::from(!innocent),
            false => 0,
        };
        self.state = match self.role {
            Role::Acceptor => next.map_or(State::Idle, State::Half),
            Role::Caller => {
                let wait = match self.flaps.checked_sub(1).filter(|_| !innocent) {
                    None => jitter(least, rng),
                    Some(n) => round_wait(n, rng),
                };
                State::Waiting { until: self.held_off.max(now + wait), tries: 0 }
            }
        };
    }

    /// Switches the peer on or off.
    pub fn want(
        &mut self,
        now: Moment,
        wanted: bool,
        slow_timeout: Duration,
        rng: &mut fastrand::Rng,
        out: &mut Vec<Action>,
    ) {
        match (&self.state, wanted) {
            (State::Off, true) => {
                self.state = State::Idle;
                self.connect_tick(now);
            }
            (State::Off, false) | (_, true) => {}
            (_, false) => {
                self.end(now, EndCause::Unwanted, slow_timeout, rng, out);
                match self.state {
                    State::Dialing(Dialing { attempt, ready, .. }) => {
                        out.push(Action::CancelDial { attempt });
                        out.extend(ready.map(|(_, conn)| Action::Close { conn }));
                    }
                    State::Half(half) => out.push(Action::Close { conn: half.conn }),
                    _ => {}
                }
                self.state = State::Off;
            }
        }
    }
}
