//! Cuts a stream of bytes into runs of packets, without copying payload.
//!
//! A run is a slice of the receive buffer that holds consecutive packets for the same destination. Slices
//! share the buffer by reference count; the buffer is used again when all of them are gone. It starts small
//! and doubles while reads fill it, so that idle links cost little.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::{Bytes, BytesMut};

use crate::daemon::queue::Cost;
use crate::wire::{Class, Device, HEADER_LEN, Header, Mask, PacketType, Refusal, Scope};

/// Size of the first buffer: a few meta packets, or one packet of a page.
const FIRST_CHUNK: usize = 8 * 1024;
/// Size at which a buffer stops growing, unless a single packet is larger. Bytes read are written again at once: a
/// few buffers of this size stay in the processor's second-level cache, larger ones were measured to be slower.
/// Smaller ones would take more than one system call for each ten packets of 4 KiB.
pub const MAX_CHUNK: usize = 128 * 1024;
/// Largest packet length for which a buffer is made ready before the header is there: a link must not keep the memory
/// of its largest packet for ever.
const LARGE: usize = 2 * 1024 * 1024;

/// Consecutive packets of one link for the same destination.
#[derive(Clone, Debug)]
pub struct Run {
    /// The class, data or meta, by the packets' types.
    pub class: Class,
    /// The kind of the ids in `node_to`: nodes or sites.
    pub scope: Scope,
    /// The resource that the packets concern.
    pub device: Device,
    /// The destinations of the packets.
    pub node_to: Mask,
    /// The packets, headers and payloads.
    pub bytes: Bytes,
    /// The cost of the packets in a queue.
    pub cost: Cost,
}

/// One item that was found in the bytes.
#[derive(Clone, Debug)]
pub enum Item {
    /// Packets to relay.
    Run(Run),
    /// A packet of a type that daemons alone originate: never relayed.
    DaemonsOwn(Header),
    /// A packet HD_VIEW with its payload.
    View(Header, Bytes),
    /// A packet of a type that is not relayed, skipped whole.
    Unrelayed(Header),
}

/// The reading side's buffer, and the state of the packet at its front.
#[derive(Debug)]
pub struct Framer {
    buf: BytesMut,
    max_packet: u32,
    chunk: u64,
    chunk_bytes: usize,
    /// The size in bytes of the next buffer.
    want: usize,
    /// The largest read into this buffer, in bytes.
    best_read: usize,
    /// Length of the last packet seen: buffers are made to end where packets of this length end.
    last_packet: usize,
}

/// Returns a number that no other buffer has had: where pointers are 32 bits wide it comes again after four thousand
/// million buffers, when none of the first is left.
fn fresh_chunk() -> u64 {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    NEXT.fetch_add(1, Relaxed) as u64
}

impl Framer {
    /// Returns a framer with an empty buffer that refuses packets with more than `max_packet` bytes of payload.
    pub fn new(max_packet: u32) -> Self {
        Framer {
            buf: BytesMut::new(),
            max_packet,
            chunk: 0,
            chunk_bytes: 0,
            want: FIRST_CHUNK,
            best_read: 0,
            last_packet: HEADER_LEN,
        }
    }

    /// Returns the number of bytes of an incomplete packet.
    pub fn pending(&self) -> usize {
        self.buf.len()
    }

    /// Returns the number of bytes that can be read without another buffer.
    pub fn space(&self) -> usize {
        self.buf.capacity().saturating_sub(self.buf.len())
    }

    /// Returns the number of bytes that the packet at the front, or its header, lacks.
    pub(super) fn missing(&self) -> usize {
        self.front().map_or(HEADER_LEN, |header| packet_len(&header)).saturating_sub(self.buf.len())
    }

    /// Takes over bytes that were read elsewhere; the buffer must be empty.
    pub(super) fn take_over(&mut self, bytes: Vec<u8>) {
        self.buf = Bytes::from(bytes).into();
        self.chunk_bytes = self.buf.capacity();
        self.chunk = fresh_chunk();
        self.best_read = self.buf.len();
    }

    /// Returns the buffer to read into, with space for at least one byte more.
    ///
    /// # Errors
    /// There is no memory for the packet at the front.
    pub fn room(&mut self) -> io::Result<&mut BytesMut> {
        let likely = if self.last_packet > LARGE { HEADER_LEN } else { self.last_packet };
        let packet = self.front().map_or(likely, |header| packet_len(&header));
        let missing = packet.saturating_sub(self.buf.len()).max(1);
        if self.buf.capacity().saturating_sub(self.buf.len()) < missing {
            self.next_chunk(packet)?;
        }
        Ok(&mut self.buf)
    }

    /// Counts `n` bytes as read into [`Framer::room`].
    pub fn filled(&mut self, n: usize) {
        self.best_read = self.best_read.max(n);
        // A small read that happens to end where the buffer ends says nothing.
        if self.buf.len() == self.buf.capacity() && n >= self.chunk_bytes / 2 {
            self.want = self.want.saturating_mul(2).min(MAX_CHUNK);
        }
    }

    fn next_chunk(&mut self, packet: usize) -> io::Result<()> {
        if self.best_read < self.chunk_bytes / 8 {
            self.want = (self.want / 2).max(FIRST_CHUNK);
        }
        self.best_read = 0;
        let size = self.want.checked_div(packet).unwrap_or_default().max(1).saturating_mul(packet);
        let fits = (size..=size.saturating_mul(2)).contains(&self.chunk_bytes);
        if !fits || !self.buf.try_reclaim(size.saturating_sub(self.buf.len())) {
            let mut next = empty(size).or_else(|_| empty(packet))?;
            next.extend_from_slice(&self.buf);
            self.buf = next;
            self.chunk_bytes = self.buf.capacity();
        }
        self.chunk = fresh_chunk();
        Ok(())
    }

    fn front(&self) -> Option<Header> {
        self.buf.first_chunk().map(Header::decode)
    }

    /// Returns the next item of the bytes read, `None` if the rest is not a whole packet. Calls `seen` with every
    /// header.
    ///
    /// # Errors
    /// The magic is missing or the packet is too long: the stream cannot be read on.
    pub fn next(&mut self, seen: &mut dyn FnMut(&Header)) -> Result<Option<Item>, Refusal> {
        let mut len = 0;
        let mut packets: u32 = 0;
        let mut first: Option<(Header, Class, Scope)> = None;
        while let Some(bytes) = self.buf.get(len..).and_then(|rest| rest.first_chunk()) {
            let header = Header::decode(bytes);
            let checked = match header.check(self.max_packet) {
                // The packets before it are good; the refusal is found again with the next call.
                Err(Refusal::BadMagic(_) | Refusal::TooLong { .. }) if first.is_some() => break,
                other => other,
            };
            if let Err(refusal @ (Refusal::BadMagic(_) | Refusal::TooLong { .. })) = checked {
                return Err(refusal);
            }
            let size = packet_len(&header);
            let Some(end) = len.checked_add(size).filter(|&end| end <= self.buf.len()) else { break };
            match (checked, &first) {
                (Ok((class, scope)), None) if !header.kind.is_daemons_own() => {
                    first = Some((header, class, scope));
                }
                (Ok(way), Some((head, class, scope)))
                    if way == (*class, *scope)
                        && header.node_to == head.node_to
                        && header.device == head.device
                        && !header.kind.is_daemons_own() => {}
                (_, Some(_)) => break,
                (checked, None) => {
                    seen(&header);
                    self.last_packet = size;
                    let mut packet = self.buf.split_to(size);
                    return Ok(Some(match checked {
                        Ok(_) => Item::DaemonsOwn(header),
                        Err(_) if header.kind == PacketType::HD_VIEW => {
                            Item::View(header, packet.split_off(HEADER_LEN).freeze())
                        }
                        Err(_) => Item::Unrelayed(header),
                    }));
                }
            }
            seen(&header);
            self.last_packet = size;
            len = end;
            packets = packets.wrapping_add(1);
        }
        Ok(first.map(|(header, class, scope)| {
            let bytes = self.buf.split_to(len).freeze();
            let cost = Cost { packets, bytes: len, chunk: self.chunk, chunk_bytes: self.chunk_bytes };
            Item::Run(Run { class, scope, device: header.device, node_to: header.node_to, bytes, cost })
        }))
    }
}

/// Returns a buffer of `size` bytes, or an error without the memory: asked for directly, that would end the process.
pub(super) fn empty(size: usize) -> io::Result<BytesMut> {
    let mut memory = Vec::new();
    let short =
        || io::Error::new(io::ErrorKind::OutOfMemory, "this machine has no memory left for its packets");
    memory.try_reserve_exact(size).map_err(|_| short())?;
    Ok(Bytes::from(memory).into())
}

/// Returns the length of a packet in bytes, with its header.
pub(super) fn packet_len(header: &Header) -> usize {
    HEADER_LEN.saturating_add(header.len as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::PacketType;
    use proptest::prelude::*;

    fn packet(kind: u8, device: u8, node_to: u32, payload: &[u8]) -> Vec<u8> {
        let header = Header {
            len: payload.len() as u32,
            device: device.into(),
            node_to: Mask(node_to),
            ..Header::new(PacketType(kind))
        };
        [&header.encode()[..], payload].concat()
    }

    /// Feeds the bytes in pieces and returns the runs, each cut into its packets' bytes.
    fn feed(bytes: &[u8], pieces: &[usize], max: u32) -> (Vec<u8>, Vec<Header>, Option<Refusal>) {
        let mut framer = Framer::new(max);
        let (mut relayed, mut headers, mut at, mut piece) = (Vec::new(), Vec::new(), 0, 0);
        loop {
            match framer.next(&mut |header| headers.push(*header)) {
                Err(refusal) => return (relayed, headers, Some(refusal)),
                Ok(Some(Item::Run(run))) => {
                    assert_eq!(run.cost.bytes, run.bytes.len());
                    relayed.extend_from_slice(&run.bytes);
                }
                Ok(Some(_)) => {}
                Ok(None) if at == bytes.len() => return (relayed, headers, None),
                Ok(None) => {
                    let room = framer.room().unwrap();
                    let n = pieces[piece % pieces.len()]
                        .clamp(1, room.capacity() - room.len())
                        .min(bytes.len() - at);
                    piece += 1;
                    room.extend_from_slice(&bytes[at..at + n]);
                    framer.filled(n);
                    at += n;
                }
            }
        }
    }

    #[test]
    fn packets_for_the_same_destination_are_one_run() {
        let mut framer = Framer::new(1000);
        for (dev, to) in [(0, 1), (0, 1), (0, 2), (1, 2)] {
            framer.room().unwrap().extend_from_slice(&packet(36, dev, to, b"payload"));
        }
        let mut runs = Vec::new();
        while let Some(Item::Run(run)) = framer.next(&mut |_| {}).unwrap() {
            runs.push((run.cost.packets, u8::from(run.device), run.node_to.0));
        }
        assert_eq!(runs, [(2, 0, 1), (1, 0, 2), (1, 1, 2)]);
        assert_eq!(framer.pending(), 0);
    }

    /// Failure mode 21: the length is looked at before anything is allocated for it.
    #[test]
    fn fm21_a_length_of_4_gib_is_refused_before_any_memory_is_taken() {
        let mut bytes = packet(36, 0, 1, b"");
        bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut framer = Framer::new(16 << 20);
        framer.room().unwrap().extend_from_slice(&bytes);
        let refusal = framer.next(&mut |_| {}).unwrap_err();
        assert_eq!(refusal, Refusal::TooLong { len: u32::MAX, max: 16 << 20 });
        assert!(framer.chunk_bytes <= FIRST_CHUNK);
    }

    #[test]
    fn what_stands_before_a_bad_packet_is_still_delivered() {
        let good = packet(36, 0, 1, b"good");
        let bytes = [&good[..], &[0xee; HEADER_LEN]].concat();
        let (relayed, _, refusal) = feed(&bytes, &[bytes.len()], 1000);
        assert_eq!(relayed, good);
        assert!(matches!(refusal, Some(Refusal::BadMagic(_))));
    }

    #[test]
    fn buffers_grow_under_load_and_shrink_again() {
        let stream = packet(36, 0, 1, &[7; 4096]).repeat(200);
        let mut framer = Framer::new(1 << 20);
        let mut at = 0;
        // Reads as much as fits, or at most one packet at a time.
        let mut read = |most: usize| {
            let room = framer.room().unwrap();
            let n = most.min(room.capacity() - room.len()).min(stream.len() - at);
            room.extend_from_slice(&stream[at..at + n]);
            at = (at + n) % stream.len();
            framer.filled(n);
            while framer.next(&mut |_| {}).unwrap().is_some() {}
            framer.chunk_bytes
        };
        let mut most_of = |n: usize, most: usize| (0..n).map(|_| read(most)).last().unwrap();
        assert!(most_of(40, 4224) <= 2 * FIRST_CHUNK);
        let large = most_of(40, usize::MAX);
        assert!(large > MAX_CHUNK / 2 && large <= MAX_CHUNK, "{large}");
        assert!(most_of(2000, 4224) < MAX_CHUNK / 2);
    }

    /// Failure mode 9: a link that waits for its next packet does not keep the memory of a large one.
    #[test]
    fn fm09_a_large_packets_buffer_goes_with_the_packet() {
        let mut framer = Framer::new(16 << 20);
        for payload in [16 << 20, 100] {
            for bytes in packet(36, 0, 1, &vec![7; payload]).chunks(1 << 20) {
                let mut left = bytes;
                while !left.is_empty() {
                    let room = framer.room().unwrap();
                    let n = left.len().min(room.capacity() - room.len());
                    room.extend_from_slice(&left[..n]);
                    left = &left[n..];
                    framer.filled(n);
                }
            }
            assert!(matches!(framer.next(&mut |_| {}), Ok(Some(Item::Run(_)))));
            framer.room().unwrap();
            assert!(framer.chunk_bytes <= MAX_CHUNK, "{} bytes", framer.chunk_bytes);
        }
    }

    proptest! {
        #[test]
        fn any_split_of_a_stream_gives_the_same_packets(
            packets in prop::collection::vec((0u8..70, 0u8..3, 1u32..4, 0usize..20_000), 1..40),
            pieces in prop::collection::vec(1usize..30_000, 1..20),
        ) {
            let packets: Vec<_> = packets.iter()
                .map(|&(kind, dev, to, len)| (kind, packet(kind, dev, to, &vec![kind; len]))).collect();
            let stream: Vec<u8> = packets.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
            let expected: Vec<u8> = packets.iter()
                .filter(|(kind, _)| {
                    let kind = PacketType(*kind);
                    kind.relayed().is_some() && !kind.is_daemons_own()
                })
                .flat_map(|(_, bytes)| bytes.clone()).collect();
            let (relayed, headers, refusal) = feed(&stream, &pieces, 1 << 20);
            prop_assert_eq!(refusal, None);
            prop_assert!(relayed == expected);
            prop_assert_eq!(headers.len(), packets.len());
        }

        #[test]
        fn garbage_never_gets_through(bytes in prop::collection::vec(any::<u8>(), HEADER_LEN..1000)) {
            prop_assume!(bytes[0] != 0xb9);
            let (relayed, _, refusal) = feed(&bytes, &[1000], 1000);
            prop_assert!(relayed.is_empty());
            prop_assert!(matches!(refusal, Some(Refusal::BadMagic(_))));
        }
    }
}
