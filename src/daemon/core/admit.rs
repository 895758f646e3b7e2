//! The check of callers: a hello against the configured peers.
//!
//! Pure: it looks at no socket and at no clock. Asked by the reactor for each hello, before the core hears of the
//! link.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::wire::{Compression, Hello, NodeId, PeerKey, Scope, SiteId};

/// One peer that may call, or that this side calls.
#[derive(Clone, Copy, Debug)]
pub struct AllowedPeer {
    /// The peer's key.
    pub key: PeerKey,
    /// Its configured address: the node's, or its runsite's.
    pub addr: IpAddr,
    /// Site links: the address at which this side listens for them. All node links come in at one address.
    pub at: Option<SocketAddr>,
    /// True if it may be linked now: a site only while this node owns the resource's log.
    pub wanted: bool,
    /// True if the operator keeps it disconnected.
    pub held: bool,
    /// The compression that this side wants for its data link.
    pub compress: Option<Compression>,
}

/// The part of the configuration that the check needs.
#[derive(Clone, Debug)]
pub struct Admission {
    /// The local node.
    pub node: NodeId,
    /// The local site.
    pub site: SiteId,
    /// Every configured peer.
    pub allowed: Vec<AllowedPeer>,
    /// True if a caller must come from its configured address.
    pub strict: bool,
}

/// The listener at which a hello came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerKind {
    /// The listener for nodes.
    Node,
    /// The listener for sites at this floating address and port.
    Site(SocketAddr),
}

/// A hello that is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// The caller's key.
    pub peer: PeerKey,
    /// The configured address, if the caller came from another one.
    pub expected: Option<IpAddr>,
}

/// The reason for which a hello is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// An ACK where a hello has to be.
    Ack,
    /// A site hello at the node port, or the other way round.
    Scope,
    /// The caller claims the local node's or site's own id.
    OwnId(u8),
    /// No such peer is configured.
    UnknownId(u8),
    /// The site is configured, but none of its runsites has the address that the hello names.
    UnknownRunsite(SiteId, Option<IpAddr>),
    /// The operator keeps the peer disconnected.
    Held(PeerKey),
    /// This node does not own the log of the resource.
    NotOwner(PeerKey),
    /// The caller's id is smaller than the local one: this side calls that peer.
    Direction(PeerKey),
    /// The caller did not come from its configured address.
    Address {
        /// The key that it claims.
        peer: PeerKey,
        /// The configured address.
        expected: IpAddr,
    },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Ack => f.write_str("an ACK instead of a hello"),
            Refused::Scope => f.write_str("a hello for a site at the port for nodes, or the other way round"),
            Refused::OwnId(id) => write!(
                f,
                "the caller claims id {id}, which is this side's own: is one hostname or id used twice?"
            ),
            Refused::UnknownId(id) => {
                write!(f, "the caller claims id {id}, which is not configured here")
            }
            Refused::UnknownRunsite(site, Some(addr)) => {
                write!(f, "the caller claims to be {site} at {addr}, but no resource has that runsite here")
            }
            Refused::UnknownRunsite(site, None) => {
                write!(f, "the caller claims to be {site}, but does not name its runsite's address")
            }
            Refused::Held(peer) => {
                write!(
                    f,
                    "{peer} calls, but the operator has disconnected it here (hadmctl connect links it again)"
                )
            }
            Refused::NotOwner(peer) => {
                write!(f, "{peer} calls, but this node does not own that log now")
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
    /// Returns the allowed peer whose link this hello may open. `named` is the runsite's address where the hello
    /// itself does not carry it.
    ///
    /// # Errors
    /// Every reason for which a caller is refused.
    pub fn admit(
        &self,
        hello: &Hello,
        named: Option<IpAddr>,
        source: IpAddr,
        kind: ListenerKind,
    ) -> Result<Admitted, Refused> {
        self.check_claim(hello, kind)?;
        let named = hello.addr.or(named).map(|addr| addr.to_canonical());
        let allowed = self.allowed.iter().find(|allowed| match (allowed.key, kind) {
            (PeerKey::Node(node), ListenerKind::Node) => node.get() == hello.id,
            (PeerKey::Site(_, site), ListenerKind::Site(at)) => {
                site.get() == hello.id && allowed.at == Some(at) && named == Some(allowed.addr.to_canonical())
            }
            _ => false,
        });
        let unknown = || match SiteId::try_from(u32::from(hello.id)) {
            Ok(site) if hello.scope == Scope::Site => Refused::UnknownRunsite(site, named),
            _ => Refused::UnknownId(hello.id),
        };
        let &AllowedPeer { key: peer, addr, wanted, held, .. } = allowed.ok_or_else(unknown)?;
        let expected = (source.to_canonical() != addr.to_canonical()).then_some(addr);
        if let Some(expected) = expected.filter(|_| self.strict) {
            return Err(Refused::Address { peer, expected });
        }
        if hello.id < self.own_id(kind) {
            return Err(Refused::Direction(peer));
        }
        if held {
            return Err(Refused::Held(peer));
        }
        if !wanted {
            return Err(Refused::NotOwner(peer));
        }
        Ok(Admitted { peer, expected })
    }

    /// The part of the check that does not need the runsite's address.
    ///
    /// # Errors
    /// As [`Admission::admit`].
    pub fn check_claim(&self, hello: &Hello, kind: ListenerKind) -> Result<(), Refused> {
        if hello.ack {
            return Err(Refused::Ack);
        }
        if (hello.scope == Scope::Node) != (kind == ListenerKind::Node) {
            return Err(Refused::Scope);
        }
        if hello.id == self.own_id(kind) {
            return Err(Refused::OwnId(hello.id));
        }
        let configured = self.allowed.iter().any(|allowed| match allowed.key {
            PeerKey::Node(node) => hello.scope == Scope::Node && node.get() == hello.id,
            PeerKey::Site(_, site) => hello.scope == Scope::Site && site.get() == hello.id,
        });
        if configured { Ok(()) } else { Err(Refused::UnknownId(hello.id)) }
    }

    /// The peers that this side calls.
    pub fn called(&self) -> impl Iterator<Item = &AllowedPeer> {
        self.allowed.iter().filter(|allowed| match allowed.key {
            PeerKey::Node(node) => node < self.node,
            PeerKey::Site(_, site) => site < self.site,
        })
    }

    fn own_id(&self, kind: ListenerKind) -> u8 {
        match kind {
            ListenerKind::Node => self.node.get(),
            ListenerKind::Site(_) => self.site.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Class, Mark, ResourceId};

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    /// The floating address of most resources.
    fn here(port: u16) -> SocketAddr {
        (ip(200), port).into()
    }

    fn node(id: u32) -> PeerKey {
        PeerKey::Node(NodeId::try_from(id).unwrap())
    }

    fn site(resource: u32, id: u32) -> PeerKey {
        PeerKey::Site(ResourceId::try_from(resource).unwrap(), SiteId::try_from(id).unwrap())
    }

    fn admission(strict: bool) -> Admission {
        let allowed = |key, last, port: u16| {
            let at = (port > 0).then_some(here(port));
            AllowedPeer { key, addr: ip(last), at, wanted: true, held: false, compress: None }
        };
        Admission {
            node: NodeId::try_from(2).unwrap(),
            site: SiteId::try_from(1).unwrap(),
            allowed: vec![
                allowed(node(1), 1, 0),
                allowed(node(3), 3, 0),
                allowed(site(0, 3), 103, 7100),
                allowed(site(1, 3), 113, 7100),
                AllowedPeer { wanted: false, ..allowed(site(2, 3), 123, 7200) },
                allowed(site(0, 0), 100, 7100),
            ],
            strict,
        }
    }

    fn hello(id: u8) -> Hello {
        Hello { id, class: Class::Data, ack: false, scope: Scope::Node, addr: None, mark: Mark::None }
    }

    /// Failure mode 19: callers are checked.
    #[test]
    fn fm19_only_configured_larger_ids_from_their_own_address_get_in() {
        let strict = admission(true);
        let admit = |hello: Hello, source| strict.admit(&hello, None, source, ListenerKind::Node);
        assert_eq!(admit(hello(3), ip(3)), Ok(Admitted { peer: node(3), expected: None }));
        assert_eq!(admit(hello(3), ip(30)), Err(Refused::Address { peer: node(3), expected: ip(3) }));
        assert_eq!(admit(hello(1), ip(1)), Err(Refused::Direction(node(1))));
        assert_eq!(admit(hello(2), ip(2)), Err(Refused::OwnId(2)));
        assert_eq!(admit(hello(7), ip(7)), Err(Refused::UnknownId(7)));
        assert_eq!(admit(Hello { ack: true, ..hello(3) }, ip(3)), Err(Refused::Ack));
        assert_eq!(admit(Hello { scope: Scope::Site, ..hello(3) }, ip(3)), Err(Refused::Scope));
        let any = admission(false).admit(&hello(3), None, ip(30), ListenerKind::Node);
        assert_eq!(any, Ok(Admitted { peer: node(3), expected: Some(ip(3)) }));
        let mapped = IpAddr::from(std::net::Ipv4Addr::new(10, 0, 0, 3).to_ipv6_mapped());
        assert_eq!(admit(hello(3), mapped), Ok(Admitted { peer: node(3), expected: None }));
    }

    /// Failure modes 19 and 31: a site is found by its id and its runsite's whole address.
    #[test]
    fn fm19_fm31_a_site_is_found_by_id_address_and_port() {
        let strict = admission(true);
        let call = |id, last: u8, port| {
            let hello = Hello { scope: Scope::Site, addr: Some(ip(last)), ..hello(id) };
            strict.admit(&hello, None, ip(last), ListenerKind::Site(here(port))).map(|admitted| admitted.peer)
        };
        assert_eq!(call(3, 103, 7100), Ok(site(0, 3)));
        assert_eq!(call(3, 113, 7100), Ok(site(1, 3)));
        assert_eq!(call(3, 123, 7200), Err(Refused::NotOwner(site(2, 3))));
        let unknown = |last| Err(Refused::UnknownRunsite(SiteId::try_from(3).unwrap(), Some(ip(last))));
        assert_eq!(call(3, 103, 7200), unknown(103));
        assert_eq!(call(3, 10, 7100), unknown(10));
        assert_eq!(call(0, 100, 7100), Err(Refused::Direction(site(0, 0))));
        assert_eq!(call(1, 100, 7100), Err(Refused::OwnId(1)));
        assert_eq!(call(9, 100, 7100), Err(Refused::UnknownId(9)));
        // A node's id is no site's id.
        assert_eq!(call(2, 103, 7100), Err(Refused::UnknownId(2)));
        // The address may follow in the record instead.
        let bare = Hello { scope: Scope::Site, ..hello(3) };
        let admitted = strict.admit(&bare, Some(ip(113)), ip(113), ListenerKind::Site(here(7100)));
        assert_eq!(admitted.map(|admitted| admitted.peer), Ok(site(1, 3)));
        assert!(matches!(
            strict.admit(&bare, None, ip(113), ListenerKind::Site(here(7100))),
            Err(Refused::UnknownRunsite(_, None))
        ));
    }

    #[test]
    fn a_peer_that_the_operator_disconnected_is_refused_for_that_alone() {
        let mut admission = admission(true);
        admission.allowed[1] = AllowedPeer { wanted: false, held: true, ..admission.allowed[1] };
        let refused = admission.admit(&hello(3), None, ip(3), ListenerKind::Node).unwrap_err();
        assert_eq!(refused, Refused::Held(node(3)));
        assert!(refused.to_string().contains("the operator has disconnected it"), "{refused}");
    }

    /// Two resources at one port, whose other sites have one address: the floating address tells them apart.
    #[test]
    fn resources_that_share_a_port_are_told_apart_by_the_listeners_address() {
        let mut admission = admission(true);
        let at = SocketAddr::from((ip(201), 7100));
        let shared = AllowedPeer { at: Some(at), ..admission.allowed[2] };
        admission.allowed.push(AllowedPeer { key: site(4, 3), ..shared });
        let hello = Hello { scope: Scope::Site, addr: Some(ip(103)), ..hello(3) };
        let call =
            |at| admission.admit(&hello, None, ip(103), ListenerKind::Site(at)).map(|found| found.peer);
        assert_eq!(call(here(7100)), Ok(site(0, 3)));
        assert_eq!(call(at), Ok(site(4, 3)));
    }
}
