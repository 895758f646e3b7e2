//! The cost of a packet in memory traffic, counted, not timed: allocations per packet on the way from a read
//! to a write, and bytes of payload that leave from elsewhere than where they were read to.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]
#![allow(clippy::print_stderr, reason = "says what was counted")]

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use allocation_counter::measure;
use hadmd::daemon::link::{Framer, Item, LinkSender, Run};
use hadmd::daemon::queue::{Budget, PacketCounters};
use hadmd::wire::{Class, HEADER_LEN, Header, Mask, PacketType};

const PAYLOAD: usize = 4096;
const PACKET: usize = HEADER_LEN + PAYLOAD;
/// Packets of one measurement, and of the warm-up in which buffers grow to their size.
const PACKETS: usize = 16 * 1024;

/// Reads of sizes as a socket gives them, from an endless stream of equal packets; each read's bytes are the
/// stream's.
struct Source {
    packet: Vec<u8>,
    framer: Framer,
    at: usize,
    sizes: fastrand::Rng,
}

impl Source {
    fn new() -> Self {
        let header = Header { len: PAYLOAD as u32, node_to: Mask::of(1), ..Header::new(PacketType::ND_SBIO) };
        let mut packet = header.encode().to_vec();
        packet.extend((0..PAYLOAD).map(|i| (i % 251) as u8));
        Source { packet, framer: Framer::new(1 << 20), at: 0, sizes: fastrand::Rng::with_seed(7) }
    }

    /// One read; `read` gets its place in the stream and in memory, `take` gets the runs.
    fn turn(&mut self, mut read: impl FnMut(usize, *const u8, usize), mut take: impl FnMut(Run)) {
        let room = self.framer.room().unwrap();
        let spare = room.capacity() - room.len();
        // Under load reads fill the buffer, but for one now and then.
        let n = if self.sizes.u8(..4) == 0 { self.sizes.usize(1..=spare) } else { spare };
        let (begin, mut left) = (room.len(), n);
        while left > 0 {
            let place = self.at % PACKET;
            let part = left.min(PACKET - place);
            room.extend_from_slice(&self.packet[place..place + part]);
            self.at += part;
            left -= part;
        }
        read(self.at - n, room[begin..].as_ptr(), n);
        self.framer.filled(n);
        while let Some(item) = self.framer.next(&mut |_| {}).unwrap() {
            let Item::Run(run) = item else { panic!("not a run: {item:?}") };
            take(run);
        }
    }
}

/// Once buffers have grown, buffers are used again, and a run of packets costs a few allocations at most.
#[test]
fn allocations_per_packet() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let out = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut peer = listener.accept().unwrap().0;
    let reader = thread::spawn(move || {
        let (mut buf, mut bytes) = (vec![0; 1 << 20], 0);
        loop {
            match peer.read(&mut buf).unwrap() {
                0 => return bytes,
                n => bytes += n,
            }
        }
    });
    let counters = Arc::new(PacketCounters::default());
    let budget = Budget::new(4 << 20, Arc::clone(&counters));
    let sender = LinkSender::new(Class::Data, out, None, |error| panic!("{error}"));
    sender.start("test:data-tx").unwrap();
    let mut source = Source::new();
    let mut carry = |end: usize| {
        while source.at < end * PACKET {
            source.turn(|_, _, _| {}, |run| sender.put(run.bytes, budget.acquire(run.cost).unwrap()));
        }
    };
    carry(PACKETS);
    // Counts this thread's: the one that reads, queues, and writes unless the socket is full.
    let counted = measure(|| carry(2 * PACKETS));
    let per_packet = counted.count_total as f64 / PACKETS as f64;
    eprintln!(
        "{per_packet:.4} allocations, {} bytes allocated per packet",
        counted.bytes_total / PACKETS as u64
    );
    assert!(per_packet < 0.1, "{per_packet} allocations per packet");
    assert!(budget.wait_idle(std::time::Instant::now() + std::time::Duration::from_secs(20)));
    sender.finish();
    assert_eq!(reader.join().unwrap() as u64, counters.snapshot().forwarded_bytes);
    sender.close();
}

/// Payload leaves from the memory it was read into: only a packet that the end of a buffer cuts is moved, and
/// buffers are cut to whole packets.
#[test]
fn copies_per_payload_byte() {
    let mut source = Source::new();
    // The target of each read: stream position, address, length.
    let reads = std::cell::RefCell::new(Vec::<(usize, usize, usize)>::new());
    let (mut out, mut stayed, mut moved) = (0, 0, 0);
    while out < 4 * PACKETS * PACKET {
        source.turn(
            |at, to, n| reads.borrow_mut().push((at, to.addr(), n)),
            |run| {
                let mut reads = reads.borrow_mut();
                reads.retain(|&(at, _, n)| at + n > out);
                let (from, end) = (run.bytes.as_ptr().addr(), out + run.bytes.len());
                for &(at, to, n) in reads.iter().filter(|(at, ..)| *at < end) {
                    let (first, last) = (at.max(out), (at + n).min(end));
                    let same = to + (first - at) == from + (first - out);
                    *(if same { &mut stayed } else { &mut moved }) += last - first;
                }
                // A clone, as every receiver of a fan-out gets it, is the same memory.
                assert_eq!(run.bytes.clone().as_ptr(), run.bytes.as_ptr());
                out = end;
            },
        );
    }
    eprintln!("{stayed} bytes stayed where they were read to, {moved} were moved");
    assert_eq!(stayed + moved, out);
    assert!(moved < out / 1000, "{moved} of {out} bytes were copied");
}
