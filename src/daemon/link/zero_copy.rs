//! Large packets without a copy: from the socket of one link to that of another through a pipe.
//!
//! The reader looks at each header where it lies in the socket, and moves the packet into a pipe only when the header is
//! checked. Whole packets alone are passed on, as a run whose bytes lie in the pipe: routing, counters, budgets and
//! queues are those of any other run. Whatever does not suit is left to the framer, so that each packet can go either
//! way. Called by the reading and the writing end; must never wait but for bytes of the link that is read.

use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::{io, mem};

use bytes::Bytes;
use crossbeam::queue::SegQueue;

use super::{Closed, Framer, Run, Sink, TakesPipes};
use crate::daemon::queue::Cost;
use crate::sys::{self, Pipe};
use crate::wire::{Class, HEADER_LEN, Header};

/// Smallest payload for which it pays: below, looking at headers costs more than the copy.
pub const LARGE: u32 = 32 * 1024;
/// Size of a pipe in bytes: unprivileged users get no larger ones.
const PIPE_SIZE: usize = 1 << 20;
/// Most pipes of this process: half of what a user may have.
const PIPES_MAX: usize = 32;
/// Length in bytes at which a run of several packets ends.
const RUN_MAX: usize = 512 * 1024;
/// Large packets in a row after which the reader begins.
const BEGIN: i8 = 4;
/// Most credit of a reader: with each large packet it gains one, with each small one it loses one.
const CREDIT_MAX: i8 = 8;
/// Credit that a packet costs which cannot go this way, since it is for several peers, say: a reader with nothing else
/// tries one of seven.
const REFUSED: i8 = 6;
/// Credit that it costs if the queue is long, or there is no pipe, or that was too small: all may last.
const NO_PIPE: i8 = 24;

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
    headers: Vec<Header>,
}

impl Piped {
    /// Returns an empty pipe; `None` if all are in use, or the system has none.
    fn new() -> Option<Self> {
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

    fn fill(&mut self, from: &TcpStream, len: usize) -> io::Result<usize> {
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
    fn copy_out(mut self, room: usize) -> io::Result<Vec<u8>> {
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

/// The reader's side: decides when to begin and to end, and moves packets.
pub(super) struct ZeroCopy {
    /// Smallest payload that counts as large.
    large: u32,
    max_packet: u32,
    credit: i8,
    moves: bool,
}

impl ZeroCopy {
    /// With a `large` of 0 it begins with the first packet.
    pub(super) fn new(large: u32, max_packet: u32) -> Self {
        let at_once = large == 0;
        ZeroCopy { large, max_packet, credit: if at_once { CREDIT_MAX } else { 0 }, moves: at_once }
    }

    /// Counts a packet that came, by either way.
    pub(super) fn note(&mut self, header: &Header) {
        let step = if header.len >= self.large { 1 } else { -1 };
        self.credit = self.credit.saturating_add(step).min(CREDIT_MAX);
        self.moves = self.credit >= if self.moves { 1 } else { BEGIN };
    }

    /// Returns true if the reader is to look at headers before it reads.
    pub(super) fn moves(&self) -> bool {
        self.moves
    }

    fn refuse(&mut self, cost: i8) {
        self.credit = self.credit.saturating_sub(cost);
        self.moves = self.credit > 0;
    }

    /// Waits for the next packet and moves it and those after it, as long as they suit and are there. Returns false if the
    /// framer, whose buffer must be empty, has to read on, or has something to read already.
    pub(super) fn forward(
        &mut self,
        stream: &TcpStream,
        framer: &mut Framer,
        sink: &mut dyn Sink,
        seen: &dyn Fn(&Header),
    ) -> Result<bool, Closed> {
        let mut begun: Option<(Run, Piped)> = None;
        let mut there = 0;
        loop {
            let mut bytes = [0; HEADER_LEN];
            let waits = begun.is_none();
            let n = match sys::peek(stream, &mut bytes, waits) {
                Ok(n) => n,
                // What came before the link broke goes on all the same.
                Err(error) => {
                    self.finish(begun, sink, seen)?;
                    return Err(Closed::Broken(error));
                }
            };
            let header = Header::decode(&bytes);
            let size = packet_len(&header);
            let mut next = self.suits(n, &header);
            if there < size {
                there = sys::readable_bytes(stream);
            }
            if let Some((run, _)) = &begun {
                let joins = next.as_ref().is_some_and(|next| {
                    (next.class, next.scope, next.device, next.node_to)
                        == (run.class, run.scope, run.device, run.node_to)
                });
                if !joins || there < size || run.cost.bytes.saturating_add(size) > RUN_MAX {
                    self.finish(begun.take(), sink, seen)?;
                }
            }
            let Some(empty) = next.take() else {
                return self.finish(begun, sink, seen).map(|()| n == 0 && !waits);
            };
            if begun.is_none() {
                let takes = sink.takes_pipes(&empty);
                let Some(piped) = (takes == TakesPipes::Yes).then(Piped::new).flatten() else {
                    self.refuse(if takes == TakesPipes::No { REFUSED } else { NO_PIPE });
                    return Ok(false);
                };
                begun = Some((empty, piped));
            }
            let Some((run, piped)) = &mut begun else { return Ok(false) };
            let mut missing = size;
            while missing > 0 {
                match piped.fill(stream, missing) {
                    Ok(n @ 1..) => {
                        sink.heard();
                        (missing, there) = (missing.saturating_sub(n), there.saturating_sub(n));
                    }
                    Err(error) if !sys::is_unable(&error) => return Err(Closed::Broken(error)),
                    // The end of the stream, a pipe that is full, or a system that cannot do it.
                    other => {
                        if other.is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock) {
                            self.large = u32::MAX;
                        }
                        self.refuse(NO_PIPE);
                        let Some((_, piped)) = begun else { return Ok(false) };
                        let whole = piped.len().saturating_add(missing);
                        framer.take_over(piped.copy_out(whole).map_err(Closed::Broken)?);
                        return Ok(false);
                    }
                }
            }
            run.cost.packets = run.cost.packets.saturating_add(1);
            run.cost.bytes = piped.len();
            run.cost.chunk_bytes = piped.len();
            piped.headers.push(header);
        }
    }

    /// Returns an empty run for the packet of which `n` bytes of the header are there, if it can be moved.
    fn suits(&self, n: usize, header: &Header) -> Option<Run> {
        let large = n == HEADER_LEN && header.len >= self.large && !header.kind.is_daemons_own();
        let (class, scope) = large.then(|| header.check(self.max_packet).ok()).flatten()?;
        (class == Class::Data).then(|| Run {
            class,
            scope,
            device: header.device,
            node_to: header.node_to,
            bytes: Bytes::new(),
            cost: Cost::alone(0, 0),
        })
    }

    fn finish(
        &mut self,
        begun: Option<(Run, Piped)>,
        sink: &mut dyn Sink,
        seen: &dyn Fn(&Header),
    ) -> Result<(), Closed> {
        let Some((run, piped)) = begun else { return Ok(()) };
        for header in &piped.headers {
            self.note(header);
            seen(header);
        }
        sink.take_piped(run, piped)
    }
}

fn packet_len(header: &Header) -> usize {
    HEADER_LEN.saturating_add(header.len as usize)
}
