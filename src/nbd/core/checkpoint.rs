//! Checkpoints: a name for a point in the stream, which each site writes down once it has all before it on stable storage.
//!
//! The name is the payload of a barrier. Must never be sent to a site that has not said that it knows them, nor be written
//! down, or called reached, before what it names is stable. Called by the core.

use bytes::Bytes;

use super::Core;
use super::event::{Note, Refusal};
use super::peer::Part;
use super::superblock::Then;
use crate::nbd::disk::format::Checkpoint;
use crate::nbd::mirror::facts::KNOWS_CHECKPOINTS;
use crate::wire::SiteId;

/// Checkpoints on their way to a site at most: with more, each of them says little.
const ON_THE_WAY_MAX: usize = 64;

impl Core {
    /// Returns the checkpoints that a far site does not surely have, the oldest first.
    pub fn checkpoints_on_the_way(&self, site: SiteId) -> impl Iterator<Item = Checkpoint> {
        let peer = self.peer_of(site).and_then(|i| self.peers.get(i));
        let far = peer.and_then(|peer| peer.far.as_ref());
        far.into_iter().flat_map(|far| far.checkpoints.iter().map(|(name, _)| *name))
    }

    /// Names this point of the stream.
    pub(super) fn name_point(&mut self, name: Checkpoint) -> Result<(), Refusal> {
        if !self.is_primary() {
            return Err(Refusal::Role);
        }
        let far = self.peers.iter().filter_map(|peer| Some((peer.site, peer.far.as_ref()?)));
        if let Some((site, _)) = far.clone().find(|(_, far)| far.checkpoints.len() >= ON_THE_WAY_MAX) {
            return Err(Refusal::Crowded(site));
        }
        if far.count() == 0 {
            return Err(Refusal::NoneFar);
        }
        self.named = Some((name, self.epochs.current()));
        for peer in &mut self.peers {
            peer.is_name_due = true;
            if let Some(far) = peer.far.as_mut() {
                far.checkpoints.push_back((name, None));
            }
        }
        self.barrier();
        self.step_checkpoints();
        Ok(())
    }

    /// Returns the payload of a barrier: the last name, if the site is equal but for what is under way and has not got it yet.
    pub(super) fn name_for(&mut self, i: usize, epoch: u64) -> Bytes {
        let last = self.named.map(|(name, _)| name).or(self.store.wanted.checkpoint);
        let Some(peer) = self.peers.get_mut(i).filter(|peer| peer.is_equal() && peer.is_name_due) else {
            return Bytes::new();
        };
        peer.is_name_due = false;
        for (_, reached) in peer.far.iter_mut().flat_map(|far| &mut far.checkpoints) {
            reached.get_or_insert(epoch);
        }
        let knows = |(facts, _): &(crate::nbd::mirror::Facts, _)| facts.abilities & KNOWS_CHECKPOINTS != 0;
        let is_known = peer.theirs.as_ref().is_some_and(knows);
        last.filter(|_| is_known)
            .map_or(Bytes::new(), |name| Bytes::copy_from_slice(name.as_str().as_bytes()))
    }

    /// A barrier came: its payload is a name, or nothing that this program knows.
    pub(super) fn name_came(&mut self, i: usize, payload: &[u8], own: u64) {
        let Some(name) = Checkpoint::new(payload) else { return };
        if let Some(peer) = self.peers.get_mut(i).filter(|peer| peer.part == Part::Equal) {
            peer.names.push_back((name, own));
        }
    }

    /// Writes down the last checkpoint whose writes are stable here; the primary hears of it after that.
    pub(super) fn write_down(&mut self, i: usize) {
        let local = self.flushes.local;
        let Some(peer) = self.peers.get_mut(i) else { return };
        let mut last = None;
        while let Some((name, _)) = peer.names.front().copied().filter(|(_, own)| *own <= local) {
            peer.names.pop_front();
            last = Some(name);
        }
        let Some(name) = last.filter(|name| self.store.wanted.checkpoint != Some(*name)) else { return };
        self.store.wanted.checkpoint = Some(name);
        self.change(Then::Named(name));
        if let Some(peer) = self.peers.get_mut(i) {
            peer.told_in = self.store.version;
        }
    }

    /// More is stable, here or at another site.
    pub(super) fn step_checkpoints(&mut self) {
        if !self.is_primary() {
            self.named = None;
            self.peers
                .iter_mut()
                .filter_map(|peer| peer.far.as_mut())
                .for_each(|far| far.checkpoints.clear());
            return;
        }
        let local = self.flushes.local;
        if let Some((name, _)) = self.named.take_if(|(_, epoch)| *epoch <= local) {
            self.store.wanted.checkpoint = Some(name);
            self.change(Then::Named(name));
        }
        let mut reached = Vec::new();
        for peer in self.peers.iter_mut().filter(|peer| peer.is_equal()) {
            let (site, stable) = (peer.site, peer.stable);
            let Some(far) = peer.far.as_mut() else { continue };
            let is_there = |(_, epoch): &(Checkpoint, Option<u64>)| epoch.is_some_and(|of| of <= stable);
            while let Some((name, _)) = far.checkpoints.front().copied().filter(is_there) {
                far.checkpoints.pop_front();
                reached.push(Note::Reached(site, name));
            }
        }
        self.out.extend(reached.into_iter().map(super::Action::Note));
    }
}
