//! Transmission: reads a client's requests, checks them, and hands them to the disk.
//!
//! Must allocate nothing that the budget has not granted, and must hold back no reply while it waits. Runs on the
//! connection's reading thread.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::budget::Permit;
use super::connection::Connection;
use super::export::Export;
use super::negotiation::{ALLOCATION_ID, Choice};
use super::request::{Agreed, Command, FUA, Form, Header, REQUEST_LEN, judge};
use super::together::Together;
use super::volume::{Answer, Extent, Failure, Reply, Request, Volume};
use super::wire::Input;

/// Extents of one BLOCK_STATUS reply: 8 KiB on the wire, and no long search of a fragmented disk.
const EXTENTS_MAX: usize = 1024;

/// Bytes of the largest BLOCK_STATUS reply.
const STATUS_MAX: u32 = 4 + 8 * EXTENTS_MAX as u32;

/// Requests that are handed over together, and the bytes of their payloads: the disk sends them on in as few packets of the network
/// as it can, and the first one should not wait long.
const BATCH_MAX: usize = 32;
const BATCH_BYTES: usize = 128 * 1024;

const HOLE: u32 = 1;
const ZERO: u32 = 2;

/// A client's requests.
pub(super) struct Transmission<'a> {
    pub input: Input,
    pub connection: &'a Arc<Connection>,
    pub export: &'a Export,
    pub volume: &'a dyn Volume,
    pub agreed: Agreed,
    /// Ends connections that hold up the pool of bytes.
    pub look: &'a dyn Fn(),
    /// Requests that were read and are not handed over, and the bytes of their payloads.
    batch: Vec<(Request, Reply)>,
    batched: usize,
}

impl<'a> Transmission<'a> {
    /// Takes the result of the negotiation.
    pub fn new(
        input: Input,
        connection: &'a Arc<Connection>,
        choice: &'a Choice,
        look: &'a dyn Fn(),
    ) -> Self {
        let (export, volume) = (&*choice.export, &*choice.volume);
        Transmission {
            input,
            connection,
            export,
            volume,
            agreed: choice.agreed,
            look,
            batch: Vec::new(),
            batched: 0,
        }
    }

    /// Serves requests until the client ends.
    ///
    /// # Errors
    /// The connection broke, or the client sent bytes that are no request.
    pub fn run(mut self) -> io::Result<()> {
        let outcome = self.serve_all();
        // The requests before the end are carried out.
        let _together = Together::new();
        self.hand_over();
        outcome
    }

    fn hand_over(&mut self) {
        self.batched = 0;
        self.volume.submit_all(&mut self.batch);
    }

    /// Answers a request that the disk does not get, behind those that came before it.
    fn answer(&mut self, form: Form, cookie: u64, answer: Answer, permit: Permit) {
        self.hand_over();
        self.connection.answer(form, cookie, answer, permit);
    }

    /// Hands over the requests that were read, and lets replies leave: to be done before any wait.
    fn let_go(&mut self, together: &mut Option<Together>) {
        self.hand_over();
        together.take();
    }

    fn serve_all(&mut self) -> io::Result<()> {
        // The first request, or a change that came after the reader waited.
        let mut is_first = true;
        let mut has_waited = false;
        let mut has_refused = false;
        // Dropped before any wait, so that replies leave.
        let mut together = Some(Together::new());
        loop {
            if !self.input.has(REQUEST_LEN) {
                self.let_go(&mut together);
                // The client has its error, and might go on for ever.
                if has_refused && self.connection.is_done() {
                    return Ok(());
                }
                while !self.input.has(REQUEST_LEN) {
                    self.input.receive()?;
                }
                has_waited = true;
                together = Some(Together::new());
            }
            let header = Header::decode(&self.input.take()?)
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it sent what is no request"))?;
            let command = judge(&header, &self.agreed);
            let changes = matches!(command, Ok(Command::Write | Command::Trim | Command::WriteZeroes { .. }));
            let looks = is_first || (has_waited && changes);
            if looks && self.export.has_gone(self.connection) || self.export.is_unsettled() {
                self.let_go(&mut together);
                self.export.wait_settled(self.connection);
                together = Some(Together::new());
            }
            (is_first, has_waited) = (false, has_waited && !looks);
            if command == Ok(Command::Disconnect) {
                return Ok(());
            }
            // A payload that will not be kept takes no memory.
            let payload = match command {
                Ok(Command::Read | Command::Write) => header.len,
                Ok(Command::BlockStatus { .. }) => STATUS_MAX,
                _ => 0,
            };
            let permit = match self.connection.share.try_take(payload) {
                Some(permit) => permit,
                None => {
                    self.let_go(&mut together);
                    let permit = self.connection.share.take(payload, self.look);
                    together = Some(Together::new());
                    permit.ok_or(io::ErrorKind::ConnectionAborted)?
                }
            };
            let waits = !self.input.has(header.payload() as usize);
            if waits {
                self.let_go(&mut together);
                self.connection.note_sending(true);
            }
            let data = match command {
                Ok(Command::Write) => self.input.take_bytes(header.len as usize),
                _ => self.input.skip(header.payload().into()).map(|()| Bytes::new()),
            };
            if waits {
                self.connection.note_sending(false);
                together = Some(Together::new());
            }
            has_refused = self.connection.is_closing();
            self.serve(&header, command, data?, permit);
        }
    }

    fn serve(&mut self, header: &Header, command: Result<Command, Failure>, data: Bytes, permit: Permit) {
        let &Header { flags, cookie, offset, len, .. } = header;
        let form = match header.command {
            0 if self.agreed.structured => Form::Data(offset),
            7 if self.agreed.structured => Form::Status,
            _ => Form::Simple,
        };
        let command = match command {
            Ok(command) if !self.connection.is_closing() => command,
            Ok(_) => return self.answer(form, cookie, Err(Failure::Shutdown), permit),
            Err(failure) => return self.answer(form, cookie, Err(failure), permit),
        };
        let (fua, payload) = (flags & FUA != 0, data.len());
        let request = match command {
            Command::Flush => Request::Flush,
            _ if len == 0 => return self.answer(form, cookie, Ok(Bytes::new()), permit),
            Command::BlockStatus { one } => {
                self.hand_over();
                let answer = self.status(offset, len, one);
                return self.answer(form, cookie, answer, permit);
            }
            Command::Read => Request::Read { offset, len },
            Command::Write => Request::Write { offset, data, fua },
            Command::Trim => Request::Trim { offset, len, fua },
            Command::Cache => Request::Cache { offset, len },
            Command::WriteZeroes { no_hole, fast } => {
                Request::WriteZeroes { offset, len, fua, no_hole, fast }
            }
            Command::Disconnect => return,
        };
        let answered = if command == Command::Read { len } else { 0 };
        match self.connection.begin(form, cookie, answered, permit) {
            Ok(reply) => {
                self.batched = self.batched.saturating_add(payload);
                self.batch.push((request, reply));
                if self.batch.len() >= BATCH_MAX || self.batched >= BATCH_BYTES {
                    self.hand_over();
                }
            }
            Err(permit) => self.answer(form, cookie, Err(Failure::Shutdown), permit),
        }
    }

    /// Returns the payload of a BLOCK_STATUS reply.
    fn status(&self, offset: u64, len: u32, one: bool) -> Result<Bytes, Failure> {
        let extents = self.volume.status(offset, len.into(), if one { 1 } else { EXTENTS_MAX })?;
        let mut list: Vec<(u32, u32)> = Vec::new();
        let mut left = len;
        let add = |extent: Extent| {
            let len = u32::try_from(extent.len).unwrap_or(u32::MAX).min(left);
            // A hole that is not known to read as zeroes is no promise that a client can use.
            let state = match (extent.zero, extent.hole) {
                (false, _) => 0,
                (true, false) => ZERO,
                (true, true) => ZERO | HOLE,
            };
            left = left.saturating_sub(len);
            match list.last_mut() {
                Some((last, same)) if *same == state => *last = last.saturating_add(len),
                _ if len > 0 => list.push((len, state)),
                _ => {}
            }
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let _ = extents.into_iter().take(EXTENTS_MAX).try_for_each(add);
        if list.is_empty() {
            list.push((len, 0));
        }
        if one {
            list.truncate(1);
        }
        let mut bytes = BytesMut::with_capacity(list.len().saturating_mul(8).saturating_add(4));
        bytes.extend_from_slice(&ALLOCATION_ID.to_be_bytes());
        for (len, state) in list {
            bytes.extend_from_slice(&len.to_be_bytes());
            bytes.extend_from_slice(&state.to_be_bytes());
        }
        Ok(bytes.freeze())
    }
}
