//! The table of connections: this daemon's own view and those of its peers side by side.
//!
//! A peer's view is shown here and sent to no other peer. Nothing here decides anything: a wrong view misleads
//! the reader of the table, and no packet.

use std::time::{Duration, Instant};

use super::owner;
use super::snapshot::Snapshot;
use super::views::own_view;
use crate::control::{Known, Mesh, MeshResource, MeshRow, MeshTable, OneSided};
use crate::daemon::core::CONNECT_TICK;
use crate::wire::{PeerKey, PeerView, ResourceId};

/// Age in which a view has missed two ticks: its sender does not run, or its link is jammed.
const STALE: Duration = CONNECT_TICK.saturating_mul(2);

/// One node's or site's view, as far as it is known here.
struct Row {
    id: u8,
    name: String,
    known: Known,
    /// The reason why it is unknown or old.
    why: Option<&'static str>,
    view: PeerView,
    age: Duration,
}

impl Row {
    /// Returns true if the view can be compared with others: that of an ended session was right only then.
    fn counts(&self) -> bool {
        matches!(self.known, Known::Here | Known::Told | Known::Stale)
    }

    fn told(&self) -> MeshRow {
        let known = self.known != Known::Unknown;
        MeshRow {
            id: self.id,
            name: self.name.clone(),
            known: self.known,
            why: self.why.map(Into::into),
            sees: known.then(|| self.view.mask.ids().collect()),
            age_s: known.then_some(self.age.as_secs_f64()),
            unchanged_s: known.then_some((self.age + self.view.unchanged).as_secs_f64()),
        }
    }
}

fn table(resource: Option<MeshResource>, rows: &[Row]) -> MeshTable {
    let mut table = MeshTable { resource, rows: rows.iter().map(Row::told).collect(), one_sided: Vec::new() };
    table.one_sided = one_sided(table.scope(), rows);
    table
}

/// Returns every pair of which one sees the other, and is not seen by it.
fn one_sided(word: &str, rows: &[Row]) -> Vec<OneSided> {
    let rows = || rows.iter().filter(|row| row.counts());
    let pairs = rows().flat_map(|from| rows().map(move |to| (from, to)));
    pairs
        .filter(|(from, to)| {
            from.id != to.id && from.view.mask.contains(to.id) && !to.view.mask.contains(from.id)
        })
        .map(|(from, to)| {
            let lasts = (from.age + from.view.unchanged).min(to.age + to.view.unchanged);
            let text = format!(
                "{word} {0} ({2}) sees {word} {1} ({3}), {word} {1} does not see {word} {0}",
                from.id, to.id, from.name, to.name
            );
            OneSided { sees: from.id, unseen_by: to.id, for_s: lasts.as_secs_f64(), text }
        })
        .collect()
}

impl Snapshot {
    /// Returns the views of every node of the local site, and of every site of each local resource.
    pub fn mesh(&self) -> Mesh {
        let nodes = self.config.local_nodes().iter().map(|node| {
            (
                node.id.get(),
                node.hostname.clone(),
                (node.id != self.config.node).then_some(PeerKey::Node(node.id)),
            )
        });
        let rows: Vec<Row> = nodes.map(|(id, name, key)| self.row(id, name, key, None)).collect();
        let mut meshes = vec![table(None, &rows)];
        for (resource, _) in owner::runsites_here(&self.config) {
            // The configuration has them in the order of their ids.
            let sites = resource.runsites.iter().map(|runsite| {
                let away = runsite.site != self.config.site;
                let peer = PeerKey::Site(resource.id, runsite.site);
                let name = self.config.hosts(peer).join(", ");
                self.row(runsite.site.get(), name, away.then_some(peer), Some(resource.id))
            });
            let rows: Vec<Row> = sites.collect();
            let owned = self.table.owned.contains(&resource.id);
            let of = MeshResource { resource: resource.id, name: resource.name.clone(), owned };
            meshes.push(table(Some(of), &rows));
        }
        Mesh { node: self.config.node, site: self.config.site, meshes }
    }

    /// Returns a row of the table. `peer` is `None` for this daemon's own view.
    fn row(&self, id: u8, name: String, peer: Option<PeerKey>, resource: Option<ResourceId>) -> Row {
        let table = &self.table;
        let owned = resource.is_none_or(|resource| table.owned.contains(&resource));
        let unknown = |why| (Known::Unknown, Some(why), PeerView::default(), Duration::ZERO);
        let (known, why, view, age) = match peer {
            None if owned => {
                (Known::Here, None, own_view(&self.own_views, self.now, resource), Duration::ZERO)
            }
            None => unknown("this node does not own the log"),
            Some(key) => {
                let session = table.peers.get(&key).and_then(|entry| entry.session.as_ref());
                let heard = match session {
                    Some(session) => session.view(),
                    None => self.known.history(key).and_then(|history| history.view.clone()),
                };
                let heard = heard.map(|(view, at): (_, Instant)| (view, at.elapsed()));
                match (session, heard) {
                    (Some(_), Some((view, age))) if age <= STALE => (Known::Told, None, view, age),
                    (Some(_), Some((view, age))) => {
                        (Known::Stale, Some("it tells nothing any more"), view, age)
                    }
                    (None, Some((view, age))) => {
                        (Known::Gone, Some("not connected with this node"), view, age)
                    }
                    (None, None) if owned => unknown("not connected with this node"),
                    (None, None) => unknown("this node does not own the log"),
                    (Some(session), None) if session.exchanges_views() => unknown("it has told nothing yet"),
                    (Some(_), None) => unknown("it does not tell views: a C daemon, or an older hadmd"),
                }
            }
        };
        Row { id, name, known, why, view, age }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Mask;

    fn row(id: u8, known: Known, mask: u32, unchanged: u64) -> Row {
        let view = PeerView { mask: Mask(mask), unchanged: Duration::from_secs(unchanged), record: None };
        Row { id, name: format!("n{id}"), known, why: None, view, age: Duration::from_secs(1) }
    }

    #[test]
    fn only_what_known_views_say_is_one_sided() {
        let rows = [
            row(0, Known::Here, 0b1110, 9),
            row(1, Known::Told, 0b0101, 4),
            row(2, Known::Stale, 0b0001, 20),
            // It was connected with 1 and 2 when it sent its view: they are not to blame.
            row(3, Known::Gone, 0b0111, 50),
            row(4, Known::Unknown, 0, 0),
        ];
        let found = one_sided("node", &rows);
        let texts: Vec<_> = found.iter().map(|pair| pair.text.as_str()).collect();
        assert_eq!(texts, ["node 1 (n1) sees node 2 (n2), node 2 does not see node 1"]);
        // No longer than the younger of the two views is unchanged.
        assert_eq!(found[0].for_s, 5.0);
    }
}
