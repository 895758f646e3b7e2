//! The pair of links to the daemon: attaching as the kernel module does, and the common end of both links.
//!
//! Every cause that ends the probe (a signal, the daemon, a lost peer, an error) ends both links through
//! [`Link::end`]: the first reason stays, and every thread that is blocked on a link wakes. Nothing else
//! may shut a link down. Used by every command.

use std::convert::Infallible;
use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::attach::{AttachError, Links, PacketReader, StateReader, States, is_closed};

use super::{Failure, say, spawn};

/// Time for which attaching is repeated when the daemon refuses: the program attached before may just be detaching.
const REFUSED_LIMIT: Duration = Duration::from_secs(3);

/// Pause between two attempts.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// Both links, shared by all threads of the probe.
#[derive(Clone)]
pub struct Link(Arc<Inner>);

struct Inner {
    links: Links,
    server: SocketAddr,
    end: OnceLock<Failure>,
}

impl Link {
    /// Attaches to the daemon at `server`; from then on SIGINT and SIGTERM end both links.
    ///
    /// After a refusal the attempt is repeated for 3 s. Errors are sentences for the user.
    pub fn attach(server: SocketAddr) -> Result<Link, Failure> {
        let attached = Arc::new(OnceLock::new());
        end_on_signals(&attached)?;
        let deadline = Instant::now() + REFUSED_LIMIT;
        let links = loop {
            match Links::attach(&server.into()) {
                Ok(links) => break links,
                Err(AttachError::Taken(_)) if Instant::now() < deadline => thread::sleep(REFUSED_PAUSE),
                Err(error) => return Err(Failure::Failed(error.to_string())),
            }
        };
        let link = Link(Arc::new(Inner { links, server, end: OnceLock::new() }));
        Ok(attached.get_or_init(|| link).clone())
    }

    /// Returns the daemon's address.
    pub fn server(&self) -> SocketAddr {
        self.0.server
    }

    /// Returns the data link. Reads and writes block.
    pub fn data(&self) -> &TcpStream {
        &self.0.links.data
    }

    /// Writes whole packets to the data link; blocks while the daemon takes nothing. One thread at a time.
    pub fn send(&self, packets: &[u8]) -> Result<(), Failure> {
        self.data().write_all(packets).map_err(|e| self.lost(&e))
    }

    /// Ends both links for this reason, unless they have ended before; returns the reason that came first.
    pub fn end(&self, why: Failure) -> Failure {
        let why = self.0.end.get_or_init(|| why).clone();
        self.0.links.shutdown();
        why
    }

    /// Ends both links because of an error on one of them; returns the reason that came first.
    pub fn lost(&self, error: &io::Error) -> Failure {
        let server = self.0.server;
        self.end(Failure::Failed(match error.kind() {
            ErrorKind::InvalidData => format!("the daemon at {server} is out of step: {error}"),
            _ if is_closed(error) => format!("the daemon at {server} has closed the connection"),
            _ => format!("the connection to the daemon at {server} failed: {error}"),
        }))
    }

    /// Calls `report` for each announcement on the meta link, changed or not, until the link ends or the call fails;
    /// returns the reason.
    pub fn each_state(&self, report: impl FnMut(&States) -> Result<(), Failure>) -> Failure {
        match self.tell_states(report) {
            Err(why) => self.end(why),
            Ok(never) => match never {},
        }
    }

    fn tell_states(
        &self,
        mut report: impl FnMut(&States) -> Result<(), Failure>,
    ) -> Result<Infallible, Failure> {
        let mut packets = PacketReader::new(&self.0.links.meta);
        let mut states = StateReader::default();
        loop {
            let header = packets.next_packet().map_err(|e| self.lost(&e))?.header;
            let before = states.take(&header).map_err(|e| self.lost(&e))?;
            let whole = if packets.is_ready().unwrap_or(false) { None } else { states.finish() };
            for announcement in before.iter().chain(&whole) {
                report(announcement)?;
            }
        }
    }
}

/// Starts the thread that ends the link at a signal. While there is no link yet, and at the second signal,
/// the thread ends the program: then something other than a link blocks the command.
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
