//! Listeners on Unix and TCP sockets, and the limits that all connections of a process have in common.
//!
//! Must let no client that is slow, silent or hostile keep others from being served. Called by `hadm-nbd`.

use std::fs;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::{Level, debug, warn};
use rustix::fs::{Mode, chown, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};

use super::budget::Budget;
use super::connection::Connection;
use super::export::Exports;
use super::negotiation::negotiate;
use super::transmission::Transmission;
use super::wire::{Input, Wire, send_all};
use crate::{limited, sys};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// The limits of all clients together.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections of all listeners together.
    pub connections: usize,
    /// Bytes of requests in flight and of replies that are not written, of all connections together. A request of the
    /// largest payload must fit beside the connections' shares, a quarter of these bytes: less than 43 MiB is exceeded
    /// for that, by a quarter at most where it is 32 MiB.
    pub bytes: usize,
    /// Time for a client to choose an export.
    pub negotiation: Duration,
    /// Longest time for which a client may hold up bytes that others wait for.
    pub stall: Duration,
    /// Longest wait of a connection that ends for its client to take the last replies.
    pub linger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 64,
            bytes: 64 << 20,
            negotiation: Duration::from_secs(30),
            stall: Duration::from_secs(10),
            linger: Duration::from_secs(5),
        }
    }
}

/// A connection's place among those that the limits allow.
struct Slot {
    id: u64,
    wire: Arc<dyn Wire>,
    /// `None` until the client has chosen.
    connection: Option<Arc<Connection>>,
}

/// The state that all connections of a process have in common.
pub struct Server {
    limits: Limits,
    budget: Arc<Budget>,
    /// The connections, oldest first. Connections' locks are taken under it.
    slots: Mutex<Vec<Slot>>,
    next: AtomicU64,
}

impl Server {
    /// Makes a server without listeners.
    pub fn new(limits: Limits) -> Arc<Self> {
        let budget = Budget::new(limits.bytes, limits.connections);
        Arc::new(Server { limits, budget, slots: Mutex::default(), next: AtomicU64::new(0) })
    }

    /// Returns the number of connections, those that negotiate included.
    pub fn connections(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a connection a place. When all are taken, the connection that has negotiated for longest is ended; if none
    /// negotiates there is no place.
    fn admit(&self, wire: &Arc<dyn Wire>) -> Option<u64> {
        let mut slots = self.lock();
        if slots.len() >= self.limits.connections {
            let oldest = slots.iter().position(|slot| slot.connection.is_none())?;
            slots.remove(oldest).wire.shutdown(Shutdown::Both);
        }
        let id = self.next.fetch_add(1, SeqCst);
        slots.push(Slot { id, wire: Arc::clone(wire), connection: None });
        Some(id)
    }

    /// Notes that the client has chosen; returns false if its connection was ended before.
    fn chosen(&self, id: u64, connection: &Arc<Connection>) -> bool {
        let mut slots = self.lock();
        let slot = slots.iter_mut().find(|slot| slot.id == id);
        slot.map(|slot| slot.connection = Some(Arc::clone(connection))).is_some()
    }

    /// Ends the connections that hold up the pool of bytes, for which `waiting` waits.
    fn look(&self, waiting: &Arc<Connection>) {
        let slots = self.lock();
        let others = slots.iter().filter_map(|slot| slot.connection.as_ref());
        for connection in others.filter(|other| !Arc::ptr_eq(other, waiting)) {
            if connection.is_stalled(self.limits.stall) {
                limited!(Level::Warn, ("nbd", 1), "an NBD client takes no replies: its connection is ended");
                connection.cut();
            }
        }
    }

    /// Serves one client on the calling thread until it has gone.
    ///
    /// # Errors
    /// The fault that ended the connection, unless the client ended it.
    pub fn serve(&self, wire: Arc<dyn Wire>, exports: &Exports) -> io::Result<()> {
        let Some(id) = self.admit(&wire) else {
            wire.shutdown(Shutdown::Both);
            let most = self.limits.connections;
            limited!(
                Level::Warn,
                ("nbd", 2),
                "an NBD client is turned away: {most} are connected; see <nbdclients>"
            );
            return Err(io::Error::other("there are as many connections as there may be"));
        };
        let outcome = self.attend(id, &wire, exports);
        wire.shutdown(Shutdown::Both);
        self.lock().retain(|slot| slot.id != id);
        outcome
    }

    fn attend(&self, id: u64, wire: &Arc<dyn Wire>, exports: &Exports) -> io::Result<()> {
        let deadline = Some(Instant::now() + self.limits.negotiation);
        let mut input = Input::new(Arc::clone(wire), deadline);
        let Some(choice) = negotiate(&**wire, &mut input, deadline, exports)? else { return Ok(()) };
        let connection = Connection::new(Arc::clone(wire), self.budget.share());
        connection.start_writer()?;
        if !self.chosen(id, &connection) || !choice.export.enter(&connection, &choice.volume) {
            connection.cut();
            return Ok(());
        }
        let look = || self.look(&connection);
        let outcome = send_all(&**wire, deadline, &choice.last)
            .and_then(|()| input.lift_deadline())
            .and_then(|()| Transmission::new(input, &connection, &choice, &look).run());
        choice.export.settle(&connection);
        connection.finish(self.limits.linger);
        choice.export.leave(&connection);
        match outcome {
            // An end of the stream counts as a DISC.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            outcome => outcome,
        }
    }

    /// Listens on a Unix socket that its owner and the group may use; a file that an earlier server has left there is
    /// replaced.
    ///
    /// # Errors
    /// A sentence for the operator: another server has it, or it cannot be made.
    pub fn listen_unix(
        self: &Arc<Self>,
        path: &Path,
        group: Option<&str>,
        exports: Arc<Exports>,
    ) -> Result<Listener, String> {
        let place = path.display();
        let fail = |what: &'static str| {
            move |error: io::Error| format!("cannot {what} NBD socket {}: {error}", path.display())
        };
        if UnixStream::connect(path).is_ok() {
            return Err(format!("NBD socket {place} is in use: another server answers there"));
        }
        match fs::symlink_metadata(path) {
            Ok(file) if !std::os::unix::fs::FileTypeExt::is_socket(&file.file_type()) => {
                return Err(format!("NBD socket {place} cannot be made: the file there is no socket"));
            }
            Ok(_) => fs::remove_file(path).map_err(fail("replace"))?,
            Err(_) => {}
        }
        if let Some(folder) = path.parent() {
            // Only the last part: a missing parent folder is a mistake in the path.
            let _ = fs::create_dir(folder);
        }
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(fail("make"))?;
        // No other user may connect between here and the change of the group.
        fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(|error| fail("protect")(error.into()))?;
        let address = SockAddr::unix(path).map_err(fail("bind"))?;
        socket.bind(&address).map_err(fail("bind"))?;
        if let Some((group, id)) = group.and_then(|group| Some((group, sys::group_id(group)?))) {
            if let Err(error) = chown(path, None, Some(id)) {
                warn!("cannot give NBD socket {place} to group {group}: {error}");
            }
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(fail("protect"))?;
        let inode = fs::metadata(path).map_err(fail("look at"))?.ino();
        self.listen(socket, exports, Some((path.into(), inode))).map_err(fail("listen on"))
    }

    /// Listens on a TCP port. Every client that reaches it may read and write: it has no authentication.
    ///
    /// # Errors
    /// A sentence for the operator: the address is in use, or not this machine's.
    pub fn listen_tcp(
        self: &Arc<Self>,
        address: SocketAddr,
        exports: Arc<Exports>,
    ) -> Result<Listener, String> {
        let bind = || -> io::Result<Listener> {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())?;
            self.listen(socket, exports, None)
        };
        bind().map_err(|error| format!("cannot listen for NBD clients on {address}: {error}"))
    }

    fn listen(
        self: &Arc<Self>,
        socket: Socket,
        exports: Arc<Exports>,
        file: Option<(PathBuf, u64)>,
    ) -> io::Result<Listener> {
        socket.listen(BACKLOG)?;
        let (socket, closed) = (Arc::new(socket), Arc::new(AtomicBool::new(false)));
        let listener = Listener { socket: Arc::clone(&socket), closed: Arc::clone(&closed), file };
        let server = Arc::clone(self);
        sys::spawn("nbd-accept", move || server.accept(&socket, &closed, &exports))?;
        Ok(listener)
    }

    fn accept(self: &Arc<Self>, socket: &Socket, closed: &AtomicBool, exports: &Arc<Exports>) {
        while !closed.load(SeqCst) {
            let begun = socket.accept().and_then(|(client, _)| {
                if client.local_addr().is_ok_and(|address| !address.is_unix()) {
                    client.set_tcp_nodelay(true)?;
                    // The system finds clients that have lost power.
                    client.set_keepalive(true)?;
                }
                let (server, exports) = (Arc::clone(self), Arc::clone(exports));
                sys::spawn("nbd-client", move || {
                    if let Err(error) = server.serve(Arc::new(client), &exports) {
                        debug!("an NBD client's connection has ended: {error}");
                    }
                })
            });
            if let Err(error) = begun.map_err(|error| (!closed.load(SeqCst)).then_some(error)) {
                let Some(error) = error else { return };
                // Without a descriptor for it the connection stays in the backlog, and would be met again at once; a
                // client's end is what gives one back.
                limited!(Level::Error, ("nbd", 0), "cannot accept an NBD client: {error}");
                std::thread::park_timeout(Duration::from_millis(100));
            }
        }
    }
}

/// A listening socket. When it is dropped, no client is accepted any more; connections go on.
pub struct Listener {
    socket: Arc<Socket>,
    closed: Arc<AtomicBool>,
    /// A Unix socket's file, and its inode number.
    file: Option<(PathBuf, u64)>,
}

impl Listener {
    /// Returns the TCP address; `None` for a Unix socket.
    pub fn address(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok()?.as_socket()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.closed.store(true, SeqCst);
        // Wakes the thread that accepts.
        let _ = self.socket.shutdown(Shutdown::Both);
        let Some((path, inode)) = &self.file else { return };
        // The file may be one that another server has put in its place.
        let ours = fs::metadata(path).is_ok_and(|file| file.ino() == *inode);
        if let Some(error) = ours.then(|| fs::remove_file(path).err()).flatten() {
            warn!("cannot remove NBD socket {}: {error}", path.display());
        }
    }
}
