//! The 128-byte packet header.
//!
//! A pure function of bytes, hostile ones too. Used by every module that reads or writes packets.

use std::fmt;

use super::{Class, Device, Mask, PacketType, Scope};

/// Bytes in a packet header.
pub const HEADER_LEN: usize = 128;

/// First eight bytes of every packet outside the kernel module's handshake.
pub const MAGIC: u64 = 0x3e95_3ac1_6a42_27b9;

/// The header fields that a daemon reads or writes. Those that it only carries are [`super::MirrorFields`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// [`MAGIC`], or 0 in the kernel module's two handshake packets.
    pub magic: u64,
    /// Payload bytes that follow the header.
    pub len: u32,
    /// The packet's type; decides link class and address space.
    pub kind: PacketType,
    /// 0 = node link, 1 = site link. Not reliable in packets from the kernel module.
    pub node_type: u8,
    /// The resource that the packet concerns.
    pub device: Device,
    /// Id of the sending node or site.
    pub node_from: u32,
    /// The nodes or sites the packet is for.
    pub node_to: Mask,
}

/// The reason for which a packet is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The first eight bytes are not [`MAGIC`].
    BadMagic(u64),
    /// The type is not one that is relayed.
    UnknownType(PacketType),
    /// The payload is longer than the configured `maxpacket`.
    TooLong {
        /// Payload length found, in bytes.
        len: u32,
        /// Longest payload allowed, in bytes.
        max: u32,
    },
    /// The payload is not that of a packet HD_VIEW.
    View {
        /// Payload length found, in bytes.
        len: usize,
        /// Payload version found, 0 where there is no payload.
        version: u8,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::BadMagic(found) => write!(f, "bad magic {found:#018x}, expected {MAGIC:#018x}"),
            Refusal::UnknownType(kind) => write!(f, "packet type {} is not one that is relayed", kind.0),
            Refusal::TooLong { len, max } => {
                write!(f, "packet of {len} bytes is over the limit of {max} (element maxpacket)")
            }
            Refusal::View { len, version } => {
                write!(f, "packet HD_VIEW with a payload of {len} bytes, version {version}")
            }
        }
    }
}

impl std::error::Error for Refusal {}

/// Returns `N` bytes of a header at a fixed offset.
pub(super) fn field<const N: usize>(bytes: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

impl Header {
    /// Returns a header with the magic and these fields; every other field is zero.
    pub const fn new(kind: PacketType) -> Self {
        Header {
            magic: MAGIC,
            len: 0,
            kind,
            node_type: 0,
            device: Device::FIRST,
            node_from: 0,
            node_to: Mask(0),
        }
    }

    /// Reads the fields. Every 128 bytes are a header of some kind: [`Header::check`] tells whether it is acceptable.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Self {
        Header {
            magic: u64::from_le_bytes(field(bytes, 0)),
            len: u32::from_le_bytes(field(bytes, 8)),
            kind: PacketType(bytes[12]),
            node_type: bytes[13],
            device: Device::from(bytes[14]),
            node_from: u32::from_le_bytes(field(bytes, 32)),
            node_to: Mask(u32::from_le_bytes(field(bytes, 36))),
        }
    }

    /// Returns the header as bytes; fields that are not in [`Header`] are zero.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..8].copy_from_slice(&self.magic.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12] = self.kind.0;
        bytes[13] = self.node_type;
        bytes[14] = self.device.into();
        bytes[32..36].copy_from_slice(&self.node_from.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.node_to.0.to_le_bytes());
        bytes
    }

    /// Returns class and address space of the header's type, if a packet with it may be taken from a link.
    ///
    /// `max` is the longest payload in bytes. Magic is looked at first: without it the stream is out of
    /// step and no other field means anything.
    pub fn check(&self, max: u32) -> Result<(Class, Scope), Refusal> {
        if self.magic != MAGIC {
            return Err(Refusal::BadMagic(self.magic));
        }
        if self.len > max {
            return Err(Refusal::TooLong { len: self.len, max });
        }
        self.kind.relayed().ok_or(Refusal::UnknownType(self.kind))
    }
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} dev {} from {} to {} len {}",
            self.kind, self.device, self.node_from, self.node_to, self.len
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_stand_at_their_offsets() {
        let mut bytes = [0u8; HEADER_LEN];
        bytes[..8].copy_from_slice(&[0xb9, 0x27, 0x42, 0x6a, 0xc1, 0x3a, 0x95, 0x3e]);
        bytes[8..15].copy_from_slice(&[0x04, 0x03, 0x02, 0x01, 36, 1, 7]);
        bytes[32..40].copy_from_slice(&[2, 0, 0, 0, 3, 0, 0, 0x80]);
        let header = Header::decode(&bytes);
        assert_eq!(
            header,
            Header {
                magic: MAGIC,
                len: 0x0102_0304,
                kind: PacketType::ND_SBIO,
                node_type: 1,
                device: Device::from(7),
                node_from: 2,
                node_to: Mask(0x8000_0003)
            }
        );
        assert_eq!(header.encode(), bytes);
    }

    #[test]
    fn refusals_are_typed() {
        let good = Header::new(PacketType::ND_SBIO);
        assert_eq!(good.check(0), Ok((Class::Data, Scope::Node)));
        assert_eq!(Header { magic: 0, ..good }.check(0), Err(Refusal::BadMagic(0)));
        assert_eq!(
            Header { len: u32::MAX, ..good }.check(16 << 20),
            Err(Refusal::TooLong { len: u32::MAX, max: 16 << 20 })
        );
        for kind in [0, 21, 22, 39, 57, 255] {
            let kind = PacketType(kind);
            assert_eq!(Header { kind, ..good }.check(0), Err(Refusal::UnknownType(kind)));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_and_known_fields_come_back(bytes in prop::collection::vec(any::<u8>(), HEADER_LEN)) {
            let bytes: [u8; HEADER_LEN] = bytes.try_into().unwrap();
            let header = Header::decode(&bytes);
            let again = header.encode();
            prop_assert_eq!(Header::decode(&again), header);
            for at in (0..15).chain(32..40) {
                prop_assert_eq!(again[at], bytes[at]);
            }
            let _ = header.check(16 << 20);
            let _ = header.to_string();
        }
    }
}
