//! Notifications about this machine's interfaces, addresses and routes, from rtnetlink(7).
//!
//! Reports only the kind of the change; the present state is looked up elsewhere. Must never block. Called by
//! the reactor.

use std::io::{self, Read};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use socket2::Socket;

/// `RTMGRP_LINK`, and `_IFADDR` and `_ROUTE` of both families of addresses.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
/// Flag of an interface that can carry packets.
const IFF_RUNNING: u32 = 0x40;
/// Bytes of a message's own header.
const HEADER: usize = 16;

/// The kinds of changes that happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// An address came or went.
    pub addresses: bool,
    /// An interface, an address or a route came: a peer may be reached that could not be before.
    pub paths: bool,
}

/// Returns a socket that becomes readable when something changes.
///
/// # Errors
/// The system's error; a kernel without netlink.
pub fn watch_network() -> io::Result<Socket> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    // The default protocol 0 is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    Ok(socket.into())
}

/// Reads everything that waits in the socket.
pub fn changes(mut socket: &Socket) -> Changes {
    let mut changes = Changes::default();
    let mut messages = [0; 8192];
    loop {
        match socket.read(&mut messages) {
            Ok(0) => return changes,
            Ok(n) => changes.add(messages.get(..n).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return changes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The system had no memory for all of it: anything may have changed.
            Err(_) => return Changes { addresses: true, paths: true },
        }
    }
}

impl Changes {
    fn add(&mut self, mut messages: &[u8]) {
        while let Some(header) = messages.first_chunk::<HEADER>() {
            let [l0, l1, l2, l3, t0, t1, ..] = *header;
            let len = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
            let flags = messages.get(HEADER + 8..).and_then(|rest| rest.first_chunk().copied());
            match u16::from_ne_bytes([t0, t1]) {
                RTM_NEWADDR => *self = Changes { addresses: true, paths: true },
                RTM_DELADDR => self.addresses = true,
                RTM_NEWROUTE => self.paths = true,
                RTM_NEWLINK => {
                    self.paths |= flags.is_some_and(|flags| u32::from_ne_bytes(flags) & IFF_RUNNING != 0)
                }
                _ => {}
            }
            let next = len.max(HEADER).next_multiple_of(4);
            messages = messages.get(next..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, flags: u32) -> Vec<u8> {
        let mut bytes = vec![0; 32];
        bytes[..4].copy_from_slice(&32u32.to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[24..28].copy_from_slice(&flags.to_ne_bytes());
        bytes
    }

    #[test]
    fn what_came_is_told_from_what_went() {
        let of = |messages: &[Vec<u8>]| {
            let mut changes = Changes::default();
            changes.add(&messages.concat());
            (changes.addresses, changes.paths)
        };
        assert_eq!(of(&[message(RTM_DELADDR, 0)]), (true, false));
        assert_eq!(of(&[message(RTM_NEWADDR, 0)]), (true, true));
        assert_eq!(of(&[message(RTM_NEWLINK, 0x1)]), (false, false), "up, but without a carrier");
        assert_eq!(of(&[message(RTM_NEWLINK, 0x41)]), (false, true));
        assert_eq!(of(&[message(25, 0), message(17, 0x41)]), (false, false), "a route and an interface went");
        assert_eq!(of(&[message(25, 0), message(RTM_NEWROUTE, 0)]), (false, true));
        // No message of the system is read beyond its end, or for ever.
        assert_eq!(of(&[vec![0; 40], vec![0xff; 17]]), (false, false));
    }
}
