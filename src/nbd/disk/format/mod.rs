//! The blocks of `bwr_disk`: from structs to bytes and back.
//!
//! Pure functions: no files, clocks or threads. Nothing is believed without magic, kind, version, block number,
//! device tag and checksum. All integers are little-endian. Called by the store, and by the core, which decides which
//! block is to be written.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod batch;
mod block;
mod checkpoint;
mod generation;
mod label;
mod layout;
mod records;
mod superblock;

#[cfg(test)]
mod tests;

pub use batch::{Batch, LogWrite};
pub use block::{BLOCK, Block, BlockError, HEAD, Kind, VERSION, tag_of};
pub use checkpoint::{CHECKPOINT_MAX, Checkpoint};
pub use generation::Generation;
pub use label::{Label, NAME_MAX};
pub use layout::{
    ACTIVITY_BLOCKS, ACTIVITY_START, AREAS_START, DEFAULT_CHUNK_SHIFT, EXTENT_SHIFT, LABEL_BLOCKS, Layout,
    LayoutError, MAX_CHUNK_SHIFT, MIN_CHUNK_SHIFT, SUPERBLOCK_BLOCKS,
};
pub use records::{ACTIVE_MAX, ActivityRecord, BITMAP_BYTES, BITS, BitmapBlock, TooManyExtents};
pub use superblock::{DiskFlags, HISTORY, SLOTS, Slot, SlotFlags, Superblock};
