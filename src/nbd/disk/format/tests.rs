//! Tests of each kind of block: a block that was written is read back, and nothing else is valid.
//!
//! Torn, misplaced and stale blocks by the thousand. Used by nobody else.

use proptest::prelude::*;

use super::*;
use crate::wire::{Mask, ResourceId, SiteId};

const TAG: u32 = 0x1234_5678;

fn label() -> Label {
    Label {
        sequence: 1,
        uuid: *b"0123456789abcdef",
        resource: ResourceId::try_from(254).unwrap(),
        name: "mail".to_owned(),
        site: SiteId::try_from(31).unwrap(),
        disk_size: (1 << 40) + 100,
        created: 1_700_000_000,
        layout: Layout::new(1 << 40, 16, 31, 1000).unwrap(),
    }
}

fn superblock(seed: u64) -> Superblock {
    let mut rng = fastrand::Rng::with_seed(seed);
    let slot = |rng: &mut fastrand::Rng, i: usize| Slot {
        site: rng.bool().then(|| SiteId::try_from(i as u32).unwrap()),
        flags: SlotFlags::from_bits(rng.u32(..) & SlotFlags::ALL.bits()).unwrap(),
        generation: Generation::from_bits(rng.u64(..)),
        stable: rng.u64(..),
    };
    Superblock {
        sequence: seed,
        flags: DiskFlags::from_bits(rng.u32(..) & DiskFlags::ALL.bits()).unwrap(),
        current: Generation::from_bits(rng.u64(..)),
        history: std::array::from_fn(|_| Generation::from_bits(rng.u64(..))),
        agreed_size: rng.u64(..),
        members: Mask(rng.u32(..)),
        write_counter: rng.u64(..),
        verify_cursor: rng.u64(..),
        log_void: rng.u64(..),
        checkpoint: Checkpoint::new(&vec![b'a'; rng.usize(..=64)]),
        slots: std::array::from_fn(|i| slot(&mut rng, i)),
    }
}

fn record(seed: u64) -> ActivityRecord {
    let mut rng = fastrand::Rng::with_seed(seed);
    let count = rng.usize(..=ACTIVE_MAX);
    ActivityRecord::new(seed, (0..count).map(|_| rng.u32(..)).collect()).unwrap()
}

fn piece(seed: u64) -> BitmapBlock {
    let mut bits = [0; BITMAP_BYTES];
    fastrand::Rng::with_seed(seed).fill(&mut bits);
    BitmapBlock { sequence: seed, bits }
}

/// A block of one of the kinds that carry a foreign tag, as bytes.
fn encoded(kind: u8, seed: u64, number: u64, tag: u32) -> Block {
    match kind {
        0 => superblock(seed).encode(number, tag),
        1 => record(seed).encode(number, tag),
        _ => piece(seed).encode(number, tag),
    }
}

fn error(kind: u8, block: &Block, number: u64, tag: u32) -> Option<BlockError> {
    match kind {
        0 => Superblock::decode(block, number, tag).err(),
        1 => ActivityRecord::decode(block, number, tag).err(),
        _ => BitmapBlock::decode(block, number, tag).err(),
    }
}

#[test]
fn every_kind_is_read_as_it_was_written() {
    let label = label();
    for number in LABEL_BLOCKS {
        assert_eq!(Label::decode(&label.encode(number), number).as_ref(), Ok(&label));
    }
    let text = label.encode(0);
    assert!(text.windows(30).any(|part| part == b"Metadata of hadm-nbd: resource"), "a person can see it");
    for seed in 0..100 {
        assert_eq!(Superblock::decode(&superblock(seed).encode(16, TAG), 16, TAG), Ok(superblock(seed)));
        assert_eq!(
            superblock(seed).encode(16, TAG)[32..],
            Superblock::decode(&superblock(seed).encode(16, TAG), 16, TAG).unwrap().encode(16, TAG)[32..],
            "the note of the role is kept"
        );
        assert_eq!(ActivityRecord::decode(&record(seed).encode(64, TAG), 64, TAG), Ok(record(seed)));
        assert_eq!(BitmapBlock::decode(&piece(seed).encode(512, TAG), 512, TAG), Ok(piece(seed)));
    }
    let full = ActivityRecord::new(7, (0..ACTIVE_MAX as u32).collect()).unwrap();
    assert_eq!(ActivityRecord::decode(&full.encode(64, TAG), 64, TAG), Ok(full));
    assert_eq!(ActivityRecord::new(7, vec![0; ACTIVE_MAX + 1]), Err(TooManyExtents(ACTIVE_MAX + 1)));
}

/// Checks that the bytes are fixed: this build must read the blocks of another build.
#[test]
fn the_head_stands_as_documented() {
    let block = superblock(0x0102).encode(16, 0xaabb_ccdd);
    assert_eq!(block[..28], *b"HADM\x02\0\x01\0\x10\0\0\0\0\0\0\0\x02\x01\0\0\0\0\0\0\xdd\xcc\xbb\xaa");
    let mut unsealed = block;
    unsealed[28..32].fill(0);
    assert_eq!(block[28..32], crc32c::crc32c(&unsealed).to_le_bytes());
    assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283, "the checksum is the one that is named");
}

#[test]
fn the_reason_is_told() {
    let mut block = superblock(1).encode(16, TAG);
    assert_eq!(error(0, &block, 32, TAG), Some(BlockError::Number(16)));
    assert_eq!(error(0, &block, 16, 1), Some(BlockError::Tag(TAG)));
    assert_eq!(error(1, &block, 16, TAG), Some(BlockError::Kind(2)));
    assert_eq!(error(0, &[0; BLOCK], 16, TAG), Some(BlockError::NoMetadata));
    block[4000] ^= 1;
    assert_eq!(error(0, &block, 16, TAG), Some(BlockError::Checksum));
    let seal = |mut block: Block| {
        block[28..32].fill(0);
        let crc = crc32c::crc32c(&block);
        block[28..32].copy_from_slice(&crc.to_le_bytes());
        block
    };
    let mut newer = record(1).encode(64, TAG);
    newer[6] = 2;
    assert_eq!(error(1, &seal(newer), 64, TAG), Some(BlockError::Version(2)));
    let mut long = record(1).encode(64, TAG);
    long[32..36].copy_from_slice(&1001_u32.to_le_bytes());
    assert_eq!(error(1, &seal(long), 64, TAG), Some(BlockError::Field("the number of active extents")));
    let mut flags = superblock(1).encode(16, TAG);
    flags[35] = 0x80;
    assert_eq!(error(0, &seal(flags), 16, TAG), Some(BlockError::Field("the disk's flags")));
}

#[test]
fn a_long_name_is_cut_between_characters() {
    let name = "ü".repeat(NAME_MAX);
    let label = Label { name: format!("x{name}"), ..label() };
    let read = Label::decode(&label.encode(0), 0).unwrap();
    assert_eq!(read.name.len(), NAME_MAX - 1);
    assert!(label.name.starts_with(&read.name));
}

#[test]
fn areas_follow_each_other_without_a_hole() {
    let layout = Layout::new(1 << 40, DEFAULT_CHUNK_SHIFT, 3, 10).unwrap();
    assert_eq!((layout.chunks(), layout.extents(), layout.bitmap_blocks()), (1 << 24, 1 << 18, 517));
    let mut numbers: Vec<_> =
        (0..3).flat_map(|slot| (0..517).map(move |i| layout.bitmap_block(slot, i))).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (522..522 + 3 * 517).collect::<Vec<_>>());
    assert_eq!(layout.blocks(), 522 + 3 * 517);
    assert_eq!(Layout::activity_block(63), 127);
    assert_eq!(Layout::activity_block(64), 64);
}

#[test]
fn a_layout_that_cannot_be_is_refused() {
    assert_eq!(Layout::new(4097, 16, 1, 0), Err(LayoutError::DataSize(4097)));
    assert_eq!(Layout::new(0, 16, 1, 0), Err(LayoutError::DataSize(0)));
    assert_eq!(Layout::new(1 << 55, 16, 1, 0), Err(LayoutError::DataSize(1 << 55)));
    assert_eq!(Layout::new(4096, 11, 1, 0), Err(LayoutError::Chunk(11)));
    assert_eq!(Layout::new(4096, 21, 1, 0), Err(LayoutError::Chunk(21)));
    assert_eq!(Layout::new((1 << 52) + 4096, 20, 1, 0), Err(LayoutError::Chunks((1 << 32) + 1)));
    assert_eq!(Layout::new(4096, 16, 0, 0), Err(LayoutError::Slots(0)));
    assert_eq!(Layout::new(4096, 16, 32, 0), Err(LayoutError::Slots(32)));
    assert_eq!(Layout::new(4096, 16, 1, u64::MAX), Err(LayoutError::Areas));
    assert_eq!(Layout::new(4096, 16, 1, 1 << 62), Err(LayoutError::Areas));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Any mixture of the sectors of two writes is one of them, or is not valid.
    #[test]
    fn a_torn_block_is_not_believed(kind in 0..3_u8, old in 1..1000_u64, new in 1000..2000_u64, landed in any::<u8>()) {
        let (before, after) = (encoded(kind, old, 70, TAG), encoded(kind, new, 70, TAG));
        let mut torn = before;
        for sector in (0..8).filter(|sector| landed & (1 << sector) != 0) {
            let range = sector * 512..(sector + 1) * 512;
            torn[range.clone()].copy_from_slice(&after[range]);
        }
        let believed = error(kind, &torn, 70, TAG).is_none();
        prop_assert_eq!(believed, torn == before || torn == after);
    }

    #[test]
    fn a_flipped_bit_is_noticed(kind in 0..3_u8, seed in any::<u64>(), bit in 0..BLOCK * 8) {
        let mut block = encoded(kind, seed, 70, TAG);
        block[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(error(kind, &block, 70, TAG).is_some());
    }

    #[test]
    fn a_block_of_another_place_or_device_is_not_believed(
        kind in 0..3_u8, seed in any::<u64>(), number in any::<u64>(), tag in any::<u32>()
    ) {
        let block = encoded(kind, seed, number, tag);
        prop_assert_eq!(error(kind, &block, number, tag), None);
        prop_assert_eq!(error(kind, &block, number ^ 1, tag), Some(BlockError::Number(number)));
        prop_assert_eq!(error(kind, &block, number, tag ^ 1), Some(BlockError::Tag(tag)));
    }

    #[test]
    fn a_damaged_label_is_not_believed(bit in 0..BLOCK * 8) {
        let mut block = label().encode(256);
        block[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Label::decode(&block, 256).is_err());
        prop_assert!(Label::decode(&label().encode(256), 0).is_err());
    }
}
