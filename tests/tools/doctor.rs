//! `hadmctl doctor`: each verdict on a peer, and that no session notices the examination.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};

use crate::support::*;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

fn hadmctl(control: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hadmctl")).arg("--control").arg(control).args(args).output().unwrap()
}

/// The findings of the examination, and its exit status.
#[track_caller]
fn doctor(control: &Path, args: &[&str]) -> (Value, i32) {
    let output = hadmctl(control, &[&["doctor", "--json"][..], args].concat());
    let found = serde_json::from_slice(&output.stdout);
    let found = found.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    (found, output.status.code().unwrap())
}

fn verdicts(found: &Value) -> Vec<(u64, &str, bool)> {
    let peers = found["peers"].as_array().unwrap().iter();
    let fields = |peer: &Value| (peer["node"].as_u64().unwrap(), peer["well"].as_bool().unwrap());
    peers.map(|peer| (fields(peer).0, peer["verdict"].as_str().unwrap(), fields(peer).1)).collect()
}

fn peer(found: &Value, node: u64) -> &Value {
    found["peers"].as_array().unwrap().iter().find(|peer| peer["node"] == node).unwrap()
}

/// A listener whose queue is full: the system drops who calls, as a firewall does.
fn full(at: SocketAddr) -> (Socket, TcpStream) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&at.into()).unwrap();
    socket.listen(0).unwrap();
    (socket, TcpStream::connect(at).unwrap())
}

/// Does the same with each caller.
fn answer(at: SocketAddr, mut act: impl FnMut(TcpStream) + Send + 'static) {
    let listener = TcpListener::bind(at).unwrap();
    std::thread::spawn(move || listener.incoming().flatten().for_each(&mut act));
}

/// Two daemons with their kernel modules: all is well from both sides, and both sessions go on.
#[test]
fn a_healthy_session_is_well_and_stays() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).heartbeat(0.1, 100).build();
    let daemons = [0, 1].map(|id| Daemon::start(&net, &config, id));
    let kernels = [0, 1].map(|id| FakeKernel::attach(&net, id));
    kernels[0].wait_state(bit(1), PATIENCE);
    kernels[1].wait_state(bit(0), PATIENCE);
    for id in [0, 1] {
        let (found, code) = doctor(&config.control(id), &[]);
        assert_eq!(verdicts(&found), [(1 - u64::from(id), "healthy", true)], "{found}");
        assert_eq!((code, &found["well"]), (0, &true.into()), "{found}");
        let names = found["checks"].as_array().unwrap().iter().map(|check| check["check"].as_str().unwrap());
        assert_eq!(names.collect::<Vec<_>>(), ["address", "hostname", "kernel module", "heartbeats"]);
        assert_eq!(peer(&found, 1 - u64::from(id))["sessions"], 1, "no session was made anew");
        // Only the side that calls has to know whether the port still answers.
        let port = &peer(&found, 1 - u64::from(id))["port"];
        assert_eq!(*port, if id == 1 { "open".into() } else { Value::Null });
    }
    let text = String::from_utf8(hadmctl(&config.control(1), &["doctor"]).stdout).unwrap();
    assert!(text.contains("well  node 0") && text.contains("same configuration"), "{text}");
    assert!(!text.contains("WRONG"), "{text}");
    let data = Packet::data(1, bit(0), 1000);
    kernels[1].data.send(&data);
    assert_eq!(kernels[0].data.recv(), data);
    drop(kernels);
    daemons.into_iter().for_each(|daemon| drop(daemon.stop()));
}

/// Peers that this side calls: the daemon's own call tells what is the matter.
#[test]
fn who_does_not_answer_a_call_is_told_by_how() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 8).build();
    // 0: nobody listens.
    let _full = full(net.node(1));
    answer(net.node(2), |mut caller| drop(caller.write_all(b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n")));
    let mut open = Vec::new();
    answer(net.node(3), move |caller| open.push(caller));
    answer(net.node(4), |mut caller| drop(caller.read_exact(&mut [0; HELLO])));
    answer(net.node(5), |mut caller| {
        let mut said = [0; HELLO];
        let _ = caller.read_exact(&mut said);
        let _ = caller.write_all(&hello(6, said[1] + 1, 0, "", false));
    });
    let plain = Acceptor::listen(&net, 6);
    let daemon = Daemon::start(&net, &config, 7);
    let kernel = FakeKernel::attach(&net, 7);
    let harness = Harness::of(daemon, kernel, 7, config, net);
    let connected = plain.accept(&harness.net, 7);
    harness.kernel.wait_state(bit(6), PATIENCE);
    let control = harness.config.control(7);
    let (found, code) = doctor(&control, &[]);
    let expected = [
        (0, "refused", false),
        (1, "silent", false),
        (2, "stranger", false),
        (3, "no-answer", false),
        (4, "hung-up", false),
        (5, "other-id", false),
        (6, "healthy", true),
    ];
    assert_eq!(verdicts(&found), expected, "{found}");
    assert_eq!(code, 1);
    for (node, last) in [(0, None), (1, None), (3, Some("hello sent as id 7")), (5, Some("answered as id 6"))]
    {
        let steps = peer(&found, node)["call"]["steps"].as_array().unwrap();
        let last_step = steps.last().map(|step| step.as_str().unwrap());
        assert_eq!(last_step.is_some(), last.is_some(), "{steps:?}");
        assert!(last_step.unwrap_or_default().contains(last.unwrap_or_default()), "{steps:?}");
    }
    // A C daemon with a session is left in peace: nobody has called it since.
    assert!(!plain.was_called());
    harness.assert_carries(&connected);
    let (alone, code) = doctor(&control, &["6"]);
    assert_eq!((verdicts(&alone), code), (vec![(6, "healthy", true)], 0));
    assert!(alone["checks"].as_array().unwrap().is_empty(), "{alone}");
    let text = hadmctl(&control, &["doctor", "0"]);
    assert_eq!(text.status.code(), Some(1));
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("WRONG node 0") && text.contains("-> Its machine is there"), "{text}");
    harness.stop();
}

/// A peer that came back since the last call is called at once, not when the next call would be due.
#[test]
fn a_missing_peer_is_called_at_once() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let daemon = Daemon::start(&net, &config, 1);
    let control = config.control(1);
    redial("a long wait between calls", PATIENCE, || {
        let status = hadmctl(&control, &["status", "--json"]).stdout;
        let status: Value = serde_json::from_slice(&status).unwrap();
        (peer(&status, 0)["next_attempt_s"].as_f64()? > 3.0).then_some(())
    });
    let back = Acceptor::listen(&net, 0);
    let (peers, found) = std::thread::scope(|scope| {
        let accepted = scope.spawn(|| back.accept(&net, 1));
        let found = doctor(&control, &[]).0;
        (accepted.join().unwrap(), found)
    });
    assert_eq!(verdicts(&found), [(0, "healthy", true)], "{found}");
    drop(peers);
    daemon.stop();
}

/// Peers that have to call this side: what they did, and whether their machines are there.
#[test]
fn who_does_not_call_is_told_by_port_and_refusals() {
    let harness = Harness::with(8, 0, |config| config.heartbeat(0.2, 1000));
    let control = harness.config.control(0);
    // 1: nobody listens. 4: does, from an address that is not its own. 5: claims an id that is not there.
    let _full = full(harness.net.node(2));
    let _other = TcpListener::bind(harness.net.node(3)).unwrap();
    assert!(harness.caller(4).source(harness.net.ip(40)).try_call().is_err());
    assert!(Caller { id: 21, ..harness.caller(5) }.try_call().is_err());
    let other = harness.connect(&harness.caller(6).extended(&[3, 8, 1, 2, 3, 4, 5, 6, 7, 8]));
    let silent = harness.connect(&harness.caller(7).silent());
    silent.wait_pings(3, PATIENCE);
    let (found, code) = doctor(&control, &[]);
    let expected = [
        (1, "refused", false),
        (2, "silent", false),
        (3, "not-calling", false),
        (4, "turned-away", false),
        (5, "turned-away", false),
        (6, "other-configuration", false),
        (7, "unanswered", false),
    ];
    assert_eq!(verdicts(&found), expected, "{found}");
    assert_eq!(code, 1);
    for (node, why) in
        [(4, "(element peeraddr is strict)"), (5, "claims id 21, which is not configured here")]
    {
        let says = peer(&found, node)["says"].as_str().unwrap();
        assert!(says.contains(why), "{says}");
    }
    assert!(hadmctl(&control, &["disconnect", "6"]).status.success());
    other.wait_closed(PATIENCE);
    let (held, code) = doctor(&control, &["6"]);
    assert_eq!((verdicts(&held), code), (vec![(6, "held", false)], 1));
    // Once it was accepted, earlier refusals do not matter.
    let back = harness.connect(&harness.caller(4));
    back.kill();
    harness.wait_bit(std::time::Instant::now(), 4, false);
    assert_eq!(verdicts(&doctor(&control, &["4"]).0), [(4, "refused", false)]);
    harness.stop();
}

/// A missing kernel module is reported where all is examined, and the peers where one is not known.
#[test]
fn this_node_and_unknown_peers() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 3).build();
    let daemon = Daemon::start(&net, &config, 0);
    let (found, code) = doctor(&config.control(0), &[]);
    let checks = found["checks"].as_array().unwrap().iter();
    let wrong = checks.filter(|check| check["well"] == false).map(|check| check["check"].as_str().unwrap());
    assert_eq!((wrong.collect::<Vec<_>>(), code), (vec!["kernel module"], 1), "{found}");
    let unknown = hadmctl(&config.control(0), &["doctor", "7"]);
    assert_eq!(unknown.status.code(), Some(2));
    let text = String::from_utf8_lossy(&unknown.stderr);
    assert!(text.contains("node 7 is not configured; the peers are: node 1, node 2"), "{text}");
    daemon.stop();
}
