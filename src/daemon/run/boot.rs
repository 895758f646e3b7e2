//! The time between the daemon's start and its work: conditions that pass by themselves, as at boot, are waited for.
//!
//! A thread tries to load the configuration, again and again while a name server is silent or the machine has no host
//! name yet; the main thread answers the control socket and signals meanwhile. An error that does not pass by itself
//! ends the wait. Called once, by the daemon's binary.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, select, unbounded};
use log::{info, warn};

use crate::config::Config;
use crate::control::{Answer, Line, Request, Status, Wait};
use crate::daemon::server::{ControlRequest, Names, Reloads};
use crate::service::{News, Notifier};
use crate::sys;

/// Pauses between two attempts: the first one, doubled up to the second one. Short enough for a machine that boots,
/// long enough for a name server that is down for hours.
const PAUSES: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(5)];

/// The outcome of an attempt to load the configuration.
pub enum Attempt {
    /// A configuration that the daemon can start with.
    Loaded(Box<Loaded>),
    /// A condition that passes by itself, in words.
    Waiting(String),
    /// An error, ready to be shown.
    Refused(String),
}

/// A configuration with its source.
pub struct Loaded {
    /// The configuration; names without an address have a placeholder address.
    pub config: Config,
    /// The host name by which the local node was found.
    pub hostname: String,
    /// Parts of the file that have no effect, one line each.
    pub warnings: Vec<String>,
    /// The file's bytes.
    pub bytes: Vec<u8>,
    /// The kernel module is loaded, or the reason why it is not.
    pub module: Result<(), String>,
}

/// Begins to load the configuration on a thread of its own; every new outcome comes as a message, the last one is not
/// [`Attempt::Waiting`].
///
/// # Errors
/// A sentence for the operator: the system refused another thread.
pub fn begin(mut attempt: impl FnMut() -> Attempt + Send + 'static) -> Result<Receiver<Attempt>, String> {
    let (told, news) = unbounded();
    let job = move || {
        let [mut pause, longest] = PAUSES;
        loop {
            let outcome = attempt();
            let waits = matches!(outcome, Attempt::Waiting(_));
            if told.send(outcome).is_err() || !waits {
                return;
            }
            std::thread::park_timeout(pause);
            pause = (pause * 2).min(longest);
        }
    };
    sys::spawn("boot", job).map_err(|error| format!("cannot start the thread that loads: {error}"))?;
    Ok(news)
}

/// Waits until the configuration is loaded or refused; `None` when the daemon is asked to end. Answers control
/// requests meanwhile, and logs once what it waits for.
pub fn wait(
    news: &Receiver<Attempt>,
    stop: &Receiver<String>,
    control_requests: &Receiver<ControlRequest>,
    notifier: &Notifier,
    mut why: String,
) -> Option<Attempt> {
    let born = Instant::now();
    let tell = |why: &str| {
        warn!("not started yet, waiting: {why}");
        notifier.tell(News::Status(format!("waiting: {why}")));
    };
    tell(&why);
    loop {
        select! {
            recv(news) -> outcome => match outcome.ok()? {
                Attempt::Waiting(now) if now == why => {}
                Attempt::Waiting(now) => {
                    tell(&now);
                    why = now;
                }
                outcome => {
                    info!("no longer waiting");
                    return Some(outcome);
                }
            },
            recv(stop) -> reason => {
                info!("ending: {}", reason.unwrap_or_default());
                notifier.tell(News::Stopping);
                return None;
            }
            recv(control_requests) -> request => answer(request.ok()?, &why, born),
        }
    }
}

fn answer(control: ControlRequest, why: &str, born: Instant) {
    let line = match control.request {
        Request::Status => Line::good(Answer::Status(Box::new(status(why, born)))),
        _ => Line::bad(format!("the daemon has not started yet, it waits: {why}")),
    };
    // A client that has hung up already needs no answer.
    let _ = control.reply.try_send(line);
}

fn status(why: &str, born: Instant) -> Status {
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        uptime_s: born.elapsed().as_secs_f64(),
        waiting: vec![Wait::Other(why.into())],
        running: None,
        peers: Vec::new(),
    }
}

/// Puts the configuration of the start in force once more each time a name server has answered for another of its
/// names; ends when all are known, or another configuration is in force.
///
/// # Errors
/// A sentence for the operator: the system refused another thread.
pub fn complete_later(bytes: Vec<u8>, names: Arc<Names>, reloads: Reloads) -> Result<(), String> {
    names.be_patient();
    let mut missing = names.missing();
    if missing.is_empty() {
        return Ok(());
    }
    warn!("waiting: no name server has given an address yet for {}", missing.join(", "));
    let job = move || {
        let [mut pause, longest] = PAUSES;
        while !missing.is_empty() {
            std::thread::park_timeout(pause);
            pause = (pause * 2).min(longest);
            missing.iter().for_each(|name| names.ask_again(name, pause));
            let now = names.missing();
            if now.len() < missing.len() {
                match reloads.again(&bytes, &names) {
                    None => return,
                    Some(true) => {
                        missing.iter().filter(|name| !now.contains(name)).for_each(|name| {
                            info!("no longer waiting: a name server has given an address for {name}");
                        });
                        missing = now;
                    }
                    // Another reload is at work: try at the next look.
                    Some(false) => {}
                }
            }
        }
    };
    sys::spawn("late-names", job).map_err(|error| format!("cannot start the thread for late names: {error}"))
}
