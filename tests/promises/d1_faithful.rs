//! D1 Faithful: what kernel A sends to kernel B arrives byte for byte, in order, at most once, per link
//! class.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::thread;

use crate::support::*;

/// A payload length for packet `seq`: every edge of a header's size, and some that fill buffers.
fn length(seq: u64) -> usize {
    const LENGTHS: [usize; 12] = [0, 1, 127, 128, 129, 511, 4096, 4096, 4097, 16_384, 65_536, 100_001];
    LENGTHS[(seq * 7 % 12) as usize]
}

/// Data and meta packets of every length, both ways at once through two daemons.
#[test]
fn two_daemons_carry_both_classes_both_ways() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let daemons = [0, 1].map(|id| Daemon::start(&net, &config, id));
    let kernels = [0, 1].map(|id| FakeKernel::attach(&net, id));
    kernels[0].wait_state(bit(1), PATIENCE);
    kernels[1].wait_state(bit(0), PATIENCE);
    let data = |to: u8| move |seq| (seq < 600).then(|| Packet::data(seq, bit(to), length(seq)));
    let meta = |to: u8| {
        move |seq| {
            let kind = [kind::NC_MASTER, kind::NC_STATE_REQ, kind::NC_STATE][seq as usize % 3];
            (seq < 1500).then(|| Packet::filled(kind, seq, seq as usize % 300).with_to(bit(to)))
        }
    };
    let floods = [(0, 1), (1, 0)].map(|(from, to): (usize, u8)| {
        [kernels[from].data.flood(data(to)), kernels[from].meta.flood(meta(to))]
    });
    thread::scope(|scope| {
        for (kernel, id) in kernels.iter().zip([0, 1]) {
            scope.spawn(move || (0..600).for_each(|seq| assert_eq!(Some(kernel.data.recv()), data(id)(seq))));
            scope
                .spawn(move || (0..1500).for_each(|seq| assert_eq!(Some(kernel.meta.recv()), meta(id)(seq))));
        }
    });
    floods.into_iter().flatten().for_each(|flood| assert!(flood.finish() >= 600));
    for (daemon, peer) in daemons.into_iter().zip([1, 0]) {
        let counters = daemon.stop();
        for direction in ["in", "out"] {
            let (data, meta) =
                (counters.line(peer, "data", direction), counters.line(peer, "meta", direction));
            assert_eq!((data.received, data.forwarded), (600, 600), "{data:?}");
            assert!(meta.received >= 1500 && meta.forwarded >= 1500, "{meta:?}");
        }
    }
}

/// A file in 64 KiB packets reaches two nodes through three daemons.
#[test]
fn a_file_reaches_two_nodes() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 3).build();
    let daemons = [0, 1, 2].map(|id| Daemon::start(&net, &config, id));
    let kernels = [0, 1, 2].map(|id| FakeKernel::attach(&net, id));
    kernels.iter().zip([0b110, 0b101, 0b011]).for_each(|(kernel, mask)| {
        kernel.wait_state(mask, PATIENCE);
    });
    let packet = |seq| (seq < 320).then(|| Packet::data(seq, 0b011, 65_536));
    let flood = kernels[2].data.flood(packet);
    thread::scope(|scope| {
        for kernel in &kernels[..2] {
            scope.spawn(move || (0..320).for_each(|seq| assert_eq!(Some(kernel.data.recv()), packet(seq))));
        }
    });
    assert_eq!(flood.finish(), 320);
    for daemon in daemons {
        daemon.stop();
    }
}

/// Each peer gets the packets with its bit, in order, and no others; the mask it sees is the one sent, with
/// own, unknown and other peers' bits.
#[test]
fn node_to_chooses_the_peers_and_stays_unchanged() {
    let harness = Harness::new(4);
    let peers = [1, 2, 3].map(|id| harness.call(id));
    let mask = |seq: u64| (seq % 16) as u32 | if seq % 3 == 0 { 0x8000_0100 } else { 0 };
    let flood = harness.kernel.data.flood(move |seq| (seq < 800).then(|| Packet::data(seq, mask(seq), 50)));
    for peer in &peers {
        for seq in (0..800).filter(|&seq| mask(seq) & bit(peer.id) != 0) {
            assert_eq!(peer.data.recv(), Packet::data(seq, mask(seq), 50));
        }
    }
    flood.finish();
    peers.iter().for_each(|peer| harness.assert_carries(peer));
    harness.stop();
}

/// A packet's type chooses its link, whichever link it came on, in both directions.
#[test]
fn types_choose_the_link() {
    let harness = Harness::new(2);
    let peer = harness.call(1);
    let to_peer = |kind, seq| Packet::filled(kind, seq, 33).with_to(bit(1));
    for (seq, kind) in [kind::ND_SBIO, kind::ND_SBIO_ACK, 35, 38].into_iter().enumerate() {
        harness.kernel.meta.send(&to_peer(kind, seq as u64));
        assert_eq!(peer.data.recv(), to_peer(kind, seq as u64));
        peer.meta.send(&to_peer(kind, seq as u64));
        assert_eq!(harness.kernel.data.recv(), to_peer(kind, seq as u64));
    }
    for (seq, kind) in [kind::NC_MASTER, kind::NC_STATE_REQ, kind::NC_STATE, 13, 20].into_iter().enumerate() {
        harness.kernel.data.send(&to_peer(kind, seq as u64));
        assert_eq!(peer.meta.recv(), to_peer(kind, seq as u64));
        peer.data.send(&to_peer(kind, seq as u64));
        assert_eq!(harness.kernel.meta.recv(), to_peer(kind, seq as u64));
    }
    harness.assert_carries(&peer);
    harness.stop();
}

/// The node_type of a packet from the kernel or a peer decides nothing: types do.
#[test]
fn node_type_is_carried_and_not_obeyed() {
    let harness = Harness::new(2);
    let peer = harness.call(1);
    for node_type in [0, 1, 7, 255] {
        let packet = Packet::data(node_type.into(), bit(1), 10).with_node_type(node_type);
        harness.kernel.data.send(&packet);
        assert_eq!(peer.data.recv(), packet);
    }
    harness.stop();
}

/// Packets come out whole however the stream was cut, and however many came in one piece.
#[test]
fn streams_may_be_cut_anywhere() {
    let harness = Harness::new(2);
    let peer = harness.call(1);
    for cut in [1, 7, 12, 64, 127, 128, 129, 150, 227] {
        let bytes = Packet::data(cut as u64, bit(1), 100).bytes();
        harness.kernel.data.send_raw(&bytes[..cut]);
        // Packets on the other link meanwhile show that the first part was read.
        harness.kernel.meta.send(&Packet::meta(1, bit(1)));
        peer.meta.recv();
        harness.kernel.data.send_raw(&bytes[cut..]);
        assert_eq!(peer.data.recv(), Packet::data(cut as u64, bit(1), 100));
    }
    for byte in Packet::data(1, bit(0), 100).bytes() {
        peer.data.send_raw(&[byte]);
    }
    assert_eq!(harness.kernel.data.recv(), Packet::data(1, bit(0), 100));
    let many: Vec<u8> = (0..500).flat_map(|seq| Packet::data(seq, bit(1), 77).bytes()).collect();
    harness.kernel.data.send_raw(&many);
    (0..500).for_each(|seq| assert_eq!(peer.data.recv(), Packet::data(seq, bit(1), 77)));
    harness.stop();
}

/// A packet of exactly the default `maxpacket`, 16 MiB, passes.
#[test]
fn the_longest_packet_passes() {
    let harness = Harness::new(2);
    let peer = harness.call(1);
    let packet = Packet::data(3, bit(1), 16 << 20);
    harness.kernel.data.send(&packet);
    assert_eq!(peer.data.recv(), packet);
    peer.data.send(&packet);
    assert_eq!(harness.kernel.data.recv(), packet);
    harness.stop();
}

/// Node packets of a peer are for us when they come: node_to is not compared with our id.
#[test]
fn a_peers_packets_are_ours_whatever_their_mask() {
    let harness = Harness::new(3);
    let peer = harness.call(1);
    for mask in [0, bit(2), bit(31), u32::MAX] {
        peer.data.send(&Packet::data(mask.into(), mask, 5));
        assert_eq!(harness.kernel.data.recv(), Packet::data(mask.into(), mask, 5));
    }
    harness.stop();
}
