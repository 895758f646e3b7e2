//! The counters of a mirror: requests, bytes, and how long requests, the disk here and other sites took, in a few powers of
//! two.
//!
//! Counting must cost next to nothing: it happens for every request. Called by the mirror; read by the status.

use std::array;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Kinds of requests, as they are named in the status.
pub(super) const KINDS: [&str; 4] = ["read", "write", "flush", "zero"];

/// Upper bounds of the times, in microseconds: 64 us, then each four times the one before, up to 17 s. What took longer
/// is in the last one.
pub(super) const BOUNDS: [u64; 10] =
    [64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304, 16_777_216];

/// Kinds of accesses to the disk here, as they are named in the metrics.
const ACCESSES: [&str; 3] = ["write", "read", "flush"];

/// A kind of access to the disk here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Write,
    Read,
    Flush,
}

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Flush,
    Zero,
}

/// The times of one kind.
#[derive(Default)]
pub(super) struct Times {
    /// By bound; the last one is for what took longer than all.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Times {
    fn add(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let at = BOUNDS.iter().position(|bound| micros <= *bound).unwrap_or(BOUNDS.len());
        if let Some(bucket) = self.buckets.get(at) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// The number that took up to each bound, and the number of all.
    pub fn cumulative(&self) -> [u64; BOUNDS.len() + 1] {
        let mut sum = 0_u64;
        array::from_fn(|at| {
            let n = self.buckets.get(at).map_or(0, |bucket| bucket.load(Ordering::Relaxed));
            sum = sum.saturating_add(n);
            sum
        })
    }

    /// All of them together, in microseconds.
    pub fn micros(&self) -> u64 {
        self.micros.load(Ordering::Relaxed)
    }
}

/// The kinds that are counted.
#[derive(Default)]
pub(super) struct Counters {
    /// From a request to its answer, by kind.
    times: [Times; KINDS.len()],
    /// Bytes read and written by clients.
    bytes: [AtomicU64; 2],
    /// Accesses to the disk here, by kind.
    accesses: [Times; ACCESSES.len()],
    /// From a write that is sent to a site to its confirmation, by place of the site; made once.
    confirmations: OnceLock<Box<[Times]>>,
}

impl Counters {
    /// A request was answered after this time.
    pub fn answered(&self, kind: Kind, time: Duration) {
        if let Some(times) = self.times.get(kind as usize) {
            times.add(time);
        }
    }

    /// The disk here took this time.
    pub fn accessed(&self, kind: Access, time: Duration) {
        if let Some(times) = self.accesses.get(kind as usize) {
            times.add(time);
        }
    }

    /// The site at this place of `sites` confirmed a write after this time.
    pub fn confirmed(&self, place: usize, sites: usize, time: Duration) {
        let all = self.confirmations.get_or_init(|| (0..sites).map(|_| Times::default()).collect());
        if let Some(times) = all.get(place) {
            times.add(time);
        }
    }

    /// The times of each kind of access, by its name.
    pub fn accesses(&self) -> impl Iterator<Item = (&'static str, &Times)> {
        ACCESSES.into_iter().zip(&self.accesses)
    }

    /// The times of confirmations of the site at this place, if there were any.
    pub fn confirmations(&self, place: usize) -> Option<&Times> {
        self.confirmations.get()?.get(place)
    }

    /// Counts bytes that a client reads or writes.
    pub fn count(&self, kind: Kind, bytes: usize) {
        if let Some(sum) = self.bytes.get(kind as usize) {
            sum.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// The times of each kind, by its name.
    pub fn times(&self) -> impl Iterator<Item = (&'static str, &Times)> {
        KINDS.into_iter().zip(&self.times)
    }

    /// Bytes read and written.
    pub fn bytes(&self) -> [u64; 2] {
        let [read, written] = &self.bytes;
        [read.load(Ordering::Relaxed), written.load(Ordering::Relaxed)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_its_bucket_and_in_all_above() {
        let counters = Counters::default();
        for micros in [0, 64, 65, 20_000_000] {
            counters.answered(Kind::Flush, Duration::from_micros(micros));
        }
        let (name, times) = counters.times().nth(2).unwrap();
        assert_eq!((name, times.cumulative()), ("flush", [2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4]));
        assert_eq!(times.micros(), 20_000_129);
        counters.count(Kind::Write, 7);
        assert_eq!(counters.bytes(), [0, 7]);
        assert!(counters.confirmations(1).is_none());
        counters.confirmed(1, 2, Duration::from_micros(5));
        let counts = [0, 1].map(|place| counters.confirmations(place).unwrap().cumulative()[0]);
        assert_eq!(counts, [0, 1]);
    }
}
