//! The codec that compresses for slow links: whole packets compressed with LZ4, or stored where that gains nothing.
//!
//! ```text
//! | u32 plain length | u32 coded length | coded bytes |      little-endian
//! ```
//! Equal lengths: the packets are stored as they are. A frame carries one packet, or several short ones that came
//! together; each frame is decoded alone. Its length fields are checked against the largest packet before anything is
//! allocated.

use std::io;
use std::sync::Arc;

use bytes::{Buf, BufMut, BytesMut};
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

use super::codec::make_room;
use super::{CodecError, Decode, Encode, LinkCodec};
use crate::sys::Counter;
use crate::wire::{HEADER_LEN, Header};

/// Length of both length fields, in bytes.
const FRAME_HEAD: usize = 8;
/// Packets are put into one frame up to this length: more bytes to find repetitions in, fewer frames. Below
/// 64 KiB the compressor's table is half as large.
const JOIN_MAX: usize = u16::MAX as usize - 1;
/// Frames that are shorter are not tried: with the headers of TCP and IP they would hardly shrink.
const TRY_MIN: usize = 256;
/// Largest factor by which LZ4 expands a byte.
const EXPANSION_MAX: usize = 255;

/// The counters of compression in one direction.
#[derive(Debug, Default)]
pub struct CompressionStats {
    /// Bytes of packets, uncompressed.
    pub plain: Counter,
    /// Bytes of the frames that carried the packets.
    pub wire: Counter,
}

impl CompressionStats {
    fn add(&self, plain: usize, coded: usize) {
        self.plain.add(plain as u64);
        self.wire.add(FRAME_HEAD.saturating_add(coded) as u64);
    }
}

/// Returns the codec of one link whose packets have at most `max_packet` bytes of payload.
pub fn codec(max_packet: u32, out: &Arc<CompressionStats>, inbound: &Arc<CompressionStats>) -> LinkCodec {
    let max = HEADER_LEN.saturating_add(max_packet as usize).max(JOIN_MAX);
    LinkCodec {
        encode: Box::new(Lz4Encoder {
            table: CompressTable::small(),
            room: Vec::new(),
            done: Arc::clone(out),
        }),
        decode: Box::new(Lz4Decoder { max, done: Arc::clone(inbound) }),
    }
}

struct Lz4Encoder {
    table: CompressTable,
    room: Vec<u8>,
    done: Arc<CompressionStats>,
}

impl Encode for Lz4Encoder {
    fn encode(&mut self, mut plain: &[u8], out: &mut BytesMut) -> Result<(), CodecError> {
        while !plain.is_empty() {
            let (frame, rest) = plain.split_at(joined(plain));
            plain = rest;
            self.frame(frame, out)?;
        }
        // The memory that a single long packet needed is not kept.
        self.room.truncate(get_maximum_output_size(JOIN_MAX));
        self.room.shrink_to(get_maximum_output_size(JOIN_MAX));
        Ok(())
    }
}

impl Lz4Encoder {
    fn frame(&mut self, plain: &[u8], out: &mut BytesMut) -> Result<(), CodecError> {
        let coded = self.compress(plain).unwrap_or(plain);
        let head = (plain.len() as u32, coded.len() as u32);
        make_room(out, FRAME_HEAD.saturating_add(coded.len())).map_err(no_memory)?;
        out.put_u32_le(head.0);
        out.put_u32_le(head.1);
        out.put_slice(coded);
        self.done.add(plain.len(), head.1 as usize);
        Ok(())
    }

    /// Returns the compressed bytes, if they are fewer than `plain`.
    fn compress(&mut self, plain: &[u8]) -> Option<&[u8]> {
        if plain.len() < TRY_MIN {
            return None;
        }
        let most = get_maximum_output_size(plain.len());
        if self.room.len() < most {
            // Without the memory, the packet goes as it is.
            self.room.try_reserve_exact(most.saturating_sub(self.room.len())).ok()?;
            self.room.resize(most, 0);
        }
        let n = compress_into_with_table(plain, &mut self.room, &mut self.table).ok()?;
        self.room.get(..n).filter(|coded| coded.len() < plain.len())
    }
}

fn no_memory(error: io::Error) -> CodecError {
    CodecError(error.to_string())
}

/// Returns the number of bytes at the front that go into one frame.
fn joined(plain: &[u8]) -> usize {
    let mut len: usize = 0;
    while let Some(head) = plain.get(len..).and_then(|rest| rest.first_chunk()) {
        let next = len.saturating_add(HEADER_LEN).saturating_add(Header::decode(head).len as usize);
        if len > 0 && next > JOIN_MAX {
            return len;
        }
        len = next;
    }
    plain.len()
}

struct Lz4Decoder {
    /// Longest plain length, in bytes.
    max: usize,
    done: Arc<CompressionStats>,
}

impl Decode for Lz4Decoder {
    fn decode(&mut self, wire: &mut BytesMut, out: &mut BytesMut) -> Result<bool, CodecError> {
        let Some((head, _)) = wire.split_first_chunk::<FRAME_HEAD>() else { return Ok(false) };
        let mut head = &head[..];
        let (len, coded) = (head.get_u32_le() as usize, head.get_u32_le() as usize);
        if len > self.max {
            let max = self.max;
            return Err(CodecError(format!("compressed frame of {len} bytes, at most {max} are taken")));
        }
        if coded > len || len / EXPANSION_MAX > coded || len == 0 {
            return Err(CodecError(format!("compressed frame that claims to make {len} bytes of {coded}")));
        }
        let frame = FRAME_HEAD.saturating_add(coded);
        let Some(bytes) = wire.get(FRAME_HEAD..frame) else { return Ok(false) };
        make_room(out, len).map_err(no_memory)?;
        if coded == len {
            out.extend_from_slice(bytes);
        } else {
            let at = out.len();
            out.resize(at.saturating_add(len), 0);
            let made = decompress_into(bytes, out.get_mut(at..).unwrap_or_default());
            if made.ok() != Some(len) {
                out.truncate(at);
                return Err(CodecError(format!("compressed frame that does not make {len} bytes")));
            }
        }
        wire.advance(frame);
        self.done.add(len, coded);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::PacketType;
    use proptest::prelude::*;

    fn packet(payload: &[u8]) -> Vec<u8> {
        let header = Header { len: payload.len() as u32, ..Header::new(PacketType(23)) };
        [&header.encode()[..], payload].concat()
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(len as u64);
        (0..len).map(|_| random.u8(..)).collect()
    }

    fn pair(max_packet: u32) -> (LinkCodec, [Arc<CompressionStats>; 2]) {
        let done = [Arc::default(), Arc::default()];
        (codec(max_packet, &done[0], &done[1]), done)
    }

    fn encoded(codec: &mut LinkCodec, plain: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        codec.encode.encode(plain, &mut out).unwrap();
        out
    }

    /// Returns the frames' plain and coded lengths.
    fn frames(mut wire: &[u8]) -> Vec<(u32, u32)> {
        let mut frames = Vec::new();
        while !wire.is_empty() {
            let frame = (wire.get_u32_le(), wire.get_u32_le());
            wire.advance(frame.1 as usize);
            frames.push(frame);
        }
        frames
    }

    #[test]
    fn short_packets_share_a_frame_and_long_ones_have_their_own() {
        let (mut codec, _) = pair(1 << 20);
        let wire = encoded(&mut codec, &packet(&[7; 4096]).repeat(20));
        assert_eq!(frames(&wire).iter().map(|frame| frame.0).collect::<Vec<_>>(), [15 * 4224, 5 * 4224]);
        let long = [packet(&[1; 100]), packet(&[2; 1 << 20]), packet(&[3; 100])].concat();
        let mut wire = encoded(&mut codec, &long);
        assert_eq!(
            frames(&wire).iter().map(|frame| frame.0).collect::<Vec<_>>(),
            [228, 128 + (1 << 20), 228]
        );
        let mut out = BytesMut::new();
        while codec.decode.decode(&mut wire, &mut out).unwrap() {}
        assert!(out == long, "{} of {} bytes", out.len(), long.len());
    }

    #[test]
    fn what_does_not_shrink_is_stored_and_what_is_short_is_not_tried() {
        let (mut codec, done) = pair(1 << 20);
        let wire = encoded(&mut codec, &packet(&noise(100_000)));
        assert_eq!(frames(&wire), [(100_128, 100_128)]);
        let wire = encoded(&mut codec, &packet(&[0; TRY_MIN - HEADER_LEN - 1]));
        assert_eq!(frames(&wire), [(TRY_MIN as u32 - 1, TRY_MIN as u32 - 1)]);
        let wire = encoded(&mut codec, &packet(&[0; TRY_MIN - HEADER_LEN]));
        assert!(frames(&wire)[0].1 < 100);
        assert_eq!(done[0].plain.get(), 100_128 + 255 + 256);
        assert!(done[0].wire.get() < done[0].plain.get());
    }

    fn refusal(bytes: &[u8]) -> String {
        let (mut codec, _) = pair(1 << 20);
        let mut out = BytesMut::new();
        let refused = codec.decode.decode(&mut BytesMut::from(bytes), &mut out).unwrap_err();
        assert!(out.capacity() < 1 << 20 && out.is_empty(), "nothing is left behind");
        refused.to_string()
    }

    /// Hostile lengths are refused by the length fields alone: none of these frames has a body.
    #[test]
    fn lying_lengths_are_refused_before_any_memory_is_taken() {
        let frame = |len: u32, coded: u32| [len.to_le_bytes(), coded.to_le_bytes()].concat();
        let max = 128 + (1 << 20);
        assert_eq!(
            refusal(&frame(max + 1, 10_000)),
            "compressed frame of 1048705 bytes, at most 1048704 are taken"
        );
        assert!(refusal(&frame(u32::MAX, u32::MAX)).contains("at most 1048704"));
        for (len, coded) in [(100, 101), (100, u32::MAX), (0, 0), (max, 4000), (65_536, 0)] {
            assert!(refusal(&frame(len, coded)).contains("claims to make"), "{len} of {coded}");
        }
        // The decoder waits for the rest of a longest frame.
        let (mut codec, _) = pair(1 << 20);
        let mut longest = BytesMut::from(&frame(max, max)[..]);
        assert_eq!(codec.decode.decode(&mut longest, &mut BytesMut::new()), Ok(false));
    }

    #[test]
    fn frames_that_make_more_or_less_than_they_say_are_refused() {
        let (mut codec, _) = pair(1 << 20);
        let mut wire = encoded(&mut codec, &packet(&[9; 4096]));
        for len in [4223u32, 4225, 1000] {
            wire[..4].copy_from_slice(&len.to_le_bytes());
            assert!(refusal(&wire).contains("does not make"), "{len}");
        }
    }

    proptest! {
        #[test]
        fn packets_come_back_whatever_the_split(
            sizes in prop::collection::vec((0usize..9000, any::<bool>()), 1..40),
            pieces in prop::collection::vec(1usize..20_000, 1..20),
        ) {
            let plain: Vec<u8> = sizes
                .iter()
                .flat_map(|&(len, rough)| packet(&if rough { noise(len) } else { vec![len as u8; len] }))
                .collect();
            let (mut codec, done) = pair(1 << 20);
            let sent = encoded(&mut codec, &plain);
            let (mut wire, mut out) = (BytesMut::new(), BytesMut::new());
            let (mut rest, mut pieces) = (&sent[..], pieces.iter().cycle());
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(rest.len().min(*pieces.next().unwrap()));
                rest = after;
                wire.extend_from_slice(piece);
                while codec.decode.decode(&mut wire, &mut out).unwrap() {}
            }
            prop_assert!(wire.is_empty() && out == plain);
            let [left, came] = done.map(|done| (done.plain.get(), done.wire.get()));
            prop_assert_eq!(left, came);
            prop_assert_eq!(left, (plain.len() as u64, sent.len() as u64));
        }

        #[test]
        fn any_bytes_are_decoded_waited_for_or_refused(
            len in 0u32..10_000, coded in 0u32..600, body in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            let (mut codec, _) = pair(8192);
            let mut wire = BytesMut::from(&[&len.to_le_bytes()[..], &coded.to_le_bytes(), &body].concat()[..]);
            let mut out = BytesMut::new();
            let whole = body.len() >= coded as usize;
            match codec.decode.decode(&mut wire, &mut out) {
                Ok(true) => prop_assert!(whole && out.len() == len as usize),
                Ok(false) => prop_assert!(!whole && out.is_empty()),
                Err(_) => prop_assert!(out.is_empty()),
            }
        }
    }
}
