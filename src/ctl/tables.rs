//! The answers to `doctor` and `mesh` as text for people.
//!
//! The verdicts are the daemon's: here they are only formatted. Called by the commands.

use std::fmt::Write;

use super::show::{coloured, span};
use crate::control::{Examination, ExaminedPeer, Known, Mesh, MeshRow, MeshTable, OneSided};

/// Returns the results for this node and its peers.
pub(super) fn doctor(found: &Examination, colour: bool) -> String {
    let mut out = String::new();
    let head = |well: bool, name: &str| {
        let (word, code) = if well { ("well ", "32") } else { ("WRONG", "31") };
        format!("{} {name:<22}", coloured(word, code, colour))
    };
    for check in &found.checks {
        let _ = writeln!(out, "{} {}", head(check.well, check.check.word()), check.says);
        if let Some(advice) = &check.advice {
            let _ = writeln!(out, "        -> {advice}");
        }
    }
    for ExaminedPeer { peer, found } in &found.peers {
        let _ = writeln!(out, "{} {}: {}", head(found.well, &peer.label()), found.verdict, found.says);
        let Some(advice) = &found.advice else { continue };
        // The steps of the call matter only for a peer that is not connected.
        for step in peer.call.iter().filter(|_| !peer.connected).flat_map(|call| &call.steps) {
            let _ = writeln!(out, "        {step}");
        }
        let _ = writeln!(out, "        -> {advice}");
    }
    out
}

/// Returns the connections as each side sees them, a table for the nodes and one for each resource.
pub(super) fn mesh(mesh: &Mesh) -> String {
    let mut out = String::new();
    for table in &mesh.meshes {
        let _ = match &table.resource {
            None => writeln!(out, "nodes of {}, seen from {}", mesh.site, mesh.node),
            Some(resource) => writeln!(
                out,
                "\nsites of {} ({}){}",
                resource.resource,
                resource.name,
                if resource.owned { "" } else { ", whose log this node does not own" }
            ),
        };
        rows(table, &mut out);
    }
    out += "\n+ sees, . does not see, ! sees and is not seen, ? not known\n";
    out
}

fn rows(table: &MeshTable, out: &mut String) {
    let MeshTable { rows, one_sided, .. } = table;
    let name = |row: &MeshRow| format!("{} {} ({})", table.scope(), row.id, row.name);
    let wide = rows.iter().map(|row| name(row).chars().count()).max().unwrap_or_default();
    let _ = write!(out, "{:wide$}", "");
    for row in rows {
        let _ = write!(out, " {:>2}", row.id);
    }
    let _ = writeln!(out, "  view");
    for row in rows {
        let _ = write!(out, "{:wide$}", name(row));
        for column in rows {
            let unseen = |pair: &OneSided| pair.sees == row.id && pair.unseen_by == column.id;
            let sign = match &row.sees {
                _ if row.id == column.id => '-',
                None => '?',
                Some(_) if one_sided.iter().any(unseen) => '!',
                Some(sees) if sees.contains(&column.id) => '+',
                Some(_) => '.',
            };
            let _ = write!(out, " {sign:>2}");
        }
        let _ = writeln!(out, "  {}", origin(row));
    }
    for pair in one_sided {
        let _ = writeln!(out, "{} (for {})", pair.text, span(pair.for_s));
    }
}

/// Returns the origin of a row, and its age.
fn origin(row: &MeshRow) -> String {
    let why = row.why.as_deref().unwrap_or_default();
    let age = span(row.age_s.unwrap_or_default());
    match row.known {
        Known::Here => "this node's own".into(),
        Known::Told => format!("{age} old"),
        Known::Unknown => why.into(),
        Known::Stale | Known::Gone => format!("{}: {age} old, {why}", row.known),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mesh_is_an_aligned_table_with_what_is_one_sided_in_words() {
        let row = |id: u8, known, sees: Option<Vec<u8>>, why: Option<&str>| MeshRow {
            id,
            name: format!("n{id}"),
            known,
            sees,
            why: why.map(Into::into),
            age_s: Some(0.5),
            unchanged_s: None,
        };
        let table = MeshTable {
            resource: None,
            rows: vec![
                row(0, Known::Here, Some(vec![1, 10]), None),
                row(1, Known::Told, Some(vec![0]), None),
                row(3, Known::Unknown, None, Some("not connected with this node")),
                row(10, Known::Stale, Some(vec![0, 1]), Some("it tells nothing any more")),
            ],
            one_sided: vec![OneSided {
                sees: 10,
                unseen_by: 1,
                for_s: 2.0,
                text: "node 10 sees node 1, node 1 does not see node 10".into(),
            }],
        };
        let (node, site) = (0.try_into().unwrap(), 7.try_into().unwrap());
        let shown = mesh(&Mesh { node, site, meshes: vec![table] });
        let expected = "\
nodes of site 7, seen from node 0
               0  1  3 10  view
node 0 (n0)    -  +  .  +  this node's own
node 1 (n1)    +  -  .  .  0.5 s old
node 3 (n3)    ?  ?  -  ?  not connected with this node
node 10 (n10)  +  !  .  -  stale: 0.5 s old, it tells nothing any more
node 10 sees node 1, node 1 does not see node 10 (for 2.0 s)

+ sees, . does not see, ! sees and is not seen, ? not known
";
        assert_eq!(shown, expected);
    }
}
