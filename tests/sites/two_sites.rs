//! Sites, resources and log owners: who links with whom, which packets go where, and what kernel modules are
//! sent. tests/sites/net.rs has a drawing of the network.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::namespaces::*;
use crate::support::*;

/// The log owners of two sites link, and their kernel modules hear of it; those of the others hear of the
/// resource, too, that no site is connected. Both again on each connect tick.
#[test]
fn log_owners_link_and_every_kernel_is_told() {
    let Some(cluster) = Cluster::start(&[resource(3)], &[[A0, B1]]) else { return };
    wait_linked(&cluster, 3, [A0, B1]);
    cluster.assert_carries(3, A0, B1, 1);
    for at in ALL {
        let kernel = cluster.kernel(at);
        let count = kernel.states(Whom::Sites(3)).len();
        kernel.wait_count(Whom::Sites(3), count + 1);
        let (owner, other) = (at == A0 || at == B1, bit(1 - site(at)));
        let masks = kernel.masks(Whom::Sites(3));
        let right: &[&[u32]] = if owner { &[&[0, other], &[other]] } else { &[&[0]] };
        assert!(right.contains(&&masks[..]), "{}: {masks:?}", NAMES[at]);
        assert_eq!(kernel.states(Whom::Sites(255)), [], "one state a resource");
        assert_eq!(kernel.states(Whom::Sites(0)), [], "only those that are configured");
    }
    for at in [A0, B1] {
        cluster.seats[at].daemon.wait_log("resource 3 (r3): log owner now", PATIENCE);
    }
    for at in [A1, B0] {
        assert_eq!(cluster.seats[at].daemon.log_count("log owner"), 0);
    }
    cluster.stop();
}

/// Data and meta packets of every type that is relayed travel between the owners' kernel modules byte for byte,
/// in order.
#[test]
fn packets_of_sites_arrive_byte_for_byte() {
    let Some(cluster) = Cluster::start(&[resource(0)], &[[A0, B0]]) else { return };
    wait_linked(&cluster, 0, [A0, B0]);
    // Not the heartbeats, and not the connection state, which is the daemon's own.
    let meta = (1..=12).filter(|kind| !(5..=7).contains(kind));
    let kinds: Vec<u8> = meta.chain(23..=34).collect();
    for (from, to) in [(A0, B0), (B0, A0)] {
        let packets: Vec<Packet> = (0..500)
            .map(|seq| {
                let kind = kinds[seq as usize % kinds.len()];
                let packet = Packet::filled(kind, seq, (seq as usize * 37) % 9000).with_dev(0);
                // The module's own modules leave node_type 0; any value stays.
                packet.with_to(bit(site(to))).with_node_type((seq % 2) as u8)
            })
            .collect();
        for packet in &packets {
            // A packet may come on either link: its type decides.
            let links = [&cluster.kernel(from).data, &cluster.kernel(from).meta];
            let data = packet.kind() >= 23;
            links[usize::from(!data)].send(packet);
        }
        let (data, meta): (Vec<&Packet>, Vec<&Packet>) =
            packets.iter().partition(|packet| packet.kind() >= 23);
        data.iter().for_each(|sent| assert_eq!(cluster.kernel(to).data.recv(), **sent));
        meta.iter().for_each(|sent| assert_eq!(cluster.kernel(to).meta.recv(), **sent));
    }
    cluster.stop();
}

/// Node 1 and site 1 are two different peers: neither gets a packet of the other, and neither's end is
/// taken for the other's.
#[test]
fn node_1_and_site_1_are_never_mixed_up() {
    let Some(cluster) = Cluster::start(&[resource(0)], &[[A0, B1]]) else { return };
    wait_linked(&cluster, 0, [A0, B1]);
    let from = cluster.kernel(A0);
    for seq in 0..100 {
        let node_type = (seq % 2) as u8;
        from.data.send(&site_data(seq, 0, bit(1), 50).with_node_type(node_type));
        from.data.send(&Packet::data(seq, bit(1), 50).with_node_type(node_type));
        from.meta.send(&site_meta(seq, 0, bit(1)).with_node_type(node_type));
        from.meta.send(&Packet::meta(seq, bit(1)).with_node_type(node_type));
    }
    for seq in 0..100 {
        let node_type = (seq % 2) as u8;
        let (node, site) = (cluster.kernel(A1), cluster.kernel(B1));
        assert_eq!(node.data.recv(), Packet::data(seq, bit(1), 50).with_node_type(node_type));
        assert_eq!(site.data.recv(), site_data(seq, 0, bit(1), 50).with_node_type(node_type));
        assert_eq!(node.meta.recv(), Packet::meta(seq, bit(1)).with_node_type(node_type));
        assert_eq!(site.meta.recv(), site_meta(seq, 0, bit(1)).with_node_type(node_type));
    }
    // Node 1 goes and comes: site 1 stays. Then site 1 goes: node 1 stays.
    let [a0, a1, b0, b1] = cluster.seats;
    let before = Instant::now();
    a1.daemon.kill9();
    a0.kernel.wait_since(Whom::Nodes, before, 0);
    a0.kernel.data.send(&site_data(200, 0, bit(1), 50));
    assert_eq!(b1.kernel.data.recv(), site_data(200, 0, bit(1), 50));
    assert!(a0.kernel.states(Whom::Sites(0)).iter().all(|&(at, mask)| at < before || mask == bit(1)));
    drop(a1.kernel);
    let config = config(&[resource(0)], &[]);
    let a1 = Seat::start(&cluster.net, &config, A1);
    a0.kernel.wait_state(Whom::Nodes, bit(1));
    let before = Instant::now();
    b1.daemon.kill9();
    a0.kernel.wait_since(Whom::Sites(0), before, 0);
    a0.kernel.data.send(&Packet::data(201, bit(1), 50));
    assert_eq!(a1.kernel.data.recv(), Packet::data(201, bit(1), 50));
    assert!(a0.kernel.states(Whom::Nodes).iter().all(|&(at, mask)| at < before || mask == bit(1)));
    for seat in [a0, a1, b0] {
        seat.daemon.stop();
    }
}

/// A site's own bit and bits of sites that are nobody's are ignored and counted; the others in the mask get
/// the packet.
#[test]
fn bits_of_nobody_in_a_site_packet_cost_nothing() {
    let Some(cluster) = Cluster::start(&[resource(0)], &[[A1, B0]]) else { return };
    wait_linked(&cluster, 0, [A1, B0]);
    // Its own node's bit is that of the other site.
    cluster.kernel(A1).data.send(&site_data(1, 0, u32::MAX, 10));
    assert_eq!(cluster.kernel(B0).data.recv(), site_data(1, 0, u32::MAX, 10));
    cluster.assert_carries(0, A1, B0, 2);
    for seat in [A0, B1] {
        cluster.kernel(seat).assert_silent(Duration::ZERO);
    }
    let [a0, a1, b0, b1] = cluster.seats;
    let log = a1.daemon;
    log.term();
    log.wait_log("went nowhere: own bit 1, unknown id 30", PATIENCE);
    for daemon in [log, a0.daemon, b0.daemon, b1.daemon] {
        daemon.stop();
    }
}

fn two(ports: [u16; 2]) -> [Resource; 2] {
    let at = |id: u8, port| (id, [0, 1].map(|site| SocketAddr::from((floating(site, id), port))));
    [at(4, ports[0]), at(9, ports[1])]
}

/// Failure mode 34: each resource has its own port, and both have their own links between the same two sites and
/// the same two machines; packets go by the resource. One for all resources goes to each site once.
#[test]
fn fm34_two_resources_of_the_same_owners_have_their_own_links() {
    let Some(cluster) = Cluster::start(&two([7100, 7101]), &[[A0, B0], [A0, B0]]) else { return };
    same_owners(cluster);
}

/// The same with one port and two addresses.
#[test]
fn fm34_two_resources_share_a_port_by_their_addresses() {
    let Some(cluster) = Cluster::start(&two([7100, 7100]), &[[A0, B0], [A0, B0]]) else { return };
    same_owners(cluster);
}

/// And with one port in both families of addresses.
#[test]
fn fm34_two_resources_share_a_port_in_both_families() {
    let mut resources = two([7100, 7100]);
    resources[1].1 = [0, 1].map(|site| SocketAddr::from((floating_v6(site, 9), 7100)));
    let Some(cluster) = Cluster::start(&resources, &[[A0, B0], [A0, B0]]) else { return };
    same_owners(cluster);
}

#[track_caller]
fn same_owners(cluster: Cluster) {
    wait_linked(&cluster, 4, [A0, B0]);
    wait_linked(&cluster, 9, [A0, B0]);
    for (seq, resource) in [4, 9, 4].into_iter().enumerate() {
        cluster.assert_carries(resource, A0, B0, seq as u64);
    }
    for seq in 10..20 {
        cluster.assert_carries(255, A0, B0, seq);
    }
    // Nothing more came: what is sent now is next, on both resources' links.
    cluster.assert_carries(4, A0, B0, 20);
    cluster.assert_carries(9, A0, B0, 21);
    let [a0, a1, b0, b1] = cluster.seats;
    for seat in [&a0, &b0] {
        seat.kernel.assert_silent(ms(100));
    }
    for (seat, other, owner) in [(a0, 1, true), (b0, 0, true), (a1, 1, false), (b1, 0, false)] {
        let name = |resource| format!("site {other} of resource {resource} data out");
        let counters = seat.daemon.stop();
        let forwarded = |resource| {
            let line = counters.0.iter().find(|entry| entry.name == name(resource));
            line.map_or(0, |entry| entry.forwarded)
        };
        // Those for all resources have taken one of the two.
        assert_eq!([forwarded(4), forwarded(9)], if owner { [13, 2] } else { [0, 0] });
    }
}

/// Two resources with different owners at one site, and one machine that owns both at the other: each one's
/// packets go to its own owner, those for all resources to one of the two.
#[test]
fn fm34_two_resources_have_their_own_owners() {
    let Some(cluster) = Cluster::start(&two([7100, 7101]), &[[A0, B0], [A1, B0]]) else { return };
    wait_linked(&cluster, 4, [A0, B0]);
    wait_linked(&cluster, 9, [A1, B0]);
    cluster.assert_carries(4, A0, B0, 1);
    cluster.assert_carries(9, A1, B0, 2);
    let b0 = cluster.kernel(B0);
    b0.data.send(&site_data(3, 255, bit(0), 10));
    assert_eq!(cluster.kernel(A0).data.recv(), site_data(3, 255, bit(0), 10));
    // One of the two goes: the other's link takes what is for all.
    let before = Instant::now();
    cluster.net.remove(A0, floating(0, 4));
    cluster.kernel(A0).wait_since(Whom::Sites(4), before, 0);
    b0.data.send(&site_data(4, 9, bit(0), 10));
    assert_eq!(cluster.kernel(A1).data.recv(), site_data(4, 9, bit(0), 10));
    cluster.kernel(A0).assert_silent(ms(50));
    assert!(
        cluster.kernel(A1).states(Whom::Sites(9)).iter().all(|&(at, mask)| at < before || mask == bit(1))
    );
    cluster.stop();
}
