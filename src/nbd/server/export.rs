//! Exports: the names that clients choose from, and the disk behind each while it is served.
//!
//! A request is only submitted when all requests that ended connections of its export left in flight are settled: clients
//! send unanswered requests again on another connection, new or not, and the late twin must not land after a newer write.
//! A client that is gone without a packet, as after a loss of power, is not seen. Must not decide when an export is served.
//! Called by `hadm-nbd`, which opens and closes exports, and by connections.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::volume::Volume;

/// Longest time for which a connection of a client that has gone may read the rest, while another connection waits.
const GRACE: Duration = Duration::from_secs(1);

struct State {
    volume: Option<Arc<dyn Volume>>,
    /// All connections in transmission, and those that have ended but not settled.
    connections: Vec<Arc<Connection>>,
}

/// A disk under its name. A new export is closed.
pub struct Export {
    name: String,
    /// The connections. Connections' locks are taken under it.
    state: Mutex<State>,
    /// Signals that a connection has left.
    left: Condvar,
    /// Number of ended connections with requests in flight.
    unsettled: AtomicUsize,
}

impl Export {
    /// Makes an export of this name, closed.
    pub fn new(name: impl Into<String>) -> Arc<Self> {
        let state = State { volume: None, connections: Vec::new() };
        Arc::new(Export {
            name: name.into(),
            state: Mutex::new(state),
            left: Condvar::new(),
            unsettled: AtomicUsize::new(0),
        })
    }

    /// Returns the export's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to serve the disk to clients.
    pub fn open(&self, volume: Arc<dyn Volume>) {
        self.lock().volume = Some(volume);
    }

    /// Ends the service of clients, and the connections: requests in flight are answered, new ones are refused with
    /// [`super::Failure::Shutdown`], then the connection closes. Does not wait for that.
    pub fn close(&self) {
        let mut state = self.lock();
        state.volume = None;
        for connection in &state.connections {
            connection.close();
        }
    }

    /// Waits until no connection is left; returns false if there are some after `limit`.
    pub fn wait_idle(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut state = self.lock();
        while !state.connections.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.left.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Returns the number of connections in transmission, those that are about to end included.
    pub fn connections(&self) -> usize {
        self.lock().connections.len()
    }

    /// Returns the disk, while it is served.
    pub(super) fn volume(&self) -> Option<Arc<dyn Volume>> {
        self.lock().volume.clone()
    }

    /// Adds a connection that has chosen this disk; returns false if the disk is not served any more.
    pub(super) fn enter(&self, connection: &Arc<Connection>, volume: &Arc<dyn Volume>) -> bool {
        let mut state = self.lock();
        let is_served = state.volume.as_ref().is_some_and(|served| Arc::ptr_eq(served, volume));
        if is_served {
            state.connections.push(Arc::clone(connection));
        }
        is_served
    }

    /// Waits until all requests in flight of an ended connection are settled, while others wait with it. Called by its reader.
    pub(super) fn settle(&self, connection: &Connection) {
        // Counted before it is known to have ended, so that no request passes between the two.
        self.unsettled.fetch_add(1, SeqCst);
        connection.end();
        connection.wait_settled(GRACE);
        self.unsettled.fetch_sub(1, SeqCst);
        drop(self.lock());
        self.left.notify_all();
    }

    /// Forgets a connection.
    pub(super) fn leave(&self, connection: &Arc<Connection>) {
        self.lock().connections.retain(|other| !Arc::ptr_eq(other, connection));
        self.left.notify_all();
    }

    /// Returns true if a connection has ended with requests in flight.
    pub(super) fn is_unsettled(&self) -> bool {
        self.unsettled.load(SeqCst) > 0
    }

    /// Returns true if another connection's client has gone, even if its reader has not met the end.
    pub(super) fn has_gone(&self, own: &Arc<Connection>) -> bool {
        self.lock().connections.iter().any(|other| !Arc::ptr_eq(other, own) && other.wire.is_hung_up())
    }

    /// Waits until all requests of ended connections are settled, and those connections whose clients have gone have left.
    pub(super) fn wait_settled(&self, own: &Arc<Connection>) {
        let others = self.lock().connections.clone();
        let gone = others.iter().filter(|other| !Arc::ptr_eq(other, own) && other.wire.is_hung_up());
        gone.for_each(|other| other.wait_settled(GRACE));
        let mut state = self.lock();
        while self.is_unsettled() {
            state = self.left.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The exports that a listener offers.
#[derive(Default)]
pub struct Exports(RwLock<Vec<Arc<Export>>>);

impl Exports {
    /// Makes a set of these exports.
    pub fn new(exports: impl IntoIterator<Item = Arc<Export>>) -> Arc<Self> {
        Arc::new(Exports(RwLock::new(exports.into_iter().collect())))
    }

    /// Replaces the exports. Connections to former ones go on until those are closed.
    pub fn set(&self, exports: impl IntoIterator<Item = Arc<Export>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = exports.into_iter().collect();
    }

    /// Returns the exports that are served at present.
    pub(super) fn served(&self) -> Vec<Arc<Export>> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|export| export.volume().is_some()).cloned().collect()
    }

    /// Returns the export of a name and its disk, if it is served; the only export has the empty name, too.
    pub(super) fn find(&self, name: &str) -> Option<(Arc<Export>, Arc<dyn Volume>)> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let export = match all.as_slice() {
            [only] if name.is_empty() => only,
            all => all.iter().find(|export| export.name == name)?,
        };
        Some((Arc::clone(export), export.volume()?))
    }
}
