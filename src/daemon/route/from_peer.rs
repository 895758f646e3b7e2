//! Packets from a peer: heartbeats, views and HD_END end here, connection states are dropped, and everything else is for the kernel
//! module. Must pass nothing on that was not checked. Called by the readers of the peer's links.

use std::sync::Arc;

use log::Level;

use super::Router;
use crate::daemon::link::{Closed, Item, Piped, Run, Sink, TakesPipes};
use crate::daemon::peer::{Direction, Session};
use crate::daemon::queue::DropCause;
use crate::limited;
use crate::wire::{Class, Header, PacketType, PeerView, Refusal};

/// The sink of one of a peer's links.
pub struct FromPeer {
    router: Arc<Router>,
    session: Arc<Session>,
    class: Class,
}

impl FromPeer {
    /// Returns a sink for the link of this class of this session, which looks up `router`.
    pub fn new(router: &Arc<Router>, session: &Arc<Session>, class: Class) -> Self {
        FromPeer { router: Arc::clone(router), session: Arc::clone(session), class }
    }

    fn relay(&self, run: Run, piped: Option<Piped>) -> Result<(), Closed> {
        if self.router.is_stopping() {
            self.session.drop_inbound(&run, DropCause::Stopping);
            return Ok(());
        }
        match &self.router.table().kernel {
            Some(kernel) => self.session.take(run, |run, permit| {
                let [_, inbound] = &self.session.statistics.zero_copied;
                inbound.add(piped.as_ref().map_or(0, |_| run.cost.bytes as u64));
                kernel.put(run, piped, permit);
            }),
            None => {
                self.session.drop_inbound(&run, DropCause::NoKernel);
                Ok(())
            }
        }
    }
}

impl Sink for FromPeer {
    fn takes_pipes(&self, _: &Run) -> TakesPipes {
        match &self.router.table().kernel {
            Some(kernel) if kernel.takes_pipes() => self.session.takes_pipes(Direction::In),
            _ => TakesPipes::No,
        }
    }

    fn take_piped(&mut self, run: Run, piped: Piped) -> Result<(), Closed> {
        self.relay(run, Some(piped))
    }

    fn heard(&mut self) {
        // Each link is judged by its own packets: pings are about the meta link.
        if self.class == Class::Meta {
            self.session.hear();
        }
    }

    fn take(&mut self, item: Item) -> Result<(), Closed> {
        let run = match item {
            Item::Run(run) => run,
            Item::DaemonsOwn(header) if header.kind.is_conn_state() => {
                self.router.unroutable.foreign_state.add(1);
                let peer = self.session.statistics.key;
                limited!(
                    Level::Warn,
                    ("foreign state", peer.code()),
                    "dropped a connection state from {peer}: the kernel module hears of its peers from its own daemon"
                );
                return Ok(());
            }
            Item::DaemonsOwn(header) => {
                self.session.heartbeat(&header);
                return Ok(());
            }
            Item::View(_, payload) if self.session.exchanges_views() => {
                self.session.hear_view(PeerView::decode(&payload, self.session.exchanges_records())?);
                return Ok(());
            }
            Item::Unrelayed(Header { kind: PacketType::HD_END, len: 0, .. })
                if self.session.exchanges_ends() =>
            {
                return Err(Closed::PeersKernel);
            }
            Item::View(Header { kind, .. }, _) | Item::Unrelayed(Header { kind, .. }) => {
                return Err(Refusal::UnknownType(kind).into());
            }
        };
        self.relay(run, None)
    }
}
