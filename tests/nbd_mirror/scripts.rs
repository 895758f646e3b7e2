//! The interface of `hadmctl disk` for scripts: JSON that fits the schema, names of sites, and exit statuses.

use std::process::{Command, Output};

use serde_json::Value;

use super::namespaces::NAMES;
use super::sites::{MACHINES, Sites, output};
use super::support::assert_fits;

#[test]
fn results_fit_the_schema_and_sites_have_names() {
    let Some(mut pair) = Sites::start("") else { return };
    pair.wait_in_sync();
    let far = NAMES[MACHINES[1]];
    let (disks, daemon, nowhere) = (pair.path("control", 0), pair.path("daemon", 0), pair.path("nowhere", 0));
    let hadmctl = |args: &[&str]| -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
        command.args(["--timeout", "60", "--control"]).arg(&disks).args(args).output().unwrap()
    };
    let result = |args: &[&str], definition: &str, code: i32| -> Value {
        let done = hadmctl(&[&["--json"], args].concat());
        assert_eq!(done.status.code(), Some(code), "{args:?}: {}", output(&done));
        let value = serde_json::from_slice(&done.stdout).unwrap();
        assert_fits(definition, &value);
        value
    };
    let refused = |args: &[&str], code: i32, part: &str| {
        for args in [args, &[&["--json"], args].concat()] {
            let done = hadmctl(args);
            let why = String::from_utf8_lossy(&done.stderr);
            assert_eq!(done.status.code(), Some(code), "{args:?}: {}", output(&done));
            assert!(done.stdout.is_empty() && why.contains(part), "{args:?}: {}", output(&done));
        }
    };
    let status = result(&["disk", "status"], "disk_status", 0);
    assert_eq!(status["resources"][0]["peers"][0]["hosts"], serde_json::json!([far]));
    result(&["disk", "status", "0"], "disk_status", 0);
    result(&["disk", "plan", "data", far], "disk_plan", 0);
    result(&["disk", "doctor"], "disk_doctor", 0);
    result(&["disk", "primary", "data"], "disk_done", 0);
    assert_eq!(result(&["disk", "pause", "data", far], "disk_done", 0)["site"], 1);
    result(&["disk", "resume", "0"], "disk_done", 0);
    result(&["disk", "verify", "data", far], "disk_done", 0);
    result(&["disk", "metrics"], "metrics", 0);
    result(&["disk", "disconnect", "data", far], "disk_done", 0);
    pair.wait(0, "site 1 disconnected by command");
    result(&["disk", "status", "data"], "disk_status", 0);
    result(&["disk", "doctor", "data"], "disk_doctor", 1);
    result(&["disk", "connect", "data", "1"], "disk_done", 0);
    pair.wait_in_sync();
    result(&["why", "data"], "disk_why", 0);
    result(&["disk", "why", "data"], "disk_why", 0);
    refused(&["disk", "why", "mail"], 2, "no resource \"mail\" is served here; there are: data (0)");
    refused(&["disk", "primary", "7"], 2, "there are: data (0)");
    refused(&["disk", "connect", "data", "nobody"], 2, "those are: 1");
    refused(&["disk", "connect", "data", "9"], 2, "those are: 1");
    refused(&["disk", "grow", "data"], 5, "make the disk larger there");
    pair.kill_site(1);
    pair.wait(0, "site 1 not connected");
    result(&["disk", "doctor", "data"], "disk_doctor", 1);
    result(&["disk", "why", "data"], "disk_why", 0);
    // The daemon and the disks beside each other: each name finds its own.
    let both = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
        command.arg("--control").arg(&daemon).arg("--disk-control").arg(&disks).args(args).output().unwrap()
    };
    let disk = both(&["why", "data"]);
    assert!(output(&disk).contains("primary: clients are served"), "{}", output(&disk));
    let site = both(&["why", far]);
    assert!(output(&site).contains(&format!("site 1 of resource 0 (data at {far})")), "{}", output(&site));
    let summary = both(&["summary"]);
    assert_eq!(summary.status.code(), Some(1));
    let line = String::from_utf8_lossy(&summary.stdout).into_owned();
    let part = "data primary, up to date, 0 of 1 sites in sync";
    assert!(line.lines().count() == 1 && line.contains(part) && line.contains(far), "{line}");
    let mut without = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
    without.arg("--control").arg(&nowhere).arg("--disk-control").arg(&disks).arg("summary");
    let without = without.output().unwrap();
    assert_eq!(without.status.code(), Some(3));
    assert!(output(&without).starts_with("hadmd is not running; data primary"), "{}", output(&without));
    pair.stop();
}
