//! `hadmctl disk`: requests to a running `hadm-nbd`.
//!
//! Sends requests and shows answers; `hadm-nbd` decides whether a request is allowed. Called by the command line.

use std::io::{IsTerminal, StdoutLock, Write};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::Failure;
use super::daemon::Daemon;
use super::show::coloured;
use super::watch::{Picture, Questions, has_colour, watch};

/// Default path of `hadm-nbd`'s control socket.
pub(super) const SOCKET: &str = "/run/hadm/hadm-nbd.sock";

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Show the state of one mirror, or of all.
    Status {
        /// Name or id.
        resource: Option<String>,
        /// As JSON.
        json: bool,
        /// Again and again.
        watch: bool,
    },
    /// Prometheus text.
    Metrics,
    /// The consequences of a connect.
    Plan {
        /// Name or id.
        resource: String,
        /// The other site; all if none.
        site: Option<u8>,
        /// As JSON.
        json: bool,
    },
    /// The latest events of a mirror.
    Why {
        /// Name or id.
        resource: String,
        /// As JSON.
        json: bool,
    },
    /// An examination: the faults, and their remedies.
    Doctor {
        /// Name or id; all if none.
        resource: Option<String>,
        /// As JSON.
        json: bool,
    },
    /// A change: the request to `hadm-nbd`.
    Change {
        /// `primary`, `secondary`, ...
        word: String,
        /// Name or id.
        resource: String,
        /// The other site, where a request needs one.
        site: Option<u8>,
        /// True if data may be lost.
        force: bool,
        /// Everything, not only the chunks that are marked.
        full: bool,
    },
}

/// The options that were given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Given {
    /// `--json`.
    pub json: bool,
    /// `--watch`.
    pub watch: bool,
    /// `--force`.
    pub force: bool,
    /// `--full`.
    pub full: bool,
    /// One that belongs to other commands.
    pub alien: bool,
}

/// Parses the arguments after `disk`.
///
/// # Errors
/// The fault in them.
pub fn parse(words: &[&str], given: Given) -> Result<Command, String> {
    let Some((word, rest)) = words.split_first() else {
        return Err("disk: a command is missing: status, primary, secondary, connect, ...".into());
    };
    if given.alien {
        return Err(format!("disk {word}: the options of disk are --json, --watch, --force and --full"));
    }
    if given.watch && *word != "status" {
        return Err("--watch goes with disk status".into());
    }
    if given.json && !matches!(*word, "status" | "why" | "doctor" | "plan") {
        return Err("--json goes with disk status, why, doctor and plan".into());
    }
    if given.force && *word != "primary" {
        return Err("--force goes with disk primary".into());
    }
    if given.full && *word != "resync" {
        return Err("--full goes with disk resync".into());
    }
    let may_name_site =
        matches!(*word, "connect" | "disconnect" | "verify" | "resync" | "pause" | "resume" | "plan");
    match (*word, rest) {
        ("status", [] | [_]) => Ok(Command::Status {
            resource: rest.first().map(|resource| (*resource).to_owned()),
            json: given.json,
            watch: given.watch,
        }),
        ("why", [resource]) => Ok(Command::Why { resource: (*resource).to_owned(), json: given.json }),
        ("doctor", [] | [_]) => Ok(Command::Doctor {
            resource: rest.first().map(|resource| (*resource).to_owned()),
            json: given.json,
        }),
        ("metrics", []) => Ok(Command::Metrics),
        ("metrics", _) => Err("disk metrics takes no arguments".into()),
        ("status" | "doctor", _) => Err(format!("disk {word} takes one RES, or none")),
        (
            "primary" | "secondary" | "connect" | "disconnect" | "verify" | "discard" | "resync" | "pause"
            | "resume" | "grow",
            [resource],
        ) => Ok(change(word, resource, None, given)),
        ("plan", [resource]) => {
            Ok(Command::Plan { resource: (*resource).into(), site: None, json: given.json })
        }
        (_, [resource, site]) if may_name_site => {
            let id = site.parse().ok().filter(|id| *id < crate::wire::MAX_IDS);
            let id = id.ok_or_else(|| format!("disk {word}: {site:?} is no site's id"))?;
            Ok(match *word {
                "plan" => Command::Plan { resource: (*resource).into(), site: Some(id), json: given.json },
                _ => change(word, resource, Some(id), given),
            })
        }
        _ if may_name_site => Err(format!("disk {word} takes one RES, and perhaps one SITE")),
        ("primary" | "secondary" | "discard" | "why" | "grow", _) => {
            Err(format!("disk {word} takes one RES"))
        }
        (other, _) => Err(format!("unknown command \"disk {other}\"")),
    }
}

fn change(word: &str, resource: &str, site: Option<u8>, given: Given) -> Command {
    let Given { force, full, .. } = given;
    Command::Change { word: word.into(), resource: resource.into(), site, force, full }
}

/// Carries out a command.
///
/// # Errors
/// The reason why it failed.
pub fn run(
    command: &Command,
    control: Option<&Path>,
    timeout: Duration,
    out: &mut StdoutLock,
) -> Result<(), Failure> {
    let is_terminal = out.is_terminal();
    let control = control.unwrap_or(Path::new(SOCKET));
    let status =
        |resource: &Option<String>| json!({ "v": 1, "cmd": "status", "resource": resource }).to_string();
    if let Command::Status { resource, json, watch: true } = command {
        let mut questions = Questions::new("hadm-nbd", control, timeout);
        return watch(&mut questions, &status(resource), *json, out, |status, _| {
            let rows = show(status.value(), is_terminal).lines().map(str::to_owned).collect();
            Ok(Picture { head: Vec::new(), rows })
        });
    }
    let mut program = Daemon::connect_to("hadm-nbd", control, timeout)?;
    match command {
        Command::Status { resource, json, .. } => {
            let status = program.ask_line(&status(resource))?;
            let text = if *json { format!("{status}\n") } else { show(status.value(), false) };
            Ok(out.write_all(text.as_bytes())?)
        }
        Command::Why { resource, json } => {
            let events =
                program.ask_line(&json!({ "v": 1, "cmd": "why", "resource": resource }).to_string())?;
            let text = if *json { format!("{events}\n") } else { history(events.value()) };
            Ok(out.write_all(text.as_bytes())?)
        }
        Command::Plan { resource, site, json } => {
            let line = json!({ "v": 1, "cmd": "plan", "resource": resource, "site": site }).to_string();
            let plans = program.ask_line_patiently(&line)?;
            let text = if *json { format!("{plans}\n") } else { consequences(plans.value()) };
            Ok(out.write_all(text.as_bytes())?)
        }
        Command::Doctor { resource, json } => {
            let line = json!({ "v": 1, "cmd": "doctor", "resource": resource }).to_string();
            let found = program.ask_line_patiently(&line)?;
            let text = if *json { format!("{found}\n") } else { findings(found.value(), has_colour(out)) };
            out.write_all(text.as_bytes())?;
            match found.value().get("well").and_then(Value::as_bool) {
                Some(true) => Ok(()),
                _ => Err(Failure::Unwell),
            }
        }
        Command::Metrics => {
            let text = program.ask_line(&json!({ "v": 1, "cmd": "metrics" }).to_string())?;
            Ok(out.write_all(text.value().as_str().unwrap_or_default().as_bytes())?)
        }
        Command::Change { word, resource, site, force, full } => {
            let line = json!({ "v": 1, "cmd": word, "resource": resource, "site": site, "force": force, "full": full });
            let after = program.ask_line_patiently(&line.to_string())?;
            if let Some(sentence) = after.value().get("sentence").and_then(Value::as_str) {
                writeln!(out, "{resource}: {sentence}")?;
            }
            Ok(())
        }
    }
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    value.get(name).and_then(Value::as_array).into_iter().flatten()
}

/// The status of all, a line each; with `bars`, a bar below it for each resync.
fn show(status: &Value, bars: bool) -> String {
    let mut shown = String::new();
    if status.get("attached") == Some(&Value::Bool(false)) {
        shown += &format!("no daemon at {}\n", text(status, "server"));
    }
    for resource in list(status, "resources") {
        shown += &format!("{}: {}\n", text(resource, "name"), text(resource, "sentence"));
        for peer in list(resource, "peers").filter(|_| bars) {
            shown.extend(bar(peer));
        }
    }
    shown
}

/// A bar for a site's resync, if there is one.
fn bar(peer: &Value) -> Option<String> {
    const WIDTH: u64 = 40;
    let resync = peer.get("resync")?;
    let (total, left) = (resync.get("total")?.as_u64()?, resync.get("left")?.as_u64()?);
    let done = total.saturating_sub(left);
    let part = |of: u64| done.saturating_mul(of).checked_div(total).unwrap_or(of);
    // Terabytes times 100 fit.
    let filled = usize::try_from(part(WIDTH)).ok()?;
    let empty = usize::try_from(WIDTH.saturating_sub(part(WIDTH))).ok()?;
    let site = peer.get("site")?;
    Some(format!("  site {site} [{}{}] {:>3} %\n", "#".repeat(filled), ".".repeat(empty), part(100)))
}

/// The consequences of a connect, by site.
fn consequences(plans: &Value) -> String {
    let mut shown = String::new();
    for plan in plans.as_array().into_iter().flatten() {
        let site = plan.get("site").and_then(Value::as_u64).unwrap_or_default();
        let (is_fresh, is_known) =
            (plan.get("is_fresh") == Some(&Value::Bool(true)), list(plan, "lines").count() > 0);
        shown += &match (is_fresh, is_known) {
            (true, _) => format!("site {site}:\n"),
            (false, true) => format!("site {site}, which does not answer now, by its last word:\n"),
            (false, false) => {
                format!("site {site} does not answer, and has said nothing yet: nothing is known\n")
            }
        };
        list(plan, "lines").filter_map(Value::as_str).for_each(|line| shown += &format!("  {line}\n"));
    }
    shown
}

/// Events, a line each.
fn history(events: &Value) -> String {
    let line = |event: &Value| {
        let site =
            event.get("site").and_then(Value::as_u64).map_or(String::new(), |id| format!("site {id}: "));
        let times = event.get("times").and_then(Value::as_u64).filter(|times| *times > 1);
        let often =
            times.map_or(String::new(), |n| format!(" ({n} times, last {})", text(event, "last_time")));
        format!("{}  {site}{}: {}{often}\n", text(event, "time"), text(event, "what"), text(event, "cause"))
    };
    events.as_array().into_iter().flatten().map(line).collect()
}

/// The findings of an examination, a line each, with its advice below it.
fn findings(found: &Value, colour: bool) -> String {
    let mut shown = String::new();
    for finding in list(found, "found") {
        let is_well = finding.get("well") == Some(&Value::Bool(true));
        let (word, code) = if is_well { ("well ", "32") } else { ("WRONG", "31") };
        let head = coloured(word, code, colour);
        shown += &format!("{head} {:<22} {}\n", text(finding, "what"), text(finding, "says"));
        if let Some(advice) = finding.get("advice").and_then(Value::as_str) {
            shown += &format!("        -> {advice}\n");
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        let none = Given::default();
        let forced = Given { force: true, ..none };
        for (words, given, part) in [
            (&[][..], none, "a command is missing"),
            (&["primary"], none, "takes one RES"),
            (&["primary", "a", "b"], none, "takes one RES"),
            (&["secondary", "a"], forced, "--force goes with disk primary"),
            (&["primary", "a"], Given { json: true, ..none }, "goes with disk status"),
            (&["why", "a"], Given { watch: true, ..none }, "goes with disk status"),
            (&["why"], none, "takes one RES"),
            (&["doctor", "a", "b"], none, "takes one RES, or none"),
            (&["status", "a"], Given { alien: true, ..none }, "the options of disk"),
            (&["connect", "a", "32"], none, "is no site's id"),
            (&["verify"], none, "one RES, and perhaps one SITE"),
            (&["plan"], none, "one RES, and perhaps one SITE"),
            (&["verify", "a"], Given { full: true, ..none }, "--full goes with disk resync"),
            (&["burn", "a"], none, "unknown command"),
        ] {
            let error = parse(words, given).unwrap_err();
            assert!(error.contains(part), "{words:?}: {error}");
        }
        let wanted = Command::Change {
            word: "primary".into(),
            resource: "a".into(),
            site: None,
            force: true,
            full: false,
        };
        assert_eq!(parse(&["primary", "a"], forced), Ok(wanted));
    }
    #[test]
    fn a_resync_has_a_bar_where_there_is_a_terminal() {
        let status = json!({ "attached": true, "resources": [{ "name": "data", "sentence": "primary", "peers": [
            { "site": 1, "resync": { "total": 4000, "left": 1000 } },
            { "site": 2, "resync": null },
            { "site": 3, "resync": { "total": 0, "left": 0 } },
        ]}]});
        assert_eq!(show(&status, false), "data: primary\n");
        let (three, all) = (format!("{}{}", "#".repeat(30), ".".repeat(10)), "#".repeat(40));
        let wanted = format!("data: primary\n  site 1 [{three}]  75 %\n  site 3 [{all}] 100 %\n");
        assert_eq!(show(&status, true), wanted);
    }

    #[test]
    fn events_and_findings_are_laid_out() {
        let events = json!([
            { "time": "T1", "last_time": "T9", "times": 3, "site": 1, "what": "refused", "cause": "policies" },
            { "time": "T2", "last_time": "T2", "times": 1, "site": null, "what": "primary", "cause": "served" },
        ]);
        let wanted = "T1  site 1: refused: policies (3 times, last T9)\nT2  primary: served\n";
        assert_eq!(history(&events), wanted);
        let found = json!({ "found": [
            { "well": true, "what": "daemon", "says": "attached", "advice": null },
            { "well": false, "what": "data: disk", "says": "failed", "advice": "replace it" },
        ]});
        let shown = findings(&found, false);
        assert!(shown.contains("well  daemon") && shown.contains("WRONG data: disk"), "{shown}");
        assert!(shown.ends_with("failed\n        -> replace it\n"), "{shown}");
    }
}
