//! `hadm-nbd run`: threads, sockets and time around the state machines of the mirrors.
//!
//! Decides nothing about data: what is written, sent and answered, and in which order, the core says. Called by the
//! binary.

mod attach;
mod calls;
mod commands;
mod control;
mod counters;
mod doctor;
mod grow;
mod handlers;
mod journal;
mod link;
mod metrics;
mod mirror;
mod open;
mod progress;
mod protect;
mod reload;
mod replies;
mod served;
mod shared;
mod status;
mod stopwatch;
mod warnings;
mod witness;

pub use control::SOCKET;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, unbounded};
use log::{error, info, warn};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use self::attach::Attachment;
use self::link::Link;
use self::mirror::{CommandResult, Mirror};
use self::shared::Shared;
use self::witness::Witness;
use crate::attach::InProcess;
use crate::config::{Config, Resource};
use crate::logging;
use crate::nbd::core::{Command, Event};
use crate::nbd::server::{Exports, Limits, Listener, Server};
use crate::service::{self, News, Notifier};
use crate::sys;

/// Time between two ticks of the cores.
const TICK: Duration = Duration::from_millis(100);

/// Stack of each thread in bytes, to be set before there is one: BLAKE3 without optimisation takes more than 128 KiB. Pages that are not used cost nothing.
pub const STACK: usize = 1 << 20;

/// Longest time for primaries to leave their role at the end: as long as a flush of a busy disk takes.
const FAREWELL: Duration = Duration::from_secs(20);

/// The signal at which the configuration is read anew.
const RELOAD: &str = "SIGHUP";

/// The options of `run`.
pub struct Setup<'a> {
    /// The daemon's place.
    pub server: crate::attach::Server,
    /// The daemon in this process, if there is one.
    pub daemon: Option<OwnDaemon>,
    /// The configuration.
    pub config: &'a Config,
    /// Reads it anew; an error is in words.
    pub read: &'a dyn Fn() -> Result<Config, String>,
    /// The resources to serve.
    pub resources: Vec<&'a Resource>,
    /// The path of the control socket; `None`: the default one, if it can be made.
    pub control: Option<PathBuf>,
    /// The folder of the NBD sockets.
    pub sockets: PathBuf,
}

/// A daemon in this process.
pub struct OwnDaemon {
    /// The meeting point with it.
    pub in_process: Arc<InProcess>,
    /// Requests to end it, each with its reason in words.
    pub stop: Sender<String>,
    /// Its end: its exit status, or a sentence for the operator.
    pub ended: Receiver<Result<u8, String>>,
}

/// Serves resources until a signal ends it.
///
/// # Errors
/// Why nothing can be served.
pub fn run(setup: Setup<'_>) -> Result<(), String> {
    let config = setup.config;
    let unprotected = protect::protect();
    unprotected.iter().for_each(|part| info!("not protected: {part}"));
    let stop = signals()?;
    let notifier = Notifier::start()?;
    let fail = |error: std::io::Error| format!("cannot start a thread: {error}");
    let link = Link::new(config.slow_timeout).map_err(fail)?;
    let mut mirrors = Vec::new();
    let mut listeners = Vec::new();
    let mut witnesses = Vec::new();
    for resource in &setup.resources {
        match Witness::open(resource, config.site, &link) {
            Ok(None) => {}
            Ok(Some(witness)) => {
                witnesses.push(witness);
                continue;
            }
            Err(why) if setup.resources.len() > 1 => {
                error!("{why}");
                continue;
            }
            Err(why) => return Err(why),
        }
        let opened = open::open(config, resource, &link).and_then(|mirror| {
            listeners.extend(listen(config, resource, &mirror, &setup.sockets)?);
            Ok(mirror)
        });
        match opened {
            Ok(mirror) => mirrors.push(mirror),
            // It keeps no other from being served.
            Err(why) if setup.resources.len() > 1 => error!("{why}"),
            Err(why) => return Err(why),
        }
    }
    if mirrors.is_empty() && witnesses.is_empty() {
        return Err("none of the resources can be served".into());
    }
    let in_process = setup.daemon.as_ref().map(|daemon| Arc::clone(&daemon.in_process));
    let place = (setup.server, in_process);
    let attachment =
        Attachment::start(place, Arc::clone(&link), mirrors.clone(), witnesses.clone()).map_err(fail)?;
    let shared = Arc::new(Shared {
        mirrors: mirrors.clone(),
        witnesses: witnesses.clone(),
        attachment,
        config: Mutex::new(Arc::new(config.clone())),
        unprotected,
    });
    let _control = match &setup.control {
        Some(path) => Some(control::serve(path, Arc::clone(&shared))?),
        None => control::serve(Path::new(SOCKET), Arc::clone(&shared))
            .inspect_err(|why| warn!("running without a control socket: {why}"))
            .ok(),
    };
    let witnessed = witnesses.iter().map(|witness| witness.name.as_str());
    let names: Vec<_> = mirrors.iter().map(|mirror| mirror.name.as_str()).chain(witnessed).collect();
    info!("ready: {}", names.join(", "));
    notifier.tell(News::Ready);
    let watchdog = service::watchdog();
    let mut petted = Instant::now();
    let (signal, daemon) = loop {
        if let Some(ended) = setup.daemon.as_ref().and_then(|daemon| daemon.ended.try_recv().ok()) {
            break ("the daemon in this process has ended", Some(ended));
        }
        match stop.recv_timeout(TICK) {
            Ok(RELOAD) => {
                info!("{RELOAD}: reading the configuration anew");
                match (setup.read)() {
                    Ok(fresh) => reload::reload(&shared, fresh),
                    Err(why) => error!("reload: the old configuration stays in force: {why}"),
                }
            }
            Ok(signal) => break (signal, None),
            Err(crossbeam::channel::RecvTimeoutError::Timeout) => {}
            Err(crossbeam::channel::RecvTimeoutError::Disconnected) => {
                break ("the end of its signals", None);
            }
        }
        for mirror in &mirrors {
            mirror.handle(Event::Tick);
            mirror.look();
        }
        logging::tell_left_out();
        if watchdog.is_some_and(|interval| petted.elapsed() >= interval) {
            petted = Instant::now();
            notifier.tell(News::Alive);
        }
    };
    info!("{signal}: ending");
    notifier.tell(News::Stopping);
    drop(listeners);
    leave(&mirrors);
    let daemon = daemon.or_else(|| {
        let daemon = setup.daemon?;
        let _ = daemon.stop.send(signal.to_owned());
        daemon.ended.recv_timeout(FAREWELL).ok()
    });
    notifier.flush(TICK);
    match daemon {
        Some(Err(why)) => Err(why),
        Some(Ok(status)) if status > 0 => {
            Err(format!("the daemon in this process ended with status {status}"))
        }
        _ => Ok(()),
    }
}

/// The listeners for clients of a resource: its Unix socket and, if it is configured, a TCP port.
fn listen(
    config: &Config,
    resource: &Resource,
    mirror: &Arc<Mirror>,
    sockets: &Path,
) -> Result<Vec<Listener>, String> {
    let Some(here) = resource.runsite(config.site) else { return Ok(Vec::new()) };
    let limits = Limits {
        connections: here.mirror.nbd_clients as usize,
        bytes: usize::try_from(here.mirror.nbd_memory).unwrap_or(usize::MAX),
        ..Limits::default()
    };
    let server = Server::new(limits);
    let exports = Exports::new([Arc::clone(&mirror.export)]);
    let path = sockets.join(format!("{}.nbd", resource.name.replace('/', "_")));
    let mut listeners = vec![server.listen_unix(&path, Some("hadm"), Arc::clone(&exports))?];
    if let Some(address) = here.mirror.nbd {
        listeners.push(server.listen_tcp(address, exports)?);
    }
    Ok(listeners)
}

/// Primaries leave their role in order, and then each site its mirror, as long as that takes no longer than [`FAREWELL`].
fn leave(mirrors: &[Arc<Mirror>]) {
    let end = Instant::now() + FAREWELL;
    let leaving: Vec<_> = mirrors.iter().map(|mirror| (mirror, mirror.command(Command::Demote))).collect();
    for (mirror, answer) in leaving {
        wait_for(mirror, answer, end);
        // A primary elsewhere hears that this disk will be old.
        wait_for(mirror, mirror.command(Command::Leave), end);
        let left = end.saturating_duration_since(Instant::now());
        mirror.export.close();
        mirror.export.wait_idle(left.min(Duration::from_secs(1)));
    }
}

fn wait_for(mirror: &Arc<Mirror>, answer: Option<Receiver<CommandResult>>, end: Instant) {
    if let Some(answer) = answer {
        while let Err(crossbeam::channel::RecvTimeoutError::Timeout) = answer.recv_timeout(TICK) {
            mirror.handle(Event::Tick);
            if Instant::now() > end {
                warn!(
                    "{}: it did not leave in time: as after a crash, its last writes are compared",
                    mirror.name
                );
                break;
            }
        }
    }
}

/// The signals, by name; all but [`RELOAD`] end the program.
fn signals() -> Result<Receiver<&'static str>, String> {
    let fail = |error: std::io::Error| format!("cannot wait for signals: {error}");
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(fail)?;
    let (sender, receiver) = unbounded();
    let wait = move || {
        for signal in signals.forever() {
            let _ = sender.send(match signal {
                SIGTERM => "SIGTERM",
                SIGINT => "SIGINT",
                _ => RELOAD,
            });
        }
    };
    sys::spawn("signals", wait).map_err(fail)?;
    Ok(receiver)
}
