//! Packets whose bytes lie in a pipe, and the few pipes of this process.
//!
//! Filled by the reading end of one link, emptied by the writing end of another. Must never wait but for bytes of the link
//! that is read.

use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::{io, mem};

use bytes::Bytes;
use crossbeam::queue::SegQueue;

use super::framer::packet_len;
use crate::sys::Pipe;
use crate::wire::Header;

/// Size of a pipe in bytes: unprivileged users get no larger ones.
const PIPE_SIZE: usize = 1 << 20;
/// Most pipes of this process: half of what a user may have.
const PIPES_MAX: usize = 32;

/// The pipes that are not in use, all empty.
static IDLE: SegQueue<Pipe> = SegQueue::new();
/// Number of pipes there are.
static PIPES: AtomicUsize = AtomicUsize::new(0);

/// Packets whose bytes lie in a pipe.
#[derive(Debug)]
pub struct Piped {
    /// The pipe; `None` once it is given back.
    pipe: Option<Pipe>,
    /// Bytes in the pipe.
    held: usize,
    /// Bytes of the packets, those that have left the pipe among them.
    len: usize,
    /// Bytes that have left the pipe.
    sent: usize,
    /// The headers of the packets that are whole.
    pub(super) headers: Vec<Header>,
}

impl Piped {
    /// Returns an empty pipe; `None` if all are in use, or the system has none.
    pub(super) fn new() -> Option<Self> {
        let pipe = IDLE.pop().or_else(|| {
            let more = |n: usize| (n < PIPES_MAX).then(|| n.saturating_add(1));
            PIPES.fetch_update(Relaxed, Relaxed, more).ok()?;
            let pipe = Pipe::new(PIPE_SIZE);
            if pipe.is_err() {
                PIPES.fetch_sub(1, Relaxed);
            }
            pipe.ok()
        })?;
        Some(Piped { pipe: Some(pipe), held: 0, len: 0, sent: 0, headers: Vec::new() })
    }

    fn pipe(&self) -> io::Result<&Pipe> {
        self.pipe.as_ref().ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    /// Takes at most `len` bytes out of the socket, waiting for the first one, as [`Pipe::fill`] does.
    pub(super) fn fill(&mut self, from: &TcpStream, len: usize) -> io::Result<usize> {
        let n = self.pipe()?.fill(from, len)?;
        (self.len, self.held) = (self.len.saturating_add(n), self.held.saturating_add(n));
        Ok(n)
    }

    /// Returns the number of bytes of the packets, in the pipe and gone from it.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Moves bytes into the socket, as far as it takes them at once; `WouldBlock` if it takes nothing.
    pub(super) fn send(&mut self, to: &TcpStream) -> io::Result<usize> {
        let n = self.pipe()?.empty_into(to, self.len.saturating_sub(self.sent))?;
        (self.sent, self.held) = (self.sent.saturating_add(n), self.held.saturating_sub(n));
        Ok(n)
    }

    /// Leaves out all packets of which no byte has left the pipe; returns how many packets remain, and their bytes.
    pub(super) fn cut(&mut self) -> (u32, usize) {
        let (mut packets, mut end) = (0_u32, 0_usize);
        for header in &self.headers {
            if end >= self.sent {
                break;
            }
            end = end.saturating_add(packet_len(header));
            packets = packets.saturating_add(1);
        }
        self.len = end;
        (packets, end)
    }

    /// Copies the bytes in the pipe into memory for `room` bytes.
    pub(super) fn copy_out(mut self, room: usize) -> io::Result<Vec<u8>> {
        let held = mem::take(&mut self.held);
        self.pipe()?.read(held, room)
    }

    /// Copies the packets into memory, for a destination that takes no pipes.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn into_bytes(self) -> io::Result<Bytes> {
        self.copy_out(0).map(Bytes::from)
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        match self.pipe.take() {
            Some(pipe) if self.held == 0 => IDLE.push(pipe),
            Some(_) => drop(PIPES.fetch_sub(1, Relaxed)),
            None => {}
        }
    }
}
