//! Sites that are lost: what M1 keeps no more where two are, and what a promotion leaves behind.
//!
//! Tells the reference, from what is on the disks and who could be reached. Used by the world alone.

use super::world::{World, is_behind, site_id};
use crate::nbd::core::role::Change;
use crate::nbd::disk::format::DiskFlags;

impl World {
    fn reachable(&self, i: usize) -> u32 {
        let reachable = (0..self.sites.len()).filter(|j| *j == i || self.linked(i, *j));
        reachable.fold(0, |mask, j| mask | 1 << j)
    }

    /// The sites that it reaches, and did when it opened its ballot.
    fn reached(&self, i: usize) -> u32 {
        self.reachable(i) & self.sites[i].reached.unwrap_or(u32::MAX)
    }

    /// A site that comes during a ballot is not asked any more: for that promotion it is as one that is lost.
    pub fn note_ballot(&mut self, i: usize) {
        let change = self.sites[i].core.as_ref().map(|core| core.role_change);
        let is_open = change.is_some_and(|change| change.is_won() || matches!(change, Change::Asking { .. }));
        let reached = self.reachable(i);
        let site = &mut self.sites[i];
        site.reached = is_open.then(|| site.reached.unwrap_or(reached));
    }

    /// A site becomes primary: of two that are lost, M1 keeps what was flushed.
    pub fn excuse(&mut self, i: usize) {
        self.model.excuse(i, self.reached(i));
    }

    /// The sites that a site reaches whose promotion is won, and being written.
    pub fn reached_by_winner(&self, i: usize) -> Option<u32> {
        self.sites[i].core.as_ref().filter(|core| core.role_change.is_won())?;
        Some(self.reached(i))
    }

    /// A promotion counts from when it is on the disk, and not from when it serves: M1 keeps what was flushed, too, if the site ends
    /// in between.
    pub fn note_claim(&mut self, i: usize) {
        self.note_claim_of(i, self.reached_by_winner(i));
    }

    /// The same of a site that stops, and had reached these.
    pub fn note_claim_of(&mut self, i: usize, reached: Option<u32>) {
        let is_claimed = self.flags(i).contains(DiskFlags::PRIMARY | DiskFlags::UNANSWERED);
        if let Some(reached) = reached.filter(|_| is_claimed) {
            self.model.excuse(i, reached);
        }
    }

    /// Returns true if a follower that stops goes at once with its primary: nothing on its disk says yet that it outlived it. M1
    /// keeps only flushed writes when both sites go, and which of the two had later ones neither can know afterwards.
    pub fn went_with_primary(&self, i: usize) -> bool {
        let last = self.last_primary;
        let is_gone = i != last && self.sites[last].core.is_none();
        let is_far = (self.asynchronous >> i | self.asynchronous >> last) & 1 == 1;
        // By its disk, and not its memory: it may have lost this site just before it went itself, and have answered nothing since.
        let block = self.sites[last].meta.superblock().cloned().unwrap_or_default();
        let is_heir = block.slots.iter().any(|slot| slot.site == Some(site_id(i)) && !is_behind(slot));
        is_heir && is_gone && !is_far && self.flags(i).contains(DiskFlags::UP_TO_DATE | DiskFlags::WRITING)
    }

    /// Returns true if a site leaves in order, or has left: its disk says that newer content is elsewhere, or is about to.
    pub fn is_leaving(&self, i: usize) -> bool {
        let change = self.sites[i].core.as_ref().map(|core| core.role_change);
        matches!(change, Some(Change::Departing { .. } | Change::Left))
            || self.flags(i).contains(DiskFlags::OUTDATED)
    }

    /// A primary that was killed starts again, and loses its power before what it wrote is settled: as if it had lost it at once, its
    /// content counts. Of sites that went before it none can know whether that is the newer one; M1 keeps what was flushed.
    pub fn doubt_before_settled(&mut self, i: usize) {
        let block = self.sites[i].meta.superblock().cloned().unwrap_or_default();
        if i != self.last_primary || self.serving.is_some() || !block.flags.contains(DiskFlags::PRIMARY) {
            return;
        }
        let has_answered = !block.flags.contains(DiskFlags::UNANSWERED);
        for slot in &block.slots {
            let Some(j) = slot.site.map(|site| usize::from(site.get())) else { continue };
            let is_older = is_behind(slot) && has_answered || self.is_leaving(j);
            if is_older || !self.has_outlived(j, i) {
                self.model.doubt(j);
            }
        }
    }

    /// Returns true if a site has gone on since that primary ended: it runs since, or its disk says so.
    fn has_outlived(&self, j: usize, primary: usize) -> bool {
        let peers = self.sites[j].core.as_ref().map_or(&[][..], |core| &core.peers);
        !self.flags(j).contains(DiskFlags::UP_TO_DATE)
            || peers.iter().any(|peer| peer.site == site_id(primary) && peer.last_session != 0)
    }
}
