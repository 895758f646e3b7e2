//! How connections come to be: the reactor thread accepts, calls, and carries every handshake to its end.
//!
//! One `polling` poller serves the listeners, the calls and the handshakes in flight, each with a deadline.
//! An established link is handed over whole, with not a byte read too far, and never touched again. The
//! reactor decides nothing but what a pure check decides ([`crate::core::Admission`]).

mod handshake;
mod listener;
mod reactor;
mod sealing;
#[cfg(feature = "authkey")]
mod secure;
#[cfg(not(feature = "authkey"))]
#[path = "unsealed.rs"]
mod secure;
mod socket;

pub use reactor::Reactor;
pub(crate) use socket::dial;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel::Sender;

use crate::core::{Admission, AttemptId, PeerKey};
use crate::keys::Keys;
use crate::link::Connection;
use crate::queue::Counter;
use crate::wire::{Class, Compression, Extension, Hello, KeyId, Mark, Scope, Seal};

/// How long a caller may take from its connection to the end of its hello.
pub const HELLO_LIMIT: Duration = Duration::from_secs(3);
/// How long a call may take, from the first packet to the end of the other side's answer.
pub const DIAL_LIMIT: Duration = Duration::from_secs(5);
/// Handshakes in flight from outside. When another comes, one goes: strangers before those that come from the
/// address of a peer, and of the address that has the most of them the oldest.
pub const MAX_PENDING: usize = 128;
/// Handed-over connections that nobody has looked at yet; more are closed at once.
pub const MAX_OFFERED: usize = 256;

/// Everything the reactor needs to know.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the kernel module connects.
    pub server: SocketAddr,
    /// Where nodes with larger ids connect.
    pub node: SocketAddr,
    /// Where other sites connect: one wildcard address for each port.
    pub sites: Vec<SocketAddr>,
    /// Who may.
    pub admission: Admission,
    /// What is told to speakers of the hello extension.
    pub extension: Extension,
    /// With which links are encrypted, and without which nobody is let in.
    pub keys: Option<Keys>,
}

/// How a link is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encryption {
    /// The cipher, as people call it.
    pub cipher: &'static str,
    /// The cluster's key with which it began.
    pub key: KeyId,
}

/// What the reactor is asked for.
#[derive(Debug)]
pub enum Order {
    /// Call a peer: both links at once.
    Dial(Dial),
    /// Give an attempt up and report nothing of it.
    Cancel(AttemptId),
    /// Who may connect has changed, or what is told to them, or with which keys.
    Admit(Admission, Extension, Option<Keys>),
    /// Where other sites connect has changed: one wildcard address for each port. All of it is done, or nothing
    /// and the sentence says why.
    Sites(Vec<SocketAddr>, Sender<Result<(), String>>),
    /// Nothing: it shows that the reactor still runs.
    Beat,
    /// Accept no more, and drop every handshake in flight.
    Stop,
}

/// A call.
#[derive(Clone, Debug)]
pub struct Dial {
    /// Whom.
    pub peer: PeerKey,
    /// Which attempt; also the epoch told to the other side.
    pub attempt: AttemptId,
    /// Drawn for each attempt, the same on both its links.
    pub epoch: u64,
    /// Where.
    pub to: SocketAddr,
    /// The address to call from, where this machine has it.
    pub from: IpAddr,
}

/// What the reactor hands over.
#[derive(Debug)]
pub enum Offer {
    /// The kernel module's first packet was read; it waits for the ACK.
    Kernel {
        /// Which link.
        class: Class,
        /// To be repeated in the ACK.
        dev_id: u8,
        /// The connection, blocking.
        stream: TcpStream,
        /// From where.
        source: SocketAddr,
    },
    /// A link to a peer is through its hello.
    Link {
        /// The peer.
        peer: PeerKey,
        /// Which link.
        class: Class,
        /// The connection, and what its bytes wear.
        link: Connection,
        /// The attempt, if this side called.
        attempt: Option<AttemptId>,
        /// How it is encrypted, if it is.
        encryption: Option<Encryption>,
        /// How the call went, step by step, if this side called.
        steps: Vec<String>,
        /// What the peer told, if it speaks the extension.
        extension: Option<Extension>,
        /// What both sides agreed on.
        compression: Option<Compression>,
        /// Where the other side is.
        source: SocketAddr,
        /// The configured address, if the caller came from another one.
        expected: Option<IpAddr>,
    },
    /// A call came to nothing.
    DialFailed {
        /// The peer.
        peer: PeerKey,
        /// The attempt.
        attempt: AttemptId,
        /// The link that could not be had.
        class: Class,
        /// Why, in words.
        why: String,
        /// What that says of the other side, in one word.
        verdict: &'static str,
        /// How far the call came, step by step.
        steps: Vec<String>,
        /// The system's error number, where that is the reason.
        errno: Option<i32>,
    },
    /// A peer that this side has to call has called.
    Knock(PeerKey),
    /// An address appeared at one of this machine's interfaces, or went.
    Addresses,
}

/// Calls from outside that were turned away, by cause.
#[derive(Debug, Default)]
pub struct Refusals {
    /// Said nothing, or not all, in time; or went away before.
    pub silent: Counter,
    /// Said something that is no hello.
    pub malformed: Counter,
    /// Claimed an id that is not configured, or this node's own.
    pub unknown: Counter,
    /// Came from an address that is not the configured one.
    pub address: Counter,
    /// Had the smaller id, spoke of a site at the port for nodes, or wanted a resource whose log this node does
    /// not own.
    pub direction: Counter,
    /// Were too many at once.
    pub crowd: Counter,
    /// Had no key where this daemon has one, or the other way round.
    pub keyless: Counter,
    /// Had only keys that this daemon has not.
    pub other_keys: Counter,
    /// Did not prove that they hold the key.
    pub unproved: Counter,
    /// What was turned away last of each peer, or from its address: when, and why.
    last: Mutex<HashMap<PeerKey, (Instant, String)>>,
}

impl Refusals {
    fn note(&self, peer: PeerKey, why: String) {
        self.lock().insert(peer, (Instant::now(), why));
    }

    /// When a call of this peer, or from its address, was turned away last, and why.
    pub fn last(&self, peer: PeerKey) -> Option<(Instant, String)> {
        self.lock().get(&peer).cloned()
    }

    /// Forgets it: the peer has come in.
    pub fn forget(&self, peer: PeerKey) {
        self.lock().remove(&peer);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PeerKey, (Instant, String)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Each counter with its name in words.
    pub fn list(&self) -> [(&'static str, u64); 9] {
        [
            ("silent", self.silent.get()),
            ("malformed", self.malformed.get()),
            ("unknown id", self.unknown.get()),
            ("wrong address", self.address.get()),
            ("wrong direction", self.direction.get()),
            ("too many at once", self.crowd.get()),
            ("no key", self.keyless.get()),
            ("other key", self.other_keys.get()),
            ("unproved key", self.unproved.get()),
        ]
    }
}

/// Takes what the reactor hands over; must not block. The ticket counts against [`MAX_OFFERED`] until it is
/// dropped.
pub type Deliver = Box<dyn Fn(Offer, Arc<()>) + Send>;

impl Plan {
    /// How this side wants a link compressed. Meta packets are few and urgent.
    fn compression(&self, peer: PeerKey, class: Class) -> Option<Compression> {
        let known = self.admission.known.iter().find(|known| known.key == peer);
        known.filter(|_| class == Class::Data).and_then(|known| known.compress)
    }

    /// This side's hello. `addr` is the local runsite's on site links; nobody reads it on node links.
    fn hello(&self, scope: Scope, class: Class, addr: Option<IpAddr>, mark: Mark) -> Hello {
        let id = match scope {
            Scope::Node => self.admission.node.get(),
            Scope::Site => self.admission.site.get(),
        };
        Hello { id, class, ack: false, scope, addr, mark }
    }

    /// What a call to this peer asks for.
    fn mark(&self, peer: PeerKey) -> Mark {
        let Some(keys) = &self.keys else { return Mark::Extended };
        let mut ids = keys.ids();
        Mark::Sealed(Seal {
            keys: std::array::from_fn(|_| ids.next().unwrap_or_default()),
            cipher: secure::Cipher::best().number(),
            realm: self.realm(peer),
        })
    }

    /// Where the ids in a hello to or from this peer belong.
    fn realm(&self, peer: PeerKey) -> u8 {
        match peer {
            PeerKey::Node(_) => self.admission.site.get(),
            PeerKey::Site(resource, _) => resource.get(),
        }
    }
}
