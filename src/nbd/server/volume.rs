//! The server's view of a disk: its size, the requests to it, and the way of its answers.
//!
//! Must know nothing of sockets, connections or NBD's bytes. Implemented by the unmirrored disk and by the mirror;
//! called by the server's connections.

use std::io;

use bytes::Bytes;
use rustix::io::Errno;

/// A disk that the server exports. Every request lies inside the disk.
pub trait Volume: Send + Sync {
    /// Returns the size in bytes. It does not change while a client is connected.
    fn size(&self) -> u64;

    /// Carries out a request and answers it, on any thread, before or after this returns. Runs on the connection's
    /// reading thread: the client's next request waits for it, so it must not wait for another process.
    fn submit(&self, request: Request, reply: Reply);

    /// Does so with requests that came one behind another, in their order, and takes them out of the list.
    fn submit_all(&self, requests: &mut Vec<(Request, Reply)>) {
        requests.drain(..).for_each(|(request, reply)| self.submit(request, reply));
    }

    /// Returns the content of `len` bytes from `offset` on, in order from `offset`, in at most `most` extents (at least 1).
    /// The list may end before the range does, or reach past it.
    ///
    /// # Errors
    /// The disk cannot report it; the client gets the error.
    fn status(&self, offset: u64, len: u64, most: usize) -> Result<Vec<Extent>, Failure> {
        let _ = (offset, most);
        Ok(vec![Extent { len, hole: false, zero: false }])
    }
}

/// A request of a client. Offsets and lengths are in bytes, need not be aligned, and no length is 0. With `fua` (force
/// unit access) the change is on stable storage before it is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read; answered with exactly `len` bytes. At most [`super::PAYLOAD_MAX`].
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Write. At most [`super::PAYLOAD_MAX`] bytes.
    Write {
        /// First byte.
        offset: u64,
        /// The bytes to write.
        data: Bytes,
        /// True if the change is stable before it is answered.
        fua: bool,
    },
    /// Make stable every change that was answered on any connection before this request came.
    Flush,
    /// The range's content is needed no longer, and may be anything afterwards.
    Trim {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
        /// True if the change is stable before it is answered.
        fua: bool,
    },
    /// The range reads as zeroes afterwards.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
        /// True if the change is stable before it is answered.
        fua: bool,
        /// True if space must be allocated: no hole.
        no_hole: bool,
        /// True if it fails with [`Failure::NotSupported`] at once, with nothing changed, unless it is faster than writing zeroes.
        fast: bool,
    },
    /// The range will be read soon.
    Cache {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
}

/// A part of a disk. NBD has no use for a hole that does not read as zeroes; such a hole is reported as data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes.
    pub len: u64,
    /// True if nothing is allocated there.
    pub hole: bool,
    /// True if it reads as zeroes.
    pub zero: bool,
}

/// The reason for which a request failed, as far as NBD has a number for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The disk may not be written to.
    NotPermitted,
    /// The disk, or every site that has the data, failed.
    Io,
    /// There is no memory for it at present.
    NoMemory,
    /// The request is not valid.
    Invalid,
    /// The disk is full, or ends before the range does.
    NoSpace,
    /// The answer would be too large.
    Overflow,
    /// The request is not supported, or not fast.
    NotSupported,
    /// The disk is not served here any more.
    Shutdown,
}

impl Failure {
    /// Returns the number on the wire.
    pub const fn code(self) -> u32 {
        match self {
            Failure::NotPermitted => 1,
            Failure::Io => 5,
            Failure::NoMemory => 12,
            Failure::Invalid => 22,
            Failure::NoSpace => 28,
            Failure::Overflow => 75,
            Failure::NotSupported => 95,
            Failure::Shutdown => 108,
        }
    }
}

impl From<&io::Error> for Failure {
    /// Converts a disk's error. A full quota or file system is no space; an error without a number in NBD is [`Failure::Io`].
    fn from(error: &io::Error) -> Self {
        match Errno::from_io_error(error) {
            Some(Errno::PERM | Errno::ACCESS | Errno::ROFS) => Failure::NotPermitted,
            Some(Errno::NOMEM) => Failure::NoMemory,
            Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => Failure::NoSpace,
            Some(Errno::OPNOTSUPP) => Failure::NotSupported,
            _ => Failure::Io,
        }
    }
}

/// The answer to a request: the bytes read (nothing for all other requests), or the failure.
pub type Answer = Result<Bytes, Failure>;

/// The reply to one request of a client. It is completed once; one that is dropped fails with [`Failure::Io`].
pub struct Reply(Option<Box<dyn FnOnce(Answer) + Send>>);

impl Reply {
    /// Makes a reply. `take` gets the answer, on any thread, and must not block.
    pub fn new(take: impl FnOnce(Answer) + Send + 'static) -> Self {
        Reply(Some(Box::new(take)))
    }

    /// Answers the request. Several answers of one thread leave together while it holds a [`super::Together`].
    pub fn complete(mut self, answer: Answer) {
        if let Some(take) = self.0.take() {
            take(answer);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(take) = self.0.take() {
            take(Err(Failure::Io));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_reply_that_is_dropped_fails() {
        let (told, answers) = mpsc::channel();
        let reply = |told: mpsc::Sender<Answer>| Reply::new(move |answer| told.send(answer).unwrap());
        reply(told.clone()).complete(Ok(Bytes::from_static(b"x")));
        drop(reply(told));
        assert_eq!(answers.iter().collect::<Vec<_>>(), [Ok(Bytes::from_static(b"x")), Err(Failure::Io)]);
    }

    #[test]
    fn what_a_disk_says_has_a_number_in_nbd() {
        let failure = |errno: Errno| Failure::from(&io::Error::from(errno)).code();
        assert_eq!([Errno::NOSPC, Errno::DQUOT, Errno::ROFS].map(failure), [28, 28, 1]);
        assert_eq!([Errno::IO, Errno::BADF, Errno::OPNOTSUPP, Errno::NOMEM].map(failure), [5, 5, 95, 12]);
    }
}
