//! The verdict whether one link of a session is alive, from the counters that this machine's system keeps of it.
//!
//! Each link is judged by itself: heartbeats on the meta link say nothing about the data link. A peer that reads
//! nothing is alive as long as its system answers. Pure; called by `peer` and the core with each look.

use std::time::Duration;

use super::types::{LinkSight, Moment, Settings};

/// Looks within the time for which nothing may be acknowledged: enough to give up at most an eighth too late.
const LOOKS: u32 = 8;
/// Shortest time after which a link may be judged: shorter than that, a few lost packets would do it.
const LEAST: Duration = Duration::from_secs(1);
/// Probes to an idle peer that must be unanswered: one or two may have been lost.
const UNANSWERED: u32 = 3;
/// With a closed window, this many times the wait before the system's next retransmission may pass without an answer.
const REPEATS: u32 = 3;

impl Settings {
    /// Returns the time for which nothing may be acknowledged on a link: the heartbeat's time or `slow_timeout`, the
    /// shorter one, but at least a second.
    pub fn link_limit(&self) -> Duration {
        self.ping_interval.saturating_mul(self.max_ping_count).min(self.slow_timeout).max(LEAST)
    }

    /// Time between two looks at the links.
    pub(super) fn link_look(&self) -> Duration {
        self.link_limit() / LOOKS
    }
}

/// The observations of one link.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Watch {
    /// Bytes that were acknowledged when the count last moved.
    acked: u64,
    /// The time since which something waits to be acknowledged and nothing is.
    stuck: Option<Moment>,
}

impl Watch {
    /// Starts afresh after a late look: what is stuck now may have begun just now.
    pub fn forget(&mut self) {
        self.stuck = None;
    }

    /// Takes a look; returns for how long nothing was acknowledged, once that is too long.
    pub fn judge(&mut self, now: Moment, sight: &LinkSight, limit: Duration) -> Option<Duration> {
        let moved = match sight.acked {
            Some(acked) => std::mem::replace(&mut self.acked, acked) != acked,
            None => sight.acked_ago < limit,
        };
        // A system whose window is closed answers every retransmission; where the window's state is not known, every
        // answer counts as one of these.
        let patience = limit.max(sight.repeat.saturating_mul(REPEATS));
        let full = sight.shut != Some(false) && sight.acked_ago < patience;
        if sight.unacked == 0 || moved || full {
            self.stuck = None;
        } else {
            let since = *self.stuck.get_or_insert(now);
            let waited = now.saturating_sub(since);
            if waited >= limit {
                return Some(waited);
            }
        }
        (sight.unanswered >= UNANSWERED && sight.heard_ago >= limit).then_some(sight.heard_ago)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(2);

    fn idle() -> LinkSight {
        LinkSight {
            unacked: 0,
            acked: Some(1000),
            unanswered: 0,
            repeat: Duration::from_millis(200),
            acked_ago: Duration::from_secs(100),
            heard_ago: Duration::from_secs(100),
            shut: Some(false),
        }
    }

    /// Looks twice a second for `n` seconds; `of` gives the sight of each second.
    fn seconds(n: u32, of: impl Fn(u32) -> LinkSight) -> Option<Duration> {
        let mut watch = Watch::default();
        (0..2 * n).find_map(|at| watch.judge(Duration::from_millis(500) * at, &of(at / 2), LIMIT))
    }

    #[test]
    fn an_idle_link_is_alive_however_long_nothing_came() {
        assert_eq!(seconds(60, |_| idle()), None);
    }

    #[test]
    fn bytes_that_are_not_acknowledged_end_it_whatever_else_is_answered() {
        let stuck = LinkSight { unacked: 1, acked_ago: Duration::ZERO, heard_ago: Duration::ZERO, ..idle() };
        assert_eq!(seconds(60, |_| stuck), Some(Duration::from_millis(2000)));
        let slow = |at: u32| LinkSight { acked: Some(at.into()), ..stuck };
        assert_eq!(seconds(60, slow), None, "a few bytes a second are life");
    }

    #[test]
    fn a_shut_window_that_is_answered_is_life_and_one_that_is_not_is_none() {
        let full = LinkSight { shut: Some(true), acked_ago: Duration::from_secs(1), ..idle() };
        assert_eq!(seconds(60, |_| LinkSight { unacked: 5, ..full }), None);
        let rare = Duration::from_secs(50);
        let patient = LinkSight { unacked: 5, repeat: rare, acked_ago: rare * 2, unanswered: 2, ..full };
        assert_eq!(seconds(60, |_| patient), None, "the system asks seldom by now");
        let dead = |at: u32| LinkSight { unacked: 5, acked_ago: Duration::from_secs(at.into()), ..full };
        assert_eq!(seconds(60, dead), Some(LIMIT));
        assert!(seconds(60, |_| LinkSight { unanswered: 3, ..full }).is_some());
    }

    #[test]
    fn an_idle_link_that_answers_no_question_is_dead() {
        let asked =
            |at: u32| LinkSight { unanswered: at, heard_ago: Duration::from_secs(at.into()), ..idle() };
        assert_eq!(seconds(60, asked), Some(Duration::from_secs(3)));
        let flaky = |at: u32| LinkSight {
            unanswered: at % 3,
            heard_ago: Duration::from_secs((at % 3).into()),
            ..idle()
        };
        assert_eq!(seconds(60, flaky), None);
    }

    #[test]
    fn what_an_old_system_does_not_say_is_taken_as_life() {
        let stuck = LinkSight { unacked: 1, acked: None, shut: None, ..idle() };
        let answered = LinkSight { acked_ago: Duration::from_secs(1), ..stuck };
        assert_eq!(seconds(60, |_| answered), None);
        assert_eq!(seconds(60, |_| stuck), Some(LIMIT));
    }

    #[test]
    fn a_daemon_that_did_not_look_judges_afresh() {
        let stuck = LinkSight { unacked: 1, ..idle() };
        let mut watch = Watch::default();
        assert_eq!(watch.judge(Moment::ZERO, &stuck, LIMIT), None);
        assert_eq!(watch.judge(Duration::from_secs(1), &stuck, LIMIT), None);
        watch.forget();
        assert_eq!(watch.judge(Duration::from_secs(9), &stuck, LIMIT), None);
        assert_eq!(watch.judge(Duration::from_secs(11), &stuck, LIMIT), Some(LIMIT));
    }
}
