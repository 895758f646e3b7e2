//! The payloads of a probe's packets, and the mark by which it tells its own packets from others.
//!
//! A probe's packets are [`ASK`] packets and the [`ANSWER`] packets to them, on the data link. Each of the
//! two has a type for nodes and one for sites, and an answer goes back to the node or site that asked. They carry
//! [`MARK`] where the kernel module has its md5, the id of the transfer as `uuid`, and a number as `bwr_seq`
//! that counts up within the transfer from 0, the offer. The payload begins with one byte that names the message;
//! all integers are little-endian:
//!
//! | byte | message | then |
//! |---|---|---|
//! | 1 | Offer: permission to send a file is asked for | size u64, name |
//! | 2 | FloodOffer: permission to send a flood is asked for | |
//! | 3 | Accept, the answer to an offer of either kind | |
//! | 4 | Chunk of a file | bytes |
//! | 5 | End of a file | chunks u64, SHA-256 of the whole file |
//! | 6 | Receipt: the result | packets u64, bytes u64, nanoseconds u64, missing u64, fault (text, empty = none) |
//! | 7 | Done: the receipt has come, the receiver may detach | |
//! | 8, 9 | Request, and the Reply to it | filler |
//! | 10 | Flood | filler |
//! | 11 | FloodEnd | packets u64 |
//!
//! Nothing here uses sockets. Packets without the mark or with a malformed payload are no messages.

use crate::wire::{Device, HEADER_LEN, Header, MAX_IDS, Mask, MirrorFields, PacketType, ResourceId, Scope};

use crate::attach::{Group, Packet, Peer};

/// The packet types of one purpose: one type to nodes, one to sites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    node: PacketType,
    site: PacketType,
}

/// The types of packets that ask for something or carry something.
pub const ASK: Kind = Kind { node: PacketType::ND_SBIO, site: PacketType::SD_DATA };

/// The types of packets that answer.
pub const ANSWER: Kind = Kind { node: PacketType::ND_SBIO_ACK, site: PacketType::SD_DATA_ACK };

impl Kind {
    const fn packet_type(self, scope: Scope) -> PacketType {
        match scope {
            Scope::Node => self.node,
            Scope::Site => self.site,
        }
    }
}

/// The header's md5 field in a probe's packets: name and version of this framing.
pub const MARK: [u8; 16] = *b"hadm-probe/1\0\0\0\0";

/// Longest name in an offer, in bytes.
const NAME_MAX: usize = 255;

/// The header fields that a probe sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// The address space of the ids: nodes or sites.
    pub scope: Scope,
    /// The sending node or site, 0..=31.
    pub from: u8,
    /// The receiving nodes or sites.
    pub to: Mask,
    /// The resource; between sites, the resource whose sites the ids are.
    pub dev: ResourceId,
    /// The id of the transfer, random.
    pub transfer: u64,
    /// The number of the packet in its transfer.
    pub seq: u64,
}

/// The result of a transfer, as its receiver saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// Received packets with payload.
    pub packets: u64,
    /// Payload bytes in those packets.
    pub bytes: u64,
    /// Nanoseconds from the first of those packets to the end.
    pub nanos: u64,
    /// Packets that did not arrive.
    pub missing: u64,
    /// The fault that the receiver found; empty if none.
    pub fault: String,
}

/// The content of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A file of this many bytes is to be sent.
    Offer {
        /// Bytes in the file.
        size: u64,
        /// Name of the file, for display only.
        name: String,
    },
    /// Numbered packets are to be sent.
    FloodOffer,
    /// The offer is taken.
    Accept,
    /// Bytes of a file.
    Chunk(&'a [u8]),
    /// All chunks have been sent.
    End {
        /// Number of chunks.
        chunks: u64,
        /// Digest of the whole file.
        sha256: [u8; 32],
    },
    /// The result of the transfer.
    Receipt(Receipt),
    /// The receipt has come.
    Done,
    /// A request to be answered with a [`Message::Reply`] of the same filler.
    Request(&'a [u8]),
    /// The answer to a request.
    Reply(&'a [u8]),
    /// A packet to be counted.
    Flood(&'a [u8]),
    /// The flood is over.
    FloodEnd {
        /// Number of packets of the flood.
        packets: u64,
    },
}

/// First payload byte of a [`Message::Chunk`], for the writer that builds chunks in place.
pub const CHUNK: u8 = 4;

/// First payload byte of a [`Message::Flood`], for the writer that builds floods in place.
pub const FLOOD: u8 = 10;

impl Message<'_> {
    const fn kind(&self) -> Kind {
        match self {
            Message::Accept | Message::Receipt(_) | Message::Reply(_) => ANSWER,
            _ => ASK,
        }
    }

    /// Appends the payload.
    fn encode(&self, out: &mut Vec<u8>) {
        let (kind, numbers, rest): (u8, &[u64], &[u8]) = match self {
            Message::Offer { size, name } => {
                (1, &[*size], name.as_bytes().get(..NAME_MAX).unwrap_or(name.as_bytes()))
            }
            Message::FloodOffer => (2, &[], &[]),
            Message::Accept => (3, &[], &[]),
            Message::Chunk(bytes) => (CHUNK, &[], bytes),
            Message::End { chunks, sha256 } => (5, &[*chunks], sha256),
            Message::Receipt(r) => (6, &[r.packets, r.bytes, r.nanos, r.missing], r.fault.as_bytes()),
            Message::Done => (7, &[], &[]),
            Message::Request(filler) => (8, &[], filler),
            Message::Reply(filler) => (9, &[], filler),
            Message::Flood(filler) => (FLOOD, &[], filler),
            Message::FloodEnd { packets } => (11, &[*packets], &[]),
        };
        out.push(kind);
        out.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
        out.extend_from_slice(rest);
    }

    /// Reads a payload; `None` if it is none of the messages.
    fn decode(payload: &[u8]) -> Option<Message<'_>> {
        let (kind, mut rest) = payload.split_first()?;
        let mut number = || -> Option<u64> {
            let (n, tail) = rest.split_first_chunk()?;
            rest = tail;
            Some(u64::from_le_bytes(*n))
        };
        let message = match kind {
            1 => Message::Offer { size: number()?, name: String::from_utf8_lossy(rest).into_owned() },
            2 => Message::FloodOffer,
            3 => Message::Accept,
            &CHUNK => Message::Chunk(rest),
            5 => Message::End { chunks: number()?, sha256: rest.try_into().ok()? },
            6 => Message::Receipt(Receipt {
                packets: number()?,
                bytes: number()?,
                nanos: number()?,
                missing: number()?,
                fault: String::from_utf8_lossy(rest).into_owned(),
            }),
            7 => Message::Done,
            8 => Message::Request(rest),
            9 => Message::Reply(rest),
            &FLOOD => Message::Flood(rest),
            11 => Message::FloodEnd { packets: number()? },
            _ => return None,
        };
        Some(message)
    }
}

impl Label {
    /// Returns the group of the ids in this label.
    pub fn group(&self) -> Group {
        Group::of(self.scope, self.dev)
    }

    /// Returns the node or site that sent the packet.
    pub fn sender(&self) -> Peer {
        Peer { group: self.group(), id: self.from }
    }

    /// Returns the label of the answer; `own` is the answering end's id, in the same group.
    pub fn back(self, own: u8) -> Label {
        Label { from: own, to: Mask::of(self.from), ..self }
    }

    /// Returns the header of a packet with `len` bytes of payload.
    pub fn header(&self, kind: Kind, len: u32) -> [u8; HEADER_LEN] {
        let header = Header {
            len,
            device: Device::One(self.dev),
            node_from: self.from.into(),
            node_to: self.to,
            ..Header::new(kind.packet_type(self.scope))
        };
        let mut bytes = header.encode();
        let fields =
            MirrorFields { uuid: self.transfer, seq: self.seq, digest: MARK, ..MirrorFields::default() };
        fields.write(&mut bytes);
        bytes
    }

    /// Appends a whole packet with this message.
    pub fn packet(&self, message: &Message<'_>, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER_LEN]);
        message.encode(out);
        // Nothing longer than SIZE_MAX or a chunk is ever encoded.
        let len = (out.len() - start - HEADER_LEN) as u32;
        if let Some(place) = out.get_mut(start..).and_then(|packet| packet.first_chunk_mut()) {
            *place = self.header(message.kind(), len);
        }
    }

    /// Reads a packet that a probe has written; `None` for every other packet.
    pub fn of<'a>(packet: &Packet<'a>) -> Option<(Label, Message<'a>)> {
        Label::read(&packet.header, packet.head, packet.payload)
    }

    fn read<'a>(
        header: &Header,
        bytes: &[u8; HEADER_LEN],
        payload: &'a [u8],
    ) -> Option<(Label, Message<'a>)> {
        let fields = MirrorFields::decode(bytes);
        if fields.digest != MARK {
            return None;
        }
        let (_, scope) = header.kind.relayed()?;
        let label = Label {
            scope,
            from: u8::try_from(header.node_from).ok().filter(|id| *id < MAX_IDS)?,
            to: header.node_to,
            dev: header.device.resource()?,
            transfer: fields.uuid,
            seq: fields.seq,
        };
        let message = Message::decode(payload)?;
        (message.kind().packet_type(scope) == header.kind).then_some((label, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Class;
    use proptest::prelude::*;

    fn message<'a>(kind: u8, n: [u64; 4], bytes: &'a [u8], text: &str) -> Message<'a> {
        match kind % 11 {
            0 => Message::Offer { size: n[0], name: text.to_owned() },
            1 => Message::FloodOffer,
            2 => Message::Accept,
            3 => Message::Chunk(bytes),
            4 => Message::End { chunks: n[0], sha256: [n[1] as u8; 32] },
            5 => Message::Receipt(Receipt {
                packets: n[0],
                bytes: n[1],
                nanos: n[2],
                missing: n[3],
                fault: text.to_owned(),
            }),
            6 => Message::Done,
            7 => Message::Request(bytes),
            8 => Message::Reply(bytes),
            9 => Message::Flood(bytes),
            _ => Message::FloodEnd { packets: n[0] },
        }
    }

    fn parts(packet: &[u8]) -> (Header, [u8; HEADER_LEN], &[u8]) {
        let (head, payload) = packet.split_first_chunk().unwrap();
        (Header::decode(head), *head, payload)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            kind: u8, n: [u64; 4], bytes: Vec<u8>, text in "[a-z ]{0,40}",
            site: bool, from in 0..32u8, to: u32, dev in 0..255u32, transfer: u64, seq: u64, other: u64,
        ) {
            let scope = if site { Scope::Site } else { Scope::Node };
            let dev = ResourceId::try_from(dev).unwrap();
            let label = Label { scope, from, to: Mask(to), dev, transfer, seq };
            let message = message(kind, n, &bytes, &text);
            let mut packet = Vec::new();
            label.packet(&message, &mut packet);
            let (header, head, payload) = parts(&packet);
            prop_assert_eq!(header.len as usize, payload.len());
            prop_assert_eq!(header.kind.relayed(), Some((Class::Data, scope)));
            prop_assert_eq!(Label::read(&header, &head, payload), Some((label, message.clone())));

            MirrorFields::renumber(&mut packet, other);
            let (header, head, payload) = parts(&packet);
            prop_assert_eq!(Label::read(&header, &head, payload), Some((Label { seq: other, ..label }, message)));
        }

        #[test]
        fn any_payload_is_read_or_refused(payload: Vec<u8>, kind in 0..13u8) {
            let _ = Message::decode(&payload);
            let _ = Message::decode(&[&[kind], &payload[..]].concat());
        }
    }

    #[test]
    fn packets_of_others_are_no_messages() {
        let dev = ResourceId::try_from(3).unwrap();
        let label = Label { scope: Scope::Site, from: 1, to: Mask(1), dev, transfer: 7, seq: 0 };
        let mut packet = Vec::new();
        label.packet(&Message::Accept, &mut packet);
        let (header, head, payload) = parts(&packet);
        let read = |header: Header| Label::read(&header, &head, payload);
        assert!(read(header).is_some());
        assert_eq!(read(Header { kind: ASK.site, ..header }), None, "an answer in a packet that asks");
        assert_eq!(read(Header { node_from: 32, ..header }), None, "no such site");
        assert_eq!(read(Header { device: Device::All, ..header }), None, "sites of no resource");
        let mut unmarked = head;
        unmarked[58] = 0;
        assert_eq!(Label::read(&header, &unmarked, payload), None);
        assert_eq!(Label::read(&header, &head, &[]), None);
    }

    #[test]
    fn a_long_name_is_cut() {
        let mut payload = Vec::new();
        Message::Offer { size: 1, name: "n".repeat(1000) }.encode(&mut payload);
        assert_eq!(payload.len(), 1 + 8 + NAME_MAX);
    }
}
