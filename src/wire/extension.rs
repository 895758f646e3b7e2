//! The extension record that two hadmd exchange behind hello and ACK, caller first: a u16 length, then entries of
//! type (u8), length (u8) and value. Unknown types are skipped, so that either side may be newer.
//!
//! A pure function of bytes, hostile ones too. Used by the handshake.

use std::fmt;
use std::net::IpAddr;

use super::ResourceId;
use super::part::{self, ConfigPart, PARTS_MAX, PartDigest};

/// Longest record that is accepted, in bytes behind the length field.
pub const EXTENSION_MAX: usize = 1024;

/// Protocol versions of this program, first and last.
const PROTOCOL: [u8; 2] = [1, 1];

const T_PROTOCOL: u8 = 1;
const T_VERSION: u8 = 2;
const T_DIGEST: u8 = 3;
const T_EPOCH: u8 = 4;
const T_ADDR: u8 = 5;
const T_COMPRESSION: u8 = 6;
const T_FEATURES: u8 = 7;
const T_PARTS: u8 = 8;
const T_OWNED: u8 = 9;

/// Feature: takes packets HD_VIEW on the meta link.
pub const FEATURE_VIEWS: u32 = 1;
/// Feature: takes a packet HD_END, without payload, as the last one on either link. It says that the session ends
/// because the sender's kernel module attached or detached; it ends at the daemon.
pub const FEATURE_ENDS: u32 = 2;
/// Feature: takes packets HD_VIEW of version 2, which have a record behind the view.
pub const FEATURE_RECORDS: u32 = 4;

/// A compression of a link's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// LZ4 blocks.
    Lz4,
}

impl Compression {
    /// Returns its name, also in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Compression::Lz4 => "lz4",
        }
    }

    const fn code(self) -> u8 {
        match self {
            Compression::Lz4 => 1,
        }
    }
}

/// The facts that a peer sends about itself. Every entry may be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extension {
    /// Software version, for people.
    pub version: Option<String>,
    /// Digest of the cluster-wide part of the configuration.
    pub digest: Option<[u8; 8]>,
    /// Digests of its parts, at most 120; empty if there are more.
    pub parts: Vec<PartDigest>,
    /// The resources whose logs the sender owns; only behind a view.
    pub owned: Option<Vec<ResourceId>>,
    /// A number that the caller draws for each attempt and writes on both links, so that the acceptor never pairs
    /// links of different attempts. The acceptor repeats it.
    pub epoch: Option<u64>,
    /// The runsite's address where the hello cannot contain it (IPv6).
    pub addr: Option<IpAddr>,
    /// Packets that the sender takes beyond those of C daemons, bit by bit; unknown bits mean nothing.
    pub features: u32,
    /// Wanted compression of the rest of this connection. The entry lists codes of one byte, of which unknown ones
    /// are skipped; the connection is compressed if both sides want the same.
    pub compression: Option<Compression>,
}

/// The reason for which a record is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtensionError {
    /// The record is longer than [`EXTENSION_MAX`].
    TooLong(usize),
    /// An entry reaches over the record's end.
    Truncated,
    /// A known entry has a length that its type cannot have.
    BadEntry(u8),
    /// The peer knows only versions of the extension that this program does not.
    Protocol(u8, u8),
}

impl fmt::Display for ExtensionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExtensionError::TooLong(len) => {
                write!(f, "hello record of {len} bytes, at most {EXTENSION_MAX} are taken")
            }
            ExtensionError::Truncated => f.write_str("hello record with an entry beyond its end"),
            ExtensionError::BadEntry(kind) => write!(f, "hello record entry {kind} has a wrong length"),
            ExtensionError::Protocol(first, last) => write!(
                f,
                "peer speaks protocol versions {first} to {last}, this program {} to {}",
                PROTOCOL[0], PROTOCOL[1]
            ),
        }
    }
}

impl std::error::Error for ExtensionError {}

impl Extension {
    /// Returns the record with its length field.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let mut entry = |kind: u8, value: &[u8]| {
            let value = value.get(..255).unwrap_or(value);
            body.extend_from_slice(&[kind, value.len() as u8]);
            body.extend_from_slice(value);
        };
        entry(T_PROTOCOL, &PROTOCOL);
        if let Some(version) = &self.version {
            entry(T_VERSION, version.as_bytes());
        }
        if let Some(digest) = &self.digest {
            entry(T_DIGEST, digest);
        }
        if let Some(epoch) = self.epoch {
            entry(T_EPOCH, &epoch.to_le_bytes());
        }
        if let Some(addr) = self.addr {
            entry(T_ADDR, addr.to_string().as_bytes());
        }
        if let Some(compression) = self.compression {
            entry(T_COMPRESSION, &[compression.code()]);
        }
        if self.features != 0 {
            entry(T_FEATURES, &self.features.to_le_bytes());
        }
        if self.parts.len() <= PARTS_MAX {
            part::encode(&self.parts).chunks(part::ENTRY_LEN).for_each(|parts| entry(T_PARTS, parts));
        }
        if let Some(owned) = &self.owned {
            entry(T_OWNED, &owned.iter().map(|resource| resource.get()).collect::<Vec<u8>>());
        }
        [&(body.len() as u16).to_le_bytes(), body.as_slice()].concat()
    }

    /// Returns true if both have the same configuration; `None` if one of them has sent no digest.
    pub fn has_same_config(&self, other: &Extension) -> Option<bool> {
        Some(self.digest? == other.digest?)
    }

    /// Returns the parts of the configuration that are not the same on both sides, or that only one side has; none where
    /// one has sent no parts.
    pub fn differences(&self, other: &Extension) -> Vec<ConfigPart> {
        if self.parts.is_empty() || other.parts.is_empty() {
            return Vec::new();
        }
        let mut differing = Vec::new();
        for (side, opposite) in [(self, other), (other, self)] {
            for part in side.parts.iter().filter(|part| !opposite.parts.contains(part)) {
                if !differing.contains(&part.0) {
                    differing.push(part.0);
                }
            }
        }
        differing
    }

    /// Returns the number of bytes that follow a record's length field.
    ///
    /// # Errors
    /// [`ExtensionError::TooLong`] over [`EXTENSION_MAX`].
    pub fn body_len(field: [u8; 2]) -> Result<usize, ExtensionError> {
        match usize::from(u16::from_le_bytes(field)) {
            len if len > EXTENSION_MAX => Err(ExtensionError::TooLong(len)),
            len => Ok(len),
        }
    }

    /// Reads a record without its length field.
    ///
    /// # Errors
    /// An entry beyond the end, a known entry of a wrong length, no common protocol version.
    pub fn decode(mut body: &[u8]) -> Result<Self, ExtensionError> {
        let mut record = Extension::default();
        while let [kind, rest @ ..] = body {
            let (&len, rest) = rest.split_first().ok_or(ExtensionError::Truncated)?;
            let (value, rest) = rest.split_at_checked(len.into()).ok_or(ExtensionError::Truncated)?;
            body = rest;
            let bad = |_| ExtensionError::BadEntry(*kind);
            match *kind {
                T_PROTOCOL => {
                    let [first, last]: [u8; 2] = value.try_into().map_err(bad)?;
                    if first > PROTOCOL[1] || last < PROTOCOL[0] {
                        return Err(ExtensionError::Protocol(first, last));
                    }
                }
                T_VERSION => {
                    // It goes to logs and terminals: only printable ASCII gets there.
                    let text = value.iter().map(|&b| if b.is_ascii_graphic() { b as char } else { '?' });
                    record.version = Some(text.collect());
                }
                T_DIGEST => record.digest = Some(value.try_into().map_err(bad)?),
                T_EPOCH => record.epoch = Some(u64::from_le_bytes(value.try_into().map_err(bad)?)),
                T_ADDR => record.addr = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()),
                T_PARTS => {
                    let parts = part::decode(value).ok_or(ExtensionError::BadEntry(*kind))?;
                    record.parts.extend(parts);
                }
                T_OWNED => {
                    let resource = |&id: &u8| ResourceId::try_from(u32::from(id)).ok();
                    record.owned = Some(value.iter().filter_map(resource).collect());
                }
                T_FEATURES => record.features = u32::from_le_bytes(value.try_into().map_err(bad)?),
                T_COMPRESSION => {
                    record.compression = value.contains(&Compression::Lz4.code()).then_some(Compression::Lz4);
                }
                _ => {}
            }
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_empty_record_and_unknown_entries_are_fine() {
        assert_eq!(Extension::decode(&[]).unwrap(), Extension::default());
        let body = [200, 3, 1, 2, 3, T_EPOCH, 8, 1, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(Extension::decode(&body).unwrap().epoch, Some(1));
        let wanted = |body: &[u8]| Extension::decode(body).unwrap().compression;
        assert_eq!(wanted(&[T_COMPRESSION, 2, 77, 1]), Some(Compression::Lz4));
        assert_eq!(wanted(&[T_COMPRESSION, 1, 77]), None);
        assert_eq!(wanted(&[T_COMPRESSION, 0]), None);
    }

    #[test]
    fn what_differs_or_is_missing_is_named_once() {
        let site = |id: u32| ConfigPart::Site(id.try_into().unwrap());
        let record = |parts: &[PartDigest]| Extension { parts: parts.to_vec(), ..Extension::default() };
        let ours = record(&[(ConfigPart::PingTimeout, [1; 4]), (site(0), [2; 4]), (site(1), [3; 4])]);
        let theirs = record(&[(ConfigPart::PingTimeout, [1; 4]), (site(0), [9; 4]), (site(2), [3; 4])]);
        assert_eq!(ours.differences(&theirs), [site(0), site(1), site(2)]);
        assert_eq!(ours.differences(&ours), []);
        assert_eq!(ours.differences(&record(&[])), []);
    }

    #[test]
    fn malformed_records_are_refused() {
        assert_eq!(Extension::body_len([0xff, 0xff]), Err(ExtensionError::TooLong(65535)));
        assert_eq!(Extension::decode(&[9]), Err(ExtensionError::Truncated));
        assert_eq!(Extension::decode(&[9, 2, 0]), Err(ExtensionError::Truncated));
        assert_eq!(Extension::decode(&[T_EPOCH, 1, 0]), Err(ExtensionError::BadEntry(T_EPOCH)));
        assert_eq!(Extension::decode(&[T_PROTOCOL, 2, 7, 9]), Err(ExtensionError::Protocol(7, 9)));
    }

    proptest! {
        #[test]
        fn records_come_back(version in "[!-~]{0,40}", digest in any::<Option<[u8; 8]>>(), epoch in any::<Option<u64>>(),
                             v6 in any::<Option<u128>>(), compressed in any::<bool>(), features in any::<u32>(),
                             parts in prop::collection::vec((0u32..255, any::<[u8; 4]>()), 0..=PARTS_MAX),
                             // Resources whose logs are owned are resources of the configuration, which has parts for all.
                             owned in prop::option::of(prop::collection::vec(0u32..255, 0..=PARTS_MAX))) {
            let resource = |id| ResourceId::try_from(id).unwrap();
            let record = Extension {
                version: Some(version), digest, epoch, features,
                parts: parts.into_iter().map(|(id, digest)| (ConfigPart::Resource(resource(id)), digest)).collect(),
                owned: owned.map(|owned| owned.into_iter().map(resource).collect()),
                addr: v6.map(|v6| std::net::Ipv6Addr::from(v6).into()),
                compression: compressed.then_some(Compression::Lz4),
            };
            let bytes = record.encode();
            let len = Extension::body_len([bytes[0], bytes[1]]).unwrap();
            prop_assert_eq!(len, bytes.len() - 2);
            prop_assert_eq!(Extension::decode(&bytes[2..]).unwrap(), record);
        }

        #[test]
        fn any_bytes_are_read_or_refused(body in prop::collection::vec(any::<u8>(), 0..EXTENSION_MAX)) {
            let _ = Extension::decode(&body);
        }
    }
}
