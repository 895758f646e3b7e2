//! Compression between sites: what both want is used, everyone else gets packets as they are, and frames that lie
//! cost that session alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::Instant;

use crate::namespaces::*;
use crate::support::*;
use rustix::net::sockopt::set_socket_recv_buffer_size;
use serde_json::Value;

/// Length and entry of a record that wants LZ4.
const WANTS_LZ4: [u8; 5] = [3, 0, 6, 1, 1];

/// The log owners of both sites.
struct Pair {
    seats: [Seat; 2],
    _net: Network,
    configs: [ConfigFile; 2],
}

/// A file of resource 0; `wants` says which site's runsite has the element.
fn compressed(wants: [bool; 2], global: &[(&str, &str)]) -> ConfigFile {
    let config = config(&[resource(0)], global);
    for site in (0..2).filter(|&site| wants[usize::from(site)]) {
        add_element(&config, site);
    }
    config
}

fn add_element(config: &ConfigFile, site: u8) {
    let xml = std::fs::read_to_string(&config.path).unwrap();
    let at = format!("<ip>{}</ip>", floating(site, 0));
    assert_eq!(xml.matches(&at).count(), 1);
    std::fs::write(&config.path, xml.replace(&at, &(at.clone() + "<compress>lz4</compress>"))).unwrap();
}

fn network() -> Option<Network> {
    let net = Network::new()?;
    net.add(A0, floating(0, 0));
    net.add(B0, floating(1, 0));
    Some(net)
}

impl Pair {
    fn start(wants: [bool; 2]) -> Option<Self> {
        let net = network()?;
        let configs = [0, 1].map(|_| compressed(wants, &[]));
        let seats = [(A0, 0), (B0, 1)].map(|(at, config)| Seat::start(&net, &configs[config], at));
        seats[0].kernel.wait_state(Whom::Sites(0), bit(1));
        seats[1].kernel.wait_state(Whom::Sites(0), bit(0));
        Some(Pair { seats, _net: net, configs })
    }

    /// The wishes of a side about compression with the other site.
    fn compress(&self, side: usize) -> Value {
        site_status(&self.configs[side], ["a0", "b0"][side])["compress"].clone()
    }

    fn stop(self) {
        for seat in self.seats {
            seat.daemon.stop();
        }
    }
}

fn hadmctl(config: &ConfigFile, name: &str, args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
    command.arg("--control").arg(config.dir.path.join(name)).args(args);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The daemon's status of the other site.
fn site_status(config: &ConfigFile, name: &str) -> Value {
    let status: Value = serde_json::from_str(&hadmctl(config, name, &["status", "--json"])).unwrap();
    status["peers"].as_array().unwrap().iter().find(|peer| peer["site"].is_u64()).unwrap().clone()
}

/// Data packets of every kind: none, little and much payload, noise, text, and both.
fn mixed(seq: u64, to: u32) -> Packet {
    let len = [0, 1, 100, 4096, 4096, 9000, 70_000][seq as usize % 7];
    let mut packet = site_data(seq, 0, to, len);
    if seq % 3 > 0 {
        let rough = if seq % 3 == 1 { 0 } else { len / 2 };
        packet.payload.iter_mut().skip(rough).enumerate().for_each(|(i, byte)| *byte = (i / 7 % 50) as u8);
    }
    packet
}

/// Both sides send at once, and each gets what the other sent, data between meta packets.
fn exchange(pair: &Pair, count: u64) {
    thread::scope(|scope| {
        for (from, to) in [(0, 1), (1, 0)] {
            let [source, sink] = [from, to].map(|side| &pair.seats[side].kernel);
            scope.spawn(move || {
                for seq in 0..count {
                    source.data.send(&mixed(seq, bit(to as u8)));
                    source.meta.send(&site_meta(seq, 0, bit(to as u8)));
                }
            });
            scope.spawn(move || {
                for seq in 0..count {
                    assert!(sink.data.recv() == mixed(seq, bit(to as u8)), "data packet {seq}");
                }
                (0..count).for_each(|seq| assert_eq!(sink.meta.recv(), site_meta(seq, 0, bit(to as u8))));
            });
        }
    });
}

#[test]
fn two_sites_that_want_it_compress_data_and_nothing_is_changed() {
    let Some(pair) = Pair::start([true, true]) else { return };
    exchange(&pair, 3000);
    for seat in &pair.seats {
        seat.daemon.wait_log("; compress lz4)", PATIENCE);
    }
    let [a, b] = [0, 1].map(|side| pair.compress(side));
    for (ours, theirs) in [(&a, &b), (&b, &a)] {
        assert_eq!((&ours["wanted"], &ours["used"]), (&"lz4".into(), &"lz4".into()), "{ours}");
        assert_eq!(ours["out"], theirs["in"]);
        let bytes: u64 = (0..3000).map(|seq| mixed(seq, 1).bytes().len() as u64).sum();
        assert_eq!(ours["out"]["plain_bytes"], bytes);
        let wire = ours["out"]["wire_bytes"].as_u64().unwrap();
        assert!(wire < bytes * 2 / 3, "{wire} bytes on the wire for {bytes}");
    }
    let text = hadmctl(&pair.configs[0], "a0", &["status"]);
    assert!(text.contains("  compress lz4  in "), "{text}");
    pair.stop();
}

#[test]
fn one_side_that_wants_it_alone_gets_and_sends_plain_packets() {
    for wants in [[true, false], [false, true]] {
        let Some(pair) = Pair::start(wants) else { return };
        exchange(&pair, 100);
        let side = usize::from(wants[1]);
        pair.seats[side].daemon.wait_log("; no compression, the other side does not want it)", PATIENCE);
        let compress = pair.compress(side);
        assert_eq!((&compress["wanted"], &compress["used"]), (&"lz4".into(), &Value::Null));
        assert_eq!(compress["out"]["plain_bytes"], 0);
        assert_eq!(pair.compress(1 - side), Value::Null);
        pair.stop();
    }
}

/// A reload leaves the session as it is; what both want is used from the next one on.
#[test]
fn a_reload_brings_compression_with_the_next_session() {
    let Some(pair) = Pair::start([true, false]) else { return };
    add_element(&pair.configs[1], 1);
    let said = hadmctl(&pair.configs[1], "b0", &["reload"]);
    let setting = "setting: compress by resource (sessions begun from now on): 0 none -> 0 lz4";
    assert!(said.contains(setting) && said.contains("site 0 of resource 0: kept"), "{said}");
    exchange(&pair, 100);
    assert_eq!([0, 1].map(|side| pair.compress(side)["used"].clone()), [Value::Null, Value::Null]);
    let before = Instant::now();
    hadmctl(&pair.configs[1], "b0", &["disconnect", "0:0"]);
    hadmctl(&pair.configs[1], "b0", &["connect", "0:0"]);
    for (seat, site) in pair.seats.iter().zip([1, 0]) {
        let gone = seat.kernel.wait_since(Whom::Sites(0), before, 0);
        seat.kernel.wait_since(Whom::Sites(0), gone, bit(site));
    }
    exchange(&pair, 100);
    assert_eq!([0, 1].map(|side| pair.compress(side)["used"].clone()), ["lz4", "lz4"].map(Value::from));
    pair.stop();
}

/// A scripted site 1 beside a daemon of site 0 that wants compression.
struct Scripted {
    seat: Seat,
    net: Network,
    config: ConfigFile,
}

impl Scripted {
    fn start(global: &[(&str, &str)]) -> Option<Self> {
        let net = network()?;
        let config = compressed([true, false], global);
        let seat = Seat::start(&net, &config, A0);
        Some(Scripted { seat, net, config })
    }

    fn caller(&self) -> SiteCaller {
        SiteCaller {
            id: 1,
            to: 0,
            source: floating(1, 0),
            text: floating(1, 0).to_string(),
            target: (floating(0, 0), SITE_PORT).into(),
            answers: true,
        }
    }

    /// Both links of a call that speaks the extension, with the records the daemon answered.
    fn call(&self, record: &[u8]) -> [(TcpStream, Vec<u8>); 2] {
        let (caller, machine) = (self.caller(), &self.net.machines[B0]);
        let links = [DATA, META].map(|kind| caller.say(machine, hello(1, kind, 1, &caller.text, true)));
        links.map(|mut link| {
            link.set_read_timeout(Some(PATIENCE)).unwrap();
            link.read_exact(&mut [0; HELLO]).unwrap();
            link.write_all(record).unwrap();
            let mut len = [0; 2];
            link.read_exact(&mut len).unwrap();
            let mut answer = vec![0; u16::from_le_bytes(len).into()];
            link.read_exact(&mut answer).unwrap();
            (link, answer)
        })
    }
}

/// C daemons get not a byte that they do not expect, and hadmd of before gets no frames.
#[test]
fn who_does_not_speak_of_compression_gets_plain_packets() {
    let Some(scripted) = Scripted::start(&[]) else { return };
    let kernel = &scripted.seat.kernel;
    let peer = scripted.caller().call(&scripted.net.machines[B0]).unwrap();
    kernel.wait_state(Whom::Sites(0), bit(1));
    for seq in 0..50 {
        kernel.data.send(&mixed(seq, bit(1)));
        assert_eq!(peer.data.recv(), mixed(seq, bit(1)));
        peer.data.send(&mixed(seq, bit(0)));
        assert_eq!(kernel.data.recv(), mixed(seq, bit(0)));
    }
    scripted.seat.daemon.wait_log("without hello extension; no compression, the other side", PATIENCE);
    drop(peer);
    kernel.wait_state(Whom::Sites(0), 0);

    let [(mut data, record), (_meta, of_meta)] = scripted.call(&[0, 0]);
    assert!(record.windows(3).any(|entry| entry == &WANTS_LZ4[2..]), "wanted on the data link: {record:?}");
    assert!(!of_meta.windows(3).any(|entry| entry == &WANTS_LZ4[2..]), "not on the meta link: {of_meta:?}");
    kernel.wait_state(Whom::Sites(0), bit(1));
    kernel.data.send(&mixed(5, bit(1)));
    let mut got = vec![0; mixed(5, bit(1)).bytes().len()];
    data.read_exact(&mut got).unwrap();
    assert!(got == mixed(5, bit(1)).bytes());
    scripted.seat.daemon.stop();
}

/// Frames that lie about a length, and an end in the middle of one: each ends its session, with words, and the next
/// one is taken.
#[test]
fn lying_frames_end_their_session_alone() {
    let Some(scripted) = Scripted::start(&[("maxpacket", "100000")]) else { return };
    let kernel = &scripted.seat.kernel;
    let frame = |len: u32, coded: u32, body: &[u8]| [&len.to_le_bytes(), &coded.to_le_bytes(), body].concat();
    let rows = [
        (frame(100_129, 50_000, &[]), "compressed frame of 100129 bytes, at most 100128 are taken"),
        (frame(u32::MAX, u32::MAX, &[]), "at most 100128 are taken"),
        (frame(100_128, 300, &[]), "claims to make 100128 bytes of 300"),
        (frame(100, 101, &[]), "claims to make 100 bytes of 101"),
        (frame(50_000, 4, &[0xff; 4]), "claims to make 50000 bytes of 4"),
        (frame(1000, 4, &[0xff; 4]), "does not make 1000 bytes"),
        (frame(128, 128, &[0xee; 128]), "bad magic"),
        (frame(1000, 900, &[0x11; 500]), "closed by the other side, 508 bytes into a packet"),
    ];
    for (bytes, words) in rows {
        let before = Instant::now();
        let [(mut data, _), (_meta, _)] = scripted.call(&WANTS_LZ4);
        kernel.wait_since(Whom::Sites(0), before, bit(1));
        data.write_all(&bytes).unwrap();
        data.shutdown(std::net::Shutdown::Write).unwrap();
        kernel.wait_state(Whom::Sites(0), 0);
        let error = site_status(&scripted.config, "a0")["last_error"].to_string();
        assert!(error.contains(words), "{error}, not {words}");
    }
    assert!(scripted.seat.daemon.status("VmHWM") < 64 * 1024, "no frame was believed");
    scripted.seat.daemon.stop();
}

/// A site that does not read what is compressed for it costs the others `slowtimeout` at most, and heartbeats go on.
#[test]
fn a_compressed_link_in_a_jam_ends_after_slowtimeout() {
    let Some(scripted) = Scripted::start(&[("slowtimeout", "1")]) else { return };
    let kernel = &scripted.seat.kernel;
    let [(data, _), (mut meta, _)] = scripted.call(&WANTS_LZ4);
    set_socket_recv_buffer_size(&data, 8192).unwrap();
    let answers = thread::spawn(move || {
        let mut ping = [0; HEADER];
        let ack = Packet::new(kind::SC_PING_ACK).with_from(1).with_to(bit(0)).bytes();
        while meta.read_exact(&mut ping).is_ok() && meta.write_all(&ack).is_ok() {}
    });
    kernel.wait_state(Whom::Sites(0), bit(1));
    let begin = Instant::now();
    let flood = kernel.data.flood(move |seq| Some(mixed(seq, bit(1))));
    kernel.wait_since(Whom::Sites(0), begin, 0);
    let error = site_status(&scripted.config, "a0")["last_error"].to_string();
    assert!(error.contains("slowtimeout"), "heartbeats were answered: {error}");
    flood.stop();
    drop(data);
    answers.join().unwrap();
    scripted.seat.daemon.stop();
}
