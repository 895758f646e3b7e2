//! The answers to `doctor` and `mesh` as text for people. The verdicts are the daemon's: here they are only laid
//! out.
#![allow(clippy::indexing_slicing, reason = "a JSON value gives null for what it has not")]

use std::fmt::Write;

use serde_json::Value;

use super::show::{coloured, number, span, text};

/// What was found out about this node and its peers.
pub(super) fn doctor(found: &Value, colour: bool) -> String {
    let mut out = String::new();
    let list = |field: &str| found[field].as_array().into_iter().flatten();
    for (name, finding) in
        list("checks").map(|check| ("check", check)).chain(list("peers").map(|peer| ("peer", peer)))
    {
        let (word, code) = if finding["well"] == true { ("well ", "32") } else { ("WRONG", "31") };
        let _ = write!(out, "{} {:<22} ", coloured(word, code, colour), text(&finding[name]));
        let _ = match finding["verdict"].as_str() {
            Some(verdict) => writeln!(out, "{verdict}: {}", text(&finding["says"])),
            None => writeln!(out, "{}", text(&finding["says"])),
        };
        if let Some(advice) = finding["advice"].as_str() {
            // Only of a peer that is not there does it matter how the call went.
            for step in finding["call"]["steps"].as_array().into_iter().flatten() {
                if finding["connected"] == false {
                    let _ = writeln!(out, "        {}", text(step));
                }
            }
            let _ = writeln!(out, "        -> {advice}");
        }
    }
    out
}

/// Who sees whom, a table for the nodes and one for each resource.
pub(super) fn mesh(mesh: &Value) -> String {
    let mut out = String::new();
    for table in mesh["meshes"].as_array().into_iter().flatten() {
        let word = text(&table["scope"]);
        let _ = match word {
            "node" => writeln!(out, "nodes of site {}, seen from node {}", mesh["site"], mesh["node"]),
            _ => writeln!(
                out,
                "\nsites of resource {} ({}){}",
                table["resource"],
                text(&table["name"]),
                if table["owned"] == true { "" } else { ", whose log this node does not own" }
            ),
        };
        rows(table, word, &mut out);
    }
    out += "\n+ sees, . does not see, ! sees and is not seen, ? not known\n";
    out
}

fn rows(table: &Value, word: &str, out: &mut String) {
    let rows: Vec<&Value> = table["rows"].as_array().into_iter().flatten().collect();
    let one_sided: Vec<&Value> = table["one_sided"].as_array().into_iter().flatten().collect();
    let name = |row: &Value| format!("{word} {} ({})", row["id"], text(&row["name"]));
    let wide = rows.iter().map(|row| name(row).chars().count()).max().unwrap_or_default();
    let _ = write!(out, "{:wide$}", "");
    for row in &rows {
        let _ = write!(out, " {:>2}", number(&row["id"]));
    }
    let _ = writeln!(out, "  view");
    for row in &rows {
        let _ = write!(out, "{:wide$}", name(row));
        for column in &rows {
            let sign = match row["sees"].as_array() {
                _ if row["id"] == column["id"] => '-',
                None => '?',
                Some(_)
                    if one_sided
                        .iter()
                        .any(|pair| pair["sees"] == row["id"] && pair["unseen_by"] == column["id"]) =>
                {
                    '!'
                }
                Some(sees) => {
                    if sees.contains(&column["id"]) {
                        '+'
                    } else {
                        '.'
                    }
                }
            };
            let _ = write!(out, " {sign:>2}");
        }
        let _ = writeln!(out, "  {}", origin(row));
    }
    for pair in one_sided {
        let lasts = span(pair["for_s"].as_f64().unwrap_or_default());
        let _ = writeln!(out, "{} (for {lasts})", text(&pair["text"]));
    }
}

/// Where a row comes from, and how old it is.
fn origin(row: &Value) -> String {
    let why = text(&row["why"]);
    match text(&row["known"]) {
        "here" => "this node's own".into(),
        "told" => format!("{} old", span(row["age_s"].as_f64().unwrap_or_default())),
        "unknown" => why.into(),
        known => format!("{known}: {} old, {why}", span(row["age_s"].as_f64().unwrap_or_default())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_mesh_is_an_aligned_table_with_what_is_one_sided_in_words() {
        let row = |id, known, sees: Option<Vec<u8>>, why: Option<&str>| json!({"id": id, "name": format!("n{id}"), "known": known, "sees": sees, "why": why, "age_s": 0.5});
        let shown = mesh(&json!({"node": 0, "site": 7, "meshes": [{
            "scope": "node",
            "rows": [
                row(0, "here", Some(vec![1, 10]), None),
                row(1, "told", Some(vec![0]), None),
                row(3, "unknown", None, Some("not connected with this node")),
                row(10, "stale", Some(vec![0, 1]), Some("it tells nothing any more")),
            ],
            "one_sided": [{"sees": 10, "unseen_by": 1, "for_s": 2.0,
                "text": "node 10 sees node 1, node 1 does not see node 10"}],
        }]}));
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
