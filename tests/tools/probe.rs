//! `hadm-probe` as a program, against scripted daemons: what it prints, what it leaves behind, how it ends.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod hub;
mod run;
mod sites;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::channel;
use std::thread;

use hadmd::wire::{HEADER_LEN, Header, Mask, PacketType};
use rustix::process::Signal;
use serde_json::Value;

use hub::{Fate, Hub};
use run::{LIMIT, Probe, Room};

/// First payload byte of a data packet: what a probe says with it.
fn says(packet: &[u8]) -> u8 {
    packet[HEADER_LEN]
}

const CHUNK: u8 = 4;
const FLOOD: u8 = 10;

/// The number of a packet in its transfer.
fn number(packet: &[u8]) -> u64 {
    u64::from_le_bytes(packet[24..32].try_into().unwrap())
}

/// A file of 1 MB from node 1 to node 0; gives both ends and what the receiver's directory holds.
fn transfer(hub: &Hub) -> (run::Ended, run::Ended, Vec<String>) {
    let (room, kept) = (Room::new(), Room::new());
    let (file, _) = room.file("f", 1_000_000);
    let recv = Probe::start(hub.servers[0], &["recv", "-o", &kept.path("got")]);
    let send = Probe::start(hub.servers[1], &["send", "--to", "0", &file]);
    (send.end(), recv.end(), kept.names())
}

#[test]
fn a_file_arrives_intact_at_two_receivers() {
    let (hub, room) = (Hub::new(3), Room::new());
    let (file, bytes) = room.file("f", 5_000_123);
    let got = ["a", "b"].map(|name| room.path(name));
    fs::write(&got[0], "old").unwrap();
    let send = Probe::start(hub.servers[2], &["send", "--to", "0,1", "--dev", "3", &file, "--json"]);
    send.hear("waiting for nodes 0, 1");
    let recv = [0, 1]
        .map(|n| Probe::start(hub.servers[n], &["recv", "-o", &got[n], "--dev", "3", "--json"]))
        .map(Probe::end);
    let send = send.end();
    assert_eq!(send.code, Some(0), "{send:?}");
    let sent = send.json();
    assert_eq!((&sent["ok"], &sent["bytes"]), (&true.into(), &5_000_123.into()));
    assert_eq!(sent["packets"], 5_000_123_u64.div_ceil(65536));
    for (n, recv) in recv.iter().enumerate() {
        assert_eq!(recv.code, Some(0), "{recv:?}");
        let received = recv.json();
        for field in ["bytes", "packets", "sha256"] {
            assert_eq!(received[field], sent[field]);
        }
        assert_eq!((&received["from"], &received["name"]), (&2.into(), &"f".into()));
        let receipt = &sent["receivers"][n];
        assert_eq!((&receipt["node"], &receipt["ok"]), (&n.into(), &true.into()));
        assert!(receipt["mb_per_s"].as_f64().unwrap() > 0.0);
        assert!(fs::read(&got[n]).unwrap() == bytes);
    }
    assert_eq!(room.names(), ["a", "b", "f"]);
}

#[test]
fn an_empty_file_arrives_and_a_table_is_printed() {
    let (hub, room) = (Hub::new(2), Room::new());
    let (file, _) = room.file("f", 0);
    let recv = Probe::start(hub.servers[0], &["recv", "-o", &room.path("a")]);
    let send = Probe::start(hub.servers[1], &["send", "--to", "0", "--timeout", "0", &file]).end();
    assert!(send.code == Some(0) && send.out.lines().nth(1).unwrap().ends_with("ok"), "{send:?}");
    let recv = recv.end();
    assert!(recv.code == Some(0) && recv.out.contains("digest ok"), "{recv:?}");
    assert_eq!(fs::read(room.path("a")).unwrap(), b"");
}

#[test]
fn latency_and_throughput_against_echo() {
    let hub = Hub::new(3);
    let echoes = [0, 1].map(|n| Probe::start(hub.servers[n], &["echo", "--json"]));
    let measure = |args: &[&str]| {
        let ended = Probe::start(hub.servers[2], &[args, &["--secs", "0.3", "--json"]].concat()).end();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended.json()
    };

    let latency = measure(&["latency", "--to", "1", "--size", "1"]);
    let times = ["p50_us", "p99_us", "p999_us", "max_us"].map(|field| latency[field].as_f64().unwrap());
    assert!(times[0] > 0.0 && times.is_sorted(), "{latency}");
    let count = latency["count"].as_u64().unwrap();
    assert!(count > 10, "{latency}");

    let throughput = measure(&["throughput", "--to", "0,1", "--size", "1000"]);
    let packets = throughput["packets"].as_u64().unwrap();
    assert!(packets > 100 && throughput["ok"] == true, "{throughput}");
    for (node, receiver) in throughput["receivers"].as_array().unwrap().iter().enumerate() {
        assert_eq!(receiver["node"], node);
        assert_eq!((&receiver["packets"], &receiver["bytes"]), (&packets.into(), &(packets * 1000).into()));
        assert_eq!((&receiver["missing"], &receiver["error"]), (&0.into(), &Value::Null));
        assert!(receiver["mb_per_s"].as_f64().unwrap() > 0.0);
        assert!(receiver["packets_per_s"].as_f64().unwrap() > 0.0);
    }

    for (node, echo) in echoes.into_iter().enumerate() {
        echo.signal(if node == 0 { Signal::TERM } else { Signal::INT });
        let ended = echo.end();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let echoed = ended.json();
        assert_eq!((&echoed["floods"], &echoed["flood_packets"]), (&1.into(), &packets.into()));
        // One more than was counted found out that the node answers.
        let requests = echoed["requests"].as_u64().unwrap();
        assert!(if node == 1 { requests > count } else { requests == 0 }, "{echoed}");
    }
}

#[test]
fn several_clients_share_an_echo() {
    let hub = Hub::new(4);
    let _echo = Probe::start(hub.servers[0], &["echo"]);
    let start =
        |node: usize, command| Probe::start(hub.servers[node], &[command, "--to", "0", "--secs", "0.3"]);
    let clients = [start(1, "throughput"), start(2, "throughput"), start(3, "latency")];
    for ended in clients.map(Probe::end) {
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
}

#[test]
fn echo_may_come_after_those_that_measure() {
    for command in ["latency", "throughput"] {
        let (asked, asks) = channel();
        let hub = Hub::scripted(2, move |from, _, _| {
            if from == 1 {
                let _ = asked.send(());
            }
            Fate::Deliver
        });
        // Somebody is connected who does not answer, and goes for `echo` to come.
        let state = Probe::start(hub.servers[0], &["state"]);
        state.line();
        let client = Probe::start(hub.servers[1], &[command, "--to", "0", "--secs", "0.1"]);
        asks.recv_timeout(LIMIT).unwrap();
        state.signal(Signal::TERM);
        assert_eq!(state.end().code, Some(0));
        let _echo = Probe::start(hub.servers[0], &["echo"]);
        let ended = client.end();
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
}

#[test]
fn large_packets_are_echoed() {
    let hub = Hub::new(2);
    let _echo = Probe::start(hub.servers[0], &["echo"]);
    for command in ["latency", "throughput"] {
        let args = [command, "--to", "0", "--size", "3000000", "--secs", "0.1"];
        let ended = Probe::start(hub.servers[1], &args).end();
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
}

#[test]
fn a_lost_flood_packet_is_told() {
    let hub = Hub::scripted(2, |_, _, packet| {
        if says(packet) == FLOOD && number(packet) == 7 { Fate::Drop } else { Fate::Deliver }
    });
    let _echo = Probe::start(hub.servers[0], &["echo"]);
    let ended = Probe::start(hub.servers[1], &["throughput", "--to", "0", "--secs", "0.1", "--json"]).end();
    ended.failed_saying("1 of 1 receivers missed packets");
    let receiver = &ended.json()["receivers"][0];
    assert_eq!((&receiver["missing"], &receiver["ok"]), (&1.into(), &false.into()));
    assert!(receiver["error"].as_str().unwrap().contains("the first at packet 7"), "{receiver}");
}

#[test]
fn a_corrupt_chunk_is_found_and_nothing_is_left() {
    let hub = Hub::scripted(2, |_, _, packet| {
        if says(packet) == CHUNK && number(packet) == 3 {
            packet[HEADER_LEN + 100] ^= 1;
        }
        Fate::Deliver
    });
    let (send, recv, names) = transfer(&hub);
    recv.failed_saying("its SHA-256 is");
    send.failed_saying("1 of 1 receivers did not get the file");
    assert!(send.out.contains("its SHA-256 is"), "{send:?}");
    assert!(names.is_empty(), "{names:?}");
}

#[test]
fn a_missing_chunk_is_found_and_nothing_is_left() {
    let hub = Hub::scripted(2, |_, _, packet| {
        if says(packet) == CHUNK && number(packet) == 3 { Fate::Drop } else { Fate::Deliver }
    });
    let (send, recv, names) = transfer(&hub);
    recv.failed_saying("1 packets are missing before packet 4");
    send.failed_saying("1 packets are missing before packet 4");
    assert!(names.is_empty(), "{names:?}");
}

#[test]
fn a_sender_lost_in_the_middle_leaves_nothing() {
    let hub = Hub::scripted(2, |from, _, packet| {
        if says(packet) == CHUNK && number(packet) == 3 { Fate::Lose(from) } else { Fate::Deliver }
    });
    let kept = Room::new();
    let recv = Probe::start(hub.servers[0], &["recv", "-o", &kept.path("got")]);
    let room = Room::new();
    let (file, _) = room.file("f", 1_000_000);
    let _send = Probe::start(hub.servers[1], &["send", "--to", "0", &file]);
    recv.end().failed_saying("the connection to node 1 was lost");
    assert!(kept.names().is_empty());
}

/// A transfer of which no chunk gets through, since the sender's daemon reads no more: the receiver, its
/// directory, and the sender.
fn stuck() -> (Probe, Room, Probe) {
    let (begun, begins) = channel();
    let hub = Hub::scripted(2, move |_, _, packet| {
        if says(packet) != CHUNK {
            return Fate::Deliver;
        }
        begun.send(()).unwrap();
        Fate::Stall
    });
    let (kept, room) = (Room::new(), Room::new());
    let recv = Probe::start(hub.servers[0], &["recv", "-o", &kept.path("got")]);
    let (file, _) = room.file("f", 30_000_000);
    let send = Probe::start(hub.servers[1], &["send", "--to", "0", &file]);
    begins.recv_timeout(LIMIT).unwrap();
    assert_eq!(kept.names().len(), 1, "the temporary file");
    (recv, kept, send)
}

#[test]
fn a_sender_whose_daemon_takes_nothing_can_be_interrupted() {
    let (recv, kept, send) = stuck();
    send.signal(Signal::INT);
    send.end().failed_saying("interrupted by a signal");
    recv.end().failed_saying("the connection to node 1 was lost");
    assert!(kept.names().is_empty());
}

#[test]
fn a_receiver_that_is_interrupted_leaves_nothing_and_frees_its_sender() {
    let (recv, kept, send) = stuck();
    recv.signal(Signal::TERM);
    recv.end().failed_saying("interrupted by a signal");
    send.end().failed_saying("the connection to node 0 was lost");
    assert!(kept.names().is_empty());
}

#[test]
fn a_receiver_lost_in_the_middle_does_not_keep_the_other_from_the_file() {
    let hub = Hub::scripted(3, |_, to, packet| {
        if says(packet) == CHUNK && number(packet) == 3 && to == 1 { Fate::Lose(1) } else { Fate::Deliver }
    });
    let (kept, lost) = (Room::new(), Room::new());
    let recv = Probe::start(hub.servers[0], &["recv", "-o", &kept.path("got")]);
    let _lost = Probe::start(hub.servers[1], &["recv", "-o", &lost.path("got")]);
    let room = Room::new();
    let (file, bytes) = room.file("f", 3_000_000);
    let send = Probe::start(hub.servers[2], &["send", "--to", "0,1", "--json", &file]).end();
    send.failed_saying("the connection to node 1 was lost");
    let receivers = &send.json()["receivers"];
    assert_eq!((&receivers[0]["ok"], &receivers[1]["ok"]), (&true.into(), &false.into()));
    assert_eq!(recv.end().code, Some(0));
    assert!(fs::read(kept.path("got")).unwrap() == bytes);
}

#[test]
fn packets_of_others_are_passed_over_with_a_remark() {
    let hub = Hub::scripted(2, |_, to, packet| {
        if says(packet) != CHUNK || number(packet) != 2 {
            return Fate::Deliver;
        }
        let mut others = packet.clone();
        others[16] ^= 1;
        let modules = Header { node_from: 1, node_to: Mask::of(to), ..Header::new(PacketType::ND_SBIO) };
        others.extend(modules.encode());
        Fate::After(others)
    });
    let (send, recv, names) = transfer(&hub);
    assert_eq!((send.code, recv.code), (Some(0), Some(0)), "{send:?} {recv:?}");
    for part in ["packets of another probe at node 1", "packets that are no probe's: ND_SBIO dev 0 from 1"] {
        assert!(recv.err.contains(part), "{part:?} in {recv:?}");
    }
    assert_eq!(names, ["got"]);
}

#[test]
fn who_is_missing_is_named() {
    let (hub, room) = (Hub::new(3), Room::new());
    let (file, _) = room.file("f", 10);
    // Node 1 is connected, but nobody there takes files.
    let state = Probe::start(hub.servers[1], &["state"]);
    assert!(state.line().ends_with("connected nodes: {}"));
    let send =
        |to: &str| Probe::start(hub.servers[2], &["send", "--to", to, "--timeout", "0.2", &file]).end();
    send("0,1").failed_saying("not connected after 0.2 s: node 0 (connected nodes: {1})");
    send("1").failed_saying("no answer from node 1 for 0.2 s: does `hadm-probe recv` run there?");
    send("1,2").failed_saying("node 2 is this node itself");
    let latency = |to: &str| Probe::start(hub.servers[2], &["latency", "--timeout", "0.2", "--to", to]).end();
    latency("0").failed_saying("not connected after 0.2 s: node 0");
    latency("1").failed_saying("does `hadm-probe echo` run there?");
}

#[test]
fn state_prints_changes_only_until_the_daemon_goes() {
    let hub = Hub::new(3);
    let state = Probe::start(hub.servers[2], &["state"]);
    assert!(state.line().ends_with("Z connected nodes: {}"));
    let json = Probe::start(hub.servers[1], &["state", "--json"]);
    assert!(state.line().ends_with("Z connected nodes: {1}, came: {1}"));
    hub.repeat();
    let first: Value = serde_json::from_str(&json.line()).unwrap();
    assert_eq!(
        (&first["node"], &first["connected"], &first["came"]),
        (&1.into(), &vec![2].into(), &vec![2].into())
    );
    json.signal(Signal::TERM);
    assert!(state.line().ends_with("Z connected nodes: {}, went: {1}"));
    let ended = json.end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    hub.hang_up(2);
    state.end().failed_saying("has closed the connection");
}

#[test]
fn a_second_probe_is_told_that_one_is_attached_and_gets_in_when_that_goes() {
    let hub = Hub::new(1);
    let first = Probe::start(hub.servers[0], &["state"]);
    first.line();
    Probe::start(hub.servers[0], &["state"]).end().failed_saying("is attached already");
    let third = Probe::start(hub.servers[0], &["state"]);
    first.signal(Signal::INT);
    assert_eq!(first.end().code, Some(0));
    assert!(third.line().ends_with("connected nodes: {}"));
}

#[test]
fn what_is_no_daemon_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = listener.local_addr().unwrap();
    thread::spawn(move || {
        let links: Vec<_> = (0..2).map(|_| listener.accept().unwrap().0).collect();
        for mut link in &links {
            link.write_all(&[b'x'; HEADER_LEN]).unwrap();
        }
        // The listener goes here; the connections stay until the probe goes.
        drop(listener);
        for mut link in &links {
            let _ = link.read_to_end(&mut Vec::new());
        }
    });
    Probe::start(server, &["state"]).end().failed_saying("is not hadmd");
    Probe::start(server, &["state"]).end().failed_saying("no daemon listens at 127.0.0.1:");
}

#[test]
fn a_result_that_cannot_be_written_is_told_before_attaching() {
    let nobody: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let room = Room::new();
    let said = |args: &[&str], part| Probe::start(nobody, args).end().failed_saying(part);
    said(&["recv", "-o", &room.path("no/such")], "there is no directory");
    said(&["recv", "-o", &room.path("")], "is a directory");
    said(&["send", "--to", "1", &room.path("none")], "cannot read");
    said(&["send", "--to", "1", &room.path("")], "is not a file");
}

#[test]
fn usage_errors_exit_with_2() {
    let nobody: SocketAddr = "127.0.0.1:1".parse().unwrap();
    for args in [&["send", "f"][..], &["latency"], &["nonsense"], &["state", "--to", "1"], &[]] {
        let ended = Probe::start(nobody, args).end();
        assert!(ended.code == Some(2) && ended.err.contains("--help"), "{ended:?}");
        assert_eq!(ended.out, "");
    }
    let help = Probe::start(nobody, &["--help"]).end();
    assert!(help.code == Some(0) && help.out.contains("Usage:") && help.err.is_empty(), "{help:?}");
}
