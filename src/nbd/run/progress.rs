//! The amount of a resync that is left, its pace, and the time to its end.
//!
//! Pure: the time and the amount that is left come from outside. A look at it must never change what it says. Called by the mirror's timer.

use std::collections::VecDeque;
use std::time::Duration;

/// The rate is that of so long a time: short enough to follow it, long enough to be calm.
const WINDOW: Duration = Duration::from_secs(5);

/// Of less than this nothing can be said: a resync begins with a burst.
const LEAST: Duration = Duration::from_secs(1);

/// A resync that is under way.
#[derive(Debug, Default)]
pub(super) struct Progress {
    total: u64,
    marks: VecDeque<(Duration, u64)>,
}

impl Progress {
    /// Takes the bytes that are left at this time.
    pub fn observe(&mut self, now: Duration, left: u64) {
        self.total = self.total.max(left);
        self.marks.push_back((now, left));
        // The last mark at or before the window's begin stays.
        while self.marks.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= WINDOW) {
            self.marks.pop_front();
        }
    }

    /// Bytes that there were to be looked at.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Bytes a second of late.
    pub fn rate(&self) -> u64 {
        let (Some((from, before)), Some((to, after))) = (self.marks.front(), self.marks.back()) else {
            return 0;
        };
        let passed = to.saturating_sub(*from);
        if passed < LEAST {
            return 0;
        }
        let bytes = u128::from(before.saturating_sub(*after)).saturating_mul(1000);
        bytes.checked_div(passed.as_millis()).and_then(|rate| u64::try_from(rate).ok()).unwrap_or_default()
    }

    /// Seconds until its end at the rate of late; `None` if it does not go on.
    pub fn seconds_left(&self) -> Option<u64> {
        let (_, left) = self.marks.back()?;
        left.checked_add(self.rate().saturating_sub(1))?.checked_div(self.rate())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_end_are_those_of_the_last_seconds() {
        let mut progress = Progress::default();
        assert_eq!((progress.rate(), progress.seconds_left()), (0, None));
        progress.observe(Duration::ZERO, 1000);
        progress.observe(Duration::from_millis(900), 1000);
        progress.observe(Duration::from_millis(950), 10);
        assert_eq!((progress.rate(), progress.seconds_left()), (0, None), "too early");
        progress = Progress::default();
        progress.observe(Duration::ZERO, 1000);
        for n in 1..=75 {
            // Nothing for five seconds, then 20 bytes each tenth of a second.
            let left = 1000 - u64::from(n).saturating_sub(50) * 20;
            progress.observe(Duration::from_millis(100) * n, left);
        }
        assert_eq!((progress.total(), progress.rate(), progress.seconds_left()), (1000, 100, Some(5)));
        assert!(progress.marks.len() < 55);
    }
}
