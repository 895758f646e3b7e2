//! Changes to the superblock: first copy, sync, and only then what the change allows; the second copy before the next one.
//!
//! Must never let an effect of a change be seen before the change is durable. Called by the core.

use bytes::Bytes;

use super::Core;
use super::event::{Action, Note, Ticket};
use super::op::TICKET_SUPERBLOCK;
use crate::nbd::disk::format::{Checkpoint, SUPERBLOCK_BLOCKS, Superblock, tag_of};
use crate::nbd::server::Failure;

/// The effect that a change permits once it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing in particular, or what waits for the version.
    Nothing,
    /// The session of a peer may begin.
    Prepared(usize, u64),
    /// Stable writes may be confirmed, as the generation is durable.
    Told,
    /// The same, as a checkpoint is written down.
    Named(Checkpoint),
    /// An operation that waits.
    Unblock(u32),
    /// This site is primary.
    Promoted,
    /// It is not any more.
    Demoted,
    /// The handshakes may begin.
    Greet,
    /// This target of a resync is equal to its source.
    TargetDone(usize, u64),
    /// The count of writes may be sent.
    Counted,
    /// The others may hear that this site leaves.
    Left,
    /// This site has left, and is not outdated.
    Departed,
    /// A site that leaves may hear that this is known.
    LeaveNoted(usize, u64),
    /// The mirror is larger.
    Grown,
}

enum Stage {
    Idle,
    /// The first copy of this version is being written.
    First(u64),
    Second,
}

/// The superblock, as it is wanted and as it is.
pub struct Store {
    /// As it is wanted; call [`Core::change`] after changing it.
    pub wanted: Superblock,
    /// Counts the changes.
    pub version: u64,
    /// The last change that is durable.
    pub durable: u64,
    written: Superblock,
    stage: Stage,
    /// The second copy is older than the first.
    owes_second: bool,
    then: Vec<(u64, Then)>,
}

impl Store {
    /// The superblock as it was found. Nobody knows whether both copies are the same.
    pub fn new(found: Superblock) -> Self {
        Store {
            wanted: found.clone(),
            version: 0,
            durable: 0,
            written: found,
            stage: Stage::Idle,
            owes_second: true,
            then: Vec::new(),
        }
    }
}

impl Core {
    /// Makes the superblock durable as it is now wanted.
    pub(super) fn change(&mut self, then: Then) {
        self.store.version += 1;
        self.store.then.push((self.store.version, then));
        self.write_superblock();
    }

    fn write_superblock(&mut self) {
        let store = &mut self.store;
        if !matches!(store.stage, Stage::Idle) || self.stopped {
            return;
        }
        let number = if store.owes_second {
            store.stage = Stage::Second;
            SUPERBLOCK_BLOCKS[1]
        } else if store.version > store.durable {
            store.wanted.sequence += 1;
            store.written = store.wanted.clone();
            store.stage = Stage::First(store.version);
            SUPERBLOCK_BLOCKS[0]
        } else {
            return;
        };
        let block = store.written.encode(number, tag_of(&self.config.device));
        self.out.push(Action::Store(Ticket::new(TICKET_SUPERBLOCK, 0), vec![(number, Box::new(block))]));
    }

    pub(super) fn superblock_stored(&mut self, result: Result<Bytes, Failure>) {
        if result.is_err() {
            return self.metadata_failed();
        }
        match std::mem::replace(&mut self.store.stage, Stage::Idle) {
            Stage::Idle => return,
            Stage::Second => self.store.owes_second = false,
            Stage::First(version) => {
                (self.store.durable, self.store.owes_second) = (version, true);
                let (due, later) =
                    std::mem::take(&mut self.store.then).into_iter().partition(|(v, _)| *v <= version);
                self.store.then = later;
                let due: Vec<(u64, Then)> = due;
                self.write_superblock();
                for (_, then) in due {
                    self.allowed(then);
                }
                self.step_claim();
            }
        }
        self.write_superblock();
    }

    fn allowed(&mut self, then: Then) {
        match then {
            Then::Nothing => {}
            Then::Told => self.confirm_stable(),
            Then::Named(name) => {
                self.note(Note::Reached(self.config.site, name));
                self.confirm_stable();
            }
            Then::Prepared(i, session) => self.prepared(i, session),
            Then::Unblock(id) => self.unblock(id),
            Then::Promoted => self.promoted(),
            Then::Demoted => self.demoted(),
            Then::Greet => self.greet_all(),
            Then::TargetDone(i, session) => self.target_durable(i, session),
            Then::Counted => (0..self.peers.len()).for_each(|i| self.send_state(i)),
            Then::Left => self.tell_leave(),
            Then::Departed => self.departed(),
            Then::LeaveNoted(i, session) => self.leave_noted(i, session),
            Then::Grown => self.grown(),
        }
    }
}
