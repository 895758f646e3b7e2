//! The order of operations whose ranges overlap: each waits for the ones before it, everything else runs at once.
//!
//! Every byte under way belongs to the last operation that was admitted for it. A new one waits for those owners, which
//! wait for the ones before them: so all sites that admit in one order carry out in one order. Used by the core alone.

use std::collections::BTreeMap;

/// Which operation is the last one for each byte under way.
#[derive(Debug, Default)]
pub struct Order {
    /// Disjoint pieces by first byte: the byte behind the last, and the owner.
    pieces: BTreeMap<u64, (u64, u32)>,
    cut: Vec<(u64, u64, u32)>,
}

impl Order {
    /// Admits an operation for the bytes from `start` up to `end`. Those that it has to wait for are given to `wait`, one
    /// perhaps more than once.
    pub fn insert(&mut self, start: u64, end: u64, id: u32, mut wait: impl FnMut(u32)) {
        if self.overlaps(start, end) {
            let before = self.pieces.range(..start).next_back().filter(|(_, (e, _))| *e > start);
            let inside = self.pieces.range(start..end);
            self.cut.extend(before.into_iter().chain(inside).map(|(s, (e, owner))| (*s, *e, *owner)));
            for (s, e, owner) in self.cut.drain(..) {
                wait(owner);
                self.pieces.remove(&s);
                if s < start {
                    self.pieces.insert(s, (start, owner));
                }
                if e > end {
                    self.pieces.insert(end, (e, owner));
                }
            }
        }
        self.pieces.insert(start, (end, id));
    }

    /// Returns true if any byte from `start` up to `end` is under way.
    pub fn overlaps(&self, start: u64, end: u64) -> bool {
        // Pieces are disjoint, so the last one that begins before `end` reaches farthest.
        self.pieces.range(..end).next_back().is_some_and(|(_, (e, _))| *e > start)
    }

    /// An operation is done; `start` and `end` as it was admitted.
    pub fn remove(&mut self, start: u64, end: u64, id: u32) {
        if self.pieces.get(&start) == Some(&(end, id)) {
            self.pieces.remove(&start);
            return;
        }
        let before = self.pieces.range(..start).next_back().map(|(s, _)| *s);
        let own = self.pieces.range(before.unwrap_or(start)..end).filter(|(_, (_, owner))| *owner == id);
        self.cut.extend(own.map(|(s, (e, owner))| (*s, *e, *owner)));
        for (s, ..) in self.cut.drain(..) {
            self.pieces.remove(&s);
        }
    }

    /// Returns true if nothing is under way.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever the order in which operations that may run come to their end: those that overlap run one after the
        /// other, as they were admitted, and none waits for ever.
        #[test]
        fn overlapping_operations_run_as_admitted(
            ranges in prop::collection::vec((0..40_u64, 1..12_u64), 1..40), picks in prop::collection::vec(any::<u8>(), 200)
        ) {
            let mut order = Order::default();
            let mut waits = vec![0; ranges.len()];
            let mut followers = vec![Vec::new(); ranges.len()];
            for (id, (start, len)) in ranges.iter().enumerate() {
                order.insert(*start, start + len, id as u32, |owner| {
                    waits[id] += 1;
                    followers[owner as usize].push(id);
                });
            }
            let mut done = Vec::new();
            for pick in picks.iter().cycle().take(4000) {
                let ready: Vec<_> = (0..ranges.len()).filter(|id| waits[*id] == 0 && !done.contains(id)).collect();
                if ready.is_empty() { break }
                let id = ready[*pick as usize % ready.len()];
                done.push(id);
                order.remove(ranges[id].0, ranges[id].0 + ranges[id].1, id as u32);
                for follower in std::mem::take(&mut followers[id]) { waits[follower] -= 1 }
            }
            prop_assert_eq!(done.len(), ranges.len());
            prop_assert!(order.is_empty());
            for (n, later) in done.iter().enumerate() {
                for earlier in &done[..n] {
                    let (a, b) = (ranges[*earlier], ranges[*later]);
                    prop_assert!(earlier < later || a.0 + a.1 <= b.0 || b.0 + b.1 <= a.0);
                }
            }
        }
    }
}
