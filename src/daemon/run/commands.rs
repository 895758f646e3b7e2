//! The sources of control requests: the channel to the timer thread, and the metrics server that uses it.
//!
//! Answers nothing: `report` does. Owned by the timer thread.

use std::net::SocketAddr;
use std::sync::Arc;

use crossbeam::channel::Sender;

use crate::daemon::server::{ControlRequest, Scrape};
use crate::sys::Counter;

/// The channel for control requests, and the metrics server.
pub(super) struct Commands {
    control: Sender<ControlRequest>,
    scrape: Option<Scrape>,
    /// Metrics clients that got no answer.
    refused: Arc<Counter>,
}

impl Commands {
    /// Returns how many clients were refused, by cause.
    pub fn refused(&self) -> [(&'static str, u64); 1] {
        [("metrics client", self.refused.get())]
    }

    /// Serves metrics if an address is configured for them.
    ///
    /// # Errors
    /// A sentence for the operator: the address cannot be listened at.
    pub fn start(control: Sender<ControlRequest>, metrics: Option<SocketAddr>) -> Result<Self, String> {
        let mut commands = Commands { control, scrape: None, refused: Arc::default() };
        commands.scrape = commands.serve(metrics)?;
        Ok(commands)
    }

    /// Serves metrics at another address: the part of a reload that can fail. On an error the old address is served
    /// again.
    ///
    /// # Errors
    /// As [`Commands::start`].
    pub fn serve_metrics(
        &mut self,
        before: Option<SocketAddr>,
        after: Option<SocketAddr>,
    ) -> Result<(), String> {
        if after == before {
            return Ok(());
        }
        // The old listener is closed first: the new address may have the same port.
        self.scrape = None;
        let started = self.serve(after);
        if started.is_err() {
            // It was open a moment ago, and opens again.
            self.scrape = self.serve(before).unwrap_or_default();
        }
        self.scrape = started?;
        Ok(())
    }

    fn serve(&self, place: Option<SocketAddr>) -> Result<Option<Scrape>, String> {
        let start = |addr| Scrape::start(addr, self.control.clone(), Arc::clone(&self.refused));
        place.map(start).transpose()
    }
}
