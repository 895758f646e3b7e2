//! The time that a site takes to confirm a write, of one write at a time: looking at all of them would cost each of them.
//!
//! Pure but for the clock. Must never hold anything up. Called by the mirror for packets that go and come.

use std::time::{Duration, Instant};

use crate::wire::{HEADER_LEN, Header, MirrorFields, PacketType};

/// The write that is looked at: the session, its number there, and when it went.
type Mark = (u64, u64, Instant);

/// The stopwatch of one site.
#[derive(Debug, Default)]
pub(super) struct Stopwatch(Option<Mark>);

/// A mark that old belongs to a session that has ended.
const STALE: Duration = Duration::from_secs(30);

impl Stopwatch {
    /// A packet goes to the site.
    pub fn goes(&mut self, header: &[u8; HEADER_LEN]) {
        let is_free = self.0.is_none_or(|(_, _, since)| since.elapsed() > STALE);
        if is_free && Header::decode(header).kind == PacketType::SD_DATA {
            let fields = MirrorFields::decode(header);
            // A barrier has no length, and is confirmed with a flush.
            if fields.count > 0 {
                self.0 = Some((fields.uuid, fields.seq, Instant::now()));
            }
        }
    }

    /// A packet came from the site; the time if it confirms the write that is looked at.
    pub fn comes(&mut self, header: &[u8; HEADER_LEN]) -> Option<Duration> {
        let (session, seq, since) = self.0?;
        if Header::decode(header).kind != PacketType::SD_DATA_ACK {
            return None;
        }
        let fields = MirrorFields::decode(header);
        if fields.uuid != session {
            self.0 = None;
            return None;
        }
        (fields.value >= seq && fields.errcode == 0).then(|| {
            self.0 = None;
            since.elapsed()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(kind: PacketType, uuid: u64, seq: u64, value: u64) -> [u8; HEADER_LEN] {
        let mut bytes = Header::new(kind).encode();
        MirrorFields { uuid, seq, value, count: 4096, ..MirrorFields::default() }.write(&mut bytes);
        bytes
    }

    #[test]
    fn one_write_at_a_time_is_timed_to_its_own_confirmation() {
        let mut watch = Stopwatch::default();
        assert_eq!(watch.comes(&packet(PacketType::SD_DATA_ACK, 7, 1, 9)), None);
        watch.goes(&packet(PacketType::SC_STATE, 7, 4, 0));
        watch.goes(&packet(PacketType::SD_DATA, 7, 5, 0));
        watch.goes(&packet(PacketType::SD_DATA, 7, 6, 0));
        assert_eq!(watch.comes(&packet(PacketType::SD_DATA_ACK, 7, 1, 4)), None);
        assert!(watch.comes(&packet(PacketType::SD_DATA_ACK, 7, 2, 6)).is_some());
        assert_eq!(watch.comes(&packet(PacketType::SD_DATA_ACK, 7, 3, 6)), None);
        watch.goes(&packet(PacketType::SD_DATA, 7, 7, 0));
        assert_eq!(watch.comes(&packet(PacketType::SD_DATA_ACK, 8, 1, 99)), None, "another session");
        watch.goes(&packet(PacketType::SD_DATA, 8, 1, 0));
        assert!(watch.comes(&packet(PacketType::SD_DATA_ACK, 8, 2, 1)).is_some());
    }
}
