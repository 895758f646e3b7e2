//! The command line of `hadmd`.
//!
//! It looks at nothing but whether standard error is a terminal. The program reads it once; the start acts on it.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::daemon::kmod::MODULE_LIST;
use crate::logging::Target;

/// The text of `--help`.
pub const USAGE: &str = "\
Usage: hadmd [OPTIONS]

Carries the packets of the mirror's kernel module between the nodes of a cluster.
Runs in the foreground; SIGTERM and SIGINT end it in order, SIGHUP reloads the configuration.

Options:
  -c FILE              configuration file [default: /etc/hadm/hadm.xml]
      --check          check the configuration file, start nothing
      --hostname NAME  name that finds the local node [default: this machine's name]
      --server ADDR:PORT
                       where the kernel module connects, instead of serverip and serverport
      --server PATH    a Unix socket where it may connect, too; both forms may be given
      --modules FILE   list of loaded kernel modules [default: /proc/modules]
      --no-kmod-check  do not look for the kernel module
      --log stderr|syslog
                       where log lines go [default: stderr on a terminal, else syslog]
  -v                   log more; twice: every packet header
      --pidfile FILE   write the process id to FILE while running
      --control FILE   control socket, for hadmctl [default: /run/hadm/hadmd.sock]
      --version        print the version
      --help           print this help

Exit status: 0 ended by a signal, 1 something failed, 2 usage or configuration.
";

/// A parsed command line.
pub struct Options {
    /// The configuration file.
    pub file: PathBuf,
    /// Check the file, start nothing.
    pub check: bool,
    /// The name that finds the local node, instead of the machine's.
    pub hostname: Option<String>,
    /// The address at which the kernel module connects, instead of the configured one.
    pub server: Option<SocketAddr>,
    /// The Unix socket where a kernel module may connect, too.
    pub socket: Option<PathBuf>,
    /// The list of loaded kernel modules, `None` not to look for one.
    pub modules: Option<PathBuf>,
    /// The target of log lines.
    pub log: Target,
    /// Number of times that `-v` was given.
    pub verbose: u8,
    /// The PID file to write.
    pub pidfile: Option<PathBuf>,
    /// The control socket, `None` for the default one.
    pub control: Option<PathBuf>,
}

/// The result of reading a command line.
pub enum Parsed {
    /// Carry this out.
    Run(Box<Options>),
    /// Print this.
    Print(String),
}

/// Reads a command line.
///
/// # Errors
/// The fault in it.
pub fn parse(mut args: lexopt::Parser) -> Result<Parsed, lexopt::Error> {
    use lexopt::prelude::*;
    let mut options = Options {
        file: "/etc/hadm/hadm.xml".into(),
        check: false,
        hostname: None,
        server: None,
        socket: None,
        modules: Some(MODULE_LIST.into()),
        log: if rustix::termios::isatty(std::io::stderr()) { Target::Stderr } else { Target::Syslog },
        verbose: 0,
        pidfile: None,
        control: None,
    };
    let (mut modules, mut no_check) = (None, false);
    while let Some(arg) = args.next()? {
        match arg {
            Short('c') => options.file = args.value()?.into(),
            Long("check") => options.check = true,
            Long("hostname") => options.hostname = Some(args.value()?.string()?),
            Long("server") => {
                let text = args.value()?.string()?;
                if text.starts_with('/') {
                    options.socket = Some(text.into());
                    continue;
                }
                let addr = text.parse().map_err(|_| {
                    format!(
                        "--server: {text:?} is neither ADDR:PORT with a numeric address, such as 127.0.0.1:9998, nor an absolute path"
                    )
                })?;
                if SocketAddr::port(&addr) == 0 {
                    return Err("--server: port 0 is no port that a kernel module could find".into());
                }
                options.server = Some(addr);
            }
            Long("modules") => modules = Some(PathBuf::from(args.value()?)),
            Long("no-kmod-check") => no_check = true,
            Long("log") => {
                options.log = match args.value()?.string()?.as_str() {
                    "stderr" => Target::Stderr,
                    "syslog" => Target::Syslog,
                    other => return Err(format!("--log: {other:?} is neither stderr nor syslog").into()),
                }
            }
            Short('v') => options.verbose = options.verbose.saturating_add(1),
            Long("pidfile") => options.pidfile = Some(args.value()?.into()),
            Long("control") => options.control = Some(args.value()?.into()),
            Long("version") => return Ok(Parsed::Print(format!("hadmd {}\n", env!("CARGO_PKG_VERSION")))),
            Long("help") | Short('h') => return Ok(Parsed::Print(USAGE.into())),
            other => return Err(other.unexpected()),
        }
    }
    match (modules, no_check) {
        (Some(_), true) => return Err("--modules and --no-kmod-check exclude each other".into()),
        (Some(file), false) => options.modules = Some(file),
        (None, true) => options.modules = None,
        (None, false) => {}
    }
    Ok(Parsed::Run(Box::new(options)))
}
