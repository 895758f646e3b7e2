//! `hadm-probe echo`: answers requests, and counts the packets of floods.
//!
//! One thread reads and answers, so that nothing is handed over in a measured round trip. It must never
//! block in a write: while the daemon takes nothing, answers wait in an outbox and reading goes on, up to a
//! limit; then reading rests until the daemon takes something.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{SendFlags, send};
use serde_json::json;

use super::flow::Flow;
use super::frame::{Label, Message};
use super::link::Link;
use super::watch::Watch;
use super::{Failure, print, say};
use crate::attach::{Group, Packet, PacketReader, Peer};

/// Unsent answers in bytes at which reading rests.
const OUTBOX_LIMIT: usize = 64 << 20;

/// Answers until a signal comes; a signal is a success.
pub fn run(server: SocketAddr, json: bool) -> Result<(), Failure> {
    let link = Link::attach(server)?;
    let (watch, own) = Watch::start(&link, Group::Nodes, |_| ())?;
    say(format_args!("attached to the daemon of node {own}, answering"));
    let mut echo = Echo::new(watch);
    let why = match echo.serve(link.data()) {
        Err(e) => link.lost(&e),
        Ok(never) => match never {},
    };
    if why != Failure::Interrupted {
        return Err(why);
    }
    let Echo { requests, floods, packets, bytes, .. } = echo;
    if json {
        print(json!({
            "command": "echo", "node": own, "requests": requests,
            "floods": floods, "flood_packets": packets, "flood_bytes": bytes,
        }))
    } else {
        print(format_args!(
            "{requests} requests answered; {packets} packets, {bytes} bytes in {floods} floods"
        ))
    }
}

struct Echo {
    watch: Arc<Watch>,
    /// The flood of each peer.
    flows: BTreeMap<Peer, Flow>,
    outbox: Outbox,
    requests: u64,
    floods: u64,
    packets: u64,
    bytes: u64,
}

impl Echo {
    fn new(watch: Arc<Watch>) -> Self {
        Echo {
            watch,
            flows: BTreeMap::new(),
            outbox: Outbox::default(),
            requests: 0,
            floods: 0,
            packets: 0,
            bytes: 0,
        }
    }

    fn serve(&mut self, link: &TcpStream) -> io::Result<std::convert::Infallible> {
        let mut packets = PacketReader::new(link);
        loop {
            while packets.is_ready()? && self.outbox.len() < OUTBOX_LIMIT {
                self.take(&packets.next_packet()?);
            }
            self.outbox.flush(link)?;
            if self.outbox.len() == 0 {
                packets.fill()?;
                continue;
            }
            let reads = if self.outbox.len() < OUTBOX_LIMIT { PollFlags::IN } else { PollFlags::empty() };
            let mut wait = [PollFd::new(link, PollFlags::OUT | reads)];
            match poll(&mut wait, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            if wait.iter().any(|fd| fd.revents().contains(PollFlags::IN)) && !reads.is_empty() {
                packets.fill()?;
            }
        }
    }

    fn take(&mut self, packet: &Packet<'_>) {
        let Some((label, message)) = Label::of(packet) else { return };
        let sender = label.sender();
        let Some(own) = self.watch.own(sender.group) else { return };
        let flow = self.flows.get_mut(&sender).filter(|flow| flow.transfer == label.transfer);
        let answer = match (message, flow) {
            (Message::Flood(filler), Some(flow)) => {
                // The byte that names the message counts as payload too.
                flow.count(label.seq, filler.len() + 1);
                self.packets += 1;
                self.bytes += filler.len() as u64 + 1;
                return;
            }
            (Message::Request(filler), _) => {
                self.requests += 1;
                Message::Reply(filler)
            }
            // An offer may be repeated until its answer is known; counting begins with the first.
            (Message::FloodOffer, flow) => {
                if flow.is_none() {
                    self.flows.insert(sender, Flow::new(label.transfer));
                    self.floods += 1;
                }
                Message::Accept
            }
            (Message::FloodEnd { packets }, Some(_)) => match self.flows.remove(&sender) {
                Some(flow) => Message::Receipt(flow.end(packets)),
                None => return,
            },
            _ => return,
        };
        label.back(own).packet(&answer, &mut self.outbox.bytes);
    }
}

/// Answers that the daemon has not taken yet.
#[derive(Default)]
struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outbox {
    fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Writes as much as the socket takes at once.
    fn flush(&mut self, link: &TcpStream) -> io::Result<()> {
        while let Some(rest) = self.bytes.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match send(link, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).map_err(io::Error::from) {
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.bytes.drain(..self.sent);
                    self.sent = 0;
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
        self.bytes.clear();
        self.sent = 0;
        Ok(())
    }
}
