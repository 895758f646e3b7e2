//! `hadmctl`: asks and steers a running daemon over its control socket, checks configuration files,
//! and makes key files.
//!
//! It knows the control protocol and how to show what comes back; what the answers mean, the daemon knows.

pub mod args;
mod keygen;
mod show;
mod tables;

use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::config::Config;
use crate::control::{Request, metrics};
use args::{Command, Options};

/// Time between two looks of `status --watch`.
const WATCH: Duration = Duration::from_secs(1);

/// Why a command came to nothing.
#[derive(Debug)]
pub enum Failure {
    /// A sentence for the operator.
    Said(String),
    /// What is wrong with a configuration file, ready to be printed.
    Configuration(String),
    /// A peer that is not configured, and those that are.
    NoPeer(String),
    /// All was shown, and not all of it is well.
    Unwell,
    /// Whoever read the output went away.
    Unread,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::Unread,
            _ => Failure::Said(error.to_string()),
        }
    }
}

/// One conversation with a daemon.
struct Daemon {
    lines: io::Lines<BufReader<UnixStream>>,
    stream: UnixStream,
}

impl Daemon {
    fn connect(path: &Path) -> Result<Self, Failure> {
        let place = path.display();
        let stream = UnixStream::connect(path).map_err(|error| {
            let remedy = match error.kind() {
                io::ErrorKind::PermissionDenied => "be root, or in group hadm",
                _ => "is hadmd running? option --control names another socket",
            };
            Failure::Said(format!("cannot reach the daemon at {place}: {error}; {remedy}"))
        })?;
        let lines = BufReader::new(stream.try_clone()?).lines();
        Ok(Daemon { lines, stream })
    }

    /// The next line, `None` when the daemon hung up.
    fn line(&mut self) -> Result<Option<Value>, Failure> {
        let Some(line) = self.lines.next().transpose()? else { return Ok(None) };
        let line = serde_json::from_str(&line);
        line.map(Some)
            .map_err(|error| Failure::Said(format!("the daemon answered with something else: {error}")))
    }

    fn ask(&mut self, request: &Request) -> Result<Value, Failure> {
        match self.stream.write_all(format!("{}\n", request.line()).as_bytes()) {
            // A daemon that refuses a client says why before it hangs up.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            done => done?,
        }
        let gone = || Failure::Said("the daemon hung up".into());
        let mut answer = self.line()?.ok_or_else(gone)?;
        match answer.get("ok").and_then(Value::as_bool) {
            Some(true) => Ok(answer.get_mut("data").map(Value::take).unwrap_or_default()),
            _ => {
                let why = answer.get("error").and_then(Value::as_str).unwrap_or("refused without a reason");
                Err(Failure::Said(why.into()))
            }
        }
    }
}

/// Carries out a command.
///
/// # Errors
/// Why it came to nothing.
pub fn run(options: &Options) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    if let Command::Check(file, hostname) = &options.command {
        let loaded =
            Config::check(file, hostname).map_err(|error| Failure::Configuration(error.to_string()))?;
        for warning in &loaded.warnings {
            writeln!(out, "{}:{warning}", file.display())?;
        }
        let (node, site) = (loaded.config.node, loaded.config.site);
        return Ok(writeln!(out, "{}: good, seen from {node} of {site}", file.display())?);
    }
    if let Command::Keygen { file, rotate } = &options.command {
        let made = if *rotate { keygen::rotate(file) } else { keygen::make(file) };
        return Ok(writeln!(out, "{}", made.map_err(Failure::Said)?)?);
    }
    let mut daemon = Daemon::connect(&options.control)?;
    match &options.command {
        Command::Status { json, watch: false } => {
            let status = daemon.ask(&Request::Status)?;
            let text =
                if *json { format!("{status}\n") } else { show::status(&status, None, out.is_terminal()) };
            out.write_all(text.as_bytes())?;
        }
        Command::Status { json, watch: true } => watch(&mut daemon, *json, &mut out)?,
        Command::Events { json } => {
            let snapshot = daemon.ask(&Request::Events)?;
            let text = if *json { format!("{snapshot}\n") } else { show::snapshot(&snapshot) };
            out.write_all(text.as_bytes())?;
            follow(&mut daemon, *json, &mut out, show::event)?;
        }
        Command::Trace { peer, kind, json } => {
            daemon.ask(&Request::Trace(*peer, *kind))?;
            follow(&mut daemon, *json, &mut out, show::header)?;
        }
        Command::Doctor { peer, json } => {
            if let Some(peer) = peer {
                require_peer(&daemon.ask(&Request::Status)?, &peer.to_string())?;
            }
            let found = daemon.ask(&Request::Doctor(*peer))?;
            let text = if *json { format!("{found}\n") } else { tables::doctor(&found, out.is_terminal()) };
            out.write_all(text.as_bytes())?;
            if found.get("well") != Some(&Value::Bool(true)) {
                return Err(Failure::Unwell);
            }
        }
        Command::Mesh { json } => {
            let mesh = daemon.ask(&Request::Mesh)?;
            let text = if *json { format!("{mesh}\n") } else { tables::mesh(&mesh) };
            out.write_all(text.as_bytes())?;
        }
        Command::Why { peer, json } => {
            let transitions = daemon.ask(&Request::Why(*peer))?;
            if *json {
                writeln!(out, "{transitions}")?;
            } else {
                for transition in transitions.as_array().into_iter().flatten() {
                    writeln!(out, "{}", show::transition(transition))?;
                }
            }
        }
        Command::Metrics => {
            let status = daemon.ask(&Request::Status)?;
            out.write_all(metrics::render(&status).as_bytes())?;
        }
        Command::Version => {
            let status = daemon.ask(&Request::Status)?;
            let daemon = status.get("version").and_then(Value::as_str).unwrap_or("unknown");
            writeln!(out, "hadmctl {}\nhadmd {daemon}", env!("CARGO_PKG_VERSION"))?;
        }
        Command::Plan { file, json } => {
            let plan = daemon.ask(&Request::Plan(file.clone()))?;
            let text = if *json { format!("{plan}\n") } else { show::plan(&plan) };
            out.write_all(text.as_bytes())?;
        }
        Command::Reload => out.write_all(show::plan(&daemon.ask(&Request::Reload)?).as_bytes())?,
        Command::Connect(peer) => drop(daemon.ask(&Request::Connect(*peer))?),
        Command::Disconnect(peer) => drop(daemon.ask(&Request::Disconnect(*peer))?),
        Command::LogLevel(level) => drop(daemon.ask(&Request::LogLevel(*level))?),
        Command::Check(..) | Command::Keygen { .. } => {}
    }
    Ok(())
}

/// Whether the daemon has such a peer.
fn require_peer(status: &Value, name: &str) -> Result<(), Failure> {
    let peers = status["peers"].as_array().into_iter().flatten();
    let names: Vec<&str> = peers.filter_map(|peer| peer["peer"].as_str()).collect();
    match names.contains(&name) {
        true => Ok(()),
        false => {
            Err(Failure::NoPeer(format!("{name} is not configured; the peers are: {}", names.join(", "))))
        }
    }
}

/// Prints a stream's events until the daemon ends it.
fn follow(
    daemon: &mut Daemon,
    json: bool,
    out: &mut impl Write,
    show: impl Fn(&Value) -> String,
) -> Result<(), Failure> {
    out.flush()?;
    while let Some(line) = daemon.line()? {
        let event = line.get("event").unwrap_or(&Value::Null);
        let text = if json { event.to_string() } else { show(event) };
        writeln!(out, "{text}")?;
        out.flush()?;
    }
    Err(Failure::Said("the daemon ended the stream: it has stopped, or this client did not keep up".into()))
}

/// Shows the status again and again, with the rates between two looks.
fn watch(daemon: &mut Daemon, json: bool, out: &mut impl Write) -> Result<(), Failure> {
    let mut before: Option<Value> = None;
    loop {
        let status = daemon.ask(&Request::Status)?;
        let text = if json {
            format!("{status}\n")
        } else {
            // Home, the screen, what is left below it of the last one.
            format!("\x1b[H{}\x1b[J", show::status(&status, before.as_ref(), true).replace('\n', "\x1b[K\n"))
        };
        out.write_all(text.as_bytes())?;
        out.flush()?;
        before = Some(status);
        // A look a second is what was asked for; there is nothing to wait for.
        std::thread::park_timeout(WATCH);
    }
}
