//! Packets as bytes: a builder for every header field and a payload pattern that can be checked.

use std::fmt;

/// Bytes of a header.
pub const HEADER: usize = 128;
/// First eight bytes of every packet outside the kernel module's handshake.
pub const MAGIC: u64 = 0x3e95_3ac1_6a42_27b9;

/// Packet types.
pub mod kind {
    pub const NC_CONN_STATE: u8 = 14;
    pub const NC_PING: u8 = 15;
    pub const NC_PING_ACK: u8 = 16;
    pub const NC_MASTER: u8 = 17;
    pub const NC_STATE_REQ: u8 = 18;
    pub const NC_STATE: u8 = 19;
    pub const SC_STATE: u8 = 3;
    pub const SC_PING: u8 = 5;
    pub const SC_PING_ACK: u8 = 6;
    pub const SC_CONN_STATE: u8 = 7;
    pub const SD_DATA: u8 = 23;
    pub const ND_SBIO: u8 = 36;
    pub const ND_SBIO_ACK: u8 = 37;
    pub const HS_D: u8 = 57;
    pub const HS_D_ACK: u8 = 58;
    pub const HS_M: u8 = 59;
    pub const HS_M_ACK: u8 = 60;
}

/// A header and its payload.
#[derive(Clone, PartialEq, Eq)]
pub struct Packet {
    pub head: [u8; HEADER],
    pub payload: Vec<u8>,
}

/// Bytes that follow from `seed`.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.extend_from_slice(&x.to_le_bytes());
    }
    out.truncate(len);
    out
}

impl Packet {
    /// A packet with the magic and the type; everything else is zero.
    pub fn new(kind: u8) -> Self {
        let mut head = [0; HEADER];
        head[..8].copy_from_slice(&MAGIC.to_le_bytes());
        head[12] = kind;
        Packet { head, payload: Vec::new() }
    }

    /// A packet of `len` payload bytes with sequence number `seq`, whose payload and every header byte
    /// that is opaque to a daemon (the padding too) follow from `seq`.
    pub fn filled(kind: u8, seq: u64, len: usize) -> Self {
        let opaque = pattern(!seq, HEADER);
        let mut packet = Packet::new(kind).put(40, &opaque[40..]).put(15, &opaque[15..24]);
        packet = packet.put(24, &seq.to_le_bytes()).put(14, &[(seq % 255) as u8]);
        packet.payload = pattern(seq, len);
        packet.with_len(len as u32)
    }

    /// A data packet with sequence number `seq` for the nodes in `to`.
    pub fn data(seq: u64, to: u32, len: usize) -> Self {
        Packet::filled(kind::ND_SBIO, seq, len).with_to(to)
    }

    /// A meta packet without payload, with sequence number `seq`, for the nodes in `to`.
    pub fn meta(seq: u64, to: u32) -> Self {
        Packet::filled(kind::NC_STATE, seq, 0).with_to(to)
    }

    /// Overwrites header bytes from `at` on.
    pub fn put(mut self, at: usize, bytes: &[u8]) -> Self {
        self.head[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub fn with_magic(self, magic: u64) -> Self {
        self.put(0, &magic.to_le_bytes())
    }

    /// Sets the length field alone.
    pub fn with_len(self, len: u32) -> Self {
        self.put(8, &len.to_le_bytes())
    }

    pub fn with_type(self, kind: u8) -> Self {
        self.put(12, &[kind])
    }

    pub fn with_node_type(self, node_type: u8) -> Self {
        self.put(13, &[node_type])
    }

    pub fn with_dev(self, dev: u8) -> Self {
        self.put(14, &[dev])
    }

    pub fn with_from(self, id: u32) -> Self {
        self.put(32, &id.to_le_bytes())
    }

    pub fn with_to(self, mask: u32) -> Self {
        self.put(36, &mask.to_le_bytes())
    }

    fn u32_at(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.head[at..at + 4].try_into().unwrap())
    }

    pub fn magic(&self) -> u64 {
        u64::from_le_bytes(self.head[..8].try_into().unwrap())
    }

    pub fn len(&self) -> u32 {
        self.u32_at(8)
    }

    pub fn kind(&self) -> u8 {
        self.head[12]
    }

    pub fn node_type(&self) -> u8 {
        self.head[13]
    }

    pub fn dev(&self) -> u8 {
        self.head[14]
    }

    pub fn seq(&self) -> u64 {
        u64::from_le_bytes(self.head[24..32].try_into().unwrap())
    }

    pub fn from(&self) -> u32 {
        self.u32_at(32)
    }

    pub fn to(&self) -> u32 {
        self.u32_at(36)
    }

    /// The bytes on the wire.
    pub fn bytes(&self) -> Vec<u8> {
        [&self.head[..], &self.payload].concat()
    }

    /// Checks a packet of [`Packet::filled`] against what its sequence number says it was when sent.
    #[track_caller]
    pub fn assert_as_sent(&self) {
        let sent = Packet::filled(self.kind(), self.seq(), self.payload.len()).with_from(self.from());
        let sent = sent.with_to(self.to()).with_node_type(self.node_type());
        assert_eq!(*self, sent, "a byte changed on the way");
    }
}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "type {} dev {} from {} to {:#x} seq {} len {} (magic {:x})",
            self.kind(),
            self.dev(),
            self.from(),
            self.to(),
            self.seq(),
            self.len(),
            self.magic()
        )
    }
}
