//! `hadmctl`: sends requests to a running daemon over its control socket, checks configuration files, and makes key
//! files.
//!
//! It knows the control protocol and the form in which answers are shown; their meaning is the daemon's matter.
//! Called by the binary.

pub mod args;
mod brief;
pub mod bundle;
mod change;
mod checkpoint;
mod convert;
mod daemon;
pub mod disk;
mod json;
mod keygen;
mod names;
mod show;
mod summary;
mod tables;
mod wait;
mod watch;
pub mod web;

use std::fmt;
use std::io::{self, StdoutLock, Write};
use std::path::Path;

use serde_json::{Value, json};

use crate::config::Config;
use crate::control::{self, Carried, Examination, Json, Request, SOCKET, Status, Transition, metrics};
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
    /// The output has said what failed; the exit status.
    Shown(u8),
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
            Failure::Unwell | Failure::Shown(_) | Failure::Unread => Ok(()),
        }
    }
}

impl Failure {
    /// Returns the exit status of the program.
    pub const fn status(&self) -> u8 {
        match self {
            Failure::Unread => 0,
            Failure::Shown(status) => *status,
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
    let Options { timeout, json, command, .. } = options;
    let (timeout, json) = (*timeout, *json);
    let control = options.control.as_deref().unwrap_or(Path::new(SOCKET));
    let disks = options.disks.as_deref().unwrap_or(Path::new(disk::SOCKET));
    match command {
        Command::Check(file, hostname) => check(file, hostname, json, &mut out),
        Command::Keygen { file, rotate } => {
            let made = if *rotate { keygen::rotate(file) } else { keygen::make(file) };
            let says = made.map_err(Failure::Said)?;
            match json {
                true => writeln!(out, "{}", json!({ "file": file.display().to_string(), "says": says }))?,
                false => writeln!(out, "{says}")?,
            }
            Ok(())
        }
        Command::Convert(file) => convert(file, json, &mut out),
        Command::Web(settings) => web::serve(settings, options.control.as_deref(), timeout, json, &mut out),
        Command::Bundle(settings) => bundle::bundle(settings, control, timeout, json, &mut out),
        Command::Summary => summary::summary(control, disks, timeout, json, &mut out),
        Command::Wait { peer, limit } => {
            wait::wait(peer.as_deref(), *limit, (control, timeout), json, &mut out)
        }
        Command::Status { watch: true } => {
            let mut questions = watch::Questions::new("hadmd", control, timeout);
            let mut before: Option<Status> = None;
            watch::watch(&mut questions, &Request::Status.line(), json, &mut out, |status, colour| {
                let now = read(status)?;
                let picture = brief::picture(&now, before.as_ref(), colour);
                before = Some(now);
                Ok(picture)
            })
        }
        Command::Disk(command) => {
            disk::run(command, options.control.as_deref().unwrap_or(disks), timeout, json, &mut out)
        }
        Command::Why { peer } | Command::Doctor { peer: Some(peer) } if !names::is_id(peer) => {
            by_name(options, peer, (control, disks), &mut out)
        }
        command => ask(&mut Daemon::connect(control, timeout)?, command, json, &mut out),
    }
}

/// Carries out `why` or `doctor` with a name: of a peer, or of a mirrored disk.
fn by_name(
    options: &Options,
    name: &str,
    (control, disks): (&Path, &Path),
    out: &mut StdoutLock,
) -> Result<(), Failure> {
    let resource = name.to_owned();
    let of_disk = match &options.command {
        Command::Why { .. } => disk::Command::Why { resource },
        _ => disk::Command::Doctor { resource: Some(resource) },
    };
    let disk = |at: &Path, out: &mut StdoutLock| disk::run(&of_disk, at, options.timeout, options.json, out);
    let asked = Daemon::connect(control, options.timeout).and_then(|mut daemon| {
        let status = daemon.ask(&Request::Status)?;
        Ok((daemon, status))
    });
    let (mut daemon, status) = match asked {
        Ok(asked) => asked,
        // Without the daemon a disk can still be asked about.
        Err(failure) if options.control.is_none() && disks.exists() => {
            return disk(disks, out)
                .map_err(|other| if other.status() == exit::USAGE { failure } else { other });
        }
        Err(failure) => return Err(failure),
    };
    // The socket that was named may be that of hadm-nbd.
    if status.value().get("resources").is_some() {
        return disk(control, out);
    }
    let status: Status = read(&status)?;
    let peers = names::meant(name, &status);
    let is_disk = status.peers.iter().any(|peer| peer.resource_name.as_deref() == Some(name));
    if peers.is_empty() {
        let unknown = names::unknown(name, &status);
        return match disk(disks, out) {
            // The list of the peers helps more than that there is no disk, unless a disk is meant.
            Err(Failure::NoPeer(other)) if !is_disk => Err(Failure::NoPeer(format!("{unknown}; {other}"))),
            Err(Failure::NotThere(_)) if !is_disk => Err(unknown),
            done => done,
        };
    }
    if is_disk {
        let disk = [format!("the mirrored disk {name}, which `hadmctl disk` has")];
        return Err(names::ambiguous(name, peers.iter().map(|peer| peer.label()).chain(disk)));
    }
    ask(&mut daemon, &options.command, options.json, out)
}

/// Carries out a command that only asks the daemon.
fn ask(daemon: &mut Daemon, command: &Command, json: bool, out: &mut StdoutLock) -> Result<(), Failure> {
    match command {
        Command::Status { .. } => {
            let colour = watch::has_colour(out);
            print(out, &daemon.ask(&Request::Status)?, json, |status| show::status(status, colour))
        }
        Command::Events => {
            print(out, &daemon.ask(&Request::Events)?, json, show::snapshot)?;
            follow(daemon, json, out)
        }
        Command::Trace { peer, kind } => {
            let peer = peer.as_deref().map(|peer| meant(daemon, peer)).transpose()?;
            daemon.ask(&Request::Trace(peer, *kind))?;
            follow(daemon, json, out)
        }
        Command::Doctor { peer } => {
            let peer = peer.as_deref().map(|peer| meant(daemon, peer)).transpose()?;
            let answer = daemon.ask_patiently(&Request::Doctor(peer))?;
            let found: Examination = read(&answer)?;
            let colour = watch::has_colour(out);
            print(out, &answer, json, |found| tables::doctor(found, colour))?;
            if found.well { Ok(()) } else { Err(Failure::Unwell) }
        }
        Command::Mesh => print(out, &daemon.ask(&Request::Mesh)?, json, tables::mesh),
        Command::Why { peer } => {
            let peer = meant(daemon, peer)?;
            let show = |all: &Vec<Transition>| show::transitions(all);
            print(out, &daemon.ask(&Request::Why(peer))?, json, show)
        }
        Command::Metrics => {
            let text = metrics::render(&read(&daemon.ask(&Request::Status)?)?);
            Ok(out.write_all(if json { json::samples(&text) } else { text }.as_bytes())?)
        }
        Command::Version => {
            let status = daemon.ask(&Request::Status)?;
            let (own, daemon) = (env!("CARGO_PKG_VERSION"), status.version().unwrap_or("unknown"));
            match json {
                true => writeln!(out, "{}", json!({ "hadmctl": own, "hadmd": daemon }))?,
                false => writeln!(out, "hadmctl {own}\nhadmd {daemon}")?,
            }
            Ok(())
        }
        Command::Plan(file) => {
            let answer = daemon.ask_patiently(&Request::Plan(file.clone()))?;
            print(out, &answer, json, show::plan)?;
            match read::<control::Plan>(&answer)?.refused.is_empty() {
                true => Ok(()),
                false => Err(Failure::Unwell),
            }
        }
        Command::Reload => print(out, &daemon.ask_patiently(&Request::Reload)?, json, show::plan),
        Command::Connect(peer) => {
            let peer = meant(daemon, peer)?;
            daemon.ask(&Request::Connect(peer))?;
            done(out, json, json!({ "done": "connect", "peer": peer.to_string() }))
        }
        Command::Disconnect(peer) => {
            let peer = meant(daemon, peer)?;
            daemon.ask(&Request::Disconnect(peer))?;
            done(out, json, json!({ "done": "disconnect", "peer": peer.to_string() }))
        }
        Command::LogLevel(level) => {
            daemon.ask(&Request::LogLevel(*level))?;
            let level = level.as_str().to_ascii_lowercase();
            done(out, json, json!({ "done": "loglevel", "level": level }))
        }
        // Carried out without the daemon, or by others.
        _ => Ok(()),
    }
}

/// The peer that is meant.
fn meant(daemon: &mut Daemon, peer: &str) -> Result<PeerKey, Failure> {
    names::one(peer, &read(&daemon.ask(&Request::Status)?)?)
}

/// Says in JSON what was done; people see it by the exit status.
fn done(out: &mut impl Write, json: bool, done: Value) -> Result<(), Failure> {
    if json {
        writeln!(out, "{done}")?;
    }
    Ok(())
}

fn check(file: &Path, hostname: &str, json: bool, out: &mut impl Write) -> Result<(), Failure> {
    let result = Config::check(file, hostname);
    if json {
        writeln!(out, "{}", json::checked(file, &result))?;
    }
    let loaded = result.map_err(|error| Failure::Configuration(error.to_string()))?;
    if json {
        return Ok(());
    }
    for warning in &loaded.warnings {
        writeln!(out, "{}:{warning}", file.display())?;
    }
    let (node, site) = (loaded.config.node, loaded.config.site);
    Ok(writeln!(out, "{}: configuration is valid, seen from {node} of {site}", file.display())?)
}

fn convert(file: &Path, json: bool, out: &mut impl Write) -> Result<(), Failure> {
    let convert::Converted { text, notes, problems } =
        convert::convert(file).map_err(Failure::Configuration)?;
    let well = problems.is_empty();
    if json {
        writeln!(out, "{}", json!({ "text": text, "notes": notes, "problems": problems }))?;
    } else {
        out.write_all(text.as_bytes())?;
        out.flush()?;
        let file = file.display();
        let lines = notes.iter().map(|note| format!("{file}:{note}\n"));
        let problems = problems.iter().map(|problem| format!("the new text:{problem}\n"));
        io::stderr().write_all(lines.chain(problems).collect::<String>().as_bytes())?;
    }
    if well { Ok(()) } else { Err(Failure::Unwell) }
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
