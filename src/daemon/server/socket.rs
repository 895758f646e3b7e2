//! The control socket's listener, and a thread for each client.
//!
//! A client that is silent, slow or gone costs its own place only, and that for a few seconds. A costly request is
//! served for one client at a time. [`super::clients`] decides which client gets a place; `hadmd` starts this.

use std::cell::Cell;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded, select};
use log::{Level, warn};
use rustix::fs::{AtFlags, CWD, chownat};
use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use socket2::{Domain, SockAddr, Socket, Type};

use super::Reloads;
use super::clients::{Clients, Place, is_privileged};
use super::{BACKLOG, ControlRequest, GROUP, Loaded, MAX_STREAMS, doctor};
use crate::control::{Line, Request};
use crate::{limited, sys};

/// Longest time for a client to read a line.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest time for a client to send its first request, and after an answer the next one.
const SILENCE: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(30)];
/// Longest time for which a plan waits for another one: many times the need of the largest file.
const PLAN_PATIENCE: Duration = Duration::from_secs(2);
/// Time between two checks that the socket's file is still there.
const LOOK: Duration = Duration::from_secs(1);
/// Longest request in bytes.
const LINE_MAX: u64 = 4096;

/// Reads and checks a configuration file, or the daemon's own if none is named. An error is ready to be shown.
pub type Loader = Arc<dyn Fn(Option<&Path>) -> Result<Loaded, String> + Send + Sync>;

/// A socket's file, which is removed with it.
pub struct Server {
    path: PathBuf,
    /// The file's inode, `None` once the server has ended. Locked while the file is made or removed, by the thread
    /// that makes it again and at the end.
    inode: Arc<Mutex<Option<u64>>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let inode = self.inode.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A file that another daemon or program has put in its place stays.
        let is_ours = |file: fs::Metadata| file.file_type().is_socket() && Some(file.ino()) == inode;
        let ours = fs::symlink_metadata(&self.path).is_ok_and(is_ours);
        if let Some(error) = ours.then(|| fs::remove_file(&self.path).err()).flatten() {
            warn!("cannot remove socket {}: {error}", self.path.display());
        }
    }
}

/// The name of a Unix socket in messages, and the option for its path.
pub struct Kind {
    /// The name.
    pub what: &'static str,
    /// The option that names another place.
    pub option: &'static str,
}

const CONTROL: Kind = Kind { what: "control socket", option: "--control" };

/// Binds a Unix socket; its file is removed with the second part.
///
/// # Errors
/// A sentence for the operator: another daemon has it, or it cannot be made.
pub fn listen(path: &Path, kind: &'static Kind) -> Result<(UnixListener, Server), String> {
    let (listener, inode) = bind(path, kind)?;
    Ok((listener, Server { path: path.into(), inode: Arc::new(Mutex::new(Some(inode))) }))
}

/// Binds the control socket and starts its thread.
///
/// # Errors
/// A sentence for the operator: another daemon has it, or it cannot be made.
pub fn serve(
    path: &Path,
    control_requests: Sender<ControlRequest>,
    load: Loader,
    reloads: Reloads,
) -> Result<Server, String> {
    let (listener, server) = listen(path, &CONTROL)?;
    let inode = Arc::clone(&server.inode);
    let shared =
        Arc::new(Shared { control_requests, load, reloads, plans: bounded(1), streams: Arc::new(()) });
    let file = SocketFile { path: path.into(), inode, told: false };
    sys::spawn("control", move || accept(listener, file, &shared))
        .map_err(|error| format!("cannot start the thread of control socket {}: {error}", path.display()))?;
    Ok(server)
}

/// The socket's file, for the thread that accepts.
struct SocketFile {
    path: PathBuf,
    inode: Arc<Mutex<Option<u64>>>,
    told: bool,
}

impl SocketFile {
    /// Makes the file and its folder again if they were removed. Another program's file in its place stays.
    fn make_again(&mut self) -> Option<UnixListener> {
        let mut inode = self.inode.lock().unwrap_or_else(PoisonError::into_inner);
        let gone =
            matches!(fs::symlink_metadata(&self.path), Err(error) if error.kind() == io::ErrorKind::NotFound);
        if inode.is_none() || !gone {
            return None;
        }
        let place = self.path.display();
        match bind(&self.path, &CONTROL) {
            Ok((fresh, number)) => {
                *inode = Some(number);
                self.told = false;
                warn!("control socket {place} was removed: made it again");
                Some(fresh)
            }
            Err(why) => {
                if !std::mem::replace(&mut self.told, true) {
                    warn!("control socket {place} was removed: {why}; trying again");
                }
                None
            }
        }
    }
}

/// Makes the socket's file and listens at it.
fn bind(path: &Path, kind: &'static Kind) -> Result<(UnixListener, u64), String> {
    let place = path.display();
    let &Kind { what, option } = kind;
    let fail = |verb: &'static str| {
        move |error: io::Error| {
            let place = path.display();
            format!("cannot {verb} {what} {place}: {error}; option {option} names another")
        }
    };
    make_way(path, kind)?;
    if let Some(folder) = path.parent() {
        // Only the last folder: if its parent is missing, the path is wrong.
        let _ = fs::create_dir(folder);
    }
    let listener = UnixListener::bind(path).map_err(fail("bind"))?;
    let file = fs::symlink_metadata(path).map_err(fail("look at"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(fail("protect"))?;
    // A sandbox may forbid the call even where it changes nothing.
    let other = sys::group_id(GROUP).filter(|group| group.as_raw() != file.gid());
    let give = |group| chownat(CWD, path, None, Some(group), AtFlags::SYMLINK_NOFOLLOW);
    if let Some(error) = other.and_then(|group| give(group).err()) {
        warn!("cannot give {what} {place} to group {GROUP}: {error}");
    }
    Ok((listener, file.ino()))
}

/// Removes a socket at which no program listens any more, and nothing else.
///
/// # Errors
/// A sentence for the operator: another daemon has it, or it is another kind of file.
fn make_way(path: &Path, &Kind { what, option }: &Kind) -> Result<(), String> {
    let refuse =
        |why: String| Err(format!("{what} {}: {why}; option {option} names another", path.display()));
    let there = match fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return refuse(format!("cannot be looked at: {error}")),
    };
    if !there.file_type().is_socket() {
        return refuse("there is a file of this name that is no socket".into());
    }
    // Does not wait for a daemon that is stopped.
    let asked = Socket::new(Domain::UNIX, Type::STREAM, None)
        .and_then(|socket| socket.set_nonblocking(true).map(|()| socket))
        .and_then(|socket| socket.connect(&SockAddr::unix(path)?));
    match asked {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                refuse(format!("cannot be replaced: {error}"))
            }
            _ => Ok(()),
        },
        // Its backlog is full.
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
            refuse(format!("cannot be asked who has it: {error}"))
        }
        _ => refuse("it is in use: another hadmd runs with it".into()),
    }
}

/// The parts that the threads of all clients share.
struct Shared {
    control_requests: Sender<ControlRequest>,
    load: Loader,
    reloads: Reloads,
    /// Contains an entry while a plan's file is read and judged, which takes memory and processor time.
    plans: (Sender<()>, Receiver<()>),
    /// Cloned by every client that listens to a stream.
    streams: Arc<()>,
}

fn accept(mut listener: UnixListener, mut file: SocketFile, shared: &Arc<Shared>) {
    let mut clients = Clients::default();
    loop {
        if !clients.wait(&listener, LOOK) {
            if let Some(fresh) = file.make_again() {
                listener = fresh;
            }
            continue;
        }
        let accepted = listener.accept().and_then(|(client, _)| {
            client.set_write_timeout(Some(PATIENCE))?;
            let uid = socket_peercred(&client)?.uid;
            Ok((client, uid))
        });
        let (client, uid) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Without a descriptor for it the connection stays in the backlog, and poll would report it again at
                // once; a client's end is what frees a descriptor.
                limited!(Level::Error, ("control", 0), "cannot accept a control client: {error}");
                std::thread::park_timeout(Duration::from_millis(100));
                continue;
            }
        };
        match clients.admit(client, uid) {
            Ok(place) => {
                let shared = Arc::clone(shared);
                let begun = sys::spawn("control-client", move || {
                    // A client that is gone gets no error.
                    let _ = attend(&place, &shared);
                });
                if let Err(error) = begun {
                    limited!(Level::Error, ("control", 1), "cannot attend to a control client: {error}");
                }
            }
            // It fits into a socket to which nothing was written before.
            Err((mut client, why)) => drop(client.write_all(format!("{}\n", Line::bad(why)).as_bytes())),
        }
    }
}

/// A client's socket, up to a point in time.
struct Timed<'a> {
    stream: &'a UnixStream,
    until: Cell<Instant>,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.get().saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }

    fn say(&self, line: &Line) -> io::Result<()> {
        let text = format!("{line}\n");
        // Making the text of thousands of peers takes its time.
        self.until.set(Instant::now() + PATIENCE);
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            self.stream.set_write_timeout(self.left()?)?;
            match (&mut &*self.stream).write(rest) {
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Read for &Timed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        (&mut &*self.stream).read(buf)
    }
}

/// Answers one client's requests, one after the other.
fn attend(place: &Place, shared: &Shared) -> io::Result<()> {
    let privileged = is_privileged(place.uid, geteuid());
    let client = Timed { stream: &place.stream, until: Cell::new(Instant::now()) };
    let mut reader = BufReader::new(&client);
    let mut patience = SILENCE.into_iter();
    let [_, mut silence] = SILENCE;
    loop {
        silence = patience.next().unwrap_or(silence);
        client.until.set(Instant::now() + silence);
        let mut line = String::new();
        match reader.by_ref().take(LINE_MAX).read_line(&mut line) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => {
                return client.say(&Line::bad(format!("no request within {} s", silence.as_secs())));
            }
            Err(error) => return Err(error),
        }
        if !line.ends_with('\n') {
            return client.say(&Line::bad(format!("a request is a line of at most {LINE_MAX} bytes")));
        }
        place.asked.store(true, Ordering::Relaxed);
        let request = match Request::read(line.trim()) {
            Ok(request) => request,
            Err(why) => {
                client.say(&Line::bad(why))?;
                continue;
            }
        };
        if request.changes() && !privileged {
            client.say(&Line::bad("only root and the daemon's own user may change anything"))?;
            continue;
        }
        if let Request::Doctor(only) = request {
            match doctor::examine(&shared.control_requests, only) {
                Some(line) => client.say(&line)?,
                None => return Ok(()),
            }
            continue;
        }
        let streaming =
            matches!(request, Request::Events | Request::Trace(..)).then(|| Arc::clone(&shared.streams));
        if streaming.is_some() && Arc::strong_count(&shared.streams) > MAX_STREAMS + 1 {
            client.say(&Line::bad(format!("{MAX_STREAMS} clients listen to events or packets already")))?;
            continue;
        }
        let (reply, lines) = bounded(BACKLOG);
        if request == Request::Reload {
            shared.reloads.ask(reply);
        } else {
            // Files are read here: looking up names may take its time, and the timer thread has none.
            let config = match &request {
                Request::Plan(file) => plan(shared, file).map(Some),
                _ => Ok(None),
            };
            let config = match config {
                Ok(loaded) => loaded.map(Box::new),
                Err(why) => {
                    client.say(&Line::bad(why))?;
                    continue;
                }
            };
            let gone = place.gone.clone();
            if shared.control_requests.send(ControlRequest { request, config, reply, gone }).is_err() {
                return Ok(());
            }
        }
        loop {
            select! {
                recv(lines) -> line => match line {
                    Ok(line) => client.say(&line)?,
                    Err(_) => break,
                },
                // Also while there is nothing to send.
                recv(place.gone) -> _ => return Ok(()),
            }
        }
    }
}

/// Reads a file to see what it would change: one at a time.
fn plan(shared: &Shared, file: &Path) -> Result<Loaded, String> {
    let (begin, end) = &shared.plans;
    begin
        .send_timeout((), PLAN_PATIENCE)
        .map_err(|_| "busy: the file of another plan is being read; ask again in a moment")?;
    let loaded = (shared.load)(Some(file));
    let _ = end.try_recv();
    loaded
}
