//! Large packets without a copy (D1 order, D2 completeness, D6): the same bytes go both ways, through pipes and copied,
//! with every split of a header, ends in the middle of a packet, a destination that stops, and garbage.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, unbounded};
use hadmd::daemon::link::{Closed, Item, LinkSender, Piped, Reading, Run, Sink, TakesPipes, read_link};
use hadmd::daemon::queue::{Budget, CounterSnapshot, DropCause, PacketCounters};
use hadmd::sys::readable_bytes;
use hadmd::wire::Class;
use socket2::SockRef;

use crate::cut_through::settled;
use crate::support::*;

/// Smallest payload that goes without a copy here: tests with every split of a packet need short ones.
const LARGE: u32 = 100;
/// Ceiling of the queue: more than the pipes that there are.
const CEILING: usize = 64 << 20;
/// Packets that the reader copies before it begins.
const FIRST: u64 = 4;

/// All pipes are the process's: one test at a time has them.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sockets(address: &str) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(address).unwrap();
    let out = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (out, listener.accept().unwrap().0)
}

/// Puts each run into the queue of a link, in the way in which it comes.
struct Relay {
    sender: Arc<LinkSender>,
    budget: Arc<Budget>,
    /// Packets that came in a pipe.
    piped: Arc<AtomicU32>,
    /// Longest wait for an empty queue.
    patience: Duration,
    /// Pipes that are kept for good.
    kept: Option<Vec<Piped>>,
}

impl Sink for Relay {
    fn take(&mut self, item: Item) -> Result<(), Closed> {
        let Item::Run(run) = item else { return Ok(()) };
        self.sender.put(run.bytes, self.budget.acquire(run.cost).map_err(|_| Closed::Ended)?);
        Ok(())
    }

    fn takes_pipes(&self, _: &Run) -> TakesPipes {
        // The process has few pipes: a queue that is to have them all the time waits for those before.
        self.budget.wait_for_at_most(0, Instant::now() + self.patience);
        TakesPipes::Yes
    }

    fn take_piped(&mut self, run: Run, piped: Piped) -> Result<(), Closed> {
        assert!(run.bytes.is_empty() && run.cost.chunk_bytes >= run.cost.bytes);
        self.piped.fetch_add(run.cost.packets, SeqCst);
        if let Some(kept) = &mut self.kept {
            kept.push(piped);
            return Ok(());
        }
        let permit = self.budget.acquire(run.cost).map_err(|_| Closed::Ended)?;
        self.sender.put_run(run.bytes, Some(piped), permit);
        Ok(())
    }
}

/// A link that is read, and the link to which its packets go.
struct Harness {
    source: TcpStream,
    /// The socket that is read.
    read: TcpStream,
    destination: TcpStream,
    sender: Arc<LinkSender>,
    budget: Arc<Budget>,
    counters: Arc<PacketCounters>,
    piped: Arc<AtomicU32>,
    closed: Receiver<Closed>,
}

impl Harness {
    fn new(zero_copy: Option<u32>) -> Self {
        Harness::with(zero_copy, "127.0.0.1:0", CEILING, |_, _| {}, false)
    }

    /// `prepare` gets the sockets to the destination, `keep` is true if pipes are kept.
    fn with(
        zero_copy: Option<u32>,
        address: &str,
        ceiling: usize,
        prepare: impl FnOnce(&TcpStream, &TcpStream),
        keep: bool,
    ) -> Self {
        let ((source, read), (out, destination)) = (sockets(address), sockets(address));
        prepare(&out, &destination);
        source.set_nodelay(true).unwrap();
        destination.set_read_timeout(Some(PATIENCE)).unwrap();
        let counters = Arc::new(PacketCounters::default());
        let budget = Budget::new(ceiling, Arc::clone(&counters));
        let sender = LinkSender::new(Class::Data, out, None, |_| {});
        let piped = Arc::new(AtomicU32::new(0));
        let mut relay = Relay {
            sender: Arc::clone(&sender),
            budget: Arc::clone(&budget),
            piped: Arc::clone(&piped),
            patience: ms(if ceiling < CEILING { 1000 } else { 0 }),
            kept: keep.then(Vec::new),
        };
        let (end, closed) = unbounded();
        let reading = Reading { max_packet: 1 << 20, busy_poll: Duration::ZERO, zero_copy };
        let stream = read.try_clone().unwrap();
        thread::spawn(move || {
            let closed = read_link(&stream, "test", None, reading, None, &mut relay);
            drop(relay);
            end.send(closed)
        });
        Harness { source, read, destination, sender, budget, counters, piped, closed }
    }

    fn send(&self, bytes: &[u8]) {
        (&self.source).write_all(bytes).unwrap();
    }

    /// Waits until the reader has taken everything that has come: what is sent then does not come together with it.
    fn wait_taken(&self) {
        wait("the reader to take all", || readable_bytes(&self.read) == 0);
    }

    #[track_caller]
    fn expect(&self, bytes: &[u8]) {
        let mut got = vec![0; bytes.len()];
        (&self.destination).read_exact(&mut got).unwrap();
        assert!(got == bytes, "{} bytes are not those that were sent", bytes.len());
    }

    /// Returns what follows until the end of the stream.
    fn rest(&self) -> Vec<u8> {
        self.sender.finish();
        let mut rest = Vec::new();
        (&self.destination).read_to_end(&mut rest).unwrap();
        rest
    }

    fn closed(&self) -> Closed {
        self.closed.recv_timeout(PATIENCE).unwrap()
    }

    /// Returns the counters, once nothing is queued.
    #[track_caller]
    fn settled(&self) -> CounterSnapshot {
        settled(&self.budget, &self.counters)
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.sender.close();
        let _ = self.read.shutdown(Shutdown::Both);
        // No pipe of this test is in use in the next.
        let _ = self.closed.recv_timeout(PATIENCE);
    }
}

#[track_caller]
fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        thread::yield_now();
    }
}

fn packets(sizes: impl IntoIterator<Item = usize>) -> Vec<Vec<u8>> {
    sizes.into_iter().enumerate().map(|(n, size)| Packet::data(n as u64, bit(1), size).bytes()).collect()
}

const WAYS: [Option<u32>; 3] = [Some(LARGE), Some(0), None];

#[test]
fn every_split_of_a_packet_gives_the_same_bytes_both_ways() {
    let _alone = alone();
    let first = packets([150; FIRST as usize]).concat();
    let [second, third] = [5, 6].map(|seq| Packet::data(seq, bit(1), 120).bytes());
    for way in WAYS {
        let harness = Harness::new(way);
        harness.send(&first);
        harness.expect(&first);
        for split in 1..second.len() {
            // The rest of the packet comes with the beginning of the next one.
            harness.send(&second[..split]);
            harness.wait_taken();
            harness.send(&[&second[split..], &third[..split]].concat());
            harness.wait_taken();
            harness.send(&third[split..]);
            harness.expect(&[&second[..], &third[..]].concat());
        }
        let sent = FIRST + 2 * (second.len() as u64 - 1);
        harness.source.shutdown(Shutdown::Write).unwrap();
        assert!(matches!(harness.closed(), Closed::Eof(0)));
        let snapshot = harness.settled();
        let bytes = first.len() + (second.len() + third.len()) * (second.len() - 1);
        assert_eq!((snapshot.received, snapshot.forwarded), (sent, sent));
        assert_eq!((snapshot.received_bytes, snapshot.forwarded_bytes), (bytes as u64, bytes as u64));
        let piped = u64::from(harness.piped.load(SeqCst));
        assert!(if way.is_some() { piped > sent / 4 } else { piped == 0 }, "{piped} of {sent} in pipes");
        assert!(harness.rest().is_empty(), "more than was sent");
    }
}

#[test]
fn packets_of_all_lengths_in_pieces_of_all_lengths_give_the_same_bytes() {
    let _alone = alone();
    for (address, seed) in [("127.0.0.1:0", 1), ("[::1]:0", 2)] {
        let mut random = fastrand::Rng::with_seed(seed);
        let harness = Harness::with(Some(LARGE), address, 4 << 20, |_, _| {}, false);
        harness.sender.start("test:data-tx").unwrap();
        let sizes = (0..3000).map(|_| match random.u32(0..20) {
            0 => random.usize(0..200),
            1 => random.usize(100_000..1_000_000),
            _ => random.usize(100..10_000),
        });
        let packets = packets(sizes);
        let all = packets.concat();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut rest = &all[..];
                while !rest.is_empty() {
                    let n = random.usize(1..200_000).min(rest.len());
                    harness.send(&rest[..n]);
                    rest = &rest[n..];
                }
            });
            harness.expect(&all);
        });
        let (snapshot, piped) = (harness.settled(), harness.piped.load(SeqCst));
        assert_eq!((snapshot.forwarded, snapshot.forwarded_bytes), (3000, all.len() as u64));
        assert!(piped > 1500, "{piped} of 3000 in pipes");
    }
}

/// A source that closes in the middle of a run: whole packets have left, and nothing of the last one.
#[test]
fn a_source_that_closes_in_mid_run_leaves_whole_packets() {
    let _alone = alone();
    let whole = packets([300; 8]).concat();
    let last = Packet::data(9, bit(1), 50_000).bytes();
    for way in WAYS {
        for cut in [0, 1, HEADER - 1, HEADER, HEADER + 1, 40_000, last.len() - 1] {
            let harness = Harness::new(way);
            harness.send(&[&whole, &last[..cut]].concat());
            harness.source.shutdown(Shutdown::Write).unwrap();
            assert!(matches!(harness.closed(), Closed::Eof(n) if n == cut), "{cut} bytes of a packet");
            harness.expect(&whole);
            let snapshot = harness.settled();
            assert_eq!((snapshot.received, snapshot.forwarded), (8, 8));
            assert!(harness.rest().is_empty(), "more than was sent");
        }
    }
}

#[test]
fn nothing_behind_garbage_is_forwarded() {
    let _alone = alone();
    let whole = packets([300; 8]).concat();
    let good = Packet::data(9, bit(1), 300).bytes();
    let spoilt = |at: usize, byte: u8| {
        let mut packet = good.clone();
        packet[at] = byte;
        packet
    };
    // The magic, and a length of more than 1 MiB.
    for bad in [spoilt(0, 0), spoilt(7, 0), spoilt(10, 0x7f), vec![0xee; 1000]] {
        for way in WAYS {
            for at_once in [true, false] {
                let harness = Harness::new(way);
                harness.send(&whole);
                if !at_once {
                    harness.expect(&whole);
                }
                harness.send(&[&bad[..], &good, &good].concat());
                let closed = harness.closed();
                assert!(matches!(closed, Closed::Violation(_)), "{closed}");
                if at_once {
                    harness.expect(&whole);
                }
                assert_eq!(harness.settled().received, 8);
                assert!(harness.rest().is_empty(), "more than was sent");
            }
        }
    }
}

/// A destination that stops in the middle of a run: the session's end leaves the packet that was begun, whole, and
/// drops the others; the counters have each packet once.
#[test]
fn a_destination_that_stops_in_mid_run_gets_the_begun_packet_whole() {
    let _alone = alone();
    for way in WAYS {
        let small = |out: &TcpStream, destination: &TcpStream| {
            SockRef::from(out).set_send_buffer_size(4096).unwrap();
            SockRef::from(destination).set_recv_buffer_size(4096).unwrap();
        };
        let harness = Harness::with(way, "127.0.0.1:0", CEILING, small, false);
        let packets = packets([20_000; 40]);
        harness.send(&packets.concat());
        // No thread of the link's own goes on: the socket has a part, and stays full.
        wait("all packets in the queue", || harness.counters.snapshot().received == 40);
        harness.budget.close(DropCause::SessionEnded);
        harness.budget.void();
        harness.sender.start("test:data-tx").unwrap();
        let (got, snapshot) = thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut got = Vec::new();
                (&harness.destination).read_to_end(&mut got).map(|_| got)
            });
            let snapshot = harness.settled();
            harness.sender.finish();
            (reader.join().unwrap().unwrap(), snapshot)
        });
        assert!((1..40).contains(&snapshot.forwarded), "{snapshot}");
        assert_eq!(snapshot.forwarded + snapshot.all_dropped(), 40);
        assert_eq!(got.len(), snapshot.forwarded as usize * packets[0].len(), "{snapshot}");
        assert!(packets.concat().starts_with(&got));
        assert!(way.is_none() || harness.piped.load(SeqCst) > 8);
    }
}

/// Without a pipe that is free, packets are copied, and nothing else changes.
#[test]
fn packets_are_copied_while_all_pipes_are_in_use() {
    let _alone = alone();
    let harness = Harness::with(Some(LARGE), "127.0.0.1:0", CEILING, |_, _| {}, true);
    let packets = packets([200; 300]);
    let mut copied = Vec::new();
    for (n, packet) in packets.iter().enumerate() {
        let kept = harness.piped.load(SeqCst);
        harness.send(packet);
        wait("the packet to be taken", || {
            u64::from(harness.piped.load(SeqCst)) + harness.counters.snapshot().received == n as u64 + 1
        });
        if harness.piped.load(SeqCst) == kept {
            copied.extend_from_slice(packet);
        }
    }
    let kept = harness.piped.load(SeqCst);
    assert!((1..=32).contains(&kept), "{kept} pipes");
    harness.expect(&copied);
    assert_eq!(harness.settled().forwarded, 300 - u64::from(kept));
    assert!(harness.rest().is_empty(), "more than was sent");
}

/// Two daemons, with and without, large packets both ways and between others: all arrive, each counted once, and the
/// status says how they went.
#[test]
fn two_daemons_carry_large_packets_both_ways() {
    let _alone = alone();
    for on in [true, false] {
        let net = Subnet::claim();
        let config = ConfigBuilder::new(&net, 2).set("zerocopy", if on { "on" } else { "off" }).build();
        let daemons = [0, 1].map(|id| Daemon::start(&net, &config, id));
        let kernels = [0, 1].map(|id| FakeKernel::attach(&net, id));
        kernels[0].wait_state(bit(1), PATIENCE);
        kernels[1].wait_state(bit(0), PATIENCE);
        let length = |seq: u64| match seq % 50 {
            0 => 100,
            1 => 1 << 20,
            n => 32_768 + n as usize * 1000,
        };
        // Some of them are also for a node that is not there.
        let to = |seq: u64, to: u8| if seq % 40 == 9 { bit(to) | bit(9) } else { bit(to) };
        let data = |id: u8| move |seq| (seq < 1000).then(|| Packet::data(seq, to(seq, id), length(seq)));
        let floods = [(0, 1), (1, 0)].map(|(from, id): (usize, u8)| kernels[from].data.flood(data(id)));
        thread::scope(|scope| {
            for (kernel, id) in kernels.iter().zip([0, 1]) {
                scope.spawn(move || {
                    (0..1000).for_each(|seq| assert_eq!(Some(kernel.data.recv()), data(id)(seq)))
                });
            }
        });
        floods.into_iter().for_each(|flood| assert_eq!(flood.finish(), 1000));
        let bytes: u64 = (0..1000).map(|seq| (HEADER + length(seq)) as u64).sum();
        for (id, peer) in [(0, 1), (1, 0)] {
            let status = status(&config, id);
            let zero_copied = &status["peers"][0]["zero_copied"];
            assert_eq!(zero_copied.is_object(), on, "{zero_copied}");
            for field in ["in_bytes", "out_bytes"].into_iter().filter(|_| on) {
                let piped = zero_copied[field].as_u64().unwrap();
                assert!((1..bytes).contains(&piped), "node {peer}, {field}: {piped} of {bytes}");
            }
        }
        for (daemon, peer) in daemons.into_iter().zip([1, 0]) {
            let counters = daemon.stop();
            for direction in ["in", "out"] {
                let line = counters.line(peer, "data", direction);
                assert_eq!((line.received, line.forwarded), (1000, 1000), "{line:?}");
            }
        }
    }
}

fn status(config: &ConfigFile, id: u8) -> serde_json::Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
    let command = command.arg("--control").arg(config.control(id)).args(["status", "--json"]);
    serde_json::from_slice(&command.output().unwrap().stdout).unwrap()
}
