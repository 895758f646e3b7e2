//! Two sites: log owners, floating addresses, and the links between them, in network namespaces.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

#[path = "../namespaces/mod.rs"]
mod namespaces;
#[path = "../support/mod.rs"]
mod support;

mod link_faults;
mod site_authkey;
mod site_compress;
mod site_doctor;
mod site_failover;
mod site_listeners;
mod site_refusals;
mod site_reload;
mod site_views;
mod two_sites;
