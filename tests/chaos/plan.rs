//! The schedule of faults, a function of the seed alone: what happens, when, to whom, for how long.
//!
//! It must never look at the cluster, the clock or anything else that differs between two runs.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;

/// Which of a client's links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    Data,
    Meta,
    Both,
}

/// The place where packets are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    There,
    Back,
    Both,
}

/// An act of a client that is no peer at a node's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Bytes that are no hello.
    Garbage,
    /// The first bytes of a hello, then a reset.
    HalfHello,
    /// A hello with an id that is another's.
    WrongAddress,
}

/// A change of the configuration while the daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Another time between pings.
    Heartbeat,
    /// This node is no longer in the file.
    Without(usize),
    /// The file has an error: nothing must change.
    Broken,
}

/// One fault. Nodes are numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    KillDaemon(usize),
    EndDaemon(usize),
    StopDaemon(usize),
    KillClient(usize),
    StopClient(usize),
    StallClient(usize, Links),
    /// Closed by a reset in the middle of a packet.
    ResetClient(usize, Links),
    /// The node's interface is switched off, or (true) its cable pulled.
    LinkDown(usize, bool),
    /// Packets from the first to the second are lost.
    OneWayLoss(usize, usize),
    Partition(usize, usize),
    /// One link of the session of these two, that is the data link or (true) the meta link, loses its packets.
    DeadLink(usize, usize, bool, Way),
    Stranger(usize, Manner),
    /// From the first node's address a client sends its hellos to the second, then half a packet, and resets.
    Impostor(usize, usize),
    ClockStep(usize, i64),
    FullLogDisk(usize),
    FewDescriptors(usize, u8),
    FewThreads(usize),
    /// By SIGHUP, or (true) over the control socket.
    Reload(usize, Change, bool),
    Disconnect(usize, usize),
}

/// The kinds of faults, for counting, in the order of [`Fault::kind`].
pub const KINDS: [&str; 21] = [
    "daemon killed",
    "daemon ended and restarted",
    "daemon stopped",
    "client killed",
    "client stopped",
    "client stalled",
    "client reset in mid packet",
    "link down",
    "one-way loss",
    "partition",
    "stranger",
    "impostor, reset in mid packet",
    "clock step",
    "log disk full",
    "few descriptors",
    "few threads",
    "reload",
    "disconnect and connect",
    "data link dead",
    "meta link dead",
    "one link dead one way",
];

impl Fault {
    /// Its place in [`KINDS`].
    pub fn kind(self) -> usize {
        match self {
            Fault::KillDaemon(_) => 0,
            Fault::EndDaemon(_) => 1,
            Fault::StopDaemon(_) => 2,
            Fault::KillClient(_) => 3,
            Fault::StopClient(_) => 4,
            Fault::StallClient(..) => 5,
            Fault::ResetClient(..) => 6,
            Fault::LinkDown(..) => 7,
            Fault::OneWayLoss(..) => 8,
            Fault::Partition(..) => 9,
            Fault::Stranger(..) => 10,
            Fault::Impostor(..) => 11,
            Fault::ClockStep(..) => 12,
            Fault::FullLogDisk(_) => 13,
            Fault::FewDescriptors(..) => 14,
            Fault::FewThreads(_) => 15,
            Fault::Reload(..) => 16,
            Fault::Disconnect(..) => 17,
            Fault::DeadLink(.., false, Way::Both) => 18,
            Fault::DeadLink(.., true, Way::Both) => 19,
            Fault::DeadLink(..) => 20,
        }
    }

    /// Returns true if the fault may be felt between two nodes.
    pub fn concerns(self, a: usize, b: usize) -> bool {
        let pair = |x, y| (a, b) == (x, y) || (b, a) == (x, y);
        match self {
            Fault::OneWayLoss(x, y)
            | Fault::Partition(x, y)
            | Fault::DeadLink(x, y, ..)
            | Fault::Impostor(x, y)
            | Fault::Disconnect(x, y)
            | Fault::Reload(x, Change::Without(y), _) => pair(x, y),
            Fault::Stranger(..)
            | Fault::ClockStep(..)
            | Fault::FullLogDisk(_)
            | Fault::Reload(_, Change::Broken, _) => false,
            Fault::KillDaemon(x)
            | Fault::EndDaemon(x)
            | Fault::StopDaemon(x)
            | Fault::KillClient(x)
            | Fault::StopClient(x)
            | Fault::StallClient(x, _)
            | Fault::ResetClient(x, _)
            | Fault::LinkDown(x, _)
            | Fault::FewDescriptors(x, _)
            | Fault::FewThreads(x)
            | Fault::Reload(x, Change::Heartbeat, _) => x == a || x == b,
        }
    }

    /// The same for meta packets, which data that is not read must not hold up.
    pub fn concerns_meta(self, a: usize, b: usize) -> bool {
        !matches!(self, Fault::StallClient(_, Links::Data)) && self.concerns(a, b)
    }

    /// The node that neither learns nor tells in time while the fault lasts.
    pub fn impairs(self) -> Option<usize> {
        match self {
            Fault::StopDaemon(node) | Fault::StopClient(node) | Fault::StallClient(node, _) => Some(node),
            _ => None,
        }
    }
}

/// A fault with its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub at: Duration,
    pub lasts: Duration,
    pub fault: Fault,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:8.3} s {:?} for {} ms", self.at.as_secs_f64(), self.fault, self.lasts.as_millis())
    }
}

fn two(rng: &mut Rng, nodes: usize) -> (usize, usize) {
    let a = rng.usize(..nodes);
    (a, (a + 1 + rng.usize(..nodes - 1)) % nodes)
}

fn fault(rng: &mut Rng, nodes: usize) -> Fault {
    let (a, b) = two(rng, nodes);
    let links = [Links::Data, Links::Meta, Links::Both];
    match rng.usize(..KINDS.len()) {
        0 => Fault::KillDaemon(a),
        1 => Fault::EndDaemon(a),
        2 => Fault::StopDaemon(a),
        3 => Fault::KillClient(a),
        4 => Fault::StopClient(a),
        5 => Fault::StallClient(a, links[rng.usize(..3)]),
        6 => Fault::ResetClient(a, links[rng.usize(..2)]),
        7 => Fault::LinkDown(a, rng.bool()),
        8 => Fault::OneWayLoss(a, b),
        9 => Fault::Partition(a, b),
        10 => {
            let manners = [Manner::Garbage, Manner::HalfHello, Manner::WrongAddress];
            Fault::Stranger(a, manners[rng.usize(..3)])
        }
        // The larger id calls.
        11 => Fault::Impostor(a.max(b), a.min(b)),
        12 => Fault::ClockStep(a, [-86_400, -60, 60, 86_400][rng.usize(..4)]),
        13 => Fault::FullLogDisk(a),
        14 => Fault::FewDescriptors(a, rng.u8(..4)),
        15 => Fault::FewThreads(a),
        16 => {
            let change = [Change::Heartbeat, Change::Without(b), Change::Broken][rng.usize(..3)];
            Fault::Reload(a, change, rng.bool())
        }
        17 => Fault::Disconnect(a, b),
        18 => Fault::DeadLink(a, b, false, Way::Both),
        19 => Fault::DeadLink(a, b, true, Way::Both),
        _ => Fault::DeadLink(a, b, rng.bool(), [Way::There, Way::Back][rng.usize(..2)]),
    }
}

/// The faults of a run of `length` among this many nodes.
pub fn schedule(seed: u64, nodes: usize, length: Duration) -> Vec<Step> {
    let mut rng = Rng::with_seed(seed);
    let mut steps = Vec::new();
    // Sessions come up first.
    let mut at = Duration::from_secs(2);
    let mut pace = 1200;
    loop {
        if rng.u8(..8) == 0 {
            // Now everything at once, now one fault alone, which the others must not feel.
            pace = [300, 1200, 5000][rng.usize(..3)];
        }
        at += Duration::from_millis(rng.u64(..pace));
        if at >= length {
            return steps;
        }
        // Mostly short, so that much happens; some long enough for heartbeats and retries to run out.
        let lasts = Duration::from_millis(match rng.u8(..4) {
            0 => rng.u64(1..50),
            1 | 2 => rng.u64(50..1500),
            _ => rng.u64(1500..7000),
        });
        steps.push(Step { at, lasts, fault: fault(&mut rng, nodes) });
    }
}
