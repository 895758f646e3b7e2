//! A look at packet headers as they are read, for whoever traces. Costs one look at a flag while nobody does.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use crate::wire::Header;

/// Is shown each header and the name of the link it was read from; says whether it wants more.
pub type Tap = Box<dyn FnMut(&str, &Header) -> bool + Send>;

static ON: AtomicBool = AtomicBool::new(false);
static TAPS: Mutex<Vec<Tap>> = Mutex::new(Vec::new());

/// Adds a tap. It is called by the threads that read, and must not block.
pub fn add(tap: Tap) {
    TAPS.lock().unwrap_or_else(PoisonError::into_inner).push(tap);
    ON.store(true, Relaxed);
}

/// Shows a header to every tap.
#[inline]
pub(super) fn show(link: &str, header: &Header) {
    if ON.load(Relaxed) {
        show_taps(link, header);
    }
}

#[cold]
fn show_taps(link: &str, header: &Header) {
    let mut taps = TAPS.lock().unwrap_or_else(PoisonError::into_inner);
    taps.retain_mut(|tap| tap(link, header));
    ON.store(!taps.is_empty(), Relaxed);
}
