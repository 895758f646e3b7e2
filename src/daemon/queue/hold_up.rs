//! The time for which one queue has held up the reader that fills it, and the limit of that time.
//!
//! A reader that waits for one queue reads nothing for the others. Time counts here, and bytes only where they tell a
//! queue that is jammed from one that is merely slower than its source. Called by the budget for a reader that waits;
//! knows no clock, no queue and no lock, and must never decide what becomes of the peer.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The time over which hold-ups are added up, in multiples of the allowed time: a tenth of the time may be lost.
pub const WINDOW: u32 = 10;
/// Parts of the allowed time in which the queue's pace is looked at: enough of them that the allowed time is kept
/// to a tenth, each long enough that a busy machine's pauses even out.
const SLICES: u32 = 10;
/// A queue that empties itself in less time than this is not slow, however fast its source: a line of 70 Mbit/s
/// empties a data queue of 4 MiB in that time. Without it, every peer would be slow beside a faster source.
const EMPTIES_WITHIN: Duration = Duration::from_millis(500);
/// A queue of which less than this part moves in the allowed time is jammed, whether or not it holds up others.
const MOVED_PART: usize = 64;

/// The state of a queue when its waiter looks.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// The time since which the reader has waited, or of its last look.
    pub from: Instant,
    /// The time of this look.
    pub now: Instant,
    /// Bytes that have ever left the queue; may wrap.
    pub moved: usize,
    /// Ceiling of the queue in bytes.
    pub ceiling: usize,
}

/// The hold-ups by one queue, over the last `WINDOW` times the allowed time.
#[derive(Debug, Default)]
pub struct HoldUps {
    /// The present part of the time; waits that follow closely are in one.
    slice: Option<Slice>,
    /// Past slices that counted: the end of each, and the time for which the reader had waited in it.
    counted: VecDeque<(Instant, Duration)>,
    /// The time for which the reader has waited since the queue moved; `still_moved` are the bytes moved by then.
    still: Duration,
    still_moved: usize,
}

#[derive(Debug)]
struct Slice {
    begin: Instant,
    end: Instant,
    moved: usize,
    waited: Duration,
}

impl HoldUps {
    /// Adds a wait, or a part of it. Returns the time until the next look at the latest, `None` if the reader has
    /// been held up too long: for `allowed` in any `WINDOW` times that, or with next to nothing moving for
    /// `allowed`. `others_idle` is true if another queue could take more than it gets: nobody else is held up
    /// otherwise.
    pub fn add(
        &mut self,
        look: Look,
        allowed: Duration,
        others_idle: impl FnOnce() -> bool,
    ) -> Option<Duration> {
        let Look { now, moved, ceiling, .. } = look;
        let length = allowed.checked_div(SLICES).unwrap_or_default();
        // Two readers may wait for one queue: the time is the same.
        let from = self.slice.as_ref().map_or(look.from, |slice| look.from.max(slice.end)).min(now);
        let waited = now.saturating_duration_since(from);
        if moved.wrapping_sub(self.still_moved) >= (ceiling / MOVED_PART).max(1) {
            (self.still, self.still_moved) = (Duration::ZERO, moved);
        } else {
            self.still = self.still.saturating_add(waited);
        }
        let near = self.slice.take().filter(|slice| from.saturating_duration_since(slice.end) <= length);
        let mut slice = near.unwrap_or(Slice { begin: from, end: from, moved, waited: Duration::ZERO });
        slice.waited = slice.waited.saturating_add(waited);
        slice.end = now;
        let lasted = now.saturating_duration_since(slice.begin);
        if lasted >= length && !slice.waited.is_zero() {
            let took = moved.wrapping_sub(slice.moved) as u128;
            let pace = took.saturating_mul(EMPTIES_WITHIN.as_micros());
            if pace < (ceiling as u128).saturating_mul(lasted.as_micros()) && others_idle() {
                self.counted.push_back((now, slice.waited));
            }
            slice = Slice { begin: now, end: now, moved, waited: Duration::ZERO };
        }
        let left = length.saturating_sub(now.saturating_duration_since(slice.begin));
        self.slice = Some(slice);
        let window = allowed.saturating_mul(WINDOW);
        while self.counted.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > window) {
            self.counted.pop_front();
        }
        let held: Duration = self.counted.iter().map(|(_, waited)| *waited).sum();
        let within = held < allowed && self.still < allowed;
        // Never a sleep of no length: the clock may be coarser than the rest of the time.
        within.then(|| left.min(allowed.saturating_sub(self.still)).max(Duration::from_millis(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CEILING: usize = 4 << 20;
    const ALLOWED: Duration = Duration::from_secs(2);
    const STEP: Duration = Duration::from_millis(10);

    /// Waits in each step for which `wait` returns the bytes moved by then. Returns the time after which the wait was
    /// too long.
    fn run(seconds: u64, others_idle: bool, wait: impl Fn(Duration) -> Option<usize>) -> Option<Duration> {
        let mut hold_ups = HoldUps::default();
        let begin = Instant::now();
        let mut at = Duration::ZERO;
        while at < Duration::from_secs(seconds) {
            let from = begin + at;
            at += STEP;
            let Some(moved) = wait(at) else { continue };
            let look = Look { from, now: begin + at, moved, ceiling: CEILING };
            if hold_ups.add(look, ALLOWED, || others_idle).is_none() {
                return Some(at);
            }
        }
        None
    }

    fn steady(bytes_a_second: usize) -> impl Fn(Duration) -> Option<usize> {
        move |at| Some((at.as_millis() as usize) * (bytes_a_second / 1000))
    }

    #[test]
    fn a_jammed_queue_may_hold_up_its_reader_for_the_allowed_time() {
        for others in [true, false] {
            assert_eq!(run(60, others, |_| Some(0)), Some(ALLOWED));
            // A byte now and then is no movement.
            assert!(run(60, others, steady(1000)).is_some_and(|at| at < 2 * ALLOWED));
        }
    }

    #[test]
    fn a_steady_queue_is_too_slow_only_where_others_could_take_more() {
        for rate in [400_000, 1_000_000, 1_500_000] {
            assert_eq!(run(120, false, steady(rate)), None, "{rate} bytes a second");
            assert!(run(120, true, steady(rate)).is_some_and(|at| at <= ALLOWED + ALLOWED / SLICES));
        }
        assert_eq!(run(120, true, steady(12_000_000)), None, "slower than its source, but not slow");
    }

    /// Many bytes at once do not excuse taking nothing in between.
    #[test]
    fn lumps_with_pauses_are_held_up_all_the_same() {
        let lumps = |at: Duration| Some((at.as_millis() / 1800) as usize * 4_300_000);
        assert!(run(120, true, lumps).is_some_and(|at| at <= 3 * ALLOWED));
        assert_eq!(run(120, false, lumps), None);
    }

    #[test]
    fn hold_ups_count_for_ten_times_the_allowed_time() {
        // Held up for 1.5 s each 20 s, or each 12 s.
        let each = |seconds: u64| {
            move |at: Duration| {
                let round = at.as_millis() as u64 / (seconds * 1000);
                let waits = at.as_millis() as u64 % (seconds * 1000) < 1500;
                waits.then_some(round as usize * CEILING)
            }
        };
        assert_eq!(run(200, true, each(25)), None);
        assert!(run(200, true, each(12)).is_some_and(|at| at < Duration::from_secs(15)));
    }

    #[test]
    fn a_wait_that_two_readers_share_counts_once() {
        let mut hold_ups = HoldUps::default();
        let begin = Instant::now();
        let mut looks = 0;
        for n in 1.. {
            let look = Look { from: begin, now: begin + STEP * n, moved: 0, ceiling: CEILING };
            if hold_ups.add(look, ALLOWED, || true).is_none() {
                break;
            }
            looks = n;
        }
        assert_eq!(STEP * (looks + 1), ALLOWED);
    }
}
