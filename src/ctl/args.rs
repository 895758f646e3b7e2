//! The command line of `hadmctl`.
//!
//! Reads it and does nothing itself. Called by the binary.

use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use super::{bundle, disk, names, web};
use crate::wire::{PacketType, PeerKey};

/// The text of `--help`.
pub const USAGE: &str = "\
Usage: hadmctl [--control FILE] [--timeout SECS] [--json] COMMAND

Asks and steers a running hadmd. Every command has --json, for scripts.

Commands:
  status [--watch]           the daemon, its kernel module and every peer; --watch: again each second, with rates
  summary [--disk-control FILE]
                             one line: peers, kernel module and disks, in a second at most
  wait PEER|all [--for SECS] wait until the peer is connected, or all are; without --for, for ever
  events                     what is connected now, then a line for each change as it happens
  doctor [PEER]              examine a peer, or this node and every peer: what is wrong, and what helps
  mesh                       who sees whom, as the peers tell it; what only one side sees is marked
  why PEER                   the last 32 transitions of a peer: when, what, why, who; why RES, doctor RES: those of disk
  trace [--peer PEER] [--type N]
                             packet headers as they are read
  metrics                    Prometheus text
  connect PEER               link a peer again that was disconnected
  disconnect PEER            end a peer's session, and leave it so until connect or a restart
  plan FILE                  what a reload of FILE would do to each peer; changes nothing
  reload                     read the configuration file anew and put it in force
  loglevel LEVEL             off, error, warn, info, debug or trace
  check FILE [--hostname NAME]
                             check a configuration file; needs no daemon
  keygen [--rotate] FILE     make a key file for encrypted links; --rotate: put a fresh key before
                             the newest one in it; needs no daemon
  web [--listen ADDR:PORT] [--allow-host NAME]... [--disk-control FILE]
                             serve a page to look at with a browser, until interrupted
  bundle [FILE] [--config FILE] [--disk-control FILE]
                             one archive for a support request, without keys; FILE - is standard output
  convert FILE               write a configuration of the older form in the newer one to standard output;
                             needs no daemon
  disk COMMAND               asks and steers a running hadm-nbd; see below
  version                    versions of this program and of the daemon

Disk commands:
  status [RES] [--watch]     role, disk and other sites of each mirrored disk
  metrics                    Prometheus text
  why RES                    the last 32 events of a mirrored disk: when, what, why
  doctor [RES]               examine disks, metadata and the other sites: what is wrong, and what helps
  primary RES [--force]      serve the disk here; --force: though newer data may be elsewhere
  secondary RES              serve it here no more
  connect RES [SITE]         mirror with the site again, or with all, after disconnect
  disconnect RES [SITE]      keep apart from the site, or from all, until connect or a restart
  verify RES [SITE]          compare this primary's disk with the site's while both are in use
  resync RES [SITE] [--full] copy to the site that is not primary what is marked; --full: all that differs
  pause RES [SITE]           stop resyncs, until resume or a restart
  plan RES [SITE]            the consequences of a connect; changes nothing
  discard RES                give up this secondary's changes when the sites meet next
  resume RES [SITE]          let resyncs go on, and writes that wait for a lost site
  grow RES                   mirror as much as the disks of all sites have by now; they are made larger first
  checkpoint RES NAME [--for SECS]
                             name this point of the writes, for sites with a copy that may be behind; --for: wait
                             until all of these have what was written before it

PEER is the host name of a node or N for node N, or RES:SITE for a site of a resource. RES is a resource's name or id,
SITE a site's id or the host name of a node there, which may stand for RES:SITE if it can mean nothing else.

Options:
      --control FILE         the daemon's control socket [default: /run/hadm/hadmd.sock];
                             for disk, that of hadm-nbd [default: /run/hadm/hadm-nbd.sock]
      --timeout SECS         how long the daemon may take to answer [default: 5, for summary 1]; a stream that
                             has begun may be silent for longer
      --json                 print the result as JSON, as etc/schema/hadmctl.json and hadm-json(7) say
      --for SECS             wait, disk checkpoint: how long
      --listen ADDR:PORT     web: where browsers connect [default: 127.0.0.1:9465]
      --allow-host NAME      web: a name by which browsers may call it, beside its address and localhost
      --disk-control FILE    web, bundle, summary, why, doctor: the control socket of hadm-nbd
      --config FILE          bundle: the configuration [default: /etc/hadm/hadm.xml]
      --version              print the version
  -h, --help                 print this help

Exit status: 0 well, 1 a peer or a check is not well, or a file cannot be written, 2 usage (also a peer or disk that
is not configured) or configuration, 3 the daemon is not there, 4 it does not answer, 5 it refuses.
";

/// A healthy daemon answers in milliseconds, one on an overloaded machine in a second or two.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The same for a line in a prompt: nobody waits long for that.
const SUMMARY_TIMEOUT: Duration = Duration::from_secs(1);

/// Parses seconds, with or without a fraction.
fn seconds(option: &str, text: &str, least: f64, most: f64) -> Result<Duration, String> {
    let wrong = || format!("{option}: {text:?} is no number of seconds from {least} to {most}");
    let number: f64 = text.parse().map_err(|_| wrong())?;
    if (least..=most).contains(&number) { Ok(Duration::from_secs_f64(number)) } else { Err(wrong()) }
}

/// Checks the name of a peer as far as that needs no daemon.
fn peer(text: &str) -> Result<String, String> {
    if names::is_id(text) {
        text.parse::<PeerKey>()?;
    }
    if text.is_empty() { Err("the name of a peer is empty".into()) } else { Ok(text.into()) }
}

/// A parsed command line.
#[derive(Debug)]
pub struct Options {
    /// The control socket; `None`: the default one.
    pub control: Option<PathBuf>,
    /// The control socket of `hadm-nbd`, for commands that ask both; `None`: the default one.
    pub disks: Option<PathBuf>,
    /// Longest time for the daemon to answer.
    pub timeout: Duration,
    /// True if the result is to be JSON.
    pub json: bool,
    /// The command.
    pub command: Command,
}

/// A command.
#[derive(Debug)]
#[allow(missing_docs, reason = "the usage text says what each is")]
pub enum Command {
    Status { watch: bool },
    Summary,
    Wait { peer: Option<String>, limit: Option<Duration> },
    Events,
    Doctor { peer: Option<String> },
    Mesh,
    Why { peer: String },
    Trace { peer: Option<String>, kind: Option<PacketType> },
    Metrics,
    Connect(String),
    Disconnect(String),
    LogLevel(LevelFilter),
    Plan(PathBuf),
    Reload,
    Check(PathBuf, String),
    Keygen { file: PathBuf, rotate: bool },
    Version,
    Web(web::Settings),
    Bundle(bundle::Settings),
    Convert(PathBuf),
    Disk(disk::Command),
}

/// The result of reading a command line.
#[derive(Debug)]
pub enum Parsed {
    /// Carry this out.
    Run(Options),
    /// Print this.
    Print(String),
}

/// Reads a command line.
///
/// # Errors
/// The fault in it.
pub fn parse(mut args: lexopt::Parser) -> Result<Parsed, lexopt::Error> {
    use lexopt::prelude::*;
    let (mut control, mut force, mut full) = (None, false, false);
    let (mut timeout, mut limit) = (None, None);
    let mut rotate = false;
    let (mut json, mut watch, mut traced, mut kind, mut hostname) = (false, false, None, None, None);
    let (mut listen, mut hosts, mut disks, mut config) = (None, Vec::new(), None, None::<PathBuf>);
    let mut words = Vec::new();
    while let Some(arg) = args.next()? {
        match arg {
            Long("control") => control = Some(args.value()?.into()),
            Long("force") => force = true,
            Long("full") => full = true,
            Long("timeout") => timeout = Some(seconds("--timeout", &args.value()?.string()?, 0.1, 86_400.0)?),
            Long("for") => limit = Some(seconds("--for", &args.value()?.string()?, 0.0, 31_622_400.0)?),
            Long("json") => json = true,
            Long("watch") => watch = true,
            Long("peer") => traced = Some(peer(&args.value()?.string()?)?),
            Long("type") => kind = Some(PacketType(args.value()?.parse()?)),
            Long("rotate") => rotate = true,
            Long("listen") => {
                listen = Some(args.value()?.parse_with(|text| {
                    text.parse().map_err(|_| {
                        format!("--listen: {text:?} is no ADDR:PORT as 127.0.0.1:9465 or [::1]:9465")
                    })
                })?)
            }
            Long("allow-host") => hosts.push(args.value()?.string()?),
            Long("config") => config = Some(args.value()?.into()),
            Long("disk-control") => disks = Some(PathBuf::from(args.value()?)),
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
    if let ["disk", rest @ ..] = &words[..] {
        let alien = traced.is_some() || kind.is_some() || hostname.is_some() || rotate;
        let alien = alien || listen.is_some() || !hosts.is_empty() || disks.is_some() || config.is_some();
        let command = disk::parse(rest, disk::Given { limit, watch, force, full, alien })?;
        let timeout = timeout.unwrap_or(TIMEOUT);
        return Ok(Parsed::Run(Options { control, disks, timeout, json, command: Command::Disk(command) }));
    }
    let given = [
        (force, "--force", &["disk primary"][..]),
        (full, "--full", &["disk resync"]),
        (limit.is_some(), "--for", &["wait", "disk checkpoint"]),
        (watch, "--watch", &["status"]),
        (traced.is_some(), "--peer", &["trace"]),
        (kind.is_some(), "--type", &["trace"]),
        (hostname.is_some(), "--hostname", &["check"]),
        (rotate, "--rotate", &["keygen"]),
        (listen.is_some(), "--listen", &["web"]),
        (!hosts.is_empty(), "--allow-host", &["web"]),
        (disks.is_some(), "--disk-control", &["web", "bundle", "summary", "why", "doctor"]),
        (config.is_some(), "--config", &["bundle"]),
    ];
    if let Some((_, option, at)) = given
        .into_iter()
        .find(|(given, _, at)| *given && words.first().is_some_and(|word| !at.contains(word)))
    {
        return Err(format!("{option} goes with {}", at.join(", ")).into());
    }
    let command = match words[..] {
        ["status"] => Command::Status { watch },
        ["summary"] => Command::Summary,
        ["wait", "all"] => Command::Wait { peer: None, limit },
        ["wait", one] => Command::Wait { peer: Some(peer(one)?), limit },
        ["events"] => Command::Events,
        ["doctor"] => Command::Doctor { peer: None },
        ["doctor", one] => Command::Doctor { peer: Some(peer(one)?) },
        ["mesh"] => Command::Mesh,
        ["why", one] => Command::Why { peer: peer(one)? },
        ["trace"] => Command::Trace { peer: traced, kind },
        ["metrics"] => Command::Metrics,
        ["connect", one] => Command::Connect(peer(one)?),
        ["disconnect", one] => Command::Disconnect(peer(one)?),
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
            // The daemon reads it, and has another working directory.
            let file = std::path::absolute(file).map_err(|error| format!("plan: {error}"))?;
            Command::Plan(file)
        }
        ["reload"] => Command::Reload,
        ["version"] => Command::Version,
        ["bundle", "-"] if json => {
            return Err("bundle -: standard output is the archive; --json goes with a FILE".into());
        }
        ["bundle"] | ["bundle", _] => {
            let file = words.get(1).map(PathBuf::from);
            let config = config.unwrap_or_else(|| bundle::CONFIG.into());
            Command::Bundle(bundle::Settings { file, config, disks: disks.clone() })
        }
        ["convert", file] => Command::Convert(file.into()),
        ["web"] => {
            let listen =
                listen.map_or_else(|| web::LISTEN.parse().map_err(|_| web::LISTEN.to_owned()), Ok)?;
            Command::Web(web::Settings { listen, names: hosts, disks: disks.clone() })
        }
        [] => return Err("a command is missing".into()),
        [command @ ("why" | "connect" | "disconnect"), ..] => {
            return Err(format!("{command} takes one PEER").into());
        }
        ["wait", ..] => return Err("wait takes one PEER, or all".into()),
        ["doctor", ..] => return Err("doctor takes one PEER, or none".into()),
        ["loglevel", ..] => return Err("loglevel takes one LEVEL".into()),
        ["bundle", ..] => return Err("bundle takes one FILE, or none".into()),
        [command @ ("check" | "plan" | "keygen" | "convert"), ..] => {
            return Err(format!("{command} takes one FILE").into());
        }
        [
            command @ ("status" | "summary" | "events" | "mesh" | "trace" | "metrics" | "reload" | "version"
            | "web"),
            ..,
        ] => {
            return Err(format!("{command} takes no arguments").into());
        }
        [command, ..] => return Err(format!("unknown command {command:?}").into()),
    };
    let usual = if matches!(command, Command::Summary) { SUMMARY_TIMEOUT } else { TIMEOUT };
    Ok(Parsed::Run(Options { control, disks, timeout: timeout.unwrap_or(usual), json, command }))
}
