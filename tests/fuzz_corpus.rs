//! Every input kept in `fuzz/corpus` goes through the function it was found for, without the fuzzer; `make fuzz` looks
//! for more of them. An input that once broke a promise belongs there.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on has failed"
)]

#[path = "fuzz/targets.rs"]
mod targets;

use std::path::Path;

fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        // Shown only if the function panics.
        eprintln!("{}", path.display());
        run(&std::fs::read(&path).unwrap());
        count += 1;
    }
    assert!(count >= 10, "{count} inputs in {}", folder.display());
}

#[test]
fn stream() {
    replay("stream", targets::stream);
}

#[test]
fn hello() {
    replay("hello", targets::hello);
}

#[test]
fn config() {
    replay("config", targets::config);
}

#[test]
fn control() {
    replay("control", targets::control);
}

#[test]
fn route() {
    replay("route", targets::route);
}

#[test]
fn metadata() {
    replay("metadata", targets::metadata);
}

#[test]
fn nbd_negotiation() {
    replay("nbd_negotiation", targets::nbd_negotiation);
}

#[test]
fn nbd_transmission() {
    replay("nbd_transmission", targets::nbd_transmission);
}

#[test]
fn record() {
    replay("record", targets::record);
}
