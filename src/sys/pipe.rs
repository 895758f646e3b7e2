//! Pipes that carry bytes from one socket to another without a copy, by splice(2).
//!
//! A pipe holds references to the memory in which the system has received the bytes. Must never wait for anything but
//! bytes of the socket it is filled from.

use std::fs::File;
use std::io::{self, Read};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::{Errno, ioctl_fionread, retry_on_intr};
use rustix::net::{RecvFlags, recv};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice};

use super::wait_readable;

/// The two ends of a pipe.
#[derive(Debug)]
pub struct Pipe {
    read: File,
    write: OwnedFd,
}

impl Pipe {
    /// Returns a pipe for `size` bytes in pages of 4 KiB: it takes more in larger pieces of memory, and less in smaller
    /// ones.
    ///
    /// # Errors
    /// The system has no descriptors or no memory left, or this user has used up its share of memory for pipes.
    pub fn new(size: usize) -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        if fcntl_getpipe_size(&write)? < size && fcntl_setpipe_size(&write, size)? < size {
            return Err(Errno::NOMEM.into());
        }
        Ok(Pipe { read: read.into(), write })
    }

    /// Takes at most `len` bytes out of the socket, waiting for the first one. 0 is the end of the stream, or bytes that
    /// cannot be taken this way.
    ///
    /// # Errors
    /// Those of splice(2), but never `EINTR`; `WouldBlock` if the pipe is full.
    pub fn fill(&self, from: &TcpStream, len: usize) -> io::Result<usize> {
        let take = || retry_on_intr(|| splice(from, None, &self.write, None, len, SpliceFlags::NONBLOCK));
        match take() {
            Err(Errno::AGAIN) => {
                // The pipe is full, or the socket did not wait because its other user is in `empty_into`.
                wait_readable(from, None);
                Ok(take()?)
            }
            taken => Ok(taken?),
        }
    }

    /// Moves at most `len` bytes on into the socket, as far as it takes them at once; `WouldBlock` if it takes nothing.
    /// Threads that read from the socket meanwhile must cope with `WouldBlock`.
    ///
    /// # Errors
    /// Those of splice(2), but never `EINTR`.
    pub fn empty_into(&self, to: &TcpStream, len: usize) -> io::Result<usize> {
        // splice(2) knows no flag for it: it waits in a socket that waits.
        to.set_nonblocking(true)?;
        let moved = retry_on_intr(|| splice(&self.read, None, to, None, len, SpliceFlags::NONBLOCK));
        to.set_nonblocking(false)?;
        Ok(moved?)
    }

    /// Copies the next `len` bytes out, into memory for at least `room` bytes.
    ///
    /// # Errors
    /// There is no memory, or the pipe holds less.
    pub fn read(&self, len: usize, room: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(room.max(len)).map_err(|_| Errno::NOMEM)?;
        (&self.read).take(len as u64).read_to_end(&mut bytes)?;
        if bytes.len() == len { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// Returns true if the error says that this system, or this pipe, cannot take the socket's bytes; nothing is wrong with
/// the connection.
pub fn is_unable(error: &io::Error) -> bool {
    let unable = [Errno::AGAIN, Errno::INVAL, Errno::NOSYS, Errno::PERM, Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| unable.iter().any(|errno| errno.raw_os_error() == code))
}

/// Copies the socket's next bytes and leaves them there; with `waits`, it waits for the first one. Returns how many there
/// were: 0 is the end of the stream, or that there is nothing yet.
///
/// # Errors
/// Those of recv(2), but never `EINTR`.
pub fn peek(stream: &TcpStream, bytes: &mut [u8], waits: bool) -> io::Result<usize> {
    let flags = if waits { RecvFlags::PEEK } else { RecvFlags::PEEK | RecvFlags::DONTWAIT };
    loop {
        match recv(stream, &mut *bytes, flags) {
            Ok((n, _)) => return Ok(n),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if !waits => return Ok(0),
            Err(Errno::AGAIN) => drop(wait_readable(stream, None)),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Returns the number of bytes that can be read at once.
pub fn readable_bytes(stream: &impl AsFd) -> usize {
    ioctl_fionread(stream).map_or(0, |n| usize::try_from(n).unwrap_or(usize::MAX))
}
