//! Changes of the configuration that a running mirror takes.
//!
//! They count from the next decision on; nothing that was decided is undone. Called by the runner.

use std::time::Duration;

use super::Core;
use crate::nbd::mirror::choices::Policies;

/// The choices that may change while the core runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// A site that confirms nothing for so long is lost.
    pub slow: Duration,
    /// Stop writes when a site is lost, until a person says [`super::Command::Resume`] or it is back.
    pub freeze: bool,
    /// There is a fencing handler: a lost site is excluded before a primary goes on without it, or a site becomes primary.
    pub can_fence: bool,
    /// A flush is answered when this site's disk has it.
    pub flush_local: bool,
    /// A disk that fails ends the role of a primary, instead of being served from other sites.
    pub stop_on_error: bool,
    /// Most bytes a second that a resync takes; 0: no limit.
    pub resync_rate: u64,
    /// Bytes a second that a resync takes even while clients write.
    pub resync_min: u64,
    /// About a split brain.
    pub policies: Policies,
}

impl Core {
    /// Goes by other choices from now on.
    pub fn tune(&mut self, tuning: Tuning) {
        // With a fencing handler writes may wait for what it said, too.
        let goes_on = !tuning.freeze && !self.config.tuning.can_fence;
        self.config.tuning = tuning;
        if goes_on {
            self.thaw();
        }
    }
}
