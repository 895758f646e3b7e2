//! The connection to a daemon's control socket, with a limit for each wait.
//!
//! A daemon that is stopped, or hangs, accepts connections and answers nothing. Streams that have begun may be silent
//! while nothing happens. Used by the commands of `hadmctl`.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::Failure;
use crate::control::{Carried, NoData, Request};

/// Time between two attempts to connect to a socket whose queue is full.
const PAUSE: Duration = Duration::from_millis(50);

pub(super) struct Daemon {
    reader: BufReader<UnixStream>,
    stream: UnixStream,
    path: PathBuf,
    program: &'static str,
    timeout: Duration,
    /// The bytes of the next line so far.
    line: Vec<u8>,
}

/// Returns true if an error says that the time is over.
fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

impl Daemon {
    /// Connects; `timeout` limits this, and every answer.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, Failure> {
        Self::connect_to("hadmd", path, timeout)
    }

    /// Does the same with another program that uses the protocol.
    pub fn connect_to(program: &'static str, path: &Path, timeout: Duration) -> Result<Self, Failure> {
        let until = Instant::now() + timeout;
        let stream = loop {
            match connect(path) {
                Err(error) if is_late(&error) && Instant::now() < until => std::thread::park_timeout(PAUSE),
                done => break done,
            }
        };
        let stream = stream.map_err(|error| {
            let whom = if program == "hadmd" { "the daemon" } else { program };
            let why = format!("cannot reach {whom} at {}: {error}", path.display());
            match error.kind() {
                _ if is_late(&error) => no_answer(path, timeout),
                io::ErrorKind::PermissionDenied => {
                    Failure::Refused(format!("{why}; be root, or in group hadm"))
                }
                _ => Failure::NotThere(format!(
                    "{why}; is {program} running? option --control names another socket"
                )),
            }
        })?;
        stream.set_write_timeout(Some(timeout)).map_err(broken)?;
        let reader = BufReader::new(stream.try_clone().map_err(broken)?);
        Ok(Daemon { reader, stream, path: path.into(), program, timeout, line: Vec::new() })
    }

    /// Returns the next event of a stream, `None` when the daemon hung up. Waits without a limit.
    pub fn event(&mut self) -> Result<Option<Carried>, Failure> {
        let line = self.line_until(None)?;
        line.map(|line| Carried::event(&line).map_err(Failure::NoAnswer)).transpose()
    }

    /// Waits for the next event of a stream, up to a point in time at most.
    pub fn wait_for_event(&mut self, until: Option<Instant>) -> Result<(), Failure> {
        match self.line_until(until) {
            Ok(Some(_)) | Err(Failure::NoAnswer(_)) => Ok(()),
            Ok(None) => Err(Failure::NotThere("the daemon ended".into())),
            Err(failure) => Err(failure),
        }
    }

    /// Returns the next line; a late one is an error of [`is_late`] that keeps the bytes so far for the next call.
    fn line_until(&mut self, until: Option<Instant>) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(no_answer(&self.path, self.timeout));
            }
            self.stream.set_read_timeout(left).map_err(broken)?;
            match self.reader.read_until(b'\n', &mut self.line) {
                Ok(_) if self.line.last() == Some(&b'\n') => break,
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) if is_late(&error) || error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(error)),
            }
        }
        Ok(Some(std::mem::take(&mut self.line)))
    }

    /// Sends a request, and returns the content of the answer.
    pub fn ask(&mut self, request: &Request) -> Result<Carried, Failure> {
        self.ask_line(&request.line())
    }

    /// Does the same for a request that is a line already.
    pub fn ask_line(&mut self, line: &str) -> Result<Carried, Failure> {
        self.say(line)?;
        let answer = self.line_until(Some(Instant::now() + self.timeout))?;
        judge(answer)
    }

    /// Sends a request that may have to wait for peers or name servers: waits for as long as the daemon answers
    /// another request in time.
    pub fn ask_patiently(&mut self, request: &Request) -> Result<Carried, Failure> {
        self.ask_line_patiently(&request.line())
    }

    /// Does the same for a request that is a line already.
    pub fn ask_line_patiently(&mut self, line: &str) -> Result<Carried, Failure> {
        self.say(line)?;
        loop {
            match self.line_until(Some(Instant::now() + self.timeout)) {
                Err(Failure::NoAnswer(_)) => {
                    let mut other = Daemon::connect_to(self.program, &self.path, self.timeout)?;
                    match other.ask(&Request::Status) {
                        // A refusal shows that it works, too.
                        Ok(_) | Err(Failure::Refused(_)) => {}
                        Err(failure) => return Err(failure),
                    }
                }
                other => return judge(other?),
            }
        }
    }

    fn say(&mut self, line: &str) -> Result<(), Failure> {
        match self.stream.write_all(format!("{line}\n").as_bytes()) {
            // A daemon that refuses a client sends the reason before it hangs up.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) if is_late(&error) => Err(no_answer(&self.path, self.timeout)),
            done => done.map_err(broken),
        }
    }
}

/// Returns the content of an answer, or the daemon's reason for a refusal.
fn judge(answer: Option<Vec<u8>>) -> Result<Carried, Failure> {
    let answer = answer.ok_or_else(|| Failure::NotThere("the daemon hung up".into()))?;
    Carried::answer(&answer).map_err(|error| match error {
        NoData::Refused(why) => Failure::Refused(why),
        NoData::Unknown(why) => Failure::NoAnswer(why),
    })
}

/// The connection broke: the daemon has ended.
fn broken(error: io::Error) -> Failure {
    Failure::NotThere(format!("the connection to the daemon broke: {error}"))
}

fn no_answer(path: &Path, timeout: Duration) -> Failure {
    Failure::NoAnswer(format!(
        "the daemon at {} does not answer within {} s: it is stopped or hangs, or the machine is overloaded; option \
         --timeout gives it longer",
        path.display(),
        timeout.as_secs_f64()
    ))
}

/// Connects without waiting: a socket whose queue is full gives `WouldBlock`.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)?;
    socket.set_nonblocking(false)?;
    Ok(socket.into())
}
