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
use hadmd::link::{Late, Outlet};
use hadmd::queue::{Account, Books, DropCause, Load, Refusal, Tally};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;

const PATIENCE: Duration = Duration::from_secs(20);

/// A writing end without its thread, whoever reads from it, and what pays for its queue.
struct Rig {
    outlet: Arc<Outlet>,
    account: Arc<Account>,
    books: Arc<Books>,
    peer: TcpStream,
    failures: Receiver<std::io::Error>,
}

impl Rig {
    /// A link whose sockets hold a few KiB, and whose queue holds `ceiling` bytes.
    fn new(ceiling: usize) -> Self {
        Rig::with_buffers(ceiling, 4096)
    }

    fn with_buffers(ceiling: usize, size: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        SockRef::from(&listener).set_recv_buffer_size(size).unwrap();
        let out = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        SockRef::from(&out).set_send_buffer_size(size).unwrap();
        out.set_nodelay(true).unwrap();
        let peer = listener.accept().unwrap().0;
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        let books = Arc::new(Books::default());
        let (failed, failures) = unbounded();
        let outlet = Outlet::new(out, None, move |error| failed.send(error).unwrap());
        Rig { outlet, account: Account::new(ceiling, Arc::clone(&books)), books, peer, failures }
    }

    fn start(&self) {
        self.outlet.start("test:data-tx").unwrap();
    }

    #[track_caller]
    fn put(&self, parcel: &Bytes) {
        self.try_put(parcel).unwrap();
    }

    fn try_put(&self, parcel: &Bytes) -> Result<(), Refusal> {
        let hold = self.account.try_hold(Load::alone(1, parcel.len()))?;
        self.outlet.put(parcel.clone(), hold);
        Ok(())
    }

    /// Puts in more than the sockets hold.
    #[track_caller]
    fn fill(&self) -> Vec<Bytes> {
        let all = vec![parcel(0, 200_000)];
        self.put(&all[0]);
        assert_eq!(self.books.tally().queued, 1);
        all
    }

    /// Lets this thread carry on, once the socket takes something.
    fn carry_on(&self) {
        let mut fds = [PollFd::new(self.outlet.stream(), PollFlags::OUT)];
        let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
        assert_eq!(poll(&mut fds, Some(&limit)).unwrap(), 1, "the socket stays full");
        self.outlet.put_late(Arc::new(Silent));
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

    /// The books, once nothing is queued.
    #[track_caller]
    fn settled(&self) -> Tally {
        assert!(self.account.wait_idle(Instant::now() + PATIENCE), "{}", self.books.tally());
        let tally = self.books.tally();
        assert!(tally.balances() && tally.queued == 0, "{tally}");
        tally
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.outlet.close();
    }
}

/// Bytes that tell which parcel they are of.
fn parcel(n: usize, len: usize) -> Bytes {
    n.to_le_bytes().iter().copied().cycle().take(len).collect()
}

struct Silent;

impl Late for Silent {
    fn take(&self) -> Option<Bytes> {
        None
    }
}

/// Holds its outlet's token, which whoever asks it for its bytes has, for as long as it is told.
struct Held {
    taken: Barrier,
    let_go: Barrier,
}

impl Held {
    fn new() -> Arc<Self> {
        Arc::new(Held { taken: Barrier::new(2), let_go: Barrier::new(2) })
    }

    /// Runs `job` while another thread has the outlet's token.
    fn during(rig: &Rig, job: impl FnOnce()) {
        let held = Held::new();
        thread::scope(|scope| {
            let late = Arc::clone(&held);
            scope.spawn(|| rig.outlet.put_late(late));
            held.taken.wait();
            job();
            held.let_go.wait();
        });
    }
}

impl Late for Held {
    fn take(&self) -> Option<Bytes> {
        self.taken.wait();
        self.let_go.wait();
        Some(Bytes::from_static(b"held"))
    }
}

#[test]
fn whole_write_is_done_by_whoever_puts_it_in() {
    let rig = Rig::new(1 << 20);
    let parcels: Vec<_> = (0..3).map(|n| parcel(n, 100)).collect();
    for (n, parcel) in parcels.iter().enumerate() {
        rig.put(parcel);
        assert_eq!(rig.books.tally().forwarded, n as u64 + 1);
    }
    rig.expect(&parcels);
    rig.settled();
}

/// A parcel that the socket takes in part is not forwarded yet, and what is put in meanwhile comes after it.
#[test]
fn partial_write_is_finished_by_the_links_thread_before_what_came_later() {
    let rig = Rig::new(1 << 20);
    let parcels = [parcel(1, 100_000), parcel(2, 10), parcel(3, 100_000)];
    for parcel in &parcels {
        rig.put(parcel);
        assert_eq!(rig.books.tally().forwarded, 0);
    }
    // A part of the first is there: this did not wait for the thread.
    assert!(rig.peer.peek(&mut [0; 8]).unwrap() > 0);
    rig.start();
    rig.expect(&parcels);
    assert_eq!(rig.settled().forwarded, 3);
}

/// The same without the thread: whoever comes next carries on at the very byte, wherever that is.
#[test]
fn partial_write_is_finished_by_whoever_comes_next_at_any_byte() {
    let rig = Rig::new(1 << 20);
    let mut random = fastrand::Rng::with_seed(5);
    let parcels: Vec<_> = (0..200).map(|n| parcel(n, random.usize(1..3000))).collect();
    parcels.iter().for_each(|parcel| rig.put(parcel));
    assert!(rig.books.tally().queued > 100, "{}", rig.books.tally());
    rig.peer.set_nonblocking(true).unwrap();
    let expected = parcels.concat();
    let (mut got, mut buf) = (Vec::new(), [0; 3000]);
    while got.len() < expected.len() {
        match (&rig.peer).read(&mut buf[..random.usize(1..3000)]) {
            Ok(n) => got.extend_from_slice(&buf[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => rig.carry_on(),
            Err(error) => panic!("{error}"),
        }
        assert!(expected.starts_with(&got));
        // A parcel of which a part has left is not forwarded, those before it are.
        let tally = rig.books.tally();
        let (whole, part) =
            (tally.forwarded as usize, got.len().saturating_sub(tally.forwarded_bytes as usize));
        assert!(
            parcels.get(whole).map_or(part == 0, |next| part < next.len()),
            "{tally}, {part} bytes of one more"
        );
    }
    assert_eq!(rig.settled().forwarded, 200);
}

#[test]
fn full_socket_leaves_everything_to_the_links_thread_in_order() {
    let rig = Rig::new(1 << 20);
    let mut parcels = rig.fill();
    for n in 1..200 {
        parcels.push(parcel(n, 1000));
        rig.put(&parcels[n]);
        assert_eq!(rig.books.tally().forwarded, 0, "the socket is full");
    }
    rig.start();
    rig.expect(&parcels);
    assert_eq!(rig.settled().forwarded, parcels.len() as u64);
}

/// Whoever finds the token taken goes its way; its parcel is written by the one that has it.
#[test]
fn token_contention_leaves_the_parcel_to_the_holder() {
    let rig = Rig::new(1 << 20);
    let parcels: Vec<_> = (0..5).map(|n| parcel(n, 100)).collect();
    Held::during(&rig, || {
        parcels.iter().for_each(|parcel| rig.put(parcel));
        assert_eq!(rig.books.tally().forwarded, 0);
        assert_eq!(rig.books.tally().queued, 5);
    });
    assert_eq!(rig.settled().forwarded, 5);
    rig.expect(&[&[Bytes::from_static(b"held")], &parcels[..]].concat());
}

/// Four threads at once, nobody to help them: together they forget nothing, and each one's order is kept.
#[test]
fn token_contention_between_threads_forgets_nothing() {
    const THREADS: usize = 4;
    const EACH: usize = 8;
    // All that is put in at once fits into the socket.
    let rig = Rig::with_buffers(1 << 20, 128 * 1024);
    for round in 0..1000 {
        let begin = Barrier::new(THREADS);
        let (rig, begin) = (&rig, &begin);
        thread::scope(|scope| {
            for thread in 0..THREADS {
                scope.spawn(move || {
                    begin.wait();
                    (0..EACH).for_each(|n| rig.put(&parcel(round << 16 | thread << 8 | n, 8)));
                });
            }
        });
        let tally = rig.books.tally();
        assert_eq!((tally.queued, tally.forwarded), (0, ((round + 1) * THREADS * EACH) as u64));
        let mut got = [0; THREADS * EACH * 8];
        (&rig.peer).read_exact(&mut got).unwrap();
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
    struct Again(Mutex<Option<Arc<Outlet>>>, Arc<AtomicBool>);
    impl Late for Again {
        fn take(&self) -> Option<Bytes> {
            if let Some(outlet) = self.0.lock().unwrap().as_ref().filter(|_| !self.1.load(SeqCst)) {
                outlet.put_late(Arc::new(Again(Mutex::new(Some(Arc::clone(outlet))), Arc::clone(&self.1))));
            }
            Some(Bytes::from_static(b"."))
        }
    }
    let rig = Rig::new(1 << 20);
    let stop = Arc::new(AtomicBool::new(false));
    rig.outlet.put_late(Arc::new(Again(Mutex::new(Some(Arc::clone(&rig.outlet))), Arc::clone(&stop))));
    // It came back, with something left to do.
    rig.peer.set_nonblocking(true).unwrap();
    let mut all = Vec::new();
    let error = (&rig.peer).read_to_end(&mut all).unwrap_err();
    assert_eq!((error.kind(), all.len()), (ErrorKind::WouldBlock, 8 * 64), "eight writes of 64 parcels each");
    rig.peer.set_nonblocking(false).unwrap();
    // The link's thread goes on, and comes to what is put in last.
    stop.store(true, SeqCst);
    rig.start();
    rig.put(&parcel(7, 8));
    rig.settled();
    rig.outlet.finish();
    let rest = rig.rest();
    assert!(rest.starts_with(b".") && rest.ends_with(&parcel(7, 8)));
}

/// A full queue refuses at once, keeps what it has, and takes more as soon as there is room.
#[test]
fn queue_full_refuses_at_once_and_goes_on_in_order() {
    let rig = Rig::new(300_000);
    let mut parcels = rig.fill();
    let refused = loop {
        let next = parcel(parcels.len(), 1000);
        match rig.try_put(&next) {
            Ok(()) => parcels.push(next),
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refused, Refusal::Full);
    let tally = rig.books.tally();
    assert!(tally.balances() && tally.received == parcels.len() as u64, "{tally}");
    // Whoever waits for room gets it when the reader reads on, and comes last.
    let last = parcel(parcels.len(), 1000);
    rig.start();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| rig.account.hold(Load::alone(1, last.len()), None));
        rig.expect(&parcels);
        rig.outlet.put(last.clone(), waiting.join().unwrap().unwrap());
    });
    rig.expect(&[last]);
    assert_eq!(rig.settled().forwarded, parcels.len() as u64 + 1);
}

/// One link that takes nothing: whoever puts something in is not held up, and the next link gets everything.
#[test]
fn queue_full_of_one_link_delays_no_other() {
    let (stalled, live) = (Rig::new(50_000), Rig::new(1 << 20));
    for rig in [&stalled, &live] {
        rig.start();
    }
    let mut taken = 0;
    let parcels: Vec<_> = (0..1000).map(|n| parcel(n, 1000)).collect();
    for parcel in &parcels {
        taken += u64::from(stalled.try_put(parcel).is_ok());
        let hold = live.account.try_hold(Load::alone(1, parcel.len())).unwrap();
        live.outlet.put(parcel.clone(), hold);
        live.expect(std::slice::from_ref(parcel));
    }
    assert_eq!(live.settled().forwarded, 1000);
    assert!(stalled.account.charged() <= 50_000);
    stalled.account.close(DropCause::SessionEnded);
    stalled.outlet.close();
    let tally = stalled.settled();
    assert!(taken < 1000 && tally.received == taken && tally.all_dropped() > 0, "{tally}");
}

/// What the other side gets of a session that ended is the beginning of what was put in, and the books know
/// how much of it left.
#[track_caller]
fn ended_in_the_middle(rig: &Rig, parcels: &[Bytes]) {
    let tally = rig.settled();
    assert_eq!(tally.received, parcels.len() as u64, "{tally}");
    assert!(tally.all_dropped() > 0, "{tally}");
    let got = rig.rest();
    let forwarded = parcels.iter().take(tally.forwarded as usize).map(Bytes::len).sum();
    assert!(parcels.concat().starts_with(&got) && got.len() >= forwarded, "{tally}");
}

#[test]
fn session_ending_in_a_partial_write_drops_the_rest() {
    let rig = Rig::new(1 << 20);
    let parcels = [parcel(1, 10), parcel(2, 100_000), parcel(3, 10)];
    parcels.iter().for_each(|parcel| rig.put(parcel));
    rig.account.close(DropCause::SessionEnded);
    rig.outlet.close();
    assert_eq!(rig.books.tally().queued, 0, "at once, without the link's thread");
    assert_eq!(rig.books.tally().forwarded, 1);
    ended_in_the_middle(&rig, &parcels);
}

#[test]
fn session_ending_while_the_links_thread_writes_drops_the_rest() {
    let rig = Rig::new(1 << 20);
    let parcels = rig.fill();
    rig.start();
    // More is read than the sockets hold: the thread has written, and waits in its next write.
    rig.expect(&[parcels[0].slice(..100_000)]);
    let mut more: Vec<_> = (1..100).map(|n| parcel(n, 1000)).collect();
    more.iter().for_each(|parcel| rig.put(parcel));
    rig.account.close(DropCause::SessionEnded);
    rig.outlet.close();
    more.insert(0, parcels[0].slice(100_000..));
    let tally = rig.settled();
    assert!(tally.received == 100 && tally.all_dropped() > 0, "{tally}");
    assert!(more.concat().starts_with(&rig.rest()));
}

/// Closing never waits for whoever has the token; that one drops what it finds when it comes back.
#[test]
fn session_ending_while_another_has_the_token_drops_everything() {
    let rig = Rig::new(1 << 20);
    Held::during(&rig, || {
        rig.put(&parcel(1, 100));
        rig.account.close(DropCause::SessionEnded);
        rig.outlet.close();
        assert_eq!(rig.books.tally().queued, 1);
    });
    let tally = rig.settled();
    assert_eq!((tally.forwarded, tally.all_dropped()), (0, 1), "{tally}");
}

#[test]
fn session_that_has_ended_drops_what_is_put_in_later() {
    let rig = Rig::new(1 << 20);
    let holds = [1, 2].map(|_| rig.account.try_hold(Load::alone(1, 8)).unwrap());
    rig.outlet.close();
    holds.into_iter().for_each(|hold| rig.outlet.put(parcel(1, 8), hold));
    assert_eq!(rig.settled().all_dropped(), 2);
    assert!(rig.rest().is_empty());
}

/// The other side resets the link: whoever writes next says so, and nothing stays behind.
#[test]
fn session_broken_by_the_other_side_drops_everything_and_says_so() {
    for with_thread in [false, true] {
        let mut rig = Rig::new(1 << 20);
        let parcels = rig.fill();
        if with_thread {
            rig.start();
        }
        // Closed with bytes unread, it resets the connection.
        drop(std::mem::replace(&mut rig.peer, rig.outlet.stream().try_clone().unwrap()));
        rig.carry_on();
        drop(rig.failures.recv_timeout(PATIENCE).unwrap());
        let tally = rig.settled();
        assert_eq!(tally.received, parcels.len() as u64);
        assert!(tally.all_dropped() > 0, "{tally}");
    }
}
