//! Packets of a program in the same process that stands in for the kernel module: its calls take the place of a link.
//!
//! Checked like those of a link, and given to the same sink, on the thread that has them. Must never wait unless it is asked
//! to. Called by that program.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use log::{error, trace};

use super::Router;
use super::from_kernel::{FromKernel, Late};
use crate::attach::{Intake, Parts};
use crate::daemon::link::{Framer, Item, Sink, tap};
use crate::wire::Class;

/// The way of packets of one class.
pub struct FromProcess {
    framer: Framer,
    sink: FromKernel,
    /// The packets that a full queue holds up.
    late: Option<Late>,
    source: tap::Source,
    max_packet: u32,
}

impl FromProcess {
    /// Returns the way of one class, which looks up `router` and refuses packets of more than `max_packet` bytes.
    pub fn boxed(router: &Arc<Router>, class: Class, max_packet: u32) -> Box<dyn Intake> {
        let source = tap::Source::new(&format!("kernel {class} in"), None);
        let sink = FromKernel::new(router);
        Box::new(FromProcess { framer: Framer::new(max_packet), sink, late: None, source, max_packet })
    }

    /// Gives the packets in the buffer to the sink; stops at packets that a full queue holds up.
    fn take(&mut self, wait: bool) {
        let source = &self.source;
        let mut seen = |header: &_| {
            trace!("from this process: {header}");
            source.show(header);
        };
        loop {
            match self.late.take() {
                None => {}
                Some(late) if wait => late.wait(),
                Some(late) => self.late = late.try_again(),
            }
            if self.late.is_some() {
                return;
            }
            let taken = match self.framer.next(&mut seen) {
                Ok(None) => return,
                Ok(Some(Item::Run(run))) => self.sink.offer(&run, None).map(|late| self.late = late),
                Ok(Some(item)) => self.sink.take(item),
                Err(refusal) => Err(refusal.into()),
            };
            if let Err(closed) = taken {
                // As on a link, nothing after it means anything.
                error!("packets of this process are refused: {closed}");
                self.framer = Framer::new(self.max_packet);
            }
        }
    }

    /// Copies a packet into the buffer, which has space for it.
    fn copy(&mut self, (header, payload): &Parts) -> io::Result<()> {
        for part in [&header[..], payload] {
            let mut rest = part;
            while !rest.is_empty() {
                let room = self.framer.room()?;
                let n = rest.len().min(room.capacity().saturating_sub(room.len()));
                let (now, later) = rest.split_at(n);
                room.extend_from_slice(now);
                self.framer.filled(n);
                rest = later;
            }
        }
        Ok(())
    }
}

impl Intake for FromProcess {
    fn give(&mut self, packets: &mut VecDeque<Parts>, wait: bool) -> bool {
        self.take(wait);
        while self.late.is_none() {
            let Some(packet) = packets.pop_front() else { return true };
            if let Err(error) = self.copy(&packet) {
                error!("a packet of this process is lost: {error}");
            }
            // Packets for the same peers go as one run, as far as the buffer has space for them.
            let next = packets.front().map(|(header, payload)| header.len().saturating_add(payload.len()));
            if next.is_none_or(|len| len > self.framer.space()) {
                self.take(wait);
            }
        }
        false
    }
}
