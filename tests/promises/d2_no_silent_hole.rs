//! D2 No silent hole: within one peer session every data packet accepted from the kernel for that peer
//! reaches the peer's kernel, or the session ends and both kernels hear of it. Packets queued when a session
//! ended is never sent in the next one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::time::Instant;

use crate::support::*;

/// Checks that sequence numbers rise by one, and gives the first and the one after the last.
#[track_caller]
fn assert_no_hole(seqs: &[u64]) -> Option<(u64, u64)> {
    let (&first, &last) = (seqs.first()?, seqs.last()?);
    let hole = seqs.windows(2).position(|pair| pair[1] != pair[0] + 1);
    let place = hole.map(|at| format!("{} of packets {first} to {last}: {:?}", at + 1, &seqs[at..at + 2]));
    assert_eq!(place, None, "a hole within one session");
    Some((first, last + 1))
}

fn seqs(packets: &[Packet]) -> Vec<u64> {
    packets.iter().for_each(Packet::assert_as_sent);
    packets.iter().map(Packet::seq).collect()
}

/// Failure mode 5: packets queued for a peer that went are not delivered when it is back.
#[test]
fn fm05_a_new_session_starts_with_empty_queues() {
    let harness = Harness::with(3, 0, |config| config.set("slowtimeout", 60));
    let witness = harness.call(2);
    let stalled = harness.connect(&harness.caller(1).small_buffer());
    stalled.pause(true);
    let flood = harness.kernel.data.flood(|seq| Some(Packet::data(seq, bit(1), 4096)));
    flood.wait_stalled(ms(300));
    let before = Instant::now();
    stalled.kill();
    flood.stop();
    harness.wait_bit(before, 1, false);
    // In order behind the flood: once it is through, nothing of the flood is on its way from the kernel.
    harness.assert_carries(&witness);
    let back = harness.call(1);
    harness.assert_carries(&back);
    let counters = harness.stop();
    let line = counters.line(1, "data", "out");
    assert!(line.dropped > 0, "what was queued is counted: {line:?}");
}

/// Every session of a peer that comes and goes under load, closing or being replaced, has no hole, and no
/// packet is in two sessions.
#[test]
fn sessions_under_load_have_no_hole() {
    let harness = Harness::new(2);
    let flood = harness.kernel.data.flood(|seq| Some(Packet::data(seq, bit(1), 700)));
    let mut next = 0;
    let mut old: Option<FakePeer> = None;
    for round in 0..10 {
        let peer = harness.caller(1).call_until_taken();
        if let Some(old) = old.take() {
            let rest = seqs(&old.data.drain_to_end(PATIENCE));
            if let Some((first, end)) = assert_no_hole(&rest) {
                assert_eq!(first, next, "a hole within the session that was replaced");
                next = end;
            }
        }
        let got: Vec<Packet> = (0..200).map(|_| peer.data.recv()).collect();
        let (first, end) = assert_no_hole(&seqs(&got)).unwrap();
        assert!(first >= next, "packet {first} is in two sessions");
        next = end;
        // The next hello replaces every other session while it is alive.
        old = (round % 2 == 0).then_some(peer);
    }
    drop(old);
    flood.stop();
    harness.stop();
}

/// A daemon that is killed and comes back: the other kernel hears of it, and each kernel's packets within a
/// session have no hole.
#[test]
fn a_daemon_killed_under_load_leaves_no_hole() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let staying = Daemon::start(&net, &config, 0);
    let kernel = FakeKernel::attach(&net, 0);
    let flood = kernel.data.flood(|seq| Some(Packet::data(seq, bit(1), 900)));
    let mut next = 0;
    for _ in 0..3 {
        let daemon = Daemon::start(&net, &config, 1);
        let other = FakeKernel::attach(&net, 1);
        other.wait_state(bit(0), PATIENCE);
        kernel.wait_state(bit(1), PATIENCE);
        let mut got: Vec<Packet> = (0..500).map(|_| other.data.recv()).collect();
        let before = Instant::now();
        daemon.kill9();
        got.extend(other.data.drain_to_end(PATIENCE));
        kernel.wait_state_since(before, 0, PATIENCE);
        let (first, end) = assert_no_hole(&seqs(&got)).unwrap();
        assert!(first >= next, "packet {first} is in two sessions");
        next = end;
    }
    flood.stop();
    staying.stop();
}

/// A kernel module that goes ends the sessions, so the other kernel hears of it; the next module gets nothing
/// that was sent before.
#[test]
fn a_killed_kernel_client_ends_the_sessions() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let daemons = [0, 1].map(|id| Daemon::start(&net, &config, id));
    let kernel = FakeKernel::attach(&net, 0);
    let mut other = FakeKernel::attach(&net, 1);
    kernel.wait_state(bit(1), PATIENCE);
    let flood = kernel.data.flood(|seq| Some(Packet::data(seq, bit(1), 900)));
    let mut next = 0;
    for _ in 0..3 {
        let got: Vec<Packet> = (0..300).map(|_| other.data.recv()).collect();
        let (first, end) = assert_no_hole(&seqs(&got)).unwrap();
        assert!(first >= next, "packet {first} is in two sessions");
        next = end;
        let before = Instant::now();
        other.detach();
        kernel.wait_state_since(before, 0, PATIENCE);
        other = FakeKernel::reattach(&net, 1);
        other.wait_state(bit(0), PATIENCE);
    }
    flood.stop();
    for daemon in daemons {
        daemon.stop();
    }
}

/// The same seen from a peer: its links close when the module goes, it may call again at once, and what
/// it sent in the old session never reaches the new module.
#[test]
fn inbound_packets_of_an_ended_session_are_not_delivered() {
    let mut harness = Harness::with(2, 0, |config| config.set("slowtimeout", 60));
    let peer = harness.call(1);
    harness.kernel.data.pause(true);
    let flood = peer.data.flood(|seq| Some(Packet::data(seq, bit(0), 4096)));
    flood.wait_stalled(ms(300));
    harness.kernel.data.close();
    harness.kernel.meta.close();
    peer.wait_closed(PATIENCE);
    flood.stop();
    harness.kernel = FakeKernel::reattach(&harness.net, 0);
    let peer = harness.caller(1).call_until_taken();
    harness.kernel.wait_state(bit(1), PATIENCE);
    harness.assert_carries(&peer);
    harness.stop();
}

/// A session that dropped a data packet while no module was attached ends before the next module hears
/// of its peers.
#[test]
fn a_session_with_a_drop_ends_when_a_module_attaches() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 3).build();
    let daemon = Daemon::start(&net, &config, 0);
    let marked = Caller::new(&net, 1, 0).call();
    let clean = Caller::new(&net, 2, 0).call();
    marked.data.send(&Packet::data(1, bit(0), 10));
    // The answer to a ping behind it on the other link does not order the two; the drop itself is logged
    // or not, so the packet is given the time of one answered ping of the daemon.
    marked.wait_pings(1, PATIENCE);
    let kernel = FakeKernel::attach(&net, 0);
    marked.wait_closed(PATIENCE);
    let states = kernel.wait_states(1, PATIENCE);
    assert_eq!(states[0].1, bit(2), "the first state tells of the clean session alone");
    let back = Caller::new(&net, 1, 0).call_until_taken();
    kernel.wait_state(bit(1) | bit(2), PATIENCE);
    back.data.send(&Packet::data(2, bit(0), 10));
    assert_eq!(kernel.data.recv().seq(), 2, "the dropped packet stays dropped");
    assert!(!clean.data.is_closed() && !clean.meta.is_closed());
    let line = format!("{:?}", daemon.stop().line(1, "data", "in"));
    assert!(line.contains("dropped: 1"), "{line}");
}

/// Nothing of such a session reaches the next module, which would see a hole in it: neither what came before it
/// attached nor what came after.
#[test]
fn a_session_with_a_drop_delivers_nothing() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let daemon = Daemon::start(&net, &config, 0);
    for round in 1..=5 {
        let peer = Caller::new(&net, 1, 0).call_until_taken();
        let flood = peer.data.flood(|seq| Some(Packet::data(seq, bit(0), 500)));
        redial("a flood", PATIENCE, || (flood.sent() > 2000).then_some(()));
        let kernel = FakeKernel::reattach(&net, 0);
        peer.wait_closed(PATIENCE);
        flood.stop();
        let back = Caller::new(&net, 1, 0).call_until_taken();
        kernel.wait_state(bit(1), PATIENCE);
        back.data.send(&Packet::data(round << 32, bit(0), 10));
        assert_eq!(kernel.data.recv().seq(), round << 32);
        kernel.detach();
        back.wait_closed(PATIENCE);
    }
    daemon.stop();
}

/// Packets for a peer that is not there are dropped and counted, not kept.
#[test]
fn packets_for_an_absent_peer_are_dropped_and_counted() {
    let harness = Harness::new(3);
    let witness = harness.call(2);
    (0..50).for_each(|seq| harness.kernel.data.send(&Packet::data(seq, bit(1), 10)));
    harness.assert_carries(&witness);
    let late = harness.call(1);
    harness.assert_carries(&late);
    let counters = harness.stop();
    let line = counters.line(1, "data", "out");
    assert_eq!((line.received, line.forwarded, line.dropped), (51, 1, 50), "{line:?}");
}

/// Either link down ends the session: the other link is closed too and the kernel hears of it.
#[test]
fn one_lost_link_ends_both() {
    let harness = Harness::new(2);
    for data in [true, false] {
        let peer = harness.caller(1).call_until_taken();
        harness.kernel.wait_state(bit(1), PATIENCE);
        let before = Instant::now();
        if data {
            peer.data.close();
            peer.meta.wait_closed(PATIENCE);
        } else {
            peer.meta.close();
            peer.data.wait_closed(PATIENCE);
        }
        harness.kernel.wait_state_since(before, 0, PATIENCE);
    }
    harness.stop();
}
