//! One handshake, a step at a time, over a socket that does not block.
//!
//! ```text
//! kernel:   packet(128) -> offered, ACK follows with the decision
//! accepted: hello(35) -> admitted -> ACK out --no mark--> done
//!                                      +--mark--> record in -> record out -> done
//! called:   connected -> hello out -> ACK(35) --no mark--> done
//!                                        +--mark--> record out -> record in -> done
//! ```
//! With keys the records go inside the messages of [`super::secure`], and the caller's confirmation comes last. Reads
//! ask for exactly the missing bytes, since packets may follow at once.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::Instant;

use super::failure::Failure;
use super::key_agreement::{Heard, KeyAgreement, choose};
use super::{Dial, Plan};
use crate::control::{CallVerdict, decimal};
use crate::daemon::core::{Admitted, ListenerKind};
use crate::wire::{
    Class, Compression, Device, Extension, HEADER_LEN, HELLO_LEN, Header, Hello, Mark, PacketType, Scope,
};

/// The side that this handshake plays, and for which peer.
#[derive(Debug)]
pub(super) enum Side {
    Kernel,
    /// The callee's side of a connection at this listener; the peer, once it is known.
    Caller(ListenerKind, Option<(Admitted, Class)>),
    Callee(Dial, Class),
}

#[derive(Debug)]
enum Phase {
    Connect,
    Packet,
    Hello,
    Ack,
    RecordLen,
    Record,
}

/// A handshake in flight.
#[derive(Debug)]
pub(super) struct Handshake {
    pub side: Side,
    phase: Phase,
    pub key_agreement: KeyAgreement,
    /// The caller's hello, if its record is needed to judge it.
    unjudged: Option<Hello>,
    buf: Vec<u8>,
    need: usize,
    pub extension: Option<Box<Extension>>,
    begun: Instant,
    /// A call's progress in words, for the control command that explains why a peer is not connected.
    pub steps: Vec<String>,
    /// The compression in this side's record. The plan may be another one when the answer comes.
    wanted: Option<Compression>,
}

/// The result of a step.
#[derive(Debug)]
pub(super) enum Step {
    /// More bytes are needed.
    Wait,
    /// The kernel module asks for a link.
    Kernel(Class, Device),
    /// A link is ready.
    Ready,
}

impl Handshake {
    pub fn new(side: Side) -> Self {
        let (phase, need) = match side {
            Side::Kernel => (Phase::Packet, HEADER_LEN),
            Side::Caller(..) => (Phase::Hello, HELLO_LEN),
            Side::Callee(..) => (Phase::Connect, 0),
        };
        Handshake {
            side,
            phase,
            key_agreement: KeyAgreement::new(),
            unjudged: None,
            buf: Vec::new(),
            need,
            extension: None,
            begun: Instant::now(),
            steps: Vec::new(),
            wanted: None,
        }
    }

    /// Returns true if the handshake waits for the socket to become writable, not readable.
    pub fn wants_write(&self) -> bool {
        matches!(self.phase, Phase::Connect)
    }

    /// Returns the number of bytes read so far, and of bytes expected.
    pub fn progress(&self) -> (usize, usize) {
        (self.buf.len(), self.need)
    }

    /// Records the progress of a call.
    fn note(&mut self, what: std::fmt::Arguments<'_>) {
        if let Side::Callee(_, class) = self.side {
            let after = self.begun.elapsed().as_secs_f64() * 1000.0;
            self.steps.push(format!("{class} link: {what} after {} ms", decimal(after, 1)));
        }
    }

    /// Returns the verdict about the other side of a call that failed.
    pub fn verdict(&self, failure: &Failure) -> CallVerdict {
        use io::ErrorKind::{ConnectionRefused, TimedOut};
        match failure {
            Failure::OtherId(..) => CallVerdict::OtherId,
            Failure::Keyless(_) | Failure::OtherKeys(_) | Failure::Unproved(_) => CallVerdict::OtherKey,
            Failure::Malformed(_) | Failure::Refused(_) | Failure::HeldOff(..) => CallVerdict::Stranger,
            Failure::Io(error) => match (&self.phase, error.kind()) {
                (Phase::Connect, ConnectionRefused) => CallVerdict::Refused,
                (Phase::Connect, TimedOut) => CallVerdict::Silent,
                (Phase::Connect, _) => CallVerdict::Unreachable,
                // Part of an answer, and no more of it, is not from a hadmd.
                _ if !self.buf.is_empty() => CallVerdict::Stranger,
                (_, TimedOut) => CallVerdict::NoAnswer,
                _ => CallVerdict::HungUp,
            },
        }
    }

    /// Goes on as far as possible without blocking.
    pub fn step(&mut self, stream: &TcpStream, plan: &Plan) -> Result<Step, Failure> {
        if let (Phase::Connect, Side::Callee(dial, class)) = (&self.phase, &self.side) {
            if let Some(error) = stream.take_error()? {
                return Err(error.into());
            }
            let (scope, to) = (dial.peer.scope(), dial.to);
            let hello = plan.hello(scope, *class, Some(dial.from), plan.mark(dial.peer));
            self.note(format_args!("TCP connection with {to}"));
            self.key_agreement.hello = hello.encode();
            say(stream, &self.key_agreement.hello)?;
            self.note(format_args!("hello sent as id {}", hello.id));
            self.expect(Phase::Ack, HELLO_LEN);
        }
        loop {
            if !self.fill(stream)? {
                return Ok(Step::Wait);
            }
            if let Some(step) = self.understand(stream, plan)? {
                return Ok(step);
            }
        }
    }

    /// Reads until the expected bytes are there. Returns false if they are not.
    fn fill(&mut self, mut stream: &TcpStream) -> io::Result<bool> {
        while self.buf.len() < self.need {
            let missing = self.need.saturating_sub(self.buf.len());
            let mut part = [0; HEADER_LEN];
            let room = missing.min(part.len());
            match stream.read(part.get_mut(..room).unwrap_or_default()) {
                Ok(0) => {
                    let (had, of) = self.progress();
                    let hint = match self.phase {
                        Phase::Ack | Phase::RecordLen => ": its log says why",
                        _ => "",
                    };
                    let text = format!("closed by the other side after {had} of {of} bytes{hint}");
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
                }
                Ok(n) => self.buf.extend_from_slice(part.get(..n).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn expect(&mut self, phase: Phase, need: usize) {
        self.phase = phase;
        self.need = need;
        self.buf.clear();
    }

    /// Handles the expected bytes, once all are read.
    fn understand(&mut self, stream: &TcpStream, plan: &Plan) -> Result<Option<Step>, Failure> {
        let malformed = |error: &dyn std::fmt::Display| Failure::Malformed(error.to_string());
        match self.phase {
            Phase::Connect => {}
            Phase::Packet => {
                let header = self.buf.first_chunk().map(Header::decode);
                let header = header.ok_or_else(|| malformed(&"no packet"))?;
                let class = match header.kind {
                    PacketType::KERN_HANDSHAKE_D => Class::Data,
                    PacketType::KERN_HANDSHAKE_M => Class::Meta,
                    _ => return Err(malformed(&format_args!("{header} instead of a kernel handshake"))),
                };
                if header.len > 0 {
                    return Err(malformed(&format_args!("kernel handshake with a payload ({header})")));
                }
                return Ok(Some(Step::Kernel(class, header.device)));
            }
            Phase::Hello => {
                let hello = self.hello()?;
                let Side::Caller(kind, _) = self.side else { return Ok(None) };
                // An address that is not in the hello is in the record, which follows the ACK.
                if hello.scope == Scope::Site && hello.addr.is_none() && hello.mark != Mark::None {
                    plan.admission.check_claim(&hello, kind).map_err(Failure::Refused)?;
                    self.unjudged = Some(hello);
                } else {
                    self.judge(stream, plan, &hello, None)?;
                }
                // C daemons leave the node type of an ACK zero, on every link.
                let ack = |mark| {
                    let ack = plan.hello(hello.scope, hello.class, None, mark);
                    Hello { ack: true, scope: Scope::Node, ..ack }.encode()
                };
                match (&plan.keys, hello.mark) {
                    (None, Mark::Keyed(_)) => {
                        // The plain ACK tells the caller why.
                        say(stream, &ack(Mark::None))?;
                        return Err(Failure::Keyless("the caller has an authkey, this daemon has none"));
                    }
                    (Some(_), Mark::None | Mark::Extended) => {
                        return Err(Failure::Keyless("the caller has no authkey, this daemon has one"));
                    }
                    (Some(keys), Mark::Keyed(theirs)) => {
                        let seal = choose(keys, theirs)?;
                        let ack = ack(Mark::Keyed(seal));
                        self.key_agreement.hello = self.buf.first_chunk().copied().unwrap_or(ack);
                        self.key_agreement.begin(keys, seal, false, &ack)?;
                        say(stream, &ack)?;
                    }
                    (None, mark) => {
                        say(stream, &ack(mark))?;
                        if mark == Mark::None {
                            return Ok(Some(Step::Ready));
                        }
                    }
                }
                self.expect(Phase::RecordLen, 2);
            }
            Phase::Ack => {
                let hello = self.hello()?;
                self.note(format_args!("hello answered as id {}", hello.id));
                let Side::Callee(dial, class) = &self.side else { return Ok(None) };
                if !hello.ack || hello.class != *class {
                    return Err(malformed(&"the other side answered with something else than the ACK"));
                }
                if hello.id != dial.peer.id() {
                    return Err(Failure::OtherId(dial.to, hello.id));
                }
                let runsite = (dial.peer.scope() == Scope::Site).then_some(dial.from);
                self.wanted = plan.compression(dial.peer, *class);
                let record = Extension {
                    epoch: Some(dial.epoch),
                    addr: runsite,
                    compression: self.wanted,
                    ..plan.extension.clone()
                };
                match (&plan.keys, hello.mark) {
                    (None, Mark::Extended) => say(stream, &record.encode())?,
                    (None, _) => return Ok(Some(Step::Ready)),
                    (Some(keys), Mark::Keyed(seal)) => {
                        let ack = self.buf.first_chunk().unwrap_or(&[0; HELLO_LEN]);
                        self.key_agreement.begin(keys, seal, true, ack)?;
                        say(stream, &self.key_agreement.say(&record)?)?;
                    }
                    (Some(_), _) => {
                        return Err(Failure::Keyless("the other side has no authkey, this daemon has one"));
                    }
                }
                self.expect(Phase::RecordLen, 2);
            }
            Phase::RecordLen => {
                let len = self.buf.first_chunk().copied().unwrap_or_default();
                self.expect(Phase::Record, self.key_agreement.body_len(len)?);
            }
            Phase::Record => {
                let Heard::Record(record) = self.key_agreement.hear(&self.buf)? else {
                    return Ok(Some(Step::Ready));
                };
                if let Some(hello) = self.unjudged.take() {
                    self.judge(stream, plan, &hello, record.addr)?;
                }
                let sealed = self.key_agreement.is_on();
                let mut ready = Some(Step::Ready);
                match &self.side {
                    Side::Caller(_, who) => {
                        if sealed {
                            // Checked before anything is answered: the answer is expensive.
                            if !plan.replays.may_answer(&self.buf) {
                                let why = "the first message has come before, several times: an old call, sent again?";
                                return Err(Failure::Unproved(why.into()));
                            }
                            let peer = who.as_ref().map(|(admitted, _)| admitted.peer);
                            self.key_agreement.check_realm(plan, peer)?;
                            record
                                .epoch
                                .ok_or_else(|| malformed(&"a record without its attempt's number"))?;
                        }
                        self.wanted =
                            who.and_then(|(admitted, class)| plan.compression(admitted.peer, class));
                        let compression = self.wanted;
                        let own = Extension { epoch: record.epoch, compression, ..plan.extension.clone() };
                        say(stream, &self.key_agreement.say(&own)?)?;
                        if sealed {
                            self.key_agreement.agreed()?;
                            self.expect(Phase::RecordLen, 2);
                            ready = None;
                        }
                    }
                    Side::Callee(dial, _) if sealed => {
                        if record.epoch != Some(dial.epoch) {
                            return Err(malformed(&"the answer to another attempt"));
                        }
                        self.key_agreement.agreed()?;
                        say(stream, &self.key_agreement.confirm()?)?;
                    }
                    Side::Callee(..) | Side::Kernel => {}
                }
                let version = record.version.as_deref().unwrap_or("of unknown version");
                let same = match record.digest == plan.extension.digest {
                    true => "the same configuration",
                    false => "another configuration",
                };
                self.note(format_args!("record of hadmd {version} with {same}"));
                self.extension = Some(Box::new(record));
                return Ok(ready);
            }
        }
        Ok(None)
    }

    /// Returns the compression of the link, as both sides want it.
    pub fn compression(&self) -> Option<Compression> {
        self.wanted
            .filter(|_| self.extension.as_ref().is_some_and(|theirs| theirs.compression == self.wanted))
    }

    /// Checks that the caller is allowed.
    fn judge(
        &mut self,
        stream: &TcpStream,
        plan: &Plan,
        hello: &Hello,
        named: Option<IpAddr>,
    ) -> Result<(), Failure> {
        if let Side::Caller(kind, who) = &mut self.side {
            let source = stream.peer_addr()?.ip();
            let admitted = plan.admission.admit(hello, named, source, *kind).map_err(Failure::Refused)?;
            let held = plan
                .held_off
                .get(&admitted.peer)
                .map(|until| until.saturating_duration_since(Instant::now()));
            if let Some(left) = held.filter(|left| !left.is_zero()) {
                return Err(Failure::HeldOff(admitted.peer, left));
            }
            *who = Some((admitted, hello.class));
        }
        Ok(())
    }

    fn hello(&self) -> Result<Hello, Failure> {
        let bytes = self.buf.first_chunk().ok_or_else(|| Failure::Malformed("no hello".into()))?;
        Hello::decode(bytes).map_err(|error| Failure::Malformed(error.to_string()))
    }
}

/// Writes a few bytes on a connection that has sent next to nothing: they fit into its socket's buffer.
fn say(mut stream: &TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)
}
