//! The two ways a connection begins: a listener, and a call from this side's own address. Neither may block.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use socket2::{Domain, Socket, Type};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// A listener that does not block.
///
/// # Errors
/// What the system says, above all that the address is not here or in use.
pub(super) fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
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

/// Starts a connection; it is complete, or has failed, when the socket becomes writable.
///
/// # Errors
/// What the system says at once, above all that there is no route.
pub(crate) fn dial(to: SocketAddr, from: IpAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if from.is_ipv4() == to.is_ipv4() {
        // From an address that this machine does not have, the other side decides whether it lets us in.
        let _ = socket.bind(&SocketAddr::new(from, 0).into());
    }
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
            Err(error)
        }
        _ => Ok(socket.into()),
    }
}
