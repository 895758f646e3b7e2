//! Packets from the kernel module: to every peer in `node_to`, each sharing the same bytes.

use std::sync::Arc;
use std::time::Instant;

use log::Level;

use super::{Entry, Router, Table};
use crate::daemon::link::{Closed, Item, Piped, Run, Sink, TakesPipes};
use crate::daemon::peer::{Direction, Put, Session};
use crate::daemon::queue::DropCause;
use crate::limited;

/// The sink of one of the kernel module's links. The packets' types, not the link, decide their destinations.
pub struct FromKernel {
    router: Arc<Router>,
}

impl FromKernel {
    /// Returns a sink that looks up `router`.
    pub fn new(router: &Arc<Router>) -> Self {
        FromKernel { router: Arc::clone(router) }
    }

    fn relay(&self, run: &Run, piped: Option<Piped>) -> Result<(), Closed> {
        self.offer(run, piped)?.into_iter().for_each(Late::wait);
        Ok(())
    }

    /// Queues packets for every peer whose queue has space, and returns them with the peers to wait for, if there are any: a
    /// peer that is slow holds up the packets after these, but not the other copies of these.
    pub(super) fn offer(&self, run: &Run, mut piped: Option<Piped>) -> Result<Option<Late>, Closed> {
        let table = self.router.table();
        // The peer may have changed since the run was begun.
        let mut copied = None;
        if let Some(pipe) = piped.take_if(|_| table.only_plain(run).is_none()) {
            let bytes = pipe.into_bytes().map_err(Closed::Broken)?;
            copied = Some(Run { bytes, ..run.clone() });
        }
        let run = copied.as_ref().unwrap_or(run);
        let dropped = |entry: &Entry, cause| {
            let counters = entry.statistics.counters(Direction::Out, run.class);
            counters.drop_at_once(run.cost.packets, run.cost.bytes, cause);
        };
        let mut full = Vec::new();
        self.router.recipients(&table, run, |entry| match &entry.session {
            _ if self.router.is_stopping() => dropped(entry, DropCause::Stopping),
            None => dropped(entry, DropCause::NotConnected),
            Some(session) => {
                if session.try_put(run, &mut piped) == Put::Full {
                    full.push(Arc::clone(session));
                }
            }
        });
        if full.is_empty() {
            return Ok(None);
        }
        Ok(Some(Late { run: run.clone(), piped, full, since: Instant::now(), table }))
    }
}

/// Packets that wait for peers whose queues are full.
pub(super) struct Late {
    run: Run,
    piped: Option<Piped>,
    full: Vec<Arc<Session>>,
    since: Instant,
    table: Arc<Table>,
}

impl Late {
    /// Queues them where there is space by now; `None` if no peer is left to wait for.
    pub fn try_again(mut self) -> Option<Self> {
        self.full.retain(|session| session.try_put(&self.run, &mut self.piped) == Put::Full);
        (!self.full.is_empty()).then_some(self)
    }

    /// Waits for each peer, for as long as it may hold up the others.
    pub fn wait(mut self) {
        for session in self.full {
            session.put(&self.run, &mut self.piped, self.since, || {
                let sessions = self.table.peers.values().filter_map(|entry| entry.session.as_ref());
                sessions.filter(|other| other.id != session.id).any(|other| other.is_idle(self.run.class))
            });
        }
    }
}

impl Sink for FromKernel {
    fn takes_pipes(&self, run: &Run) -> TakesPipes {
        let table = self.router.table();
        table.only_plain(run).map_or(TakesPipes::No, |session| session.takes_pipes(Direction::Out))
    }

    fn take_piped(&mut self, run: Run, piped: Piped) -> Result<(), Closed> {
        self.relay(&run, Some(piped))
    }

    fn take(&mut self, item: Item) -> Result<(), Closed> {
        let unroutable = &self.router.unroutable;
        match item {
            Item::Run(run) => self.relay(&run, None)?,
            Item::DaemonsOwn(header) => {
                unroutable.daemons_own.add(1);
                limited!(
                    Level::Warn,
                    ("kernel daemon's own", 0),
                    "dropped a packet of the kernel module: heartbeats and connection states are the daemon's own ({header})"
                );
            }
            Item::View(header, _) | Item::Unrelayed(header) => {
                unroutable.unrelayed.add(1);
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
