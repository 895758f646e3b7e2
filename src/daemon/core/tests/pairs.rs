//! Links on their way to sessions: which two make a pair, what a new pair replaces, and which link is given up.
//!
//! Each test owns the clock and chooses the events, as in the parent.

use super::harness::*;
use super::*;

#[test]
fn two_links_of_one_epoch_make_a_session_and_of_two_epochs_do_not() {
    let mut harness = Harness::new(5);
    let (first, out) = harness.link(CALLER, Class::Data, accepted(Some(1)));
    assert!(out.is_empty());
    let (second, out) = harness.link(CALLER, Class::Meta, accepted(Some(2)));
    assert_eq!(out, [Action::Close { conn: first }]);
    let (third, out) = harness.link(CALLER, Class::Data, accepted(Some(2)));
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
    let mut harness = Harness::new(5);
    harness.link(CALLER, Class::Meta, accepted(None));
    assert!(started(&harness.link(CALLER, Class::Data, accepted(None)).1).is_some());
}

#[test]
fn a_half_session_is_given_up_after_its_time() {
    let mut harness = Harness::new(6);
    harness.now += SECOND;
    let (conn, _) = harness.link(CALLER, Class::Data, accepted(Some(1)));
    let begun = harness.now;
    harness.until(|action| *action == Action::Close { conn });
    assert_eq!(harness.now - begun, HALF_LIMIT);
    let (next, out) = harness.link(CALLER, Class::Meta, accepted(Some(1)));
    assert!(out.is_empty(), "{next:?} waits anew");
}

/// Failure mode 17: a peer that comes back is accepted at once.
#[test]
fn fm17_a_new_hello_replaces_the_session_and_the_kernel_module_hears_of_both() {
    let mut harness = Harness::new(7);
    harness.attach();
    let old = harness.accept(1);
    let (_, out) = harness.link(CALLER, Class::Meta, accepted(Some(2)));
    assert!(out.is_empty(), "one link alone ends nothing");
    let (_, out) = harness.link(CALLER, Class::Data, accepted(Some(2)));
    assert_eq!(ended(&out), Some(EndCause::Replaced));
    let told = out.iter().filter_map(|action| match action {
        Action::TellKernel { state } => Some(state.nodes.0),
        _ => None,
    });
    assert_eq!(told.collect::<Vec<_>>(), [0, 1 << CALLER]);
    assert!(matches!(out.last(), Some(Action::OpenSession { .. })), "told before it is read");
    assert!(harness.handle(lost(old, CALLER)).is_empty(), "the old session's end is no news");
}

/// If addresses are not checked, links from two addresses do not make a pair, and neither ends a session.
#[test]
fn links_from_two_addresses_replace_nothing() {
    let mut harness = Harness::new(7);
    let old = harness.accept(1);
    let unknown = Via::Accepted { epoch: None, source: [10, 0, 0, 9].into() };
    let (first, out) = harness.link(CALLER, Class::Data, unknown);
    assert!(out.is_empty());
    let (second, out) = harness.link(CALLER, Class::Meta, accepted(None));
    assert_eq!(out, [Action::Close { conn: first }]);
    // The waiting link is given up after its time, and the session goes on.
    let begun = harness.now;
    let until = |harness: &mut Harness, conn| {
        loop {
            harness.ack(old, 1);
            let out = harness.until(|_| true);
            if out.contains(&Action::Close { conn }) {
                return ended(&out);
            }
        }
    };
    assert_eq!(until(&mut harness, second), None);
    assert_eq!(harness.now - begun, HALF_LIMIT);
    // When the session ends, the link that is there is half of the next one.
    let (third, _) = harness.link(CALLER, Class::Data, accepted(Some(2)));
    harness.handle(lost(old, CALLER));
    let (fourth, out) = harness.link(CALLER, Class::Meta, accepted(Some(2)));
    let session = started(&out).unwrap();
    let peer = node(CALLER);
    assert_eq!(out[0], Action::StartSession { peer, session, data: third, meta: fourth });
}

/// Without epochs a half pair left behind may be joined to a link of the next call: the session ends when the half
/// that the caller does not know is found dead, and the rest of that call is half of the next session.
#[test]
fn a_lone_link_ends_no_session_of_a_caller_without_epochs() {
    let mut harness = Harness::new(7);
    harness.link(CALLER, Class::Data, accepted(None));
    let session = started(&harness.link(CALLER, Class::Meta, accepted(None)).1).unwrap();
    let (rest, out) = harness.link(CALLER, Class::Data, accepted(None));
    assert!(out.is_empty(), "one link alone ends nothing: {out:?}");
    assert_eq!(
        ended(&harness.handle(lost(session, CALLER))),
        Some(EndCause::Link(Class::Data, "gone".into(), None))
    );
    let (meta, out) = harness.link(CALLER, Class::Meta, accepted(None));
    let (peer, session) = (node(CALLER), started(&out).unwrap());
    assert_eq!(out[0], Action::StartSession { peer, session, data: rest, meta });
    // Both links of a new call replace it, however young it is.
    harness.link(CALLER, Class::Meta, accepted(None));
    let (_, out) = harness.link(CALLER, Class::Data, accepted(None));
    assert_eq!((ended(&out), started(&out).is_some()), (Some(EndCause::Replaced), true));
}

/// Without epochs a half pair left behind may be joined to the first link of the next call; the other link of that
/// call shows it. Links that came together are of one call, and no later link ends their session.
#[test]
fn a_session_of_two_calls_ends_when_the_rest_of_the_second_comes() {
    let mut harness = Harness::new(7);
    harness.link(CALLER, Class::Data, accepted(None));
    harness.now += Duration::from_millis(200);
    assert!(started(&harness.link(CALLER, Class::Meta, accepted(None)).1).is_some());
    let unknown = Via::Accepted { epoch: None, source: [10, 0, 0, 9].into() };
    assert!(ended(&harness.link(CALLER, Class::Data, unknown).1).is_none(), "from elsewhere");
    let (_, out) = harness.link(CALLER, Class::Data, accepted(None));
    assert_eq!((ended(&out), started(&out)), (Some(EndCause::Replaced), None));
    let session = started(&harness.link(CALLER, Class::Meta, accepted(None)).1).unwrap();
    // This pair came together.
    let out = harness.link(CALLER, Class::Data, accepted(None)).1;
    assert!(out.is_empty(), "{out:?}");
    harness.handle(lost(session, CALLER));
    // Too late for the rest of a call.
    let mut harness = Harness::new(7);
    harness.link(CALLER, Class::Meta, accepted(None));
    harness.now += Duration::from_secs(2);
    assert!(started(&harness.link(CALLER, Class::Data, accepted(None)).1).is_some());
    harness.now += Duration::from_millis(1100);
    assert!(harness.link(CALLER, Class::Meta, accepted(None)).1.is_empty());
}

#[test]
fn a_peer_that_this_side_calls_is_not_let_in() {
    let mut harness = Harness::new(8);
    let (conn, out) = harness.link(CALLED, Class::Data, accepted(Some(1)));
    assert_eq!(out, [Action::Close { conn }]);
    let conn = harness.conn();
    let out =
        harness.handle(Event::LinkReady { peer: site(), class: Class::Data, conn, via: accepted(None) });
    assert_eq!(out, [Action::Close { conn }], "not the owner of that log");
}
