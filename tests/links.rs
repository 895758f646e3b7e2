//! Peer links: who calls whom and when, what replaces what, and that every way of failing leads back to a
//! healthy link. Peers are C daemons unless said otherwise.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::collections::HashSet;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use support::*;

/// A node calls smaller ids only, from its own address, and takes calls of larger ones.
#[test]
fn a_node_calls_smaller_ids_only() {
    let net = Subnet::claim();
    let (below, above) = (Acceptor::listen(&net, 0), Acceptor::listen(&net, 2));
    let config = ConfigBuilder::new(&net, 3).build();
    let daemon = Daemon::start(&net, &config, 1);
    let kernel = FakeKernel::attach(&net, 1);
    let rig = Rig { daemon, kernel, node: 1, config, net };
    let peer = below.accept(&rig.net, 1);
    rig.kernel.wait_state(bit(0), PATIENCE);
    rig.assert_carries(&peer);
    // Longer than the first waits of a connect round.
    assert!(above.accept_one(ms(4500)).is_none(), "a larger id is not called");
    let caller = rig.call(2);
    rig.assert_carries(&caller);
    rig.assert_carries(&peer);
    rig.stop();
}

/// A hello from a smaller id is not taken for a session: that direction is ours.
#[test]
fn a_hello_from_a_smaller_id_makes_no_session() {
    let rig = Rig::with(2, 1, |config| config);
    let mut link = rig.caller(0).open(DATA).unwrap();
    assert!(matches!(link.read(&mut [0; HELLO]), Ok(0) | Err(_)), "no answer");
    let accepting = Acceptor::listen(&rig.net, 0);
    let peer = accepting.accept(&rig.net, 1);
    rig.kernel.wait_state(bit(0), PATIENCE);
    rig.assert_carries(&peer);
    rig.stop();
}

/// But it shows that the peer is there: the dial that waits for its next turn goes out at once.
#[test]
fn a_hello_from_a_smaller_id_wakes_the_dial() {
    let net = Subnet::claim();
    let below = Acceptor::listen(&net, 0);
    let config = ConfigBuilder::new(&net, 2).build();
    let daemon = Daemon::start(&net, &config, 1);
    // Attempts fail until the wait for the next one is at least 3 s.
    let mut last = Instant::now();
    loop {
        let attempt = below.accept_one(Duration::from_secs(10)).expect("the daemon dials again");
        drop(attempt);
        if last.elapsed() > ms(1200) {
            break;
        }
        last = Instant::now();
    }
    // What was already on its way.
    while below.accept_one(ms(300)).is_some() {}
    let _ = Caller::new(&net, 0, 1).try_call();
    let start = Instant::now();
    below.accept_one(Duration::from_secs(10)).expect("the daemon dials");
    assert!(start.elapsed() < ms(1500), "dialled {:?} after the hello", start.elapsed());
    daemon.stop();
}

/// A peer whose packets follow its answer at once, in the same write, is heard.
#[test]
fn packets_may_follow_an_answer_at_once() {
    let net = Subnet::claim();
    let below = Acceptor::listen(&net, 0);
    let config = ConfigBuilder::new(&net, 2).build();
    let daemon = Daemon::start(&net, &config, 1);
    let kernel = FakeKernel::attach(&net, 1);
    let mut links = [0, 1].map(|_| {
        let (stream, hello, _) = below.accept_one(PATIENCE).unwrap();
        (stream, hello[1])
    });
    // The meta link last, so that both are up when a packet comes.
    links.sort_by_key(|(_, kind)| *kind);
    for (stream, kind) in &mut links {
        let mut bytes = hello(0, *kind + 1, 0, "", false).to_vec();
        if *kind == META {
            bytes.extend(Packet::meta(5, bit(1)).bytes());
            bytes.extend(Packet::data(6, bit(1), 100).bytes());
        }
        stream.write_all(&bytes).unwrap();
    }
    assert_eq!(kernel.meta.recv(), Packet::meta(5, bit(1)));
    assert_eq!(kernel.data.recv(), Packet::data(6, bit(1), 100));
    daemon.stop();
}

/// A new hello replaces the old session, which is still alive on our side, at once.
#[test]
fn a_new_hello_replaces_the_old_session() {
    let rig = Rig::with(3, 0, |config| config.heartbeat(10.0, 10));
    let other = rig.call(2);
    let mut old = rig.call(1);
    for _ in 0..5 {
        let start = Instant::now();
        let new = rig.caller(1).call();
        old.wait_closed(ms(2000));
        rig.wait_bit(start, 1, true);
        rig.assert_carries(&new);
        old = new;
    }
    rig.assert_carries(&other);
    assert!(rig.kernel.masks().iter().skip(1).all(|mask| mask & bit(2) != 0), "the other peer stays");
    rig.stop();
}

/// A half pair left behind does not stand in the way of a whole one for long: without the extension its link
/// may first be taken for the other half of the next call.
#[test]
fn a_half_pair_is_replaced() {
    let rig = Rig::new(2);
    for first in [DATA, META] {
        let caller = rig.caller(1);
        let mut half = caller.open(first).unwrap();
        caller.finish(&mut half, first).unwrap();
        let peer = redial("a pair that stays", PATIENCE, || {
            let peer = rig.caller(1).try_call().ok()?;
            let closed = peer.data.closes_within(ms(300)) || peer.meta.is_closed();
            (!closed).then_some(peer)
        });
        rig.kernel.wait_state(bit(1), PATIENCE);
        rig.assert_carries(&peer);
        assert!(matches!(half.read(&mut [0]), Ok(0) | Err(_)), "the half is closed");
        let before = Instant::now();
        peer.kill();
        rig.wait_bit(before, 1, false);
    }
    rig.stop();
}

/// Failure mode 17: the listener stays when all peers are linked, so a restarted peer is taken at once.
#[test]
fn fm17_a_restarted_peer_is_taken_at_once() {
    let rig = Rig::new(3);
    let other = rig.call(2);
    for _ in 0..3 {
        let peer = rig.caller(1).call();
        rig.kernel.wait_state(bit(1) | bit(2), PATIENCE);
        rig.assert_carries(&peer);
        peer.kill();
        rig.kernel.wait_state(bit(2), PATIENCE);
        let start = Instant::now();
        let back = rig.caller(1).call();
        rig.wait_bit(start, 1, true);
        assert!(start.elapsed() < ms(1500), "taken after {:?}", start.elapsed());
        let before = Instant::now();
        back.kill();
        rig.wait_bit(before, 1, false);
    }
    rig.assert_carries(&other);
    rig.stop();
}

/// Failure mode 11: packets pass as soon as the link is up.
#[test]
fn fm11_packets_pass_as_soon_as_the_link_is_up() {
    let rig = Rig::new(2);
    let mut times = Vec::new();
    for seq in 0..5 {
        let before = Instant::now();
        let peer = rig.caller(1).call_until_taken();
        let start = Instant::now();
        peer.data.send(&Packet::data(seq, bit(0), 100));
        rig.kernel.wait_state_since(before, bit(1), PATIENCE);
        rig.kernel.data.send(&Packet::data(seq, bit(1), 100));
        assert_eq!(peer.data.recv().seq(), seq);
        assert_eq!(rig.kernel.data.recv().seq(), seq);
        times.push(start.elapsed());
        let before = Instant::now();
        peer.kill();
        rig.wait_bit(before, 1, false);
    }
    assert!(median(times.clone()) < ms(500), "{times:?}");
    rig.stop();
}

/// Failure mode 15: node 2 links with node 1 while node 0 refuses, and stays linked through the connect
/// rounds to node 0.
#[test]
fn fm15_a_refusing_peer_keeps_no_other_from_linking() {
    let net = Subnet::claim();
    let one = Acceptor::listen(&net, 1);
    let config = ConfigBuilder::new(&net, 3).build();
    let daemon = Daemon::start(&net, &config, 2);
    let kernel = FakeKernel::attach(&net, 2);
    let rig = Rig { daemon, kernel, node: 2, config, net };
    let start = Instant::now();
    let peer = one.accept(&rig.net, 2);
    rig.kernel.wait_state(bit(1), PATIENCE);
    assert!(start.elapsed() < ms(3000), "linked after {:?}", start.elapsed());
    // Over the first attempts of a round and a tick.
    let told = rig.kernel.states().len();
    rig.kernel.wait_states(told + 1, PATIENCE);
    rig.assert_carries(&peer);
    let zero = Acceptor::listen(&rig.net, 0);
    let late = zero.accept(&rig.net, 2);
    rig.kernel.wait_state(bit(0) | bit(1), PATIENCE);
    rig.assert_carries(&late);
    rig.assert_carries(&peer);
    assert!(one.accept_one(ms(1)).is_none(), "a linked peer is not called again");
    assert!(rig.kernel.masks().iter().skip(2).all(|mask| mask & bit(1) != 0), "{:?}", rig.kernel.masks());
    rig.stop();
}

/// A peer that accepts and never answers, or answers wrongly, is dialled again, and is not connected before.
#[test]
fn a_call_that_is_answered_wrongly_is_made_again() {
    let net = Subnet::claim();
    let below = Acceptor::listen(&net, 0);
    let config = ConfigBuilder::new(&net, 2).build();
    let daemon = Daemon::start(&net, &config, 1);
    let kernel = FakeKernel::attach(&net, 1);
    let rig = Rig { daemon, kernel, node: 1, config, net };
    let answers: [fn(u8) -> Vec<u8>; 3] = [
        |_| Vec::new(),
        |kind| hello(7, kind + 1, 0, "", false).to_vec(),
        |kind| hello(0, kind, 0, "", false).to_vec(),
    ];
    for answer in answers {
        let (mut stream, hello, _) = below.accept_one(PATIENCE).expect("the daemon dials");
        stream.write_all(&answer(hello[1])).unwrap();
        // Closed after the hello's deadline at the latest; until then the other link may come too.
        assert!(matches!(stream.read(&mut [0; 256]), Ok(0) | Err(_)), "closed");
    }
    let peer = below.accept(&rig.net, 1);
    rig.kernel.wait_state(bit(0), PATIENCE);
    rig.assert_carries(&peer);
    rig.stop();
}

/// One link answered and the other not: the call ends and is made again.
#[test]
fn a_call_with_one_answer_is_made_again() {
    let net = Subnet::claim();
    let below = Acceptor::listen(&net, 0);
    let config = ConfigBuilder::new(&net, 2).build();
    let daemon = Daemon::start(&net, &config, 1);
    let kernel = FakeKernel::attach(&net, 1);
    let (mut first, kind, _) = below.accept_one(PATIENCE).unwrap();
    let (mut second, _, _) = below.accept_one(PATIENCE).unwrap();
    first.write_all(&hello(0, kind[1] + 1, 0, "", false)).unwrap();
    for link in [&mut first, &mut second] {
        assert!(
            matches!(link.read(&mut [0; 256]), Ok(0) | Err(_)),
            "closed, and nothing sent on a half pair"
        );
    }
    assert_eq!(kernel.masks(), [0]);
    let peer = below.accept(&net, 1);
    kernel.wait_state(bit(0), PATIENCE);
    drop(peer);
    daemon.stop();
}

/// A peer that went is dialled again, and found when it comes back late.
#[test]
fn a_lost_smaller_id_is_dialled_until_it_is_back() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let below = Acceptor::listen(&net, 0);
    let daemon = Daemon::start(&net, &config, 1);
    let kernel = FakeKernel::attach(&net, 1);
    for _ in 0..3 {
        let peer = below.accept(&net, 1);
        kernel.wait_state(bit(0), PATIENCE);
        peer.kill();
        kernel.wait_state(0, PATIENCE);
    }
    drop(below);
    // Refused for two ticks.
    let told = kernel.states().len();
    kernel.wait_states(told + 2, PATIENCE);
    let _peer = Acceptor::listen(&net, 0).accept(&net, 1);
    kernel.wait_state(bit(0), PATIENCE);
    daemon.stop();
}

/// Daemons killed with -9 on either side of the direction rule are back by themselves.
#[test]
fn a_daemon_killed_and_back_is_linked_again() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 3).build();
    let mut daemons = [0, 1, 2].map(|id| Some(Daemon::start(&net, &config, id)));
    let kernels = [0, 1, 2].map(|id| Some(FakeKernel::attach(&net, id)));
    let [low, mid, high] = kernels.map(Option::unwrap);
    low.wait_state(0b110, PATIENCE);
    mid.wait_state(0b101, PATIENCE);
    high.wait_state(0b011, PATIENCE);
    let before = Instant::now();
    daemons[1].take().unwrap().kill9();
    low.wait_state_since(before, 0b100, PATIENCE);
    high.wait_state_since(before, 0b001, PATIENCE);
    daemons[1] = Some(Daemon::start(&net, &config, 1));
    let mid = FakeKernel::attach(&net, 1);
    mid.wait_state(0b101, PATIENCE);
    low.wait_state(0b110, PATIENCE);
    high.wait_state(0b011, PATIENCE);
    low.data.send(&Packet::data(1, 0b110, 500));
    assert_eq!(mid.data.recv(), Packet::data(1, 0b110, 500));
    assert_eq!(high.data.recv(), Packet::data(1, 0b110, 500));
    assert!(low.masks().iter().skip_while(|mask| *mask & 0b100 == 0).all(|mask| mask & 0b100 != 0));
    for daemon in daemons.into_iter().flatten() {
        daemon.stop();
    }
}

/// 31 peers at once: 15 that are called and 16 that call.
#[test]
fn thirty_one_peers_at_once() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 32).build();
    let below: Vec<Acceptor> = (0..15).map(|id| Acceptor::listen(&net, id)).collect();
    let daemon = Daemon::start(&net, &config, 15);
    let kernel = FakeKernel::attach(&net, 15);
    let rig = Rig { daemon, kernel, node: 15, config, net };
    let mut peers: Vec<FakePeer> = Vec::new();
    std::thread::scope(|scope| {
        let callers: Vec<_> = (16..32)
            .map(|id| rig.caller(id))
            .map(|caller| scope.spawn(move || caller.call_until_taken()))
            .collect();
        peers.extend(below.iter().map(|acceptor| acceptor.accept(&rig.net, 15)));
        peers.extend(callers.into_iter().map(|caller| caller.join().unwrap()));
    });
    rig.kernel.wait_state(!bit(15), PATIENCE);
    for seq in 0..20 {
        rig.kernel.data.send(&Packet::data(seq, u32::MAX, 3000));
        rig.kernel.meta.send(&Packet::meta(seq, u32::MAX));
    }
    for peer in &peers {
        for seq in 0..20 {
            assert_eq!(peer.data.recv(), Packet::data(seq, u32::MAX, 3000));
            assert_eq!(peer.meta.recv(), Packet::meta(seq, u32::MAX));
        }
        peer.data.send(&Packet::data(peer.id.into(), bit(15), 200));
    }
    let ids: HashSet<u64> = (0..31).map(|_| rig.kernel.data.recv().seq()).collect();
    assert_eq!(ids.len(), 31);
    rig.stop();
}

/// Two daemons with the same id on different machines, callers checked: the one with the wrong address is
/// refused, the right one and the others are not disturbed.
#[test]
fn two_daemons_with_one_id_strict() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let daemon = Daemon::start(&net, &config, 0);
    let kernel = FakeKernel::attach(&net, 0);
    let right = Daemon::start(&net, &config, 1);
    let right_kernel = FakeKernel::attach(&net, 1);
    kernel.wait_state(bit(1), PATIENCE);
    right_kernel.wait_state(bit(0), PATIENCE);
    let mut twin = ConfigBuilder::new(&net, 2);
    twin.nodes[1].2 = net.host(100).to_string();
    let twin = twin.build();
    let mut command = Daemon::binary();
    command.arg("-c").arg(&twin.path).args(["--hostname", "n1", "--log", "stderr", "-v", "--no-kmod-check"]);
    let twin = Daemon::spawn(command.args(["--server", &format!("{}:9998", net.host(100))]), "n1 twin");
    twin.wait_log("ready", PATIENCE);
    daemon.wait_log(&net.host(100).to_string(), PATIENCE);
    kernel.data.send(&Packet::data(1, bit(1), 10));
    assert_eq!(right_kernel.data.recv().seq(), 1);
    assert_eq!(kernel.masks(), [0, bit(1)]);
    twin.stop();
    right.stop();
    daemon.stop();
}

/// With any address allowed they take the session from each other: each session is whole, and a third
/// node is not disturbed.
#[test]
fn two_peers_with_one_id_any_address() {
    let rig = Rig::with(3, 0, |config| config.set("peeraddr", "any"));
    let other = rig.call(2);
    for round in 0..6 {
        let caller = rig.caller(1).source(rig.net.host(100 + round % 2));
        let start = Instant::now();
        let peer = caller.call_until_taken();
        rig.wait_bit(start, 1, true);
        rig.assert_carries(&peer);
        rig.assert_carries(&other);
        if round % 3 == 2 {
            drop(peer);
        } else {
            // Alive, and replaced by the next.
            std::mem::forget(peer);
        }
    }
    assert!(rig.kernel.masks().iter().skip(1).all(|mask| mask & bit(2) != 0));
    rig.stop();
}

/// A second daemon on the same machine with the same node id finds its address taken and says so.
#[test]
fn a_second_daemon_for_one_node_does_not_start() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let first = Daemon::start(&net, &config, 0);
    let mut command = Daemon::binary();
    command.arg("-c").arg(&config.path).args(["--hostname", "n0", "--log", "stderr", "--no-kmod-check"]);
    let mut second =
        Daemon::spawn(command.args(["--server", &format!("{}:9998", net.host(100))]), "n0 again");
    second.wait_log(&net.node(0).to_string(), PATIENCE);
    assert_eq!(second.wait_exit(PATIENCE).code(), Some(1));
    first.stop();
}

/// Entries of a record: type, value.
fn entries(record: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut rest = record;
    let mut entries = Vec::new();
    while let [kind, len, tail @ ..] = rest {
        let (value, tail) = tail.split_at(usize::from(*len));
        entries.push((*kind, value.to_vec()));
        rest = tail;
    }
    assert!(rest.is_empty(), "record {record:?}");
    entries
}

/// Extended and C peers, calling and called, work side by side; the extended ones get a record with at
/// least version, configuration digest and session epoch.
#[test]
fn extended_and_c_peers_mix() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 6).build();
    let below = [Acceptor::listen(&net, 0), Acceptor::listen(&net, 1).extended(&[200, 2, 7, 7])];
    let daemon = Daemon::start(&net, &config, 2);
    let kernel = FakeKernel::attach(&net, 2);
    let rig = Rig { daemon, kernel, node: 2, config, net };
    let mut peers: Vec<FakePeer> = below.iter().map(|acceptor| acceptor.accept(&rig.net, 2)).collect();
    peers.push(rig.call(3));
    peers.push(rig.connect(&rig.caller(4).extended(&[])));
    peers.push(rig.connect(&rig.caller(5).extended(&[200, 3, 1, 2, 3, 201, 0])));
    rig.kernel.wait_state(0b11_1011, PATIENCE);
    for peer in &peers {
        rig.assert_carries(peer);
        let Some(record) = &peer.record else { continue };
        let entries = entries(record);
        assert!(entries.len() >= 3, "version, digest and epoch: {entries:?}");
        let version = env!("CARGO_PKG_VERSION").as_bytes();
        assert!(entries.iter().any(|(_, value)| value.windows(version.len()).any(|part| part == version)));
    }
    assert_eq!(peers.iter().filter(|peer| peer.record.is_some()).count(), 3);
    rig.stop();
}

/// A daemon's record tells every peer the same configuration digest, and a different configuration another.
#[test]
fn the_record_tells_the_configuration() {
    let record = |nodes| {
        let rig = Rig::new(nodes);
        let caller = rig.caller(1).extended(&[]);
        let records = [caller.call().record, caller.call_until_taken().record];
        rig.stop();
        records.map(|record| entries(&record.unwrap()))
    };
    let small = record(2);
    let large = record(3);
    let same = |a: &[(u8, Vec<u8>)], b: &[(u8, Vec<u8>)]| a.iter().filter(|entry| b.contains(entry)).count();
    assert!(
        same(&small[0], &small[1]) > same(&small[0], &large[0]),
        "the digest differs: {small:?} {large:?}"
    );
}
