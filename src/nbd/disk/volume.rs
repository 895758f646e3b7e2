//! A disk that is served as it is, without a mirror: used to test and to measure the server.
//!
//! Requests whose data is in memory are answered on the connection's own thread, the others by a few threads. Must
//! promise of a request only NBD's guarantees: overlapping ones in flight have no order. Called by the server.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::data::DataDisk;
use super::pool::IoPool;
use crate::nbd::server::{Answer, Buffer, Extent, Failure, Reply, Request, Together, Volume};

/// Number of threads of a disk: with this many requests in flight a disk of today is near its best, and a thread that
/// sleeps costs next to nothing.
const THREADS: usize = 8;

/// Longest read or write in bytes that is tried on the connection's own thread: copying more would hold up its next
/// request for longer than a hand-over costs.
const INLINE_MAX: usize = 128 << 10;

/// A disk as a volume.
pub struct FileVolume {
    disk: Arc<DataDisk>,
    pool: IoPool,
    /// Flushes that wait for the next one to begin. Guards only the list, and is never held across a call.
    flushes: Arc<Mutex<Vec<Reply>>>,
    read_only: bool,
}

impl FileVolume {
    /// Serves a disk.
    ///
    /// # Errors
    /// The system cannot start its threads.
    pub fn new(disk: DataDisk, read_only: bool) -> io::Result<Self> {
        let pool = IoPool::new("disk", THREADS)?;
        Ok(FileVolume { disk: Arc::new(disk), pool, flushes: Arc::default(), read_only })
    }

    /// Hands a request to another thread, which answers.
    fn later(&self, reply: Reply, job: impl FnOnce(&DataDisk) -> io::Result<Bytes> + Send + 'static) {
        let disk = Arc::clone(&self.disk);
        self.pool.run(move || reply.complete(answer(job(&disk))));
    }

    /// Hands a change to another thread, which flushes it with `fua`, and answers.
    fn change(
        &self,
        reply: Reply,
        fua: bool,
        job: impl FnOnce(&DataDisk) -> io::Result<()> + Send + 'static,
    ) {
        self.later(reply, move |disk| {
            job(disk)?;
            if fua { disk.flush().map(|()| Bytes::new()) } else { Ok(Bytes::new()) }
        });
    }

    fn read(&self, offset: u64, len: u32, reply: Reply) {
        let len = len as usize;
        if len <= INLINE_MAX {
            let mut buf = Buffer::new(len);
            match self.disk.read_at_once(&mut buf, offset) {
                Ok(true) => return reply.complete(Ok(buf.freeze())),
                Ok(false) => {}
                Err(error) => return reply.complete(Err(Failure::from(&error))),
            }
        }
        self.later(reply, move |disk| {
            let mut buf = Buffer::new(len);
            disk.read(&mut buf, offset).map(|()| buf.freeze())
        });
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool, reply: Reply) {
        if data.len() <= INLINE_MAX && !fua {
            let done = match self.disk.write_at_once(&data, offset) {
                // If the system cannot say, a write into memory is the most likely.
                Ok(false) if self.disk.is_blind_for_writes() => self.disk.write(&data, offset).map(|()| true),
                done => done,
            };
            match done {
                Ok(true) => return reply.complete(Ok(Bytes::new())),
                Ok(false) => {}
                Err(error) => return reply.complete(Err(Failure::from(&error))),
            }
        }
        self.change(reply, fua, move |disk| disk.write(&data, offset));
    }

    /// Flushes: one flush of the disk answers all requests that came before it began.
    fn flush(&self, reply: Reply) {
        let mut waiting = self.flushes.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push(reply);
        if waiting.len() > 1 {
            return;
        }
        drop(waiting);
        let (disk, flushes) = (Arc::clone(&self.disk), Arc::clone(&self.flushes));
        self.pool.run(move || {
            let waiting = std::mem::take(&mut *flushes.lock().unwrap_or_else(PoisonError::into_inner));
            let done = answer(disk.flush().map(|()| Bytes::new()));
            let _together = Together::new();
            waiting.into_iter().for_each(|reply| reply.complete(done.clone()));
        });
    }
}

fn answer(done: io::Result<Bytes>) -> Answer {
    done.map_err(|error| Failure::from(&error))
}

impl Volume for FileVolume {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn submit(&self, request: Request, reply: Reply) {
        let changes =
            matches!(request, Request::Write { .. } | Request::Trim { .. } | Request::WriteZeroes { .. });
        if changes && self.read_only {
            return reply.complete(Err(Failure::NotPermitted));
        }
        match request {
            Request::Read { offset, len } => self.read(offset, len, reply),
            Request::Write { offset, data, fua } => self.write(offset, data, fua, reply),
            Request::Flush => self.flush(reply),
            Request::Trim { offset, len, fua } => {
                self.change(reply, fua, move |disk| disk.trim(offset, len.into()).map(drop));
            }
            Request::WriteZeroes { offset, len, fua, no_hole, fast } => {
                self.change(reply, fua, move |disk| disk.zero(offset, len.into(), no_hole, fast));
            }
            Request::Cache { offset, len } => {
                self.later(reply, move |disk| {
                    disk.will_need(offset, len.into());
                    Ok(Bytes::new())
                });
            }
        }
    }

    fn status(&self, offset: u64, len: u64, most: usize) -> Result<Vec<Extent>, Failure> {
        self.disk.status(offset, len, most).map_err(|error| Failure::from(&error))
    }
}
