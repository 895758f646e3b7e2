//! The requests at the control socket, as types and as lines.
//!
//! A line that is no request is refused with a sentence; reading one costs little, however hostile the line.
//! `hadmctl`
//! writes them, the daemon reads them.

use std::path::PathBuf;
use std::str::FromStr;

use log::LevelFilter;
use serde_json::{Value, json};

use super::VERSION;
use crate::wire::{PacketType, PeerKey};

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The status, now.
    Status,
    /// The status, and then every change.
    Events,
    /// The connections as each side sees them.
    Mesh,
    /// An examination of a peer, or of all, by calling.
    Doctor(Option<PeerKey>),
    /// The last transitions of a peer.
    Why(PeerKey),
    /// Packet headers as they are read, of one peer's links and one type, or of all.
    Trace(Option<PeerKey>, Option<PacketType>),
    /// Link a peer again.
    Connect(PeerKey),
    /// End a peer's session and do not link it again.
    Disconnect(PeerKey),
    /// Set the level of the log.
    LogLevel(LevelFilter),
    /// Read the configuration file again and put it in force.
    Reload,
    /// The changes that [`Request::Reload`] would make with this file.
    Plan(PathBuf),
}

impl Request {
    /// Returns true if it changes anything: then only root and the daemon's own user may send it.
    pub fn changes(&self) -> bool {
        matches!(self, Request::Connect(_) | Request::Disconnect(_) | Request::LogLevel(_) | Request::Reload)
    }

    /// Reads a request.
    ///
    /// # Errors
    /// A sentence for the client.
    pub fn read(line: &str) -> Result<Self, String> {
        let value = object(line, "this daemon")?;
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

    /// Returns the request as a line.
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

/// Reads a request's line as far as all programs with a control socket do it: JSON of this version. `speaker` is what the
/// program calls itself.
///
/// # Errors
/// A sentence for the client.
pub fn object(line: &str, speaker: &str) -> Result<Value, String> {
    if !is_shallow(line) {
        return Err("nested too deep".into());
    }
    let value: Value = serde_json::from_str(line).map_err(|error| format!("not JSON: {error}"))?;
    match value.get("v").and_then(Value::as_u64) {
        Some(VERSION) => Ok(value),
        other => {
            let found = other.map_or("none".into(), |v| v.to_string());
            Err(format!("protocol version {found}: {speaker} speaks version {VERSION}"))
        }
    }
}

/// Returns true if a line is nested no deeper than some levels more than any request: reading it recurses, on a small stack.
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
