//! The metrics over HTTP: `GET /metrics`, and nothing else.
//!
//! One thread serves all clients and waits for none: each has one deadline for everything, a request may have at most
//! [`REQUEST_MAX`] bytes, and when there are too many clients, one of the address that has the most of them is
//! closed, oldest first. So a scraper that sends its request at once is always answered. Nothing here touches the
//! data path: the daemon gets the same request as from a client of the control socket. No web framework is worth its
//! size for one page.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, bounded, never};
use log::Level;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;

use super::ControlRequest;
use crate::control::{Answer, Line, Request, metrics};
use crate::daemon::connect::listen;
use crate::{limited, sys};

/// Longest time from the connection to the last byte of the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same for a client that comes when [`MAX_SLOW`] have not sent a request yet: many times a scraper's need.
const GRACE: Duration = Duration::from_secs(1);
/// Longest time for the daemon to report its status.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// Longest request in bytes, header fields included.
const REQUEST_MAX: usize = 4096;
/// Most bytes that are read and thrown away behind a request.
const IGNORED_MAX: usize = 16 * REQUEST_MAX;
/// Most clients that may have [`PATIENCE`] for their request.
pub const MAX_SLOW: usize = 8;
/// Most clients at the same time: a descriptor and a request's bytes for each.
pub const MAX_CLIENTS: usize = 64;

/// The listener; it is closed when this is dropped.
pub struct Scrape {
    listener: Arc<TcpListener>,
}

impl Drop for Scrape {
    fn drop(&mut self) {
        // Its thread waits for connections, which ends with that.
        let _ = SockRef::from(&*self.listener).shutdown(Shutdown::Both);
    }
}

impl Scrape {
    /// Listens at the address, and answers with the daemon's metrics. `refused` counts the clients that got no
    /// answer.
    ///
    /// # Errors
    /// A sentence for the operator: the address that cannot be bound, and the remedy.
    pub fn start(
        addr: SocketAddr,
        control_requests: Sender<ControlRequest>,
        refused: Arc<sys::Counter>,
    ) -> Result<Self, String> {
        let fail = |error| {
            format!(
                "cannot serve metrics at {addr}: {error}; give another address in element metrics, or none"
            )
        };
        let listener = Arc::new(listen(addr).map_err(fail)?);
        let scrape = Scrape { listener: Arc::clone(&listener) };
        let thread = Thread { listener, control_requests, refused, clients: Vec::new() };
        sys::spawn("metrics", move || thread.run()).map_err(fail)?;
        Ok(scrape)
    }
}

/// The progress of a client.
enum Stage {
    /// Its request comes in.
    Asks(Vec<u8>),
    /// This many bytes of its answer are written.
    Hears(Arc<str>, usize),
    /// All is written: this many bytes may still be read and thrown away. A socket that is closed with unread bytes
    /// takes back the bytes that it has just sent.
    Ends(usize),
}

struct Client {
    stream: TcpStream,
    from: IpAddr,
    until: Instant,
    stage: Stage,
}

/// The result of a look at a client.
enum Step {
    Wait,
    Asked(Result<(), &'static str>),
    /// It has hung up, or is answered.
    Over,
}

struct Thread {
    listener: Arc<TcpListener>,
    control_requests: Sender<ControlRequest>,
    refused: Arc<sys::Counter>,
    /// The clients, oldest first.
    clients: Vec<Client>,
}

impl Thread {
    fn run(mut self) {
        loop {
            let now = Instant::now();
            self.expire(now);
            self.wait(now);
            if !self.accept() {
                return;
            }
            self.attend();
        }
    }

    /// Drops the clients whose time is over.
    fn expire(&mut self, now: Instant) {
        let unanswered = |client: &&Client| client.until <= now && !matches!(client.stage, Stage::Ends(_));
        self.refused.add(self.clients.iter().filter(unanswered).count() as u64);
        self.clients.retain(|client| client.until > now);
    }

    /// Waits until a client or the listener is ready, or a client's time is over.
    fn wait(&self, now: Instant) {
        let mut fds = vec![PollFd::new(&*self.listener, PollFlags::IN)];
        fds.extend(self.clients.iter().map(|client| {
            let writes = matches!(client.stage, Stage::Hears(..));
            PollFd::new(&client.stream, if writes { PollFlags::OUT } else { PollFlags::IN })
        }));
        let left = self.clients.iter().map(|client| client.until.saturating_duration_since(now)).min();
        // A moment more, so that it is over then.
        let left = left.and_then(|left| Timespec::try_from(left + Duration::from_millis(1)).ok());
        // An interruption counts as an event: nothing below waits.
        let _ = poll(&mut fds, left.as_ref());
    }

    /// Accepts the clients that wait; `false` if the listener is closed.
    fn accept(&mut self) -> bool {
        // Not all at once: the connected clients have a turn, too.
        for _ in 0..MAX_CLIENTS {
            match self.listener.accept() {
                Ok((stream, from)) => {
                    if stream.set_nonblocking(true).is_ok() {
                        self.add(stream, from.ip());
                    }
                }
                // Shut down by its owner.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return false,
                Err(error) if sys::is_shortage(&error) && error.kind() != io::ErrorKind::WouldBlock => {
                    limited!(Level::Error, ("metrics", 0), "cannot accept a metrics client: {error}");
                    std::thread::park_timeout(Duration::from_millis(100));
                    return true;
                }
                Err(_) => return true,
            }
        }
        true
    }

    fn add(&mut self, stream: TcpStream, from: IpAddr) {
        if self.clients.len() >= MAX_CLIENTS {
            let mut shares: HashMap<IpAddr, usize> = HashMap::new();
            self.clients.iter().for_each(|client| *shares.entry(client.from).or_default() += 1);
            let share = |client: &Client| shares.get(&client.from).copied();
            let ranked = self.clients.iter().enumerate();
            if let Some((at, _)) = ranked.max_by_key(|(at, client)| (share(client), Reverse(*at))) {
                let gone = self.clients.remove(at);
                self.refused.add(u64::from(!matches!(gone.stage, Stage::Ends(_))));
                limited!(
                    Level::Warn,
                    ("metrics", 1),
                    "more than {MAX_CLIENTS} metrics clients: closed one from {}",
                    gone.from
                );
            }
        }
        let slow = self.clients.iter().filter(|client| matches!(client.stage, Stage::Asks(_))).count();
        let until = Instant::now() + if slow < MAX_SLOW { PATIENCE } else { GRACE };
        self.clients.push(Client { stream, from, until, stage: Stage::Asks(Vec::new()) });
    }

    /// Advances every client as far as possible without waiting. Clients that ask at the same time get the same
    /// answer.
    fn attend(&mut self) {
        let mut page: Option<Arc<str>> = None;
        let (control_requests, refused) = (&self.control_requests, &self.refused);
        self.clients.retain_mut(|client| {
            loop {
                match client.step() {
                    Step::Wait => return true,
                    Step::Over => {
                        refused.add(u64::from(!matches!(client.stage, Stage::Ends(_))));
                        return false;
                    }
                    Step::Asked(Ok(())) => {
                        let answer = page.clone().or_else(|| ask(control_requests).map(good));
                        page.clone_from(&answer);
                        let busy = || bad("503 Service Unavailable");
                        client.stage = Stage::Hears(answer.unwrap_or_else(busy), 0);
                    }
                    Step::Asked(Err(status)) => {
                        refused.add(1);
                        client.stage = Stage::Hears(bad(status), 0);
                    }
                }
            }
        });
    }
}

impl Client {
    /// Makes one read or write.
    fn step(&mut self) -> Step {
        let mut part = [0; REQUEST_MAX];
        let done = match &mut self.stage {
            Stage::Asks(request) => self.stream.read(&mut part).map(|n| {
                request.extend_from_slice(part.get(..n).unwrap_or_default());
                match (n, first_line(request)) {
                    (0, _) => Step::Over,
                    (_, Some(line)) => Step::Asked(judge(Some(&line))),
                    (_, None) if request.len() >= REQUEST_MAX => Step::Asked(judge(None)),
                    (_, None) => Step::Wait,
                }
            }),
            Stage::Hears(answer, written) => {
                let rest = answer.as_bytes().get(*written..).unwrap_or_default();
                match self.stream.write(rest) {
                    Ok(n) => {
                        *written = written.saturating_add(n);
                        if *written < answer.len() {
                            return Step::Wait;
                        }
                        let ended = self.stream.shutdown(Shutdown::Write);
                        self.stage = Stage::Ends(0);
                        ended.map(|()| Step::Wait)
                    }
                    Err(error) => Err(error),
                }
            }
            Stage::Ends(ignored) => self.stream.read(&mut part).map(|n| {
                *ignored = ignored.saturating_add(n);
                if n == 0 || *ignored > IGNORED_MAX { Step::Over } else { Step::Wait }
            }),
        };
        match done {
            Ok(step) => step,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Step::Wait,
                _ => Step::Over,
            },
        }
    }
}

/// Returns the first line of a request, once all of its header has come.
fn first_line(request: &[u8]) -> Option<String> {
    let mut lines = request.split_inclusive(|&byte| byte == b'\n');
    let first = lines.next()?.strip_suffix(b"\n")?;
    let ends = |line: &[u8]| line.ends_with(b"\n") && line.trim_ascii_end().is_empty();
    lines.any(ends).then(|| String::from_utf8_lossy(first.trim_ascii_end()).into_owned())
}

fn good(text: String) -> Arc<str> {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n";
    format!("{head}Content-Length: {}\r\nConnection: close\r\n\r\n{text}", text.len()).into()
}

fn bad(status: &str) -> Arc<str> {
    let allow = if status.starts_with("405") { "Allow: GET\r\n" } else { "" };
    format!("HTTP/1.1 {status}\r\n{allow}Content-Length: 0\r\nConnection: close\r\n\r\n").into()
}

/// Checks that a request is for the metrics.
///
/// # Errors
/// The status line of the answer.
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

/// Returns the daemon's metrics, or `None` if it does not answer in time.
fn ask(control_requests: &Sender<ControlRequest>) -> Option<String> {
    let (reply, answer) = bounded(1);
    // If the daemon ends just now, no answer comes.
    let request = ControlRequest { request: Request::Status, config: None, reply, gone: never() };
    let _ = control_requests.send(request);
    match answer.recv_timeout(ANSWER_LIMIT).ok()? {
        Line::Answer(Ok(Answer::Status(status))) => Some(metrics::render(&status)),
        _ => None,
    }
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
