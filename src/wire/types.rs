//! Packet types, with the link class and address space that follow from each.
//!
//! A table of constants, fixed by the protocol. Used by every module that reads or writes packets.

use std::fmt;

/// The class of a link: in every pair, data packets travel apart from meta ("control") packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Payload of the mirror: types 23..=38.
    Data,
    /// State, heartbeats and negotiation: types 1..=20.
    Meta,
}

impl Class {
    /// Both classes, data first.
    pub const BOTH: [Class; 2] = [Class::Data, Class::Meta];

    /// Returns 0 for data, 1 for meta: the index in a pair.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Returns `data` or `meta`.
    pub const fn name(self) -> &'static str {
        match self {
            Class::Data => "data",
            Class::Meta => "meta",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The address space of a packet's `node_to` and `node_from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Nodes of the local site.
    Node,
    /// Sites.
    Site,
}

/// The type byte of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PacketType(pub u8);

macro_rules! types {
    ($($name:ident = $value:literal,)*) => {
        #[allow(missing_docs, reason = "the names are the protocol's own, but for those in HD")]
        impl PacketType {
            $(pub const $name: PacketType = PacketType($value);)*

            /// Returns the protocol's name of the type, if it has one.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

types! {
    SC_HS = 1,
    SC_HS_ACK = 2,
    SC_STATE = 3,
    SC_STATE_ACK = 4,
    SC_PING = 5,
    SC_PING_ACK = 6,
    SC_CONN_STATE = 7,
    SC_DEVDOWN = 8,
    SC_DEVDOWN_ACK = 9,
    SC_STARTREP = 10,
    SC_PRI_PRO = 11,
    SC_PRI_PRO_ACK = 12,
    NC_CONN_STATE = 14,
    NC_PING = 15,
    NC_PING_ACK = 16,
    NC_MASTER = 17,
    NC_STATE_REQ = 18,
    NC_STATE = 19,
    SD_DATA = 23,
    SD_NET_ACK = 24,
    SD_DATA_ACK = 25,
    SD_RSDATA = 26,
    SD_RSDATA_ACK = 27,
    SD_DSYNC_REQ = 28,
    SD_FSYNC_REQ = 29,
    SD_FSYNC_REP = 30,
    SD_FSYNC_MD5 = 31,
    SD_FSYNC_DATA = 32,
    SD_DBM_REQ = 33,
    SD_DBM_REP = 34,
    ND_SBIO = 36,
    ND_SBIO_ACK = 37,
    KERN_HANDSHAKE_D = 57,
    KERN_HANDSHAKE_D_ACK = 58,
    KERN_HANDSHAKE_M = 59,
    KERN_HANDSHAKE_M_ACK = 60,
    HD_VIEW = 200,
    HD_END = 201,
}

impl PacketType {
    /// Returns class and address space of a type that is relayed; `None` for every other type. The marks at the ends
    /// of the ranges (13, 20, 35, 38) count as in range.
    pub const fn relayed(self) -> Option<(Class, Scope)> {
        match self.0 {
            1..=12 => Some((Class::Meta, Scope::Site)),
            13..=20 => Some((Class::Meta, Scope::Node)),
            23..=34 => Some((Class::Data, Scope::Site)),
            35..=38 => Some((Class::Data, Scope::Node)),
            _ => None,
        }
    }

    /// Returns true if only daemons send this type: heartbeats and their answers, which end at the daemon, and
    /// connection states, with which a peer could report to a kernel module what its own daemon did not see.
    pub const fn is_daemons_own(self) -> bool {
        self.is_ping() || self.is_ping_ack() || self.is_conn_state()
    }

    /// Returns true for NC_CONN_STATE and SC_CONN_STATE.
    pub const fn is_conn_state(self) -> bool {
        matches!(self, Self::NC_CONN_STATE | Self::SC_CONN_STATE)
    }

    /// Returns true for NC_PING and SC_PING.
    pub const fn is_ping(self) -> bool {
        matches!(self, Self::NC_PING | Self::SC_PING)
    }

    /// Returns true for NC_PING_ACK and SC_PING_ACK.
    pub const fn is_ping_ack(self) -> bool {
        matches!(self, Self::NC_PING_ACK | Self::SC_PING_ACK)
    }
}

impl fmt::Display for PacketType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "type {}", self.0),
        }
    }
}

impl fmt::Debug for PacketType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_byte_has_its_class_and_scope() {
        for n in 0..=255u8 {
            let expected = match n {
                1..=12 => Some((Class::Meta, Scope::Site)),
                13..=20 => Some((Class::Meta, Scope::Node)),
                23..=34 => Some((Class::Data, Scope::Site)),
                35..=38 => Some((Class::Data, Scope::Node)),
                _ => None,
            };
            assert_eq!(PacketType(n).relayed(), expected, "type {n}");
        }
    }

    /// Failure mode 23: a type outside the table is printed, not looked up.
    #[test]
    fn fm23_every_type_byte_can_be_printed() {
        assert_eq!(PacketType(36).to_string(), "ND_SBIO");
        assert_eq!(PacketType(0).to_string(), "type 0");
        assert_eq!(PacketType(255).to_string(), "type 255");
    }
}
