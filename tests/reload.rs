//! A new configuration while the daemon runs: what did not change goes on untouched, what changed acts at
//! once, a bad file changes nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::process::{Command, Output};

use rustix::process::Signal;
use support::*;

fn hadmctl(rig: &Rig, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
    command.arg("--control").arg(rig.config.control(rig.node)).args(args).output().unwrap()
}

/// Writes a new configuration over the one in force.
fn rewrite(rig: &Rig, nodes: u8, change: impl FnOnce(ConfigBuilder) -> ConfigBuilder) {
    std::fs::write(&rig.config.path, change(ConfigBuilder::new(&rig.net, nodes)).render()).unwrap();
}

/// Writes the configuration with another address for node 0.
fn move_node_0(rig: &Rig, nodes: u8, to: u8) {
    let text = ConfigBuilder::new(&rig.net, nodes).render();
    let ipaddr = |id| format!("<ipaddr>{}</ipaddr>", rig.net.ip(id));
    assert!(text.contains(&ipaddr(0)));
    std::fs::write(&rig.config.path, text.replace(&ipaddr(0), &ipaddr(to))).unwrap();
}

#[track_caller]
fn reload(rig: &Rig) -> String {
    let output = hadmctl(rig, &["reload"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// D1 and D2 through a reload: data flows both ways the whole time, and arrives whole and in order.
#[test]
fn unchanged_peers_lose_nothing() {
    let rig = Rig::new(3);
    let (stays, goes) = (rig.call(1), rig.call(2));
    const N: u64 = 3000;
    std::thread::scope(|scope| {
        scope.spawn(|| (0..N).for_each(|n| rig.kernel.data.send(&Packet::data(n, bit(1), 4096))));
        scope.spawn(|| (0..N).for_each(|n| stays.data.send(&Packet::data(n, bit(0), 4096))));
        let reloads = scope.spawn(|| {
            for nodes in [2, 3, 2, 3, 2] {
                rewrite(&rig, nodes, |config| config);
                reload(&rig);
            }
        });
        let there =
            scope.spawn(|| (0..N).for_each(|n| assert_eq!(stays.data.recv(), Packet::data(n, bit(1), 4096))));
        (0..N).for_each(|n| assert_eq!(rig.kernel.data.recv(), Packet::data(n, bit(0), 4096)));
        there.join().unwrap();
        reloads.join().unwrap();
    });
    goes.wait_closed(PATIENCE);
    rig.kernel.wait_state(bit(1), PATIENCE);
    assert!(!stays.data.is_closed() && !stays.meta.is_closed());
    rig.assert_carries(&stays);
    rig.stop();
}

#[test]
fn added_and_removed_peers_act_at_once() {
    let rig = Rig::new(2);
    let first = rig.call(1);
    assert!(rig.caller(2).try_call().is_err(), "not configured yet");
    rewrite(&rig, 3, |config| config);
    let plan = hadmctl(&rig, &["plan", rig.config.path.to_str().unwrap()]);
    let plan = String::from_utf8(plan.stdout).unwrap();
    assert!(plan.contains("node 2: added") && plan.contains("node 1: kept"), "{plan}");
    assert!(rig.caller(2).try_call().is_err(), "a plan changes nothing");
    assert_eq!(reload(&rig), plan);
    let second = rig.call(2);
    rig.assert_carries(&first);
    rig.assert_carries(&second);
    rewrite(&rig, 2, |config| config);
    rig.daemon.signal(Signal::HUP);
    second.wait_closed(PATIENCE);
    rig.kernel.wait_state(bit(1), PATIENCE);
    rig.daemon.wait_log("node 2 removed", PATIENCE);
    rig.assert_carries(&first);
    // The removed peer's books have gone with it.
    rig.carried.fetch_and(!bit(2), std::sync::atomic::Ordering::Relaxed);
    rig.stop();
}

/// A peer that is called is called at its new address at once.
#[test]
fn a_changed_address_is_called_at_once() {
    let rig = Rig::with(2, 1, |config| config);
    let before = Acceptor::listen(&rig.net, 0);
    let old = before.accept(&rig.net, 1);
    rig.kernel.wait_state(bit(0), PATIENCE);
    let elsewhere = Acceptor::listen(&rig.net, 7);
    move_node_0(&rig, 2, 7);
    assert!(reload(&rig).contains("node 0: changed"));
    old.wait_closed(PATIENCE);
    assert!(elsewhere.accept_one(PATIENCE).is_some());
    rig.stop();
}

#[test]
fn a_bad_file_changes_nothing_and_says_why() {
    let rig = Rig::new(3);
    let peer = rig.call(1);
    std::fs::write(&rig.config.path, "<hadm><global></hadm>").unwrap();
    let refused = hadmctl(&rig, &["reload"]);
    assert_eq!(refused.status.code(), Some(1));
    let file = rig.config.path.to_str().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains(file));
    rig.daemon.signal(Signal::HUP);
    rig.daemon.wait_log("cannot reload the configuration", PATIENCE);
    rig.assert_carries(&peer);
    rig.stop();
}

#[test]
fn what_needs_a_restart_is_refused_by_name() {
    let rig = Rig::new(3);
    let (one, two) = (rig.call(1), rig.call(2));
    // Node 2 would go, too: nothing of it may happen.
    move_node_0(&rig, 2, 9);
    let refused = hadmctl(&rig, &["reload"]);
    assert_eq!(refused.status.code(), Some(1));
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(why.contains("ipaddr and port of the local node") && why.contains("restart"), "{why}");
    rig.assert_carries(&one);
    rig.assert_carries(&two);
    rig.stop();
}

#[test]
fn heartbeat_settings_change_in_running_sessions() {
    let rig = Rig::new(2);
    let silent = rig.call(1);
    silent.answer_pings(false);
    rewrite(&rig, 2, |config| config.heartbeat(0.05, 2));
    assert!(reload(&rig).contains("time between pings"));
    rig.kernel.wait_state(0, PATIENCE);
    rig.daemon.wait_log("pings were not answered", PATIENCE);
    rig.stop();
}
