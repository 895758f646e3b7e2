//! The metadata of one disk, read from `bwr_disk` and written to it, block by block.
//!
//! Must not decide: the core says which block is written, and when a sync has to follow. A block that fails its checks
//! is not used: of superblocks and records the newest valid one counts, of a bitmap's damaged piece all bits count as
//! set. Called by the runner, by `init`, `check` and `dump`.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::bitmap::Bitmap;
use super::device::{Access, Device, Part};
use super::format::{
    ACTIVITY_BLOCKS, ACTIVITY_START, ActivityRecord, BITMAP_BYTES, BLOCK, Batch, BitmapBlock, Block,
    BlockError, LABEL_BLOCKS, Label, Layout, SUPERBLOCK_BLOCKS, Superblock,
};
use crate::wire::{ResourceId, SiteId};

/// Number of blocks in one read: 1 MiB.
const AT_ONCE: u64 = 256;

/// An open metadata disk with a valid label.
#[derive(Debug)]
pub struct Store {
    device: Device,
    /// As it was found.
    label: Label,
    tag: u32,
    damaged: Vec<Damage>,
    /// The number of blocks, which grows with the data disk.
    blocks: AtomicU64,
}

/// A block that is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Number of the block.
    pub number: u64,
    /// The fault found.
    pub error: BlockError,
}

/// The content of the metadata.
#[derive(Debug)]
pub struct Loaded {
    /// The newest valid superblock. `None`: nothing is known of this disk but that it may differ everywhere, so it
    /// may only become the target of a full resync.
    pub superblock: Option<Superblock>,
    /// Number of the copy it comes from, 0 or 1: the other one is to be written before the next change.
    pub copy: usize,
    /// The newest valid record of active extents. `None`: every extent counts as active.
    pub activity: Option<ActivityRecord>,
    /// The bitmaps, one for each slot.
    pub bitmaps: Vec<Bitmap>,
    /// The whole batches of the ordered log.
    pub batches: Vec<Batch>,
    /// Every block that is not valid.
    pub damaged: Vec<Damage>,
}

impl Store {
    /// Opens the metadata.
    ///
    /// # Errors
    /// The disk cannot be opened, or holds no metadata: a sentence that names the disk, and the remedy.
    pub fn open(path: &Path, access: Access) -> Result<Store, String> {
        Self::new(Device::open(path, Part::Metadata, access)?)
    }

    /// Reads the label of an open device.
    ///
    /// # Errors
    /// It holds no metadata: a sentence that names the disk, and the remedy.
    pub fn new(device: Device) -> Result<Store, String> {
        let place = device.path.display().to_string();
        let fail = |error: io::Error| format!("bwr_disk {place} cannot be read: {error}");
        let mut damaged = Vec::new();
        let mut labels = Vec::new();
        for number in LABEL_BLOCKS {
            match Label::decode(&read_block(&device, number).map_err(fail)?, number) {
                Ok(label) => labels.push(label),
                Err(error) => damaged.push(Damage { number, error }),
            }
        }
        if let [first, second] = labels.as_slice() {
            if first.uuid != second.uuid {
                return Err(format!(
                    "bwr_disk {place} has the labels of two devices: something else wrote to it; `hadm-nbd init --force` \
                     makes it anew, and everything is copied from another site then"
                ));
            }
        }
        let Some(label) = labels.into_iter().max_by_key(|label| label.sequence) else {
            let why = damaged.first().map(|damage| damage.error.to_string()).unwrap_or_default();
            let newer = damaged.iter().any(|damage| matches!(damage.error, BlockError::Version(_)));
            let remedy = if newer { "use the hadm-nbd that made it" } else { "make it with `hadm-nbd init`" };
            return Err(format!("bwr_disk {place} holds no metadata ({why}); {remedy}"));
        };
        let wanted = label.layout.blocks().saturating_mul(BLOCK as u64);
        if device.size < wanted {
            return Err(format!(
                "bwr_disk {place} has {} bytes, and its label speaks of {wanted}: it was cut; restore it, or make it \
                 anew with `hadm-nbd init --force`",
                device.size
            ));
        }
        let tag = label.tag();
        let blocks = AtomicU64::new(label.layout.blocks());
        Ok(Store { device, label, tag, damaged, blocks })
    }

    /// Returns the label as it was found.
    pub fn label(&self) -> &Label {
        &self.label
    }

    /// Returns the sizes and places.
    pub fn layout(&self) -> &Layout {
        &self.label.layout
    }

    /// Returns the tag that every block carries.
    pub fn tag(&self) -> u32 {
        self.tag
    }

    /// Returns the device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Compares the label with the configuration.
    ///
    /// # Errors
    /// It is another resource's, or another site's: a sentence with the remedy.
    pub fn check_owner(&self, resource: ResourceId, site: SiteId) -> Result<(), String> {
        let label = &self.label;
        if (label.resource, label.site) == (resource, site) {
            return Ok(());
        }
        Err(format!(
            "bwr_disk {} belongs to {} ({:?}) at {}, not to {resource} at {site}: is it a copy of another site's disk? \
             Correct the configuration, or make it anew with `hadm-nbd init --force`",
            self.device.path.display(),
            label.resource,
            label.name,
            label.site
        ))
    }

    /// Reads all metadata. Blocks while the disk works.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn load(&self) -> io::Result<Loaded> {
        let mut damaged = self.damaged.clone();
        let mut newest: Option<(Superblock, usize)> = None;
        for (copy, number) in SUPERBLOCK_BLOCKS.into_iter().enumerate() {
            match Superblock::decode(&self.read(number)?, number, self.tag) {
                Ok(found) if newest.as_ref().is_some_and(|(best, _)| best.sequence >= found.sequence) => {}
                Ok(found) => newest = Some((found, copy)),
                Err(error) => damaged.push(Damage { number, error }),
            }
        }
        let (superblock, copy) = newest.map_or((None, 0), |(superblock, copy)| (Some(superblock), copy));
        let activity = self.load_activity(&mut damaged)?;
        let bitmaps = self.load_bitmaps(&mut damaged)?;
        let batches = self.load_batches()?;
        Ok(Loaded { superblock, copy, activity, bitmaps, batches, damaged })
    }

    /// Returns the newest record. One at a wrong place of the ring is complete all the same, and counts.
    fn load_activity(&self, damaged: &mut Vec<Damage>) -> io::Result<Option<ActivityRecord>> {
        let mut newest: Option<ActivityRecord> = None;
        for number in ACTIVITY_START..ACTIVITY_START.saturating_add(ACTIVITY_BLOCKS) {
            let block = self.read(number)?;
            if block == [0; BLOCK] {
                // The block was never written.
                continue;
            }
            let record = match ActivityRecord::decode(&block, number, self.tag) {
                Err(error @ BlockError::Number(own)) => {
                    damaged.push(Damage { number, error });
                    ActivityRecord::decode(&block, own, self.tag)
                }
                Err(error) => {
                    damaged.push(Damage { number, error });
                    continue;
                }
                record => record,
            };
            if let Ok(record) = record {
                if newest.as_ref().is_none_or(|best| best.sequence() < record.sequence()) {
                    newest = Some(record);
                }
            }
        }
        Ok(newest)
    }

    fn load_bitmaps(&self, damaged: &mut Vec<Damage>) -> io::Result<Vec<Bitmap>> {
        let layout = &self.label.layout;
        let slots = layout.slots;
        let mut bitmaps: Vec<_> = (0..slots).map(|_| Bitmap::new(layout.chunks())).collect();
        let mut fill = Vec::new();
        // The bitmap's own place of a block: slot and piece.
        let place = |number: u64| {
            let at = number.checked_sub(layout.bitmap_start)?;
            let (piece, slot) = (at.checked_div(slots.into())?, at.checked_rem(slots.into())?);
            (piece < layout.bitmap_blocks()).then_some((usize::try_from(slot).ok()?, piece))
        };
        let mut number = layout.bitmap_start;
        while number < layout.blocks() {
            let n = layout.blocks().saturating_sub(number).min(AT_ONCE);
            for block in self.read_many(number, n)? {
                let decoded = BitmapBlock::decode(&block, number, self.tag);
                if let Some((slot, piece)) = place(number) {
                    match (decoded, bitmaps.get_mut(slot)) {
                        (Ok(bits), Some(bitmap)) => bitmap.load(piece, &bits),
                        (Err(error), _) => {
                            damaged.push(Damage { number, error });
                            fill.push((slot, piece));
                            // The block was lost from its own place, which may hold something older now.
                            if let BlockError::Number(own) = error {
                                fill.extend(place(own));
                            }
                        }
                        _ => {}
                    }
                }
                number = number.saturating_add(1);
            }
        }
        for (slot, piece) in fill {
            if let Some(bitmap) = bitmaps.get_mut(slot) {
                bitmap.fill_piece(piece);
            }
        }
        Ok(bitmaps)
    }

    fn load_batches(&self) -> io::Result<Vec<Batch>> {
        let read =
            |half| Batch::read(&self.label.layout, self.tag, half, |number, n| self.read_many(number, n));
        Ok([0, 1].into_iter().map(read).collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    fn read_many(&self, number: u64, n: u64) -> io::Result<Vec<Block>> {
        let count = usize::try_from(n).unwrap_or_default();
        let mut bytes = vec![0; count.saturating_mul(BLOCK)];
        self.device.file.read_exact_at(&mut bytes, number.saturating_mul(BLOCK as u64))?;
        Ok(bytes.chunks_exact(BLOCK).filter_map(|block| block.try_into().ok()).collect())
    }

    /// Reads one block.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn read(&self, number: u64) -> io::Result<Block> {
        read_block(&self.device, number)
    }

    /// Writes one block. It is on stable storage only after [`Store::sync`].
    ///
    /// # Errors
    /// The block lies behind the metadata, or the disk cannot be written.
    pub fn write(&self, number: u64, block: &Block) -> io::Result<()> {
        if number >= self.blocks.load(Ordering::Acquire) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("no block {number} in the metadata"),
            ));
        }
        self.device.file.write_all_at(block, number.saturating_mul(BLOCK as u64))
    }

    /// Writes blocks, neighbours in the order given at once. They are on stable storage only after [`Store::sync`].
    ///
    /// # Errors
    /// A block lies behind the metadata, or the disk cannot be written.
    pub fn write_all(&self, blocks: &[(u64, Box<Block>)]) -> io::Result<()> {
        for run in blocks.chunk_by(|(a, _), (b, _)| a.checked_add(1) == Some(*b)) {
            match run {
                [(number, block)] => self.write(*number, block)?,
                [(first, _), .., (last, _)] if *last < self.blocks.load(Ordering::Acquire) => {
                    // Whole blocks: byte by byte it would take longer than the disk.
                    let bytes = run.iter().map(|(_, block)| &block[..]).collect::<Vec<_>>().concat();
                    self.device.file.write_all_at(&bytes, first.saturating_mul(BLOCK as u64))?;
                }
                _ => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidInput,
                        "no such blocks in the metadata",
                    ));
                }
            }
        }
        Ok(())
    }

    /// Extends the metadata for a larger data disk, with bitmaps that have no bits there, and returns the label then. The
    /// label goes last: after a crash the metadata is that of the old size or of the new. Other blocks may be written
    /// meanwhile.
    ///
    /// # Errors
    /// The size is out of range, the metadata disk is too small or failed: a sentence with the remedy.
    pub fn extend(&self, label: &Label, data_size: u64) -> Result<Label, String> {
        let place = self.device.path.display();
        let fail = |error: io::Error| format!("bwr_disk {place} cannot be written: {error}");
        let old = label.layout;
        let layout = Layout { data_size, ..old };
        layout.check().map_err(|error| error.to_string())?;
        if data_size < old.data_size {
            return Err(format!(
                "{data_size} bytes are less than the {} that there are: a disk only grows",
                old.data_size
            ));
        }
        self.device.reserve(layout.blocks().saturating_mul(BLOCK as u64))?;
        let disk_size = label.disk_size.max(data_size);
        let label = Label { sequence: label.sequence.saturating_add(1), disk_size, layout, ..label.clone() };
        let mut number = old.blocks();
        while number < layout.blocks() {
            let end = layout.blocks().min(number.saturating_add(AT_ONCE));
            let empty =
                |number| BitmapBlock::encode_bits(label.sequence, &[0; BITMAP_BYTES], number, self.tag);
            let bytes = (number..end).map(empty).collect::<Vec<_>>().concat();
            self.device.file.write_all_at(&bytes, number.saturating_mul(BLOCK as u64)).map_err(fail)?;
            number = end;
        }
        self.sync().map_err(fail)?;
        for number in LABEL_BLOCKS {
            self.write(number, &label.encode(number)).map_err(fail)?;
            self.sync().map_err(fail)?;
        }
        self.blocks.store(layout.blocks(), Ordering::Release);
        Ok(label)
    }

    /// Waits until all writes are on stable storage. After an error the stable content is unknown: the metadata has
    /// failed, and must not be synced again as if it had not.
    ///
    /// # Errors
    /// The disk reports a failure.
    pub fn sync(&self) -> io::Result<()> {
        self.device.file.sync_data()
    }
}

fn read_block(device: &Device, number: u64) -> io::Result<Block> {
    let mut block = [0; BLOCK];
    let at = number.saturating_mul(BLOCK as u64);
    // Nothing is behind the end of a short file.
    if at.saturating_add(BLOCK as u64) <= device.size {
        device.file.read_exact_at(&mut block, at)?;
    }
    Ok(block)
}
