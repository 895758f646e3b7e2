//! The label: the owner of the metadata, and the places of its areas; two copies, written by `init` and by growing.
//!
//! Opens with a line of plain text, so that a person who looks at the bytes knows their purpose. Must not decide if it
//! is the right device: its readers compare. Called by the store and by `init`.

use super::block::{Block, BlockError, Kind, Reader, Writer, tag_of};
use super::layout::{EXTENT_SHIFT, Layout, LayoutError};
use crate::wire::{ResourceId, SiteId};

/// Longest name of a resource in the label, in bytes; a longer one is cut.
pub const NAME_MAX: usize = 1024;

/// Bytes for the line of plain text.
const TEXT: usize = 256;

/// The content of the label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Counts the label's changes, from 1.
    pub sequence: u64,
    /// Random number of this device alone.
    pub uuid: [u8; 16],
    /// The resource.
    pub resource: ResourceId,
    /// The resource's name, at most [`NAME_MAX`] bytes.
    pub name: String,
    /// The site that this disk is at.
    pub site: SiteId,
    /// Bytes of the data disk as it was found, of which `layout.data_size` are mirrored.
    pub disk_size: u64,
    /// Seconds since 1970 at which the label was made; 0 if the clock was not set.
    pub created: u64,
    /// Sizes and places.
    pub layout: Layout,
}

impl Label {
    /// Returns the tag that all blocks of this device carry.
    pub fn tag(&self) -> u32 {
        tag_of(&self.uuid)
    }

    /// Returns the name, cut to the length that the label takes.
    pub fn cut_name(name: &str) -> &str {
        let mut end = name.len().min(NAME_MAX);
        while !name.is_char_boundary(end) {
            end = end.saturating_sub(1);
        }
        name.get(..end).unwrap_or_default()
    }

    /// Returns the bytes of the copy in this block.
    pub fn encode(&self, number: u64) -> Block {
        let mut to = Writer::new(Kind::Label, number, self.sequence, self.tag());
        let name = Self::cut_name(&self.name);
        let text = format!(
            "\nMetadata of hadm-nbd: resource {} at site {}. Not to be changed by hand; `hadm-nbd dump` shows it.\n",
            self.resource.get(),
            self.site.get()
        );
        let mut line = [0; TEXT];
        line.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
        to.bytes(&line);
        to.bytes(&self.uuid);
        to.u32(self.resource.get().into());
        to.u32(self.site.get().into());
        to.u64(self.disk_size);
        to.u64(self.created);
        to.u64(self.layout.data_size);
        to.u8(self.layout.chunk_shift);
        to.u8(EXTENT_SHIFT);
        to.u8(self.layout.slots);
        to.skip(5);
        to.u64(self.layout.log_start);
        to.u64(self.layout.log_blocks);
        to.u64(self.layout.bitmap_start);
        // At most NAME_MAX.
        to.u16(name.len() as u16);
        to.bytes(name.as_bytes());
        to.seal()
    }

    /// Reads the copy in this block.
    ///
    /// # Errors
    /// The reason for which the block is not valid.
    pub fn decode(block: &Block, number: u64) -> Result<Self, BlockError> {
        let mut from = Reader::open(block, Kind::Label, number, None)?;
        from.bytes(TEXT);
        let uuid = from.array();
        if from.tag != tag_of(&uuid) {
            return Err(BlockError::Tag(from.tag));
        }
        let resource =
            ResourceId::try_from(from.u32()).map_err(|_| BlockError::Field("the resource's id"))?;
        let site = SiteId::try_from(from.u32()).map_err(|_| BlockError::Field("the site's id"))?;
        let (disk_size, created, data_size) = (from.u64(), from.u64(), from.u64());
        let (chunk_shift, extent_shift, slots) = (from.u8(), from.u8(), from.u8());
        from.bytes(5);
        if extent_shift != EXTENT_SHIFT {
            return Err(BlockError::Field("the size of extents"));
        }
        let (log_start, log_blocks, bitmap_start) = (from.u64(), from.u64(), from.u64());
        let layout = Layout { data_size, chunk_shift, slots, log_start, log_blocks, bitmap_start };
        layout.check().map_err(|error| {
            BlockError::Field(match error {
                LayoutError::DataSize(_) => "the size of the data",
                LayoutError::Chunk(_) | LayoutError::Chunks(_) => "the size of chunks",
                LayoutError::Slots(_) => "the number of slots",
                LayoutError::Areas => "the place of the areas",
            })
        })?;
        if disk_size < data_size {
            return Err(BlockError::Field("the size of the disk"));
        }
        let len = usize::from(from.u16());
        let name = from.bytes(len);
        let name = (len <= NAME_MAX).then(|| std::str::from_utf8(name).ok()).flatten();
        let name = name.ok_or(BlockError::Field("the resource's name"))?.to_owned();
        Ok(Label { sequence: from.sequence, uuid, resource, name, site, disk_size, created, layout })
    }
}
