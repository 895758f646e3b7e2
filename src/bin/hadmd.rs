//! The daemon's command line: options, log, signals and PID file, then everything is the timer's.
#![deny(clippy::indexing_slicing, clippy::string_slice)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the command line's own output")]

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use log::{LevelFilter, error, info, warn};
use rustix::fs::{FlockOperation, OFlags, flock};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use hadmd::config::Config;
use hadmd::control::{self, Ask, Loader, Request, Server};
use hadmd::log::Target;
use hadmd::sys;
use hadmd::timer::{Setup, Timer};

const USAGE: &str = "\
Usage: hadmd [OPTIONS]

Carries the packets of the mirror's kernel module between the nodes of a cluster.
Runs in the foreground; SIGTERM and SIGINT end it in order, SIGHUP reloads the configuration.

Options:
  -c FILE              configuration file [default: /etc/hadm/hadm.xml]
      --check          check the configuration file, start nothing
      --hostname NAME  name that finds the local node [default: this machine's name]
      --server ADDR:PORT
                       where the kernel module connects, instead of serverip and serverport
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

/// Exit code of a wrong command line or configuration.
const USAGE_ERROR: u8 = 2;

struct Options {
    file: PathBuf,
    check: bool,
    hostname: Option<String>,
    server: Option<SocketAddr>,
    modules: Option<PathBuf>,
    log: Target,
    verbose: u8,
    pidfile: Option<PathBuf>,
    control: Option<PathBuf>,
}

enum Command {
    Run(Box<Options>),
    Print(String),
}

fn parse() -> Result<Command, lexopt::Error> {
    use lexopt::prelude::*;
    let mut options = Options {
        file: "/etc/hadm/hadm.xml".into(),
        check: false,
        hostname: None,
        server: None,
        modules: Some(hadmd::kmod::MODULE_LIST.into()),
        log: if rustix::termios::isatty(std::io::stderr()) { Target::Stderr } else { Target::Syslog },
        verbose: 0,
        pidfile: None,
        control: None,
    };
    let (mut modules, mut no_check) = (None, false);
    let mut args = lexopt::Parser::from_env();
    while let Some(arg) = args.next()? {
        match arg {
            Short('c') => options.file = args.value()?.into(),
            Long("check") => options.check = true,
            Long("hostname") => options.hostname = Some(args.value()?.string()?),
            Long("server") => {
                let text = args.value()?.string()?;
                let addr = text.parse().map_err(|_| {
                    format!(
                        "--server: {text:?} is not ADDR:PORT with a numeric address, such as 127.0.0.1:9998"
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
            Long("version") => return Ok(Command::Print(format!("hadmd {}\n", env!("CARGO_PKG_VERSION")))),
            Long("help") | Short('h') => return Ok(Command::Print(USAGE.into())),
            other => return Err(other.unexpected()),
        }
    }
    match (modules, no_check) {
        (Some(_), true) => return Err("--modules and --no-kmod-check exclude each other".into()),
        (Some(file), false) => options.modules = Some(file),
        (None, true) => options.modules = None,
        (None, false) => {}
    }
    Ok(Command::Run(Box::new(options)))
}

fn main() -> ExitCode {
    sys::give_memory_back();
    let options = match parse() {
        Ok(Command::Run(options)) => options,
        Ok(Command::Print(text)) => {
            return match std::io::stdout().write_all(text.as_bytes()) {
                // A reader that went away is no failure of this program.
                Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                    eprintln!("hadmd: {error}");
                    ExitCode::FAILURE
                }
                _ => ExitCode::SUCCESS,
            };
        }
        Err(error) => {
            eprint!("hadmd: {error}\n\n{USAGE}");
            return USAGE_ERROR.into();
        }
    };
    let config = match load(&options, None, |warning| eprintln!("{warning}")) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return USAGE_ERROR.into();
        }
    };
    if options.check {
        let place = options.file.display();
        // A reader that went away is no failure of this program.
        let _ = writeln!(std::io::stdout(), "{place}: good, seen from {} of {}", config.node, config.site);
        return ExitCode::SUCCESS;
    }
    let log = options.log;
    let ended = run(*options, config);
    if let Err(why) = &ended {
        error!("{why}");
        // Whoever started it by hand, or in a script, has to see why it is gone.
        if log == Target::Syslog || log::max_level() == LevelFilter::Off {
            eprintln!("hadmd: {why}");
        }
    }
    log::logger().flush();
    ended.map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Reads a configuration file as the command line says; warnings are told by `warn`.
///
/// # Errors
/// What is wrong with it, ready to be shown.
fn load(options: &Options, file: Option<&Path>, warn: impl Fn(&str)) -> Result<Config, String> {
    let machine = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    let hostname = options.hostname.clone().unwrap_or_else(machine);
    let file = file.unwrap_or(&options.file);
    let read = if options.check { Config::check } else { Config::read };
    let loaded = read(file, &hostname).map_err(|error| error.to_string())?;
    for warning in &loaded.warnings {
        warn(&format!("{}:{warning}", file.display()));
    }
    let server = options.server.unwrap_or(loaded.config.server);
    Ok(Config { server, ..loaded.config })
}

fn run(options: Options, config: Config) -> Result<u8, String> {
    let level = match options.verbose {
        0 => LevelFilter::Info,
        1 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    hadmd::log::install(options.log, level)?;
    hadmd::log::end_on_panic();
    let (ask, asks) = unbounded();
    let (modules, control, pidfile) =
        (options.modules.clone(), options.control.clone(), options.pidfile.clone());
    let loader: Loader = Arc::new(move |file| load(&options, file, |warning| warn!("{warning}")));
    let stop = signals(ask.clone(), Arc::clone(&loader))?;
    // Whoever has the process id from there may ask for a reload at once, which would kill a daemon that does not
    // listen for signals yet.
    let _pidfile = pidfile.as_deref().map(PidFile::take).transpose()?;
    let timer = Timer::new(Setup { config, modules, stop, ask: ask.clone(), asks })?;
    let _control = control_socket(control.as_deref(), ask, loader)?;
    hadmd::sys::run("timer", move || timer.run())
        .map_err(|error| format!("cannot run the timer thread: {error}"))
}

/// Opens the control socket. The one everybody has by default may be another daemon's on this machine, or
/// not be ours to make: that is no reason not to run.
fn control_socket(path: Option<&Path>, ask: Sender<Ask>, load: Loader) -> Result<Option<Server>, String> {
    match path {
        Some(path) => control::serve(path, ask, load).map(Some),
        None => Ok(control::serve(Path::new(control::SOCKET), ask, load)
            .inspect_err(|why| info!("running without a control socket: {why}"))
            .ok()),
    }
}

/// SIGTERM and SIGINT as messages, SIGHUP as a request to reload.
fn signals(ask: Sender<Ask>, load: Loader) -> Result<Receiver<String>, String> {
    let fail = |error: std::io::Error| format!("cannot wait for signals: {error}");
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(fail)?;
    let (sender, receiver) = unbounded();
    let wait = move || {
        for signal in signals.forever() {
            let name = match signal {
                SIGHUP => {
                    reload(&ask, &load);
                    continue;
                }
                SIGTERM => "SIGTERM",
                _ => "SIGINT",
            };
            let _ = sender.send(name.to_string());
        }
    };
    hadmd::sys::spawn("signals", wait).map_err(fail)?;
    Ok(receiver)
}

/// Reads the configuration anew and has it put in force; what is wrong is logged, and nothing changed then.
fn reload(ask: &Sender<Ask>, load: &Loader) {
    let reloading = [Some(NotifyState::Reloading), NotifyState::monotonic_usec_now().ok()];
    // Whoever does not listen need not hear.
    let _ = sd_notify::notify(reloading.into_iter().flatten().collect::<Vec<_>>().as_slice());
    let applied = load(None).and_then(|config| {
        let (reply, answer) = bounded(1);
        let _ = ask.send(Ask { request: Request::Reload, config: Some(Box::new(config)), reply });
        match answer.recv() {
            Ok(answer) => {
                answer.get("error").and_then(|why| why.as_str()).map_or(Ok(()), |why| Err(why.to_string()))
            }
            // The daemon ends.
            Err(_) => Ok(()),
        }
    });
    if let Err(why) = applied {
        error!("cannot reload the configuration: {why}");
    }
    let _ = sd_notify::notify(&[NotifyState::Ready]);
}

/// A PID file that is locked while the daemon runs, and removed at its end.
struct PidFile {
    path: PathBuf,
    _lock: File,
}

impl PidFile {
    fn take(path: &Path) -> Result<Self, String> {
        let place = path.display();
        // Neither through a link that somebody may have put there, nor waiting for a pipe's reader.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .custom_flags(flags.bits() as i32)
            .open(path);
        let file = file.map_err(|error| format!("cannot open PID file {place}: {error}"))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| format!("PID file {place} is in use: another hadmd runs with it"))?;
        let id = format!("{}\n", std::process::id());
        let written = file.set_len(0).and_then(|()| (&file).write_all(id.as_bytes()));
        written.map_err(|error| format!("cannot write PID file {place}: {error}"))?;
        Ok(PidFile { path: path.into(), _lock: file })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            warn!("cannot remove PID file {}: {error}", self.path.display());
        }
    }
}
