//! The header fields that a daemon carries and never reads: numbers, sectors, digest, and the fields of a packet type
//! in the last 48 bytes.
//!
//! The kernel module and its stand-ins write them, [`super::Header`] has the others. Nothing outside `wire` may know
//! their offsets.

use std::ops::Range;

use super::header::field;
use super::{HEADER_LEN, Mask};

/// The fields from `uuid` on. All zero in packets of the daemon's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MirrorFields {
    /// The sender's primaryship (kernel module), or the session nonce (`hadm-nbd`), or a transfer (`hadm-probe`).
    pub uuid: u64,
    /// Number of the packet in its stream.
    pub seq: u64,
    /// Place on the mirrored disk, in sectors of 512 bytes.
    pub dev_sector: u64,
    /// Place in the sender's log in sectors (kernel module), or the epoch (`hadm-nbd`).
    pub bwr_sector: u64,
    /// 0, or a negative error number.
    pub errcode: i16,
    /// Digest of the payload.
    pub digest: [u8; 16],
    /// Number of site states that follow, or bytes of a request. [`MirrorFields::roles`] reads the same place.
    pub count: u32,
    /// Flags of a request.
    pub flags: u64,
    /// Direction of a request (kernel module), or a cumulative acknowledgement or write counter (`hadm-nbd`).
    pub value: u64,
    /// Generation of the data; 0 from a kernel module, which does not use it.
    pub generation: u64,
    /// Sites that lack the data; empty from a kernel module.
    pub missing: Mask,
}

/// The roles of a node that share their place with [`MirrorFields::count`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    /// The node is primary.
    pub primary: bool,
    /// The node owns the log.
    pub log_owner: bool,
    /// The node has the device open.
    pub open: bool,
}

const UUID: usize = 16;
const SEQ: Range<usize> = 24..32;
const DEV_SECTOR: usize = 40;
const BWR_SECTOR: usize = 48;
const ERRCODE: usize = 56;
const DIGEST: usize = 58;
const COUNT: usize = 80;
const FLAGS: usize = 88;
const VALUE: usize = 96;
const GENERATION: usize = 104;
const MISSING: usize = 112;

fn put<const N: usize>(bytes: &mut [u8; HEADER_LEN], at: usize, value: [u8; N]) {
    if let Some(place) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
        *place = value;
    }
}

impl MirrorFields {
    /// Reads the fields of a header.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Self {
        MirrorFields {
            uuid: u64::from_le_bytes(field(bytes, UUID)),
            seq: u64::from_le_bytes(field(bytes, SEQ.start)),
            dev_sector: u64::from_le_bytes(field(bytes, DEV_SECTOR)),
            bwr_sector: u64::from_le_bytes(field(bytes, BWR_SECTOR)),
            errcode: i16::from_le_bytes(field(bytes, ERRCODE)),
            digest: field(bytes, DIGEST),
            count: u32::from_le_bytes(field(bytes, COUNT)),
            flags: u64::from_le_bytes(field(bytes, FLAGS)),
            value: u64::from_le_bytes(field(bytes, VALUE)),
            generation: u64::from_le_bytes(field(bytes, GENERATION)),
            missing: Mask(u32::from_le_bytes(field(bytes, MISSING))),
        }
    }

    /// Writes the fields into a header that [`super::Header::encode`] made.
    pub fn write(&self, bytes: &mut [u8; HEADER_LEN]) {
        put(bytes, UUID, self.uuid.to_le_bytes());
        put(bytes, SEQ.start, self.seq.to_le_bytes());
        put(bytes, DEV_SECTOR, self.dev_sector.to_le_bytes());
        put(bytes, BWR_SECTOR, self.bwr_sector.to_le_bytes());
        put(bytes, ERRCODE, self.errcode.to_le_bytes());
        put(bytes, DIGEST, self.digest);
        put(bytes, COUNT, self.count.to_le_bytes());
        put(bytes, FLAGS, self.flags.to_le_bytes());
        put(bytes, VALUE, self.value.to_le_bytes());
        put(bytes, GENERATION, self.generation.to_le_bytes());
        put(bytes, MISSING, self.missing.0.to_le_bytes());
    }

    /// Writes another number into an encoded packet; does nothing if `packet` has no whole header.
    pub fn renumber(packet: &mut [u8], seq: u64) {
        if packet.len() >= HEADER_LEN {
            if let Some(place) = packet.get_mut(SEQ) {
                place.copy_from_slice(&seq.to_le_bytes());
            }
        }
    }

    /// Returns the roles that an NC_STATE has where other packets have a count.
    pub fn roles(&self) -> Roles {
        let [primary, log_owner, open, _] = self.count.to_le_bytes();
        Roles { primary: primary != 0, log_owner: log_owner != 0, open: open != 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Header, PacketType};
    use proptest::prelude::*;

    #[test]
    fn fields_stand_at_their_offsets() {
        let mut bytes = [0u8; HEADER_LEN];
        let mut expected = bytes;
        for (at, value) in
            [(16, 1u8), (24, 2), (40, 3), (48, 4), (58, 6), (80, 7), (88, 8), (96, 9), (104, 10), (112, 11)]
        {
            expected[at] = value;
        }
        expected[56..58].copy_from_slice(&[0xbf, 0xff]);
        let fields = MirrorFields {
            uuid: 1,
            seq: 2,
            dev_sector: 3,
            bwr_sector: 4,
            errcode: -65,
            digest: [6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            count: 7,
            flags: 8,
            value: 9,
            generation: 10,
            missing: Mask(11),
        };
        fields.write(&mut bytes);
        assert_eq!(bytes, expected);
        assert_eq!(MirrorFields::decode(&bytes), fields);
        MirrorFields::renumber(&mut bytes, 300);
        assert_eq!(MirrorFields::decode(&bytes), MirrorFields { seq: 300, ..fields });
        let roles = MirrorFields { count: u32::from_le_bytes([1, 0, 1, 9]), ..fields }.roles();
        assert_eq!(roles, Roles { primary: true, log_owner: false, open: true });
    }

    proptest! {
        #[test]
        fn both_halves_of_a_header_leave_each_other_alone(bytes in prop::array::uniform32(any::<[u8; 4]>())) {
            let bytes: [u8; HEADER_LEN] = bytes.concat().try_into().unwrap();
            let fields = MirrorFields::decode(&bytes);
            let header = Header::decode(&bytes);
            let mut again = header.encode();
            fields.write(&mut again);
            prop_assert_eq!(MirrorFields::decode(&again), fields);
            prop_assert_eq!(Header::decode(&again), header);
            // Padding apart, both halves are the whole header.
            for at in (0..15).chain(16..74).chain(80..84).chain(88..116) {
                prop_assert_eq!(again[at], bytes[at], "byte {}", at);
            }
        }
    }

    #[test]
    fn a_header_of_the_daemons_own_has_none_of_them() {
        let bytes = Header::new(PacketType::NC_PING).encode();
        assert_eq!(MirrorFields::decode(&bytes), MirrorFields::default());
    }
}
