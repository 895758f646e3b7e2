//! The peers of a probe: nodes of the local site, or sites seen from one resource.
//!
//! Node 1 and site 1 are different peers, and so are site 1 of one resource and site 1 of another: an id must
//! never be compared with one of another [`Group`]. Used by every command.

use std::fmt;

use crate::wire::{Mask, ResourceId, Scope};

/// The kind of some ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Nodes of the local site.
    Nodes,
    /// The sites of a resource.
    Sites(ResourceId),
}

impl Group {
    /// Returns the group of packets with this scope and resource.
    pub fn of(scope: Scope, dev: ResourceId) -> Group {
        match scope {
            Scope::Node => Group::Nodes,
            Scope::Site => Group::Sites(dev),
        }
    }

    /// Returns the word for one peer of the group: `node` or `site`.
    pub fn word(self) -> &'static str {
        match self {
            Group::Nodes => "node",
            Group::Sites(_) => "site",
        }
    }

    /// Returns the ids as text: `node 1`, `sites 1, 2`.
    pub fn names(self, ids: Mask) -> String {
        let ids: Vec<String> = ids.ids().map(|id| id.to_string()).collect();
        format!("{}{} {}", self.word(), if ids.len() == 1 { "" } else { "s" }, ids.join(", "))
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Group::Nodes => f.write_str("nodes"),
            Group::Sites(resource) => write!(f, "sites of {resource}"),
        }
    }
}

/// One node, or one site of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// The kind of its id.
    pub group: Group,
    /// The id, 0..=31.
    pub id: u8,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.group.word(), self.id)
    }
}
