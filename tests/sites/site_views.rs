//! `hadmctl doctor` and `hadmctl mesh` where there are sites: what the log owner sees, and what another node of its
//! site says of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use crate::namespaces::*;
use crate::support::*;
use hadmd::control::{Examination, Json, Mesh, Status, Transition};
use serde_json::{Value, json};

fn answer(cluster: &Cluster, at: usize, command: &[&str]) -> Value {
    let output = cluster.hadmctl(at, &[command, &["--json"]].concat());
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

/// Holds an answer against its type: read and written again it is the same.
#[track_caller]
fn hold<T: Json>(answer: &Value) {
    let read = T::read(answer).unwrap_or_else(|why| panic!("{why}: {answer}"));
    assert_eq!(read.json().to_string(), answer.to_string());
}

#[test]
fn owners_see_each_other_and_others_say_who_should() {
    let Some(cluster) = Cluster::start(&[resource(3)], &[[A0, B0]]) else { return };
    cluster.kernel(A0).wait_state(Whom::Sites(3), bit(1));
    cluster.kernel(A0).wait_state(Whom::Nodes, bit(1));
    cluster.kernel(B0).wait_state(Whom::Sites(3), bit(0));
    cluster.kernel(B0).wait_state(Whom::Nodes, bit(1));
    for (at, log, site) in [
        (A0, "this node owns the log of resource 3 (r3)", "healthy"),
        (A1, "node 0 (a0) owns the log of resource 3 (r3)", "not-owner"),
        (B0, "this node owns the log of resource 3 (r3)", "healthy"),
    ] {
        let found = redial(log, PATIENCE, || {
            let found = answer(&cluster, at, &["doctor"]);
            (found["checks"].as_array().unwrap().last().unwrap()["says"] == log).then_some(found)
        });
        assert_eq!(found["well"], true, "{}: {found}", NAMES[at]);
        let verdicts: Vec<_> =
            found["peers"].as_array().unwrap().iter().map(|peer| &peer["verdict"]).collect();
        assert_eq!(verdicts, ["healthy", site], "{}", NAMES[at]);
    }
    // The side with the larger site id calls, and tries the port of the floating address.
    let found = answer(&cluster, B0, &["doctor"]);
    assert_eq!((&found["peers"][1]["port"], &found["peers"][1]["role"]), (&"open".into(), &"caller".into()));
    // B0 knows the view of resource 3 from the owner of the other site, and nothing else of that site.
    let complete = redial("both views of resource 3", PATIENCE, || {
        let mesh = answer(&cluster, B0, &["mesh"]);
        (mesh["meshes"][1]["rows"][0]["known"] == "told").then_some(mesh)
    });
    let sites = &complete["meshes"][1];
    assert_eq!(
        (&sites["resource"], &sites["owned"], &sites["one_sided"]),
        (&3.into(), &true.into(), &json!([]))
    );
    let sees: Vec<_> = sites["rows"].as_array().unwrap().iter().map(|row| &row["sees"]).collect();
    assert_eq!(sees, [&json!([1]), &json!([0])]);
    let text = String::from_utf8(cluster.hadmctl(A1, &["mesh"]).stdout).unwrap();
    assert!(text.contains("sites of resource 3 (r3), whose log this node does not own\n"), "{text}");
    for at in [A0, A1, B0] {
        hold::<Status>(&answer(&cluster, at, &["status"]));
        hold::<Mesh>(&answer(&cluster, at, &["mesh"]));
        hold::<Examination>(&answer(&cluster, at, &["doctor"]));
    }
    hold::<Vec<Transition>>(&answer(&cluster, B0, &["why", "3:0"]));
    // The floating address goes: nobody has it.
    cluster.net.remove(A0, floating(0, 3));
    cluster.kernel(B0).wait_state(Whom::Sites(3), 0);
    let lost = cluster.hadmctl(B0, &["doctor", "3:0", "--json"]);
    assert_eq!(lost.status.code(), Some(1));
    let lost: Value = serde_json::from_slice(&lost.stdout).unwrap();
    let verdict = lost["peers"][0]["verdict"].as_str().unwrap();
    assert!(matches!(verdict, "unreachable" | "silent"), "{lost}");
    cluster.stop();
}
