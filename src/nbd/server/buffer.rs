//! Memory for payloads. Large pieces are used again: fresh memory costs a page fault for every 4 KiB, which is most of
//! the cost of a payload of 1 MiB.
//!
//! Must keep no more than [`KEPT_MAX`] that is not in use. Called by connections for the data of writes, and by disks
//! for the data of reads.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

/// Smallest and largest piece in bytes that is kept: smaller ones cost little, larger ones are seldom needed.
const PIECE_MIN: usize = 64 << 10;
const PIECE_MAX: usize = 1 << 20;

/// Bytes that are kept for later: four pieces of the largest kind, the requests in flight of one busy client.
const KEPT_MAX: usize = 4 << 20;

/// The pieces that are kept, and their bytes. No other lock is taken under it.
static KEPT: Mutex<(Vec<Vec<u8>>, usize)> = Mutex::new((Vec::new(), 0));

/// Bytes to be filled. Their content before is undefined: zeroes, or the rest of an earlier payload.
pub struct Buffer {
    /// At least as long as the buffer.
    piece: Vec<u8>,
    len: usize,
}

impl Buffer {
    /// Makes a buffer of `len` bytes.
    pub fn new(len: usize) -> Self {
        if !(PIECE_MIN..=PIECE_MAX).contains(&len) {
            return Buffer { piece: vec![0; len], len };
        }
        let size = len.checked_next_power_of_two().unwrap_or(len);
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.0.iter().rposition(|piece| piece.len() == size);
        let piece = at.map(|at| kept.0.swap_remove(at));
        if piece.is_some() {
            kept.1 = kept.1.saturating_sub(size);
        }
        drop(kept);
        Buffer { piece: piece.unwrap_or_else(|| vec![0; size]), len }
    }

    /// Returns the bytes, to be shared from now on.
    pub fn freeze(mut self) -> Bytes {
        if self.piece.len() == self.len && !is_kept(self.len) {
            return std::mem::take(&mut self.piece).into();
        }
        Bytes::from_owner(self)
    }
}

fn is_kept(size: usize) -> bool {
    (PIECE_MIN..=PIECE_MAX).contains(&size) && size.is_power_of_two()
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.piece.get(..self.len).unwrap_or_default()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.piece.get_mut(..self.len).unwrap_or_default()
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let size = self.piece.len();
        if !is_kept(size) {
            return;
        }
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = kept.1.saturating_add(size);
        if sum <= KEPT_MAX {
            kept.1 = sum;
            kept.0.push(std::mem::take(&mut self.piece));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_as_long_as_asked_for_and_no_more_is_kept_than_may_be() {
        for len in [0, 1, 4096, PIECE_MIN - 1, PIECE_MIN, PIECE_MIN + 1, 300_000, PIECE_MAX, PIECE_MAX + 1] {
            let mut buffer = Buffer::new(len);
            buffer.fill(7);
            assert_eq!(buffer.freeze(), vec![7; len]);
        }
        let many: Vec<_> = (0..8).map(|_| Buffer::new(PIECE_MAX).freeze()).collect();
        let shared = many.clone();
        drop(many);
        drop(shared);
        let kept = KEPT.lock().unwrap();
        let sum: usize = kept.0.iter().map(Vec::len).sum();
        assert!(sum == kept.1 && sum <= KEPT_MAX && sum > 0, "{sum} and {} bytes are kept", kept.1);
    }
}
