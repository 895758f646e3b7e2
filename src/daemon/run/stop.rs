//! The orderly end: accept nothing more, let the queues drain, close the links, log the counters.
//!
//! The only place where the timer thread waits for others, and never longer than the limits here. Called last of all.

use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, unbounded};
use log::{info, warn};

use super::Coordinator;
use crate::daemon::peer::Direction;
use crate::service::News;
use crate::wire::Class;

/// Longest time for the other sides to close their ends after the last byte.
const LINGER: Duration = Duration::from_millis(250);
/// Longest time for the links' threads to drop the rest after the links were closed.
const CLOSE_LIMIT: Duration = Duration::from_millis(500);

/// The way in which the timer thread knows that every reading thread has ended.
pub(super) struct Shutdown {
    /// Each reading thread has a clone: it is disconnected when all of them have ended.
    pub guard: Option<Sender<()>>,
    guarded: Receiver<()>,
}

impl Shutdown {
    pub fn new() -> Self {
        let (guard, guarded) = unbounded();
        Shutdown { guard: Some(guard), guarded }
    }
}

impl Coordinator {
    /// Returns how many connections were refused, by cause.
    pub(super) fn refused(&self) -> Vec<(&'static str, u64)> {
        [&self.reactor.refusals.list()[..], &self.kernel.refused(), &self.commands.refused()].concat()
    }

    /// Ends everything, at the latest soon after `deadline`; returns the exit code.
    pub(super) fn stop_all(&mut self, deadline: Instant, code: u8) -> u8 {
        self.service.notifier.tell(News::Stopping);
        self.reactor.command(crate::daemon::connect::ReactorCommand::Stop);
        self.router.stop();
        let sessions = self.sessions();
        let kernel = self.router.table().kernel.clone();
        let budgets = || sessions.iter().flat_map(|session| session.budgets());
        // Not all(): each budget gets its time, as long as there is any.
        let drained = budgets().filter(|budget| !budget.wait_idle(deadline)).count() == 0;
        if !drained {
            warn!("not every queue could be drained in time");
        }
        // Links are closed for writing first, and read until the other sides have closed theirs: a socket that is
        // closed with unread bytes takes back the bytes that it has just sent. The data links go first: the other
        // side reads them to their end before it sees that the session is over.
        sessions.iter().for_each(|session| session.finish());
        kernel.iter().for_each(|kernel| kernel.finish());
        self.shutdown.guard = None;
        let _ = self.shutdown.guarded.recv_deadline(deadline.min(Instant::now() + LINGER));
        sessions.iter().for_each(|session| session.end());
        kernel.iter().for_each(|kernel| kernel.close());
        let limit = Instant::now() + CLOSE_LIMIT;
        // Packets that the readers still drop are counted, too.
        let _ = self.shutdown.guarded.recv_deadline(limit);
        let stuck = budgets().filter(|budget| !budget.wait_idle(limit)).count();
        if stuck > 0 {
            warn!("{stuck} queues could not be emptied");
        }
        self.tell_books();
        code
    }

    fn tell_books(&self) {
        for entry in self.router.table().peers.values() {
            for class in Class::BOTH {
                for direction in Direction::BOTH {
                    let snapshot = entry.statistics.counters(direction, class).snapshot();
                    if snapshot.received > 0 {
                        info!("books: {} {class} {}: {snapshot}", entry.statistics.key, direction.name());
                    }
                }
            }
        }
        let counted = |list: &[(&str, u64)]| {
            let some = list.iter().filter(|(_, n)| *n > 0);
            some.map(|(what, n)| format!("{what} {n}")).collect::<Vec<_>>().join(", ")
        };
        let unroutable = counted(&self.router.unroutable.list());
        if !unroutable.is_empty() {
            info!("packets that went nowhere: {unroutable}");
        }
        let refused = counted(&self.refused());
        if !refused.is_empty() {
            info!("refused calls: {refused}");
        }
        if self.core.stalls() > 0 {
            info!("heartbeat verdicts suspended: {}", self.core.stalls());
        }
    }
}
