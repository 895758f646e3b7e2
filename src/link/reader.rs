//! The reading end of a link: one thread that blocks in `recv` and gives what it finds to a [`Sink`].

use std::fmt;
use std::io;
use std::net::TcpStream;

use log::trace;

use super::coat::Undressing;
use super::{CoatError, Decode, Intake, Item, tap};
use crate::sys;
use crate::wire::Refusal;

/// Takes what a link's reading end found. It may block: then nothing more is read from this link, which is
/// how a full queue pushes back on its source.
pub trait Sink {
    /// Takes one item.
    ///
    /// # Errors
    /// Why the link cannot go on.
    fn take(&mut self, item: Item) -> Result<(), Closed>;
}

/// Why a link's reading end came to its end.
#[derive(Debug)]
pub enum Closed {
    /// The other side closed it, so many bytes into a packet.
    Eof(usize),
    /// The system says it is broken.
    Broken(io::Error),
    /// The other side sent what it may not.
    Violation(Refusal),
    /// What the other side sent cannot be decoded.
    Coat(CoatError),
    /// The link's owner has ended it.
    Ended,
}

impl Closed {
    /// The system's error number, where that is the reason.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Closed::Broken(error) => error.raw_os_error(),
            _ => None,
        }
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Closed::Eof(0) => f.write_str("closed by the other side"),
            Closed::Eof(n) => write!(f, "closed by the other side, {n} bytes into a packet"),
            Closed::Broken(error) => write!(f, "{error}"),
            Closed::Violation(refusal) => write!(f, "{refusal}"),
            Closed::Coat(error) => write!(f, "{error}"),
            Closed::Ended => f.write_str("ended here"),
        }
    }
}

impl From<Refusal> for Closed {
    fn from(refusal: Refusal) -> Self {
        Closed::Violation(refusal)
    }
}

impl From<CoatError> for Closed {
    fn from(error: CoatError) -> Self {
        Closed::Coat(error)
    }
}

/// Reads the link to its end, through `decode` if it wears a coat. `name` stands before each header in the log.
pub fn read_link(
    stream: &TcpStream,
    name: &str,
    max_packet: u32,
    decode: Option<Box<dyn Decode>>,
    sink: &mut impl Sink,
) -> Closed {
    let mut intake = Intake::new(max_packet);
    let mut undressing = decode.map(Undressing::new);
    let mut look = || -> Result<(), Closed> {
        loop {
            let room = intake.room().map_err(Closed::Broken)?;
            let received = match &mut undressing {
                None => sys::receive(stream, room).map_err(Closed::Broken)?,
                Some(undressing) => undressing.receive(stream, room)?,
            };
            match received {
                0 => {
                    let coated = undressing.as_ref().map_or(0, Undressing::pending);
                    return Err(Closed::Eof(intake.pending().saturating_add(coated)));
                }
                n => intake.filled(n),
            }
            let mut seen = |header: &_| {
                trace!("{name}: {header}");
                tap::show(name, header);
            };
            while let Some(item) = intake.next(&mut seen)? {
                sink.take(item)?;
            }
        }
    };
    look().err().unwrap_or(Closed::Ended)
}
