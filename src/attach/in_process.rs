//! A daemon in the same process: packets are handed over by calls.
//!
//! The two links are there all the same: they carry the handshake, and their end is the end of the attachment. What is
//! handed over by calls comes in the order in which it would come on a link; nothing else does. Must never queue
//! anything of its own. Used by a program that stands in for the kernel module, and by the daemon that runs in it.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use socket2::{Domain, SockAddr, Socket, Type};

use super::Server;
use crate::wire::{Class, HEADER_LEN};

/// A packet: its header, and what follows it.
pub type Parts = (Box<[u8; HEADER_LEN]>, Bytes);

/// The way of packets into the daemon, in the place of one link.
pub trait Intake: Send {
    /// Queues packets for their peers, in order. Returns true if all are queued; false if a peer's queue is full, and
    /// some are left, here or in `packets`. With `wait` it waits for that peer, for as long as the daemon lets it
    /// hold up the others.
    fn give(&mut self, packets: &mut VecDeque<Parts>, wait: bool) -> bool;
}

/// The way of packets out of the daemon: whole packets of one class, in order. It must not wait.
pub type Outlet = dyn Fn(Class, &Bytes) + Send + Sync;

/// The meeting point of a daemon and of a program in its process.
#[derive(Default)]
pub struct InProcess {
    /// Set by the program before it attaches.
    outlet: OnceLock<Arc<Outlet>>,
    /// Set by the daemon before it answers the handshake.
    intakes: Mutex<Option<[Box<dyn Intake>; 2]>>,
}

impl InProcess {
    /// Returns a socket at which only this process attaches, without a file, and its place.
    ///
    /// # Errors
    /// Those of the system.
    pub fn listen() -> io::Result<(UnixListener, Server)> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // The system finds a name that nobody has.
        socket.bind(&SockAddr::unix("")?)?;
        socket.listen(2)?;
        let name = socket.local_addr()?.as_abstract_namespace().map(|name| [b"\0", name].concat());
        let name = name.ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok((OwnedFd::from(socket).into(), Server::Unix(OsString::from_vec(name).into())))
    }

    /// Sets the way of packets out of the daemon, once.
    pub fn set_outlet(&self, outlet: Arc<Outlet>) {
        let _ = self.outlet.set(outlet);
    }

    /// Returns the way of packets out of the daemon, once there is one.
    pub fn outlet(&self) -> Option<Arc<Outlet>> {
        self.outlet.get().cloned()
    }

    /// Sets the ways of data and meta packets into the daemon, for the attachment that begins.
    pub fn set_intakes(&self, intakes: [Box<dyn Intake>; 2]) {
        *self.intakes.lock().unwrap_or_else(PoisonError::into_inner) = Some(intakes);
    }

    /// Takes the ways into the daemon, after the handshake.
    pub fn take_intakes(&self) -> Option<[Box<dyn Intake>; 2]> {
        self.intakes.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
