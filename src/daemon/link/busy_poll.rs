//! A reader that has just worked looks again for a moment before it sleeps: waking a thread takes longer than many
//! answers do.
//!
//! It looks only where that holds up nobody and brings something: see [`BusyPoll::wait`].

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

/// Most credit that a reader gains: this many waits in a row may bring nothing before it looks seldom.
const CREDIT_MAX: u8 = 4;
/// A reader without credit looks in one of this many waits, to notice that it would bring something again.
const SELDOM: u8 = 16;
/// Looks between two questions whether another thread wants to run.
const LOOKS: u32 = 64;

/// Readers of this process that look at this moment.
static LOOKING: AtomicUsize = AtomicUsize::new(0);

/// The state of one reader.
#[derive(Debug)]
pub(super) struct BusyPoll {
    limit: Duration,
    processors: usize,
    credit: u8,
    passed: u8,
}

/// One of the readers that look, until it is dropped.
struct Looking;

impl Looking {
    /// Returns `None` if the others that look would have every processor but one.
    fn begin(processors: usize) -> Option<Self> {
        let before = LOOKING.fetch_add(1, Relaxed);
        let this = Looking;
        (before.saturating_add(1) < processors).then_some(this)
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        LOOKING.fetch_sub(1, Relaxed);
    }
}

impl BusyPoll {
    /// Returns `None` where a reader must not look: without a `limit`, or with one processor.
    pub(super) fn new(limit: Duration, processors: usize) -> Option<Self> {
        let may = !limit.is_zero() && processors > 1;
        may.then_some(BusyPoll { limit, processors, credit: CREDIT_MAX, passed: 0 })
    }

    /// Looks with `is_readable` until it returns true, for at most the limit. Does not look if `runnable`, the number
    /// of threads of this machine that run or want to, is unknown or larger than the number of processors, if readers
    /// look on all processors but one, or, mostly, if looking brought nothing of late.
    pub(super) fn wait(
        &mut self,
        runnable: impl Fn() -> Option<usize>,
        mut is_readable: impl FnMut() -> bool,
    ) {
        if is_readable() {
            return;
        }
        if self.credit == 0 {
            self.passed = self.passed.saturating_add(1);
            if self.passed < SELDOM {
                return;
            }
            self.passed = 0;
        }
        let Some(_looking) = Looking::begin(self.processors) else { return };
        let since = Instant::now();
        let mut looks = 0_u32;
        loop {
            if looks % LOOKS == 0 && runnable().is_none_or(|threads| threads > self.processors) {
                return;
            }
            looks = looks.wrapping_add(1);
            if is_readable() {
                self.credit = self.credit.saturating_add(1).min(CREDIT_MAX);
                return;
            }
            if since.elapsed() >= self.limit {
                self.credit = self.credit.saturating_sub(1);
                return;
            }
            // Whatever else wants this processor goes first.
            thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::sync::{Mutex, PoisonError};

    const LIMIT: Duration = Duration::from_micros(200);
    /// Tests that look count as readers of one process.
    static ALONE: Mutex<()> = Mutex::new(());

    /// Waits once for bytes that come with look number `at`; returns the number of looks.
    fn looks(poll: &mut BusyPoll, runnable: Option<usize>, at: Option<u32>) -> u32 {
        let looks = Cell::new(0);
        poll.wait(
            || runnable,
            || {
                looks.set(looks.get() + 1);
                Some(looks.get()) == at
            },
        );
        looks.get()
    }

    #[test]
    fn it_takes_a_limit_and_a_second_processor() {
        assert!(BusyPoll::new(LIMIT, 1).is_none());
        assert!(BusyPoll::new(Duration::ZERO, 8).is_none());
        assert!(BusyPoll::new(LIMIT, 2).is_some());
    }

    #[test]
    fn it_looks_until_there_is_something_or_the_limit_is_over() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut poll = BusyPoll::new(LIMIT, 4).unwrap();
        assert_eq!(looks(&mut poll, Some(4), Some(1)), 1);
        assert_eq!(looks(&mut poll, Some(4), Some(2)), 2);
        let since = Instant::now();
        assert!(looks(&mut poll, Some(4), None) >= 2);
        assert!(since.elapsed() >= LIMIT);
    }

    #[test]
    fn it_does_not_look_where_others_want_to_run() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut poll = BusyPoll::new(Duration::from_secs(60), 4).unwrap();
        assert_eq!(looks(&mut poll, Some(5), None), 1);
        assert_eq!(looks(&mut poll, None, None), 1);
        // Others begin to run while it looks.
        let asked = Cell::new(0);
        poll.wait(
            || {
                asked.set(asked.get() + 1);
                Some(asked.get() * 2)
            },
            || false,
        );
        assert_eq!(asked.get(), 3);
    }

    #[test]
    fn one_processor_is_left_for_work() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut poll = BusyPoll::new(Duration::from_secs(60), 2).unwrap();
        let other = Looking::begin(2).unwrap();
        assert_eq!(looks(&mut poll, Some(1), None), 1);
        drop(other);
        assert_eq!(looks(&mut poll, Some(1), Some(2)), 2);
        assert_eq!(LOOKING.load(Relaxed), 0);
    }

    #[test]
    fn it_looks_seldom_where_looking_brings_nothing_and_often_again_where_it_does() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut poll = BusyPoll::new(Duration::from_nanos(1), 2).unwrap();
        let looked = |poll: &mut BusyPoll, at| (0..160).filter(|_| looks(poll, Some(1), at) > 1).count();
        assert_eq!(looked(&mut poll, None), usize::from(CREDIT_MAX) + 9);
        assert!(looked(&mut poll, Some(2)) >= 144);
    }
}
