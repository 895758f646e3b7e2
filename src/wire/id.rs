//! Ids of nodes, sites and resources. Nodes and sites are numbered in different spaces: a node 1 and a site 1 are
//! different things, so they are different types.
//!
//! Pure values. Used everywhere.

use std::fmt;

/// The number of node ids, and of site ids, that fit into a packet's `node_to` mask.
pub const MAX_IDS: u8 = 32;

/// The byte for "every resource" on the wire.
const ALL_DEVICES: u8 = 255;

/// The error for an id that does not fit its space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdOutOfRange;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $last:expr, $word:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u8);

        impl $name {
            /// The largest valid id.
            pub const LAST: u8 = $last;

            /// Returns the id as a number.
            pub const fn get(self) -> u8 {
                self.0
            }
        }

        impl TryFrom<u32> for $name {
            type Error = IdOutOfRange;

            fn try_from(n: u32) -> Result<Self, IdOutOfRange> {
                match u8::try_from(n) {
                    Ok(id) if id <= Self::LAST => Ok(Self(id)),
                    _ => Err(IdOutOfRange),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($word, " {}"), self.0)
            }
        }
    };
}

id!(
    /// A node of the local site, 0..=31.
    NodeId, MAX_IDS - 1, "node"
);
id!(
    /// A site, 0..=31.
    SiteId, MAX_IDS - 1, "site"
);
id!(
    /// A resource (the wire calls it device), 0..=254; 255 on the wire stands for all of them.
    ResourceId, ALL_DEVICES - 1, "resource"
);

/// The resource that a packet concerns, or all of them. Every byte is one of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Device {
    /// One resource.
    One(ResourceId),
    /// Every resource: 255 on the wire.
    All,
}

impl Device {
    /// Resource 0: the value of the byte where no sender has set it.
    pub const FIRST: Device = Device::One(ResourceId(0));

    /// Returns the resource, if it is one.
    pub const fn resource(self) -> Option<ResourceId> {
        match self {
            Device::One(resource) => Some(resource),
            Device::All => None,
        }
    }
}

impl From<u8> for Device {
    fn from(byte: u8) -> Self {
        if byte == ALL_DEVICES { Device::All } else { Device::One(ResourceId(byte)) }
    }
}

impl From<Device> for u8 {
    fn from(device: Device) -> u8 {
        match device {
            Device::One(resource) => resource.get(),
            Device::All => ALL_DEVICES,
        }
    }
}

/// As on the wire: 0 to 255.
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        u8::from(*self).fmt(f)
    }
}

/// A set of node ids or of site ids, as `node_to` carries it: bit i stands for id i.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mask(pub u32);

impl Mask {
    /// Returns the set with this one id. Ids of 32 and more give the empty set.
    pub const fn of(id: u8) -> Self {
        if id < MAX_IDS { Mask(1 << id) } else { Mask(0) }
    }

    /// Returns true if the id is in the set.
    pub const fn contains(self, id: u8) -> bool {
        self.0 & Self::of(id).0 != 0
    }

    /// Returns true if the set has no id.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns the ids of the set, ascending.
    pub fn ids(self) -> impl Iterator<Item = u8> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            if rest == 0 {
                return None;
            }
            let id = rest.trailing_zeros() as u8;
            rest &= rest.wrapping_sub(1);
            Some(id)
        })
    }
}

impl std::ops::BitOr for Mask {
    type Output = Mask;
    fn bitor(self, other: Mask) -> Mask {
        Mask(self.0 | other.0)
    }
}

impl std::ops::BitAnd for Mask {
    type Output = Mask;
    fn bitand(self, other: Mask) -> Mask {
        Mask(self.0 & other.0)
    }
}

impl fmt::Display for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (i, id) in self.ids().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{id}")?;
        }
        f.write_str("}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stay_in_their_ranges() {
        assert_eq!(NodeId::try_from(31).unwrap().get(), 31);
        assert_eq!(NodeId::try_from(32), Err(IdOutOfRange));
        assert_eq!(SiteId::try_from(256 + 1), Err(IdOutOfRange));
        assert_eq!(ResourceId::try_from(254).unwrap().get(), 254);
        assert_eq!(ResourceId::try_from(255), Err(IdOutOfRange));
        assert_eq!(Device::from(255), Device::All);
        for byte in 0..=255u8 {
            assert_eq!(u8::from(Device::from(byte)), byte);
            assert_eq!(Device::from(byte).resource().is_some(), byte != 255);
        }
    }

    #[test]
    fn mask_lists_its_ids() {
        let mask = Mask::of(0) | Mask::of(5) | Mask::of(31);
        assert_eq!(mask.ids().collect::<Vec<_>>(), [0, 5, 31]);
        assert_eq!(mask.to_string(), "{0,5,31}");
        assert!(mask.contains(31) && !mask.contains(30) && !mask.contains(40));
        assert!(Mask::of(32).is_empty());
    }
}
