//! Encrypted links between sites: with the address in the hello and, for IPv6, in the record; beside those of
//! nodes; around compression.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]
#![cfg(feature = "authkey")]

use std::net::SocketAddr;
use std::process::Command;

use crate::namespaces::*;
use crate::support::*;

#[test]
fn nodes_and_sites_of_a_keyed_cluster_link_over_both_families() {
    let dir = TempDir::new();
    let key = dir.path.join("key");
    let made = Command::new(env!("CARGO_BIN_EXE_hadmctl")).arg("keygen").arg(&key).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let resources =
        [resource(0), (1, [0, 1].map(|site| SocketAddr::from((floating_v6(site, 1), SITE_PORT))))];
    let owners = [[A0, B0], [A1, B1]];
    let global = [("authkey", key.to_str().unwrap())];
    let Some(cluster) = Cluster::start_with(&resources, &owners, &global) else { return };
    for (resource, [a, b]) in (0..).zip(owners) {
        cluster.kernel(a).wait_state(Whom::Sites(resource), bit(1));
        cluster.kernel(b).wait_state(Whom::Sites(resource), bit(0));
        cluster.assert_carries(resource, a, b, resource.into());
    }
    for (at, seat) in ALL.into_iter().zip(&cluster.seats) {
        seat.kernel.wait_state(Whom::Nodes, bit(1 - node(at)));
        // A node and a site; the log may come after the kernel module's state.
        redial("two encrypted links", PATIENCE, || {
            (seat.daemon.log_count("; encrypted: ") == 2).then_some(())
        });
        assert_eq!(seat.daemon.log_count(": connected ("), 2);
    }
    cluster.stop();
}

#[test]
fn compression_goes_inside() {
    let Some(net) = Network::new() else { return };
    net.add(A0, floating(0, 0));
    net.add(B0, floating(1, 0));
    let dir = TempDir::new();
    let key = dir.path.join("key");
    let made = Command::new(env!("CARGO_BIN_EXE_hadmctl")).arg("keygen").arg(&key).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let config = config(&[resource(0)], &[("authkey", key.to_str().unwrap())]);
    let xml = std::fs::read_to_string(&config.path).unwrap();
    let compressed = xml.replace("<protocol>", "<compress>lz4</compress><protocol>");
    assert_ne!(xml, compressed);
    std::fs::write(&config.path, compressed).unwrap();
    let seats = [A0, B0].map(|at| Seat::start(&net, &config, at));
    seats[0].kernel.wait_state(Whom::Sites(0), bit(1));
    seats[1].kernel.wait_state(Whom::Sites(0), bit(0));
    for (from, to) in [(0, 1), (1, 0)] {
        let [source, sink] = [from, to].map(|side| &seats[side].kernel);
        let packet = |seq: u64| {
            let mut packet = site_data(seq, 0, bit(to as u8), seq as usize * 1000 % 150_000);
            let len = packet.payload.len();
            packet.payload[len / 2..].fill(seq as u8);
            packet
        };
        std::thread::scope(|scope| {
            scope.spawn(|| (0..300).for_each(|seq| source.data.send(&packet(seq))));
            (0..300).for_each(|seq| assert!(sink.data.recv() == packet(seq), "packet {seq}"));
        });
    }
    for Seat { daemon, .. } in seats {
        let line = daemon.wait_log(": connected (", PATIENCE);
        assert!(line.contains("; encrypted: ") && line.contains("; compress lz4)"), "{line}");
        daemon.stop();
    }
}
