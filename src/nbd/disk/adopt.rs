//! Takes over the disk of a stopped site of the kernel module: data that stands only in its write-record buffer is
//! written to the data disk, which is kept.
//!
//! The buffer is a ring of entries of nine sectors: one that describes, and a page of data. The superblock in the
//! first sector says which of them count; behind that, entries count as long as they continue the sequence. Nothing
//! is written before every entry has been checked. Called by `init --adopt` only.

use std::io;
use std::os::unix::fs::FileExt;

use super::data::DataDisk;
use super::device::Device;
use crate::wire::{ResourceId, SiteId};

/// The mark of a superblock that is in use, and that of one that is not.
const MAGIC: u64 = 0x3e95_3ac1_6a42_27b9;
const MAGIC_UNUSED: u64 = 0x3e95_3ac1_6a42_27cc;

const SECTOR: u64 = 512;
const PAGE: usize = 4096;
/// Sectors of an entry.
const ENTRY: u64 = 9;
/// The id that stands for no site.
const NO_SITE: u8 = 255;

/// The content of the superblock, as far as it matters here. Places are in sectors of the metadata disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The resource's id.
    pub resource: u8,
    /// Bytes of the data disk that were mirrored; 0 if the superblock does not say.
    pub disk_size: u64,
    /// Bytes of the metadata disk.
    own_size: u64,
    start: u64,
    head: u64,
    tail: u64,
    /// True if the content was a state that the mirrored disk has had.
    pub is_consistent: bool,
    /// The site that the disk last took writes for itself as, if it was primary.
    local: u8,
    uuid: u64,
    sequence: u64,
}

/// The entries to take over, and the superblock that they belong to.
#[derive(Debug)]
pub struct Plan {
    /// The superblock.
    pub superblock: Superblock,
    /// True if this site was the last to be primary: its data is the newest.
    pub was_primary: bool,
    /// Places of the entries to be written, in order.
    entries: Vec<u64>,
    /// Place of the next entry, and the number of the last one.
    end: (u64, u64),
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Returns true if this is the first page of a metadata disk of the kernel module.
pub fn is_superblock(page: &[u8]) -> bool {
    [MAGIC, MAGIC_UNUSED].contains(&u64_at(page, 0))
}

impl Superblock {
    fn decode(page: &[u8], site: SiteId) -> Option<Self> {
        let byte = |at: usize| page.get(at).copied().unwrap_or_default();
        let head = usize::from(site.get()).saturating_mul(8).saturating_add(56);
        (u64_at(page, 0) == MAGIC).then(|| Superblock {
            resource: byte(8),
            disk_size: u64_at(page, 16),
            own_size: u64_at(page, 24),
            start: u64_at(page, 48),
            head: u64_at(page, head),
            tail: u64_at(page, 312),
            is_consistent: byte(320) == 0,
            local: byte(384),
            uuid: u64_at(page, 392),
            sequence: u64_at(page, 400),
        })
    }
}

/// One entry of the ring.
struct Entry {
    uuid: u64,
    sequence: u64,
    own_sector: u64,
    data_sector: u64,
    is_whole: bool,
    data: Vec<u8>,
}

fn read_entry(device: &Device, sector: u64) -> io::Result<Entry> {
    let mut bytes = vec![0; PAGE.saturating_add(512)];
    device.file.read_exact_at(&mut bytes, sector.saturating_mul(SECTOR))?;
    let data = bytes.split_off(512);
    let checksum = u64_at(&bytes, 16) as u32;
    Ok(Entry {
        uuid: u64_at(&bytes, 0),
        sequence: u64_at(&bytes, 8),
        own_sector: u64_at(&bytes, 24),
        data_sector: u64_at(&bytes, 32),
        is_whole: checksum == crc32(&data),
        data,
    })
}

/// Computes the kernel module's CRC-32: the usual one, but begun with zero and not inverted at the end.
fn crc32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |crc: u32, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| {
                if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 }
            },
        )
    })
}

/// Reads superblock and ring, and checks every entry that has to be written. Changes nothing.
///
/// # Errors
/// The disk is not one of the kernel module, is another resource's, or is damaged: a sentence with the remedy.
pub fn plan(device: &Device, data: &DataDisk, resource: ResourceId, site: SiteId) -> Result<Plan, String> {
    let place = device.path.display();
    let fail = |error: io::Error| format!("bwr_disk {place} cannot be read: {error}");
    let mut page = vec![0; PAGE];
    if device.size < PAGE as u64 {
        return Err(format!(
            "bwr_disk {place} has {} bytes: it is no disk of the kernel module",
            device.size
        ));
    }
    device.file.read_exact_at(&mut page, 0).map_err(fail)?;
    let superblock = Superblock::decode(&page, site).ok_or_else(|| {
        format!("bwr_disk {place} is no disk of the kernel module that was in use; leave out --adopt to make a new one")
    })?;
    if superblock.resource != resource.get() {
        return Err(format!(
            "bwr_disk {place} belongs to resource {} of the kernel module, not to {resource}; correct the \
             configuration",
            superblock.resource
        ));
    }
    if superblock.disk_size > data.device().size {
        return Err(format!(
            "bwr_disk {place} is that of a disk of {} bytes, and {} has {}; correct the configuration",
            superblock.disk_size,
            data.device().path.display(),
            data.device().size
        ));
    }
    let mut plan =
        Plan { was_primary: superblock.local != NO_SITE, superblock, entries: Vec::new(), end: (0, 0) };
    if plan.was_primary {
        plan.read_ring(device, data).map_err(|why| {
            format!(
                "the ring of bwr_disk {place} {why}. Adopt another site's disk instead, and make this one anew; nothing \
                 was changed"
            )
        })?;
    }
    Ok(plan)
}

impl Plan {
    /// Returns the number of pages that have to be written.
    pub fn pages(&self) -> usize {
        self.entries.len()
    }

    fn read_ring(&mut self, device: &Device, data: &DataDisk) -> Result<(), String> {
        let Superblock { own_size, start, head, tail, uuid, sequence, .. } = self.superblock;
        let end = own_size.min(device.size) / SECTOR;
        let end = end.saturating_sub(end % ENTRY);
        let is_place = |at: u64| {
            at >= start
                && at.checked_sub(start).is_some_and(|n| n % ENTRY == 0)
                && at.saturating_add(ENTRY) <= end
        };
        if start == 0 || !is_place(head) || !is_place(tail) {
            return Err(format!("is said to go from sector {head} to {tail}, which cannot be"));
        }
        // The ring has no more entries, even if the superblock says so.
        let most = end.saturating_sub(start) / ENTRY;
        let (mut at, mut last, mut behind_tail) = (head, None, head == tail);
        for _ in 0..most {
            let entry =
                read_entry(device, at).map_err(|error| format!("cannot be read at sector {at}: {error}"))?;
            let expected = if behind_tail { Some(last.unwrap_or(sequence)) } else { last };
            let continues = expected.is_none_or(|last: u64| entry.sequence == last.saturating_add(1));
            let continues = continues && entry.uuid == uuid && entry.own_sector == at;
            let past = entry.data_sector.saturating_mul(SECTOR).saturating_add(PAGE as u64);
            if !continues || !entry.is_whole || past > data.device().size {
                if behind_tail {
                    break;
                }
                let what = match (continues, entry.is_whole) {
                    (false, _) => "does not continue its sequence",
                    (true, false) => "is damaged",
                    (true, true) => "holds a write behind the end of the disk",
                };
                return Err(format!("{what} at sector {at}"));
            }
            self.entries.push(at);
            last = Some(entry.sequence);
            at = self.next(device, at, end, &entry);
            behind_tail |= at == tail;
        }
        if !behind_tail {
            return Err("has no end".to_owned());
        }
        self.end = (at, last.unwrap_or(sequence));
        Ok(())
    }

    /// Returns the place behind an entry. The place where the ring turns back to its start is not written down: the next
    /// entry shows it.
    fn next(&self, device: &Device, at: u64, end: u64, entry: &Entry) -> u64 {
        let (next, start) = (at.saturating_add(ENTRY), self.superblock.start);
        let follows = |at: u64| {
            let found = read_entry(device, at);
            found.is_ok_and(|next| {
                next.uuid == entry.uuid
                    && next.own_sector == at
                    && next.sequence == entry.sequence.saturating_add(1)
            })
        };
        let is_in = next.saturating_add(ENTRY) <= end;
        match is_in && (follows(next) || next == self.superblock.tail || !follows(start)) {
            true => next,
            false => start,
        }
    }

    /// Writes the data that stands only in the ring, makes it stable, and notes on the metadata disk that it was done.
    ///
    /// # Errors
    /// A disk failed. The call may be repeated.
    pub fn replay(&self, device: &Device, data: &DataDisk, site: SiteId) -> io::Result<()> {
        for at in &self.entries {
            let entry = read_entry(device, *at)?;
            data.write(&entry.data, entry.data_sector.saturating_mul(SECTOR))?;
        }
        data.flush()?;
        if self.entries.is_empty() {
            return Ok(());
        }
        let (end, sequence) = self.end;
        let head = u64::from(site.get()).saturating_mul(8).saturating_add(56);
        for (at, number) in [(head, end), (312, end), (400, sequence)] {
            device.file.write_all_at(&number.to_le_bytes(), at)?;
        }
        device.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_kernel_modules() {
        // The check value of the plain register: neither begun nor ended with ones.
        assert_eq!(crc32(b"123456789"), 0x2dfd_2d88);
        assert_eq!(crc32(&[0; 4096]), 0);
    }
}
