//! Heartbeats: ping k goes out k intervals after a session began; each adds one to the unanswered count,
//! each answer takes one off, never below zero; at `maxpingcount` the session ends. A stall of the daemon
//! itself judges nobody.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::time::{Duration, Instant};

use crate::support::*;
use rustix::process::Signal;

/// Waits for a silent peer's session to end, and checks that it took from `count` to `count` + 1 intervals,
/// counted from `start` or from the last ping that came so late that the verdict starts afresh.
#[track_caller]
fn assert_ends_in_time(peer: &FakePeer, start: Instant, interval: Duration, count: u32) {
    let end = peer.wait_closed(PATIENCE);
    let mut last = start;
    let mut from = start;
    for ping in peer.pings() {
        if ping.duration_since(last) > interval * 7 / 5 {
            from = ping;
        }
        last = ping;
    }
    let took = end.duration_since(start);
    assert!(took > interval * count - ms(50), "ended after {took:?}, too early");
    let took = end.duration_since(from);
    assert!(took < interval * (count + 1) + ms(1000), "ended after {took:?}, too late");
}

/// A peer that never answers is given up after `maxpingcount` pings, within `maxpingcount` to `maxpingcount` + 1
/// intervals, and reported.
#[test]
fn a_silent_peer_is_given_up() {
    const COUNT: u32 = 4;
    // On a busy machine the daemon itself may stall, which makes it count afresh: then the try says nothing of pings.
    for _ in 0..20 {
        let harness = Harness::with(3, 0, |config| config.heartbeat(0.4, COUNT));
        let good = harness.call(2);
        let start = Instant::now();
        let silent = harness.connect(&harness.caller(1).silent());
        assert_ends_in_time(&silent, start, ms(400), COUNT);
        harness.kernel.wait_state(bit(2), PATIENCE);
        let (pings, stalls) =
            (silent.pings().len(), harness.daemon.log_count("this daemon did not run for a while"));
        harness.assert_carries(&good);
        harness.stop();
        if stalls == 0 {
            assert_eq!(pings, COUNT as usize);
            return;
        }
    }
    panic!("the daemon stalled in each try: the machine is too busy to tell");
}

/// Failure mode 16: the same while another peer is missing and being dialled.
#[test]
fn fm16_a_silent_peer_is_given_up_while_another_is_missing() {
    let net = Subnet::claim();
    let below = Acceptor::listen(&net, 1).silent();
    let config = ConfigBuilder::new(&net, 4).heartbeat(0.5, 4).build();
    let daemon = Daemon::start(&net, &config, 2);
    let kernel = FakeKernel::attach(&net, 2);
    let harness = Harness::of(daemon, kernel, 2, config, net);
    let start = Instant::now();
    let silent = [below.accept(&harness.net, 2), harness.connect(&harness.caller(3).silent())];
    assert_ends_in_time(&silent[0], start, ms(500), 4);
    assert_ends_in_time(&silent[1], start, ms(500), 4);
    harness.kernel.wait_state(0, PATIENCE);
    harness.stop();
}

/// The first ping comes one interval after the session began, the next ones an interval apart.
#[test]
fn pings_keep_their_times() {
    let harness = Harness::with(2, 0, |config| config.heartbeat(0.5, 10));
    let before = Instant::now();
    let peer = harness.call(1);
    let after = Instant::now();
    peer.wait_pings(6, PATIENCE);
    let pings = peer.pings();
    assert!(pings[0] >= before + ms(480), "the first ping {:?} after the call", pings[0] - before);
    let offs = (1..).zip(&pings).map(|(k, at)| at.saturating_duration_since(after + ms(500) * k));
    assert!(median(offs.collect()) < ms(120), "{:?}", pings.iter().map(|at| *at - after).collect::<Vec<_>>());
    harness.stop();
}

/// Answered pings keep a session for good.
#[test]
fn answered_pings_keep_the_session() {
    let harness = Harness::with(2, 0, |config| config.heartbeat(0.2, 3));
    let peer = harness.call(1);
    peer.wait_pings(15, PATIENCE);
    harness.assert_carries(&peer);
    assert_eq!(harness.kernel.masks(), [0, bit(1)]);
    harness.stop();
}

/// Late answers take one off each; more answers than pings do not count ahead.
#[test]
fn late_answers_count_and_early_ones_do_not() {
    let harness = Harness::with(2, 0, |config| config.heartbeat(0.5, 4));
    let peer = harness.connect(&harness.caller(1).silent());
    for round in 1..=3 {
        // Two unanswered, then both answered late: never four.
        peer.wait_pings(2 * round, PATIENCE);
        peer.send_ping_ack(0);
        peer.send_ping_ack(0);
    }
    harness.assert_carries(&peer);
    (0..50).for_each(|_| peer.send_ping_ack(0));
    harness.assert_carries(&peer);
    let last = *peer.pings().last().unwrap();
    assert_ends_in_time(&peer, last, ms(500), 3);
    harness.kernel.wait_state(0, PATIENCE);
    harness.stop();
}

/// A peer's pings are answered, on the meta link, with our id and its bit; with and without a module.
#[test]
fn pings_are_answered() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let daemon = Daemon::start(&net, &config, 0);
    let peer = Caller::new(&net, 1, 0).call();
    let ping = Packet::new(kind::NC_PING).with_from(1).with_to(bit(0));
    let answer = Packet::new(kind::NC_PING_ACK).with_from(0).with_to(bit(1));
    let exchange = |peer: &FakePeer| {
        peer.meta.send(&ping);
        let got = peer.meta.recv();
        assert_eq!(
            (got.kind(), got.from(), got.to(), got.len()),
            (16, answer.from(), answer.to(), 0),
            "{got:?}"
        );
    };
    exchange(&peer);
    let kernel = FakeKernel::attach(&net, 0);
    kernel.wait_state(bit(1), PATIENCE);
    (0..10).for_each(|_| exchange(&peer));
    // Behind the pings: none of them reached the kernel, which would have failed here.
    peer.meta.send(&Packet::meta(3, bit(0)));
    assert_eq!(kernel.meta.recv().seq(), 3);
    daemon.stop();
}

/// A daemon that was stalled itself judges nobody: the counts start afresh.
#[test]
fn a_stall_of_the_daemon_judges_nobody() {
    let harness = Harness::with(2, 0, |config| config.heartbeat(0.6, 3));
    let peer = harness.connect(&harness.caller(1).silent());
    // One more unanswered ping would end the session.
    peer.wait_pings(2, PATIENCE);
    harness.daemon.signal(Signal::STOP);
    assert_eq!(peer.meta.poll(ms(1500)), None);
    harness.daemon.signal(Signal::CONT);
    let seen = peer.pings().len();
    peer.wait_pings(seen + 1, PATIENCE);
    peer.answer_pings(true);
    peer.wait_pings(seen + 6, PATIENCE);
    assert!(!peer.meta.is_closed());
    assert_eq!(harness.kernel.masks(), [0, bit(1)], "the session went on");
    harness.stop();
}

/// Failure mode 35: interrupted calls end no link.
#[test]
fn fm35_interrupted_calls_end_no_link() {
    let harness = Harness::with(2, 0, |config| config.heartbeat(0.5, 10));
    let peer = harness.call(1);
    let flood = harness.kernel.data.flood(|seq| Some(Packet::data(seq, bit(1), 500)));
    for round in 0..30 {
        harness.daemon.signal(Signal::STOP);
        harness.daemon.signal(Signal::CONT);
        (0..20).for_each(|seq| assert_eq!(peer.data.recv().seq(), round * 20 + seq));
    }
    let sent = flood.stop();
    (600..sent).for_each(|seq| assert_eq!(peer.data.recv().seq(), seq));
    harness.assert_carries(&peer);
    assert_eq!(harness.kernel.masks(), [0, bit(1)]);
    harness.stop();
}

/// The pair's old names mean the same: `ping` is the interval, `pingtimeout` the count.
#[test]
fn the_old_names_of_the_pair_mean_the_same() {
    let net = Subnet::claim();
    let text = ConfigBuilder::new(&net, 2).set("pingtimeout", 4).set("ping", 0.3).render();
    let text = text.replace("  <maxpingcount>5</maxpingcount>\n", "");
    assert!(!text.contains("maxpingcount"));
    let config = ConfigBuilder::new(&net, 2).build();
    std::fs::write(&config.path, text).unwrap();
    let daemon = Daemon::start(&net, &config, 0);
    let start = Instant::now();
    let peer = Caller::new(&net, 1, 0).silent().call();
    assert_ends_in_time(&peer, start, ms(300), 4);
    daemon.stop();
}
