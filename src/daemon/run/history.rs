//! The history of each peer across its sessions, for status reports: transitions, last call, counts.
//!
//! Written by the timer thread alone, and never read for a decision; [`super::snapshot`] has copies of it.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::control::{self, CallVerdict, CauseKind, Outcome, Transition, TransitionCount};
use crate::daemon::connect::Encryption;
use crate::wire::{Compression, Extension, PeerView};

/// Transitions that are kept of each peer: enough for a day of trouble, a few KiB.
pub(super) const HISTORY: usize = 32;

/// The history of one peer.
#[derive(Clone, Default)]
pub(super) struct PeerHistory {
    pub transitions: VecDeque<Arc<Transition>>,
    /// The time since which its session is up.
    pub since: Option<Instant>,
    /// The address of its session's other end, and the record that it sent with its hello.
    pub source: Option<SocketAddr>,
    pub record: Option<Box<Extension>>,
    /// The encryption of its session.
    pub encryption: Option<Encryption>,
    /// Sessions that ended because the peer sent what no peer may send.
    pub violations: u64,
    /// The compression of its session's data link.
    pub compression: Option<Compression>,
    pub sessions: u64,
    pub attempts: u64,
    pub last_error: Option<String>,
    /// The outcome of the last call to it.
    pub call: Call,
    /// The view that it sent in its last session, and when.
    pub view: Option<(PeerView, Instant)>,
    /// Transitions by outcome and cause.
    pub transitions_by: BTreeMap<(Outcome, CauseKind), u64>,
    /// The end of its last session.
    pub last_end: Option<Arc<Transition>>,
    /// True if the last call failed: the next failure is not reported again.
    pub unreachable: bool,
    /// The time since which a peer that has to call has not, and whether that has been reported.
    pub silent: Option<(Instant, bool)>,
    /// True if the operator keeps it disconnected.
    pub held: bool,
}

/// The last call to a peer.
#[derive(Clone, Default)]
pub(super) struct Call {
    /// Its number, as [`PeerHistory::attempts`] counts.
    number: u64,
    steps: Vec<String>,
    /// The verdict on the other side that follows from a failure, and the reason of the failure.
    failed: Option<(CallVerdict, String)>,
}

impl PeerHistory {
    pub fn transitions_by(&self) -> Vec<TransitionCount> {
        let all = self.transitions_by.iter();
        all.map(|(&(to, kind), &count)| TransitionCount { to, kind, count }).collect()
    }

    /// Keeps the outcome of a call, or of one of its links.
    pub fn called(&mut self, steps: Vec<String>, failed: Option<(CallVerdict, String)>) {
        if self.call.number != self.attempts {
            self.call = Call { number: self.attempts, ..Call::default() };
        }
        self.call.steps.extend(steps);
        self.call.failed = failed;
    }

    pub fn call(&self) -> Option<control::Call> {
        let Call { number, steps, failed } = self.call.clone();
        let (verdict, why) = failed.unzip();
        (number > 0).then_some(control::Call { number, steps, verdict, why })
    }
}
