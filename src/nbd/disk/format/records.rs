//! The record of the activity log, and a piece of a bitmap.
//!
//! An activity record is the complete set of active extents: the highest valid one of the ring counts, and a torn one
//! loses nothing that was relied on. A piece of a bitmap that fails its check must count as all ones, which its reader
//! sees to. Called by the store and by the core.

use std::fmt;

use super::block::{BLOCK, Block, BlockError, HEAD, Kind, Reader, Writer};

/// Most extents that can be active at once: 4 GB of data that is being written, in one record.
pub const ACTIVE_MAX: usize = 1000;

/// Bytes of bits in a block.
pub const BITMAP_BYTES: usize = BLOCK - HEAD;

/// Bits in a block.
pub const BITS: u64 = BITMAP_BYTES as u64 * 8;

/// The error of a list with more extents than a record takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyExtents(
    /// The number of extents in the list.
    pub usize,
);

impl fmt::Display for TooManyExtents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} active extents: a record takes {ACTIVE_MAX}", self.0)
    }
}

impl std::error::Error for TooManyExtents {}

/// The complete set of active extents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ActivityRecord {
    sequence: u64,
    extents: Vec<u32>,
}

impl ActivityRecord {
    /// Returns a record with its sequence number, from 1.
    ///
    /// # Errors
    /// There are more extents than [`ACTIVE_MAX`].
    pub fn new(sequence: u64, extents: Vec<u32>) -> Result<Self, TooManyExtents> {
        match extents.len() <= ACTIVE_MAX {
            true => Ok(ActivityRecord { sequence, extents }),
            false => Err(TooManyExtents(extents.len())),
        }
    }

    /// Returns the record's sequence number.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Returns the active extents, in no particular order.
    pub fn extents(&self) -> &[u32] {
        &self.extents
    }

    /// Returns the bytes of the record in this block.
    pub fn encode(&self, number: u64, tag: u32) -> Block {
        let mut to = Writer::new(Kind::Activity, number, self.sequence, tag);
        // At most ACTIVE_MAX.
        to.u32(self.extents.len() as u32);
        self.extents.iter().for_each(|extent| to.u32(*extent));
        to.seal()
    }

    /// Reads the record in this block.
    ///
    /// # Errors
    /// The reason for which the block is not valid.
    pub fn decode(block: &Block, number: u64, tag: u32) -> Result<Self, BlockError> {
        let mut from = Reader::open(block, Kind::Activity, number, Some(tag))?;
        let count = from.u32() as usize;
        if count > ACTIVE_MAX {
            return Err(BlockError::Field("the number of active extents"));
        }
        let extents = (0..count).map(|_| from.u32()).collect();
        Ok(ActivityRecord { sequence: from.sequence, extents })
    }
}

/// A piece of a bitmap: bit i of byte n stands for chunk n * 8 + i, counted from the piece's first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapBlock {
    /// Number of the write of this piece, or of its bitmap; nothing depends on it.
    pub sequence: u64,
    /// The bits.
    pub bits: [u8; BITMAP_BYTES],
}

impl BitmapBlock {
    /// Returns the bytes of the piece in this block.
    pub fn encode(&self, number: u64, tag: u32) -> Block {
        Self::encode_bits(self.sequence, &self.bits, number, tag)
    }

    /// Returns the bytes of a piece with these bits, without a copy of its own.
    pub fn encode_bits(sequence: u64, bits: &[u8; BITMAP_BYTES], number: u64, tag: u32) -> Block {
        let mut to = Writer::new(Kind::Bitmap, number, sequence, tag);
        to.bytes(bits);
        to.seal()
    }

    /// Reads the piece in this block.
    ///
    /// # Errors
    /// The reason for which the block is not valid.
    pub fn decode(block: &Block, number: u64, tag: u32) -> Result<Self, BlockError> {
        let mut from = Reader::open(block, Kind::Bitmap, number, Some(tag))?;
        Ok(BitmapBlock { sequence: from.sequence, bits: from.array() })
    }
}
