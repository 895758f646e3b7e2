//! Reports to clients: the status, the last transitions of each peer, and every change as it happens.
//!
//! Decides nothing, and never waits for a client. Called by the timer thread for each control request and transition.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};
use log::{Level, info};

use super::history::HISTORY;
use super::{Coordinator, owner, reload};
use crate::config::is_stand_in;
use crate::control::{
    self, Answer, CauseKind, Change, DaemonChange, Details, Line, Outcome, PeerState, Request, SeenHeader,
    SystemError, Transition,
};
use crate::daemon::connect::ReactorCommand;
use crate::daemon::core::{Action, Event, Moment, Role};
use crate::daemon::link::tap::{Seen, Trace};
use crate::daemon::server::ControlRequest;
use crate::wire::{Extension, PacketType, PeerKey};
use crate::{limited, sys};

/// Time between two reads of a trace's ring: one ring at most, some ten thousand headers a second.
const TRACE_LOOK: Duration = Duration::from_millis(50);

fn timestamp() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

/// Returns a system error with its name.
pub(super) fn system_error(errno: i32) -> SystemError {
    SystemError { errno, name: sys::errno_name(errno).map(Into::into) }
}

impl Coordinator {
    /// Answers a request from the control socket.
    pub(super) fn answer(&mut self, control: ControlRequest, actions: &mut Vec<Action>) {
        let ControlRequest { request, config, reply, gone } = control;
        let unread =
            |config: Option<Box<_>>| config.map(|config| *config).ok_or("no file was read".to_string());
        // An answered ping must not show as unanswered until the next one is sent.
        self.count_acks(self.now(), actions);
        let allowed = |key: PeerKey| match self.peers.has(key) {
            true => Ok(key),
            false => Err(format!("{key} is not configured here")),
        };
        let answer = match request {
            Request::Status => {
                let snapshot = self.snapshot();
                return self.reports.answer(reply, move || Answer::Status(Box::new(snapshot.status())));
            }
            Request::Mesh => {
                let snapshot = self.snapshot();
                return self.reports.answer(reply, move || Answer::Mesh(snapshot.mesh()));
            }
            Request::Doctor(peer) => match peer.map(allowed).transpose() {
                Err(why) => Err(why),
                Ok(peer) => {
                    // The state before the calls, so that the client can wait for their end.
                    let snapshot = self.snapshot();
                    self.call_now(peer, actions);
                    return self.reports.answer(reply, move || Answer::Status(Box::new(snapshot.status())));
                }
            },
            Request::Events => {
                let snapshot = self.snapshot();
                return self.reports.listen(reply, move || Answer::Status(Box::new(snapshot.status())));
            }
            Request::Trace(peer, kind) => {
                match peer.map(allowed).transpose().and_then(|peer| begin(peer, kind)) {
                    Err(why) => Err(why),
                    Ok(trace) => {
                        let _ = reply.try_send(Line::good(Answer::Done));
                        let tracing = sys::spawn("trace", move || tell_headers(&trace, &reply, &gone));
                        return if let Err(error) = tracing {
                            limited!(Level::Error, ("trace", 0), "cannot trace packets: {error}");
                        };
                    }
                }
            }
            Request::Why(peer) => allowed(peer).map(|key| Answer::Transitions(self.why(key))),
            Request::Connect(peer) => allowed(peer).map(|key| self.hold(key, false, actions)),
            Request::Disconnect(peer) => allowed(peer).map(|key| self.hold(key, true, actions)),
            Request::Reload => {
                unread(config).and_then(|loaded| self.reload(loaded, actions)).map(Answer::Plan)
            }
            Request::Plan(_) => unread(config).map(|(config, warnings)| {
                let difference = reload::between(&self.config, &config);
                Answer::Plan(reload::plan(&difference, &warnings, &self.config, &config))
            }),
            Request::LogLevel(level) => {
                log::set_max_level(level);
                Ok(Answer::Done)
            }
        };
        // A client that has hung up already needs no answer.
        let _ = reply.try_send(Line::Answer(answer));
    }

    /// Returns a peer's name and key, for the log.
    pub(super) fn named(&self, key: PeerKey) -> String {
        format!("{}, {key}", self.config.name(key))
    }

    fn why(&self, key: PeerKey) -> Vec<Arc<Transition>> {
        let history = self.peers.history(key).into_iter();
        history.flat_map(|history| history.transitions.iter().cloned()).collect()
    }

    /// Calls the peer now, or all peers, as far as this side has to call them and waits to do so.
    pub(super) fn call_now(&mut self, only: Option<PeerKey>, actions: &mut Vec<Action>) {
        let now = self.now();
        let keys: Vec<PeerKey> = self.core.views().map(|view| view.key).collect();
        for key in keys.into_iter().filter(|&key| only.is_none_or(|only| only == key)) {
            self.core.handle(now, Event::PeerAlive { peer: key }, actions);
        }
    }

    /// Keeps a peer disconnected, or no longer.
    fn hold(&mut self, key: PeerKey, held: bool, actions: &mut Vec<Action>) -> Answer {
        if let Some(history) = self.peers.history_mut(key) {
            history.held = held;
        }
        let what = if held { "disconnected" } else { "connected again" };
        info!("{}: {what} by the operator", self.named(key));
        self.apply_wanted(actions);
        Answer::Done
    }

    /// Sends the wanted peers to the reactor and the core.
    pub(super) fn apply_wanted(&mut self, actions: &mut Vec<Action>) {
        let owned = self.router.table().owned.clone();
        self.views.due = Moment::ZERO;
        for allowed in &mut self.admission.allowed {
            let here = match allowed.key {
                PeerKey::Node(_) => true,
                PeerKey::Site(resource, _) => owned.contains(&resource),
            };
            // A peer cannot be called at an address that is not known yet.
            let known =
                !is_stand_in(allowed.addr) || owner::role(&self.config, allowed.key) == Role::Acceptor;
            allowed.held = self.peers.history(allowed.key).is_some_and(|history| history.held);
            allowed.wanted = here && known && !allowed.held;
        }
        // First the allowed peers, then the listeners, then calls and sessions: the system must not accept a peer
        // that is then refused.
        self.reactor.command(ReactorCommand::Admit(
            self.admission.clone(),
            Extension::clone(&self.record),
            self.config.keys.clone(),
        ));
        self.reactor.command(ReactorCommand::Sites(owner::listeners(&self.config, &owned)));
        let now = self.now();
        for allowed in &self.admission.allowed {
            self.core.handle(now, Event::Wanted { peer: allowed.key, wanted: allowed.wanted }, actions);
        }
        self.tell_status();
    }

    /// Adds a transition to a peer's history, and sends it to every listening client.
    pub(super) fn note(
        &mut self,
        peer: PeerKey,
        (from, to): (PeerState, Outcome),
        (kind, cause): (CauseKind, String),
        details: Details,
    ) {
        let unix_s =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let name = Some(self.config.name(peer));
        let time = timestamp();
        let transition = Arc::new(Transition { peer, name, time, unix_s, from, to, kind, cause, details });
        if let Some(history) = self.peers.history_mut(peer) {
            if history.transitions.len() == HISTORY {
                history.transitions.pop_front();
            }
            history.transitions.push_back(Arc::clone(&transition));
            *history.transitions_by.entry((to, kind)).or_default() += 1;
            if to == Outcome::Disconnected {
                history.last_end = Some(Arc::clone(&transition));
            }
        }
        self.tell_listeners(control::Event::Peer(transition));
    }

    /// Sends a change of the daemon itself to every listening client.
    pub(super) fn note_daemon(&mut self, to: Change, cause: &str) {
        let change = DaemonChange { time: timestamp(), to, cause: cause.into() };
        self.tell_listeners(control::Event::Daemon(Arc::new(change)));
    }

    fn tell_listeners(&mut self, event: control::Event) {
        self.tell_status();
        self.reports.tell(event);
    }
}

fn begin(peer: Option<PeerKey>, kind: Option<PacketType>) -> Result<Trace, String> {
    Trace::begin(peer, kind).ok_or_else(|| "too many clients look at packets already".into())
}

/// Sends packet headers to a client until it hangs up. It waits for the client on a thread of its own.
fn tell_headers(trace: &Trace, reply: &Sender<Line>, gone: &Receiver<()>) {
    loop {
        while let Some((Seen { link, at, header, .. }, left_out)) = trace.next() {
            let event = control::Event::Header(SeenHeader {
                time: humantime::format_rfc3339_millis(at).to_string(),
                link: link.to_string(),
                kind: header.kind.0,
                name: header.kind.to_string(),
                dev_id: header.device.into(),
                node_type: header.node_type,
                node_from: header.node_from,
                node_to: header.node_to.ids().collect(),
                len: header.len,
                left_out: left_out as u64,
            });
            if reply.send(Line::Event(event)).is_err() {
                return;
            }
        }
        if gone.recv_timeout(TRACE_LOOK) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}
