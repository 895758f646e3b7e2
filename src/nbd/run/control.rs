//! The control socket: the line protocol of the daemon's, for what concerns mirrors.
//!
//! A request is a line `{"v":1,"cmd":"status"}`, an answer `{"v":1,"ok":true,"data":...}` or
//! `{"v":1,"ok":false,"error":"..."}`. Only root and the program's own user may change anything. A client that is silent
//! or slow costs its own place, for seconds. Started by the program.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use log::{Level, warn};
use rustix::fs::chown;
use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use serde_json::{Value, json};

use super::commands::answer;
use super::shared::Shared;
use crate::control::VERSION;
use crate::{limited, sys};

/// Default path of the control socket.
pub const SOCKET: &str = "/run/hadm/hadm-nbd.sock";

/// Clients at the same time: each has a thread.
const MAX_CLIENTS: usize = 16;

/// Longest request in bytes.
const LINE_MAX: u64 = 4096;

/// Longest time for a client to be silent, or to read.
const PATIENCE: Duration = Duration::from_secs(30);

/// The socket's file; it is removed with this.
pub struct Control(PathBuf);

impl Drop for Control {
    fn drop(&mut self) {
        // The client is gone already.
        let _ = fs::remove_file(&self.0);
    }
}

/// Binds the socket and serves it.
///
/// # Errors
/// A sentence for the operator: another program has it, or it cannot be made.
pub fn serve(path: &Path, shared: Arc<Shared>) -> Result<Control, String> {
    let fail = |what: &'static str| {
        move |error: io::Error| {
            format!(
                "cannot {what} control socket {}: {error}; option --control names another",
                path.display()
            )
        }
    };
    if UnixStream::connect(path).is_ok() {
        return Err(format!("control socket {} is in use: another hadm-nbd runs with it", path.display()));
    }
    match fs::symlink_metadata(path) {
        Ok(file) if !file.file_type().is_socket() => {
            return Err(format!(
                "control socket {}: there is a file of this name that is no socket",
                path.display()
            ));
        }
        Ok(_) => fs::remove_file(path).map_err(fail("replace"))?,
        Err(_) => {}
    }
    if let Some(folder) = path.parent() {
        // Only the last part: a missing parent of it is a slip of the pen.
        let _ = fs::create_dir(folder);
    }
    let listener = UnixListener::bind(path).map_err(fail("bind"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(fail("protect"))?;
    let file = fs::symlink_metadata(path).map_err(fail("look at"))?;
    let other = sys::group_id("hadm").filter(|group| group.as_raw() != file.gid());
    if let Some(error) = other.and_then(|group| chown(path, None, Some(group)).err()) {
        warn!("cannot give control socket {} to group hadm: {error}", path.display());
    }
    let control = Control(path.into());
    sys::spawn("control", move || accept(&listener, &shared)).map_err(fail("serve"))?;
    Ok(control)
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        let begun = listener.accept().and_then(|(mut client, _)| {
            client.set_write_timeout(Some(PATIENCE))?;
            client.set_read_timeout(Some(PATIENCE))?;
            if clients.fetch_add(1, Ordering::SeqCst) >= MAX_CLIENTS {
                clients.fetch_sub(1, Ordering::SeqCst);
                return writeln!(client, "{}", bad("too many clients at the same time"));
            }
            let (shared, clients_left) = (Arc::clone(shared), Arc::clone(&clients));
            let begun = sys::spawn("control-client", move || {
                // A client that is gone gets no answer.
                let _ = attend(&client, &shared);
                clients_left.fetch_sub(1, Ordering::SeqCst);
            });
            begun.inspect_err(|_| _ = clients.fetch_sub(1, Ordering::SeqCst))
        });
        if let Err(error) = begun {
            limited!(Level::Error, ("nbd control", 0), "cannot attend to a control client: {error}");
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }
}

fn good(data: Value) -> Value {
    json!({ "v": VERSION, "ok": true, "data": data })
}

fn bad(why: &str) -> Value {
    json!({ "v": VERSION, "ok": false, "error": why })
}

fn attend(client: &UnixStream, shared: &Shared) -> io::Result<()> {
    let uid = socket_peercred(client)?.uid;
    let is_privileged = uid.is_root() || uid == geteuid();
    let mut reader = BufReader::new(client);
    loop {
        let mut line = String::new();
        if reader.by_ref().take(LINE_MAX).read_line(&mut line)? == 0 {
            return Ok(());
        }
        if !line.ends_with('\n') {
            return writeln!(
                &*client,
                "{}",
                bad(&format!("a request is a line of at most {LINE_MAX} bytes"))
            );
        }
        let answer = answer(&line, shared, is_privileged).map_or_else(|why| bad(&why), good);
        // In one write: each part of the text would be one.
        let mut client = client;
        client.write_all(format!("{answer}\n").as_bytes())?;
    }
}
