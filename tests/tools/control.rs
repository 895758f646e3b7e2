//! The control socket and `hadmctl`: what is asked of a running daemon, and what it answers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};

use crate::support::*;
use hadmd::control::{Event, Examination, Json, Mesh, Plan, Status, Transition};
use serde_json::Value;

fn hadmctl(harness: &Harness) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
    command.arg("--control").arg(harness.config.control(harness.node));
    command
}

fn run(harness: &Harness, args: &[&str]) -> Output {
    hadmctl(harness).args(args).output().unwrap()
}

/// The output of a command that succeeds.
#[track_caller]
fn says(harness: &Harness, args: &[&str]) -> String {
    let output = run(harness, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn status(harness: &Harness) -> Value {
    serde_json::from_str(&says(harness, &["status", "--json"])).unwrap()
}

fn peer(status: &Value, node: u64) -> &Value {
    status["peers"].as_array().unwrap().iter().find(|peer| peer["node"] == node).unwrap()
}

/// A command that goes on, its output line by line.
struct Stream {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Stream {
    fn open(harness: &Harness, args: &[&str]) -> Self {
        let mut child = hadmctl(harness).args(args).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Stream { child, lines }
    }

    fn json(&mut self) -> Value {
        serde_json::from_str(&self.lines.next().expect("the stream goes on").unwrap()).unwrap()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn status_shows_kernel_peers_books_and_round_trip() {
    let harness = Harness::with(3, 0, |config| config.heartbeat(0.05, 100));
    let caller = harness.call(1);
    harness.assert_carries(&caller);
    let seen = redial("an answered ping", PATIENCE, || {
        let status = status(&harness);
        peer(&status, 1)["rtt_us"].is_u64().then_some(status)
    });
    assert_eq!((&seen["node"], &seen["hostname"]), (&0.into(), &"n0".into()));
    assert_eq!(seen["kernel"]["attached"], true);
    let (here, away) = (peer(&seen, 1), peer(&seen, 2));
    assert_eq!((&here["connected"], &here["state"]), (&true.into(), &"connected".into()));
    assert_eq!((&away["connected"], &away["state"]), (&false.into(), &"idle".into()));
    for (stream, counters) in here["books"].as_object().unwrap() {
        let field = |name: &str| counters[name].as_u64().unwrap();
        let dropped: u64 =
            counters["dropped"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
        assert!(field("received") > 0, "{stream}");
        assert_eq!(field("received"), field("forwarded") + field("queued") + dropped, "{stream}");
    }
    let text = says(&harness, &["status"]);
    for word in ["node 0 (n0)", "attached for", "node 1", "connected for", "rtt", "data out", "node 2"] {
        assert!(text.contains(word), "{word} in\n{text}");
    }
    assert!(!text.contains('\x1b'), "no colour where there is no terminal");
    harness.stop();
}

/// From a snapshot on, with no gap between the two.
#[test]
fn events_follow_their_snapshot() {
    let harness = Harness::new(3);
    let first = harness.call(1);
    let mut events = Stream::open(&harness, &["events", "--json"]);
    assert_eq!(peer(&events.json(), 1)["connected"], true);
    first.kill();
    let gone = events.json();
    assert_eq!((&gone["peer"], &gone["to"]), (&"node 1".into(), &"disconnected".into()));
    assert!(gone["cause"].as_str().unwrap().contains("closed by the other side"), "{gone}");
    harness.kernel.wait_state(0, PATIENCE);
    let _second = harness.call(2);
    let came = events.json();
    assert_eq!((&came["peer"], &came["to"]), (&"node 2".into(), &"connected".into()));
    drop(events);
    harness.stop();
}

#[test]
fn why_tells_the_last_transitions_with_their_causes() {
    let harness = Harness::with(2, 0, |config| config.heartbeat(0.1, 2));
    let silent = harness.caller(1).call();
    harness.kernel.wait_state(bit(1), PATIENCE);
    silent.answer_pings(false);
    harness.kernel.wait_state(0, PATIENCE);
    let text = says(&harness, &["why", "1"]);
    assert!(text.contains("pings were not answered") && text.contains("ended by network"), "{text}");
    for _ in 0..40 {
        harness.call(1).kill();
        harness.kernel.wait_state(0, PATIENCE);
    }
    assert_eq!(says(&harness, &["why", "1"]).lines().count(), 32, "the last ones are kept");
    harness.stop();
}

/// A peer that the daemon does not have is wrong usage in every command that takes one.
#[test]
fn an_unknown_peer_is_wrong_usage_in_every_command() {
    let harness = Harness::new(3);
    for args in [
        &["doctor", "7"][..],
        &["why", "7"],
        &["why", "7", "--json"],
        &["connect", "7"],
        &["disconnect", "7"],
        &["trace", "--peer", "7"],
        // This node itself, and a site where there are none.
        &["why", "0"],
        &["connect", "0:1"],
    ] {
        let unknown = run(&harness, args);
        let text = String::from_utf8_lossy(&unknown.stderr);
        assert_eq!(unknown.status.code(), Some(2), "{args:?}: {text}");
        assert!(text.contains("is not configured; the peers are: node 1, node 2"), "{args:?}: {text}");
        assert!(unknown.stdout.is_empty(), "{args:?}");
    }
    harness.stop();
}

/// One record of a transition: in `why` as JSON and text, in the log, and in the metrics.
#[test]
fn a_reset_is_told_the_same_everywhere() {
    let harness = Harness::new(2);
    let caller = harness.caller(1);
    let mut links = [DATA, META].map(|class| caller.open(class).unwrap());
    for (stream, class) in links.iter_mut().zip([DATA, META]) {
        caller.finish(stream, class).unwrap();
    }
    harness.kernel.wait_state(bit(1), PATIENCE);
    let [data, _meta] = links;
    socket2::SockRef::from(&data).set_linger(Some(ms(0))).unwrap();
    drop(data);
    harness.kernel.wait_state(0, PATIENCE);
    let why: Value = serde_json::from_str(&says(&harness, &["why", "1", "--json"])).unwrap();
    let [up, down] = why.as_array().unwrap().as_slice() else { panic!("{why}") };
    assert_eq!(
        (&up["from"], &up["to"], &up["kind"]),
        (&"half".into(), &"connected".into(), &"the peer called".into())
    );
    let words = |field: &str| down[field].as_str().unwrap_or_else(|| panic!("{field} in {down}")).to_string();
    assert_eq!([words("from"), words("to"), words("kind")], ["connected", "disconnected", "link lost"]);
    assert_eq!([words("link"), words("errno_name"), words("by")], ["data", "ECONNRESET", "peer"]);
    assert_eq!(down["errno"], rustix::io::Errno::CONNRESET.raw_os_error());
    let age = down["age_s"].as_f64().unwrap();
    assert!(down["unix_s"].as_f64() > up["unix_s"].as_f64() && down["queued_bytes"] == 0, "{down}");
    let cause = "data link: Connection reset by peer (os error 104)";
    assert_eq!(words("cause"), cause);
    let rest = "ended by peer, errno 104 ECONNRESET, 0 B queued)";
    let text = says(&harness, &["why", "1"]);
    let line = format!(
        "{} node 1 (n1) connected -> disconnected: {cause} (after {age:.1} s, {rest}\n",
        words("time")
    );
    assert!(text.ends_with(&line), "{line} in\n{text}");
    harness.daemon.wait_log(&format!("node 1: session ended after {age:.1} s: {cause} ({rest}"), PATIENCE);
    let metrics = says(&harness, &["metrics"]);
    assert_exposition(&metrics);
    let peer = r#"{peer="node 1""#;
    let last = r#"from="connected",to="disconnected",kind="link lost",link="data",errno_name="ECONNRESET",by="peer""#;
    for (sample, value) in [
        (format!(r#"hadm_peer_transitions_total{peer},to="disconnected",kind="link lost"}}"#), 1.0),
        (
            format!("hadm_peer_last_transition_timestamp_seconds{peer},{last}}}"),
            down["unix_s"].as_f64().unwrap(),
        ),
        (format!("hadm_peer_last_session_seconds{peer}}}"), age),
        (format!("hadm_peer_last_session_queued_bytes{peer}}}"), 0.0),
    ] {
        // Metrics have microseconds.
        let is_it = |(name, found): (&str, &str)| {
            name == sample && found.parse::<f64>().is_ok_and(|found| (found - value).abs() < 2e-6)
        };
        assert!(
            metrics.lines().filter_map(|line| line.rsplit_once(' ')).any(is_it),
            "{sample} {value} in\n{metrics}"
        );
    }
    harness.stop();
}

#[test]
fn a_refused_call_is_told_with_its_error() {
    let harness = Harness::with(2, 1, |config| config);
    let why = redial("a refused call", PATIENCE, || {
        let why: Value = serde_json::from_str(&says(&harness, &["why", "0", "--json"])).unwrap();
        why.as_array().unwrap().first().cloned()
    });
    assert_eq!((&why["from"], &why["to"]), (&"dialing".into(), &"unreachable".into()), "{why}");
    assert_eq!((&why["kind"], &why["errno_name"]), (&"call failed".into(), &"ECONNREFUSED".into()), "{why}");
    assert!(["data", "meta"].contains(&why["link"].as_str().unwrap()), "{why}");
    assert!(says(&harness, &["why", "0"]).contains("(errno 111 ECONNREFUSED)\n"));
    harness.stop();
}

#[test]
fn a_disconnected_peer_stays_away_until_it_is_connected_again() {
    let harness = Harness::new(3);
    let (first, other) = (harness.call(1), harness.call(2));
    says(&harness, &["disconnect", "1"]);
    first.wait_closed(PATIENCE);
    harness.kernel.wait_state(bit(2), PATIENCE);
    assert_eq!(peer(&status(&harness), 1)["held"], true);
    assert!(harness.caller(1).try_call().is_err(), "it is turned away");
    says(&harness, &["connect", "1"]);
    let back = harness.call(1);
    harness.assert_carries(&back);
    harness.assert_carries(&other);
    harness.stop();
}

#[test]
fn trace_shows_headers_as_they_are_read() {
    let harness = Harness::new(3);
    let (one, two) = (harness.call(1), harness.call(2));
    let mut trace = Stream::open(&harness, &["trace", "--peer", "1", "--type", "36", "--json"]);
    // Nothing tells when the trace has begun: packets are sent until one shows.
    let seen = std::thread::scope(|scope| {
        let seen = scope.spawn(|| trace.json());
        redial("a traced packet", PATIENCE, || {
            two.data.send(&Packet::data(1, bit(0), 5));
            one.data.send(&Packet::data(2, bit(0), 7));
            one.meta.send(&Packet::meta(3, bit(0)));
            seen.is_finished().then_some(())
        });
        seen.join().unwrap()
    });
    assert_eq!((&seen["link"], &seen["name"]), (&"node 1 data in".into(), &"ND_SBIO".into()));
    assert_eq!((&seen["len"], &seen["node_to"]), (&7.into(), &serde_json::json!([0])));
    drop(trace);
    harness.stop();
}

#[test]
fn metrics_are_prometheus_text() {
    let harness = Harness::new(2);
    let caller = harness.call(1);
    harness.assert_carries(&caller);
    let text = says(&harness, &["metrics"]);
    assert!(assert_exposition(&text).len() > 20, "{text}");
    assert!(text.contains("hadm_peer_connected{peer=\"node 1\"} 1"));
    harness.stop();
}

#[test]
fn the_socket_is_for_its_group_and_goes_with_the_daemon() {
    let harness = Harness::new(2);
    let path = harness.config.control(0);
    let file = std::fs::metadata(&path).unwrap();
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o777, 0o660);
    // A second daemon with the same socket says so and leaves it alone.
    let mut second = Daemon::command(&harness.net, &harness.config, 0);
    let second = second.args(["--no-kmod-check", "--server", &format!("{}:9997", harness.net.ip(1))]);
    let output = second.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(path.exists());
    harness.stop();
    assert!(!path.exists());
}

/// A crashed daemon leaves its socket; the next one takes its place.
#[test]
fn a_stale_socket_is_replaced() {
    let harness = Harness::new(2);
    let Harness { daemon, config, net, .. } = harness;
    daemon.kill9();
    assert!(config.control(0).exists());
    let daemon = Daemon::start(&net, &config, 0);
    let harness = Harness::of(daemon, FakeKernel::attach(&net, 0), 0, config, net);
    assert_eq!(status(&harness)["node"], 0);
    harness.stop();
}

/// Requests whose answers a client does not read cost nobody but itself.
#[test]
fn stuck_and_hostile_clients_cost_nothing() {
    let harness = Harness::new(2);
    let caller = harness.call(1);
    let path = harness.config.control(0);
    let mut stuck = UnixStream::connect(&path).unwrap();
    // Asks and never reads.
    stuck.set_write_timeout(Some(ms(200))).unwrap();
    while stuck.write_all(b"{\"v\":1,\"cmd\":\"status\"}\n").is_ok() {}
    for garbage in [&b"\xff\xfe\n"[..], b"{}\n", b"[]\n", b"{\"v\":1,\"cmd\":\"why\",\"peer\":[]}\n"] {
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(garbage).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.is_empty() || answer.contains("\"ok\":false"), "{answer}");
    }
    let deep = "[".repeat(4000);
    let mut nested = UnixStream::connect(&path).unwrap();
    nested.write_all(format!("{deep}\n").as_bytes()).unwrap();
    let mut answer = String::new();
    BufReader::new(&nested).read_line(&mut answer).unwrap();
    assert!(answer.contains("nested too deep"), "{answer}");
    let named = run(&harness, &["plan", &format!("/{}", &deep[..100])]);
    assert!(String::from_utf8_lossy(&named.stderr).contains("cannot be read"), "a name may have brackets");
    let mut long = UnixStream::connect(&path).unwrap();
    long.write_all(&[b'x'; 5000]).unwrap();
    let mut answer = String::new();
    let _ = long.read_to_string(&mut answer);
    assert!(answer.contains("4096"), "{answer}");
    harness.assert_carries(&caller);
    assert_eq!(status(&harness)["node"], 0);
    drop(stuck);
    harness.stop();
}

#[test]
fn at_most_16_clients_are_attended_to() {
    let harness = Harness::new(2);
    let path = harness.config.control(0);
    let clients: Vec<UnixStream> = (0..16)
        .map(|_| {
            let mut client = UnixStream::connect(&path).unwrap();
            client.write_all(b"{\"v\":1,\"cmd\":\"status\"}\n").unwrap();
            let mut line = String::new();
            BufReader::new(&client).read_line(&mut line).unwrap();
            assert!(line.contains("\"ok\":true"), "{line}");
            client
        })
        .collect();
    let mut answer = String::new();
    UnixStream::connect(&path).unwrap().read_to_string(&mut answer).unwrap();
    assert!(answer.contains("16 clients"), "{answer}");
    // The system chooses whether the request or the refusal comes first: all are answered.
    for _ in 0..20 {
        let refused = run(&harness, &["version"]);
        let why = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(5) && why.contains("16 clients"), "{why}");
    }
    drop(clients);
    redial("a free place", PATIENCE, || run(&harness, &["version"]).status.success().then_some(()));
    harness.stop();
}

#[test]
fn the_log_level_can_be_changed() {
    let harness = Harness::new(2);
    says(&harness, &["loglevel", "trace"]);
    let caller = harness.call(1);
    harness.assert_carries(&caller);
    harness.daemon.wait_log("node 1 data in: ND_SBIO", PATIENCE);
    harness.stop();
}

#[test]
fn check_and_wrong_command_lines_need_no_daemon() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let hadmctl = |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_hadmctl")).args(args).output().unwrap();
    let file = config.path.to_str().unwrap();
    let good = hadmctl(&["check", file, "--hostname", "n1"]);
    assert!(good.status.success());
    assert!(
        String::from_utf8_lossy(&good.stdout).contains("configuration is valid, seen from node 1 of site 0")
    );
    let bad = hadmctl(&["check", file, "--hostname", "nobody"]);
    assert_eq!(bad.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&bad.stderr).contains(file));
    for args in [&[][..], &["dance"], &["why"], &["status", "x"], &["events", "--for", "3"], &["why", "99"]] {
        let wrong = hadmctl(args);
        assert_eq!(wrong.status.code(), Some(2), "{args:?}");
        assert!(String::from_utf8_lossy(&wrong.stderr).contains("--help"), "{args:?}");
    }
    let absent = hadmctl(&["--control", "/nonexistent/socket", "status"]);
    assert_eq!(absent.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&absent.stderr).contains("is hadmd running?"));
}

#[test]
fn a_plan_never_waits_for_a_pipe() {
    let harness = Harness::new(2);
    let dir = TempDir::new();
    let pipe = dir.path.join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let refused = run(&harness, &["plan", pipe.to_str().unwrap()]);
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(5) && why.contains("it is no file"), "{why}");
    harness.stop();
}

/// Holds an answer against its type: read and written again it is the same.
#[track_caller]
fn hold<T: Json>(answer: &Value) {
    let read = T::read(answer).unwrap_or_else(|why| panic!("{why}: {answer}"));
    assert_eq!(read.json().to_string(), answer.to_string());
}

/// The daemon's answers are as the types say, field by field.
#[test]
fn every_answer_is_as_its_type_says() {
    let harness = Harness::with(3, 0, |config| config.heartbeat(0.05, 100));
    let first = harness.call(1);
    let json = |args: &[&str]| -> Value {
        serde_json::from_slice(&run(&harness, &[args, &["--json"]].concat()).stdout).unwrap()
    };
    redial("an answered ping", PATIENCE, || peer(&status(&harness), 1)["rtt_us"].is_u64().then_some(()));
    let mut events = Stream::open(&harness, &["events", "--json"]);
    hold::<Status>(&events.json());
    let mut trace = Stream::open(&harness, &["trace", "--json"]);
    // Pings and their answers come all the time.
    hold::<Event>(&trace.json());
    hold::<Examination>(&json(&["doctor"]));
    first.kill();
    hold::<Event>(&events.json());
    let _second = harness.call(2);
    hold::<Event>(&events.json());
    hold::<Status>(&json(&["status"]));
    hold::<Examination>(&json(&["doctor"]));
    hold::<Mesh>(&json(&["mesh"]));
    hold::<Vec<Transition>>(&json(&["why", "1"]));
    hold::<Plan>(&json(&["plan", harness.config.path.to_str().unwrap()]));
    assert!(run(&harness, &["reload"]).status.success());
    let reloaded = events.json();
    assert_eq!(reloaded["to"], "configuration reloaded");
    hold::<Event>(&reloaded);
    drop((events, trace));
    harness.stop();
}
