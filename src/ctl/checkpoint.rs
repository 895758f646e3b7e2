//! `hadmctl disk checkpoint`: names a point of the stream, and may wait until the far sites have all before it.
//!
//! Only asks. Called by the command.

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Failure;
use super::change::{line, print_done};
use super::daemon::Daemon;
use super::json::list;

/// Time between two questions: `hadm-nbd` reports no changes.
const PERIOD: Duration = Duration::from_millis(100);

/// Names the point, and waits for so long at most.
///
/// # Errors
/// The name is refused, the time is up, or the program ends or does not answer.
pub(super) fn run(
    connect: impl Fn() -> Result<Daemon, Failure>,
    (resource, name): (&str, &str),
    limit: Option<Duration>,
    json: bool,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let request = line("checkpoint", json!({ "resource": resource, "name": name }));
    let mut after = connect()?.ask_line_patiently(&request)?.value().clone();
    let begun = Instant::now();
    while is_on_the_way(&after, name) {
        let left = limit.map_or(Duration::ZERO, |limit| limit.saturating_sub(begun.elapsed()));
        if left.is_zero() {
            break;
        }
        std::thread::park_timeout(PERIOD.min(left));
        let status = connect()?.ask_line(&line("status", json!({ "resource": resource })))?;
        after = list(status.value(), "resources").next().cloned().unwrap_or_default();
    }
    print_done(out, json, "checkpoint", (resource, None), &after)?;
    if limit.is_some() && is_on_the_way(&after, name) { Err(Failure::Unwell) } else { Ok(()) }
}

/// Returns true if a far site does not surely have it.
fn is_on_the_way(resource: &Value, name: &str) -> bool {
    let behind = list(resource, "peers").filter_map(|peer| peer.get("behind"));
    behind.flat_map(|behind| list(behind, "checkpoints")).any(|on_the_way| on_the_way == name)
}
