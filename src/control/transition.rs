//! Changes: transitions of peers, changes of the daemon, and packet headers that were read.
//!
//! `hadmctl why`, `events` and `trace`, the log line of a session's end and the metrics work from these. Plain
//! values: the daemon makes them when something happens.

use std::fmt::{self, Write};
use std::sync::Arc;

use serde_json::Value;

use super::json::{Fields, Json, fields, objects, unexpected};
use super::words::{CauseKind, EndedBy, Outcome, PeerState, decimal};
use crate::wire::{Class, PeerKey, ResourceId};

/// A transition of a peer.
#[derive(Clone, Debug, PartialEq)]
pub struct Transition {
    /// The peer.
    pub peer: PeerKey,
    /// Its name for people, as in the status.
    pub name: Option<String>,
    /// The time, in the form of RFC 3339.
    pub time: String,
    /// The time, in seconds since 1970.
    pub unix_s: f64,
    /// The peer's state before.
    pub from: PeerState,
    /// The outcome.
    pub to: Outcome,
    /// The kind of the cause.
    pub kind: CauseKind,
    /// The cause, in words.
    pub cause: String,
    /// Facts beside the cause.
    pub details: Details,
}

/// The facts of a transition beside its cause; in JSON, fields that are left out where they are not known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    /// The link with which it began.
    pub link: Option<Class>,
    /// The system's error with which it began.
    pub error: Option<SystemError>,
    /// The address from which the peer's connections come, if a session began.
    pub source: Option<String>,
    /// The side that ended the session.
    pub by: Option<EndedBy>,
    /// Seconds that the session lasted.
    pub age_s: Option<f64>,
    /// The state of the session at its end.
    pub session: Option<SessionAtEnd>,
}

/// An error of the system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemError {
    /// Its number.
    pub errno: i32,
    /// Its name, as `ECONNRESET`, where it has one.
    pub name: Option<String>,
}

/// The state of a session when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionAtEnd {
    /// Microseconds from the last ping to its answer.
    pub rtt_us: Option<u64>,
    /// Bytes of memory that waited to be written to the peer.
    pub queued_bytes: u64,
}

/// Writes a field if there is a value.
fn put_some<T: Json>(value: Option<&T>, name: &str, fields: &mut Fields) {
    if let Some(value) = value {
        value.put(name, fields);
    }
}

impl Json for Transition {
    fn json(&self) -> Value {
        let mut fields = Fields::new();
        self.peer.put("peer", &mut fields);
        put_some(self.name.as_ref(), "name", &mut fields);
        self.time.put("time", &mut fields);
        self.unix_s.put("unix_s", &mut fields);
        self.from.put("from", &mut fields);
        self.to.put("to", &mut fields);
        self.kind.put("kind", &mut fields);
        self.cause.put("cause", &mut fields);
        let Details { link, error, source, by, age_s, session } = &self.details;
        put_some(link.as_ref(), "link", &mut fields);
        if let Some(SystemError { errno, name }) = error {
            errno.put("errno", &mut fields);
            name.put("errno_name", &mut fields);
        }
        put_some(source.as_ref(), "source", &mut fields);
        put_some(by.as_ref(), "by", &mut fields);
        put_some(age_s.as_ref(), "age_s", &mut fields);
        if let Some(SessionAtEnd { rtt_us, queued_bytes }) = session {
            rtt_us.put("rtt_us", &mut fields);
            queued_bytes.put("queued_bytes", &mut fields);
        }
        fields.into()
    }

    fn read(value: &Value) -> Result<Self, String> {
        let fields = fields(value)?;
        let errno: Option<i32> = Json::take("errno", fields)?;
        let queued: Option<u64> = Json::take("queued_bytes", fields)?;
        let error = errno
            .map(|errno| Ok::<_, String>(SystemError { errno, name: Json::take("errno_name", fields)? }));
        let session = queued.map(|queued_bytes| {
            Ok::<_, String>(SessionAtEnd { rtt_us: Json::take("rtt_us", fields)?, queued_bytes })
        });
        let details = Details {
            link: Json::take("link", fields)?,
            error: error.transpose()?,
            source: Json::take("source", fields)?,
            by: Json::take("by", fields)?,
            age_s: Json::take("age_s", fields)?,
            session: session.transpose()?,
        };
        Ok(Transition {
            peer: Json::take("peer", fields)?,
            name: Json::take("name", fields)?,
            time: Json::take("time", fields)?,
            unix_s: Json::take("unix_s", fields)?,
            from: Json::take("from", fields)?,
            to: Json::take("to", fields)?,
            kind: Json::take("kind", fields)?,
            cause: Json::take("cause", fields)?,
            details,
        })
    }
}

/// In brackets after a space; empty if no fact is known.
impl fmt::Display for Details {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = Vec::new();
        all.extend(self.age_s.map(|age| format!("after {} s", decimal(age, 1))));
        all.extend(self.by.map(|by| format!("ended by {by}")));
        all.extend(self.error.as_ref().map(|SystemError { errno, name }| {
            let mut error = format!("errno {errno}");
            if let Some(name) = name {
                let _ = write!(error, " {name}");
            }
            error
        }));
        if let Some(SessionAtEnd { rtt_us, queued_bytes }) = self.session {
            all.extend(rtt_us.map(|rtt| format!("rtt {rtt} us")));
            all.push(format!("{queued_bytes} B queued"));
        }
        if all.is_empty() { Ok(()) } else { write!(f, " ({})", all.join(", ")) }
    }
}

/// A change of the daemon: a text in JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A kernel module attached.
    KernelAttached,
    /// The kernel module detached.
    KernelDetached,
    /// A new configuration is in force.
    Reloaded,
    /// This node begins to own a resource's log, or no longer owns it.
    LogOwner {
        /// The resource.
        resource: ResourceId,
        /// Its name.
        name: String,
        /// True if this node owns its log.
        owned: bool,
    },
}

const ATTACHED: &str = "kernel module attached";
const DETACHED: &str = "kernel module detached";
const RELOADED: &str = "configuration reloaded";
const OWNER: &str = "): log owner now";
const NO_OWNER: &str = "): log owner no longer";

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::KernelAttached => f.write_str(ATTACHED),
            Change::KernelDetached => f.write_str(DETACHED),
            Change::Reloaded => f.write_str(RELOADED),
            Change::LogOwner { resource, name, owned } => {
                write!(f, "{resource} ({name}{}", if *owned { OWNER } else { NO_OWNER })
            }
        }
    }
}

impl Json for Change {
    fn json(&self) -> Value {
        self.to_string().into()
    }

    fn read(value: &Value) -> Result<Self, String> {
        let text = String::read(value)?;
        let log_owner = || {
            let (rest, owned) = match text.strip_suffix(OWNER) {
                Some(rest) => (rest, true),
                None => (text.strip_suffix(NO_OWNER)?, false),
            };
            let (resource, name) = rest.strip_prefix("resource ")?.split_once(" (")?;
            let resource = resource.parse::<u32>().ok()?.try_into().ok()?;
            Some(Change::LogOwner { resource, name: name.into(), owned })
        };
        match text.as_str() {
            ATTACHED => Ok(Change::KernelAttached),
            DETACHED => Ok(Change::KernelDetached),
            RELOADED => Ok(Change::Reloaded),
            _ => log_owner().map_or_else(|| unexpected("a change of the daemon", value), Ok),
        }
    }
}

objects! {
    /// A change of the daemon itself.
    DaemonChange {
        /// The time, in the form of RFC 3339.
        time: String,
        /// The change.
        to: Change,
        /// The cause, in words.
        cause: String,
    }

    /// A packet header that was read.
    SeenHeader {
        /// The time, in the form of RFC 3339.
        time: String,
        /// The name of the link.
        link: String,
        /// The packet type.
        kind "type": u8,
        /// The name of the type.
        name: String,
        /// The byte of the resource.
        dev_id: u8,
        /// The byte of the address space: nodes or sites.
        node_type: u8,
        /// The id of the sender.
        node_from: u32,
        /// The ids of the recipients.
        node_to: Vec<u8>,
        /// The length of the payload in bytes.
        len: u32,
        /// Headers before this one that were left out.
        left_out: u64,
    }
}

/// One line of a stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A transition of a peer.
    Peer(Arc<Transition>),
    /// A change of the daemon itself.
    Daemon(Arc<DaemonChange>),
    /// A packet header that was read.
    Header(SeenHeader),
}

impl Json for Event {
    fn json(&self) -> Value {
        match self {
            Event::Peer(transition) => transition.json(),
            Event::Daemon(change) => change.json(),
            Event::Header(header) => header.json(),
        }
    }

    fn read(value: &Value) -> Result<Self, String> {
        let has = |name: &str| value.get(name).is_some();
        match (has("peer"), has("dev_id")) {
            (true, _) => Json::read(value).map(Event::Peer),
            (_, true) => Json::read(value).map(Event::Header),
            _ => Json::read(value).map(Event::Daemon),
        }
    }
}
