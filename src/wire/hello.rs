//! The 35-byte hello that opens each TCP connection of a peer link, in both directions.
//!
//! A pure function of bytes, hostile ones too. Used by the handshake and the check of callers.

use std::fmt;
use std::net::IpAddr;

use super::{Class, Scope};

/// Bytes in a hello.
pub const HELLO_LEN: usize = 35;

/// Offset of the address text.
const ADDR: usize = 3;
/// Offset of the extension's mark: behind the longest IPv4 text and its NUL.
const MARK_AT: usize = 19;
/// Mark of a sender that uses the extension. C daemons read the address as NUL-terminated text and never look here.
const MARK: &[u8; 4] = b"HDX1";
/// Mark of a sender that uses the extension, and encrypts: then the rest of the bytes is a [`KeyOffer`].
const KEY_MARK: &[u8; 4] = b"HDK1";
/// Offset of a [`KeyOffer`]: ids of keys, cipher, realm, and two bytes that are 0.
const SEAL_AT: usize = MARK_AT + MARK.len();
/// The most keys a node holds.
pub const KEYS_MAX: usize = 2;

/// The id of a key: a part of its hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyId(pub [u8; 4]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

/// The offer of encryption in a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyOffer {
    /// A caller's keys, newest first; in an ACK the chosen one. All zero: none.
    pub keys: [KeyId; KEYS_MAX],
    /// A caller's best cipher; in an ACK the chosen one.
    pub cipher: u8,
    /// The space of the hello's id: a node's site, or the resource that a site is linked for.
    pub realm: u8,
}

/// The content that follows hello and ACK, if both sides have the same mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Packets: a C daemon's.
    None,
    /// A record each way, then packets.
    Extended,
    /// The same and all the rest encrypted.
    Keyed(KeyOffer),
}

/// One side's hello, or the answer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The sender's node id (node link) or site id (site link), unchecked.
    pub id: u8,
    /// The class of the link that this connection is to be.
    pub class: Class,
    /// True if this answers a hello.
    pub ack: bool,
    /// Node link or site link. C daemons leave it 0 in an ACK.
    pub scope: Scope,
    /// Site link: the address of the sender's runsite. `None` where the text is empty or no address.
    pub addr: Option<IpAddr>,
    /// The sender's mark: extension and encryption.
    pub mark: Mark,
}

/// The reason why 35 bytes are not a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HelloError {
    /// The hello type is over 3.
    Type(u8),
    /// The node type is over 1.
    NodeType(u8),
}

impl fmt::Display for HelloError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HelloError::Type(found) => write!(f, "hello type {found}, expected 0 to 3"),
            HelloError::NodeType(found) => {
                write!(f, "hello node type {found}, expected 0 (node) or 1 (site)")
            }
        }
    }
}

impl std::error::Error for HelloError {}

impl Hello {
    /// Reads a hello.
    ///
    /// # Errors
    /// A hello type or node type out of its range. Unreadable address text is no error here: the caller that needs
    /// the address reports it.
    pub fn decode(bytes: &[u8; HELLO_LEN]) -> Result<Self, HelloError> {
        let (class, ack) = match bytes[1] {
            0 => (Class::Data, false),
            1 => (Class::Data, true),
            2 => (Class::Meta, false),
            3 => (Class::Meta, true),
            other => return Err(HelloError::Type(other)),
        };
        let scope = match bytes[2] {
            0 => Scope::Node,
            1 => Scope::Site,
            other => return Err(HelloError::NodeType(other)),
        };
        let text = &bytes[ADDR..];
        let text = text.split(|&b| b == 0).next().unwrap_or_default();
        let addr = std::str::from_utf8(text).ok().and_then(|text| text.trim().parse().ok());
        // An address that is long enough to cover the mark leaves no space for it.
        let mark = match &bytes[MARK_AT..] {
            _ if text.len() >= MARK_AT - ADDR => Mark::None,
            [mark @ .., _, _, _, _, _, _, _, _, _, _, _, _] if mark == MARK => Mark::Extended,
            [mark @ .., a, b, c, d, e, f, g, h, cipher, realm, _, _] if mark == KEY_MARK => {
                Mark::Keyed(KeyOffer {
                    keys: [KeyId([*a, *b, *c, *d]), KeyId([*e, *f, *g, *h])],
                    cipher: *cipher,
                    realm: *realm,
                })
            }
            _ => Mark::None,
        };
        Ok(Hello { id: bytes[0], class, ack, scope, addr, mark })
    }

    /// Returns the hello as bytes. With a mark an IPv6 address does not fit: it is left out here and goes into the
    /// extension's record.
    pub fn encode(&self) -> [u8; HELLO_LEN] {
        let mut bytes = [0; HELLO_LEN];
        bytes[0] = self.id;
        bytes[1] = match (self.class, self.ack) {
            (Class::Data, false) => 0,
            (Class::Data, true) => 1,
            (Class::Meta, false) => 2,
            (Class::Meta, true) => 3,
        };
        bytes[2] = u8::from(self.scope == Scope::Site);
        let room = if self.mark == Mark::None { HELLO_LEN - ADDR } else { MARK_AT - ADDR };
        if let Some(addr) = self.addr {
            let text = addr.to_string();
            // One byte stays for the NUL that ends the text.
            if text.len() < room {
                bytes[ADDR..].iter_mut().zip(text.bytes()).for_each(|(place, byte)| *place = byte);
            }
        }
        let put = |place: &mut [u8], what: &[u8]| {
            place.iter_mut().zip(what).for_each(|(place, &byte)| *place = byte);
        };
        match self.mark {
            Mark::None => {}
            Mark::Extended => put(&mut bytes[MARK_AT..], MARK),
            Mark::Keyed(KeyOffer { keys: [KeyId([a, b, c, d]), KeyId([e, f, g, h])], cipher, realm }) => {
                put(&mut bytes[MARK_AT..], KEY_MARK);
                put(&mut bytes[SEAL_AT..], &[a, b, c, d, e, f, g, h, cipher, realm]);
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_c_hello_is_read() {
        let mut bytes = [0u8; HELLO_LEN];
        bytes[..3].copy_from_slice(&[2, 2, 0]);
        bytes[3..12].copy_from_slice(b"127.0.0.1");
        let hello = Hello::decode(&bytes).unwrap();
        assert_eq!(
            hello,
            Hello {
                id: 2,
                class: Class::Meta,
                ack: false,
                scope: Scope::Node,
                addr: Some("127.0.0.1".parse().unwrap()),
                mark: Mark::None
            }
        );
        assert_eq!(hello.encode(), bytes);
    }

    #[test]
    fn the_mark_stands_behind_the_longest_ipv4_address() {
        let hello = Hello {
            id: 31,
            class: Class::Data,
            ack: true,
            scope: Scope::Site,
            addr: Some("255.255.255.255".parse().unwrap()),
            mark: Mark::Extended,
        };
        let bytes = hello.encode();
        assert_eq!(bytes[..3], [31, 1, 1]);
        assert_eq!(&bytes[3..19], b"255.255.255.255\0");
        assert_eq!(&bytes[19..23], b"HDX1");
        assert_eq!(Hello::decode(&bytes).unwrap(), hello);
    }

    #[test]
    fn a_seal_stands_behind_its_mark() {
        let seal = KeyOffer { keys: [KeyId([1, 2, 3, 4]), KeyId([0xa0, 6, 7, 8])], cipher: 9, realm: 10 };
        let hello = Hello {
            id: 3,
            class: Class::Meta,
            ack: false,
            scope: Scope::Node,
            addr: Some("10.0.0.1".parse().unwrap()),
            mark: Mark::Keyed(seal),
        };
        let bytes = hello.encode();
        assert_eq!(&bytes[3..19], b"10.0.0.1\0\0\0\0\0\0\0\0");
        assert_eq!(&bytes[19..], b"HDK1\x01\x02\x03\x04\xa0\x06\x07\x08\x09\x0a\0\0");
        assert_eq!(Hello::decode(&bytes).unwrap(), hello);
        assert_eq!(seal.keys[1].to_string(), "a0060708");
    }

    #[test]
    fn a_long_address_is_no_mark() {
        let mut bytes = [b'1'; HELLO_LEN];
        bytes[..3].copy_from_slice(&[1, 0, 0]);
        bytes[19..23].copy_from_slice(b"HDX1");
        let hello = Hello::decode(&bytes).unwrap();
        assert!(hello.mark == Mark::None && hello.addr.is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), HELLO_LEN)) {
            let bytes: [u8; HELLO_LEN] = bytes.try_into().unwrap();
            match Hello::decode(&bytes) {
                Ok(hello) => {
                    prop_assert!(bytes[1] <= 3 && bytes[2] <= 1);
                    prop_assert_eq!(Hello::decode(&hello.encode()).unwrap(), hello);
                }
                Err(HelloError::Type(t)) => prop_assert!(t == bytes[1] && t > 3),
                Err(HelloError::NodeType(t)) => prop_assert!(t == bytes[2] && t > 1),
            }
        }

        #[test]
        fn hellos_come_back(id in any::<u8>(), meta in any::<bool>(), ack in any::<bool>(), site in any::<bool>(),
                            v4 in any::<u32>(), mark in 0usize..3, seal in any::<[u8; 10]>()) {
            let [a, b, c, d, e, f, g, h, cipher, realm] = seal;
            let seal = KeyOffer { keys: [KeyId([a, b, c, d]), KeyId([e, f, g, h])], cipher, realm };
            let hello = Hello {
                id,
                class: if meta { Class::Meta } else { Class::Data },
                ack,
                scope: if site { Scope::Site } else { Scope::Node },
                addr: Some(std::net::Ipv4Addr::from(v4).into()),
                mark: [Mark::None, Mark::Extended, Mark::Keyed(seal)][mark],
            };
            prop_assert_eq!(Hello::decode(&hello.encode()).unwrap(), hello);
        }
    }
}
