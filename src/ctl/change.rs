//! Requests to `hadm-nbd` as lines, and what is printed after a change.
//!
//! Decides nothing. Called by the disk commands.

use std::io::Write;

use serde_json::{Value, json};

use super::Failure;
use crate::control::VERSION;

/// Prints the state after a change.
pub(super) fn print_done(
    out: &mut impl Write,
    json: bool,
    word: &str,
    (resource, site): (&str, Option<u64>),
    after: &Value,
) -> Result<(), Failure> {
    let sentence = after.get("sentence").and_then(Value::as_str);
    if json {
        let done = json!({ "done": word, "resource": resource, "site": site, "sentence": sentence });
        writeln!(out, "{done}")?;
    } else if let Some(sentence) = sentence {
        writeln!(out, "{resource}: {sentence}")?;
    }
    Ok(())
}

/// A request's line.
pub(super) fn line(command: &str, mut fields: Value) -> String {
    if let Some(fields) = fields.as_object_mut() {
        fields.extend([("v".to_owned(), json!(VERSION)), ("cmd".to_owned(), json!(command))]);
    }
    fields.to_string()
}
