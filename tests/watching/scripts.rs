//! The interface for scripts: names of peers, exit statuses, `wait`, `summary`, and JSON that fits the schema.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::*;
use crate::two_sites;
use hadmd::control::{
    CallVerdict, CauseKind, Check, EndedBy, Fate, Json, Known, Outcome, PeerState, PortState, Role, Verdict,
};

fn hadmctl(control: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
    command.arg("--control").arg(control).args(["--disk-control", "/nonexistent"]);
    // Only some commands know that option.
    if !["summary", "why", "doctor", "bundle"].iter().any(|word| args.contains(word)) {
        command = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
        command.arg("--control").arg(control);
    }
    command.args(args).output().unwrap()
}

fn texts(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[track_caller]
fn result(control: &Path, args: &[&str], definition: &str) -> (Option<i32>, Value) {
    let (code, out, err) = texts(&hadmctl(control, &[args, &["--json"]].concat()));
    let value = serde_json::from_str(&out).unwrap_or_else(|why| panic!("{args:?}: {why}: {out}{err}"));
    assert_fits(definition, &value);
    (code, value)
}

/// Answers every line as a program that refuses.
fn refuser(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut line = String::new();
            let _ = BufReader::new(&stream).read_line(&mut line);
            let _ =
                std::io::Write::write_all(&mut &stream, b"{\"v\":1,\"ok\":false,\"error\":\"not today\"}\n");
        }
    });
}

#[test]
fn every_result_fits_the_schema() {
    let net = Subnet::claim();
    let file = two_sites(&net, (net.ip(20), 9464).into());
    let daemon = Daemon::start(&net, &file, 0);
    let kernel = FakeKernel::attach(&net, 0);
    let control = &file.control(0);
    let peer = Caller::new(&net, 1, 0).call();
    kernel.wait_state(bit(1), PATIENCE);
    redial("an answered ping", PATIENCE, || {
        let (_, status) = result(control, &["status"], "status");
        status["peers"][0]["rtt_us"].is_u64().then_some(())
    });
    let (_, status) = result(control, &["status"], "status");
    let [node, site] = status["peers"].as_array().unwrap().as_slice() else { panic!("{status}") };
    assert_eq!((&node["name"], &node["hosts"]), (&json!("n1"), &json!(["n1"])));
    assert_eq!((&site["name"], &site["hosts"]), (&json!("data at far"), &json!(["far"])));
    assert_eq!((&node["resource_name"], &site["resource_name"]), (&Value::Null, &json!("data")));
    for (args, definition, code) in [
        (&["mesh"][..], "mesh", 0),
        (&["doctor"], "doctor", 0),
        (&["doctor", "n1"], "doctor", 0),
        (&["why", "n1"], "why", 0),
        (&["plan", file.path.to_str().unwrap()], "plan", 0),
        (&["metrics"], "metrics", 0),
        (&["version"], "version", 0),
        (&["summary"], "summary", 0),
        (&["wait", "all"], "wait", 0),
        (&["wait", "n1", "--for", "9"], "wait", 0),
        (&["loglevel", "info"], "done", 0),
        (&["reload"], "plan", 0),
        (&["disconnect", "n1"], "done", 0),
        (&["wait", "n1", "--for", "0"], "wait", 1),
        (&["summary"], "summary", 1),
        (&["status"], "status", 0),
        (&["doctor"], "doctor", 1),
        (&["why", "1"], "why", 0),
        (&["connect", "n1"], "done", 0),
        (&["check", file.path.to_str().unwrap(), "--hostname", "n0"], "checked", 0),
        (&["check", file.path.to_str().unwrap(), "--hostname", "nobody"], "checked", 2),
        (&["check", "/nonexistent"], "checked", 2),
        (&["convert", "tests/data/config/older.xml"], "convert", 0),
        (&["keygen", file.dir.path.join("key").to_str().unwrap()], "keygen", 0),
        (&["bundle", file.dir.path.join("bundle").to_str().unwrap()], "bundle", 0),
    ] {
        let (found, value) = result(control, args, definition);
        assert_eq!(found, Some(code), "{args:?}: {value}");
    }
    drop(peer);
    daemon.stop();
}

#[test]
fn every_line_of_a_stream_fits_the_schema() {
    let harness = Harness::with(2, 0, |config| config.heartbeat(0.05, 100));
    let control = harness.config.control(0);
    let peer = harness.call(1);
    let open = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
        let mut child =
            command.arg("--control").arg(&control).args(args).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        (child, lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap()))
    };
    let (mut events, mut lines) = open(&["events", "--json"]);
    assert_fits("status", &lines.next().unwrap());
    let (mut trace, mut headers) = open(&["trace", "--json", "--peer", "n1"]);
    // Pings and their answers come all the time.
    assert_fits("trace", &headers.next().unwrap());
    peer.kill();
    let end = lines.next().unwrap();
    assert_fits("event", &end);
    assert_eq!(end["name"], "n1", "{end}");
    assert!(hadmctl(&control, &["reload"]).status.success());
    assert_fits("event", &lines.next().unwrap());
    for child in [&mut events, &mut trace] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    harness.stop();
}

/// The schema's words are those of the program.
#[test]
fn the_schema_has_every_word() {
    fn words<T: Json>(all: &[T]) -> Value {
        all.iter().map(Json::json).collect()
    }
    let schema = schema();
    for (definition, words) in [
        ("role", words(Role::ALL)),
        ("peer_state", words(PeerState::ALL)),
        ("outcome", words(Outcome::ALL)),
        ("cause_kind", words(CauseKind::ALL)),
        ("ended_by", words(EndedBy::ALL)),
        ("call_verdict", words(CallVerdict::ALL)),
        ("verdict", words(Verdict::ALL)),
        ("check", words(Check::ALL)),
        ("port_state", words(PortState::ALL)),
        ("known", words(Known::ALL)),
        ("fate", words(Fate::ALL)),
    ] {
        assert_eq!(schema["$defs"][definition]["enum"], words, "{definition}");
    }
    // The checker itself finds what is wrong.
    let wait = &schema["$defs"]["wait"];
    for (value, part) in [
        (json!({"well": true, "waited_s": 1}), "\"missing\" is missing"),
        (json!({"well": 1, "waited_s": 1, "missing": []}), "well: 1 is no boolean"),
        (json!({"well": true, "waited_s": -1, "missing": []}), "beyond minimum"),
        (json!({"well": true, "waited_s": 1, "missing": [], "new": 1}), "new is not in the schema"),
        (
            json!({"well": true, "waited_s": 1, "missing": [{"peer": "node 1", "name": null, "state": "odd"}]}),
            "is none of",
        ),
    ] {
        let why = fits(&schema, wait, &value).unwrap_err();
        assert!(why.contains(part), "{why}");
    }
}

/// The manual has every field of the schema. `WRITE_MANUAL=1` writes it.
#[test]
fn the_manual_is_as_the_schema() {
    let page = manual(&schema());
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/etc/man/hadm-json.7");
    if std::env::var_os("WRITE_MANUAL").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    let there = std::fs::read_to_string(path).unwrap();
    assert!(there == page, "etc/man/hadm-json.7 is not as etc/schema/hadmctl.json: WRITE_MANUAL=1 writes it");
}

fn manual(schema: &Value) -> String {
    let plain =
        |text: &str| text.replace('\\', "\\e").replace('-', "\\-").replace('`', "\"").replace(". ", ".\n");
    let mut page = String::from(include_str!("../data/hadm-json.7.head"));
    for (name, of) in schema["$defs"].as_object().unwrap() {
        page += &format!(".Ss {}\n", plain(name));
        if let Some(text) = of["description"].as_str() {
            page += &format!("{}\n", plain(text));
        }
        if let Some(parts) = of["anyOf"].as_array() {
            page += &format!("One of: {}.\n", parts.iter().map(kind).collect::<Vec<_>>().join(", "));
        }
        if let Some(words) = of["enum"].as_array() {
            let words: Vec<_> =
                words.iter().map(|word| format!("\\fB{}\\fR", plain(word.as_str().unwrap()))).collect();
            page += &format!("Words: {}.\n", words.join(", "));
        }
        if of["items"].is_object() && of["items"]["properties"].is_null() {
            page += &format!("It is a {}.\n", kind(of));
        }
        let fields = if of["items"]["properties"].is_object() { &of["items"] } else { of };
        if fields["properties"].is_object() {
            list(fields, &plain, &mut page);
        }
    }
    page + ".Sh SEE ALSO\n.Xr hadmctl 8\n"
}

/// The fields of an object, and of objects in it.
fn list(of: &Value, plain: &dyn Fn(&str) -> String, page: &mut String) {
    *page += ".Bl -tag -width Ds\n";
    let required: Vec<&str> = of["required"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for (name, field) in of["properties"].as_object().unwrap() {
        let optional = if required.contains(&name.as_str()) { "" } else { "; not always there" };
        *page += &format!(".It \\fB{}\\fR ({}{optional})\n", plain(name), plain(&kind(field)));
        *page += &format!(
            "{}\n",
            plain(field["description"].as_str().unwrap_or_else(|| panic!("{name} has no description")))
        );
        if let Some(words) = field["enum"].as_array() {
            let words: Vec<_> =
                words.iter().map(|word| format!("\\fB{}\\fR", plain(word.as_str().unwrap()))).collect();
            *page += &format!("Words: {}.\n", words.join(", "));
        }
        for inner in [field, &field["items"]] {
            if inner["properties"].is_object() {
                list(inner, plain, page);
            }
        }
    }
    *page += ".El\n";
}

/// The kind of a value.
fn kind(of: &Value) -> String {
    if let Some(name) = of["$ref"].as_str() {
        return name.trim_start_matches("#/$defs/").into();
    }
    if let Some(any) = of["anyOf"].as_array() {
        return any.iter().map(kind).collect::<Vec<_>>().join(" or ");
    }
    let one = |word: &str| match word {
        "array" => format!("list of {}", kind(&of["items"])),
        word => word.into(),
    };
    match &of["type"] {
        Value::Array(kinds) => {
            kinds.iter().filter_map(Value::as_str).map(one).collect::<Vec<_>>().join(" or ")
        }
        word => one(word.as_str().unwrap_or("anything")),
    }
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
    let (one, all) = (start(&["wait", "1", "--for", "60"]), start(&["wait", "all"]));
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
    let waiting = start(&["wait", "n1"]);
    redial("a client that listens", PATIENCE, || {
        let seen = std::fs::read_to_string(format!("/proc/{}/wchan", waiting.id())).unwrap_or_default();
        (seen.contains("unix_stream") || began.elapsed() > Duration::from_secs(5)).then_some(())
    });
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
            let _ = std::io::Write::write_all(&mut &stream, format!("{answer}\n").as_bytes());
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
}
