//! The account that bounds what one source may have queued for one destination.
//!
//! Memory is charged, not payload: a slice keeps the whole receive buffer alive that it is a part of, so the
//! first slice of a buffer pays for all of it and the following ones only for their entry in the queue. The
//! sum of all ceilings is therefore a ceiling of the memory, whatever the packets' sizes.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::atomic::AtomicCell;

use super::books::{Books, Counter, DropCause};

/// What each entry costs beside the memory it keeps alive: its place in the queue and its bookkeeping.
const ENTRY_COST: usize = 128;

/// A full queue counts as stuck unless this part of its ceiling has moved within the time allowed. A peer
/// that takes a byte now and then must not hold up the others for ever.
const MOVED_PART: usize = 8;

/// What is to be queued.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Packets in it.
    pub packets: u32,
    /// Its bytes.
    pub bytes: usize,
    /// Which receive buffer it is a part of, or 0 for memory of its own.
    pub chunk: u64,
    /// Bytes of memory that buffer has.
    pub chunk_bytes: usize,
}

impl Load {
    /// A load that has its memory for itself.
    pub const fn alone(packets: u32, bytes: usize) -> Self {
        Load { packets, bytes, chunk: 0, chunk_bytes: bytes }
    }
}

/// Why a load was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The ceiling is reached.
    Full,
    /// The account is closed.
    Closed,
    /// The ceiling is reached, and next to nothing has left for the time allowed.
    Stuck,
}

const OPEN: u8 = 0;
/// Takes nothing new; what it has is still forwarded.
const CLOSED: u8 = 1;
/// What it has is dropped.
const VOID: u8 = 2;

/// A ceiling, and the way to wait below it. Accounts that follow one another have the same: what an earlier one has
/// not given back yet takes room from the later.
#[derive(Debug)]
struct Room {
    ceiling: usize,
    charged: AtomicUsize,
    moved: AtomicUsize,
    /// The last moment at which the queue was seen to move, in microseconds since `born`, and how much had
    /// moved by then.
    marked_at: Counter,
    marked_moved: AtomicUsize,
    born: Instant,
    /// Protects nothing but the way to sleep: no other lock is taken under it.
    sleep: Mutex<()>,
    wake: Condvar,
    sleepers: AtomicUsize,
}

/// What one session may have queued, and the books it writes to.
#[derive(Debug)]
pub struct Account {
    books: Arc<Books>,
    room: Arc<Room>,
    last_chunk: AtomicCell<u64>,
    state: AtomicU8,
    cause: AtomicCell<DropCause>,
}

impl Account {
    /// An open account that may charge `ceiling` bytes. A single load over the ceiling is taken when nothing
    /// else is queued.
    pub fn new(ceiling: usize, books: Arc<Books>) -> Arc<Self> {
        let room = Room {
            ceiling,
            charged: AtomicUsize::new(0),
            moved: AtomicUsize::new(0),
            marked_at: Counter::default(),
            marked_moved: AtomicUsize::new(0),
            born: Instant::now(),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            sleepers: AtomicUsize::new(0),
        };
        Self::within(Arc::new(room), books)
    }

    /// An open account that has no more room than this one leaves: one session after the other must not pile up
    /// what nobody takes.
    pub fn successor(&self, books: Arc<Books>) -> Arc<Self> {
        Self::within(Arc::clone(&self.room), books)
    }

    fn within(room: Arc<Room>, books: Arc<Books>) -> Arc<Self> {
        Arc::new(Account {
            books,
            room,
            last_chunk: AtomicCell::new(0),
            state: AtomicU8::new(OPEN),
            cause: AtomicCell::new(DropCause::SessionEnded),
        })
    }

    /// Takes a load, or says at once why not.
    ///
    /// # Errors
    /// [`Refusal::Full`] or [`Refusal::Closed`].
    pub fn try_hold(self: &Arc<Self>, load: Load) -> Result<Hold, Refusal> {
        if self.state.load(SeqCst) != OPEN {
            return Err(Refusal::Closed);
        }
        let paid = load.chunk != 0 && self.last_chunk.load() == load.chunk;
        let cost = if paid { ENTRY_COST } else { load.chunk_bytes.saturating_add(ENTRY_COST) };
        let fits = |before: usize| {
            before.checked_add(cost).filter(|&after| before == 0 || after <= self.room.ceiling)
        };
        let before = self.room.charged.fetch_update(SeqCst, SeqCst, fits).map_err(|_| Refusal::Full)?;
        if before == 0 {
            self.mark(self.room.moved.load(SeqCst));
        }
        self.last_chunk.store(load.chunk);
        self.books.queue(load.packets, load.bytes);
        Ok(Hold {
            account: Arc::clone(self),
            cost,
            packets: load.packets,
            bytes: load.bytes,
            forwarded: false,
        })
    }

    /// Takes a load, waiting for room. With a `patience` the wait ends when the queue has moved less than an
    /// eighth of its ceiling for so long.
    ///
    /// # Errors
    /// [`Refusal::Closed`] or, with a patience, [`Refusal::Stuck`].
    pub fn hold(self: &Arc<Self>, load: Load, patience: Option<Duration>) -> Result<Hold, Refusal> {
        let mut taken = Err(Refusal::Full);
        self.sleep_until(|| {
            taken = self.try_hold(load);
            if !matches!(taken, Err(Refusal::Full)) {
                return None;
            }
            match patience.map(|patience| patience.saturating_sub(self.still_for())) {
                Some(Duration::ZERO) => {
                    taken = Err(Refusal::Stuck);
                    None
                }
                left => Some(left),
            }
        });
        taken
    }

    /// Waits until nothing is queued, or until `deadline`; whether nothing is.
    pub fn wait_idle(&self, deadline: Instant) -> bool {
        let mut idle = false;
        self.sleep_until(|| {
            idle = self.room.charged.load(SeqCst) == 0;
            let left = deadline.saturating_duration_since(Instant::now());
            (!idle && !left.is_zero()).then_some(Some(left))
        });
        idle
    }

    /// Sleeps between calls of `next` until it says `None`; `Some(None)` sets no limit to the next sleep.
    fn sleep_until(&self, mut next: impl FnMut() -> Option<Option<Duration>>) {
        if next().is_none() {
            return;
        }
        let mut guard = self.room.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        // Counted before the next look: whoever gives back after that look sees a sleeper.
        self.room.sleepers.fetch_add(1, SeqCst);
        while let Some(limit) = next() {
            guard = match limit {
                None => self.room.wake.wait(guard).unwrap_or_else(PoisonError::into_inner),
                Some(limit) => {
                    self.room.wake.wait_timeout(guard, limit).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        self.room.sleepers.fetch_sub(1, SeqCst);
    }

    /// Takes nothing new from now on; what is dropped later is dropped for this cause.
    pub fn close(&self, cause: DropCause) {
        self.cause.store(cause);
        self.state.fetch_max(CLOSED, SeqCst);
        self.wake_all();
    }

    /// Closes the account, and what it still has queued is dropped when its turn comes.
    pub fn void(&self) {
        self.state.store(VOID, SeqCst);
        self.wake_all();
    }

    /// Bytes charged now.
    pub fn charged(&self) -> usize {
        self.room.charged.load(SeqCst)
    }

    fn mark(&self, moved: usize) {
        self.room.marked_moved.store(moved, SeqCst);
        self.room.marked_at.set(self.room.born.elapsed().as_micros() as u64);
    }

    fn still_for(&self) -> Duration {
        self.room.born.elapsed().saturating_sub(Duration::from_micros(self.room.marked_at.get()))
    }

    fn wake_all(&self) {
        if self.room.sleepers.load(SeqCst) > 0 {
            // Under the lock, so that a sleeper is either before its look or asleep.
            let _guard = self.room.sleep.lock().unwrap_or_else(PoisonError::into_inner);
            self.room.wake.notify_all();
        }
    }

    fn settle(&self, hold: &Hold) {
        self.books.settle(hold.packets, hold.bytes, (!hold.forwarded).then(|| self.cause.load()));
        let moved = self.room.moved.fetch_add(hold.cost, SeqCst).wrapping_add(hold.cost);
        if moved.wrapping_sub(self.room.marked_moved.load(SeqCst)) >= self.room.ceiling / MOVED_PART {
            self.mark(moved);
        }
        self.room.charged.fetch_sub(hold.cost, SeqCst);
        self.wake_all();
    }
}

/// A share of an account. Dropped without [`Hold::forwarded`], its packets count as dropped.
#[derive(Debug)]
pub struct Hold {
    account: Arc<Account>,
    cost: usize,
    packets: u32,
    bytes: usize,
    forwarded: bool,
}

impl Hold {
    /// The packets were written to their destination's socket.
    pub fn forwarded(mut self) {
        self.forwarded = true;
    }

    /// Whether the packets are to be dropped instead of written.
    pub fn is_void(&self) -> bool {
        self.account.state.load(SeqCst) == VOID
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.account.settle(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(chunk: u64, chunk_bytes: usize) -> Load {
        Load { packets: 1, bytes: 100, chunk, chunk_bytes }
    }

    fn account(ceiling: usize) -> (Arc<Account>, Arc<Books>) {
        let books = Arc::new(Books::default());
        (Account::new(ceiling, Arc::clone(&books)), books)
    }

    #[test]
    fn a_buffer_is_charged_once_however_many_slices_of_it_are_queued() {
        let (account, _) = account(10_000);
        let first = account.try_hold(load(1, 4096)).unwrap();
        let second = account.try_hold(load(1, 4096)).unwrap();
        assert_eq!(account.charged(), 4096 + 2 * ENTRY_COST);
        drop((first, second));
        assert_eq!(account.charged(), 0);
    }

    /// Failure mode 9: memory is what is bounded, not the number of packets.
    #[test]
    fn fm09_the_ceiling_holds_in_bytes_and_one_oversized_load_passes_alone() {
        let (account, _) = account(10_000);
        let big = account.try_hold(load(1, 1 << 20)).unwrap();
        assert_eq!(account.try_hold(load(2, 1)).unwrap_err(), Refusal::Full);
        drop(big);
        let mut holds = Vec::new();
        while let Ok(hold) = account.try_hold(load(2 + holds.len() as u64, 900)) {
            holds.push(hold);
        }
        assert_eq!(holds.len(), 10_000 / (900 + ENTRY_COST));
    }

    #[test]
    fn books_balance_through_forwarding_dropping_and_closing() {
        let (account, books) = account(1 << 20);
        let first = account.try_hold(load(1, 4096)).unwrap();
        let second = account.try_hold(load(1, 4096)).unwrap();
        assert_eq!(books.tally().queued, 2);
        assert!(books.tally().balances());
        first.forwarded();
        account.close(DropCause::Stopping);
        assert_eq!(account.try_hold(load(1, 1)).unwrap_err(), Refusal::Closed);
        drop(second);
        books.drop_at_once(3, 300, DropCause::NotConnected);
        let tally = books.tally();
        assert!(tally.balances());
        assert_eq!(
            tally.to_string(),
            "received 5 = forwarded 1 + queued 0 + dropped 4 (not connected 3, stopping 1)"
        );
    }

    /// Failure mode 8: waiting for room is a wait for a wake-up, not a poll.
    #[test]
    fn fm08_a_waiter_goes_on_as_soon_as_there_is_room() {
        let (account, _) = account(1000);
        let hold = account.try_hold(load(1, 900)).unwrap();
        let waiter = std::thread::spawn({
            let account = Arc::clone(&account);
            move || account.hold(load(2, 900), None).map(Hold::forwarded)
        });
        while account.room.sleepers.load(SeqCst) == 0 {
            std::thread::yield_now();
        }
        drop(hold);
        assert_eq!(waiter.join().unwrap(), Ok(()));
    }

    #[test]
    fn a_waiter_is_told_when_the_account_closes() {
        let (account, _) = account(1000);
        let _hold = account.try_hold(load(1, 900)).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| account.hold(load(2, 900), None).map(Hold::forwarded));
            while account.room.sleepers.load(SeqCst) == 0 {
                std::thread::yield_now();
            }
            account.close(DropCause::SessionEnded);
            assert_eq!(waiter.join().unwrap(), Err(Refusal::Closed));
        });
    }

    #[test]
    fn a_full_queue_that_does_not_move_is_stuck_after_the_time_allowed() {
        let (account, _) = account(1000);
        let begin = Instant::now();
        let _hold = account.try_hold(load(1, 900)).unwrap();
        let patience = Duration::from_millis(30);
        assert_eq!(account.hold(load(2, 900), Some(patience)).unwrap_err(), Refusal::Stuck);
        assert!(begin.elapsed() >= patience);
    }

    #[test]
    fn void_is_seen_by_the_sender() {
        let (account, books) = account(1000);
        let hold = account.try_hold(load(1, 100)).unwrap();
        account.close(DropCause::SessionEnded);
        assert!(!hold.is_void());
        account.void();
        assert!(hold.is_void());
        drop(hold);
        assert_eq!(books.tally().all_dropped(), 1);
        assert!(account.wait_idle(Instant::now()));
    }
}
