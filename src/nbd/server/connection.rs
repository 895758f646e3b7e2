//! A connection in transmission: its requests in flight, and its replies on their way to the client.
//!
//! The thread that completes a reply also writes it, without blocking; bytes that the socket does not take are left to
//! the connection's own writing thread. Must keep no thread waiting for a client but that one. Called by the connection's
//! reader, by the threads that complete replies, and by the export when it closes.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem;
use std::net::Shutdown;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::budget::{Permit, Share};
use super::request::{Form, Head};
use super::together::{Flush, flush_or_hold};
use super::volume::{Answer, Failure, Reply};
use super::wire::Wire;
use crate::sys;

/// Parts of one write: the head and the data of 32 replies. The system takes up to 1024; more gain nothing.
const PARTS: usize = 64;

/// Number of replies that are written even if more are about to come: the client works on them meanwhile.
const HELD_MAX: usize = 16;

/// Bytes of replies that are written even if more are about to come.
const HELD_BYTES: usize = 256 * 1024;

/// Writes that one thread makes for others before it leaves the rest to the writing thread.
const CARRY: usize = 8;

/// A reply on its way.
struct Outgoing {
    head: Head,
    data: Bytes,
    // Given back when the reply is written.
    _permit: Permit,
}

/// The life phase of a connection. Later ones include earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Everything.
    Open,
    /// The export closes: requests in flight are answered, new ones refused.
    Closing,
    /// Nothing: replies are dropped.
    Cut,
}

struct State {
    phase: Phase,
    /// Replies that no thread writes yet, and their bytes.
    ready: VecDeque<Outgoing>,
    ready_bytes: usize,
    /// True if a thread writes, or `left` has replies for the writing thread.
    is_writing: bool,
    /// Replies that a thread could not write without blocking, and the bytes of the first of them that are written.
    left: Option<(VecDeque<Outgoing>, usize)>,
    /// An empty queue, kept for its memory.
    spare: VecDeque<Outgoing>,
    /// Requests that the disk has and has not answered.
    in_flight: usize,
    /// True if the reader takes no more requests.
    is_ended: bool,
    /// The time since which the client is waited for: to take replies, or to send the rest of a payload.
    taking: Option<Instant>,
    sending: Option<Instant>,
}

/// A client's connection.
pub(super) struct Connection {
    pub wire: Arc<dyn Wire>,
    pub share: Arc<Share>,
    /// No other lock is taken under it but a budget's, by a permit that is dropped.
    state: Mutex<State>,
    /// Signals that replies are left to the writing thread, all are written, nothing is in flight, or the connection is cut.
    changed: Condvar,
}

impl Connection {
    pub fn new(wire: Arc<dyn Wire>, share: Arc<Share>) -> Arc<Self> {
        let state = State {
            phase: Phase::Open,
            ready: VecDeque::new(),
            ready_bytes: 0,
            is_writing: false,
            left: None,
            spare: VecDeque::new(),
            in_flight: 0,
            is_ended: false,
            taking: None,
            sending: None,
        };
        Arc::new(Connection { wire, share, state: Mutex::new(state), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the reply of a request that is about to be submitted.
    ///
    /// # Errors
    /// The permit, if the connection takes no more requests.
    pub fn begin(
        self: &Arc<Self>,
        form: Form,
        cookie: u64,
        len: u32,
        permit: Permit,
    ) -> Result<Reply, Permit> {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return Err(permit);
        }
        state.in_flight = state.in_flight.saturating_add(1);
        drop(state);
        let connection = Arc::clone(self);
        Ok(Reply::new(move |answer| {
            // Bytes of another length would shift all that follows.
            let answer =
                answer.and_then(|data| if data.len() == len as usize { Ok(data) } else { Err(Failure::Io) });
            connection.put(form, cookie, answer, permit, true);
        }))
    }

    /// Answers a request that the disk did not get.
    pub fn answer(self: &Arc<Self>, form: Form, cookie: u64, answer: Answer, permit: Permit) {
        self.put(form, cookie, answer, permit, false);
    }

    fn put(self: &Arc<Self>, form: Form, cookie: u64, answer: Answer, permit: Permit, was_in_flight: bool) {
        let head = Head::new(form, cookie, answer.as_ref().map(Bytes::len).map_err(|failure| *failure));
        let data = answer.unwrap_or_default();
        let mut state = self.lock();
        let mut is_last = false;
        if was_in_flight {
            state.in_flight = state.in_flight.saturating_sub(1);
            is_last = state.in_flight == 0;
        }
        let is_cut = state.phase == Phase::Cut;
        if !is_cut {
            state.ready_bytes = state.ready_bytes.saturating_add(data.len());
            state.ready.push_back(Outgoing { head, data, _permit: permit });
        }
        let is_much = state.ready.len() >= HELD_MAX || state.ready_bytes >= HELD_BYTES;
        let closes = is_last && state.phase == Phase::Closing;
        let tells = is_last && (state.is_ended || is_cut);
        drop(state);
        match (is_cut, is_much) {
            (true, _) => {}
            (false, true) => self.flush(),
            (false, false) => flush_or_hold(self),
        }
        if closes {
            self.wire.shutdown(Shutdown::Read);
        }
        if tells {
            self.changed.notify_all();
        }
    }

    /// Starts the thread that writes the replies that others left.
    ///
    /// # Errors
    /// The system cannot start another thread.
    pub fn start_writer(self: &Arc<Self>) -> io::Result<()> {
        let connection = Arc::clone(self);
        sys::spawn("nbd-writer", move || connection.write_left())
    }

    fn write_left(&self) {
        loop {
            let mut state = self.lock();
            let (mut batch, mut written) = loop {
                if let Some(left) = state.left.take() {
                    break left;
                }
                if state.phase == Phase::Cut {
                    return;
                }
                state = self.wait(state);
            };
            state.taking = Some(Instant::now());
            drop(state);
            let mut outcome = Ok(());
            while !batch.is_empty() && outcome.is_ok() {
                outcome = self.write(&mut batch, &mut written, true);
            }
            self.lock().taking = None;
            if outcome.is_err() {
                return self.cut();
            }
            self.carry(batch);
        }
    }

    /// Writes once as much of the batch as the socket takes.
    fn write(&self, batch: &mut VecDeque<Outgoing>, written: &mut usize, wait: bool) -> io::Result<()> {
        let mut parts = [IoSlice::new(&[]); PARTS];
        let mut skip = *written;
        let both = batch.iter().flat_map(|reply| [reply.head.bytes(), reply.data.as_ref()]);
        for (part, bytes) in parts.iter_mut().zip(both) {
            *part = IoSlice::new(bytes.get(skip..).unwrap_or_default());
            skip = skip.saturating_sub(bytes.len());
        }
        let count = batch.len().saturating_mul(2).min(PARTS);
        *written = written.saturating_add(self.wire.send(parts.get(..count).unwrap_or(&parts), wait)?);
        while let Some(reply) = batch.front() {
            let len = reply.head.bytes().len().saturating_add(reply.data.len());
            let Some(rest) = written.checked_sub(len) else { break };
            *written = rest;
            batch.pop_front();
        }
        Ok(())
    }

    /// Goes on, as the one thread that writes, with replies that have become ready, until nothing is left. `batch` is empty.
    fn carry(&self, mut batch: VecDeque<Outgoing>) {
        let mut written = 0;
        for turn in 0.. {
            if batch.is_empty() {
                let mut state = self.lock();
                state.ready_bytes = 0;
                if state.ready.is_empty() {
                    state.is_writing = false;
                    state.spare = batch;
                    if state.is_ended || state.phase != Phase::Open {
                        self.changed.notify_all();
                    }
                    return;
                }
                batch = mem::replace(&mut state.ready, batch);
            }
            let outcome = if turn == CARRY {
                Err(io::ErrorKind::WouldBlock.into())
            } else {
                self.write(&mut batch, &mut written, false)
            };
            match outcome {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.lock().left = Some((batch, written));
                    return self.changed.notify_all();
                }
                Err(_) => return self.cut(),
            }
        }
    }

    /// Returns true if the connection refuses requests.
    pub fn is_closing(&self) -> bool {
        self.lock().phase != Phase::Open
    }

    /// Returns true if the connection refuses requests and has none in flight.
    pub fn is_done(&self) -> bool {
        let state = self.lock();
        state.phase != Phase::Open && state.in_flight == 0
    }

    /// Answers the requests in flight, refuses new ones, and then ends.
    pub fn close(&self) {
        let mut state = self.lock();
        state.phase = state.phase.max(Phase::Closing);
        let is_idle = state.in_flight == 0;
        drop(state);
        if is_idle {
            // Requests that have come in before are read, and refused; then the reader meets the end.
            self.wire.shutdown(Shutdown::Read);
        }
    }

    /// Ends the connection at once; replies are dropped. Requests that the disk has in flight go on there.
    pub fn cut(&self) {
        let mut state = self.lock();
        state.phase = Phase::Cut;
        let dropped = (mem::take(&mut state.ready), state.left.take());
        drop(state);
        drop(dropped);
        self.share.close();
        self.wire.shutdown(Shutdown::Both);
        self.changed.notify_all();
    }

    /// Notes that the reader waits for the rest of a payload, or does no more.
    pub fn note_sending(&self, waits: bool) {
        self.lock().sending = waits.then(Instant::now);
    }

    /// Returns true if the client has been waited for longer than `limit`, while it has bytes that others wait for.
    pub fn is_stalled(&self, limit: Duration) -> bool {
        let state = self.lock();
        let is_long = |since: Option<Instant>| since.is_some_and(|since| since.elapsed() >= limit);
        self.share.has_pooled() && (is_long(state.taking) || is_long(state.sending))
    }

    /// Notes that the reader takes no more requests; returns true if some are in flight.
    pub fn end(&self) -> bool {
        let mut state = self.lock();
        state.is_ended = true;
        self.changed.notify_all();
        state.in_flight > 0
    }

    /// Waits until the reader takes no more requests and the disk has answered all; a connection that goes on reading after
    /// `grace` is cut.
    pub fn wait_settled(&self, grace: Duration) {
        let end = Instant::now() + grace;
        let mut state = self.lock();
        loop {
            // Nothing is submitted any more for a connection that is cut, even if its reader has not met the end.
            let is_over = state.is_ended || state.phase == Phase::Cut;
            let left = end.saturating_duration_since(Instant::now());
            if is_over && state.in_flight == 0 {
                return;
            } else if is_over {
                state = self.wait(state);
            } else if left.is_zero() {
                drop(state);
                self.cut();
                state = self.lock();
            } else {
                state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    /// Waits until all replies are written, at most for `limit`, and ends the connection.
    pub fn finish(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let mut state = self.lock();
        while state.phase != Phase::Cut && (state.is_writing || !state.ready.is_empty()) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        self.cut();
    }
}

impl Flush for Connection {
    fn flush(&self) {
        let mut state = self.lock();
        if state.is_writing || state.ready.is_empty() || state.phase == Phase::Cut {
            return;
        }
        state.is_writing = true;
        let batch = mem::take(&mut state.spare);
        drop(state);
        self.carry(batch);
    }
}
