//! `hadmctl mesh`: who sees whom, by what daemons tell each other, and that nobody else ever hears of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use crate::support::*;
use rustix::process::Signal;
use serde_json::{Value, json};

/// The packet type, and the entry of a record that says that it is taken.
const HD_VIEW: u8 = 200;
const FEATURES: [u8; 6] = [7, 4, 1, 0, 0, 0];

fn hadmctl(control: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hadmctl")).arg("--control").arg(control).args(args).output().unwrap()
}

/// The answer about the nodes.
#[track_caller]
fn nodes(control: &Path) -> Value {
    let output = hadmctl(control, &["mesh", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut mesh: Value = serde_json::from_slice(&output.stdout).unwrap();
    mesh["meshes"][0].take()
}

/// The columns `known` and `sees`, row by row.
fn rows(nodes: &Value) -> Vec<(Value, Value)> {
    let rows = nodes["rows"].as_array().unwrap().iter();
    rows.map(|row| (row["known"].clone(), row["sees"].clone())).collect()
}

fn one_sided(nodes: &Value) -> Vec<&str> {
    nodes["one_sided"].as_array().unwrap().iter().map(|pair| pair["text"].as_str().unwrap()).collect()
}

#[track_caller]
fn wait_rows(control: &Path, expected: &[(&str, Value)]) -> Value {
    let expected: Vec<(Value, Value)> =
        expected.iter().map(|(known, sees)| ((*known).into(), sees.clone())).collect();
    redial(&format!("{expected:?}"), PATIENCE, || {
        let nodes = nodes(control);
        (rows(&nodes) == expected).then_some(nodes)
    })
}

fn view(from: u8, to: u8, mask: u32, unchanged: u32) -> Packet {
    let mut packet = Packet::new(HD_VIEW).with_from(from.into()).with_to(bit(to)).with_dev(255).with_len(12);
    packet.payload = [&[1, 0, 0, 0][..], &mask.to_le_bytes(), &unchanged.to_le_bytes()].concat();
    packet
}

/// Three daemons: each knows all three views, and that they agree. When one is gone the others still show what
/// it sent last, and blame nobody for it.
#[test]
fn every_node_knows_who_sees_whom() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 3).build();
    let [first, second, third] = [0, 1, 2].map(|id| Daemon::start(&net, &config, id));
    let all = [json!([1, 2]), json!([0, 2]), json!([0, 1])];
    for at in 0..3 {
        let known = |id| if id == at { "here" } else { "told" };
        let expected: Vec<_> = (0..3).map(|id| (known(id), all[id].clone())).collect();
        let nodes = wait_rows(&config.control(at as u8), &expected);
        assert!(one_sided(&nodes).is_empty(), "{nodes}");
    }
    third.kill9();
    let expected = [("here", json!([1])), ("told", json!([0])), ("gone", json!([0, 1]))];
    let nodes = wait_rows(&config.control(0), &expected);
    assert!(one_sided(&nodes).is_empty(), "{nodes}");
    let text = String::from_utf8(hadmctl(&config.control(0), &["mesh"]).stdout).unwrap();
    for line in ["node 0 (n0)  -  +  .  this node's own", "gone: "] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    first.stop();
    second.stop();
}

/// A node that stopped in its tracks: one peer has noticed, the other has not yet.
#[test]
fn a_stopped_node_is_seen_by_one_side_only() {
    let net = Subnet::claim();
    let slow = ConfigBuilder::new(&net, 3);
    let (quick, slow) = (slow.clone().heartbeat(0.3, 3).build(), slow.build());
    let daemons = [(0, &slow), (1, &quick), (2, &slow)].map(|(id, config)| Daemon::start(&net, config, id));
    let complete = [("here", json!([1, 2])), ("told", json!([0, 2])), ("told", json!([0, 1]))];
    wait_rows(&slow.control(0), &complete);
    daemons[2].signal(Signal::STOP);
    let expected = [("here", json!([1, 2])), ("told", json!([0])), ("told", json!([0, 1]))];
    let nodes = wait_rows(&slow.control(0), &expected);
    assert_eq!(one_sided(&nodes), ["node 2 (n2) sees node 1 (n1), node 1 does not see node 2"]);
    let text = String::from_utf8(hadmctl(&slow.control(0), &["mesh"]).stdout).unwrap();
    assert!(
        text.contains("node 2 (n2)  +  !  -") && text.contains("node 2 (n2) sees node 1 (n1),"),
        "{text}"
    );
    // It has missed two ticks by then.
    wait_rows(&slow.control(0), &[("here", json!([1, 2])), ("told", json!([0])), ("stale", json!([0, 1]))]);
}

/// The packets on the wire, their recipients, and their effect.
#[test]
fn views_go_to_those_who_take_them_and_end_there() {
    let harness = Harness::new(4);
    let plain = harness.call(3);
    let one = harness.connect(&harness.caller(1).extended(&FEATURES));
    let two = harness.connect(&harness.caller(2).extended(&FEATURES));
    // The newest of those that came when others connected.
    for peer in [&one, &two] {
        redial("the view of all", PATIENCE, || {
            let packet = peer.meta.poll(PATIENCE)?;
            assert_eq!((packet.kind(), packet.node_type(), packet.dev()), (HD_VIEW, 0, 255));
            assert_eq!((packet.from(), packet.to(), packet.len()), (0, bit(peer.id), 12));
            assert_eq!(packet.payload[..4], [1, 0, 0, 0]);
            (packet.payload[4..8] == [0b1110, 0, 0, 0]).then_some(())
        });
    }
    one.meta.send(&view(1, 0, 0b0101, 7000));
    two.meta.send(&view(2, 0, 0b0001, 3000));
    let sees = [json!([1, 2, 3]), json!([0, 2]), json!([0]), Value::Null];
    let [own, first, second, none] = sees;
    let nodes = wait_rows(
        &harness.config.control(0),
        &[("here", own), ("told", first), ("told", second), ("unknown", none)],
    );
    assert_eq!(one_sided(&nodes), ["node 1 (n1) sees node 2 (n2), node 2 does not see node 1"]);
    let lasts = nodes["one_sided"][0]["for_s"].as_f64().unwrap();
    assert!((3.0..7.0).contains(&lasts), "{nodes}");
    assert!(nodes["rows"][3]["why"].as_str().unwrap().contains("C daemon"), "{nodes}");
    // On the kernel module's link and on a C daemon's only what belongs there came.
    harness.assert_carries(&plain);
    harness.kernel.meta.send(&view(0, 1, 0b10, 0).with_to(bit(3)));
    harness.assert_carries(&plain);
    let status = hadmctl(&harness.config.control(0), &["status", "--json"]).stdout;
    let status: Value = serde_json::from_slice(&status).unwrap();
    assert_eq!(status["strays"]["type not relayed"], 1);
    harness.stop();
}

/// Every change is sent when it happens. With the ticks alone, only the half of them would take 40 s.
#[test]
fn changes_are_told_at_once() {
    let harness = Harness::new(3);
    let told = harness.connect(&harness.caller(1).extended(&FEATURES));
    let begin = Instant::now();
    let wait = |mask: u8| {
        redial("the change", PATIENCE, || (told.meta.poll(PATIENCE)?.payload[4] == mask).then_some(()));
    };
    for _ in 0..8 {
        let other = harness.call(2);
        wait(0b110);
        other.kill();
        wait(0b010);
    }
    assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
    harness.stop();
}

/// A repeated view replaces the last one; a packet that is no view ends that session alone.
#[test]
fn a_wrong_or_unasked_view_costs_its_sender_the_session() {
    let harness = Harness::new(4);
    let bystander = harness.call(3);
    let talker = harness.connect(&harness.caller(1).extended(&FEATURES));
    for mask in 0..20_000 {
        talker.meta.send(&view(1, 0, mask, 0));
    }
    talker.meta.send(&view(1, 0, 0b1001, 0));
    redial("the last of many", PATIENCE, || {
        (nodes(&harness.config.control(0))["rows"][1]["sees"] == json!([0, 3])).then_some(())
    });
    let mut newer = view(1, 0, 0b1001, 0);
    newer.payload[0] = 2;
    let long = Packet::filled(HD_VIEW, 1, 100_000);
    for (wrong, features) in [(newer, &FEATURES[..]), (long, &FEATURES[..]), (view(2, 0, 1, 0), &[][..])] {
        let peer = harness.connect(&harness.caller(2).extended(features));
        peer.meta.send(&wrong);
        peer.wait_closed(PATIENCE);
        harness.kernel.wait_state(bit(1) | bit(3), PATIENCE);
    }
    let why = String::from_utf8(hadmctl(&harness.config.control(0), &["why", "2"]).stdout).unwrap();
    for refused in
        ["12 bytes, version 2", "100000 bytes, version", "packet type 200 is not one that is relayed"]
    {
        assert_eq!(why.matches(refused).count(), 1, "{refused} in\n{why}");
    }
    harness.assert_carries(&bystander);
    harness.stop();
}
