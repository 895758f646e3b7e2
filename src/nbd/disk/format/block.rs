//! One block of 4 KiB and the 32 bytes it opens with; readers and writers of the fields behind them.
//!
//! ```text
//! magic 4 | kind u16 | version u16 | own number u64 | sequence u64 | device tag u32 | CRC-32C u32 | fields
//! ```
//! The checksum covers the whole block, its own four bytes as zeroes. Must believe no block whose checks fail. Called by
//! the other files of this folder only.

use std::fmt;

/// Length of a metadata block in bytes: the unit that disks of today write as one.
pub const BLOCK: usize = 4096;

/// Length of the head in bytes.
pub const HEAD: usize = 32;

/// Version of the format that is written, and the only one that is read.
pub const VERSION: u16 = 1;

const MAGIC: [u8; 4] = *b"HADM";
const CRC_AT: usize = 28;

/// The bytes of a metadata block.
pub type Block = [u8; BLOCK];

/// Kind of a metadata block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The owner of the metadata, and the places of its areas.
    Label = 1,
    /// The state of the disk and of its mirrors.
    Superblock = 2,
    /// The complete list of active extents.
    Activity = 3,
    /// Bits of chunks that differ, or may differ, from a site's.
    Bitmap = 4,
    /// The head of a batch of writes in the ordered log.
    Log = 5,
}

/// The reason for which a block is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockError {
    /// It does not open with the magic of this format.
    NoMetadata,
    /// It is of another kind.
    Kind(u16),
    /// It was written in another version of the format.
    Version(u16),
    /// It belongs at another place.
    Number(u64),
    /// It belongs to another device, or to an earlier life of this one.
    Tag(u32),
    /// Its checksum does not fit: torn, or damaged.
    Checksum,
    /// The named field holds a value that this version never writes.
    Field(&'static str),
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BlockError::NoMetadata => write!(f, "no metadata of hadm-nbd"),
            BlockError::Kind(kind) => write!(f, "a block of another kind ({kind})"),
            BlockError::Version(version) => {
                write!(f, "version {version} of the format; this program reads {VERSION}")
            }
            BlockError::Number(number) => write!(f, "block {number}, written to the wrong place"),
            BlockError::Tag(tag) => write!(f, "a block of another device (tag {tag:08x})"),
            BlockError::Checksum => write!(f, "the checksum does not fit: torn or damaged"),
            BlockError::Field(name) => write!(f, "{name} is out of range"),
        }
    }
}

impl std::error::Error for BlockError {}

/// Returns the short name of a device that each of its blocks carries, made from its UUID.
pub fn tag_of(uuid: &[u8; 16]) -> u32 {
    crc32c::crc32c(uuid)
}

/// Writes fields one after the other. Fields that do not fit are left out: a test of each kind checks that all fit.
pub(super) struct Writer {
    block: Block,
    at: usize,
}

impl Writer {
    pub(super) fn new(kind: Kind, number: u64, sequence: u64, tag: u32) -> Self {
        let mut writer = Writer { block: [0; BLOCK], at: 0 };
        writer.bytes(&MAGIC);
        writer.bytes(&(kind as u16).to_le_bytes());
        writer.bytes(&VERSION.to_le_bytes());
        writer.u64(number);
        writer.u64(sequence);
        writer.u32(tag);
        writer.skip(4);
        writer
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        let end = self.at.saturating_add(bytes.len());
        if let Some(to) = self.block.get_mut(self.at..end) {
            to.copy_from_slice(bytes);
        }
        self.at = end;
    }

    pub(super) fn skip(&mut self, len: usize) {
        self.at = self.at.saturating_add(len);
    }

    pub(super) fn u8(&mut self, n: u8) {
        self.bytes(&[n]);
    }

    pub(super) fn u16(&mut self, n: u16) {
        self.bytes(&n.to_le_bytes());
    }

    pub(super) fn u32(&mut self, n: u32) {
        self.bytes(&n.to_le_bytes());
    }

    pub(super) fn u64(&mut self, n: u64) {
        self.bytes(&n.to_le_bytes());
    }

    pub(super) fn seal(mut self) -> Block {
        let crc = crc32c::crc32c(&self.block);
        self.at = CRC_AT;
        self.u32(crc);
        self.block
    }
}

/// Reads fields one after the other. Behind the end there are zeroes.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    /// Number of the write, from the head, counted for each kind of block.
    pub(super) sequence: u64,
    /// The device's tag, from the head.
    pub(super) tag: u32,
}

impl<'a> Reader<'a> {
    /// Checks the head and the checksum; the tag only if one is given.
    pub(super) fn open(
        block: &'a Block,
        kind: Kind,
        number: u64,
        tag: Option<u32>,
    ) -> Result<Self, BlockError> {
        let mut reader = Reader { rest: block, sequence: 0, tag: 0 };
        if reader.array() != MAGIC {
            return Err(BlockError::NoMetadata);
        }
        let (found, version) = (reader.u16(), reader.u16());
        let own = reader.u64();
        reader.sequence = reader.u64();
        reader.tag = reader.u32();
        let expected = reader.u32();
        // The checksum goes first: the other fields of a torn block mean nothing.
        let crc = crc32c::crc32c(block.get(..CRC_AT).unwrap_or_default());
        let crc = crc32c::crc32c_append(crc, &[0; 4]);
        if crc32c::crc32c_append(crc, reader.rest) != expected {
            return Err(BlockError::Checksum);
        }
        if version != VERSION {
            return Err(BlockError::Version(version));
        }
        if found != kind as u16 {
            return Err(BlockError::Kind(found));
        }
        if tag.is_some_and(|tag| tag != reader.tag) {
            return Err(BlockError::Tag(reader.tag));
        }
        if own != number {
            return Err(BlockError::Number(own));
        }
        Ok(reader)
    }

    pub(super) fn array<const N: usize>(&mut self) -> [u8; N] {
        match self.rest.split_first_chunk() {
            Some((bytes, rest)) => {
                self.rest = rest;
                *bytes
            }
            None => [0; N],
        }
    }

    pub(super) fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.rest.split_at_checked(len).unwrap_or((self.rest, &[]));
        self.rest = rest;
        bytes
    }

    pub(super) fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
}
