//! `hadmctl web`: a page for people who watch a cluster.
//!
//! A process of its own that only reads the control sockets; whatever a browser sends, the daemon is asked the same. One
//! embedded file, without scripts a table that is loaded anew, with them kept up to date by server-sent events.

mod board;
mod drawing;
mod look;
mod page;
mod request;
mod sections;
mod server;
mod state;
mod text;

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{Failure, disk};
use crate::control::SOCKET;
use board::Board;
use server::Server;

/// Default address of the page.
pub const LISTEN: &str = "127.0.0.1:9465";

/// The options of the command.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The address for browsers.
    pub listen: SocketAddr,
    /// Names by which they may call this server, beside its address and localhost.
    pub names: Vec<String>,
    /// The control socket of `hadm-nbd`, if it is not the usual one.
    pub disks: Option<PathBuf>,
}

/// Serves the page until the process ends.
///
/// # Errors
/// The address cannot be bound, or the system has no room for a thread.
pub fn serve(
    settings: &Settings,
    control: Option<&Path>,
    timeout: Duration,
    json: bool,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let fail = |error| {
        let listen = settings.listen;
        Failure::Said(format!(
            "cannot serve the page at {listen}: {error}; option --listen gives another address"
        ))
    };
    let listener = TcpListener::bind(settings.listen).map_err(fail)?;
    let at = listener.local_addr().map_err(fail)?;
    let (board, page) = (Arc::new(Board::default()), page::Page::new());
    let server = Server {
        page,
        board: Arc::clone(&board),
        names: settings.names.clone(),
        streams: 0.into(),
        asking: Default::default(),
    };
    let control = control.unwrap_or(Path::new(SOCKET)).to_owned();
    let disks = settings.disks.clone().unwrap_or_else(|| disk::SOCKET.into());
    let looking = std::thread::Builder::new().name("look".into());
    looking.spawn(move || look::look(control, disks, timeout, &board)).map_err(fail)?;
    match json {
        true => writeln!(out, "{}", serde_json::json!({ "url": format!("http://{at}/") }))?,
        false => writeln!(out, "http://{at}/")?,
    }
    if !json && !at.ip().is_loopback() {
        writeln!(
            out,
            "everyone who reaches {at} can read the page: it has no password and is not encrypted"
        )?;
    }
    out.flush()?;
    Arc::new(server).run(&listener);
    Ok(())
}
