//! Peers that keep up and peers that do not: progress is counted in bytes, a peer that holds up the others is judged by the
//! time for which it does, what is void is not sent, and what a slow kernel module leaves unread ends no session.
//! Peers and kernel modules read at a pace of their own here; every wait has a deadline.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::io::Read;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::*;

/// Something that reads a connection at a pace, and counts the bytes. It ends with the connection.
struct Paced {
    bytes: Arc<AtomicU64>,
    closed: Arc<AtomicBool>,
    stream: TcpStream,
}

impl Paced {
    /// Reads `lump` bytes each `every`, evenly or at once, as small as it is.
    fn start(stream: &TcpStream, lump: usize, every: Duration) -> Self {
        let (bytes, closed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let paced = Paced { bytes, closed, stream: stream.try_clone().unwrap() };
        let (bytes, closed) = (Arc::clone(&paced.bytes), Arc::clone(&paced.closed));
        let mut stream = stream.try_clone().unwrap();
        stream.set_read_timeout(Some(2 * PATIENCE)).unwrap();
        thread::spawn(move || {
            let (begun, mut block) = (Instant::now(), vec![0; lump.min(1 << 20)]);
            for turn in 1.. {
                let mut left = lump;
                while left > 0 {
                    let most = left.min(block.len());
                    match stream.read(&mut block[..most]) {
                        Ok(n @ 1..) => {
                            bytes.fetch_add(n as u64, SeqCst);
                            left -= n;
                        }
                        _ => return closed.store(true, SeqCst),
                    }
                }
                while let Some(rest) = (every * turn).checked_sub(begun.elapsed()) {
                    thread::park_timeout(rest.max(Duration::from_micros(50)));
                }
            }
        });
        paced
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(SeqCst)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(SeqCst)
    }

    /// Waits until this many bytes more are read.
    #[track_caller]
    fn wait_bytes(&self, more: u64, limit: Duration) {
        let wanted = self.bytes() + more;
        redial(&format!("{more} bytes"), limit, || {
            assert!(
                !self.is_closed(),
                "the connection ended {} bytes early",
                wanted.saturating_sub(self.bytes())
            );
            (self.bytes() >= wanted).then_some(())
        });
    }
}

impl Drop for Paced {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// Both links of a caller with a small receive buffer, past their hellos and unread.
fn raw_links(harness: &Harness, id: u8) -> [TcpStream; 2] {
    let caller = harness.caller(id).small_buffer();
    let before = Instant::now();
    let mut links = [DATA, META].map(|kind| caller.open(kind).unwrap());
    for (link, kind) in links.iter_mut().zip([DATA, META]) {
        caller.finish(link, kind).unwrap();
    }
    harness.wait_bit(before, id, true);
    links
}

/// Heartbeats slow enough for peers that answer none.
fn patient(config: ConfigBuilder) -> ConfigBuilder {
    config.heartbeat(60.0, 5).set("slowtimeout", 1)
}

/// A peer that is alone with a source faster than it holds up nobody: it lives on any steady pace, however
/// large the packets.
#[test]
fn a_steady_reader_that_is_alone_is_kept() {
    for (rate, packet) in [(400_000, 16_384), (1_500_000, 65_536), (2_000_000, 4 << 20)] {
        let harness = Harness::with(2, 0, patient);
        let [data, _meta] = raw_links(&harness, 1);
        let reader = Paced::start(&data, rate / 100, ms(10));
        let flood = harness.kernel.data.flood(move |seq| Some(Packet::data(seq, bit(1), packet)));
        // Beyond what the buffers between take, and many times the allowed time.
        reader.wait_bytes(rate as u64 * 4, PATIENCE);
        assert!(!reader.is_closed());
        assert_eq!(harness.daemon.log_count("session ended"), 0, "at {rate} bytes a second");
        harness.kernel.data.close();
        flood.stop();
        harness.stop();
    }
}

/// A peer that takes as much as the kernel module sends keeps up, beside others, too: also when it comes in
/// bursts, and the peer is far slower than each of them.
#[test]
fn a_reader_as_fast_as_its_source_is_kept_beside_others() {
    let harness = Harness::with(3, 0, patient);
    let [data, _meta] = raw_links(&harness, 1);
    let good = harness.call(2);
    let reader = Paced::start(&data, 10_000, ms(10));
    let begun = Instant::now();
    // A burst of 2 MB every two seconds: twice what it reads in that time, at a hundred times its pace.
    for seq in 0..384 {
        if seq % 128 == 0 {
            let due = ms(2000) * (seq / 128) as u32;
            while let Some(rest) = due.checked_sub(begun.elapsed()) {
                thread::park_timeout(rest);
            }
        }
        harness.kernel.data.send(&Packet::data(seq, bit(1) | bit(2), 16_384));
        assert_eq!(good.data.recv().seq(), seq);
    }
    reader.wait_bytes(1_000_000, PATIENCE);
    assert_eq!(harness.daemon.log_count("session ended"), 0);
    harness.stop();
}

/// A peer that takes much at once and nothing in between holds up the others all the same: the time counts,
/// and it has no better chance when it comes back.
#[test]
fn a_reader_in_lumps_holds_up_the_others_for_slowtimeout_at_most() {
    let harness = Harness::with(3, 0, patient);
    let [data, _meta] = raw_links(&harness, 1);
    let good = harness.call(2);
    let reader = Paced::start(&data, 4_300_000, ms(850));
    let both = bit(1) | bit(2);
    let flood = harness.kernel.data.flood(move |seq| Some(Packet::data(seq, both, 16_384)));
    let begun = Instant::now();
    let mut next = 0;
    let mut late = Duration::ZERO;
    let mut until = |end: &mut dyn FnMut() -> bool| {
        while !end() {
            let asked = Instant::now();
            assert_eq!(good.data.recv().seq(), next);
            late = late.max(asked.elapsed());
            next += 1;
        }
    };
    until(&mut || reader.is_closed() || begun.elapsed() > PATIENCE);
    assert!(reader.is_closed(), "it holds up the others for ever");
    harness.daemon.wait_log("it held up the kernel module's packets for slowtimeout", PATIENCE);
    // A tenth of ten seconds is used up: the others have the rest.
    let again = redial("calling again", PATIENCE, || {
        let caller = harness.caller(1).small_buffer();
        let mut data = caller.open(DATA).ok()?;
        let mut meta = caller.open(META).ok()?;
        caller.finish(&mut data, DATA).ok()?;
        caller.finish(&mut meta, META).ok()?;
        Some([data, meta])
    });
    let reader = Paced::start(&again[0], 4_300_000, ms(850));
    let begun = Instant::now();
    until(&mut || reader.is_closed() || begun.elapsed() > PATIENCE);
    assert!(reader.is_closed(), "it holds up the others again");
    assert!(late < ms(2500), "a packet was {late:?} late");
    harness.kernel.data.close();
    flood.stop();
    harness.stop();
}

/// Packets of an ended session that are queued for the kernel module are dropped when the next begins, also those
/// gathered to be written: only the bytes in the sockets still come, whole packets of them.
#[test]
fn an_old_sessions_packets_end_with_its_successor() {
    const OLD: usize = 65_536 - 128;
    let harness = Harness::with(2, 0, |config| config.set("slowtimeout", 60).heartbeat(60.0, 5));
    let old = harness.call(1);
    harness.kernel.data.pause(true);
    let flood = old.data.flood(|seq| Some(Packet::data(seq, bit(0), OLD)));
    flood.wait_stalled(ms(500));
    // With a full queue behind it, the sending end gathers as much as there is.
    harness.kernel.data.pause(false);
    let mut delivered = 0;
    let mut deliver = |packet: Packet| {
        packet.assert_as_sent();
        let old = packet.seq() < 1 << 40;
        assert!(!old || packet.seq() == delivered, "packet {} after {delivered}", packet.seq());
        delivered += u64::from(old);
        old
    };
    (0..100).for_each(|_| assert!(deliver(harness.kernel.data.recv())));
    harness.kernel.data.pause(true);
    flood.wait_stalled(ms(500));
    let before = Instant::now();
    let fresh = harness.caller(1).call_until_taken();
    harness.wait_bit(before, 1, true);
    flood.stop();
    fresh.data.send(&Packet::data(1 << 40, bit(0), 100));
    harness.kernel.data.pause(false);
    while deliver(harness.kernel.data.recv()) {}
    let counters = harness.stop();
    let line = counters.line(1, "data", "in");
    assert_eq!(line.forwarded, delivered + 1, "{line:?}");
    // A full queue of them, but for the half packet and a read buffer.
    assert!(line.dropped * 65_536 > 3 << 20, "{line:?}");
}

/// A kernel module that reads its meta link slowly, under a flood of meta packets, costs no session: what
/// waits unread here is not the peer's silence, and the peer hears enough from this side.
#[test]
fn a_slow_reader_of_meta_packets_costs_no_session() {
    for rate in [130_000, 1_000_000, 4_000_000] {
        let net = Subnet::claim();
        let config = ConfigBuilder::new(&net, 3).heartbeat(0.5, 5).build();
        let daemons = [0, 1].map(|id| Daemon::start(&net, &config, id));
        let far = FakeKernel::attach(&net, 1);
        let (_data, _) = kernel_hello(net.server(0), kind::HS_D, 7).unwrap();
        let (meta, _) = kernel_hello(net.server(0), kind::HS_M, 9).unwrap();
        far.wait_state(bit(0), PATIENCE);
        // A scripted peer floods as well: its answers to pings come after its flood.
        let peer = Caller::new(&net, 2, 0).call_until_taken();
        let reader = Paced::start(&meta, rate / 100, ms(10));
        let floods = [
            far.meta.flood(|seq| Some(Packet::filled(kind::NC_STATE, seq, 4096).with_to(bit(0)))),
            peer.meta.flood(|seq| Some(Packet::filled(kind::NC_STATE, seq, 4096).with_to(bit(0)))),
        ];
        reader.wait_bytes(rate as u64 * 5, PATIENCE);
        for daemon in &daemons {
            assert_eq!(daemon.log_count("session ended"), 0, "at {rate} bytes a second");
        }
        assert!(!peer.meta.is_closed() && !reader.is_closed());
        drop((far, peer, reader));
        floods.into_iter().for_each(|flood| assert!(flood.stop() > 0));
        daemons.into_iter().for_each(|daemon| drop(daemon.stop()));
    }
}
