//! Every result of `hadmctl --json` against its schema, the schema against the program's words, and the manual against the schema.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::scripts::{hadmctl, texts};
use crate::support::*;
use crate::two_sites;
use hadmd::control::{
    CallVerdict, CauseKind, Check, EndedBy, Fate, Json, Known, Outcome, PeerState, PortState, Role, Verdict,
};

#[track_caller]
fn result(control: &Path, args: &[&str], definition: &str) -> (Option<i32>, Value) {
    let (code, out, err) = texts(&hadmctl(control, &[args, &["--json"]].concat()));
    let value = serde_json::from_str(&out).unwrap_or_else(|why| panic!("{args:?}: {why}: {out}{err}"));
    assert_fits(definition, &value);
    (code, value)
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
