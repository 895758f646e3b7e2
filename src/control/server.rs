//! The control socket's listener, and a thread for each client.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Sender, bounded};
use log::{Level, warn};
use rustix::fs::{Gid, chown};
use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;

use super::{Ask, BACKLOG, GROUP, MAX_CLIENTS, Request, bad, doctor};
use crate::config::Config;
use crate::{limited, sys};

/// How long a client may take to read a line.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest request in bytes.
const LINE_MAX: u64 = 4096;

/// Reads and checks a configuration file, or the daemon's own if none is named. What it says is ready to be
/// shown.
pub type Loader = Arc<dyn Fn(Option<&Path>) -> Result<Config, String> + Send + Sync>;

/// The control socket; its file is removed with it.
pub struct Server {
    path: PathBuf,
    inode: u64,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Not the one that another daemon has put in its place.
        let ours = fs::metadata(&self.path).is_ok_and(|file| file.ino() == self.inode);
        if let Some(error) = ours.then(|| fs::remove_file(&self.path).err()).flatten() {
            warn!("cannot remove control socket {}: {error}", self.path.display());
        }
    }
}

/// Binds the control socket and starts its thread.
///
/// # Errors
/// A sentence for the operator: another daemon has it, or it cannot be made.
pub fn serve(path: &Path, asks: Sender<Ask>, load: Loader) -> Result<Server, String> {
    let place = path.display();
    let fail = |what: &'static str| {
        move |error: io::Error| {
            let place = path.display();
            format!("cannot {what} control socket {place}: {error}; option --control names another")
        }
    };
    if UnixStream::connect(path).is_ok() {
        return Err(format!(
            "control socket {place} is in use: another hadmd runs with it; option --control names another"
        ));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail("replace")(error)),
        _ => {}
    }
    if let Some(folder) = path.parent() {
        // Only the last part: a missing parent of it is a slip of the pen.
        let _ = fs::create_dir(folder);
    }
    let listener = UnixListener::bind(path).map_err(fail("bind"))?;
    let file = fs::metadata(path).map_err(fail("look at"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(fail("protect"))?;
    if let Some(error) = group_id(GROUP).and_then(|group| chown(path, None, Some(group)).err()) {
        warn!("cannot give control socket {place} to group {GROUP}: {error}");
    }
    let server = Server { path: path.into(), inode: file.ino() };
    sys::spawn("control", move || accept(&listener, &asks, &load)).map_err(fail("start the thread of"))?;
    Ok(server)
}

/// The number of a group, from the file that small systems have it in.
fn group_id(name: &str) -> Option<Gid> {
    let groups = fs::read_to_string("/etc/group").ok()?;
    let mut lines = groups.lines().map(|line| line.split(':'));
    let number = lines.find_map(|mut fields| (fields.next() == Some(name)).then(|| fields.nth(1))?)?;
    number.parse().ok().map(Gid::from_raw)
}

fn accept(listener: &UnixListener, asks: &Sender<Ask>, load: &Loader) {
    let clients = Arc::new(());
    for client in listener.incoming() {
        let client = match client {
            Ok(client) => client,
            Err(error) => {
                // Without a descriptor for it the connection stays in the backlog, and would be met again at
                // once; a client's end is what gives one back.
                limited!(Level::Error, ("control", 0), "cannot accept a control client: {error}");
                std::thread::park_timeout(Duration::from_millis(100));
                continue;
            }
        };
        let ticket = Arc::clone(&clients);
        let (asks, load) = (asks.clone(), Arc::clone(load));
        let begun = client.set_write_timeout(Some(PATIENCE)).and_then(|()| {
            if Arc::strong_count(&clients) > MAX_CLIENTS + 1 {
                return say(&client, &bad(&format!("{MAX_CLIENTS} clients are connected already")));
            }
            sys::spawn("control-client", move || {
                let _ticket = ticket;
                // A client that is gone has nothing left to be told.
                let _ = attend(&client, &asks, &load);
            })
        });
        if let Err(error) = begun {
            limited!(Level::Error, ("control", 1), "cannot attend to a control client: {error}");
        }
    }
}

/// Answers one client's requests, one after the other.
fn attend(client: &UnixStream, asks: &Sender<Ask>, load: &Loader) -> io::Result<()> {
    let uid = socket_peercred(client)?.uid;
    let mut reader = BufReader::new(client);
    loop {
        let mut line = String::new();
        if reader.by_ref().take(LINE_MAX).read_line(&mut line)? == 0 {
            return Ok(());
        }
        if !line.ends_with('\n') {
            return say(client, &bad(&format!("a request is a line of at most {LINE_MAX} bytes")));
        }
        let request = match Request::read(line.trim()) {
            Ok(request) => request,
            Err(why) => {
                say(client, &bad(&why))?;
                continue;
            }
        };
        if request.changes() && !uid.is_root() && uid != geteuid() {
            say(client, &bad("only root and the daemon's own user may change anything"))?;
            continue;
        }
        if let Request::Doctor(only) = request {
            match doctor::examine(asks, only) {
                Some(line) => say(client, &line)?,
                None => return Ok(()),
            }
            continue;
        }
        // Files are read here: looking up names may take its time, and the timer thread has none.
        let config = match &request {
            Request::Reload => load(None).map(Some),
            Request::Plan(file) => load(Some(file)).map(Some),
            _ => Ok(None),
        };
        let config = match config {
            Ok(config) => config.map(Box::new),
            Err(why) => {
                say(client, &bad(&why))?;
                continue;
            }
        };
        let (reply, lines) = bounded(BACKLOG);
        if asks.send(Ask { request, config, reply }).is_err() {
            return Ok(());
        }
        for line in lines {
            say(client, &line)?;
        }
    }
}

fn say(mut client: &UnixStream, line: &serde_json::Value) -> io::Result<()> {
    client.write_all(format!("{line}\n").as_bytes())
}
