//! Who sees whom: this daemon's own view goes to the peers that take views, and theirs are laid side by side for
//! those who ask.
//!
//! A view is only ever its sender's own: what a peer told is shown here and told to nobody else. Nothing here
//! decides anything; a view that is wrong misleads whoever reads the table, and no packet.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Timer, owner};
use crate::core::{CONNECT_TICK, Moment, PeerKey};
use crate::wire::{Mask, PeerView, ResourceId};

/// A view older than this has missed two ticks: its sender does not run, or its link is jammed.
const STALE: Duration = CONNECT_TICK.saturating_mul(2);

/// What this daemon tells of itself.
#[derive(Default)]
pub(super) struct Views {
    /// When it is told next: with every change, and with every tick.
    pub due: Moment,
    /// Connected nodes, and connected sites of each resource; since when.
    own: BTreeMap<Option<ResourceId>, (Mask, Moment)>,
}

/// One node's or site's view, as far as it is known here.
struct Row {
    id: u8,
    name: String,
    /// `here`, `told`, `stale` (connected, but not heard of for too long), `gone` (told before its session
    /// ended) or `unknown`.
    known: &'static str,
    /// Why it is unknown, or only an old one known.
    why: Option<&'static str>,
    view: PeerView,
    age: Duration,
}

impl Row {
    /// Whether the view can be held against others: one of a session that is over was right once.
    fn counts(&self) -> bool {
        matches!(self.known, "here" | "told" | "stale")
    }

    fn json(&self) -> Value {
        let known = self.known != "unknown";
        json!({
            "id": self.id, "name": self.name, "known": self.known, "why": self.why,
            "sees": known.then(|| self.view.mask.ids().collect::<Vec<_>>()),
            "age_s": known.then_some(self.age.as_secs_f64()),
            "unchanged_s": known.then_some((self.age + self.view.unchanged).as_secs_f64()),
        })
    }
}

/// Every pair of which one sees the other, and is not seen by it.
fn one_sided(word: &str, rows: &[Row]) -> Vec<Value> {
    let rows = || rows.iter().filter(|row| row.counts());
    let pairs = rows().flat_map(|from| rows().map(move |to| (from, to)));
    pairs
        .filter(|(from, to)| {
            from.id != to.id && from.view.mask.contains(to.id) && !to.view.mask.contains(from.id)
        })
        .map(|(from, to)| {
            let lasts = (from.age + from.view.unchanged).min(to.age + to.view.unchanged);
            let text =
                format!("{word} {0} sees {word} {1}, {word} {1} does not see {word} {0}", from.id, to.id);
            json!({"sees": from.id, "unseen_by": to.id, "for_s": lasts.as_secs_f64(), "text": text})
        })
        .collect()
}

impl Timer {
    /// Tells every peer that takes views whom this daemon is connected with, and sets the time of the next.
    pub(super) fn share_views(&mut self) {
        let now = self.now();
        self.views.due = now + CONNECT_TICK;
        let state = self.core.conn_state();
        let sites = state.sites.into_iter().map(|(resource, mask)| (Some(resource), mask));
        for (scope, mask) in sites.chain([(None, state.nodes)]) {
            let own = self.views.own.entry(scope).or_insert((mask, now));
            if own.0 != mask {
                *own = (mask, now);
            }
        }
        for session in self.sessions().iter().filter(|session| session.exchanges_views()) {
            let scope = match session.record.key {
                PeerKey::Node(_) => None,
                PeerKey::Site(resource, _) => Some(resource),
            };
            session.tell_view(&self.own_view(scope));
        }
    }

    fn own_view(&self, scope: Option<ResourceId>) -> PeerView {
        let now = self.now();
        let (mask, since) = self.views.own.get(&scope).copied().unwrap_or((Mask(0), now));
        PeerView { mask, unchanged: now.saturating_sub(since) }
    }

    /// The views of every node of the local site, and of every site of each resource that is here.
    pub(super) fn mesh(&self) -> Value {
        let nodes = self.config.local_nodes().iter().map(|node| {
            (
                node.id.get(),
                node.hostname.clone(),
                (node.id != self.config.node).then_some(PeerKey::Node(node.id)),
            )
        });
        let rows: Vec<Row> = nodes.map(|(id, name, key)| self.row(id, name, key, None)).collect();
        let mut meshes = vec![json!({
            "scope": "node", "rows": rows.iter().map(Row::json).collect::<Vec<_>>(),
            "one_sided": one_sided("node", &rows),
        })];
        for (resource, _) in owner::runsites_here(&self.config) {
            let sites = resource.runsites.iter().map(|runsite| {
                let away = runsite.site != self.config.site;
                let key = away.then_some(PeerKey::Site(resource.id, runsite.site));
                self.row(runsite.site.get(), runsite.addr.ip().to_string(), key, Some(resource.id))
            });
            let mut rows: Vec<Row> = sites.collect();
            rows.sort_by_key(|row| row.id);
            meshes.push(json!({
                "scope": "site", "resource": resource.id.get(), "name": resource.name,
                "owned": self.switch.table().owned.contains(&resource.id),
                "rows": rows.iter().map(Row::json).collect::<Vec<_>>(),
                "one_sided": one_sided("site", &rows),
            }));
        }
        json!({"node": self.config.node.get(), "site": self.config.site.get(), "meshes": meshes})
    }

    /// `peer` is `None` for this daemon's own view.
    fn row(&self, id: u8, name: String, peer: Option<PeerKey>, resource: Option<ResourceId>) -> Row {
        let table = self.switch.table();
        let owned = resource.is_none_or(|resource| table.owned.contains(&resource));
        let unknown = |why| ("unknown", Some(why), PeerView::default(), Duration::ZERO);
        let (known, why, view, age) = match peer {
            None if owned => ("here", None, self.own_view(resource), Duration::ZERO),
            None => unknown("this node does not own the log"),
            Some(key) => {
                let session = table.peers.get(&key).and_then(|entry| entry.session.as_ref());
                let heard = match session {
                    Some(session) => session.view(),
                    None => self.stories.get(&key).and_then(|story| story.view),
                };
                let heard = heard.map(|(view, at): (_, Instant)| (view, at.elapsed()));
                match (session, heard) {
                    (Some(_), Some((view, age))) if age <= STALE => ("told", None, view, age),
                    (Some(_), Some((view, age))) => ("stale", Some("it tells nothing any more"), view, age),
                    (None, Some((view, age))) => ("gone", Some("not connected with this node"), view, age),
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

    fn row(id: u8, known: &'static str, mask: u32, unchanged: u64) -> Row {
        let view = PeerView { mask: Mask(mask), unchanged: Duration::from_secs(unchanged) };
        Row { id, name: format!("n{id}"), known, why: None, view, age: Duration::from_secs(1) }
    }

    #[test]
    fn only_what_known_views_say_is_one_sided() {
        let rows = [
            row(0, "here", 0b1110, 9),
            row(1, "told", 0b0101, 4),
            row(2, "stale", 0b0001, 20),
            // Was connected with 1 and 2 when it told: they are not to be blamed.
            row(3, "gone", 0b0111, 50),
            row(4, "unknown", 0, 0),
        ];
        let found = one_sided("node", &rows);
        let texts: Vec<_> = found.iter().map(|pair| pair["text"].as_str().unwrap()).collect();
        assert_eq!(texts, ["node 1 sees node 2, node 2 does not see node 1"]);
        // No longer than the younger of the two views has been as it is.
        assert_eq!(found[0]["for_s"], 5.0);
    }
}
