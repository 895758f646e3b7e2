//! The time for which a kernel module that does not read its meta link may hold up a peer's, which carries
//! heartbeats, too.
//!
//! ```text
//!   moving --full, and next to nothing moves--> waiting --for the limit--> given up: packets are dropped
//!      ^                                           |                          |
//!      +------------------ enough has moved -------+--------------------------+
//! ```
//! Knows no queue, lock or clock: its input are looks at a full queue, and it is not called while there is space.
//! Called by the reading thread of a peer's meta link.

use std::time::Duration;

/// The part (1 / this) of a queue that has to move for progress: a packet now and then is none.
const MOVED_PART: usize = 64;
/// Shortest time until the next look: the clock may be coarser than what is left.
const LEAST: Duration = Duration::from_millis(1);

/// The changes of a full queue since the last look.
#[derive(Clone, Copy, Debug)]
pub struct QueueSight {
    /// Time that the reader has waited since then.
    pub waited: Duration,
    /// Bytes that have ever left the queue; may wrap.
    pub moved: usize,
    /// Most bytes that the queue may hold.
    pub ceiling: usize,
}

/// The patience with the kernel module for one peer's meta packets. It lasts from session to session.
#[derive(Clone, Copy, Debug, Default)]
pub struct MetaPatience {
    /// Time that the reader has waited since the queue last moved, and the bytes that had moved by then.
    still: Duration,
    moved: usize,
}

impl MetaPatience {
    /// Takes a look; returns the longest time until the next one. `None`: the kernel module has not read for `limit`,
    /// and the waiting packets are to be dropped.
    pub fn look(&mut self, sight: QueueSight, limit: Duration) -> Option<Duration> {
        if sight.moved.wrapping_sub(self.moved) >= (sight.ceiling / MOVED_PART).max(1) {
            (self.still, self.moved) = (Duration::ZERO, sight.moved);
        } else {
            self.still = self.still.saturating_add(sight.waited);
        }
        (self.still < limit).then(|| limit.saturating_sub(self.still).max(LEAST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(2);
    const CEILING: usize = 1 << 20;

    fn look(patience: &mut MetaPatience, waited: u64, moved: usize) -> Option<u64> {
        let sight = QueueSight { waited: Duration::from_millis(waited), moved, ceiling: CEILING };
        patience.look(sight, LIMIT).map(|left| left.as_millis() as u64)
    }

    #[test]
    fn a_kernel_module_that_reads_nothing_is_waited_for_once_and_for_the_limit() {
        let mut patience = MetaPatience::default();
        assert_eq!(look(&mut patience, 0, 0), Some(2000));
        assert_eq!(look(&mut patience, 1500, 0), Some(500));
        assert_eq!(look(&mut patience, 499, 0), Some(1));
        assert_eq!(look(&mut patience, 1, 0), None);
        // The reader does not wait again for the packets behind it.
        assert_eq!(look(&mut patience, 0, 0), None);
        assert_eq!(look(&mut patience, 0, CEILING / 64 - 1), None, "a packet or two are no progress");
    }

    #[test]
    fn one_that_reads_again_is_waited_for_again() {
        let mut patience = MetaPatience::default();
        assert_eq!(look(&mut patience, 2000, 0), None);
        assert_eq!(look(&mut patience, 0, CEILING / 64), Some(2000));
        assert_eq!(look(&mut patience, 1999, CEILING / 64), Some(1));
        assert_eq!(look(&mut patience, 1999, CEILING / 32), Some(2000), "slow, but it moves");
    }

    #[test]
    fn what_has_moved_may_wrap() {
        let mut patience = MetaPatience { still: LIMIT, moved: usize::MAX - 10 };
        assert_eq!(look(&mut patience, 0, CEILING / 64 - 11), Some(2000));
        assert_eq!(look(&mut patience, 0, CEILING / 64 - 11), Some(2000));
    }
}
