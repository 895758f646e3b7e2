//! The making of connections: the reactor thread accepts, calls, and carries every handshake to its end.
//!
//! One `polling` poller serves the listeners, the calls and the handshakes in flight, each with a deadline. An
//! established link is handed over whole, with not a byte read too far, and never touched again. The reactor leaves
//! every decision to pure checks ([`crate::daemon::core::Admission`]).

mod failure;
mod handshake;
mod key_agreement;
mod listener;
#[cfg(not(feature = "authkey"))]
mod no_noise;
#[cfg(feature = "authkey")]
mod noise;
mod reactor;
mod replays;
#[cfg(not(feature = "authkey"))]
use no_noise as noise;
mod socket;

pub(crate) use listener::{NOWHERE, listen};
pub use reactor::Reactor;
pub(crate) use socket::dial;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::config::keys::Keys;
use crate::control::CallVerdict;
use crate::daemon::core::{Admission, AttemptId};
use crate::daemon::link::Connection;
use crate::sys::Counter;
use crate::wire::{Class, Compression, Device, Extension, Hello, KeyId, KeyOffer, Mark, PeerKey, Scope};

/// Longest time from a caller's connection to the end of its hello.
pub const HELLO_LIMIT: Duration = Duration::from_secs(3);
/// Longest time of a call, from the first packet to the end of the other side's answer.
pub const DIAL_LIMIT: Duration = Duration::from_secs(5);
/// Most handshakes in flight from outside. When another one comes, one is dropped: unknown clients before those from
/// the address of a peer, and of the address that has the most of them the oldest.
pub const MAX_PENDING: usize = 128;
/// Most handed-over connections that nobody has looked at yet; more are closed at once.
pub const MAX_OFFERED: usize = 256;

/// The reactor's configuration and state of the daemon.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The address where the kernel module connects.
    pub server: SocketAddr,
    /// The address where nodes with larger ids connect.
    pub node: SocketAddr,
    /// The peers that may connect.
    pub admission: Admission,
    /// The extension sent to peers that support it.
    pub extension: Extension,
    /// Peers whose calls are refused for a time, and the end of that time.
    pub held_off: HashMap<PeerKey, Instant>,
    /// The keys that encrypt links; with them, a caller without a key is refused.
    pub keys: Option<Keys>,
    /// The calls that have proved the key lately.
    pub replays: Calls,
}

/// Calls that were seen. Only the reactor's thread locks the set.
#[derive(Clone, Debug, Default)]
pub struct Calls(Arc<Mutex<replays::Replays>>);

impl Calls {
    /// Remembers a call by its first message. Returns false if that came too often.
    fn may_answer(&self, message: &[u8]) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).may_answer(message)
    }
}

/// The encryption of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encryption {
    /// The cipher's usual name.
    pub cipher: &'static str,
    /// The cluster's key with which the link began.
    pub key: KeyId,
}

/// A command to the reactor.
#[derive(Debug)]
pub enum ReactorCommand {
    /// Call a peer: both links at once.
    Dial(Dial),
    /// Give an attempt up and report nothing of it.
    Cancel(AttemptId),
    /// Refuse the calls of a peer until this time.
    HoldOff(PeerKey, Instant),
    /// Replace the peers that may connect, the extension sent to them, and the keys.
    Admit(Admission, Extension, Option<Keys>),
    /// Listen for other sites at these floating addresses, and nowhere else.
    Sites(BTreeSet<SocketAddr>),
    /// Do nothing: the command shows that the reactor still runs.
    Beat,
    /// Accept no more, and drop every handshake in flight.
    Stop,
}

/// A call.
#[derive(Clone, Debug)]
pub struct Dial {
    /// The peer to call.
    pub peer: PeerKey,
    /// The attempt's number; also the epoch sent to the other side.
    pub attempt: AttemptId,
    /// A random number for each attempt, the same on both its links.
    pub epoch: u64,
    /// The address to call.
    pub to: SocketAddr,
    /// The address to call from, where this machine has it.
    pub from: IpAddr,
}

/// An event that the reactor reports.
#[derive(Debug)]
pub enum ReactorEvent {
    /// The kernel module's first packet was read; it waits for the ACK.
    Kernel {
        /// The class of the link.
        class: Class,
        /// The user whose socket is at the other end, if that is on this machine.
        uid: Option<u32>,
        /// The device, repeated in the ACK.
        device: Device,
        /// The connection, blocking.
        stream: TcpStream,
        /// The address of the other end.
        source: SocketAddr,
    },
    /// A link to a peer has completed its hello.
    Link {
        /// The peer.
        peer: PeerKey,
        /// The class of the link.
        class: Class,
        /// The connection with its codec.
        link: Connection,
        /// The attempt, if this side called.
        attempt: Option<AttemptId>,
        /// The link's encryption, if there is one.
        encryption: Option<Encryption>,
        /// The steps of the call, if this side called.
        steps: Vec<String>,
        /// The peer's extension, if the peer supports it.
        extension: Option<Box<Extension>>,
        /// The compression that both sides agreed on.
        compression: Option<Compression>,
        /// The address of the other side.
        source: SocketAddr,
        /// The configured address, if the caller came from another one.
        expected: Option<IpAddr>,
    },
    /// A call failed.
    DialFailed {
        /// The peer.
        peer: PeerKey,
        /// The attempt.
        attempt: AttemptId,
        /// The class of the link that failed.
        class: Class,
        /// The reason, in words.
        why: String,
        /// The verdict about the other side.
        verdict: CallVerdict,
        /// The steps of the call.
        steps: Vec<String>,
        /// The system's error number, where that is the reason.
        errno: Option<i32>,
    },
    /// A peer that this side has to call has called.
    PeerAlive(PeerKey),
    /// An address appeared at one of this machine's interfaces, or went.
    Addresses,
    /// An interface, an address or a route appeared.
    Paths,
    /// The places where listening fails for now and is tried again, each with a sentence that says why; reported on
    /// each change.
    Unopened(BTreeMap<SocketAddr, String>),
}

/// Refused connections, by cause.
#[derive(Debug, Default)]
pub struct Refusals {
    /// Sent nothing, or not all, in time; or went away before.
    pub silent: Counter,
    /// Sent bytes that are no hello.
    pub malformed: Counter,
    /// Claimed an id that is not configured, or this node's own.
    pub unknown: Counter,
    /// Came from an address that is not the configured one.
    pub address: Counter,
    /// Had the smaller id, was for a site at the port for nodes, or wanted a resource whose log this node does not
    /// own.
    pub direction: Counter,
    /// Came from a peer that the operator keeps disconnected.
    pub held: Counter,
    /// Came while the peer is held off because it repeatedly did not keep up.
    pub held_off: Counter,
    /// Were too many at once.
    pub too_many: Counter,
    /// Had no key where this daemon has one, or the other way round.
    pub keyless: Counter,
    /// Had only keys that this daemon has not.
    pub other_keys: Counter,
    /// Did not prove the key.
    pub unproved: Counter,
    /// The last refusal of each peer, or of its address: the time and the reason.
    last: Mutex<HashMap<PeerKey, (Instant, String)>>,
}

impl Refusals {
    /// Records a refused call.
    pub fn note(&self, peer: PeerKey, why: String) {
        self.lock().insert(peer, (Instant::now(), why));
    }

    /// Returns the time and reason of the last refused call of this peer, or from its address.
    pub fn last(&self, peer: PeerKey) -> Option<(Instant, String)> {
        self.lock().get(&peer).cloned()
    }

    /// Forgets the last refusal: the peer has connected.
    pub fn forget(&self, peer: PeerKey) {
        self.lock().remove(&peer);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PeerKey, (Instant, String)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns each counter with its name in words.
    pub fn list(&self) -> [(&'static str, u64); 11] {
        [
            ("silent", self.silent.get()),
            ("malformed", self.malformed.get()),
            ("unknown id", self.unknown.get()),
            ("wrong address", self.address.get()),
            ("wrong direction", self.direction.get()),
            ("disconnected by the operator", self.held.get()),
            ("held off", self.held_off.get()),
            ("too many at once", self.too_many.get()),
            ("no key", self.keyless.get()),
            ("other key", self.other_keys.get()),
            ("unproved key", self.unproved.get()),
        ]
    }
}

/// The callback that takes the reactor's events; must not block. The ticket counts against [`MAX_OFFERED`] until it
/// is dropped.
pub type Deliver = Box<dyn Fn(ReactorEvent, Arc<()>) + Send>;

impl Plan {
    /// Returns the compression that this side wants for a link. Meta packets are few and urgent.
    fn compression(&self, peer: PeerKey, class: Class) -> Option<Compression> {
        let allowed = self.admission.allowed.iter().find(|allowed| allowed.key == peer);
        allowed.filter(|_| class == Class::Data).and_then(|allowed| allowed.compress)
    }

    /// Returns this side's hello. `addr` is the local runsite's on site links; no peer reads it on node links.
    fn hello(&self, scope: Scope, class: Class, addr: Option<IpAddr>, mark: Mark) -> Hello {
        let id = match scope {
            Scope::Node => self.admission.node.get(),
            Scope::Site => self.admission.site.get(),
        };
        Hello { id, class, ack: false, scope, addr, mark }
    }

    /// Returns the mark of a call to this peer.
    fn mark(&self, peer: PeerKey) -> Mark {
        let Some(keys) = &self.keys else { return Mark::Extended };
        let mut ids = keys.ids();
        Mark::Keyed(KeyOffer {
            keys: std::array::from_fn(|_| ids.next().unwrap_or_default()),
            cipher: noise::Cipher::best().number(),
            realm: self.realm(peer),
        })
    }

    /// Returns the realm of the ids in a hello to or from this peer.
    fn realm(&self, peer: PeerKey) -> u8 {
        match peer {
            PeerKey::Node(_) => self.admission.site.get(),
            PeerKey::Site(resource, _) => resource.get(),
        }
    }
}
