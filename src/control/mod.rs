//! The control socket: who asks, what may be asked, and how the answers are written.
//!
//! Requests and answers are lines of JSON. A client sends `{"v":1,"cmd":"status"}` and gets one line
//! `{"v":1,"ok":true,"data":...}` or `{"v":1,"ok":false,"error":"..."}`. The commands `events` and `trace` answer
//! with such a line, and then with a line `{"v":1,"event":...}` for each thing that happens, until the client
//! hangs up. Nothing here touches the data path: questions go to the timer thread, which answers from what
//! it knows, and a client that does not read its answers is hung up on.

mod doctor;
pub mod metrics;
mod port;
mod scrape;
mod server;
mod verdict;

pub use scrape::Scrape;
pub use server::{Loader, Server, serve};

use std::path::PathBuf;
use std::str::FromStr;

use crossbeam::channel::Sender;
use log::LevelFilter;
use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::core::PeerKey;
use crate::wire::PacketType;

/// Version of the control protocol.
pub const VERSION: u64 = 1;
/// Where the daemon listens unless told otherwise.
pub const SOCKET: &str = "/run/hadm/hadmd.sock";
/// Group that may ask, where it exists.
pub const GROUP: &str = "hadm";
/// Clients at the same time.
pub const MAX_CLIENTS: usize = 16;
/// Lines that may wait for a client; one that falls further behind is hung up on.
pub const BACKLOG: usize = 1024;

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Everything there is to know, now.
    Status,
    /// Everything, and then every change.
    Events,
    /// Who sees whom.
    Mesh,
    /// What is wrong with a peer, or with all, found out by calling.
    Doctor(Option<PeerKey>),
    /// The last transitions of a peer.
    Why(PeerKey),
    /// Packet headers as they are read, of one peer's links and one type, or of all.
    Trace(Option<PeerKey>, Option<PacketType>),
    /// Link a peer again.
    Connect(PeerKey),
    /// End a peer's session and do not link it again.
    Disconnect(PeerKey),
    /// How much is logged.
    LogLevel(LevelFilter),
    /// Read the configuration file anew and put it in force.
    Reload,
    /// What [`Request::Reload`] would do with this file.
    Plan(PathBuf),
}

impl Request {
    /// Whether it changes anything: then only root and the daemon's own user may ask it.
    pub fn changes(&self) -> bool {
        matches!(self, Request::Connect(_) | Request::Disconnect(_) | Request::LogLevel(_) | Request::Reload)
    }

    /// Reads a request.
    ///
    /// # Errors
    /// A sentence for whoever asked.
    pub fn read(line: &str) -> Result<Self, String> {
        if !is_shallow(line) {
            return Err("nested too deep".into());
        }
        let value: Value = serde_json::from_str(line).map_err(|error| format!("not JSON: {error}"))?;
        match value.get("v").and_then(Value::as_u64) {
            Some(VERSION) => {}
            other => {
                let found = other.map_or("none".into(), |v| v.to_string());
                return Err(format!("protocol version {found}: this daemon speaks version {VERSION}"));
            }
        }
        let word = |name: &str| value.get(name).and_then(Value::as_str);
        let peer = || word("peer").ok_or("\"peer\" is missing".to_string()).and_then(PeerKey::from_str);
        Ok(match word("cmd").ok_or("\"cmd\" is missing")? {
            "status" => Request::Status,
            "events" => Request::Events,
            "mesh" => Request::Mesh,
            "doctor" => Request::Doctor(word("peer").map(PeerKey::from_str).transpose()?),
            "why" => Request::Why(peer()?),
            "trace" => {
                let kind = match value.get("type") {
                    None | Some(Value::Null) => None,
                    Some(kind) => {
                        let number = kind.as_u64().and_then(|kind| u8::try_from(kind).ok());
                        Some(PacketType(number.ok_or("\"type\" must be a number from 0 to 255")?))
                    }
                };
                Request::Trace(word("peer").map(PeerKey::from_str).transpose()?, kind)
            }
            "connect" => Request::Connect(peer()?),
            "disconnect" => Request::Disconnect(peer()?),
            "loglevel" => {
                let level = word("level").ok_or("\"level\" is missing")?;
                let words = "off, error, warn, info, debug or trace";
                Request::LogLevel(level.parse().map_err(|_| format!("{level:?} is no log level: {words}"))?)
            }
            "reload" => Request::Reload,
            "plan" => Request::Plan(word("file").ok_or("\"file\" is missing")?.into()),
            other => return Err(format!("unknown command {other:?}")),
        })
    }

    /// The request as a line.
    pub fn line(&self) -> String {
        let peer = |peer: &PeerKey| match peer {
            PeerKey::Node(node) => node.get().to_string(),
            PeerKey::Site(resource, site) => format!("{}:{}", resource.get(), site.get()),
        };
        let mut line = match self {
            Request::Status => json!({"cmd": "status"}),
            Request::Events => json!({"cmd": "events"}),
            Request::Mesh => json!({"cmd": "mesh"}),
            Request::Doctor(key) => json!({"cmd": "doctor", "peer": key.as_ref().map(peer)}),
            Request::Why(key) => json!({"cmd": "why", "peer": peer(key)}),
            Request::Trace(key, kind) => {
                json!({"cmd": "trace", "peer": key.as_ref().map(peer), "type": kind.map(|kind| kind.0)})
            }
            Request::Connect(key) => json!({"cmd": "connect", "peer": peer(key)}),
            Request::Disconnect(key) => json!({"cmd": "disconnect", "peer": peer(key)}),
            Request::Reload => json!({"cmd": "reload"}),
            Request::Plan(file) => json!({"cmd": "plan", "file": file}),
            Request::LogLevel(level) => {
                json!({"cmd": "loglevel", "level": level.as_str().to_ascii_lowercase()})
            }
        };
        if let Some(fields) = line.as_object_mut() {
            fields.insert("v".into(), VERSION.into());
        }
        line.to_string()
    }
}

/// Whether a line is nested no deeper than some levels more than any request: reading it recurses, on a small stack.
fn is_shallow(line: &str) -> bool {
    let (mut depth, mut quoted, mut escaped) = (0_u32, false, false);
    line.bytes().all(|byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'[' | b'{' if !quoted => depth = depth.saturating_add(1),
            b']' | b'}' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth <= 8
    })
}

/// A request on its way to the timer thread, and the way back. Lines that do not fit are left out, and the
/// sender is dropped: the client is hung up on.
pub struct Ask {
    /// What is asked.
    pub request: Request,
    /// The checked configuration that a reload or plan is about.
    pub config: Option<Box<Config>>,
    /// Where the lines of the answer go.
    pub reply: Sender<Value>,
}

/// What there is to say of a transition beside its cause, in brackets; nothing where there is nothing.
pub fn particulars(transition: &Map<String, Value>) -> String {
    let number = |field: &str| transition.get(field)?.as_u64();
    let word = |field: &str| transition.get(field)?.as_str();
    let errno = number("errno").map(|n| format!("errno {n} {}", word("errno_name").unwrap_or_default()));
    let all = [
        transition.get("age_s").and_then(Value::as_f64).map(|age| format!("after {age:.1} s")),
        word("by").map(|by| format!("ended by {by}")),
        errno.map(|errno| errno.trim_end().to_owned()),
        number("rtt_us").map(|rtt| format!("rtt {rtt} us")),
        number("queued_bytes").map(|queued| format!("{queued} B queued")),
    ];
    let all: Vec<String> = all.into_iter().flatten().collect();
    if all.is_empty() { String::new() } else { format!(" ({})", all.join(", ")) }
}

/// A line that says yes.
pub fn good(data: Value) -> Value {
    json!({"v": VERSION, "ok": true, "data": data})
}

/// A line that says no, and why.
pub fn bad(why: &str) -> Value {
    json!({"v": VERSION, "ok": false, "error": why})
}

/// A line of a stream.
pub fn event(event: Value) -> Value {
    json!({"v": VERSION, "event": event})
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_come_back() {
        let node: PeerKey = "3".parse().unwrap();
        let site: PeerKey = "7:1".parse().unwrap();
        for request in [
            Request::Status,
            Request::Events,
            Request::Mesh,
            Request::Doctor(None),
            Request::Doctor(Some(site)),
            Request::Why(node),
            Request::Trace(None, None),
            Request::Trace(Some(site), Some(PacketType::ND_SBIO)),
            Request::Connect(site),
            Request::Disconnect(node),
            Request::LogLevel(LevelFilter::Debug),
            Request::Reload,
            Request::Plan("/etc/hadm/new.xml".into()),
        ] {
            assert_eq!(Request::read(&request.line()), Ok(request));
        }
    }

    #[test]
    fn bad_requests_are_told_what_is_wrong() {
        for (line, word) in [
            ("", "JSON"),
            ("{}", "version none"),
            (r#"{"v":2,"cmd":"status"}"#, "version 2"),
            (r#"{"v":1}"#, "\"cmd\""),
            (r#"{"v":1,"cmd":"dance"}"#, "dance"),
            (r#"{"v":1,"cmd":"why"}"#, "\"peer\""),
            (r#"{"v":1,"cmd":"why","peer":"32"}"#, "no peer"),
            (r#"{"v":1,"cmd":"trace","type":256}"#, "255"),
            (r#"{"v":1,"cmd":"loglevel","level":"loud"}"#, "loud"),
        ] {
            let why = Request::read(line).unwrap_err();
            assert!(why.contains(word), "{line}: {why}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_read_or_refused(line in ".{0,200}") {
            let _ = Request::read(&line);
        }
    }
}
