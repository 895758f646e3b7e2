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
use std::sync::{Arc, OnceLock};

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

/// The program that stands in for the kernel module, as the daemon in its process sees it.
pub trait Program: Send + Sync {
    /// Begins to give data and meta packets to the daemon. The handshake is not over yet, and no packet has come.
    fn attach(&self, intakes: [Box<dyn Intake>; 2]);

    /// Takes whole packets of one class, in order. It must not wait.
    fn take(&self, class: Class, packets: &Bytes);
}

/// The meeting point of a daemon and of a program in its process.
#[derive(Default)]
pub struct InProcess {
    /// Set before the program attaches.
    program: OnceLock<Arc<dyn Program>>,
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

    /// Sets the program, once; to be called before it attaches.
    pub fn set_program(&self, program: Arc<dyn Program>) {
        let _ = self.program.set(program);
    }

    /// Returns the program, once there is one.
    pub fn program(&self) -> Option<&Arc<dyn Program>> {
        self.program.get()
    }
}
