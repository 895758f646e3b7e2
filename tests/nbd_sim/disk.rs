//! Simulated disks: a data disk with a cache that a power cut loses, and a metadata device that a cut leaves torn.
//!
//! A block of data is known by the number that its first eight bytes hold. Used by the world alone.

use std::cell::RefCell;
use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use crate::nbd::core::Found;
use crate::nbd::disk::Bitmap;
use crate::nbd::disk::format::{
    ACTIVITY_BLOCKS, ACTIVITY_START, ActivityRecord, Batch, BitmapBlock, Block, Layout, LogWrite, SLOTS,
    SUPERBLOCK_BLOCKS, Superblock,
};

pub const BLOCK: u64 = 4096;

/// The effect of a write on blocks from the first on: the number for each.
pub type Values = (u64, Vec<u64>);

#[derive(Clone)]
pub struct Data {
    pub now: Vec<u64>,
    stable: Vec<u64>,
    /// Values of blocks since they were stable, the oldest first.
    cached: BTreeMap<u64, Vec<u64>>,
}

impl Data {
    pub fn new(blocks: u64) -> Self {
        Data { now: vec![0; blocks as usize], stable: vec![0; blocks as usize], cached: BTreeMap::new() }
    }

    /// Content from before everything.
    pub fn put(&mut self, block: u64, value: u64) {
        (self.now[block as usize], self.stable[block as usize]) = (value, value);
    }

    pub fn write(&mut self, (first, values): &Values) {
        for (block, value) in (*first..).zip(values) {
            self.now[block as usize] = *value;
            self.cached.entry(block).or_default().push(*value);
        }
    }

    /// The state that a sync that begins now makes stable.
    pub fn snapshot(&self) -> Vec<(u64, usize)> {
        self.cached.iter().map(|(block, values)| (*block, values.len())).collect()
    }

    pub fn synced(&mut self, snapshot: &[(u64, usize)]) {
        for (block, n) in snapshot {
            let Some(values) = self.cached.get_mut(block) else { continue };
            let done: Vec<_> = values.drain(..(*n).min(values.len())).collect();
            if let Some(last) = done.last() {
                self.stable[*block as usize] = *last;
            }
            if values.is_empty() {
                self.cached.remove(block);
            }
        }
    }

    /// The power goes: each cached block keeps any of its states.
    pub fn cut(&mut self, random: &mut fastrand::Rng) {
        for (block, values) in std::mem::take(&mut self.cached) {
            let kept = random.usize(..=values.len());
            let value = if kept == 0 { self.stable[block as usize] } else { values[kept - 1] };
            self.stable[block as usize] = value;
            self.now[block as usize] = value;
        }
    }

    pub fn read(&self, start: u64, len: u64) -> Bytes {
        let first = (start / BLOCK) as usize;
        let values = &self.now[first..first + (len / BLOCK) as usize];
        payload(values)
    }
}

pub fn payload(values: &[u64]) -> Bytes {
    let mut bytes = BytesMut::zeroed(values.len() * BLOCK as usize);
    for (block, value) in bytes.chunks_exact_mut(BLOCK as usize).zip(values) {
        block[..8].copy_from_slice(&value.to_le_bytes());
    }
    bytes.freeze()
}

pub fn values(bytes: &[u8]) -> Vec<u64> {
    bytes
        .chunks_exact(BLOCK as usize)
        .map(|block| u64::from_le_bytes(block[..8].try_into().unwrap()))
        .collect()
}

#[derive(Clone)]
pub struct Meta {
    pub layout: Layout,
    pub tag: u32,
    blocks: BTreeMap<u64, Box<Block>>,
    /// The superblocks and records that a reader would believe: decoded once, as every write is checked against them.
    superblocks: BTreeMap<u64, Superblock>,
    records: BTreeMap<u64, ActivityRecord>,
    /// The whole batches of the ordered log, if they were looked at since it was written.
    found: RefCell<Option<Vec<Batch>>>,
}

impl Meta {
    pub fn new(layout: Layout, tag: u32, superblock: &Superblock) -> Self {
        let mut meta = Meta {
            layout,
            tag,
            blocks: BTreeMap::new(),
            superblocks: BTreeMap::new(),
            records: BTreeMap::new(),
            found: RefCell::default(),
        };
        for number in SUPERBLOCK_BLOCKS {
            meta.put(number, Box::new(superblock.encode(number, tag)));
        }
        meta
    }

    fn put(&mut self, number: u64, block: Box<Block>) {
        if SUPERBLOCK_BLOCKS.contains(&number) {
            self.superblocks.remove(&number);
            let found = Superblock::decode(&block, number, self.tag).ok();
            self.superblocks.extend(found.map(|found| (number, found)));
        } else if (ACTIVITY_START..ACTIVITY_START + ACTIVITY_BLOCKS).contains(&number) {
            self.records.remove(&number);
            let found = ActivityRecord::decode(&block, number, self.tag).ok();
            self.records.extend(found.map(|found| (number, found)));
        }
        if (self.layout.log_start..self.layout.bitmap_start).contains(&number) {
            self.found.take();
        }
        self.blocks.insert(number, block);
    }

    pub fn write(&mut self, blocks: &[(u64, Box<Block>)]) {
        blocks.iter().for_each(|(number, block)| self.put(*number, block.clone()));
    }

    /// A write that was under way when the power went: whole, torn, at its neighbour's place, or not at all.
    pub fn cut(&mut self, blocks: &[(u64, Box<Block>)], random: &mut fastrand::Rng) {
        for (number, block) in blocks {
            match random.u8(..4) {
                0 => {}
                1 => self.put(*number, block.clone()),
                2 => self.put(number + 1, block.clone()),
                _ => {
                    let mut old = self.blocks.get(number).cloned().unwrap_or_else(|| Box::new([0; 4096]));
                    for (old, new) in old.chunks_exact_mut(512).zip(block.chunks_exact(512)) {
                        if random.bool() {
                            old.copy_from_slice(new);
                        }
                    }
                    self.put(*number, old);
                }
            }
        }
    }

    /// The superblock that a reader would believe.
    pub fn superblock(&self) -> Option<&Superblock> {
        self.superblocks.values().max_by_key(|block| block.sequence)
    }

    /// The record that a reader would believe.
    pub fn activity(&self) -> Option<&ActivityRecord> {
        self.records.values().max_by_key(|record| record.sequence())
    }

    /// The whole batches of the ordered log.
    fn batches(&self) -> Vec<Batch> {
        self.found.borrow_mut().get_or_insert_with(|| self.find_batches()).clone()
    }

    fn find_batches(&self) -> Vec<Batch> {
        let zeroes = Box::new([0; 4096]);
        let read = |first: u64, n: u64| {
            let blocks = (first..first + n).map(|number| **self.blocks.get(&number).unwrap_or(&zeroes));
            Ok::<_, ()>(blocks.collect::<Vec<Block>>())
        };
        let halves = [0, 1].into_iter();
        halves.filter_map(|half| Batch::read(&self.layout, self.tag, half, read).unwrap()).collect()
    }

    /// Returns true if the ordered log has a write of just this range that a start would carry out.
    pub fn is_logged(&self, offset: u64, len: u64) -> bool {
        let void = self.superblock().map_or(0, |block| block.log_void);
        let batches = self.batches();
        let mut writes = batches.iter().filter(|batch| batch.number > void).flat_map(|batch| &batch.writes);
        writes.any(|write| write.range() == (offset, len))
    }

    /// The ordered log, for people.
    pub fn describe_log(&self) -> String {
        let void = self.superblock().map_or(0, |block| block.log_void);
        let describe = |batch: Batch| {
            let ranges: Vec<_> = batch.writes.iter().map(|write| write.range().0 / BLOCK).collect();
            format!("batch {} of blocks {ranges:?}", batch.number)
        };
        let batches: Vec<_> = self.batches().into_iter().map(describe).collect();
        format!("the log is void up to {void}, and has {batches:?}")
    }

    /// The content of the mirrored part of the data disk once a start has carried out the batches that count.
    pub fn replayed(&self, data: &Data) -> Vec<u64> {
        let mut content = data.now.clone();
        let void = self.superblock().map_or(0, |block| block.log_void);
        let mut size = self.superblock().map_or(0, |block| block.agreed_size);
        let mut batches = self.batches();
        batches.sort_by_key(|batch| batch.number);
        for write in batches.into_iter().filter(|batch| batch.number > void).flat_map(|batch| batch.writes) {
            let (offset, len) = write.range();
            let new = match write {
                LogWrite::Data(_, data) => values(&data),
                LogWrite::Zero(..) => vec![0; (len / BLOCK) as usize],
                LogWrite::Size(larger) => {
                    size = size.max(larger);
                    continue;
                }
            };
            let first = (offset / BLOCK) as usize;
            content[first..first + new.len()].copy_from_slice(&new);
        }
        if size == 0 {
            size = self.layout.data_size;
        }
        content.truncate((size / BLOCK) as usize);
        content
    }

    /// The state that a start finds. A careless reader takes whatever superblock and record of the log come first, stale or
    /// not, and a block of bitmaps that cannot be read for one without bits.
    pub fn load(&self, careless: bool) -> Option<Found> {
        let (superblock, record) = match careless {
            true => (self.superblocks.values().next_back()?, self.records.values().next()),
            false => (self.superblock()?, self.activity()),
        };
        let record = record.cloned().unwrap_or_default();
        let mut bitmaps = vec![Bitmap::new(self.layout.chunks()); SLOTS];
        for (slot, map) in bitmaps.iter_mut().enumerate().take(usize::from(self.layout.slots)) {
            for piece in 0..map.pieces() {
                let number = self.layout.bitmap_block(slot as u8, piece);
                let Some(block) = self.blocks.get(&number) else { continue };
                match BitmapBlock::decode(block, number, self.tag) {
                    Ok(block) => map.load(piece, &block),
                    Err(_) if careless => {}
                    Err(_) => map.fill_piece(piece),
                }
            }
        }
        Some(Found {
            superblock: superblock.clone(),
            active: record.extents().to_vec(),
            record: record.sequence(),
            bitmaps,
            batches: self.batches(),
        })
    }
}
