//! The service manager, as the timer thread deals with it: signs of life that both it and the reactor stand for, and
//! the line of status.
//!
//! Never writes to the service manager itself, and never waits for the reactor. Used by the timer thread alone.

use std::time::{Duration, Instant};

use log::Level;

use super::Coordinator;
use crate::daemon::connect::ReactorCommand;
use crate::limited;
use crate::service::{self, News, Notifier};

/// The service manager, as the timer thread deals with it.
pub(super) struct Service {
    watchdog: Option<Watchdog>,
    pub notifier: Notifier,
}

impl Service {
    pub fn new(notifier: Notifier) -> Self {
        Service { watchdog: Watchdog::new(), notifier }
    }

    /// Returns the time until the watchdog needs the next sign of life, if there is a watchdog.
    pub fn left(&self) -> Option<Duration> {
        self.watchdog.as_ref().map(Watchdog::left)
    }
}

/// The watchdog of the service manager, if this service has one.
struct Watchdog {
    /// Half of the time that it allows.
    interval: Duration,
    due: Instant,
    /// The reactor's progress at the last look.
    beat: u64,
}

impl Watchdog {
    fn new() -> Option<Self> {
        // Nothing was asked of the reactor yet, so that the first look finds progress, whatever it is.
        Some(Watchdog { interval: service::watchdog()?, due: Instant::now(), beat: u64::MAX })
    }

    fn left(&self) -> Duration {
        self.due.saturating_duration_since(Instant::now())
    }
}

impl Coordinator {
    /// Sends a sign of life when it is due: this thread runs, and so does the reactor.
    pub(super) fn pet_watchdog(&mut self) {
        let Some(watchdog) = self.service.watchdog.as_mut().filter(|watchdog| watchdog.left().is_zero())
        else {
            return;
        };
        watchdog.due = Instant::now() + watchdog.interval;
        let beat = self.reactor.beat();
        if beat == watchdog.beat {
            limited!(Level::Error, ("watchdog", 0), "the reactor thread makes no progress");
        } else {
            watchdog.beat = beat;
            self.service.notifier.tell(News::Alive);
        }
        // Wakes it, so that it shows progress the next time.
        self.reactor.command(ReactorCommand::Beat);
    }

    /// Sends the connected peers to the service manager.
    pub(super) fn tell_status(&self) {
        let up = self.core.up().count();
        let wanted = self.admission.allowed.iter().filter(|allowed| allowed.wanted).count();
        let kernel = if self.router.table().kernel.is_some() { "attached" } else { "not attached" };
        let mut line = format!("{up} of {wanted} peers connected, kernel module {kernel}");
        for wait in self.waits() {
            line += &format!("; waiting: {wait}");
        }
        self.service.notifier.tell(News::Status(line));
    }
}
