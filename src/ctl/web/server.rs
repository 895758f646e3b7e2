//! The listener, and a thread for each browser that asks.
//!
//! A client has a few seconds to ask and to read; a newer one takes the place of the oldest that is not done yet. A
//! stream lasts for as long as its client reads. Nothing that a client sends reaches the daemon. Started by the command.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use super::board::{Board, Sections};
use super::page::Page;
use super::request::{Asked, REQUEST_MAX, is_whole, judge};

/// Time for a client's request, and for each write to it: many times what one at the other end of the world takes.
const PATIENCE: Duration = Duration::from_secs(5);
/// Clients that may be about to ask, or be given a page.
const MAX_ASKING: usize = 16;
/// Streams at the same time: browser tabs of a handful of administrators.
const MAX_STREAMS: usize = 8;
/// The longest silence of a stream: a client that has gone shows by writing only.
const SILENCE: Duration = Duration::from_secs(15);
/// Stack of a client's thread in bytes: a request and a few frames.
const STACK: usize = 256 * 1024;
/// Pause after the system was short of descriptors or memory.
const SHORTAGE: Duration = Duration::from_millis(100);

/// The state that all clients' threads share.
pub(super) struct Server {
    pub page: Page,
    pub board: Arc<Board>,
    /// Names by which browsers may call this server.
    pub names: Vec<String>,
    pub streams: AtomicUsize,
    /// Those that ask or get an answer, the oldest first. Held for moments, and no other lock is taken within.
    pub asking: Mutex<VecDeque<Arc<TcpStream>>>,
}

impl Server {
    /// Attends to whom connects, for ever.
    pub fn run(self: &Arc<Self>, listener: &TcpListener) {
        loop {
            match listener.accept() {
                Ok((stream, _)) => self.attend(stream),
                // A client that is gone already is none; a shortage passes.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(_) => std::thread::park_timeout(SHORTAGE),
            }
        }
    }

    fn attend(self: &Arc<Self>, stream: TcpStream) {
        let stream = Arc::new(stream);
        {
            let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
            let oldest = if asking.len() >= MAX_ASKING { asking.pop_front() } else { None };
            if let Some(oldest) = oldest {
                let _ = oldest.shutdown(Shutdown::Both);
            }
            asking.push_back(Arc::clone(&stream));
        }
        let (server, client) = (Arc::clone(self), Arc::clone(&stream));
        let started = Builder::new().name("client".into()).stack_size(STACK).spawn(move || {
            // A client that goes away has had enough.
            let _ = server.answer(&client);
            server.forget(&client);
        });
        if started.is_err() {
            self.forget(&stream);
        }
    }

    fn forget(&self, stream: &Arc<TcpStream>) {
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        asking.retain(|other| !Arc::ptr_eq(other, stream));
    }

    fn answer(&self, stream: &Arc<TcpStream>) -> io::Result<()> {
        stream.set_write_timeout(Some(PATIENCE))?;
        let here = stream.local_addr()?.ip();
        let judged = match read(stream)? {
            Some(request) => judge(&request, here, &self.names),
            None => Err(("431 Request Header Fields Too Large", "this request is too long".into())),
        };
        let mut out = &**stream;
        match judged {
            Ok(Asked::Page) => {
                let page = self.page.whole(&self.board.now());
                out.write_all(&self.page.head("200 OK", "text/html", page.len()))?;
                out.write_all(page.as_bytes())?;
            }
            Ok(Asked::Stream) => {
                let place = Place::take(&self.streams);
                let Some(_place) = place else {
                    return self.refuse(stream, "503 Service Unavailable", "too many pages look on already");
                };
                // From here on it has a place of its own kind.
                self.forget(stream);
                return self.stream(out);
            }
            Err((status, why)) => return self.refuse(stream, status, &why),
        }
        end(stream)
    }

    fn refuse(&self, stream: &TcpStream, status: &str, why: &str) -> io::Result<()> {
        let (mut out, text) = (stream, format!("{why}\n"));
        out.write_all(&self.page.head(status, "text/plain", text.len()))?;
        out.write_all(text.as_bytes())?;
        end(stream)
    }

    /// Writes the sections that have changed, as often as some have, until the client goes.
    fn stream(&self, mut out: &TcpStream) -> io::Result<()> {
        out.write_all(&self.page.stream_head())?;
        let mut known: Arc<Sections> = Arc::default();
        loop {
            let next = self.board.wait(&known, SILENCE);
            let text = match next.changes(&known) {
                Some(changes) => format!("data: {changes}\n\n"),
                None => ": still here\n\n".into(),
            };
            out.write_all(text.as_bytes())?;
            known = next;
        }
    }
}

/// One of the places for streams; it is free again when this goes.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(streams: &'a AtomicUsize) -> Option<Self> {
        let room = |taken: usize| (taken < MAX_STREAMS).then_some(taken.saturating_add(1));
        streams.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).ok().map(|_| Place(streams))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Reads a request's header; `None`: it is too long.
fn read(mut stream: &TcpStream) -> io::Result<Option<Vec<u8>>> {
    let until = Instant::now() + PATIENCE;
    let (mut request, mut part) = (Vec::new(), [0; 4096]);
    while !is_whole(&request) && request.len() <= REQUEST_MAX {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => request.extend_from_slice(part.get(..n).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok((request.len() <= REQUEST_MAX).then_some(request))
}

/// Ends an answer in order: a socket that is closed with unread bytes takes back what it has just sent.
fn end(mut stream: &TcpStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut part = [0; 4096];
    for _ in 0..REQUEST_MAX / part.len() {
        if stream.read(&mut part)? == 0 {
            break;
        }
    }
    Ok(())
}
