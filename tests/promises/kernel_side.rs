//! The kernel module's side: handshakes, one module at a time, attaching and detaching, and what a module
//! may send without harm.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use crate::support::*;

/// Each handshake is answered with the matching packet: magic, type, device copied, no payload; in either
/// order, and when it comes in pieces.
#[test]
fn handshakes_are_answered() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let daemon = Daemon::start(&net, &config, 0);
    let pairs = [(kind::HS_D, kind::HS_D_ACK), (kind::HS_M, kind::HS_M_ACK)];
    for (order, dev) in [([0, 1], 3), ([1, 0], 255)] {
        let links: Vec<TcpStream> = order
            .map(|i: usize| {
                let (hs, ack) = pairs[i];
                let (link, answer) =
                    redial("a handshake", PATIENCE, || kernel_hello(net.server(0), hs, dev).ok());
                let answer = Packet { head: answer, payload: Vec::new() };
                assert_eq!(answer.magic(), MAGIC);
                assert_eq!((answer.kind(), answer.dev(), answer.len()), (ack, dev, 0), "{answer:?}");
                link
            })
            .into();
        drop(links);
    }
    let mut pieces = redial("a handshake in pieces", PATIENCE, || {
        let mut stream = TcpStream::connect(net.server(0)).ok()?;
        let head = Packet::new(kind::HS_D).with_magic(0).with_dev(1).head;
        head.chunks(50).try_for_each(|part| stream.write_all(part)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.read_exact(&mut [0; HEADER]).ok()?;
        Some(stream)
    });
    pieces.set_read_timeout(Some(ms(1))).unwrap();
    assert!(!matches!(pieces.read(&mut [0]), Ok(0)), "the link stays open");
    daemon.stop();
}

/// A second module is refused while the first is attached: no answer, and the first does not notice.
#[test]
fn a_second_module_is_refused() {
    let harness = Harness::new(2);
    let peer = harness.call(1);
    for handshake in [kind::HS_D, kind::HS_M] {
        assert!(kernel_hello(harness.net.server(0), handshake, 0).is_err());
        harness.assert_carries(&peer);
    }
    assert_eq!(harness.kernel.masks(), [0, bit(1)]);
    let refusals = harness.daemon.log_count("module");
    assert!(refusals > 0, "a log line tells");
    harness.stop();
}

/// Any other first packet is closed without an answer, and keeps no module from attaching.
#[test]
fn another_first_packet_is_closed() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let daemon = Daemon::start(&net, &config, 0);
    for first in [kind::HS_D_ACK, kind::HS_M_ACK, kind::ND_SBIO, kind::NC_PING, 0, 255] {
        assert!(kernel_hello(net.server(0), first, 0).is_err(), "type {first}");
    }
    let mut stream = TcpStream::connect(net.server(0)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = stream.write_all(&[0x5a; 1000]);
    assert!(matches!(stream.read(&mut [0; 200]), Ok(0) | Err(_)));
    let kernel = FakeKernel::attach(&net, 0);
    kernel.wait_state(0, PATIENCE);
    daemon.stop();
}

/// Half a handshake, or none, then silence is closed.
#[test]
fn half_a_handshake_then_silence_is_closed() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let daemon = Daemon::start(&net, &config, 0);
    let start = Instant::now();
    let streams = [0, 70].map(|part| {
        let mut stream = TcpStream::connect(net.server(0)).unwrap();
        stream.write_all(&Packet::new(kind::HS_D).with_magic(0).head[..part]).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    });
    for mut stream in streams {
        assert_ends(&mut stream, "closed");
        let after = start.elapsed();
        assert!(ms(2500) < after && after < ms(6000), "closed after {after:?}");
    }
    daemon.stop();
}

/// Failure mode 26: handshakes that break off in every way leave the daemon able to attach a module.
#[test]
fn fm26_broken_handshakes_leave_no_trace() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let daemon = Daemon::start(&net, &config, 0);
    for round in 0..30 {
        let handshake = [kind::HS_D, kind::HS_M][round % 2];
        // Answered or not, depending on what the daemon has seen of the last one: closed at once.
        drop(kernel_hello(net.server(0), handshake, 0));
        let mut stream = TcpStream::connect(net.server(0)).unwrap();
        let _ = stream.write_all(&Packet::new(handshake).with_magic(0).head);
        drop(stream);
    }
    let kernel = FakeKernel::reattach(&net, 0);
    let harness = Harness::of(daemon, kernel, 0, config, net);
    let peer = harness.call(1);
    harness.assert_carries(&peer);
    harness.stop();
}

/// Detaching ends the peers' sessions; the module may come back at once and everything works again.
#[test]
fn detach_and_attach_again() {
    let mut harness = Harness::new(3);
    for _ in 0..4 {
        let peers = [1, 2].map(|id| harness.caller(id).call_until_taken());
        harness.kernel.wait_state(bit(1) | bit(2), PATIENCE);
        peers.iter().for_each(|peer| harness.assert_carries(peer));
        harness.kernel.data.close();
        harness.kernel.meta.close();
        for peer in &peers {
            peer.wait_closed(PATIENCE);
        }
        harness.kernel = FakeKernel::reattach(&harness.net, 0);
    }
    harness.stop();
}

/// Peers that are dialled come back by themselves after a detach.
#[test]
fn sessions_come_back_after_a_detach() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let daemons = [0, 1].map(|id| Daemon::start(&net, &config, id));
    let mut kernels = [0, 1].map(|id| FakeKernel::attach(&net, id));
    for turn in [0, 1, 0, 1] {
        kernels[0].wait_state(bit(1), PATIENCE);
        kernels[1].wait_state(bit(0), PATIENCE);
        let before = Instant::now();
        kernels[turn].meta.close();
        kernels[turn].data.close();
        kernels[1 - turn].wait_state_since(before, 0, PATIENCE);
        kernels[turn] = FakeKernel::reattach(&net, turn as u8);
    }
    for daemon in daemons {
        daemon.stop();
    }
}

/// The state of a link that is read without waiting.
fn drain(link: &mut TcpStream) -> Option<usize> {
    link.set_read_timeout(Some(ms(5))).unwrap();
    let mut got = 0;
    loop {
        match link.read(&mut [0; HEADER]) {
            Ok(0) => return None,
            Ok(n) => got += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Some(got),
            Err(_) => return None,
        }
    }
}

/// A module that loses one link dials it again by itself, and the other one if the daemon closed that, until
/// both are up and it has the state.
#[test]
fn one_lost_link_is_made_good() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let daemon = Daemon::start(&net, &config, 0);
    let dial =
        |i: usize| kernel_hello(net.server(0), [kind::HS_D, kind::HS_M][i], 0).ok().map(|(link, _)| link);
    let mut links = [0, 1].map(|i| Some(dial(i).unwrap()));
    for lost in [0, 1] {
        links[lost] = None;
        redial("both links and a state", PATIENCE, || {
            let whole = links.iter().all(Option::is_some);
            let mut told = 0;
            for (i, link) in links.iter_mut().enumerate() {
                match link.as_mut().map(drain) {
                    Some(Some(bytes)) => told += bytes,
                    Some(None) => *link = None,
                    None => *link = dial(i),
                }
            }
            (whole && links.iter().all(Option::is_some) && told >= HEADER).then_some(())
        });
    }
    drop(links);
    let _kernel = FakeKernel::reattach(&net, 0);
    daemon.stop();
}

/// Packets whose type is not relayed are dropped; the link stays.
#[test]
fn types_that_are_not_relayed_are_dropped() {
    let harness = Harness::new(2);
    let peer = harness.call(1);
    for kind in [0, 21, 22, 39, 40, 56, 57, 58, 59, 60, 61, 128, 255] {
        harness.kernel.data.send(&Packet::data(1, bit(1), 300).with_type(kind));
        harness.kernel.meta.send(&Packet::data(1, bit(1), 300).with_type(kind));
    }
    harness.assert_carries(&peer);
    assert_eq!(harness.kernel.masks(), [0, bit(1)]);
    harness.stop();
}

/// Failure mode 22: site packets of a cluster without other sites go nowhere and harm nothing.
#[test]
fn fm22_site_packets_without_sites_are_dropped() {
    let harness = Harness::new(2);
    let peer = harness.call(1);
    for kind in (1..=12).chain(23..=34) {
        for dev in [0, 7, 255] {
            harness.kernel.data.send(&Packet::data(1, u32::MAX, 30).with_type(kind).with_dev(dev));
            harness.kernel.meta.send(&Packet::data(1, u32::MAX, 30).with_type(kind).with_dev(dev));
        }
    }
    harness.assert_carries(&peer);
    harness.stop();
}

/// A module that sends something no module sends loses its links; peers' sessions end, and it may attach
/// again.
#[track_caller]
fn detaches(packet: &Packet) {
    for data in [true, false] {
        let mut harness = Harness::new(2);
        let peer = harness.call(1);
        let link = if data { &harness.kernel.data } else { &harness.kernel.meta };
        link.send(packet);
        harness.kernel.wait_closed();
        peer.wait_closed(PATIENCE);
        harness.kernel = FakeKernel::reattach(&harness.net, 0);
        let peer = harness.caller(1).call_until_taken();
        harness.kernel.wait_state(bit(1), PATIENCE);
        harness.assert_carries(&peer);
        harness.stop();
    }
}

/// Failure mode 4, from the module.
#[test]
fn fm04_a_packet_without_magic_detaches() {
    detaches(&Packet::data(1, bit(1), 10).with_magic(0));
}

/// Failure mode 21, from the module.
#[test]
fn fm21_a_length_of_4_gib_detaches() {
    detaches(&Packet::data(1, bit(1), 0).with_len(u32::MAX));
}

/// A packet cut off in the middle is not passed on.
#[test]
fn a_packet_cut_off_in_the_middle_is_not_passed_on() {
    let mut harness = Harness::new(2);
    let peer = harness.call(1);
    harness.kernel.data.send_raw(&Packet::data(1, bit(1), 5000).bytes()[..2000]);
    harness.kernel.data.close();
    harness.kernel.meta.close();
    assert_eq!(peer.data.drain_to_end(PATIENCE), [], "nothing of it arrived");
    harness.kernel = FakeKernel::reattach(&harness.net, 0);
    let peer = harness.caller(1).call_until_taken();
    harness.kernel.wait_state(bit(1), PATIENCE);
    harness.assert_carries(&peer);
    harness.stop();
}
