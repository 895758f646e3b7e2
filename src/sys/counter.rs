//! A counter that many threads may use at once, on every processor.
//!
//! It is no lock and orders nothing: a value that was read may be out of date at once. Used by every module that
//! counts.

use crossbeam::atomic::AtomicCell;

/// A counter of 64 bits that also exists where the processor has no 64-bit atomics.
#[derive(Debug, Default)]
pub struct Counter(AtomicCell<u64>);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n);
    }

    /// Subtracts `n`; the caller has added it before.
    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n);
    }

    /// Replaces the value.
    pub fn set(&self, n: u64) {
        self.0.store(n);
    }

    /// Returns the current value.
    pub fn get(&self) -> u64 {
        self.0.load()
    }
}
