//! `hadm-probe` between sites, while nodes with the same ids are there too.
//!
//! A packet, a state or a loss of one kind must never pass for one of the other.

use std::fs;

use hadmd::wire::{Device, HEADER_LEN, Header, Mask, PacketType};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::hub::{Fate, Hub, Seat};
use super::run::{Ended, Probe, Room};
use super::{CHUNK, number, says};

/// Seat 0 has both a node 1 (seat 1) and a site 1 (seat 2), the latter in resources 3 and 4.
fn two_sites(script: impl FnMut(u8, u8, &mut Vec<u8>) -> Fate + Send + 'static) -> Hub {
    let seat = |site, node, owns| Seat { site, node, owns };
    Hub::planned(vec![seat(0, 0, &[3, 4]), seat(0, 1, &[]), seat(1, 0, &[3, 4])], script)
}

/// A file from site 1 to site 0 in resource 3 while node 1 is attached too; `seat` is gone from the third
/// chunk on. Gives the sender, the receiver, and whether the file came.
fn site_transfer_without(seat: u8) -> (Ended, Ended, bool) {
    let hub = two_sites(move |_, _, packet| {
        if says(packet) != CHUNK || number(packet) != 3 {
            return Fate::Deliver;
        }
        assert_eq!(Header::decode(packet[..HEADER_LEN].try_into().unwrap()).kind, PacketType::SD_DATA);
        Fate::Lose(seat)
    });
    let room = Room::new();
    let (file, bytes) = room.file("f", 1_000_000);
    let node = Probe::start(hub.servers[1], &["state"]);
    node.line();
    let recv = Probe::start(hub.servers[0], &["recv", "-o", &room.path("got"), "--dev", "3", "--json"]);
    let send = ["send", "--site", "--dev", "3", "--to", "0", "--json", &file];
    let send = Probe::start(hub.servers[2], &send);
    let recv = recv.end();
    (send.end(), recv, fs::read(room.path("got")).is_ok_and(|got| got == bytes))
}

#[test]
fn a_file_goes_from_site_to_site_though_a_node_of_the_same_id_goes() {
    let (send, recv, came) = site_transfer_without(1);
    assert!(send.code == Some(0) && recv.code == Some(0) && came, "{send:?} {recv:?}");
    let (sent, received) = (send.json(), recv.json());
    assert_eq!((&received["from"], &received["scope"]), (&1.into(), &"site".into()));
    assert_eq!((&sent["receivers"][0]["site"], &sent["receivers"][0]["node"]), (&0.into(), &Value::Null));
}

#[test]
fn a_site_lost_in_the_middle_is_told_though_a_node_of_the_same_id_stays() {
    let (_, recv, came) = site_transfer_without(2);
    recv.failed_saying("the connection to site 1 was lost");
    assert!(!came);
}

#[test]
fn echo_keeps_a_node_and_a_site_of_the_same_id_apart() {
    let hub = two_sites(|_, _, _| Fate::Deliver);
    let start = |seat: usize, args: &[&str]| {
        let client =
            Probe::start(hub.servers[seat], &[args, &["--to", "0", "--secs", "0.3", "--json"]].concat());
        client.hear("waiting for");
        client
    };
    let clients = [start(1, &["throughput"]), start(2, &["throughput", "--site", "--dev", "3"])];
    let echo = Probe::start(hub.servers[0], &["echo", "--json"]);
    let packets = clients.map(Probe::end).map(|ended| {
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended.json()["packets"].as_u64().unwrap()
    });
    let latency = Probe::start(
        hub.servers[2],
        &["latency", "--site", "--dev", "4", "--to", "0", "--secs", "0.1", "--json"],
    )
    .end();
    assert_eq!(latency.code, Some(0), "{latency:?}");
    assert_eq!((&latency.json()["to"], &latency.json()["scope"]), (&0.into(), &"site".into()));
    echo.signal(Signal::TERM);
    let echoed = echo.end().json();
    assert_eq!(
        (&echoed["floods"], &echoed["flood_packets"]),
        (&2.into(), &packets.iter().sum::<u64>().into())
    );
}

#[test]
fn who_is_missing_among_sites_is_named() {
    let (hub, room) = (two_sites(|_, _, _| Fate::Deliver), Room::new());
    let (file, _) = room.file("f", 10);
    // Node 1 is connected, site 1 is not.
    let node = Probe::start(hub.servers[1], &["state"]);
    node.line();
    let said = |command: &str, dev: &str, to: &str, part: &str| {
        let mut args = vec![command, "--site", "--dev", dev, "--to", to, "--timeout", "0.2"];
        args.extend(Some(file.as_str()).filter(|_| command == "send"));
        Probe::start(hub.servers[0], &args).end().failed_saying(part);
    };
    let server = hub.servers[0];
    for command in ["send", "latency", "throughput"] {
        said(command, "5", "1", &format!("the daemon at {server} has no runsite of resource 5"));
        said(command, "3", "0", "site 0 is this site itself");
        said(command, "3", "1", "not connected after 0.2 s: site 1");
    }
    said("send", "3", "1", "(connected sites of resource 3: {})");
}

#[test]
fn state_tells_nodes_and_sites_in_one_line() {
    let hub = two_sites(|_, _, _| Fate::Deliver);
    let state = Probe::start(hub.servers[0], &["state"]);
    let prints = |part: &str| {
        let line = state.line();
        assert!(line.ends_with(part), "{part:?} in {line:?}");
    };
    prints("Z connected nodes: {}; sites of resource 3: {}; sites of resource 4: {}");
    let _node = Probe::start(hub.servers[1], &["state"]);
    prints("Z connected nodes: {1}, came: {1}; sites of resource 3: {}; sites of resource 4: {}");
    let site = Probe::start(hub.servers[2], &["state", "--json"]);
    prints(
        "Z connected nodes: {1}; sites of resource 3: {1}, came: {1}; sites of resource 4: {1}, came: {1}",
    );
    hub.repeat();
    let first: Value = serde_json::from_str(&site.line()).unwrap();
    assert_eq!(
        (&first["node"], &first["site"], &first["connected"]),
        (&0.into(), &1.into(), &Value::Array(vec![]))
    );
    assert_eq!(first["sites"], json!({ "3": [0], "4": [0] }));
    assert_eq!(first["sites_came"], first["sites"]);
    hub.hang_up(2);
    prints("Z connected nodes: {1}; sites of resource 3: {}, went: {1}; sites of resource 4: {}, went: {1}");
}

#[test]
fn state_tells_an_absence_though_the_return_comes_with_it() {
    let hub = two_sites(|_, _, _| Fate::Deliver);
    let state = Probe::start(hub.servers[0], &["state"]);
    state.line();
    let announcement = |nodes, sites| {
        [
            Header { device: Device::All, node_to: Mask(nodes), ..Header::new(PacketType::NC_CONN_STATE) },
            Header { device: 3.into(), node_to: Mask(sites), ..Header::new(PacketType::SC_CONN_STATE) },
        ]
    };
    hub.announce(0, &[announcement(2, 2), announcement(2, 0), announcement(0, 2)].concat());
    for part in [
        "nodes: {1}, came: {1}; sites of resource 3: {1}, came: {1}; sites of resource 4: {}",
        "nodes: {1}; sites of resource 3: {}, went: {1}; sites of resource 4: {}",
        "nodes: {}, went: {1}; sites of resource 3: {1}, came: {1}; sites of resource 4: {}",
    ] {
        let line = state.line();
        assert!(line.ends_with(part), "{part:?} in {line:?}");
    }
}
