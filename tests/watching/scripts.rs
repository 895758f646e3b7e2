//! The interface for scripts: names of peers, exit statuses, `wait` and `summary`.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::*;
use crate::two_sites;

pub fn hadmctl(control: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
    command.arg("--control").arg(control).args(["--disk-control", "/nonexistent"]);
    // Only some commands know that option.
    if !["summary", "why", "doctor", "bundle"].iter().any(|word| args.contains(word)) {
        command = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
        command.arg("--control").arg(control);
    }
    command.args(args).output().unwrap()
}

pub fn texts(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Answers every line as a program that refuses.
fn refuser(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut line = String::new();
            let _ = BufReader::new(&stream).read_line(&mut line);
            let _ = (&stream).write_all(b"{\"v\":1,\"ok\":false,\"error\":\"not today\"}\n");
        }
    });
}

/// A host name does where an id does, in every command; what can mean several is refused with all.
#[test]
fn peers_have_names() {
    let net = Subnet::claim();
    let file = two_sites(&net, (net.ip(20), 9464).into());
    let daemon = Daemon::start(&net, &file, 0);
    let kernel = FakeKernel::attach(&net, 0);
    let control = &file.control(0);
    let peer = Caller::new(&net, 1, 0).call();
    kernel.wait_state(bit(1), PATIENCE);
    let said = |args: &[&str]| texts(&hadmctl(control, args));
    let (code, by_name, _) = said(&["why", "n1"]);
    assert_eq!((code, &by_name), (Some(0), &said(&["why", "1"]).1));
    assert!(by_name.contains(" node 1 (n1) "), "{by_name}");
    assert!(daemon.wait_log("node 1: connected", PATIENCE).contains("n1, node 1: connected"));
    for args in [&["doctor", "far"][..], &["doctor", "data:far"], &["doctor", "data:1"], &["doctor", "0:far"]]
    {
        let (_, out, err) = said(args);
        assert!(out.contains("site 1 of resource 0 (data at far)"), "{args:?}: {out}{err}");
    }
    for args in
        [&["disconnect", "N1"][..], &["connect", "n1"], &["disconnect", "far"], &["connect", "data:far"]]
    {
        let (code, out, err) = said(args);
        assert_eq!((code, out.as_str(), err.as_str()), (Some(0), "", ""), "{args:?}");
    }
    let (_, text, _) = said(&["status"]);
    assert!(text.contains("node 1 (n1) ") && text.contains("site 1 of resource 0 (data at far) "), "{text}");
    for (args, part) in [
        (&["why", "n10"][..], "the peers are: node 1, site 1 of resource 0 (by name: n1, data at far)"),
        (&["wait", "nobody"], "\"nobody\" is not configured"),
        (&["connect", "n0"], "\"n0\" is not configured"),
        (&["trace", "--peer", "mail:far"], "is not configured"),
        (&["disconnect", "0:2"], "site 2 of resource 0 is not configured"),
        (&["doctor", "data"], "hadm-nbd"),
    ] {
        let (code, out, err) = said(args);
        let wanted = if args[1] == "data" { 3 } else { 2 };
        assert!(
            code == Some(wanted) && out.is_empty() && err.contains(part),
            "{args:?}: {code:?} {out}{err}"
        );
    }
    // The far node gets the name of a near one, and the resource another's.
    let text = std::fs::read_to_string(&file.path).unwrap();
    std::fs::write(&file.path, text.replace("<name>data<", "<name>n1<")).unwrap();
    assert_eq!(said(&["reload"]).0, Some(0));
    let (code, _, err) = said(&["why", "n1"]);
    assert!(code == Some(2) && err.contains("node 1 (n1), or the mirrored disk n1"), "{err}");
    drop(peer);
    daemon.stop();
}

#[test]
fn each_kind_of_failure_has_its_exit_status() {
    let dir = TempDir::new();
    let (refusing, silent) = (dir.path.join("refusing"), dir.path.join("silent"));
    refuser(&refusing);
    let _silent = UnixListener::bind(&silent).unwrap();
    let nowhere = dir.path.join("nowhere");
    let key = dir.path.join("key");
    let commands: [&[&str]; 17] = [
        &["status"],
        &["events"],
        &["doctor"],
        &["doctor", "1"],
        &["mesh"],
        &["why", "1"],
        &["trace"],
        &["metrics"],
        &["connect", "1"],
        &["disconnect", "1"],
        &["reload"],
        &["loglevel", "info"],
        &["version"],
        &["wait", "all"],
        &["summary"],
        &["disk", "status"],
        &["disk", "primary", "data"],
    ];
    for args in commands {
        for json in [&[][..], &["--json"]] {
            let args = [json, &["--timeout", "0.3"], args].concat();
            for (control, wanted) in [(&nowhere, 3), (&silent, 4), (&refusing, 5)] {
                let (code, out, err) = texts(&hadmctl(control, &args));
                assert_eq!(code, Some(wanted), "{control:?} {args:?}: {out}{err}");
                // The line for a prompt is there in every case; else a result is whole or not there at all.
                assert_eq!(out.is_empty(), !args.contains(&"summary"), "{args:?}: {out}");
                assert_eq!(err.lines().count(), usize::from(!args.contains(&"summary")), "{args:?}: {err}");
            }
        }
    }
    for args in [
        &["dance"][..],
        &["wait"],
        &["wait", "1", "--for", "x"],
        &["status", "--for", "1"],
        &["summary", "x"],
    ] {
        assert_eq!(texts(&hadmctl(&nowhere, args)).0, Some(2), "{args:?}");
    }
    assert_eq!(texts(&hadmctl(&nowhere, &["keygen", key.to_str().unwrap()])).0, Some(0));
    assert_eq!(
        texts(&hadmctl(&nowhere, &["keygen", key.to_str().unwrap()])).0,
        Some(1),
        "it is there already"
    );
}

/// Waits until a client has a connection that stays: the stream of events. Its questions are over in a moment.
fn listens(client: &Child) {
    let sockets = || -> Vec<PathBuf> {
        let files = std::fs::read_dir(format!("/proc/{}/fd", client.id())).into_iter().flatten().flatten();
        let names = files.filter_map(|file| std::fs::read_link(file.path()).ok());
        names.filter(|name| name.to_string_lossy().starts_with("socket:")).collect()
    };
    let mut before = Vec::new();
    redial("a client that listens", PATIENCE, || {
        let now = sockets();
        let stays = now.iter().any(|socket| before.contains(socket));
        before = now;
        stays.then_some(())
    });
}

/// A daemon is asked once for each change, and not between two.
#[test]
fn wait_asks_only_when_something_has_changed() {
    let harness = Harness::new(2);
    let answer = hadmctl(&harness.config.control(0), &["status", "--json"]).stdout;
    harness.stop();
    let away: Value = serde_json::from_slice(&answer).unwrap();
    let mut there = away.clone();
    there["peers"][0]["connected"] = true.into();
    let dir = TempDir::new();
    let path = dir.path.join("control");
    let listener = UnixListener::bind(&path).unwrap();
    let (requests, asked) = std::sync::mpsc::channel();
    let (streams, stream) = std::sync::mpsc::channel();
    let connected = Arc::new(AtomicBool::new(false));
    let is_there = Arc::clone(&connected);
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let mut line = String::new();
            let _ = BufReader::new(&client).read_line(&mut line);
            let data = if is_there.load(Ordering::SeqCst) { &there } else { &away };
            let answer = json!({"v": 1, "ok": true, "data": data});
            let _ = (&client).write_all(format!("{answer}\n").as_bytes());
            if line.contains("events") {
                let _ = streams.send(client);
            }
            let _ = requests.send(line);
        }
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
    let mut waiting =
        command.arg("--control").arg(&path).args(["wait", "n1", "--for", "60"]).spawn().unwrap();
    let next = || asked.recv_timeout(PATIENCE).unwrap();
    for word in ["status", "events", "status"] {
        assert!(next().contains(word));
    }
    // In this time a client that looks again and again would have asked.
    assert!(asked.recv_timeout(Duration::from_secs(2)).is_err());
    let mut stream = stream.recv_timeout(PATIENCE).unwrap();
    let event = json!({"v": 1, "event": {"time": "", "to": "configuration reloaded", "cause": ""}});
    writeln!(stream, "{event}").unwrap();
    assert!(next().contains("status"));
    assert!(waiting.try_wait().unwrap().is_none());
    connected.store(true, Ordering::SeqCst);
    writeln!(stream, "{event}").unwrap();
    assert!(next().contains("status"));
    assert!(waiting.wait().unwrap().success());
}

#[test]
fn wait_returns_with_the_connection_or_when_its_time_is_up() {
    let harness = Harness::with(3, 0, |config| config);
    let control = &harness.config.control(0);
    let began = Instant::now();
    let (code, out, _) = texts(&hadmctl(control, &["wait", "n1", "--for", "0.3"]));
    assert_eq!((code, out.as_str()), (Some(1), "node 1 (n1): idle\n"));
    assert!(began.elapsed() >= Duration::from_millis(300));
    let start = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
        command.arg("--control").arg(control).args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let (one, all) = (start(&["wait", "1", "--for", "60"]), start(&["wait", "all", "--for", "60"]));
    let first = harness.call(1);
    assert_eq!(texts(&one.wait_with_output().unwrap()).0, Some(0));
    let mut all = all;
    assert!(all.try_wait().unwrap().is_none(), "node 2 is missing");
    let second = harness.call(2);
    harness.kernel.wait_state(bit(1) | bit(2), PATIENCE);
    assert_eq!(texts(&all.wait_with_output().unwrap()).0, Some(0));
    first.kill();
    harness.kernel.wait_state(bit(2), PATIENCE);
    // It waits for the other to come back; the daemon ends.
    let waiting = start(&["wait", "n1", "--for", "60"]);
    listens(&waiting);
    drop(second);
    harness.stop();
    let (code, _, err) = texts(&waiting.wait_with_output().unwrap());
    assert_eq!(code, Some(3), "{err}");
}

#[test]
fn a_summary_is_one_line_whatever_is_wrong() {
    let harness = Harness::new(3);
    let control = &harness.config.control(0);
    let said = || texts(&hadmctl(control, &["summary"]));
    let line = |out: &str| format!("node 0 (n0): {out}\n");
    let (code, out, _) = said();
    assert_eq!((code, out), (Some(1), line("0 of 2 peers connected, not node 1 (n1), node 2 (n2)")));
    let _peers = [harness.call(1), harness.call(2)];
    harness.kernel.wait_state(bit(1) | bit(2), PATIENCE);
    let (code, out, err) = said();
    assert_eq!((code, out), (Some(0), line("2 of 2 peers connected")), "{err}");
    // With disks.
    let dir = TempDir::new();
    let disks = dir.path.join("disks");
    let listener = UnixListener::bind(&disks).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut line = String::new();
            let _ = BufReader::new(&stream).read_line(&mut line);
            let answer = json!({"v": 1, "ok": true, "data": {"resources": [{"name": "mail", "role": "primary",
                "disk": "up to date", "frozen": false, "peers": [{"in_sync": true}, {"in_sync": false}]}]}});
            let _ = (&stream).write_all(format!("{answer}\n").as_bytes());
        }
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
    command.arg("--control").arg(control).arg("--disk-control").arg(&disks).arg("summary");
    let (code, out, _) = texts(&command.output().unwrap());
    let disk = line("2 of 2 peers connected; mail primary, up to date, 1 of 2 sites in sync");
    assert_eq!((code, out), (Some(1), disk.clone()));
    let (_, out, _) = texts(&command.arg("--json").output().unwrap());
    let summary: Value = serde_json::from_str(&out).unwrap();
    assert_fits("summary", &summary);
    assert_eq!(format!("{}\n", summary["text"].as_str().unwrap()), disk);
    harness.stop();
    let (code, out, _) = texts(&hadmctl(control, &["summary"]));
    assert_eq!((code, out.as_str()), (Some(3), "hadmd is not running\n"));
    // Programs that hang cost a second together.
    let hung = [dir.path.join("hung"), dir.path.join("hung-too")];
    let _listeners = hung.each_ref().map(|path| UnixListener::bind(path).unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
    command.arg("--control").arg(&hung[0]).arg("--disk-control").arg(&hung[1]).arg("summary");
    let began = Instant::now();
    let (code, out, _) = texts(&command.output().unwrap());
    assert_eq!((code, out.as_str()), (Some(4), "hadmd does not answer; hadm-nbd does not answer\n"));
    assert!(began.elapsed() < Duration::from_millis(1900), "{:?}", began.elapsed());
}
