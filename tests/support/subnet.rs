//! A /24 of loopback addresses for one test, held by a bound UDP socket, so that tests and whole test runs
//! go side by side.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

/// Port of every node's node listener.
pub const NODE_PORT: u16 = 7000;
/// Port of every node's kernel listener.
pub const SERVER_PORT: u16 = 9998;
/// Port of the claim. Over 1023, so that an ordinary user can bind it.
const CLAIM_PORT: u16 = 9009;

/// 127.A.B.0/24, this test's own while the value lives.
pub struct Subnet {
    a: u8,
    b: u8,
    _claim: UdpSocket,
}

impl Subnet {
    /// Takes a /24 that no other test holds.
    pub fn claim() -> Self {
        for _ in 0..1000 {
            let (a, b) = (fastrand::u8(64..=250), fastrand::u8(64..=250));
            if let Ok(claim) = UdpSocket::bind((Ipv4Addr::new(127, a, b, 250), CLAIM_PORT)) {
                return Subnet { a, b, _claim: claim };
            }
        }
        panic!("no free loopback /24");
    }

    /// The address 127.A.B.`host`.
    pub fn host(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.a, self.b, host)
    }

    /// Node `id`'s address.
    pub fn ip(&self, id: u8) -> Ipv4Addr {
        self.host(10 + id)
    }

    /// The address at which node `id` listens for nodes with larger ids.
    pub fn node(&self, id: u8) -> SocketAddr {
        (self.ip(id), NODE_PORT).into()
    }

    /// The address at which node `id` listens for its kernel module.
    pub fn server(&self, id: u8) -> SocketAddr {
        (self.ip(id), SERVER_PORT).into()
    }
}
