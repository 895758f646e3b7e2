//! The ceiling of bytes in flight: every request takes a permit before its bytes are read, and gives it back when its reply
//! is written. Each connection has a share of its own, so that small requests never wait for other clients; larger needs
//! are met from a pool that all have in common.
//!
//! Must never grant more than the ceiling. Called by the connections' readers; permits are given back by any thread.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::PAYLOAD_MAX;

/// Bytes of a request beside its payload: its header, its place in queues, its reply.
const OVERHEAD: usize = 512;

/// Smallest pool in bytes: one request of the largest payload fits, or it would wait for ever.
const POOL_MIN: usize = PAYLOAD_MAX as usize + OVERHEAD;

/// The part of the ceiling that is dealt out as shares, as a divisor: three quarters stay for large requests.
const SHARES: usize = 4;

/// Time between two searches of a waiting connection for clients that hold up the pool.
const LOOK: Duration = Duration::from_millis(500);

/// The bytes of all connections.
pub(super) struct Budget {
    /// Bytes left in the pool. No other lock is taken under it.
    pool: Mutex<usize>,
    given_back: Condvar,
    waiting: AtomicUsize,
    share: usize,
}

impl Budget {
    /// Returns a budget for `connections` connections. A ceiling too low for one request of the largest payload is raised.
    pub fn new(ceiling: usize, connections: usize) -> Arc<Self> {
        let share = (ceiling / SHARES).checked_div(connections).unwrap_or_default().max(OVERHEAD);
        let pool = ceiling.saturating_sub(share.saturating_mul(connections)).max(POOL_MIN);
        Arc::new(Budget {
            pool: Mutex::new(pool),
            given_back: Condvar::new(),
            waiting: AtomicUsize::new(0),
            share,
        })
    }

    /// Returns a share for a new connection.
    pub fn share(self: &Arc<Self>) -> Arc<Share> {
        let (own, pooled, closed) = Default::default();
        Arc::new(Share { budget: Arc::clone(self), own, pooled, closed })
    }

    fn wake(&self) {
        if self.waiting.load(SeqCst) > 0 {
            // A thread that is about to wait has the lock until it does.
            drop(self.pool.lock().unwrap_or_else(PoisonError::into_inner));
            self.given_back.notify_all();
        }
    }
}

/// The bytes that one connection may take, and has taken.
pub(super) struct Share {
    budget: Arc<Budget>,
    /// Bytes taken of the connection's own share. Only the connection's reader takes.
    own: AtomicUsize,
    /// Bytes taken from the pool.
    pooled: AtomicUsize,
    closed: AtomicBool,
}

impl Share {
    /// Takes the bytes of a request with this payload, if it need not wait.
    pub fn try_take(self: &Arc<Self>, payload: u32) -> Option<Permit> {
        let cost = (payload as usize).saturating_add(OVERHEAD);
        if self.own.load(SeqCst).saturating_add(cost) <= self.budget.share {
            self.own.fetch_add(cost, SeqCst);
            return Some(Permit { share: Arc::clone(self), cost, pooled: false });
        }
        self.take_pooled(&mut self.budget.pool.lock().unwrap_or_else(PoisonError::into_inner), cost)
    }

    fn take_pooled(self: &Arc<Self>, pool: &mut usize, cost: usize) -> Option<Permit> {
        *pool = pool.checked_sub(cost)?;
        self.pooled.fetch_add(cost, SeqCst);
        Some(Permit { share: Arc::clone(self), cost, pooled: true })
    }

    /// Takes the bytes of a request with this payload, waiting for others to give back. `look` is called twice a second,
    /// and may end connections. `None` after [`Share::close`].
    pub fn take(self: &Arc<Self>, payload: u32, look: impl Fn()) -> Option<Permit> {
        let cost = (payload as usize).saturating_add(OVERHEAD);
        let budget = &self.budget;
        budget.waiting.fetch_add(1, SeqCst);
        let mut pool = budget.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let permit = loop {
            if self.closed.load(SeqCst) {
                break None;
            }
            if self.own.load(SeqCst).saturating_add(cost) <= budget.share {
                self.own.fetch_add(cost, SeqCst);
                break Some(Permit { share: Arc::clone(self), cost, pooled: false });
            }
            if let Some(permit) = self.take_pooled(&mut pool, cost) {
                break Some(permit);
            }
            let (guard, waited) =
                budget.given_back.wait_timeout(pool, LOOK).unwrap_or_else(PoisonError::into_inner);
            pool = guard;
            if waited.timed_out() {
                drop(pool);
                look();
                pool = budget.pool.lock().unwrap_or_else(PoisonError::into_inner);
            }
        };
        drop(pool);
        budget.waiting.fetch_sub(1, SeqCst);
        permit
    }

    /// Returns true if the connection has taken bytes from the pool.
    pub fn has_pooled(&self) -> bool {
        self.pooled.load(SeqCst) > 0
    }

    /// Ends a wait, now and later.
    pub fn close(&self) {
        self.closed.store(true, SeqCst);
        self.budget.wake();
    }
}

/// Bytes taken from a budget; given back when it is dropped.
pub(super) struct Permit {
    share: Arc<Share>,
    cost: usize,
    pooled: bool,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let budget = &self.share.budget;
        if self.pooled {
            self.share.pooled.fetch_sub(self.cost, SeqCst);
            let mut pool = budget.pool.lock().unwrap_or_else(PoisonError::into_inner);
            *pool = pool.saturating_add(self.cost);
        } else {
            self.share.own.fetch_sub(self.cost, SeqCst);
        }
        budget.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    #[test]
    fn one_that_holds_the_pool_leaves_others_their_shares() {
        let budget = Budget::new(64 << 20, 4);
        let (greedy, other) = (budget.share(), budget.share());
        let held: Vec<_> = std::iter::from_fn(|| greedy.try_take(1 << 20)).collect();
        // A share of 4 MiB and a pool of 48 MiB, less the bytes of each request beside its payload.
        assert_eq!(held.len(), 3 + 47);
        assert!(other.try_take(PAYLOAD_MAX).is_none());
        let small: Vec<_> = std::iter::from_fn(|| other.try_take(4096)).collect();
        let own = small.iter().filter(|permit| !permit.pooled).count();
        assert_eq!(own, (4 << 20) / (4096 + OVERHEAD), "its own share is whole");
        drop((held, small));
        assert!(other.try_take(PAYLOAD_MAX).is_some());
    }

    #[test]
    fn who_waits_goes_on_when_something_is_given_back_or_it_is_closed() {
        let budget = Budget::new(0, 1);
        let share = budget.share();
        let held = share.try_take(PAYLOAD_MAX).unwrap();
        let (told, outcomes) = mpsc::channel();
        let waiter = {
            let share = Arc::clone(&share);
            thread::spawn(move || {
                let permit = share.take(PAYLOAD_MAX, || {});
                told.send(permit.is_some()).unwrap();
                told.send(share.take(PAYLOAD_MAX, || {}).is_some()).unwrap();
            })
        };
        drop(held);
        assert!(outcomes.recv().unwrap());
        share.close();
        assert!(!outcomes.recv().unwrap());
        waiter.join().unwrap();
    }
}
