//! Chaos: a cluster in network namespaces, kernel-side clients that send numbered packets, faults by a schedule that
//! follows from a seed, and a checker that holds every client's log against D1 to D5. `make chaos SECS=60 SEED=n
//! NODES=3..5`; the seed also chooses whether the machines are sites, links are encrypted and compressed, unless
//! `SITES`, `AUTHKEY`, `COMPRESS` and `FEW` (packets) say it (0 or 1), and `HADMD` names another build of the daemon; the first violation is printed with the seed, the schedule and what happened last, and fails the run.
//! Nothing of it is outside namespaces of its own, so that it leaves nothing behind, however it ends.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it reports there")]

#[path = "chaos/client.rs"]
mod client;
#[path = "chaos/daemon.rs"]
mod daemon;
#[path = "chaos/inject.rs"]
mod inject;
#[path = "chaos/judge.rs"]
mod judge;
#[path = "chaos/ledger.rs"]
mod ledger;
#[path = "chaos/plan.rs"]
mod plan;
mod support;
#[path = "chaos/watch.rs"]
mod watch;
#[path = "chaos/world.rs"]
mod world;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use daemon::Daemon;
use inject::Injector;
use ledger::{DATA, Ledger, MAX, META};
use plan::Step;

/// Longest time until everything is connected once the faults are over: the longest wait of a connect round
/// with its jitter, a call that comes to nothing, and what a peer that was slow is held off.
const CONVERGES: Duration = Duration::from_secs(60);
/// Longest time for packets to come when nobody sends any more.
const FLUSHES: Duration = Duration::from_secs(15);

fn number(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).unwrap_or_default();
    if text.is_empty() {
        return default;
    }
    text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number"))
}

fn main() -> ExitCode {
    // `cargo test NAME` calls every test program with NAME.
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    if filter.is_some_and(|filter| !"chaos".contains(&*filter)) {
        return ExitCode::SUCCESS;
    }
    let (secs, seed, nodes) = (number("SECS", 60), number("SEED", 1), number("NODES", 4) as usize);
    assert!((3..=MAX).contains(&nodes), "NODES={nodes}: 3 to {MAX}");
    if let Err(why) = world::enter() {
        println!("skipped: {why}: chaos");
        return ExitCode::SUCCESS;
    }
    // The first process of its namespace ends by no signal it does not ask for.
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::new(AtomicBool::new(true)))
            .unwrap();
    }
    let steps = plan::schedule(seed, nodes, Duration::from_secs(secs));
    assert_eq!(steps, plan::schedule(seed, nodes, Duration::from_secs(secs)), "a seed gives one schedule");
    let shape = world::Shape::choose(seed);
    println!("chaos: SECS={secs} SEED={seed} NODES={nodes} {shape:?}: {} faults to come", steps.len());
    if !world::Shape::can_drop() {
        println!("no link is dead alone: nft is not installed (Debian package nftables)");
    }
    if daemon::faketime().is_none() {
        println!("clock steps do nothing: libfaketime is not installed (Debian package faketime)");
    }
    let mut cluster = Cluster::start(nodes, seed);
    let end = cluster.run(&steps, Duration::from_secs(secs));
    cluster.report();
    let state = cluster.ledger.lock();
    let Some(violation) = state.violation.clone().or(end.err()) else {
        println!("chaos: no violation");
        return ExitCode::SUCCESS;
    };
    println!("\nVIOLATION {violation}\nSECS={secs} SEED={seed} NODES={nodes}, schedule:");
    steps.iter().for_each(|step| println!("  {step}"));
    println!("what happened last:");
    state.trail(cluster.ledger.born).for_each(|line| println!("  {line}"));
    for daemon in cluster.injector.daemons.iter() {
        let log = std::fs::read(daemon.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).lines().rev().take(25).map(String::from).collect::<Vec<_>>();
        println!("end of the log of node {}:", daemon.node);
        log.iter().rev().for_each(|line| println!("  {line}"));
    }
    println!("VIOLATION {violation}");
    ExitCode::FAILURE
}

struct Cluster {
    ledger: Arc<Ledger>,
    injector: Injector,
    converged: Option<Duration>,
}

impl Cluster {
    fn start(nodes: usize, seed: u64) -> Self {
        // Half of the seeds have full queues everywhere, half have what sockets hold by default before them.
        world::build(nodes, seed % 2 == 1);
        // The daemons' users may not be allowed where the programs were built.
        let built = std::env::var_os("HADMD").unwrap_or(env!("CARGO_BIN_EXE_hadmd").into());
        std::fs::copy(built, world::dir().join("hadmd")).unwrap();
        let daemons: Arc<Vec<_>> = Arc::new((0..nodes).map(|node| Daemon::new(node, nodes)).collect());
        let ledger = Arc::new(Ledger::new(nodes));
        daemons.iter().for_each(Daemon::start);
        watch::start(&ledger, &daemons);
        let clients = (0..nodes).map(|node| client::start(&ledger, node, seed)).collect();
        let injector = Injector::new(&ledger, &daemons, clients);
        Cluster { ledger, injector, converged: None }
    }

    /// Waits, judging, until something holds or the time is over; whether it holds.
    fn wait(&self, limit: Instant, mut holds: impl FnMut() -> bool) -> Result<bool, String> {
        let mut next = Instant::now();
        loop {
            if next <= Instant::now() {
                judge::hindsight(&self.ledger);
                next = Instant::now() + Duration::from_millis(200);
            }
            if let Some(text) = self.ledger.lock().violation.clone() {
                return Err(text);
            }
            if holds() {
                return Ok(true);
            }
            let left = limit.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            thread::park_timeout(left.min(Duration::from_millis(20)));
        }
    }

    fn run(&mut self, steps: &[Step], length: Duration) -> Result<(), String> {
        let begin = Instant::now();
        for step in steps {
            loop {
                let due = begin + step.at;
                let next = self.injector.next_end().map_or(due, |end| due.min(end));
                self.wait(next, || false)?;
                self.injector.end(false);
                if due <= Instant::now() {
                    break;
                }
            }
            self.injector.begin(step);
        }
        self.wait(begin + length, || false)?;
        self.injector.mend();
        self.ledger.say("the faults are over".into());
        self.settle()
    }

    /// After the faults: everybody is connected, data flows, nothing is missing, counters balance, and all end.
    fn settle(&mut self) -> Result<(), String> {
        let begin = Instant::now();
        let what = |flushed| judge::missing(&self.ledger, flushed);
        let wrong =
            |limit: Duration, flushed| format!("not within {limit:?}: {}", what(flushed).unwrap_or_default());
        if !self.wait(begin + CONVERGES, || what(false).is_none())? {
            return Err(format!("converges {}", wrong(CONVERGES, false)));
        }
        self.converged = Some(begin.elapsed());
        // Traffic, and time for what can only be judged afterwards.
        self.wait(Instant::now() + Duration::from_secs(4), || false)?;
        self.injector.clients.iter().for_each(|client| client.quiet.store(true, SeqCst));
        if !self.wait(Instant::now() + FLUSHES, || what(true).is_none())? {
            return Err(format!("D2: all packets come {}", wrong(FLUSHES, true)));
        }
        self.wait(Instant::now() + Duration::from_secs(3), || false)?;
        for daemon in self.injector.daemons.iter() {
            watch::counters(&self.ledger, daemon)?;
        }
        self.ledger.lock().over = true;
        self.injector.clients.iter().for_each(|client| client.over.store(true, SeqCst));
        let daemons = &self.injector.daemons;
        daemons.iter().for_each(Daemon::ask_to_end);
        loop {
            // All of them, so that each is looked at.
            let ended = daemons.iter().map(Daemon::has_ended).collect::<Result<Vec<_>, _>>()?;
            if ended.iter().all(|ended| *ended) {
                return Ok(());
            }
            thread::park_timeout(Duration::from_millis(20));
        }
    }

    fn report(&self) {
        println!("faults injected:");
        let mut all = 0;
        for (kind, n) in self.injector.counted() {
            println!("  {n:5} {kind}");
            all += n;
        }
        let state = self.ledger.lock();
        let counts = &state.counts;
        println!("  {all:5} in all");
        for (class, name) in ledger::CLASSES.iter().enumerate() {
            println!("{name} packets: sent {}, checked {}", counts.sent[class], counts.checked[class]);
        }
        let delays = (counts.worst_delay[DATA].as_millis(), counts.worst_delay[META].as_millis());
        println!("delays judged: {}, longest {} ms (data), {} ms (meta)", counts.timed, delays.0, delays.1);
        println!("missing between sessions: {} packets in {} places", counts.lost, counts.gaps);
        println!("looked at for an old session: {} packets", counts.old_session);
        println!("kernel modules: {} attachments, told {} states", counts.attaches, counts.told);
        println!(
            "changes told in time: {}, at worst {} ms late",
            counts.changes,
            counts.worst_told.as_millis()
        );
        println!("sessions: {} began, of them ended:", counts.sessions);
        counts.ended.iter().for_each(|(cause, n)| println!("  {n:5} {cause}"));
        println!("  {:5} of them without a fault between the two", counts.unexplained);
        println!("memory: {} samples, at most {} KiB", counts.rss_samples, counts.peak_rss);
        println!("books at rest: {} balance", counts.balanced);
        let noise = state.noise.iter().map(|(_, late)| late.as_millis()).max().unwrap_or(0);
        println!("this process was late by {noise} ms at worst");
        if let (Some((from, before)), Some((to, after))) = (state.busy.first(), state.busy.last()) {
            let part = (*after - *before).as_secs_f64() / (*to - *from).as_secs_f64();
            println!(
                "no processor was idle for {:.0} % of the time, in which no delay is judged",
                100.0 * part
            );
        }
        match self.converged {
            Some(took) => println!("all connected {:.1} s after the last fault", took.as_secs_f64()),
            None => println!("not all connected at the end"),
        }
    }
}
