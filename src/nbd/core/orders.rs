//! The orders of a person beside a role: pauses, a resync anew, a look at what a connect would do, leaving the mirror.
//!
//! Must never begin a copy by itself: a resync anew is a handshake anew, whose decision both ends make. Called by the core.

use std::time::Duration;

use bytes::Bytes;

use super::event::{Action, Refusal};
use super::packet::{self, Fields};
use super::role::Change;
use super::superblock::Then;
use super::{Core, Peer};
use crate::nbd::disk::format::{DiskFlags, SlotFlags};
use crate::nbd::mirror::control::Leave;
use crate::nbd::mirror::{Rotate, decide, record};
use crate::wire::{Mask, PacketType, SiteId};

/// A site answers a question, or a goodbye, in this time, or not at all: far longer than a round trip and a write of the
/// superblock, and short for a person who waits.
const PATIENCE: Duration = Duration::from_secs(3);

/// The target of a paused resync hears from its source so often.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

impl Core {
    /// The consequences of a connect with a site, in lines for people, by what it said of itself last; `None` if it has
    /// said nothing since this program began: [`super::Command::Ask`] it first.
    pub fn plan(&self, site: SiteId) -> Option<Vec<String>> {
        let peer = self.peers.get(self.peer_of(site)?)?;
        let theirs = peer.known.as_ref()?;
        if let Some(why) = self.misfit(theirs) {
            return Some(vec![why]);
        }
        let own = self.facts_with(0, peer.last_session);
        Some(decide(&own, theirs).plan(&own, theirs))
    }

    pub(super) fn ask_record(&mut self, site: SiteId) -> Result<(), Refusal> {
        let i = self.peer_of(site).ok_or(Refusal::Site)?;
        if self.asked.is_some() {
            return Err(Refusal::Busy);
        }
        self.asked = Some((site, self.now));
        self.send_record(i, packet::REPLY);
        Ok(())
    }

    /// A site asks for this one's record, or gives its own: no handshake begins by it.
    pub(super) fn record_asked(&mut self, i: usize, fields: &Fields, payload: &[u8]) {
        let Some(site) = self.peers.get(i).map(|peer| peer.site) else { return };
        let Ok(facts) = record::decode(payload, site, self.config.resource) else { return };
        if let Some(peer) = self.peers.get_mut(i) {
            peer.known = Some(Box::new(facts));
        }
        let is_look = fields.flags & packet::LOOK != 0;
        if fields.flags & packet::END == 0 {
            match is_look {
                true => self.look_asked(site),
                false => self.send_record(i, packet::REPLY | packet::END),
            }
        } else if is_look {
            self.look_answered(site);
        } else if self.asked.take_if(|(asked, _)| *asked == site).is_some() {
            self.out.push(Action::Answer(Ok(())));
        }
    }

    pub(super) fn pause(&mut self, sites: Mask, paused: bool) {
        self.paused = if paused { self.paused | sites } else { Mask(self.paused.0 & !sites.0) };
        for i in 0..self.peers.len() {
            let Some(peer) = self.peers.get_mut(i).filter(|peer| !self.paused.contains(peer.site.get()))
            else {
                continue;
            };
            let now = self.now;
            let parked = peer.resync.as_mut().map(|resync| {
                resync.moved = now;
                std::mem::take(&mut resync.parked)
            });
            parked.unwrap_or_default().iter().for_each(|fields| self.resync_request(i, fields));
            self.ask(i);
        }
    }

    /// Two sites in sync part and meet again: what is marked is copied from the primary.
    pub(super) fn resync_anew(&mut self, site: SiteId, full: bool) -> Result<(), Refusal> {
        let i = self.peer_of(site).filter(|i| self.peers.get(*i).is_some_and(Peer::is_equal));
        let i = i.ok_or(Refusal::Site)?;
        if !self.is_primary() && self.follows != Some(site) {
            return Err(Refusal::Role);
        }
        if !self.is_local {
            return Err(Refusal::NotUsable);
        }
        if full {
            let slot = self.store.wanted.slots.iter_mut().find(|slot| slot.site == Some(site));
            slot.into_iter().for_each(|slot| slot.flags |= SlotFlags::FULL_SYNC_DUE);
            self.change(Then::Nothing);
        }
        self.lose_for(i, "it is to be copied anew", false);
        Ok(())
    }

    /// Leaves the mirror, for a stop of the program: a primary goes on, and this disk will be old.
    pub(super) fn leave(&mut self) -> Result<(), Refusal> {
        match self.role_change {
            _ if self.is_primary() => Err(Refusal::Role),
            Change::Left => Ok(()),
            Change::None if self.follows.is_some() && !self.stopped => {
                self.role_change = Change::Departing { since: self.now };
                self.store.wanted.leave();
                self.change(Then::Left);
                Ok(())
            }
            Change::None => {
                self.part_in_order();
                Ok(())
            }
            _ => Err(Refusal::Busy),
        }
    }

    pub(super) fn tell_leave(&mut self) {
        let block = &self.store.wanted;
        let leave = Leave { outdated: true, current: block.current, write_counter: block.write_counter };
        let payload = Bytes::from(leave.encode());
        for i in 0..self.peers.len() {
            self.send(i, PacketType::SC_DEVDOWN, Fields::default(), payload.clone());
        }
    }

    /// A site leaves in order.
    pub(super) fn peer_leaves(&mut self, i: usize, payload: &[u8]) {
        let Some((site, session)) = self.peers.get(i).map(|peer| (peer.site, peer.session)) else { return };
        let Some(leave) = Leave::decode(payload).filter(|leave| leave.outdated) else { return };
        let has_all = |other: usize| self.peers.get(other).is_some_and(Peer::has_all);
        let is_only_copy = has_all(i) && !(0..self.peers.len()).any(|other| other != i && has_all(other));
        if self.is_primary() && !self.is_local && is_only_copy {
            // Nothing can go on without it, and its data stay the newest: to everybody it is a site that was lost.
            let answer = Leave { outdated: false, ..leave };
            self.send(i, PacketType::SC_DEVDOWN_ACK, Fields::default(), Bytes::from(answer.encode()));
            return self.lose(i, "it left in order");
        }
        self.store.wanted.note_outdated(Mask::of(site.get()));
        self.change(Then::LeaveNoted(i, session));
    }

    pub(super) fn leave_noted(&mut self, i: usize, session: u64) {
        if self.peers.get(i).is_some_and(|peer| peer.session == session && session != 0) {
            self.send(i, PacketType::SC_DEVDOWN_ACK, Fields::default(), Bytes::new());
            self.lose(i, "it left in order");
        }
    }

    /// The primary has heard of the leave; perhaps it cannot go on without this site.
    pub(super) fn leave_heard(&mut self, i: usize, payload: &[u8]) {
        let is_primary = self.peers.get(i).is_some_and(|peer| self.follows == Some(peer.site));
        if !is_primary || !matches!(self.role_change, Change::Departing { .. }) {
            return;
        }
        match Leave::decode(payload) {
            Some(leave) if !leave.outdated => {
                self.store.wanted.flags.set(DiskFlags::OUTDATED, false);
                self.change(Then::Departed);
            }
            _ => self.departed(),
        }
    }

    pub(super) fn departed(&mut self) {
        if matches!(self.role_change, Change::Departing { .. }) {
            self.part_in_order();
            self.out.push(Action::Answer(Ok(())));
        }
    }

    fn part_in_order(&mut self) {
        self.role_change = Change::Left;
        for i in 0..self.peers.len() {
            self.lose(i, "this site leaves");
        }
    }

    pub(super) fn tick_orders(&mut self) {
        let is_over = |since: Duration| self.now.saturating_sub(since) > PATIENCE;
        if let Some((site, _)) = self.asked.take_if(|(_, since)| is_over(*since)) {
            self.out.push(Action::Answer(Err(Refusal::Missing(Mask::of(site.get())))));
        }
        if matches!(self.role_change, Change::Departing { since } if is_over(since)) {
            // The mark stays: the primary may have heard of it.
            self.departed();
        }
        for i in 0..self.peers.len() {
            let now = self.now;
            let Some(peer) = self.peers.get_mut(i).filter(|peer| self.paused.contains(peer.site.get()))
            else {
                continue;
            };
            let Some(resync) = peer.resync.as_mut().filter(|resync| !resync.parked.is_empty()) else {
                continue;
            };
            if now.saturating_sub(resync.moved) > SIGN_OF_LIFE {
                resync.moved = now;
                self.send(i, PacketType::SC_STATE_ACK, Fields::default(), Bytes::new());
            }
        }
    }
}
