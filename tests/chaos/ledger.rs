//! All packets and states that every kernel module sent and received, and the verdicts that can be given at once: D1, byte by
//! byte and packet by packet. What needs hindsight is left to `judge`.
//!
//! It knows nothing of daemons: kernel modules see what they see, and what they may rely on is judged.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::plan::Step;
use super::support::{HEADER, Packet, bit};

/// Most nodes of a run.
pub const MAX: usize = 5;
/// Index of a class.
pub const DATA: usize = 0;
pub const META: usize = 1;
pub const CLASSES: [&str; 2] = ["data", "meta"];
/// Time after the end of a fault in which its effects go on: queues drain, sessions come back.
pub const RECOVERY: Duration = Duration::from_secs(2);

/// A packet that was sent.
pub struct Sent {
    pub at: Instant,
    pub mask: u32,
    pub len: u32,
    pub kind: u8,
    pub dev: u8,
    /// For each node, the number of the sender's epoch of it, 0 if the sender has heard that it is not there.
    pub stamp: [u32; MAX],
}

/// A time in which a kernel module believes that a peer is there.
pub struct Epoch {
    pub from: Instant,
    pub to: Option<Instant>,
}

/// Data packets that were sent to a node and left out by it.
pub struct Gap {
    pub src: usize,
    pub dst: usize,
    pub class: usize,
    pub lost: (u64, u64),
    /// Epochs of the sender they were sent in.
    pub stamps: BTreeSet<u32>,
    /// When the packets before and after came.
    pub between: (Instant, Instant),
}

/// A data packet that came, with what tells its session.
pub struct Arrival {
    pub src: usize,
    pub dst: usize,
    pub number: u64,
    pub at: Instant,
}

/// A session began or ended, says the daemon.
pub struct Change {
    pub node: usize,
    pub peer: usize,
    pub up: bool,
    pub at: Instant,
}

/// A packet that took long.
pub struct Slow {
    pub what: String,
    pub sent: Instant,
    pub came: Instant,
    pub limit: Duration,
}

/// The world as one kernel module sees it.
#[derive(Default)]
pub struct View {
    /// Since when it is attached.
    pub attached: Option<Instant>,
    /// Connection states, as they came.
    pub told: Vec<(Instant, u32)>,
    /// By peer.
    pub epochs: [Vec<Epoch>; MAX],
    /// Ends of attachments.
    pub detached: Vec<Instant>,
    /// Last packet of each source and class.
    last: [[Option<(u64, Instant)>; 2]; MAX],
}

/// The trail of events, for people.
pub struct Line {
    at: Instant,
    text: String,
}

pub struct State {
    pub sent: [[Vec<Sent>; 2]; MAX],
    pub views: [View; MAX],
    pub gaps: VecDeque<Gap>,
    /// Arrivals soon after a session began.
    pub arrivals: VecDeque<Arrival>,
    /// The progress of each node's daemon in reading its data, as arrivals anywhere prove.
    pub read: [Vec<(Instant, u64)>; MAX],
    /// Faults with their times; those that last have no end.
    pub faults: Vec<(Step, Instant, Option<Instant>)>,
    pub counts: Counts,
    /// Connection changes that a daemon reported on its control socket, not judged yet.
    pub changes: Vec<Change>,
    /// Packets that took too long, unless the machine did.
    pub slow: Vec<Slow>,
    /// The lateness of this process itself.
    pub noise: Vec<(Instant, Duration)>,
    /// For how long in all, up to a moment, no processor of this machine had been idle.
    pub busy: Vec<(Instant, Duration)>,
    pub violation: Option<String>,
    /// Nothing that happens from now on counts.
    pub over: bool,
    trail: VecDeque<Line>,
    born: Instant,
    /// Shows every line of the trail at once.
    verbose: bool,
}

#[derive(Default)]
pub struct Counts {
    pub sent: [u64; 2],
    pub checked: [u64; 2],
    /// Packets whose delay was judged.
    pub timed: u64,
    pub worst_delay: [Duration; 2],
    pub gaps: u64,
    pub lost: u64,
    pub old_session: u64,
    pub told: u64,
    pub changes: u64,
    pub worst_told: Duration,
    pub attaches: u64,
    pub sessions: u64,
    pub ended: std::collections::BTreeMap<String, u64>,
    pub unexplained: u64,
    pub balanced: u64,
    pub peak_rss: u64,
    pub rss_samples: u64,
}

pub struct Ledger {
    pub nodes: usize,
    pub born: Instant,
    state: Mutex<State>,
    /// The bytes that payloads are cut from.
    pool: Vec<u8>,
}

/// Longest payload: packets stay below 128 KiB, the size the memory ceiling is given for.
pub const LONGEST: usize = 100 * 1024;
const POOL: usize = 1 << 20;

impl Ledger {
    pub fn new(nodes: usize) -> Self {
        let mut rng = fastrand::Rng::with_seed(4711);
        Ledger {
            nodes,
            born: Instant::now(),
            state: Mutex::new(State {
                sent: Default::default(),
                views: Default::default(),
                gaps: VecDeque::new(),
                arrivals: VecDeque::new(),
                read: Default::default(),
                faults: Vec::new(),
                counts: Counts::default(),
                changes: Vec::new(),
                slow: Vec::new(),
                noise: Vec::new(),
                busy: Vec::new(),
                violation: None,
                over: false,
                trail: VecDeque::new(),
                born: Instant::now(),
                verbose: std::env::var_os("VERBOSE").is_some(),
            }),
            pool: (0..POOL + LONGEST).map(|_| rng.u8(..)).collect(),
        }
    }

    pub fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn all(&self) -> u32 {
        (0..self.nodes as u8).map(bit).sum()
    }

    fn payload(&self, seq: u64, len: u32) -> &[u8] {
        let from = (seq.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize % POOL;
        &self.pool[from..from + len as usize]
    }

    /// The header of a packet; everything a daemon has no business with follows from its number.
    fn head(src: usize, seq: u64, sent: (u32, u32, u8, u8)) -> [u8; HEADER] {
        let (mask, len, kind, dev) = sent;
        let packet = Packet::filled(kind, seq, 0).with_len(len).with_dev(dev);
        packet.with_from(src as u32).with_to(mask).head
    }

    /// Enters a packet about to be sent, and gives its bytes.
    pub fn send(&self, src: usize, class: usize, what: (u32, u32, u8, u8)) -> Vec<u8> {
        let (mask, len, kind, dev) = what;
        let mut state = self.lock();
        let mut stamp = [0; MAX];
        for (peer, stamp) in stamp.iter_mut().enumerate() {
            let epochs = &state.views[src].epochs[peer];
            if epochs.last().is_some_and(|epoch| epoch.to.is_none()) {
                *stamp = epochs.len() as u32;
            }
        }
        let list = &mut state.sent[src][class];
        let number = list.len() as u64;
        list.push(Sent { at: Instant::now(), mask, len, kind, dev, stamp });
        state.counts.sent[class] += 1;
        drop(state);
        let seq = number << 4 | (src as u64) << 1 | class as u64;
        [&Self::head(src, seq, what)[..], self.payload(seq, len)].concat()
    }

    /// Judges a packet that came to node `dst`.
    pub fn receive(&self, dst: usize, class: usize, head: &[u8; HEADER], payload: &[u8]) {
        let now = Instant::now();
        let packet = Packet { head: *head, payload: Vec::new() };
        let seq = packet.seq();
        let (src, number) = ((seq >> 1 & 7) as usize, seq >> 4);
        let mut state = self.lock();
        let known = state.sent.get(src).and_then(|classes| classes[class].get(number as usize));
        let Some(sent) = known.filter(|_| seq & 1 == class as u64) else {
            return state.violate(self, format!("D1: node {dst} got a packet that nobody sent: {packet:?}"));
        };
        let (sent_at, stamp) = (sent.at, sent.stamp[dst]);
        let what = (sent.mask, sent.len, sent.kind, sent.dev);
        if sent.mask & bit(dst as u8) == 0 {
            return state.violate(self, format!("D1: node {dst} got what was for others: {packet:?}"));
        }
        let last = state.views[dst].last[src][class];
        if let Some((before, at)) = last.filter(|(before, _)| *before >= number) {
            let what = if before == number { "twice" } else { "out of order" };
            let text = format!(
                "D1: node {dst} got packet {number} of node {src} ({}) {what}: packet {before} came {:?} before",
                CLASSES[class],
                now - at
            );
            return state.violate(self, text);
        }
        state.views[dst].last[src][class] = Some((number, now));
        state.counts.checked[class] += 1;
        if let Some((before, at)) = last {
            let between = before as usize + 1..number as usize;
            let sent = state.sent[src][class][between].iter().zip(before + 1..);
            let lost: Vec<_> = sent.filter(|(sent, _)| sent.mask & bit(dst as u8) != 0).collect();
            if let (Some((_, first)), Some((_, end))) = (lost.first(), lost.last()) {
                let gap = Gap {
                    src,
                    dst,
                    class,
                    lost: (*first, *end),
                    stamps: lost.iter().map(|(sent, _)| sent.stamp[dst]).filter(|&stamp| stamp > 0).collect(),
                    between: (at, now),
                };
                let count = lost.len() as u64;
                state.counts.gaps += 1;
                state.counts.lost += count;
                state.gaps.push_back(gap);
            }
        }
        if class == DATA {
            let read = &mut state.read[src];
            match read.last_mut() {
                // A few entries a second are enough.
                Some((at, high)) if now - *at < Duration::from_millis(20) => *high = number.max(*high),
                last => {
                    let high = last.map_or(0, |(_, high)| *high).max(number);
                    read.push((now, high));
                }
            }
            let view = &state.views[dst].epochs[src];
            // Only then a packet of the session before can come, however long that is gone.
            let young = view.last().is_none_or(|e| now - e.from < Duration::from_secs(1));
            if young || stamp == 0 {
                state.arrivals.push_back(Arrival { src, dst, number, at: now });
            }
        }
        super::judge::delay(&mut state, (src, dst, class, number), sent_at, now);
        drop(state);
        let expected = Self::head(src, seq, what);
        if *head != expected || payload != self.payload(seq, what.1) {
            let place = head.iter().zip(&expected).position(|(a, b)| a != b);
            let text = format!(
                "D1: node {dst} got a changed packet, first byte of the header {place:?}: {packet:?}"
            );
            self.lock().violate(self, text);
        }
    }

    /// A kernel module attached.
    pub fn attach(&self, node: usize) {
        let mut state = self.lock();
        state.views[node].attached = Some(Instant::now());
        state.counts.attaches += 1;
        state.say(format!("kernel module {node} attached"));
    }

    /// A kernel module lost a link: it takes every peer for gone.
    pub fn detach(&self, node: usize, why: &str) {
        let mut state = self.lock();
        let now = Instant::now();
        let view = &mut state.views[node];
        view.attached = None;
        view.detached.push(now);
        for epochs in &mut view.epochs {
            epochs.iter_mut().filter(|epoch| epoch.to.is_none()).for_each(|epoch| epoch.to = Some(now));
        }
        state.say(format!("kernel module {node} detached: {why}"));
    }

    /// A kernel module got a state.
    pub fn told(&self, node: usize, mask: u32) {
        let mut state = self.lock();
        let now = Instant::now();
        if mask & !(self.all() & !bit(node as u8)) != 0 {
            state.violate(self, format!("D5: node {node} was told of peers that do not exist: {mask:#x}"));
        }
        let view = &mut state.views[node];
        view.told.push((now, mask));
        let before = view.epochs.iter().map(Vec::len).sum::<usize>();
        for (peer, epochs) in view.epochs.iter_mut().enumerate() {
            let open = epochs.last_mut().filter(|epoch| epoch.to.is_none());
            match (open, mask & bit(peer as u8) != 0) {
                (Some(epoch), false) => epoch.to = Some(now),
                (None, true) => epochs.push(Epoch { from: now, to: None }),
                _ => {}
            }
        }
        let changed = before != view.epochs.iter().map(Vec::len).sum::<usize>();
        state.counts.told += 1;
        state.say(format!("kernel module {node} told {mask:#07b}{}", if changed { ", new" } else { "" }));
    }

    /// Remembers a line for the reader of a failure.
    pub fn say(&self, text: String) {
        self.lock().say(text);
    }

    pub fn violate(&self, text: String) {
        self.lock().violate(self, text);
    }

    /// The last packet of `src` that came to `dst`.
    pub fn last(state: &State, src: usize, dst: usize, class: usize) -> Option<u64> {
        state.views[dst].last[src][class].map(|(number, _)| number)
    }
}

impl State {
    pub fn say(&mut self, text: String) {
        if self.verbose {
            println!("{:8.3} s {text}", self.born.elapsed().as_secs_f64());
        }
        if self.violation.is_none() {
            if self.trail.len() == 150 {
                self.trail.pop_front();
            }
            self.trail.push_back(Line { at: Instant::now(), text });
        }
    }

    /// The first violation is kept, and nothing after it.
    pub fn violate(&mut self, ledger: &Ledger, text: String) {
        if self.violation.is_none() {
            self.violation = Some(format!("after {:.3} s: {text}", ledger.born.elapsed().as_secs_f64()));
        }
    }

    /// The last lines, with times since the start.
    pub fn trail(&self, born: Instant) -> impl Iterator<Item = impl fmt::Display> {
        self.trail.iter().map(move |line| format!("{:8.3} s {}", (line.at - born).as_secs_f64(), line.text))
    }
}
