//! At most one line a second for the same cause, with the count of those left out.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::Level;

/// Time between two lines of the same cause.
const PAUSE: Duration = Duration::from_secs(1);

/// What repeats: a fixed word, and the peer or type it concerns. Never anything a caller can choose freely,
/// since each cause is remembered.
pub type Cause = (&'static str, u64);

struct Repeated {
    last: Instant,
    level: Level,
    left_out: u64,
    text: String,
}

static REPEATED: LazyLock<Mutex<HashMap<Cause, Repeated>>> = LazyLock::new(Mutex::default);
static PENDING: AtomicBool = AtomicBool::new(false);

/// Logs the text now, or remembers it to be told later by [`tell_left_out`].
pub fn limited(level: Level, cause: Cause, text: fmt::Arguments<'_>) {
    let now = Instant::now();
    let mut repeated = REPEATED.lock().unwrap_or_else(PoisonError::into_inner);
    match repeated.get_mut(&cause) {
        Some(before) if now < before.last + PAUSE => {
            before.left_out += 1;
            before.text = text.to_string();
            PENDING.store(true, Relaxed);
        }
        before => {
            let left_out = before.map_or(0, |before| before.left_out);
            repeated.insert(cause, Repeated { last: now, level, left_out: 0, text: String::new() });
            drop(repeated);
            tell(level, text, left_out);
        }
    }
}

/// Whether [`tell_left_out`] will have something to say.
pub fn left_out_pending() -> bool {
    PENDING.load(Relaxed)
}

/// Tells the last line of each cause that was left out and whose pause is over. To be called about once a
/// second.
pub fn tell_left_out() {
    let now = Instant::now();
    let mut due = Vec::new();
    let mut pending = false;
    let mut repeated = REPEATED.lock().unwrap_or_else(PoisonError::into_inner);
    for entry in repeated.values_mut().filter(|entry| entry.left_out > 0) {
        if now < entry.last + PAUSE {
            pending = true;
            continue;
        }
        due.push((entry.level, std::mem::take(&mut entry.text), entry.left_out - 1));
        entry.left_out = 0;
        entry.last = now;
    }
    PENDING.store(pending, Relaxed);
    drop(repeated);
    for (level, text, left_out) in due {
        tell(level, format_args!("{text}"), left_out);
    }
}

fn tell(level: Level, text: fmt::Arguments<'_>, left_out: u64) {
    match left_out {
        0 => log::log!(level, "{text}"),
        n => log::log!(level, "{text} ({n} more like this left out)"),
    }
}
