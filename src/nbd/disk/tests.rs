//! Tests of the store, the data disk and the volume against real files.
//!
//! Every file is this process's alone. Used by nobody else.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::bitmap::Bitmap;
use super::data::DataDisk;
use super::device::{Access, Device, Part};
use super::format::*;
use super::store::Store;
use super::volume::FileVolume;
use crate::nbd::server::{Answer, Failure, Reply, Request, Volume};
use crate::wire::{ResourceId, SiteId};

/// A file that is removed at the end.
pub(super) struct Scratch(pub(super) PathBuf);

impl Scratch {
    pub(super) fn new(size: u64) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("hadm-disk-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::File::create(&path).unwrap().set_len(size).unwrap();
        Scratch(path)
    }

    pub(super) fn write(&self, at: u64, bytes: &[u8]) {
        fs::OpenOptions::new().write(true).open(&self.0).unwrap().write_all_at(bytes, at).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        _ = fs::remove_file(&self.0);
    }
}

fn label() -> Label {
    Label {
        sequence: 1,
        uuid: *b"0123456789abcdef",
        resource: ResourceId::try_from(7).unwrap(),
        name: "mail".to_owned(),
        site: SiteId::try_from(1).unwrap(),
        disk_size: 1 << 32,
        created: 0,
        // Two pieces for each of two slots.
        layout: Layout::new(1 << 32, 16, 2, 0).unwrap(),
    }
}

/// Makes valid metadata without a bit.
fn metadata() -> Scratch {
    let label = label();
    let file = Scratch::new(label.layout.blocks() * BLOCK as u64);
    for number in LABEL_BLOCKS {
        file.write(number * BLOCK as u64, &label.encode(number));
    }
    for number in label.layout.bitmap_start..label.layout.blocks() {
        put(&file, number, &BitmapBlock::encode_bits(1, &[0; BITMAP_BYTES], number, label.tag()));
    }
    file
}

fn put(file: &Scratch, number: u64, block: &Block) {
    file.write(number * BLOCK as u64, block);
}

fn superblock(sequence: u64) -> Superblock {
    Superblock { sequence, write_counter: sequence, ..Superblock::default() }
}

#[test]
fn the_valid_superblock_with_the_higher_sequence_holds() {
    let file = metadata();
    let tag = label().tag();
    let load = || Store::open(&file.0, Access::Look).unwrap().load().unwrap();
    assert_eq!(load().superblock, None);
    let [a, b] = SUPERBLOCK_BLOCKS;
    put(&file, a, &superblock(5).encode(a, tag));
    put(&file, b, &superblock(4).encode(b, tag));
    assert_eq!((load().superblock, load().copy), (Some(superblock(5)), 0));
    put(&file, b, &superblock(6).encode(b, tag));
    assert_eq!((load().superblock, load().copy), (Some(superblock(6)), 1));
    // A block that belongs elsewhere, or to another device, is not valid.
    put(&file, b, &superblock(7).encode(a, tag));
    assert_eq!(load().superblock, Some(superblock(5)));
    put(&file, b, &superblock(7).encode(b, tag ^ 1));
    assert_eq!(load().superblock, Some(superblock(5)));
    assert_eq!(load().damaged.iter().map(|damage| damage.number).collect::<Vec<_>>(), [b]);
}

#[test]
fn the_highest_record_holds_wherever_in_the_ring_it_landed() {
    let file = metadata();
    let tag = label().tag();
    let record = |sequence| ActivityRecord::new(sequence, vec![sequence as u32]).unwrap();
    for sequence in 1..100 {
        let number = Layout::activity_block(sequence);
        put(&file, number, &record(sequence).encode(number, tag));
    }
    let load = || Store::open(&file.0, Access::Look).unwrap().load().unwrap().activity;
    assert_eq!(load(), Some(record(99)));
    // The next one went one block too far.
    let number = Layout::activity_block(100);
    put(&file, number + 1, &record(100).encode(number, tag));
    assert_eq!(load(), Some(record(100)));
    // And the next was torn.
    let mut torn = record(101).encode(number + 1, tag);
    torn[600] ^= 1;
    put(&file, number + 1, &torn);
    assert_eq!(load(), Some(record(99)));
}

#[test]
fn a_piece_that_is_not_believed_has_all_bits_set_and_so_has_the_one_it_was_lost_from() {
    let file = metadata();
    let (layout, tag) = (label().layout, label().tag());
    let count = || {
        let loaded = Store::open(&file.0, Access::Look).unwrap().load().unwrap();
        loaded.bitmaps.iter().map(super::Bitmap::count).collect::<Vec<_>>()
    };
    assert_eq!(count(), [0, 0]);
    let mut bits = [0; BITMAP_BYTES];
    bits[0] = 0b101;
    let one = layout.bitmap_block(1, 0);
    put(&file, one, &BitmapBlock::encode_bits(2, &bits, one, tag));
    assert_eq!(count(), [0, 2]);
    // The next write for piece 0 of slot 0 landed on that: both are lost.
    let own = layout.bitmap_block(0, 0);
    put(&file, one, &BitmapBlock::encode_bits(3, &bits, own, tag));
    assert_eq!(count(), [BITS, BITS]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any subset of a write's sectors may land, at any place: no bit that was set before or after is lost.
    #[test]
    fn no_bit_is_lost_to_a_torn_or_misplaced_write(
        before in prop::collection::btree_set(0..BITS, 0..20),
        after in prop::collection::btree_set(0..BITS, 0..20),
        landed in any::<u8>(),
        misplaced in any::<bool>(),
    ) {
        let file = metadata();
        let (layout, tag) = (label().layout, label().tag());
        let encode = |set: &BTreeSet<u64>| {
            let mut bits = [0; BITMAP_BYTES];
            for bit in set {
                bits[(bit / 8) as usize] |= 1 << (bit % 8);
            }
            BitmapBlock::encode_bits(1, &bits, layout.bitmap_block(0, 0), tag)
        };
        put(&file, layout.bitmap_block(0, 0), &encode(&before));
        let to = layout.bitmap_block(if misplaced { 1 } else { 0 }, 0);
        let next = encode(&after);
        for sector in (0..8_u64).filter(|sector| landed & (1 << sector) != 0) {
            let range = sector as usize * 512..(sector as usize + 1) * 512;
            file.write(to * BLOCK as u64 + sector * 512, &next[range]);
        }
        let loaded = Store::open(&file.0, Access::Look).unwrap().load().unwrap();
        let has = |set: &BTreeSet<u64>| set.iter().all(|bit| loaded.bitmaps[0].get(*bit));
        // A write that is lost whole was never confirmed.
        prop_assert!(has(&before) || has(&after));
        if landed == 0xff {
            prop_assert!(has(&after));
        }
    }
}

#[test]
fn metadata_grow_with_the_disk() {
    let file = metadata();
    let store = Store::open(&file.0, Access::Own).unwrap();
    let old = store.layout().blocks();
    let mut bitmap = Bitmap::new(store.layout().chunks());
    bitmap.set(5..6);
    let number = store.layout().bitmap_block(1, 0);
    store.write(number, &bitmap.take_block(0, 1, number, store.tag())).unwrap();
    assert!(store.write(old, &[0; BLOCK]).is_err());
    let grown = store.extend(store.label(), 1 << 34).unwrap();
    let empty = BitmapBlock::encode_bits(2, &[0; BITMAP_BYTES], old, store.tag());
    assert!(store.write(old, &empty).is_ok(), "it has room for more");
    assert!(store.extend(&grown, 1 << 33).unwrap_err().contains("a disk only grows"));
    assert!(store.extend(&grown, (1 << 35) + 1).unwrap_err().contains("multiple of 4096"));
    let again = store.extend(&grown, 1 << 35).unwrap();
    drop(store);
    let store = Store::open(&file.0, Access::Look).unwrap();
    assert_eq!(store.label(), &again);
    assert_eq!((again.sequence, again.layout.data_size, again.disk_size), (3, 1 << 35, 1 << 35));
    let loaded = store.load().unwrap();
    let damaged: Vec<_> = loaded.damaged.iter().map(|damage| damage.number).collect();
    assert_eq!(damaged, SUPERBLOCK_BLOCKS, "which this test has not");
    assert!(loaded.bitmaps[1].get(5) && !loaded.bitmaps[1].get(4));
    assert!(!loaded.bitmaps[0].get(1 << 19), "new chunks have no marks");
}

/// A crash at any point of it leaves the metadata of the old size or of the new.
#[test]
fn metadata_that_half_grew_are_the_old_ones_or_the_new_ones() {
    let file = metadata();
    let store = Store::open(&file.0, Access::Own).unwrap();
    let old = store.label().clone();
    let grown = store.extend(&old, 1 << 34).unwrap();
    drop(store);
    for (labels, expected) in [([&old, &old], &old), ([&grown, &old], &grown), ([&grown, &grown], &grown)] {
        for (label, number) in labels.into_iter().zip(LABEL_BLOCKS) {
            put(&file, number, &label.encode(number));
        }
        let store = Store::open(&file.0, Access::Look).unwrap();
        assert_eq!(store.label(), expected);
        assert_eq!(store.load().unwrap().bitmaps[0].len(), expected.layout.chunks());
    }
}

/// Metadata of 1 TiB, all bits set, for one other site: memory stays within 2 MiB and the size of one read.
#[test]
fn a_tebibyte_with_all_bits_set_is_loaded_in_little_memory() {
    let label = Label { disk_size: 1 << 40, layout: Layout::new(1 << 40, 16, 1, 0).unwrap(), ..label() };
    let file = Scratch::new(label.layout.blocks() * BLOCK as u64);
    put(&file, 0, &label.encode(0));
    let store = Store::open(&file.0, Access::Look).unwrap();
    // No block is valid.
    let used = allocation_counter::measure(|| {
        let loaded = store.load().unwrap();
        assert_eq!(loaded.bitmaps[0].count(), 1 << 24);
    });
    assert!(used.bytes_max < 6 << 20, "{used:?}");
    assert_eq!(used.bytes_current, 0);
}

#[test]
fn two_at_one_disk_are_refused_and_a_look_is_not() {
    let file = metadata();
    let held = Store::open(&file.0, Access::Own).unwrap();
    let refused = Store::open(&file.0, Access::Own).unwrap_err();
    assert!(refused.contains("in use by another hadm-nbd"), "{refused}");
    let refused = Store::open(&file.0, Access::Seize).unwrap_err();
    assert!(refused.contains("in use by another hadm-nbd"), "{refused}");
    Store::open(&file.0, Access::Look).unwrap();
    drop(held);
    Store::open(&file.0, Access::Own).unwrap();
}

#[test]
fn metadata_that_is_cut_or_anothers_is_told_with_the_remedy() {
    let file = metadata();
    let store = Store::open(&file.0, Access::Look).unwrap();
    let owner = store.check_owner(label().resource, SiteId::try_from(0).unwrap()).unwrap_err();
    assert!(owner.contains("site 1, not to resource 7 at site 0"), "{owner}");
    assert_eq!(store.check_owner(label().resource, label().site), Ok(()));
    let size = label().layout.blocks() * BLOCK as u64;
    fs::OpenOptions::new().write(true).open(&file.0).unwrap().set_len(size - 1).unwrap();
    let cut = Store::open(&file.0, Access::Look).unwrap_err();
    assert!(cut.contains("it was cut"), "{cut}");
    let empty = Scratch::new(0);
    let none = Store::open(&empty.0, Access::Look).unwrap_err();
    assert!(none.contains("holds no metadata") && none.contains("hadm-nbd init"), "{none}");
    let folder = Store::open(Path::new("/"), Access::Look).unwrap_err();
    assert!(folder.contains("neither a file nor a block device"), "{folder}");
    let null = Store::open(Path::new("/dev/null"), Access::Look).unwrap_err();
    assert!(null.contains("neither a file nor a block device"), "{null}");
    let missing = Device::open(Path::new("/nowhere/disk"), Part::Data, Access::Own).unwrap_err();
    assert!(missing.contains("truncate -s 10G /nowhere/disk"), "{missing}");
}

#[test]
fn one_label_of_two_is_enough_and_two_of_different_devices_are_none() {
    let file = metadata();
    put(&file, 0, &[0; BLOCK]);
    let store = Store::open(&file.0, Access::Look).unwrap();
    assert_eq!(store.label(), &label());
    assert_eq!(store.load().unwrap().damaged.len(), 2 + 1, "two superblocks were never written");
    let other = Label { uuid: [7; 16], ..label() };
    put(&file, 0, &other.encode(0));
    let refused = Store::open(&file.0, Access::Look).unwrap_err();
    assert!(refused.contains("labels of two devices"), "{refused}");
}

fn volume(file: &Scratch) -> FileVolume {
    FileVolume::new(DataDisk::open(&file.0, Access::Own, None).unwrap(), false).unwrap()
}

fn ask(volume: &FileVolume, request: Request) -> Answer {
    let (told, answers) = mpsc::channel();
    volume.submit(request, Reply::new(move |answer| told.send(answer).unwrap()));
    answers.recv_timeout(Duration::from_secs(30)).unwrap()
}

#[test]
fn a_volume_reads_what_was_written() {
    let file = Scratch::new((8 << 20) + 100);
    let volume = volume(&file);
    assert_eq!(volume.size(), 8 << 20, "no part of a block is offered");
    for (offset, len, fua) in
        [(1, 3, false), (4096, 4096, false), (70_000, 300_000, true), (5 << 20, 2 << 20, false)]
    {
        let data: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        assert_eq!(ask(&volume, Request::Write { offset, data: data.clone().into(), fua }), Ok(Bytes::new()));
        let read = ask(&volume, Request::Read { offset, len: len as u32 }).unwrap();
        assert!(read == data, "{len} bytes at {offset}");
    }
    assert_eq!(ask(&volume, Request::Flush), Ok(Bytes::new()));
    assert_eq!(ask(&volume, Request::Cache { offset: 0, len: 1 << 20 }), Ok(Bytes::new()));
    let zero = |offset, len, no_hole, fast| Request::WriteZeroes { offset, len, fua: true, no_hole, fast };
    for (offset, no_hole) in [(4096, false), (71_000, true)] {
        assert_eq!(ask(&volume, zero(offset, 4000, no_hole, false)), Ok(Bytes::new()));
        assert_eq!(ask(&volume, Request::Read { offset, len: 4000 }).unwrap(), vec![0; 4000]);
        let after = ask(&volume, Request::Read { offset: offset + 4000, len: 1 }).unwrap();
        assert_ne!(after[0], 0, "nothing behind the range changed");
    }
    assert_eq!(ask(&volume, Request::Trim { offset: 5 << 20, len: 1 << 20, fua: false }), Ok(Bytes::new()));
    assert_eq!(volume.status(1 << 20, 4096, 8).unwrap().len(), 1);
    let extents = volume.status(0, 8 << 20, 100).unwrap();
    assert_eq!(extents.iter().map(|extent| extent.len).sum::<u64>(), 8 << 20);
    assert!(extents.iter().any(|extent| extent.hole && extent.zero), "{extents:?}");
    assert!(extents.iter().any(|extent| !extent.hole), "{extents:?}");
}

#[test]
fn a_volume_that_is_read_only_is_not_changed() {
    let file = Scratch::new(8192);
    let volume = FileVolume::new(DataDisk::open(&file.0, Access::Look, None).unwrap(), true).unwrap();
    let write = Request::Write { offset: 0, data: Bytes::from_static(b"x"), fua: false };
    assert_eq!(ask(&volume, write), Err(Failure::NotPermitted));
    assert_eq!(ask(&volume, Request::Trim { offset: 0, len: 1, fua: false }), Err(Failure::NotPermitted));
    assert_eq!(ask(&volume, Request::Read { offset: 0, len: 1 }), Ok(Bytes::from_static(b"\0")));
}

/// /dev/full reports to every write that it is full, and cannot be synced: a full disk, and a flush that fails.
#[test]
fn a_full_disk_is_the_requests_error_and_a_failed_flush_the_disks() {
    let device = |path: &str, size| Device {
        file: fs::OpenOptions::new().read(true).write(true).open(path).unwrap(),
        path: path.into(),
        size,
        is_block: false,
    };
    let full = FileVolume::new(DataDisk::new(device("/dev/full", 4096), None).unwrap(), false).unwrap();
    for fua in [false, true] {
        let write = Request::Write { offset: 0, data: Bytes::from_static(b"x"), fua };
        assert_eq!(ask(&full, write), Err(Failure::NoSpace));
    }
    assert_eq!(ask(&full, Request::Read { offset: 0, len: 1 }), Ok(Bytes::from_static(b"\0")));
    assert_eq!(ask(&full, Request::Flush), Err(Failure::Io));
    assert_eq!(ask(&full, Request::Flush), Err(Failure::Io));
    assert_eq!(ask(&full, Request::Read { offset: 0, len: 1 }), Err(Failure::Io), "the disk is out");
}
