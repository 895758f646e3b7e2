//! D3 Isolation: a slow, stalled, dead or hostile peer, link or client delays no other peer longer than
//! `slowtimeout`, and stalled data never delays meta packets or heartbeats.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::*;

/// Failure mode 6: a peer that stops reading loses its session after `slowtimeout`; the other peer gets
/// every packet, none later than that.
#[test]
fn fm06_a_peer_that_stops_reading_delays_the_others_by_slowtimeout_at_most() {
    let harness = Harness::with(3, 0, |config| config.set("slowtimeout", 1));
    let stalled = harness.connect(&harness.caller(1).small_buffer());
    let good = harness.call(2);
    stalled.data.pause(true);
    let both = bit(1) | bit(2);
    let flood = harness.kernel.data.flood(move |seq| (seq < 4000).then(|| Packet::data(seq, both, 16_384)));
    let mut last = Instant::now();
    let mut longest = Duration::ZERO;
    for seq in 0..4000 {
        let (at, packet) = good.data.recv_timed();
        assert_eq!(packet.seq(), seq);
        longest = longest.max(at.duration_since(last));
        last = at;
    }
    assert!(longest < ms(2500), "a packet was {longest:?} late");
    assert_eq!(flood.finish(), 4000);
    harness.kernel.wait_state(bit(2), PATIENCE);
    stalled.meta.wait_closed(PATIENCE);
    harness.assert_carries(&good);
    let back = harness.caller(1).call_until_taken();
    harness.kernel.wait_state(both, PATIENCE);
    harness.assert_carries(&back);
    let counters = harness.stop();
    let line = counters.line(1, "data", "out");
    assert!(line.dropped > 0, "{line:?}");
    assert_eq!(counters.line(2, "data", "out").dropped, 0);
}

/// Failure mode 6: packets to a peer that is down stop nobody, however many.
#[test]
fn fm06_a_peer_that_is_down_delays_nobody() {
    let harness = Harness::new(3);
    let good = harness.call(2);
    let flood = harness.kernel.data.flood(|seq| (seq < 40_000).then(|| Packet::data(seq, bit(1), 0)));
    assert_eq!(flood.finish(), 40_000);
    harness.assert_carries(&good);
    harness.stop();
}

/// While data is stalled, meta packets and heartbeats go through in both directions.
#[test]
fn stalled_data_delays_no_meta_packet_and_no_heartbeat() {
    let harness = Harness::with(3, 0, |config| config.set("slowtimeout", 60).heartbeat(0.3, 5));
    let stalled = harness.connect(&harness.caller(1).small_buffer());
    let good = harness.call(2);
    stalled.data.pause(true);
    let flood = harness.kernel.data.flood(|seq| Some(Packet::data(seq, bit(1), 16_384)));
    flood.wait_stalled(ms(300));
    let mut times = Vec::new();
    for seq in 0..20 {
        for peer in [&stalled, &good] {
            let start = Instant::now();
            harness.kernel.meta.send(&Packet::meta(seq, bit(peer.id)));
            assert_eq!(peer.meta.recv().seq(), seq);
            peer.meta.send(&Packet::meta(seq, bit(0)));
            assert_eq!(harness.kernel.meta.recv().seq(), seq);
            times.push(start.elapsed());
        }
    }
    assert!(median(times.clone()) < ms(100), "meta round trips beside stalled data: {times:?}");
    // Longer than it takes to lose a peer whose heartbeats are stuck.
    let seen = stalled.pings().len();
    stalled.wait_pings(seen + 8, PATIENCE);
    assert!(!stalled.meta.is_closed(), "the stalled peer's heartbeats are answered");
    harness.kernel.data.close();
    flood.stop();
    harness.stop();
}

/// Failure mode 10: while the module does not read its data link, the peers' heartbeats are answered, meta
/// packets pass, and no session is lost.
#[test]
fn fm10_a_module_that_stops_reading_data_costs_no_session() {
    let harness = Harness::with(3, 0, |config| config.set("slowtimeout", 60).heartbeat(0.3, 5));
    let peers = [1, 2].map(|id| harness.call(id));
    harness.kernel.data.pause(true);
    let floods = [1u64, 2].map(|id| {
        let make = move |seq| (seq < 4000).then(|| Packet::data(id << 32 | seq, bit(0), 16_384));
        peers[id as usize - 1].data.flood(make)
    });
    for flood in &floods {
        flood.wait_stalled(ms(300));
    }
    for (seq, peer) in peers.iter().enumerate() {
        let seen = peer.pings().len();
        peer.wait_pings(seen + 7, PATIENCE);
        // A ping of the peer's own comes back answered.
        peer.meta.send(&Packet::new(kind::NC_PING).with_from(peer.id.into()).with_to(bit(0)));
        assert_eq!(peer.meta.recv().kind(), kind::NC_PING_ACK);
        peer.meta.send(&Packet::meta(seq as u64, bit(0)));
        assert_eq!(harness.kernel.meta.recv().seq(), seq as u64);
        harness.kernel.meta.send(&Packet::meta(seq as u64, bit(peer.id)));
        assert_eq!(peer.meta.recv().seq(), seq as u64);
    }
    harness.kernel.data.pause(false);
    let mut next = [0, 0];
    for _ in 0..8000 {
        let packet = harness.kernel.data.recv();
        let from = (packet.seq() >> 32) as usize - 1;
        assert_eq!(packet.seq() & 0xffff_ffff, next[from], "in order from node {}", from + 1);
        next[from] += 1;
    }
    floods.into_iter().for_each(|flood| assert_eq!(flood.finish(), 4000));
    assert_eq!(harness.kernel.masks(), [0, bit(1), bit(1) | bit(2)], "no session was lost");
    harness.stop();
}

/// A client that holds connections to the port and sends nothing, or a part.
fn hold(target: std::net::SocketAddr, bytes: &[u8]) -> Vec<TcpStream> {
    let open = |_| {
        let mut stream = TcpStream::connect(target).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    };
    (0..5).map(open).collect()
}

/// Failure mode 12: clients that open the server port and send nothing, or a part, stop nobody, and keep
/// no module from attaching.
#[test]
fn fm12_silent_client_on_server_port_stops_nobody() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let daemon = Daemon::start(&net, &config, 0);
    let part = Packet::new(kind::HS_D).with_magic(0).head;
    let _held = [hold(net.server(0), &[]), hold(net.server(0), &part[..60])];
    let kernel = FakeKernel::attach(&net, 0);
    let harness = Harness::of(daemon, kernel, 0, config, net);
    let peer = harness.call(1);
    harness.assert_carries(&peer);
    let _more = hold(harness.net.server(0), &[]);
    harness.assert_carries(&peer);
    harness.stop();
}

/// Failure mode 13: a peer that sends part of a packet stops nobody, not even its own other link.
#[test]
fn fm13_part_of_a_packet_stops_nobody() {
    let harness = Harness::with(3, 0, |config| config.heartbeat(0.3, 5));
    let halting = harness.call(1);
    let good = harness.call(2);
    let bytes = Packet::data(77, bit(0), 5000).bytes();
    for part in [0..60, 60..128, 128..3000] {
        halting.data.send_raw(&bytes[part]);
        harness.assert_carries(&good);
        halting.meta.send(&Packet::meta(5, bit(0)));
        assert_eq!(harness.kernel.meta.recv().seq(), 5);
    }
    halting.wait_pings(7, PATIENCE);
    assert_eq!(
        harness.kernel.masks(),
        [0, bit(1), bit(1) | bit(2)],
        "its heartbeats are answered: no session is lost"
    );
    halting.data.send_raw(&bytes[3000..]);
    assert_eq!(harness.kernel.data.recv(), Packet::data(77, bit(0), 5000));
    harness.stop();
}

/// The same from the module: part of a packet on one of its links leaves the other going.
#[test]
fn fm13_part_of_a_packet_of_the_module_stops_nobody() {
    let harness = Harness::new(2);
    let peer = harness.call(1);
    let bytes = Packet::data(9, bit(1), 3000).bytes();
    harness.kernel.data.send_raw(&bytes[..1000]);
    for seq in 0..5 {
        harness.kernel.meta.send(&Packet::meta(seq, bit(1)));
        assert_eq!(peer.meta.recv().seq(), seq);
        peer.data.send(&Packet::data(seq, bit(0), 10));
        assert_eq!(harness.kernel.data.recv().seq(), seq);
    }
    harness.kernel.data.send_raw(&bytes[1000..]);
    assert_eq!(peer.data.recv(), Packet::data(9, bit(1), 3000));
    harness.stop();
}

/// Failure mode 14: clients that open the node port and send nothing, or half a hello, keep no peer from
/// linking.
#[test]
fn fm14_silent_client_on_node_port_keeps_nobody_from_linking() {
    let harness = Harness::new(3);
    let _held = [hold(harness.net.node(0), &[]), hold(harness.net.node(0), &[1, 0, 0, b'1'])];
    let start = Instant::now();
    let peer = harness.call(1);
    assert!(start.elapsed() < ms(2000), "linked before the silent ones were given up");
    harness.assert_carries(&peer);
    harness.stop();
}

/// Failure mode 25: a peer that comes, is replaced and goes under load again and again disturbs no other,
/// and is itself served afterwards.
#[test]
fn fm25_a_flapping_peer_disturbs_nobody() {
    let harness = Harness::new(3);
    let good = harness.call(2);
    let both = bit(1) | bit(2);
    let flood = harness.kernel.data.flood(move |seq| Some(Packet::data(seq, both, 300)));
    let mut seq = 0;
    let mut held = Vec::new();
    for round in 0..40 {
        held.extend(harness.caller(1).try_call().ok());
        if round % 3 == 0 {
            held.clear();
        }
        for _ in 0..50 {
            assert_eq!(good.data.recv().seq(), seq);
            seq += 1;
        }
    }
    let sent = flood.stop();
    (seq..sent).for_each(|seq| assert_eq!(good.data.recv().seq(), seq));
    drop(held);
    harness.kernel.wait_state(bit(2), PATIENCE);
    let back = harness.caller(1).call_until_taken();
    harness.kernel.wait_state(both, PATIENCE);
    harness.assert_carries(&back);
    harness.assert_carries(&good);
    let lost: Vec<u32> =
        harness.kernel.masks().into_iter().skip(2).filter(|mask| mask & bit(2) == 0).collect();
    assert!(lost.is_empty(), "the good peer was reported lost");
    harness.stop();
}

/// A peer that reads neither link, under a flood of meta packets: its heartbeats end the session, and the
/// other peer's packets go on.
#[test]
fn a_stalled_meta_link_ends_with_its_heartbeats() {
    let harness = Harness::with(3, 0, |config| config.heartbeat(0.3, 4).set("slowtimeout", 1));
    let stalled = harness.connect(&harness.caller(1).small_buffer());
    let good = harness.call(2);
    stalled.pause(true);
    let both = bit(1) | bit(2);
    let make = move |seq| (seq < 3000).then(|| Packet::filled(kind::NC_STATE, seq, 8192).with_to(both));
    let flood = harness.kernel.meta.flood(make);
    let mut last = Instant::now();
    for seq in 0..3000 {
        let (at, packet) = good.meta.recv_timed();
        assert_eq!(packet.seq(), seq);
        assert!(at.duration_since(last) < ms(4000), "{:?} late", at.duration_since(last));
        last = at;
    }
    assert_eq!(flood.finish(), 3000);
    harness.kernel.wait_state(bit(2), PATIENCE);
    harness.assert_carries(&good);
    harness.stop();
}

/// Failure mode 10, the other link: a module that stops reading meta packets makes no healthy peer look dead,
/// however many of them the peers send.
#[test]
fn fm10_a_module_that_stops_reading_meta_costs_no_session() {
    let harness = Harness::with(3, 0, |config| config.heartbeat(0.25, 4));
    let (sender, other) = (harness.call(1), harness.call(2));
    harness.kernel.meta.pause(true);
    let flood = sender.meta.flood(|n| Some(Packet::filled(19, n, 4096).with_to(bit(0))));
    let pings = sender.pings().len();
    // Long enough for a verdict, were pings and their answers left unread on either side.
    sender.wait_pings(pings + 12, PATIENCE);
    assert!(flood.sent() > 2000, "the link is read on: {} sent", flood.sent());
    flood.stop();
    harness.kernel.meta.pause(false);
    assert!(!sender.meta.is_closed() && !other.meta.is_closed());
    harness.daemon.wait_log("the kernel module does not read its meta link", PATIENCE);
    assert_eq!(harness.daemon.log_count("session ended"), 0);
    harness.stop();
}
