//! One session with a peer: two links, the budgets that bound their queues, and the heartbeat's bytes.
//!
//! Budgets belong to the session, so that nothing of an old session can be sent in the next one. A session decides
//! nothing: it reports to the core and is ended by it.

use std::io;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam::channel::Sender;
use log::Level;

use super::{Direction, PeerStatistics};
use crate::daemon::core::{EndCause, Event, QueueSight, SessionId};
use crate::daemon::link::{Closed, Connection, Pair, Piped, Reading, Run, Sink, TakesPipes};
use crate::daemon::queue::{Budget, Cost, DropCause, Look, Permit, Refusal};
use crate::limited;
use crate::sys::Counter;
use crate::wire::{Class, Device, Header, NodeId, PacketType, PeerKey, PeerView, SiteId};

/// Ceiling of each data queue in bytes: enough for the receive buffers in flight at full speed, and a second of a 40
/// Mbit/s line.
pub const DATA_CEILING: usize = 4 << 20;
/// Ceiling of each meta queue in bytes: some four thousand packets.
pub const META_CEILING: usize = 1 << 20;
/// Ceiling in bytes of the daemon's own packets queued for a peer: 64 pings, ACKs and views. A peer that sends pings
/// and reads nothing gets no more answers than that.
const OWN_CEILING: usize = 64 * 256;

/// Bytes that a data queue may hold for its next packets to come in a pipe: there are few pipes, and each may hold
/// a single packet.
const PIPED_CEILING: usize = 1 << 20;
/// Longest wait for a data queue to become that short. Shorter than copying takes while the queue moves, and too short
/// to hold up other peers where it does not: then the next packets are copied without a wait.
const PIPE_PATIENCE: Duration = Duration::from_millis(5);

/// The limits of a session's queues.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Ceiling of each data queue in bytes.
    pub data: usize,
    /// Ceiling of each meta queue in bytes.
    pub meta: usize,
    /// Longest time for which a full queue to the peer may hold up the kernel module.
    pub slow: Duration,
    /// Longest time for which a kernel module that does not read may hold up the peer's meta link, on which its pings
    /// come.
    pub meta_patience: Duration,
}

/// One session.
pub struct Session {
    /// The peer's key and statistics.
    pub statistics: Arc<PeerStatistics>,
    /// The id of the session.
    pub id: SessionId,
    pair: Pair,
    out: [Arc<Budget>; 2],
    inbound: [Arc<Budget>; 2],
    own: Arc<Budget>,
    slow: Duration,
    meta_patience: Duration,
    acks: AtomicU32,
    /// True if anything was read from the meta link since the last look.
    heard: AtomicBool,
    /// True if the meta link is not read, because the kernel module has to take something first.
    held_up: AtomicBool,
    born: Instant,
    /// The time of the last ping, in microseconds since `born`.
    pinged: Counter,
    /// Time from the last ping to the first ACK after it, in microseconds, 0 if there was none.
    rtt: AtomicU32,
    /// True if the peer takes views; `view` has its last one, and the time of that.
    exchanges_views: AtomicBool,
    exchanges_records: AtomicBool,
    /// True if the peer takes a last packet that says why the session ends, and may send one.
    exchanges_ends: AtomicBool,
    view: Mutex<Option<(PeerView, Instant)>>,
    data_dropped: AtomicBool,
    /// The local node's or site's id, as the peer's scope has it.
    local_id: u8,
    events: Sender<Event>,
}

impl Session {
    /// Starts the writing ends; the kernel module's packets may be queued from now on. `previous` is
    /// [`Session::inbound`] of the session before: packets of it that the kernel module has not read count against
    /// the ceiling.
    ///
    /// # Errors
    /// The system is out of threads.
    pub fn start(
        statistics: &Arc<PeerStatistics>,
        id: SessionId,
        links: [Connection; 2],
        (node, site): (NodeId, SiteId),
        limits: &Limits,
        events: &Sender<Event>,
        previous: Option<&[Arc<Budget>; 2]>,
    ) -> io::Result<Arc<Self>> {
        let peer = statistics.key;
        let lost = {
            let events = events.clone();
            Arc::new(move |class, closed: Closed| {
                let cause = match closed {
                    Closed::PeersKernel => EndCause::PeersKernel,
                    Closed::Violation(refusal) => EndCause::Violation(class, refusal.to_string()),
                    Closed::Codec(error) => EndCause::Violation(class, error.to_string()),
                    other => EndCause::Link(class, other.to_string(), other.errno()),
                };
                // The daemon ends if nobody takes events any more.
                let _ = events.send(Event::SessionLost { peer, session: id, cause });
            })
        };
        let budget = |direction, class| {
            let ceiling = match class {
                Class::Data => limits.data,
                Class::Meta => limits.meta,
            };
            Budget::new(ceiling, Arc::clone(statistics.counters(direction, class)))
        };
        let inbound = match previous {
            None => Class::BOTH.map(|class| budget(Direction::In, class)),
            Some([data, meta]) => [(data, Class::Data), (meta, Class::Meta)].map(|(budget, class)| {
                budget.successor(Arc::clone(statistics.counters(Direction::In, class)))
            }),
        };
        Ok(Arc::new(Session {
            statistics: Arc::clone(statistics),
            id,
            pair: Pair::start(&statistics.thread_name(), links, lost)?,
            out: Class::BOTH.map(|class| budget(Direction::Out, class)),
            inbound,
            own: Budget::new(OWN_CEILING, Arc::default()),
            slow: limits.slow,
            meta_patience: limits.meta_patience,
            acks: AtomicU32::new(0),
            heard: AtomicBool::new(false),
            held_up: AtomicBool::new(false),
            born: Instant::now(),
            pinged: Counter::default(),
            rtt: AtomicU32::new(0),
            exchanges_views: AtomicBool::new(false),
            exchanges_records: AtomicBool::new(false),
            exchanges_ends: AtomicBool::new(false),
            view: Mutex::default(),
            data_dropped: AtomicBool::new(false),
            local_id: match peer {
                PeerKey::Node(_) => node.get(),
                PeerKey::Site(..) => site.get(),
            },
            events: events.clone(),
        }))
    }

    /// Starts to read both links.
    ///
    /// # Errors
    /// As [`Session::start`]; the session must be ended then.
    pub fn open<S: Sink + Send + 'static, G: Clone + Send + 'static>(
        &self,
        reading: Reading,
        guard: &G,
        sink: impl Fn(Class) -> S,
    ) -> io::Result<()> {
        self.pair.open(&self.statistics.thread_name(), Some(self.statistics.key), reading, guard, sink)
    }

    /// Returns true if data packets to the peer go as they are, without a codec.
    pub fn is_plain(&self) -> bool {
        self.pair.sender(Class::Data).is_plain()
    }

    /// Answers whether data packets in this direction may be queued in a pipe, if need be after a short wait.
    pub fn takes_pipes(&self, direction: Direction) -> TakesPipes {
        let budgets = match direction {
            Direction::Out => &self.out,
            Direction::In => &self.inbound,
        };
        let short = self.budget(budgets, Class::Data);
        match short.wait_for_at_most(PIPED_CEILING, Instant::now() + PIPE_PATIENCE) {
            true => TakesPipes::Yes,
            false => TakesPipes::Later,
        }
    }

    /// Queues packets for the peer, or returns [`Put::Full`]. The counters have the packets, taken or not. The bytes are
    /// in `piped`, if there is one.
    pub fn try_put(&self, run: &Run, piped: &mut Option<Piped>) -> Put {
        self.settle(run, piped, self.budget(&self.out, run.class).try_acquire(run.cost))
    }

    /// Queues packets for the peer, waiting while its queue is full, as it has been since `since`. A peer that holds
    /// up the others for `slowtimeout` in any ten of them, or takes next to nothing for that time, loses its session.
    /// `others_idle` returns true if another peer could take more than it gets.
    pub fn put(&self, run: &Run, piped: &mut Option<Piped>, since: Instant, others_idle: impl Fn() -> bool) {
        let waits = self.statistics.hold_ups(run.class);
        let taken = self.budget(&self.out, run.class).acquire_while(run.cost, since, |look| {
            let mut waits = waits.lock().unwrap_or_else(PoisonError::into_inner);
            waits.add(look, self.slow, &others_idle)
        });
        self.settle(run, piped, taken);
    }

    /// Returns true if the peer has taken all packets of this class that were queued for it.
    pub fn is_idle(&self, class: Class) -> bool {
        self.budget(&self.out, class).charged() == 0
    }

    fn settle(&self, run: &Run, piped: &mut Option<Piped>, held: Result<Permit, Refusal>) -> Put {
        match held {
            Ok(permit) => {
                let [out, _] = &self.statistics.zero_copied;
                out.add(piped.as_ref().map_or(0, |_| run.cost.bytes as u64));
                self.pair.sender(run.class).put_run(run.bytes.clone(), piped.take(), permit);
            }
            Err(Refusal::Full) => return Put::Full,
            Err(refusal) => {
                if refusal == Refusal::Stuck {
                    self.condemn(EndCause::Slow);
                }
                let counters = self.statistics.counters(Direction::Out, run.class);
                counters.drop_at_once(run.cost.packets, run.cost.bytes, DropCause::SessionEnded);
            }
        }
        Put::Settled
    }

    /// Takes nothing more from the kernel module, and asks the core to end the session. Closing comes first: after a
    /// packet that was lost, no other may get through.
    fn condemn(&self, cause: EndCause) {
        self.close_budgets();
        let _ = self.events.send(Event::SessionLost { peer: self.statistics.key, session: self.id, cause });
    }

    /// Waits until the peer's packets fit into the budget, and gives them to `deliver`. Data that comes after a hole
    /// is dropped: the session is about to be ended.
    ///
    /// # Errors
    /// The session has ended: [`Closed::Ended`].
    pub fn take(&self, run: Run, deliver: impl FnOnce(Run, Permit)) -> Result<(), Closed> {
        if run.class == Class::Data && self.data_dropped.load(Relaxed) {
            self.drop_inbound(&run, DropCause::SessionEnded);
            return Ok(());
        }
        // A data link may wait without a limit. The meta link brings pings and their answers, too: a kernel module
        // that has stopped reading must not make healthy peers look dead.
        let budget = self.budget(&self.inbound, run.class);
        let mut taken = budget.try_acquire(run.cost);
        if matches!(taken, Err(Refusal::Full)) {
            taken = match run.class {
                Class::Data => budget.acquire(run.cost),
                Class::Meta => self.wait_for_kernel(run.cost),
            };
        }
        match taken {
            Ok(permit) => {
                deliver(run, permit);
                Ok(())
            }
            Err(Refusal::Stuck) => {
                let peer = self.statistics.key;
                limited!(
                    Level::Warn,
                    ("kernel stalled", peer.code()),
                    "dropped meta packets from {peer}: the kernel module does not read its meta link"
                );
                self.drop_inbound(&run, DropCause::KernelStalled);
                Ok(())
            }
            Err(_) => {
                self.drop_inbound(&run, DropCause::SessionEnded);
                Err(Closed::Ended)
            }
        }
    }

    /// Waits until meta packets fit into the budget, as long as there is patience with the kernel module.
    fn wait_for_kernel(&self, cost: Cost) -> Result<Permit, Refusal> {
        self.held_up.store(true, Relaxed);
        let patience = self.statistics.meta_patience();
        let look = |look: Look| {
            let waited = look.now.saturating_duration_since(look.from);
            let sight = QueueSight { waited, moved: look.moved, ceiling: look.ceiling };
            patience.lock().unwrap_or_else(PoisonError::into_inner).look(sight, self.meta_patience)
        };
        let [_, budget] = &self.inbound;
        let taken = budget.acquire_while(cost, Instant::now(), look);
        self.held_up.store(false, Relaxed);
        taken
    }

    /// Drops and counts packets from the peer.
    pub fn drop_inbound(&self, run: &Run, cause: DropCause) {
        let counters = self.statistics.counters(Direction::In, run.class);
        counters.drop_at_once(run.cost.packets, run.cost.bytes, cause);
        // A session with a hole must not be shown to the next kernel module as unbroken.
        if cause == DropCause::NoKernel && run.class == Class::Data && !self.data_dropped.swap(true, Relaxed)
        {
            let _ = self.events.send(Event::DataDropped { peer: self.statistics.key, session: self.id });
        }
    }

    /// Sends a ping.
    pub fn ping(&self) {
        let (kind, node_type) = match self.statistics.key {
            PeerKey::Node(_) => (PacketType::NC_PING, 0),
            PeerKey::Site(..) => (PacketType::SC_PING, 1),
        };
        self.pinged.set(self.born.elapsed().as_micros() as u64);
        self.put_own(Class::Meta, Header { node_type, ..Header::new(kind) }, &[]);
    }

    /// Takes a heartbeat packet from the peer: answers a ping, counts an ACK.
    pub fn heartbeat(&self, header: &Header) {
        if header.kind.is_ping() {
            let kind = match self.statistics.key {
                PeerKey::Node(_) => PacketType::NC_PING_ACK,
                PeerKey::Site(..) => PacketType::SC_PING_ACK,
            };
            self.put_own(Class::Meta, Header::new(kind), &[]);
        } else {
            self.acks.fetch_add(1, Relaxed);
            let pinged = Duration::from_micros(self.pinged.get());
            let rtt = self.born.elapsed().saturating_sub(pinged).as_micros();
            let rtt = u32::try_from(rtt).unwrap_or(u32::MAX);
            self.rtt.store(rtt, Relaxed);
            self.statistics.ping_times.add(rtt.into());
        }
    }

    /// Allows views in both directions, with a record behind them if the peer takes that, too.
    pub fn exchange_views(&self, with_records: bool) {
        self.exchanges_records.store(with_records, Relaxed);
        self.exchanges_views.store(true, Relaxed);
    }

    /// Returns true if views are exchanged with the peer.
    pub fn exchanges_views(&self) -> bool {
        self.exchanges_views.load(Relaxed)
    }

    /// Returns true if views have a record behind them.
    pub fn exchanges_records(&self) -> bool {
        self.exchanges_records.load(Relaxed)
    }

    /// Sends the peer a view of this side's connections, unless the peer reads nothing.
    pub fn tell_view(&self, view: &PeerView) {
        let (node_type, device) = match self.statistics.key {
            PeerKey::Node(_) => (0, Device::All),
            PeerKey::Site(resource, _) => (1, Device::One(resource)),
        };
        let payload = view.encode();
        let len = payload.len() as u32;
        let header = Header { node_type, device, len, ..Header::new(PacketType::HD_VIEW) };
        self.put_own(Class::Meta, header, &payload);
    }

    /// Allows a last packet that says why the session ends: the peer's record supports it.
    pub fn exchange_ends(&self) {
        self.exchanges_ends.store(true, Relaxed);
    }

    /// Returns true if the peer may send such a last packet.
    pub fn exchanges_ends(&self) -> bool {
        self.exchanges_ends.load(Relaxed)
    }

    /// Sends the peer on both links, as far as it takes them at once, that this side's kernel module ends the
    /// session: nothing is wrong with the peer or the links.
    pub fn tell_end(&self) {
        if self.exchanges_ends() {
            Class::BOTH.iter().for_each(|&class| self.put_own(class, Header::new(PacketType::HD_END), &[]));
        }
    }

    /// Stores the peer's view.
    pub fn hear_view(&self, view: PeerView) {
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = Some((view, Instant::now()));
    }

    /// Returns the peer's last view of its connections, and the time at which that came.
    pub fn view(&self) -> Option<(PeerView, Instant)> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn put_own(&self, class: Class, header: Header, payload: &[u8]) {
        let header =
            Header { node_from: self.local_id.into(), node_to: self.statistics.key.mask(), ..header }
                .encode();
        let packet = Bytes::from([&header[..], payload].concat());
        if let Ok(permit) = self.own.try_acquire(Cost::alone(1, packet.len())) {
            self.pair.sender(class).put_first(packet, permit);
        }
    }

    /// Returns the time from the last ping to the answer after it, once there was one.
    pub fn rtt(&self) -> Option<Duration> {
        let rtt = self.rtt.load(Relaxed);
        (rtt > 0).then(|| Duration::from_micros(rtt.into()))
    }

    /// Returns the memory that waits to be written to the peer, in bytes.
    pub fn queued_bytes(&self) -> usize {
        self.out.iter().map(|budget| budget.charged()).sum()
    }

    /// Records that bytes came in on the meta link.
    pub fn hear(&self) {
        // Written once for each look: the cache line stays with the reading thread.
        if !self.heard.load(Relaxed) {
            self.heard.store(true, Relaxed);
        }
    }

    /// Returns true if the peer's meta link brought anything since the last call, or is not read because the kernel
    /// module holds it up.
    pub fn take_life(&self) -> bool {
        self.heard.swap(false, Relaxed) || self.held_up.load(Relaxed)
    }

    /// Returns the number of ping ACKs that came in since the last call.
    pub fn take_acks(&self) -> u32 {
        self.acks.swap(0, Relaxed)
    }

    /// Closes both links and drops packets queued for the peer. Packets from the peer are still delivered, until
    /// [`Session::inbound`] is made void.
    pub fn end(&self) {
        self.close_budgets();
        self.pair.close();
    }

    fn close_budgets(&self) {
        for budget in self.out.iter().chain(&self.inbound) {
            budget.close(DropCause::SessionEnded);
        }
    }

    /// Returns the budgets of packets from the peer. They outlive the session with the packets that the kernel module
    /// has not read; when the next session begins, they have to be made void.
    pub fn inbound(&self) -> &[Arc<Budget>; 2] {
        &self.inbound
    }

    /// Returns the budgets of both directions, to wait for at an orderly end.
    pub fn budgets(&self) -> impl Iterator<Item = &Arc<Budget>> {
        self.out.iter().chain(&self.inbound)
    }

    /// Returns the socket of one link.
    pub fn stream(&self, class: Class) -> &TcpStream {
        self.pair.sender(class).stream()
    }

    /// Ends the sending direction towards the peer.
    pub fn finish(&self) {
        self.pair.finish();
    }

    fn budget<'a>(&self, budgets: &'a [Arc<Budget>; 2], class: Class) -> &'a Arc<Budget> {
        let [data, meta] = budgets;
        match class {
            Class::Data => data,
            Class::Meta => meta,
        }
    }
}

/// The result of queuing packets for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// Queued, or dropped and counted.
    Settled,
    /// The queue is full: [`Session::put`] waits for it.
    Full,
}
