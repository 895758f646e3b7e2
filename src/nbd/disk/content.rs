//! Recognises the content of a disk: file systems, swap, volume managers, partition tables, images, other mirrors.
//!
//! Reads a few hundred KiB and must change nothing. It misses content that it does not know: a caller that overwrites
//! a disk also searches it for anything but zeroes. Called by `init`, `check` and `dump`.

use std::io;

use super::adopt;
use super::device::Device;
use super::format::{BLOCK, LABEL_BLOCKS, Label};

/// Content that was recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The kind of the content in words, with an article: "an ext4 file system".
    pub what: String,
    /// Byte at which its mark stands.
    pub at: u64,
    /// Bytes that it takes, from the disk's begin on, if it says so.
    pub end: Option<u64>,
}

/// Marks of one fixed place each: the kind of content, the place of the mark, the mark.
const MARKS: [(&str, u64, &[u8]); 37] = [
    ("a LUKS encrypted volume", 0, b"LUKS\xba\xbe"),
    ("a qcow2 image", 0, b"QFI\xfb"),
    ("a QED image", 0, b"QED\0"),
    ("a VMDK image", 0, b"KDMV"),
    ("a VHDX image", 0, b"vhdxfile"),
    ("a VHD image", 0, b"conectix"),
    ("a VDI image", 64, b"\x7f\x10\xda\xbe"),
    ("a squashfs file system", 0, b"hsqs"),
    ("a Ceph BlueStore", 0, b"bluestore block device\n"),
    ("an LVM physical volume", 0, b"LABELONE"),
    ("an LVM physical volume", 512, b"LABELONE"),
    ("an LVM physical volume", 1024, b"LABELONE"),
    ("an LVM physical volume", 1536, b"LABELONE"),
    ("a member of a Linux RAID", 0, b"\xfc\x4e\x2b\xa9"),
    ("a member of a Linux RAID", 4096, b"\xfc\x4e\x2b\xa9"),
    ("an NTFS file system", 3, b"NTFS    "),
    ("an exFAT file system", 3, b"EXFAT   "),
    ("a BitLocker volume", 3, b"-FVE-FS-"),
    ("a FAT file system", 54, b"FAT1"),
    ("a FAT file system", 82, b"FAT32"),
    ("an f2fs file system", 1024, b"\x10\x20\xf5\xf2"),
    ("an erofs file system", 1024, b"\xe2\xe1\xf5\xe0"),
    ("a NILFS2 file system", 1030, b"\x34\x34"),
    ("a HFS+ file system", 1024, b"H+\0"),
    ("a Minix file system", 1040, b"\x7f\x13"),
    ("a GPT partition table", 512, b"EFI PART"),
    ("a GPT partition table", 4096, b"EFI PART"),
    ("a device of bcache or bcachefs", 4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca"),
    ("an OCFS2 file system", 8192, b"OCFSV2"),
    ("a JFS file system", 32_768, b"JFS1"),
    ("an ISO 9660 file system", 32_769, b"CD001"),
    ("a UDF file system", 32_769, b"BEA01"),
    ("a GFS2 file system", 65_536, b"\x01\x16\x19\x70"),
    ("a ReiserFS file system", 65_588, b"ReIsEr"),
    ("a VMFS volume", 1_048_576, b"\x0d\xd0\x01\xc0"),
    ("a gzip archive", 0, b"\x1f\x8b\x08"),
    ("a tar archive", 257, b"ustar"),
];

/// Bytes that are read from the front; every mark lies in them but the last ones of a RAID or of ZFS.
const FRONT: usize = (1 << 20) + 4096;

/// The front of the disk. Behind its end there are zeroes.
struct Front(Vec<u8>);

impl Front {
    fn array<const N: usize>(&self, at: u64) -> [u8; N] {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        self.0.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
    }

    fn u16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    fn u32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    fn u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.array(at))
    }

    fn has(&self, at: u64, mark: &[u8]) -> bool {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        self.0.get(at..).is_some_and(|rest| rest.starts_with(mark))
    }
}

/// Recognises the content of a disk; if there are several, the one that spans the disk goes first.
///
/// # Errors
/// The disk cannot be read.
pub fn recognise(device: &Device) -> io::Result<Option<Found>> {
    let front = Front(read(device, 0, FRONT)?);
    let found = own(&front)
        .or_else(|| file_system(&front))
        .or_else(|| swap(&front))
        .or_else(|| marked(&front))
        .or_else(|| zfs(&front, 0));
    if found.is_some() {
        return Ok(found);
    }
    if let Some(found) = at_the_end(device)? {
        return Ok(Some(found));
    }
    Ok(partitions(&front))
}

/// Reads `len` bytes, or as many as there are.
fn read(device: &Device, at: u64, len: usize) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let len = device.size.saturating_sub(at).min(len as u64);
    let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
    device.file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

/// Recognises metadata of this program, or of the kernel module.
fn own(front: &Front) -> Option<Found> {
    let label = |number: u64| {
        let at = number.saturating_mul(BLOCK as u64);
        Some((Label::decode(&front.array(at), number).ok()?, at))
    };
    if let Some((label, at)) = LABEL_BLOCKS.into_iter().find_map(label) {
        let what =
            format!("metadata of hadm-nbd, of {} ({:?}) at {}", label.resource, label.name, label.site);
        return Some(Found { what, at, end: Some(label.layout.blocks().saturating_mul(BLOCK as u64)) });
    }
    let what = "a bwr_disk of the kernel module (`hadm-nbd init --adopt` takes it over)".to_owned();
    adopt::is_superblock(&front.array::<BLOCK>(0)).then_some(Found { what, at: 0, end: None })
}

fn file_system(front: &Front) -> Option<Found> {
    let found = |what: &str, at, end| Some(Found { what: format!("{what} file system"), at, end });
    if front.u16(1080) == 0xef53 {
        // The features say which of the family it is: a journal, and extents.
        let (journal, incompatible) = (front.u32(1116) & 4 != 0, front.u32(1120));
        let what = match (incompatible & 0x2c0 != 0, journal) {
            (true, _) => "an ext4",
            (false, true) => "an ext3",
            (false, false) => "an ext2",
        };
        let high = if incompatible & 0x80 != 0 { u64::from(front.u32(1360)) << 32 } else { 0 };
        let blocks = high | u64::from(front.u32(1028));
        let block = 1024_u64.checked_shl(front.u32(1048)).unwrap_or(0);
        return found(what, 1080, blocks.checked_mul(block));
    }
    if front.has(0, b"XFSB") {
        let (block, blocks) = (u32::from_be_bytes(front.array(4)), u64::from_be_bytes(front.array(8)));
        return found("an XFS", 0, blocks.checked_mul(block.into()));
    }
    if front.has(0x1_0040, b"_BHRfS_M") {
        return found("a btrfs", 0x1_0040, Some(front.u64(0x1_0070)));
    }
    None
}

fn swap(front: &Front) -> Option<Found> {
    // The mark stands at the end of the first page, whose size depends on the machine.
    let pages = [4096_u64, 8192, 16_384, 32_768, 65_536];
    let marks: [&[u8]; 3] = [b"SWAPSPACE2", b"SWAP-SPACE", b"S1SUSPEND"];
    let at = |page: &u64| page.saturating_sub(10);
    let page = pages.into_iter().find(|page| marks.iter().any(|mark| front.has(at(page), mark)))?;
    let end = u64::from(front.u32(1028)).saturating_add(1).checked_mul(page);
    Some(Found { what: "swap space".to_owned(), at: at(&page), end })
}

fn marked(front: &Front) -> Option<Found> {
    let (what, at, mark) = MARKS.into_iter().find(|(_, at, mark)| front.has(*at, mark))?;
    let end = match mark {
        // The number of the last block, which holds the copy of the table.
        b"EFI PART" => front.u64(at.saturating_add(32)).saturating_add(1).checked_mul(at),
        b"LABELONE" => Some(front.u64(at.saturating_add(64))),
        _ => None,
    };
    Some(Found { what: what.to_owned(), at, end })
}

/// Recognises the ring of uberblocks in a label of ZFS, 128 KiB from its begin on.
fn zfs(bytes: &Front, label: u64) -> Option<Found> {
    const MAGIC: u64 = 0x00ba_b10c;
    let mut places = (0..128_u64).map(|i| i.saturating_add(128) << 10);
    let at = places.find(|at| [MAGIC, MAGIC.swap_bytes()].contains(&bytes.u64(*at)))?;
    Some(Found { what: "a ZFS pool".to_owned(), at: label.saturating_add(at), end: None })
}

/// Recognises content by a mark at the end of the disk.
fn at_the_end(device: &Device) -> io::Result<Option<Found>> {
    const RAID: [u8; 4] = [0xfc, 0x4e, 0x2b, 0xa9];
    let size = device.size;
    // Superblocks of versions 0.90 and 1.0, and of DRBD's internal metadata.
    let old = (size & !0xffff).saturating_sub(0x1_0000);
    let new = (size & !0xfff).saturating_sub(0x2000);
    let drbd = (size & !0xfff).saturating_sub(0x1000);
    for at in [old, new] {
        if at > 0 && Front(read(device, at, 4)?).has(0, &RAID) {
            return Ok(Some(Found { what: "a member of a Linux RAID".to_owned(), at, end: Some(size) }));
        }
    }
    for at in [0, drbd] {
        let magic = u32::from_be_bytes(Front(read(device, at, 64)?).array(60));
        if (0x8374_026a..=0x8374_026d).contains(&magic) {
            let end = (at > 0).then_some(size);
            return Ok(Some(Found { what: "metadata of DRBD".to_owned(), at: at.saturating_add(60), end }));
        }
    }
    let label = (size & !0x3_ffff).saturating_sub(0x4_0000);
    if label > 0 {
        return Ok(zfs(&Front(read(device, label, 256 << 10)?), label));
    }
    Ok(None)
}

/// Recognises an MBR with at least one partition, or a boot sector.
fn partitions(front: &Front) -> Option<Found> {
    if !front.has(510, b"\x55\xaa") {
        return None;
    }
    let entries = (0..4_u64).map(|i| i.saturating_mul(16).saturating_add(446));
    let is_entry =
        |at: u64| matches!(front.array(at), [0 | 0x80]) && front.array(at.saturating_add(4)) != [0_u8];
    let used: Vec<u64> = entries.filter(|at| is_entry(*at)).collect();
    let end = |at: &u64| {
        let (first, count) = (front.u32(at.saturating_add(8)), front.u32(at.saturating_add(12)));
        u64::from(first).saturating_add(count.into()).saturating_mul(512)
    };
    let what = if used.is_empty() { "a boot sector" } else { "an MBR partition table" };
    Some(Found { what: what.to_owned(), at: 510, end: used.iter().map(end).max() })
}

#[cfg(test)]
mod tests {
    use super::super::device::{Access, Part};
    use super::super::tests::Scratch;
    use super::*;

    fn found(size: u64, parts: &[(u64, &[u8])]) -> Option<Found> {
        let file = Scratch::new(size);
        parts.iter().for_each(|(at, bytes)| file.write(*at, bytes));
        recognise(&Device::open(&file.0, Part::Data, Access::Look).unwrap()).unwrap()
    }

    #[test]
    fn every_mark_is_recognised_where_it_stands() {
        assert_eq!(found(4 << 20, &[]), None);
        for (what, at, mark) in MARKS {
            let found = found(4 << 20, &[(at, mark)]).unwrap();
            assert_eq!((found.what.as_str(), found.at), (what, at));
        }
        for size in [4 << 20, 100, 0] {
            assert_eq!(found(size, &[]), None);
        }
    }

    #[test]
    fn what_spans_a_disk_tells_how_much() {
        let xfs: &[(u64, &[u8])] = &[(0, b"XFSB\0\0\x10\0\0\0\0\0\0\0\x01\0")];
        let end = |parts| found(4 << 20, parts).map(|found| (found.what, found.end.unwrap()));
        assert_eq!(end(xfs), Some(("an XFS file system".into(), 1 << 20)));
        let ext: &[(u64, &[u8])] =
            &[(1080, b"\x53\xef"), (1028, b"\0\x04\0\0"), (1048, b"\x02"), (1120, b"\x40")];
        assert_eq!(end(ext), Some(("an ext4 file system".into(), 4 << 20)));
        let gpt: &[(u64, &[u8])] = &[(510, b"\x55\xaa"), (512, b"EFI PART"), (512 + 32, b"\xff\x1f")];
        assert_eq!(end(gpt), Some(("a GPT partition table".into(), 4 << 20)));
        let mbr: &[(u64, &[u8])] = &[(510, b"\x55\xaa"), (450, b"\x83\0\0\0\0\x08\0\0\0\x10\0\0")];
        assert_eq!(end(mbr), Some(("an MBR partition table".into(), 0x1800 * 512)));
        let swap: &[(u64, &[u8])] = &[(4086, b"SWAPSPACE2"), (1028, b"\xff")];
        assert_eq!(end(swap), Some(("swap space".into(), 1 << 20)));
        let btrfs: &[(u64, &[u8])] = &[(0x1_0040, b"_BHRfS_M"), (0x1_0070, b"\0\0\x40")];
        assert_eq!(end(btrfs), Some(("a btrfs file system".into(), 4 << 20)));
    }

    #[test]
    fn the_end_of_a_disk_is_looked_at() {
        let at = |at, bytes: &[u8]| found(4 << 20, &[(at, bytes)]).unwrap().what;
        let (raid, size) = (b"\xfc\x4e\x2b\xa9", 4 << 20);
        assert_eq!(at(size - 0x1_0000, raid), "a member of a Linux RAID");
        assert_eq!(at(size - 0x2000, raid), "a member of a Linux RAID");
        assert_eq!(at(size - 0x1000 + 60, b"\x83\x74\x02\x6d"), "metadata of DRBD");
        assert_eq!(at((128 << 10) + 5 * 1024, b"\x0c\xb1\xba\0\0\0\0\0"), "a ZFS pool");
        assert_eq!(at(size - (128 << 10), b"\0\0\0\0\0\xba\xb1\x0c"), "a ZFS pool");
        assert_eq!(at(510, b"\x55\xaa"), "a boot sector");
        assert!(at(0, &0x3e95_3ac1_6a42_27b9_u64.to_le_bytes()).contains("--adopt"));
    }
}
