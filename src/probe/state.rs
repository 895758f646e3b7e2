//! `hadm-probe state`: a line whenever the set of connected nodes changes.
//!
//! It must never print an unchanged state, which the daemon repeats every few seconds, and never miss one
//! in between: the thread that prints is the one that reads the meta link.

use std::net::SocketAddr;
use std::time::SystemTime;

use serde_json::json;

use crate::wire::Mask;

use super::link::{ConnState, Link};
use super::reader::PacketReader;
use super::{Failure, print, say, spawn, without};

/// Prints until a signal comes (then it is done) or the daemon goes.
pub fn run(server: SocketAddr, json: bool) -> Result<(), Failure> {
    let link = Link::attach(server)?;
    let drained = link.clone();
    spawn("data", move || {
        let mut packets = PacketReader::new(drained.data());
        loop {
            if let Err(e) = packets.next() {
                return drained.lost(&e);
            }
        }
    })?;
    let mut last = None;
    let why = link.each_state(|state| {
        if last.is_none() {
            say(format_args!("attached to the daemon of node {}", state.own));
        }
        match Change::between(last.replace(state.up), state) {
            Some(change) if json => print(change.json()),
            Some(change) => print(change.text()),
            None => Ok(()),
        }
    });
    if why == Failure::Interrupted { Ok(()) } else { Err(why) }
}

/// A change of the connected nodes.
#[derive(Debug, PartialEq)]
struct Change {
    state: ConnState,
    came: Mask,
    went: Mask,
}

impl Change {
    /// What `now` changes; the first state counts as a change from no nodes, even to no nodes.
    fn between(before: Option<Mask>, now: ConnState) -> Option<Change> {
        if before == Some(now.up) {
            return None;
        }
        let before = before.unwrap_or_default();
        Some(Change { state: now, came: without(now.up, before), went: without(before, now.up) })
    }

    fn text(&self) -> String {
        let mut line = format!("{} connected nodes: {}", now(), self.state.up);
        for (word, ids) in [("came", self.came), ("went", self.went)] {
            if !ids.is_empty() {
                line += &format!(", {word}: {ids}");
            }
        }
        line
    }

    fn json(&self) -> serde_json::Value {
        let ids = |mask: Mask| mask.ids().collect::<Vec<u8>>();
        json!({
            "time": now(),
            "node": self.state.own,
            "connected": ids(self.state.up),
            "came": ids(self.came),
            "went": ids(self.went),
        })
    }
}

/// UTC to the millisecond.
fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_told() {
        let state = |up| ConnState { own: 2, up: Mask(up) };
        let change = |before, up| Change::between(before, state(up));
        let all = |up, came, went| Some(Change { state: state(up), came: Mask(came), went: Mask(went) });
        assert_eq!(change(None, 0), all(0, 0, 0), "the first is told also when empty");
        assert_eq!(change(None, 3), all(3, 3, 0));
        assert_eq!(change(Some(Mask(3)), 3), None);
        assert_eq!(change(Some(Mask(3)), 10), all(10, 8, 1));
        assert_eq!(change(Some(Mask(3)), 0), all(0, 0, 3));
    }

    #[test]
    fn lines_name_what_came_and_went() {
        let change = Change::between(Some(Mask(3)), ConnState { own: 2, up: Mask(10) }).unwrap();
        assert!(
            change.text().ends_with("Z connected nodes: {1,3}, came: {3}, went: {0}"),
            "{}",
            change.text()
        );
        let json = change.json();
        assert_eq!((&json["connected"], &json["went"]), (&json!([1, 3]), &json!([0])));
    }
}
