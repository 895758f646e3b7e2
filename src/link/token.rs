//! The token of a link's writing end: whoever holds it takes from the queue and writes to the socket. Whoever
//! puts something in tries to get it; who fails leaves its work to the holder, so the holder looks at the
//! queue once more after it has let go.
//!
//! Knows neither queue nor socket, a [`Job`] does. Must never use anything of std's threads but through
//! [`super::sync`]: tests/token_model.rs compiles this very file against loom's, which tries all interleavings.

use super::sync::{
    AtomicBool, Mutex, MutexGuard, OnceLock, PoisonError, SeqCst, Thread, TryLockError, current, fence, park,
};

/// What the token's holder does.
pub(super) trait Job {
    /// What only the holder may touch.
    type Stage;
    /// Why nothing more can be written.
    type Error;

    /// Writes until nothing is left, or (without `wait`) until the socket takes no more. Of a closed token's
    /// job, drops everything.
    ///
    /// # Errors
    /// Nothing more can be written; the token is closed then.
    fn pump(&self, stage: &mut Self::Stage, wait: bool) -> Result<Pumped, Self::Error>;

    /// Whether nothing waits to be gathered.
    fn is_empty(&self) -> bool;

    /// Is told, without the token, why nothing more can be written; must not block.
    fn failed(&self, error: Self::Error);
}

/// What a holder leaves.
pub(super) enum Pumped {
    /// Nothing is left.
    Empty,
    /// The socket takes no more for now, or others have put in a lot.
    Left,
}

/// The token, and the way to wake the thread that waits where others do not.
pub(super) struct Token<S> {
    /// No other lock is taken under it but those of accounts and of what is made late.
    stage: Mutex<S>,
    closed: AtomicBool,
    thread: OnceLock<Thread>,
}

impl<S> Token<S> {
    pub fn new(stage: S) -> Self {
        Token { stage: Mutex::new(stage), closed: AtomicBool::new(false), thread: OnceLock::new() }
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(SeqCst)
    }

    /// Closes it, so that whatever is queued, now or later, is dropped. `cut` ends a write that blocks.
    pub fn close(&self, job: &impl Job<Stage = S>, cut: impl FnOnce()) {
        self.closed.store(true, SeqCst);
        cut();
        self.kick(job);
        self.wake();
    }

    /// Carries on what is queued without blocking, if nobody else is at it. To be called after each push.
    pub fn kick(&self, job: &impl Job<Stage = S>) {
        loop {
            // A holder that is about to leave looks at the queue once more after it has let go (see below):
            // either it sees what was put in, or the token is free by now.
            fence(SeqCst);
            let stage = match self.stage.try_lock() {
                Ok(stage) => stage,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            if let Pumped::Left = self.hold(job, stage, false) {
                return self.wake();
            }
            fence(SeqCst);
            if job.is_empty() {
                return;
            }
        }
    }

    /// The link's own thread: writes what others left, until the token is closed.
    pub fn work(&self, job: &impl Job<Stage = S>) {
        let _ = self.thread.set(current());
        // Whoever closes it (which has a fence, too) sees this thread to be woken, or this thread sees it closed.
        fence(SeqCst);
        while !self.is_closed() {
            let stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
            self.hold(job, stage, true);
            fence(SeqCst);
            if job.is_empty() {
                park();
            }
        }
        self.kick(job);
    }

    fn hold<J: Job<Stage = S>>(&self, job: &J, mut stage: MutexGuard<'_, S>, wait: bool) -> Pumped {
        let pumped = job.pump(&mut stage, wait);
        if pumped.is_err() {
            self.closed.store(true, SeqCst);
        }
        drop(stage);
        pumped.unwrap_or_else(|error| {
            job.failed(error);
            Pumped::Empty
        })
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}
