//! The key of a peer: its name in the daemon, at its control socket and in messages.
//!
//! A pure value; it must not know addresses, sessions or configuration. Used everywhere.

use std::fmt;
use std::str::FromStr;

use super::{Mask, NodeId, ResourceId, Scope, SiteId};

/// The key of a peer: a node of the local site, or a site as seen from one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerKey {
    /// A node of the local site.
    Node(NodeId),
    /// The log owner of this resource at this site.
    Site(ResourceId, SiteId),
}

impl PeerKey {
    /// Returns the address space of the links to this peer.
    pub const fn scope(self) -> Scope {
        match self {
            PeerKey::Node(_) => Scope::Node,
            PeerKey::Site(..) => Scope::Site,
        }
    }

    /// Returns the peer's id in its scope.
    pub const fn id(self) -> u8 {
        match self {
            PeerKey::Node(node) => node.get(),
            PeerKey::Site(_, site) => site.get(),
        }
    }

    /// Returns a number that no other peer has.
    pub const fn code(self) -> u64 {
        match self {
            PeerKey::Node(node) => node.get() as u64,
            PeerKey::Site(resource, site) => 1 << 16 | (resource.get() as u64) << 8 | site.get() as u64,
        }
    }

    /// Returns the key with the peer's name for people, if that is known.
    pub fn label(self, name: Option<&str>) -> String {
        name.map_or_else(|| self.to_string(), |name| format!("{self} ({name})"))
    }

    /// Returns the peer's bit in `node_to` of its scope.
    pub const fn mask(self) -> Mask {
        Mask::of(self.id())
    }
}

impl fmt::Display for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerKey::Node(node) => write!(f, "{node}"),
            PeerKey::Site(resource, site) => write!(f, "{site} of {resource}"),
        }
    }
}

impl FromStr for PeerKey {
    type Err = String;

    /// Parses `N` or `node N` for a node, `R:S` for site S of resource R.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.trim().parse::<u32>().ok();
        let key = match text.split_once(':') {
            None => number(text.strip_prefix("node").unwrap_or(text))
                .and_then(|node| NodeId::try_from(node).ok())
                .map(PeerKey::Node),
            Some((resource, site)) => number(resource)
                .and_then(|resource| ResourceId::try_from(resource).ok())
                .zip(number(site).and_then(|site| SiteId::try_from(site).ok()))
                .map(|(resource, site)| PeerKey::Site(resource, site)),
        };
        key.ok_or_else(|| {
            format!("{text:?} is no peer: it must be N for node N, or R:S for site S of resource R")
        })
    }
}
