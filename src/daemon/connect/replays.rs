//! The calls that have proved the key lately: none proves it again and again.
//!
//! The first message of a call proves that its maker has the key, but not that its sender is the maker. To answer it
//! costs two public-key operations, some milliseconds of a small processor; a recorded message must not cause them
//! again and again. The reactor calls this for each first message that is good, and for no other.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};

/// Most calls that are remembered, of some 24 bytes each: those of 31 peers that come and go every second, for two
/// minutes. Recorded calls beyond that number get a few answers each.
const REMEMBERED: usize = 8192;
/// Most answers to the same first message: a machine that was set back to an earlier moment may draw the same numbers
/// once more, has the key all the same, and can confirm it.
const ANSWERS: u8 = 4;

/// The first messages that came, by a hash that nobody outside can compute.
#[derive(Debug, Default)]
pub(super) struct Replays {
    hasher: RandomState,
    /// The number of times that each message came.
    known: HashMap<u64, u8>,
    order: VecDeque<u64>,
}

impl Replays {
    /// Remembers a first message. Returns false if it came too often.
    pub fn may_answer(&mut self, message: &[u8]) -> bool {
        let mark = self.hasher.hash_one(message);
        if let Some(count) = self.known.get_mut(&mark) {
            *count = count.saturating_add(1);
            return *count <= ANSWERS;
        }
        if self.order.len() >= REMEMBERED {
            self.order.pop_front().map(|oldest| self.known.remove(&oldest));
        }
        self.known.insert(mark, 1);
        self.order.push_back(mark);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_answered_a_few_times_and_the_oldest_are_forgotten() {
        let mut replays = Replays::default();
        for n in 0..=REMEMBERED {
            let answered = (0..100).filter(|_| replays.may_answer(&n.to_le_bytes())).count();
            assert_eq!(answered, usize::from(ANSWERS));
        }
        assert_eq!((replays.known.len(), replays.order.len()), (REMEMBERED, REMEMBERED));
        assert!(replays.may_answer(&0_usize.to_le_bytes()));
        assert!(!replays.may_answer(&REMEMBERED.to_le_bytes()));
    }
}
