//! The tests of the NBD server share this: a server on a disk in a folder of its own, disks that answer when the test says
//! so, and a client that speaks bytes written down from the protocol. It must never use the server's own encoder. Used by
//! the tests of the server and those with clients written by others.
#![allow(dead_code, reason = "every test file compiles this and uses a part")]
#![allow(unused_imports, reason = "the same")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod client;
mod disks;
pub mod programs;

pub use client::{Client, Reply, opt};
pub use disks::HeldVolume;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hadmd::nbd::disk::data::DataDisk;
use hadmd::nbd::disk::device::Access;
use hadmd::nbd::disk::volume::FileVolume;
use hadmd::nbd::server::{Export, Exports, Limits, Listener, Server, Volume};

/// The deadline of waits whose length is not what a test is about.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Size of the disk of most tests: not a multiple of what it is stored in.
pub const SIZE: u64 = (1 << 20) + 512;

/// A folder that is removed with it.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("hadmd-nbd-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server with one export, on a Unix socket.
pub struct Served {
    // Before the folder that its file lies in.
    pub listener: Listener,
    pub server: Arc<Server>,
    pub export: Arc<Export>,
    pub socket: PathBuf,
    pub folder: Folder,
}

/// A disk of this many bytes in a file.
pub fn file_volume(path: &Path, size: u64) -> Arc<dyn Volume> {
    File::create(path).unwrap().set_len(size).unwrap();
    let disk = DataDisk::open(path, Access::Own, Some(size)).unwrap();
    Arc::new(FileVolume::new(disk, false).unwrap())
}

impl Served {
    /// A file of [`SIZE`] bytes.
    pub fn new() -> Self {
        let folder = Folder::new();
        let volume = file_volume(&folder.join("disk"), SIZE);
        Served::with(folder, volume, Limits::default())
    }

    /// A file of this many bytes.
    pub fn sized(size: u64) -> Self {
        let folder = Folder::new();
        let volume = file_volume(&folder.join("disk"), size);
        Served::with(folder, volume, Limits::default())
    }

    /// Any disk.
    pub fn volume(volume: Arc<dyn Volume>, limits: Limits) -> Self {
        Served::with(Folder::new(), volume, limits)
    }

    fn with(folder: Folder, volume: Arc<dyn Volume>, limits: Limits) -> Self {
        let export = Export::new("r0");
        export.open(volume);
        let socket = folder.join("r0.nbd");
        let server = Server::new(limits);
        let exports = Exports::new([Arc::clone(&export)]);
        let listener = server.listen_unix(&socket, None, exports).unwrap();
        Served { listener, server, export, socket, folder }
    }

    /// A client that has been greeted.
    pub fn connect(&self) -> Client {
        Client::greeted(&self.socket)
    }

    /// A client in transmission with simple replies.
    pub fn simple(&self) -> Client {
        let mut client = self.connect();
        client.go("r0", &[]);
        client
    }

    /// A client in transmission with structured replies and base:allocation.
    pub fn structured(&self) -> Client {
        let mut client = self.connect();
        client.structured();
        client.set_allocation("r0");
        client.go("r0", &[]);
        client
    }

    /// The URI for other clients.
    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }
}

/// Waits until the condition holds.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
