//! Values for tests of the modules that work with the control protocol.

use super::{
    ByCause, Compress, Compressed, Kernel, PacketCounts, PeerCounters, PeerState, PeerStatus, Pings, Role,
    Running, Status, Stream,
};

/// A peer that waits to be called.
pub(crate) fn peer() -> PeerStatus {
    PeerStatus {
        peer: "1".parse().unwrap(),
        name: Some("n1".into()),
        hosts: Some(vec!["n1".into()]),
        resource_name: None,
        role: Role::Caller,
        address: Some("192.0.2.2:7000".parse().unwrap()),
        from: Some("192.0.2.100".parse().unwrap()),
        state: PeerState::Waiting,
        address_known: true,
        held: false,
        connected: false,
        age_s: None,
        source: None,
        version: None,
        same_config: None,
        differences: Vec::new(),
        owned: None,
        cipher: None,
        key: None,
        sessions: 1,
        violations: 0,
        attempts: 2,
        next_attempt_s: None,
        last_error: None,
        call: None,
        turned_away: None,
        views: false,
        unanswered: 0,
        rtt_us: Some(250),
        pings: Some(Pings { counts: vec![0, 3, 0, 1, 0, 0, 0, 0, 0, 1], sum_us: 2_002_500 }),
        compress: None,
        zero_copied: None,
        transitions: Vec::new(),
        last_transition: None,
        last_end: None,
        counters: PeerCounters::default(),
    }
}

/// A daemon with a kernel module and one peer.
pub(crate) fn status() -> Status {
    let counts = PacketCounts {
        received: 5,
        received_bytes: 640,
        forwarded: 4,
        forwarded_bytes: 512,
        queued: 1,
        queued_bytes: 128,
        dropped: ByCause::from([("not connected".into(), 0)]),
    };
    let [_, data_out, ..] = Stream::ALL;
    let compress = Compress {
        wanted: None,
        used: Some(crate::wire::Compression::Lz4),
        inbound: Compressed { plain_bytes: 0, wire_bytes: 0 },
        out: Compressed { plain_bytes: 90, wire_bytes: 30 },
    };
    let running = Running {
        node: 0.try_into().unwrap(),
        site: 7.try_into().unwrap(),
        hostname: Some("n0".into()),
        address: Some("192.0.2.1:7000".parse().unwrap()),
        server: "127.0.0.1:9998".parse().unwrap(),
        configuration: "00".into(),
        warnings: Default::default(),
        keys: Vec::new(),
        owned: Vec::new(),
        kernel: Kernel { attached: true, since_s: Some(1.0) },
        strays: ByCause::from([("own bit".into(), 2)]),
        refused: ByCause::new(),
        stalls: 0,
    };
    let peer =
        PeerStatus { compress: Some(compress), counters: PeerCounters(vec![(data_out, counts)]), ..peer() };
    Status {
        version: "1".into(),
        pid: 1,
        uptime_s: 1.5,
        waiting: Vec::new(),
        running: Some(Box::new(running)),
        peers: vec![peer],
    }
}
