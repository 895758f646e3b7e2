//! The log: time stamps on stderr, packet headers with `-v` twice, and at most a line a second for a
//! repeated cause, with the count of those left out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::io::Write;
use std::time::Instant;

use support::*;

/// Every line on stderr begins with a time.
#[test]
fn lines_have_time_stamps() {
    let rig = Rig::new(2);
    let peer = rig.call(1);
    rig.assert_carries(&peer);
    peer.kill();
    rig.kernel.wait_state(0, PATIENCE);
    for line in rig.daemon.log() {
        assert!(line.starts_with(|first: char| first.is_ascii_digit()), "no time: {line}");
        assert!(line.split_whitespace().next().is_some_and(|time| time.contains(':')), "no time: {line}");
    }
    rig.stop();
}

/// What happens to a peer is told, with its id.
#[test]
fn coming_and_going_is_logged() {
    let rig = Rig::new(2);
    let peer = rig.call(1);
    let before = rig.daemon.log_count("node 1");
    assert!(before > 0, "{:?}", rig.daemon.log());
    peer.kill();
    rig.kernel.wait_state(0, PATIENCE);
    redial("a line about the end", PATIENCE, || (rig.daemon.log_count("node 1") > before).then_some(()));
    rig.stop();
}

/// `-v` twice shows packet headers, `-v` once does not.
#[test]
fn headers_are_logged_with_v_twice() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let mut command = Daemon::command(&net, &config, 0);
    let daemon = Daemon::spawn(command.args(["-v", "--no-kmod-check"]), "n0");
    daemon.wait_log("ready", PATIENCE);
    let kernel = FakeKernel::attach(&net, 0);
    let rig = Rig { daemon, kernel, node: 0, config, net };
    let peer = rig.call(1);
    rig.assert_carries(&peer);
    rig.daemon.wait_log("ND_SBIO", PATIENCE);
    rig.daemon.wait_log("NC_STATE", PATIENCE);
    rig.stop();
    let rig = Rig::new(2);
    let peer = rig.call(1);
    rig.assert_carries(&peer);
    assert_eq!(rig.daemon.log_count("ND_SBIO"), 0);
    rig.stop();
}

/// A caller that is refused hundreds of times gets a line a second at most, and the number left out is
/// told.
#[test]
fn a_repeated_cause_is_a_line_a_second() {
    let rig = Rig::new(3);
    let healthy = rig.call(2);
    let (start, before) = (Instant::now(), rig.daemon.log().len());
    while start.elapsed() < ms(2500) {
        let mut caller = rig.caller(1);
        caller.id = 9;
        assert!(caller.try_call().is_err());
    }
    rig.assert_carries(&healthy);
    let seconds = start.elapsed().as_secs() as usize + 1;
    let lines = rig.daemon.log().split_off(before);
    // Two connections an attempt, so two causes at most, and whatever else the daemon may tell meanwhile.
    assert!(lines.len() <= 2 * seconds + 5, "{} lines in {seconds} s: {lines:?}", lines.len());
    let told = lines.iter().filter(|line| line.contains("left out") || line.contains("more")).count();
    assert!(told > 0, "the number left out is told: {lines:?}");
    rig.stop();
}

/// A packet that is dropped again and again is a line a second at most too.
#[test]
fn dropped_packets_do_not_flood_the_log() {
    let rig = Rig::new(3);
    let peer = rig.call(1);
    let before = rig.daemon.log().len();
    let start = Instant::now();
    let flood = rig.kernel.data.flood(|seq| {
        let packet = Packet::new([kind::ND_SBIO, 60, 0, kind::SD_DATA][seq as usize % 4]);
        (seq < 30_000).then(|| packet.with_to([0, bit(2), bit(0), bit(20)][seq as usize / 4 % 4]))
    });
    flood.finish();
    rig.assert_carries(&peer);
    let lines = rig.daemon.log().split_off(before);
    let seconds = start.elapsed().as_secs() as usize + 1;
    assert!(lines.len() <= 8 * seconds, "{} lines in {seconds} s", lines.len());
    rig.stop();
}

/// Bytes from strangers reach the log as text only: no control characters.
#[test]
fn no_control_characters_reach_the_log() {
    let rig = Rig::new(2);
    let source = rig.net.ip(1);
    let mut stream = connect_from(source, rig.net.node(0), None).unwrap();
    let mut bytes = hello(1, 0, 0, "\x1b[31mred\x07\n\r", true).to_vec();
    bytes.extend([6, 0, 2, 4, 0x1b, b'[', b'2', b'J']);
    stream.write_all(&bytes).unwrap();
    let peer = rig.connect(&rig.caller(1).extended(&[2, 4, 0x1b, b'[', b'2', b'J']));
    rig.assert_carries(&peer);
    assert!(
        rig.daemon.log().iter().all(|line| !line.contains(|c: char| c.is_control())),
        "{:?}",
        rig.daemon.log()
    );
    rig.stop();
}
