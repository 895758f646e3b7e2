//! Command line of `hadm-nbd`: arguments, configuration, exit status.
#![deny(clippy::indexing_slicing, clippy::string_slice)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the command line's own output")]

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use crossbeam::channel::{bounded, unbounded};
use log::{LevelFilter, error};

use hadmd::attach::{InProcess, Server};
use hadmd::config::{Config, Resource, is_stand_in};
use hadmd::daemon;
use hadmd::daemon::start::{Host, start_in};
use hadmd::logging::Target;
use hadmd::nbd::args::{Command, Options, Parsed, RunOptions, parse, resources};
use hadmd::nbd::disk::device::Access;
use hadmd::nbd::disk::store::Store;
use hadmd::nbd::disk::witness::WitnessFile;
use hadmd::nbd::disk::{check, dump, init};
use hadmd::nbd::run::{self, OwnDaemon, Setup};
use hadmd::sys::exit;
use hadmd::wire::SiteId;

/// The result of a command: true if its output names nothing wrong.
type Done = Result<bool, String>;

fn main() -> ExitCode {
    hadmd::sys::give_memory_back();
    let options = match parse(lexopt::Parser::from_env()) {
        Ok(Parsed::Run(options)) => options,
        Ok(Parsed::Print(text)) => return status(say(&text)),
        Err(error) => {
            eprintln!("hadm-nbd: {error} (hadm-nbd --help has the usage)");
            return exit::USAGE.into();
        }
    };
    let config = match load(&options) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return exit::USAGE.into();
        }
    };
    let wanted = match &options.command {
        Command::Init { resource, .. } => std::slice::from_ref(resource),
        Command::Check(names) | Command::Dump(names) => names,
        Command::Run { resources, .. } => resources,
    };
    match resources(&config, wanted) {
        Ok(found) => match &options.command {
            // The service manager tries again after this status.
            Command::Run { options: run, .. }
                if run.server.is_none() && !run.with_daemon && is_stand_in(config.server.ip()) =>
            {
                status(Err("<serverip> has no address yet: no name server has one for its name".into()))
            }
            Command::Run { options: run, .. } => serve(&options, run, &config, found, &|| load(&options)),
            command => status(carry_out(command, &found, config.site)),
        },
        Err(why) => {
            eprintln!("hadm-nbd: {why}");
            exit::USAGE.into()
        }
    }
}

fn status(done: Done) -> ExitCode {
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => exit::FAILED.into(),
        Err(why) => {
            eprintln!("hadm-nbd: {why}");
            exit::FAILED.into()
        }
    }
}

fn load(options: &Options) -> Result<Config, String> {
    let machine = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    let hostname = options.hostname.clone().unwrap_or_else(machine);
    // Keys are the daemon's: here they are at most checked.
    // No peer is called from here: a name server that is not there at boot is no reason not to serve.
    let loaded = Config::check_without_peers(&options.file, &hostname).map_err(|error| error.to_string())?;
    for warning in &loaded.warnings {
        eprintln!("{}:{warning}", options.file.display());
    }
    Ok(loaded.config)
}

fn say(text: &str) -> Done {
    match io::stdout().write_all(text.as_bytes()) {
        // A reader that has closed its end is no failure of this program.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.to_string()),
        _ => Ok(true),
    }
}

/// Serves resources until a signal.
fn serve(
    all: &Options,
    options: &RunOptions,
    config: &Config,
    resources: Vec<&Resource>,
    read: &dyn Fn() -> Result<Config, String>,
) -> ExitCode {
    let level = if options.verbose { LevelFilter::Debug } else { LevelFilter::Info };
    if let Err(why) = hadmd::logging::install("hadm-nbd", options.log, level) {
        return status(Err(why));
    }
    hadmd::logging::end_on_panic("hadm-nbd");
    hadmd::sys::set_stack(run::STACK);
    let own = options.with_daemon.then(|| start_daemon(all, options)).transpose();
    let (daemon, server) = match own {
        Ok(own) => own.unzip(),
        Err(why) => return status(Err(why)),
    };
    let setup = Setup {
        server: server.or_else(|| options.server.clone()).unwrap_or(config.server.into()),
        daemon,
        config,
        read,
        resources,
        control: options.control.clone(),
        sockets: options.sockets.clone(),
    };
    let ended = run::run(setup);
    if let (Err(why), Target::Syslog) = (&ended, options.log) {
        error!("{why}");
    }
    log::logger().flush();
    if ended.is_err() && options.log == Target::Syslog && hadmd::logging::is_stderr_journal() {
        return exit::FAILED.into();
    }
    status(ended.map(|()| true))
}

/// Starts the daemon on a thread of this process; where to attach to it.
fn start_daemon(all: &Options, options: &RunOptions) -> Result<(OwnDaemon, Server), String> {
    let fail = |error: io::Error| format!("cannot start the daemon in this process: {error}");
    let (socket, server) = InProcess::listen().map_err(fail)?;
    let in_process = Arc::new(InProcess::default());
    let (stop, stopped) = unbounded();
    let (end, ended) = bounded(1);
    let host = Host { in_process: Arc::clone(&in_process), socket, stop: stopped };
    let daemon = daemon::args::Options {
        file: all.file.clone(),
        check: false,
        hostname: all.hostname.clone(),
        server: match options.server {
            Some(Server::Tcp(address)) => Some(address),
            _ => None,
        },
        socket: None,
        modules: None,
        log: options.log,
        verbose: u8::from(options.verbose),
        pidfile: None,
        control: options.daemon_control.clone(),
    };
    hadmd::sys::spawn("daemon", move || drop(end.send(start_in(host, daemon)))).map_err(fail)?;
    Ok((OwnDaemon { in_process, stop, ended }, server))
}

fn carry_out(command: &Command, found: &[&Resource], site: SiteId) -> Done {
    let mut well = true;
    for resource in found {
        let done = match command {
            Command::Init { options, .. } => {
                init::init(resource, site, options).and_then(|told| say(&format!("{told}\n")))
            }
            Command::Check(_) => checked(resource, site),
            Command::Dump(_) => dumped(resource, site),
            Command::Run { .. } => Ok(true),
        };
        // A fault of one resource keeps no other from its turn.
        well &= done.unwrap_or_else(|why| {
            eprintln!("hadm-nbd: {why}");
            false
        });
    }
    Ok(well)
}

/// Shows the metadata; those of another resource or site, too, with a remark.
fn dumped(resource: &Resource, site: SiteId) -> Done {
    let at = init::runsite(resource, site)?;
    if let Some(path) = &at.witness {
        return say(&format!("{}\n", WitnessFile::look(path, resource, site)?.sentence()));
    }
    let path = Path::new(&at.bwr_disk);
    let store = Store::open(path, Access::Look)?;
    say(&dump::dump(&store)?)?;
    store.check_owner(resource.id, site).map(|()| true)
}

fn checked(resource: &Resource, site: SiteId) -> Done {
    let check::Report { summary, problems } = check::check(resource, site)?;
    let lines = problems.iter().map(|problem| format!("  {problem}\n")).collect::<String>();
    say(&format!("{summary}\n{lines}"))?;
    Ok(problems.is_empty())
}
