//! The token of a link's writing end: its holder takes from the queue and writes to the socket. A thread that puts an
//! entry in tries to get the token; if it fails, it leaves its work to the holder, so the holder looks at the queue
//! once more after it has released the token.
//!
//! Knows neither queue nor socket, a [`Job`] does. Must never use anything of std's threads but through
//! [`super::sync`]: tests/token_model.rs compiles this very file against loom's, which tries all interleavings.

use super::sync::{
    AtomicBool, Mutex, MutexGuard, OnceLock, PoisonError, SeqCst, Thread, TryLockError, current, fence, park,
};

/// The work of the token's holder.
pub(super) trait Job {
    /// The state that only the holder may touch.
    type State;
    /// The reason for which nothing more can be written.
    type Error;

    /// Writes until nothing is left, or (without `wait`) until the socket takes no more. If the token is closed,
    /// drops everything.
    ///
    /// # Errors
    /// Nothing more can be written; the token is closed then.
    fn drive(&self, state: &mut Self::State, wait: bool) -> Result<Progress, Self::Error>;

    /// Returns true if nothing waits to be gathered.
    fn is_empty(&self) -> bool;

    /// Reports, without the token, why nothing more can be written; must not block.
    fn failed(&self, error: Self::Error);
}

/// The state that a holder leaves behind.
pub(super) enum Progress {
    /// Nothing is left.
    Empty,
    /// The socket takes no more for now, or others have put in a lot.
    Left,
}

/// The token, and the way to wake the thread that waits where others do not.
pub(super) struct Token<S> {
    /// The job's state. No other lock is taken under this one but those of budgets and of deferred entries.
    state: Mutex<S>,
    closed: AtomicBool,
    thread: OnceLock<Thread>,
}

impl<S> Token<S> {
    pub fn new(state: S) -> Self {
        Token { state: Mutex::new(state), closed: AtomicBool::new(false), thread: OnceLock::new() }
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(SeqCst)
    }

    /// Closes the token, so that every entry queued, now or later, is dropped. `cut` ends a write that blocks.
    pub fn close(&self, job: &impl Job<State = S>, cut: impl FnOnce()) {
        self.closed.store(true, SeqCst);
        cut();
        self.try_drive(job);
        self.wake();
    }

    /// Writes queued entries without blocking, unless another thread has the token. To be called after each push.
    pub fn try_drive(&self, job: &impl Job<State = S>) {
        loop {
            // A holder that is about to leave looks at the queue once more after it has released the token (see
            // below): either it sees the new entry, or the token is free by now.
            fence(SeqCst);
            let state = match self.state.try_lock() {
                Ok(state) => state,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            if let Progress::Left = self.turn(job, state, false) {
                return self.wake();
            }
            fence(SeqCst);
            if job.is_empty() {
                return;
            }
        }
    }

    /// Runs the link's own thread: writes entries that others left, until the token is closed.
    pub fn work(&self, job: &impl Job<State = S>) {
        let _ = self.thread.set(current());
        // The closing thread (which has a fence, too) sees this thread to be woken, or this thread sees the token
        // closed.
        fence(SeqCst);
        while !self.is_closed() {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            self.turn(job, state, true);
            fence(SeqCst);
            if job.is_empty() {
                park();
            }
        }
        self.try_drive(job);
    }

    fn turn<J: Job<State = S>>(&self, job: &J, mut state: MutexGuard<'_, S>, wait: bool) -> Progress {
        let progress = job.drive(&mut state, wait);
        if progress.is_err() {
            self.closed.store(true, SeqCst);
        }
        drop(state);
        progress.unwrap_or_else(|error| {
            job.failed(error);
            Progress::Empty
        })
    }

    /// Has the link's own thread look at the queue.
    pub fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}
