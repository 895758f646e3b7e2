//! The extension of the hello: daemons that speak it tell each other version, configuration and session,
//! C daemons beside them notice nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::process::Command;

use crate::support::*;

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
    let harness = Harness::of(daemon, kernel, 2, config, net);
    let mut peers: Vec<FakePeer> = below.iter().map(|acceptor| acceptor.accept(&harness.net, 2)).collect();
    peers.push(harness.call(3));
    peers.push(harness.connect(&harness.caller(4).extended(&[])));
    peers.push(harness.connect(&harness.caller(5).extended(&[200, 3, 1, 2, 3, 201, 0])));
    harness.kernel.wait_state(0b11_1011, PATIENCE);
    for peer in &peers {
        harness.assert_carries(peer);
        let Some(record) = &peer.record else { continue };
        let entries = entries(record);
        assert!(entries.len() >= 3, "version, digest and epoch: {entries:?}");
        let version = env!("CARGO_PKG_VERSION").as_bytes();
        assert!(entries.iter().any(|(_, value)| value.windows(version.len()).any(|part| part == version)));
    }
    assert_eq!(peers.iter().filter(|peer| peer.record.is_some()).count(), 3);
    harness.stop();
}

/// A daemon's record tells every peer the same configuration digest, and a different configuration another.
#[test]
fn the_record_tells_the_configuration() {
    let record = |nodes| {
        let harness = Harness::new(nodes);
        let caller = harness.caller(1).extended(&[]);
        let records = [caller.call().record, caller.call_until_taken().record];
        harness.stop();
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

/// A packet HD_END, the last one of a link, ends the session for a reason that counts against neither side, on either link;
/// one that was not agreed, or that has a payload, ends it as a refused packet.
#[test]
fn hd_end_ends_the_session_where_it_was_agreed() {
    const HD_END: u8 = 201;
    let agreed = &[7, 4, 2, 0, 0, 0][..];
    let harness = Harness::new(3);
    let bystander = harness.call(2);
    let end = |len| Packet::new(HD_END).with_from(1).with_to(bit(0)).with_dev(255).with_len(len);
    let cases = [
        (agreed, DATA, end(0)),
        (agreed, META, end(0)),
        (agreed, DATA, Packet::filled(HD_END, 1, 40)),
        (&[], META, end(0)),
    ];
    for (features, class, packet) in cases {
        let peer = redial("a session", PATIENCE, || harness.caller(1).extended(features).try_call().ok());
        harness.kernel.wait_state(bit(1) | bit(2), PATIENCE);
        let link = if class == DATA { &peer.data } else { &peer.meta };
        link.send(&packet);
        peer.wait_closed(PATIENCE);
        harness.kernel.wait_state(bit(2), PATIENCE);
    }
    let why = Command::new(env!("CARGO_BIN_EXE_hadmctl"))
        .arg("--control")
        .arg(harness.config.control(0))
        .args(["why", "1"])
        .output()
        .unwrap();
    let why = String::from_utf8(why.stdout).unwrap();
    for cause in ["its kernel module came or went", "packet type 201"] {
        assert_eq!(why.matches(cause).count(), 2, "{cause} in\n{why}");
    }
    harness.assert_carries(&bystander);
    harness.stop();
}
