//! The metrics over HTTP, for who scrapes them: `GET /metrics`, and nothing else.
//!
//! A client costs nobody but itself: few are served at a time, each has one deadline for all it does, and a
//! request may have so many bytes and no more. Nothing here touches the data path: the timer thread is asked,
//! as by a client of the control socket. No web framework is worth its size for one page.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, bounded};
use log::Level;
use socket2::SockRef;

use super::{Ask, Request, metrics};
use crate::{limited, sys};

/// From the connection to the last byte of the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest request in bytes, header fields included.
const REQUEST_MAX: u64 = 4096;
/// Clients at the same time.
pub const MAX_CLIENTS: usize = 8;

/// The listener; it is closed when this goes.
pub struct Scrape {
    listener: Arc<TcpListener>,
}

impl Drop for Scrape {
    fn drop(&mut self) {
        // Its thread waits in accept(2), which ends so.
        let _ = SockRef::from(&*self.listener).shutdown(Shutdown::Both);
    }
}

impl Scrape {
    /// Listens at the address, and answers with what the timer thread says.
    ///
    /// # Errors
    /// A sentence for the operator: which address cannot be bound, and what may help.
    pub fn start(addr: SocketAddr, asks: Sender<Ask>) -> Result<Self, String> {
        let fail = |error| {
            format!(
                "cannot serve metrics at {addr}: {error}; give another address in element metrics, or none"
            )
        };
        let listener = Arc::new(TcpListener::bind(addr).map_err(fail)?);
        let scrape = Scrape { listener: Arc::clone(&listener) };
        sys::spawn("metrics", move || accept(&listener, &asks)).map_err(fail)?;
        Ok(scrape)
    }
}

fn accept(listener: &TcpListener, asks: &Sender<Ask>) {
    let clients = Arc::new(());
    for client in listener.incoming() {
        let client = match client {
            Ok(client) => client,
            // Shut down by its owner.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            Err(error) => {
                limited!(Level::Error, ("metrics", 0), "cannot accept a metrics client: {error}");
                std::thread::park_timeout(Duration::from_millis(100));
                continue;
            }
        };
        if Arc::strong_count(&clients) > MAX_CLIENTS {
            // Told by hanging up: not even a word is waited for.
            limited!(Level::Warn, ("metrics", 1), "more than {MAX_CLIENTS} metrics clients: closed one");
            continue;
        }
        let (ticket, asks) = (Arc::clone(&clients), asks.clone());
        let begun = sys::spawn("metrics-client", move || {
            let _ticket = ticket;
            let timed = Timed { stream: &client, until: Instant::now() + PATIENCE };
            if let Err(error) = attend(timed, &asks) {
                limited!(Level::Debug, ("metrics", 2), "lost a metrics client: {error}");
            }
        });
        if let Err(error) = begun {
            limited!(Level::Error, ("metrics", 3), "cannot attend to a metrics client: {error}");
        }
    }
}

/// A client's socket, up to a point in time.
#[derive(Clone, Copy)]
struct Timed<'a> {
    stream: &'a TcpStream,
    until: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buf)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a request and answers it.
fn attend(mut client: Timed<'_>, asks: &Sender<Ask>) -> io::Result<()> {
    let line = request(client)?;
    let mut answer = String::new();
    match judge(line.as_deref()) {
        Ok(()) => {
            let text = ask(client, asks)?;
            // Writing to a string does not fail.
            let _ = write!(
                answer,
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n{text}",
                text.len()
            );
        }
        Err(status) => {
            let allow = if status.starts_with("405") { "Allow: GET\r\n" } else { "" };
            let _ =
                write!(answer, "HTTP/1.1 {status}\r\n{allow}Content-Length: 0\r\nConnection: close\r\n\r\n");
        }
    }
    client.write_all(answer.as_bytes())?;
    // A socket that is closed with unread bytes takes back what it has just sent.
    client.stream.shutdown(Shutdown::Write)?;
    io::copy(&mut client.take(16 * REQUEST_MAX), &mut io::sink()).map(drop)
}

/// The first line of a request, once all of its header is there; `None` if that is too long.
fn request(client: Timed<'_>) -> io::Result<Option<String>> {
    let mut reader = BufReader::new(client.take(REQUEST_MAX));
    let mut first = None;
    loop {
        let mut line = Vec::new();
        reader.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            let whole = reader.get_ref().limit() > 0;
            return if whole { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(None) };
        }
        let text = line.trim_ascii_end();
        if first.is_some() && text.is_empty() {
            return Ok(first);
        }
        first.get_or_insert_with(|| String::from_utf8_lossy(text).into_owned());
    }
}

/// Whether a request is for the metrics.
///
/// # Errors
/// The status that says what it is instead.
fn judge(line: Option<&str>) -> Result<(), &'static str> {
    let line = line.ok_or("431 Request Header Fields Too Large")?;
    let mut words = line.split(' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    if words.next().is_some() || !version.is_some_and(|version| version.starts_with("HTTP/1.")) {
        return Err("400 Bad Request");
    }
    match (method, target.and_then(|target| target.split('?').next())) {
        (Some("GET"), Some("/metrics")) => Ok(()),
        (_, Some("/metrics")) => Err("405 Method Not Allowed"),
        _ => Err("404 Not Found"),
    }
}

/// What the timer thread says.
fn ask(client: Timed<'_>, asks: &Sender<Ask>) -> io::Result<String> {
    let (reply, answer) = bounded(1);
    // If the daemon ends just now, nobody answers.
    let _ = asks.send(Ask { request: Request::Status, config: None, reply });
    let status = answer.recv_deadline(client.until).map_err(io::Error::other)?;
    Ok(metrics::render(status.get("data").unwrap_or(&serde_json::Value::Null)))
}

#[cfg(test)]
mod tests {
    use super::judge;

    #[test]
    fn only_get_metrics_is_answered() {
        assert_eq!(judge(Some("GET /metrics HTTP/1.1")), Ok(()));
        assert_eq!(judge(Some("GET /metrics?x=1 HTTP/1.0")), Ok(()));
        for (line, status) in [
            (None, "431"),
            (Some(""), "400"),
            (Some("GET /metrics"), "400"),
            (Some("GET /metrics HTTP/2"), "400"),
            (Some("GET  /metrics HTTP/1.1"), "400"),
            (Some("GET / HTTP/1.1"), "404"),
            (Some("POST / HTTP/1.1"), "404"),
            (Some("HEAD /metrics HTTP/1.1"), "405"),
            (Some("get /metrics HTTP/1.1"), "405"),
        ] {
            assert!(judge(line).is_err_and(|found| found.starts_with(status)), "{line:?}");
        }
    }
}
