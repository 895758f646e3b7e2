//! The command line of `hadm-nbd`.
//!
//! Reads it and does nothing itself. Called by the binary.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::attach::Server;
use crate::config::{Config, Resource};
use crate::logging::Target;
use crate::nbd::disk::format::{MAX_CHUNK_SHIFT, MIN_CHUNK_SHIFT, SLOTS};
use crate::nbd::disk::init::Options as InitOptions;

/// The text of `--help`.
pub const USAGE: &str = "\
Usage: hadm-nbd [OPTIONS] COMMAND

Serves the mirrored disks of this node over NBD, in place of the kernel module.

Commands:
  run [RUN OPTIONS] [RES...]
                           serve RES in the foreground; SIGTERM and SIGINT end it in order
  init [INIT OPTIONS] RES  make the metadata of RES at this site, on its bwr_disk; the disk itself keeps its data
  check [RES...]           are the disks whole, and those of the configuration; also while they are in use
  dump [RES...]            the metadata as text; also while it is in use

RES is the name or the id of a resource; left out, all of this site.

Init options:
      --chunk SIZE         what one bit stands for, 4K to 1M, a power of two [default: 64K]
      --log-size SIZE      space for writes that a slow site does not have yet [default: 0]
      --size SIZE          size of the mirrored disk, at most that of the data disk [default: the data disk's]
      --slots N            bitmaps for other sites, 1 to 31 [default: those configured, at least 3]
      --clean              the disk reads as zeroes, which is checked: at all sites, nothing has to be copied
      --adopt              take over a stopped site of the kernel module: its last writes, and its data
      --force              overwrite what looks like data, or is said to be in use
      --cut-off            offer less than what is on the disk takes

Run options:
      --server ADDR:PORT   the daemon's address, instead of serverip and serverport
      --server PATH        the daemon's Unix socket, as its own option --server names it: faster
      --with-daemon        run the daemon in this process, instead of attaching to one: the fastest
      --daemon-control FILE
                           its control socket, for hadmctl [default: /run/hadm/hadmd.sock]
      --control FILE       control socket, for `hadmctl disk` [default: /run/hadm/hadm-nbd.sock]
      --sockets DIR        folder of the NBD sockets, RES.nbd each [default: /run/hadm]
      --log stderr|syslog  where log lines go [default: stderr on a terminal, else syslog]
  -v                       log more

Options:
  -c FILE                  configuration file [default: /etc/hadm/hadm.xml]
      --hostname NAME      name that finds the local node [default: this machine's name]
      --version            print the version
  -h, --help               print this help

SIZE is in bytes; K, M, G and T are taken, too.

Exit status: 0 done, or ended by a signal; 1 something failed or is damaged, 2 usage or configuration.
";

/// A parsed command line.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub file: PathBuf,
    /// The name that finds the local node; `None`: the machine's host name.
    pub hostname: Option<String>,
    /// The command.
    pub command: Command,
}

/// A command.
#[derive(Clone, Debug)]
pub enum Command {
    /// Make the metadata of a resource.
    Init {
        /// Name or id.
        resource: String,
        /// The options of `init`.
        options: InitOptions,
    },
    /// Serve these, or all.
    Run {
        /// Names or ids.
        resources: Vec<String>,
        /// The options of `run`.
        options: RunOptions,
    },
    /// Check these, or all.
    Check(Vec<String>),
    /// Show these, or all.
    Dump(Vec<String>),
}

/// The options of `run`.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The daemon's place; `None`: the configuration's address.
    pub server: Option<Server>,
    /// The daemon runs in this process; [`RunOptions::server`] is where it listens for kernel modules.
    pub with_daemon: bool,
    /// The control socket of that daemon; `None`: the default one, if it can be made.
    pub daemon_control: Option<PathBuf>,
    /// The control socket; `None`: the default one, if it can be made.
    pub control: Option<PathBuf>,
    /// The folder of the NBD sockets.
    pub sockets: PathBuf,
    /// The target of log lines.
    pub log: Target,
    /// Log more.
    pub verbose: bool,
}

/// The result of reading a command line.
#[derive(Clone, Debug)]
pub enum Parsed {
    /// Carry this out.
    Run(Options),
    /// Print this and end.
    Print(String),
}

/// Reads a command line.
///
/// # Errors
/// The fault in it.
pub fn parse(mut args: lexopt::Parser) -> Result<Parsed, lexopt::Error> {
    use lexopt::prelude::*;
    let (mut file, mut hostname) = (PathBuf::from("/etc/hadm/hadm.xml"), None);
    let mut init = InitOptions::default();
    let (mut init_only, mut run_only) = (None, None);
    let mut run = RunOptions {
        server: None,
        with_daemon: false,
        daemon_control: None,
        control: None,
        sockets: "/run/hadm".into(),
        log: if rustix::termios::isatty(std::io::stderr()) { Target::Stderr } else { Target::Syslog },
        verbose: false,
    };
    let (mut command, mut resources) = (None, Vec::new());
    while let Some(arg) = args.next()? {
        let name = match &arg {
            Long(name) => (*name).to_owned(),
            _ => String::new(),
        };
        match arg {
            Short('c') => file = args.value()?.into(),
            Long("hostname") => hostname = Some(args.value()?.string()?),
            Long("version") => {
                return Ok(Parsed::Print(format!("hadm-nbd {}\n", env!("CARGO_PKG_VERSION"))));
            }
            Long("help") | Short('h') => return Ok(Parsed::Print(USAGE.into())),
            Long("chunk" | "log-size" | "size" | "slots") => {
                let value = args.value()?.string()?;
                set(&mut init, &name, &value)?;
                init_only = Some(name);
            }
            Long("clean" | "adopt" | "force" | "cut-off") => {
                match name.as_str() {
                    "clean" => init.clean = true,
                    "adopt" => init.adopt = true,
                    "force" => init.force = true,
                    _ => init.cut_off = true,
                }
                init_only = Some(name);
            }
            Long("with-daemon") => {
                run.with_daemon = true;
                run_only = Some("--with-daemon".into());
            }
            Long("server" | "control" | "daemon-control" | "sockets" | "log") => {
                let value = args.value()?;
                match name.as_str() {
                    "daemon-control" => run.daemon_control = Some(value.into()),
                    "control" => run.control = Some(value.into()),
                    "sockets" => run.sockets = value.into(),
                    "log" => run.log = target(&value.string()?)?,
                    _ => run.server = Some(server(&value.string()?)?),
                }
                run_only = Some(format!("--{name}"));
            }
            Short('v') => {
                run.verbose = true;
                run_only = Some("-v".into());
            }
            Value(value) if command.is_none() => command = Some(value.string()?),
            Value(value) => resources.push(value.string()?),
            other => return Err(other.unexpected()),
        }
    }
    let command = command.ok_or("no command: give run, init, check or dump")?;
    if let Some(name) = init_only.filter(|_| command != "init") {
        return Err(format!("--{name} belongs to init").into());
    }
    if let Some(name) = run_only.filter(|_| command != "run") {
        return Err(format!("{name} belongs to run").into());
    }
    if run.daemon_control.is_some() && !run.with_daemon {
        return Err("--daemon-control belongs to --with-daemon".into());
    }
    if run.with_daemon && matches!(run.server, Some(Server::Unix(_))) {
        return Err(
            "--server PATH and --with-daemon exclude each other: nothing attaches to that daemon but this \
                    process"
                .into(),
        );
    }
    let command = match (command.as_str(), resources.len()) {
        ("run", _) => Command::Run { resources, options: run },
        ("init", 1) => {
            if init.clean && init.adopt {
                return Err("--clean and --adopt exclude each other: a disk with data is not clean".into());
            }
            if init.size.is_some() && init.adopt {
                return Err("--size and --adopt exclude each other: an adopted disk keeps its size".into());
            }
            Command::Init { resource: resources.remove(0), options: init }
        }
        ("init", 0) => return Err("init needs a resource: give its name or id".into()),
        ("init", _) => return Err("init takes one resource at a time".into()),
        ("check", _) => Command::Check(resources),
        ("dump", _) => Command::Dump(resources),
        (other, _) => {
            return Err(format!("{other:?} is no command: there are run, init, check and dump").into());
        }
    };
    Ok(Parsed::Run(Options { file, hostname, command }))
}

fn target(text: &str) -> Result<Target, String> {
    match text {
        "stderr" => Ok(Target::Stderr),
        "syslog" => Ok(Target::Syslog),
        other => Err(format!("--log: {other:?} is neither stderr nor syslog")),
    }
}

fn server(text: &str) -> Result<Server, String> {
    if text.starts_with('/') {
        return Ok(Server::Unix(text.into()));
    }
    let address = text.parse().ok().filter(|address| SocketAddr::port(address) != 0);
    address.map(Server::Tcp).ok_or_else(|| {
        format!(
            "--server: {text:?} is neither ADDR:PORT with a numeric address, such as 127.0.0.1:9998, nor an absolute path"
        )
    })
}

fn set(init: &mut InitOptions, name: &str, value: &str) -> Result<(), String> {
    let wrong = |wanted: &str| format!("--{name}: {value:?} is not {wanted}");
    match name {
        "chunk" => {
            let range = MIN_CHUNK_SHIFT..=MAX_CHUNK_SHIFT;
            let shift =
                size(value).filter(|size| size.is_power_of_two()).map(|size| size.trailing_zeros() as u8);
            init.chunk_shift = shift
                .filter(|shift| range.contains(shift))
                .ok_or_else(|| wrong("a power of two from 4K to 1M"))?;
        }
        "size" => init.size = Some(size(value).ok_or_else(|| wrong("a size, such as 4G"))?),
        "log-size" => init.log_size = size(value).ok_or_else(|| wrong("a size, such as 4G"))?,
        _ => {
            let slots = value.parse().ok().filter(|slots| (1..=SLOTS as u8).contains(slots));
            init.slots = Some(slots.ok_or_else(|| wrong("a number from 1 to 31"))?);
        }
    }
    Ok(())
}

/// Parses bytes, or KiB to TiB with their letter.
fn size(value: &str) -> Option<u64> {
    let shift = match value.bytes().next_back()? {
        b'K' | b'k' => 10,
        b'M' | b'm' => 20,
        b'G' | b'g' => 30,
        b'T' | b't' => 40,
        _ => 0,
    };
    let digits = if shift > 0 { value.get(..value.len().saturating_sub(1))? } else { value };
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse::<u64>().ok())??.checked_mul(1 << shift)
}

/// Returns the resources that a command line names, or all of the local site. A name has precedence over an id.
///
/// # Errors
/// No resource has this name or id; the message lists those that exist.
pub fn resources<'c>(config: &'c Config, wanted: &[String]) -> Result<Vec<&'c Resource>, String> {
    if wanted.is_empty() {
        let local: Vec<_> =
            config.resources.iter().filter(|res| res.runsite(config.site).is_some()).collect();
        return match local.is_empty() {
            true => Err(format!("the configuration has no resource at {}, where this node is", config.site)),
            false => Ok(local),
        };
    }
    let find = |wanted: &String| {
        let id = wanted.parse::<u8>().ok();
        let by_name: Vec<_> = config.resources.iter().filter(|res| res.name == *wanted).collect();
        match by_name.as_slice() {
            [one] => return Ok(*one),
            [] => {}
            _ => return Err(format!("several resources are called {wanted:?}: give the id")),
        }
        config.resources.iter().find(|res| Some(res.id.get()) == id).ok_or_else(|| {
            let names: Vec<_> =
                config.resources.iter().map(|res| format!("{} ({})", res.name, res.id.get())).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            format!("the configuration has no resource {wanted:?}; there are: {names}")
        })
    };
    wanted.iter().map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(args: &[&str]) -> String {
        parse(lexopt::Parser::from_args(args))
            .map(|_| String::new())
            .unwrap_or_else(|error| error.to_string())
    }

    #[test]
    fn a_command_line_is_read() {
        let args =
            ["-c", "f", "--hostname", "n", "init", "--chunk", "1M", "--log-size=4G", "--slots", "31", "data"];
        let Ok(Parsed::Run(options)) = parse(lexopt::Parser::from_args(args)) else {
            panic!("it is not read")
        };
        let Command::Init { resource, options: init } = options.command else { panic!("it is no init") };
        assert_eq!((options.file, options.hostname.as_deref()), ("f".into(), Some("n")));
        assert_eq!((resource.as_str(), init.chunk_shift), ("data", 20));
        assert_eq!((init.log_size, init.slots, init.force), (4 << 30, Some(31), false));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (args, part) in [
            (&[][..], "no command"),
            (&["init"], "needs a resource"),
            (&["init", "a", "b"], "one resource at a time"),
            (&["format", "a"], "is no command"),
            (&["dump", "--force"], "--force belongs to init"),
            (&["run", "--force"], "--force belongs to init"),
            (&["check", "--sockets", "/tmp"], "--sockets belongs to run"),
            (&["dump", "-v"], "-v belongs to run"),
            (&["run", "--log", "paper"], "neither stderr nor syslog"),
            (&["run", "--server", "here:1"], "is neither ADDR:PORT"),
            (&["run", "--server", "127.0.0.1:0"], "is neither ADDR:PORT"),
            (&["run", "--server", "/a", "--with-daemon"], "exclude each other"),
            (&["run", "--daemon-control", "/a"], "--daemon-control belongs to --with-daemon"),
            (&["dump", "--with-daemon"], "--with-daemon belongs to run"),
            (&["init", "--clean", "--adopt", "a"], "exclude each other"),
            (&["init", "--chunk", "2M", "a"], "\"2M\" is not a power of two from 4K to 1M"),
            (&["init", "--chunk", "65537", "a"], "is not a power of two"),
            (&["init", "--log-size", "99999999999T", "a"], "is not a size"),
            (&["init", "--log-size", "+5", "a"], "is not a size"),
            (&["init", "--size", "much", "a"], "is not a size"),
            (&["init", "--slots", "32", "a"], "from 1 to 31"),
            (&["init", "--slots", "0", "a"], "from 1 to 31"),
            (&["check", "--clean=yes"], "--clean"),
        ] {
            let error = error(args);
            assert!(error.contains(part), "{args:?}: {error:?}");
        }
    }
}
