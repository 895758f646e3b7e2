//! The command line of `hadm-probe`.
//!
//! Turns arguments into [`Options`] or into a sentence that names their fault; it must never touch
//! the network or the file system. Used by the binary, and by every command for its own part of the options.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use lexopt::{Arg, Parser, ValueExt};

use crate::wire::{MAX_IDS, Mask, ResourceId, Scope};

use crate::attach::Group;

/// The server, the output format and the command that the command line asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The address on which the daemon listens for its kernel module.
    pub server: SocketAddr,
    /// True if results are printed as JSON instead of text.
    pub json: bool,
    /// The command with its options.
    pub command: Command,
}

/// The commands.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Prints the connection state as it changes.
    State,
    /// Sends a file.
    Send(SendFile),
    /// Receives a file.
    Recv {
        /// The path of the received file.
        output: PathBuf,
        /// The resource whose transfers are received.
        dev: ResourceId,
    },
    /// Answers the `latency` and `throughput` of other probes.
    Echo,
    /// Measures round-trip times to one node or site.
    Latency(Measure),
    /// Measures packets and bytes per second to some nodes or sites.
    Throughput(Measure),
}

/// The nodes or sites that packets are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The kind of the ids: nodes or sites.
    pub scope: Scope,
    /// The ids; never empty.
    pub ids: Mask,
    /// The resource that the packets name; with [`Scope::Site`], the resource whose sites the ids are.
    pub dev: ResourceId,
}

impl Target {
    /// Returns the group of the ids.
    pub(super) fn group(&self) -> Group {
        Group::of(self.scope, self.dev)
    }
}

/// The options of `send`.
#[derive(Clone, Debug, PartialEq)]
pub struct SendFile {
    /// The receivers.
    pub to: Target,
    /// Longest wait for the receivers; `None` = for ever.
    pub timeout: Option<Duration>,
    /// The file to send.
    pub file: PathBuf,
}

/// The options of `latency` and `throughput`.
#[derive(Clone, Debug, PartialEq)]
pub struct Measure {
    /// The nodes or sites to measure; for `latency` exactly one.
    pub to: Target,
    /// Longest wait for them; `None` = for ever.
    pub timeout: Option<Duration>,
    /// Payload bytes of each packet, 1..=[`SIZE_MAX`].
    pub size: usize,
    /// The duration of the measurement.
    pub time: Duration,
}

/// Largest `--size` in bytes: the longest payload that a daemon takes unless `maxpacket` is configured.
pub const SIZE_MAX: usize = 16 << 20;

/// Longest `--secs` and `--timeout` in seconds: a year.
const SECONDS_MAX: f64 = 365.0 * 86_400.0;

/// A parsed command line: a command, or a text to print.
#[derive(Debug, PartialEq)]
pub enum Parsed {
    /// A command to carry out.
    Run(Options),
    /// A text for stdout (`--help`, `--version`).
    Print(String),
}

const HELP: &str = "\
hadm-probe: plays the kernel module towards a running hadmd

Usage: hadm-probe [--server ADDR:PORT] COMMAND ...

Commands
  state                     print which nodes, and which sites of each resource,
                            are connected, a line per change
  send --to 1,2 [--timeout SECS] FILE
                            send FILE to the nodes, where `recv` must run
  recv -o FILE [--dev N]    wait for one file and write it to FILE, replacing it
                            only when the whole file has the right digest
  echo                      answer `latency` and `throughput` of others
  latency --to 1 [--size 4096] [--secs 5] [--timeout SECS]
                            round-trip times to `echo` at a node, one at a time
  throughput --to 1,2 [--size 4096] [--secs 5] [--timeout SECS]
                            numbered packets to `echo` at the nodes, as fast as
                            they are taken

Options
  --server ADDR:PORT  where hadmd listens for its kernel module
                      (serverip:serverport; default 127.0.0.1:9998)
  --json              results as JSON: one document at the end, or for `state`
                      one line per change
  --to IDS            node ids, 0 to 31, separated by commas
  --dev N             resource number the packets carry, 0 to 254 (default 0)
  --site              the ids in --to are sites, seen from the resource in --dev,
                      which must be given. `recv` and `echo` need no --site:
                      they answer nodes and sites, each the way it asked
  --size BYTES        payload of each packet, 1 to 16777216
  --secs SECS         how long to measure
  --timeout SECS      how long to wait until all in --to are connected and
                      answer (default 60; 0 = for ever)
  --help, --version

Only one kernel module or probe can be attached to a daemon at a time.
Exit status: 0 done, 1 failed, 2 wrong usage. `state` and `echo` run until
SIGINT or SIGTERM, and then exit with 0.
";

/// Reads the arguments (without the program's name). The error is a sentence without a full stop.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Parsed, String> {
    let mut parser = Parser::from_args(args);
    let mut given = Given::default();
    while let Some(arg) = parser.next().map_err(|e| e.to_string())? {
        match arg {
            Arg::Long("help") | Arg::Short('h') => return Ok(Parsed::Print(HELP.to_owned())),
            Arg::Long("version") | Arg::Short('V') => {
                return Ok(Parsed::Print(format!("hadm-probe {}\n", env!("CARGO_PKG_VERSION"))));
            }
            Arg::Value(word) if given.command.is_none() => given.command = Some(text(word)?),
            other => given.take(other.into(), &mut parser)?,
        }
    }
    given.options().map(Parsed::Run)
}

/// An argument, owned, so that it outlives the parser's borrow.
enum Word {
    Option(String),
    Value(OsString),
}

impl From<Arg<'_>> for Word {
    fn from(arg: Arg<'_>) -> Self {
        match arg {
            Arg::Short(c) => Word::Option(format!("-{c}")),
            Arg::Long(name) => Word::Option(format!("--{name}")),
            Arg::Value(value) => Word::Value(value),
        }
    }
}

/// The values on the command line, not yet checked against one another.
#[derive(Default)]
struct Given {
    server: Option<SocketAddr>,
    json: bool,
    command: Option<String>,
    to: Option<Mask>,
    site: bool,
    dev: Option<ResourceId>,
    timeout: Option<Option<Duration>>,
    size: Option<usize>,
    secs: Option<Duration>,
    output: Option<PathBuf>,
    file: Option<PathBuf>,
}

impl Given {
    fn take(&mut self, word: Word, parser: &mut Parser) -> Result<(), String> {
        let option = match word {
            Word::Option(option) => option,
            Word::Value(value) if self.command.as_deref() == Some("send") && self.file.is_none() => {
                self.file = Some(value.into());
                return Ok(());
            }
            Word::Value(value) => return Err(format!("unexpected argument {value:?}")),
        };
        if option == "--json" {
            self.json = true;
            return Ok(());
        }
        let command = self.command.as_deref();
        let known = match option.as_str() {
            "--server" => true,
            "--to" | "--site" | "--timeout" => matches!(command, Some("send" | "latency" | "throughput")),
            "--dev" => matches!(command, Some("send" | "recv" | "latency" | "throughput")),
            "--size" | "--secs" => matches!(command, Some("latency" | "throughput")),
            "-o" | "--output" => command == Some("recv"),
            _ => false,
        };
        if !known {
            let place = command.map_or("before a command".to_owned(), |c| format!("for the command `{c}`"));
            return Err(format!("there is no option {option} {place}"));
        }
        if option == "--site" {
            self.site = true;
            return Ok(());
        }
        let value = parser.value().map_err(|e| e.to_string())?;
        if let "-o" | "--output" = option.as_str() {
            self.output = Some(value.into());
            return Ok(());
        }
        let value = text(value)?;
        let wrong = |right: &str| format!("{option} {value:?} is not {right}");
        match option.as_str() {
            "--server" => {
                self.server =
                    Some(value.parse().map_err(|_| wrong("an address and port, as 127.0.0.1:9998"))?);
            }
            "--to" => self.to = Some(ids(&value).ok_or_else(|| wrong("a list of ids from 0 to 31, as 0,2"))?),
            "--dev" => {
                let id = value.parse().ok().and_then(|n: u32| ResourceId::try_from(n).ok());
                self.dev = Some(id.ok_or_else(|| wrong("a resource number from 0 to 254"))?);
            }
            "--size" => {
                let size = value.parse().ok().filter(|n| (1..=SIZE_MAX).contains(n));
                self.size = Some(size.ok_or_else(|| wrong("a number of bytes from 1 to 16777216"))?);
            }
            "--secs" => {
                let time = seconds(&value).filter(|time| !time.is_zero());
                self.secs = Some(time.ok_or_else(|| wrong("a number of seconds over 0"))?);
            }
            _ => {
                let time = seconds(&value).ok_or_else(|| wrong("a number of seconds (0 = for ever)"))?;
                self.timeout = Some(Some(time).filter(|time| !time.is_zero()));
            }
        }
        Ok(())
    }

    fn options(self) -> Result<Options, String> {
        const DEFAULT_SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9998);
        let name = self.command.ok_or("a command is missing")?;
        let default = ResourceId::try_from(0).ok().filter(|_| !self.site);
        let dev = self.dev.or(default).ok_or("--site needs --dev with the resource whose sites are meant")?;
        let scope = if self.site { Scope::Site } else { Scope::Node };
        let to = match self.to {
            Some(ids) => Ok(Target { scope, ids, dev }),
            None => Err(format!("`{name}` needs --to with the ids of the nodes or sites")),
        };
        let timeout = self.timeout.unwrap_or(Some(Duration::from_secs(60)));
        let measure = |to| Measure {
            to,
            timeout,
            size: self.size.unwrap_or(4096),
            time: self.secs.unwrap_or(Duration::from_secs(5)),
        };
        let command = match name.as_str() {
            "state" => Command::State,
            "echo" => Command::Echo,
            "recv" => Command::Recv { output: self.output.ok_or("`recv` needs -o with a file name")?, dev },
            "send" => {
                Command::Send(SendFile { to: to?, timeout, file: self.file.ok_or("`send` needs a file")? })
            }
            "latency" => match to? {
                to if to.ids.0.is_power_of_two() => Command::Latency(measure(to)),
                _ => {
                    return Err(
                        "`latency` measures one node or site at a time: give one id to --to".to_owned()
                    );
                }
            },
            "throughput" => Command::Throughput(measure(to?)),
            other => {
                return Err(format!(
                    "there is no command {other:?}: give state, send, recv, echo, latency or throughput"
                ));
            }
        };
        Ok(Options { server: self.server.unwrap_or(DEFAULT_SERVER), json: self.json, command })
    }
}

fn text(value: OsString) -> Result<String, String> {
    value.string().map_err(|e| e.to_string())
}

/// Reads `0,2` as a set; `None` if it is empty or a part is no id.
fn ids(list: &str) -> Option<Mask> {
    let mut mask = Mask(0);
    for id in list.split(',') {
        mask = mask | Mask::of(id.trim().parse().ok().filter(|id| *id < MAX_IDS)?);
    }
    Some(mask)
}

fn seconds(value: &str) -> Option<Duration> {
    let seconds: f64 = value.parse().ok()?;
    if !(0.0..=SECONDS_MAX).contains(&seconds) {
        return None;
    }
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Result<Options, String> {
        match parse(line.split_whitespace().map(OsString::from))? {
            Parsed::Run(options) => Ok(options),
            Parsed::Print(text) => Err(text),
        }
    }

    fn nodes(ids: u32) -> Target {
        Target { scope: Scope::Node, ids: Mask(ids), dev: ResourceId::try_from(0).unwrap() }
    }

    #[test]
    fn commands_with_their_defaults() {
        let state = run("state").unwrap();
        assert_eq!(state.server.to_string(), "127.0.0.1:9998");
        assert!(!state.json && state.command == Command::State);
        assert_eq!(
            run("--server 127.0.0.2:7 send --to 1,2 some.img --json").unwrap(),
            Options {
                server: "127.0.0.2:7".parse().unwrap(),
                json: true,
                command: Command::Send(SendFile {
                    to: nodes(0b110),
                    timeout: Some(Duration::from_secs(60)),
                    file: "some.img".into(),
                }),
            }
        );
        assert_eq!(
            run("recv -o out --dev 254").unwrap().command,
            Command::Recv { output: "out".into(), dev: ResourceId::try_from(254).unwrap() }
        );
        let measure = Measure { to: nodes(8), timeout: None, size: 64, time: Duration::from_millis(500) };
        assert_eq!(
            run("latency --to 3 --size=64 --secs 0.5 --timeout 0").unwrap().command,
            Command::Latency(measure.clone())
        );
        assert_eq!(
            run("throughput --to 3 --size 64 --secs .5 --timeout 0").unwrap().command,
            Command::Throughput(measure.clone())
        );
        let to = Target { scope: Scope::Site, ids: Mask(8), dev: ResourceId::try_from(7).unwrap() };
        assert_eq!(
            run("latency --site --to 3 --dev 7 --size 64 --secs .5 --timeout 0").unwrap().command,
            Command::Latency(Measure { to, ..measure })
        );
        assert_eq!(run("echo --server [::1]:1").unwrap().server.port(), 1);
    }

    #[test]
    fn help_and_version_are_texts() {
        assert!(run("--help").unwrap_err().contains("Usage"));
        assert!(run("send --help").unwrap_err().contains("Usage"));
        assert!(run("--version").unwrap_err().starts_with("hadm-probe "));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (line, part) in [
            ("", "a command is missing"),
            ("stat", "no command \"stat\""),
            ("--to 1 send f", "no option --to before a command"),
            ("send f", "needs --to"),
            ("send --to 1", "needs a file"),
            ("send --to 1 f g", "unexpected argument \"g\""),
            ("send --to 32 f", "--to \"32\" is not a list of ids"),
            ("send --to , f", "is not a list"),
            ("send --to", "missing"),
            ("send --to 1 --dev 255 f", "0 to 254"),
            ("send --to 1 --timeout -1 f", "seconds"),
            ("send --to 1 --size 3 f", "no option --size for the command `send`"),
            ("recv", "needs -o"),
            ("latency --to 1,2", "one node or site at a time"),
            ("latency --to 1 --size 0", "1 to 16777216"),
            ("latency --to 1 --secs 0", "over 0"),
            ("latency --to 1 --secs inf", "over 0"),
            ("throughput --to 1 --secs 1e300", "over 0"),
            ("--server localhost state", "an address and port"),
            ("send --to 1 --site f", "--site needs --dev"),
            ("recv -o f --site", "no option --site for the command `recv`"),
            ("state extra", "unexpected argument"),
            ("state --verbose", "no option --verbose"),
        ] {
            let said = run(line).unwrap_err();
            assert!(said.contains(part), "{line:?}: {said}");
        }
    }
}
