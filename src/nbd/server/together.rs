//! Answers of one thread that leave together: a thread that completes several replies holds a [`Together`], and each
//! connection's answers go out in one write when it is dropped.
//!
//! Must not be held by a thread that waits for anything. Used by the connections' readers and by the threads that
//! complete replies in batches.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::Arc;

/// A connection with answers to write.
pub(super) trait Flush: Send + Sync {
    /// Writes the answers that are ready, without blocking.
    fn flush(&self);
}

thread_local! {
    /// The connections whose answers wait on this thread; `None` while nothing is held back.
    static WAITING: RefCell<Option<Vec<Arc<dyn Flush>>>> = const { RefCell::new(None) };
}

/// Holds back this thread's answers until it is dropped. One inside another has no effect.
pub struct Together {
    outermost: bool,
    // A `Together` belongs to its thread.
    thread: PhantomData<*const ()>,
}

impl Together {
    /// Begins to hold back answers.
    #[expect(clippy::new_without_default, reason = "it acts on its thread, which a default should not")]
    pub fn new() -> Self {
        let outermost = WAITING.with_borrow_mut(|waiting| match waiting {
            Some(_) => false,
            None => {
                *waiting = Some(Vec::new());
                true
            }
        });
        Together { outermost, thread: PhantomData }
    }
}

impl Drop for Together {
    fn drop(&mut self) {
        let waiting = if self.outermost { WAITING.take() } else { None };
        for connection in waiting.into_iter().flatten() {
            connection.flush();
        }
    }
}

/// Writes the connection's answers now, or when this thread's [`Together`] is dropped.
pub(super) fn flush_or_hold<C: Flush + 'static>(connection: &Arc<C>) {
    let held = WAITING.with_borrow_mut(|waiting| {
        let Some(waiting) = waiting else { return false };
        if !waiting.iter().any(|other| std::ptr::addr_eq(Arc::as_ptr(other), Arc::as_ptr(connection))) {
            waiting.push(Arc::clone(connection) as Arc<dyn Flush>);
        }
        true
    });
    if !held {
        connection.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Flush for Counter {
        fn flush(&self) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn held_answers_leave_once_when_the_outermost_is_dropped() {
        let (one, other) = (Arc::new(Counter::default()), Arc::new(Counter::default()));
        let counts = || (one.0.load(SeqCst), other.0.load(SeqCst));
        flush_or_hold(&one);
        assert_eq!(counts(), (1, 0));
        let outer = Together::new();
        let inner = Together::new();
        for connection in [&one, &one, &other] {
            flush_or_hold(connection);
        }
        drop(inner);
        assert_eq!(counts(), (1, 0), "the outer one still holds");
        drop(outer);
        assert_eq!(counts(), (2, 1));
        flush_or_hold(&other);
        assert_eq!(counts(), (2, 2));
    }
}
