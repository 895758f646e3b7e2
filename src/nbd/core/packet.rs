//! The packets of the mirror: fields that the core uses, to and from a header.
//!
//! Pure. A range that comes from outside is checked against the disk's size here, so that nobody behind this has to. Used
//! by the core alone.

use crate::wire::{Class, Device, HEADER_LEN, Header, Mask, MirrorFields, PacketType, ResourceId, SiteId};

/// Everything before it has to be stable before it is confirmed.
pub const BARRIER: u64 = 2;
/// The range reads as zeroes afterwards; no payload.
pub const ZEROES: u64 = 4;
/// As [`ZEROES`], and no space needs to be allocated.
pub const TRIM: u64 = 8;
/// A confirmed write is on stable storage.
pub const STABLE: u64 = 16;
/// The content of the range is wanted, or is here.
pub const REPLY: u64 = 32;
/// The last one of its kind.
pub const END: u64 = 64;
/// With [`REPLY`]: the size of the disk is looked at first.
pub const LOOK: u64 = 128;
/// The target keeps all of a resync for one batch of its ordered log.
pub const STAGED: u64 = 256;

/// An offset's part below a sector stands above the flags.
const WITHIN_SHIFT: u32 = 16;
const SECTOR: u64 = 512;

/// Longest payload that is sent, in bytes: what one write is on the wire at most.
pub const PIECE: u64 = 1 << 20;

/// A packet's fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    /// The session.
    pub nonce: u64,
    /// The number in its stream, from 1.
    pub seq: u64,
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes of the range.
    pub len: u32,
    /// The sender's epoch.
    pub epoch: u64,
    /// 0, or a negative error number.
    pub errcode: i16,
    /// Of [`BARRIER`] to [`STAGED`].
    pub flags: u64,
    /// Cumulative acknowledgement, or the last epoch that is stable everywhere.
    pub value: u64,
    /// Generation of the data.
    pub generation: u64,
    /// Sites that do not have the data.
    pub missing: Mask,
}

/// A header from `from` to `to`.
pub fn encode(
    kind: PacketType,
    resource: ResourceId,
    from: SiteId,
    to: SiteId,
    fields: &Fields,
    payload: usize,
) -> Box<[u8; HEADER_LEN]> {
    let header = Header {
        // The runner's packets are bounded far below 4 GiB.
        len: payload as u32,
        node_type: 1,
        device: Device::One(resource),
        node_from: from.get().into(),
        node_to: Mask::of(to.get()),
        ..Header::new(kind)
    };
    let mut bytes = Box::new(header.encode());
    let more = MirrorFields {
        uuid: fields.nonce,
        seq: fields.seq,
        dev_sector: fields.offset / SECTOR,
        bwr_sector: fields.epoch,
        errcode: fields.errcode,
        count: fields.len,
        flags: fields.flags | (fields.offset % SECTOR) << WITHIN_SHIFT,
        value: fields.value,
        generation: fields.generation,
        missing: fields.missing,
        ..MirrorFields::default()
    };
    more.write(&mut bytes);
    bytes
}

/// A header without fields, of a site that has no core.
pub fn encode_header(
    kind: PacketType,
    resource: ResourceId,
    (from, to): (SiteId, SiteId),
    payload: usize,
) -> Box<[u8; HEADER_LEN]> {
    encode(kind, resource, from, to, &Fields::default(), payload)
}

/// The type, sender and fields of a packet about `resource`, whose range lies inside `size` bytes; `None` for any other.
pub fn decode(
    bytes: &[u8; HEADER_LEN],
    resource: ResourceId,
    size: u64,
) -> Option<(PacketType, Class, SiteId, Fields)> {
    let header = Header::decode(bytes);
    let (class, _) = header.kind.relayed()?;
    if header.device.resource() != Some(resource) {
        return None;
    }
    let from = SiteId::try_from(header.node_from).ok()?;
    let more = MirrorFields::decode(bytes);
    let offset =
        more.dev_sector.checked_mul(SECTOR)?.checked_add(more.flags >> WITHIN_SHIFT & (SECTOR - 1))?;
    if offset.checked_add(more.count.into())? > size {
        return None;
    }
    let fields = Fields {
        nonce: more.uuid,
        seq: more.seq,
        offset,
        len: more.count,
        epoch: more.bwr_sector,
        errcode: more.errcode,
        flags: more.flags & ((1 << WITHIN_SHIFT) - 1),
        value: more.value,
        generation: more.generation,
        missing: more.missing,
    };
    Some((header.kind, class, from, fields))
}

/// Runs of bits as the payload of the bitmap's packets: first bit and number, 16 bytes each.
pub fn encode_runs(runs: &[(u64, u64)]) -> Vec<u8> {
    runs.iter().flat_map(|(first, n)| first.to_le_bytes().into_iter().chain(n.to_le_bytes())).collect()
}

/// The runs of a payload; what is left over at the end, or empty, is passed over.
pub fn runs(payload: &[u8]) -> impl Iterator<Item = std::ops::Range<u64>> + '_ {
    payload.chunks_exact(16).filter_map(|run| {
        let first = u64::from_le_bytes(run.first_chunk().copied()?);
        let n = u64::from_le_bytes(run.last_chunk().copied()?);
        Some(first..first.checked_add(n)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fields_come_back(
            offset in 0..1_u64 << 40, len in 0..1_u32 << 20, flags in 0..512_u64, numbers in any::<[u64; 5]>(), errcode: i16
        ) {
            let [nonce, seq, epoch, value, generation] = numbers;
            let fields = Fields {
                nonce, seq, offset, len, epoch, errcode, flags, value, generation, missing: Mask(5)
            };
            let (one, two) = (SiteId::try_from(1).unwrap(), SiteId::try_from(2).unwrap());
            let resource = ResourceId::try_from(9).unwrap();
            let bytes = encode(PacketType::SD_DATA, resource, one, two, &fields, 7);
            let found = decode(&bytes, resource, offset + u64::from(len));
            prop_assert_eq!(found, Some((PacketType::SD_DATA, Class::Data, one, fields)));
            prop_assert_eq!(decode(&bytes, resource, offset), if len == 0 { found } else { None });
            prop_assert_eq!(decode(&bytes, ResourceId::try_from(8).unwrap(), u64::MAX), None);
        }

        #[test]
        fn any_header_is_read_or_passed_over(bytes in prop::collection::vec(any::<u8>(), HEADER_LEN)) {
            let _ = decode(&bytes.try_into().unwrap(), ResourceId::try_from(0).unwrap(), 1 << 30);
        }
    }

    #[test]
    fn runs_come_back() {
        let sent = [(5, 2), (1 << 40, 1)];
        let found: Vec<_> = runs(&encode_runs(&sent)).map(|run| (run.start, run.end - run.start)).collect();
        assert_eq!(found, sent);
        assert_eq!(runs(&[255; 31]).count(), 0);
    }
}
