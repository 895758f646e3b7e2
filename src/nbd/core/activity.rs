//! The activity log in memory: which extents may be written to.
//!
//! An extent is active once it is in a durable record, and leaves only with a record that is written after its bits and
//! its data are safe. Must never let a write begin in an extent that is not active. Used by the core alone, primary
//! or not.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::RangeInclusive;

use crate::nbd::disk::format::EXTENT_SHIFT;

/// Mixes the one number that is a key here; nobody outside chooses it to do harm, as there are at most 1000.
#[derive(Default)]
pub struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u32(&mut self, n: u32) {
        // The golden ratio's bits spread neighbours far apart.
        self.0 = (self.0 ^ u64::from(n)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    /// The last epoch in which it was written.
    epoch: u64,
    /// When it was last asked for.
    used: u64,
    under_way: u32,
    /// A record without it is on its way to the disk.
    leaving: bool,
}

/// The active extents.
#[derive(Debug)]
pub struct Activity {
    extents: HashMap<u32, Extent, BuildHasherDefault<Mix>>,
    capacity: usize,
    /// Counts the requests: the time of the least recently used.
    time: u64,
    /// Extents that writes wait for.
    wanted: Vec<u32>,
}

/// The extents of a range of bytes that is not empty.
pub fn extents(start: u64, end: u64) -> RangeInclusive<u32> {
    // A disk has at most 2^32 extents.
    (start >> EXTENT_SHIFT) as u32..=(end.saturating_sub(1) >> EXTENT_SHIFT) as u32
}

impl Activity {
    /// At most `capacity` extents, with those that a crash left active.
    pub fn new(capacity: usize, left: &[u32], epoch: u64) -> Self {
        let mut activity = Activity { extents: HashMap::default(), capacity, time: 0, wanted: Vec::new() };
        for extent in left {
            activity.extents.insert(*extent, Extent { epoch, ..Extent::default() });
        }
        activity
    }

    /// Changes the most extents; those that are too many leave when others are wanted.
    pub fn resize(&mut self, capacity: usize) {
        self.capacity = capacity;
    }

    /// Returns true if all of these extents are active, and marks them as used; else notes them as wanted.
    pub fn touch(&mut self, wanted: RangeInclusive<u32>) -> bool {
        let mut active = true;
        for extent in wanted {
            self.time += 1;
            match self.extents.get_mut(&extent) {
                Some(found) if !found.leaving => found.used = self.time,
                _ => {
                    active = false;
                    if !self.wanted.contains(&extent) {
                        self.wanted.push(extent);
                    }
                }
            }
        }
        active
    }

    /// A write begins in these extents.
    pub fn begin(&mut self, of: RangeInclusive<u32>, epoch: u64) {
        for extent in of {
            if let Some(found) = self.extents.get_mut(&extent) {
                found.under_way += 1;
                found.epoch = found.epoch.max(epoch);
            }
        }
    }

    /// A write in these extents is done here.
    pub fn end(&mut self, of: RangeInclusive<u32>) {
        for extent in of {
            if let Some(found) = self.extents.get_mut(&extent) {
                found.under_way = found.under_way.saturating_sub(1);
            }
        }
    }

    /// Returns true if writes wait for extents.
    pub fn is_wanted(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// Chooses the extents that make room for the wanted ones: the least recently used of those whose writes are stable
    /// everywhere, some more than needed, as each record costs a sync. They may not be written to from now on. Those in
    /// `protected` stay: the oldest write that waits needs them. Fewer than needed: something has to become stable first.
    pub fn choose_leavers(&mut self, stable: u64, protected: &RangeInclusive<u32>) -> Vec<u32> {
        let excess = self.excess();
        if excess == 0 {
            return Vec::new();
        }
        let mut leavers = self.leavable(stable);
        leavers.retain(|(extent, _)| !protected.contains(extent));
        leavers.sort_unstable_by_key(|(_, used)| *used);
        leavers.truncate(excess.max(self.capacity / 32));
        self.send_away(leavers)
    }

    /// Extents that are too many once the wanted ones are active.
    pub fn excess(&self) -> usize {
        let leaving = self.extents.values().filter(|found| found.leaving).count();
        let wanted = self.wanted.len().min(self.capacity);
        (self.extents.len() + wanted).saturating_sub(self.capacity + leaving)
    }

    /// Chooses every extent that was not used since `time`.
    pub fn choose_idle(&mut self, stable: u64, time: u64) -> Vec<u32> {
        let mut leavers = self.leavable(stable);
        leavers.retain(|(_, used)| *used <= time);
        self.send_away(leavers)
    }

    fn leavable(&self, stable: u64) -> Vec<(u32, u64)> {
        let may_leave = |extent: &Extent| extent.under_way == 0 && extent.epoch <= stable;
        self.extents.iter().filter(|(_, found)| may_leave(found)).map(|(n, found)| (*n, found.used)).collect()
    }

    fn send_away(&mut self, leavers: Vec<(u32, u64)>) -> Vec<u32> {
        for (extent, _) in &leavers {
            if let Some(found) = self.extents.get_mut(extent) {
                found.leaving = true;
            }
        }
        leavers.into_iter().map(|(extent, _)| extent).collect()
    }

    /// Takes the wanted extents that there is room for, apart from those that are about to leave.
    pub fn take_wanted(&mut self) -> Vec<u32> {
        let staying = self.extents.values().filter(|found| !found.leaving).count();
        let room = self.capacity.saturating_sub(staying);
        let mut taken = Vec::new();
        let extents = &self.extents;
        self.wanted.retain(|extent| {
            let is_leaving = extents.get(extent).is_some_and(|found| found.leaving);
            let keep = is_leaving || taken.len() >= room;
            if !keep {
                taken.push(*extent);
            }
            keep
        });
        taken
    }

    /// The content of the next record: all that stay, and these.
    pub fn record(&self, new: &[u32]) -> Vec<u32> {
        let staying = self.extents.iter().filter(|(_, found)| !found.leaving).map(|(extent, _)| *extent);
        staying.chain(new.iter().copied()).collect()
    }

    /// The record is durable.
    pub fn recorded(&mut self, new: &[u32]) {
        self.extents.retain(|_, found| !found.leaving);
        for extent in new {
            self.extents.entry(*extent).or_insert(Extent { used: self.time, ..Extent::default() });
        }
        // They were asked for again while the record was on its way.
        self.wanted.retain(|extent| !new.contains(extent));
    }

    /// The number of active extents.
    pub fn len(&self) -> usize {
        self.extents.len()
    }

    /// The present time, in requests.
    pub fn time(&self) -> u64 {
        self.time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A write waits for an extent whose record is on its way, and asks again meanwhile.
    #[test]
    fn an_extent_that_is_asked_for_twice_is_made_active_once() {
        let mut activity = Activity::new(4, &[], 1);
        assert!(!activity.touch(7..=7));
        let new = activity.take_wanted();
        assert!(!activity.touch(7..=7));
        assert_eq!(activity.record(&new), [7]);
        activity.recorded(&new);
        assert!(activity.touch(7..=7));
        activity.begin(7..=7, 9);
        assert!(!activity.is_wanted());
        assert!(activity.choose_idle(8, u64::MAX).is_empty(), "a write is under way");
        activity.end(7..=7);
        assert!(activity.choose_idle(8, u64::MAX).is_empty(), "it is not stable");
        assert_eq!(activity.choose_idle(9, u64::MAX), [7]);
        assert!(!activity.touch(7..=7), "it is about to leave");
    }

    #[test]
    fn the_least_recently_used_leave_and_protected_ones_stay() {
        let mut activity = Activity::new(4, &[1, 2, 3, 4], 1);
        for extent in [1, 2, 3, 4, 1] {
            assert!(activity.touch(extent..=extent));
        }
        assert!(!activity.touch(9..=9));
        assert_eq!(activity.choose_leavers(0, &(2..=2)), [0; 0], "nothing is stable");
        assert_eq!(activity.excess(), 1);
        assert_eq!(activity.choose_leavers(1, &(2..=2)), [3]);
        assert_eq!(activity.take_wanted(), [9]);
        let mut record = activity.record(&[9]);
        record.sort_unstable();
        assert_eq!(record, [1, 2, 4, 9]);
    }
}
