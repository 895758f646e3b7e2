//! The write in progress of a link: entries taken from its queue, encoded if the link has a codec, and how far the socket
//! has them.
//!
//! Knows nothing of threads and of the token. Used by the writing end, whose token's holder alone has it.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use crossbeam::queue::SegQueue;

use super::{Encode, Piped};
use crate::daemon::queue::Permit;
use crate::sys;
use crate::wire::{HEADER_LEN, Header};

/// Entries gathered into one write. The system takes up to 1024 parts; more than 64 gain nothing.
const GATHER: usize = 64;

/// Bytes that are made only when their turn comes, so that they are never out of date.
pub trait Deferred: Send + Sync {
    /// Returns the bytes, `None` if there is nothing left to send.
    fn take(&self) -> Option<Bytes>;
}

/// A receiver of whole packets in this process, in the place of a socket. It must not wait.
pub type Receiver = Box<dyn Fn(&Bytes) + Send + Sync>;

/// An entry of a link's queue.
pub(super) enum Entry {
    Packets(Content, Permit),
    Deferred(Arc<dyn Deferred>),
}

/// The place where an entry's bytes are.
pub(super) enum Content {
    Memory(Bytes),
    Pipe(Piped),
}

impl Content {
    fn len(&self) -> usize {
        match self {
            Content::Memory(bytes) => bytes.len(),
            Content::Pipe(piped) => piped.len(),
        }
    }
}

/// The state of the write in progress.
pub(super) struct WriteState {
    /// Entries gathered from the queue, in order, with `None` for those that no counters count.
    gathered: VecDeque<(Content, Option<Permit>)>,
    /// Bytes of the first entry that the socket has taken.
    written: usize,
    /// The encoder, and the encoded bytes that wait.
    codec: Option<(Box<dyn Encode>, BytesMut)>,
    /// Encoded bytes at which no more is encoded.
    encoded_max: usize,
}

impl WriteState {
    /// Nothing is gathered yet. Once `encoded_max` bytes are encoded, no more is before the socket has taken some.
    pub(super) fn new(encode: Option<Box<dyn Encode>>, encoded_max: usize) -> Self {
        let codec = encode.map(|encode| (encode, BytesMut::new()));
        WriteState { gathered: VecDeque::new(), written: 0, codec, encoded_max }
    }

    /// Returns true if nothing is gathered.
    pub(super) fn is_empty(&self) -> bool {
        self.gathered.is_empty()
    }

    /// Drops all that is gathered.
    pub(super) fn clear(&mut self) {
        self.gathered.clear();
    }

    /// Writes gathered entries, as far as the socket takes them at once: those in memory in one call, or one pipe.
    pub(super) fn send(&mut self, stream: &TcpStream) -> io::Result<usize> {
        if let Some((Content::Pipe(piped), _)) = self.gathered.front_mut() {
            return piped.send(stream);
        }
        let mut parts = [IoSlice::new(&[]); GATHER];
        let (mut skip, mut count) = (self.written, 0_usize);
        for (part, (content, _)) in parts.iter_mut().zip(&self.gathered) {
            let Content::Memory(bytes) = content else { break };
            *part = IoSlice::new(bytes.get(skip..).unwrap_or_default());
            (skip, count) = (0, count.saturating_add(1));
        }
        sys::send(stream, parts.get(..count).unwrap_or(&parts))
    }

    /// Gives the first entry to a receiver.
    pub(super) fn give(&mut self, receiver: &Receiver) -> io::Result<usize> {
        match self.gathered.front() {
            Some((Content::Memory(bytes), _)) => {
                receiver(bytes);
                Ok(bytes.len())
            }
            // Such a link is not given any pipe.
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Takes the entries for one write from the queues.
    pub(super) fn gather(&mut self, first: &SegQueue<Entry>, queue: &SegQueue<Entry>) -> io::Result<()> {
        // Frames keep the order in which they were encoded.
        let mut at = if self.codec.is_some() { self.gathered.len() } else { usize::from(self.written > 0) };
        while let Some(entry) = first.pop() {
            if let Some(ready) = self.make_ready(entry)? {
                self.gathered.insert(at.min(self.gathered.len()), ready);
                at = at.saturating_add(1);
            }
        }
        while self.gathered.len() < GATHER && !self.is_encoded_full() {
            let Some(entry) = queue.pop() else { break };
            let ready = self.make_ready(entry)?;
            self.gathered.extend(ready);
        }
        Ok(())
    }

    /// Returns the bytes of an entry as they are to be written; `None` if the entry is void, or has nothing to send.
    fn make_ready(&mut self, entry: Entry) -> io::Result<Option<(Content, Option<Permit>)>> {
        let (content, permit) = match entry {
            Entry::Packets(content, permit) if !permit.is_void() => (content, Some(permit)),
            Entry::Packets(..) => return Ok(None),
            Entry::Deferred(late) => match late.take() {
                Some(bytes) => (Content::Memory(bytes), None),
                None => return Ok(None),
            },
        };
        let content = match (content, &mut self.codec) {
            (Content::Memory(bytes), Some((encode, out))) => {
                encode.encode(&bytes, out).map_err(io::Error::other)?;
                Content::Memory(out.split().freeze())
            }
            (content, _) => content,
        };
        Ok(Some((content, permit)))
    }

    /// Returns true if enough is encoded for now.
    fn is_encoded_full(&self) -> bool {
        self.codec.is_some()
            && self.gathered.iter().map(|(content, _)| content.len()).sum::<usize>() >= self.encoded_max
    }

    /// Drops gathered entries that became void, but for the rest of a packet of which the socket has a part. Frames
    /// stay: the other side could not decode those after them.
    pub(super) fn drop_void(&mut self) {
        let is_void = |permit: &Option<Permit>| permit.as_ref().is_some_and(Permit::is_void);
        if self.codec.is_some() || !self.gathered.iter().any(|(_, permit)| is_void(permit)) {
            return;
        }
        let begun = usize::from(self.written > 0);
        if let Some((content, Some(permit))) = self.gathered.front_mut().filter(|_| begun > 0) {
            if permit.is_void() {
                let (packets, end) = match content {
                    Content::Pipe(piped) => piped.cut(),
                    Content::Memory(bytes) => {
                        let begun = begun_packets(bytes, self.written);
                        bytes.truncate(begun.1);
                        begun
                    }
                };
                permit.cut(packets, end);
            }
        }
        let mut at = 0_usize;
        self.gathered.retain(|(_, permit)| {
            at = at.saturating_add(1);
            at <= begun || !is_void(permit)
        });
        // Nothing may be left of the entry that was begun.
        self.advance(0);
    }

    /// Removes the `n` bytes that the socket took.
    pub(super) fn advance(&mut self, mut n: usize) {
        while let Some((content, permit)) = self.gathered.front_mut() {
            let rest = content.len().saturating_sub(self.written);
            let Some(over) = n.checked_sub(rest) else {
                self.written = self.written.saturating_add(n);
                if let Some(permit) = permit {
                    permit.progress(n);
                }
                return;
            };
            (n, self.written) = (over, 0);
            if let Some((_, Some(permit))) = self.gathered.pop_front() {
                permit.forwarded();
            }
        }
    }
}

/// Returns, of packets of which `written` bytes have left, how many have begun to leave, and the end of the last of
/// them.
fn begun_packets(bytes: &[u8], written: usize) -> (u32, usize) {
    let (mut packets, mut end) = (0_u32, 0_usize);
    while end < written {
        let Some(header) = bytes.get(end..).and_then(|rest| rest.first_chunk()).map(Header::decode) else {
            return (packets.saturating_add(1), bytes.len());
        };
        end = end.saturating_add(HEADER_LEN).saturating_add(header.len as usize).min(bytes.len());
        packets = packets.saturating_add(1);
    }
    (packets, end)
}
