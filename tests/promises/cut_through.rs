//! Every branch of cut-through (D1 order, D2 completeness, D3 isolation), forced: what the socket takes, takes
//! in part and does not take, who else has the token, a full queue, and an end in the middle of each. A link
//! without its own thread stands still where that thread would go on, so that nothing depends on who is fast.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::io::{ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam::channel::{Receiver, unbounded};
use hadmd::daemon::link::{Deferred, LinkSender};
use hadmd::daemon::queue::{Budget, Cost, CounterSnapshot, DropCause, PacketCounters, Refusal};
use hadmd::wire::Class;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;

const PATIENCE: Duration = Duration::from_secs(20);

/// A writing end without its thread, its reader, and the budget of its queue.
struct Harness {
    sender: Arc<LinkSender>,
    budget: Arc<Budget>,
    counters: Arc<PacketCounters>,
    peer: TcpStream,
    failures: Receiver<std::io::Error>,
}

impl Harness {
    /// A link whose sockets hold a few KiB, and whose queue holds `ceiling` bytes.
    fn new(ceiling: usize) -> Self {
        Harness::with_buffers(ceiling, 4096)
    }

    fn with_buffers(ceiling: usize, size: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        SockRef::from(&listener).set_recv_buffer_size(size).unwrap();
        let out = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        SockRef::from(&out).set_send_buffer_size(size).unwrap();
        out.set_nodelay(true).unwrap();
        let peer = listener.accept().unwrap().0;
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        let counters = Arc::new(PacketCounters::default());
        let (failed, failures) = unbounded();
        let sender = LinkSender::new(Class::Data, out, None, move |error| failed.send(error).unwrap());
        Harness { sender, budget: Budget::new(ceiling, Arc::clone(&counters)), counters, peer, failures }
    }

    fn start(&self) {
        self.sender.start("test:data-tx").unwrap();
    }

    #[track_caller]
    fn put(&self, parcel: &Bytes) {
        self.try_put(parcel).unwrap();
    }

    fn try_put(&self, parcel: &Bytes) -> Result<(), Refusal> {
        let permit = self.budget.try_acquire(Cost::alone(1, parcel.len()))?;
        self.sender.put(parcel.clone(), permit);
        Ok(())
    }

    /// Puts in more than the sockets hold.
    #[track_caller]
    fn fill(&self) -> Vec<Bytes> {
        let all = vec![parcel(0, 200_000)];
        self.put(&all[0]);
        assert_eq!(self.counters.snapshot().queued, 1);
        all
    }

    /// Lets this thread carry on, once the socket takes something.
    fn carry_on(&self) {
        let mut fds = [PollFd::new(self.sender.stream(), PollFlags::OUT)];
        let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
        assert_eq!(poll(&mut fds, Some(&limit)).unwrap(), 1, "the socket stays full");
        self.sender.put_deferred(Arc::new(Silent));
    }

    #[track_caller]
    fn expect(&self, parcels: &[Bytes]) {
        let expected = parcels.concat();
        let mut got = vec![0; expected.len()];
        (&self.peer).read_exact(&mut got).unwrap();
        assert!(got == expected, "{} parcels are not what was put in", parcels.len());
    }

    /// Reads to the end of the stream; gives the bytes.
    fn rest(&self) -> Vec<u8> {
        let mut all = Vec::new();
        match (&self.peer).read_to_end(&mut all) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
            _ => all,
        }
    }

    /// Returns the counters, once nothing is queued.
    #[track_caller]
    fn settled(&self) -> CounterSnapshot {
        settled(&self.budget, &self.counters)
    }
}

/// Returns the counters of a queue, once nothing is in it.
#[track_caller]
pub fn settled(budget: &Budget, counters: &PacketCounters) -> CounterSnapshot {
    assert!(budget.wait_idle(Instant::now() + PATIENCE), "{}", counters.snapshot());
    let snapshot = counters.snapshot();
    assert!(snapshot.balances() && snapshot.queued == 0, "{snapshot}");
    snapshot
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.sender.close();
    }
}

/// Bytes that tell which entries they are of.
fn parcel(n: usize, len: usize) -> Bytes {
    n.to_le_bytes().iter().copied().cycle().take(len).collect()
}

struct Silent;

impl Deferred for Silent {
    fn take(&self) -> Option<Bytes> {
        None
    }
}

/// Holds its link sender's token while a thread asks it for its bytes, for as long as it should.
struct Held {
    taken: Barrier,
    let_go: Barrier,
}

impl Held {
    fn new() -> Arc<Self> {
        Arc::new(Held { taken: Barrier::new(2), let_go: Barrier::new(2) })
    }

    /// Runs `job` while another thread has the link sender's token.
    fn during(harness: &Harness, job: impl FnOnce()) {
        let held = Held::new();
        thread::scope(|scope| {
            let late = Arc::clone(&held);
            scope.spawn(|| harness.sender.put_deferred(late));
            held.taken.wait();
            job();
            held.let_go.wait();
        });
    }
}

impl Deferred for Held {
    fn take(&self) -> Option<Bytes> {
        self.taken.wait();
        self.let_go.wait();
        Some(Bytes::from_static(b"held"))
    }
}

#[test]
fn whole_write_is_done_by_whoever_puts_it_in() {
    let harness = Harness::new(1 << 20);
    let parcels: Vec<_> = (0..3).map(|n| parcel(n, 100)).collect();
    for (n, parcel) in parcels.iter().enumerate() {
        harness.put(parcel);
        assert_eq!(harness.counters.snapshot().forwarded, n as u64 + 1);
    }
    harness.expect(&parcels);
    harness.settled();
}

/// An entry that the socket takes in part is not forwarded yet, and what is put in meanwhile comes after it.
#[test]
fn partial_write_is_finished_by_the_links_thread_before_what_came_later() {
    let harness = Harness::new(1 << 20);
    let parcels = [parcel(1, 100_000), parcel(2, 10), parcel(3, 100_000)];
    for parcel in &parcels {
        harness.put(parcel);
        assert_eq!(harness.counters.snapshot().forwarded, 0);
    }
    // A part of the first is there: this did not wait for the thread.
    assert!(harness.peer.peek(&mut [0; 8]).unwrap() > 0);
    harness.start();
    harness.expect(&parcels);
    assert_eq!(harness.settled().forwarded, 3);
}

/// The same without the thread: the next caller carries on at the very byte, wherever that is.
#[test]
fn partial_write_is_finished_by_whoever_comes_next_at_any_byte() {
    let harness = Harness::new(1 << 20);
    let mut random = fastrand::Rng::with_seed(5);
    let parcels: Vec<_> = (0..200).map(|n| parcel(n, random.usize(1..3000))).collect();
    parcels.iter().for_each(|parcel| harness.put(parcel));
    assert!(harness.counters.snapshot().queued > 100, "{}", harness.counters.snapshot());
    harness.peer.set_nonblocking(true).unwrap();
    let expected = parcels.concat();
    let (mut got, mut buf) = (Vec::new(), [0; 3000]);
    while got.len() < expected.len() {
        match (&harness.peer).read(&mut buf[..random.usize(1..3000)]) {
            Ok(n) => got.extend_from_slice(&buf[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => harness.carry_on(),
            Err(error) => panic!("{error}"),
        }
        assert!(expected.starts_with(&got));
        // An entry of which a part has left is not forwarded, those before it are.
        let snapshot = harness.counters.snapshot();
        let (whole, part) =
            (snapshot.forwarded as usize, got.len().saturating_sub(snapshot.forwarded_bytes as usize));
        assert!(
            parcels.get(whole).map_or(part == 0, |next| part < next.len()),
            "{snapshot}, {part} bytes of one more"
        );
    }
    assert_eq!(harness.settled().forwarded, 200);
}

#[test]
fn full_socket_leaves_everything_to_the_links_thread_in_order() {
    let harness = Harness::new(1 << 20);
    let mut parcels = harness.fill();
    for n in 1..200 {
        parcels.push(parcel(n, 1000));
        harness.put(&parcels[n]);
        assert_eq!(harness.counters.snapshot().forwarded, 0, "the socket is full");
    }
    harness.start();
    harness.expect(&parcels);
    assert_eq!(harness.settled().forwarded, parcels.len() as u64);
}

/// A thread that finds the token taken goes on; its entry is written by the holder.
#[test]
fn token_contention_leaves_the_parcel_to_the_holder() {
    let harness = Harness::new(1 << 20);
    let parcels: Vec<_> = (0..5).map(|n| parcel(n, 100)).collect();
    Held::during(&harness, || {
        parcels.iter().for_each(|parcel| harness.put(parcel));
        assert_eq!(harness.counters.snapshot().forwarded, 0);
        assert_eq!(harness.counters.snapshot().queued, 5);
    });
    assert_eq!(harness.settled().forwarded, 5);
    harness.expect(&[&[Bytes::from_static(b"held")], &parcels[..]].concat());
}

/// Four threads at once, nobody to help them: together they forget nothing, and each one's order is kept.
#[test]
fn token_contention_between_threads_forgets_nothing() {
    const THREADS: usize = 4;
    const EACH: usize = 8;
    // All that is put in at once fits into the socket.
    let harness = Harness::with_buffers(1 << 20, 128 * 1024);
    for round in 0..1000 {
        let begin = Barrier::new(THREADS);
        let (harness, begin) = (&harness, &begin);
        thread::scope(|scope| {
            for thread in 0..THREADS {
                scope.spawn(move || {
                    begin.wait();
                    (0..EACH).for_each(|n| harness.put(&parcel(round << 16 | thread << 8 | n, 8)));
                });
            }
        });
        let snapshot = harness.counters.snapshot();
        assert_eq!((snapshot.queued, snapshot.forwarded), (0, ((round + 1) * THREADS * EACH) as u64));
        let mut got = [0; THREADS * EACH * 8];
        (&harness.peer).read_exact(&mut got).unwrap();
        let mut next = [0; THREADS];
        for bytes in got.chunks_exact(8) {
            let n = usize::from_le_bytes(bytes.try_into().unwrap());
            let thread = n >> 8 & 0xff;
            assert_eq!(n, round << 16 | thread << 8 | next[thread], "in its thread's order");
            next[thread] += 1;
        }
    }
}

/// A thread with work of its own is not kept by what others put in without end.
#[test]
fn token_holder_leaves_after_some_writes_what_others_put_in() {
    /// Puts itself in again, as if somebody else were always there first.
    struct Again(Mutex<Option<Arc<LinkSender>>>, Arc<AtomicBool>);
    impl Deferred for Again {
        fn take(&self) -> Option<Bytes> {
            if let Some(sender) = self.0.lock().unwrap().as_ref().filter(|_| !self.1.load(SeqCst)) {
                sender
                    .put_deferred(Arc::new(Again(Mutex::new(Some(Arc::clone(sender))), Arc::clone(&self.1))));
            }
            Some(Bytes::from_static(b"."))
        }
    }
    let harness = Harness::new(1 << 20);
    let stop = Arc::new(AtomicBool::new(false));
    harness
        .sender
        .put_deferred(Arc::new(Again(Mutex::new(Some(Arc::clone(&harness.sender))), Arc::clone(&stop))));
    // It came back, with something left to do.
    harness.peer.set_nonblocking(true).unwrap();
    let mut all = Vec::new();
    let error = (&harness.peer).read_to_end(&mut all).unwrap_err();
    assert_eq!((error.kind(), all.len()), (ErrorKind::WouldBlock, 8 * 64), "eight writes of 64 parcels each");
    harness.peer.set_nonblocking(false).unwrap();
    // The link's thread goes on, and comes to what is put in last.
    stop.store(true, SeqCst);
    harness.start();
    harness.put(&parcel(7, 8));
    harness.settled();
    harness.sender.finish();
    let rest = harness.rest();
    assert!(rest.starts_with(b".") && rest.ends_with(&parcel(7, 8)));
}

/// A full queue refuses at once, keeps what it has, and takes more as soon as there is room.
#[test]
fn queue_full_refuses_at_once_and_goes_on_in_order() {
    let harness = Harness::new(300_000);
    let mut parcels = harness.fill();
    let refused = loop {
        let next = parcel(parcels.len(), 1000);
        match harness.try_put(&next) {
            Ok(()) => parcels.push(next),
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refused, Refusal::Full);
    let snapshot = harness.counters.snapshot();
    assert!(snapshot.balances() && snapshot.received == parcels.len() as u64, "{snapshot}");
    // A thread that waits for space gets it when the reader reads on, and comes last.
    let last = parcel(parcels.len(), 1000);
    harness.start();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| harness.budget.acquire(Cost::alone(1, last.len())));
        harness.expect(&parcels);
        harness.sender.put(last.clone(), waiting.join().unwrap().unwrap());
    });
    harness.expect(&[last]);
    assert_eq!(harness.settled().forwarded, parcels.len() as u64 + 1);
}

/// One link that takes nothing: a thread that puts something in is not held up, and the next link gets everything.
#[test]
fn queue_full_of_one_link_delays_no_other() {
    let (stalled, live) = (Harness::new(50_000), Harness::new(1 << 20));
    for harness in [&stalled, &live] {
        harness.start();
    }
    let mut taken = 0;
    let parcels: Vec<_> = (0..1000).map(|n| parcel(n, 1000)).collect();
    for parcel in &parcels {
        taken += u64::from(stalled.try_put(parcel).is_ok());
        let permit = live.budget.try_acquire(Cost::alone(1, parcel.len())).unwrap();
        live.sender.put(parcel.clone(), permit);
        live.expect(std::slice::from_ref(parcel));
    }
    assert_eq!(live.settled().forwarded, 1000);
    assert!(stalled.budget.charged() <= 50_000);
    stalled.budget.close(DropCause::SessionEnded);
    stalled.sender.close();
    let snapshot = stalled.settled();
    assert!(taken < 1000 && snapshot.received == taken && snapshot.all_dropped() > 0, "{snapshot}");
}

/// The other side of a session that ended gets the beginning of what was put in, and the counters know
/// how much of it left.
#[track_caller]
fn ended_in_the_middle(harness: &Harness, parcels: &[Bytes]) {
    let snapshot = harness.settled();
    assert_eq!(snapshot.received, parcels.len() as u64, "{snapshot}");
    assert!(snapshot.all_dropped() > 0, "{snapshot}");
    let got = harness.rest();
    let forwarded = parcels.iter().take(snapshot.forwarded as usize).map(Bytes::len).sum();
    assert!(parcels.concat().starts_with(&got) && got.len() >= forwarded, "{snapshot}");
}

#[test]
fn session_ending_in_a_partial_write_drops_the_rest() {
    let harness = Harness::new(1 << 20);
    let parcels = [parcel(1, 10), parcel(2, 100_000), parcel(3, 10)];
    parcels.iter().for_each(|parcel| harness.put(parcel));
    harness.budget.close(DropCause::SessionEnded);
    harness.sender.close();
    assert_eq!(harness.counters.snapshot().queued, 0, "at once, without the link's thread");
    assert_eq!(harness.counters.snapshot().forwarded, 1);
    ended_in_the_middle(&harness, &parcels);
}

#[test]
fn session_ending_while_the_links_thread_writes_drops_the_rest() {
    let harness = Harness::new(1 << 20);
    let parcels = harness.fill();
    harness.start();
    // More is read than the sockets hold: the thread has written, and waits in its next write.
    harness.expect(&[parcels[0].slice(..100_000)]);
    let mut more: Vec<_> = (1..100).map(|n| parcel(n, 1000)).collect();
    more.iter().for_each(|parcel| harness.put(parcel));
    harness.budget.close(DropCause::SessionEnded);
    harness.sender.close();
    more.insert(0, parcels[0].slice(100_000..));
    let snapshot = harness.settled();
    assert!(snapshot.received == 100 && snapshot.all_dropped() > 0, "{snapshot}");
    assert!(more.concat().starts_with(&harness.rest()));
}

/// Closing never waits for the holder of the token, which drops what it finds when it comes back.
#[test]
fn session_ending_while_another_has_the_token_drops_everything() {
    let harness = Harness::new(1 << 20);
    Held::during(&harness, || {
        harness.put(&parcel(1, 100));
        harness.budget.close(DropCause::SessionEnded);
        harness.sender.close();
        assert_eq!(harness.counters.snapshot().queued, 1);
    });
    let snapshot = harness.settled();
    assert_eq!((snapshot.forwarded, snapshot.all_dropped()), (0, 1), "{snapshot}");
}

#[test]
fn session_that_has_ended_drops_what_is_put_in_later() {
    let harness = Harness::new(1 << 20);
    let permits = [1, 2].map(|_| harness.budget.try_acquire(Cost::alone(1, 8)).unwrap());
    harness.sender.close();
    permits.into_iter().for_each(|permit| harness.sender.put(parcel(1, 8), permit));
    assert_eq!(harness.settled().all_dropped(), 2);
    assert!(harness.rest().is_empty());
}

/// The other side resets the link: the next write reports it, and nothing stays behind.
#[test]
fn session_broken_by_the_other_side_drops_everything_and_says_so() {
    for with_thread in [false, true] {
        let mut harness = Harness::new(1 << 20);
        let parcels = harness.fill();
        if with_thread {
            harness.start();
        }
        // Closed with bytes unread, it resets the connection.
        drop(std::mem::replace(&mut harness.peer, harness.sender.stream().try_clone().unwrap()));
        harness.carry_on();
        drop(harness.failures.recv_timeout(PATIENCE).unwrap());
        let snapshot = harness.settled();
        assert_eq!(snapshot.received, parcels.len() as u64);
        assert!(snapshot.all_dropped() > 0, "{snapshot}");
    }
}
