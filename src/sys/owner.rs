//! The user that owns the socket at the other end of a connection within this machine.
//!
//! The system is asked over NETLINK_SOCK_DIAG, which answers at once; where that is missing, the first
//! part of /proc/net/tcp and tcp6 is read. A socket of another machine is never found. The reactor asks once for each
//! kernel module's link, and must never wait here.

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};
use socket2::SockRef;

/// `SOCK_DIAG_BY_FAMILY` of linux/sock_diag.h.
const BY_FAMILY: u16 = 20;
/// `NLMSG_ERROR` and `NLM_F_REQUEST` of netlink(7).
const ERROR: u16 = 2;
const REQUEST: u16 = 1;
/// `IPPROTO_TCP`.
const TCP: u8 = 6;
/// `TCP_ESTABLISHED`. A socket that its process has closed has no owner, and is reported as root's.
const ESTABLISHED: u8 = 1;
/// A netlink header, and a `struct inet_diag_req_v2`.
const QUESTION_LEN: usize = 16 + 56;
/// Most bytes that are read of each list of sockets, where they are used: some 7000 sockets, in a few milliseconds.
const LIST_MAX: u64 = 1 << 20;

/// The way to find the owners of sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owners {
    /// True if the system answers requests about sockets. Else its lists of sockets are read.
    answers: bool,
}

impl Owners {
    /// Finds out which way the system has, with a socket of this process. The system may load a module of its own
    /// now, and not later.
    pub fn probe() -> Self {
        let anywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        // A listening socket is found for any address that would connect to it.
        let found = listener.and_then(|listener| ask(listener.local_addr()?, anywhere));
        Owners { answers: found.is_ok_and(|found| found.is_some()) }
    }

    /// Returns the user id of the socket at the other end of a connection, `None` if it is not on this machine or is
    /// closed.
    ///
    /// # Errors
    /// The system's error.
    pub fn owner(self, stream: &TcpStream) -> io::Result<Option<u32>> {
        if SockRef::from(stream).local_addr()?.is_unix() {
            return Ok(Some(socket_peercred(stream)?.uid.as_raw()));
        }
        let canonical = |addr: SocketAddr| SocketAddr::new(addr.ip().to_canonical(), addr.port());
        let (theirs, ours) = (canonical(stream.peer_addr()?), canonical(stream.local_addr()?));
        if !self.answers {
            return listed(theirs, ours);
        }
        let found = ask(theirs, ours)?;
        Ok(found.filter(|(state, _)| *state == ESTABLISHED).map(|(_, uid)| uid))
    }
}

/// Returns state and user id of the TCP socket with these addresses: its own, and that of the other end.
fn ask(own: SocketAddr, other: SocketAddr) -> io::Result<Option<(u8, u32)>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(SOCK_DIAG))?;
    sendto(&socket, &question(own, other), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    answer(&socket)
}

/// Returns the request about one socket.
fn question(own: SocketAddr, other: SocketAddr) -> Vec<u8> {
    let family = if own.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let mut text = Vec::with_capacity(QUESTION_LEN);
    text.extend((QUESTION_LEN as u32).to_ne_bytes());
    text.extend(BY_FAMILY.to_ne_bytes());
    text.extend(REQUEST.to_ne_bytes());
    // Sequence number and port: there is one request for each socket.
    text.extend([0; 8]);
    text.extend([family.as_raw() as u8, TCP, 0, 0]);
    // All states.
    text.extend(u32::MAX.to_ne_bytes());
    text.extend(own.port().to_be_bytes());
    text.extend(other.port().to_be_bytes());
    for ip in [own.ip(), other.ip()] {
        match ip {
            IpAddr::V4(ip) => {
                text.extend(ip.octets());
                text.extend([0; 12]);
            }
            IpAddr::V6(ip) => text.extend(ip.octets()),
        }
    }
    // Any interface, and no cookie.
    text.extend(0_u32.to_ne_bytes());
    text.extend([u8::MAX; 8]);
    text
}

/// Returns the system's answer to it.
fn answer(socket: &OwnedFd) -> io::Result<Option<(u8, u32)>> {
    let mut text = [0; 1024];
    let (len, _) = recv(socket, &mut text[..], RecvFlags::empty())?;
    let text = text.get(..len).unwrap_or_default();
    let short = || io::Error::new(io::ErrorKind::InvalidData, "a short answer about a socket");
    let word = |at: usize| text.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes);
    let kind = text.get(4..).and_then(|text| text.first_chunk().copied()).map(u16::from_ne_bytes);
    match kind.ok_or_else(short)? {
        BY_FAMILY => {
            // Behind the netlink header: family, state; and after addresses, timer and two queues, the user id.
            let state = text.get(17).copied().ok_or_else(short)?;
            Ok(Some((state, word(16 + 64).ok_or_else(short)?)))
        }
        ERROR => match (word(16).ok_or_else(short)? as i32).wrapping_neg() {
            errno if errno == Errno::NOENT.raw_os_error() => Ok(None),
            errno => Err(io::Error::from_raw_os_error(errno)),
        },
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "an answer of another kind")),
    }
}

/// Returns the user id of an established socket, from the system's lists.
fn listed(own: SocketAddr, other: SocketAddr) -> io::Result<Option<u32>> {
    for list in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let mut text = String::new();
        match File::open(list) {
            // A system without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?.take(LIST_MAX).read_to_string(&mut text)?,
        };
        if let Some(uid) = find(&text, own, other) {
            return Ok(Some(uid));
        }
    }
    Ok(None)
}

/// Returns the user id of an established socket in such a list.
fn find(list: &str, own: SocketAddr, other: SocketAddr) -> Option<u32> {
    let is = |field: Option<&str>, addr: SocketAddr| {
        field.is_some_and(|field| shown(addr).iter().any(|shown| field == shown))
    };
    list.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let found = is(fields.next(), own) && is(fields.next(), other) && fields.next() == Some("01");
        fields.nth(3).filter(|_| found)?.parse().ok()
    })
}

/// Returns an address in the form of the lists: numbers of four bytes in the order of this machine, an IPv4 address
/// also in the form of an IPv6 socket.
fn shown(addr: SocketAddr) -> Vec<String> {
    let hex = |bytes: &[u8]| -> String {
        let numbers = bytes.chunks_exact(4).filter_map(|four| four.first_chunk().copied());
        numbers.map(|four| format!("{:08X}", u32::from_ne_bytes(four))).collect()
    };
    let with_port = |ip: String| format!("{ip}:{:04X}", addr.port());
    match addr.ip() {
        IpAddr::V4(ip) => {
            vec![with_port(hex(&ip.octets())), with_port(hex(&ip.to_ipv6_mapped().octets()))]
        }
        IpAddr::V6(ip) => vec![with_port(hex(&ip.octets()))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ways find the same, for sockets of both families, and nothing for a socket that is closed.
    #[test]
    #[allow(clippy::print_stdout, reason = "a test that cannot be made says why")]
    fn the_owner_of_the_other_end_is_found() {
        for at in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let Ok(listener) = TcpListener::bind(at) else { continue };
            let addr = listener.local_addr().unwrap();
            let to = if at == "[::]:0" { format!("127.0.0.1:{}", addr.port()) } else { addr.to_string() };
            let Ok(caller) = TcpStream::connect(&to) else { continue };
            let (stream, _) = listener.accept().unwrap();
            let lists = ["tcp", "tcp6"].map(|list| std::fs::read_to_string(format!("/proc/net/{list}")));
            let lists = lists.map(Result::unwrap_or_default).concat();
            if cfg!(target_endian = "big") && !shown(addr).iter().any(|shown| lists.contains(shown)) {
                println!("SKIPPED: this program is emulated, and the system's lists have another byte order");
                return;
            }
            let own = rustix::process::geteuid().as_raw();
            for owners in [Owners::probe(), Owners { answers: false }] {
                assert_eq!(owners.owner(&stream).unwrap(), Some(own), "{at} {owners:?}");
            }
            drop(caller);
            for owners in [Owners::probe(), Owners { answers: false }] {
                assert!(owners.owner(&stream).is_ok_and(|found| found.is_none()), "{at} {owners:?}");
            }
        }
    }

    #[test]
    fn a_list_is_searched_by_both_addresses_and_the_state() {
        let [own, other] = ["127.0.0.1:39812", "127.0.0.1:9998"].map(|addr| addr.parse().unwrap());
        let [a, b] = [own, other].map(|addr| shown(addr)[0].clone());
        let line = |state: &str| {
            format!("  sl  x\n   0: {a} {b} {state} 0:0 0:0 0 1000 0 31337 1 0 20 4 30 10 -1\n")
        };
        assert_eq!(find(&line("01"), own, other), Some(1000));
        assert_eq!(find(&line("06"), own, other), None);
        assert_eq!(find(&line("01"), other, own), None);
    }
}
