//! A batch of the ordered log: writes of another site's stream, in their order, that are carried out as one.
//!
//! ```text
//! head: bytes u64 | writes u32 | 4 unused | BLAKE3 of what follows 32        further blocks: for each write, offset u64 |
//! len u32 | kind u32 (0 data, 1 zeroes, 2 trim, 3 none: the mirror has `offset` bytes), and its data
//! ```
//! Batches go into the two halves of the log in turn. Must never give a part of a batch: torn, it is none. Called by the core,
//! which writes them, and by the store.

use bytes::Bytes;

use super::block::{BLOCK, Block, BlockError, Kind, Reader, Writer};
use super::layout::Layout;

/// Bytes before the data of a write.
const WRITE_HEAD: usize = 16;
const UNIT: u64 = BLOCK as u64;

/// A write in a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogWrite {
    /// Data, from this byte on.
    Data(u64, Bytes),
    /// Zeroes from this byte on, this many; true: a hole will do.
    Zero(u64, u32, bool),
    /// The mirror has this many bytes from here on.
    Size(u64),
}

impl LogWrite {
    /// Returns the bytes that it takes in a batch.
    pub fn size(&self) -> u64 {
        match self {
            LogWrite::Data(_, data) => (data.len() as u64).saturating_add(WRITE_HEAD as u64),
            LogWrite::Zero(..) | LogWrite::Size(_) => WRITE_HEAD as u64,
        }
    }

    /// Returns the first byte and the number of bytes.
    pub fn range(&self) -> (u64, u64) {
        match self {
            LogWrite::Data(offset, data) => (*offset, data.len() as u64),
            LogWrite::Zero(offset, len, _) => (*offset, u64::from(*len)),
            LogWrite::Size(size) => (*size, 0),
        }
    }
}

/// A batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Its number, from 1.
    pub number: u64,
    /// Its writes, in their order.
    pub writes: Vec<LogWrite>,
}

/// The fields of a batch's head.
struct Head {
    bytes: u64,
    writes: u32,
    digest: [u8; 32],
}

/// The blocks of a batch, as its writes are put into them: a batch may be large, and is not to be in memory twice.
struct Body {
    hash: blake3::Hasher,
    bytes: u64,
    /// The head's block, and those that are filled.
    blocks: Vec<(u64, Box<Block>)>,
}

impl Body {
    fn add(&mut self, mut data: &[u8]) {
        self.hash.update(data);
        while !data.is_empty() {
            let at = (self.bytes % UNIT) as usize;
            if at == 0 {
                let number = self.blocks.last().map_or(0, |(number, _)| number.saturating_add(1));
                self.blocks.push((number, Box::new([0; BLOCK])));
            }
            let (piece, rest) = data.split_at(data.len().min(BLOCK.saturating_sub(at)));
            let last = self.blocks.last_mut().and_then(|(_, block)| block.get_mut(at..));
            if let Some(to) = last.and_then(|to| to.get_mut(..piece.len())) {
                to.copy_from_slice(piece);
            }
            self.bytes = self.bytes.saturating_add(piece.len() as u64);
            data = rest;
        }
    }
}

impl Batch {
    /// Returns the most bytes that the writes of one batch may take, by [`LogWrite::size`].
    pub fn room(layout: &Layout) -> u64 {
        layout.log_half().saturating_sub(1).saturating_mul(UNIT)
    }

    /// Returns the blocks with their numbers. The writes must have room.
    pub fn encode(&self, layout: &Layout, tag: u32) -> Vec<(u64, Box<Block>)> {
        let start = layout.log_half_start(self.number);
        let mut body =
            Body { hash: blake3::Hasher::new(), bytes: 0, blocks: vec![(start, Box::new([0; BLOCK]))] };
        for write in &self.writes {
            let (offset, len) = write.range();
            let kind: u32 = match write {
                LogWrite::Data(..) => 0,
                LogWrite::Zero(_, _, trim) => 1_u32.saturating_add((*trim).into()),
                LogWrite::Size(_) => 3,
            };
            body.add(&offset.to_le_bytes());
            // A packet has at most 4 GiB.
            body.add(&(len as u32).to_le_bytes());
            body.add(&kind.to_le_bytes());
            if let LogWrite::Data(_, data) = write {
                body.add(data);
            }
        }
        let mut head = Writer::new(Kind::Log, start, self.number, tag);
        head.u64(body.bytes);
        head.u32(self.writes.len() as u32);
        head.skip(4);
        head.bytes(body.hash.finalize().as_bytes());
        if let Some((_, first)) = body.blocks.first_mut() {
            **first = head.seal();
        }
        body.blocks
    }

    /// Reads the batch of one half of the log, 0 or 1, given a way to read blocks: first block and number. `None`: there is no
    /// whole one.
    ///
    /// # Errors
    /// A block cannot be read.
    pub fn read<E>(
        layout: &Layout,
        tag: u32,
        half: u64,
        mut blocks: impl FnMut(u64, u64) -> Result<Vec<Block>, E>,
    ) -> Result<Option<Batch>, E> {
        if layout.log_half() < 2 {
            return Ok(None);
        }
        let start = layout.log_half_start(half);
        let Some((number, head)) =
            blocks(start, 1)?.first().and_then(|block| Self::head(block, start, tag).ok())
        else {
            return Ok(None);
        };
        if head.bytes > Self::room(layout) || number % 2 != half % 2 {
            return Ok(None);
        }
        let mut body = blocks(start.saturating_add(1), head.bytes.div_ceil(UNIT))?.concat();
        body.truncate(usize::try_from(head.bytes).unwrap_or(usize::MAX));
        let whole = Some(body)
            .filter(|body| body.len() as u64 == head.bytes && *blake3::hash(body).as_bytes() == head.digest);
        Ok(whole
            .and_then(|body| Self::writes(Bytes::from(body), head.writes, layout.data_size))
            .map(|writes| Batch { number, writes }))
    }

    fn head(block: &Block, start: u64, tag: u32) -> Result<(u64, Head), BlockError> {
        let mut from = Reader::open(block, Kind::Log, start, Some(tag))?;
        let (bytes, writes) = (from.u64(), from.u32());
        from.bytes(4);
        Ok((from.sequence, Head { bytes, writes, digest: from.array() }))
    }

    fn writes(mut body: Bytes, count: u32, size: u64) -> Option<Vec<LogWrite>> {
        let mut writes = Vec::new();
        for _ in 0..count {
            if body.len() < WRITE_HEAD {
                return None;
            }
            let head = body.split_to(WRITE_HEAD);
            let offset = u64::from_le_bytes(head.first_chunk().copied()?);
            let len = u32::from_le_bytes(head.get(8..12)?.try_into().ok()?);
            let kind = u32::from_le_bytes(head.last_chunk().copied()?);
            if (len == 0) != (kind == 3) || offset.checked_add(len.into()).is_none_or(|end| end > size) {
                return None;
            }
            writes.push(match kind {
                0 if body.len() as u64 >= u64::from(len) => {
                    LogWrite::Data(offset, body.split_to(len as usize))
                }
                1 | 2 => LogWrite::Zero(offset, len, kind == 2),
                3 => LogWrite::Size(offset),
                _ => return None,
            });
        }
        Some(writes)
    }
}
