//! The command line of `hadmctl`.

use std::path::PathBuf;

use log::LevelFilter;

use crate::control::SOCKET;
use crate::core::PeerKey;
use crate::wire::PacketType;

/// What `--help` prints.
pub const USAGE: &str = "\
Usage: hadmctl [--control FILE] COMMAND

Asks and steers a running hadmd.

Commands:
  status [--json] [--watch]  the daemon, its kernel module and every peer; --watch: again each second, with rates
  events [--json]            what is connected now, then a line for each change as it happens
  doctor [PEER] [--json]     examine a peer, or this node and every peer: what is wrong, and what helps
  mesh [--json]              who sees whom, as the peers tell it; what only one side sees is marked
  why PEER [--json]          the last 32 transitions of a peer: when, what, why, who
  trace [--peer PEER] [--type N] [--json]
                             packet headers as they are read
  metrics                    Prometheus text
  connect PEER               link a peer again that was disconnected
  disconnect PEER            end a peer's session, and leave it so until connect or a restart
  plan FILE [--json]         what a reload of FILE would do to each peer; changes nothing
  reload                     read the configuration file anew and put it in force
  loglevel LEVEL             off, error, warn, info, debug or trace
  check FILE [--hostname NAME]
                             check a configuration file; needs no daemon
  keygen [--rotate] FILE     make a key file for encrypted links; --rotate: put a fresh key before
                             the newest one in it; needs no daemon
  version                    versions of this program and of the daemon

PEER is N for node N, or R:S for site S of resource R.

Options:
      --control FILE         the daemon's control socket [default: /run/hadm/hadmd.sock]
      --version              print the version
  -h, --help                 print this help

Exit status: 0 done, 1 the daemon cannot be reached or refuses, or doctor finds something wrong, 2 usage or
configuration.
";

/// A command line that says what to do.
#[derive(Debug)]
pub struct Options {
    /// The daemon's control socket.
    pub control: PathBuf,
    /// What to do.
    pub command: Command,
}

/// What to do.
#[derive(Debug)]
#[allow(missing_docs, reason = "the usage text says what each is")]
pub enum Command {
    Status { json: bool, watch: bool },
    Events { json: bool },
    Doctor { peer: Option<PeerKey>, json: bool },
    Mesh { json: bool },
    Why { peer: PeerKey, json: bool },
    Trace { peer: Option<PeerKey>, kind: Option<PacketType>, json: bool },
    Metrics,
    Connect(PeerKey),
    Disconnect(PeerKey),
    LogLevel(LevelFilter),
    Plan { file: PathBuf, json: bool },
    Reload,
    Check(PathBuf, String),
    Keygen { file: PathBuf, rotate: bool },
    Version,
}

/// What a command line comes to.
#[derive(Debug)]
pub enum Parsed {
    /// Do this.
    Run(Options),
    /// Print this.
    Print(String),
}

/// Reads a command line.
///
/// # Errors
/// What is wrong with it.
pub fn parse(mut args: lexopt::Parser) -> Result<Parsed, lexopt::Error> {
    use lexopt::prelude::*;
    let mut control = PathBuf::from(SOCKET);
    let mut rotate = false;
    let (mut json, mut watch, mut peer, mut kind, mut hostname) = (false, false, None, None, None);
    let mut words = Vec::new();
    while let Some(arg) = args.next()? {
        match arg {
            Long("control") => control = args.value()?.into(),
            Long("json") => json = true,
            Long("watch") => watch = true,
            Long("peer") => peer = Some(args.value()?.parse::<PeerKey>()?),
            Long("type") => kind = Some(PacketType(args.value()?.parse()?)),
            Long("rotate") => rotate = true,
            Long("hostname") => hostname = Some(args.value()?.string()?),
            Long("version") => {
                return Ok(Parsed::Print(format!("hadmctl {}\n", env!("CARGO_PKG_VERSION"))));
            }
            Long("help") | Short('h') => return Ok(Parsed::Print(USAGE.into())),
            Value(word) => words.push(word.string()?),
            other => return Err(other.unexpected()),
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let given = [
        (json, "--json", &["status", "events", "doctor", "mesh", "why", "trace", "plan"][..]),
        (watch, "--watch", &["status"]),
        (peer.is_some(), "--peer", &["trace"]),
        (kind.is_some(), "--type", &["trace"]),
        (hostname.is_some(), "--hostname", &["check"]),
        (rotate, "--rotate", &["keygen"]),
    ];
    if let Some((_, option, at)) = given
        .into_iter()
        .find(|(given, _, at)| *given && words.first().is_some_and(|word| !at.contains(word)))
    {
        return Err(format!("{option} goes with {}", at.join(", ")).into());
    }
    let command = match words[..] {
        ["status"] => Command::Status { json, watch },
        ["events"] => Command::Events { json },
        ["doctor"] => Command::Doctor { peer: None, json },
        ["doctor", peer] => Command::Doctor { peer: Some(peer.parse()?), json },
        ["mesh"] => Command::Mesh { json },
        ["why", peer] => Command::Why { peer: peer.parse()?, json },
        ["trace"] => Command::Trace { peer, kind, json },
        ["metrics"] => Command::Metrics,
        ["connect", peer] => Command::Connect(peer.parse()?),
        ["disconnect", peer] => Command::Disconnect(peer.parse()?),
        ["loglevel", level] => Command::LogLevel(
            level
                .parse()
                .map_err(|_| format!("{level:?} is no log level: off, error, warn, info, debug or trace"))?,
        ),
        ["check", file] => {
            let machine = || rustix::system::uname().nodename().to_string_lossy().into_owned();
            Command::Check(file.into(), hostname.unwrap_or_else(machine))
        }
        ["keygen", file] => Command::Keygen { file: file.into(), rotate },
        ["plan", file] => {
            // The daemon reads it, and it runs elsewhere.
            let file = std::path::absolute(file).map_err(|error| format!("plan: {error}"))?;
            Command::Plan { file, json }
        }
        ["reload"] => Command::Reload,
        ["version"] => Command::Version,
        [] => return Err("a command is missing".into()),
        [command @ ("why" | "connect" | "disconnect"), ..] => {
            return Err(format!("{command} takes one PEER").into());
        }
        ["doctor", ..] => return Err("doctor takes one PEER, or none".into()),
        ["loglevel", ..] => return Err("loglevel takes one LEVEL".into()),
        [command @ ("check" | "plan" | "keygen"), ..] => {
            return Err(format!("{command} takes one FILE").into());
        }
        [command @ ("status" | "events" | "mesh" | "trace" | "metrics" | "reload" | "version"), ..] => {
            return Err(format!("{command} takes no arguments").into());
        }
        [command, ..] => return Err(format!("unknown command {command:?}").into()),
    };
    Ok(Parsed::Run(Options { control, command }))
}
