//! The execution of the core's actions: calls, sessions, owned logs.
//!
//! Decides nothing, and never blocks: bytes that a link does not take at once are left to its own thread. Called by
//! the timer thread, action by action in their order; `kernel` has the kernel module's part.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{Level, debug, info, warn};

use super::links::Waiting;
use super::{Coordinator, hex, owner, reading, report};
use crate::control::{CauseKind, Change, Details, EndedBy, Outcome, PeerState, SessionAtEnd, decimal};
use crate::daemon::connect::{Dial, ReactorCommand};
use crate::daemon::core::{Action, AttemptId, ConnId, EndCause, Event, LinkSight, Moment, Role, SessionId};
use crate::daemon::link::lz4;
use crate::daemon::peer::{Direction, Session};
use crate::daemon::route::FromPeer;
use crate::limited;
use crate::sys;
use crate::wire::{Class, Compression, FEATURE_ENDS, FEATURE_RECORDS, FEATURE_VIEWS, PeerKey, ResourceId};

/// Time after which a peer that has to call is reported as one that does not: longer than any pause between two calls of
/// one that tries, 16 s with a fifth of it as jitter, and a connect tick of 5 s.
const SILENCE: Duration = Duration::from_secs(30);

/// Returns the system's counters as the core's type.
fn sight(account: &sys::TcpAccount) -> LinkSight {
    let &sys::TcpAccount { unacked, acked, unanswered, repeat, acked_ago, heard_ago, shut } = account;
    LinkSight { unacked, acked, unanswered, repeat, acked_ago, heard_ago, shut }
}

impl Coordinator {
    /// Carries out every action, in order; leaves resulting actions in `actions`. An exit code ends the daemon.
    pub(super) fn carry_out(&mut self, actions: &mut Vec<Action>) -> Option<u8> {
        for action in std::mem::take(actions) {
            match action {
                Action::Dial { peer, attempt } => self.dial(peer, attempt),
                Action::CancelDial { attempt } => self.reactor.command(ReactorCommand::Cancel(attempt)),
                Action::Close { conn } => drop(self.waiting.take(conn)),
                Action::StartSession { peer, session, data, meta } => {
                    self.start_session(peer, session, data, meta);
                }
                Action::OpenSession { peer, session } => self.open_session(peer, session),
                Action::EndSession { peer, session, cause } => self.end_session(peer, session, &cause),
                Action::Ping { peer, session, unanswered } => {
                    if unanswered > 1 {
                        debug!(
                            "{}: {} of {} pings not answered",
                            self.named(peer),
                            unanswered - 1,
                            self.config.max_ping_count
                        );
                    }
                    if let Some(session) = self.session(peer, session) {
                        session.ping();
                    }
                }
                Action::HoldOff { peer, until } => {
                    let until = self.born.checked_add(until).unwrap_or_else(Instant::now);
                    self.reactor.command(ReactorCommand::HoldOff(peer, until));
                }
                Action::LookAtLinks => self.look_at_links(actions),
                Action::Stalled => limited!(
                    Level::Warn,
                    ("stalled", 0),
                    "this daemon did not run for a while (machine busy or stopped): heartbeats start afresh"
                ),
                Action::AckKernel { conn, class } => self.ack_kernel(conn, class),
                Action::RefuseKernel { conn, why } => {
                    if let Some(refused) = self.waiting.take(conn) {
                        self.refuse_kernel(&refused, why);
                    }
                }
                Action::AttachKernel { attach, data, meta } => self.attach_kernel(attach, data, meta),
                Action::DetachKernel { attach, why } => self.detach_kernel(attach, &why),
                Action::TellKernel { state } => {
                    if let Some(device) = &self.router.table().kernel {
                        device.tell(state);
                    }
                }
                Action::CheckModules => self.machine.look_for_module(),
                Action::CheckOwnership => self.machine.look_at_addresses(),
                Action::OwnershipChanged { changes, owned } => {
                    self.change_ownership(&changes, owned, actions)
                }
                Action::Stop { drain, code } => return Some(self.stop_all(Instant::now() + drain, code)),
            }
        }
        None
    }

    /// Reports the logs that this node begins to own or no longer owns, and links the peers that follow from them.
    fn change_ownership(
        &mut self,
        changes: &[(ResourceId, bool)],
        owned: BTreeSet<ResourceId>,
        actions: &mut Vec<Action>,
    ) {
        let config = Arc::clone(&self.config);
        for (resource, here) in owner::runsites_here(&config) {
            let Some((_, owns)) = changes.iter().find(|(id, _)| *id == resource.id) else { continue };
            let change =
                Change::LogOwner { resource: resource.id, name: resource.name.clone(), owned: *owns };
            let why = format!("{} {}", here.addr.ip(), if *owns { "is here" } else { "is gone" });
            info!("{change}, {why}");
            self.note_daemon(change, &why);
        }
        self.router.set_owned(owned);
        self.apply_wanted(actions);
    }

    fn dial(&mut self, peer: PeerKey, attempt: AttemptId) {
        if let Some((to, from)) = owner::call(&self.config, peer) {
            // A peer without a history has been removed.
            let Some(history) = self.peers.history_mut(peer) else { return };
            history.attempts += 1;
            let epoch = fastrand::u64(..);
            self.reactor.command(ReactorCommand::Dial(Dial { peer, attempt, epoch, to, from }));
        }
    }

    fn session(&self, peer: PeerKey, id: SessionId) -> Option<Arc<Session>> {
        let table = self.router.table();
        table.peers.get(&peer)?.session.clone().filter(|session| session.id == id)
    }

    fn start_session(&mut self, peer: PeerKey, id: SessionId, data: ConnId, meta: ConnId) {
        let (Some(mut data), Some(meta)) = (self.waiting.take(data), self.waiting.take(meta)) else {
            return;
        };
        let previous = self.peers.previous(peer).cloned();
        previous.iter().flatten().for_each(|budget| budget.void());
        let is_clear =
            self.config.keys.is_some() && [&data, &meta].iter().any(|link| link.encryption.is_none());
        self.tell_connected(peer, &data);
        let (from, how) = match data.called {
            true => (PeerState::Dialing, CauseKind::ThisSideCalled),
            false => (PeerState::Half, CauseKind::PeerCalled),
        };
        let source = data.source.to_string();
        let table = self.router.table();
        let Some(entry) = table.peers.get(&peer) else { return };
        let features = meta.extension.as_ref().map_or(0, |extension| extension.features);
        if let Some(Compression::Lz4) = data.compression {
            let [out, inbound] =
                Direction::BOTH.map(|direction| entry.statistics.compression_stats(direction));
            data.link.wrap_inside(lz4::codec(self.config.max_packet, out, inbound));
        }
        let links = [data.link, meta.link];
        let started = Session::start(
            &entry.statistics,
            id,
            links,
            self.local_ids(),
            &super::limits(&self.config),
            &self.events,
            previous.as_ref(),
        );
        match started {
            Ok(session) => {
                if features & FEATURE_VIEWS != 0 {
                    session.exchange_views(features & FEATURE_RECORDS != 0);
                }
                if features & FEATURE_ENDS != 0 {
                    session.exchange_ends();
                }
                self.watch_links(&session);
                self.views.due = Moment::ZERO;
                self.peers.keep(peer, session.inbound());
                self.router.set_session(peer, Some(session));
                let details = Details { source: Some(source), ..Details::default() };
                self.note(peer, (from, Outcome::Connected), (how, how.to_string()), details);
                // A key came while the links were made.
                if is_clear {
                    let _ = self.events.send(Event::SessionLost {
                        peer,
                        session: id,
                        cause: EndCause::ClearText,
                    });
                }
            }
            Err(error) => self.session_failed(peer, id, &error),
        }
    }

    /// Reports the system's counters of every link to the core. A link without them is judged by its heartbeats
    /// alone.
    fn look_at_links(&mut self, actions: &mut Vec<Action>) {
        let now = self.now();
        for session in self.sessions() {
            for class in Class::BOTH {
                if let Ok(account) = sys::tcp_account(session.stream(class)) {
                    let sight = sight(&account);
                    let (peer, session) = (session.statistics.key, session.id);
                    self.core.handle(now, Event::LinkSeen { peer, session, class, sight }, actions);
                }
            }
        }
    }

    /// Has the system watch the links with the times of the configured heartbeat.
    pub(super) fn watch_links(&self, session: &Session) {
        let limit = self.core.link_limit();
        Class::BOTH.iter().for_each(|&class| sys::watch_tcp(session.stream(class), limit));
    }

    fn tell_connected(&mut self, peer: PeerKey, link: &Waiting) {
        let how = if link.called { "called" } else { "was called from" };
        let theirs = link.extension.as_deref();
        let ours = Arc::clone(&self.record);
        let name = self.named(peer);
        let Some(history) = self.peers.history_mut(peer) else { return };
        history.since = Some(Instant::now());
        history.source = Some(link.source);
        history.record.clone_from(&link.extension);
        history.encryption = link.encryption;
        history.compression = link.compression;
        history.sessions += 1;
        history.unreachable = false;
        if let Some((since, true)) = history.silent.take() {
            info!("{name} calls again, after {} s", since.elapsed().as_secs());
        }
        self.reactor.refusals.forget(peer);
        let who = match theirs.map(|theirs| theirs.version.as_deref()) {
            None => "without hello extension".to_string(),
            Some(version) => format!("hadmd {}", version.unwrap_or_default()),
        };
        let encrypted = link.encryption.map_or(String::new(), |encryption| {
            format!("; encrypted: {}, key {}", encryption.cipher, encryption.key)
        });
        let wanted =
            self.admission.allowed.iter().any(|allowed| allowed.key == peer && allowed.compress.is_some());
        let compress = match link.compression {
            Some(compression) => format!("; compress {}", compression.name()),
            None if wanted => "; no compression, the other side does not want it".into(),
            None => String::new(),
        };
        limited!(
            Level::Info,
            ("connected", peer.code()),
            "{name}: connected ({how} {}; {who}{encrypted}{compress})",
            link.source
        );
        let Some(theirs) = theirs.filter(|theirs| ours.has_same_config(theirs) == Some(false)) else {
            return;
        };
        let differing: String =
            ours.differences(theirs).iter().map(|part| format!(", {part} differs")).collect();
        let [here, there] = [ours.digest, theirs.digest].map(|digest| hex(&digest.unwrap_or_default()));
        warn!(
            "{name} has another configuration{differing}: its digest is {there}, here it is {here}; compare the files"
        );
    }

    /// Reports once each peer that has to call and does not.
    pub(super) fn notice_silence(&mut self) {
        for view in self.core.views() {
            let is_missing = view.role == Role::Acceptor && view.state == PeerState::Idle;
            let silent = self.peers.history(view.key).and_then(|history| history.silent);
            let now = match silent {
                None if is_missing => Some((Instant::now(), false)),
                Some((since, false)) if is_missing && since.elapsed() >= SILENCE => {
                    let name = self.named(view.key);
                    let seconds = since.elapsed().as_secs();
                    match self.reactor.refusals.last(view.key) {
                        Some((_, why)) => info!("{name} calls, but is refused for {seconds} s now: {why}"),
                        None => info!(
                            "{name} does not call: nothing for {seconds} s; it does not run, or cannot reach this node"
                        ),
                    }
                    Some((since, true))
                }
                Some((_, false)) if !is_missing => None,
                same => same,
            };
            if now != silent {
                if let Some(history) = self.peers.history_mut(view.key) {
                    history.silent = now;
                }
            }
        }
    }

    fn session_failed(&self, peer: PeerKey, session: SessionId, error: &std::io::Error) {
        let name = self.named(peer);
        limited!(Level::Error, ("threads", peer.code()), "{name}: cannot start its threads: {error}");
        let cause = EndCause::Resources(error.to_string(), error.raw_os_error());
        // The loss comes back as an event: the core alone ends sessions.
        let _ = self.events.send(Event::SessionLost { peer, session, cause });
    }

    fn open_session(&mut self, peer: PeerKey, id: SessionId) {
        let (Some(session), Some(guard)) = (self.session(peer, id), &self.shutdown.guard) else { return };
        let opened = session
            .open(reading(&self.config), guard, |class: Class| FromPeer::new(&self.router, &session, class));
        if let Err(error) = opened {
            self.session_failed(peer, id, &error);
        }
    }

    fn end_session(&mut self, peer: PeerKey, id: SessionId, cause: &EndCause) {
        let session = self.session(peer, id);
        let name = self.named(peer);
        let Some(history) = self.peers.history_mut(peer) else { return };
        let age = history.since.take().map_or(0.0, |since| since.elapsed().as_secs_f64());
        history.last_error = Some(cause.to_string());
        history.violations += u64::from(matches!(cause, EndCause::Violation(..)));
        let network = cause.errno().is_some_and(sys::is_networks);
        let mut details = Details {
            link: cause.link(),
            error: cause.errno().map(report::system_error),
            by: Some(if network { EndedBy::Network } else { cause.by() }),
            ..Details::default()
        };
        if let Some(session) = session {
            history.view = session.view();
            self.views.due = Moment::ZERO;
            details.session = Some(SessionAtEnd {
                rtt_us: session.rtt().map(|rtt| rtt.as_micros() as u64),
                queued_bytes: session.queued_bytes() as u64,
            });
            self.router.set_session(peer, None);
            if cause.is_kernel_modules() {
                session.tell_end();
            }
            session.end();
        }
        limited!(
            Level::Warn,
            ("session ended", peer.code()),
            "{name}: session ended after {} s: {cause}{details}",
            decimal(age, 1)
        );
        details.age_s = Some(age);
        let states = (PeerState::Connected, Outcome::Disconnected);
        self.note(peer, states, (cause.kind(), cause.to_string()), details);
    }
}
