//! Tests that every type of the protocol comes back from JSON as it went in.
//!
//! Strategies are boxed where they are used: without that, those of large types need more stack than a test has.

use std::fmt::Debug;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::wire::{Class, Compression, NodeId, PeerKey, ResourceId, SiteId};

/// Writes a value as text, reads it, and compares.
fn comes_back<T: Json + PartialEq + Debug>(value: &T) {
    let text = value.json().to_string();
    let read: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(&T::read(&read).unwrap(), value, "{text}");
}

fn one_of<T: Copy + Debug>(all: &'static [T]) -> impl Strategy<Value = T> {
    proptest::sample::select(all)
}

/// Seconds that are the same after a conversion to text and back.
fn seconds() -> impl Strategy<Value = f64> {
    (0_u32..4_000_000).prop_map(|n| f64::from(n) / 8.0)
}

fn text() -> impl Strategy<Value = String> {
    ".{0,20}"
}

fn some<T: Debug>(strategy: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
    proptest::option::of(strategy)
}

fn list<T: Debug>(strategy: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    proptest::collection::vec(strategy, 0..4)
}

fn node() -> impl Strategy<Value = NodeId> {
    (0..32_u32).prop_map(|id| id.try_into().unwrap())
}

fn site() -> impl Strategy<Value = SiteId> {
    (0..32_u32).prop_map(|id| id.try_into().unwrap())
}

fn resource() -> impl Strategy<Value = ResourceId> {
    (0..255_u32).prop_map(|id| id.try_into().unwrap())
}

fn key() -> impl Strategy<Value = PeerKey> {
    prop_oneof![
        node().prop_map(PeerKey::Node),
        (resource(), site()).prop_map(|(resource, site)| PeerKey::Site(resource, site)),
    ]
}

fn by_cause() -> impl Strategy<Value = ByCause> {
    proptest::collection::btree_map(text(), any::<u64>(), 0..4)
}

fn address() -> impl Strategy<Value = std::net::SocketAddr> {
    any::<(std::net::IpAddr, u16)>().prop_map(Into::into)
}

prop_compose! {
    fn details()(
        link in some(one_of(&Class::BOTH)),
        error in some((any::<i32>(), some(text()))),
        source in some(text()),
        by in some(one_of(EndedBy::ALL)),
        age_s in some(seconds()),
        session in some((some(any::<u64>()), any::<u64>())),
    ) -> Details {
        Details {
            link, source, by, age_s,
            error: error.map(|(errno, name)| SystemError { errno, name }),
            session: session.map(|(rtt_us, queued_bytes)| SessionAtEnd { rtt_us, queued_bytes }),
        }
    }
}

prop_compose! {
    fn transition()(
        (peer, name, time, unix_s) in (key(), some(text()), text(), seconds()),
        (from, to, kind) in (one_of(PeerState::ALL), one_of(Outcome::ALL), one_of(CauseKind::ALL)),
        (cause, details) in (text(), details().boxed()),
    ) -> Transition {
        Transition { peer, name, time, unix_s, from, to, kind, cause, details }
    }
}

prop_compose! {
    fn counts()(n in any::<[u64; 6]>(), dropped in by_cause()) -> PacketCounts {
        let [received, received_bytes, forwarded, forwarded_bytes, queued, queued_bytes] = n;
        PacketCounts { received, received_bytes, forwarded, forwarded_bytes, queued, queued_bytes, dropped }
    }
}

prop_compose! {
    fn compress()(
        (wanted, used) in (some(Just(Compression::Lz4)), some(Just(Compression::Lz4))),
        n in any::<[u64; 4]>(),
    ) -> Compress {
        let [first, second, third, fourth] = n;
        Compress {
            wanted, used,
            inbound: Compressed { plain_bytes: first, wire_bytes: second },
            out: Compressed { plain_bytes: third, wire_bytes: fourth },
        }
    }
}

prop_compose! {
    fn call()(
        (number, steps) in (any::<u64>(), list(text())),
        (verdict, why) in (some(one_of(CallVerdict::ALL)), some(text())),
    ) -> Call {
        Call { number, steps, verdict, why }
    }
}

prop_compose! {
    fn peer()(
        (peer, role, state) in (key(), one_of(Role::ALL), one_of(PeerState::ALL)),
        (name, hosts, resource_name) in (some(text()), some(list(text())), some(text())),
        (address, source, from) in (some(address()), some(address()), some(any::<std::net::IpAddr>())),
        (address_known, held, connected, views) in any::<(bool, bool, bool, bool)>(),
        (age_s, next_attempt_s) in (some(seconds()), some(seconds())),
        (version, cipher, key, last_error) in (some(text()), some(text()), some(text()), some(text())),
        (sessions, violations, attempts, unanswered) in any::<(u64, u64, u64, u32)>(),
        (rtt_us, same_config) in (some(any::<u64>()), some(any::<bool>())),
        (differences, owned) in (list(text()), some(list(resource()))),
        pings in some((list(any::<u64>()), any::<u64>()).prop_map(|(counts, sum_us)| Pings { counts, sum_us })),
        (call, turned_away) in (some(call().boxed()), some((seconds(), text()))),
        zero_copied in some(any::<(u64, u64)>().prop_map(|(in_bytes, out_bytes)| ZeroCopied { in_bytes, out_bytes })),
        (compress, last, end) in (some(compress().boxed()), some(transition().boxed()), some(transition().boxed())),
        transitions in list((one_of(Outcome::ALL), one_of(CauseKind::ALL), any::<u64>())),
        books in some([counts().boxed(), counts().boxed(), counts().boxed(), counts().boxed()]),
    ) -> PeerStatus {
        PeerStatus {
            peer, name, hosts, resource_name, role, address, from, state, address_known, held, connected, age_s, source, version, same_config, differences, owned,
            cipher, key, sessions, violations, attempts, next_attempt_s, last_error, call,
            turned_away: turned_away.map(|(age_s, why)| TurnedAway { age_s, why }),
            views, unanswered, rtt_us, pings, compress, zero_copied,
            transitions: transitions.into_iter().map(|(to, kind, count)| TransitionCount { to, kind, count }).collect(),
            last_transition: last.map(Arc::new),
            last_end: end.map(Arc::new),
            counters: PeerCounters(books.into_iter().flat_map(|books| Stream::ALL.into_iter().zip(books)).collect()),
        }
    }
}

prop_compose! {
    fn running()(
        (node, site, hostname) in (node(), site(), some(text())),
        (address, server, configuration) in (some(address()), address(), text()),
        (keys, owned) in (list(text()), list(resource())),
        (attached, since_s) in (any::<bool>(), some(seconds())),
        (strays, refused, stalls, warnings) in (by_cause(), by_cause(), any::<u64>(), list(text())),
    ) -> Running {
        let (kernel, warnings) = (Kernel { attached, since_s }, Warnings(warnings));
        Running {
            node, site, hostname, address, server, configuration, warnings, keys, owned, kernel, strays, refused, stalls
        }
    }
}

prop_compose! {
    fn status()(
        (version, pid, uptime_s) in (text(), any::<u32>(), seconds()),
        waiting in list(prop_oneof!["[^a].{0,9}".prop_map(Wait::Other), text().prop_map(Wait::Address)]),
        running in some(running().boxed()),
        peers in list(peer().boxed()),
    ) -> Status {
        Status { version, pid, uptime_s, waiting, running: running.map(Box::new), peers }
    }
}

prop_compose! {
    fn table()(
        resource in some((resource(), text(), any::<bool>())),
        rows in list((any::<u8>(), text(), one_of(Known::ALL), some(text()), some(list(any::<u8>())), some(seconds()))),
        one_sided in list((any::<(u8, u8)>(), seconds(), text())),
    ) -> MeshTable {
        let row = |(id, name, known, why, sees, age_s)| MeshRow { id, name, known, why, sees, age_s, unchanged_s: age_s };
        let pair = |((sees, unseen_by), for_s, text)| OneSided { sees, unseen_by, for_s, text };
        MeshTable {
            resource: resource.map(|(resource, name, owned)| MeshResource { resource, name, owned }),
            rows: rows.into_iter().map(row).collect(),
            one_sided: one_sided.into_iter().map(pair).collect(),
        }
    }
}

prop_compose! {
    fn change()(
        daemon in prop_oneof![
            Just(Change::KernelAttached), Just(Change::KernelDetached), Just(Change::Reloaded),
            (resource(), text(), any::<bool>())
                .prop_map(|(resource, name, owned)| Change::LogOwner { resource, name, owned }),
        ],
        (time, cause) in (text(), text()),
    ) -> DaemonChange {
        DaemonChange { time, to: daemon, cause }
    }
}

prop_compose! {
    fn header()(
        (time, link, name) in (text(), text(), text()),
        (kind, dev_id, node_type, node_from, len, left_out) in any::<(u8, u8, u8, u32, u32, u64)>(),
        node_to in list(0..32_u8),
    ) -> SeenHeader {
        SeenHeader { time, link, kind, name, dev_id, node_type, node_from, node_to, len, left_out }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_status_comes_back(status in status().boxed()) {
        comes_back(&status);
    }

    #[test]
    fn changes_come_back(transition in transition().boxed(), change in change().boxed(), header in header().boxed()) {
        comes_back(&vec![transition.clone()]);
        comes_back(&Event::Peer(Arc::new(transition)));
        comes_back(&Event::Daemon(Arc::new(change)));
        comes_back(&Event::Header(header));
    }

    #[test]
    fn the_other_answers_come_back(
        (node, site, hostname, meshes) in (node(), site(), some(text()), list(table().boxed())),
        checks in list((one_of(Check::ALL), any::<bool>(), text(), some(text()))),
        (verdict, port, peer) in (one_of(Verdict::ALL), some(one_of(PortState::ALL)), peer().boxed()),
        (well, says, advice) in (any::<bool>(), text(), some(text())),
        (refused, settings, warnings) in (list(text()), list(text()), list(text())),
        fates in list((key(), some(text()), one_of(Fate::ALL))),
    ) {
        comes_back(&Mesh { node, site, meshes });
        let check = |(check, well, says, advice)| CheckResult { check, well, says, advice };
        let found = PeerResult { verdict, well, says, advice, port };
        comes_back(&Examination {
            well, node, hostname,
            checks: checks.into_iter().map(check).collect(),
            peers: vec![ExaminedPeer { peer, found }],
        });
        let fate = |(key, name, fate)| PeerFate { peer: PeerName(key), name, fate };
        let peers = fates.into_iter().map(fate).collect();
        comes_back(&Plan { refused, settings, peers, warnings: Warnings(warnings) });
    }
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let mut status = samples::status().json();
    status["peers"][0]["call"] = serde_json::json!({"number": 1, "steps": [], "verdict": "tired"});
    let why = Status::read(&status).unwrap_err();
    assert!(why.starts_with("peers: call: verdict: expected a word") && why.ends_with("\"tired\""), "{why}");
    status["peers"][0].as_object_mut().unwrap().remove("call");
    assert!(Status::read(&status).is_ok(), "what may be missing");
    status["peers"][0].as_object_mut().unwrap().remove("sessions");
    assert!(Status::read(&status).unwrap_err().contains("sessions: expected a number"));
}

#[test]
fn a_field_that_nobody_knows_is_passed_over() {
    let mut status = samples::status().json();
    status["mood"] = "good".into();
    status["peers"][0]["mood"] = "better".into();
    assert_eq!(Status::read(&status).unwrap(), samples::status());
}
