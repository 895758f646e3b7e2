//! The listeners of the reactor: for the kernel module, for the other nodes, and for other sites.
//!
//! Opening and closing only; what comes in is the reactor's, and who may come in is for others to say.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Instant;

use polling::{Event, Poller};
use socket2::{Domain, Socket, Type};

use super::reactor::{FIRST_HANDSHAKE, FIRST_LISTENER};
use crate::core::Door;
use crate::sys::Registered;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

pub(super) struct Listener {
    pub key: usize,
    addr: SocketAddr,
    /// For whom, if not for the kernel module.
    pub door: Option<Door>,
    pub socket: Registered<TcpListener>,
    /// Until when nothing is accepted.
    pub paused: Option<Instant>,
}

/// Opens one more listener: for the kernel module, or at this door.
pub(super) fn open(
    poller: &Arc<Poller>,
    listeners: &mut Vec<Listener>,
    addr: SocketAddr,
    door: Option<Door>,
) -> Result<(), String> {
    let (what, element) = match door {
        None => ("the kernel module", "serverip and serverport, or option --server"),
        Some(Door::Node) => ("the other nodes", "ipaddr and port of this node"),
        Some(Door::Site(_)) => ("other sites", "ip and port of this site's runsites"),
    };
    let taken: Vec<usize> = listeners.iter().map(|listener| listener.key).collect();
    let key = (FIRST_LISTENER..FIRST_HANDSHAKE).find(|key| !taken.contains(key)).unwrap_or(FIRST_HANDSHAKE);
    let socket = listen(addr)
        .and_then(|listener| Registered::new(poller, listener, Event::readable(key)))
        .map_err(|error| format!("cannot listen for {what} at {addr}: {error}; check {element}"))?;
    listeners.push(Listener { key, addr, door, socket, paused: None });
    Ok(())
}

impl Listener {
    fn is_site(&self) -> bool {
        matches!(self.door, Some(Door::Site(_)))
    }
}

/// Listens for other sites at these addresses, and at no others.
///
/// # Errors
/// Which address cannot be bound; the listeners are as before then.
pub(super) fn set_sites(
    poller: &Arc<Poller>,
    listeners: &mut Vec<Listener>,
    sites: &[SocketAddr],
) -> Result<(), String> {
    let before: Vec<_> =
        listeners.iter().filter(|listener| listener.is_site()).map(|listener| listener.addr).collect();
    // Closing comes first: one for both families of addresses cannot be beside one for IPv4 at the same port.
    listeners.retain(|listener| !listener.is_site() || sites.contains(&listener.addr));
    let open_all = |listeners: &mut Vec<Listener>, sites: &[SocketAddr]| {
        sites.iter().try_for_each(|&addr| {
            if listeners.iter().any(|listener| listener.is_site() && listener.addr == addr) {
                return Ok(());
            }
            open(poller, listeners, addr, Some(Door::Site(addr.port())))
        })
    };
    open_all(listeners, sites).inspect_err(|_| {
        listeners.retain(|listener| !listener.is_site() || before.contains(&listener.addr));
        // They were open a moment ago.
        let _ = open_all(listeners, &before);
    })
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    // A daemon that comes back must not wait for the connections of its predecessor to time out.
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        // The wildcard address serves sites of both families.
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}
