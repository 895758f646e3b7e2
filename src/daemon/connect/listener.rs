//! The listeners of the reactor: for the kernel module, for the other nodes, and for other sites.
//!
//! Opens and closes only: the reactor handles connections, and other modules decide who may connect. An address that
//! is not there yet can be listened at all the same, where the system allows that; a place where listening fails is
//! tried again and again, and never ends the daemon once it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use polling::{Event, Poller};
use socket2::{Domain, SockRef, Socket, Type};

use crate::daemon::core::ListenerKind;
use crate::sys::Registered;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;
/// Time between two attempts to listen where it failed.
const RETRY: Duration = Duration::from_secs(1);

/// Keys in the poller: the listeners have these, in the order of their making, ...
const FIRST_LISTENER: usize = 1;
/// ... and handshakes those from here on: more listeners than there are runsites in the largest cluster.
pub(super) const FIRST_HANDSHAKE: usize = 1000;

/// The address of a connection at a Unix socket, which has none: no TCP connection comes from port 0.
pub(crate) const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

pub(super) struct Listener {
    pub key: usize,
    addr: SocketAddr,
    /// The listener's kind, `None` for the kernel module's.
    pub kind: Option<ListenerKind>,
    pub socket: Registered<TcpListener>,
    /// The time until which nothing is accepted.
    pub paused: Option<Instant>,
}

/// A place where listening failed.
struct Unopened {
    addr: SocketAddr,
    kind: Option<ListenerKind>,
    why: String,
    retry: Instant,
}

/// Every place where the reactor listens, or is to listen.
#[derive(Default)]
pub(super) struct Listeners {
    open: Vec<Listener>,
    unopened: Vec<Unopened>,
}

fn is_site(kind: Option<ListenerKind>) -> bool {
    matches!(kind, Some(ListenerKind::Site(_)))
}

impl Listeners {
    /// Listens at one more place, for the kernel module or for peers of this kind. An address that the machine does
    /// not have yet is tried again.
    ///
    /// # Errors
    /// A sentence for the operator: the address cannot be bound, and the remedy.
    pub fn open(
        &mut self,
        poller: &Arc<Poller>,
        addr: SocketAddr,
        kind: Option<ListenerKind>,
    ) -> Result<(), String> {
        match self.listen(poller, addr, kind) {
            Err((error, _)) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                self.retry_later(addr, kind, explain(addr, kind, &error));
                Ok(())
            }
            Err((_, why)) => Err(why),
            Ok(()) => Ok(()),
        }
    }

    /// Listens for the kernel module at a Unix socket.
    ///
    /// # Errors
    /// The error of the system.
    pub fn add_unix(&mut self, poller: &Arc<Poller>, socket: UnixListener) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        let key = self.free_key();
        // The reactor accepts by `accept`, which knows both.
        let socket = Registered::new(poller, TcpListener::from(OwnedFd::from(socket)), Event::readable(key))?;
        self.open.push(Listener { key, addr: NOWHERE, kind: None, socket, paused: None });
        Ok(())
    }

    fn free_key(&self) -> usize {
        let is_free = |key: &usize| self.open.iter().all(|listener| listener.key != *key);
        (FIRST_LISTENER..FIRST_HANDSHAKE).find(is_free).unwrap_or(FIRST_HANDSHAKE)
    }

    /// Listens for other sites at these places, and at no others. Places that cannot be opened now are tried again.
    pub fn set_sites(&mut self, poller: &Arc<Poller>, sites: &BTreeSet<SocketAddr>) {
        self.open.retain(|listener| !is_site(listener.kind) || sites.contains(&listener.addr));
        self.unopened.retain(|place| !is_site(place.kind) || sites.contains(&place.addr));
        for &addr in sites {
            let open = self.open.iter().any(|listener| is_site(listener.kind) && listener.addr == addr);
            let tried = self.unopened.iter().any(|place| is_site(place.kind) && place.addr == addr);
            let kind = Some(ListenerKind::Site(addr));
            if let Some((_, why)) = (!open && !tried).then(|| self.listen(poller, addr, kind).err()).flatten()
            {
                self.retry_later(addr, kind, why);
            }
        }
    }

    /// Tries failed places again that are due.
    pub fn retry(&mut self, poller: &Arc<Poller>, now: Instant) {
        for mut place in std::mem::take(&mut self.unopened) {
            if place.retry <= now {
                let Err((_, why)) = self.listen(poller, place.addr, place.kind) else { continue };
                (place.why, place.retry) = (why, now + RETRY);
            }
            self.unopened.push(place);
        }
    }

    /// Returns the time at which [`Listeners::retry`] has something to do, or a paused listener goes on.
    pub fn deadline(&self) -> Option<Instant> {
        let paused = self.open.iter().filter_map(|listener| listener.paused);
        self.unopened.iter().map(|place| place.retry).chain(paused).min()
    }

    /// Returns the places where listening fails, each with a sentence that says why.
    pub fn unopened(&self) -> BTreeMap<SocketAddr, String> {
        let mut all = BTreeMap::new();
        all.extend(self.unopened.iter().map(|place| (place.addr, place.why.clone())));
        all
    }

    /// Closes all listeners.
    pub fn clear(&mut self) {
        *self = Listeners::default();
    }

    /// Returns the listener with this key in the poller.
    pub fn get(&mut self, key: usize) -> Option<&mut Listener> {
        self.open.iter_mut().find(|listener| listener.key == key)
    }

    /// Returns the keys of listeners whose pause is over.
    pub fn rested(&self, now: Instant) -> Vec<usize> {
        let rested = self.open.iter().filter(|listener| listener.paused.is_some_and(|at| at <= now));
        rested.map(|listener| listener.key).collect()
    }

    fn listen(
        &mut self,
        poller: &Arc<Poller>,
        addr: SocketAddr,
        kind: Option<ListenerKind>,
    ) -> Result<(), (io::Error, String)> {
        let key = self.free_key();
        let socket =
            listen(addr).and_then(|listener| Registered::new(poller, listener, Event::readable(key)));
        match socket {
            Ok(socket) => self.open.push(Listener { key, addr, kind, socket, paused: None }),
            Err(error) => {
                let why = explain(addr, kind, &error);
                return Err((error, why));
            }
        }
        Ok(())
    }

    fn retry_later(&mut self, addr: SocketAddr, kind: Option<ListenerKind>, why: String) {
        self.unopened.push(Unopened { addr, kind, why, retry: Instant::now() + RETRY });
    }
}

/// Accepts a connection, with its address.
pub(super) fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (socket, source) = SockRef::from(listener).accept()?;
    Ok((socket.into(), source.as_socket().unwrap_or(NOWHERE)))
}

fn explain(addr: SocketAddr, kind: Option<ListenerKind>, error: &io::Error) -> String {
    let (what, element) = match kind {
        None => ("the kernel module", "serverip and serverport, or option --server"),
        Some(ListenerKind::Node) => ("the other nodes", "ipaddr and port of this node"),
        Some(ListenerKind::Site(_)) => ("other sites", "ip and port of this site's runsites"),
    };
    format!("cannot listen for {what} at {addr}: {error}; check {element}")
}

/// Returns a listener that never blocks, also at an address that is not there yet, where the system allows that.
pub(crate) fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    // A restarted daemon must not wait for the connections of its predecessor to time out.
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    // Also to an address that is tentative. A system without the option reports that in `bind`.
    let _ = if addr.is_ipv6() { socket.set_freebind_v6(true) } else { socket.set_freebind_v4(true) };
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}
