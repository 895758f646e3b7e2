//! The parts of a configuration that have to be the same on every node, each with a short digest.
//!
//! A pure function of bytes. Part of the record that two hadmd exchange, so that both can name what differs.

use std::fmt;

use super::{ResourceId, SiteId};

/// Bytes of a part in an entry of the record.
const PART_LEN: usize = 6;
/// The most bytes of an entry's value that hold whole parts.
pub(super) const ENTRY_LEN: usize = 255 / PART_LEN * PART_LEN;
/// The most parts that are sent: with more of them the record would be too long for its reader.
pub(super) const PARTS_MAX: usize = 120;

/// A part of the configuration that has to be the same on every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConfigPart {
    /// The time between heartbeats.
    PingTimeout,
    /// The number of heartbeats that may stay without an answer.
    MaxPingCount,
    /// A site and its nodes.
    Site(SiteId),
    /// A resource and its runsites.
    Resource(ResourceId),
}

/// Names the element, with its id where there are several.
impl fmt::Display for ConfigPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigPart::PingTimeout => f.write_str("pingtimeout"),
            ConfigPart::MaxPingCount => f.write_str("maxpingcount"),
            ConfigPart::Site(site) => site.fmt(f),
            ConfigPart::Resource(resource) => resource.fmt(f),
        }
    }
}

/// A part and the first four bytes of a SHA-256 over it.
pub type PartDigest = (ConfigPart, [u8; 4]);

pub(super) fn encode(parts: &[PartDigest]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (part, digest) in parts {
        let (kind, id) = match part {
            ConfigPart::PingTimeout => (1, 0),
            ConfigPart::MaxPingCount => (2, 0),
            ConfigPart::Site(site) => (3, site.get()),
            ConfigPart::Resource(resource) => (4, resource.get()),
        };
        bytes.extend_from_slice(&[kind, id]);
        bytes.extend_from_slice(digest);
    }
    bytes
}

/// Returns the parts of an entry, without those of an unknown kind; `None` if the length is wrong.
pub(super) fn decode(value: &[u8]) -> Option<Vec<PartDigest>> {
    let mut parts = Vec::new();
    if value.len() % PART_LEN != 0 {
        return None;
    }
    for bytes in value.chunks_exact(PART_LEN) {
        let &[kind, id, a, b, c, d] = bytes else { continue };
        let part = match kind {
            1 => ConfigPart::PingTimeout,
            2 => ConfigPart::MaxPingCount,
            3 => match SiteId::try_from(u32::from(id)) {
                Ok(site) => ConfigPart::Site(site),
                Err(_) => continue,
            },
            4 => match ResourceId::try_from(u32::from(id)) {
                Ok(resource) => ConfigPart::Resource(resource),
                Err(_) => continue,
            },
            _ => continue,
        };
        parts.push((part, [a, b, c, d]));
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_kinds_and_ids_are_skipped() {
        let site = |id: u32| ConfigPart::Site(id.try_into().unwrap());
        let value =
            [[9, 0, 1, 2, 3, 4], [3, 32, 1, 2, 3, 4], [4, 255, 1, 2, 3, 4], [3, 31, 1, 2, 3, 4]].concat();
        assert_eq!(decode(&value), Some(vec![(site(31), [1, 2, 3, 4])]));
        assert_eq!(decode(&[1, 0, 1]), None);
    }
}
