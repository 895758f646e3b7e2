//! What others are told: the status, the last transitions of each peer, and every change as it happens.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Instant, SystemTime};

use crossbeam::channel::{Sender, TrySendError};
use log::info;
use serde_json::{Map, Value, json};

use super::reload::Difference;
use super::{Timer, hex};
use crate::connect::Encryption;
use crate::control::{self, Ask, Request};
use crate::core::{Action, Event, PeerKey, Role, View};
use crate::keys::Keys;
use crate::link::tap;
use crate::peer::{Direction, Record, Session};
use crate::wire::{Class, Compression, PacketType, PeerView};

/// Transitions remembered of each peer.
const HISTORY: usize = 32;

/// What is kept of a peer for those who ask.
#[derive(Default)]
pub(super) struct Story {
    transitions: VecDeque<Value>,
    /// Since when its session is up.
    pub since: Option<Instant>,
    /// Where its session's other end is, and what it told.
    pub source: String,
    pub version: Option<String>,
    pub same_config: Option<bool>,
    /// How its session is encrypted.
    pub encryption: Option<Encryption>,
    /// Sessions that ended because the peer sent what no peer may send.
    pub violations: u64,
    /// What its session's data link wears.
    pub compression: Option<Compression>,
    pub sessions: u64,
    pub attempts: u64,
    pub last_error: Option<String>,
    /// How the last call to it went.
    pub call: Call,
    /// What it told in its last session of whom it is connected with.
    pub view: Option<(PeerView, Instant)>,
    /// How often it became what, and why.
    transitions_by: BTreeMap<(&'static str, &'static str), u64>,
    /// How its last session ended.
    last_end: Option<Value>,
    /// Whether the last call came to nothing: the next failure is no news.
    pub unreachable: bool,
    /// Whether the operator keeps it disconnected.
    pub held: bool,
}

/// The last call to a peer.
#[derive(Default)]
pub(super) struct Call {
    /// Which one, counted as [`Story::attempts`].
    number: u64,
    steps: Vec<String>,
    /// What a failure says of the other side, in one word, and why it failed.
    failed: Option<(&'static str, String)>,
}

impl Story {
    fn transitions_by(&self) -> Vec<Value> {
        let all = self.transitions_by.iter();
        all.map(|((to, kind), n)| json!({"to": to, "kind": kind, "count": n})).collect()
    }

    /// Remembers how a call went, or one of its links.
    pub fn called(&mut self, steps: Vec<String>, failed: Option<(&'static str, String)>) {
        if self.call.number != self.attempts {
            self.call = Call { number: self.attempts, ..Call::default() };
        }
        self.call.steps.extend(steps);
        self.call.failed = failed;
    }

    fn call_json(&self) -> Value {
        let Call { number, steps, failed } = &self.call;
        let (verdict, why) = failed.as_ref().map(|(verdict, why)| (verdict, why)).unzip();
        match number {
            0 => Value::Null,
            _ => json!({"number": number, "steps": steps, "verdict": verdict, "why": why}),
        }
    }
}

fn timestamp() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

/// The fields that tell where a transition began: the state before, and the link and error it began with.
pub(super) fn fault(from: &str, link: Option<Class>, errno: Option<i32>) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("from".into(), from.into());
    if let Some(class) = link {
        fields.insert("link".into(), class.to_string().into());
    }
    if let Some(errno) = errno {
        fields.insert("errno".into(), errno.into());
        fields.insert("errno_name".into(), crate::sys::errno_name(errno).into());
    }
    fields
}

fn counters(list: &[(&str, u64)]) -> Value {
    let mut map = Map::new();
    map.extend(list.iter().map(|&(what, n)| (what.to_string(), n.into())));
    map.into()
}

/// The fields that tell which peer.
fn identity(key: PeerKey) -> Value {
    match key {
        PeerKey::Node(node) => json!({"peer": key.to_string(), "node": node.get()}),
        PeerKey::Site(resource, site) => {
            json!({"peer": key.to_string(), "site": site.get(), "resource": resource.get()})
        }
    }
}

fn books(record: &Record) -> Value {
    let mut all = Map::new();
    for class in Class::BOTH {
        for direction in Direction::BOTH {
            let tally = record.books(direction, class).tally();
            let dropped: Vec<_> = tally.dropped.iter().map(|(cause, n)| (cause.words(), *n)).collect();
            let books = json!({
                "received": tally.received, "received_bytes": tally.received_bytes,
                "forwarded": tally.forwarded, "forwarded_bytes": tally.forwarded_bytes,
                "queued": tally.queued, "queued_bytes": tally.queued_bytes,
                "dropped": counters(&dropped),
            });
            all.insert(format!("{class}_{}", direction.name()), books);
        }
    }
    all.into()
}

impl Timer {
    /// Answers a question from the control socket.
    pub(super) fn answer(&mut self, ask: Ask, actions: &mut Vec<Action>) {
        let Ask { request, config, reply } = ask;
        let unread =
            |config: Option<Box<_>>| config.map(|config| *config).ok_or("no file was read".to_string());
        // So that an answered ping does not show as unanswered until the next one is sent.
        self.count_acks(self.now(), actions);
        let known = |key: PeerKey| match self.stories.contains_key(&key) {
            true => Ok(key),
            false => Err(format!("{key} is not configured here")),
        };
        let answer = match request {
            Request::Status => Ok(self.status()),
            Request::Mesh => Ok(self.mesh()),
            Request::Doctor(peer) => peer.map(known).transpose().map(|peer| {
                // As it stands before the calls, so that whoever asks can wait for their end.
                let status = self.status();
                self.call_now(peer, actions);
                status
            }),
            Request::Events => {
                let _ = reply.try_send(control::good(self.status()));
                self.listeners.push(reply);
                return;
            }
            Request::Trace(peer, kind) => match peer.map(known).transpose() {
                Err(why) => Err(why),
                Ok(peer) => {
                    let _ = reply.try_send(control::good(Value::Null));
                    return trace(reply, peer, kind);
                }
            },
            Request::Why(peer) => known(peer).map(|key| self.why(key)),
            Request::Connect(peer) => known(peer).map(|key| self.hold(key, false, actions)),
            Request::Disconnect(peer) => known(peer).map(|key| self.hold(key, true, actions)),
            Request::Reload => unread(config).and_then(|config| self.reload(config, actions)),
            Request::Plan(_) => {
                unread(config).map(|config| Difference::between(&self.config, &config).json())
            }
            Request::LogLevel(level) => {
                log::set_max_level(level);
                Ok(Value::Null)
            }
        };
        // A client that has hung up already needs no answer.
        let _ = reply.try_send(answer.map_or_else(|why| control::bad(&why), control::good));
    }

    fn why(&self, key: PeerKey) -> Value {
        self.stories.get(&key).map_or(Value::Null, |story| story.transitions.iter().cloned().collect())
    }

    /// Calls the peer now, or every peer, that this side has to call and waits to call again.
    fn call_now(&mut self, only: Option<PeerKey>, actions: &mut Vec<Action>) {
        let now = self.now();
        let keys: Vec<PeerKey> = self.core.views().map(|view| view.key).collect();
        for key in keys.into_iter().filter(|&key| only.is_none_or(|only| only == key)) {
            self.core.handle(now, Event::Knock { peer: key }, actions);
        }
    }

    /// Keeps a peer disconnected, or no longer.
    fn hold(&mut self, key: PeerKey, held: bool, actions: &mut Vec<Action>) -> Value {
        if let Some(story) = self.stories.get_mut(&key) {
            story.held = held;
        }
        info!("{key}: {} by the operator", if held { "disconnected" } else { "connected again" });
        self.apply_wanted(actions);
        Value::Null
    }

    /// Tells the reactor and the core which peers are to be linked now.
    pub(super) fn apply_wanted(&mut self, actions: &mut Vec<Action>) {
        let owned = self.switch.table().owned.clone();
        for known in &mut self.admission.known {
            let here = match known.key {
                PeerKey::Node(_) => true,
                PeerKey::Site(resource, _) => owned.contains(&resource),
            };
            known.wanted = here && !self.stories.get(&known.key).is_some_and(|story| story.held);
        }
        // First who may come in, then the calls and sessions.
        self.reactor.order(crate::connect::Order::Admit(
            self.admission.clone(),
            super::extension(self.digest),
            self.config.keys.clone(),
        ));
        let now = self.now();
        for known in &self.admission.known {
            self.core.handle(now, Event::Wanted { peer: known.key, wanted: known.wanted }, actions);
        }
    }

    /// Remembers a transition of a peer, and tells whoever listens. `kind` says why in the same words for
    /// the same causes, `cause` has all there is to say.
    pub(super) fn note(
        &mut self,
        key: PeerKey,
        to: &'static str,
        kind: &'static str,
        cause: &str,
        more: Map<String, Value>,
    ) {
        let mut transition = identity(key);
        if let Some(fields) = transition.as_object_mut() {
            let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            fields.insert("time".into(), timestamp().into());
            fields.insert("unix_s".into(), since_epoch.as_secs_f64().into());
            fields.insert("to".into(), to.into());
            fields.insert("kind".into(), kind.into());
            fields.insert("cause".into(), cause.into());
            fields.extend(more);
        }
        if let Some(story) = self.stories.get_mut(&key) {
            if story.transitions.len() == HISTORY {
                story.transitions.pop_front();
            }
            story.transitions.push_back(transition.clone());
            *story.transitions_by.entry((to, kind)).or_default() += 1;
            if to == "disconnected" {
                story.last_end = Some(transition.clone());
            }
        }
        self.tell_listeners(transition);
    }

    /// Tells whoever listens of something that is no peer's.
    pub(super) fn note_daemon(&mut self, what: &str, cause: &str) {
        self.tell_listeners(json!({"time": timestamp(), "to": what, "cause": cause}));
    }

    fn tell_listeners(&mut self, event: Value) {
        self.tell_status();
        // Whoever does not keep up is hung up on: a stream with a hole would be worse.
        self.listeners.retain(|listener| listener.try_send(control::event(event.clone())).is_ok());
    }

    fn status(&self) -> Value {
        let table = self.switch.table();
        let local = self.config.local_node();
        let now = self.now();
        let peers = self.core.views().filter_map(|view| {
            let entry = table.peers.get(&view.key)?;
            Some(self.peer_status(&view, &entry.record, entry.session.as_deref(), now))
        });
        let second = [("second kernel module", self.second_kernels.get())];
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "node": self.config.node.get(),
            "site": self.config.site.get(),
            "hostname": local.map(|node| node.hostname.clone()),
            "address": local.map(|node| node.addr.to_string()),
            "server": self.config.server.to_string(),
            "configuration": hex(&self.digest),
            "keys": self.config.keys.iter().flat_map(Keys::ids).map(|id| id.to_string()).collect::<Vec<_>>(),
            "uptime_s": now.as_secs_f64(),
            "owned": table.owned.iter().map(|resource| resource.get()).collect::<Vec<_>>(),
            "kernel": {
                "attached": table.device.is_some(),
                "since_s": self.attached_since.map(|since| since.elapsed().as_secs_f64()),
            },
            "peers": peers.collect::<Vec<_>>(),
            "strays": counters(&self.switch.strays.list()),
            "refused": counters(&[&self.reactor.refusals.list()[..], &second].concat()),
            "stalls": self.core.stalls(),
        })
    }

    /// What is wanted, agreed and done about compressing a peer's data; nothing where it is not spoken of.
    fn compress(&self, key: PeerKey, record: &Record, connected: Option<&Story>) -> Value {
        let done = Direction::BOTH.map(|direction| {
            let squeezed = record.squeezed(direction);
            (direction.name(), squeezed.plain.get(), squeezed.wire.get())
        });
        let wanted =
            self.admission.known.iter().find(|known| known.key == key).and_then(|known| known.compress);
        if wanted.is_none() && done.iter().all(|(_, plain, _)| *plain == 0) {
            return Value::Null;
        }
        let mut compress = Map::new();
        let used = connected.and_then(|story| story.compression);
        compress.insert("wanted".into(), wanted.map(Compression::name).into());
        compress.insert("used".into(), used.map(Compression::name).into());
        for (direction, plain, wire) in done {
            compress.insert(direction.into(), json!({"plain_bytes": plain, "wire_bytes": wire}));
        }
        compress.into()
    }

    fn peer_status(
        &self,
        view: &View,
        record: &Record,
        session: Option<&Session>,
        now: crate::core::Moment,
    ) -> Value {
        let mut status = identity(view.key);
        let story = self.stories.get(&view.key);
        let connected = session.is_some();
        let encryption = story.filter(|_| connected).and_then(|story| story.encryption);
        let call = super::owner::call(&self.config, view.key);
        let refused = self.reactor.refusals.last(view.key);
        let waits = (view.state == "waiting").then_some(view.until).flatten();
        let more = json!({
            "role": match view.role { Role::Caller => "caller", Role::Acceptor => "acceptor" },
            "address": call.map(|(to, _)| to.to_string()),
            "from": call.map(|(_, from)| from.to_string()),
            "state": view.state,
            "held": story.is_some_and(|story| story.held),
            "connected": connected,
            "age_s": story.and_then(|story| story.since).map(|since| since.elapsed().as_secs_f64()),
            "source": story.filter(|_| connected).map(|story| story.source.clone()),
            "version": story.filter(|_| connected).and_then(|story| story.version.clone()),
            "same_config": story.filter(|_| connected).and_then(|story| story.same_config),
            "cipher": encryption.map(|encryption| encryption.cipher),
            "key": encryption.map(|encryption| encryption.key.to_string()),
            "sessions": story.map_or(0, |story| story.sessions),
            "violations": story.map_or(0, |story| story.violations),
            "attempts": story.map_or(0, |story| story.attempts),
            "next_attempt_s": waits.map(|at| at.saturating_sub(now).as_secs_f64()),
            "last_error": story.and_then(|story| story.last_error.clone()),
            "call": story.map(Story::call_json),
            "turned_away": refused.map(|(at, why)| json!({"age_s": at.elapsed().as_secs_f64(), "why": why})),
            "views": session.is_some_and(Session::exchanges_views),
            "unanswered": view.unanswered,
            "rtt_us": session.and_then(Session::rtt).map(|rtt| rtt.as_micros() as u64),
            "compress": self.compress(view.key, record, story.filter(|_| connected)),
            "transitions": story.map(Story::transitions_by),
            "last_transition": story.and_then(|story| story.transitions.back()),
            "last_end": story.and_then(|story| story.last_end.as_ref()),
            "books": books(record),
        });
        if let (Some(fields), Value::Object(more)) = (status.as_object_mut(), more) {
            fields.extend(more);
        }
        status
    }
}

/// Sends packet headers to a client until it hangs up. What it does not take in time is left out and counted:
/// tracing must not slow down what it watches.
fn trace(reply: Sender<Value>, peer: Option<PeerKey>, kind: Option<PacketType>) {
    let link = peer.map(|peer| format!("{peer} "));
    let mut left_out = 0u64;
    tap::add(Box::new(move |name, header| {
        if link.as_ref().is_some_and(|link| !name.starts_with(link))
            || kind.is_some_and(|kind| kind != header.kind)
        {
            return true;
        }
        let event = control::event(json!({
            "time": timestamp(), "link": name, "type": header.kind.0, "name": header.kind.to_string(),
            "dev_id": header.dev_id, "node_type": header.node_type, "node_from": header.node_from,
            "node_to": header.node_to.ids().collect::<Vec<_>>(), "len": header.len, "left_out": left_out,
        }));
        match reply.try_send(event) {
            Ok(()) => left_out = 0,
            Err(TrySendError::Full(_)) => left_out += 1,
            Err(TrySendError::Disconnected(_)) => return false,
        }
        true
    }));
}
