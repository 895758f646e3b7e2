//! Packets from the kernel module: to every peer in `node_to`, each sharing the same bytes.

use std::sync::Arc;

use log::Level;

use super::{Entry, Switch};
use crate::limited;
use crate::link::{Closed, Item, Run, Sink};
use crate::peer::{Direction, Put};
use crate::queue::DropCause;

/// Takes what one of the kernel module's links brought. The packets' types, not the link, decide where they
/// go.
pub struct FromKernel {
    switch: Arc<Switch>,
}

impl FromKernel {
    /// A sink that looks up `switch`.
    pub fn new(switch: &Arc<Switch>) -> Self {
        FromKernel { switch: Arc::clone(switch) }
    }

    fn relay(&self, run: &Run) {
        let table = self.switch.table();
        let dropped = |entry: &Entry, cause| {
            let books = entry.record.books(Direction::Out, run.class);
            books.drop_at_once(run.load.packets, run.load.bytes, cause);
        };
        // First everyone who has room, then those who have to be waited for: a peer that is slow holds up
        // the packets after this one, but not this one's other copies.
        let mut full = Vec::new();
        self.switch.addressees(&table, run, |entry| match &entry.session {
            _ if self.switch.is_stopping() => dropped(entry, DropCause::Stopping),
            None => dropped(entry, DropCause::NotConnected),
            Some(session) => {
                if session.try_put(run) == Put::Full {
                    full.push(session);
                }
            }
        });
        for session in full {
            session.put(run);
        }
    }
}

impl Sink for FromKernel {
    fn take(&mut self, item: Item) -> Result<(), Closed> {
        let strays = &self.switch.strays;
        match item {
            Item::Run(run) => self.relay(&run),
            Item::DaemonsOwn(header) => {
                strays.daemons_own.add(1);
                limited!(
                    Level::Warn,
                    ("kernel daemon's own", 0),
                    "dropped a packet of the kernel module: heartbeats and connection states are the daemon's own ({header})"
                );
            }
            Item::View(header, _) | Item::Unrelayed(header) => {
                strays.unrelayed.add(1);
                limited!(
                    Level::Warn,
                    ("kernel unrelayed", 0),
                    "dropped a packet of the kernel module: its type is not one that is relayed ({header})"
                );
            }
        }
        Ok(())
    }
}
