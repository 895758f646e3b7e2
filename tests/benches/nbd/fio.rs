//! Runs of fio, and their results. Used by every row with reads or writes.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::RANGE;

/// A load.
#[derive(Clone, Copy)]
pub struct Job {
    pub kind: &'static str,
    pub block: &'static str,
    pub depth: u32,
}

/// A load on another part of the disk than [`RANGE`].
#[derive(Clone, Copy)]
pub struct Sized(Job, u64);

impl Job {
    pub fn of(self, size: u64) -> Sized {
        Sized(self, size)
    }
}

impl From<Job> for Sized {
    fn from(job: Job) -> Self {
        Sized(job, RANGE)
    }
}

/// The result of a run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub per_s: f64,
    pub mb_per_s: f64,
    pub p99_us: f64,
}

/// Runs a job against an NBD server, for a time or once over its part of the disk.
pub fn nbd(uri: &str, job: impl Into<Sized>, time: Option<Duration>) -> Run {
    run(&["--ioengine=nbd", &format!("--uri={uri}")], job, time)
}

/// Begins a job that goes on until [`end`], or until the server ends it.
pub fn begin(uri: &str, job: Job) -> Child {
    let mut command = Command::new("fio");
    command.args(["--name=load", "--ioengine=nbd", "--norandommap", "--time_based", "--runtime=600"]);
    command.arg(format!("--uri={uri}")).arg(format!("--rw={}", job.kind)).arg(format!("--bs={}", job.block));
    command.arg(format!("--iodepth={}", job.depth)).arg(format!("--size={RANGE}"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("fio starts")
}

/// Ends it.
pub fn end(mut load: Child) {
    // It may have ended with its connection.
    let _ = load.kill();
    let _ = load.wait();
}

/// Runs a job with the options of its engine.
pub fn run(engine: &[&str], job: impl Into<Sized>, time: Option<Duration>) -> Run {
    let Sized(job, size) = job.into();
    let mut command = Command::new("fio");
    command.args(["--name=bench", "--output-format=json", "--norandommap", "--randrepeat=0"]).args(engine);
    command.arg(format!("--rw={}", job.kind)).arg(format!("--bs={}", job.block));
    command.arg(format!("--iodepth={}", job.depth)).arg(format!("--size={size}"));
    if let Some(time) = time {
        command.args(["--time_based".to_owned(), format!("--runtime={}", time.as_secs())]);
    }
    let done = command.stdin(Stdio::null()).output().expect("fio starts");
    let text = String::from_utf8_lossy(&done.stdout);
    // Warnings may stand before.
    let json = text.find('{').and_then(|at| serde_json::from_str::<Value>(&text[at..]).ok());
    let found = json.filter(|_| done.status.success()).and_then(|json| {
        let side = &json["jobs"][0][if job.kind.ends_with("read") { "read" } else { "write" }];
        Some(Run {
            per_s: side["iops"].as_f64()?,
            mb_per_s: side["bw_bytes"].as_f64()? / 1e6,
            p99_us: side["clat_ns"]["percentile"]["99.000000"].as_f64()? / 1e3,
        })
    });
    found.unwrap_or_else(|| {
        panic!("fio {engine:?}: {}\n{text}{}", done.status, String::from_utf8_lossy(&done.stderr))
    })
}
