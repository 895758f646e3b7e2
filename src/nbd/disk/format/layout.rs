//! The places of the areas of `bwr_disk`, and the bit of each chunk of the data disk.
//!
//! ```text
//! block 0 label | 16, 32 superblock A, B | 64..128 activity log | 256 label again | 512 ordered log | bitmaps
//! ```
//! The bitmaps of the slots are interleaved and stand last, so that they can grow. Must never let two areas overlap.
//! Made by `init`, read from the label, used by the store and by the core.

use std::fmt;

use super::block::BLOCK;
use super::records::BITS;
use super::superblock::SLOTS;

/// Blocks of the two copies of the label: far enough apart that no small fault overwrites both.
pub const LABEL_BLOCKS: [u64; 2] = [0, 256];
/// Blocks of the two copies of the superblock: never in one physical sector, page or stripe of 64 KiB.
pub const SUPERBLOCK_BLOCKS: [u64; 2] = [16, 32];
/// First block of the activity log's ring.
pub const ACTIVITY_START: u64 = 64;
/// Blocks in the activity log's ring: enough that wear is spread, few enough to be read at once.
pub const ACTIVITY_BLOCKS: u64 = 64;
/// First block behind the areas of fixed place.
pub const AREAS_START: u64 = 512;
/// An extent of the activity log has 2 to the power of this bytes: 4 MiB.
pub const EXTENT_SHIFT: u8 = 22;
/// The smallest chunk is 4 KiB, the unit in which disks write.
pub const MIN_CHUNK_SHIFT: u8 = 12;
/// The largest chunk is 1 MiB: larger ones would copy far more than was changed.
pub const MAX_CHUNK_SHIFT: u8 = 20;
/// By default a chunk is 64 KiB: 2 MiB of bits for 1 TiB.
pub const DEFAULT_CHUNK_SHIFT: u8 = 16;

/// Largest data disk in bytes: extents are numbered with 32 bits.
const DATA_MAX: u64 = 1 << (EXTENT_SHIFT as u32 + 32);
/// Most chunks: 512 MiB of bits for each other site.
const CHUNKS_MAX: u64 = 1 << 32;
const UNIT: u64 = BLOCK as u64;

/// Sizes and places of one device's metadata. The fields may be read freely; [`Layout::check`] checks that they fit
/// together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of the data disk that are mirrored, a multiple of 4096.
    pub data_size: u64,
    /// A chunk, which has one bit, is 2 to the power of this bytes.
    pub chunk_shift: u8,
    /// Bitmaps, one for each other site.
    pub slots: u8,
    /// First block of the ordered log.
    pub log_start: u64,
    /// Blocks of the ordered log, 0 for none.
    pub log_blocks: u64,
    /// First block of the bitmaps.
    pub bitmap_start: u64,
}

/// The reason for which a layout is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutError {
    /// The data disk is smaller than one block, larger than 16 PiB, or no multiple of 4096.
    DataSize(u64),
    /// A chunk is not from 4 KiB to 1 MiB.
    Chunk(u8),
    /// There are more than 2^32 chunks: their bits would take too much memory.
    Chunks(u64),
    /// There are no slots, or more than 31.
    Slots(u8),
    /// An area lies in another, or behind what can be numbered.
    Areas,
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LayoutError::DataSize(size) => {
                write!(f, "{size} bytes of data: it must be a multiple of 4096, from 4096 bytes to 16 PiB")
            }
            LayoutError::Chunk(shift) => write!(f, "chunks of 2^{shift} bytes: it must be 4 KiB to 1 MiB"),
            LayoutError::Chunks(chunks) => {
                write!(f, "{chunks} chunks: it must be {CHUNKS_MAX} at most, so take larger ones")
            }
            LayoutError::Slots(slots) => write!(f, "{slots} slots: it must be 1 to {SLOTS}"),
            LayoutError::Areas => write!(f, "the metadata's areas overlap"),
        }
    }
}

impl std::error::Error for LayoutError {}

impl Layout {
    /// Returns the layout of a fresh device; the log's size is in blocks of 4 KiB.
    ///
    /// # Errors
    /// A size is out of range.
    pub fn new(data_size: u64, chunk_shift: u8, slots: u8, log_blocks: u64) -> Result<Self, LayoutError> {
        let bitmap_start = AREAS_START.checked_add(log_blocks).ok_or(LayoutError::Areas)?;
        let layout =
            Layout { data_size, chunk_shift, slots, log_start: AREAS_START, log_blocks, bitmap_start };
        layout.check().map(|()| layout)
    }

    /// # Errors
    /// The first contradiction found.
    pub fn check(&self) -> Result<(), LayoutError> {
        if !(UNIT..=DATA_MAX).contains(&self.data_size) || self.data_size % UNIT != 0 {
            return Err(LayoutError::DataSize(self.data_size));
        }
        if !(MIN_CHUNK_SHIFT..=MAX_CHUNK_SHIFT).contains(&self.chunk_shift) {
            return Err(LayoutError::Chunk(self.chunk_shift));
        }
        if self.chunks() > CHUNKS_MAX {
            return Err(LayoutError::Chunks(self.chunks()));
        }
        if self.slots == 0 || usize::from(self.slots) > SLOTS {
            return Err(LayoutError::Slots(self.slots));
        }
        let log_end = self.log_start.checked_add(self.log_blocks);
        // Places are counted in bytes as signed numbers by the system.
        let end = self.bitmap_start.checked_add(self.bitmap_area()).and_then(|end| end.checked_mul(UNIT));
        let fits = self.log_start >= AREAS_START && log_end.is_some_and(|end| end <= self.bitmap_start);
        match fits && end.is_some_and(|end| i64::try_from(end).is_ok()) {
            true => Ok(()),
            false => Err(LayoutError::Areas),
        }
    }

    /// Returns the bytes of a chunk.
    pub fn chunk(&self) -> u64 {
        1_u64.checked_shl(self.chunk_shift.into()).unwrap_or(u64::MAX)
    }

    /// Returns the number of chunks of the data disk, the last one perhaps cut: the bits of a bitmap.
    pub fn chunks(&self) -> u64 {
        self.data_size.div_ceil(self.chunk())
    }

    /// Returns the number of extents of the data disk, the last one perhaps cut.
    pub fn extents(&self) -> u64 {
        self.data_size.div_ceil(1 << EXTENT_SHIFT)
    }

    /// Returns the number of blocks of one slot's bitmap.
    pub fn bitmap_blocks(&self) -> u64 {
        self.chunks().div_ceil(BITS)
    }

    fn bitmap_area(&self) -> u64 {
        self.bitmap_blocks().saturating_mul(self.slots.into())
    }

    /// Returns the number of blocks of all the metadata.
    pub fn blocks(&self) -> u64 {
        self.bitmap_start.saturating_add(self.bitmap_area())
    }

    /// Returns the block that holds a piece of a slot's bitmap.
    pub fn bitmap_block(&self, slot: u8, piece: u64) -> u64 {
        let before = piece.saturating_mul(self.slots.into()).saturating_add(slot.into());
        self.bitmap_start.saturating_add(before)
    }

    /// Returns the blocks of one half of the ordered log: each holds one batch, and a block behind it stays unused, so that a
    /// write at a neighbour's place hits no other area.
    pub fn log_half(&self) -> u64 {
        (self.log_blocks / 2).saturating_sub(1)
    }

    /// Returns the first block of the half that the batch of this number goes into.
    pub fn log_half_start(&self, number: u64) -> u64 {
        self.log_start.saturating_add((number % 2).saturating_mul(self.log_half().saturating_add(1)))
    }

    /// Returns the block into which the record with this sequence number goes.
    pub fn activity_block(sequence: u64) -> u64 {
        ACTIVITY_START.saturating_add(sequence % ACTIVITY_BLOCKS)
    }
}
