//! Protection of a program below file systems of its own machine: to have memory, the system writes out theirs, and that
//! ends here.
//!
//! So it must not wait for memory of its own that was paged out, nor for that writing, nor be ended for want of memory.
//! Each needs a privilege; without it the program serves all the same, and says so. Called by `run` before there are
//! threads.

use std::io;

use crate::sys;

/// The memory killer's view of it: as good as never, but before what must never be ended.
const OOM_SCORE: i16 = -900;

/// Protects the program; returns the parts that are not permitted, with their meaning.
pub fn protect() -> Vec<String> {
    let failed = |meaning: &str, done: io::Result<()>| Some(format!("{meaning}: {}", done.err()?));
    let parts = [
        failed("memory is not locked, and may be paged out", sys::lock_memory()),
        failed(
            "it may wait for the writing of a file system above it when memory is short (PR_SET_IO_FLUSHER)",
            sys::become_io_flusher(),
        ),
        failed("it may be ended when memory is short (oom_score_adj)", sys::set_oom_score(OOM_SCORE)),
    ];
    parts.into_iter().flatten().collect()
}
