//! Warnings before writes have filled the queue for a far site, or are more than its ordered log takes at once for a catch-up.
//!
//! Each warning comes once; decides nothing. Called by the mirror's timer, and read by the status.

use std::time::Duration;

use super::journal::Journal;
use super::progress::Progress;
use crate::nbd::core::Core;
use crate::wire::SiteId;

/// Seconds beforehand at which people hear of it.
const SOON: u64 = 60;

/// The room of a queue or log, and what was said of it since it last had time.
#[derive(Debug, Default)]
struct Room {
    progress: Progress,
    is_soon_said: bool,
    is_full_said: bool,
}

/// The room for each of a mirror's far sites: in the queue here, in the ordered log there.
#[derive(Debug, Default)]
pub(super) struct Warnings(Vec<(SiteId, Room, Room)>);

impl Room {
    fn seconds(&self, room: u64) -> Option<u64> {
        room.checked_div(self.progress.rate())
    }

    /// Returns true, once each time, if it is full in less than [`SOON`], and if it is full.
    fn observe(&mut self, now: Duration, room: u64) -> (bool, bool) {
        self.progress.observe(now, room);
        let seconds = self.seconds(room);
        let (is_soon, is_full) = (seconds.is_some_and(|seconds| seconds < SOON), room == 0);
        let was = (self.is_soon_said || is_full, self.is_full_said);
        // Twice the time, so that a rate that changes a little does not repeat it.
        let has_time = !is_full && seconds.is_none_or(|seconds| seconds >= SOON.saturating_mul(2));
        self.is_soon_said = (self.is_soon_said || is_soon) && !has_time;
        self.is_full_said = is_full;
        (is_soon && !was.0, is_full && !was.1)
    }
}

impl Warnings {
    /// Looks at the room for a site.
    pub fn look(&mut self, now: Duration, site: SiteId, core: &Core, journal: &mut Journal) {
        let Some(lag) = core.lag(site) else { return };
        if !self.0.iter().any(|(known, ..)| *known == site) {
            self.0.push((site, Room::default(), Room::default()));
        }
        let Some((_, queue, log)) = self.0.iter_mut().find(|(known, ..)| *known == site) else { return };
        if queue.observe(now, lag.room).0 {
            journal.add(Some(site), "queue fills", "in less than a minute bits take over at this rate");
        }
        let Some(room) = core.catch_up_room_left(site) else { return };
        let (is_soon, is_full) = log.observe(now, room);
        if is_soon {
            journal.add(
                Some(site),
                "catch-up grows",
                "in less than a minute, at this rate, more is marked than the site's ordered log takes at once: then its copy cannot be \
                 used while it catches up, unless little of that differs",
            );
        }
        if is_full {
            journal.add(
                Some(site),
                "catch-up is large",
                "more is marked than the site's ordered log takes at once: its copy cannot be used while it catches up, unless little of \
                 that differs",
            );
        }
    }

    /// Returns the seconds until the queue for a site is full at the rate of late; `None` if it does not grow.
    pub fn seconds_to_full(&self, site: SiteId, room: u64) -> Option<u64> {
        self.0.iter().find(|(known, ..)| *known == site)?.1.seconds(room)
    }

    /// Returns the seconds until a catch-up of a site is more than its ordered log takes at once, at the rate of late; `None` if
    /// it does not grow.
    pub fn seconds_to_large(&self, site: SiteId, room: u64) -> Option<u64> {
        self.0.iter().find(|(known, ..)| *known == site)?.2.seconds(room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_warning_comes_once_until_there_is_time_again() {
        let mut room = Room::default();
        let mut said = Vec::new();
        // Nothing for two seconds, then 10 a second down to nothing, then all of it is there again, and so once more.
        for (n, left) in (0..20)
            .map(|_| 1000)
            .chain((0..1200_u64).map(|n| 1000_u64.saturating_sub(n)))
            .chain((0..100).map(|_| 1000))
            .chain((0..600).map(|n| 1000 - n))
            .enumerate()
        {
            let (is_soon, is_full) = room.observe(Duration::from_millis(100) * n as u32, left);
            if is_soon || is_full {
                said.push((left, is_soon, is_full));
            }
        }
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(said[0].0 > 500 && said[0].1 && said[1] == (0, false, true) && said[2].1, "{said:?}");
    }
}
