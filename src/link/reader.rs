//! The reading end of a link: one thread that blocks in `recv` and gives what it finds to a [`Sink`].

use std::fmt;
use std::io;
use std::net::TcpStream;

use log::trace;

use super::{Intake, Item, tap};
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
    /// The link's owner has ended it.
    Ended,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Closed::Eof(0) => f.write_str("closed by the other side"),
            Closed::Eof(n) => write!(f, "closed by the other side, {n} bytes into a packet"),
            Closed::Broken(error) => write!(f, "{error}"),
            Closed::Violation(refusal) => write!(f, "{refusal}"),
            Closed::Ended => f.write_str("ended here"),
        }
    }
}

impl From<Refusal> for Closed {
    fn from(refusal: Refusal) -> Self {
        Closed::Violation(refusal)
    }
}

/// Reads the link to its end. `name` stands before each header in the log.
pub fn read_link(stream: &TcpStream, name: &str, max_packet: u32, sink: &mut impl Sink) -> Closed {
    let mut intake = Intake::new(max_packet);
    let mut look = || -> Result<(), Closed> {
        loop {
            match intake.room().and_then(|room| sys::receive(stream, room)) {
                Ok(0) => return Err(Closed::Eof(intake.pending())),
                Ok(n) => intake.filled(n),
                Err(error) => return Err(Closed::Broken(error)),
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
