//! The trace of a run: the last events, a digest of all of them, and counts.
//!
//! A violation is reported with the seed, the virtual time and the events before it. Two runs of one seed must have
//! the same digest. Used by every part of the simulation; it never draws from the random numbers.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem::discriminant;
use std::time::Duration;

use hadmd::daemon::core::{Action, Event, Moment};

/// Number of events that are printed with a violation.
const RECENT: usize = 50;

/// One line of the trace.
#[derive(Debug)]
pub enum Note {
    Event(Event),
    Tick,
    Action(Action),
    Fault(&'static str, Duration),
}

#[derive(Default)]
pub struct Trace {
    seed: u64,
    recent: VecDeque<(Moment, usize, Note)>,
    digest: DefaultHasher,
    pub events: u64,
    pub started: u64,
    pub ended: u64,
    pub dials: u64,
    pub faults: BTreeMap<&'static str, u64>,
}

impl Trace {
    pub fn new(seed: u64) -> Self {
        Trace { seed, ..Default::default() }
    }

    /// One thing that happened.
    pub fn note(&mut self, now: Moment, node: usize, note: Note) {
        (now, node, discriminant(&note)).hash(&mut self.digest);
        match &note {
            Note::Event(event) => discriminant(event).hash(&mut self.digest),
            Note::Action(action) => discriminant(action).hash(&mut self.digest),
            Note::Fault(what, _) => *self.faults.entry(what).or_default() += 1,
            Note::Tick => {}
        }
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((now, node, note));
    }

    pub fn digest(&self) -> u64 {
        self.digest.finish()
    }

    /// Ends the run: a promise was broken.
    pub fn fail(&self, now: Moment, node: usize, what: &str) -> ! {
        let mut told = String::new();
        for (at, node, note) in &self.recent {
            let note = match note {
                Note::Fault(what, time) => format!("fault: {what}, {time:?}"),
                note => format!("{note:?}"),
            };
            told += &format!("  {:>12.6} node {node}: {note}\n", at.as_secs_f64());
        }
        let (seed, at) = (self.seed, now.as_secs_f64());
        panic!("{told}seed {seed}, virtual time {at:.6} s, node {node}: {what}");
    }
}
