//! The examination of a site with two nodes: who owns a resource's log, and what differs between the configurations.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use serde_json::Value;

use crate::namespaces::*;
use crate::support::*;

fn ask(cluster: &Cluster, at: usize, args: &[&str]) -> Value {
    let said = cluster.hadmctl(at, &[args, &["--json"]].concat());
    serde_json::from_slice(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"))
}

/// Waits until the examination says of the log of the resource what is expected.
#[track_caller]
fn wait_log(cluster: &Cluster, at: usize, well: bool, expected: &str) {
    redial(expected, PATIENCE, || {
        let found = ask(cluster, at, &["doctor"]);
        let checks = found["checks"].as_array().unwrap();
        let log = checks.iter().find(|check| check["check"] == "log")?;
        (log["well"] == well && log["says"].as_str()?.contains(expected)).then_some(())
    });
}

#[test]
fn an_owner_none_and_two_are_named() {
    let Some(cluster) = Cluster::start(&[resource(0)], &[[A0, B0]]) else { return };
    let address = floating(0, 0);
    wait_linked(&cluster, 0, [A0, B0]);
    wait_log(&cluster, A0, true, "this node owns the log of resource 0 (r0)");
    wait_log(&cluster, A1, true, "node 0 (a0) owns the log of resource 0 (r0)");
    cluster.net.add(A1, address);
    for at in [A0, A1] {
        let other = A0 + A1 - at;
        let expected = format!(
            "2 nodes own the log of resource 0 (r0): this node and node {} ({}); {address} is on each",
            node(other),
            NAMES[other]
        );
        wait_log(&cluster, at, false, &expected);
    }
    cluster.net.remove(A1, address);
    cluster.net.remove(A0, address);
    for at in [A0, A1] {
        wait_log(
            &cluster,
            at,
            false,
            &format!("no node here owns the log of resource 0 (r0): {address} is on none"),
        );
    }
    cluster.net.machines[A1]
        .ip(&format!("link add spare type veth peer name far\naddr add {address}/16 dev spare\n"));
    wait_log(&cluster, A1, false, &format!("the interface of {address}, spare, is down"));
    cluster.net.machines[A1].ip("link set far up\nlink set spare up\n");
    wait_log(&cluster, A1, true, "this node owns the log of resource 0 (r0)");
    cluster.stop();
}

/// A reload on one node after the other: the session stays, and both say at each moment what is true.
#[test]
fn elements_that_differ_are_named_as_long_as_they_do() {
    let Some(cluster) = Cluster::start(&[resource(0)], &[[A0, B0]]) else { return };
    wait_linked(&cluster, 0, [A0, B0]);
    let differences = |at: usize, expected: &[&str]| {
        redial(&format!("{expected:?}"), PATIENCE, || {
            let status = ask(&cluster, at, &["status"]);
            let peers = status["peers"].as_array().unwrap();
            let is_so = |peer: &&Value| {
                peer["differences"] == serde_json::json!(expected)
                    && peer["same_config"] == expected.is_empty()
            };
            let other = peers.iter().filter(|peer| peer["connected"] == true);
            other.filter(is_so).count().gt(&0).then_some(())
        });
    };
    let sessions = || cluster.seats[A0].daemon.log_count("session ended");
    differences(A0, &[]);
    let before = sessions();
    cluster.rewrite(&[resource(0), resource(3)]);
    assert!(cluster.hadmctl(A0, &["reload"]).status.success());
    for at in [A0, A1, B0] {
        differences(at, &["resource 3"]);
    }
    let found = String::from_utf8(cluster.hadmctl(A1, &["doctor", "0"]).stdout).unwrap();
    assert!(found.contains("its configuration is another one: resource 3"), "{found}");
    for at in [A1, B0, B1] {
        assert!(cluster.hadmctl(at, &["reload"]).status.success());
    }
    for at in [A0, A1, B0] {
        differences(at, &[]);
    }
    assert_eq!(sessions(), before);
    cluster.stop();
}
