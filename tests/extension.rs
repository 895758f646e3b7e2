//! The extension of the hello: daemons that speak it tell each other version, configuration and session,
//! C daemons beside them notice nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod support;

use support::*;

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
    let rig = Rig::of(daemon, kernel, 2, config, net);
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
