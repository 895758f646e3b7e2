//! The reactor thread: accepts, calls, and deadlines of handshakes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, unbounded};
use log::{Level, debug, warn};
use polling::{Event, Events, Poller};
use socket2::{SockRef, Socket};

use super::failure::Failure;
use super::handshake::{Handshake, Side, Step};
use super::listener::{FIRST_HANDSHAKE, Listeners, accept};
use super::socket::dial;
use super::{
    DIAL_LIMIT, Deliver, Dial, HELLO_LIMIT, MAX_OFFERED, MAX_PENDING, Plan, ReactorCommand, ReactorEvent,
    Refusals,
};
use crate::control::CallVerdict;
use crate::daemon::core::{AttemptId, ListenerKind, Refused};
use crate::daemon::link::Connection;
use crate::limited;
use crate::sys::Counter;
use crate::sys::{self, Owners, Registered};
use crate::wire::{Class, Device, PeerKey};

/// Most connections accepted before handshakes that came in go on.
const ACCEPT_TURN: usize = 32;
/// Time for which no connection is accepted after the system had no descriptor for one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The address watch's key in the poller, below those of the listeners.
const WATCH: usize = 0;

/// The handle to send commands to the reactor thread.
pub struct Reactor {
    commands: Sender<ReactorCommand>,
    poller: Arc<Poller>,
    /// The counters of calls that were refused.
    pub refusals: Arc<Refusals>,
    beats: Arc<Counter>,
}

impl Reactor {
    /// Binds the listeners and starts the thread. `socket` is one more place for the kernel module.
    ///
    /// # Errors
    /// A sentence for the operator: the address that cannot be bound, and the remedy.
    pub fn start(plan: Plan, socket: Option<UnixListener>, deliver: Deliver) -> Result<Self, String> {
        let system = |error: io::Error| format!("cannot start the reactor: {error}");
        let poller = Arc::new(Poller::new().map_err(system)?);
        let refusals = Arc::new(Refusals::default());
        let beats = Arc::new(Counter::default());
        let mut listeners = Listeners::default();
        listeners.open(&poller, plan.server, None)?;
        socket.map_or(Ok(()), |socket| listeners.add_unix(&poller, socket)).map_err(system)?;
        listeners.open(&poller, plan.node, Some(ListenerKind::Node))?;
        let owners = Owners::probe();
        // Without the watch, ownership is still checked with every tick.
        let watch = sys::watch_network()
            .and_then(|watch| Registered::new(&poller, watch, Event::readable(WATCH)))
            .inspect_err(|error| warn!("cannot watch for changes of addresses: {error}"))
            .ok();
        let (sender, commands) = unbounded();
        let thread = Thread {
            poller: Arc::clone(&poller),
            plan,
            listeners,
            unopened: BTreeMap::new(),
            watch,
            flights: HashMap::new(),
            next_key: FIRST_HANDSHAKE,
            commands,
            deliver,
            offered: Arc::new(()),
            refusals: Arc::clone(&refusals),
            beats: Arc::clone(&beats),
            owners,
        };
        sys::spawn("reactor", move || thread.run()).map_err(system)?;
        Ok(Reactor { commands: sender, poller, refusals, beats })
    }

    /// Returns the number of times that the thread has looked at its sockets and commands.
    pub fn beat(&self) -> u64 {
        self.beats.get()
    }

    /// Sends a command; the reactor thread carries commands out in the order sent.
    pub fn command(&self, command: ReactorCommand) {
        // The thread lives as long as the daemon.
        let _ = self.commands.send(command);
        let _ = self.poller.notify();
    }
}

/// A handshake in flight.
struct Flight {
    socket: Registered<TcpStream>,
    handshake: Handshake,
    until: Instant,
    source: SocketAddr,
}

struct Thread {
    poller: Arc<Poller>,
    plan: Plan,
    listeners: Listeners,
    /// The places where listening fails, as last reported.
    unopened: BTreeMap<SocketAddr, String>,
    watch: Option<Registered<Socket>>,
    flights: HashMap<usize, Flight>,
    next_key: usize,
    commands: Receiver<ReactorCommand>,
    deliver: Deliver,
    /// Shared with every event that was not looked at yet.
    offered: Arc<()>,
    refusals: Arc<Refusals>,
    beats: Arc<Counter>,
    owners: Owners,
}

impl Thread {
    fn run(mut self) {
        let mut events = Events::new();
        loop {
            events.clear();
            if let Err(error) = self.poller.wait(&mut events, self.next_deadline()) {
                limited!(Level::Error, ("poller", 0), "waiting for connections failed: {error}");
            }
            while let Ok(command) = self.commands.try_recv() {
                self.carry_out(command);
            }
            for event in events.iter() {
                match event.key {
                    WATCH => self.network_changed(),
                    key if key < FIRST_HANDSHAKE => self.accept(key),
                    key => self.go_on(key),
                }
            }
            self.expire(Instant::now());
            self.beats.add(1);
        }
    }

    fn network_changed(&mut self) {
        if let Some(watch) = &self.watch {
            let changes = watch.get().map(sys::changes).unwrap_or_default();
            if let Err(error) = watch.rearm(Event::readable(WATCH)) {
                limited!(Level::Error, ("watch", 0), "cannot watch for changes of the network: {error}");
            }
            if changes.addresses {
                (self.deliver)(ReactorEvent::Addresses, Arc::default());
            }
            if changes.paths {
                (self.deliver)(ReactorEvent::Paths, Arc::default());
            }
        }
    }

    fn next_deadline(&self) -> Option<Duration> {
        let flights = self.flights.values().map(|flight| flight.until);
        flights.chain(self.listeners.deadline()).min().map(|at| at.saturating_duration_since(Instant::now()))
    }

    fn carry_out(&mut self, command: ReactorCommand) {
        match command {
            ReactorCommand::Dial(command) => self.dial(&command),
            ReactorCommand::Cancel(attempt) => self.drop_attempt(attempt),
            ReactorCommand::HoldOff(peer, until) => {
                self.plan.held_off.retain(|_, until| Instant::now() < *until);
                self.plan.held_off.insert(peer, until);
            }
            ReactorCommand::Admit(admission, extension, keys) => {
                // A peer that a reload has removed begins afresh when it comes back.
                let allowed = |peer| admission.allowed.iter().any(|allowed| allowed.key == peer);
                self.plan.held_off.retain(|peer, _| allowed(*peer));
                self.plan.admission = admission;
                self.plan.extension = extension;
                self.plan.keys = keys;
            }
            ReactorCommand::Sites(sites) => {
                self.listeners.set_sites(&self.poller, &sites);
                self.tell_unopened();
            }
            ReactorCommand::Beat => {}
            ReactorCommand::Stop => {
                self.listeners.clear();
                self.flights.clear();
            }
        }
    }

    fn dial(&mut self, command: &Dial) {
        for class in Class::BOTH {
            let started = dial(command.to, command.from)
                .and_then(|stream| self.start(stream, Side::Callee(command.clone(), class), command.to));
            if let Err(error) = started {
                return self.dial_failed(command, class, &error.into(), CallVerdict::Unreachable, Vec::new());
            }
        }
    }

    fn dial_failed(
        &mut self,
        dial: &Dial,
        class: Class,
        failure: &Failure,
        verdict: CallVerdict,
        steps: Vec<String>,
    ) {
        let (peer, attempt) = (dial.peer, dial.attempt);
        self.drop_attempt(attempt);
        let errno = match failure {
            Failure::Io(error) => error.raw_os_error(),
            _ => None,
        };
        let why = format!("{} ({class} link): {failure}", dial.to);
        let failed = ReactorEvent::DialFailed { peer, attempt, class, why, errno, verdict, steps };
        (self.deliver)(failed, Arc::default());
    }

    fn drop_attempt(&mut self, attempt: AttemptId) {
        self.flights.retain(
            |_, flight| !matches!(&flight.handshake.side, Side::Callee(dial, _) if dial.attempt == attempt),
        );
    }

    fn start(&mut self, stream: TcpStream, side: Side, source: SocketAddr) -> io::Result<()> {
        let limit = match side {
            Side::Callee(..) => DIAL_LIMIT,
            Side::Kernel | Side::Caller(..) => HELLO_LIMIT,
        };
        // Packets are small and urgent; and the loss of a host that vanished while nothing is sent is noticed at
        // last.
        if !sys::enlarge_if_unix(&stream) {
            stream.set_nodelay(true)?;
        }
        SockRef::from(&stream).set_keepalive(true)?;
        let handshake = Handshake::new(side);
        let key = self.next_key;
        self.next_key += 1;
        let socket = Registered::new(&self.poller, stream, interest(key, &handshake))?;
        self.flights.insert(key, Flight { socket, handshake, until: Instant::now() + limit, source });
        Ok(())
    }

    fn accept(&mut self, key: usize) {
        // Many clients outside must not keep accepted ones waiting.
        for _ in 0..ACCEPT_TURN {
            let Some(listener) = self.listeners.get(key) else { return };
            let Some(accepted) = listener.socket.get().map(accept) else { return };
            match accepted {
                Ok((stream, source)) => {
                    let listener_is_peers = listener.kind.is_some();
                    let side = listener.kind.map_or(Side::Kernel, |kind| Side::Caller(kind, None));
                    if listener_is_peers {
                        self.heard_from(source.ip());
                    }
                    self.make_room();
                    let started =
                        stream.set_nonblocking(true).and_then(|()| self.start(stream, side, source));
                    if let Err(error) = started {
                        limited!(Level::Warn, ("accept", 1), "lost a call from {source}: {error}");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The caller has gone already.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    limited!(Level::Error, ("accept", 0), "cannot accept connections for now: {error}");
                    listener.paused = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
        self.rearm_listener(key);
    }

    /// Reports a peer that this side calls as alive: any call from its address shows that, even one that is refused.
    fn heard_from(&mut self, source: IpAddr) {
        let admission = &self.plan.admission;
        let there = source.to_canonical();
        for peer in admission.called().filter(|allowed| allowed.addr.to_canonical() == there) {
            (self.deliver)(ReactorEvent::PeerAlive(peer.key), Arc::default());
        }
    }

    fn rearm_listener(&mut self, key: usize) {
        if let Some(listener) = self.listeners.get(key) {
            listener.paused = None;
            if let Err(error) = listener.socket.rearm(Event::readable(key)) {
                limited!(Level::Error, ("accept", 2), "cannot wait for connections for now: {error}");
                listener.paused = Some(Instant::now() + ACCEPT_PAUSE);
            }
        }
    }

    /// Drops a handshake from outside if there are too many: one of an unknown client if there is any, and among
    /// these one of the address that has the most, the oldest of them.
    fn make_room(&mut self) {
        let flights = self.flights.iter();
        let outside = flights.filter(|(_, flight)| !matches!(flight.handshake.side, Side::Callee(..)));
        if outside.clone().count() < MAX_PENDING {
            return;
        }
        let mut shares: HashMap<IpAddr, usize> = HashMap::new();
        outside.clone().for_each(|(_, flight)| *shares.entry(flight.source.ip()).or_default() += 1);
        let rank = |&(&key, flight): &(&usize, &Flight)| {
            let source = flight.source.ip();
            let is_unknown = matches!(flight.handshake.side, Side::Caller(..))
                && !self.plan.admission.allowed.iter().any(|allowed| allowed.addr == source.to_canonical());
            (is_unknown, shares.get(&source).copied(), Reverse(key))
        };
        let key = outside.max_by_key(rank).map(|(&key, _)| key);
        if let Some(dropped) = key.and_then(|key| self.flights.remove(&key)) {
            self.refusals.too_many.add(1);
            let source = dropped.source;
            limited!(
                Level::Warn,
                ("refused", 0),
                "{MAX_PENDING} connections had not said a whole hello: closed one from {source}"
            );
        }
    }

    /// Goes on with the handshake whose socket is ready.
    fn go_on(&mut self, key: usize) {
        let Some(mut flight) = self.flights.remove(&key) else { return };
        let Some(stream) = flight.socket.get() else { return };
        match flight.handshake.step(stream, &self.plan) {
            Ok(Step::Wait) => match flight.socket.rearm(interest(key, &flight.handshake)) {
                Ok(()) => drop(self.flights.insert(key, flight)),
                Err(error) => self.fail(flight, error.into()),
            },
            Ok(Step::Kernel(class, device)) => self.hand_over(flight, Some((class, device))),
            Ok(Step::Ready) => self.hand_over(flight, None),
            Err(failure) => self.fail(flight, failure),
        }
    }

    fn hand_over(&mut self, flight: Flight, kernel: Option<(Class, Device)>) {
        let Flight { socket, handshake, source, .. } = flight;
        let compression = handshake.compression();
        let Some(stream) = socket.release() else { return };
        if let Err(error) = stream.set_nonblocking(false) {
            limited!(Level::Error, ("hand over", 0), "lost the connection with {source}: {error}");
            return;
        }
        let encryption = handshake.key_agreement.encryption;
        let codec = handshake.key_agreement.into_codec();
        let reactor_event = match (handshake.side, kernel) {
            (Side::Kernel, Some((class, device))) => {
                let uid = self.owners.owner(&stream).unwrap_or_else(|error| {
                    limited!(
                        Level::Error,
                        ("owner", 0),
                        "cannot find whose socket calls from {source}: {error}"
                    );
                    None
                });
                ReactorEvent::Kernel { class, uid, device, stream, source }
            }
            (Side::Caller(_, Some((admitted, class))), None) => ReactorEvent::Link {
                peer: admitted.peer,
                class,
                link: Connection { stream, codec },
                attempt: None,
                encryption,
                steps: Vec::new(),
                extension: handshake.extension,
                compression,
                source,
                expected: admitted.expected,
            },
            (Side::Callee(dial, class), None) => ReactorEvent::Link {
                peer: dial.peer,
                class,
                link: Connection { stream, codec },
                attempt: Some(dial.attempt),
                encryption,
                steps: handshake.steps,
                extension: handshake.extension,
                compression,
                source,
                expected: None,
            },
            _ => return,
        };
        if Arc::strong_count(&self.offered) > MAX_OFFERED {
            self.refusals.too_many.add(1);
            limited!(Level::Warn, ("refused", 1), "too many connections at once: closed one from {source}");
            return;
        }
        (self.deliver)(reactor_event, Arc::clone(&self.offered));
    }

    fn fail(&mut self, flight: Flight, failure: Failure) {
        let Flight { mut handshake, source, .. } = flight;
        let steps = std::mem::take(&mut handshake.steps);
        let (kind, counter) = match (&handshake.side, &failure) {
            (Side::Callee(dial, class), _) => {
                let verdict = handshake.verdict(&failure);
                return self.dial_failed(dial, *class, &failure, verdict, steps);
            }
            (_, Failure::Io(_)) => (2, &self.refusals.silent),
            (_, Failure::Malformed(_) | Failure::OtherId(..) | Failure::Refused(Refused::Ack)) => {
                (3, &self.refusals.malformed)
            }
            (_, Failure::HeldOff(..)) => (12, &self.refusals.held_off),
            (_, Failure::Keyless(_)) => (9, &self.refusals.keyless),
            (_, Failure::OtherKeys(_)) => (10, &self.refusals.other_keys),
            (_, Failure::Unproved(_)) => (11, &self.refusals.unproved),
            (_, Failure::Refused(Refused::UnknownId(_) | Refused::OwnId(_))) => (4, &self.refusals.unknown),
            (_, Failure::Refused(Refused::UnknownRunsite(..))) => (7, &self.refusals.unknown),
            (_, Failure::Refused(Refused::Address { .. })) => (5, &self.refusals.address),
            (_, Failure::Refused(Refused::Held(_))) => (13, &self.refusals.held),
            (_, Failure::Refused(Refused::NotOwner(_))) => (8, &self.refusals.direction),
            (_, Failure::Refused(Refused::Direction(_) | Refused::Scope)) => (6, &self.refusals.direction),
        };
        if matches!(&failure, Failure::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof)
            && handshake.progress().0 == 0
        {
            // A caller that gave its attempt up, or a client that checked whether the port is open, as `doctor` does.
            return debug!("{source} hung up without a word");
        }
        counter.add(1);
        if let Failure::Refused(Refused::Direction(peer)) = failure {
            debug!("{peer} called from {source}: this side calls it");
            return (self.deliver)(ReactorEvent::PeerAlive(peer), Arc::default());
        }
        if let Some(peer) = self.whose(&handshake.side, &failure, source) {
            self.refusals.note(peer, format!("from {source}: {failure}"));
        }
        let whom = match handshake.side {
            Side::Kernel => "kernel module's",
            Side::Caller(ListenerKind::Site(_), _) => "site",
            _ => "node",
        };
        limited!(
            Level::Warn,
            ("refused", kind),
            "refused a call from {source} at the {whom} port: {failure}"
        );
    }

    /// Returns the peer that was refused: the one that the handshake has determined, or else the one whose
    /// address the call came from.
    fn whose(&self, side: &Side, failure: &Failure, source: SocketAddr) -> Option<PeerKey> {
        let Side::Caller(kind, _) = side else { return None };
        if let Failure::Refused(
            Refused::Address { peer, .. } | Refused::NotOwner(peer) | Refused::Held(peer),
        )
        | Failure::HeldOff(peer, _) = failure
        {
            return Some(*peer);
        }
        let mut allowed = self.plan.admission.allowed.iter();
        let at_door = |key| {
            matches!(
                (key, kind),
                (PeerKey::Node(_), ListenerKind::Node) | (PeerKey::Site(..), ListenerKind::Site(_))
            )
        };
        let there = source.ip().to_canonical();
        allowed
            .find(|allowed| at_door(allowed.key) && allowed.addr.to_canonical() == there)
            .map(|allowed| allowed.key)
    }

    /// Gives up late handshakes, and lets a paused listener go on.
    fn expire(&mut self, now: Instant) {
        let late: Vec<usize> =
            self.flights.iter().filter(|(_, flight)| flight.until <= now).map(|(&key, _)| key).collect();
        for key in late {
            if let Some(flight) = self.flights.remove(&key) {
                let (had, of) = flight.handshake.progress();
                let text = if flight.handshake.wants_write() {
                    "no answer to the connection attempt".into()
                } else {
                    format!("no more than {had} of {of} bytes of the handshake came in time")
                };
                self.fail(flight, io::Error::new(io::ErrorKind::TimedOut, text).into());
            }
        }
        for key in self.listeners.rested(now) {
            self.rearm_listener(key);
        }
        self.listeners.retry(&self.poller, now);
        self.tell_unopened();
    }

    /// Reports the places where listening fails, when they have changed.
    fn tell_unopened(&mut self) {
        let unopened = self.listeners.unopened();
        if unopened != self.unopened {
            self.unopened.clone_from(&unopened);
            (self.deliver)(ReactorEvent::Unopened(unopened), Arc::default());
        }
    }
}

fn interest(key: usize, handshake: &Handshake) -> Event {
    if handshake.wants_write() { Event::writable(key) } else { Event::readable(key) }
}
