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
//! ask for exactly what is missing, since packets may follow at once.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Instant;

use super::sealing::{Heard, Sealing, choose};
use super::{Dial, Plan};
use crate::core::{Admitted, Door, Refused};
use crate::wire::{
    Class, Compression, Extension, HEADER_LEN, HELLO_LEN, Header, Hello, Mark, PacketType, Scope,
};

/// Whose handshake it is.
#[derive(Debug)]
pub(super) enum Party {
    Kernel,
    /// Someone who came in at this door; who, once that is clear.
    Caller(Door, Option<(Admitted, Class)>),
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
    pub party: Party,
    phase: Phase,
    pub sealing: Sealing,
    /// The caller's hello, where its record is needed to judge it.
    unjudged: Option<Hello>,
    buf: Vec<u8>,
    need: usize,
    pub extension: Option<Extension>,
    begun: Instant,
    /// A call's progress in words, for those who ask why a peer is not there.
    pub steps: Vec<String>,
    /// What this side said in its record. The plan may be another one when the answer comes.
    wanted: Option<Compression>,
}

/// How far a step came.
#[derive(Debug)]
pub(super) enum Step {
    /// More bytes are needed.
    Wait,
    /// The kernel module asks for a link.
    Kernel(Class, u8),
    /// A link is ready.
    Ready,
}

/// Why a handshake ends early.
#[derive(Debug)]
pub(super) enum Failure {
    /// The connection failed or was closed.
    Io(io::Error),
    /// What was said is not what had to be said.
    Malformed(String),
    /// Another id than the one that was called answers there.
    OtherId(SocketAddr, u8),
    /// The caller is not let in.
    Refused(Refused),
    /// One side has a key and the other none.
    Keyless(&'static str),
    /// No key is on both sides.
    OtherKeys(String),
    /// The other side has not proved that it holds the key.
    Unproved(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Io(error) => write!(f, "{error}"),
            Failure::Malformed(what) | Failure::OtherKeys(what) | Failure::Unproved(what) => {
                f.write_str(what)
            }
            Failure::Keyless(what) => f.write_str(what),
            Failure::OtherId(at, id) => write!(f, "{at} answers as id {id}"),
            Failure::Refused(refused) => write!(f, "{refused}"),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Io(error)
    }
}

impl Handshake {
    pub fn new(party: Party) -> Self {
        let (phase, need) = match party {
            Party::Kernel => (Phase::Packet, HEADER_LEN),
            Party::Caller(..) => (Phase::Hello, HELLO_LEN),
            Party::Callee(..) => (Phase::Connect, 0),
        };
        Handshake {
            party,
            phase,
            sealing: Sealing::new(),
            unjudged: None,
            buf: Vec::new(),
            need,
            extension: None,
            begun: Instant::now(),
            steps: Vec::new(),
            wanted: None,
        }
    }

    /// Whether the socket is waited for to become writable, not readable.
    pub fn wants_write(&self) -> bool {
        matches!(self.phase, Phase::Connect)
    }

    /// Bytes read of what is expected now.
    pub fn progress(&self) -> (usize, usize) {
        (self.buf.len(), self.need)
    }

    /// Remembers how far a call has come.
    fn note(&mut self, what: std::fmt::Arguments<'_>) {
        if let Party::Callee(_, class) = self.party {
            let after = self.begun.elapsed().as_secs_f64() * 1000.0;
            self.steps.push(format!("{class} link: {what} after {after:.1} ms"));
        }
    }

    /// What a call that failed says of the other side, in one word that `hadmctl doctor` explains.
    pub fn verdict(&self, failure: &Failure) -> &'static str {
        use io::ErrorKind::{ConnectionRefused, TimedOut};
        match failure {
            Failure::OtherId(..) => "other-id",
            Failure::Keyless(_) | Failure::OtherKeys(_) | Failure::Unproved(_) => "other-key",
            Failure::Malformed(_) | Failure::Refused(_) => "stranger",
            Failure::Io(error) => match (&self.phase, error.kind()) {
                (Phase::Connect, ConnectionRefused) => "refused",
                (Phase::Connect, TimedOut) => "silent",
                (Phase::Connect, _) => "unreachable",
                // Part of an answer, and no more of it, is no hadmd's.
                _ if !self.buf.is_empty() => "stranger",
                (_, TimedOut) => "no-answer",
                _ => "hung-up",
            },
        }
    }

    /// Goes as far as it can without blocking.
    pub fn step(&mut self, stream: &TcpStream, plan: &Plan) -> Result<Step, Failure> {
        if let (Phase::Connect, Party::Callee(dial, class)) = (&self.phase, &self.party) {
            if let Some(error) = stream.take_error()? {
                return Err(error.into());
            }
            let (scope, to) = (dial.peer.scope(), dial.to);
            let hello = plan.hello(scope, *class, Some(dial.from), plan.mark(dial.peer));
            self.note(format_args!("TCP connection with {to}"));
            self.sealing.hello = hello.encode();
            say(stream, &self.sealing.hello)?;
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

    /// Reads until what is expected is there; `false` if it is not.
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

    /// What is expected has been read whole.
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
                return Ok(Some(Step::Kernel(class, header.dev_id)));
            }
            Phase::Hello => {
                let hello = self.hello()?;
                let Party::Caller(door, _) = self.party else { return Ok(None) };
                // Where the address is not in the hello it is in the record, and that follows the ACK.
                if hello.scope == Scope::Site && hello.addr.is_none() && hello.mark != Mark::None {
                    plan.admission.check_claim(&hello, door).map_err(Failure::Refused)?;
                    self.unjudged = Some(hello);
                } else {
                    self.judge(stream, plan, &hello, None)?;
                }
                // C daemons leave the node type of an ACK zero, whatever the link.
                let ack = |mark| {
                    let ack = plan.hello(hello.scope, hello.class, None, mark);
                    Hello { ack: true, scope: Scope::Node, ..ack }.encode()
                };
                match (&plan.keys, hello.mark) {
                    (None, Mark::Sealed(_)) => {
                        // The plain ACK tells the caller why.
                        say(stream, &ack(Mark::None))?;
                        return Err(Failure::Keyless("the caller has an authkey, this daemon has none"));
                    }
                    (Some(_), Mark::None | Mark::Extended) => {
                        return Err(Failure::Keyless("the caller has no authkey, this daemon has one"));
                    }
                    (Some(keys), Mark::Sealed(theirs)) => {
                        let seal = choose(keys, theirs)?;
                        let ack = ack(Mark::Sealed(seal));
                        self.sealing.hello = self.buf.first_chunk().copied().unwrap_or(ack);
                        self.sealing.begin(keys, seal, false, &ack)?;
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
                let Party::Callee(dial, class) = &self.party else { return Ok(None) };
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
                    (Some(keys), Mark::Sealed(seal)) => {
                        let ack = self.buf.first_chunk().unwrap_or(&[0; HELLO_LEN]);
                        self.sealing.begin(keys, seal, true, ack)?;
                        say(stream, &self.sealing.say(&record)?)?;
                    }
                    (Some(_), _) => {
                        return Err(Failure::Keyless("the other side has no authkey, this daemon has one"));
                    }
                }
                self.expect(Phase::RecordLen, 2);
            }
            Phase::RecordLen => {
                let len = self.buf.first_chunk().copied().unwrap_or_default();
                self.expect(Phase::Record, self.sealing.body_len(len)?);
            }
            Phase::Record => {
                let Heard::Record(record) = self.sealing.hear(&self.buf)? else {
                    return Ok(Some(Step::Ready));
                };
                if let Some(hello) = self.unjudged.take() {
                    self.judge(stream, plan, &hello, record.addr)?;
                }
                let sealed = self.sealing.is_on();
                let mut ready = Some(Step::Ready);
                match &self.party {
                    Party::Caller(_, who) => {
                        if sealed {
                            let peer = who.as_ref().map(|(admitted, _)| admitted.peer);
                            self.sealing.check_realm(plan, peer)?;
                            record
                                .epoch
                                .ok_or_else(|| malformed(&"a record without its attempt's number"))?;
                        }
                        self.wanted =
                            who.and_then(|(admitted, class)| plan.compression(admitted.peer, class));
                        let compression = self.wanted;
                        let own = Extension { epoch: record.epoch, compression, ..plan.extension.clone() };
                        say(stream, &self.sealing.say(&own)?)?;
                        if sealed {
                            self.sealing.dress()?;
                            self.expect(Phase::RecordLen, 2);
                            ready = None;
                        }
                    }
                    Party::Callee(dial, _) if sealed => {
                        if record.epoch != Some(dial.epoch) {
                            return Err(malformed(&"the answer to another attempt"));
                        }
                        self.sealing.dress()?;
                        say(stream, &self.sealing.confirm()?)?;
                    }
                    Party::Callee(..) | Party::Kernel => {}
                }
                let version = record.version.as_deref().unwrap_or("of unknown version");
                let same = match record.digest == plan.extension.digest {
                    true => "the same configuration",
                    false => "another configuration",
                };
                self.note(format_args!("record of hadmd {version} with {same}"));
                self.extension = Some(record);
                return Ok(ready);
            }
        }
        Ok(None)
    }

    /// How what follows is compressed: as both sides want it.
    pub fn compression(&self) -> Option<Compression> {
        self.wanted
            .filter(|_| self.extension.as_ref().is_some_and(|theirs| theirs.compression == self.wanted))
    }

    /// Whether the caller is let in.
    fn judge(
        &mut self,
        stream: &TcpStream,
        plan: &Plan,
        hello: &Hello,
        named: Option<IpAddr>,
    ) -> Result<(), Failure> {
        if let Party::Caller(door, who) = &mut self.party {
            let source = stream.peer_addr()?.ip();
            let admitted = plan.admission.admit(hello, named, source, *door).map_err(Failure::Refused)?;
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
