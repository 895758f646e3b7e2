//! The 35-byte hello that opens each TCP connection of a peer link, in both directions.

use std::fmt;
use std::net::IpAddr;

use super::{Class, Scope};

/// Bytes in a hello.
pub const HELLO_LEN: usize = 35;

/// Where the address text starts.
const ADDR: usize = 3;
/// Where the extension's mark stands: behind the longest IPv4 text and its NUL.
const MARK_AT: usize = 19;
/// Says that the sender speaks the extension. C daemons read the address as NUL-terminated text and never
/// look here.
const MARK: &[u8; 4] = b"HDX1";

/// One side's hello, or the answer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The sender's node id (node link) or site id (site link), unchecked.
    pub id: u8,
    /// Which of the pair's two links this connection is to be.
    pub class: Class,
    /// Whether this answers a hello.
    pub ack: bool,
    /// Node link or site link. C daemons leave it 0 in an ACK.
    pub scope: Scope,
    /// Site link: the address of the sender's runsite. `None` where the text is empty or no address.
    pub addr: Option<IpAddr>,
    /// Whether the sender speaks the extension.
    pub extended: bool,
}

/// Why 35 bytes are not a hello.
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
    /// A hello type or node type out of its range. Unreadable address text is no error here: it is the
    /// one who needs the address that misses it.
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
        // An address that is long enough to cover the mark leaves no room for it.
        let extended = text.len() < MARK_AT - ADDR && bytes[MARK_AT..].starts_with(MARK);
        Ok(Hello { id: bytes[0], class, ack, scope, addr, extended })
    }

    /// The hello as bytes. With the extension's mark an IPv6 address has no room: it is left out here and
    /// goes into the extension's record.
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
        let room = if self.extended { MARK_AT - ADDR } else { HELLO_LEN - ADDR };
        if let Some(addr) = self.addr {
            let text = addr.to_string();
            // One byte stays for the NUL that ends the text.
            if text.len() < room {
                bytes[ADDR..].iter_mut().zip(text.bytes()).for_each(|(place, byte)| *place = byte);
            }
        }
        if self.extended {
            bytes[MARK_AT..].iter_mut().zip(MARK).for_each(|(place, &byte)| *place = byte);
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
                extended: false
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
            extended: true,
        };
        let bytes = hello.encode();
        assert_eq!(bytes[..3], [31, 1, 1]);
        assert_eq!(&bytes[3..19], b"255.255.255.255\0");
        assert_eq!(&bytes[19..23], b"HDX1");
        assert_eq!(Hello::decode(&bytes).unwrap(), hello);
    }

    #[test]
    fn a_long_address_is_no_mark() {
        let mut bytes = [b'1'; HELLO_LEN];
        bytes[..3].copy_from_slice(&[1, 0, 0]);
        bytes[19..23].copy_from_slice(b"HDX1");
        let hello = Hello::decode(&bytes).unwrap();
        assert!(!hello.extended && hello.addr.is_none());
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
                            v4 in any::<u32>(), extended in any::<bool>()) {
            let hello = Hello {
                id,
                class: if meta { Class::Meta } else { Class::Data },
                ack,
                scope: if site { Scope::Site } else { Scope::Node },
                addr: Some(std::net::Ipv4Addr::from(v4).into()),
                extended,
            };
            prop_assert_eq!(Hello::decode(&hello.encode()).unwrap(), hello);
        }
    }
}
