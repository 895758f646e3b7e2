//! Epochs: the writes between two barriers, which become stable together; and the ranges that were written in those that
//! are not stable everywhere.
//!
//! Numbers are this site's own: a follower closes an epoch at each barrier of its primary. Must never call an epoch
//! complete while a write of it is under way here. Used by the core alone.

use std::collections::VecDeque;

/// The writes of the epochs that are not known to be stable everywhere.
#[derive(Debug)]
pub struct Epochs {
    first: u64,
    /// Writes under way here, and all there were, by epoch from `first` on; the last one is open.
    counts: VecDeque<(u32, u32)>,
    recent: VecDeque<Recent>,
}

/// A range of chunks that was written in an epoch.
#[derive(Clone, Copy, Debug)]
struct Recent {
    epoch: u64,
    first: u64,
    end: u64,
}

impl Epochs {
    /// Opens this epoch, the first one, with writes of unknown number before it.
    pub fn new(first: u64) -> Self {
        Epochs { first, counts: VecDeque::from([(0, 0)]), recent: VecDeque::new() }
    }

    /// The open epoch.
    pub fn current(&self) -> u64 {
        self.first + self.counts.len() as u64 - 1
    }

    /// Begins a write of some chunks, and gives its epoch.
    pub fn begin(&mut self, chunks: std::ops::Range<u64>) -> u64 {
        let epoch = self.current();
        if let Some((under_way, all)) = self.counts.back_mut() {
            (*under_way, *all) = (*under_way + 1, *all + 1);
        }
        let recent = Recent { epoch, first: chunks.start, end: chunks.end };
        match self.recent.back_mut() {
            // One after the other, as sequential writes are.
            Some(last) if last.epoch == epoch && last.first <= recent.first && recent.first <= last.end => {
                last.end = last.end.max(recent.end);
            }
            _ => self.recent.push_back(recent),
        }
        epoch
    }

    /// A write of this epoch is done here.
    pub fn end(&mut self, epoch: u64) {
        if let Some((under_way, _)) = self.place(epoch) {
            *under_way = under_way.saturating_sub(1);
        }
    }

    fn place(&mut self, epoch: u64) -> Option<&mut (u32, u32)> {
        self.counts.get_mut(usize::try_from(epoch.checked_sub(self.first)?).ok()?)
    }

    /// Closes the open epoch and opens the next one. The closed one's number.
    pub fn close(&mut self) -> u64 {
        let closed = self.current();
        self.counts.push_back((0, 0));
        closed
    }

    /// Writes there were in the open epoch.
    pub fn in_current(&self) -> u32 {
        self.counts.back().map_or(0, |(_, all)| *all)
    }

    /// The last closed epoch up to which every write is done here.
    pub fn complete(&self) -> u64 {
        let closed = self.counts.len() - 1;
        let done = self.counts.iter().take(closed).take_while(|(under_way, _)| *under_way == 0).count();
        (self.first + done as u64).saturating_sub(1)
    }

    /// Everything up to this epoch is stable everywhere.
    pub fn settle(&mut self, stable: u64) {
        while self.first <= stable && self.counts.len() > 1 {
            self.counts.pop_front();
            self.first += 1;
        }
        while self.recent.front().is_some_and(|recent| recent.epoch <= stable) {
            self.recent.pop_front();
        }
    }

    /// The chunks written in epochs after `stable`.
    pub fn unstable(&self, stable: u64) -> impl Iterator<Item = std::ops::Range<u64>> {
        self.recent.iter().filter(move |recent| recent.epoch > stable).map(|recent| recent.first..recent.end)
    }

    /// The number of ranges that are kept.
    pub fn kept(&self) -> usize {
        self.recent.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_complete_when_it_and_all_before_it_are() {
        let mut epochs = Epochs::new(7);
        assert_eq!((epochs.current(), epochs.complete()), (7, 6));
        assert_eq!((epochs.begin(0..1), epochs.close(), epochs.begin(5..6), epochs.close()), (7, 7, 8, 8));
        assert_eq!(epochs.complete(), 6);
        epochs.end(8);
        assert_eq!(epochs.complete(), 6, "7 is under way");
        epochs.end(7);
        assert_eq!(epochs.complete(), 8);
        assert!(epochs.unstable(7).eq(std::iter::once(5..6)));
        epochs.settle(7);
        assert_eq!((epochs.unstable(0).count(), epochs.complete(), epochs.current()), (1, 8, 9));
        epochs.settle(100);
        assert_eq!((epochs.kept(), epochs.current(), epochs.in_current()), (0, 9, 0));
    }

    #[test]
    fn sequential_writes_of_an_epoch_are_one_range() {
        let mut epochs = Epochs::new(1);
        (0..100).for_each(|chunk| _ = epochs.begin(chunk / 4..chunk / 4 + 1));
        assert!(epochs.unstable(0).eq(std::iter::once(0..25)));
    }
}
