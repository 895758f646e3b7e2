//! Who may come in: a pure check of a hello against the configured peers.

use std::fmt;
use std::net::IpAddr;

use super::types::PeerKey;
use crate::wire::{Hello, NodeId, Scope};

/// One node of the local site.
#[derive(Clone, Copy, Debug)]
pub struct NodeEntry {
    /// Its id.
    pub id: NodeId,
    /// Its configured address.
    pub addr: IpAddr,
}

/// What the check needs to know of the configuration.
#[derive(Clone, Debug)]
pub struct Admission {
    /// The local node.
    pub local: NodeId,
    /// Every other node of the local site.
    pub nodes: Vec<NodeEntry>,
    /// Whether a caller must come from its configured address.
    pub strict: bool,
}

/// A hello that is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Who calls.
    pub peer: PeerKey,
    /// The configured address, if the caller came from another one.
    pub expected: Option<IpAddr>,
}

/// Why a hello is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// An ACK where a hello has to be.
    Ack,
    /// A site hello on a node port, or the other way round.
    Scope,
    /// The caller claims the local node's own id.
    OwnId(NodeId),
    /// No such peer is configured.
    UnknownId(u8),
    /// The caller's id is smaller than the local one: this side calls that peer.
    Direction(PeerKey),
    /// The caller did not come from its configured address.
    Address {
        /// Who it claims to be.
        peer: PeerKey,
        /// The configured address.
        expected: IpAddr,
    },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Ack => f.write_str("an ACK instead of a hello"),
            Refused::Scope => f.write_str("a hello for a site on a node's port, or the other way round"),
            Refused::OwnId(id) => {
                write!(
                    f,
                    "the caller claims to be {id}, which is this node: is one hostname or id used twice?"
                )
            }
            Refused::UnknownId(id) => {
                write!(f, "the caller claims id {id}, which is not configured here")
            }
            Refused::Direction(peer) => {
                write!(f, "{peer} called, but the side with the larger id calls; calling it")
            }
            Refused::Address { peer, expected } => write!(
                f,
                "the caller claims to be {peer}, whose address is {expected} (element peeraddr is strict)"
            ),
        }
    }
}

impl std::error::Error for Refused {}

impl Admission {
    /// Whether this hello may open a link, and whose link it is.
    ///
    /// # Errors
    /// Every reason for which a caller is turned away.
    pub fn admit(&self, hello: &Hello, source: IpAddr) -> Result<Admitted, Refused> {
        if hello.ack {
            return Err(Refused::Ack);
        }
        if hello.scope != Scope::Node {
            return Err(Refused::Scope);
        }
        if hello.id == self.local.get() {
            return Err(Refused::OwnId(self.local));
        }
        let node = self.nodes.iter().find(|node| node.id.get() == hello.id);
        let node = node.ok_or(Refused::UnknownId(hello.id))?;
        let peer = PeerKey::Node(node.id);
        let expected = (source.to_canonical() != node.addr.to_canonical()).then_some(node.addr);
        if let Some(expected) = expected.filter(|_| self.strict) {
            return Err(Refused::Address { peer, expected });
        }
        if node.id < self.local {
            return Err(Refused::Direction(peer));
        }
        Ok(Admitted { peer, expected })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Class;

    fn admission(strict: bool) -> Admission {
        let node = |id: u32| NodeEntry {
            id: NodeId::try_from(id).unwrap(),
            addr: IpAddr::from([10, 0, 0, id as u8]),
        };
        Admission { local: node(2).id, nodes: vec![node(1), node(3)], strict }
    }

    fn hello(id: u8) -> Hello {
        Hello { id, class: Class::Data, ack: false, scope: Scope::Node, addr: None, extended: false }
    }

    /// Failure mode 19: who connects is checked.
    #[test]
    fn fm19_only_configured_larger_ids_from_their_own_address_get_in() {
        let ip = |last| IpAddr::from([10, 0, 0, last]);
        let strict = admission(true);
        let key = |id: u32| PeerKey::Node(NodeId::try_from(id).unwrap());
        assert_eq!(strict.admit(&hello(3), ip(3)), Ok(Admitted { peer: key(3), expected: None }));
        assert_eq!(strict.admit(&hello(3), ip(30)), Err(Refused::Address { peer: key(3), expected: ip(3) }));
        assert_eq!(strict.admit(&hello(1), ip(1)), Err(Refused::Direction(key(1))));
        assert_eq!(strict.admit(&hello(2), ip(2)), Err(Refused::OwnId(strict.local)));
        assert_eq!(strict.admit(&hello(7), ip(7)), Err(Refused::UnknownId(7)));
        assert_eq!(strict.admit(&Hello { ack: true, ..hello(3) }, ip(3)), Err(Refused::Ack));
        assert_eq!(strict.admit(&Hello { scope: Scope::Site, ..hello(3) }, ip(3)), Err(Refused::Scope));
        let any = admission(false);
        assert_eq!(any.admit(&hello(3), ip(30)), Ok(Admitted { peer: key(3), expected: Some(ip(3)) }));
        let mapped = IpAddr::from(std::net::Ipv4Addr::new(10, 0, 0, 3).to_ipv6_mapped());
        assert_eq!(strict.admit(&hello(3), mapped), Ok(Admitted { peer: key(3), expected: None }));
    }
}
