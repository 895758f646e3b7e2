//! At most one line a second for the same cause, with the count of those left out.
//!
//! Never blocks on a writer. A line that is held back keeps the time of its event, and is written before any later line,
//! so that a log is in the order of events. Used through [`limited!`](crate::limited!) by all code whose lines a peer or
//! client can cause.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use log::Level;

/// Time between two lines of the same cause, unless another line comes between them.
const PAUSE: Duration = Duration::from_secs(1);

/// The cause of a line: a fixed word, and the peer or type it concerns. Never a value that a caller can choose
/// freely, since each cause is remembered.
pub type Cause = (&'static str, u64);

struct Repeated {
    last: Instant,
    /// The newest line since then, and how many there were.
    held: Option<(Held, u64)>,
}

/// A line that is held back.
struct Held {
    at: SystemTime,
    level: Level,
    text: String,
}

/// Locked for a moment only, and never while a line is written.
static REPEATED: LazyLock<Mutex<HashMap<Cause, Repeated>>> = LazyLock::new(Mutex::default);
static PENDING: AtomicBool = AtomicBool::new(false);

fn repeated() -> MutexGuard<'static, HashMap<Cause, Repeated>> {
    REPEATED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Logs the text now, or keeps it for [`tell_left_out`].
pub fn limited(level: Level, cause: Cause, text: fmt::Arguments<'_>) {
    if level > log::max_level() {
        return;
    }
    let line = Held { at: SystemTime::now(), level, text: text.to_string() };
    let now = Instant::now();
    let mut repeated = repeated();
    let mut left_out = 0;
    if let Some(before) = repeated.get_mut(&cause) {
        let so_far = before.held.take().map_or(0, |(_, count)| count);
        if now < before.last + PAUSE {
            before.held = Some((line, so_far + 1));
            PENDING.store(true, Relaxed);
            return;
        }
        left_out = so_far;
    }
    repeated.insert(cause, Repeated { last: now, held: None });
    drop(repeated);
    tell_all();
    tell(line, left_out);
}

/// Returns true if [`tell_left_out`] will log something.
pub fn left_out_pending() -> bool {
    PENDING.load(Relaxed)
}

/// Logs the lines that are held back, if the pause of one is over. To be called about once a second.
pub fn tell_left_out() {
    let now = Instant::now();
    if repeated().values().any(|entry| entry.held.is_some() && now >= entry.last + PAUSE) {
        tell_all();
    }
}

/// Logs the lines that are held back, in the order of their events: another line comes now.
pub(super) fn tell_all() {
    if !PENDING.swap(false, Relaxed) {
        return;
    }
    let now = Instant::now();
    let mut due = Vec::new();
    for entry in repeated().values_mut() {
        if let Some(held) = entry.held.take() {
            entry.last = now;
            due.push(held);
        }
    }
    due.sort_by_key(|(line, _)| line.at);
    for (line, count) in due {
        tell(line, count - 1);
    }
}

fn tell(Held { at, level, mut text }: Held, left_out: u64) {
    if left_out > 0 {
        text += &format!(" ({left_out} more like this left out)");
    }
    super::put(at, level, text);
}
