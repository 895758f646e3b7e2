//! `hadm-probe state`: a line whenever the connected nodes, or the connected sites of a resource, change.
//!
//! It must never print an unchanged state, which the daemon repeats every few seconds, and never miss one
//! in between: the thread that prints is the one that reads the meta link.
#![allow(clippy::indexing_slicing, reason = "JSON objects that were made here")]

use std::net::SocketAddr;
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::wire::Mask;

use super::link::Link;
use super::{Failure, print, say, spawn, without};
use crate::attach::Group;
use crate::attach::PacketReader;
use crate::attach::{ConnState, States};

/// Prints until a signal comes, which is a success, or until the daemon goes, which is a failure.
pub fn run(server: SocketAddr, json: bool) -> Result<(), Failure> {
    let link = Link::attach(server)?;
    let drained = link.clone();
    spawn("data", move || {
        let mut packets = PacketReader::new(drained.data());
        loop {
            if let Err(e) = packets.next_packet() {
                return drained.lost(&e);
            }
        }
    })?;
    let mut last = None;
    let why = link.each_state(|states| {
        let Some(own) = states.own(Group::Nodes) else { return Ok(()) };
        if last.is_none() {
            say(format_args!("attached to the daemon of node {own}"));
        }
        let changes = changes(last.replace(states.clone()).as_ref(), states);
        match changes.as_slice() {
            [] => Ok(()),
            changes if json => print(to_json(changes)),
            changes => print(to_text(changes)),
        }
    });
    if why == Failure::Interrupted { Ok(()) } else { Err(why) }
}

/// The change of one group.
#[derive(Debug, PartialEq)]
struct Change {
    group: Group,
    own: u8,
    up: Mask,
    came: Mask,
    went: Mask,
}

/// Returns all groups, if anything is different in one of them. The first states count as a change from no peers,
/// even if there are none now.
fn changes(before: Option<&States>, now: &States) -> Vec<Change> {
    if before == Some(now) {
        return Vec::new();
    }
    let change = |(&group, state): (&Group, &ConnState)| {
        let (own, up) = (state.own, state.up);
        let before = before.and_then(|states| states.0.get(&group)).map_or(Mask(0), |state| state.up);
        Change { group, own, up, came: without(up, before), went: without(before, up) }
    };
    now.0.iter().map(change).collect()
}

fn to_text(changes: &[Change]) -> String {
    let mut line = format!("{} connected ", now());
    for (i, change) in changes.iter().enumerate() {
        let Change { group, up, .. } = change;
        line += &format!("{}{group}: {up}", if i == 0 { "" } else { "; " });
        for (word, ids) in [("came", change.came), ("went", change.went)] {
            if !ids.is_empty() {
                line += &format!(", {word}: {ids}");
            }
        }
    }
    line
}

fn to_json(changes: &[Change]) -> Value {
    let mut line = json!({ "time": now(), "sites": {}, "sites_came": {}, "sites_went": {} });
    for change in changes {
        line[change.group.word()] = json!(change.own);
        let sets = [
            ("connected", "sites", change.up),
            ("came", "sites_came", change.came),
            ("went", "sites_went", change.went),
        ];
        for (nodes, sites, ids) in sets {
            let ids = json!(ids.ids().collect::<Vec<u8>>());
            match change.group {
                Group::Nodes => line[nodes] = ids,
                Group::Sites(resource) => line[sites][resource.get().to_string()] = ids,
            }
        }
    }
    line
}

/// Returns the time now, as UTC to the millisecond.
fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ResourceId;

    /// Returns the states of node 2 of site 0, and of the sites of resource 3.
    fn states(nodes: u32, sites: Option<u32>) -> States {
        let sites = sites.map(|up| (Group::Sites(ResourceId::try_from(3).unwrap()), (0, up)));
        let states = [(Group::Nodes, (2, nodes))].into_iter().chain(sites);
        States(states.map(|(group, (own, up))| (group, ConnState { own, up: Mask(up) })).collect())
    }

    fn text(before: Option<States>, now: &States) -> String {
        let changes = changes(before.as_ref(), now);
        if changes.is_empty() {
            String::new()
        } else {
            to_text(&changes).split_once(' ').unwrap().1.to_owned()
        }
    }

    #[test]
    fn only_changes_are_told() {
        let was = || Some(states(3, Some(2)));
        assert_eq!(text(None, &states(0, None)), "connected nodes: {}", "the first is told also when empty");
        assert_eq!(text(None, &states(3, None)), "connected nodes: {0,1}, came: {0,1}");
        assert_eq!(text(was(), &states(3, Some(2))), "");
        assert_eq!(
            text(was(), &states(3, Some(0))),
            "connected nodes: {0,1}; sites of resource 3: {}, went: {1}"
        );
        assert_eq!(
            text(was(), &states(10, Some(6))),
            "connected nodes: {1,3}, came: {3}, went: {0}; sites of resource 3: {1,2}, came: {2}"
        );
        assert_eq!(
            text(Some(states(3, None)), &states(3, Some(0))),
            "connected nodes: {0,1}; sites of resource 3: {}"
        );
    }

    #[test]
    fn json_keeps_nodes_and_sites_apart() {
        let changes = changes(Some(&states(3, Some(2))), &states(10, Some(6)));
        let json = to_json(&changes);
        assert_eq!((&json["node"], &json["site"]), (&json!(2), &json!(0)));
        assert_eq!(
            (&json["connected"], &json["came"], &json["went"]),
            (&json!([1, 3]), &json!([3]), &json!([0]))
        );
        assert_eq!((&json["sites"], &json["sites_came"]), (&json!({"3": [1, 2]}), &json!({"3": [2]})));
        assert_eq!(json["sites_went"], json!({"3": []}));
    }
}
