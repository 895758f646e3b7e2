//! `hadmctl disk`: requests to a running `hadm-nbd`.
//!
//! Sends requests and shows answers; `hadm-nbd` decides whether a request is allowed. Called by the command line.

use std::io::{IsTerminal, StdoutLock, Write};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::Failure;
use super::change::{line, print_done};
use super::checkpoint;
use super::daemon::Daemon;
use super::json::{list, samples, text};
use super::names::{resource, site};
use super::show::coloured;
use super::watch::{Picture, Questions, has_colour, watch};
use crate::control::{Carried, Request};

/// Default path of `hadm-nbd`'s control socket.
pub(super) const SOCKET: &str = "/run/hadm/hadm-nbd.sock";

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Show the state of one mirror, or of all.
    Status {
        /// Name or id.
        resource: Option<String>,
        /// Again and again.
        watch: bool,
    },
    /// Prometheus text.
    Metrics,
    /// The consequences of a connect.
    Plan {
        /// Name or id.
        resource: String,
        /// The id of the other site, or a host name there; all if none.
        site: Option<String>,
    },
    /// The latest events of a mirror.
    Why {
        /// Name or id.
        resource: String,
    },
    /// An examination: the faults, and their remedies.
    Doctor {
        /// Name or id; all if none.
        resource: Option<String>,
    },
    /// A name for this point of the stream to far sites.
    Checkpoint {
        /// Name or id.
        resource: String,
        /// The name.
        name: String,
        /// The longest time to wait until all far sites have it.
        limit: Option<Duration>,
    },
    /// A change: the request to `hadm-nbd`.
    Change {
        /// `primary`, `secondary`, ...
        word: String,
        /// Name or id.
        resource: String,
        /// The id of the other site, or a host name there, where a request needs one.
        site: Option<String>,
        /// True if data may be lost.
        force: bool,
        /// Everything, not only the chunks that are marked.
        full: bool,
    },
}

/// The options that were given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Given {
    /// `--for`.
    pub limit: Option<Duration>,
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
        return Err(format!(
            "disk {word}: the options of disk are --json, --watch, --force, --full and --for"
        ));
    }
    if given.watch && *word != "status" {
        return Err("--watch goes with disk status".into());
    }
    if given.force && *word != "primary" {
        return Err("--force goes with disk primary".into());
    }
    if given.limit.is_some() && *word != "checkpoint" {
        return Err("--for goes with disk checkpoint".into());
    }
    if given.full && *word != "resync" {
        return Err("--full goes with disk resync".into());
    }
    let may_name_site =
        matches!(*word, "connect" | "disconnect" | "verify" | "resync" | "pause" | "resume" | "plan");
    match (*word, rest) {
        ("status", [] | [_]) => Ok(Command::Status {
            resource: rest.first().map(|resource| (*resource).to_owned()),
            watch: given.watch,
        }),
        ("why", [resource]) => Ok(Command::Why { resource: (*resource).to_owned() }),
        ("doctor", [] | [_]) => {
            Ok(Command::Doctor { resource: rest.first().map(|resource| (*resource).to_owned()) })
        }
        ("metrics", []) => Ok(Command::Metrics),
        ("metrics", _) => Err("disk metrics takes no arguments".into()),
        ("status" | "doctor", _) => Err(format!("disk {word} takes one RES, or none")),
        (
            "primary" | "secondary" | "connect" | "disconnect" | "verify" | "discard" | "resync" | "pause"
            | "resume" | "grow",
            [resource],
        ) => Ok(change(word, resource, None, given)),
        ("checkpoint", [resource, name]) => {
            Ok(Command::Checkpoint { resource: (*resource).into(), name: (*name).into(), limit: given.limit })
        }
        ("checkpoint", _) => Err("disk checkpoint takes one RES and one NAME".into()),
        ("plan", [resource]) => Ok(Command::Plan { resource: (*resource).into(), site: None }),
        (_, [resource, site]) if may_name_site => {
            let is_id = site.bytes().all(|byte| byte.is_ascii_digit());
            if is_id && site.parse().ok().is_none_or(|id: u8| id >= crate::wire::MAX_IDS) {
                return Err(format!("disk {word}: {site:?} is no site's id"));
            }
            Ok(match *word {
                "plan" => Command::Plan { resource: (*resource).into(), site: Some((*site).into()) },
                _ => change(word, resource, Some(site), given),
            })
        }
        _ if may_name_site => Err(format!("disk {word} takes one RES, and perhaps one SITE")),
        ("primary" | "secondary" | "discard" | "why" | "grow", _) => {
            Err(format!("disk {word} takes one RES"))
        }
        (other, _) => Err(format!("unknown command \"disk {other}\"")),
    }
}

fn change(word: &str, resource: &str, site: Option<&str>, given: Given) -> Command {
    let Given { force, full, .. } = given;
    Command::Change { word: word.into(), resource: resource.into(), site: site.map(Into::into), force, full }
}

impl Command {
    /// Returns the resource and the site that the command names.
    fn names(&self) -> (Option<&String>, Option<&String>) {
        match self {
            Command::Metrics => (None, None),
            Command::Status { resource, .. } | Command::Doctor { resource } => (resource.as_ref(), None),
            Command::Why { resource } | Command::Checkpoint { resource, .. } => (Some(resource), None),
            Command::Plan { resource, site } | Command::Change { resource, site, .. } => {
                (Some(resource), site.as_ref())
            }
        }
    }
}

/// Carries out a command.
///
/// # Errors
/// The reason why it failed.
pub fn run(
    command: &Command,
    control: &Path,
    timeout: Duration,
    json: bool,
    out: &mut StdoutLock,
) -> Result<(), Failure> {
    let connect = || Daemon::connect_to("hadm-nbd", control, timeout);
    let names = || connect()?.ask(&Request::Status);
    match (command, command.names()) {
        (
            Command::Plan { .. } | Command::Checkpoint { .. } | Command::Change { .. },
            (Some(wanted), wanted_site),
        ) => {
            let mut program = connect()?;
            let status = program.ask(&Request::Status)?;
            let found = resource(status.value(), wanted)?;
            let resource = Some(text(found, "name").to_owned());
            let site = wanted_site.map(|wanted| site(found, wanted)).transpose()?;
            if let (Command::Checkpoint { name, limit, .. }, Some(resource)) = (command, &resource) {
                return checkpoint::run(connect, (resource, name), *limit, json, out);
            }
            carry_out(command, &mut program, (resource, site), json, out)
        }
        (Command::Status { watch: true, .. }, (wanted, _)) => {
            let mut questions = Questions::new("hadm-nbd", control, timeout);
            let line = line("status", json!({ "resource": wanted }));
            let is_terminal = out.is_terminal();
            let watched = watch(&mut questions, &line, json, out, |status, _| {
                let rows = show(status.value(), is_terminal).lines().map(str::to_owned).collect();
                Ok(Picture { head: Vec::new(), rows })
            });
            explain(watched, wanted, names)
        }
        (_, (wanted, _)) => {
            let done = carry_out(command, &mut connect()?, (wanted.cloned(), None), json, out);
            explain(done, wanted, names)
        }
    }
}

/// Turns a refusal into the failure of a name where there is no such resource.
fn explain(
    done: Result<(), Failure>,
    wanted: Option<&String>,
    names: impl Fn() -> Result<Carried, Failure>,
) -> Result<(), Failure> {
    if let (Err(Failure::Refused(_)), Some(wanted)) = (&done, wanted) {
        // If that is refused, too, the first refusal says enough.
        if let Ok(status) = names() {
            resource(status.value(), wanted)?;
        }
    }
    done
}

/// Carries out a command with a resource and a site that are known.
fn carry_out(
    command: &Command,
    program: &mut Daemon,
    (resource, site): (Option<String>, Option<u64>),
    json: bool,
    out: &mut StdoutLock,
) -> Result<(), Failure> {
    let print = |out: &mut StdoutLock, answer: &Carried, show: &dyn Fn(&Value) -> String| {
        let text = if json { format!("{answer}\n") } else { show(answer.value()) };
        Ok(out.write_all(text.as_bytes())?)
    };
    match command {
        Command::Status { .. } => {
            let status = program.ask_line(&line("status", json!({ "resource": resource })))?;
            print(out, &status, &|status| show(status, false))
        }
        Command::Why { .. } => {
            print(out, &program.ask_line(&line("why", json!({ "resource": resource })))?, &history)
        }
        Command::Plan { .. } => {
            let line = line("plan", json!({ "resource": resource, "site": site }));
            print(out, &program.ask_line_patiently(&line)?, &consequences)
        }
        Command::Doctor { .. } => {
            let found = program.ask_line_patiently(&line("doctor", json!({ "resource": resource })))?;
            let colour = has_colour(out);
            print(out, &found, &|found| findings(found, colour))?;
            match found.value().get("well").and_then(Value::as_bool) {
                Some(true) => Ok(()),
                _ => Err(Failure::Unwell),
            }
        }
        Command::Metrics => {
            let text = program.ask_line(&line("metrics", json!({})))?;
            let text = text.value().as_str().unwrap_or_default();
            Ok(out.write_all(if json { samples(text) } else { text.into() }.as_bytes())?)
        }
        // With its own way to wait.
        Command::Checkpoint { .. } => Ok(()),
        Command::Change { word, force, full, .. } => {
            let fields = json!({ "resource": resource, "site": site, "force": force, "full": full });
            let after = program.ask_line_patiently(&line(word, fields))?;
            print_done(out, json, word, (&resource.unwrap_or_default(), site), after.value())
        }
    }
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
    for witness in list(status, "witnesses") {
        shown += &format!("{}: {}\n", text(witness, "name"), text(witness, "sentence"));
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
        const TIME: Duration = Duration::from_secs(1);
        let none = Given::default();
        let forced = Given { force: true, ..none };
        for (words, given, part) in [
            (&[][..], none, "a command is missing"),
            (&["primary"], none, "takes one RES"),
            (&["primary", "a", "b"], none, "takes one RES"),
            (&["secondary", "a"], forced, "--force goes with disk primary"),
            (&["why", "a"], Given { watch: true, ..none }, "goes with disk status"),
            (&["why"], none, "takes one RES"),
            (&["doctor", "a", "b"], none, "takes one RES, or none"),
            (&["status", "a"], Given { alien: true, ..none }, "the options of disk"),
            (&["connect", "a", "32"], none, "is no site's id"),
            (&["verify"], none, "one RES, and perhaps one SITE"),
            (&["plan"], none, "one RES, and perhaps one SITE"),
            (&["verify", "a"], Given { full: true, ..none }, "--full goes with disk resync"),
            (&["checkpoint", "a"], none, "one RES and one NAME"),
            (&["primary", "a"], Given { limit: Some(TIME), ..none }, "--for goes with disk checkpoint"),
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
