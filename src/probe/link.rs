//! The pair of links to the daemon: attaching as the kernel module does, and the one end they have together.
//!
//! Whatever ends the probe (a signal, the daemon, a lost peer, an error) ends both links through
//! [`Link::end`]: the first reason stays, and every thread that is blocked on a link comes free. Nothing else
//! may shut a link down. Used by every command.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::wire::{HEADER_LEN, Header, MAGIC, MAX_IDS, Mask, PacketType, ResourceId};

use super::peer::{Group, Peer};
use super::reader::PacketReader;
use super::{Failure, say, spawn};

/// How long a daemon may take to accept a connection and to answer the handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// How long attaching is tried again when the daemon refuses: the one attached before may just be going.
const REFUSED_LIMIT: Duration = Duration::from_secs(3);

/// Pause between two tries.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// What the daemon tells of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnState {
    /// Id of the daemon's own node, or of its site.
    pub own: u8,
    /// Those it is connected with.
    pub up: Mask,
}

/// What the daemon tells of all groups that it has told of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct States(pub BTreeMap<Group, ConnState>);

impl States {
    /// The id of the daemon's own end in this group.
    pub fn own(&self, group: Group) -> Option<u8> {
        self.0.get(&group).map(|state| state.own)
    }

    /// The id of the daemon's own end of the connection to this peer, if it is connected.
    pub fn facing(&self, peer: Peer) -> Option<u8> {
        self.0.get(&peer.group).filter(|state| state.up.contains(peer.id)).map(|state| state.own)
    }
}

/// Both links, shared by all threads of the probe.
#[derive(Clone)]
pub struct Link(Arc<Inner>);

struct Inner {
    data: TcpStream,
    meta: TcpStream,
    server: SocketAddr,
    end: OnceLock<Failure>,
}

/// Why one try to attach failed.
enum Refused {
    /// The daemon closed a link: somebody is attached, perhaps not for long.
    Taken,
    /// No use to try again.
    Final(String),
}

impl Link {
    /// Attaches to the daemon at `server` and from then on takes SIGINT and SIGTERM for the end of both links.
    ///
    /// A refusal is tried again for 3 s. Errors are sentences for the user.
    pub fn attach(server: SocketAddr) -> Result<Link, Failure> {
        let attached = Arc::new(OnceLock::new());
        end_on_signals(&attached)?;
        let deadline = Instant::now() + REFUSED_LIMIT;
        let (data, meta) = loop {
            match connect(server) {
                Ok(links) => break links,
                Err(Refused::Taken) if Instant::now() < deadline => thread::sleep(REFUSED_PAUSE),
                Err(Refused::Taken) => {
                    return Err(Failure::Failed(format!(
                        "the daemon at {server} refused: a kernel module (or another hadm-probe) is attached \
                         already"
                    )));
                }
                Err(Refused::Final(why)) => return Err(Failure::Failed(why)),
            }
        };
        let link = Link(Arc::new(Inner { data, meta, server, end: OnceLock::new() }));
        Ok(attached.get_or_init(|| link).clone())
    }

    /// The daemon's address.
    pub fn server(&self) -> SocketAddr {
        self.0.server
    }

    /// The data link. Reads and writes block.
    pub fn data(&self) -> &TcpStream {
        &self.0.data
    }

    /// Writes whole packets to the data link; blocks while the daemon takes nothing. One thread at a time.
    pub fn send(&self, packets: &[u8]) -> Result<(), Failure> {
        self.data().write_all(packets).map_err(|e| self.lost(&e))
    }

    /// Ends both links for this reason, unless they have ended before; returns the reason that counts.
    pub fn end(&self, why: Failure) -> Failure {
        let why = self.0.end.get_or_init(|| why).clone();
        for link in [&self.0.data, &self.0.meta] {
            // Fails when the daemon was faster.
            let _ = link.shutdown(Shutdown::Both);
        }
        why
    }

    /// Ends both links since this happened on one of them; returns the reason that counts.
    pub fn lost(&self, error: &io::Error) -> Failure {
        let server = self.0.server;
        self.end(Failure::Failed(match error.kind() {
            ErrorKind::InvalidData => format!("the daemon at {server} is out of step: {error}"),
            _ if is_closed(error) => format!("the daemon at {server} has closed the connection"),
            _ => format!("the connection to the daemon at {server} failed: {error}"),
        }))
    }

    /// Calls `told` for each announcement that comes on the meta link, changed or not, until the link ends or
    /// `told` refuses; returns the reason.
    pub fn each_state(&self, told: impl FnMut(&States) -> Result<(), Failure>) -> Failure {
        match self.tell_states(told) {
            Err(why) => self.end(why),
            Ok(never) => match never {},
        }
    }

    /// An announcement is one packet for each group, usually all in one piece.
    fn tell_states(
        &self,
        mut told: impl FnMut(&States) -> Result<(), Failure>,
    ) -> Result<Infallible, Failure> {
        let mut packets = PacketReader::new(&self.0.meta);
        let mut states = States::default();
        let mut untold = BTreeSet::new();
        loop {
            let header = packets.next().map_err(|e| self.lost(&e))?.header;
            let group = match header.kind {
                PacketType::NC_CONN_STATE => Some(Group::Nodes),
                PacketType::SC_CONN_STATE => {
                    ResourceId::try_from(u32::from(header.dev_id)).ok().map(Group::Sites)
                }
                _ => None,
            };
            if let Some(group) = group {
                let own =
                    u8::try_from(header.node_from).ok().filter(|id| *id < MAX_IDS).ok_or_else(|| {
                        let what = format!("its {} id is {}", group.word(), header.node_from);
                        self.lost(&io::Error::new(ErrorKind::InvalidData, what))
                    })?;
                // The next announcement has begun: what this one says must not be passed over.
                if untold.contains(&group) {
                    told(&states)?;
                    untold.clear();
                }
                untold.insert(group);
                states.0.insert(group, ConnState { own, up: header.node_to });
            }
            if !untold.is_empty() && !packets.is_ready().unwrap_or(false) {
                told(&states)?;
                untold.clear();
            }
        }
    }
}

/// Starts the thread that ends the link at a signal. While there is no link yet, and at the second signal,
/// it ends the program: then something else than a link holds the command up.
fn end_on_signals(attached: &Arc<OnceLock<Link>>) -> Result<(), Failure> {
    let mut signals = Signals::new([SIGINT, SIGTERM])
        .map_err(|e| Failure::Failed(format!("cannot wait for signals: {e}")))?;
    let attached = Arc::clone(attached);
    spawn("signals", move || {
        let mut asked = false;
        for _ in &mut signals {
            match attached.get() {
                Some(link) if !asked => {
                    asked = true;
                    link.end(Failure::Interrupted);
                }
                _ => {
                    say(Failure::Interrupted);
                    std::process::exit(1);
                }
            }
        }
    })?;
    Ok(())
}

/// Whether the other side closed the connection, in one of the ways that shows.
fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnexpectedEof
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::NotConnected
    )
}

/// One try: both connections, both handshakes, both answers.
fn connect(server: SocketAddr) -> Result<(TcpStream, TcpStream), Refused> {
    let open = || {
        let link = TcpStream::connect_timeout(&server, HANDSHAKE_LIMIT)?;
        link.set_nodelay(true)?;
        link.set_read_timeout(Some(HANDSHAKE_LIMIT))?;
        Ok(link)
    };
    let no_connection = |e: io::Error| match e.kind() {
        ErrorKind::ConnectionRefused => Refused::Final(format!(
            "no daemon listens at {server}: is hadmd running, is serverip/serverport right?"
        )),
        _ => Refused::Final(format!("cannot connect to {server}: {e}")),
    };
    let data = open().map_err(no_connection)?;
    let meta = open().map_err(no_connection)?;
    let trouble = |e: io::Error| match e.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Refused::Final(format!(
            "what listens at {server} does not answer the handshake within {} s: is it hadmd?",
            HANDSHAKE_LIMIT.as_secs()
        )),
        _ if is_closed(&e) => Refused::Taken,
        _ => Refused::Final(format!("the handshake with {server} failed: {e}")),
    };
    // Both say hello before either waits: the daemon may answer only when it has the two.
    let handshake =
        |mut link: &TcpStream, kind| link.write_all(&Header { magic: 0, ..Header::new(kind) }.encode());
    handshake(&data, PacketType::KERN_HANDSHAKE_D).map_err(trouble)?;
    handshake(&meta, PacketType::KERN_HANDSHAKE_M).map_err(trouble)?;
    for (mut link, answer) in
        [(&data, PacketType::KERN_HANDSHAKE_D_ACK), (&meta, PacketType::KERN_HANDSHAKE_M_ACK)]
    {
        let mut bytes = [0; HEADER_LEN];
        link.read_exact(&mut bytes).map_err(trouble)?;
        let header = Header::decode(&bytes);
        if header.magic != MAGIC || header.kind != answer || header.len != 0 {
            return Err(Refused::Final(format!(
                "what listens at {server} is not hadmd: its handshake is wrong"
            )));
        }
        link.set_read_timeout(None).map_err(trouble)?;
    }
    Ok((data, meta))
}
