//! Resources that come, go and move while the daemons run: what concerns one resource concerns no other.
//! tests/sites/net.rs has a drawing of the network.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use crate::namespaces::*;
use crate::support::*;

fn at_port(id: u8, port: u16) -> Resource {
    (id, [0, 1].map(|site| SocketAddr::from((floating(site, id), port))))
}

#[track_caller]
fn reload(cluster: &Cluster, at: usize) -> String {
    let output = cluster.hadmctl(at, &["reload"]);
    assert!(output.status.success(), "{}: {}", NAMES[at], String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Data of resource 0 from each owner to the other, while `act` is at work: D1, and D2, since the session that it
/// began with is there at its end.
#[track_caller]
fn undisturbed(cluster: &Cluster, [a, b]: [usize; 2], act: impl FnOnce() + Send) {
    const N: u64 = 2000;
    let ended = || [a, b].map(|at| cluster.seats[at].daemon.log_count("of resource 0: session ended"));
    let before = ended();
    std::thread::scope(|scope| {
        let acts = scope.spawn(act);
        for (from, to) in [(a, b), (b, a)] {
            let packet = move |n| site_data(n, 0, bit(site(to)), 4096);
            scope.spawn(move || (0..N).for_each(|n| cluster.kernel(from).data.send(&packet(n))));
            scope.spawn(move || (0..N).for_each(|n| assert_eq!(cluster.kernel(to).data.recv(), packet(n))));
        }
        acts.join().unwrap();
    });
    assert_eq!(ended(), before);
    cluster.assert_carries(0, a, b, N);
}

#[test]
fn a_resource_comes_and_goes_alone() {
    let Some(cluster) = Cluster::start(&[resource(0)], &[[A0, B0]]) else { return };
    wait_linked(&cluster, 0, [A0, B0]);
    for at in [A0, B1] {
        cluster.net.add(at, floating(site(at), 1));
    }
    undisturbed(&cluster, [A0, B0], || {
        cluster.rewrite(&[resource(0), resource(1)]);
        for at in ALL {
            let said = reload(&cluster, at);
            let here = floating(site(at), 1);
            assert!(
                said.contains(&format!("setting: resource 1 at this site: none -> {here}:7100")),
                "{said}"
            );
            let other = 1 - site(at);
            assert!(said.contains(&format!("site {other} of resource 1: added")), "{said}");
            assert!(said.contains(&format!("site {other} of resource 0: kept")), "{said}");
        }
        wait_linked(&cluster, 1, [A0, B1]);
    });
    cluster.assert_carries(1, A0, B1, 1);
    undisturbed(&cluster, [A0, B0], || {
        cluster.rewrite(&[resource(0)]);
        // The other side hears of it by the end of the session, before it is reloaded itself.
        assert!(reload(&cluster, A0).contains("site 1 of resource 1: removed"));
        cluster.kernel(A0).wait_state(Whom::Sites(1), 0);
        cluster.kernel(B1).wait_state(Whom::Sites(1), 0);
        for at in [A1, B0, B1] {
            reload(&cluster, at);
        }
    });
    // Packets that the kernel module still sends for it go nowhere, and are counted.
    cluster.kernel(A0).data.send(&site_data(9, 1, bit(1), 10));
    cluster.seats[A0].daemon.wait_log("resource 1 is not configured here", PATIENCE);
    cluster.stop();
}

/// The first resource of a daemon that had none, and the last one.
#[test]
fn the_first_resource_and_the_last() {
    let Some(cluster) = Cluster::start(&[], &[]) else { return };
    for at in [A1, B1] {
        cluster.net.add(at, floating(site(at), 0));
    }
    cluster.rewrite(&[resource(0)]);
    for at in ALL {
        reload(&cluster, at);
    }
    wait_linked(&cluster, 0, [A1, B1]);
    cluster.assert_carries(0, A1, B1, 1);
    cluster.rewrite(&[]);
    for at in ALL {
        reload(&cluster, at);
    }
    cluster.kernel(A1).wait_state(Whom::Sites(0), 0);
    for at in [A1, B1] {
        let call = cluster.net.machines[at].inside(|| TcpStream::connect((own_ip(at), SITE_PORT)));
        assert!(call.is_err(), "nobody listens any more");
    }
    cluster.stop();
}

/// Its port, then the family of its addresses: the listener moves, its session is made anew, and no other.
#[test]
fn a_resource_moves_alone() {
    let before = [at_port(0, 7100), at_port(1, 7101)];
    let Some(cluster) = Cluster::start(&before, &[[A0, B0], [A0, B0]]) else { return };
    for id in [0, 1] {
        wait_linked(&cluster, id, [A0, B0]);
    }
    let v6 = |site: u8| IpAddr::from(floating_v6(site, 1));
    for at in [A0, B0] {
        cluster.net.add(at, v6(site(at)));
    }
    let listens = |place: SocketAddr| cluster.net.machines[A0].inside(|| TcpStream::connect(place)).is_ok();
    let mut earlier = before[1].1[0];
    let to_v6 = (1, [0, 1].map(|site| SocketAddr::from((v6(site), 7200))));
    for (seq, moved) in [at_port(1, 7200), to_v6, at_port(1, 7101)].into_iter().enumerate() {
        undisturbed(&cluster, [A0, B0], || {
            let began = Instant::now();
            cluster.rewrite(&[at_port(0, 7100), moved]);
            for at in ALL {
                let said = reload(&cluster, at);
                let other = 1 - site(at);
                assert!(
                    said.contains(&format!("site {other} of resource 1: changed, its session is made anew")),
                    "{said}"
                );
            }
            for at in [A0, B0] {
                cluster.kernel(at).wait_since(Whom::Sites(1), began, 0);
            }
            wait_linked(&cluster, 1, [A0, B0]);
        });
        cluster.assert_carries(1, A0, B0, seq as u64);
        assert_eq!([moved.1[0], earlier].map(listens), [true, false]);
        earlier = moved.1[0];
    }
    cluster.stop();
}

/// A port that is in use holds up its own resource, and is tried again; the rest of the reload is in force at once.
#[test]
fn a_port_in_use_holds_up_its_resource_alone() {
    let Some(cluster) = Cluster::start(&[at_port(0, 7100)], &[[A0, B0]]) else { return };
    wait_linked(&cluster, 0, [A0, B0]);
    let taken = cluster.net.machines[A0].inside(|| TcpListener::bind("0.0.0.0:7300").unwrap());
    for id in [2, 3] {
        for at in [A0, B0] {
            cluster.net.add(at, floating(site(at), id));
        }
    }
    cluster.rewrite(&[at_port(2, 7200), at_port(3, 7300)]);
    for at in ALL {
        reload(&cluster, at);
    }
    let log = &cluster.seats[A0].daemon;
    log.wait_log("cannot listen for other sites at 10.77.0.103:7300: Address already in use", PATIENCE);
    wait_linked(&cluster, 2, [A0, B0]);
    cluster.assert_carries(2, A0, B0, 1);
    drop(taken);
    wait_linked(&cluster, 3, [A0, B0]);
    cluster.assert_carries(3, A0, B0, 2);
    cluster.stop();
}
