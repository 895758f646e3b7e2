//! The core, a decision at a time: each test owns the clock and says what happens.
//!
//! Whole nodes together, under faults, are tried by the simulation (`tests/sim.rs`).

mod desk;

use super::*;
use desk::*;

/// Failure mode 15: a refusal does not burn the tries of a round.
#[test]
fn fm15_attempts_wait_1_2_4_8_16_seconds_and_begin_again_at_the_connect_tick() {
    for seed in 0..20 {
        let mut desk = Desk::new(seed);
        let (mut attempt, first) = desk.next_dial();
        assert_eq!(first, Moment::ZERO);
        for secs in [1.0, 2.0, 4.0, 8.0, 16.0] {
            let failed = desk.now;
            desk.handle(Event::DialFailed { peer: node(CALLED), attempt });
            let (next, at) = desk.next_dial();
            assert!(is_wait(at - failed, secs), "{:?} instead of {secs} s", at - failed);
            attempt = next;
        }
        let failed = desk.now;
        desk.handle(Event::DialFailed { peer: node(CALLED), attempt });
        let (_, at) = desk.next_dial();
        assert!(at - failed <= CONNECT_TICK);
        assert_eq!(at.as_nanos() % CONNECT_TICK.as_nanos(), 0);
    }
}

#[test]
fn a_report_that_never_comes_is_not_waited_for() {
    let mut desk = Desk::new(1);
    let (attempt, begun) = desk.next_dial();
    let (ready, _) = desk.link(CALLED, Class::Data, Via::Dialed(attempt));
    let out = desk.until(|action| matches!(action, Action::CancelDial { .. }));
    assert_eq!(desk.now - begun, ATTEMPT_LIMIT);
    assert!(out.contains(&Action::CancelDial { attempt }) && out.contains(&Action::Close { conn: ready }));
    let (late, out) = desk.link(CALLED, Class::Meta, Via::Dialed(attempt));
    assert_eq!(out, [Action::Close { conn: late }]);
    assert!(desk.handle(Event::DialFailed { peer: node(CALLED), attempt }).is_empty());
    assert_ne!(desk.next_dial().0, attempt);
}

#[test]
fn sessions_that_flap_are_called_later_and_later_and_steady_ones_at_once() {
    let mut desk = Desk::new(3);
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
        let (attempt, at) = desk.next_dial();
        let waited = ended.map_or(Duration::ZERO, |ended| at - ended);
        assert!(is_wait(waited, wait), "{waited:?} instead of {wait} s");
        desk.link(CALLED, Class::Meta, Via::Dialed(attempt));
        let session = started(&desk.link(CALLED, Class::Data, Via::Dialed(attempt)).1).unwrap();
        desk.now += age;
        desk.handle(lost(session, CALLED));
        ended = Some(desk.now);
    }
}

#[test]
fn a_knock_calls_at_once_but_not_more_often_than_once_a_second() {
    let mut desk = Desk::new(4);
    let knock = || Event::Knock { peer: node(CALLED) };
    let (attempt, begun) = desk.next_dial();
    assert!(desk.handle(knock()).is_empty(), "an attempt is in flight");
    desk.handle(Event::DialFailed { peer: node(CALLED), attempt });
    assert_eq!(dialed(&desk.handle(knock())), None);
    let (attempt, at) = desk.next_dial();
    assert!(at - begun <= SECOND && at - begun >= SECOND.mul_f64(0.8));
    desk.handle(Event::DialFailed { peer: node(CALLED), attempt });
    desk.now += SECOND;
    assert!(dialed(&desk.handle(knock())).is_some(), "the second has passed");
    assert!(desk.handle(Event::Knock { peer: node(CALLER) }).is_empty(), "this side does not call node 3");
}

#[test]
fn two_links_of_one_epoch_make_a_session_and_of_two_epochs_do_not() {
    let mut desk = Desk::new(5);
    let (first, out) = desk.link(CALLER, Class::Data, accepted(Some(1)));
    assert!(out.is_empty());
    let (second, out) = desk.link(CALLER, Class::Meta, accepted(Some(2)));
    assert_eq!(out, [Action::Close { conn: first }]);
    let (third, out) = desk.link(CALLER, Class::Data, accepted(Some(2)));
    let session = started(&out).unwrap();
    let peer = node(CALLER);
    assert_eq!(
        out,
        [
            Action::StartSession { peer, session, data: third, meta: second },
            Action::OpenSession { peer, session }
        ]
    );
    // A caller without the extension names no epoch: its links are taken as they come.
    let mut desk = Desk::new(5);
    desk.link(CALLER, Class::Meta, accepted(None));
    assert!(started(&desk.link(CALLER, Class::Data, accepted(None)).1).is_some());
}

#[test]
fn a_half_session_is_given_up_after_its_time() {
    let mut desk = Desk::new(6);
    desk.now += SECOND;
    let (conn, _) = desk.link(CALLER, Class::Data, accepted(Some(1)));
    let begun = desk.now;
    desk.until(|action| *action == Action::Close { conn });
    assert_eq!(desk.now - begun, HALF_LIMIT);
    let (next, out) = desk.link(CALLER, Class::Meta, accepted(Some(1)));
    assert!(out.is_empty(), "{next:?} waits anew");
}

/// Failure mode 17: a peer that comes back is let in at once.
#[test]
fn fm17_a_new_hello_replaces_the_session_and_the_kernel_module_hears_of_both() {
    let mut desk = Desk::new(7);
    desk.attach();
    let old = desk.accept(1);
    let (_, out) = desk.link(CALLER, Class::Meta, accepted(Some(2)));
    assert!(out.is_empty(), "one link alone ends nothing");
    let (_, out) = desk.link(CALLER, Class::Data, accepted(Some(2)));
    assert_eq!(ended(&out), Some(EndCause::Replaced));
    let told = out.iter().filter_map(|action| match action {
        Action::TellKernel { state } => Some(state.nodes.0),
        _ => None,
    });
    assert_eq!(told.collect::<Vec<_>>(), [0, 1 << CALLER]);
    assert!(matches!(out.last(), Some(Action::OpenSession { .. })), "told before it is read");
    assert!(desk.handle(lost(old, CALLER)).is_empty(), "the old session's end is no news");
}

/// Where addresses are not checked, links from two addresses are no pair, and none of them ends a session.
#[test]
fn links_from_two_addresses_replace_nothing() {
    let mut desk = Desk::new(7);
    let old = desk.accept(1);
    let stranger = Via::Accepted { epoch: None, source: [10, 0, 0, 9].into() };
    let (first, out) = desk.link(CALLER, Class::Data, stranger);
    assert!(out.is_empty());
    let (second, out) = desk.link(CALLER, Class::Meta, accepted(None));
    assert_eq!(out, [Action::Close { conn: first }]);
    // What waits is given up after its time, and the session goes on.
    let begun = desk.now;
    let until = |desk: &mut Desk, conn| {
        loop {
            desk.ack(old, 1);
            let out = desk.until(|_| true);
            if out.contains(&Action::Close { conn }) {
                return ended(&out);
            }
        }
    };
    assert_eq!(until(&mut desk, second), None);
    assert_eq!(desk.now - begun, HALF_LIMIT);
    // When the session ends, the link that is there is half of the next one.
    let (third, _) = desk.link(CALLER, Class::Data, accepted(Some(2)));
    desk.handle(lost(old, CALLER));
    let (fourth, out) = desk.link(CALLER, Class::Meta, accepted(Some(2)));
    let session = started(&out).unwrap();
    let peer = node(CALLER);
    assert_eq!(out[0], Action::StartSession { peer, session, data: third, meta: fourth });
}

/// Without epochs a half pair left behind may be joined to a link of the next call: the other link of that call
/// must not wait for long.
#[test]
fn a_session_of_two_calls_ends_when_the_rest_of_the_second_comes() {
    let mut desk = Desk::new(7);
    desk.link(CALLER, Class::Data, accepted(None));
    assert!(started(&desk.link(CALLER, Class::Meta, accepted(None)).1).is_some());
    let (_, out) = desk.link(CALLER, Class::Data, accepted(None));
    assert_eq!((ended(&out), started(&out)), (Some(EndCause::Replaced), None));
    let session = started(&desk.link(CALLER, Class::Meta, accepted(None)).1).unwrap();
    desk.now += HALF_LIMIT;
    desk.ack(session, MAX);
    assert!(desk.link(CALLER, Class::Data, accepted(None)).1.is_empty(), "a call of its own");
}

#[test]
fn a_peer_that_this_side_calls_is_not_let_in() {
    let mut desk = Desk::new(8);
    let (conn, out) = desk.link(CALLED, Class::Data, accepted(Some(1)));
    assert_eq!(out, [Action::Close { conn }]);
    let conn = desk.conn();
    let out = desk.handle(Event::LinkReady { peer: site(), class: Class::Data, conn, via: accepted(None) });
    assert_eq!(out, [Action::Close { conn }], "not the owner of that log");
}

/// Failure mode 16: a peer that cannot be reached does not disturb the heartbeats of the others.
#[test]
fn fm16_a_silent_peer_is_given_up_in_time_while_another_cannot_be_reached() {
    let mut desk = Desk::new(9);
    desk.attach();
    desk.accept(1);
    let begun = desk.now;
    let out = desk.until(|action| matches!(action, Action::EndSession { .. }));
    assert_eq!((ended(&out), told(&out)), (Some(EndCause::Heartbeat), vec![0]));
    let took = desk.now - begun;
    assert!(took >= PING * (MAX + 1) && took <= PING * (MAX + 2), "{took:?}");
}

#[test]
fn the_count_of_unanswered_pings_does_not_go_below_zero() {
    let mut desk = Desk::new(10);
    let session = desk.accept(1);
    desk.ack(session, 1000);
    for unanswered in 1..=MAX {
        assert_eq!(pinged(&desk.until(|action| matches!(action, Action::Ping { .. }))), Some(unanswered));
    }
    desk.ack(session, MAX - 1);
    desk.ack(SessionId(u64::MAX), MAX);
    assert_eq!(pinged(&desk.until(|action| matches!(action, Action::Ping { .. }))), Some(2));
}

#[test]
fn a_stalled_daemon_judges_nobody() {
    let mut desk = Desk::new(11);
    desk.accept(1);
    for _ in 0..MAX {
        desk.until(|action| matches!(action, Action::Ping { .. }));
    }
    let out = desk.stall(PING + PING / 2 + Duration::from_millis(1));
    assert!(out.contains(&Action::Stalled));
    assert_eq!((ended(&out), pinged(&out), desk.core.stalls()), (None, Some(1), 1));
}

/// The timer thread may run before the threads that read the ACKs.
#[test]
fn acks_that_wait_unread_after_a_short_stall_are_waited_for() {
    let mut desk = Desk::new(12);
    let session = desk.accept(1);
    for _ in 0..MAX {
        desk.until(|action| matches!(action, Action::Ping { .. }));
    }
    assert_eq!(ended(&desk.stall(PING + PING / 3)), None);
    assert_eq!(ended(&desk.stall(PING / 3)), None, "stalled again");
    desk.ack(session, MAX);
    assert_eq!(pinged(&desk.until(|action| matches!(action, Action::Ping { .. }))), Some(1));
}

#[test]
fn a_half_kernel_module_is_given_up_after_its_time_and_a_second_one_is_refused() {
    let mut desk = Desk::new(13);
    let (half, twin) = (desk.conn(), desk.conn());
    let hello = |class, conn| Event::KernelHello { class, conn };
    assert_eq!(desk.handle(hello(Class::Meta, half)), [Action::AckKernel { conn: half, class: Class::Meta }]);
    assert_eq!(desk.handle(hello(Class::Meta, twin)), [Action::RefuseKernel { conn: twin }]);
    desk.until(|action| *action == Action::Close { conn: half });
    assert_eq!(desk.now, HALF_LIMIT);
    desk.attach();
    for class in Class::BOTH {
        let conn = desk.conn();
        assert_eq!(desk.handle(hello(class, conn)), [Action::RefuseKernel { conn }]);
    }
}

#[test]
fn a_lost_half_kernel_module_makes_room_at_once() {
    let mut desk = Desk::new(14);
    let conn = desk.conn();
    desk.handle(Event::KernelHello { class: Class::Data, conn });
    assert!(desk.handle(Event::ConnLost { conn: ConnId(999) }).is_empty());
    assert_eq!(desk.handle(Event::ConnLost { conn }), [Action::Close { conn }]);
    desk.attach();
}

/// Failure modes 1 and 2: the kernel module hears at once, also when nobody is left, and on each tick.
#[test]
fn fm01_fm02_the_kernel_module_is_told_at_once_also_of_the_empty_set() {
    let mut desk = Desk::new(15);
    let session = desk.accept(1);
    let attach = desk.attach();
    assert_eq!(told(&desk.handle(lost(session, CALLER))), [0]);
    for _ in 0..3 {
        let out = desk.until(|action| matches!(action, Action::TellKernel { .. }));
        assert_eq!((told(&out), desk.now.as_secs() % 5), (vec![0], 0));
    }
    let session = desk.accept(2);
    let out = desk.handle(Event::KernelLost { attach, why: "gone".into() });
    assert_eq!((ended(&out), told(&out)), (Some(EndCause::KernelDetached), vec![]));
    assert!(desk.handle(lost(session, CALLER)).is_empty());
    assert!(desk.handle(Event::KernelLost { attach, why: "gone".into() }).is_empty());
}

#[test]
fn a_session_that_lost_data_while_nobody_was_attached_ends_before_the_next_one_is_told() {
    let mut desk = Desk::new(16);
    let session = desk.accept(1);
    let dropped = |session| Event::DataDropped { peer: node(CALLER), session };
    assert!(desk.handle(dropped(session)).is_empty());
    let (data, meta) = (desk.conn(), desk.conn());
    desk.handle(Event::KernelHello { class: Class::Data, conn: data });
    let out = desk.handle(Event::KernelHello { class: Class::Meta, conn: meta });
    assert_eq!((ended(&out), told(&out)), (Some(EndCause::DataDropped), vec![0]));
    // A report that comes when the kernel module is attached already is as true.
    let session = desk.accept(2);
    assert!(desk.handle(dropped(SessionId(u64::MAX))).is_empty());
    assert_eq!(ended(&desk.handle(dropped(session))), Some(EndCause::DataDropped));
}

#[test]
fn an_unwanted_peer_is_let_go_and_called_again_when_it_is_wanted() {
    let mut desk = Desk::new(17);
    let want = |peer, wanted| Event::Wanted { peer, wanted };
    let (attempt, _) = desk.next_dial();
    let (ready, _) = desk.link(CALLED, Class::Data, Via::Dialed(attempt));
    let out = desk.handle(want(node(CALLED), false));
    assert_eq!(out, [Action::CancelDial { attempt }, Action::Close { conn: ready }]);
    assert!(desk.handle(Event::Knock { peer: node(CALLED) }).is_empty());
    assert!(dialed(&desk.handle(want(node(CALLED), true))).is_some());
    assert!(dialed(&desk.handle(want(site(), true))).is_some(), "a log came to this node");
    desk.attach();
    desk.accept(1);
    let out = desk.handle(want(node(CALLER), false));
    assert_eq!((ended(&out), told(&out)), (Some(EndCause::Unwanted), vec![0]));
    let (conn, out) = desk.link(CALLER, Class::Data, accepted(Some(2)));
    assert_eq!(out, [Action::Close { conn }]);
}

/// Failure mode 37: an orderly end.
#[test]
fn fm37_stop_is_said_once_and_nothing_begins_after_it() {
    let mut desk = Desk::new(18);
    assert_eq!(desk.handle(Event::ModuleGone), [Action::Stop { drain: DRAIN_LIMIT, code: 1 }]);
    assert!(desk.handle(Event::Stop).is_empty());
    let (conn, out) = desk.link(CALLER, Class::Data, accepted(Some(1)));
    assert_eq!(out, [Action::Close { conn }]);
    let conn = desk.conn();
    let hello = Event::KernelHello { class: Class::Data, conn };
    assert_eq!(desk.handle(hello), [Action::RefuseKernel { conn }]);
    assert!(desk.stall(SECOND * 60).is_empty());
}

/// A peer that takes part again and again without reading would hold up the others most of the time.
#[test]
fn a_peer_that_never_keeps_up_is_held_off_longer_each_time() {
    let mut desk = Desk::new(17);
    let hold = desk.core.settings.slow_timeout;
    for (epoch, wait) in [(1, Duration::ZERO), (2, hold), (3, hold * 2), (4, hold * 4)] {
        let session = desk.accept(epoch);
        desk.now += hold;
        desk.handle(Event::SessionLost { peer: node(CALLER), session, cause: EndCause::Slow });
        let (conn, out) = desk.link(CALLER, Class::Data, accepted(None));
        assert_eq!(out == [Action::Close { conn }], !wait.is_zero(), "after session {epoch}");
        desk.now += wait;
    }
    // One that lived on is forgiven.
    let session = desk.accept(5);
    desk.now += hold * 3;
    desk.handle(lost(session, CALLER));
    let session = desk.accept(6);
    desk.handle(Event::SessionLost { peer: node(CALLER), session, cause: EndCause::Slow });
    desk.accept(7);
}
