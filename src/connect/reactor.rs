//! The reactor thread: accepts, calls, and deadlines of handshakes.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use log::{Level, debug, warn};
use polling::{Event, Events, Poller};
use socket2::{SockRef, Socket};

use super::handshake::{Failure, Handshake, Party, Step};
use super::listener::{self, Listener};
use super::socket::dial;
use super::{DIAL_LIMIT, Deliver, Dial, HELLO_LIMIT, MAX_OFFERED, MAX_PENDING, Offer, Order, Plan, Refusals};
use crate::core::{AttemptId, Door, PeerKey, Refused};
use crate::limited;
use crate::link::Connection;
use crate::queue::Counter;
use crate::sys::{self, Registered};
use crate::wire::Class;

/// Connections accepted before handshakes that came in go on.
const ACCEPT_TURN: usize = 32;
/// How long no connection is accepted after the system had no descriptor for one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Keys in the poller: the address watch, the listeners in the order of their making, then handshakes.
const WATCH: usize = 0;
pub(super) const FIRST_LISTENER: usize = 1;
pub(super) const FIRST_HANDSHAKE: usize = 1000;

/// The way to give orders to the reactor thread.
pub struct Reactor {
    orders: Sender<Order>,
    poller: Arc<Poller>,
    /// What was turned away.
    pub refusals: Arc<Refusals>,
    beats: Arc<Counter>,
}

impl Reactor {
    /// Binds the listeners and starts the thread.
    ///
    /// # Errors
    /// A sentence for the operator: which address cannot be bound, and what may help.
    pub fn start(plan: Plan, deliver: Deliver) -> Result<Self, String> {
        let system = |error: io::Error| format!("cannot start the reactor: {error}");
        let poller = Arc::new(Poller::new().map_err(system)?);
        let refusals = Arc::new(Refusals::default());
        let beats = Arc::new(Counter::default());
        let mut listeners = Vec::new();
        listener::open(&poller, &mut listeners, plan.server, None)?;
        listener::open(&poller, &mut listeners, plan.node, Some(Door::Node))?;
        for &addr in &plan.sites {
            listener::open(&poller, &mut listeners, addr, Some(Door::Site(addr.port())))?;
        }
        // Without the watch, ownership is still looked at with every tick.
        let watch = sys::watch_addresses()
            .and_then(|watch| Registered::new(&poller, watch, Event::readable(WATCH)))
            .inspect_err(|error| warn!("cannot watch for changes of addresses: {error}"))
            .ok();
        let (sender, orders) = unbounded();
        let thread = Thread {
            poller: Arc::clone(&poller),
            plan,
            listeners,
            watch,
            flights: HashMap::new(),
            next_key: FIRST_HANDSHAKE,
            orders,
            deliver,
            offered: Arc::new(()),
            refusals: Arc::clone(&refusals),
            beats: Arc::clone(&beats),
        };
        sys::spawn("reactor", move || thread.run()).map_err(system)?;
        Ok(Reactor { orders: sender, poller, refusals, beats })
    }

    /// How often the thread has looked at its sockets and orders.
    pub fn beat(&self) -> u64 {
        self.beats.get()
    }

    /// Listens for other sites at these wildcard addresses, and at no others. Nothing has changed where that fails.
    ///
    /// # Errors
    /// A sentence for the operator: which address cannot be bound, and what may help.
    pub fn listen_for_sites(&self, sites: Vec<SocketAddr>) -> Result<(), String> {
        let (reply, answer) = bounded(1);
        self.order(Order::Sites(sites, reply));
        // Its thread never waits for anybody.
        answer.recv().unwrap_or_else(|_| Err("the reactor has ended".into()))
    }

    /// Gives an order; it is carried out by the reactor thread, in the order given.
    pub fn order(&self, order: Order) {
        // The thread lives as long as the daemon.
        let _ = self.orders.send(order);
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
    listeners: Vec<Listener>,
    watch: Option<Registered<Socket>>,
    flights: HashMap<usize, Flight>,
    next_key: usize,
    orders: Receiver<Order>,
    deliver: Deliver,
    /// Shared with every offer that was not looked at yet.
    offered: Arc<()>,
    refusals: Arc<Refusals>,
    beats: Arc<Counter>,
}

impl Thread {
    fn run(mut self) {
        let mut events = Events::new();
        loop {
            events.clear();
            if let Err(error) = self.poller.wait(&mut events, self.next_deadline()) {
                limited!(Level::Error, ("poller", 0), "waiting for connections failed: {error}");
            }
            while let Ok(order) = self.orders.try_recv() {
                self.obey(order);
            }
            for event in events.iter() {
                match event.key {
                    WATCH => self.addresses_changed(),
                    key if key < FIRST_HANDSHAKE => self.accept(key),
                    key => self.go_on(key),
                }
            }
            self.expire(Instant::now());
            self.beats.add(1);
        }
    }

    fn addresses_changed(&mut self) {
        if let Some(watch) = &self.watch {
            // What changed is looked up: here it only matters that something did.
            if let Some(socket) = watch.get() {
                while matches!(socket.recv(&mut [MaybeUninit::uninit(); 4096]), Ok(1..)) {}
            }
            if watch.rearm(Event::readable(WATCH)).is_ok() {
                (self.deliver)(Offer::Addresses, Arc::default());
            }
        }
    }

    fn next_deadline(&self) -> Option<Duration> {
        let flights = self.flights.values().map(|flight| flight.until);
        let paused = self.listeners.iter().filter_map(|listener| listener.paused);
        flights.chain(paused).min().map(|at| at.saturating_duration_since(Instant::now()))
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Dial(order) => self.dial(&order),
            Order::Cancel(attempt) => self.drop_attempt(attempt),
            Order::Admit(admission, extension, keys) => {
                self.plan.admission = admission;
                self.plan.extension = extension;
                self.plan.keys = keys;
            }
            // Whoever asked waits for the answer.
            Order::Sites(sites, reply) => {
                drop(reply.send(listener::set_sites(&self.poller, &mut self.listeners, &sites)));
            }
            Order::Beat => {}
            Order::Stop => {
                self.listeners.clear();
                self.flights.clear();
            }
        }
    }

    fn dial(&mut self, order: &Dial) {
        for class in Class::BOTH {
            let started = dial(order.to, order.from)
                .and_then(|stream| self.start(stream, Party::Callee(order.clone(), class), order.to));
            if let Err(error) = started {
                return self.dial_failed(order, class, &error.into(), "unreachable", Vec::new());
            }
        }
    }

    fn dial_failed(
        &mut self,
        dial: &Dial,
        class: Class,
        failure: &Failure,
        verdict: &'static str,
        steps: Vec<String>,
    ) {
        let (peer, attempt) = (dial.peer, dial.attempt);
        self.drop_attempt(attempt);
        let errno = match failure {
            Failure::Io(error) => error.raw_os_error(),
            _ => None,
        };
        let why = format!("{} ({class} link): {failure}", dial.to);
        let failed = Offer::DialFailed { peer, attempt, class, why, errno, verdict, steps };
        (self.deliver)(failed, Arc::default());
    }

    fn drop_attempt(&mut self, attempt: AttemptId) {
        self.flights.retain(
            |_, flight| !matches!(&flight.handshake.party, Party::Callee(dial, _) if dial.attempt == attempt),
        );
    }

    fn start(&mut self, stream: TcpStream, party: Party, source: SocketAddr) -> io::Result<()> {
        let limit = match party {
            Party::Callee(..) => DIAL_LIMIT,
            Party::Kernel | Party::Caller(..) => HELLO_LIMIT,
        };
        // Packets are small and urgent; and a host that vanished while nothing is sent is noticed some day.
        stream.set_nodelay(true)?;
        SockRef::from(&stream).set_keepalive(true)?;
        let handshake = Handshake::new(party);
        let key = self.next_key;
        self.next_key += 1;
        let socket = Registered::new(&self.poller, stream, interest(key, &handshake))?;
        self.flights.insert(key, Flight { socket, handshake, until: Instant::now() + limit, source });
        Ok(())
    }

    fn accept(&mut self, key: usize) {
        // A crowd outside must not keep those waiting who have come in.
        for _ in 0..ACCEPT_TURN {
            let Some(listener) = self.listeners.iter_mut().find(|listener| listener.key == key) else {
                return;
            };
            let Some(accepted) = listener.socket.get().map(TcpListener::accept) else { return };
            match accepted {
                Ok((stream, source)) => {
                    let party = listener.door.map_or(Party::Kernel, |door| Party::Caller(door, None));
                    self.make_room();
                    let started =
                        stream.set_nonblocking(true).and_then(|()| self.start(stream, party, source));
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

    fn rearm_listener(&mut self, key: usize) {
        if let Some(listener) = self.listeners.iter_mut().find(|listener| listener.key == key) {
            listener.paused = None;
            if let Err(error) = listener.socket.rearm(Event::readable(key)) {
                limited!(Level::Error, ("accept", 2), "cannot wait for connections for now: {error}");
                listener.paused = Some(Instant::now() + ACCEPT_PAUSE);
            }
        }
    }

    /// Drops a handshake from outside if there are too many: one of a stranger's if there is any, one of the
    /// address that has the most, the oldest of these.
    fn make_room(&mut self) {
        let flights = self.flights.iter();
        let outside = flights.filter(|(_, flight)| !matches!(flight.handshake.party, Party::Callee(..)));
        if outside.clone().count() < MAX_PENDING {
            return;
        }
        let mut shares: HashMap<IpAddr, usize> = HashMap::new();
        outside.clone().for_each(|(_, flight)| *shares.entry(flight.source.ip()).or_default() += 1);
        let rank = |&(&key, flight): &(&usize, &Flight)| {
            let source = flight.source.ip();
            let stranger = matches!(flight.handshake.party, Party::Caller(..))
                && !self.plan.admission.known.iter().any(|known| known.addr == source.to_canonical());
            (stranger, shares.get(&source).copied(), Reverse(key))
        };
        let key = outside.max_by_key(rank).map(|(&key, _)| key);
        if let Some(dropped) = key.and_then(|key| self.flights.remove(&key)) {
            self.refusals.crowd.add(1);
            let source = dropped.source;
            limited!(
                Level::Warn,
                ("refused", 0),
                "{MAX_PENDING} connections had not said a whole hello: closed one from {source}"
            );
        }
    }

    /// Something happened on the socket of a handshake.
    fn go_on(&mut self, key: usize) {
        let Some(mut flight) = self.flights.remove(&key) else { return };
        let Some(stream) = flight.socket.get() else { return };
        match flight.handshake.step(stream, &self.plan) {
            Ok(Step::Wait) => match flight.socket.rearm(interest(key, &flight.handshake)) {
                Ok(()) => drop(self.flights.insert(key, flight)),
                Err(error) => self.fail(flight, error.into()),
            },
            Ok(Step::Kernel(class, dev_id)) => self.hand_over(flight, Some((class, dev_id))),
            Ok(Step::Ready) => self.hand_over(flight, None),
            Err(failure) => self.fail(flight, failure),
        }
    }

    fn hand_over(&mut self, flight: Flight, kernel: Option<(Class, u8)>) {
        let Flight { socket, handshake, source, .. } = flight;
        let compression = handshake.compression();
        let Some(stream) = socket.release() else { return };
        if let Err(error) = stream.set_nonblocking(false) {
            limited!(Level::Error, ("hand over", 0), "lost the connection with {source}: {error}");
            return;
        }
        let encryption = handshake.sealing.encryption;
        let coat = handshake.sealing.into_coat();
        let offer = match (handshake.party, kernel) {
            (Party::Kernel, Some((class, dev_id))) => Offer::Kernel { class, dev_id, stream, source },
            (Party::Caller(_, Some((admitted, class))), None) => Offer::Link {
                peer: admitted.peer,
                class,
                link: Connection { stream, coat },
                attempt: None,
                encryption,
                steps: Vec::new(),
                extension: handshake.extension,
                compression,
                source,
                expected: admitted.expected,
            },
            (Party::Callee(dial, class), None) => Offer::Link {
                peer: dial.peer,
                class,
                link: Connection { stream, coat },
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
            self.refusals.crowd.add(1);
            limited!(Level::Warn, ("refused", 1), "too many connections at once: closed one from {source}");
            return;
        }
        (self.deliver)(offer, Arc::clone(&self.offered));
    }

    fn fail(&mut self, flight: Flight, failure: Failure) {
        let Flight { mut handshake, source, .. } = flight;
        let steps = std::mem::take(&mut handshake.steps);
        let (kind, counter) = match (&handshake.party, &failure) {
            (Party::Callee(dial, class), _) => {
                let verdict = handshake.verdict(&failure);
                return self.dial_failed(dial, *class, &failure, verdict, steps);
            }
            (_, Failure::Io(_)) => (2, &self.refusals.silent),
            (_, Failure::Malformed(_) | Failure::OtherId(..) | Failure::Refused(Refused::Ack)) => {
                (3, &self.refusals.malformed)
            }
            (_, Failure::Keyless(_)) => (9, &self.refusals.keyless),
            (_, Failure::OtherKeys(_)) => (10, &self.refusals.other_keys),
            (_, Failure::Unproved(_)) => (11, &self.refusals.unproved),
            (_, Failure::Refused(Refused::UnknownId(_) | Refused::OwnId(_))) => (4, &self.refusals.unknown),
            (_, Failure::Refused(Refused::UnknownRunsite(..))) => (7, &self.refusals.unknown),
            (_, Failure::Refused(Refused::Address { .. })) => (5, &self.refusals.address),
            (_, Failure::Refused(Refused::NotOwner(_))) => (8, &self.refusals.direction),
            (_, Failure::Refused(Refused::Direction(_) | Refused::Scope)) => (6, &self.refusals.direction),
        };
        counter.add(1);
        if matches!(&failure, Failure::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof)
            && handshake.progress().0 == 0
        {
            // A caller that gave its attempt up, or somebody who looked whether the port is open.
            return debug!("{source} hung up without a word");
        }
        if let Failure::Refused(Refused::Direction(peer)) = failure {
            debug!("{peer} called from {source}: this side calls it");
            return (self.deliver)(Offer::Knock(peer), Arc::default());
        }
        if let Some(peer) = self.whose(&handshake.party, &failure, source) {
            self.refusals.note(peer, format!("from {source}: {failure}"));
        }
        let whom = match handshake.party {
            Party::Kernel => "kernel module's",
            Party::Caller(Door::Site(_), _) => "site",
            _ => "node",
        };
        limited!(
            Level::Warn,
            ("refused", kind),
            "refused a call from {source} at the {whom} port: {failure}"
        );
    }

    /// The peer that was turned away: the one it was told from others to be, or else the one whose address it
    /// called from.
    fn whose(&self, party: &Party, failure: &Failure, source: SocketAddr) -> Option<PeerKey> {
        let Party::Caller(door, _) = party else { return None };
        if let Failure::Refused(Refused::Address { peer, .. } | Refused::NotOwner(peer)) = failure {
            return Some(*peer);
        }
        let mut known = self.plan.admission.known.iter();
        let at_door =
            |key| matches!((key, door), (PeerKey::Node(_), Door::Node) | (PeerKey::Site(..), Door::Site(_)));
        let there = source.ip().to_canonical();
        known.find(|known| at_door(known.key) && known.addr.to_canonical() == there).map(|known| known.key)
    }

    /// Gives up what is late, and lets a paused listener go on.
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
        let paused = self.listeners.iter().filter(|listener| listener.paused.is_some_and(|at| at <= now));
        for key in paused.map(|listener| listener.key).collect::<Vec<_>>() {
            self.rearm_listener(key);
        }
    }
}

fn interest(key: usize, handshake: &Handshake) -> Event {
    if handshake.wants_write() { Event::writable(key) } else { Event::readable(key) }
}
