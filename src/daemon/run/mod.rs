//! The timer thread: it owns the core and the one schedule.
//!
//! Everything that happens elsewhere reaches it as a message; it asks the core, carries out the actions in order, and
//! sleeps until the next message or the core's next deadline. It never blocks on a peer, a client or a disk: writing
//! to a link goes as far as the socket takes it, everything else is handed to other threads.
//!
//! The calls that may have to wait for another process, and the reason why they stop neither the timer, nor the
//! reactor, nor the thread that hears signals. All messages to these three go through channels that never block the
//! sender.
//!
//! | call | what it may wait for | where it is made |
//! |---|---|---|
//! | sd_notify's `sendto` | a service manager that does not read | thread `notify`; newer news replace the old |
//! | writing log lines | a terminal, a pipe, the system log | thread `log`; lines beyond its queue are counted |
//! | `getifaddrs`, probing an IPv6 address | netlink's lock | thread `addresses`; the last answer counts until then |
//! | reading the module list | a disk, a mounted file system | thread `modules`, at the start thread `boot` |
//! | reading the configuration and keys | a disk | threads `reload-read` and `reload`, a client's own, `boot` |
//! | `getaddrinfo` | name servers | threads `names`; the caller goes on without an answer after its time |
//! | making, looking at and removing the control socket | a disk | threads `control`, `farewell`; main at the start |
//! | answering control and metrics clients | clients | their own threads; a full channel hangs up |
//! | writing to links | peers, the kernel module | without blocking; the rest is for the link's own thread |
//! | a kernel module's ACK | nobody | here: the first bytes of a connection fit into its buffer |
//! | a hello, and its answer | nobody | reactor: without blocking, and a deadline for all of it |
//! | binding, listening, `shutdown`, `close` | nobody | here and reactor: local, and no socket lingers |
//! | starting threads | nothing | here; the system refuses at once where it cannot |
//! | joining the links' threads at the end | peers | here, last of all: no longer than stop.rs has limits for |
//!
//! A lock that one of the three takes is held by others for the time of a few assignments, never during any of these
//! calls; each says so where it is declared.

pub mod boot;
mod carry;
mod commands;
mod history;
mod kernel;
mod links;
mod look;
mod mesh;
mod owner;
mod peers;
mod reload;
mod report;
mod reports;
mod service;
mod snapshot;
mod stop;
mod views;

use std::collections::HashMap;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, never, select, unbounded};
use log::info;

use crate::attach::{InProcess, Intake};
use crate::config::keys::Keys;
use crate::config::{Config, PeerAddr, is_stand_in};
use crate::daemon::connect::{Plan, Reactor, ReactorEvent};
use crate::daemon::core::{Action, Admission, Core, Event, Moment};
use crate::daemon::link::{LARGE, Reading};
use crate::daemon::peer::{DATA_CEILING, Limits, META_CEILING, Session};
use crate::daemon::route::Router;
use crate::daemon::server::{ControlRequest, Names};
use crate::logging;
use crate::service::{News, Notifier};
use crate::wire::{Class, Extension, FEATURE_ENDS, FEATURE_RECORDS, FEATURE_VIEWS, NodeId, SiteId};
use commands::Commands;
use kernel::Kernel;
use links::WaitingLinks;
use look::{Machine, Seen};
use peers::Peers;
use reports::Reports;
use service::Service;
use stop::Shutdown;
use views::Views;

/// Time between two log lines about left-out lines, while there are any.
const LOG_TICK: Duration = Duration::from_millis(500);

/// The maker of the ways of packets of a program in this process: only that program is to carry its code.
pub type MakeIntake = fn(&Arc<Router>, Class, u32) -> Box<dyn Intake>;

/// The parts that a daemon is started with.
pub struct Setup {
    /// The checked configuration.
    pub config: Config,
    /// The warnings about its file.
    pub warnings: Vec<String>,
    /// The Unix socket where a kernel module may connect, too.
    pub socket: Option<UnixListener>,
    /// The meeting point with a program in this process that stands in for the kernel module: links over `socket` are its
    /// own.
    pub in_process: Option<(Arc<InProcess>, MakeIntake)>,
    /// The module list to look at; `None`: serve any kernel module that attaches.
    pub modules: Option<PathBuf>,
    /// Requests to end the daemon, each with its reason in words.
    pub stop: Receiver<String>,
    /// Requests from the control socket.
    pub control_requests: Receiver<ControlRequest>,
    /// The channel for those requests, for the metrics server.
    pub control: Sender<ControlRequest>,
    /// The channel to the service manager.
    pub notifier: Notifier,
    /// The names of the configuration.
    pub names: Arc<Names>,
}

/// Everything that the loop receives.
struct Inbox {
    /// From the threads of links.
    events: Receiver<Event>,
    reactor: Receiver<(ReactorEvent, Arc<()>)>,
    /// From the threads that look at the machine.
    seen: Receiver<Seen>,
    control: Receiver<ControlRequest>,
    stop: Receiver<String>,
}

/// The coordinator of the daemon, which the timer thread owns: the core, and one part for each job.
pub struct Coordinator {
    born: Instant,
    config: Arc<Config>,
    /// The warnings about its file.
    warnings: Vec<String>,
    digest: [u8; 8],
    /// The record that this side sends behind its hello: with thousands of peers it takes too long to make for each answer.
    record: Arc<Extension>,
    /// The peers that may connect, as the reactor has them.
    admission: Admission,
    core: Core,
    router: Arc<Router>,
    reactor: Reactor,
    peers: Peers,
    waiting: WaitingLinks,
    kernel: Kernel,
    in_process: Option<(Arc<InProcess>, MakeIntake)>,
    machine: Machine,
    views: Views,
    commands: Commands,
    /// The thread that formats answers, and sends every change to the clients that listen.
    reports: Reports,
    service: Service,
    shutdown: Shutdown,
    /// The channel of other threads to the core.
    events: Sender<Event>,
    inbox: Inbox,
}

impl Coordinator {
    /// Binds the listeners and prepares everything. The caller has seen the kernel module already.
    ///
    /// # Errors
    /// A sentence for the operator: the thing that is missing, its place, and the remedy.
    pub fn new(setup: Setup) -> Result<Self, String> {
        let Setup { config, warnings, socket, in_process, modules, stop, control_requests, control, .. } =
            setup;
        let (notifier, names) = (setup.notifier, setup.names);
        let born = Instant::now();
        let local = config.local_node().ok_or("the configuration has no local node")?.clone();
        let allowed = owner::allowed(&config);
        let settings = owner::settings(&config, modules.is_some());
        let (digest, record) = (config.digest(), extension(&config));
        let plan = Plan {
            server: config.server,
            node: local.addr,
            admission: Admission {
                node: config.node,
                site: config.site,
                allowed,
                strict: config.peer_addr == PeerAddr::Strict,
            },
            extension: record.clone(),
            held_off: HashMap::new(),
            keys: config.keys.clone(),
            replays: Default::default(),
        };
        let admission = plan.admission.clone();
        let (reactor_event, reactor_events) = unbounded();
        let reactor = Reactor::start(
            plan,
            socket,
            // Once the timer is gone the process ends.
            Box::new(move |offered, ticket| drop(reactor_event.send((offered, ticket)))),
        )?;
        let (machine, seen) = Machine::start(modules, names)?;
        let commands = Commands::start(control, config.metrics)?;
        let reports =
            Reports::start().map_err(|error| format!("cannot start the thread of reports: {error}"))?;
        let (peers, router) =
            Peers::start((config.node, config.site), settings.peers.iter().map(|(key, _)| *key));
        let (events, incoming) = unbounded();
        info!(
            "hadmd {} ready: {} ({}), kernel module at {}, nodes at {}, configured peers {}, configuration {}",
            env!("CARGO_PKG_VERSION"),
            local.id,
            local.hostname,
            config.server,
            local.addr,
            settings.peers.len(),
            hex(&digest),
        );
        if let Some(keys) = &config.keys {
            info!("links to peers are encrypted: {}", key_list(keys));
        }
        Ok(Coordinator {
            born,
            core: Core::new(settings, Moment::ZERO),
            config: Arc::new(config),
            warnings,
            digest,
            record: Arc::new(record),
            admission,
            router,
            reactor,
            peers,
            waiting: WaitingLinks::default(),
            kernel: Kernel::default(),
            in_process,
            machine,
            views: Views::default(),
            commands,
            reports,
            service: Service::new(notifier),
            shutdown: Shutdown::new(),
            events,
            inbox: Inbox { events: incoming, reactor: reactor_events, seen, control: control_requests, stop },
        })
    }

    /// Runs until the daemon ends; returns its exit code.
    pub fn run(mut self) -> u8 {
        let mut actions = Vec::new();
        let (mut stop, mut control_requests) = (self.inbox.stop.clone(), self.inbox.control.clone());
        self.service.notifier.tell(News::Ready);
        self.tell_status();
        self.machine.look_at_addresses();
        loop {
            let mut left = self.core.deadline().min(self.views.due).saturating_sub(self.now());
            if logging::left_out_pending() {
                left = left.min(LOG_TICK);
            }
            if let Some(at) = self.machine.next_look() {
                left = left.min(at.saturating_sub(self.now()));
            }
            if let Some(watchdog) = self.service.left() {
                left = left.min(watchdog);
            }
            select! {
                recv(self.inbox.events) -> event => {
                    if let Ok(event) = event {
                        self.core.handle(self.now(), event, &mut actions);
                    }
                }
                recv(self.inbox.reactor) -> reactor_event => {
                    if let Ok((reactor_event, ticket)) = reactor_event {
                        self.on_reactor_event(reactor_event, ticket, &mut actions);
                    }
                }
                recv(self.inbox.seen) -> seen => {
                    if let Ok(seen) = seen {
                        self.on_seen(seen, &mut actions);
                    }
                }
                recv(control_requests) -> control => match control {
                    Ok(control) => self.answer(control, &mut actions),
                    Err(_) => control_requests = never(),
                },
                recv(stop) -> why => match why {
                    Ok(why) => {
                        info!("ending: {why}");
                        self.core.handle(self.now(), Event::Stop, &mut actions);
                    }
                    Err(_) => stop = never(),
                },
                default(left) => {}
            }
            let now = self.now();
            if self.core.deadline() <= now {
                self.count_acks(now, &mut actions);
                self.core.tick(now, &mut actions);
            }
            while !actions.is_empty() {
                if let Some(code) = self.carry_out(&mut actions) {
                    return code;
                }
            }
            if self.machine.next_look().is_some_and(|at| at <= self.now()) {
                self.machine.looked = self.now();
                self.machine.look_at_addresses();
            }
            if self.views.due <= self.now() {
                self.share_views();
                self.notice_silence();
            }
            if logging::left_out_pending() {
                logging::tell_left_out();
            }
            self.pet_watchdog();
        }
    }

    fn now(&self) -> Moment {
        self.born.elapsed()
    }

    /// Reports the ping ACKs, and other signs of life, that came in since the last tick to the core.
    fn count_acks(&mut self, now: Moment, actions: &mut Vec<Action>) {
        for session in self.sessions() {
            if session.take_life() {
                let (peer, session) = (session.statistics.key, session.id);
                self.core.handle(now, Event::Heard { peer, session }, actions);
            }
            let count = session.take_acks();
            if count > 0 {
                let (peer, session) = (session.statistics.key, session.id);
                self.core.handle(now, Event::PingAcks { peer, session, count }, actions);
            }
        }
    }

    fn sessions(&self) -> Vec<Arc<Session>> {
        self.router.table().peers.values().filter_map(|entry| entry.session.clone()).collect()
    }

    /// Returns the ids that the packets of this node carry.
    fn local_ids(&self) -> (NodeId, SiteId) {
        (self.config.node, self.config.site)
    }
}

fn limits(config: &Config) -> Limits {
    Limits {
        data: DATA_CEILING,
        meta: META_CEILING,
        slow: config.slow_timeout,
        // Half of the time that the other side's heartbeat allows, which is configured like the local one.
        meta_patience: config.slow_timeout.min(config.ping_interval * config.max_ping_count / 2),
    }
}

fn reading(config: &Config) -> Reading {
    let zero_copy = config.zero_copy.then_some(LARGE);
    Reading { max_packet: config.max_packet, busy_poll: config.busy_poll, zero_copy }
}

/// Returns the record that this side sends behind its hello. Nothing in it can be compared while the addresses of some
/// peers are not known.
fn extension(config: &Config) -> Extension {
    let is_known = !has_stand_ins(config);
    Extension {
        version: Some(env!("CARGO_PKG_VERSION").into()),
        features: FEATURE_VIEWS | FEATURE_ENDS | FEATURE_RECORDS,
        digest: is_known.then(|| config.digest()),
        parts: if is_known { config.part_digests() } else { Vec::new() },
        ..Default::default()
    }
}

/// Returns true if the addresses of some peers are not known yet.
fn has_stand_ins(config: &Config) -> bool {
    owner::allowed(config).iter().any(|allowed| is_stand_in(allowed.addr))
        || owner::runsites_here(config).any(|(_, here)| is_stand_in(here.addr.ip()))
}

/// Returns the ids of the keys, the newest first.
fn key_list(keys: &Keys) -> String {
    let ids: Vec<_> = keys.ids().map(|id| format!("key {id}")).collect();
    ids.join(", ")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
