//! The beginning of a call: from this side's own address, and never blocking.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};

/// Starts a connection; it is complete, or has failed, when the socket becomes writable.
///
/// # Errors
/// The system's immediate error, above all that there is no route.
pub(crate) fn dial(to: SocketAddr, from: IpAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if from.is_ipv4() == to.is_ipv4() {
        // At a call from any other address, the other side decides whether to accept it.
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
