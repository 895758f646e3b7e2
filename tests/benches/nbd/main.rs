//! The benchmark of the mirrored disk, `make bench-nbd`: two sites over loopback, daemon and mirror in one process and as two
//! programs, against a quorum of
//! qemu-storage-daemon, a GlusterFS volume of two copies, nbdkit and nbdcopy. All keep their disks in one file system,
//! answer a write when both copies have it in the page cache, and flush when they are asked to. Everything runs
//! interleaved, ratios are taken within each round. Must never leave out a row because it looks bad; a contestant that
//! is not installed is named with its package.
//!
//! Environment: `QUICK=1` for one short round; `ROWS=writes,reads,resync,far,memory` for some of the rows; `TCP=1` for
//! two programs that meet over TCP, too; `PROGRAMS=directory` for programs that are not those built here, and
//! `BASE=directory` for those of another build beside them, over TCP; `DISKS=directory` for the disks, else /dev/shm.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "it ends on error")]
#![allow(clippy::indexing_slicing, reason = "the same")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what it is for")]

mod far;
mod fio;
mod mirror;
#[path = "../../nbd/mod.rs"]
mod nbd;
mod others;
#[path = "../../support/mod.rs"]
mod support;
mod table;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fio::{Job, Run};
use mirror::Mirror;
use others::Other;
use table::Table;

/// Bytes of the part of each disk that is read and written at random.
const RANGE: u64 = 256 << 20;

/// The names in the table: daemon and mirror in one process, as two programs, and those of another build.
const MIRROR: &str = "mirror";
const TWO: &str = "mirror, two programs";
const BASE: &str = "base";

/// The number of rounds, and the length of a run.
struct Effort {
    rounds: usize,
    run: Duration,
}

/// The programs of one build.
#[derive(Clone)]
pub struct Build {
    name: &'static str,
    programs: PathBuf,
    meeting: Meeting,
}

/// The way in which daemon and mirror meet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Meeting {
    /// In one process.
    Process,
    /// Two programs, at a Unix socket.
    Unix,
    /// Two programs, over TCP.
    Tcp,
}

const READS: (&str, Job) = ("4 KiB random read, depth 32", Job { kind: "randread", block: "4k", depth: 32 });
const WRITES: [(&str, Job); 3] = [
    ("4 KiB random write, depth 1", Job { kind: "randwrite", block: "4k", depth: 1 }),
    ("4 KiB random write, depth 32", Job { kind: "randwrite", block: "4k", depth: 32 }),
    ("1 MiB sequential write, depth 4", Job { kind: "write", block: "1m", depth: 4 }),
];

fn main() {
    go_inside();
    if !others::has("fio", "package fio") {
        return println!("bench-nbd: nothing can be measured without fio");
    }
    let effort = match std::env::var_os("QUICK") {
        Some(_) => Effort { rounds: 1, run: Duration::from_secs(1) },
        None => Effort { rounds: 5, run: Duration::from_secs(2) },
    };
    let rows = std::env::var("ROWS").unwrap_or_default();
    let wants = |row: &str| rows.is_empty() || rows.split(',').any(|wanted| wanted == row);
    let disks = PathBuf::from(std::env::var_os("DISKS").unwrap_or("/dev/shm".into()));
    println!("disks in {}, {} rounds of {} s", disks.display(), effort.rounds, effort.run.as_secs());
    let mut table = Table::default();
    if wants("writes") || wants("reads") {
        side_by_side(&disks, &effort, (wants("writes"), wants("reads")), &mut table);
    }
    if wants("resync") {
        resyncs(&disks, &effort, &mut table);
    }
    if wants("far") {
        far::rows(&disks, &effort, &mut table);
    }
    if wants("memory") {
        memory(&disks, &mut table);
    }
    table.print();
}

/// Goes on in namespaces of its own, where it may: ports and mounts collide with nobody's, and no process stays behind.
fn go_inside() {
    const INSIDE: &str = "HADM_BENCH_INSIDE";
    let spaces = ["--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"];
    let is_possible = || Command::new("unshare").args(spaces).arg("true").status().is_ok_and(|s| s.success());
    if std::env::var_os(INSIDE).is_none() && rustix::process::geteuid().is_root() && is_possible() {
        let own = std::env::current_exe().unwrap();
        let error = Command::new("unshare").args(spaces).arg(own).env(INSIDE, "1").exec();
        panic!("unshare: {error}");
    }
    if std::env::var_os(INSIDE).is_some() {
        for args in [&["link", "set", "lo", "up"][..], &["addr", "add", others::OWN, "dev", "lo"]] {
            assert!(Command::new("ip").args(args).status().unwrap().success(), "ip {args:?}");
        }
    }
}

/// This tree's build, and that of `BASE`.
fn builds() -> Vec<Build> {
    let base = std::env::var_os("BASE").map(|path| Build {
        name: BASE,
        programs: path.into(),
        meeting: Meeting::Tcp,
    });
    [own(MIRROR, Meeting::Process)].into_iter().chain(base).collect()
}

/// These, and this tree's build as two programs.
fn all_builds() -> Vec<Build> {
    let tcp = std::env::var_os("TCP").map(|_| own("mirror, two programs, TCP", Meeting::Tcp));
    [own(TWO, Meeting::Unix)].into_iter().chain(tcp).chain(builds()).collect()
}

fn own(name: &'static str, meeting: Meeting) -> Build {
    let built = || PathBuf::from(env!("CARGO_BIN_EXE_hadm-nbd")).parent().unwrap().to_path_buf();
    Build { name, programs: std::env::var_os("PROGRAMS").map_or_else(built, PathBuf::from), meeting }
}

/// A server of a disk.
enum Contestant {
    Mirror(Mirror),
    Other(Other),
}

impl Contestant {
    fn name(&self) -> &'static str {
        match self {
            Contestant::Mirror(mirror) => mirror.build.name,
            Contestant::Other(other) => other.name,
        }
    }

    fn run(&self, job: Job, time: Option<Duration>) -> Run {
        match self {
            Contestant::Mirror(mirror) => fio::nbd(&mirror.uri(0), job, time),
            Contestant::Other(other) => other.run(job, time),
        }
    }

    fn takes(&self, job: &Job) -> bool {
        match self {
            Contestant::Mirror(_) => true,
            Contestant::Other(other) => (other.takes)(job),
        }
    }
}

fn side_by_side(disks: &Path, effort: &Effort, (writes, reads): (bool, bool), table: &mut Table) {
    let mut all: Vec<Contestant> = Vec::new();
    all.extend(all_builds().into_iter().map(|build| Contestant::Mirror(Mirror::start(build, disks, RANGE))));
    if writes {
        all.extend(others::quorum(disks).map(Contestant::Other));
        all.extend(others::gluster(disks).map(Contestant::Other));
    }
    if reads {
        all.extend(others::nbdkit(disks).map(Contestant::Other));
    }
    for contestant in &all {
        // Everything is there: no row has to wait for fresh memory, or for the mirror's activity log.
        contestant.run(Job { kind: "write", block: "1m", depth: 4 }, None);
    }
    let mut jobs = if writes { WRITES.to_vec() } else { Vec::new() };
    jobs.extend(reads.then_some(READS));
    for round in 0..effort.rounds {
        eprintln!("round {} of {}: side by side", round + 1, effort.rounds);
        for (row, job) in &jobs {
            for contestant in all.iter().filter(|contestant| contestant.takes(job)) {
                let run = contestant.run(*job, Some(effort.run));
                table.add(row, contestant.name(), if job.block == "1m" { run.mb_per_s } else { run.per_s });
            }
        }
        // No contestant is always first.
        all.rotate_left(1);
    }
    for (row, job) in &jobs {
        table.row(row, if job.block == "1m" { "MB/s" } else { "per s" });
    }
    for mirror in [MIRROR, TWO] {
        for ((row, _), limit) in WRITES.iter().zip([1.2, 2.0, 1.2]).filter(|_| writes) {
            table.bar(row, mirror, "quorum", limit);
        }
        for (row, _) in WRITES.iter().take(2).filter(|_| writes) {
            table.bar(row, mirror, "gluster", 3.0);
        }
        if reads {
            table.bar(READS.0, mirror, "nbdkit", 0.9);
        }
    }
}

/// A full resync beside writes, and one by bitmap against a copy of as much.
fn resyncs(disks: &Path, effort: &Effort, table: &mut Table) {
    const SIZE: u64 = 1 << 30;
    let (quiet, busy) = ("4 KiB random write, depth 1, p99", "resync of 1 GiB");
    for build in builds() {
        let name = build.name;
        let mut mirror = Mirror::start(build, disks, SIZE);
        fio::nbd(&mirror.uri(0), Job { kind: "write", block: "1m", depth: 4 }.of(SIZE), None);
        for round in 0..effort.rounds {
            eprintln!("round {} of {}: resync, {name}", round + 1, effort.rounds);
            let job = WRITES[0].1;
            table.add(quiet, name, fio::nbd(&mirror.uri(0), job, Some(effort.run)).p99_us);
            mirror.begin_full_resync();
            let during = fio::nbd(&mirror.uri(0), job, Some(effort.run)).p99_us;
            match mirror.is_in_sync() {
                false => table.add(quiet, &format!("{name} in a full resync"), during),
                true => eprintln!("the full resync was over before the writes were: not counted"),
            }
            mirror.wait_in_sync();
            table.add(busy, name, 1e-6 * SIZE as f64 / mirror.resync_by_bitmap(SIZE).as_secs_f64());
            if let Some(time) = others::copy(&mirror.disk(0), disks) {
                table.add(busy, &format!("nbdcopy beside {name}"), 1e-6 * SIZE as f64 / time.as_secs_f64());
            }
        }
    }
    table.row(quiet, "us");
    table.row(busy, "MB/s");
    table.bar_at_most(quiet, &format!("{MIRROR} in a full resync"), MIRROR, 3.0);
    table.bar(busy, MIRROR, &format!("nbdcopy beside {MIRROR}"), 0.8);
}

/// The primary's memory with every bit of 1 TiB set, and the most of both sites while they are united.
fn memory(disks: &Path, table: &mut Table) {
    let row = "memory, 1 TiB with all bits set";
    for build in all_builds() {
        let name = build.name;
        let mut mirror = Mirror::start(build, disks, 1 << 40);
        let mib = |kib: u64| kib as f64 / 1024.0;
        table.add(row, &format!("{name}, no bits"), mib(mirror.memory(0, "VmRSS")));
        mirror.stop_site(1);
        mirror.trim_all();
        table.add(row, name, mib(mirror.memory(0, "VmRSS")));
        mirror.start_site(1);
        // The buffers of both are in use then.
        mirror.wait_copied(1 << 30);
        for (site, role) in ["source", "target"].into_iter().enumerate() {
            table.add(row, &format!("{name}, peak of the {role}"), mib(mirror.memory(site, "VmHWM")));
        }
    }
    table.row(row, "MiB");
    for mirror in [MIRROR, TWO] {
        table.limit(row, mirror, 18.0);
    }
}
