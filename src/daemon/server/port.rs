//! The check whether a port answers: TCP connections that are closed as soon as they are open, without a byte sent.
//!
//! A hello would make the other side replace a session; none is ever sent from here. Used by `doctor`.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::control::PortState;
use crate::daemon::connect::dial;

/// Longest time for a port to answer.
pub const PORT_LIMIT: Duration = Duration::from_secs(2);

/// The answer of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// A program listens.
    Open,
    /// The machine answers, and no program listens.
    Refused,
    /// No answer in time.
    Silent,
    /// The call could not be made, or was refused on its way.
    Failed(String),
}

impl Port {
    fn of(outcome: std::io::Result<()>) -> Self {
        match outcome {
            Ok(()) => Port::Open,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Port::Refused,
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => Port::Silent,
            Err(error) => Port::Failed(error.to_string()),
        }
    }

    /// Returns the answer without its reason.
    pub const fn state(&self) -> PortState {
        match self {
            Port::Open => PortState::Open,
            Port::Refused => PortState::Refused,
            Port::Silent => PortState::Silent,
            Port::Failed(_) => PortState::Unreachable,
        }
    }
}

/// Tries every port at once, each from the address beside it where this machine has that address.
pub fn try_ports(targets: &[(SocketAddr, IpAddr)]) -> Vec<Port> {
    let begun = Instant::now();
    let mut ports = vec![Port::Silent; targets.len()];
    let mut pending: Vec<(usize, TcpStream)> = Vec::new();
    for (port, (at, &(to, from))) in ports.iter_mut().zip(targets.iter().enumerate()) {
        match dial(to, from) {
            Ok(stream) => pending.push((at, stream)),
            Err(error) => *port = Port::of(Err(error)),
        }
    }
    while !pending.is_empty() {
        let mut fds: Vec<PollFd<'_>> =
            pending.iter().map(|(_, stream)| PollFd::new(stream, PollFlags::OUT)).collect();
        let left = Timespec::try_from(PORT_LIMIT.saturating_sub(begun.elapsed())).unwrap_or_default();
        match poll(&mut fds, Some(&left)) {
            Ok(0) => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => break,
        }
        let answered: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut answered = answered.into_iter();
        pending.retain(|(at, stream)| {
            let answered = answered.next().unwrap_or_default();
            if let Some(port) = ports.get_mut(*at).filter(|_| answered) {
                let outcome = stream.take_error();
                *port = Port::of(outcome.and_then(|error| error.map_or(Ok(()), Err)));
            }
            !answered
        });
    }
    ports
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};
    use std::net::{Ipv4Addr, TcpListener};

    /// A listener whose queue is full drops what comes: as silent as a firewall.
    #[test]
    fn open_refused_and_silent_are_told_apart() {
        let here = IpAddr::from(Ipv4Addr::LOCALHOST);
        let open = TcpListener::bind((here, 0)).unwrap();
        let gone = TcpListener::bind((here, 0)).unwrap().local_addr().unwrap();
        let full = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        full.bind(&SocketAddr::new(here, 0).into()).unwrap();
        full.listen(0).unwrap();
        let full_at = full.local_addr().unwrap().as_socket().unwrap();
        let _queued = [TcpStream::connect(full_at).unwrap()];
        let targets = [open.local_addr().unwrap(), gone, full_at].map(|to| (to, here));
        assert_eq!(try_ports(&targets), [Port::Open, Port::Refused, Port::Silent]);
    }
}
