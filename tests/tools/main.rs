//! The programs as their users meet them: command lines, files, sockets, logs and what is installed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

#[path = "../support/mod.rs"]
mod support;

mod architecture;
mod askers;
mod cli;
mod config;
mod control;
mod doctor;
mod licences;
mod logging;
mod mesh;
mod packaging;
mod plain_english;
mod probe;
mod reload;
mod scrape;
mod service;
mod syslog;
