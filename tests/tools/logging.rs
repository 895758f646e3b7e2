//! The log: time stamps on stderr, packet headers with `-v` twice, and at most a line a second for a
//! repeated cause, with the count of those left out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::io::Write;
use std::time::Instant;

use crate::support::*;

/// Every line on stderr begins with a time.
#[test]
fn lines_have_time_stamps() {
    let harness = Harness::new(2);
    let peer = harness.call(1);
    harness.assert_carries(&peer);
    peer.kill();
    harness.kernel.wait_state(0, PATIENCE);
    for line in harness.daemon.log() {
        assert!(line.starts_with(|first: char| first.is_ascii_digit()), "no time: {line}");
        assert!(line.split_whitespace().next().is_some_and(|time| time.contains(':')), "no time: {line}");
    }
    harness.stop();
}

/// The events of a peer are logged, with its id.
#[test]
fn coming_and_going_is_logged() {
    let harness = Harness::new(2);
    let peer = harness.call(1);
    harness.daemon.wait_log("node 1: connected", PATIENCE);
    let before = harness.daemon.log_count("node 1");
    peer.kill();
    redial("a line about the end", PATIENCE, || (harness.daemon.log_count("node 1") > before).then_some(()));
    harness.stop();
}

/// `-v` twice shows packet headers, `-v` once does not.
#[test]
fn headers_are_logged_with_v_twice() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let mut command = Daemon::command(&net, &config, 0);
    let daemon = Daemon::spawn(command.args(["-v", "--no-kmod-check"]), "n0");
    daemon.wait_log(" ready:", PATIENCE);
    let kernel = FakeKernel::attach(&net, 0);
    let harness = Harness::of(daemon, kernel, 0, config, net);
    let peer = harness.call(1);
    harness.assert_carries(&peer);
    harness.daemon.wait_log("ND_SBIO", PATIENCE);
    harness.daemon.wait_log("NC_STATE", PATIENCE);
    harness.stop();
    let harness = Harness::new(2);
    let peer = harness.call(1);
    harness.assert_carries(&peer);
    assert_eq!(harness.daemon.log_count("ND_SBIO"), 0);
    harness.stop();
}

/// A caller that is refused hundreds of times gets a line a second at most, and the number left out is
/// logged.
#[test]
fn a_repeated_cause_is_a_line_a_second() {
    let harness = Harness::new(3);
    let healthy = harness.call(2);
    let (start, before) = (Instant::now(), harness.daemon.log().len());
    while start.elapsed() < ms(2500) {
        let mut caller = harness.caller(1);
        caller.id = 9;
        assert!(caller.try_call().is_err());
    }
    harness.assert_carries(&healthy);
    let seconds = start.elapsed().as_secs() as usize + 1;
    let lines = harness.daemon.log().split_off(before);
    // Two connections an attempt, so two causes at most, and other lines of the daemon meanwhile.
    assert!(lines.len() <= 2 * seconds + 5, "{} lines in {seconds} s: {lines:?}", lines.len());
    let told = lines.iter().filter(|line| line.contains("left out") || line.contains("more")).count();
    assert!(told > 0, "the number left out is told: {lines:?}");
    harness.stop();
}

/// Lines that were held back are in the order of events, with the time of their event, and come before what happened
/// later.
#[test]
fn lines_are_in_the_order_of_their_events() {
    let harness = Harness::new(4);
    let healthy = harness.call(2);
    for round in 0..40 {
        for node in [1, 3] {
            let mut caller = harness.caller(node);
            caller.id = 9 + node % 2;
            assert!(caller.try_call().is_err());
        }
        if round % 10 == 5 {
            harness.call(1).kill();
            harness.assert_carries(&healthy);
        }
    }
    harness.assert_carries(&healthy);
    let lines = harness.daemon.log();
    assert!(lines.iter().any(|line| line.contains("left out")), "nothing was held back: {lines:?}");
    let times: Vec<_> = lines.iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert!(times.is_sorted(), "not in order: {lines:#?}");
    harness.stop();
}

/// A peer that has to call and does not is reported once, and once more when it does.
#[test]
fn a_peer_that_does_not_call_is_reported_once() {
    let harness = Harness::new(2);
    harness.daemon.wait_log("node 1 does not call: nothing for ", ms(60_000));
    let peer = harness.call(1);
    harness.daemon.wait_log("node 1 calls again, after ", PATIENCE);
    harness.assert_carries(&peer);
    for told in ["node 1 does not call", "node 1 calls again"] {
        assert_eq!(harness.daemon.log_count(told), 1, "{:?}", harness.daemon.log());
    }
    harness.stop();
}

/// A packet that is dropped again and again is a line a second at most too.
#[test]
fn dropped_packets_do_not_flood_the_log() {
    let harness = Harness::new(3);
    let peer = harness.call(1);
    let before = harness.daemon.log().len();
    let start = Instant::now();
    let flood = harness.kernel.data.flood(|seq| {
        let packet = Packet::new([kind::ND_SBIO, 60, 0, kind::SD_DATA][seq as usize % 4]);
        (seq < 30_000).then(|| packet.with_to([0, bit(2), bit(0), bit(20)][seq as usize / 4 % 4]))
    });
    flood.finish();
    harness.assert_carries(&peer);
    let lines = harness.daemon.log().split_off(before);
    let seconds = start.elapsed().as_secs() as usize + 1;
    assert!(lines.len() <= 8 * seconds, "{} lines in {seconds} s", lines.len());
    harness.stop();
}

/// Bytes from unknown clients reach the log as text only: no control characters.
#[test]
fn no_control_characters_reach_the_log() {
    let harness = Harness::new(2);
    let source = harness.net.ip(1);
    let mut stream = connect_from(source, harness.net.node(0), None).unwrap();
    let mut bytes = hello(1, 0, 0, "\x1b[31mred\x07\n\r", true).to_vec();
    bytes.extend([6, 0, 2, 4, 0x1b, b'[', b'2', b'J']);
    stream.write_all(&bytes).unwrap();
    let peer = harness.connect(&harness.caller(1).extended(&[2, 4, 0x1b, b'[', b'2', b'J']));
    harness.assert_carries(&peer);
    assert!(
        harness.daemon.log().iter().all(|line| !line.contains(|c: char| c.is_control())),
        "{:?}",
        harness.daemon.log()
    );
    harness.stop();
}
