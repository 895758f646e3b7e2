//! The daemon's listeners: for other sites at the floating address itself and only while this node is the log owner,
//! for nodes also at an address that is not there yet. tests/sites/net.rs has a drawing of the network.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Instant;

use crate::namespaces::*;
use crate::support::*;

/// The places where a machine's daemon listens at this port, as the kernel has them.
fn places(daemon: &Daemon, port: u16) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for file in ["tcp", "tcp6"] {
        let text = std::fs::read_to_string(format!("/proc/{}/net/{file}", daemon.pid())).unwrap();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (addr, at) = fields[1].split_once(':').unwrap();
            // State 0A is LISTEN.
            if fields[3] != "0A" || u16::from_str_radix(at, 16).unwrap() != port {
                continue;
            }
            let words: Vec<[u8; 4]> = (0..addr.len() / 8)
                .map(|word| u32::from_str_radix(&addr[word * 8..word * 8 + 8], 16).unwrap().to_ne_bytes())
                .collect();
            let bytes = words.concat();
            found.push(match <[u8; 4]>::try_from(&bytes[..]) {
                Ok(v4) => IpAddr::from(v4),
                Err(_) => IpAddr::from(<[u8; 16]>::try_from(&bytes[..]).unwrap()),
            });
        }
    }
    found
}

#[track_caller]
fn wait_places(cluster: &Cluster, at: usize, wanted: &[IpAddr]) {
    redial(NAMES[at], PATIENCE, || (places(&cluster.seats[at].daemon, SITE_PORT) == wanted).then_some(()));
}

fn status(cluster: &Cluster, at: usize) -> String {
    let output = cluster.hadmctl(at, &["status"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The listener comes with the floating address and goes with it; nothing else at the machine is listened at.
#[test]
fn the_listener_moves_with_the_floating_address() {
    let Some(cluster) = Cluster::start(&[resource(0)], &[[A0, B0]]) else { return };
    wait_linked(&cluster, 0, [A0, B0]);
    let here = IpAddr::from(floating(0, 0));
    wait_places(&cluster, A0, &[here]);
    wait_places(&cluster, A1, &[]);
    // Another service has the same port at the machine's own address.
    let _service = cluster.net.machines[A0].inside(|| TcpListener::bind((own_ip(A0), SITE_PORT))).unwrap();
    cluster.net.move_address(here, A0, A1);
    redial("old owner", PATIENCE, || {
        (places(&cluster.seats[A0].daemon, SITE_PORT) == [IpAddr::from(own_ip(A0))]).then_some(())
    });
    wait_places(&cluster, A1, &[here]);
    wait_linked(&cluster, 0, [A1, B0]);
    cluster.assert_carries(0, A1, B0, 1);
    cluster.stop();
}

/// Another service that has the port at every address ends nothing: it is logged once and shown, and once the port
/// is free the sites link.
#[test]
fn a_port_that_another_service_has_is_tried_again() {
    let resources = [resource(0), (1, [0, 1].map(|site| SocketAddr::from((floating(site, 1), 7200))))];
    let Some(cluster) = Cluster::start(&resources, &[[A1, B0], [A0, B0]]) else { return };
    wait_linked(&cluster, 0, [A1, B0]);
    let service = cluster.net.machines[A0].inside(|| TcpListener::bind(("0.0.0.0", SITE_PORT))).unwrap();
    cluster.net.move_address(floating(0, 0), A1, A0);
    let daemon = &cluster.seats[A0].daemon;
    let place = format!("cannot listen for other sites at {}:{SITE_PORT}: ", floating(0, 0));
    daemon.wait_log(&format!("{place}Address already in use"), PATIENCE);
    assert!(status(&cluster, A0).contains(&place), "{}", status(&cluster, A0));
    // Links that have nothing to do with it go on, for more than one attempt.
    let began = Instant::now();
    for seq in 0.. {
        cluster.assert_carries(1, A0, B0, seq);
        if began.elapsed() > ms(2500) {
            break;
        }
        std::thread::park_timeout(ms(100));
    }
    assert_eq!(daemon.log_count(&place), 1, "told once");
    drop(service);
    wait_linked(&cluster, 0, [A0, B0]);
    cluster.assert_carries(0, A0, B0, 1 << 20);
    assert!(!status(&cluster, A0).contains(&place), "{}", status(&cluster, A0));
    cluster.stop();
}

/// A resource that no other site has needs no listener.
#[test]
fn no_listener_for_a_resource_without_another_site() {
    let Some(net) = Network::new() else { return };
    let file = config(&[resource(0)], &[]);
    let text = std::fs::read_to_string(&file.path).unwrap();
    let from = text.find("  <runsite><id>1</id>").unwrap();
    let to = from + text[from..].find("</runsite>").unwrap() + "</runsite>".len();
    std::fs::write(&file.path, format!("{}{}", &text[..from], &text[to..])).unwrap();
    net.add(A0, floating(0, 0));
    // The port is another service's, which harms nobody.
    let _service = net.machines[A0].inside(|| TcpListener::bind(("0.0.0.0", SITE_PORT))).unwrap();
    let seat = Seat::start(&net, &file, A0);
    seat.daemon.wait_log("log owner now", PATIENCE);
    assert_eq!(seat.daemon.log_count("cannot listen"), 0);
    seat.daemon.stop();
}

/// Two resources with one floating address and port have one listener, and both their links.
#[test]
fn two_resources_share_a_listener() {
    let shared = SocketAddr::from((floating(0, 4), SITE_PORT));
    let there = |id| SocketAddr::from((floating(1, id), SITE_PORT));
    let resources = [(4, [shared, there(4)]), (9, [shared, there(9)])];
    let Some(net) = Network::new() else { return };
    let file = config(&resources, &[]);
    net.add(A0, floating(0, 4));
    net.add(B0, floating(1, 4));
    net.add(B0, floating(1, 9));
    let [a0, b0] = [A0, B0].map(|at| Seat::start(&net, &file, at));
    for id in [4, 9] {
        a0.kernel.wait_state(Whom::Sites(id), bit(1));
        b0.kernel.wait_state(Whom::Sites(id), bit(0));
        let data = site_data(id.into(), id, bit(1), 100);
        a0.kernel.data.send(&data);
        assert_eq!(b0.kernel.data.recv(), data);
    }
    assert_eq!(places(&a0.daemon, SITE_PORT), [shared.ip()]);
    a0.daemon.stop();
    b0.daemon.stop();
}

/// A floating IPv6 address that the system still asks the others about is waited for.
#[test]
fn a_tentative_floating_address_is_waited_for() {
    let ends = (0, [0, 1].map(|site| SocketAddr::from((floating_v6(site, 0), SITE_PORT))));
    let Some(net) = Network::new() else { return };
    let file = config(&[ends], &[]);
    net.add(B0, floating_v6(1, 0));
    search_for_duplicates(&net, A0);
    let [a0, b0] = [A0, B0].map(|at| Seat::start(&net, &file, at));
    net.machines[A0].ip(&format!("addr add {}/64 dev eth0\n", floating_v6(0, 0)));
    a0.kernel.wait_state(Whom::Sites(0), bit(1));
    b0.kernel.wait_state(Whom::Sites(0), bit(0));
    assert_eq!(places(&a0.daemon, SITE_PORT), [IpAddr::from(floating_v6(0, 0))]);
    a0.daemon.stop();
    b0.daemon.stop();
}

/// From now on a new IPv6 address of the machine is tentative for some two seconds.
fn search_for_duplicates(net: &Network, at: usize) {
    net.machines[at].inside(|| {
        std::fs::write("/proc/sys/net/ipv6/conf/eth0/dad_transmits", "2").unwrap();
    });
}

/// The node's own address is missing at the start, as at boot: the daemon starts, tells once, shows it, and links as
/// soon as the address is there; a tentative one is the same.
#[test]
fn the_nodes_own_address_may_come_later() {
    let Some(net) = Network::new() else { return };
    let late = "fd77::77";
    let file = config(&[], &[]);
    let text = std::fs::read_to_string(&file.path).unwrap();
    let own = format!("<ipaddr>{}</ipaddr>", own_ip(A0));
    assert!(text.contains(&own));
    let text = text.replace(&own, &format!("<ipaddr>{late}</ipaddr>"));
    let other = format!("<ipaddr>{}</ipaddr>", own_ip(A1));
    std::fs::write(&file.path, text.replace(&other, "<ipaddr>fd77::11</ipaddr>")).unwrap();
    let [a0, a1] = [A0, A1].map(|at| Seat::start(&net, &file, at));
    let missing = format!("address {late} (ipaddr of this node) is on no interface");
    a0.daemon.wait_log(&missing, PATIENCE);
    let shown = || {
        let mut hadmctl = std::process::Command::new(env!("CARGO_BIN_EXE_hadmctl"));
        let output = hadmctl.arg("--control").arg(file.dir.path.join("a0")).arg("status").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(shown().contains(&missing), "{}", shown());
    search_for_duplicates(&net, A0);
    net.machines[A0].ip(&format!("addr add {late}/64 dev eth0\n"));
    a0.kernel.wait_state(Whom::Nodes, bit(1));
    a1.kernel.wait_state(Whom::Nodes, bit(0));
    redial("still waiting", PATIENCE, || (!shown().contains("waiting")).then_some(()));
    assert_eq!(a0.daemon.log_count(&missing), 2, "told when it was missed and when it was there");
    a0.daemon.stop();
    a1.daemon.stop();
}
