//! The daemon's start: configuration, log, signals, PID file and control socket; then everything is the timer's.
//!
//! Faults go to standard error as long as there is no log. Nothing here decides anything about peers. The program
//! calls it once.
#![allow(clippy::print_stderr, reason = "before there is a log, and for an operator who looks at none")]

use std::cell::RefCell;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use log::{LevelFilter, error, info, warn};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::attach::InProcess;
use crate::config::{Config, ConfigError, Loaded, is_stand_in};
use crate::control::{Line, SOCKET};
use crate::daemon::args::Options;
use crate::daemon::kmod;
use crate::daemon::pidfile::PidFile;
use crate::daemon::route::FromProcess;
use crate::daemon::run::boot::{self, Attempt};
use crate::daemon::run::{Coordinator, MakeIntake, Setup};
use crate::daemon::server::{self, ControlRequest, Loader, Names, Parse, Reloads, Server};
use crate::logging::{self, Target};
use crate::service::{News, Notifier};
use crate::sys::{self, exit};

/// Longest time for the configuration to be loaded before the start begins to wait for it: a healthy machine takes
/// milliseconds, names a little longer.
const PROMPT: Duration = Duration::from_secs(2);
/// Host names of a machine without a configured name.
const UNSET: [&str; 4] = ["", "(none)", "localhost", "localhost.localdomain"];
/// Longest time for the service manager to read that the daemon ends: a moment, unless it reads nothing at all.
const FAREWELL: Duration = Duration::from_millis(200);

/// Longest time for the removal of PID file and control socket: a moment, unless a disk hangs.
const REMOVAL: Duration = Duration::from_secs(1);

/// The Unix socket for the kernel module in messages.
const KERNEL: server::Kind = server::Kind { what: "kernel module's socket", option: "--server" };

/// Checks the configuration file and starts nothing; returns the exit status.
pub fn check(options: &Options) -> u8 {
    match load(options, None, None, |warning| eprintln!("{warning}")) {
        Ok(config) => {
            let place = options.file.display();
            // A reader that has closed its end is no failure of this program.
            let _ = writeln!(
                std::io::stdout(),
                "{place}: configuration is valid, seen from {} of {}",
                config.node,
                config.site
            );
            0
        }
        Err(error) => {
            eprintln!("{error}");
            exit::USAGE
        }
    }
}

/// Runs the daemon; returns its exit status.
pub fn start(options: Options) -> u8 {
    let log = options.log;
    let ended = begin(Arc::new(Start { options, identity: OnceLock::new(), host: None }));
    if let Err(why) = &ended {
        error!("{why}");
        // An operator who started it by hand, or a script, has to see why it has ended.
        if (log == Target::Syslog && !logging::is_stderr_journal()) || log::max_level() == LevelFilter::Off {
            eprintln!("hadmd: {why}");
        }
    }
    log::logger().flush();
    ended.unwrap_or(exit::FAILED)
}

/// A program with the daemon in its process.
pub struct Host {
    /// The meeting point of both.
    pub in_process: Arc<InProcess>,
    /// The socket at which the program attaches, and nobody else.
    pub socket: UnixListener,
    /// Requests to end the daemon, each with its reason in words.
    pub stop: Receiver<String>,
}

/// Runs the daemon in the process of another program, which has the log and all signals but SIGHUP.
///
/// # Errors
/// A sentence for the operator.
pub fn start_in(host: Host, options: Options) -> Result<u8, String> {
    begin(Arc::new(Start { options, identity: OnceLock::new(), host: Some((host, FromProcess::boxed)) }))
}

/// The command line, and the name by which the local node was found.
struct Start {
    options: Options,
    /// The program around the daemon, if it is not one of its own.
    host: Option<(Host, MakeIntake)>,
    /// Set once the daemon runs: it stays the same after the machine got another name, too.
    identity: OnceLock<String>,
}

/// Loads the configuration, and runs with it; returns the exit status.
fn begin(started: Arc<Start>) -> Result<u8, String> {
    let names = Arc::new(Names::lenient());
    let (own, looking) = (Arc::clone(&started), Arc::clone(&names));
    let news = boot::begin(move || attempt(&own, &looking))?;
    // A fault of the file is known at once, and reported before anything begins.
    match news.recv_timeout(PROMPT) {
        Ok(Attempt::Refused(why)) => {
            eprintln!("{why}");
            Ok(exit::USAGE)
        }
        Ok(mut first) => {
            if let Attempt::Loaded(loaded) = &mut first {
                // To standard error, before all that is logged.
                loaded.warnings.drain(..).for_each(|warning| eprintln!("{warning}"));
            }
            run(&started, names, &news, first)
        }
        Err(_) => {
            let why = "the configuration file, or the list of kernel modules, cannot be read yet";
            run(&started, names, &news, Attempt::Waiting(why.into()))
        }
    }
}

/// Tries to load the configuration for the start.
fn attempt(started: &Start, names: &Names) -> Attempt {
    let options = &started.options;
    let bytes = match Config::read_bytes(&options.file) {
        Ok(bytes) => bytes,
        Err(error) => return Attempt::Refused(error.to_string()),
    };
    let hostname = hostname(options, started.identity.get());
    let loaded = Config::from_bytes(&options.file, &bytes, &hostname, &names.resolver());
    if let Err(error) = &loaded {
        let unset = options.hostname.is_none() && UNSET.contains(&hostname.as_str());
        if unset && error.is_unknown_host() {
            return Attempt::Waiting(format!("this machine has no host name yet, but {hostname:?}"));
        }
    }
    // Reported once, with the configuration that is used.
    let warnings = RefCell::new(Vec::new());
    let warn = |warning: &str| warnings.borrow_mut().push(warning.to_owned());
    let config = match accept(options, &options.file, loaded, warn) {
        Ok(config) => config,
        Err(why) => return Attempt::Refused(why),
    };
    let own = config.local_ip().map(|addr| (addr, "ipaddr of this node"));
    for (addr, what) in own.into_iter().chain([(config.server.ip(), "serverip")]) {
        if is_stand_in(addr) {
            let missing = names.missing().join(", ");
            return Attempt::Waiting(format!("no name server has answered yet for {missing} (with {what})"));
        }
    }
    let module =
        options.modules.as_deref().map_or(Ok(()), kmod::check).map_err(|missing| missing.to_string());
    Attempt::Loaded(Box::new(boot::Loaded {
        config,
        hostname,
        warnings: warnings.into_inner(),
        bytes,
        module,
    }))
}

/// Returns the name that finds the local node.
fn hostname(options: &Options, identity: Option<&String>) -> String {
    let machine = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    let known = identity.or(options.hostname.as_ref());
    known.cloned().unwrap_or_else(machine)
}

/// Reads a configuration file with the options of the command line; warnings go to `warn`.
///
/// # Errors
/// The fault in it, ready to be shown.
fn load(
    options: &Options,
    identity: Option<&String>,
    file: Option<&Path>,
    warn: impl Fn(&str),
) -> Result<Config, String> {
    let file = file.unwrap_or(&options.file);
    let read = if options.check { Config::check } else { Config::read };
    accept(options, file, read(file, &hostname(options, identity)), warn)
}

/// Applies the options of the command line to a loaded file.
fn accept(
    options: &Options,
    file: &Path,
    loaded: Result<Loaded, ConfigError>,
    warn: impl Fn(&str),
) -> Result<Config, String> {
    let loaded = loaded.map_err(|error| error.to_string())?;
    for warning in &loaded.warnings {
        warn(&format!("{}:{warning}", file.display()));
    }
    let server = options.server.unwrap_or(loaded.config.server);
    Ok(Config { server, ..loaded.config })
}

/// Runs the daemon, as soon as the configuration is there; returns the exit code.
fn run(
    started: &Arc<Start>,
    names: Arc<Names>,
    news: &Receiver<Attempt>,
    first: Attempt,
) -> Result<u8, String> {
    let options = &started.options;
    let level = match options.verbose {
        0 => LevelFilter::Info,
        1 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    let (host, make) = started.host.as_ref().map(|(host, make)| (host, *make)).unzip();
    if host.is_none() {
        logging::install("hadmd", options.log, level)?;
        logging::end_on_panic("hadmd");
    }
    let (requests, control_requests) = unbounded();
    let (modules, control, pidfile) =
        (options.modules.clone(), options.control.clone(), options.pidfile.clone());
    let parsing = Arc::clone(started);
    let parse: Parse = Arc::new(move |bytes, names: &Names| {
        let Start { options, identity, .. } = &*parsing;
        let file = &options.file;
        let loaded = Config::from_bytes(file, bytes, &hostname(options, identity.get()), &names.resolver());
        let warnings = RefCell::new(Vec::new());
        let config = accept(options, file, loaded, |warning| {
            warn!("{warning}");
            warnings.borrow_mut().push(warning.to_owned());
        })?;
        Ok((config, warnings.into_inner()))
    });
    let reloads = Reloads::start(options.file.clone(), parse, requests.clone())?;
    if matches!(first, Attempt::Loaded(_)) {
        reloads.open();
    }
    let loading = Arc::clone(started);
    let loader: Loader = Arc::new(move |file| {
        let doubts = RefCell::new(Vec::new());
        let Start { options, identity, .. } = &*loading;
        let config = load(options, identity.get(), file, |doubt| doubts.borrow_mut().push(doubt.to_owned()))?;
        Ok((config, doubts.into_inner()))
    });
    // One program has one line to the service manager.
    let notifier = host.map_or_else(Notifier::start, |_| Ok(Notifier::default()))?;
    let ends: &[_] = if host.is_none() { &[SIGTERM, SIGINT] } else { &[] };
    let signalled = signals(ends, reloads.clone(), notifier.clone())?;
    let stop = host.map_or(signalled, |host| host.stop.clone());
    // A program that reads the process id from it may ask for a reload at once, which would kill a daemon that does
    // not listen for signals yet.
    let pidfile = pidfile.as_deref().map(PidFile::take).transpose()?;
    let serve = || control_socket(control.as_deref(), requests.clone(), loader.clone(), reloads.clone());
    let mut served = None;
    let outcome = match first {
        Attempt::Waiting(why) => {
            served = Some(serve()?);
            boot::wait(news, &stop, &control_requests, &notifier, why)
        }
        known => Some(known),
    };
    let loaded = match outcome {
        Some(Attempt::Loaded(loaded)) => *loaded,
        Some(Attempt::Refused(why) | Attempt::Waiting(why)) => {
            error!("{why}");
            if options.log == Target::Syslog && !logging::is_stderr_journal() {
                eprintln!("{why}");
            }
            return Ok(exit::USAGE);
        }
        None => {
            notifier.flush(FAREWELL);
            return Ok(0);
        }
    };
    let boot::Loaded { config, hostname, warnings, bytes, module } = loaded;
    warnings.iter().for_each(|warning| warn!("{warning}"));
    module?;
    let _ = started.identity.set(hostname);
    let socket = options.socket.as_deref().map(|path| server::listen(path, &KERNEL)).transpose()?;
    let (mut socket, file) = socket.unzip();
    if let Some(host) = host {
        socket = Some(host.socket.try_clone().map_err(|error| format!("cannot clone a socket: {error}"))?);
    }
    let coordinator = Coordinator::new(Setup {
        config,
        warnings,
        socket,
        in_process: host.map(|host| Arc::clone(&host.in_process)).zip(make),
        modules,
        stop,
        control: requests.clone(),
        control_requests,
        notifier: notifier.clone(),
        names: Arc::clone(&names),
    })?;
    reloads.open();
    let served = served.map_or_else(serve, Ok)?;
    boot::complete_later(bytes, names, reloads.clone())?;
    let ended = sys::run("timer", move || coordinator.run())
        .map_err(|error| format!("cannot run the timer thread: {error}"));
    notifier.flush(FAREWELL);
    farewell(move || drop((served, pidfile, file)));
    ended
}

/// Removes files at the end, and goes on without that where a disk does not answer.
fn farewell(job: impl FnOnce() + Send + 'static) {
    let (done, ended) = bounded::<()>(1);
    let spawned = sys::spawn("farewell", move || {
        job();
        drop(done);
    });
    if spawned.is_ok() {
        let _ = ended.recv_timeout(REMOVAL);
    }
}

/// Opens the control socket. The default one may belong to another daemon on this machine, or this user may not be
/// allowed to make it: that is no reason not to run.
fn control_socket(
    path: Option<&Path>,
    control: Sender<ControlRequest>,
    load: Loader,
    reloads: Reloads,
) -> Result<Option<Server>, String> {
    match path {
        Some(path) => server::serve(path, control, load, reloads).map(Some),
        None => Ok(server::serve(Path::new(SOCKET), control, load, reloads)
            .inspect_err(|why| info!("running without a control socket: {why}"))
            .ok()),
    }
}

/// Delivers the signals that end the daemon as messages, SIGHUP as a request to reload. Its thread waits for nothing else.
fn signals(ends: &[i32], reloads: Reloads, notifier: Notifier) -> Result<Receiver<String>, String> {
    let fail = |error: std::io::Error| format!("cannot wait for signals: {error}");
    let all = ends.iter().chain([&SIGHUP]);
    let mut signals = signal_hook::iterator::Signals::new(all).map_err(fail)?;
    let (sender, receiver) = unbounded();
    let (reloading, answers) = unbounded();
    let wait = move || {
        for signal in signals.forever() {
            let name = match signal {
                SIGHUP => {
                    let (reply, answer) = bounded(1);
                    notifier.tell(News::Reloading);
                    reloads.ask(reply);
                    let _ = reloading.send((answer, notifier.clone()));
                    continue;
                }
                SIGTERM => "SIGTERM",
                _ => "SIGINT",
            };
            let _ = sender.send(name.to_string());
        }
    };
    sys::spawn("signals", wait).map_err(fail)?;
    sys::spawn("reload-told", move || tell_answers(&answers)).map_err(fail)?;
    Ok(receiver)
}

/// Reports the outcome of reloads by signal to the log and the service manager.
fn tell_answers(answers: &Receiver<(Receiver<Line>, Notifier)>) {
    for (answer, notifier) in answers {
        // No answer: the daemon ends.
        let Ok(answer) = answer.recv() else { return };
        if let Line::Answer(Err(why)) = answer {
            error!("cannot reload the configuration: {why}");
        }
        if answers.is_empty() {
            notifier.tell(News::Ready);
        }
    }
}
