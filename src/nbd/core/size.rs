//! The size of the mirror: that of the smallest disk among the sites that made it, from the first handshake or promotion on.
//!
//! Agreed sizes only grow, by a command (see `grow`); a disk that is smaller is refused by the handshake. Must never let anything be read, written
//! or compared behind the mirror's end, where a larger disk goes on. Called by the core.

use super::Core;
use super::grow::Growth;

impl Core {
    /// Bytes that are mirrored; those of this site's disk before sizes were agreed on.
    pub fn size(&self) -> u64 {
        if let Some(Growth::Raising { mirrored, .. }) = self.growth {
            // A write in the new part may not be answered before the size is durable.
            return mirrored;
        }
        match self.store.wanted.agreed_size {
            0 => self.config.layout.data_size,
            agreed => agreed.min(self.config.layout.data_size),
        }
    }

    /// Bytes that other sites' packets may be about: those of a size that is being taken, too.
    pub(super) fn size_in_sessions(&self) -> u64 {
        self.size().max(self.taking.min(self.config.layout.data_size))
    }

    /// The size that this site, on its way to be primary, gives a mirror that has none: the smallest disk within reach counts.
    pub(super) fn first_size(&self) -> u64 {
        let known = self.peers.iter().filter(|peer| peer.linked).filter_map(|peer| peer.known.as_ref());
        known.map(|facts| facts.size).fold(self.config.layout.data_size, u64::min)
    }

    /// Bits behind the mirror's end would never be cleared.
    pub(super) fn limit_bitmaps(&mut self) {
        // The marks of a new part come before its size.
        let size = self.size_in_sessions().max(self.size_to_come());
        let chunks = size.div_ceil(self.config.layout.chunk());
        self.bitmaps.iter_mut().for_each(|map| map.limit(chunks));
    }
}
