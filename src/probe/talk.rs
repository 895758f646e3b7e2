//! A conversation with several nodes or sites: offer, wait for all to accept, write, wait for a receipt of
//! each.
//!
//! The calling thread only waits for events (connection states, answers, the end of writing), so it goes on
//! while the daemon takes nothing and the writer is blocked. It must never write while the writer may: two
//! writers would mix their packets. A peer that disconnects ends its own part only. Used by `send` and `throughput`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::wire::Mask;

use super::args::Target;
use super::frame::{Label, Message, Receipt};
use super::link::Link;
use super::watch::Watch;
use super::{Failure, deadline, say, spawn, without};
use crate::attach::ConnState;
use crate::attach::PacketReader;

/// Most events in the queue; the threads that report more of them wait.
const EVENTS: usize = 256;

enum Event {
    State(ConnState),
    Accept(u8),
    Receipt(u8, Receipt),
    Written,
    Ended(Failure),
}

/// The peers, the time limit and the offer of one conversation.
pub struct Plan {
    /// The nodes or sites of the conversation.
    pub to: Target,
    /// Longest time for all of them to be connected and to accept; `None` = for ever.
    pub timeout: Option<Duration>,
    /// The first message.
    pub offer: Message<'static>,
    /// The command that has to run at the peers.
    pub partner: &'static str,
}

/// A conversation that all peers have accepted.
pub struct Talk {
    events: Receiver<Event>,
    report: Sender<Event>,
    out: Outgoing,
    up: Mask,
}

/// The writer's side of a conversation: the link, and the receivers of its packets at this moment.
#[derive(Clone)]
pub struct Outgoing {
    link: Link,
    label: Label,
    live: Arc<AtomicU32>,
}

impl Outgoing {
    /// Returns the label of packet `seq`; `None` if no receiver is left.
    pub fn label(&self, seq: u64) -> Option<Label> {
        let to = Mask(self.live.load(Ordering::Relaxed));
        (!to.is_empty()).then_some(Label { to, seq, ..self.label })
    }

    /// Writes whole packets; blocks while the daemon takes nothing.
    pub fn send(&self, packets: &[u8]) -> Result<(), Failure> {
        self.link.send(packets)
    }

    /// Writes one message to some of the peers.
    pub fn message(&self, to: Mask, seq: u64, message: &Message<'_>) -> Result<(), Failure> {
        let mut packet = Vec::new();
        Label { to, seq, ..self.label }.packet(message, &mut packet);
        self.send(&packet)
    }
}

/// The result of a conversation.
pub struct Outcome<W> {
    /// The writer's result; `None` when every peer's part ended before the writer was done.
    pub written: Option<W>,
    /// Each peer's receipt, or the reason why there is none.
    pub receipts: BTreeMap<u8, Result<Receipt, String>>,
}

impl Talk {
    /// Attaches, waits until every peer is connected, and offers until every peer has accepted.
    pub fn open(server: SocketAddr, plan: &Plan) -> Result<Talk, Failure> {
        let link = Link::attach(server)?;
        let transfer = fastrand::u64(..);
        let (report, events) = bounded(EVENTS);
        let Target { scope, dev, ids } = plan.to;
        let group = plan.to.group();
        let states = report.clone();
        let (_, own) = Watch::start(&link, group, move |state| {
            let _ = states.send(Event::State(state));
        })?;
        if ids.contains(own) {
            let own = group.names(Mask::of(own));
            return Err(link.end(Failure::Failed(format!("{own} is this {} itself", group.word()))));
        }
        let label = Label { scope, from: own, to: ids, dev, transfer, seq: 0 };
        start_reader(&link, label, &report)?;
        let live = Arc::new(AtomicU32::new(ids.0));
        let mut talk = Talk { events, report, out: Outgoing { link, label, live }, up: Mask(0) };
        talk.invite(plan)?;
        Ok(talk)
    }

    /// Returns the next event, or `None` at the deadline (`None` = never).
    fn next(&self, deadline: Option<Instant>) -> Result<Option<Event>, Failure> {
        let event = match deadline {
            None => self.events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(deadline) => self.events.recv_deadline(deadline),
        };
        match event {
            Ok(Event::Ended(why)) => Err(why),
            Ok(event) => Ok(Some(event)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            // Impossible: `self` holds a sender.
            Err(RecvTimeoutError::Disconnected) => Err(Failure::Interrupted),
        }
    }

    fn invite(&mut self, plan: &Plan) -> Result<(), Failure> {
        let deadline = deadline(plan.timeout);
        let (to, group) = (plan.to.ids, plan.to.group());
        let mut accepted = Mask(0);
        let mut told = false;
        while accepted != to {
            match self.next(deadline)? {
                Some(Event::State(state)) => {
                    self.up = state.up;
                    // A peer that disconnected has lost the offer.
                    accepted = accepted & state.up;
                    let missing = without(to, state.up);
                    let asked = without(to, accepted);
                    if missing.is_empty() && !asked.is_empty() {
                        // Again with every repeated state: an offer is lost while no program is attached at the peer.
                        self.out.message(asked, 0, &plan.offer)?;
                    } else if !missing.is_empty() && !told {
                        told = true;
                        let missing = group.names(missing);
                        say(format_args!("waiting for {missing} (connected {group}: {})", state.up));
                    }
                }
                Some(Event::Accept(from)) => accepted = accepted | (Mask::of(from) & to),
                Some(Event::Receipt(from, receipt)) => {
                    let from = group.names(Mask::of(from));
                    return Err(self.fail(format!("{from} refused: {}", receipt.fault)));
                }
                Some(Event::Written | Event::Ended(_)) => {}
                None => return Err(self.fail(self.silence(plan, accepted))),
            }
        }
        Ok(())
    }

    /// Returns a sentence with the reason why waiting was given up.
    fn silence(&self, plan: &Plan, accepted: Mask) -> String {
        let limit = plan.timeout.unwrap_or_default().as_secs_f64();
        let (to, group) = (plan.to.ids, plan.to.group());
        let missing = without(to, self.up);
        if missing.is_empty() {
            let silent = group.names(without(to, accepted));
            format!("no answer from {silent} for {limit} s: does `{}` run there?", plan.partner)
        } else {
            let missing = group.names(missing);
            format!("not connected after {limit} s: {missing} (connected {group}: {})", self.up)
        }
    }

    fn fail(&self, why: String) -> Failure {
        self.out.link.end(Failure::Failed(why))
    }

    /// Runs `write`, and returns when every peer has sent its receipt or is gone. `note` is called at once when
    /// a peer's part fails.
    pub fn run<W: Send + 'static>(
        self,
        write: impl FnOnce(&Outgoing) -> Result<W, Failure> + Send + 'static,
        note: impl Fn(&str),
    ) -> Result<Outcome<W>, Failure> {
        let (out, report) = (self.out.clone(), self.report.clone());
        let name = |id| self.out.label.group().names(Mask::of(id));
        let mut writer = Some(spawn("writer", move || {
            let written = write(&out);
            let _ = report.send(Event::Written);
            written
        })?);
        let mut written = None;
        let mut receipts = BTreeMap::new();
        let mut waiting = Mask(self.out.live.load(Ordering::Relaxed));
        let mut thanked = Mask(0);
        // A receipt may arrive before the event that writing is done.
        while !waiting.is_empty() || (written.is_none() && receipts.values().any(Result::is_ok)) {
            match self.next(None)? {
                Some(Event::Receipt(from, receipt)) if waiting.contains(from) => {
                    waiting = without(waiting, Mask::of(from));
                    if !receipt.fault.is_empty() {
                        note(&format!("{}: {}", name(from), receipt.fault));
                    }
                    receipts.insert(from, Ok(receipt));
                }
                Some(Event::State(state)) => {
                    for id in without(waiting, state.up).ids() {
                        waiting = without(waiting, Mask::of(id));
                        let why = format!("the connection to {} was lost", name(id));
                        note(&why);
                        receipts.insert(id, Err(why));
                    }
                }
                Some(Event::Written) => {
                    if let Some(writer) = writer.take() {
                        let result = writer.join().unwrap_or(Err(Failure::Interrupted));
                        written = Some(result.map_err(|why| self.out.link.end(why))?);
                    }
                }
                _ => {}
            }
            self.out.live.store(waiting.0, Ordering::Relaxed);
            // Only now is this thread alone on the link. A peer detaches after it knows that its receipt has come.
            let came: Mask = receipts.iter().filter(|r| r.1.is_ok()).fold(Mask(0), |m, r| m | Mask::of(*r.0));
            let thanks = without(came, thanked);
            if written.is_some() && !thanks.is_empty() {
                self.out.message(thanks, 0, &Message::Done)?;
                thanked = thanked | thanks;
            }
        }
        Ok(Outcome { written, receipts })
    }
}

/// Starts the thread of the data link, which is drained at all times.
fn start_reader(link: &Link, ours: Label, report: &Sender<Event>) -> Result<(), Failure> {
    let (data, answers) = (link.clone(), report.clone());
    spawn("data", move || {
        let mut packets = PacketReader::new(data.data());
        loop {
            let event = match packets.next_packet().map(|packet| Label::of(&packet)) {
                Ok(Some((label, message)))
                    if (label.group(), label.transfer) == (ours.group(), ours.transfer) =>
                {
                    match message {
                        Message::Accept => Event::Accept(label.from),
                        Message::Receipt(receipt) => Event::Receipt(label.from, receipt),
                        _ => continue,
                    }
                }
                Ok(_) => continue,
                Err(e) => Event::Ended(data.lost(&e)),
            };
            let ended = matches!(event, Event::Ended(_));
            if answers.send(event).is_err() || ended {
                return;
            }
        }
    })?;
    Ok(())
}
