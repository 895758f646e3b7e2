//! The other answers: the mesh, an examination, and the changes of a new configuration.
//!
//! Plain values: the daemon makes them, `hadmctl` shows them.

use serde_json::Value;

use super::json::{Fields, Json, fields, objects};
use super::status::{PeerName, PeerStatus};
use super::words::{Check, Fate, Known, PortState, Verdict};
use crate::wire::{NodeId, ResourceId, SiteId};

objects! {
    /// The connections as each side sees them.
    Mesh {
        /// The local node.
        node: NodeId,
        /// Its site.
        site: SiteId,
        /// The nodes of the site, and then the sites of each resource.
        meshes: Vec<MeshTable>,
    }

    /// The view of one node or site.
    MeshRow {
        /// Its id.
        id: u8,
        /// Its name.
        name: String,
        /// The origin of the view.
        known: Known,
        /// The reason why it is not known, or old.
        why: Option<String>,
        /// The ids that it sees.
        sees: Option<Vec<u8>>,
        /// Seconds since it was sent.
        age_s: Option<f64>,
        /// Seconds since it changed.
        unchanged_s: Option<f64>,
    }

    /// Two of which one alone sees the other.
    OneSided {
        /// The id of the one that sees the other.
        sees: u8,
        /// The id of the one that does not.
        unseen_by: u8,
        /// Seconds that it has been so.
        for_s: f64,
        /// The same in words.
        text: String,
    }

    /// The resource of a table of sites.
    MeshResource {
        /// Its id.
        resource: ResourceId,
        /// Its name.
        name: String,
        /// True if this node owns its log.
        owned: bool,
    }

    /// The result of an examination.
    Examination {
        /// True if nothing is wrong.
        well: bool,
        /// The local node.
        node: NodeId,
        /// Its name in the configuration.
        hostname: Option<String>,
        /// The results for this node; empty where one peer was asked about.
        checks: Vec<CheckResult>,
        /// The results for the peers.
        peers: Vec<ExaminedPeer>,
    }

    /// The result of one check of this node.
    CheckResult {
        /// The check.
        check: Check,
        /// True if nothing is wrong with it.
        well: bool,
        /// The finding, in words.
        says: String,
        /// The remedy.
        advice: Option<String>,
    }

    /// The result for a peer.
    PeerResult {
        /// The verdict.
        verdict: Verdict,
        /// True if nothing is wrong.
        well: bool,
        /// The evidence for the verdict, in words.
        says: String,
        /// The remedy.
        advice: Option<String>,
        /// The answer of its port, if the port was tried.
        port: Option<PortState>,
    }

    /// The changes that a new configuration makes, or would make.
    Plan {
        /// Changes that need a restart.
        refused: Vec<String>,
        /// Settings that change.
        settings: Vec<String>,
        /// The fate of each peer.
        peers: Vec<PeerFate>,
        /// Warnings about the file.
        warnings: Warnings,
    }

    /// The fate of a peer.
    PeerFate {
        /// The peer.
        peer: PeerName,
        /// Its name for people, as in the status.
        name: Option<String>,
        /// Its fate.
        fate: Fate,
    }
}

/// Returns one object with the fields of both.
fn join(one: Value, other: Value) -> Value {
    match (one, other) {
        (Value::Object(mut one), Value::Object(other)) => {
            one.extend(other);
            one.into()
        }
        (one, _) => one,
    }
}

/// A table of views: of the nodes of this site, or of the sites of a resource.
#[derive(Clone, Debug, PartialEq)]
pub struct MeshTable {
    /// The resource whose sites they are; `None` for nodes.
    pub resource: Option<MeshResource>,
    /// One row for each.
    pub rows: Vec<MeshRow>,
    /// The pairs of which only one side sees the other.
    pub one_sided: Vec<OneSided>,
}

impl MeshTable {
    /// Returns the word for the rows: `node` or `site`.
    pub const fn scope(&self) -> &'static str {
        if self.resource.is_some() { "site" } else { "node" }
    }
}

impl Json for MeshTable {
    fn json(&self) -> Value {
        let mut fields = Fields::new();
        self.scope().to_string().put("scope", &mut fields);
        self.rows.put("rows", &mut fields);
        self.one_sided.put("one_sided", &mut fields);
        match &self.resource {
            Some(resource) => join(fields.into(), resource.json()),
            None => fields.into(),
        }
    }

    fn read(value: &Value) -> Result<Self, String> {
        let fields = fields(value)?;
        let sites = fields.get("scope").and_then(Value::as_str) == Some("site");
        Ok(MeshTable {
            resource: sites.then(|| MeshResource::read(value)).transpose()?,
            rows: Json::take("rows", fields)?,
            one_sided: Json::take("one_sided", fields)?,
        })
    }
}

/// A peer with its result: in JSON the fields of both.
#[derive(Clone, Debug, PartialEq)]
pub struct ExaminedPeer {
    /// The status on which the verdict rests, without packet counters.
    pub peer: PeerStatus,
    /// The result.
    pub found: PeerResult,
}

impl Json for ExaminedPeer {
    fn json(&self) -> Value {
        join(self.peer.json(), self.found.json())
    }

    fn read(value: &Value) -> Result<Self, String> {
        Ok(ExaminedPeer { peer: Json::read(value)?, found: Json::read(value)? })
    }
}

/// Warnings about a file, a line each; no field if there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Warnings(pub Vec<String>);

impl Json for Warnings {
    fn json(&self) -> Value {
        self.0.json()
    }

    fn read(value: &Value) -> Result<Self, String> {
        Option::read(value).map(|list| Warnings(list.unwrap_or_default()))
    }

    fn put(&self, name: &str, fields: &mut Fields) {
        if !self.0.is_empty() {
            fields.insert(name.into(), self.json());
        }
    }
}
