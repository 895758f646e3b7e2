//! Packets out of a byte stream, in large reads and without copying payloads.
//!
//! It must never lose its place: a read that times out leaves what came so far in the buffer. A packet
//! without the magic or of an absurd length ends the stream, since nothing after it means anything. Used on
//! both links by every command.

use std::io::{self, ErrorKind, Read};

use crate::wire::{HEADER_LEN, Header, MAGIC};

use super::frame::{Label, Message};

/// First size of the buffer in bytes; it grows to the largest packet met.
const BUFFER: usize = 256 << 10;

/// Longest payload taken from the daemon, in bytes: four times what it lets through unless configured.
const PAYLOAD_MAX: u32 = 64 << 20;

/// One packet, still in the reader's buffer.
pub struct Packet<'a> {
    /// Its header.
    pub header: Header,
    head: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// What it says, if a probe has written it.
    pub fn message(&self) -> Option<(Label, Message<'a>)> {
        Label::read(&self.header, self.head, self.payload)
    }
}

/// The reading end of one link.
pub struct PacketReader<R> {
    from: R,
    buf: Vec<u8>,
    start: usize,
    end: usize,
}

impl<R: Read> PacketReader<R> {
    /// A reader with nothing read yet.
    pub fn new(from: R) -> Self {
        PacketReader { from, buf: vec![0; BUFFER], start: 0, end: 0 }
    }

    /// The next packet; waits for it. The end of the stream is [`ErrorKind::UnexpectedEof`].
    pub fn next(&mut self) -> io::Result<Packet<'_>> {
        while !self.is_ready()? {
            self.fill()?;
        }
        self.take().ok_or_else(|| ErrorKind::InvalidData.into())
    }

    /// Whether [`Self::next`] would return at once.
    pub fn is_ready(&self) -> io::Result<bool> {
        Ok(self.wanted()? <= self.end - self.start)
    }

    /// Reads once from the stream, as much as there is room for.
    pub fn fill(&mut self) -> io::Result<()> {
        let wanted = self.wanted()?;
        if self.start > 0 {
            self.buf.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.buf.len() < wanted {
            self.buf.resize(wanted, 0);
        }
        loop {
            match self.from.read(self.buf.get_mut(self.end..).unwrap_or_default()) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    self.end += n;
                    return Ok(());
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// The header that the unread bytes begin with.
    fn header(&self) -> Option<(Header, &[u8; HEADER_LEN])> {
        let head = self.buf.get(self.start..self.end)?.first_chunk()?;
        Some((Header::decode(head), head))
    }

    /// Bytes that the next packet takes, as far as is known.
    fn wanted(&self) -> io::Result<usize> {
        let wrong = |what: String| Err(io::Error::new(ErrorKind::InvalidData, what));
        match self.header() {
            None => Ok(HEADER_LEN),
            Some((header, _)) if header.magic != MAGIC => {
                wrong(format!("a packet came with the magic {:#018x} instead of {MAGIC:#018x}", header.magic))
            }
            Some((header, _)) if header.len > PAYLOAD_MAX => {
                wrong(format!("a packet of {} bytes came: more than {PAYLOAD_MAX}", header.len))
            }
            Some((header, _)) => Ok(HEADER_LEN + header.len as usize),
        }
    }

    fn take(&mut self) -> Option<Packet<'_>> {
        let total = self.wanted().ok()?;
        let bytes = self.buf.get(self.start..self.end)?.get(..total)?;
        self.start += total;
        let (head, payload) = bytes.split_first_chunk()?;
        Some(Packet { header: Header::decode(head), head, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Mask, PacketType, ResourceId, Scope};
    use proptest::prelude::*;

    /// Gives the bytes in pieces of the sizes given, round and round; a piece of 0 is a time-out.
    struct Pieces<'a>(&'a [u8], std::iter::Cycle<std::vec::IntoIter<usize>>);

    impl Read for Pieces<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let piece = self.1.next().unwrap();
            if piece == 0 && !self.0.is_empty() {
                return Err(ErrorKind::WouldBlock.into());
            }
            let n = piece.min(buf.len()).min(self.0.len());
            buf[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    fn label(seq: u64) -> Label {
        let dev = ResourceId::try_from(0).unwrap();
        Label { scope: Scope::Node, from: 3, to: Mask(1), dev, transfer: 9, seq }
    }

    proptest! {
        #[test]
        fn packets_come_whole_however_they_are_cut(
            lens in prop::collection::vec(0..700usize, 0..20),
            mut pieces in prop::collection::vec(0..900usize, 1..8),
        ) {
            pieces.push(1);
            let mut stream = Vec::new();
            for (i, len) in lens.iter().enumerate() {
                label(i as u64).packet(&Message::Chunk(&vec![i as u8; *len]), &mut stream);
            }
            let mut reader = PacketReader::new(Pieces(&stream, pieces.into_iter().cycle()));
            let mut at = 0;
            loop {
                match reader.next() {
                    Ok(packet) => {
                        let expected = vec![at as u8; lens[at]];
                        prop_assert_eq!(packet.message(), Some((label(at as u64), Message::Chunk(&expected))));
                        at += 1;
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    Err(e) => {
                        prop_assert_eq!(e.kind(), ErrorKind::UnexpectedEof);
                        break;
                    }
                }
            }
            prop_assert_eq!(at, lens.len());
        }
    }

    #[test]
    fn the_buffer_grows_for_a_large_packet() {
        let mut stream = Vec::new();
        let large = vec![7; 3 * BUFFER];
        label(1).packet(&Message::Chunk(&large), &mut stream);
        let mut reader = PacketReader::new(&stream[..]);
        assert_eq!(reader.next().unwrap().message(), Some((label(1), Message::Chunk(&large))));
    }

    #[test]
    fn a_stream_out_of_step_is_an_error() {
        let bad = Header { magic: 0, ..Header::new(PacketType::ND_SBIO) }.encode();
        assert_eq!(PacketReader::new(&bad[..]).next().err().unwrap().kind(), ErrorKind::InvalidData);
        let long = Header { len: u32::MAX, ..Header::new(PacketType::ND_SBIO) }.encode();
        assert_eq!(PacketReader::new(&long[..]).next().err().unwrap().kind(), ErrorKind::InvalidData);
    }
}
