//! `hadm-probe`: the kernel module played from user space, to commission a cluster before the module is there.
//!
//! A probe attaches to its daemon exactly as the kernel module does and knows nothing of the daemon but the
//! bytes on its two links. It must never be imported by a room of the daemon. Only `src/bin/hadm-probe.rs`
//! uses it.
//!
//! - [`args`]: the command line.
//! - `peer`, `frame`, `reader`, `link`: nodes and sites, the payloads of the probe, packets out of a stream,
//!   the pair of links.
//! - `watch`, `talk`: who is connected; a conversation with several peers.
//! - `state`, `send`, `recv`, `echo`, `latency`, `throughput`: one file a command.
//! - `flow`, `histogram`, `partial`, `progress`: numbered packets, round-trip times, the file in the making,
//!   the bar on a terminal.

pub mod args;
mod echo;
mod flow;
mod frame;
mod histogram;
mod latency;
mod link;
mod partial;
mod peer;
mod progress;
mod reader;
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

/// Why a command did not do what it was asked for.
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

/// Carries out one command; returns when it is done. Results go to stdout, remarks to stderr; the failure is
/// left to the caller to print.
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

/// One remark or failure on stderr. That stderr is gone is no reason to stop.
pub fn say(text: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "hadm-probe: {text}");
}

/// One result line on stdout, at once.
fn print(text: impl fmt::Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(|e| Failure::Failed(format!("cannot write to standard output: {e}")))
}

/// A named thread; its end is not waited for unless the caller keeps the handle.
fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<thread::JoinHandle<T>, Failure> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|e| Failure::Failed(format!("cannot start the thread {name}: {e}")))
}

/// The ids of `all` that are not in `gone`.
fn without(all: Mask, gone: Mask) -> Mask {
    Mask(all.0 & !gone.0)
}

/// The moment `limit` from now; `None` is never.
fn deadline(limit: Option<Duration>) -> Option<Instant> {
    limit.and_then(|limit| Instant::now().checked_add(limit))
}

/// Something per second; 0 when no time passed.
fn rate(amount: f64, time: Duration) -> f64 {
    let seconds = time.as_secs_f64();
    if seconds > 0.0 { amount / seconds } else { 0.0 }
}

/// Bytes in hexadecimal.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
