//! A data disk that was made larger: its metadata grow with it, and the core hears of it.
//!
//! Must never let the core use what the metadata does not cover durably. Called by the control socket's threads, and by one of
//! its own for a primary that asks.

use std::sync::{Arc, PoisonError};

use log::{info, warn};

use super::mirror::Mirror;
use crate::nbd::core::Event;
use crate::nbd::mirror::outcome::Bytes;
use crate::sys;

impl Mirror {
    /// Looks how large the data disk is, and covers all of it with metadata. Blocks while the disk works.
    ///
    /// # Errors
    /// Why the metadata cannot grow, and the remedy.
    pub(super) fn take_larger_disk(self: &Arc<Self>) -> Result<(), String> {
        let mut label = self.label.lock().unwrap_or_else(PoisonError::into_inner);
        let place = self.disk.device().path.display();
        let size = self.disk.size_now().map_err(|error| format!("disk {place}: {error}"))?;
        if size > label.layout.data_size {
            if self.lock().core.superblock().agreed_size == 0 {
                return Err("the sites have not agreed on a size yet: make the metadata anew with `hadm-nbd init --force`".into());
            }
            *label = self.store.extend(&label, size)?;
            info!("{}: disk {place} is larger: {size} bytes of it can be mirrored", self.name);
            self.disk.grow(size);
        }
        self.handle(Event::Looked(label.layout.data_size));
        Ok(())
    }

    /// Returns the bytes by which the data disk is larger than the mirror, in words; `None` if it is not.
    pub(super) fn could_grow(&self) -> Option<String> {
        let size = self.disk.size_now().ok()?;
        let state = self.lock();
        let mirrored = state.core.size();
        let is_larger = state.core.superblock().agreed_size > 0 && size > mirrored;
        let place = self.disk.device().path.display();
        is_larger.then(|| {
            format!(
                "could grow by {}: disk {place} is larger than the mirror",
                Bytes(size.saturating_sub(mirrored))
            )
        })
    }

    /// The same for the primary, which hears the size that counts.
    pub(super) fn look_at_disk(self: &Arc<Self>) {
        let mirror = Arc::clone(self);
        let job = move || {
            if let Err(why) = mirror.take_larger_disk() {
                warn!("{}: a larger disk cannot be mirrored: {why}", mirror.name);
                mirror.handle(Event::Looked(0));
            }
        };
        if let Err(error) = sys::spawn("grow", job) {
            warn!("{}: no thread to look at the disk: {error}", self.name);
            self.handle(Event::Looked(0));
        }
    }
}
