//! The reading end of a link: one thread that blocks in `recv` and gives the items it finds to a [`Sink`].

use std::net::TcpStream;
use std::num::NonZero;
use std::thread;
use std::time::Duration;

use log::trace;

use super::busy_poll::BusyPoll;
use super::closed::Closed;
use super::codec::{Decode, Undressing};
use super::framer::Framer;
use super::sink::Sink;
use super::tap;
use super::zero_copy::ZeroCopy;
use crate::sys;
use crate::wire::PeerKey;

/// The limits of a reading end.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Longest payload of a packet, in bytes.
    pub max_packet: u32,
    /// Time for which it looks for further bytes before it sleeps; zero: it sleeps at once.
    pub busy_poll: Duration,
    /// Smallest payload, in bytes, of packets that are moved without a copy where that is possible; 0: all, from the
    /// first on; `None`: none are.
    pub zero_copy: Option<u32>,
}

/// Reads the link to its end, through `decode` if the link has a codec. `name` stands before each header in the log,
/// `peer` is at the other end, unless that is the kernel module.
pub fn read_link(
    stream: &TcpStream,
    name: &str,
    peer: Option<PeerKey>,
    reading: Reading,
    decode: Option<Box<dyn Decode>>,
    sink: &mut dyn Sink,
) -> Closed {
    let mut framer = Framer::new(reading.max_packet);
    let polls = sys::is_unix(stream);
    let mut undressing = decode.map(Undressing::new);
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let mut busy_poll = BusyPoll::new(reading.busy_poll, processors);
    let plain = undressing.is_none() && !polls;
    let mut zero_copy =
        reading.zero_copy.filter(|_| plain).map(|large| ZeroCopy::new(large, reading.max_packet));
    let source = tap::Source::new(name, peer);
    let show = |header: &_| {
        trace!("{name}: {header}");
        source.show(header);
    };
    let mut look = || -> Result<(), Closed> {
        loop {
            // Bytes that a codec holds back may be whole packets.
            if undressing.as_ref().is_none_or(|undressing| undressing.pending() == 0) {
                if let Some(busy_poll) = &mut busy_poll {
                    busy_poll.wait(sys::runnable_threads, || sys::is_readable(stream));
                }
            }
            let mut limit = usize::MAX;
            if let Some(zero_copy) = zero_copy.as_mut().filter(|zero_copy| zero_copy.moves()) {
                if framer.pending() == 0 && zero_copy.forward(stream, &mut framer, sink, &show)? {
                    continue;
                }
                // The next read begins where a packet begins.
                limit = framer.missing();
            }
            if limit > 0 {
                let room = framer.room().map_err(Closed::Broken)?;
                let received = match &mut undressing {
                    None => sys::receive(stream, room, limit, polls).map_err(Closed::Broken)?,
                    Some(undressing) => undressing.receive(stream, room)?,
                };
                match received {
                    0 => {
                        let coated = undressing.as_ref().map_or(0, Undressing::pending);
                        return Err(Closed::Eof(framer.pending().saturating_add(coated)));
                    }
                    n => framer.filled(n),
                }
                sink.heard();
            }
            let mut seen = |header: &_| {
                show(header);
                if let Some(zero_copy) = &mut zero_copy {
                    zero_copy.note(header);
                }
            };
            while let Some(item) = framer.next(&mut seen)? {
                sink.take(item)?;
            }
        }
    };
    look().err().unwrap_or(Closed::Ended)
}
