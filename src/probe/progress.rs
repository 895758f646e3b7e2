//! The bar with rate and remaining time, on stderr and only when that is a terminal.
//!
//! Remarks that come while the bar is shown go through it, so that neither overwrites the other. Used by `send`
//! and `recv`.

use std::fmt;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::say;

/// A progress bar that removes itself when the last handle is dropped.
#[derive(Clone)]
pub struct Progress(ProgressBar);

impl Progress {
    /// Shows a bar for `bytes` bytes.
    pub fn new(what: String, bytes: u64) -> Progress {
        // Draws nothing when stderr is no terminal.
        let bar = ProgressBar::new(bytes).with_message(what);
        let style = ProgressStyle::with_template(
            "{msg} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec}, {eta} left",
        );
        if let Ok(style) = style {
            bar.set_style(style);
        }
        // Goes on drawing while a write is blocked.
        bar.enable_steady_tick(Duration::from_millis(200));
        Progress(bar)
    }

    /// Adds this many bytes to the bar.
    pub fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// Prints a remark above the bar.
    pub fn note(&self, text: impl fmt::Display) {
        self.0.suspend(|| say(text));
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}
