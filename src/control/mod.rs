//! The control protocol: the requests to a running daemon and its answers, as types.
//!
//! Requests and answers are lines of JSON. A client sends `{"v":1,"cmd":"status"}` and gets one line
//! `{"v":1,"ok":true,"data":...}` or `{"v":1,"ok":false,"error":"..."}`. The commands `events` and `trace` answer
//! with such a line, and then with a line `{"v":1,"event":...}` for each thing that happens, until the client
//! hangs up.
//!
//! JSON is written and read here and nowhere else. This module knows no socket, no thread and no clock; the daemon,
//! `hadmctl`, log lines and metrics work from its types.

mod answers;
mod json;
pub mod metrics;
mod request;
#[cfg(test)]
pub(crate) mod samples;
mod status;
mod transition;
mod words;

#[cfg(test)]
mod tests;

pub use answers::{
    CheckResult, Examination, ExaminedPeer, Mesh, MeshResource, MeshRow, MeshTable, OneSided, PeerFate,
    PeerResult, Plan,
};
pub use json::Json;
pub use request::{Request, object};
pub use status::{
    ByCause, Call, Compress, Compressed, Kernel, PING_BOUNDS_US, PacketCounts, PeerCounters, PeerName,
    PeerStatus, Pings, Running, Status, Stream, TransitionCount, TurnedAway, Wait, Warnings, ZeroCopied,
};
pub use transition::{
    Change, DaemonChange, Details, Event, SeenHeader, SessionAtEnd, SystemError, Transition,
};
pub use words::{
    CallVerdict, CauseKind, Check, EndedBy, Fate, Known, Outcome, PeerState, PortState, Role, Verdict,
    decimal,
};

use std::fmt;
use std::sync::Arc;

use serde_json::{Value, json};

/// Version of the control protocol.
pub const VERSION: u64 = 1;
/// Default path of the daemon's control socket.
pub const SOCKET: &str = "/run/hadm/hadmd.sock";

/// The content of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The status.
    Status(Box<Status>),
    /// The connections as each side sees them.
    Mesh(Mesh),
    /// The result of an examination.
    Examination(Examination),
    /// The last transitions of a peer, oldest first.
    Transitions(Vec<Arc<Transition>>),
    /// The changes that a new configuration makes, or would make.
    Plan(Plan),
    /// Nothing else: the request was carried out.
    Done,
}

impl Answer {
    fn json(&self) -> Value {
        match self {
            Answer::Status(status) => status.json(),
            Answer::Mesh(mesh) => mesh.json(),
            Answer::Examination(found) => found.json(),
            Answer::Transitions(transitions) => transitions.json(),
            Answer::Plan(plan) => plan.json(),
            Answer::Done => Value::Null,
        }
    }
}

/// A line that the daemon writes.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// An answer, or the reason why there is none.
    Answer(Result<Answer, String>),
    /// An event.
    Event(Event),
}

impl Line {
    /// Returns the line of a success.
    pub const fn good(answer: Answer) -> Self {
        Line::Answer(Ok(answer))
    }

    /// Returns the line of a failure with its reason.
    pub fn bad(why: impl Into<String>) -> Self {
        Line::Answer(Err(why.into()))
    }
}

impl fmt::Display for Line {
    /// Writes the line in JSON, without the line end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = match self {
            Line::Answer(Ok(answer)) => json!({"v": VERSION, "ok": true, "data": answer.json()}),
            Line::Answer(Err(why)) => json!({"v": VERSION, "ok": false, "error": why}),
            Line::Event(event) => json!({"v": VERSION, "event": event.json()}),
        };
        // Not by way of the value's own Display, which can lay it out over several lines, too.
        f.write_str(&serde_json::to_string(&line).map_err(|_| fmt::Error)?)
    }
}

/// The reason why an answer has no content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoData {
    /// The daemon refuses, in its own words.
    Refused(String),
    /// The line is no answer of this protocol.
    Unknown(String),
}

/// The JSON content of a daemon's line: to be printed as it is, or read as the type that belongs to the request.
#[derive(Clone, Debug)]
pub struct Carried(Value);

impl Carried {
    /// Takes the content of an answer.
    ///
    /// # Errors
    /// The reason why there is none.
    pub fn answer(line: &[u8]) -> Result<Self, NoData> {
        let mut line = Self::line(line).map_err(NoData::Unknown)?;
        match (line.get("ok").and_then(Value::as_bool), line.get("error").and_then(Value::as_str)) {
            (Some(true), _) => Ok(Carried(line.get_mut("data").map(Value::take).unwrap_or_default())),
            (Some(false), why) => Err(NoData::Refused(why.unwrap_or("refused without a reason").into())),
            (None, _) => Err(NoData::Unknown(format!("the daemon answered with something else: {line}"))),
        }
    }

    /// Takes the content of a line of a stream.
    ///
    /// # Errors
    /// That the line is no line of this protocol.
    pub fn event(line: &[u8]) -> Result<Self, String> {
        Ok(Carried(Self::line(line)?.get_mut("event").map(Value::take).unwrap_or_default()))
    }

    fn line(line: &[u8]) -> Result<Value, String> {
        serde_json::from_slice(line)
            .map_err(|error| format!("the daemon answered with something else: {error}"))
    }

    /// Reads it as this type.
    ///
    /// # Errors
    /// The field that is not as this version of the protocol has it.
    pub fn read<T: Json>(&self) -> Result<T, String> {
        T::read(&self.0).map_err(|why| {
            format!("the daemon's answer is not as this version of hadmctl knows it: {why}; compare hadmctl version")
        })
    }

    /// Returns the JSON as it is: the answers of `hadm-nbd` have no types here.
    pub const fn value(&self) -> &Value {
        &self.0
    }

    /// Returns the version of the daemon, if it is a status, even one of another form.
    pub fn version(&self) -> Option<&str> {
        self.0.get("version").and_then(Value::as_str)
    }
}

impl fmt::Display for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
