//! D4 Bounded: memory has a ceiling whatever peers and the kernel do; a full queue pushes back on its
//! source by not reading it; nothing spins or sleeps in a retry loop.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::thread;
use std::time::Instant;

use crate::support::*;

/// Most resident memory in KiB that one stalled peer or module may lead to.
const CEILING: u64 = 200 * 1024;

/// Processor time used while nothing can move, as a part of the time that passed, in percent.
fn idle_load(daemon: &Daemon) -> u64 {
    let (start, ticks) = (Instant::now(), daemon.cpu_ticks());
    thread::park_timeout(ms(1500));
    (daemon.cpu_ticks() - ticks) * 1000 / start.elapsed().as_millis() as u64
}

/// Failure mode 9: a peer that does not read costs bounded memory with 64 KiB packets; the kernel is pushed
/// back; meanwhile the daemon sleeps.
#[test]
fn fm09_a_stalled_peer_costs_bounded_memory_and_no_processor_time() {
    let harness = Harness::with(2, 0, |config| config.set("slowtimeout", 60));
    let peer = harness.connect(&harness.caller(1).small_buffer());
    peer.data.pause(true);
    let flood = harness.kernel.data.flood(|seq| (seq < 8000).then(|| Packet::data(seq, bit(1), 65_536)));
    let sent = flood.wait_stalled(ms(500));
    assert!(sent < 8000, "the kernel is pushed back");
    let peak = harness.daemon.status("VmHWM");
    assert!(peak < CEILING, "{peak} KiB resident with {sent} packets taken");
    let load = idle_load(&harness.daemon);
    assert!(load < 10, "{load} % of a processor while stalled");
    harness.kernel.data.close();
    flood.stop();
    harness.stop();
}

/// Queues are bounded in entries too: packets without payload push back and cost bounded memory.
#[test]
fn empty_packets_are_bounded_too() {
    let harness = Harness::with(2, 0, |config| config.set("slowtimeout", 60));
    let peer = harness.connect(&harness.caller(1).small_buffer());
    peer.data.pause(true);
    let flood = harness.kernel.data.flood(|seq| (seq < 1_000_000).then(|| Packet::data(seq, bit(1), 0)));
    let sent = flood.wait_stalled(ms(500));
    assert!(sent < 1_000_000, "the kernel is pushed back");
    let peak = harness.daemon.status("VmHWM");
    assert!(peak < CEILING, "{peak} KiB resident with {sent} packets taken");
    harness.kernel.data.close();
    flood.stop();
    harness.stop();
}

/// Failure mode 9: the memory that large packets took is given back when they are gone.
#[test]
fn fm09_large_packets_leave_no_memory_behind() {
    let harness = Harness::new(4);
    let peers = [1, 2, 3].map(|id| harness.call(id));
    let before = harness.daemon.status("VmRSS");
    let large = |seq, to| Packet::data(seq, to, 16 << 20);
    for seq in 0..2 {
        harness.kernel.data.send(&large(seq, bit(1) | bit(2) | bit(3)));
        for peer in &peers {
            assert_eq!(peer.data.recv().seq(), seq);
            peer.data.send(&large(seq, bit(0)));
            assert_eq!(harness.kernel.data.recv().seq(), seq);
        }
    }
    redial("giving memory back", PATIENCE, || {
        (harness.daemon.status("VmRSS") < before + 8 * 1024).then_some(())
    });
    harness.stop();
}

/// A module that does not read costs bounded memory, with several peers sending.
#[test]
fn a_stalled_module_costs_bounded_memory() {
    let harness = Harness::with(4, 0, |config| config.set("slowtimeout", 60));
    let peers = [1, 2, 3].map(|id| harness.call(id));
    harness.kernel.data.pause(true);
    let make = |seq| (seq < 8000).then(|| Packet::data(seq, bit(0), 65_536));
    let floods = peers.each_ref().map(|peer| peer.data.flood(make));
    for flood in &floods {
        assert!(flood.wait_stalled(ms(500)) < 8000, "the peer is pushed back");
    }
    let peak = harness.daemon.status("VmHWM");
    assert!(peak < CEILING, "{peak} KiB resident");
    let load = idle_load(&harness.daemon);
    assert!(load < 10, "{load} % of a processor while stalled");
    drop(peers);
    for flood in floods {
        flood.stop();
    }
    harness.kernel.wait_state(0, PATIENCE);
    harness.stop();
}

/// A module that does not read costs bounded memory, however many sessions a peer begins meanwhile, each of
/// which leaves something behind.
#[test]
fn sessions_that_follow_one_another_do_not_pile_up_before_a_stalled_module() {
    let harness = Harness::with(2, 0, |config| config.set("slowtimeout", 60));
    harness.kernel.data.pause(true);
    let begin = || {
        let peer = harness.caller(1).call_until_taken();
        let flood = peer.data.flood(|seq| (seq < 8000).then(|| Packet::data(seq, bit(0), 65_536)));
        flood.wait_stalled(ms(100));
        peer.data.close();
        flood.stop();
        harness.daemon.status("VmRSS")
    };
    let first = begin();
    for _ in 0..11 {
        begin();
    }
    let last = begin();
    assert!(last < first + 16 * 1024, "{first} KiB after a session, {last} KiB after 12 more");
    harness.kernel.data.pause(false);
    harness.stop();
}

/// Failure mode 7: packets with the sender's own bit, or with unknown bits alone, go nowhere: they are
/// counted and stop nothing.
#[test]
fn fm07_own_and_unknown_bits_are_ignored() {
    let harness = Harness::new(2);
    let peer = harness.call(1);
    let flood = harness.kernel.data.flood(|seq| {
        let mask = [bit(0), 0, bit(31) | bit(0), bit(30)][seq as usize % 4];
        (seq < 40_000).then(|| Packet::data(seq, mask, 0))
    });
    assert_eq!(flood.finish(), 40_000);
    harness.assert_carries(&peer);
    let packet = Packet::data(1, bit(0) | bit(1) | bit(31), 10);
    harness.kernel.data.send(&packet);
    assert_eq!(peer.data.recv(), packet, "the other bits still get it, the mask unchanged");
    harness.stop();
}

/// Failure mode 27: what is dropped is freed.
#[test]
fn fm27_dropped_packets_do_not_leak() {
    let harness = Harness::new(3);
    let peer = harness.call(1);
    let drop_some = |count: u64| {
        let flood = harness.kernel.data.flood(move |seq| {
            let packet = Packet::new([kind::ND_SBIO, 60, 0, kind::SD_DATA][seq as usize % 4]);
            (seq < count).then(|| packet.with_to([0, bit(2), bit(0), bit(20)][seq as usize / 4 % 4]))
        });
        flood.finish();
        harness.assert_carries(&peer);
        harness.daemon.status("VmRSS")
    };
    let before = drop_some(20_000);
    let after = drop_some(100_000);
    assert!(after < before + 6 * 1024, "{before} KiB before, {after} KiB after 100,000 dropped packets");
    harness.stop();
}

/// Failure mode 8: a full queue goes on as soon as there is room: no step of it waits out a sleep.
#[test]
fn fm08_a_full_queue_goes_on_at_once() {
    let harness = Harness::with(2, 0, |config| config.set("slowtimeout", 60));
    let peer = harness.connect(&harness.caller(1).small_buffer());
    let flood = harness.kernel.data.flood(|seq| Some(Packet::data(seq, bit(1), 16_384)));
    let mut seq = 0;
    let mut times = Vec::new();
    for _ in 0..5 {
        peer.data.pause(true);
        let stalled_at = flood.wait_stalled(ms(200));
        let start = Instant::now();
        peer.data.pause(false);
        // Everything that was taken before, and then some that was pushed back.
        while seq < stalled_at + 50 {
            let packet = peer.data.recv();
            assert_eq!(packet.seq(), seq);
            seq += 1;
        }
        times.push(start.elapsed());
    }
    assert!(median(times.clone()) < ms(900), "from full to flowing: {times:?}");
    harness.kernel.data.close();
    flood.stop();
    harness.stop();
}

/// Failure mode 18: every refused connection is closed: no descriptor stays behind.
#[test]
fn fm18_refused_connections_leave_no_descriptor() {
    let harness = Harness::new(3);
    let peer = harness.call(1);
    harness.assert_carries(&peer);
    let before = harness.daemon.descriptors();
    for _ in 0..50 {
        let mut caller = harness.caller(2);
        caller.id = 9;
        assert!(caller.try_call().is_err(), "node 9 is unknown");
        assert!(kernel_hello(harness.net.server(0), kind::HS_D, 0).is_err(), "a module is attached");
    }
    for _ in 0..20 {
        harness.caller(2).call_until_taken().kill();
    }
    harness.kernel.wait_state(bit(1), PATIENCE);
    harness.assert_carries(&peer);
    let after = redial("closing what was refused", PATIENCE, || {
        let now = harness.daemon.descriptors();
        (now <= before + 2).then_some(now)
    });
    assert!(after <= before + 2);
    harness.stop();
}

/// With nothing to do and a peer missing, the daemon sleeps.
#[test]
fn an_idle_daemon_sleeps() {
    let harness = Harness::with(3, 2, |config| config);
    let load = idle_load(&harness.daemon);
    assert!(load < 5, "{load} % of a processor");
    harness.stop();
}

/// Threads do not pile up with sessions.
#[test]
fn threads_end_with_their_sessions() {
    let harness = Harness::new(2);
    let peer = harness.call(1);
    let before = harness.daemon.status("Threads");
    let mut peer = Some(peer);
    for _ in 0..30 {
        peer = Some(harness.caller(1).call_until_taken());
    }
    drop(peer);
    harness.kernel.wait_state(0, PATIENCE);
    redial("ending threads", PATIENCE, || (harness.daemon.status("Threads") <= before).then_some(()));
    harness.stop();
}
