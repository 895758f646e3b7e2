//! The byte streams to a client, and the buffer for the bytes that come from it.
//!
//! Must know nothing of NBD. Implemented for sockets here; tests and fuzzers put memory in their place.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use socket2::Socket;

use super::buffer::Buffer;
use crate::sys;

/// Size of the buffer in bytes: 16 writes of 4 KiB, so that one system call serves as many.
const BUFFER: usize = 64 * 1024;

/// A connection's two byte streams.
pub trait Wire: Send + Sync {
    /// Waits for bytes and reads as many as the buffer takes. Returns 0 at the end of the stream.
    ///
    /// # Errors
    /// The error of the system; `WouldBlock` after the time of [`Wire::limit`].
    fn receive(&self, room: &mut [u8]) -> io::Result<usize>;

    /// Writes the parts as far as they are taken: with `wait` it blocks until some are, without it returns `WouldBlock`.
    ///
    /// # Errors
    /// The error of the system.
    fn send(&self, parts: &[IoSlice<'_>], wait: bool) -> io::Result<usize>;

    /// Sets the longest time of one receive or one waiting send from now on; `None` is for ever.
    ///
    /// # Errors
    /// The error of the system.
    fn limit(&self, limit: Option<Duration>) -> io::Result<()>;

    /// Ends one direction or both; a thread that waits in a call wakes up.
    fn shutdown(&self, how: Shutdown);

    /// Returns true if the client has closed its end, though bytes from it may be left to read. Never blocks.
    fn is_hung_up(&self) -> bool;
}

impl Wire for Socket {
    fn receive(&self, room: &mut [u8]) -> io::Result<usize> {
        sys::receive_polled(self, room, || self.read_timeout())
    }

    fn send(&self, parts: &[IoSlice<'_>], wait: bool) -> io::Result<usize> {
        if wait { sys::send_waiting(self, parts) } else { sys::send(self, parts) }
    }

    fn limit(&self, limit: Option<Duration>) -> io::Result<()> {
        self.set_read_timeout(limit)?;
        self.set_write_timeout(limit)
    }

    fn shutdown(&self, how: Shutdown) {
        // An error means that the client has gone before.
        let _ = Socket::shutdown(self, how);
    }

    fn is_hung_up(&self) -> bool {
        sys::hung_up(self)
    }
}

/// Bytes that have come in from a client and are not used up.
pub(super) struct Input {
    wire: Arc<dyn Wire>,
    buffer: Box<[u8]>,
    /// The bytes from `start` to `end` are not used up.
    start: usize,
    end: usize,
    deadline: Option<Instant>,
}

impl Input {
    /// Makes an empty input; with a deadline for all reads until it is lifted.
    pub fn new(wire: Arc<dyn Wire>, deadline: Option<Instant>) -> Self {
        Input { wire, buffer: vec![0; BUFFER].into(), start: 0, end: 0, deadline }
    }

    /// Lifts the deadline.
    pub fn lift_deadline(&mut self) -> io::Result<()> {
        self.deadline = None;
        self.wire.limit(None)
    }

    fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Returns true if `count` bytes are here.
    pub fn has(&self, count: usize) -> bool {
        self.bytes().len() >= count
    }

    /// Waits for more bytes. To be called only with few bytes in the buffer.
    ///
    /// # Errors
    /// The error of the system; `UnexpectedEof` at the end, `TimedOut` after the deadline.
    pub fn receive(&mut self) -> io::Result<()> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.bytes().len());
        let room = self.buffer.get_mut(self.end..).unwrap_or_default();
        self.end = self.end.saturating_add(receive(&*self.wire, self.deadline, room)?);
        Ok(())
    }

    /// Takes exactly `N` bytes, waiting for them.
    pub fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        while !self.has(N) {
            self.receive()?;
        }
        let bytes = self.bytes().first_chunk().copied().ok_or(io::ErrorKind::UnexpectedEof)?;
        self.start = self.start.saturating_add(N);
        Ok(bytes)
    }

    /// Takes exactly `len` bytes into memory of their own, waiting for them. `len` must be a size that the caller is ready to
    /// allocate.
    pub fn take_bytes(&mut self, len: usize) -> io::Result<Bytes> {
        if let Some(data) = self.bytes().get(..len) {
            let data = Bytes::copy_from_slice(data);
            self.start = self.start.saturating_add(len);
            return Ok(data);
        }
        let mut data = Buffer::new(len);
        let (here, mut room) = data.split_at_mut_checked(self.bytes().len()).unwrap_or_default();
        here.copy_from_slice(self.bytes());
        self.start = self.end;
        while !room.is_empty() {
            let count = receive(&*self.wire, self.deadline, room)?;
            room = room.get_mut(count..).unwrap_or_default();
        }
        Ok(data.freeze())
    }

    /// Passes over `len` bytes, waiting for them.
    pub fn skip(&mut self, mut len: u64) -> io::Result<()> {
        loop {
            let here = usize::try_from(len).unwrap_or(usize::MAX).min(self.bytes().len());
            self.start = self.start.saturating_add(here);
            len = len.saturating_sub(here as u64);
            if len == 0 {
                return Ok(());
            }
            self.receive()?;
        }
    }
}

fn receive(wire: &dyn Wire, deadline: Option<Instant>, room: &mut [u8]) -> io::Result<usize> {
    limit(wire, deadline)?;
    match wire.receive(room) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
        outcome => outcome,
    }
}

/// Sets the wire's limit to the time left until the deadline.
fn limit(wire: &dyn Wire, deadline: Option<Instant>) -> io::Result<()> {
    let Some(deadline) = deadline else { return Ok(()) };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    wire.limit(Some(left))
}

/// Writes all of it, waiting, until the deadline.
///
/// # Errors
/// The error of the system; `TimedOut` after the deadline.
pub(super) fn send_all(wire: &dyn Wire, deadline: Option<Instant>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        limit(wire, deadline)?;
        match wire.send(&[IoSlice::new(bytes)], true) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
