//! The superblock: the known state of this disk and of its mirrors at the other sites.
//!
//! Two copies are written in turn: the first, a sync, only then may anything act on it, and the second before the next
//! change. So one copy is whole at every moment. Must not interpret generations and flags: the decisions of the mirror
//! do. Called by the store and by the core.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};

use super::block::{Block, BlockError, Kind, Reader, Writer};
use super::checkpoint::Checkpoint;
use super::generation::Generation;
use crate::wire::{MAX_IDS, Mask, SiteId};

/// Number of former generations that are kept.
pub const HISTORY: usize = 32;

/// Most other sites that a disk can have mirrors at.
pub const SLOTS: usize = 31;

/// The id that stands for no site in a slot.
const NO_SITE: u8 = 255;

macro_rules! flags {
    ($(#[$doc:meta])* $name:ident { $($(#[$flag_doc:meta])* $flag:ident = $bit:literal, $word:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name(u32);

        impl $name {
            $($(#[$flag_doc])* pub const $flag: Self = Self(1 << $bit);)*
            /// All flags of this kind.
            pub const ALL: Self = Self($((1 << $bit) |)* 0);

            /// Returns the flags from their stored bits, if each of them is known.
            pub const fn from_bits(bits: u32) -> Option<Self> {
                if bits & !Self::ALL.0 == 0 { Some(Self(bits)) } else { None }
            }

            /// Returns the flags as they are stored.
            pub const fn bits(self) -> u32 {
                self.0
            }

            /// Returns true if all of these are set.
            pub const fn contains(self, flags: Self) -> bool {
                self.0 & flags.0 == flags.0
            }

            /// Returns these flags without those given.
            #[must_use]
            pub const fn without(self, flags: Self) -> Self {
                Self(self.0 & !flags.0)
            }

            /// Sets or clears the flags given.
            pub const fn set(&mut self, flags: Self, on: bool) {
                self.0 = if on { self.0 | flags.0 } else { self.0 & !flags.0 };
            }
        }

        impl BitOr for $name {
            type Output = Self;
            fn bitor(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
        }

        impl BitOrAssign for $name {
            fn bitor_assign(&mut self, other: Self) {
                self.0 |= other.0;
            }
        }

        /// Writes the flags by name, divided by commas; `none` for none.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let names = [$((Self::$flag, $word)),*];
                let mut any = false;
                for (_, name) in names.iter().filter(|(flag, _)| self.contains(*flag)) {
                    write!(f, "{}{name}", if any { ", " } else { "" })?;
                    any = true;
                }
                if any { Ok(()) } else { f.write_str("none") }
            }
        }
    };
}

flags! {
    /// The known state of this site's disk.
    DiskFlags {
        /// Its content is a state that the mirrored disk has had.
        CONSISTENT = 0, "consistent";
        /// Its content was the newest when last heard of.
        UP_TO_DATE = 1, "up to date";
        /// Newer content is known to be elsewhere: not to be promoted.
        OUTDATED = 2, "outdated";
        /// This site is primary, or was when it ended without leaving the role.
        PRIMARY = 3, "primary open";
        /// Writes may be in flight: after a crash the active extents may differ from those of other sites.
        WRITING = 4, "write indicator";
        /// Two histories were met; a person has to decide.
        SPLIT_BRAIN = 5, "split brain";
        /// The data disk failed, a flush among others: out until it is resynced.
        FAILED = 6, "failed";
        /// This site's changes are to be given up at the next connect.
        DISCARD = 7, "discard mine";
        /// All of it read as zeroes at init, and nothing was written since.
        ZEROED = 8, "all zeroes";
        /// The role was held without the quorum, or the fencing, that it needed.
        LOST_QUORUM = 9, "lost quorum";
        /// Nothing was answered yet in the current generation, of which other sites may not have heard: what counts is the one
        /// before, the first of the history.
        UNANSWERED = 10, "nothing answered yet";
    }
}

flags! {
    /// The known state of a mirror at another site.
    SlotFlags {
        /// The bits say nothing: everything has to be compared or copied.
        FULL_SYNC_DUE = 0, "full sync due";
        /// Its disk is known to be outdated.
        OUTDATED = 1, "outdated";
        /// It was connected when this was written.
        CONNECTED = 2, "connected";
        /// It has been connected at least once.
        SEEN = 3, "seen";
        /// A resync from this site to that one is under way.
        SYNC_SOURCE = 4, "sync source";
        /// A resync from that site to this one is under way.
        SYNC_TARGET = 5, "sync target";
        /// Writes do not wait for that site. Said to other sites, and not written.
        ASYNCHRONOUS = 6, "asynchronous";
    }
}

/// A mirror at another site, and the bitmap of the differences from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// The site; `None`: the slot is free.
    pub site: Option<SiteId>,
    /// The known state of that mirror.
    pub flags: SlotFlags,
    /// The generation from which on the bitmap counts.
    pub generation: Generation,
    /// Last write counter up to which that site confirmed to have everything on stable storage.
    pub stable: u64,
}

/// The state of the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Superblock {
    /// Number of the update; of two valid copies the one with the higher number counts.
    pub sequence: u64,
    /// The known state of this disk.
    pub flags: DiskFlags,
    /// The generation of the data.
    pub current: Generation,
    /// Former generations, the newest first.
    pub history: [Generation; HISTORY],
    /// Bytes that all sites have agreed to mirror; 0 before the first agreement.
    pub agreed_size: u64,
    /// The sites that have a mirror, this one among them.
    pub members: Mask,
    /// Writes that this disk has taken since it was made, at least.
    pub write_counter: u64,
    /// Bytes up to which the last verify had come; 0: none is to be resumed.
    pub verify_cursor: u64,
    /// Batches of the ordered log up to this number are not to be replayed: what they wrote is on stable storage, and
    /// something else may have been written since.
    pub log_void: u64,
    /// The last checkpoint of which the disk here has all that was written before it.
    pub checkpoint: Option<Checkpoint>,
    /// The other sites, by number of their bitmap.
    pub slots: [Slot; SLOTS],
}

impl Superblock {
    /// Returns the bytes of the copy in this block.
    pub fn encode(&self, number: u64, tag: u32) -> Block {
        let mut to = Writer::new(Kind::Superblock, number, self.sequence, tag);
        to.u32(self.flags.bits());
        to.u32(self.members.0);
        to.u64(self.current.bits());
        to.u64(self.agreed_size);
        to.u64(self.write_counter);
        to.u64(self.verify_cursor);
        self.history.iter().for_each(|generation| to.u64(generation.bits()));
        for slot in &self.slots {
            to.u8(slot.site.map_or(NO_SITE, SiteId::get));
            to.skip(3);
            to.u32(slot.flags.bits());
            to.u64(slot.generation.bits());
            to.u64(slot.stable);
        }
        to.u64(self.log_void);
        to.bytes(&Checkpoint::store(self.checkpoint));
        to.seal()
    }

    /// Reads the copy in this block.
    ///
    /// # Errors
    /// The reason for which the block is not valid.
    pub fn decode(block: &Block, number: u64, tag: u32) -> Result<Self, BlockError> {
        let mut from = Reader::open(block, Kind::Superblock, number, Some(tag))?;
        let flags = DiskFlags::from_bits(from.u32()).ok_or(BlockError::Field("the disk's flags"))?;
        let members = Mask(from.u32());
        let current = Generation::from_bits(from.u64());
        let (agreed_size, write_counter, verify_cursor) = (from.u64(), from.u64(), from.u64());
        let history = std::array::from_fn(|_| Generation::from_bits(from.u64()));
        let mut slots = [Slot::default(); SLOTS];
        for slot in &mut slots {
            slot.site = match from.u8() {
                NO_SITE => None,
                site => {
                    Some(SiteId::try_from(u32::from(site)).map_err(|_| BlockError::Field("a slot's site"))?)
                }
            };
            from.bytes(3);
            slot.flags = SlotFlags::from_bits(from.u32()).ok_or(BlockError::Field("a slot's flags"))?;
            (slot.generation, slot.stable) = (Generation::from_bits(from.u64()), from.u64());
        }
        let log_void = from.u64();
        let checkpoint = Checkpoint::from_stored(&from.array())
            .map_err(|()| BlockError::Field("the checkpoint's name"))?;
        let sequence = from.sequence;
        Ok(Superblock {
            sequence,
            flags,
            current,
            history,
            agreed_size,
            members,
            write_counter,
            verify_cursor,
            log_void,
            checkpoint,
            slots,
        })
    }

    /// Returns the number of the slot of this site.
    pub fn slot_of(&self, site: SiteId) -> Option<u8> {
        // At most SLOTS.
        self.slots.iter().position(|slot| slot.site == Some(site)).map(|slot| slot as u8)
    }
}

// A slot for every site but the own one.
const _: () = assert!(SLOTS + 1 == MAX_IDS as usize);
