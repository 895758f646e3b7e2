//! The orderly end: accept nothing more, let the queues drain, close, tell the books.

use std::time::{Duration, Instant};

use log::{info, warn};

use super::Timer;
use crate::peer::Direction;
use crate::wire::Class;

/// How long the other sides may take to close their ends once nothing more will come.
const LINGER: Duration = Duration::from_millis(250);
/// How long the links' threads may take to drop what was left after the links were closed.
const CLOSE_LIMIT: Duration = Duration::from_millis(500);

impl Timer {
    /// Ends everything, at the latest soon after `deadline`; gives back the exit code.
    pub(super) fn stop_all(&mut self, deadline: Instant, code: u8) -> u8 {
        super::service::tell(&[sd_notify::NotifyState::Stopping]);
        self.reactor.order(crate::connect::Order::Stop);
        self.switch.stop();
        let sessions = self.sessions();
        let device = self.switch.table().device.clone();
        let accounts = || sessions.iter().flat_map(|session| session.accounts());
        // Not all(): each one gets its time, as long as there is any.
        let drained = accounts().filter(|account| !account.wait_idle(deadline)).count() == 0;
        if !drained {
            warn!("not every queue could be drained in time");
        }
        // Links are closed for writing first, and read until the other sides have closed theirs: a socket
        // that is closed with unread bytes takes back what it has just sent.
        // The data links go first: the other side reads them to their end before it sees that the session is
        // over.
        sessions.iter().for_each(|session| session.finish());
        device.iter().for_each(|device| device.finish());
        self.guard = None;
        let _ = self.guarded.recv_deadline(deadline.min(Instant::now() + LINGER));
        sessions.iter().for_each(|session| session.end());
        device.iter().for_each(|device| device.close());
        let limit = Instant::now() + CLOSE_LIMIT;
        // What the readers still drop belongs into the books.
        let _ = self.guarded.recv_deadline(limit);
        let stuck = accounts().filter(|account| !account.wait_idle(limit)).count();
        if stuck > 0 {
            warn!("{stuck} queues could not be emptied");
        }
        self.tell_books();
        code
    }

    fn tell_books(&self) {
        for entry in self.switch.table().peers.values() {
            for class in Class::BOTH {
                for direction in Direction::BOTH {
                    let tally = entry.record.books(direction, class).tally();
                    if tally.received > 0 {
                        info!("books: {} {class} {}: {tally}", entry.record.key, direction.name());
                    }
                }
            }
        }
        let counted = |list: &[(&str, u64)]| {
            let some = list.iter().filter(|(_, n)| *n > 0);
            some.map(|(what, n)| format!("{what} {n}")).collect::<Vec<_>>().join(", ")
        };
        let strays = counted(&self.switch.strays.list());
        if !strays.is_empty() {
            info!("packets that went nowhere: {strays}");
        }
        let second = [("second kernel module", self.second_kernels.get())];
        let refused = counted(&[&self.reactor.refusals.list()[..], &second].concat());
        if !refused.is_empty() {
            info!("refused calls: {refused}");
        }
        if self.core.stalls() > 0 {
            info!("heartbeat verdicts suspended: {}", self.core.stalls());
        }
    }
}
