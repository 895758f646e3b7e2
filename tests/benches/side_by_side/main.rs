//! The side-by-side benchmark, `make bench`: two daemons in a row against direct TCP and against chains of two HAProxy
//! and two socat processes, over loopback and over a veth pair, one daemon with 31 peers, and two sites with a slow line
//! between them. Everything runs interleaved, ratios are taken within each round, and medians of the rounds of each of
//! two runs are reported. Must never leave out a case because it looks bad. `plot` as argument draws the last results
//! instead, `line` measures the slow line alone.
//!
//! Environment: `QUICK=1` for one short round; `BASE=path` for ratios to another build of the daemon; `HADMD=path,path`
//! adds builds; `STREAM=65536` runs nothing but the streams with payloads of that size, to compare or profile builds.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "it ends on error")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what it is for")]

mod contest;
mod ends;
mod figures;
mod flow;
mod line;
#[path = "../../namespaces/mod.rs"]
mod namespaces;
mod plot;
mod process;
mod star;
#[path = "../../support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use contest::{Contestant, Proxy, Way};
use figures::Figures;
use flow::{Packets, round_trips, throughput};
use namespaces::Network;
use support::ms;

/// A daemon's binary and what it is called in the tables.
pub struct Build {
    name: String,
    path: PathBuf,
}

/// The extent of the measurement.
struct Effort {
    runs: usize,
    rounds: usize,
    slice: Duration,
    idle: Duration,
}

const PAYLOADS: [usize; 4] = [512, 4 << 10, 64 << 10, 1 << 20];
const DEPTHS: [usize; 2] = [1, 16];
const VETH: &str = " over a veth pair";
const BUSY: &str = ", busy polling";
/// `busypoll` of the daemons.
const BUSY_MICROS: u32 = 100;

fn main() {
    if std::env::args().any(|arg| arg == "plot") {
        return plot::draw();
    }
    let effort = if std::env::var_os("QUICK").is_some() {
        Effort { runs: 1, rounds: 1, slice: ms(150), idle: ms(2000) }
    } else {
        Effort { runs: 2, rounds: 7, slice: ms(500), idle: ms(10_000) }
    };
    let began = Instant::now();
    let builds = builds();
    let stream: Option<usize> = std::env::var("STREAM").ok().map(|size| size.parse().unwrap());
    let line_alone = std::env::args().any(|arg| arg == "line");
    let runs: Vec<Figures> =
        (0..effort.runs).map(|run| measure(run, &builds, &effort, stream, line_alone)).collect();
    let path = figures::report(&runs);
    let seconds = began.elapsed().as_secs_f64();
    println!("\n{} runs of {} rounds in {seconds:.0} s; {path}", effort.runs, effort.rounds);
}

/// One run.
fn measure(
    run: usize,
    builds: &[Build],
    effort: &Effort,
    stream: Option<usize>,
    line_alone: bool,
) -> Figures {
    eprintln!("run {} of {}", run + 1, effort.runs);
    let mut figures = Figures::default();
    if !line_alone {
        side_by_side(builds, effort, stream, &mut figures);
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
    figures
}

/// This tree's daemon, that which `BASE` names, and those that `HADMD` names.
fn builds() -> Vec<Build> {
    let mut builds = vec![Build { name: "hadmd".into(), path: env!("CARGO_BIN_EXE_hadmd").into() }];
    if let Some(path) = std::env::var_os("BASE") {
        builds.push(Build { name: figures::BASE.into(), path: path.into() });
    }
    let others = std::env::var("HADMD").unwrap_or_default();
    for path in others.split(',').filter(|path| !path.is_empty()) {
        builds.push(Build { name: path.into(), path: path.into() });
    }
    builds
}

/// The same packets over every contestant in turn, first over loopback, then over a veth pair.
fn side_by_side(builds: &[Build], effort: &Effort, alone: Option<usize>, figures: &mut Figures) {
    let (haproxy, socat) = (contest::has("haproxy", "-v"), contest::has("socat", "-V"));
    let mut contestants = vec![contest::direct(Way::Loopback)];
    if haproxy {
        let proxy = |name: &str, splice, busy| contest::haproxy(name, Proxy { splice, busy }, Way::Loopback);
        contestants.push(proxy("haproxy", false, false));
        contestants.push(proxy("haproxy splice", true, false));
    }
    contestants.extend(socat.then(|| contest::socat(Way::Loopback)));
    contestants.extend(builds.iter().map(|build| contest::hadmd(build, None, Way::Loopback)));
    if cfg!(feature = "authkey") {
        // Other builds may know nothing of it.
        let known = builds.iter().filter(|build| ["hadmd", figures::BASE].contains(&&*build.name));
        contestants.extend(known.map(contest::encrypted));
    }
    for round in 0..effort.rounds {
        eprintln!("round {} of {}: side by side", round + 1, effort.rounds);
        // No contestant is always first.
        contestants.rotate_left(1);
        for payload in alone.map_or(PAYLOADS.to_vec(), |size| vec![size]) {
            contestants.iter().for_each(|contestant| stream(contestant, "", payload, effort.slice, figures));
        }
        for depth in DEPTHS.into_iter().filter(|_| alone.is_none()) {
            contestants.iter().for_each(|contestant| latency(contestant, "", depth, effort.slice, figures));
        }
    }
    for contestant in contestants.iter().filter(|contestant| !contestant.processes.is_empty()) {
        let peak = contestant.processes.iter().map(|process| process.status("VmHWM")).max().unwrap_or(0);
        figures.add("peak RSS of one process, MiB", "", &contestant.name, peak as f64 / 1024.0);
    }
    drop(contestants);
    if alone.is_none() {
        busy_polling(builds, effort, haproxy, figures);
    }
    // Builds have the same addresses and ports, so that each takes machines of its own.
    let networks: Option<Vec<Network>> =
        builds.iter().filter(|_| alone.is_none()).map(|_| Network::new()).collect();
    if let Some(networks) = networks {
        over_veth(builds, effort, haproxy, &networks, figures);
    }
}

/// Round trips where readers look before they sleep. Each contestant is started for its round alone: HAProxy's busy
/// polling takes a processor for each of its processes at all times.
fn busy_polling(builds: &[Build], effort: &Effort, haproxy: bool, figures: &mut Figures) {
    for round in 0..effort.rounds {
        eprintln!("round {} of {}: busy polling", round + 1, effort.rounds);
        let measure = |contestant: Contestant, figures: &mut Figures| {
            latency(&contestant, BUSY, 1, effort.slice, figures);
        };
        let theirs = |figures: &mut Figures| {
            if haproxy {
                let proxy = Proxy { splice: false, busy: true };
                measure(contest::haproxy("haproxy", proxy, Way::Loopback), figures);
            }
        };
        // Nobody is always first.
        if round % 2 == 0 {
            theirs(figures);
        }
        let element = || Some(("busypoll", BUSY_MICROS.to_string()));
        // Other builds may not know it.
        for build in builds.iter().filter(|build| build.name == "hadmd") {
            measure(contest::hadmd(build, element(), Way::Loopback), figures);
        }
        if round % 2 == 1 {
            theirs(figures);
        }
    }
}

/// The same with the two halves in network namespaces of their own, of which there are two for each build.
fn over_veth(builds: &[Build], effort: &Effort, haproxy: bool, networks: &[Network], figures: &mut Figures) {
    let Some(way) = networks.first().map(Way::Veth) else { return };
    let mut contestants = vec![contest::direct(way)];
    if haproxy {
        contestants.push(contest::haproxy("haproxy splice", Proxy { splice: true, busy: false }, way));
    }
    let placed = builds.iter().zip(networks);
    contestants.extend(placed.map(|(build, network)| contest::hadmd(build, None, Way::Veth(network))));
    for round in 0..effort.rounds {
        eprintln!("round {} of {}: over a veth pair", round + 1, effort.rounds);
        contestants.rotate_left(1);
        for payload in [4 << 10, 64 << 10] {
            contestants
                .iter()
                .for_each(|contestant| stream(contestant, VETH, payload, effort.slice, figures));
        }
        contestants.iter().for_each(|contestant| latency(contestant, VETH, 1, effort.slice, figures));
    }
}

/// `way`: how the sections' names end.
fn stream(contestant: &Contestant, way: &str, payload: usize, slice: Duration, figures: &mut Figures) {
    let packets = Packets::new(payload, contestant.there);
    let before = contestant.cpu_seconds();
    let run = throughput(&contestant.a, &[&contestant.b], &packets, slice);
    let cpu = contestant.cpu_seconds() - before;
    let (column, gb) = (figures::bytes(payload), run.bytes as f64 / 1e9);
    figures.add(&format!("throughput{way}, MB/s"), &column, &contestant.name, gb * 1e3 / run.seconds);
    figures.add(
        &format!("packets{way}, thousands/s"),
        &column,
        &contestant.name,
        run.packets as f64 / 1e3 / run.seconds,
    );
    if !contestant.processes.is_empty() {
        figures.add(&format!("CPU seconds per GB{way}"), &column, &contestant.name, cpu / gb);
    }
}

fn latency(contestant: &Contestant, way: &str, depth: usize, slice: Duration, figures: &mut Figures) {
    let there = Packets::new(4096, contestant.there);
    let times = round_trips(&contestant.a, &contestant.b, &there, contestant.back, depth, slice);
    for (name, part) in [("p50", 0.5), ("p99", 0.99)] {
        let column = format!("{name}, depth {depth}");
        figures.add(
            &format!("round trip of 4 KiB{way}, us"),
            &column,
            &contestant.name,
            flow::quantile(&times, part),
        );
    }
}
