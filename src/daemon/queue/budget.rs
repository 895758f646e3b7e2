//! The budget that bounds the packets that one source may have queued for one destination.
//!
//! Memory is charged, not payload: a slice keeps the whole receive buffer alive that it is a part of, so the
//! first slice of a buffer pays for all of it and the following ones only for their entry in the queue. The
//! sum of all ceilings is therefore a ceiling of the memory, whatever the packets' sizes.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::atomic::AtomicCell;

use super::counters::{DropCause, PacketCounters};
use super::hold_up::Look;

/// Cost of each entry, in bytes, beside the memory it keeps alive: its place in the queue and its bookkeeping.
const ENTRY_COST: usize = 128;

/// The cost of an entry that is to be queued.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Number of packets.
    pub packets: u32,
    /// Bytes of the packets.
    pub bytes: usize,
    /// The receive buffer that the bytes are a part of, or 0 for memory of their own.
    pub chunk: u64,
    /// Bytes of memory of that buffer.
    pub chunk_bytes: usize,
}

impl Cost {
    /// Returns the cost of bytes that have their memory for themselves.
    pub const fn alone(packets: u32, bytes: usize) -> Self {
        Cost { packets, bytes, chunk: 0, chunk_bytes: bytes }
    }
}

/// The reason for which a cost was not charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The ceiling is reached.
    Full,
    /// The budget is closed.
    Closed,
    /// The ceiling is reached, and the caller has waited too long.
    Stuck,
}

const OPEN: u8 = 0;
/// Nothing new is taken; queued packets are still forwarded.
const CLOSED: u8 = 1;
/// Queued packets are dropped.
const VOID: u8 = 2;

/// A ceiling, and the way to wait below it. Budgets that follow one another share it: bytes that an earlier one has
/// not given back yet are missing in the later one.
#[derive(Debug)]
struct Ceiling {
    ceiling: usize,
    charged: AtomicUsize,
    /// Bytes that have ever left the queue; wraps.
    moved: AtomicUsize,
    /// Protects nothing but the way to sleep: no other lock is taken under it.
    sleep: Mutex<()>,
    wake: Condvar,
    sleepers: AtomicUsize,
}

/// The bound of the packets that one session may have queued, and the counters it writes to.
#[derive(Debug)]
pub struct Budget {
    counters: Arc<PacketCounters>,
    ceiling: Arc<Ceiling>,
    last_chunk: AtomicCell<u64>,
    state: AtomicU8,
    cause: AtomicCell<DropCause>,
}

impl Budget {
    /// Returns an open budget that may charge `ceiling` bytes. A single cost over the ceiling is charged when nothing
    /// else is queued.
    pub fn new(ceiling: usize, counters: Arc<PacketCounters>) -> Arc<Self> {
        let ceiling = Ceiling {
            ceiling,
            charged: AtomicUsize::new(0),
            moved: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            sleepers: AtomicUsize::new(0),
        };
        Self::within(Arc::new(ceiling), counters)
    }

    /// Returns an open budget that may charge no more than this one leaves: one session after the other must not pile
    /// up packets that nobody takes.
    pub fn successor(&self, counters: Arc<PacketCounters>) -> Arc<Self> {
        Self::within(Arc::clone(&self.ceiling), counters)
    }

    fn within(ceiling: Arc<Ceiling>, counters: Arc<PacketCounters>) -> Arc<Self> {
        Arc::new(Budget {
            counters,
            ceiling,
            last_chunk: AtomicCell::new(0),
            state: AtomicU8::new(OPEN),
            cause: AtomicCell::new(DropCause::SessionEnded),
        })
    }

    /// Charges a cost, or returns at once why not.
    ///
    /// # Errors
    /// [`Refusal::Full`] or [`Refusal::Closed`].
    pub fn try_acquire(self: &Arc<Self>, cost: Cost) -> Result<Permit, Refusal> {
        if self.state.load(SeqCst) != OPEN {
            return Err(Refusal::Closed);
        }
        let paid = cost.chunk != 0 && self.last_chunk.load() == cost.chunk;
        let charge = if paid { ENTRY_COST } else { cost.chunk_bytes.saturating_add(ENTRY_COST) };
        let fits = |before: usize| {
            before.checked_add(charge).filter(|&after| before == 0 || after <= self.ceiling.ceiling)
        };
        self.ceiling.charged.fetch_update(SeqCst, SeqCst, fits).map_err(|_| Refusal::Full)?;
        self.last_chunk.store(cost.chunk);
        self.counters.queue(cost.packets, cost.bytes);
        Ok(Permit {
            budget: Arc::clone(self),
            charge,
            moved: 0,
            packets: cost.packets,
            bytes: cost.bytes,
            forwarded: false,
        })
    }

    /// Charges a cost, waiting below the ceiling without a limit.
    ///
    /// # Errors
    /// [`Refusal::Closed`].
    pub fn acquire(self: &Arc<Self>, cost: Cost) -> Result<Permit, Refusal> {
        self.wait_for(cost, |_| Some(None))
    }

    /// Charges a cost, waiting below the ceiling as long as `look` returns a time, after which it is called again at
    /// the latest. The first wait passed to `look` began at `from`.
    ///
    /// # Errors
    /// [`Refusal::Closed`] or, when `look` returned `None`, [`Refusal::Stuck`].
    pub fn acquire_while(
        self: &Arc<Self>,
        cost: Cost,
        mut from: Instant,
        mut look: impl FnMut(Look) -> Option<Duration>,
    ) -> Result<Permit, Refusal> {
        let (mut looks, ceiling) = (false, self.ceiling.ceiling);
        let mut show = |moved| {
            let now = Instant::now();
            looks = true;
            look(Look { from: std::mem::replace(&mut from, now), now, moved, ceiling })
        };
        let taken = self.wait_for(cost, |moved| show(moved).map(Some));
        if taken.is_ok() && looks {
            // The wait since the last look counts, too, though the cost can be charged now.
            look(Look { from, now: Instant::now(), moved: self.ceiling.moved.load(SeqCst), ceiling });
        }
        taken
    }

    /// Tries again with each wake-up, and after each time that `limit` returns, until that is `None`.
    fn wait_for(
        self: &Arc<Self>,
        cost: Cost,
        mut limit: impl FnMut(usize) -> Option<Option<Duration>>,
    ) -> Result<Permit, Refusal> {
        let mut taken = Err(Refusal::Full);
        self.sleep_until(|| {
            taken = self.try_acquire(cost);
            if !matches!(taken, Err(Refusal::Full)) {
                return None;
            }
            let limit = limit(self.ceiling.moved.load(SeqCst));
            if limit.is_none() {
                taken = Err(Refusal::Stuck);
            }
            limit
        });
        taken
    }

    /// Waits until nothing is queued, or until `deadline`. Returns true if nothing is queued.
    pub fn wait_idle(&self, deadline: Instant) -> bool {
        self.wait_for_at_most(0, deadline)
    }

    /// Waits until no more than `bytes` bytes are charged, or until `deadline`. Returns true unless it is the deadline.
    pub fn wait_for_at_most(&self, bytes: usize, deadline: Instant) -> bool {
        let mut fits = false;
        self.sleep_until(|| {
            fits = self.charged() <= bytes;
            let left = deadline.saturating_duration_since(Instant::now());
            (!fits && !left.is_zero()).then_some(Some(left))
        });
        fits
    }

    /// Sleeps between calls of `next` until it returns `None`; `Some(None)` sets no limit to the next sleep.
    fn sleep_until(&self, mut next: impl FnMut() -> Option<Option<Duration>>) {
        if next().is_none() {
            return;
        }
        let mut guard = self.ceiling.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        // Counted before the next look: a thread that gives back after that look sees a sleeper.
        self.ceiling.sleepers.fetch_add(1, SeqCst);
        while let Some(limit) = next() {
            guard = match limit {
                None => self.ceiling.wake.wait(guard).unwrap_or_else(PoisonError::into_inner),
                Some(limit) => {
                    self.ceiling.wake.wait_timeout(guard, limit).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        self.ceiling.sleepers.fetch_sub(1, SeqCst);
    }

    /// Takes nothing new from now on; packets dropped later are dropped for this cause.
    pub fn close(&self, cause: DropCause) {
        self.cause.store(cause);
        self.state.fetch_max(CLOSED, SeqCst);
        self.wake_all();
    }

    /// Closes the budget; packets still queued are dropped when their turn comes.
    pub fn void(&self) {
        self.state.store(VOID, SeqCst);
        self.wake_all();
    }

    /// Returns the bytes charged now.
    pub fn charged(&self) -> usize {
        self.ceiling.charged.load(SeqCst)
    }

    fn wake_all(&self) {
        if self.ceiling.sleepers.load(SeqCst) > 0 {
            // Under the lock, so that a sleeper is either before its look or asleep.
            let _guard = self.ceiling.sleep.lock().unwrap_or_else(PoisonError::into_inner);
            self.ceiling.wake.notify_all();
        }
    }

    fn settle(&self, permit: &Permit) {
        self.counters.settle(permit.packets, permit.bytes, (!permit.forwarded).then(|| self.cause.load()));
        self.ceiling.moved.fetch_add(permit.charge.saturating_sub(permit.moved), SeqCst);
        self.ceiling.charged.fetch_sub(permit.charge, SeqCst);
        self.wake_all();
    }
}

/// A share of a budget. Dropped without [`Permit::forwarded`], its packets count as dropped.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Budget>,
    charge: usize,
    /// Bytes of the charge that count as moved already.
    moved: usize,
    packets: u32,
    bytes: usize,
    forwarded: bool,
}

impl Permit {
    /// Counts `bytes` more bytes as moved, which shows that the queue moves. They are given back with the whole
    /// permit.
    pub fn progress(&mut self, bytes: usize) {
        self.moved = self.moved.saturating_add(bytes);
        self.budget.ceiling.moved.fetch_add(bytes, SeqCst);
    }

    /// Drops all but the first `packets` packets with `bytes` bytes; the counters lose them now, their memory is
    /// freed later.
    pub fn cut(&mut self, packets: u32, bytes: usize) {
        let (rest, gone) = (self.packets.saturating_sub(packets), self.bytes.saturating_sub(bytes));
        self.budget.counters.settle(rest, gone, Some(self.budget.cause.load()));
        (self.packets, self.bytes) = (self.packets.saturating_sub(rest), self.bytes.saturating_sub(gone));
    }

    /// Counts the packets as written to their destination's socket.
    pub fn forwarded(mut self) {
        self.forwarded = true;
    }

    /// Returns true if the packets are to be dropped instead of written.
    pub fn is_void(&self) -> bool {
        self.budget.state.load(SeqCst) == VOID
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.settle(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(chunk: u64, chunk_bytes: usize) -> Cost {
        Cost { packets: 1, bytes: 100, chunk, chunk_bytes }
    }

    fn budget(ceiling: usize) -> (Arc<Budget>, Arc<PacketCounters>) {
        let counters = Arc::new(PacketCounters::default());
        (Budget::new(ceiling, Arc::clone(&counters)), counters)
    }

    #[test]
    fn a_buffer_is_charged_once_however_many_slices_of_it_are_queued() {
        let (budget, _) = budget(10_000);
        let first = budget.try_acquire(cost(1, 4096)).unwrap();
        let second = budget.try_acquire(cost(1, 4096)).unwrap();
        assert_eq!(budget.charged(), 4096 + 2 * ENTRY_COST);
        drop((first, second));
        assert_eq!(budget.charged(), 0);
    }

    /// Failure mode 9: memory is bounded, not the number of packets.
    #[test]
    fn fm09_the_ceiling_holds_in_bytes_and_one_oversized_load_passes_alone() {
        let (budget, _) = budget(10_000);
        let big = budget.try_acquire(cost(1, 1 << 20)).unwrap();
        assert_eq!(budget.try_acquire(cost(2, 1)).unwrap_err(), Refusal::Full);
        drop(big);
        let mut permits = Vec::new();
        while let Ok(permit) = budget.try_acquire(cost(2 + permits.len() as u64, 900)) {
            permits.push(permit);
        }
        assert_eq!(permits.len(), 10_000 / (900 + ENTRY_COST));
    }

    #[test]
    fn books_balance_through_forwarding_dropping_and_closing() {
        let (budget, counters) = budget(1 << 20);
        let first = budget.try_acquire(cost(1, 4096)).unwrap();
        let second = budget.try_acquire(cost(1, 4096)).unwrap();
        assert_eq!(counters.snapshot().queued, 2);
        assert!(counters.snapshot().balances());
        first.forwarded();
        budget.close(DropCause::Stopping);
        assert_eq!(budget.try_acquire(cost(1, 1)).unwrap_err(), Refusal::Closed);
        drop(second);
        counters.drop_at_once(3, 300, DropCause::NotConnected);
        let snapshot = counters.snapshot();
        assert!(snapshot.balances());
        assert_eq!(
            snapshot.to_string(),
            "received 5 = forwarded 1 + queued 0 + dropped 4 (not connected 3, stopping 1)"
        );
    }

    /// Failure mode 8: a wait below the ceiling is a wait for a wake-up, not a poll.
    #[test]
    fn fm08_a_waiter_goes_on_as_soon_as_there_is_room() {
        let (budget, _) = budget(1000);
        let permit = budget.try_acquire(cost(1, 900)).unwrap();
        let waiter = std::thread::spawn({
            let budget = Arc::clone(&budget);
            move || budget.acquire(cost(2, 900)).map(Permit::forwarded)
        });
        while budget.ceiling.sleepers.load(SeqCst) == 0 {
            std::thread::yield_now();
        }
        drop(permit);
        assert_eq!(waiter.join().unwrap(), Ok(()));
    }

    #[test]
    fn a_waiter_is_told_when_the_account_closes() {
        let (budget, _) = budget(1000);
        let _hold = budget.try_acquire(cost(1, 900)).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| budget.acquire(cost(2, 900)).map(Permit::forwarded));
            while budget.ceiling.sleepers.load(SeqCst) == 0 {
                std::thread::yield_now();
            }
            budget.close(DropCause::SessionEnded);
            assert_eq!(waiter.join().unwrap(), Err(Refusal::Closed));
        });
    }

    #[test]
    fn a_full_queue_that_does_not_move_is_stuck_after_the_time_allowed() {
        let (budget, _) = budget(1000);
        let begin = Instant::now();
        let _hold = budget.try_acquire(cost(1, 900)).unwrap();
        let patience = Duration::from_millis(30);
        let look = |_| patience.checked_sub(begin.elapsed()).filter(|left| !left.is_zero());
        assert_eq!(budget.acquire_while(cost(2, 900), begin, look).unwrap_err(), Refusal::Stuck);
        assert!(begin.elapsed() >= patience);
    }

    #[test]
    fn void_is_seen_by_the_sender() {
        let (budget, counters) = budget(1000);
        let permit = budget.try_acquire(cost(1, 100)).unwrap();
        budget.close(DropCause::SessionEnded);
        assert!(!permit.is_void());
        budget.void();
        assert!(permit.is_void());
        drop(permit);
        assert_eq!(counters.snapshot().all_dropped(), 1);
        assert!(budget.wait_idle(Instant::now()));
    }
}
