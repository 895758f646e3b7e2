//! Results in JSON that no daemon sends: those of commands that only act, of files, and of metrics.
//!
//! `etc/schema/hadmctl.json` has all of them, field by field; a test holds the output against it. Used by the commands.

use std::path::Path;

use serde_json::{Value, json};

use crate::config::{ConfigError, Loaded, Problem, Severity};

/// A field that is a text; empty if there is none.
pub(super) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// The items of a field that is a list.
pub(super) fn list<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    value.get(name).and_then(Value::as_array).into_iter().flatten()
}

/// The samples of a Prometheus page, a line of JSON.
pub(super) fn samples(text: &str) -> String {
    let samples: Vec<Value> = text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect();
    format!("{}\n", json!({ "samples": samples }))
}

/// One sample: `name value` or `name{label="value",...} value`.
fn sample(line: &str) -> Option<Value> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let mut all = serde_json::Map::new();
    let mut rest = labels.strip_suffix('}').unwrap_or(labels);
    while let Some((label, after)) = rest.split_once("=\"") {
        let (mut text, mut chars) = (String::new(), after.chars());
        // A quotation mark, a backslash and a line end in a value stand behind a backslash.
        loop {
            match chars.next()? {
                '"' => break,
                '\\' => match chars.next()? {
                    'n' => text.push('\n'),
                    c => text.push(c),
                },
                c => text.push(c),
            }
        }
        all.insert(label.into(), text.into());
        rest = chars.as_str().trim_start_matches(',');
    }
    let value: f64 = value.parse().ok()?;
    // JSON has no number for an infinite value, and none is written.
    Some(json!({ "name": name, "labels": all, "value": value }))
}

/// The result of a check of a configuration file.
pub(super) fn checked(file: &Path, result: &Result<Loaded, ConfigError>) -> Value {
    let problem = |problem: &Problem| {
        json!({
            "line": problem.line,
            "column": problem.col,
            "severity": if problem.severity == Severity::Error { "error" } else { "warning" },
            "says": problem.message,
        })
    };
    let (node, site, hostname) = match result {
        Ok(Loaded { config, .. }) => (
            Some(config.node.get()),
            Some(config.site.get()),
            config.local_node().map(|node| node.hostname.as_str()),
        ),
        Err(_) => (None, None, None),
    };
    let (problems, error): (Vec<Value>, _) = match result {
        Ok(loaded) => (loaded.warnings.iter().map(problem).collect(), None),
        Err(ConfigError::Refused { problems, .. }) => (problems.iter().map(problem).collect(), None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    json!({
        "file": file.display().to_string(),
        "valid": result.is_ok(),
        "node": node,
        "site": site,
        "hostname": hostname,
        "problems": problems,
        "error": error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_come_out_of_their_quotation_marks() {
        let text = "# HELP a b\na_total{peer=\"node 1\",why=\"say \\\"x, y\\\" \\\\ \\n\"} 2.5\nb 7\n";
        let found: Value = serde_json::from_str(&samples(text)).unwrap();
        let wanted = json!({ "samples": [
            { "name": "a_total", "labels": { "peer": "node 1", "why": "say \"x, y\" \\ \n" }, "value": 2.5 },
            { "name": "b", "labels": {}, "value": 7.0 },
        ]});
        assert_eq!(found, wanted);
    }
}
