//! Connection states on their way to the kernel module.
//!
//! A kernel module that does not read for a while must neither get a burst of old states afterwards nor miss that a
//! peer was away in between: states that wait are folded into two at most, the peers that were connected all the
//! time, and those connected now.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};

use crate::daemon::core::ConnState;
use crate::daemon::link::Deferred;
use crate::wire::{Device, Header, NodeId, PacketType, SiteId};

pub(super) struct Announcer {
    node: NodeId,
    site: SiteId,
    /// The states that wait: connected all the time since the last one was sent, and connected now.
    waiting: Mutex<Option<(ConnState, ConnState)>>,
}

impl Announcer {
    pub fn new(node: NodeId, site: SiteId) -> Arc<Self> {
        Arc::new(Announcer { node, site, waiting: Mutex::default() })
    }

    /// Takes a state. Returns true if the state needs an entry in the queue, because none waits there yet.
    pub fn tell(&self, state: ConnState) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let alone = waiting.is_none();
        let all_the_time = waiting.take().map_or_else(|| state.clone(), |(low, _)| low.common(&state));
        *waiting = Some((all_the_time, state));
        alone
    }

    fn packets(&self, state: &ConnState, out: &mut BytesMut) {
        let nodes = Header {
            device: Device::All,
            node_from: self.node.get().into(),
            node_to: state.nodes,
            ..Header::new(PacketType::NC_CONN_STATE)
        };
        out.extend_from_slice(&nodes.encode());
        for (resource, &sites) in &state.sites {
            let sites = Header {
                node_type: 1,
                device: Device::One(*resource),
                node_from: self.site.get().into(),
                node_to: sites,
                ..Header::new(PacketType::SC_CONN_STATE)
            };
            out.extend_from_slice(&sites.encode());
        }
    }
}

impl Deferred for Announcer {
    fn take(&self) -> Option<Bytes> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (all_the_time, now) = waiting?;
        let mut out = BytesMut::new();
        if all_the_time != now {
            self.packets(&all_the_time, &mut out);
        }
        self.packets(&now, &mut out);
        Some(out.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Device, HEADER_LEN, Mask};

    fn state(nodes: u32) -> ConnState {
        ConnState { nodes: Mask(nodes), ..Default::default() }
    }

    fn told(announcer: &Announcer) -> Vec<u32> {
        let bytes = announcer.take().unwrap_or_default();
        bytes.chunks(HEADER_LEN).map(|packet| Header::decode(packet.try_into().unwrap()).node_to.0).collect()
    }

    fn announcer() -> Arc<Announcer> {
        Announcer::new(NodeId::try_from(1).unwrap(), SiteId::try_from(0).unwrap())
    }

    /// Failure mode 3: no burst of old states after a stall; yet no absence is hidden.
    #[test]
    fn fm03_what_waits_is_folded_without_hiding_an_absence() {
        let announcer = announcer();
        for nodes in [0b111, 0b101, 0b111, 0b111] {
            announcer.tell(state(nodes));
        }
        assert_eq!(told(&announcer), [0b101, 0b111]);
        assert!(told(&announcer).is_empty());
        for _ in 0..4 {
            announcer.tell(state(0b11));
        }
        assert_eq!(told(&announcer), [0b11]);
    }

    /// Failure mode 1: the empty set is sent like any other.
    #[test]
    fn fm01_the_empty_set_is_told() {
        let announcer = announcer();
        assert!(announcer.tell(state(0)));
        assert_eq!(told(&announcer), [0]);
    }

    #[test]
    fn bytes_are_as_the_kernel_module_expects_them() {
        let announcer = announcer();
        let mut state = state(0b100);
        state.sites.insert(crate::wire::ResourceId::try_from(7).unwrap(), Mask(0b10));
        announcer.tell(state);
        let bytes = announcer.take().unwrap();
        let headers: Vec<_> =
            bytes.chunks(HEADER_LEN).map(|packet| Header::decode(packet.try_into().unwrap())).collect();
        let [nodes, sites] = headers[..] else { panic!("{headers:?}") };
        assert_eq!((nodes.kind, nodes.node_type, nodes.device), (PacketType::NC_CONN_STATE, 0, Device::All));
        assert_eq!((nodes.node_from, nodes.node_to), (1, Mask(0b100)));
        assert_eq!(
            (sites.kind, sites.node_type, sites.device),
            (PacketType::SC_CONN_STATE, 1, Device::from(7))
        );
        assert_eq!((sites.node_from, sites.node_to), (0, Mask(0b10)));
    }
}
