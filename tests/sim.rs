//! 32 whole nodes in one thread, with virtual time: the daemon's decisions under losses, partitions, stalls
//! and restarts. `SEED=n cargo test --release --test sim -- --nocapture` runs one seed at length.
//!
//! Everything but the cores is simulated; every step is checked. The same seed gives the same run.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that cannot go on has failed"
)]

#[path = "sim/check.rs"]
mod check;
#[path = "sim/fault.rs"]
mod fault;
#[path = "sim/net.rs"]
mod net;
#[path = "sim/node.rs"]
mod node;
#[path = "sim/trace.rs"]
mod trace;
#[path = "sim/world.rs"]
mod world;

use std::time::Duration;

use world::{Task, World};

/// After the last fault is healed every pair must be up again within this time.
const CONVERGENCE: Duration = Duration::from_secs(60);
/// ... and stay up for this long.
const PEACE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(100);

/// Waits until every pair is linked, and sees that it stays so. How long it took.
fn converge(world: &mut World) -> Duration {
    let healed = world.now;
    while let Some((a, b)) = world.missing() {
        let took = world.now - healed;
        if took > CONVERGENCE {
            world.trace.fail(
                world.now,
                a,
                &format!("not linked with node {b} {took:?} after the last fault"),
            );
        }
        world.run_until(world.now + LOOK);
    }
    let took = world.now - healed;
    world.quiet = true;
    // A kernel module that does not read makes no healthy peer look dead, neither here nor there.
    for node in 0..world::NODES {
        let time = world.up_to(PEACE);
        if world.rng.bool() {
            world.nodes[node].module.stuck_until = world.now + time;
        }
    }
    world.run_until(world.now + PEACE);
    world.quiet = false;
    if let Some((a, b)) = world.missing() {
        world.trace.fail(world.now, a, &format!("no longer linked with node {b}"));
    }
    took
}

/// Runs one seed: this many rounds of faults, healing and peace. Returns the digest of everything that happened.
fn run(seed: u64, rounds: u32, faults: Duration) -> u64 {
    let mut world = World::new(seed);
    let mut longest = Duration::ZERO;
    world.run_until(Duration::from_secs(3));
    for round in 0..=rounds {
        if round > 0 {
            world.chaos_until = world.now + faults;
            world.later(Duration::ZERO, Task::Fault);
            world.run_until(world.chaos_until);
            world.heal();
        }
        longest = longest.max(converge(&mut world));
    }
    let trace = &world.trace;
    println!(
        "seed {seed}: {:.0} s virtual, ping {:?} x {}, {} events, {} sessions started, {} ended, {} dials, longest \
         convergence {longest:?}, faults {:?}",
        world.now.as_secs_f64(),
        world.ping,
        world.max,
        trace.events,
        trace.started,
        trace.ended,
        trace.dials,
        trace.faults,
    );
    trace.digest()
}

#[test]
fn every_promise_holds_under_faults() {
    match std::env::var("SEED").ok().map(|seed| seed.parse()) {
        Some(Ok(seed)) => {
            run(seed, 8, Duration::from_secs(120));
        }
        Some(Err(error)) => panic!("SEED is no number: {error}"),
        None => (1..=4).for_each(|seed| {
            run(seed, 2, Duration::from_secs(60));
        }),
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| run(seed, 1, Duration::from_secs(10));
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}
