//! The side-by-side benchmark, `make bench`: two daemons in a row against direct TCP and against a chain of
//! two HAProxy processes, one daemon with 31 peers, and two sites with a slow line between them. Everything runs interleaved in one go, ratios are
//! taken within each round, and medians of the rounds are what is reported. Must never leave out a case
//! because it looks bad. `plot` as argument draws the last results instead, `line` measures the slow line alone.
//!
//! Environment: `QUICK=1` for one short round; `HADMD=path,path` adds other builds of the daemon; `STREAM=65536`
//! runs nothing but the streams with payloads of that size, for whoever compares builds or profiles them.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "it ends on error")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what it is for")]

mod contest;
mod ends;
mod figures;
mod flow;
mod line;
mod plot;
mod process;
mod star;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use contest::Contestant;
use figures::Figures;
use flow::{Packets, round_trips, throughput};
use support::ms;

/// A daemon's binary and what it is called in the tables.
pub struct Build {
    name: String,
    path: PathBuf,
}

/// How much is measured.
struct Effort {
    rounds: usize,
    slice: Duration,
    idle: Duration,
}

const PAYLOADS: [usize; 4] = [512, 4 << 10, 64 << 10, 1 << 20];
const DEPTHS: [usize; 2] = [1, 16];

fn main() {
    if std::env::args().any(|arg| arg == "plot") {
        return plot::draw();
    }
    let effort = if std::env::var_os("QUICK").is_some() {
        Effort { rounds: 1, slice: ms(150), idle: ms(2000) }
    } else {
        Effort { rounds: 7, slice: ms(500), idle: ms(10_000) }
    };
    let began = Instant::now();
    let builds = builds();
    let mut figures = Figures::default();
    let stream: Option<usize> = std::env::var("STREAM").ok().map(|size| size.parse().unwrap());
    let line_alone = std::env::args().any(|arg| arg == "line");
    if !line_alone {
        side_by_side(&builds, &effort, stream, &mut figures);
    }
    for build in builds.iter().filter(|_| stream.is_none()) {
        line::sites(build, effort.rounds, &mut figures);
        if line_alone {
            continue;
        }
        star::fan_out_and_load(build, effort.rounds, effort.slice, &mut figures);
        star::stalled(build, effort.rounds, effort.slice, &mut figures);
        star::idle(build, effort.idle, &mut figures);
        star::kill(build, effort.rounds + 2, &mut figures);
    }
    figures.print();
    if line_alone {
        return;
    }
    println!("\n{} rounds in {:.0} s; {}", effort.rounds, began.elapsed().as_secs_f64(), figures.write());
}

/// This tree's daemon, and those that `HADMD` names.
fn builds() -> Vec<Build> {
    let mut builds = vec![Build { name: "hadmd".into(), path: env!("CARGO_BIN_EXE_hadmd").into() }];
    let others = std::env::var("HADMD").unwrap_or_default();
    for path in others.split(',').filter(|path| !path.is_empty()) {
        builds.push(Build { name: path.into(), path: path.into() });
    }
    builds
}

/// The same packets over every contestant in turn.
fn side_by_side(builds: &[Build], effort: &Effort, alone: Option<usize>, figures: &mut Figures) {
    let mut contestants = vec![contest::direct()];
    if contest::has_haproxy() {
        contestants.push(contest::haproxy("haproxy", false));
        contestants.push(contest::haproxy("haproxy splice", true));
    } else {
        println!("haproxy is not installed: its rows and bars are left out (apt-get install haproxy)");
    }
    contestants.extend(builds.iter().map(|build| contest::hadmd(build, None)));
    if cfg!(feature = "authkey") {
        // Other builds may know nothing of it.
        contestants.extend(builds.first().map(contest::encrypted));
    }
    for round in 0..effort.rounds {
        eprintln!("round {} of {}: side by side", round + 1, effort.rounds);
        // Nobody is always first.
        contestants.rotate_left(1);
        for payload in alone.map_or(PAYLOADS.to_vec(), |size| vec![size]) {
            contestants.iter().for_each(|contestant| stream(contestant, payload, effort.slice, figures));
        }
        for depth in DEPTHS.into_iter().filter(|_| alone.is_none()) {
            contestants.iter().for_each(|contestant| latency(contestant, depth, effort.slice, figures));
        }
    }
    for contestant in contestants.iter().filter(|contestant| !contestant.processes.is_empty()) {
        let peak = contestant.processes.iter().map(|process| process.status("VmHWM")).max().unwrap_or(0);
        figures.add("peak RSS of one process, MiB", "", &contestant.name, peak as f64 / 1024.0);
    }
}

fn stream(contestant: &Contestant, payload: usize, slice: Duration, figures: &mut Figures) {
    let packets = Packets::new(payload, contestant.there);
    let before = contestant.cpu_seconds();
    let run = throughput(&contestant.a, &[&contestant.b], &packets, slice);
    let cpu = contestant.cpu_seconds() - before;
    let (column, gb) = (figures::bytes(payload), run.bytes as f64 / 1e9);
    figures.add("throughput, MB/s", &column, &contestant.name, gb * 1e3 / run.seconds);
    figures.add("packets, thousands/s", &column, &contestant.name, run.packets as f64 / 1e3 / run.seconds);
    if !contestant.processes.is_empty() {
        figures.add("CPU seconds per GB", &column, &contestant.name, cpu / gb);
    }
}

fn latency(contestant: &Contestant, depth: usize, slice: Duration, figures: &mut Figures) {
    let there = Packets::new(4096, contestant.there);
    let times = round_trips(&contestant.a, &contestant.b, &there, contestant.back, depth, slice);
    for (name, part) in [("p50", 0.5), ("p99", 0.99)] {
        let column = format!("{name}, depth {depth}");
        figures.add("round trip of 4 KiB, us", &column, &contestant.name, flow::quantile(&times, part));
    }
}
