//! The parts of the running program that its control socket and its reload share.
//!
//! Must hold its lock for a moment only. Made by `run`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::attach::Attachment;
use super::mirror::Mirror;
use super::witness::Witness;
use crate::config::Config;

/// The parts that the threads of the control socket share.
pub struct Shared {
    /// The mirrors that are served.
    pub mirrors: Vec<Arc<Mirror>>,
    /// The witnesses, of resources without a disk here.
    pub witnesses: Vec<Arc<Witness>>,
    /// The attachment to the daemon.
    pub attachment: Arc<Attachment>,
    /// The configuration in force. No other lock is taken under it.
    pub config: Mutex<Arc<Config>>,
    /// The parts of the program's protection that the system does not permit, with their meaning.
    pub unprotected: Vec<String>,
}

impl Shared {
    pub(super) fn lock_config(&self) -> MutexGuard<'_, Arc<Config>> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the configuration in force.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.lock_config())
    }
}
