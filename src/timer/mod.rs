//! The timer thread: it owns the core and the one schedule.
//!
//! Whatever happens elsewhere reaches it as a message; it asks the core, carries out the answer in order, and
//! sleeps until the next message or the core's next deadline. It never blocks on a peer, a client or a
//! disk: writing to a link goes as far as the socket takes it, everything else is handed to other threads.

mod carry;
mod mesh;
mod owner;
mod reload;
mod report;
mod service;
mod stop;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, never, select, unbounded};
use log::info;
use sd_notify::NotifyState;

use crate::config::{Config, PeerAddr};
use crate::connect::{Encryption, Offer, Plan, Reactor};
use crate::control::{Ask, Scrape};
use crate::core::{Action, Admission, AttachId, ConnId, Core, Event, Moment, PeerKey, Via};
use crate::keys::Keys;
use crate::kmod;
use crate::limited;
use crate::link::Connection;
use crate::log as logging;
use crate::peer::{DATA_CEILING, Limits, META_CEILING, Record, Session};
use crate::queue::{Account, Counter};
use crate::route::Switch;
use crate::wire::{Class, Compression, Extension, FEATURE_VIEWS, NodeId, SiteId};
use report::Story;
use service::Watchdog;

/// How often left-out log lines are told while there are any.
const LOG_TICK: Duration = Duration::from_millis(500);

/// What a daemon is started with.
pub struct Setup {
    /// The checked configuration.
    pub config: Config,
    /// The module list to look at, `None` to serve whatever attaches.
    pub modules: Option<PathBuf>,
    /// Something that asks the daemon to end: a message, in words, why.
    pub stop: Receiver<String>,
    /// Questions from the control socket.
    pub asks: Receiver<Ask>,
    /// The way to ask them, for who scrapes the metrics.
    pub ask: Sender<Ask>,
}

/// A connection that is through its handshake and waits for the core.
struct Waiting {
    link: Connection,
    source: std::net::SocketAddr,
    /// To be repeated to a kernel module.
    dev_id: u8,
    called: bool,
    extension: Option<Extension>,
    encryption: Option<Encryption>,
    compression: Option<Compression>,
    /// Counts against the reactor's limit.
    _ticket: Arc<()>,
}

/// The timer thread's own.
pub struct Timer {
    born: Instant,
    config: Config,
    modules: Option<PathBuf>,
    core: Core,
    switch: Arc<Switch>,
    /// Who may connect, as the reactor has it.
    admission: Admission,
    reactor: Reactor,
    limits: Limits,
    waiting: HashMap<ConnId, Waiting>,
    last_conn: u64,
    /// What the last session of each peer may still have queued for the kernel module.
    previous: HashMap<PeerKey, [Arc<Account>; 2]>,
    /// What is kept of each peer for those who ask.
    stories: HashMap<PeerKey, Story>,
    /// Who wants to hear of every change.
    listeners: Vec<Sender<serde_json::Value>>,
    attached_since: Option<Instant>,
    /// What peers are told of whom this daemon is connected with.
    views: mesh::Views,
    watchdog: Option<Watchdog>,
    asks: Receiver<Ask>,
    ask: Sender<Ask>,
    scrape: Option<Scrape>,
    /// Kernel modules turned away because one is attached.
    second_kernels: Counter,
    digest: [u8; 8],
    events: Sender<Event>,
    incoming: Receiver<Event>,
    offers: Receiver<(Offer, Arc<()>)>,
    stop: Receiver<String>,
    /// Kept by every reading thread: gone when all of them are.
    guard: Option<Sender<()>>,
    guarded: Receiver<()>,
}

impl Timer {
    /// Looks for the kernel module, binds the listeners and gets everything ready.
    ///
    /// # Errors
    /// A sentence for the operator: what is missing, where, and what helps.
    pub fn new(setup: Setup) -> Result<Self, String> {
        let Setup { config, modules, stop, asks, ask } = setup;
        if let Some(list) = &modules {
            kmod::check(list).map_err(|missing| missing.to_string())?;
        }
        let born = Instant::now();
        let local = config.local_node().ok_or("the configuration has no local node")?.clone();
        let known = owner::known(&config);
        let settings = owner::settings(&config, modules.is_some());
        let digest = config.digest();
        let plan = Plan {
            server: config.server,
            node: local.addr,
            sites: owner::listeners(&config),
            admission: Admission {
                node: config.node,
                site: config.site,
                known,
                strict: config.peer_addr == PeerAddr::Strict,
            },
            extension: extension(digest),
            keys: config.keys.clone(),
        };
        let admission = plan.admission.clone();
        let (offer, offers) = unbounded();
        let reactor = Reactor::start(
            plan,
            // Once the timer is gone the process ends.
            Box::new(move |offered, ticket| drop(offer.send((offered, ticket)))),
        )?;
        let scrape = config.metrics.map(|addr| Scrape::start(addr, ask.clone())).transpose()?;
        let stories = settings.peers.iter().map(|&(key, _)| (key, Story::default())).collect::<Vec<_>>();
        let stories = stories.into_iter();
        let records = settings.peers.iter().map(|&(key, _)| Record::new(key));
        let switch = Switch::new((config.node, config.site), records);
        let (events, incoming) = unbounded();
        let (guard, guarded) = unbounded();
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
        Ok(Timer {
            born,
            core: Core::new(settings, Moment::ZERO),
            limits: limits(&config),
            config,
            modules,
            switch,
            admission,
            reactor,
            waiting: HashMap::new(),
            last_conn: 0,
            previous: HashMap::new(),
            stories: stories.collect(),
            listeners: Vec::new(),
            attached_since: None,
            views: mesh::Views::default(),
            watchdog: Watchdog::new(),
            asks,
            ask,
            scrape,
            second_kernels: Counter::default(),
            digest,
            events,
            incoming,
            offers,
            stop,
            guard: Some(guard),
            guarded,
        })
    }

    /// Runs until the daemon ends; its exit code.
    pub fn run(mut self) -> u8 {
        let mut actions = Vec::new();
        let (mut stop, mut asks) = (self.stop.clone(), self.asks.clone());
        service::tell(&[NotifyState::Ready]);
        self.tell_status();
        loop {
            let mut left = self.core.deadline().min(self.views.due).saturating_sub(self.now());
            if logging::left_out_pending() {
                left = left.min(LOG_TICK);
            }
            if let Some(watchdog) = &self.watchdog {
                left = left.min(watchdog.left());
            }
            select! {
                recv(self.incoming) -> event => {
                    if let Ok(event) = event {
                        self.core.handle(self.now(), event, &mut actions);
                    }
                }
                recv(self.offers) -> offer => {
                    if let Ok((offer, ticket)) = offer {
                        self.offered(offer, ticket, &mut actions);
                    }
                }
                recv(asks) -> ask => match ask {
                    Ok(ask) => self.answer(ask, &mut actions),
                    Err(_) => asks = never(),
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
            if self.views.due <= self.now() {
                self.share_views();
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

    /// Tells the core of the ping ACKs that came in since the last tick.
    fn count_acks(&mut self, now: Moment, actions: &mut Vec<Action>) {
        for session in self.sessions() {
            let count = session.take_acks();
            if count > 0 {
                let (peer, session) = (session.record.key, session.id);
                self.core.handle(now, Event::PingAcks { peer, session, count }, actions);
            }
        }
    }

    fn sessions(&self) -> Vec<Arc<Session>> {
        self.switch.table().peers.values().filter_map(|entry| entry.session.clone()).collect()
    }

    /// Ids as the packets of this node carry them.
    fn local_ids(&self) -> (NodeId, SiteId) {
        (self.config.node, self.config.site)
    }

    /// A connection came through its handshake, or a call did not.
    fn offered(&mut self, offer: Offer, ticket: Arc<()>, actions: &mut Vec<Action>) {
        self.last_conn += 1;
        let conn = ConnId(self.last_conn);
        let now = self.now();
        self.notice_lost_halves(now, actions);
        let event = match offer {
            Offer::Kernel { class, dev_id, stream, source } => {
                self.notice_lost_kernel(now, actions);
                let link = stream.into();
                let waiting = Waiting {
                    link,
                    source,
                    dev_id,
                    called: false,
                    extension: None,
                    encryption: None,
                    compression: None,
                    _ticket: ticket,
                };
                self.waiting.insert(conn, waiting);
                Event::KernelHello { class, conn }
            }
            Offer::Link {
                peer,
                class,
                link,
                attempt,
                steps,
                encryption,
                extension,
                compression,
                source,
                expected,
            } => {
                if let Some(story) = self.stories.get_mut(&peer) {
                    story.called(steps, None);
                }
                // Told before there is a session, and whether or not one comes of it. Once for each pair.
                if let Some(expected) = expected.filter(|_| class == Class::Data) {
                    limited!(
                        log::Level::Warn,
                        ("other address", peer.code()),
                        "{peer} calls from {}, but its configured address is {expected}: accepted, since element \
                         peeraddr is not strict",
                        source.ip()
                    );
                }
                let via = match attempt {
                    Some(attempt) => Via::Dialed(attempt),
                    None => Via::Accepted {
                        epoch: extension.as_ref().and_then(|extension| extension.epoch),
                        source: source.ip().to_canonical(),
                    },
                };
                let called = attempt.is_some();
                let waiting = Waiting {
                    link,
                    source,
                    dev_id: 0,
                    called,
                    extension,
                    encryption,
                    compression,
                    _ticket: ticket,
                };
                self.waiting.insert(conn, waiting);
                Event::LinkReady { peer, class, conn, via }
            }
            Offer::DialFailed { peer, attempt, class, why, errno, verdict, steps } => {
                // A reload may have removed it.
                let Some(story) = self.stories.get_mut(&peer) else { return };
                let news = !std::mem::replace(&mut story.unreachable, true);
                story.called(steps, Some((verdict, why.clone())));
                story.last_error = Some(why.clone());
                let level = if news { log::Level::Info } else { log::Level::Debug };
                log::log!(level, "{peer} cannot be reached: {why}; trying again");
                let more = report::fault("dialing", Some(class), errno);
                self.note(peer, "unreachable", "call failed", &why, more);
                Event::DialFailed { peer, attempt }
            }
            Offer::Knock(peer) => Event::Knock { peer },
            Offer::Addresses => return self.check_ownership(actions),
        };
        self.core.handle(now, event, actions);
    }

    /// A kernel module that comes back must not be refused because nobody has looked yet whether its
    /// predecessor is still there: a reader that waits for a queue sees no end of its link.
    fn notice_lost_kernel(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let table = self.switch.table();
        if let Some(device) = table.device.as_ref().filter(|device| device.hung_up()) {
            let why = "closed by the other side".into();
            self.core.handle(now, Event::KernelLost { attach: device.id, why }, actions);
        }
    }

    /// Nobody reads a link that waits for its other half: a new one must not be paired with a dead one.
    fn notice_lost_halves(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let lost = self.waiting.iter().filter(|(_, waiting)| crate::sys::hung_up(&waiting.link.stream));
        for conn in lost.map(|(&conn, _)| conn).collect::<Vec<_>>() {
            self.core.handle(now, Event::ConnLost { conn }, actions);
        }
    }

    fn attached(&self, attach: AttachId) -> Option<Arc<crate::device::Device>> {
        self.switch.table().device.clone().filter(|device| device.id == attach)
    }
}

fn limits(config: &Config) -> Limits {
    Limits {
        data: DATA_CEILING,
        meta: META_CEILING,
        slow: config.slow_timeout,
        // Half of what the other side's heartbeat allows, which is configured like ours.
        meta_patience: config.slow_timeout.min(config.ping_interval * config.max_ping_count / 2),
    }
}

/// What this side tells of itself to speakers of the hello extension.
fn extension(digest: [u8; 8]) -> Extension {
    Extension {
        version: Some(env!("CARGO_PKG_VERSION").into()),
        digest: Some(digest),
        features: FEATURE_VIEWS,
        ..Default::default()
    }
}

/// Keys by their ids, the newest first.
fn key_list(keys: &Keys) -> String {
    let ids: Vec<_> = keys.ids().map(|id| format!("key {id}")).collect();
    ids.join(", ")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
