//! Large packets without a copy: from the socket of one link to that of another through a pipe.
//!
//! The reader looks at each header where it lies in the socket, and moves the packet into a pipe only when the header is
//! checked. Whole packets alone are passed on, as a run whose bytes lie in the pipe: routing, counters, budgets and
//! queues are those of any other run. Whatever does not suit is left to the framer, so that each packet can go either
//! way. Called by the reading end; must never wait but for bytes of the link that is read.

use std::io;
use std::net::TcpStream;

use bytes::Bytes;

use super::framer::packet_len;
use super::{Closed, Framer, Piped, Run, Sink, TakesPipes};
use crate::daemon::queue::Cost;
use crate::sys;
use crate::wire::{Class, HEADER_LEN, Header};

/// Smallest payload for which it pays: below, looking at headers costs more than the copy.
pub const LARGE: u32 = 32 * 1024;
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
                // Packets that came before the link broke go on all the same.
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
