//! Round-trip times in a bounded table, for percentiles that are right to 1 part in 128.
//!
//! Counting must stay cheap: it happens between two measured round trips. Used by `latency`.

use std::time::Duration;

/// Bits of precision below the leading one.
const BITS: u32 = 7;
const STEP: u64 = 1 << BITS;

/// Counts of durations by size.
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Histogram {
    /// Returns an empty histogram.
    pub fn new() -> Self {
        Histogram { counts: vec![0; slot(u64::MAX) + 1], total: 0, max: 0 }
    }

    /// Counts one duration.
    pub fn add(&mut self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get_mut(slot(nanos)) {
            *count += 1;
            self.total += 1;
        }
        self.max = self.max.max(nanos);
    }

    /// Returns the number of durations counted.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// Returns the longest duration, in microseconds.
    pub fn max(&self) -> f64 {
        micros(self.max)
    }

    /// Returns the shortest time that at least `share` (0..=1) of all durations do not exceed, in microseconds,
    /// rounded up to the table's precision; 0 when nothing was counted.
    pub fn percentile(&self, share: f64) -> f64 {
        let rank = ((self.total as f64 * share).ceil() as u64).clamp(1, self.total.max(1));
        let mut below = 0;
        let found = self.counts.iter().position(|n| {
            below += n;
            below >= rank
        });
        micros(found.map_or(0, largest).min(self.max))
    }
}

fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

/// Returns the slot of a value: exact below 256, then 128 slots for each power of two.
fn slot(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(BITS + 1);
    (u64::from(shift) * STEP + (value >> shift)) as usize
}

/// Returns the largest value that is counted in a slot.
fn largest(slot: usize) -> u64 {
    let slot = slot as u64;
    let shift = (slot / STEP).saturating_sub(1);
    let base = slot - shift * STEP;
    // (base + 1) << shift may be 2^64.
    (base << shift) | ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn slots_are_in_order_and_close(value: u64, shift in 0..64u32) {
            let value = value >> shift;
            let top = largest(slot(value));
            prop_assert!(top >= value && top - value <= value / STEP);
            prop_assert_eq!(slot(top), slot(value));
            prop_assert!(top == u64::MAX || slot(top + 1) == slot(top) + 1);
        }

        #[test]
        fn percentiles_agree_with_sorting(mut values in prop::collection::vec(0..5_000_000u64, 1..300)) {
            let mut histogram = Histogram::new();
            for &nanos in &values {
                histogram.add(Duration::from_nanos(nanos));
            }
            values.sort_unstable();
            for share in [0.5, 0.99, 0.999, 1.0] {
                let rank = ((values.len() as f64 * share).ceil() as usize).max(1);
                let exact = values[rank - 1] as f64 / 1e3;
                let found = histogram.percentile(share);
                prop_assert!(found >= exact && found <= exact * (1.0 + 1.0 / 128.0) + 1e-9, "{found} {exact}");
            }
            prop_assert_eq!(histogram.max(), histogram.percentile(1.0));
            prop_assert_eq!(histogram.count(), values.len() as u64);
        }
    }

    #[test]
    fn an_empty_one_gives_zeros() {
        let histogram = Histogram::new();
        assert_eq!((histogram.percentile(0.5), histogram.max(), histogram.count()), (0.0, 0.0, 0));
    }
}
