//! D6 Nothing hostile gets in: an unknown caller, a wrong address, an oversized or malformed packet, a
//! half-sent hello costs that connection alone, with one clear log line.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::support::*;

/// Reads until the daemon closes the connection, and gives what it sent before.
#[track_caller]
fn read_to_end(stream: &mut TcpStream, limit: Duration) -> Vec<u8> {
    let end = Instant::now() + limit;
    let mut got = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let left = end.saturating_duration_since(Instant::now()).max(ms(1));
        stream.set_read_timeout(Some(left)).unwrap();
        match stream.read(&mut buffer) {
            Ok(0) => return got,
            Ok(n) => got.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => panic!("still open after {limit:?}"),
            Err(_) => return got,
        }
    }
}

/// Sends `bytes` to the node port of a daemon with one healthy peer, node 2, from the address of node 1:
/// the connection is closed without an answer, the log names the caller, nobody else notices.
#[track_caller]
fn refused(bytes: &[u8]) {
    let harness = Harness::new(3);
    let healthy = harness.call(2);
    let source = harness.net.ip(1);
    let mut stream = connect_from(source, harness.net.node(0), None).unwrap();
    // The daemon may close before it has read everything.
    let _ = stream.write_all(bytes);
    assert_eq!(read_to_end(&mut stream, ms(8000)), [0u8; 0], "no answer");
    assert_unharmed(&harness, &healthy);
    harness.daemon.wait_log(&source.to_string(), PATIENCE);
    harness.stop();
}

#[track_caller]
fn assert_unharmed(harness: &Harness, healthy: &FakePeer) {
    harness.assert_carries(healthy);
    assert_eq!(harness.kernel.masks(), [0, bit(healthy.id)], "nobody else is told of or lost");
}

#[test]
fn fm18_unknown_node_id_is_refused() {
    refused(&hello(9, 0, 0, "127.0.0.1", false));
}

/// Failure mode 29: ids of 32 and more are no bit of the mask.
#[test]
fn fm29_node_ids_over_31_are_refused() {
    refused(&hello(32, 0, 0, "127.0.0.1", false));
    refused(&hello(255, 2, 0, "127.0.0.1", false));
}

#[test]
fn the_daemons_own_id_is_refused() {
    refused(&hello(0, 0, 0, "127.0.0.1", false));
}

#[test]
fn garbage_instead_of_a_hello_is_refused() {
    refused(&[0xee; HELLO]);
    refused(&[0xee; 100_000]);
    refused(b"GET / HTTP/1.1\r\nHost: mirror.example.org\r\n\r\n");
}

#[test]
fn an_answer_instead_of_a_hello_is_refused() {
    refused(&hello(1, 1, 0, "127.0.0.1", false));
    refused(&hello(1, 3, 0, "127.0.0.1", false));
}

/// Failure mode 23: type and node_type out of range index no table.
#[test]
fn fm23_hello_types_out_of_range_are_refused() {
    refused(&hello(1, 4, 0, "127.0.0.1", false));
    refused(&hello(1, 255, 0, "127.0.0.1", false));
    refused(&hello(1, 0, 2, "127.0.0.1", false));
    refused(&hello(1, 0, 255, "127.0.0.1", false));
}

/// The node port takes no site links.
#[test]
fn a_site_hello_on_the_node_port_is_refused() {
    refused(&hello(1, 0, 1, "127.0.0.1", false));
}

/// Half a hello, or none, then silence: closed after 3 s.
#[test]
fn half_a_hello_then_silence_is_closed_after_3_s() {
    let harness = Harness::new(3);
    let healthy = harness.call(2);
    let bytes = hello(1, 0, 0, "127.0.0.1", false);
    let start = Instant::now();
    let mut streams = [0, 1, 17, 34].map(|part| {
        let mut stream = connect_from(harness.net.ip(1), harness.net.node(0), None).unwrap();
        stream.write_all(&bytes[..part]).unwrap();
        stream
    });
    harness.assert_carries(&healthy);
    for stream in &mut streams {
        assert_eq!(read_to_end(stream, ms(8000)), [0u8; 0]);
        let after = start.elapsed();
        assert!(ms(2500) < after && after < ms(5000), "closed after {after:?}");
    }
    assert_unharmed(&harness, &healthy);
    harness.stop();
}

/// Bytes that drip in do not put the deadline off.
#[test]
fn a_dripping_hello_is_closed_after_3_s() {
    let harness = Harness::new(3);
    let healthy = harness.call(2);
    let mut stream = connect_from(harness.net.ip(1), harness.net.node(0), None).unwrap();
    stream.set_read_timeout(Some(ms(250))).unwrap();
    let start = Instant::now();
    for byte in hello(1, 0, 0, "127.0.0.1", false) {
        let _ = stream.write_all(&[byte]);
        match stream.read(&mut [0; 64]) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => break,
            Ok(n) => panic!("{n} bytes of an answer"),
        }
    }
    let after = start.elapsed();
    assert!(ms(2500) < after && after < ms(6000), "closed after {after:?}");
    assert_unharmed(&harness, &healthy);
    harness.stop();
}

#[test]
fn half_a_hello_then_the_end_costs_nothing() {
    let harness = Harness::new(3);
    let healthy = harness.call(2);
    for part in [0, 5, 34] {
        let mut stream = connect_from(harness.net.ip(1), harness.net.node(0), None).unwrap();
        stream.write_all(&hello(1, 0, 0, "127.0.0.1", false)[..part]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&mut stream, ms(8000)), [0u8; 0]);
    }
    assert_unharmed(&harness, &healthy);
    harness.stop();
}

/// Many silent connections at once leave room for peers, and go.
#[test]
fn many_silent_connections_leave_room_for_peers() {
    let harness = Harness::new(3);
    let healthy = harness.call(2);
    // Its readers, with descriptors of their own, start after the kernel got its state.
    harness.assert_carries(&healthy);
    let before = harness.daemon.descriptors();
    let open = |_| TcpStream::connect(harness.net.node(0)).unwrap();
    let held: Vec<TcpStream> = (0..200).map(open).collect();
    harness.assert_carries(&healthy);
    let peer = harness.call(1);
    harness.assert_carries(&peer);
    redial("closing the silent ones", PATIENCE, || {
        (harness.daemon.descriptors() <= before + 4).then_some(())
    });
    drop(held);
    harness.assert_carries(&peer);
    harness.stop();
}

/// Failure mode 19: with `peeraddr` strict, a known id from another address is refused, and does not
/// replace the session of the right one.
#[test]
fn fm19_a_wrong_source_address_is_refused() {
    let harness = Harness::new(3);
    let healthy = harness.call(2);
    for host in [200, 11, 1] {
        let source = harness.net.host(host);
        assert!(harness.caller(2).source(source).try_call().is_err());
    }
    harness.daemon.wait_log(&harness.net.host(200).to_string(), PATIENCE);
    assert_unharmed(&harness, &healthy);
    harness.stop();
}

/// With `peeraddr` any it is accepted, with a warning.
#[test]
fn peeraddr_any_accepts_and_warns() {
    let harness = Harness::with(2, 0, |config| config.set("peeraddr", "any"));
    let source = harness.net.host(200);
    let peer = harness.connect(&harness.caller(1).source(source));
    harness.assert_carries(&peer);
    harness.daemon.wait_log(&source.to_string(), PATIENCE);
    harness.stop();
}

/// ... but one link alone ends no session, nor do two from different addresses: it takes a pair from one.
#[test]
fn peeraddr_any_needs_a_pair_to_replace_a_session() {
    let harness = Harness::with(2, 0, |config| config.set("peeraddr", "any"));
    let peer = harness.call(1);
    let strangers = [(200, DATA), (201, META), (202, DATA), (202, DATA), (203, META)];
    for (host, kind) in strangers {
        let caller = harness.caller(1).source(harness.net.host(host));
        let mut stream = caller.open(kind).unwrap();
        caller.finish(&mut stream, kind).unwrap();
        harness.assert_carries(&peer);
    }
    let masks = harness.kernel.masks();
    assert!(masks.iter().skip_while(|&&mask| mask == 0).all(|&mask| mask == bit(1)), "{masks:?}");
    let start = Instant::now();
    let back = harness.caller(1).source(harness.net.host(204)).call();
    peer.wait_closed(ms(2000));
    harness.wait_bit(start, 1, true);
    harness.assert_carries(&back);
    harness.stop();
}

/// A connected peer that sends `bytes` on its data or meta link loses its session; nothing reaches the
/// kernel, the other peer goes on, and the offender may call again.
#[track_caller]
fn ends_the_session(packet: &Packet) {
    let harness = Harness::new(3);
    let healthy = harness.call(2);
    for data in [true, false] {
        let offender = harness.caller(1).call_until_taken();
        harness.kernel.wait_state(bit(1) | bit(2), PATIENCE);
        let before = Instant::now();
        let link = if data { &offender.data } else { &offender.meta };
        link.send(packet);
        offender.wait_closed(PATIENCE);
        harness.wait_bit(before, 1, false);
        harness.assert_carries(&healthy);
    }
    assert!(harness.kernel.masks().iter().skip(2).all(|mask| mask & bit(2) != 0));
    harness.daemon.wait_log(&harness.net.ip(1).to_string(), PATIENCE);
    let back = harness.caller(1).call_until_taken();
    harness.kernel.wait_state(bit(1) | bit(2), PATIENCE);
    harness.assert_carries(&back);
    harness.stop();
}

/// Failure mode 21: a length of 4 GiB is neither allocated nor read.
#[test]
fn fm21_a_length_of_4_gib_ends_the_session() {
    ends_the_session(&Packet::data(1, bit(0), 0).with_len(u32::MAX));
    ends_the_session(&Packet::meta(1, bit(0)).with_len(0xffff_ff80));
}

/// Failure mode 4: a packet without the magic never reaches the module.
#[test]
fn fm04_a_packet_without_magic_ends_the_session() {
    ends_the_session(&Packet::data(1, bit(0), 20).with_magic(0));
    ends_the_session(&Packet::meta(1, bit(0)).with_magic(MAGIC + 1));
}

/// Failure mode 23: types that are not relayed end the session of the peer that sends them.
#[test]
fn fm23_a_type_out_of_range_ends_the_session() {
    for kind in [0, 21, 22, 39, 57, 60, 255] {
        ends_the_session(&Packet::data(1, bit(0), 20).with_type(kind));
    }
}

/// One byte over `maxpacket` ends the session, `maxpacket` itself passes.
#[test]
fn one_byte_over_maxpacket_ends_the_session() {
    let harness = Harness::with(2, 0, |config| config.set("maxpacket", 65_536));
    let peer = harness.call(1);
    peer.data.send(&Packet::data(1, bit(0), 65_536));
    assert_eq!(harness.kernel.data.recv(), Packet::data(1, bit(0), 65_536));
    harness.kernel.data.send(&Packet::data(2, bit(1), 65_536));
    assert_eq!(peer.data.recv(), Packet::data(2, bit(1), 65_536));
    let _ = peer.data.try_send(&Packet::data(3, bit(0), 65_537));
    peer.wait_closed(PATIENCE);
    harness.kernel.wait_state(0, PATIENCE);
    harness.stop();
}

/// A packet cut off in the middle: nothing of it reaches the kernel, the next session starts clean.
#[test]
fn fm13_a_packet_cut_off_in_the_middle_is_not_delivered() {
    let harness = Harness::new(3);
    let healthy = harness.call(2);
    let bytes = Packet::data(1, bit(0), 5000).bytes();
    for part in [1, 127, 128, 129, 5000] {
        let peer = harness.caller(1).call_until_taken();
        harness.kernel.wait_state(bit(1) | bit(2), PATIENCE);
        let before = Instant::now();
        peer.data.send_raw(&bytes[..part]);
        peer.kill();
        harness.wait_bit(before, 1, false);
        harness.assert_carries(&healthy);
    }
    let back = harness.call(1);
    harness.assert_carries(&back);
    harness.stop();
}

/// Failure mode 23: with packet headers in the log, no byte of a header makes trouble.
#[test]
fn fm23_every_type_byte_can_be_logged() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let mut command = Daemon::command(&net, &config, 0);
    let daemon = Daemon::spawn(command.args(["-v", "--no-kmod-check"]), "n0");
    daemon.wait_log(" ready:", PATIENCE);
    let kernel = FakeKernel::attach(&net, 0);
    let harness = Harness::of(daemon, kernel, 0, config, net);
    let peer = harness.call(1);
    for kind in (0..=255).filter(|kind| !(13..=20).contains(kind) && !(35..=38).contains(kind)) {
        harness.kernel.data.send(&Packet::new(kind).with_node_type(kind).with_dev(kind).with_to(bit(1)));
    }
    harness.assert_carries(&peer);
    for kind in [0, 22, 39, 255] {
        let peer = harness.caller(1).call_until_taken();
        peer.data.send(&Packet::new(kind).with_node_type(255).with_dev(255));
        peer.wait_closed(PATIENCE);
    }
    harness.stop();
}

/// Records of the hello's extension that are too long, malformed, cut off or missing cost the caller its
/// connection.
#[test]
fn a_bad_extension_record_is_refused() {
    let harness = Harness::new(3);
    let healthy = harness.call(2);
    let too_long = [0xff; 2];
    let beyond_the_end = [2, 0, 9, 200];
    let half = [10, 0, 9];
    for (what, record) in
        [("long", &too_long[..]), ("beyond", &beyond_the_end), ("half", &half), ("none", &[])]
    {
        let mut stream = connect_from(harness.net.ip(1), harness.net.node(0), None).unwrap();
        stream.write_all(&hello(1, 0, 0, "127.0.0.1", true)).unwrap();
        let _ = stream.write_all(record);
        let got = read_to_end(&mut stream, ms(8000));
        assert!(got.len() >= HELLO, "{what}: the hello itself is answered");
        assert_unharmed(&harness, &healthy);
    }
    let back = harness.connect(&harness.caller(1).extended(&[]));
    harness.assert_carries(&back);
    harness.stop();
}
