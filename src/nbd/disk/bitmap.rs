//! One site's bitmap in memory: which chunks differ, or may differ, from that site's.
//!
//! Kept in pieces of one metadata block each, and a piece only where bits are: 2 MiB for 1 TiB in chunks of 64 KiB
//! with all bits set, next to nothing with none. Knows which pieces differ from their last written state; must write
//! nothing itself. Used by the core; loaded and written block by block by the store.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::ops::Range;

use super::format::{BITMAP_BYTES, BITS, BitmapBlock, Block};

const WORDS: usize = BITMAP_BYTES / 8;

/// A bitmap, one bit for each chunk.
#[derive(Clone, Debug, Default)]
pub struct Bitmap {
    len: u64,
    count: u64,
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, Default)]
struct Piece {
    /// The bits; absent while none is set.
    words: Option<Box<[u64; WORDS]>>,
    /// Number of bits that are set.
    count: u32,
    /// True if the piece differs from its last written state.
    dirty: bool,
}

impl Bitmap {
    /// Returns a bitmap of `len` bits, none of them set, as on a fresh disk. A disk has at most 2^32 chunks.
    pub fn new(len: u64) -> Self {
        let pieces = usize::try_from(len.div_ceil(BITS)).unwrap_or(usize::MAX);
        Bitmap { len, count: 0, pieces: vec![Piece::default(); pieces] }
    }

    /// Returns the number of bits, set or not.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Appends bits, for a disk that has grown, all set or none of them. A disk never shrinks.
    pub fn grow(&mut self, len: u64, set: bool) {
        let old = self.len;
        self.len = len.max(old);
        let pieces = usize::try_from(self.len.div_ceil(BITS)).unwrap_or(usize::MAX);
        // A piece that was never written is dirty even if its bits are right.
        self.pieces.resize(pieces, Piece { dirty: true, ..Piece::default() });
        if set {
            self.set(old..self.len);
        }
    }

    /// Forgets the bits from `len` on, for good.
    pub fn limit(&mut self, len: u64) {
        self.clear(len..self.len);
        self.len = self.len.min(len);
    }

    /// Returns true if there are no bits at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the number of bits that are set.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns true if this bit is set.
    pub fn get(&self, bit: u64) -> bool {
        let (piece, word, shift) = place(bit);
        let words = self.pieces.get(piece).and_then(|piece| piece.words.as_ref());
        words.and_then(|words| words.get(word)).is_some_and(|word| word >> shift & 1 == 1)
    }

    /// Sets the bits of a range, as far as they exist, and returns the number of those that were not set.
    pub fn set(&mut self, range: Range<u64>) -> u64 {
        self.change(range, true)
    }

    /// Clears the bits of a range, as far as they exist, and returns the number of those that were set.
    pub fn clear(&mut self, range: Range<u64>) -> u64 {
        self.change(range, false)
    }

    fn change(&mut self, range: Range<u64>, on: bool) -> u64 {
        let end = range.end.min(self.len);
        let (mut at, mut changed) = (range.start, 0_u64);
        while at < end {
            let (piece, word, shift) = place(at);
            let room = 64_u64.saturating_sub(shift.into());
            let n = end.saturating_sub(at).min(room);
            let mask = (u64::MAX >> 64_u64.saturating_sub(n)) << shift;
            let n_changed = self.pieces.get_mut(piece).map_or(0, |piece| piece.change(word, mask, on));
            changed = changed.saturating_add(n_changed.into());
            at = at.saturating_add(n);
            // A piece without bits has nothing to clear.
            if !on && self.pieces.get(piece).is_some_and(|piece| piece.words.is_none()) {
                at = at.max(piece_start(piece.saturating_add(1)));
            }
        }
        self.count = if on { self.count.saturating_add(changed) } else { self.count.saturating_sub(changed) };
        changed
    }

    /// Sets every bit that is set in the other bitmap, which counts the same chunks, and returns the number of those that
    /// were not set here.
    pub fn unite(&mut self, other: &Bitmap) -> u64 {
        let (mut changed, mut at) = (0_u64, 0);
        while let Some(run) = other.next_run(at, u64::MAX) {
            at = run.end;
            changed = changed.saturating_add(self.set(run));
        }
        changed
    }

    /// Returns the first bit that is set, from `from` on.
    pub fn next(&self, from: u64) -> Option<u64> {
        self.find(from, true)
    }

    /// Returns the next run of bits that are set, from `from` on, cut after `longest` bits.
    pub fn next_run(&self, from: u64, longest: u64) -> Option<Range<u64>> {
        let start = self.find(from, true)?;
        let end = self.find(start, false).unwrap_or(self.len);
        (longest > 0).then(|| start..end.min(start.saturating_add(longest)))
    }

    /// Returns the first bit, from `from` on, with the value `set`.
    fn find(&self, from: u64, set: bool) -> Option<u64> {
        let (first, mut word, mut shift) = place(from);
        for (i, piece) in self.pieces.iter().enumerate().skip(first) {
            match &piece.words {
                None if set => {}
                None => {
                    let at = piece_start(i).max(from);
                    return (at < self.len).then_some(at);
                }
                Some(words) => {
                    let words = words.iter().enumerate().skip(word);
                    for (w, bits) in words {
                        let bits = if set { *bits } else { !*bits };
                        let bits = bits & (u64::MAX << shift);
                        if bits != 0 {
                            let before =
                                (w as u64).saturating_mul(64).saturating_add(bits.trailing_zeros().into());
                            let at = piece_start(i).saturating_add(before);
                            return (at < self.len).then_some(at);
                        }
                        shift = 0;
                    }
                }
            }
            (word, shift) = (0, 0);
        }
        None
    }

    /// Returns the number of pieces.
    pub fn pieces(&self) -> u64 {
        self.pieces.len() as u64
    }

    /// Returns the piece that a bit is in.
    pub fn piece_of(bit: u64) -> u64 {
        bit / BITS
    }

    /// Returns the first piece, from `from` on, that differs from its last written state.
    pub fn next_dirty(&self, from: u64) -> Option<u64> {
        let from = usize::try_from(from).ok()?;
        let found = self.pieces.iter().skip(from).position(|piece| piece.dirty)?;
        Some(found.saturating_add(from) as u64)
    }

    /// Returns true if the piece differs from its last written state.
    pub fn is_dirty(&self, piece: u64) -> bool {
        usize::try_from(piece).ok().and_then(|i| self.pieces.get(i)).is_some_and(|piece| piece.dirty)
    }

    /// Notes that the piece has to be written (again).
    pub fn mark_dirty(&mut self, piece: u64) {
        if let Some(piece) = usize::try_from(piece).ok().and_then(|i| self.pieces.get_mut(i)) {
            piece.dirty = true;
        }
    }

    /// Returns the block to write for a piece, which from now on counts as written: a caller that fails to write it marks
    /// it dirty again. Bits that change during the write make it dirty by themselves.
    pub fn take_block(&mut self, piece: u64, sequence: u64, number: u64, tag: u32) -> Block {
        let mut bits = [0; BITMAP_BYTES];
        if let Some(piece) = usize::try_from(piece).ok().and_then(|i| self.pieces.get_mut(i)) {
            piece.dirty = false;
            for (to, word) in bits.chunks_exact_mut(8).zip(piece.words.iter().flat_map(|words| words.iter()))
            {
                to.copy_from_slice(&word.to_le_bytes());
            }
        }
        BitmapBlock::encode_bits(sequence, &bits, number, tag)
    }

    /// Puts a piece that was read in place of the present one; it counts as written.
    pub fn load(&mut self, piece: u64, block: &BitmapBlock) {
        let last = self.len.saturating_sub(piece.saturating_mul(BITS)).min(BITS);
        let Some(piece) = usize::try_from(piece).ok().and_then(|i| self.pieces.get_mut(i)) else { return };
        let mut words = Box::new([0; WORDS]);
        let (mut count, mut left) = (0_u32, last);
        for (word, bytes) in words.iter_mut().zip(block.bits.chunks_exact(8)) {
            // Bits behind the last chunk stand for nothing.
            let mask = if left >= 64 {
                u64::MAX
            } else {
                1_u64.checked_shl(left as u32).unwrap_or(0).wrapping_sub(1)
            };
            *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default()) & mask;
            count = count.saturating_add(word.count_ones());
            left = left.saturating_sub(64);
        }
        self.count = self.count.saturating_sub(piece.count.into()).saturating_add(count.into());
        *piece = Piece { words: (count > 0).then_some(words), count, dirty: false };
    }

    /// Sets every bit of a piece whose block is not valid.
    pub fn fill_piece(&mut self, piece: u64) {
        let start = piece.saturating_mul(BITS);
        self.set(start..start.saturating_add(BITS));
        self.mark_dirty(piece);
    }
}

impl Piece {
    /// Sets or clears the bits of a mask in one word, and returns the number of those that changed.
    fn change(&mut self, word: usize, mask: u64, on: bool) -> u32 {
        if !on && self.words.is_none() {
            return 0;
        }
        let words = self.words.get_or_insert_with(|| Box::new([0; WORDS]));
        let Some(word) = words.get_mut(word) else { return 0 };
        let before = *word;
        *word = if on { before | mask } else { before & !mask };
        let changed = (before ^ *word).count_ones();
        self.dirty |= changed > 0;
        self.count = if on { self.count.saturating_add(changed) } else { self.count.saturating_sub(changed) };
        if self.count == 0 {
            self.words = None;
        }
        changed
    }
}

/// Returns the piece of a bit, the word in the piece, and the bit's place in the word.
fn place(bit: u64) -> (usize, usize, u32) {
    let piece = usize::try_from(bit / BITS).unwrap_or(usize::MAX);
    let within = bit % BITS;
    (piece, (within / 64) as usize, (within % 64) as u32)
}

fn piece_start(piece: usize) -> u64 {
    (piece as u64).saturating_mul(BITS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const LEN: u64 = BITS * 3 + 77;

    fn set_bits(map: &Bitmap) -> BTreeSet<u64> {
        let mut found = BTreeSet::new();
        let mut at = 0;
        while let Some(bit) = map.next(at) {
            found.insert(bit);
            at = bit + 1;
        }
        found
    }

    /// Writes the bitmap and reads it again, piece by piece.
    fn copied(map: &mut Bitmap) -> Bitmap {
        let mut copy = Bitmap::new(map.len());
        for piece in 0..map.pieces() {
            let block = map.take_block(piece, 1, 512 + piece, 7);
            copy.load(piece, &BitmapBlock::decode(&block, 512 + piece, 7).unwrap());
        }
        copy
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn it_is_a_set_of_numbers(
            steps in prop::collection::vec((any::<bool>(), 0..LEN + 100, 0..300_u64), 1..40),
            longest in 1..100_u64,
        ) {
            let (mut map, mut model) = (Bitmap::new(LEN), BTreeSet::new());
            for (on, start, n) in steps {
                let range = start..start + n;
                let inside = range.clone().filter(|bit| *bit < LEN);
                let changed = match on {
                    true => inside.filter(|bit| model.insert(*bit)).count(),
                    false => inside.filter(|bit| model.remove(bit)).count(),
                };
                let said = if on { map.set(range) } else { map.clear(range) };
                prop_assert_eq!(said, changed as u64);
                prop_assert_eq!(map.count(), model.len() as u64);
            }
            prop_assert_eq!(&set_bits(&map), &model);
            prop_assert!(model.iter().all(|bit| map.get(*bit)));
            let (mut by_runs, mut at) = (BTreeSet::new(), 0);
            while let Some(run) = map.next_run(at, longest) {
                prop_assert!(run.end - run.start <= longest && run.start < run.end);
                at = run.end;
                by_runs.extend(run);
            }
            prop_assert_eq!(&by_runs, &model);
            let copy = copied(&mut map);
            prop_assert_eq!((&set_bits(&copy), copy.count()), (&model, model.len() as u64));
            let mut both = Bitmap::new(LEN);
            both.set(5..500);
            let new = model.iter().filter(|bit| !(5..500).contains(*bit)).count();
            prop_assert_eq!(both.unite(&map), new as u64);
            prop_assert_eq!(both.count(), 495 + new as u64);
        }
    }

    #[test]
    fn a_piece_is_dirty_when_it_differs_from_what_was_written() {
        let mut map = Bitmap::new(LEN);
        assert_eq!(map.next_dirty(0), None);
        map.set(BITS..BITS + 1);
        map.set(LEN - 1..LEN);
        assert_eq!((map.next_dirty(0), map.next_dirty(2), map.next_dirty(4)), (Some(1), Some(3), None));
        copied(&mut map);
        assert_eq!(map.next_dirty(0), None);
        map.set(BITS..BITS + 1);
        assert_eq!(map.next_dirty(0), None, "nothing changed");
        map.clear(0..LEN);
        assert_eq!((map.next_dirty(0), map.count()), (Some(1), 0));
    }

    #[test]
    fn a_bitmap_grows_with_its_disk() {
        let mut map = Bitmap::new(77);
        map.set(76..77);
        map.grow(BITS + 5, true);
        assert_eq!((map.count(), map.pieces(), map.get(75), map.get(77)), (BITS + 5 - 76, 2, false, true));
        let mut map = Bitmap::new(77);
        map.grow(BITS + 5, false);
        assert_eq!((map.count(), map.next_dirty(0)), (0, Some(1)), "the new piece has to be written");
        map.grow(3, true);
        assert_eq!(map.len(), BITS + 5);
    }

    #[test]
    fn bits_behind_the_last_chunk_stand_for_nothing() {
        let mut map = Bitmap::new(LEN);
        map.load(3, &BitmapBlock { sequence: 1, bits: [0xff; BITMAP_BYTES] });
        assert_eq!((map.count(), map.next(0), map.next(LEN)), (77, Some(BITS * 3), None));
        map.fill_piece(3);
        assert_eq!((map.count(), map.is_dirty(3)), (77, true));
        map.load(3, &BitmapBlock { sequence: 1, bits: [0; BITMAP_BYTES] });
        assert_eq!(map.count(), 0);
    }

    /// 1 TiB in chunks of 64 KiB: 2 MiB of bits, and nothing where no bits are.
    #[test]
    fn a_tebibyte_takes_two_mebibytes_and_a_little() {
        let mut map = Bitmap::new(1 << 24);
        let filled = allocation_counter::measure(|| _ = map.set(0..1 << 24));
        assert_eq!(map.count(), 1 << 24);
        assert!((2 << 20..(2 << 20) + (16 << 10)).contains(&filled.bytes_current), "{filled:?}");
        let emptied = allocation_counter::measure(|| _ = map.clear(0..1 << 24));
        assert_eq!(emptied.bytes_current, -filled.bytes_current);
        let fresh = allocation_counter::measure(|| std::mem::forget(Bitmap::new(1 << 24)));
        assert!(fresh.bytes_current < 16 << 10, "{fresh:?}");
    }
}
