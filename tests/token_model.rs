//! The token's protocol under loom, which runs src/daemon/link/token.rs, the very file, in every order of the threads'
//! steps with up to two or three interruptions, and with every value that memory may show them. Queue, socket
//! and what pumps between them are stand-ins, the smallest there can be. A lost wake-up is a deadlock here, and
//! loom says so.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]
// loom switches stacks itself, and knows how on few processors.
#![cfg(target_arch = "x86_64")]

#[path = "../src/daemon/link/token.rs"]
mod token;

use std::collections::VecDeque;
use std::sync::Arc;

use loom::model::Builder;
use loom::sync::atomic::{AtomicUsize, Ordering::*};
use loom::sync::{Condvar, Mutex};
use loom::thread;

use token::{Job, Progress, Token};

/// The parts of the token.
mod sync {
    pub use loom::sync::atomic::{AtomicBool, Ordering::SeqCst, fence};
    pub use loom::sync::{Mutex, MutexGuard};
    pub use std::sync::{PoisonError, TryLockError};

    use loom::sync::Condvar;
    use std::sync::Arc;

    /// loom has none: std's, seen by others only with what stands before it.
    pub struct OnceLock<T> {
        value: std::sync::OnceLock<T>,
        set: AtomicBool,
    }

    impl<T> OnceLock<T> {
        pub fn new() -> Self {
            OnceLock { value: std::sync::OnceLock::new(), set: AtomicBool::new(false) }
        }

        pub fn set(&self, value: T) -> Result<(), T> {
            let was = self.value.set(value);
            self.set.store(true, loom::sync::atomic::Ordering::Release);
            was
        }

        pub fn get(&self) -> Option<&T> {
            let set = self.set.load(loom::sync::atomic::Ordering::Acquire);
            self.value.get().filter(|_| set)
        }
    }

    /// loom's own also wakes a thread that waits for a lock, which std's does not.
    #[derive(Clone)]
    pub struct Thread(Arc<(Mutex<bool>, Condvar)>);

    loom::thread_local! {
        static SELF: Thread = Thread(Arc::new((Mutex::new(false), Condvar::new())));
    }

    pub fn current() -> Thread {
        SELF.with(Thread::clone)
    }

    pub fn park() {
        let Thread(this) = current();
        let mut unparked = this.0.lock().unwrap();
        while !*unparked {
            unparked = this.1.wait(unparked).unwrap();
        }
        *unparked = false;
    }

    impl Thread {
        pub fn unpark(&self) {
            *self.0.0.lock().unwrap() = true;
            self.0.1.notify_one();
        }
    }
}

/// The behaviour of a socket when it has taken `takes` entries without anybody waiting.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    /// It takes more from a thread that waits.
    Waits,
    /// It takes nothing more until it is cut.
    Stalls,
    /// It breaks.
    Breaks,
}

struct Link {
    token: Token<VecDeque<usize>>,
    /// The waiting entries, in order. Only the counters are modelled: `pushed` is all that others than the holder see.
    parcels: std::sync::Mutex<VecDeque<usize>>,
    pushed: AtomicUsize,
    popped: AtomicUsize,
    takes: usize,
    then: Then,
    socket: Mutex<Socket>,
    changed: Condvar,
}

#[derive(Default)]
struct Socket {
    written: Vec<usize>,
    dropped: usize,
    cut: bool,
    failed: bool,
}

impl Link {
    fn new(takes: usize, then: Then) -> Arc<Self> {
        Arc::new(Link {
            token: Token::new(VecDeque::new()),
            parcels: Default::default(),
            pushed: AtomicUsize::new(0),
            popped: AtomicUsize::new(0),
            takes,
            then,
            socket: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    fn put(&self, parcel: usize) {
        self.parcels.lock().unwrap().push_back(parcel);
        self.pushed.fetch_add(1, Release);
        self.token.try_drive(self);
    }

    fn close(&self) {
        self.token.close(self, || {
            self.socket.lock().unwrap().cut = true;
            self.changed.notify_all();
        });
    }

    /// Puts in the entries that belong to this number, on a thread of their own.
    fn putter(self: &Arc<Self>, number: usize, parcels: usize) -> thread::JoinHandle<()> {
        let link = Arc::clone(self);
        thread::spawn(move || (0..parcels).for_each(|n| link.put(number * 10 + n)))
    }

    fn worker(self: &Arc<Self>) -> thread::JoinHandle<()> {
        let link = Arc::clone(self);
        thread::spawn(move || link.token.work(&*link))
    }

    fn pop(&self) -> Option<usize> {
        let popped = self.popped.load(Relaxed);
        (popped != self.pushed.load(Acquire)).then(|| {
            self.popped.store(popped + 1, Relaxed);
            self.parcels.lock().unwrap().pop_front().unwrap()
        })
    }

    /// Waits until this many are written or dropped: for ever, if some of them are forgotten.
    fn wait(&self, parcels: usize) {
        let mut socket = self.socket.lock().unwrap();
        while socket.written.len() + socket.dropped < parcels {
            socket = self.changed.wait(socket).unwrap();
        }
    }

    /// Nobody has anything left, and what was written is in the order of each putter.
    fn check(&self, parcels: usize) {
        let socket = self.socket.lock().unwrap();
        assert_eq!(socket.written.len() + socket.dropped, parcels, "written or dropped");
        for number in 0..3 {
            let its: Vec<_> = socket.written.iter().filter(|&parcel| parcel / 10 == number).collect();
            assert!(its.is_sorted(), "{its:?} are out of order");
        }
    }
}

impl Job for Link {
    type State = VecDeque<usize>;
    type Error = ();

    fn drive(&self, state: &mut VecDeque<usize>, wait: bool) -> Result<Progress, ()> {
        loop {
            let closed = self.token.is_closed();
            while let Some(parcel) = self.pop() {
                state.push_back(parcel);
            }
            let mut socket = self.socket.lock().unwrap();
            if closed {
                socket.dropped += state.len();
                state.clear();
                self.changed.notify_all();
            }
            let Some(&parcel) = state.front() else { return Ok(Progress::Empty) };
            let full = socket.written.len() >= self.takes;
            while full && wait && self.then == Then::Stalls && !socket.cut {
                socket = self.changed.wait(socket).unwrap();
            }
            if socket.cut || full && self.then == Then::Breaks {
                socket.dropped += state.len();
                state.clear();
                self.changed.notify_all();
                return Err(());
            }
            if full && !wait {
                return Ok(Progress::Left);
            }
            socket.written.push(parcel);
            state.pop_front();
            self.changed.notify_all();
        }
    }

    fn is_empty(&self) -> bool {
        self.popped.load(Relaxed) == self.pushed.load(Relaxed)
    }

    fn failed(&self, (): ()) {
        self.socket.lock().unwrap().failed = true;
    }
}

/// Runs all orders in which a thread is interrupted against its will at most this many times.
fn model(interruptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(interruptions);
    builder.check(run);
}

/// A thread that does not get the token leaves its entries to the holder, who has to see it.
#[test]
fn token_contention_between_putters_forgets_no_parcel() {
    model(3, || {
        let link = Link::new(9, Then::Waits);
        let putters = [link.putter(0, 2), link.putter(1, 2)];
        putters.into_iter().for_each(|putter| putter.join().unwrap());
        link.check(4);
        assert!(link.is_empty());
    });
}

/// Entries that the socket does not take are written by the link's own thread, whenever that starts, and so are those
/// put in while that thread has the token.
#[test]
fn partial_writes_are_left_to_the_links_thread() {
    for takes in [0, 1] {
        model(2, move || {
            let link = Link::new(takes, Then::Waits);
            let worker = link.worker();
            let putter = link.putter(0, 2);
            link.wait(2);
            putter.join().unwrap();
            link.check(2);
            link.close();
            worker.join().unwrap();
        });
    }
}

/// Two putters and the link's own thread.
#[test]
fn token_contention_with_the_links_thread_forgets_no_parcel() {
    model(2, || {
        let link = Link::new(1, Then::Waits);
        let worker = link.worker();
        let putters = [link.putter(0, 1), link.putter(1, 1)];
        link.wait(2);
        putters.into_iter().for_each(|putter| putter.join().unwrap());
        link.check(2);
        link.close();
        worker.join().unwrap();
    });
}

/// A session that ends in the middle: its thread ends, too, though it may be in a write that takes nothing or
/// asleep, and nothing stays behind, not even what is put in later.
#[test]
fn closing_in_the_middle_drops_everything_and_ends_the_thread() {
    for takes in [0, 1] {
        model(2, move || {
            let link = Link::new(takes, Then::Stalls);
            let worker = link.worker();
            let putter = link.putter(0, 2);
            link.close();
            putter.join().unwrap();
            worker.join().unwrap();
            link.check(2);
            link.put(2);
            link.check(3);
        });
    }
}

/// A link that breaks under the holder of the token: the break is reported, and everything else is dropped.
#[test]
fn a_broken_link_drops_everything_and_is_told() {
    model(2, || {
        let link = Link::new(1, Then::Breaks);
        let putters = [link.putter(0, 2), link.putter(1, 1)];
        putters.into_iter().for_each(|putter| putter.join().unwrap());
        link.check(3);
        assert!(link.socket.lock().unwrap().failed);
        assert!(link.token.is_closed());
    });
}
