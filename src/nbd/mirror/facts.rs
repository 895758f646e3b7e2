//! The facts about a site's disk that its peers decide by: the content of the handshake's record.
//!
//! A snapshot: any change after it was sent makes a new handshake necessary. Must hold nothing that a decision could
//! read differently at the two ends. Made from the superblock and the state of the moment; used by the record's encoder
//! and by every decision.

use super::Generation;
use super::choices::Policies;
use crate::nbd::disk::format::{DiskFlags, SlotFlags, Superblock};
use crate::wire::{Mask, ResourceId, SiteId};

/// An ability: it takes the name of a checkpoint as the payload of a barrier.
pub const KNOWS_CHECKPOINTS: u32 = 1;

/// An ability: as a source it ends a resync for a target that keeps all of it for one batch.
pub const KNOWS_CATCH_UP: u32 = 2;

/// The part that a site plays at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// It follows a primary, or waits for one.
    #[default]
    Secondary,
    /// It serves the disk.
    Primary,
}

impl Role {
    /// Returns the word for status and log.
    pub const fn word(self) -> &'static str {
        match self {
            Role::Secondary => "secondary",
            Role::Primary => "primary",
        }
    }
}

/// The knowledge of a site about the mirror at another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerSlot {
    /// The other site.
    pub site: SiteId,
    /// The known state of that mirror.
    pub flags: SlotFlags,
    /// The generation from which on the bitmap counts.
    pub generation: Generation,
    /// The highest durable write counter that the other site has sent.
    pub stable: u64,
    /// Bytes that the bitmap and the active extents mark as possibly different.
    pub out_of_sync: u64,
}

/// The facts that a site states about itself in a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The site.
    pub site: SiteId,
    /// The resource.
    pub resource: ResourceId,
    /// The random name of its metadata device.
    pub device: [u8; 16],
    /// Random, for this handshake alone.
    pub nonce: u64,
    /// The session that these two sites had last, as long as the program has not restarted since; else 0.
    pub last_session: u64,
    /// Its role now.
    pub role: Role,
    /// The primary from which it gets writes now.
    pub follows: Option<SiteId>,
    /// True if writes are answered before this peer has them.
    pub asynchronous: bool,
    /// The state of its disk.
    pub flags: DiskFlags,
    /// The sites with a mirror of this disk, itself among them.
    pub members: Mask,
    /// The generation of its data.
    pub current: Generation,
    /// Former generations, the newest first, without empty places.
    pub history: Vec<Generation>,
    /// The other sites, each at most once.
    pub slots: Vec<PeerSlot>,
    /// Bytes its disk can hold.
    pub size: u64,
    /// Bytes that all sites agreed to mirror; 0 before the first agreement.
    pub agreed_size: u64,
    /// Binary logarithm of the bytes that a bit of its bitmaps stands for.
    pub chunk_shift: u8,
    /// The durable count of writes, which never goes back on one device.
    pub write_counter: u64,
    /// The configured policies about a split brain.
    pub policies: Policies,
    /// Its software, for people.
    pub software: String,
    /// Abilities of its program beyond the version, as bits; 0 of one that does not say so.
    pub abilities: u32,
    /// Bytes of writes that its ordered log takes at once; 0 if it does not say so.
    pub log_room: u64,
}

impl Facts {
    /// Returns the same facts with the content of the superblock; `out_of_sync` gives the bytes marked for a site.
    #[must_use]
    pub fn with_superblock(mut self, from: &Superblock, out_of_sync: impl Fn(SiteId) -> u64) -> Self {
        self.flags = from.flags;
        self.members = from.members | Mask::of(self.site.get());
        self.current = from.current;
        self.history = from.history.iter().copied().filter(|former| former.is_some()).collect();
        self.agreed_size = from.agreed_size;
        self.write_counter = from.write_counter;
        let slots = from.slots.iter().filter_map(|slot| {
            Some(PeerSlot {
                site: slot.site?,
                flags: slot.flags,
                generation: slot.generation,
                stable: slot.stable,
                out_of_sync: out_of_sync(slot.site?),
            })
        });
        self.slots = slots.collect();
        self
    }

    /// Returns the generation in which it last answered a write: the one before, if nothing was answered in the current one.
    pub fn answered(&self) -> Option<Generation> {
        match self.flags.contains(DiskFlags::UNANSWERED) {
            true => self.history.first().copied(),
            false => Some(self.current),
        }
    }

    /// Returns the facts as they were before a generation that a crashed primary drew and never answered in, if the other
    /// site's generation is the one before: then neither went on without the other. So, too, of a disk that such a primary
    /// was being copied to: it is half-synced, and what it was to get has been given up.
    pub fn before_claim(&self, other: &Facts) -> Option<Facts> {
        let former = self.answered().filter(|former| *former != self.current && *former == other.current)?;
        // Of two former primaries the one that claimed is the later.
        let has_claimed = self.is_crashed_primary() && !other.is_crashed_primary();
        if !has_claimed && self.flags.contains(DiskFlags::CONSISTENT) {
            return None;
        }
        let mut before = self.clone();
        before.current = former;
        before.history.retain(|earlier| *earlier != former);
        before.flags.set(DiskFlags::UNANSWERED, false);
        for slot in before.slots.iter_mut().filter(|slot| slot.generation == former) {
            slot.generation = Generation::NONE;
        }
        Some(before)
    }

    /// Returns the slot for another site.
    pub fn slot(&self, site: SiteId) -> Option<&PeerSlot> {
        self.slots.iter().find(|slot| slot.site == site)
    }

    /// Returns the generation from which the site's bitmap for that site counts; none without a slot.
    pub fn bitmap_of(&self, site: SiteId) -> Generation {
        self.slot(site).map_or(Generation::NONE, |slot| slot.generation)
    }

    /// Returns the bytes that the site marks as possibly different from that site's.
    pub fn out_of_sync(&self, site: SiteId) -> u64 {
        self.slot(site).map_or(0, |slot| slot.out_of_sync)
    }

    /// Returns true if the site knows the other site's mirror and has these flags set for it.
    pub fn has_noted(&self, site: SiteId, flags: SlotFlags) -> bool {
        self.slot(site).is_some_and(|slot| slot.flags.contains(flags))
    }

    /// Returns true if the disk's content is a state that the mirrored disk has had.
    pub fn is_usable(&self) -> bool {
        self.flags.contains(DiskFlags::CONSISTENT)
            && !self.flags.contains(DiskFlags::FAILED)
            && self.current.is_some()
    }

    /// Returns true if newer content is known to be elsewhere.
    pub fn is_outdated(&self) -> bool {
        self.flags.contains(DiskFlags::OUTDATED)
    }

    /// Returns true if the site serves the disk now.
    pub fn is_primary(&self) -> bool {
        self.role == Role::Primary
    }

    /// Returns true if the site ended as primary without leaving the role, and has not taken it up again.
    pub fn is_crashed_primary(&self) -> bool {
        self.flags.contains(DiskFlags::PRIMARY) && !self.is_primary()
    }

    /// Returns true if the site went on while its primary ended: it still runs, or its disk says that the primary was lost.
    pub fn has_outlived(&self) -> bool {
        self.last_session != 0 || !self.flags.contains(DiskFlags::UP_TO_DATE)
    }

    /// Returns true if its device has an older state than it once stated to the other site: a restored snapshot.
    pub fn is_rolled_back(&self, by: &Facts) -> bool {
        by.slot(self.site).is_some_and(|slot| slot.stable > self.write_counter)
    }

    /// Returns every generation from which its data descends, its current one left out.
    pub fn ancestors(&self) -> impl Iterator<Item = Generation> {
        let slots = self.slots.iter().map(|slot| slot.generation);
        self.history.iter().copied().chain(slots).filter(|generation| generation.has_data())
    }

    /// Returns one word for the state of its disk.
    pub fn disk_word(&self) -> &'static str {
        disk_word(self.flags, self.current)
    }
}

/// Returns one word for the state of a disk with these flags and this generation.
pub fn disk_word(flags: DiskFlags, current: Generation) -> &'static str {
    let has = |flag| flags.contains(flag);
    match () {
        () if has(DiskFlags::FAILED) => "failed",
        () if current.is_just_created() => "just created",
        () if !current.is_some() || !has(DiskFlags::CONSISTENT) => "inconsistent",
        () if has(DiskFlags::OUTDATED) => "outdated",
        () if has(DiskFlags::UP_TO_DATE) => "up to date",
        () => "consistent",
    }
}
