//! Packets from a peer: heartbeats and views end here, everything else is for the kernel module.

use std::sync::Arc;

use log::Level;

use super::Switch;
use crate::limited;
use crate::link::{Closed, Item, Sink};
use crate::peer::Session;
use crate::queue::DropCause;
use crate::wire::{Header, PeerView, Refusal};

/// Takes what one of a peer's links brought.
pub struct FromPeer {
    switch: Arc<Switch>,
    session: Arc<Session>,
}

impl FromPeer {
    /// A sink for this session that looks up `switch`.
    pub fn new(switch: &Arc<Switch>, session: &Arc<Session>) -> Self {
        FromPeer { switch: Arc::clone(switch), session: Arc::clone(session) }
    }
}

impl Sink for FromPeer {
    fn take(&mut self, item: Item) -> Result<(), Closed> {
        let run = match item {
            Item::Run(run) => run,
            Item::DaemonsOwn(header) if header.kind.is_conn_state() => {
                self.switch.strays.foreign_state.add(1);
                let peer = self.session.record.key;
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
                self.session.hear_view(PeerView::decode(&payload)?);
                return Ok(());
            }
            Item::View(Header { kind, .. }, _) | Item::Unrelayed(Header { kind, .. }) => {
                return Err(Refusal::UnknownType(kind).into());
            }
        };
        if self.switch.is_stopping() {
            self.session.drop_inbound(&run, DropCause::Stopping);
            return Ok(());
        }
        match &self.switch.table().device {
            Some(device) => self.session.take(run, |run, hold| device.put(run.class, run.bytes, hold)),
            None => {
                self.session.drop_inbound(&run, DropCause::NoKernel);
                Ok(())
            }
        }
    }
}
