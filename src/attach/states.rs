//! The daemon's connection states, collected into announcements.
//!
//! An announcement is one packet for the nodes and one for each resource, usually all in one piece. An announcement
//! with a second state of a group is never skipped: a peer that was away for an instant must be seen to have been.
//! Used by `probe` and `nbd`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};

use super::{Group, Peer};
use crate::wire::{Header, MAX_IDS, Mask, PacketType};

/// The connection state of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnState {
    /// Id of the daemon's own node, or of its site.
    pub own: u8,
    /// The peers it is connected with.
    pub up: Mask,
}

/// The connection states of all groups that the daemon has sent one for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct States(pub BTreeMap<Group, ConnState>);

impl States {
    /// Returns the id of the daemon's own end in this group.
    pub fn own(&self, group: Group) -> Option<u8> {
        self.0.get(&group).map(|state| state.own)
    }

    /// Returns the id of the daemon's own end of the connection to this peer, if it is connected.
    pub fn facing(&self, peer: Peer) -> Option<u8> {
        self.0.get(&peer.group).filter(|state| state.up.contains(peer.id)).map(|state| state.own)
    }
}

/// Connection states, from the packets of the meta link in the order in which they come.
#[derive(Debug, Default)]
pub struct StateReader {
    states: States,
    /// Groups in the announcement that was not returned yet.
    pending: BTreeSet<Group>,
}

impl StateReader {
    /// Takes the next packet of the meta link. Returns the announcement before it, if this packet begins another one.
    /// Packets of other types are skipped.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidData`]: the own id is out of range.
    pub fn take(&mut self, header: &Header) -> io::Result<Option<States>> {
        let group = match header.kind {
            PacketType::NC_CONN_STATE => Group::Nodes,
            PacketType::SC_CONN_STATE => match header.device.resource() {
                Some(resource) => Group::Sites(resource),
                None => return Ok(None),
            },
            _ => return Ok(None),
        };
        let own = u8::try_from(header.node_from).ok().filter(|id| *id < MAX_IDS).ok_or_else(|| {
            let what = format!("its {} id is {}", group.word(), header.node_from);
            io::Error::new(ErrorKind::InvalidData, what)
        })?;
        let before = self.pending.contains(&group).then(|| self.finish()).flatten();
        self.pending.insert(group);
        self.states.0.insert(group, ConnState { own, up: header.node_to });
        Ok(before)
    }

    /// Returns the announcement so far. To be called when no further packet is there yet.
    pub fn finish(&mut self) -> Option<States> {
        let news = !std::mem::take(&mut self.pending).is_empty();
        news.then(|| self.states.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Device;

    fn nodes(up: u32) -> Header {
        Header {
            node_from: 1,
            node_to: Mask(up),
            device: Device::All,
            ..Header::new(PacketType::NC_CONN_STATE)
        }
    }

    fn sites(resource: u8, up: u32) -> Header {
        Header { device: resource.into(), node_to: Mask(up), ..Header::new(PacketType::SC_CONN_STATE) }
    }

    #[test]
    fn an_absence_between_two_announcements_is_given() {
        let mut reader = StateReader::default();
        assert_eq!(reader.finish(), None);
        assert_eq!(reader.take(&nodes(0b101)).unwrap(), None);
        assert_eq!(reader.take(&sites(3, 0b10)).unwrap(), None);
        let first = reader.take(&nodes(0b100)).unwrap().unwrap();
        assert_eq!(first.0[&Group::Nodes], ConnState { own: 1, up: Mask(0b101) });
        let second = reader.finish().unwrap();
        assert_eq!(second.0[&Group::Nodes].up, Mask(0b100));
        assert_eq!(second.0.len(), 2, "what was not said again stays");
        assert_eq!(reader.finish(), None);
    }

    #[test]
    fn other_packets_and_wrong_ids_are_no_states() {
        let mut reader = StateReader::default();
        assert_eq!(reader.take(&Header::new(PacketType::SC_HS)).unwrap(), None);
        assert_eq!(reader.take(&Header { device: Device::All, ..sites(0, 1) }).unwrap(), None);
        let wrong = reader.take(&Header { node_from: 32, ..nodes(1) }).unwrap_err();
        assert_eq!(wrong.kind(), ErrorKind::InvalidData);
        assert_eq!(reader.finish(), None);
    }
}
