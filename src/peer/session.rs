//! One session with a peer: two links, the accounts that bound their queues, and the heartbeat's bytes.
//!
//! Accounts belong to the session, so that nothing of an old session can be sent in the next one. A session
//! decides nothing: it reports to the core and is ended by it.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam::channel::Sender;
use log::Level;

use super::{Direction, Record};
use crate::core::{EndCause, Event, PeerKey, SessionId};
use crate::limited;
use crate::link::{Closed, Connection, Pair, Run, Sink};
use crate::queue::{Account, Counter, DropCause, Load, Refusal};
use crate::wire::{ALL_DEVICES, Class, Header, NodeId, PacketType, PeerView, SiteId, VIEW_LEN};

/// Ceiling of each data queue: enough for the receive buffers in flight at full speed, and a second of a
/// 40 Mbit/s line.
pub const DATA_CEILING: usize = 4 << 20;
/// Ceiling of each meta queue: some four thousand packets.
pub const META_CEILING: usize = 1 << 20;
/// Ceiling of what the daemon itself may have queued for a peer: room for 64 pings, ACKs and views. A peer that
/// sends pings and reads nothing gets no more answers than that.
const OWN_CEILING: usize = 64 * 256;

/// What bounds a session's queues.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Ceiling of each data queue in bytes.
    pub data: usize,
    /// Ceiling of each meta queue in bytes.
    pub meta: usize,
    /// How long a full queue to the peer may hold up the kernel module.
    pub slow: Duration,
    /// How long a kernel module that does not read may hold up the peer's meta link, on which its pings come.
    pub meta_patience: Duration,
}

/// One session.
pub struct Session {
    /// The peer.
    pub record: Arc<Record>,
    /// Which session.
    pub id: SessionId,
    pair: Pair,
    out: [Arc<Account>; 2],
    inbound: [Arc<Account>; 2],
    own: Arc<Account>,
    slow: Duration,
    meta_patience: Duration,
    acks: AtomicU32,
    born: Instant,
    /// When the last ping was sent, in microseconds since `born`.
    pinged: Counter,
    /// From the last ping to the first ACK after it, in microseconds, 0 if there was none.
    rtt: AtomicU32,
    /// Whether the peer takes views; then what it told last, and when.
    exchanges_views: AtomicBool,
    view: Mutex<Option<(PeerView, Instant)>>,
    data_dropped: AtomicBool,
    /// The local node's or site's id, as the peer's scope has it.
    local_id: u8,
    events: Sender<Event>,
}

impl Session {
    /// Starts the writing ends; the kernel module's packets may be given to it from now on. `previous` is
    /// [`Session::inbound`] of the session before: what the kernel module has not read of that takes room.
    ///
    /// # Errors
    /// The system has no room for another thread.
    pub fn start(
        record: &Arc<Record>,
        id: SessionId,
        links: [Connection; 2],
        (node, site): (NodeId, SiteId),
        limits: &Limits,
        events: &Sender<Event>,
        previous: Option<&[Arc<Account>; 2]>,
    ) -> io::Result<Arc<Self>> {
        let peer = record.key;
        let lost = {
            let events = events.clone();
            Arc::new(move |class, closed: Closed| {
                let cause = match closed {
                    Closed::Violation(refusal) => EndCause::Violation(class, refusal.to_string()),
                    Closed::Coat(error) => EndCause::Violation(class, error.to_string()),
                    other => EndCause::Link(class, other.to_string(), other.errno()),
                };
                // The daemon ends if nobody takes events any more.
                let _ = events.send(Event::SessionLost { peer, session: id, cause });
            })
        };
        let account = |direction, class| {
            let ceiling = match class {
                Class::Data => limits.data,
                Class::Meta => limits.meta,
            };
            Account::new(ceiling, Arc::clone(record.books(direction, class)))
        };
        let inbound = match previous {
            None => Class::BOTH.map(|class| account(Direction::In, class)),
            Some([data, meta]) => [(data, Class::Data), (meta, Class::Meta)]
                .map(|(account, class)| account.successor(Arc::clone(record.books(Direction::In, class)))),
        };
        Ok(Arc::new(Session {
            record: Arc::clone(record),
            id,
            pair: Pair::start(&record.thread_name(), links, lost)?,
            out: Class::BOTH.map(|class| account(Direction::Out, class)),
            inbound,
            own: Account::new(OWN_CEILING, Arc::default()),
            slow: limits.slow,
            meta_patience: limits.meta_patience,
            acks: AtomicU32::new(0),
            born: Instant::now(),
            pinged: Counter::default(),
            rtt: AtomicU32::new(0),
            exchanges_views: AtomicBool::new(false),
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
        max_packet: u32,
        guard: &G,
        sink: impl Fn(Class) -> S,
    ) -> io::Result<()> {
        let title = self.record.key.to_string();
        self.pair.open(&self.record.thread_name(), &title, max_packet, guard, sink)
    }

    /// Queues packets for the peer, or says that its queue is full. Whether the packets are taken or not,
    /// the books have them.
    pub fn try_put(&self, run: &Run) -> Put {
        self.settle(run, self.account(&self.out, run.class).try_hold(run.load))
    }

    /// Queues packets for the peer, waiting for room. A peer whose queue does not move for `slowtimeout`
    /// loses its session, so that the others go on.
    pub fn put(&self, run: &Run) {
        self.settle(run, self.account(&self.out, run.class).hold(run.load, Some(self.slow)));
    }

    fn settle(&self, run: &Run, held: Result<crate::queue::Hold, Refusal>) -> Put {
        match held {
            Ok(hold) => self.pair.outlet(run.class).put(run.bytes.clone(), hold),
            Err(Refusal::Full) => return Put::Full,
            Err(refusal) => {
                if refusal == Refusal::Stuck {
                    self.condemn(EndCause::Slow);
                }
                let books = self.record.books(Direction::Out, run.class);
                books.drop_at_once(run.load.packets, run.load.bytes, DropCause::SessionEnded);
            }
        }
        Put::Settled
    }

    /// Takes nothing more from the kernel module, and asks the core to end the session. Closing comes first:
    /// after a packet that was lost, no other may get through.
    fn condemn(&self, cause: EndCause) {
        self.close_accounts();
        let _ = self.events.send(Event::SessionLost { peer: self.record.key, session: self.id, cause });
    }

    /// Waits for room for what the peer sent, and gives it to `deliver`. Data that comes after a hole is
    /// dropped: the session is about to be ended.
    ///
    /// # Errors
    /// The session has ended: [`Closed::Ended`].
    pub fn take(&self, run: Run, deliver: impl FnOnce(Run, crate::queue::Hold)) -> Result<(), Closed> {
        if run.class == Class::Data && self.data_dropped.load(Relaxed) {
            self.drop_inbound(&run, DropCause::SessionEnded);
            return Ok(());
        }
        // A data link may wait for as long as it takes. The meta link brings pings and their answers, too: a
        // kernel module that has stopped reading must not make healthy peers look dead.
        let patience = (run.class == Class::Meta).then_some(self.meta_patience);
        match self.account(&self.inbound, run.class).hold(run.load, patience) {
            Ok(hold) => {
                deliver(run, hold);
                Ok(())
            }
            Err(Refusal::Stuck) => {
                let peer = self.record.key;
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

    /// Drops what the peer sent.
    pub fn drop_inbound(&self, run: &Run, cause: DropCause) {
        let books = self.record.books(Direction::In, run.class);
        books.drop_at_once(run.load.packets, run.load.bytes, cause);
        // A session with a hole must not be shown to the next kernel module as unbroken.
        if cause == DropCause::NoKernel && run.class == Class::Data && !self.data_dropped.swap(true, Relaxed)
        {
            let _ = self.events.send(Event::DataDropped { peer: self.record.key, session: self.id });
        }
    }

    /// Sends a ping.
    pub fn ping(&self) {
        let (kind, node_type) = match self.record.key {
            PeerKey::Node(_) => (PacketType::NC_PING, 0),
            PeerKey::Site(..) => (PacketType::SC_PING, 1),
        };
        self.pinged.set(self.born.elapsed().as_micros() as u64);
        self.put_own(Header { node_type, ..Header::new(kind) }, &[]);
    }

    /// Takes a heartbeat packet from the peer: answers a ping, counts an ACK.
    pub fn heartbeat(&self, header: &Header) {
        if header.kind.is_ping() {
            let kind = match self.record.key {
                PeerKey::Node(_) => PacketType::NC_PING_ACK,
                PeerKey::Site(..) => PacketType::SC_PING_ACK,
            };
            self.put_own(Header::new(kind), &[]);
        } else {
            self.acks.fetch_add(1, Relaxed);
            let pinged = Duration::from_micros(self.pinged.get());
            let rtt = self.born.elapsed().saturating_sub(pinged).as_micros();
            self.rtt.store(u32::try_from(rtt).unwrap_or(u32::MAX), Relaxed);
        }
    }

    /// Views may be sent to the peer, and are taken from it: its record says so.
    pub fn exchange_views(&self) {
        self.exchanges_views.store(true, Relaxed);
    }

    /// Whether views are exchanged with the peer.
    pub fn exchanges_views(&self) -> bool {
        self.exchanges_views.load(Relaxed)
    }

    /// Tells the peer whom this side is connected with. A peer that reads nothing is not told.
    pub fn tell_view(&self, view: &PeerView) {
        let (node_type, dev_id) = match self.record.key {
            PeerKey::Node(_) => (0, ALL_DEVICES),
            PeerKey::Site(resource, _) => (1, resource.get()),
        };
        let header = Header { node_type, dev_id, len: VIEW_LEN as u32, ..Header::new(PacketType::HD_VIEW) };
        self.put_own(header, &view.encode());
    }

    /// Takes the peer's view.
    pub fn hear_view(&self, view: PeerView) {
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = Some((view, Instant::now()));
    }

    /// What the peer told last of whom it is connected with, and when that came.
    pub fn view(&self) -> Option<(PeerView, Instant)> {
        *self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put_own(&self, header: Header, payload: &[u8]) {
        let header =
            Header { node_from: self.local_id.into(), node_to: self.record.key.mask(), ..header }.encode();
        let packet = Bytes::from([&header[..], payload].concat());
        if let Ok(hold) = self.own.try_hold(Load::alone(1, packet.len())) {
            self.pair.outlet(Class::Meta).put(packet, hold);
        }
    }

    /// Time from the last ping to the answer after it, once there was one.
    pub fn rtt(&self) -> Option<Duration> {
        let rtt = self.rtt.load(Relaxed);
        (rtt > 0).then(|| Duration::from_micros(rtt.into()))
    }

    /// Memory that waits to be written to the peer, in bytes.
    pub fn queued_bytes(&self) -> usize {
        self.out.iter().map(|account| account.charged()).sum()
    }

    /// Ping ACKs that came in since the last call.
    pub fn take_acks(&self) -> u32 {
        self.acks.swap(0, Relaxed)
    }

    /// Closes both links and drops what is queued for the peer. What came from it is still delivered, until
    /// [`Session::inbound`] is made void.
    pub fn end(&self) {
        self.close_accounts();
        self.pair.close();
    }

    fn close_accounts(&self) {
        for account in self.out.iter().chain(&self.inbound) {
            account.close(DropCause::SessionEnded);
        }
    }

    /// The accounts of what came from the peer. They outlive the session with what the kernel module has
    /// not read; when the next session begins, they have to be made void.
    pub fn inbound(&self) -> &[Arc<Account>; 2] {
        &self.inbound
    }

    /// The accounts of both directions, to wait for at an orderly end.
    pub fn accounts(&self) -> impl Iterator<Item = &Arc<Account>> {
        self.out.iter().chain(&self.inbound)
    }

    /// Tells the peer that nothing more will come.
    pub fn finish(&self) {
        self.pair.finish();
    }

    fn account<'a>(&self, accounts: &'a [Arc<Account>; 2], class: Class) -> &'a Arc<Account> {
        let [data, meta] = accounts;
        match class {
            Class::Data => data,
            Class::Meta => meta,
        }
    }
}

/// What became of packets for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// Queued, or dropped and counted.
    Settled,
    /// There is no room: [`Session::put`] waits for it.
    Full,
}
