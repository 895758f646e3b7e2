//! D5 Truthful: the kernel module learns of every change of a peer within 100 ms (not only at the next
//! connect tick), hears it again on each tick, also when the set becomes empty, and right after it
//! attaches.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::time::{Duration, Instant};

use crate::support::*;

/// Longest delay of a report, as the median of several.
const TOLD_WITHIN: Duration = ms(100);

/// Failure modes 1 and 2: coming and going are reported at once, and an empty set is, too.
#[test]
fn fm01_fm02_changes_are_told_within_100_ms_and_the_empty_set_too() {
    let harness = Harness::new(2);
    let (mut came, mut went) = (Vec::new(), Vec::new());
    for _ in 0..7 {
        let start = Instant::now();
        let peer = harness.caller(1).call_until_taken();
        let linked = Instant::now();
        let told = harness.kernel.wait_state_since(start, bit(1), PATIENCE);
        came.push(told.saturating_duration_since(linked));
        let start = Instant::now();
        peer.kill();
        let told = harness.kernel.wait_state_since(start, 0, PATIENCE);
        went.push(told.duration_since(start));
    }
    assert!(median(came.clone()) <= TOLD_WITHIN, "told that it came after {came:?}");
    assert!(median(went.clone()) <= TOLD_WITHIN, "told that it went after {went:?}");
    harness.stop();
}

/// The end of a daemon killed with -9 is reported within 100 ms.
#[test]
fn fm02_a_killed_daemon_is_told_within_100_ms() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let daemon = Daemon::start(&net, &config, 0);
    let kernel = FakeKernel::attach(&net, 0);
    let times = (0..3).map(|_| {
        let other = Daemon::start(&net, &config, 1);
        kernel.wait_state(bit(1), PATIENCE);
        let start = Instant::now();
        other.kill9();
        kernel.wait_state_since(start, 0, PATIENCE).duration_since(start)
    });
    let times: Vec<Duration> = times.collect();
    assert!(median(times.clone()) <= TOLD_WITHIN, "{times:?}");
    daemon.stop();
}

/// Failure mode 3: a module that attaches late gets the present state, once, and nothing of former ones.
#[test]
fn fm03_a_late_module_is_told_the_present_alone() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 4).build();
    let daemon = Daemon::start(&net, &config, 0);
    let call = |id| Caller::new(&net, id, 0).call_until_taken();
    let (one, _two) = (call(1), call(2));
    one.kill();
    let _three = call(3);
    let third = Caller::new(&net, 1, 0).call_until_taken();
    third.kill();
    // Node 1 is gone for good once its second session's end was seen: a third one shows it.
    let last = Caller::new(&net, 1, 0).call_until_taken();
    last.wait_pings(1, PATIENCE);
    let start = Instant::now();
    let kernel = FakeKernel::attach(&net, 0);
    let first = kernel.wait_states(1, PATIENCE)[0];
    assert_eq!(first.1, 0b1110, "the first state is the present one");
    assert!(first.0.duration_since(start) < ms(1000), "told {:?} after attaching", first.0 - start);
    // A tick may fall into this time, a burst must not.
    assert_eq!(kernel.meta.poll(ms(1000)), None);
    assert!(kernel.states().len() <= 2, "{:?}", kernel.states());
    assert_eq!(kernel.masks(), [0b1110]);
    daemon.stop();
}

/// The state is sent on every connect tick, 5 s apart, changed or not, also when empty.
#[test]
fn the_state_is_told_on_every_tick() {
    let harness = Harness::new(2);
    let states = harness.kernel.wait_states(3, Duration::from_secs(14));
    let gap = states[2].0.duration_since(states[1].0);
    assert!(ms(3500) < gap && gap < ms(6500), "ticks {gap:?} apart");
    assert_eq!(harness.kernel.masks(), [0]);
    let peer = harness.call(1);
    let start = Instant::now();
    let told = harness.kernel.wait_state_since(start, bit(1), ms(6500));
    assert!(told.duration_since(start) > ms(10), "this one is the tick's");
    drop(peer);
    harness.stop();
}

/// A module that was away gets the changes of that time.
#[test]
fn a_module_that_comes_back_is_told_the_truth() {
    let mut harness = Harness::new(3);
    let first = harness.call(1);
    harness.kernel.meta.close();
    harness.kernel.data.close();
    first.wait_closed(PATIENCE);
    let second = harness.caller(2).call_until_taken();
    harness.kernel = FakeKernel::reattach(&harness.net, 0);
    let states = harness.kernel.wait_states(1, PATIENCE);
    assert_eq!(states[0].1, bit(2), "node 1 went with the old module, node 2 came without one");
    harness.assert_carries(&second);
    harness.stop();
}

/// A peer with one link is not connected.
#[test]
fn half_a_pair_is_not_told() {
    let harness = Harness::new(4);
    for (id, first) in [(1, DATA), (3, META)] {
        let caller = harness.caller(id);
        let mut half = caller.open(first).unwrap();
        caller.finish(&mut half, first).unwrap();
        // A change that follows shows the state as it is.
        let other = harness.call(2);
        harness.kernel.wait_state(bit(2), PATIENCE);
        let before = Instant::now();
        other.kill();
        harness.kernel.wait_state_since(before, 0, PATIENCE);
    }
    assert!(harness.kernel.masks().iter().all(|mask| mask & !bit(2) == 0), "{:?}", harness.kernel.masks());
    harness.stop();
}

/// A session that is replaced is reported to the kernel as ended and begun: each has its own packets.
#[test]
fn a_replaced_session_is_told() {
    let harness = Harness::new(2);
    let old = harness.call(1);
    let start = Instant::now();
    let new = harness.caller(1).call();
    harness.kernel.wait_state_since(start, 0, PATIENCE);
    harness.kernel.wait_state(bit(1), PATIENCE);
    old.wait_closed(PATIENCE);
    harness.assert_carries(&new);
    assert_eq!(harness.kernel.masks(), [0, bit(1), 0, bit(1)]);
    harness.stop();
}

/// The first state after attaching comes at once, empty or not.
#[test]
fn an_attaching_module_is_told_at_once() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let daemon = Daemon::start(&net, &config, 0);
    let mut times = Vec::new();
    for _ in 0..5 {
        let kernel = redial("attaching", PATIENCE, || FakeKernel::try_attach(&net, 0).ok());
        let start = Instant::now();
        times.push(kernel.wait_states(1, PATIENCE)[0].0.saturating_duration_since(start));
        assert_eq!(kernel.masks(), [0]);
    }
    assert!(median(times.clone()) <= TOLD_WITHIN, "{times:?}");
    daemon.stop();
}

/// The kernel hears only from its own daemon who is connected: a peer's packets about it are dropped, counted and logged.
#[test]
fn fm19_a_peer_cannot_tell_our_kernel_who_is_connected() {
    let harness = Harness::new(3);
    let peer = harness.call(1);
    let told = harness.kernel.states().len();
    for kind in [7, 14] {
        for link in [&peer.meta, &peer.data] {
            link.send(&Packet::new(kind).with_from(0).with_dev(255).with_to(u32::MAX));
        }
    }
    harness.assert_carries(&peer);
    let states = harness.kernel.states();
    assert!(states.iter().skip(told).all(|(_, mask)| *mask == bit(1)), "{states:?}");
    harness.daemon.wait_log("dropped a connection state from node 1", PATIENCE);
    harness.stop();
}
