//! The core, a decision at a time: each test owns the clock and chooses the events.
//!
//! Whole nodes together, under faults, are tried by the simulation (`tests/sim.rs`).

mod harness;
mod pairs;

use super::*;
use harness::*;

/// Failure mode 15: a refusal does not burn the tries of a round.
#[test]
fn fm15_attempts_wait_1_2_4_8_16_seconds_and_begin_again_at_the_connect_tick() {
    for seed in 0..20 {
        let mut harness = Harness::new(seed);
        let (mut attempt, first) = harness.next_dial();
        assert_eq!(first, Moment::ZERO);
        for secs in [1.0, 2.0, 4.0, 8.0, 16.0] {
            let failed = harness.now;
            harness.handle(Event::DialFailed { peer: node(CALLED), attempt });
            let (next, at) = harness.next_dial();
            assert!(is_wait(at - failed, secs), "{:?} instead of {secs} s", at - failed);
            attempt = next;
        }
        let failed = harness.now;
        harness.handle(Event::DialFailed { peer: node(CALLED), attempt });
        let (_, at) = harness.next_dial();
        assert!(at - failed <= CONNECT_TICK);
        assert_eq!(at.as_nanos() % CONNECT_TICK.as_nanos(), 0);
    }
}

#[test]
fn a_report_that_never_comes_is_not_waited_for() {
    let mut harness = Harness::new(1);
    let (attempt, begun) = harness.next_dial();
    let (ready, _) = harness.link(CALLED, Class::Data, Via::Dialed(attempt));
    let out = harness.until(|action| matches!(action, Action::CancelDial { .. }));
    assert_eq!(harness.now - begun, ATTEMPT_LIMIT);
    assert!(out.contains(&Action::CancelDial { attempt }) && out.contains(&Action::Close { conn: ready }));
    let (late, out) = harness.link(CALLED, Class::Meta, Via::Dialed(attempt));
    assert_eq!(out, [Action::Close { conn: late }]);
    assert!(harness.handle(Event::DialFailed { peer: node(CALLED), attempt }).is_empty());
    assert_ne!(harness.next_dial().0, attempt);
}

#[test]
fn sessions_that_flap_are_called_later_and_later_and_steady_ones_at_once() {
    let mut harness = Harness::new(3);
    let mut ended = None;
    let young = FLAP_AGE / 2;
    for (wait, age) in [
        (0.0, FLAP_AGE),
        (0.02, young),
        (1.0, young),
        (2.0, young),
        (4.0, young),
        (8.0, young),
        (16.0, young),
        (16.0, FLAP_AGE),
        (0.02, young),
        (1.0, young),
    ] {
        let (attempt, at) = harness.next_dial();
        let waited = ended.map_or(Duration::ZERO, |ended| at - ended);
        assert!(is_wait(waited, wait), "{waited:?} instead of {wait} s");
        harness.link(CALLED, Class::Meta, Via::Dialed(attempt));
        let session = started(&harness.link(CALLED, Class::Data, Via::Dialed(attempt)).1).unwrap();
        harness.now += age;
        harness.handle(lost(session, CALLED));
        ended = Some(harness.now);
    }
}

#[test]
fn a_sign_of_life_calls_at_once_but_not_more_often_than_once_a_second() {
    let mut harness = Harness::new(4);
    let alive = || Event::PeerAlive { peer: node(CALLED) };
    let (attempt, begun) = harness.next_dial();
    assert!(harness.handle(alive()).is_empty(), "an attempt is in flight");
    harness.handle(Event::DialFailed { peer: node(CALLED), attempt });
    assert_eq!(dialed(&harness.handle(alive())), None);
    let (attempt, at) = harness.next_dial();
    assert!(at - begun <= SECOND && at - begun >= SECOND.mul_f64(0.8));
    harness.handle(Event::DialFailed { peer: node(CALLED), attempt });
    harness.now += SECOND;
    assert!(dialed(&harness.handle(alive())).is_some(), "the second has passed");
    assert!(
        harness.handle(Event::PeerAlive { peer: node(CALLER) }).is_empty(),
        "this side does not call node 3"
    );
}

/// Failure mode 16: a peer that cannot be reached does not disturb the heartbeats of the others.
#[test]
fn fm16_a_silent_peer_is_given_up_in_time_while_another_cannot_be_reached() {
    let mut harness = Harness::new(9);
    harness.attach();
    harness.accept(1);
    let begun = harness.now;
    let out = harness.until(|action| matches!(action, Action::EndSession { .. }));
    assert_eq!((ended(&out), told(&out)), (Some(EndCause::Heartbeat), vec![0]));
    let took = harness.now - begun;
    assert!(took >= PING * (MAX + 1) && took <= PING * (MAX + 2), "{took:?}");
}

#[test]
fn the_count_of_unanswered_pings_does_not_go_below_zero() {
    let mut harness = Harness::new(10);
    let session = harness.accept(1);
    harness.ack(session, 1000);
    for unanswered in 1..=MAX {
        assert_eq!(pinged(&harness.until(|action| matches!(action, Action::Ping { .. }))), Some(unanswered));
    }
    harness.ack(session, MAX - 1);
    harness.ack(SessionId(u64::MAX), MAX);
    assert_eq!(pinged(&harness.until(|action| matches!(action, Action::Ping { .. }))), Some(2));
}

/// Every packet from the peer shows that it lives, ACK or not.
#[test]
fn a_peer_that_is_heard_is_not_given_up() {
    let mut harness = Harness::new(21);
    let session = harness.accept(1);
    for _ in 0..20 {
        let out = harness.until(|action| matches!(action, Action::Ping { .. }));
        assert_eq!((ended(&out), pinged(&out)), (None, Some(1)));
        harness.handle(Event::Heard { peer: node(CALLER), session });
    }
    let out = harness.until(|action| matches!(action, Action::EndSession { .. }));
    assert_eq!(ended(&out), Some(EndCause::Heartbeat));
}

#[test]
fn a_stalled_daemon_judges_nobody() {
    let mut harness = Harness::new(11);
    harness.accept(1);
    for _ in 0..MAX {
        harness.until(|action| matches!(action, Action::Ping { .. }));
    }
    let out = harness.stall(PING + PING / 2 + Duration::from_millis(1));
    assert!(out.contains(&Action::Stalled));
    assert_eq!((ended(&out), pinged(&out), harness.core.stalls()), (None, Some(1), 1));
}

/// The timer thread may run before the threads that read the ACKs.
#[test]
fn acks_that_wait_unread_after_a_short_stall_are_waited_for() {
    let mut harness = Harness::new(12);
    let session = harness.accept(1);
    for _ in 0..MAX {
        harness.until(|action| matches!(action, Action::Ping { .. }));
    }
    assert_eq!(ended(&harness.stall(PING + PING / 3)), None);
    assert_eq!(ended(&harness.stall(PING / 3)), None, "stalled again");
    harness.ack(session, MAX);
    assert_eq!(pinged(&harness.until(|action| matches!(action, Action::Ping { .. }))), Some(1));
}

#[test]
fn a_half_kernel_module_is_given_up_after_its_time_and_a_second_one_is_refused() {
    let mut harness = Harness::new(13);
    let (half, twin) = (harness.conn(), harness.conn());
    let hello = |class, conn| Event::KernelHello { class, conn, uid: Some(0) };
    assert_eq!(
        harness.handle(hello(Class::Meta, half)),
        [Action::AckKernel { conn: half, class: Class::Meta }]
    );
    assert_eq!(
        harness.handle(hello(Class::Meta, twin)),
        [Action::RefuseKernel { conn: twin, why: KernelRefusal::Second }]
    );
    harness.until(|action| *action == Action::Close { conn: half });
    assert_eq!(harness.now, HALF_LIMIT);
    harness.attach();
    for class in Class::BOTH {
        let conn = harness.conn();
        assert_eq!(
            harness.handle(hello(class, conn)),
            [Action::RefuseKernel { conn, why: KernelRefusal::Second }]
        );
    }
}

#[test]
fn a_lost_half_kernel_module_makes_room_at_once() {
    let mut harness = Harness::new(14);
    let conn = harness.conn();
    harness.handle(Event::KernelHello { class: Class::Data, conn, uid: Some(0) });
    assert!(harness.handle(Event::ConnLost { conn: ConnId(999) }).is_empty());
    assert_eq!(harness.handle(Event::ConnLost { conn }), [Action::Close { conn }]);
    harness.attach();
}

/// Failure modes 1 and 2: the kernel module hears at once, also when no peer is left, and on each tick.
#[test]
fn fm01_fm02_the_kernel_module_is_told_at_once_also_of_the_empty_set() {
    let mut harness = Harness::new(15);
    let session = harness.accept(1);
    let attach = harness.attach();
    assert_eq!(told(&harness.handle(lost(session, CALLER))), [0]);
    for _ in 0..3 {
        let out = harness.until(|action| matches!(action, Action::TellKernel { .. }));
        assert_eq!((told(&out), harness.now.as_secs() % 5), (vec![0], 0));
    }
    let session = harness.accept(2);
    let out = harness.handle(Event::KernelLost { attach, why: "gone".into() });
    assert_eq!((ended(&out), told(&out)), (Some(EndCause::KernelDetached), vec![]));
    assert!(harness.handle(lost(session, CALLER)).is_empty());
    assert!(harness.handle(Event::KernelLost { attach, why: "gone".into() }).is_empty());
}

#[test]
fn a_session_that_lost_data_while_nobody_was_attached_ends_before_the_next_one_is_told() {
    let mut harness = Harness::new(16);
    let session = harness.accept(1);
    let dropped = |session| Event::DataDropped { peer: node(CALLER), session };
    assert!(harness.handle(dropped(session)).is_empty());
    let (data, meta) = (harness.conn(), harness.conn());
    harness.handle(Event::KernelHello { class: Class::Data, conn: data, uid: Some(0) });
    let out = harness.handle(Event::KernelHello { class: Class::Meta, conn: meta, uid: Some(0) });
    assert_eq!((ended(&out), told(&out)), (Some(EndCause::DataDropped), vec![0]));
    // A report that comes when the kernel module is attached already is accepted, too.
    let session = harness.accept(2);
    assert!(harness.handle(dropped(SessionId(u64::MAX))).is_empty());
    assert_eq!(ended(&harness.handle(dropped(session))), Some(EndCause::DataDropped));
}

#[test]
fn an_unwanted_peer_is_let_go_and_called_again_when_it_is_wanted() {
    let mut harness = Harness::new(17);
    let want = |peer, wanted| Event::Wanted { peer, wanted };
    let (attempt, _) = harness.next_dial();
    let (ready, _) = harness.link(CALLED, Class::Data, Via::Dialed(attempt));
    let out = harness.handle(want(node(CALLED), false));
    assert_eq!(out, [Action::CancelDial { attempt }, Action::Close { conn: ready }]);
    assert!(harness.handle(Event::PeerAlive { peer: node(CALLED) }).is_empty());
    assert!(dialed(&harness.handle(want(node(CALLED), true))).is_some());
    assert!(dialed(&harness.handle(want(site(), true))).is_some(), "a log came to this node");
    harness.attach();
    harness.accept(1);
    let out = harness.handle(want(node(CALLER), false));
    assert_eq!((ended(&out), told(&out)), (Some(EndCause::Unwanted), vec![0]));
    let (conn, out) = harness.link(CALLER, Class::Data, accepted(Some(2)));
    assert_eq!(out, [Action::Close { conn }]);
}

/// Failure mode 37: an orderly end.
#[test]
fn fm37_stop_is_said_once_and_nothing_begins_after_it() {
    let mut harness = Harness::new(18);
    assert_eq!(harness.handle(Event::ModuleGone), [Action::Stop { drain: DRAIN_LIMIT, code: 1 }]);
    assert!(harness.handle(Event::Stop).is_empty());
    let (conn, out) = harness.link(CALLER, Class::Data, accepted(Some(1)));
    assert_eq!(out, [Action::Close { conn }]);
    let conn = harness.conn();
    let hello = Event::KernelHello { class: Class::Data, conn, uid: Some(0) };
    assert_eq!(harness.handle(hello), [Action::RefuseKernel { conn, why: KernelRefusal::Ending }]);
    assert!(harness.stall(SECOND * 60).is_empty());
}

/// A peer that takes part again and again without reading would hold up the others most of the time.
#[test]
fn a_peer_that_never_keeps_up_is_held_off_longer_each_time() {
    let mut harness = Harness::new(17);
    let hold = harness.core.settings.slow_timeout;
    for (epoch, wait) in [(1, Duration::ZERO), (2, hold), (3, hold * 2), (4, hold * 4)] {
        let session = harness.accept(epoch);
        harness.now += hold;
        harness.handle(Event::SessionLost { peer: node(CALLER), session, cause: EndCause::Slow });
        let (conn, out) = harness.link(CALLER, Class::Data, accepted(None));
        assert_eq!(out == [Action::Close { conn }], !wait.is_zero(), "after session {epoch}");
        harness.now += wait;
    }
    // A peer whose session lasted starts afresh.
    let session = harness.accept(5);
    harness.now += hold * 3;
    harness.handle(lost(session, CALLER));
    let session = harness.accept(6);
    harness.handle(Event::SessionLost { peer: node(CALLER), session, cause: EndCause::Slow });
    harness.accept(7);
}

/// Sessions that the local kernel module ends say nothing about the peer.
#[test]
fn sessions_that_the_own_kernel_module_ends_are_no_flaps() {
    let mut harness = Harness::new(3);
    let mut ended_at = None;
    for round in 0..8 {
        let (attempt, at) = harness.next_dial();
        let waited = ended_at.map_or(Duration::ZERO, |ended| at - ended);
        assert!(waited < SECOND / 10, "{waited:?} in round {round}");
        harness.link(CALLED, Class::Meta, Via::Dialed(attempt));
        started(&harness.link(CALLED, Class::Data, Via::Dialed(attempt)).1).unwrap();
        let attach = harness.attach();
        harness.now += FLAP_AGE / 4;
        let out = harness.handle(Event::KernelLost { attach, why: "gone".into() });
        assert_eq!(ended(&out), Some(EndCause::KernelDetached));
        ended_at = Some(harness.now);
    }
    // Nor do those that the peer's kernel module ends.
    for round in 0..8 {
        let (attempt, at) = harness.next_dial();
        let waited = ended_at.map_or(Duration::ZERO, |ended| at - ended);
        assert!(waited < SECOND / 5, "{waited:?} in round {round}");
        harness.link(CALLED, Class::Meta, Via::Dialed(attempt));
        let session = started(&harness.link(CALLED, Class::Data, Via::Dialed(attempt)).1).unwrap();
        harness.now += FLAP_AGE / 4;
        harness.handle(Event::SessionLost { peer: node(CALLED), session, cause: EndCause::PeersKernel });
        ended_at = Some(harness.now);
    }
}

/// A sign of life begins a new round, also while a call is in flight that will fail.
#[test]
fn a_sign_of_life_ends_the_wait_that_would_follow_a_call_in_flight() {
    let mut harness = Harness::new(4);
    let alive = || Event::PeerAlive { peer: node(CALLED) };
    for _ in 0..4 {
        let (attempt, _) = harness.next_dial();
        harness.handle(Event::DialFailed { peer: node(CALLED), attempt });
    }
    let (attempt, begun) = harness.next_dial();
    harness.now += SECOND * 3;
    harness.handle(alive());
    harness.handle(Event::DialFailed { peer: node(CALLED), attempt });
    let (attempt, at) = harness.next_dial();
    assert_eq!(at - begun, SECOND * 3);
    harness.handle(Event::DialFailed { peer: node(CALLED), attempt });
    let (_, next) = harness.next_dial();
    assert!(is_wait(next - at, 1.0), "the first wait of a round, not {:?}", next - at);
}

fn seen(session: SessionId, class: Class, unacked: u32) -> Event {
    let sight = LinkSight {
        unacked,
        acked: Some(7),
        unanswered: 0,
        repeat: SECOND / 5,
        acked_ago: Duration::ZERO,
        heard_ago: Duration::ZERO,
        shut: Some(false),
    };
    Event::LinkSeen { peer: node(CALLER), session, class, sight }
}

/// Heartbeats on the meta link say nothing about the data link.
#[test]
fn a_link_on_which_nothing_is_acknowledged_ends_the_session_though_pings_are_answered() {
    for class in Class::BOTH {
        let mut harness = Harness::new(19);
        harness.attach();
        let session = harness.accept(1);
        let begun = harness.now;
        let other = if class == Class::Data { Class::Meta } else { Class::Data };
        let out = loop {
            harness.until(|action| *action == Action::LookAtLinks);
            harness.ack(session, MAX);
            assert!(harness.handle(seen(session, other, 0)).is_empty());
            let out = harness.handle(seen(session, class, 1));
            if !out.is_empty() {
                break out;
            }
        };
        let Some(EndCause::Dead(of, time)) = ended(&out) else { panic!("{out:?}") };
        assert!(of == class && time >= PING * MAX && told(&out) == [0], "{out:?}");
        let took = harness.now - begun;
        assert!(took <= PING * MAX * 3 / 2, "{class}: {took:?}");
        assert!(harness.handle(seen(session, class, 1)).is_empty(), "told once");
    }
}

/// A link of a user that is not allowed neither takes the place of the kernel module's nor makes a pair with it.
#[test]
fn only_links_of_one_allowed_user_attach() {
    let mut harness = Harness::new(14);
    let hello = |class, conn, uid| Event::KernelHello { class, conn: ConnId(conn), uid };
    let refused = |conn, why| [Action::RefuseKernel { conn: ConnId(conn), why }];
    for (conn, uid) in [(900, Some(1000)), (901, None)] {
        assert_eq!(harness.handle(hello(Class::Data, conn, uid)), refused(conn, KernelRefusal::User));
    }
    harness.handle(hello(Class::Data, 902, Some(0)));
    assert_eq!(harness.handle(hello(Class::Meta, 903, Some(1000))), refused(903, KernelRefusal::User));
    assert_eq!(harness.core.completes_kernel(Class::Meta, Some(1000)), None);
    let out = harness.handle(hello(Class::Meta, 904, Some(0)));
    assert!(out.iter().any(|action| matches!(action, Action::AttachKernel { .. })), "{out:?}");
}
