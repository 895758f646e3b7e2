//! Fail-over of floating addresses: sessions move to the new log owner, kernel modules hear of it, and nothing
//! arrives twice or with a hole that was not announced.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::namespaces::*;
use crate::support::*;

/// Longest time for the old owner to end its sessions.
const LET_GO: Duration = Duration::from_secs(1);
/// Longest time until the new owner's session is up: far less, but a first call that comes while the address is still on
/// its way is repeated by the system after a second.
const MOVED: Duration = Duration::from_millis(2500);
/// A session that ends younger than a second is not made anew at once.
const SETTLED: Duration = Duration::from_millis(1100);

/// Waits until the owners of resource 0 have heard of each other.
#[track_caller]
fn wait_linked(cluster: &Cluster, owners: [usize; 2]) {
    for at in owners {
        cluster.kernel(at).wait_state(Whom::Sites(0), bit(1 - site(at)));
    }
}

/// Moves the floating address of resource 0 at the site of `from` and waits until everyone who has to know it was
/// informed; returns how long the old owner took to let go, and the new one to be linked.
#[track_caller]
fn fail_over(cluster: &Cluster, addr: IpAddr, from: usize, to: usize, other: usize) -> [Duration; 2] {
    let start = Instant::now();
    cluster.net.move_address(addr, from, to);
    let gone = cluster.kernel(from).wait_since(Whom::Sites(0), start, 0);
    let lost = cluster.kernel(other).wait_since(Whom::Sites(0), start, 0);
    let told = |at: usize, since| cluster.kernel(at).wait_since(Whom::Sites(0), since, bit(1 - site(at)));
    let back = told(to, start).max(told(other, lost));
    let took = [gone - start, back - start];
    let _ = writeln!(
        std::io::stderr(),
        "{addr}: {} to {}: let go after {} ms, linked after {} ms",
        NAMES[from],
        NAMES[to],
        took[0].as_millis(),
        took[1].as_millis()
    );
    assert!(took[0] < LET_GO && took[1] < MOVED, "{took:?}");
    took
}

/// Waits for the next connect ticks, which are more than a second away from the last fail-over.
#[track_caller]
fn settle(cluster: &Cluster) {
    let start = Instant::now();
    while start.elapsed() < SETTLED {
        let count = cluster.kernel(A0).states(Whom::Nodes).len();
        cluster.kernel(A0).wait_count(Whom::Nodes, count + 1);
    }
}

/// A kernel module that sends numbered packets for the other site without end, in bursts: those that go while no
/// site is connected are dropped.
fn flood(cluster: &Cluster, from: usize) -> Flood {
    let to = bit(1 - site(from));
    cluster.kernel(from).data.flood(move |n| {
        if n % 16 == 0 {
            std::thread::park_timeout(ms(1));
        }
        Some(site_data((from as u64) << 40 | n, 0, to, (n * 31 % 1500) as usize))
    })
}

/// Waits until a kernel module has got a packet that `from` sent after now.
#[track_caller]
fn wait_flow(got: &mut [Vec<u64>; 4], cluster: &Cluster, floods: &[Flood; 4], from: usize, to: usize) {
    let sent = (from as u64) << 40 | floods[from].sent();
    while got[to].last().is_none_or(|&seq| seq <= sent || seq >> 40 != from as u64) {
        let packet = cluster.kernel(to).data.recv();
        assert_eq!(packet, site_data(packet.seq(), 0, bit(site(to)), packet.payload.len()));
        got[to].push(packet.seq());
    }
}

/// The packets that a kernel module got: each sender's numbers rise, and there are no more unbroken runs than sessions.
#[track_caller]
fn assert_holes_announced(at: usize, got: &[u64], masks: &[u32]) {
    let sessions = masks.iter().filter(|&&mask| mask != 0).count();
    let runs = usize::from(!got.is_empty()) + got.windows(2).filter(|pair| pair[1] != pair[0] + 1).count();
    assert!(runs <= sessions, "{}: {runs} runs of packets, told {masks:?}", NAMES[at]);
    for from in ALL {
        let own: Vec<u64> = got.iter().copied().filter(|seq| seq >> 40 == from as u64).collect();
        assert!(own.is_sorted_by(|a, b| a < b), "{}: a packet of {} came twice", NAMES[at], NAMES[from]);
    }
}

/// Each site's address moves to the other node and back, while every kernel module sends all it can.
fn fails_over_under_load(resource: Resource) {
    let Some(mut cluster) = Cluster::start(&[resource], &[[A0, B0]]) else { return };
    let [here, there] = resource.1.map(|addr: SocketAddr| addr.ip());
    wait_linked(&cluster, [A0, B0]);
    let mut got: [Vec<u64>; 4] = Default::default();
    let floods = ALL.map(|from| flood(&cluster, from));
    let mut both = |cluster: &Cluster, a, b| {
        let start = Instant::now();
        while start.elapsed() < SETTLED {
            wait_flow(&mut got, cluster, &floods, a, b);
            wait_flow(&mut got, cluster, &floods, b, a);
        }
    };
    both(&cluster, A0, B0);
    fail_over(&cluster, here, A0, A1, B0);
    both(&cluster, A1, B0);
    fail_over(&cluster, there, B0, B1, A1);
    both(&cluster, A1, B1);
    fail_over(&cluster, here, A1, A0, B1);
    both(&cluster, A0, B1);
    fail_over(&cluster, there, B1, B0, A0);
    both(&cluster, A0, B0);
    floods.into_iter().for_each(|flood| assert!(flood.stop() > 0));
    for seat in &cluster.seats {
        seat.daemon.term();
    }
    for at in ALL {
        let rest = cluster.kernel(at).data.drain_to_end(PATIENCE);
        got[at].extend(rest.iter().map(Packet::seq));
        assert_holes_announced(at, &got[at], &cluster.kernel(at).masks(Whom::Sites(0)));
    }
    for seat in &mut cluster.seats {
        assert_eq!(seat.daemon.wait_exit(PATIENCE).code(), Some(0));
        PacketCounters::assert_balance(&seat.daemon.log());
    }
}

#[test]
fn sessions_move_with_the_floating_address() {
    fails_over_under_load(resource(0));
}

/// The runsite's address is in the record behind the hello then.
#[test]
fn sessions_move_with_a_floating_ipv6_address() {
    fails_over_under_load((0, [0, 1].map(|site| (floating_v6(site, 0), SITE_PORT).into())));
}

/// Without any packets the other site's daemon finds out by its next ping, the new owner answering that it does
/// not know the connection.
#[test]
fn an_idle_session_moves_after_a_ping() {
    let global = [("pingtimeout", "0.5"), ("maxpingcount", "10")];
    let Some(cluster) = Cluster::start_with(&[resource(0)], &[[A0, B0]], &global) else { return };
    wait_linked(&cluster, [A0, B0]);
    settle(&cluster);
    fail_over(&cluster, floating(0, 0).into(), A0, A1, B0);
    cluster.assert_carries(0, A1, B0, 1);
    settle(&cluster);
    fail_over(&cluster, floating(1, 0).into(), B0, B1, A1);
    cluster.assert_carries(0, A1, B1, 2);
    cluster.stop();
}

/// An address that goes and is nowhere: the owner lets go at once, the other site after its heartbeats; and when it
/// is back, sessions are.
#[test]
fn an_address_that_goes_and_comes_back() {
    let global = [("pingtimeout", "0.3"), ("maxpingcount", "4")];
    let Some(cluster) = Cluster::start_with(&[resource(0)], &[[A0, B0]], &global) else { return };
    wait_linked(&cluster, [A0, B0]);
    for (owner, other) in [(A0, B0), (B0, A0)] {
        let addr = floating(site(owner), 0);
        let start = Instant::now();
        cluster.net.remove(owner, addr);
        let gone = cluster.kernel(owner).wait_since(Whom::Sites(0), start, 0);
        assert!(gone - start < LET_GO, "{:?}", gone - start);
        cluster.kernel(other).wait_since(Whom::Sites(0), start, 0);
        let daemon = &cluster.seats[owner].daemon;
        daemon.wait_log("log owner no longer", PATIENCE);
        let start = Instant::now();
        cluster.net.add(owner, addr);
        for at in [A0, B0] {
            cluster.kernel(at).wait_since(Whom::Sites(0), start, bit(1 - site(at)));
        }
        cluster.assert_carries(0, A0, B0, owner as u64);
    }
    cluster.stop();
}

/// An IPv6 address that is still being looked for elsewhere cannot be called from yet: that is not taken for a
/// reason to call from another one, which the other side would refuse.
#[test]
fn an_ipv6_address_is_used_when_it_is_ready() {
    let addrs = [0, 1].map(|site| SocketAddr::from((floating_v6(site, 0), SITE_PORT)));
    let Some(cluster) = Cluster::start(&[(0, addrs)], &[[A0, B0]]) else { return };
    wait_linked(&cluster, [A0, B0]);
    settle(&cluster);
    let start = Instant::now();
    cluster.net.remove(B0, addrs[1].ip());
    cluster.kernel(A0).wait_since(Whom::Sites(0), start, 0);
    cluster.net.machines[B1].ip(&format!("addr add {}/64 dev eth0\n", addrs[1].ip()));
    cluster.net.machines[A0].ip(&format!("neigh flush to {} dev eth0\n", addrs[1].ip()));
    wait_linked(&cluster, [A0, B1]);
    cluster.assert_carries(0, A0, B1, 1);
    assert_eq!(cluster.seats[A0].daemon.log_count("refused a call"), 0);
    cluster.stop();
}

/// Failure mode 24: the owner of one resource changes again and again while another carries all it can, whose
/// session stays and has no hole.
#[test]
fn fm24_owners_come_and_go_while_another_resource_carries() {
    let resources = [resource(0), resource(1)];
    let Some(cluster) = Cluster::start(&resources, &[[A0, B0], [A0, B0]]) else { return };
    wait_linked(&cluster, [A0, B0]);
    for at in ALL {
        cluster.kernel(at).wait_state(Whom::Nodes, bit(1 - node(at)));
    }
    // A session that carries both ways has all its threads.
    for (from, to) in [(A0, A1), (A1, A0), (B0, B1), (B1, B0)] {
        cluster.kernel(from).data.send(&Packet::data(1, bit(node(to)), 10));
        cluster.kernel(from).meta.send(&Packet::meta(1, bit(node(to))));
        cluster.kernel(to).data.recv();
        cluster.kernel(to).meta.recv();
    }
    (0..2).for_each(|resource| cluster.assert_carries(resource, A0, B0, 2));
    let daemon = |at: usize| &cluster.seats[at].daemon;
    let costs = || [A0, B0].map(|at| (daemon(at).status("Threads"), daemon(at).descriptors()));
    let before = costs();
    let floods = [A0, B0].map(|from| flood(&cluster, from));
    for round in 1..=3 {
        for (from, to) in [(A0, A1), (A1, A0)] {
            let start = Instant::now();
            cluster.net.move_address(floating(0, 1), from, to);
            for (at, line, count) in [(from, "no longer", round), (to, "now", round + usize::from(to == A0))]
            {
                let line = format!("resource 1 (r1): log owner {line}");
                redial(&line, PATIENCE, || (daemon(at).log_count(&line) == count).then_some(()));
            }
            // The other site's packets go on into both resources.
            cluster.kernel(B0).data.send(&site_data(7, 1, bit(0), 100));
            if to == A0 {
                cluster.kernel(A0).wait_since(Whom::Sites(1), start, bit(1));
            }
        }
    }
    let sent = floods.map(Flood::stop);
    for (from, to, sent) in [(A0, B0, sent[0]), (B0, A0, sent[1])] {
        let first = (from as u64) << 40;
        let mut next = first;
        while next < first + sent {
            let packet = cluster.kernel(to).data.recv();
            if packet.dev() == 0 {
                assert_eq!(packet, site_data(next, 0, bit(site(to)), packet.payload.len()));
                next += 1;
            }
        }
        let masks = cluster.kernel(to).masks(Whom::Sites(0));
        assert_eq!(masks.last(), Some(&bit(site(from))));
        assert!(masks.len() <= 2, "the session stays: {masks:?}");
    }
    // Nothing is left of the sessions that ended, and the one of the last owner is the one of the first.
    redial("threads and descriptors as before", PATIENCE, || (costs() == before).then_some(()));
    cluster.stop();
}

/// The look at every tick alone is right, too, where the watch for addresses cannot be had.
#[test]
fn ownership_is_right_without_the_watch() {
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        let _ = writeln!(std::io::stderr(), "skipped: needs `strace`: ownership_is_right_without_the_watch");
        return;
    }
    let Some(net) = Network::new() else { return };
    let config = config(&[resource(0)], &[]);
    // The fourth bind, behind those of the two listeners and of the trial of sock_diag, is that of the watch.
    let mut refused = Command::new("strace");
    refused.args([
        "-D",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=bind",
        "-e",
        "inject=bind:error=EPERM:when=4",
    ]);
    refused.arg(Daemon::binary().get_program());
    let a0 = Seat::start_as(&net, &config, A0, refused);
    a0.daemon.wait_log("cannot watch for changes of addresses", PATIENCE);
    net.add(B0, floating(1, 0));
    let b0 = Seat::start(&net, &config, B0);
    for _ in 0..2 {
        let start = Instant::now();
        net.add(A0, floating(0, 0));
        a0.kernel.wait_since(Whom::Sites(0), start, bit(1));
        let start = Instant::now();
        net.remove(A0, floating(0, 0));
        let told = a0.kernel.wait_since(Whom::Sites(0), start, 0);
        assert!(told - start < LET_GO + ms(500), "{:?}", told - start);
    }
    a0.daemon.stop();
    b0.daemon.stop();
}

/// A file goes through `hadm-probe` from site 1 to site 0 before and after a fail-over.
#[test]
fn a_probe_sends_files_before_and_after_a_fail_over() {
    let Some(cluster) = Cluster::start(&[resource(0)], &[[A0, B0]]) else { return };
    wait_linked(&cluster, [A0, B0]);
    let Cluster { seats, net, .. } = cluster;
    let daemons = seats.map(|seat| {
        seat.kernel.detach();
        seat.daemon
    });
    let dir = TempDir::new();
    let path = |name: &str| dir.path.join(name).to_str().unwrap().to_string();
    let mut owner = A0;
    for round in 0..2 {
        let bytes: Vec<u8> =
            (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8 ^ round).collect();
        std::fs::write(path("sent"), &bytes).unwrap();
        let recv = probe(&net, owner, &["recv", "--dev", "0", "-o", &path("got")]);
        let send = ["send", "--site", "--dev", "0", "--to", "0", "--timeout", "20", &path("sent")];
        for ended in [probe(&net, B0, &send), recv].map(|probe| probe.wait_with_output().unwrap()) {
            assert_ended_well(&ended);
        }
        assert!(std::fs::read(path("got")).unwrap() == bytes, "round {round}");
        if round == 0 {
            net.move_address(floating(0, 0), A0, A1);
            owner = A1;
        }
    }
    for daemon in daemons {
        daemon.stop();
    }
}

#[track_caller]
fn assert_ended_well(ended: &Output) {
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}

fn probe(net: &Network, at: usize, args: &[&str]) -> std::process::Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hadm-probe"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    net.machines[at].inside(|| command.spawn().unwrap())
}
