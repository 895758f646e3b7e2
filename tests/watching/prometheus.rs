//! Metrics, alerts and dashboard, read by Prometheus' own programs.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::*;
use crate::{skip, two_sites};

fn source(file: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file).to_str().unwrap().to_owned()
}

/// Returns true if a program of Prometheus is there; prints SKIPPED where not.
fn have(test: &str, program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        skip(test, &format!("{program} is not installed (Debian package prometheus)"));
    }
    found
}

#[track_caller]
fn promtool(args: &[&str], input: &str) {
    let mut command = Command::new("promtool");
    let mut child = command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let told =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "promtool {args:?}: {told}");
}

#[test]
fn promtool_accepts_the_alerts_and_each_fires_when_it_should() {
    let names = |file: &str, before: &str| -> BTreeSet<String> {
        let text = fs::read_to_string(source(file)).unwrap();
        text.lines().filter_map(|line| line.trim().strip_prefix(before)).map(str::to_owned).collect()
    };
    let alerts = names("etc/prometheus/alerts.yml", "- alert: ");
    assert!(alerts.len() > 10);
    assert_eq!(names("tests/data/prometheus/alerts.yml", "alertname: "), alerts, "each alert has a test");
    if have("promtool_accepts_the_alerts_and_each_fires_when_it_should", "promtool") {
        promtool(&["check", "rules", &source("etc/prometheus/alerts.yml")], "");
        promtool(&["test", "rules", &source("tests/data/prometheus/alerts.yml")], "");
    }
}

fn metrics(net: &Subnet, node: u8) -> SocketAddr {
    (net.ip(20 + node), 9464).into()
}

fn get(at: SocketAddr, target: &str) -> Option<String> {
    let mut stream = TcpStream::connect(at).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    // The older version: its answers come in one piece.
    write!(stream, "GET {target} HTTP/1.0\r\nHost: {at}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

struct Prometheus {
    child: Child,
    at: SocketAddr,
    _home: TempDir,
}

impl Prometheus {
    fn start(net: &Subnet, targets: &[SocketAddr]) -> Self {
        let home = TempDir::new();
        let targets: Vec<String> = targets.iter().map(|target| format!("\"{target}\"")).collect();
        let text = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [\"{}\"]\nscrape_configs:\n\
             - {{job_name: hadmd, static_configs: [{{targets: [{}]}}]}}\n",
            source("etc/prometheus/alerts.yml"),
            targets.join(", ")
        );
        let file = home.path.join("prometheus.yml");
        fs::write(&file, text).unwrap();
        let at: SocketAddr = (net.ip(30), 9090).into();
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", home.path.join("data").display()));
        command.arg(format!("--web.listen-address={at}")).arg("--log.level=warn");
        let child = command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap();
        Prometheus { child, at, _home: home }
    }

    fn api(&self, target: &str) -> Option<Value> {
        let answer: Value = serde_json::from_str(&get(self.at, target)?).ok()?;
        assert!(answer["status"] == "success", "{target}: {answer}");
        Some(answer["data"].clone())
    }

    /// The samples of an expression, now.
    fn query(&self, expression: &str) -> Option<Vec<Value>> {
        let data = self.api(&format!("/api/v1/query?query={}", encoded(expression)))?;
        data["result"].as_array().cloned()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every expression of the dashboard, with its variables as Grafana puts them in for "all".
fn expressions() -> Vec<String> {
    let dashboard: Value =
        serde_json::from_str(&fs::read_to_string(source("etc/grafana/hadmd.json")).unwrap()).unwrap();
    let mut ids = BTreeSet::new();
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "a panel's id comes twice: {panel}");
        let place = &panel["gridPos"];
        assert!(place["x"].as_u64().unwrap() + place["w"].as_u64().unwrap() <= 24, "{panel}");
        for target in panel["targets"].as_array().unwrap() {
            found.push(target["expr"].as_str().unwrap().to_owned());
        }
    }
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    for variable in variables.iter().filter(|variable| variable["type"] == "query") {
        let query = variable["definition"].as_str().unwrap();
        let metric = query.strip_prefix("label_values(").unwrap().split(',').next().unwrap();
        found.push(metric.to_owned());
    }
    let filled = found.into_iter().map(|text| {
        text.replace("$__rate_interval", "15s").replace("$instance", ".*").replace("$peer", ".*")
    });
    let filled: Vec<String> = filled.collect();
    assert!(filled.iter().all(|text| !text.contains('$')), "{filled:?}");
    filled
}

#[test]
fn a_real_prometheus_has_data_of_both_nodes_for_everything_on_the_dashboard() {
    let test = "a_real_prometheus_has_data_of_both_nodes_for_everything_on_the_dashboard";
    let expressions = expressions();
    let net = Subnet::claim();
    let configs = [two_sites(&net, metrics(&net, 0)), two_sites(&net, metrics(&net, 1))];
    let daemons = [0, 1].map(|id| Daemon::start(&net, &configs[usize::from(id)], id));
    let kernels = [0, 1].map(|id| FakeKernel::attach(&net, id));
    kernels[0].wait_state(bit(1), PATIENCE);
    let text = redial("an answered ping", PATIENCE, || {
        let text = get(metrics(&net, 0), "/metrics").unwrap();
        (!text.contains("hadm_peer_ping_seconds_count{peer=\"node 1\"} 0\n")).then_some(text)
    });
    assert_exposition(&text);
    for line in [
        "hadm_build_info{version=\"0.1.0\"} 1",
        "hadm_log_owner{resource=\"0\",site=\"0\"} 0",
        "hadm_peer_wanted{peer=\"node 1\"} 1",
        "hadm_peer_wanted{peer=\"site 1 of resource 0\"} 0",
        "hadm_peer_state{peer=\"node 1\",state=\"connected\"} 1",
        "hadm_peer_state{peer=\"site 1 of resource 0\",state=\"off\"} 1",
        "hadm_peer_same_configuration{peer=\"node 1\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
    if have(test, "promtool") {
        promtool(&["check", "metrics"], &text);
    }
    if !have(test, "prometheus") {
        return;
    }
    let targets = [metrics(&net, 0), metrics(&net, 1)];
    let prometheus = Prometheus::start(&net, &targets);
    let mut seq = 0;
    for expression in &expressions {
        let samples = redial(expression, PATIENCE * 3, || {
            // Bytes in both directions all the while.
            kernels[0].data.send(&Packet::data(seq, bit(1), 1000));
            kernels[1].data.send(&Packet::data(seq, bit(0), 1000));
            seq += 1;
            let samples = prometheus.query(expression)?;
            let number = |sample: &Value| sample["value"][1].as_str().is_some_and(|text| text != "NaN");
            let of = |target: &SocketAddr| {
                samples.iter().any(|sample| {
                    let instance = sample["metric"]["instance"].as_str();
                    number(sample) && instance.is_none_or(|instance| instance == target.to_string())
                })
            };
            targets.iter().all(of).then_some(samples)
        });
        assert!(!samples.is_empty(), "{expression}");
    }
    // The rules work with what these daemons say: the log has no owner, and nothing else is wrong.
    let rules = prometheus.api("/api/v1/rules").unwrap();
    for group in rules["groups"].as_array().unwrap() {
        for rule in group["rules"].as_array().unwrap() {
            assert_eq!(rule["health"], "ok", "{rule}");
            let is_quiet = rule["name"] != "HadmNoLogOwner";
            assert_eq!(rule["state"] == "inactive", is_quiet, "{rule}");
        }
    }
    drop(prometheus);
    drop(kernels);
    daemons.into_iter().for_each(|daemon| drop(daemon.stop()));
}
