//! Encrypted links: they carry what plain ones carry, nobody without the cluster's key makes one, reads one or
//! changes one unnoticed, and keys change while everything runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]
#![cfg(feature = "authkey")]

mod relay;

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::support::*;
use relay::{Attack, Relay, read_frame};
use rustix::process::Signal;
use serde_json::Value;

fn hadmctl(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hadmctl")).args(args).output().unwrap()
}

#[track_caller]
fn good(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Makes a key file; gives the id of its key.
fn keygen(path: &Path) -> String {
    let said = good(hadmctl(&["keygen", path.to_str().unwrap()]));
    said.split_once("with key ").unwrap().1[..8].to_string()
}

/// The keys in a file, as they are written there.
fn secrets(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

/// One daemon with a configuration and a key file of its own.
struct Node {
    id: u8,
    daemon: Daemon,
    kernel: FakeKernel,
    config: ConfigFile,
    key: PathBuf,
    _dir: TempDir,
}

impl Node {
    /// With a copy of a key file, if one is given.
    fn start(net: &Subnet, id: u8, config: ConfigBuilder, key: Option<&Path>) -> Self {
        let dir = TempDir::new();
        let own = dir.path.join("key");
        let config = match key {
            Some(key) => {
                fs::copy(key, &own).unwrap();
                config.set("authkey", own.display()).build()
            }
            None => config.build(),
        };
        let daemon = Daemon::start(net, &config, id);
        Node { id, daemon, kernel: FakeKernel::attach(net, id), config, key: own, _dir: dir }
    }

    fn ctl(&self, args: &[&str]) -> Output {
        let control = self.config.control(self.id);
        hadmctl(&[&["--control", control.to_str().unwrap()], args].concat())
    }

    fn status(&self) -> Value {
        serde_json::from_str(&good(self.ctl(&["status", "--json"]))).unwrap()
    }

    /// With what its session with a peer is encrypted: cipher and key.
    fn encryption(&self, peer: u8) -> [Value; 2] {
        let status = self.status();
        let peers = status["peers"].as_array().unwrap();
        let peer = peers.iter().find(|entry| entry["node"] == peer).unwrap();
        [peer["cipher"].clone(), peer["key"].clone()]
    }

    /// Ends the session with a peer, if there is one, and calls for the next.
    fn link_anew(&self, peer: u8) {
        let name = peer.to_string();
        good(self.ctl(&["disconnect", &name]));
        let seen = self.daemon.log_count("connected (");
        good(self.ctl(&["connect", &name]));
        redial("a new session", PATIENCE, || (self.daemon.log_count("connected (") > seen).then_some(()));
    }
}

/// A cluster whose nodes all have the same key, every one connected with every other.
fn cluster(nodes: u8) -> (Subnet, Vec<Node>, String) {
    let net = Subnet::claim();
    let dir = TempDir::new();
    let key = dir.path.join("key");
    let id = keygen(&key);
    let start = |id| Node::start(&net, id, ConfigBuilder::new(&net, nodes), Some(&key));
    let nodes: Vec<Node> = (0..nodes).map(start).collect();
    all_connected(&nodes);
    (net, nodes, id)
}

#[track_caller]
fn all_connected(nodes: &[Node]) {
    let all: u32 = nodes.iter().map(|node| bit(node.id)).sum();
    for node in nodes {
        node.kernel.wait_state(all & !bit(node.id), 2 * PATIENCE);
    }
}

/// Gives a node the keys of another.
fn copy_key(from: &Node, to: &Node) {
    if from.id != to.id {
        fs::copy(&from.key, &to.key).unwrap();
    }
}

/// Carries a data and a meta packet from one to the other.
#[track_caller]
fn assert_carries(from: &Node, to: &Node) {
    static SEQ: AtomicU64 = AtomicU64::new(1 << 30);
    let seq = SEQ.fetch_add(1, Ordering::SeqCst);
    from.kernel.data.send(&Packet::data(seq, bit(to.id), 3000));
    from.kernel.meta.send(&Packet::meta(seq, bit(to.id)));
    assert_eq!(to.kernel.data.recv(), Packet::data(seq, bit(to.id), 3000));
    assert_eq!(to.kernel.meta.recv(), Packet::meta(seq, bit(to.id)));
}

/// Every length, data and meta, both ways at once; then the reports of it, and that no key is in them.
#[test]
fn d1_encrypted_links_carry_every_length_both_ways() {
    let (_net, nodes, key) = cluster(2);
    let length = |seq: u64| {
        [0, 1, 127, 4096, 65_390, 65_391, 65_392, 65_536, 131_000, 300_001, 16, 4096][(seq * 7 % 12) as usize]
    };
    let data = move |to: u8| move |seq| (seq < 500).then(|| Packet::data(seq, bit(to), length(seq)));
    let meta = |to: u8| {
        move |seq| {
            (seq < 1500).then(|| Packet::filled(kind::NC_STATE, seq, seq as usize % 300).with_to(bit(to)))
        }
    };
    let floods = [(0, 1), (1, 0)].map(|(from, to): (usize, u8)| {
        [nodes[from].kernel.data.flood(data(to)), nodes[from].kernel.meta.flood(meta(to))]
    });
    thread::scope(|scope| {
        for Node { id, kernel, .. } in &nodes {
            scope.spawn(|| (0..500).for_each(|seq| assert_eq!(Some(kernel.data.recv()), data(*id)(seq))));
            scope.spawn(|| (0..1500).for_each(|seq| assert_eq!(Some(kernel.meta.recv()), meta(*id)(seq))));
        }
    });
    floods.into_iter().flatten().for_each(|flood| assert!(flood.finish() >= 500));
    // The longest packet by far.
    let long = Packet::data(1, bit(0), 16 << 20);
    nodes[1].kernel.data.send(&long);
    assert_eq!(nodes[0].kernel.data.recv(), long);

    let text = good(nodes[0].ctl(&["status"]));
    assert!(
        text.contains(&format!(", key {key})")) && text.contains(&format!("encrypts with key {key}")),
        "{text}"
    );
    assert!(good(nodes[0].ctl(&["metrics"])).contains("hadm_peer_encrypted{peer=\"node 1\"} 1"));
    assert_eq!(nodes[0].status()["keys"][0], *key);
    assert_eq!(nodes[0].encryption(1)[1], *key);
    let secret = secrets(&nodes[0].key).remove(0);
    for node in nodes {
        let connected = node.daemon.wait_log("connected (", PATIENCE);
        assert!(connected.contains(&format!("key {key}")), "{connected}");
        // Raises what is logged to the last packet header, and gives reasons to speak of keys.
        good(node.ctl(&["loglevel", "trace"]));
        let everything =
            [good(node.ctl(&["status", "--json"])), good(node.ctl(&["why", &(1 - node.id).to_string()]))];
        fs::write(&node.key, format!("{secret}\n{secret}\n")).unwrap();
        let refused = String::from_utf8(node.ctl(&["reload"]).stderr).unwrap();
        assert!(refused.contains("repeats"), "{refused}");
        let log = node.daemon.log().join("\n");
        for text in [&log, &everything[0], &everything[1], &refused] {
            assert!(!text.to_ascii_lowercase().contains(&secret[..16]), "a key is told: {text}");
        }
        node.daemon.stop();
    }
}

/// A caller without the key is refused, even if everything else is right, and counted.
#[test]
fn d6_callers_without_the_key_are_refused() {
    let dir = TempDir::new();
    let key = dir.path.join("key");
    let id = keygen(&key);
    let harness = Harness::with(2, 0, |config| config.set("authkey", key.display()));
    assert!(harness.caller(1).try_call().is_err(), "a C daemon");
    harness.daemon.wait_log("the caller has no authkey, this daemon has one", PATIENCE);
    assert!(harness.caller(1).extended(&[]).try_call().is_err(), "a daemon without a key");
    // A listener that has seen a hello knows the key's id, and nothing else.
    let mut mark =
        [b"HDK1".as_slice(), &u32::from_str_radix(&id, 16).unwrap().to_be_bytes(), &[0; 8]].concat();
    let call = |mark: &[u8]| {
        let mut stream = connect_from(harness.net.ip(1), harness.net.node(0), None).unwrap();
        let mut bytes = hello(1, DATA, 0, &harness.net.ip(1).to_string(), false);
        bytes[19..].copy_from_slice(mark);
        stream.write_all(&bytes).unwrap();
        stream
    };
    let mut stream = call(&mark);
    let mut ack = [0; HELLO];
    stream.read_exact(&mut ack).unwrap();
    assert_eq!(ack[19..27], mark[..8]);
    stream.write_all(&[&[80, 0][..], &[7; 80]].concat()).unwrap();
    assert_ends(&mut stream, "closed without an answer");
    harness.daemon.wait_log("no proof that it holds it", PATIENCE);
    let mut stream = call(&mark);
    stream.read_exact(&mut ack).unwrap();
    stream.write_all(&[0xff, 0xff]).unwrap();
    harness.daemon.wait_log("a message of 65535 bytes", PATIENCE);
    mark[7] ^= 1;
    assert_ends(&mut call(&mark), "closed without an answer");
    let line = harness.daemon.wait_log("no common key", PATIENCE);
    assert!(line.contains(&format!("this daemon {id}")), "{line}");
    harness.daemon.term();
    let line = harness.daemon.wait_log("refused calls", PATIENCE);
    for count in ["no key 4", "other key 1", "unproved key 1"] {
        assert!(line.contains(count), "{line}");
    }
}

/// Two daemons of which one has no key, or another one, never link, and both logs say why.
#[test]
fn daemons_with_different_keys_do_not_link() {
    let dir = TempDir::new();
    let keys = ["one", "other"].map(|name| dir.path.join(name));
    let ids = keys.each_ref().map(|path| keygen(path));
    let other = format!("no common key: the caller has {}, this daemon {}", ids[1], ids[0]);
    for (below, above, says, hears) in [
        (Some(&keys[0]), Some(&keys[1]), other.as_str(), "its log says why"),
        (Some(&keys[0]), None, "the caller has no authkey, this daemon has one", "its log says why"),
        (
            None,
            Some(&keys[0]),
            "the caller has an authkey, this daemon has none",
            "the other side has no authkey",
        ),
    ] {
        let net = Subnet::claim();
        let start = |id, key: Option<&PathBuf>| {
            Node::start(&net, id, ConfigBuilder::new(&net, 2), key.map(PathBuf::as_path))
        };
        let nodes = [start(0, below), start(1, above)];
        nodes[0].daemon.wait_log(says, PATIENCE);
        nodes[1].daemon.wait_log(hears, PATIENCE);
        for node in nodes {
            assert_eq!(node.daemon.log_count("connected ("), 0);
            node.daemon.stop();
        }
    }
}

/// Both have the key, and each is configured at the other's address; but they are of different sites, and the network
/// has led one to the other.
#[test]
fn a_call_for_another_site_is_refused() {
    let (net, dir) = (Subnet::claim(), TempDir::new());
    let key = dir.path.join("key");
    keygen(&key);
    let config = ConfigBuilder::new(&net, 2).set("authkey", key.display());
    let (here, there) = (config.build(), config.build());
    let text = config.render().replacen("<id>0</id>", "<id>3</id>", 1);
    fs::write(&there.path, text).unwrap();
    let below = Daemon::start(&net, &here, 0);
    let above = Daemon::start(&net, &there, 1);
    below.wait_log("the call was for another site or resource", PATIENCE);
    above.wait_log("closed by the other side after 0 of 2 bytes: its log says why", PATIENCE);
    for daemon in [below, above] {
        assert_eq!(daemon.log_count("connected ("), 0);
        daemon.stop();
    }
}

/// A daemon with a key does not take a C daemon for a peer that it calls.
#[test]
fn a_called_daemon_without_a_key_is_given_up() {
    let dir = TempDir::new();
    let key = dir.path.join("key");
    keygen(&key);
    let net = Subnet::claim();
    let below = Acceptor::listen(&net, 0);
    let node = Node::start(&net, 1, ConfigBuilder::new(&net, 2), Some(&key));
    let (mut stream, asked, _) = below.accept_one(PATIENCE).unwrap();
    assert_eq!(&asked[19..23], b"HDK1");
    stream.write_all(&hello(0, asked[1] + 1, 0, "", false)).unwrap();
    assert_ends(&mut stream, "not a byte in plain text");
    node.daemon.wait_log("the other side has no authkey, this daemon has one", PATIENCE);
    node.daemon.stop();
}

/// Nodes 0 and 1 with a relay in between, that looks like each to the other.
fn tapped() -> (Subnet, [Node; 2], Relay) {
    let (net, dir) = (Subnet::claim(), TempDir::new());
    let key = dir.path.join("key");
    keygen(&key);
    let relay = Relay::start((net.host(200), 7000).into(), net.node(0), net.ip(1));
    let config = ConfigBuilder::new(&net, 2);
    let mut diverted = config.clone();
    diverted.nodes[0].2 = net.host(200).to_string();
    let nodes = [Node::start(&net, 0, config, Some(&key)), Node::start(&net, 1, diverted, Some(&key))];
    all_connected(&nodes);
    (net, nodes, relay)
}

#[test]
fn nothing_of_the_packets_is_on_the_wire() {
    let (_net, [below, above], relay) = tapped();
    let pattern = b"a page of the mirrored disk, in plain text";
    let payload = pattern.repeat(200);
    for (from, to) in [(&above, &below), (&below, &above)] {
        let mut packet = Packet::new(kind::ND_SBIO).with_to(bit(to.id)).with_len(payload.len() as u32);
        packet.payload.clone_from(&payload);
        from.kernel.data.send(&packet);
        assert_eq!(to.kernel.data.recv(), packet);
        assert_carries(from, to);
    }
    assert!(relay.seen() > 2 * payload.len());
    // The relay sees what is there: the hellos' text, for one.
    assert!(relay.saw(b"HDK1") && !relay.saw(b"HDX1"));
    for plain in [&pattern[..], &MAGIC.to_le_bytes(), env!("CARGO_PKG_VERSION").as_bytes()] {
        assert!(!relay.saw(plain), "{plain:?} was seen on the wire");
    }
    for node in [below, above] {
        node.daemon.stop();
    }
}

/// Messages that are changed on their way: the bytes that arrive are those sent, up to the message touched, the
/// session ends there, and the next one carries again.
#[test]
fn messages_that_were_touched_end_the_session() {
    let (_net, [below, above], relay) = tapped();
    let attacks =
        [Attack::Flip, Attack::Reorder, Attack::Repeat, Attack::Drop, Attack::Splice, Attack::Truncate];
    let violations = |n: u64| {
        let status = below.status();
        status["peers"][0]["violations"] == n
    };
    let mut seen = 0;
    for attack in attacks {
        assert_carries(&above, &below);
        let ended = below.daemon.log_count("session ended");
        let mut sent = 0;
        relay.attack(attack);
        // One packet a message, the next as soon as it is not known to have been the one.
        redial(&format!("{attack:?}: the end of the session"), PATIENCE, || {
            let _ = above.kernel.data.try_send(&Packet::data(sent, bit(0), 1000));
            sent += 1;
            (relay.is_done() && below.daemon.log_count("session ended") > ended).then_some(())
        });
        let line = below.daemon.log().into_iter().rfind(|line| line.contains("session ended")).unwrap();
        let link = if attack == Attack::Splice { "meta" } else { "data" };
        match attack {
            Attack::Truncate => assert!(line.contains("closed by the other side, "), "{line}"),
            _ => {
                let what = format!("refused packet on the {link} link: a message that is not the next one");
                assert!(line.contains(&what), "{attack:?}: {line}");
                seen += 1;
            }
        }
        redial("violations counted", PATIENCE, || violations(seen).then_some(()));
        above.link_anew(0);
        // Of what was sent a beginning arrived, unchanged; what the new session brings comes later.
        below.kernel.wait_state(bit(1), PATIENCE);
        above.kernel.wait_state(bit(0), PATIENCE);
        above.kernel.data.send(&Packet::data(1 << 20, bit(0), 10));
        let mut last = None;
        loop {
            let packet = below.kernel.data.recv();
            if packet == Packet::data(1 << 20, bit(0), 10) {
                break;
            }
            assert_eq!(packet, Packet::data(packet.seq(), bit(0), 1000), "{attack:?}");
            assert!(packet.seq() < sent && last < Some(packet.seq()), "{attack:?}: {last:?}, {packet:?}");
            last = Some(packet.seq());
        }
    }
    for node in [below, above] {
        node.daemon.stop();
    }
}

/// A recording of one session neither ends nor makes another.
#[test]
fn a_recorded_call_is_worth_nothing() {
    let (net, [below, above], relay) = tapped();
    assert_carries(&above, &below);
    let said = relay.calls();
    assert_eq!(said.len(), 2, "a connection for each link");
    for round in 1..3 {
        let mut streams: Vec<_> = said
            .iter()
            .map(|said| {
                let mut stream = connect_from(net.ip(1), net.node(0), None).unwrap();
                stream.write_all(said).unwrap();
                stream
            })
            .collect();
        for stream in &mut streams {
            let mut ack = [0; HELLO];
            stream.read_exact(&mut ack).unwrap();
            assert_eq!(&ack[19..23], b"HDK1");
            read_frame(stream).unwrap();
            let mut rest = Vec::new();
            // Closed, or reset with what it had not read.
            let _ = stream.read_to_end(&mut rest);
            assert!(rest.is_empty(), "{rest:?}");
        }
        assert_eq!(below.status()["refused"]["unproved key"], 2 * round);
    }
    below.daemon.wait_log("an old call, sent again?", PATIENCE);
    assert_carries(&above, &below);
    assert_carries(&below, &above);
    for node in [&below, &above] {
        assert_eq!((node.daemon.log_count("connected ("), node.daemon.log_count("session ended")), (1, 0));
    }
    for node in [below, above] {
        node.daemon.stop();
    }
}

/// A recorded call that is said again and again costs next to nothing: it is answered a few times, and then no more.
#[test]
fn a_recorded_call_said_again_and_again_is_cheap() {
    const CALLS: u64 = 300;
    let (net, [below, above], relay) = tapped();
    assert_carries(&above, &below);
    let said = relay.calls().swap_remove(0);
    let mut answered = 0;
    for _ in 0..CALLS {
        let mut stream = connect_from(net.ip(1), net.node(0), None).unwrap();
        stream.write_all(&said).unwrap();
        let mut ack = [0; HELLO];
        stream.read_exact(&mut ack).unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        // The second message is what costs: two public-key operations.
        answered += u64::from(!rest.is_empty());
    }
    assert!(answered <= 3, "{answered} of {CALLS} calls were answered");
    assert_eq!(below.status()["refused"]["unproved key"], CALLS);
    assert_carries(&above, &below);
    for node in [below, above] {
        node.daemon.stop();
    }
}

/// Packets flow the whole time while every node gets a new key; later every session is made anew after each step.
#[test]
fn keys_change_while_everything_runs() {
    let (_net, nodes, old) = cluster(3);
    let rotate = |nodes: &[Node]| {
        let said = good(hadmctl(&["keygen", "--rotate", nodes[0].key.to_str().unwrap()]));
        said.split_once("has key ").unwrap().1[..8].to_string()
    };
    let packet = |seq| Packet::data(seq, 0b011, 20_000);
    let last = |seq| Packet::data(seq, 0b011, 0);
    let receive = |node: &Node| {
        for seq in 0.. {
            let got = node.kernel.data.recv();
            if got == last(seq) {
                return;
            }
            assert_eq!(got, packet(seq));
        }
    };
    let new = thread::scope(|scope| {
        scope.spawn(|| receive(&nodes[0]));
        scope.spawn(|| receive(&nodes[1]));
        let flood = nodes[2].kernel.data.flood(move |seq| Some(packet(seq)));
        let new = rotate(&nodes);
        for (node, by_signal) in nodes.iter().zip([false, true, false]) {
            copy_key(&nodes[0], node);
            // By either way; the XML file is the same.
            if by_signal {
                node.daemon.signal(Signal::HUP);
            } else {
                let said = good(node.ctl(&["reload"]));
                assert!(said.contains(&format!("-> key {new}, key {old}")), "{said}");
            }
            node.daemon.wait_log("configuration reloaded: authkey", PATIENCE);
            assert_eq!(node.status()["keys"], serde_json::json!([new, old]));
            let more = flood.sent() + 50;
            redial("more packets", PATIENCE, || (flood.sent() > more).then_some(()));
        }
        nodes[2].kernel.data.send(&last(flood.stop()));
        new
    });
    for node in &nodes {
        assert_eq!(node.daemon.log_count("session ended"), 0);
    }
    assert_eq!(nodes[2].encryption(0)[1], *old);
    let newest = rotate(&nodes);
    for node in &nodes {
        copy_key(&nodes[0], node);
        good(node.ctl(&["reload"]));
        for (caller, peer) in [(1, 0), (2, 0), (2, 1)] {
            nodes[caller].link_anew(peer);
            let common = if node.id < nodes[caller].id { &new } else { &newest };
            assert_eq!(nodes[caller].encryption(peer)[1], **common, "after node {}", node.id);
        }
        all_connected(&nodes);
    }
    for node in nodes {
        node.daemon.stop();
    }
}

/// A key file that others can read, or that is none, is refused everywhere, with what is wrong and what helps.
#[test]
fn bad_key_files_are_refused_at_start_check_and_reload() {
    let (_net, nodes, _) = cluster(2);
    let node = &nodes[0];
    let (file, key) = (node.config.path.to_str().unwrap(), node.key.to_str().unwrap());
    let check = |wanted: &str| {
        let control = node.config.control(9);
        let start = ["-c", file, "--hostname", "n0", "--no-kmod-check", "--log", "stderr", "--control"];
        let start = Daemon::binary().args(start).arg(control).output().unwrap();
        let checked = Daemon::binary().args(["-c", file, "--hostname", "n0", "--check"]).output().unwrap();
        for output in [start, checked, hadmctl(&["check", file, "--hostname", "n0"])] {
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{said}");
            assert!(said.contains(file) && said.contains(key) && said.contains(wanted), "{said}");
        }
        let output = node.ctl(&["reload"]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(5) && said.contains(wanted), "{said}");
    };
    let text = fs::read_to_string(key).unwrap();
    for mode in [0o644, 0o640, 0o604, 0o620, 0o700] {
        fs::set_permissions(key, Permissions::from_mode(mode)).unwrap();
        check(&format!("its mode is {mode:04o}"));
    }
    fs::set_permissions(key, Permissions::from_mode(0o400)).unwrap();
    good(hadmctl(&["check", file, "--hostname", "n0"]));
    fs::set_permissions(key, Permissions::from_mode(0o600)).unwrap();
    fs::write(key, "nonsense").unwrap();
    check("its line 1 is no key");
    fs::write(key, "# none\n").unwrap();
    check("it has no key");
    fs::remove_file(key).unwrap();
    check("it cannot be read");
    fs::create_dir(key).unwrap();
    check("it is no file");
    fs::remove_dir(key).unwrap();
    // With the good file back all goes on as ever, and did all the time.
    fs::write(key, text).unwrap();
    fs::set_permissions(key, Permissions::from_mode(0o600)).unwrap();
    let said = good(node.ctl(&["reload"]));
    assert!(!said.contains("authkey"), "{said}");
    assert_carries(&nodes[1], node);
    assert_eq!(node.daemon.log_count("session ended"), 0);
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(key, Some(12_345), None).unwrap();
        let output = node.ctl(&["reload"]);
        assert!(String::from_utf8_lossy(&output.stderr).contains("belongs to user 12345"));
        // The daemon may run as that user: a check cannot know.
        let said = good(hadmctl(&["check", file, "--hostname", "n0"]));
        assert!(said.contains("warning") && said.contains("belongs to user 12345"), "{said}");
    }
    for node in nodes {
        node.daemon.stop();
    }
}

#[test]
fn keygen_never_damages_a_key_file() {
    let dir = TempDir::new();
    let path = dir.path.join("key");
    let name = path.to_str().unwrap();
    keygen(&path);
    let mode = || fs::metadata(&path).unwrap().mode() & 0o7777;
    assert_eq!(mode(), 0o600);
    let first = secrets(&path);
    let again = hadmctl(&["keygen", name]);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("--rotate"));
    assert_eq!(secrets(&path), first);
    good(hadmctl(&["keygen", "--rotate", name]));
    let second = secrets(&path);
    assert_eq!((second.len(), &second[1], mode()), (2, &first[0], 0o600));
    good(hadmctl(&["keygen", "--rotate", name]));
    let third = secrets(&path);
    assert_eq!((third.len(), &third[1]), (2, &second[0]), "the oldest has gone");
    let link = dir.path.join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    good(hadmctl(&["keygen", "--rotate", link.to_str().unwrap()]));
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink() && secrets(&path)[1] == third[0]);
    fs::remove_file(&link).unwrap();
    if rustix::process::geteuid().is_root() {
        // As a package leaves it: the daemon's user owns the file, root changes it.
        std::os::unix::fs::chown(&path, Some(12_345), None).unwrap();
        good(hadmctl(&["keygen", "--rotate", name]));
        assert_eq!((fs::metadata(&path).unwrap().uid(), mode()), (12_345, 0o600));
    }
    // Neither beside another run nor from a file that is none.
    fs::write(dir.path.join("key.new"), "").unwrap();
    assert_eq!(hadmctl(&["keygen", "--rotate", name]).status.code(), Some(1));
    fs::remove_file(dir.path.join("key.new")).unwrap();
    fs::write(&path, "nonsense").unwrap();
    let refused = hadmctl(&["keygen", "--rotate", name]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no key"));
    assert_eq!(fs::read_to_string(&path).unwrap(), "nonsense");
    assert_eq!(fs::read_dir(&dir.path).unwrap().count(), 1, "nothing is left behind");
    assert_eq!(hadmctl(&["keygen"]).status.code(), Some(2));
    assert_eq!(hadmctl(&["--rotate", "status"]).status.code(), Some(2));
}
