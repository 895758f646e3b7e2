//! Packets out of a byte stream, in large reads and without copying payloads needlessly.
//!
//! It must never lose its position: a read that times out leaves the bytes so far in the buffer. A packet without the
//! magic or of an absurd length ends the stream, since nothing after it means anything. Used on both links.

use std::io::{self, ErrorKind, Read};

use crate::wire::{HEADER_LEN, Header, MAGIC};

/// First size of the buffer in bytes; it grows to the largest packet met.
const BUFFER: usize = 256 << 10;

/// Smallest payload in bytes that is read into its own place: for smaller ones a second read costs more than a copy.
const LARGE: usize = 32 << 10;

/// Longest read in bytes behind a payload of which the rest was read into its own place: the header of another one
/// like it, or a small packet. Bytes that are read into the buffer are copied once more.
const NEXT: usize = 8 << 10;

/// Longest payload taken from the daemon, in bytes: four times the daemon's default limit.
const PAYLOAD_MAX: u32 = 64 << 20;

/// One packet, still in the reader's buffer.
pub struct Packet<'a> {
    /// Its header.
    pub header: Header,
    /// The header's bytes, for the fields that `header` leaves out.
    pub head: &'a [u8; HEADER_LEN],
    /// Its payload.
    pub payload: &'a [u8],
}

/// The reading end of one link.
pub struct PacketReader<R> {
    from: R,
    buf: Vec<u8>,
    start: usize,
    end: usize,
    /// The last payload was read past the buffer.
    was_large: bool,
}

impl<R: Read> PacketReader<R> {
    /// Returns a reader with nothing read yet.
    pub fn new(from: R) -> Self {
        PacketReader { from, buf: vec![0; BUFFER], start: 0, end: 0, was_large: false }
    }

    /// Returns the next packet; waits for it. The end of the stream is [`ErrorKind::UnexpectedEof`].
    pub fn next_packet(&mut self) -> io::Result<Packet<'_>> {
        while !self.is_ready()? {
            self.fill()?;
        }
        self.take().ok_or_else(|| ErrorKind::InvalidData.into())
    }

    /// Returns the next packet with its payload in a place of that length, which `place` makes; waits for it. What of a
    /// large payload is not in the buffer yet is read into that place and nowhere else: an error of the stream, a time-out
    /// as well, is the end of it.
    pub fn next_into<B: AsMut<[u8]>>(
        &mut self,
        place: impl FnOnce(usize) -> B,
    ) -> io::Result<(Header, [u8; HEADER_LEN], B)> {
        let (header, head) = loop {
            let wanted = self.wanted()?;
            let is_here = wanted <= self.end - self.start;
            match self.header() {
                Some((header, head)) if is_here || wanted > LARGE => break (header, *head),
                _ => self.fill_for(wanted)?,
            }
        };
        self.start += HEADER_LEN;
        let mut payload = place(header.len as usize);
        let into = payload.as_mut();
        let here = self.buf.get(self.start..self.end).unwrap_or_default();
        let mut done = here.len().min(into.len());
        if let (Some(into), Some(here)) = (into.get_mut(..done), here.get(..done)) {
            into.copy_from_slice(here);
        }
        self.start += done;
        self.was_large = done < into.len();
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            done += read(&mut self.from, rest)?;
        }
        Ok((header, head, payload))
    }

    /// Returns true if [`Self::next_packet`] would return at once.
    pub fn is_ready(&self) -> io::Result<bool> {
        Ok(self.wanted()? <= self.end - self.start)
    }

    /// Reads once from the stream, as much as fits into the buffer.
    pub fn fill(&mut self) -> io::Result<()> {
        let wanted = self.wanted()?;
        self.fill_for(wanted)
    }

    fn fill_for(&mut self, wanted: usize) -> io::Result<()> {
        if self.start > 0 {
            self.buf.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.buf.len() < wanted {
            self.buf.resize(wanted, 0);
        }
        let most = if self.was_large { (self.end + NEXT).max(wanted) } else { usize::MAX };
        let most = most.min(self.buf.len());
        self.end += read(&mut self.from, self.buf.get_mut(self.end..most).unwrap_or_default())?;
        self.was_large = false;
        Ok(())
    }

    /// Returns the header with which the unread bytes begin.
    fn header(&self) -> Option<(Header, &[u8; HEADER_LEN])> {
        let head = self.buf.get(self.start..self.end)?.first_chunk()?;
        Some((Header::decode(head), head))
    }

    /// Returns the bytes that the next packet takes, as far as is known.
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

/// Reads once; the end of the stream is an error.
fn read(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(into) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => return Ok(n),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{MirrorFields, PacketType};
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

    fn packet(seq: u64, payload: &[u8]) -> Vec<u8> {
        let header = Header { len: payload.len() as u32, ..Header::new(PacketType::ND_SBIO) };
        let mut bytes = header.encode();
        MirrorFields { seq, ..MirrorFields::default() }.write(&mut bytes);
        [&bytes[..], payload].concat()
    }

    fn parts(packet: &Packet<'_>) -> (u64, Vec<u8>) {
        (MirrorFields::decode(packet.head).seq, packet.payload.to_vec())
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
                stream.extend(packet(i as u64, &vec![i as u8; *len]));
            }
            let mut reader = PacketReader::new(Pieces(&stream, pieces.into_iter().cycle()));
            let mut at = 0;
            loop {
                match reader.next_packet() {
                    Ok(packet) => {
                        prop_assert_eq!(parts(&packet), (at as u64, vec![at as u8; lens[at]]));
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn packets_come_whole_into_their_own_places(
            lens in prop::collection::vec(prop_oneof![0..700usize, LARGE - 200..3 * BUFFER], 1..12),
            pieces in prop::collection::vec(prop_oneof![1..900usize, 1..BUFFER], 1..8),
        ) {
            let mut stream = Vec::new();
            for (i, len) in lens.iter().enumerate() {
                stream.extend(packet(i as u64, &vec![i as u8; *len]));
            }
            let mut reader = PacketReader::new(Pieces(&stream, pieces.into_iter().cycle()));
            for (i, len) in lens.iter().enumerate() {
                let (header, head, payload) = reader.next_into(|len| vec![255; len]).unwrap();
                prop_assert_eq!(header.len as usize, *len);
                prop_assert_eq!(MirrorFields::decode(&head).seq, i as u64);
                prop_assert!(payload == vec![i as u8; *len]);
            }
            prop_assert!(reader.next_into(|len| vec![0; len]).is_err());
            prop_assert!(reader.buf.len() == BUFFER, "large payloads pass the buffer by");
        }
    }

    #[test]
    fn the_buffer_grows_for_a_large_packet() {
        let large = vec![7; 3 * BUFFER];
        let stream = packet(1, &large);
        let mut reader = PacketReader::new(&stream[..]);
        assert_eq!(parts(&reader.next_packet().unwrap()), (1, large));
    }

    #[test]
    fn a_stream_out_of_step_is_an_error() {
        let bad = Header { magic: 0, ..Header::new(PacketType::ND_SBIO) }.encode();
        assert_eq!(PacketReader::new(&bad[..]).next_packet().err().unwrap().kind(), ErrorKind::InvalidData);
        let long = Header { len: u32::MAX, ..Header::new(PacketType::ND_SBIO) }.encode();
        assert_eq!(PacketReader::new(&long[..]).next_packet().err().unwrap().kind(), ErrorKind::InvalidData);
    }
}
