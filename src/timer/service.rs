//! What the service manager is told: ready, reloading, stopping, a line of status, and that all is well.
//!
//! Without a service manager that listens, all of it does nothing.

use std::time::{Duration, Instant};

use log::Level;
use sd_notify::NotifyState;

use super::Timer;
use crate::connect::Order;
use crate::limited;

/// The watchdog of the service manager, if it has one for this service.
pub(super) struct Watchdog {
    /// Half of the time it allows.
    interval: Duration,
    due: Instant,
    /// How far the reactor had come at the last look.
    beat: u64,
}

impl Watchdog {
    pub(super) fn new() -> Option<Self> {
        let interval = sd_notify::watchdog_enabled()? / 2;
        Some(Watchdog { interval, due: Instant::now(), beat: 0 })
    }

    pub(super) fn left(&self) -> Duration {
        self.due.saturating_duration_since(Instant::now())
    }
}

/// Tells the service manager; one that cannot be told must not stop the daemon.
pub(super) fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        limited!(Level::Warn, ("notify", 0), "cannot notify the service manager: {error}");
    }
}

impl Timer {
    /// Says that all is well, when it is time: this thread runs, and so does the reactor.
    pub(super) fn pet_watchdog(&mut self) {
        let Some(watchdog) = self.watchdog.as_mut().filter(|watchdog| watchdog.left().is_zero()) else {
            return;
        };
        watchdog.due = Instant::now() + watchdog.interval;
        let beat = self.reactor.beat();
        if beat == watchdog.beat {
            limited!(Level::Error, ("watchdog", 0), "the reactor thread makes no progress");
        } else {
            watchdog.beat = beat;
            tell(&[NotifyState::Watchdog]);
        }
        // Wakes it, so that it has something to show the next time.
        self.reactor.order(Order::Beat);
    }

    /// Tells the service manager who is connected.
    pub(super) fn tell_status(&self) {
        let up = self.core.up().count();
        let wanted = self.admission.known.iter().filter(|known| known.wanted).count();
        let kernel = if self.switch.table().device.is_some() { "attached" } else { "not attached" };
        tell(&[NotifyState::Status(&format!("{up} of {wanted} peers connected, kernel module {kernel}"))]);
    }
}
