//! `hadmctl`: sends requests to a running daemon over its control socket, checks configuration files, and makes key
//! files.
//!
//! It knows the control protocol and the form in which answers are shown; their meaning is the daemon's matter.
//! Called by the binary.

pub mod args;
mod brief;
pub mod bundle;
mod convert;
mod daemon;
pub mod disk;
mod keygen;
mod show;
mod tables;
mod watch;
pub mod web;

use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use crate::config::Config;
use crate::control::{Carried, Examination, Json, Request, SOCKET, Status, Transition, metrics};
use crate::sys::exit;
use crate::wire::PeerKey;
use args::{Command, Options};
use daemon::Daemon;

/// The reason why a command failed.
#[derive(Debug)]
pub enum Failure {
    /// Something on this side, such as a file that cannot be written: a sentence for the operator.
    Said(String),
    /// The problems of a configuration file, ready to be printed.
    Configuration(String),
    /// No daemon is there, or it ended while it was asked: a sentence for the operator.
    NotThere(String),
    /// A daemon accepts connections and does not answer, or with something that is no answer, in words.
    NoAnswer(String),
    /// The daemon refuses, in its own words, or the system on its behalf.
    Refused(String),
    /// A peer that is not configured, and those that are.
    NoPeer(String),
    /// Everything was shown, and something in it is wrong.
    Unwell,
    /// The reader of the output has closed it.
    Unread,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Said(why)
            | Failure::Configuration(why)
            | Failure::NotThere(why)
            | Failure::NoAnswer(why)
            | Failure::Refused(why)
            | Failure::NoPeer(why) => f.write_str(why),
            Failure::Unwell | Failure::Unread => Ok(()),
        }
    }
}

impl Failure {
    /// Returns the exit status of the program.
    pub const fn status(&self) -> u8 {
        match self {
            Failure::Unread => 0,
            Failure::Said(_) | Failure::Unwell => exit::FAILED,
            Failure::Configuration(_) | Failure::NoPeer(_) => exit::USAGE,
            Failure::NotThere(_) => exit::NOT_THERE,
            Failure::NoAnswer(_) => exit::NO_ANSWER,
            Failure::Refused(_) => exit::REFUSED,
        }
    }
}

impl From<io::Error> for Failure {
    /// Takes an error of standard output or of this program's own files.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::Unread,
            _ => Failure::Said(error.to_string()),
        }
    }
}

/// Carries out a command.
///
/// # Errors
/// The reason why it failed.
pub fn run(options: &Options) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    if let Command::Check(file, hostname) = &options.command {
        let loaded =
            Config::check(file, hostname).map_err(|error| Failure::Configuration(error.to_string()))?;
        for warning in &loaded.warnings {
            writeln!(out, "{}:{warning}", file.display())?;
        }
        let (node, site) = (loaded.config.node, loaded.config.site);
        return Ok(writeln!(out, "{}: configuration is valid, seen from {node} of {site}", file.display())?);
    }
    if let Command::Keygen { file, rotate } = &options.command {
        let made = if *rotate { keygen::rotate(file) } else { keygen::make(file) };
        return Ok(writeln!(out, "{}", made.map_err(Failure::Said)?)?);
    }
    if let Command::Disk(command) = &options.command {
        return disk::run(command, options.control.as_deref(), options.timeout, &mut out);
    }
    if let Command::Convert(file) = &options.command {
        let done = convert::convert(file).map_err(Failure::Configuration)?;
        out.write_all(done.text.as_bytes())?;
        out.flush()?;
        let file = file.display();
        let lines = done.notes.iter().map(|note| format!("{file}:{note}\n"));
        let problems = done.problems.iter().map(|problem| format!("the new text:{problem}\n"));
        io::stderr().write_all(lines.chain(problems).collect::<String>().as_bytes())?;
        return if done.problems.is_empty() { Ok(()) } else { Err(Failure::Unwell) };
    }
    if let Command::Web(settings) = &options.command {
        return web::serve(settings, options.control.as_deref(), options.timeout, &mut out);
    }
    let control = options.control.as_deref().unwrap_or(Path::new(SOCKET));
    if let Command::Bundle(settings) = &options.command {
        return bundle::bundle(settings, control, options.timeout, &mut out);
    }
    if let Command::Status { json, watch: true } = options.command {
        let mut questions = watch::Questions::new("hadmd", control, options.timeout);
        let mut before: Option<Status> = None;
        return watch::watch(&mut questions, &Request::Status.line(), json, &mut out, |status, colour| {
            let now = read(status)?;
            let picture = brief::picture(&now, before.as_ref(), colour);
            before = Some(now);
            Ok(picture)
        });
    }
    let mut daemon = Daemon::connect(control, options.timeout)?;
    if let Some(peer) = options.command.peer() {
        require_peer(&read(&daemon.ask(&Request::Status)?)?, peer)?;
    }
    match &options.command {
        Command::Status { json, .. } => {
            let status = daemon.ask(&Request::Status)?;
            let colour = watch::has_colour(&out);
            print(&mut out, &status, *json, |status| show::status(status, colour))?;
        }
        Command::Events { json } => {
            let snapshot = daemon.ask(&Request::Events)?;
            print(&mut out, &snapshot, *json, show::snapshot)?;
            follow(&mut daemon, *json, &mut out)?;
        }
        Command::Trace { peer, kind, json } => {
            daemon.ask(&Request::Trace(*peer, *kind))?;
            follow(&mut daemon, *json, &mut out)?;
        }
        Command::Doctor { peer, json } => {
            let answer = daemon.ask_patiently(&Request::Doctor(*peer))?;
            let found: Examination = read(&answer)?;
            let colour = watch::has_colour(&out);
            print(&mut out, &answer, *json, |found| tables::doctor(found, colour))?;
            if !found.well {
                return Err(Failure::Unwell);
            }
        }
        Command::Mesh { json } => print(&mut out, &daemon.ask(&Request::Mesh)?, *json, tables::mesh)?,
        Command::Why { peer, json } => {
            let show = |all: &Vec<Transition>| show::transitions(all);
            print(&mut out, &daemon.ask(&Request::Why(*peer))?, *json, show)?;
        }
        Command::Metrics => {
            print(&mut out, &daemon.ask(&Request::Status)?, false, metrics::render)?;
        }
        Command::Version => {
            let status = daemon.ask(&Request::Status)?;
            let daemon = status.version().unwrap_or("unknown");
            writeln!(out, "hadmctl {}\nhadmd {daemon}", env!("CARGO_PKG_VERSION"))?;
        }
        Command::Plan { file, json } => {
            print(&mut out, &daemon.ask_patiently(&Request::Plan(file.clone()))?, *json, show::plan)?;
        }
        Command::Reload => print(&mut out, &daemon.ask_patiently(&Request::Reload)?, false, show::plan)?,
        Command::Connect(peer) => drop(daemon.ask(&Request::Connect(*peer))?),
        Command::Disconnect(peer) => drop(daemon.ask(&Request::Disconnect(*peer))?),
        Command::LogLevel(level) => drop(daemon.ask(&Request::LogLevel(*level))?),
        Command::Check(..) | Command::Keygen { .. } | Command::Disk(_) => {}
        Command::Web(_) | Command::Bundle(_) | Command::Convert(_) => {}
    }
    Ok(())
}

/// Reads an answer as this type.
fn read<T: Json>(answer: &Carried) -> Result<T, Failure> {
    answer.read().map_err(Failure::NoAnswer)
}

/// Prints an answer: as it is in JSON, or as text for people.
fn print<T: Json>(
    out: &mut impl Write,
    answer: &Carried,
    json: bool,
    show: impl Fn(&T) -> String,
) -> Result<(), Failure> {
    let text = if json { format!("{answer}\n") } else { show(&read(answer)?) };
    Ok(out.write_all(text.as_bytes())?)
}

/// Checks that the daemon has such a peer. One that has not started yet knows none, and answers that itself.
fn require_peer(status: &Status, peer: PeerKey) -> Result<(), Failure> {
    if status.running.is_none() || status.peers.iter().any(|known| known.peer == peer) {
        return Ok(());
    }
    let names: Vec<String> = status.peers.iter().map(|known| known.peer.to_string()).collect();
    Err(Failure::NoPeer(format!("{peer} is not configured; the peers are: {}", names.join(", "))))
}

/// Prints a stream's events until the daemon ends it.
fn follow(daemon: &mut Daemon, json: bool, out: &mut impl Write) -> Result<(), Failure> {
    out.flush()?;
    while let Some(event) = daemon.event()? {
        print(out, &event, json, |event| show::event(event) + "\n")?;
        out.flush()?;
    }
    Err(Failure::NotThere(
        "the daemon ended the stream: it has stopped, or this client did not keep up".into(),
    ))
}
