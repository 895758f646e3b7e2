//! The writing end of a link: a queue, and the write state that carries it to the socket.
//!
//! The thread that puts an entry into an empty queue writes it to the socket at once, without blocking: a hand-over
//! to another thread costs a wake-up, which is most of a packet's time on an idle machine. Bytes that the socket does
//! not take are left to the link's own thread. Order is kept because only the holder of the [`Token`] takes anything
//! out of the queue.
//!
//! Putting an entry in never blocks and never fails; the queue is bounded by the [`Permit`] that comes with each
//! entry.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use crossbeam::queue::SegQueue;
use socket2::SockRef;

use super::token::{Job, Progress, Token};
use super::write_state::{Content, Deferred, Entry, Receiver, WriteState};
use super::{Encode, Piped};
use crate::daemon::queue::Permit;
use crate::sys;
use crate::wire::Class;

/// Bytes of a meta link that the system may have taken and not sent. Some hundred packets: the link is never idle for
/// want of them, and a ping waits for little more than the packets on their way.
const META_UNSENT: u32 = 16 * 1024;

/// Encoded bytes at which no more is encoded before the socket has taken some. Frames must not be made long before
/// they can leave: their packets could not be left out any more.
const ENCODED_MAX: usize = 256 * 1024;
/// The same limit for meta links, where a ping must not wait for more than a slow peer takes in its time.
const META_ENCODED_MAX: usize = 16 * 1024;

/// Writes that one thread makes for entries of other threads, before it leaves the rest to the link's own thread: a
/// thread with work of its own must not be kept here by others.
const CARRY: usize = 8;

/// Longest sleep of the link's own thread while the socket takes nothing. A socket is reported writable only when a
/// third of its buffer is free: with a peer that reads slowly, that may be seconds after it took some. Entries that
/// became void meanwhile are dropped then, too.
const LOOK: Duration = Duration::from_millis(100);

/// The writing end of a link.
pub struct LinkSender {
    stream: TcpStream,
    receiver: OnceLock<Receiver>,
    plain: bool,
    /// Entries that go before all in `queue`.
    first: SegQueue<Entry>,
    queue: SegQueue<Entry>,
    token: Token<WriteState>,
    failed: Box<dyn Fn(io::Error) + Send + Sync>,
}

impl LinkSender {
    /// Returns the writing end of a link of this class, without its thread. `failed` is called when the socket cannot
    /// be written to, possibly more than once, by any thread, and must not block.
    pub fn new(
        class: Class,
        stream: TcpStream,
        encode: Option<Box<dyn Encode>>,
        failed: impl Fn(io::Error) + Send + Sync + 'static,
    ) -> Arc<Self> {
        let plain = encode.is_none();
        let encoded_max = match class {
            Class::Data => ENCODED_MAX,
            Class::Meta => {
                // No packet can overtake bytes that the system has taken. A system that knows no such limit keeps
                // more.
                let _ = SockRef::from(&stream).set_tcp_notsent_lowat(META_UNSENT);
                META_ENCODED_MAX
            }
        };
        Arc::new(LinkSender {
            stream,
            receiver: OnceLock::new(),
            plain,
            first: SegQueue::new(),
            queue: SegQueue::new(),
            token: Token::new(WriteState::new(encode, encoded_max)),
            failed: Box::new(failed),
        })
    }

    /// Gives packets to `receiver` from now on, and no more to the socket; to be called before any is queued.
    pub fn set_receiver(&self, receiver: Receiver) {
        let _ = self.receiver.set(receiver);
    }

    /// Returns true if packets go to a receiver in this process.
    pub fn has_receiver(&self) -> bool {
        self.receiver.get().is_some()
    }

    /// Starts the thread that writes the bytes that the socket did not take at once.
    ///
    /// # Errors
    /// The system is out of threads.
    pub fn start(self: &Arc<Self>, name: &str) -> io::Result<()> {
        let sender = Arc::clone(self);
        sys::spawn(name, move || sender.token.work(&*sender))
    }

    /// Returns the socket.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Returns true if packets go as they are, without a codec.
    pub fn is_plain(&self) -> bool {
        self.plain
    }

    /// Queues packets; they are written in the order in which they were put in.
    pub fn put(&self, bytes: Bytes, permit: Permit) {
        self.put_run(bytes, None, permit);
    }

    /// Does the same with packets whose bytes are in `piped`, if there is one.
    pub fn put_run(&self, bytes: Bytes, piped: Option<Piped>, permit: Permit) {
        let content = piped.map_or(Content::Memory(bytes), Content::Pipe);
        self.queue.push(Entry::Packets(content, permit));
        self.token.try_drive(self);
    }

    /// Queues packets before all others but those queued by this function, and those of which a part has left or is
    /// encoded.
    pub fn put_first(&self, bytes: Bytes, permit: Permit) {
        self.first.push(Entry::Packets(Content::Memory(bytes), permit));
        self.token.try_drive(self);
    }

    /// Queues an entry whose bytes are made when its turn comes.
    pub fn put_deferred(&self, late: Arc<dyn Deferred>) {
        self.queue.push(Entry::Deferred(late));
        if self.has_receiver() {
            // The work that it causes is not for the thread that had the news.
            return self.token.wake();
        }
        self.token.try_drive(self);
    }

    /// Closes the link; queued entries are dropped. Never blocks.
    pub fn close(&self) {
        // Shutting the socket down wakes a thread that writes, and the readers of both sides.
        self.token.close(self, || drop(self.stream.shutdown(Shutdown::Both)));
    }

    /// Ends the sending direction of the link.
    pub fn finish(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}

impl Job for LinkSender {
    type State = WriteState;
    type Error = io::Error;

    fn drive(&self, state: &mut WriteState, wait: bool) -> io::Result<Progress> {
        let mut ready = false;
        for turn in 0.. {
            if self.token.is_closed() {
                while self.first.pop().or_else(|| self.queue.pop()).is_some() {}
                state.clear();
                return Ok(Progress::Empty);
            }
            state.drop_void();
            if let Err(error) = state.gather(&self.first, &self.queue) {
                state.clear();
                return Err(error);
            }
            if state.is_empty() {
                return Ok(Progress::Empty);
            }
            if turn >= CARRY && !wait {
                break;
            }
            let sent = match self.receiver.get() {
                None => state.send(&self.stream),
                Some(receiver) => state.give(receiver),
            };
            match sent {
                Ok(n) => {
                    state.advance(n);
                    ready = false;
                }
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    state.clear();
                    return Err(error);
                }
                Err(_) if !wait => return Ok(Progress::Left),
                // The socket is ready, and takes nothing all the same: the system is short of memory for it.
                Err(_) if ready => {
                    ready = false;
                    std::thread::sleep(LOOK);
                }
                Err(_) => ready = sys::wait_writable(&self.stream, LOOK),
            }
        }
        Ok(Progress::Left)
    }

    fn is_empty(&self) -> bool {
        self.first.is_empty() && self.queue.is_empty()
    }

    /// Reports the error; the receiver of the report closes the link.
    fn failed(&self, error: io::Error) {
        (self.failed)(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::queue::{Budget, Cost, DropCause, PacketCounters};
    use crate::wire::{HEADER_LEN, Header, PacketType};
    use std::io::Read;
    use std::net::TcpListener;
    use std::sync::{Mutex, mpsc};
    use std::thread;
    use std::time::{Duration, Instant};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let out = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (out, listener.accept().unwrap().0)
    }

    fn cost(chunk: u64, bytes: usize) -> Cost {
        Cost { packets: 1, bytes, chunk, chunk_bytes: bytes }
    }

    #[test]
    fn order_is_kept_between_cut_through_and_the_links_thread() {
        let (out, mut peer) = pair();
        let counters = Arc::new(PacketCounters::default());
        let budget = Budget::new(1 << 20, Arc::clone(&counters));
        let sender = LinkSender::new(Class::Data, out, None, |error| panic!("{error}"));
        sender.start("test:data-tx").unwrap();
        // 64 MiB through a budget of 1 MiB: the socket fills, so that both ways of writing are taken.
        const N: u32 = 16 * 1024;
        let reader = thread::spawn(move || {
            let mut block = [0; 4096];
            for n in 0..N {
                peer.read_exact(&mut block).unwrap();
                assert!(block.chunks(4).all(|word| word == n.to_le_bytes()), "block {n}");
            }
        });
        for n in 0..N {
            let block = Bytes::from(n.to_le_bytes().repeat(1024));
            let permit = budget.acquire(cost(u64::from(n) + 1, block.len())).unwrap();
            sender.put(block, permit);
        }
        reader.join().unwrap();
        assert!(budget.wait_idle(Instant::now() + Duration::from_secs(10)));
        assert_eq!(counters.snapshot().forwarded, u64::from(N));
        sender.close();
    }

    /// Failure modes 5 and 27: queued entries are dropped, counted and given back when a session ends.
    #[test]
    fn fm05_fm27_closing_empties_the_queue_in_one_step() {
        let (out, _peer) = pair();
        let counters = Arc::new(PacketCounters::default());
        let budget = Budget::new(64 << 20, Arc::clone(&counters));
        let (failed, failures) = mpsc::channel();
        let sender = LinkSender::new(Class::Data, out, None, move |error| failed.send(error).unwrap());
        sender.start("test:data-tx").unwrap();
        // Nobody reads: the sockets' buffers fill, and the link's thread blocks in its write.
        for n in 1..=48 {
            let permit = budget.try_acquire(cost(n, 1 << 20)).unwrap();
            sender.put(Bytes::from(vec![0; 1 << 20]), permit);
        }
        assert!(counters.snapshot().queued > 0);
        budget.close(DropCause::SessionEnded);
        sender.close();
        assert!(budget.wait_idle(Instant::now() + Duration::from_secs(10)));
        let snapshot = counters.snapshot();
        assert!(snapshot.balances() && snapshot.all_dropped() > 0 && snapshot.queued == 0, "{snapshot}");
        drop(failures);
    }

    /// Bytes that the socket has cannot be taken back; of the rest, only the packet that has begun to leave goes on.
    #[test]
    fn what_became_void_is_dropped_though_it_was_gathered() {
        const PACKET: usize = 1 << 20;
        let packet = |n: u64| {
            let header = Header { len: PACKET as u32, node_from: n as u32, ..Header::new(PacketType(36)) };
            [&header.encode()[..], &vec![n as u8; PACKET]].concat()
        };
        let (out, mut peer) = pair();
        let counters = Arc::new(PacketCounters::default());
        let budget = Budget::new(64 << 20, Arc::clone(&counters));
        let sender = LinkSender::new(Class::Data, out, None, |error| panic!("{error}"));
        sender.start("test:data-tx").unwrap();
        // Two packets an entry, so that the one that has begun to leave is not all of its entry.
        for n in 0..16 {
            let bytes = [packet(2 * n), packet(2 * n + 1)].concat();
            let cost = Cost { packets: 2, ..cost(n + 1, bytes.len()) };
            sender.put(bytes.into(), budget.try_acquire(cost).unwrap());
        }
        budget.void();
        let fresh = Budget::new(4 << 20, Arc::default());
        sender.put(packet(99).into(), fresh.try_acquire(cost(99, 100)).unwrap());
        let mut delivered = 0;
        loop {
            let mut head = [0; HEADER_LEN];
            peer.read_exact(&mut head).unwrap();
            let header = Header::decode(&head);
            let mut payload = vec![0; header.len as usize];
            peer.read_exact(&mut payload).unwrap();
            assert!(
                payload.iter().all(|&byte| byte == header.node_from as u8),
                "packet {}",
                header.node_from
            );
            if header.node_from == 99 {
                break;
            }
            assert_eq!(u64::from(header.node_from), delivered);
            delivered += 1;
        }
        assert!(budget.wait_idle(Instant::now() + Duration::from_secs(10)));
        let snapshot = counters.snapshot();
        assert_eq!((snapshot.forwarded, snapshot.all_dropped()), (delivered, 32 - delivered), "{snapshot}");
        assert!(delivered < 24, "{delivered} MiB in two sockets");
        sender.close();
    }

    #[test]
    fn what_goes_first_overtakes_all_that_has_not_begun_to_leave() {
        let (out, mut peer) = pair();
        let budget = Budget::new(64 << 20, Arc::default());
        let sender = LinkSender::new(Class::Meta, out, None, |error| panic!("{error}"));
        // Without the link's thread, entries are written only by the threads that put one in.
        for n in 1..=200 {
            let block = Bytes::from(vec![1; 100_000]);
            sender.put(block.clone(), budget.try_acquire(cost(n, block.len())).unwrap());
        }
        sender.put_first(Bytes::from_static(&[2; 10]), budget.try_acquire(cost(201, 10)).unwrap());
        sender.start("test:meta-tx").unwrap();
        let (mut all, mut block) = (Vec::new(), vec![0; 100_000]);
        while !all.contains(&2) {
            let n = peer.read(&mut block).unwrap();
            all.extend_from_slice(&block[..n]);
        }
        let at = all.iter().position(|&byte| byte == 2).unwrap();
        assert!(at % 100_000 == 0 && at < 100 * 100_000, "it came after {at} bytes");
        sender.close();
    }

    #[test]
    fn void_parcels_and_silent_latecomers_are_passed_over() {
        struct Said(Mutex<Option<Bytes>>);
        impl Deferred for Said {
            fn take(&self) -> Option<Bytes> {
                self.0.lock().unwrap().take()
            }
        }
        let (out, mut peer) = pair();
        let budget = Budget::new(1 << 20, Arc::default());
        let sender = LinkSender::new(Class::Data, out, None, |error| panic!("{error}"));
        let void = Budget::new(1 << 20, Arc::default());
        let permit = void.try_acquire(cost(1, 4)).unwrap();
        void.void();
        sender.put(Bytes::from_static(b"void"), permit);
        let said = Arc::new(Said(Mutex::new(Some(Bytes::from_static(b"late")))));
        sender.put_deferred(said.clone());
        sender.put_deferred(said);
        sender.put(Bytes::from_static(b"last"), budget.try_acquire(cost(2, 4)).unwrap());
        sender.finish();
        let mut all = String::new();
        peer.read_to_string(&mut all).unwrap();
        assert_eq!(all, "latelast");
    }
}
