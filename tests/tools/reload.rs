//! A new configuration while the daemon runs: what did not change goes on untouched, what changed acts at
//! once, a bad file changes nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::process::{Command, Output};

use crate::support::*;
use rustix::process::Signal;

fn hadmctl(harness: &Harness, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
    command.arg("--control").arg(harness.config.control(harness.node)).args(args).output().unwrap()
}

/// Writes a new configuration over the one in force.
fn rewrite(harness: &Harness, nodes: u8, change: impl FnOnce(ConfigBuilder) -> ConfigBuilder) {
    std::fs::write(&harness.config.path, change(ConfigBuilder::new(&harness.net, nodes)).render()).unwrap();
}

/// Writes the configuration with another address for node 0.
fn move_node_0(harness: &Harness, nodes: u8, to: u8) {
    let text = ConfigBuilder::new(&harness.net, nodes).render();
    let ipaddr = |id| format!("<ipaddr>{}</ipaddr>", harness.net.ip(id));
    assert!(text.contains(&ipaddr(0)));
    std::fs::write(&harness.config.path, text.replace(&ipaddr(0), &ipaddr(to))).unwrap();
}

#[track_caller]
fn reload(harness: &Harness) -> String {
    let output = hadmctl(harness, &["reload"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// D1 and D2 through a reload: data flows both ways the whole time, and arrives whole and in order.
#[test]
fn unchanged_peers_lose_nothing() {
    let harness = Harness::new(3);
    let (stays, goes) = (harness.call(1), harness.call(2));
    const N: u64 = 3000;
    std::thread::scope(|scope| {
        scope.spawn(|| (0..N).for_each(|n| harness.kernel.data.send(&Packet::data(n, bit(1), 4096))));
        scope.spawn(|| (0..N).for_each(|n| stays.data.send(&Packet::data(n, bit(0), 4096))));
        let reloads = scope.spawn(|| {
            for nodes in [2, 3, 2, 3, 2] {
                rewrite(&harness, nodes, |config| config);
                reload(&harness);
            }
        });
        let there =
            scope.spawn(|| (0..N).for_each(|n| assert_eq!(stays.data.recv(), Packet::data(n, bit(1), 4096))));
        (0..N).for_each(|n| assert_eq!(harness.kernel.data.recv(), Packet::data(n, bit(0), 4096)));
        there.join().unwrap();
        reloads.join().unwrap();
    });
    goes.wait_closed(PATIENCE);
    harness.kernel.wait_state(bit(1), PATIENCE);
    assert!(!stays.data.is_closed() && !stays.meta.is_closed());
    harness.assert_carries(&stays);
    harness.stop();
}

#[test]
fn added_and_removed_peers_act_at_once() {
    let harness = Harness::new(2);
    let first = harness.call(1);
    assert!(harness.caller(2).try_call().is_err(), "not configured yet");
    rewrite(&harness, 3, |config| config);
    let plan = hadmctl(&harness, &["plan", harness.config.path.to_str().unwrap()]);
    let plan = String::from_utf8(plan.stdout).unwrap();
    assert!(plan.contains("node 2: added") && plan.contains("node 1: kept"), "{plan}");
    assert!(harness.caller(2).try_call().is_err(), "a plan changes nothing");
    assert_eq!(reload(&harness), plan);
    let second = harness.call(2);
    harness.assert_carries(&first);
    harness.assert_carries(&second);
    rewrite(&harness, 2, |config| config);
    harness.daemon.signal(Signal::HUP);
    second.wait_closed(PATIENCE);
    harness.kernel.wait_state(bit(1), PATIENCE);
    harness.daemon.wait_log("node 2 removed", PATIENCE);
    harness.assert_carries(&first);
    // The removed peer's counters have gone with it.
    harness.carried.fetch_and(!bit(2), std::sync::atomic::Ordering::Relaxed);
    harness.stop();
}

/// A peer that is called is called at its new address at once.
#[test]
fn a_changed_address_is_called_at_once() {
    let harness = Harness::with(2, 1, |config| config);
    let before = Acceptor::listen(&harness.net, 0);
    let old = before.accept(&harness.net, 1);
    harness.kernel.wait_state(bit(0), PATIENCE);
    let elsewhere = Acceptor::listen(&harness.net, 7);
    move_node_0(&harness, 2, 7);
    assert!(reload(&harness).contains("node 0: changed"));
    old.wait_closed(PATIENCE);
    assert!(elsewhere.accept_one(PATIENCE).is_some());
    harness.stop();
}

#[test]
fn a_bad_file_changes_nothing_and_says_why() {
    let harness = Harness::new(3);
    let peer = harness.call(1);
    std::fs::write(&harness.config.path, "<hadm><global></hadm>").unwrap();
    let refused = hadmctl(&harness, &["reload"]);
    assert_eq!(refused.status.code(), Some(5));
    let file = harness.config.path.to_str().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains(file));
    harness.daemon.signal(Signal::HUP);
    harness.daemon.wait_log("cannot reload the configuration", PATIENCE);
    harness.assert_carries(&peer);
    harness.stop();
}

#[test]
fn what_needs_a_restart_is_refused_by_name() {
    let harness = Harness::new(3);
    let (one, two) = (harness.call(1), harness.call(2));
    // Node 2 would go, too: nothing of it may happen.
    move_node_0(&harness, 2, 9);
    let refused = hadmctl(&harness, &["reload"]);
    assert_eq!(refused.status.code(), Some(5));
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(why.contains("ipaddr and port of the local node") && why.contains("restart"), "{why}");
    let plan = hadmctl(&harness, &["plan", harness.config.path.to_str().unwrap()]);
    assert_eq!(plan.status.code(), Some(1), "a reload would be refused");
    assert!(String::from_utf8_lossy(&plan.stdout).contains("needs a restart: ipaddr and port"), "{plan:?}");
    harness.assert_carries(&one);
    harness.assert_carries(&two);
    harness.stop();
}

/// Warnings come with the reload's answer, and stay in the doctor's until the file is right.
#[test]
fn warnings_about_the_file_in_force_are_shown() {
    let harness = Harness::new(2);
    let peer = harness.call(1);
    let file = harness.config.path.to_str().unwrap();
    rewrite(&harness, 2, |config| config.set("colour", "red"));
    let warning = "warning: unknown element <colour>";
    assert!(reload(&harness).contains(warning));
    let doctor = || String::from_utf8(hadmctl(&harness, &["doctor"]).stdout).unwrap();
    let line = |found: &str| found.lines().find(|line| line.contains("configuration ")).map(str::to_owned);
    let found = line(&doctor()).unwrap();
    assert!(found.starts_with("well") && found.contains(warning) && found.contains(file), "{found}");
    rewrite(&harness, 2, |config| config);
    assert!(!reload(&harness).contains("warning"));
    assert!(!doctor().contains(warning));
    harness.assert_carries(&peer);
    harness.stop();
}

/// A place that the same file takes already is refused before anything is closed or opened.
#[test]
fn a_place_that_is_taken_twice_is_refused_by_every_command() {
    let harness = Harness::new(2);
    let peer = harness.call(1);
    let node = format!("{}:7000", harness.net.ip(0));
    rewrite(&harness, 2, |config| config.set("metrics", &node));
    let file = harness.config.path.to_str().unwrap();
    for args in [&["reload"][..], &["plan", file], &["check", file, "--hostname", "n0"]] {
        let output = hadmctl(&harness, args);
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && why.contains("of the same machine listens at"),
            "{args:?}: {why}"
        );
    }
    harness.assert_carries(&peer);
    harness.stop();
}

#[test]
fn heartbeat_settings_change_in_running_sessions() {
    let harness = Harness::new(2);
    let silent = harness.call(1);
    silent.answer_pings(false);
    rewrite(&harness, 2, |config| config.heartbeat(0.05, 2));
    assert!(reload(&harness).contains("time between pings"));
    harness.kernel.wait_state(0, PATIENCE);
    harness.daemon.wait_log("pings were not answered", PATIENCE);
    harness.stop();
}
