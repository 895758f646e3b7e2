//! Two sites of a mirrored disk under faults that a seed chooses, with clients that check every answer; daemons,
//! mirrors, kernel links and disks are real. Promises M1 to M6 of a mirror: what was answered is kept, what is read was
//! written, sites in sync are equal, histories are never merged, nobody waits for ever.
//!
//! `make disk-chaos SECS=1800 SEED=7`; `make test` includes a minute. Processes are killed and stopped; links are cut, in one
//! direction, too; data disks fail or are full. With odd seeds four extents may be active at a time; the seed's rest by three says
//! at which sites daemon and mirror are one process; with `LARGE=1` the disk has more extents than an activity log takes. Every site is
//! promoted without force unless the metadata of the dead primary show that it went no further than the survivor; then
//! it is promoted with force, and must have every answered write. Needs root, `ip` and `unshare`; says what it leaves out.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on has failed"
)]

mod client;
mod disks;
mod far;
mod faults;
mod ledger;
#[path = "../namespaces/mod.rs"]
mod namespaces;
#[path = "../nbd/mod.rs"]
mod nbd;
mod run;
#[allow(dead_code, reason = "tests of a mirror use more of it")]
#[path = "../nbd_mirror/sites.rs"]
mod sites;
#[path = "../support/mod.rs"]
mod support;
mod worker;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is no number")))
}

#[test]
fn answered_writes_survive_every_fault() {
    let (secs, seed) = (number("SECS", 60), number("SEED", 1));
    run::run(secs, seed);
}

/// Ten histories, or `HISTORIES=100`.
#[test]
fn a_far_copy_is_a_state_of_the_primary_whatever_happens() {
    far::run(number("HISTORIES", 10), number("SEED", 1));
}
