//! Tests of the decisions: the table row by row, properties over arbitrary facts, the record's bytes, and a model of
//! whole histories.

mod model;
mod promotion;
mod properties;
mod record;
mod table;

use super::*;
use crate::nbd::disk::format::{DiskFlags, SlotFlags};
use crate::wire::{Mask, ResourceId, SiteId};

pub fn site(id: u32) -> SiteId {
    SiteId::try_from(id).unwrap()
}

/// A generation by a small number.
pub fn generation(number: u64) -> Generation {
    Generation::draw(number << 8, false)
}

/// A good secondary of `sites` sites in generation 1, after a restart.
pub fn facts(id: u32, sites: u32) -> Facts {
    Facts {
        site: site(id),
        resource: ResourceId::try_from(3).unwrap(),
        device: [id as u8 + 1; 16],
        nonce: u64::from(id) + 100,
        last_session: 0,
        role: Role::Secondary,
        follows: None,
        asynchronous: false,
        flags: DiskFlags::CONSISTENT | DiskFlags::UP_TO_DATE,
        members: Mask((1 << sites) - 1),
        current: generation(1),
        history: Vec::new(),
        slots: (0..sites)
            .filter(|other| *other != id)
            .map(|other| PeerSlot {
                site: site(other),
                flags: SlotFlags::SEEN,
                generation: Generation::NONE,
                stable: 0,
                out_of_sync: 0,
            })
            .collect(),
        size: 1 << 30,
        agreed_size: 1 << 30,
        chunk_shift: 16,
        write_counter: 10,
        policies: Default::default(),
        software: "hadm-nbd 1".into(),
        abilities: 1,
        log_room: 1 << 20,
    }
}

impl Facts {
    /// The slot for a site, to be changed.
    pub fn of(&mut self, id: u32) -> &mut PeerSlot {
        self.slots.iter_mut().find(|slot| slot.site == site(id)).unwrap()
    }
}
