//! Peer links: who calls whom and when, what replaces what, and that every way of failing leads back to a
//! healthy link. Peers are C daemons unless said otherwise.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::collections::HashSet;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use crate::support::*;

/// A node calls smaller ids only, from its own address, and takes calls of larger ones.
#[test]
fn a_node_calls_smaller_ids_only() {
    let net = Subnet::claim();
    let (below, above) = (Acceptor::listen(&net, 0), Acceptor::listen(&net, 2));
    let config = ConfigBuilder::new(&net, 3).build();
    let daemon = Daemon::start(&net, &config, 1);
    let kernel = FakeKernel::attach(&net, 1);
    let harness = Harness::of(daemon, kernel, 1, config, net);
    let peer = below.accept(&harness.net, 1);
    harness.kernel.wait_state(bit(0), PATIENCE);
    harness.assert_carries(&peer);
    // Longer than the first waits of a connect round.
    assert!(above.accept_one(ms(4500)).is_none(), "a larger id is not called");
    let caller = harness.call(2);
    harness.assert_carries(&caller);
    harness.assert_carries(&peer);
    harness.stop();
}

/// A hello from a smaller id is not taken for a session: that direction is ours.
#[test]
fn a_hello_from_a_smaller_id_makes_no_session() {
    let harness = Harness::with(2, 1, |config| config);
    let mut link = harness.caller(0).open(DATA).unwrap();
    assert!(matches!(link.read(&mut [0; HELLO]), Ok(0) | Err(_)), "no answer");
    let accepting = Acceptor::listen(&harness.net, 0);
    let peer = accepting.accept(&harness.net, 1);
    harness.kernel.wait_state(bit(0), PATIENCE);
    harness.assert_carries(&peer);
    harness.stop();
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
    // Packets that were already on their way.
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
    let harness = Harness::with(3, 0, |config| config.heartbeat(10.0, 10));
    let other = harness.call(2);
    let mut old = harness.call(1);
    for _ in 0..5 {
        let start = Instant::now();
        let new = harness.caller(1).call();
        old.wait_closed(ms(2000));
        harness.wait_bit(start, 1, true);
        harness.assert_carries(&new);
        old = new;
    }
    harness.assert_carries(&other);
    assert!(harness.kernel.masks().iter().skip(1).all(|mask| mask & bit(2) != 0), "the other peer stays");
    harness.stop();
}

/// A half pair left behind does not stand in the way of a whole one for long: without the extension its link
/// may first be taken for the other half of the next call.
#[test]
fn a_half_pair_is_replaced() {
    let harness = Harness::new(2);
    for first in [DATA, META] {
        let caller = harness.caller(1);
        let mut half = caller.open(first).unwrap();
        caller.finish(&mut half, first).unwrap();
        // As long as a caller takes between two calls.
        half.set_read_timeout(Some(ms(200))).unwrap();
        assert!(half.read(&mut [0]).is_err(), "the half waits");
        let peer = redial("a pair that stays", PATIENCE, || {
            let peer = harness.caller(1).try_call().ok()?;
            let closed = peer.data.closes_within(ms(300)) || peer.meta.is_closed();
            (!closed).then_some(peer)
        });
        harness.kernel.wait_state(bit(1), PATIENCE);
        harness.assert_carries(&peer);
        assert!(matches!(half.read(&mut [0]), Ok(0) | Err(_)), "the half is closed");
        let before = Instant::now();
        peer.kill();
        harness.wait_bit(before, 1, false);
    }
    harness.stop();
}

/// Failure mode 17: the listener stays when all peers are linked, so a restarted peer is taken at once.
#[test]
fn fm17_a_restarted_peer_is_taken_at_once() {
    let harness = Harness::new(3);
    let other = harness.call(2);
    for _ in 0..3 {
        let peer = harness.caller(1).call();
        harness.kernel.wait_state(bit(1) | bit(2), PATIENCE);
        harness.assert_carries(&peer);
        peer.kill();
        harness.kernel.wait_state(bit(2), PATIENCE);
        let start = Instant::now();
        let back = harness.caller(1).call();
        harness.wait_bit(start, 1, true);
        assert!(start.elapsed() < ms(1500), "taken after {:?}", start.elapsed());
        let before = Instant::now();
        back.kill();
        harness.wait_bit(before, 1, false);
    }
    harness.assert_carries(&other);
    harness.stop();
}

/// Failure mode 11: packets pass as soon as the link is up.
#[test]
fn fm11_packets_pass_as_soon_as_the_link_is_up() {
    let harness = Harness::new(2);
    let mut times = Vec::new();
    for seq in 0..5 {
        let before = Instant::now();
        let peer = harness.caller(1).call_until_taken();
        let start = Instant::now();
        peer.data.send(&Packet::data(seq, bit(0), 100));
        harness.kernel.wait_state_since(before, bit(1), PATIENCE);
        harness.kernel.data.send(&Packet::data(seq, bit(1), 100));
        assert_eq!(peer.data.recv().seq(), seq);
        assert_eq!(harness.kernel.data.recv().seq(), seq);
        times.push(start.elapsed());
        let before = Instant::now();
        peer.kill();
        harness.wait_bit(before, 1, false);
    }
    assert!(median(times.clone()) < ms(500), "{times:?}");
    harness.stop();
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
    let harness = Harness::of(daemon, kernel, 2, config, net);
    let start = Instant::now();
    let peer = one.accept(&harness.net, 2);
    harness.kernel.wait_state(bit(1), PATIENCE);
    assert!(start.elapsed() < ms(3000), "linked after {:?}", start.elapsed());
    // Over the first attempts of a round and a tick.
    let told = harness.kernel.states().len();
    harness.kernel.wait_states(told + 1, PATIENCE);
    harness.assert_carries(&peer);
    let zero = Acceptor::listen(&harness.net, 0);
    let late = zero.accept(&harness.net, 2);
    harness.kernel.wait_state(bit(0) | bit(1), PATIENCE);
    harness.assert_carries(&late);
    harness.assert_carries(&peer);
    assert!(one.accept_one(ms(1)).is_none(), "a linked peer is not called again");
    assert!(
        harness.kernel.masks().iter().skip(2).all(|mask| mask & bit(1) != 0),
        "{:?}",
        harness.kernel.masks()
    );
    harness.stop();
}

/// A peer that accepts and never answers, or answers wrongly, is dialled again, and is not connected before.
#[test]
fn a_call_that_is_answered_wrongly_is_made_again() {
    let net = Subnet::claim();
    let below = Acceptor::listen(&net, 0);
    let config = ConfigBuilder::new(&net, 2).build();
    let daemon = Daemon::start(&net, &config, 1);
    let kernel = FakeKernel::attach(&net, 1);
    let harness = Harness::of(daemon, kernel, 1, config, net);
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
    let peer = below.accept(&harness.net, 1);
    harness.kernel.wait_state(bit(0), PATIENCE);
    harness.assert_carries(&peer);
    harness.stop();
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
    let harness = Harness::of(daemon, kernel, 15, config, net);
    let mut peers: Vec<FakePeer> = Vec::new();
    std::thread::scope(|scope| {
        let callers: Vec<_> = (16..32)
            .map(|id| harness.caller(id))
            .map(|caller| scope.spawn(move || caller.call_until_taken()))
            .collect();
        peers.extend(below.iter().map(|acceptor| acceptor.accept(&harness.net, 15)));
        peers.extend(callers.into_iter().map(|caller| caller.join().unwrap()));
    });
    harness.kernel.wait_state(!bit(15), PATIENCE);
    for seq in 0..20 {
        harness.kernel.data.send(&Packet::data(seq, u32::MAX, 3000));
        harness.kernel.meta.send(&Packet::meta(seq, u32::MAX));
    }
    for peer in &peers {
        for seq in 0..20 {
            assert_eq!(peer.data.recv(), Packet::data(seq, u32::MAX, 3000));
            assert_eq!(peer.meta.recv(), Packet::meta(seq, u32::MAX));
        }
        peer.data.send(&Packet::data(peer.id.into(), bit(15), 200));
    }
    let ids: HashSet<u64> = (0..31).map(|_| harness.kernel.data.recv().seq()).collect();
    assert_eq!(ids.len(), 31);
    harness.stop();
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
    twin.wait_log(" ready:", PATIENCE);
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
    let harness = Harness::with(3, 0, |config| config.set("peeraddr", "any"));
    let other = harness.call(2);
    for round in 0..6 {
        let caller = harness.caller(1).source(harness.net.host(100 + round % 2));
        let start = Instant::now();
        let peer = caller.call_until_taken();
        harness.wait_bit(start, 1, true);
        harness.assert_carries(&peer);
        harness.assert_carries(&other);
        if round % 3 == 2 {
            drop(peer);
        } else {
            // Alive, and replaced by the next.
            std::mem::forget(peer);
        }
    }
    assert!(harness.kernel.masks().iter().skip(1).all(|mask| mask & bit(2) != 0));
    harness.stop();
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
