//! Sites with a mirrored disk: a daemon and a `hadm-nbd` each, in network namespaces of their own. What is
//! answered is at both, a site is lost and comes back, the other is promoted, and every refusal says what helps.
//! Needs root, `ip` and `unshare`; without, the tests say so and pass.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test that cannot go on has failed"
)]

#[path = "../namespaces/mod.rs"]
mod namespaces;
#[path = "../nbd/mod.rs"]
mod nbd;
#[allow(dead_code, reason = "the tests under faults use more of it")]
mod sites;
#[path = "../support/mod.rs"]
mod support;

mod commands;
mod far;
mod faults;
mod grow;
mod life;
mod lines;
mod one_process;
mod orders;
mod programs;
mod protocol;
mod refusals;
mod scripts;
mod sqlite;
mod witness;
