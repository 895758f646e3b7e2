//! `hadm-probe`: the kernel module's part played from user space, to commission a cluster before the module exists.
//!
//! A probe attaches to its daemon exactly as the kernel module does and depends on nothing of the daemon but the
//! bytes on its two links. It must never be imported by a module of the daemon. Only `src/bin/hadm-probe.rs`
//! uses it.
//!
//! - [`args`]: the command line.
//! - `frame`, `link`: the payloads of the probe, and its pair of links.
//! - `watch`, `talk`: the connected peers; a conversation with several peers.
//! - `state`, `send`, `recv`, `echo`, `latency`, `throughput`: one file for each command.
//! - `flow`, `histogram`, `partial`, `progress`: numbered packets, round-trip times, the file while it is received,
//!   the bar on a terminal.

pub mod args;
mod echo;
mod flow;
mod frame;
mod histogram;
mod latency;
mod link;
mod partial;
mod progress;
mod recv;
mod send;
mod state;
mod talk;
mod throughput;
mod watch;

use std::fmt;
use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use crate::wire::Mask;

use self::args::{Command, Options};

/// The reason for which a command ended without success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// SIGINT or SIGTERM came first.
    Interrupted,
    /// A sentence for the user.
    Failed(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Interrupted => f.write_str("interrupted by a signal"),
            Failure::Failed(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Failure {}

/// Carries out one command; returns when it is done. Results go to stdout, remarks to stderr; the caller
/// prints the failure.
pub fn run(options: &Options) -> Result<(), Failure> {
    let Options { server, json, command } = options;
    match command {
        Command::State => state::run(*server, *json),
        Command::Send(send) => send::run(*server, *json, send),
        Command::Recv { output, dev } => recv::run(*server, *json, output, *dev),
        Command::Echo => echo::run(*server, *json),
        Command::Latency(measure) => latency::run(*server, *json, measure),
        Command::Throughput(measure) => throughput::run(*server, *json, measure),
    }
}

/// Prints one remark or failure on stderr. A closed stderr is no reason to stop.
pub fn say(text: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "hadm-probe: {text}");
}

/// Prints one result line on stdout, at once.
fn print(text: impl fmt::Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(|e| Failure::Failed(format!("cannot write to standard output: {e}")))
}

/// Starts a named thread; nothing waits for its end unless the caller keeps the handle.
fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<thread::JoinHandle<T>, Failure> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|e| Failure::Failed(format!("cannot start the thread {name}: {e}")))
}

/// Returns the ids of `all` that are not in `gone`.
fn without(all: Mask, gone: Mask) -> Mask {
    Mask(all.0 & !gone.0)
}

/// Returns the moment `limit` from now; `None` is never.
fn deadline(limit: Option<Duration>) -> Option<Instant> {
    limit.and_then(|limit| Instant::now().checked_add(limit))
}

/// Returns the amount per second; 0 when no time passed.
fn rate(amount: f64, time: Duration) -> f64 {
    let seconds = time.as_secs_f64();
    if seconds > 0.0 { amount / seconds } else { 0.0 }
}

/// Returns the bytes in hexadecimal.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
