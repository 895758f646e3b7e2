//! The end of the role: in order, once everything is stable, or at once.
//!
//! Must never leave the role in order while an answered write is not stable at each site in sync. Called by the core.

use super::claim::Claim;
use super::event::{Action, RequestId};
use super::role::Change;
use super::superblock::Then;
use super::{Core, Peer, Pending};
use crate::nbd::disk::format::DiskFlags;
use crate::nbd::mirror::{Role, Rotate};
use crate::nbd::server::Failure;
use crate::wire::Mask;

/// Stands for the end of the role among the requests.
const LEAVE: RequestId = RequestId(u64::MAX);

/// Returns true if it stands for the end of the role.
pub fn is_leave(id: RequestId) -> bool {
    id == LEAVE
}

impl Core {
    pub(super) fn demote(&mut self) {
        self.role_change = Change::Leaving;
        if !self.owed.is_empty() && self.claim == Claim::Idle {
            // Writes that were answered before the loss are here, and nowhere else for sure.
            self.draw_claim();
        }
        self.release();
        self.leave_if_drained();
    }

    /// Returns true if nothing but the end of the role is still to be flushed.
    pub(super) fn is_leaving_flushed(&self) -> bool {
        self.is_leaving_asked && self.peers.iter().any(|peer| peer.far.is_some())
    }

    /// Leaves the role once no request is under way.
    pub(super) fn leave_if_drained(&mut self) {
        if self.role_change != Change::Leaving || self.is_leaving_asked {
            return;
        }
        self.fail_held_reads();
        for id in std::mem::take(&mut self.held) {
            let Some(super::Origin::Client(pending)) = self.ops.remove(id).map(|op| op.origin) else {
                continue;
            };
            let Some(request) = self.pending.get_mut(pending) else { continue };
            (request.failed, request.left) = (Some(Failure::Shutdown), request.left.saturating_sub(1));
            if request.left == 0 {
                self.answer(pending);
            }
        }
        if self.pending.is_empty() && !self.is_leaving_asked {
            self.is_leaving_asked = true;
            let pending = self.pending.insert(Pending { id: LEAVE, left: 0, fua: false, failed: None });
            self.flush_for(pending);
        }
    }

    /// The end of the role is asked for, and everything is stable.
    pub(super) fn leave_flushed(&mut self) {
        // The marks of missing sites have to be durable, as the activity log will not count.
        self.flush_bits_for(usize::MAX, 0);
    }

    pub(super) fn bits_of_leaver_stored(&mut self) {
        let lacks_writes = |peer: &Peer| peer.far.is_some() && self.owed.contains(peer.site.get());
        if self.claim == Claim::Idle && self.peers.iter().any(lacks_writes) {
            // Lost since the role began to end, and it may lack writes that were answered.
            self.draw_claim();
        }
        self.is_leave_held = matches!(self.claim, Claim::Telling { .. } | Claim::Confirming { .. })
            && self.peers.iter().any(|peer| peer.far.is_some());
        if self.is_leave_held {
            return;
        }
        self.store.wanted.demote();
        self.change(Then::Demoted);
    }

    pub(super) fn demoted(&mut self) {
        self.is_leaving_asked = false;
        self.role_change = Change::None;
        self.become_secondary();
        self.flushes.told = self.epochs.current() - 1;
        for i in 0..self.peers.len() {
            if self.peers.get(i).is_some_and(Peer::is_only_marked) {
                self.lose_for(i, "the role ended before it had caught up", false);
            }
        }
        for i in 0..self.peers.len() {
            self.send_state(i);
        }
        if !self.is_local {
            // Its data is at the other sites alone: they count it as old, and may go on without it.
            self.tell_leave();
            (0..self.peers.len()).for_each(|i| self.lose(i, "the disk here failed"));
        }
        self.out.push(Action::Answer(Ok(())));
        self.change(Then::Greet);
    }

    fn become_secondary(&mut self) {
        self.role = Role::Secondary;
        self.activity.resize(self.config.follow_max);
        (self.owed, self.frozen, self.fencing) = (Mask(0), Mask(0), Mask(0));
        (self.claim, self.is_leave_held) = (Claim::Idle, false);
        self.store.wanted.flags.set(DiskFlags::LOST_QUORUM, false);
        self.fail_held_reads();
        self.out.push(Action::Serve(false));
    }

    /// Leaves the role at once: another site's data counts, or the disk here is gone.
    pub(super) fn step_down(&mut self) {
        for i in 0..self.peers.len() {
            let Some(peer) = self.peers.get(i).filter(|peer| peer.takes_writes()) else { continue };
            if let Some(map) = self.bitmaps.get_mut(peer.slot) {
                self.epochs.unstable(peer.stable).for_each(|chunks| _ = map.set(chunks));
            }
        }
        self.become_secondary();
        for i in 0..self.peers.len() {
            self.lose(i, "this site left the role at once");
        }
        let under_way: Vec<_> = self.ops.iter().map(|(id, _)| id).collect();
        for id in under_way {
            if let Some(op) = self.ops.get_mut(id).filter(|op| matches!(op.origin, super::Origin::Client(_)))
            {
                op.origin = super::Origin::Client(u32::MAX);
            }
        }
        self.flushes.forget_requests();
        let numbers: Vec<_> = self.pending.iter().map(|(number, _)| number).collect();
        for number in numbers {
            if let Some(request) = self.pending.remove(number) {
                match is_leave(request.id) {
                    true => self.out.push(Action::Answer(Ok(()))),
                    false => self.out.push(Action::Reply(request.id, Err(Failure::Shutdown))),
                }
            }
        }
        self.gated.clear();
        self.is_leaving_asked = false;
        self.role_change = Change::None;
        for id in std::mem::take(&mut self.held) {
            self.ops.remove(id);
        }
        self.change(Then::Greet);
    }
}
