//! The sections of the page, in HTML, made of the known state.
//!
//! All that comes from outside (names, causes, versions of peers) is escaped here. The page's frame is in the embedded file.

use std::fmt::Write;

use serde_json::Value;

use super::board::Sections;
use super::drawing::{mesh as draw_mesh, plot};
use super::state::{Disks, Entry, Mood, State, Traffic};
use super::text::{escape, text};
use crate::control::{Known, MeshRow, MeshTable, OneSided, PeerState, PeerStatus, Status};
use crate::ctl::brief::{Rates, queued, trouble};
use crate::ctl::show::{size, span};

/// All sections of the page.
pub(super) fn sections(state: &State) -> Sections {
    let status = state.status.as_ref();
    Sections(vec![
        ("title", status.map_or("hadmd".into(), title)),
        ("notice", notice(state)),
        ("node", status.map(node).unwrap_or_default()),
        ("peers", peers(state)),
        (
            "mesh",
            state
                .mesh
                .as_ref()
                .map_or_else(|| "<p>Not known now.</p>".into(), |all| all.meshes.iter().map(mesh).collect()),
        ),
        ("disks", disks(&state.disks)),
        ("log", log(state)),
    ])
}

fn title(status: &Status) -> String {
    let connected = status.peers.iter().filter(|peer| peer.connected).count();
    let name = status.running.as_ref().and_then(|running| running.hostname.clone()).unwrap_or_default();
    escape(&format!("{connected}/{} {name} hadmd", status.peers.len()))
}

/// A word with a sign, so that the colour alone says nothing.
fn badge(mood: Mood, word: &str) -> String {
    let (class, sign) = match mood {
        Mood::Good => ("good", "●"),
        Mood::Neutral => ("neutral", "◆"),
        Mood::Bad => ("bad", "▲"),
    };
    format!("<span class=\"{class}\"><span aria-hidden=\"true\">{sign}</span> {}</span>", escape(word))
}

/// Faults of this moment, which stand before everything else.
fn notice(state: &State) -> String {
    let mut out = String::new();
    if let Some((why, since)) = &state.trouble {
        let old = if state.status.is_some() { " What is shown is what was known before." } else { "" };
        let _ = write!(out, "<p class=\"notice\">{} since {}.{old}</p>", badge(Mood::Bad, why), clock(since));
    }
    for wait in state.status.iter().flat_map(|status| &status.waiting) {
        let _ = write!(out, "<p class=\"notice\">{}</p>", badge(Mood::Neutral, &format!("waiting: {wait}")));
    }
    out
}

/// The daemon itself.
fn node(status: &Status) -> String {
    let mut out = String::from("<dl class=\"facts\">");
    let mut fact = |name: &str, value: String| {
        let _ = write!(out, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    };
    let connected = status.peers.iter().filter(|peer| peer.connected).count();
    if let Some(running) = &status.running {
        let name = running.hostname.as_deref().unwrap_or_default();
        fact("Node", escape(&format!("{} ({name}) of {}", running.node, running.site)));
        fact(
            "Kernel module",
            match running.kernel.since_s {
                Some(since) => badge(Mood::Good, &format!("attached for {}", span(since))),
                None => badge(Mood::Bad, "not attached"),
            },
        );
        let all = connected == status.peers.len();
        let mood = if all { Mood::Good } else { Mood::Bad };
        fact("Peers connected", badge(mood, &format!("{connected} of {}", status.peers.len())));
        if !running.owned.is_empty() {
            let owned: Vec<String> = running.owned.iter().map(|id| id.get().to_string()).collect();
            fact("Owns the log of resource", escape(&owned.join(", ")));
        }
        fact("Configuration", format!("<code>{}</code>", escape(&running.configuration)));
        if let Some(key) = running.keys.first() {
            fact("Encrypts with key", format!("<code>{}</code>", escape(key)));
        }
        let refused: u64 = running.refused.values().sum();
        if refused > 0 {
            fact("Refused calls", refused.to_string());
        }
    }
    fact("hadmd", escape(&format!("{}, up {}", status.version, span(status.uptime_s))));
    out + "</dl>"
}

fn peers(state: &State) -> String {
    let Some(status) = &state.status else { return "<p>No peer is known yet.</p>".into() };
    if status.peers.is_empty() {
        return "<p>No peers are configured.</p>".into();
    }
    let titles =
        ["Peer", "State", "Cause", "Round trip", "From the peer", "To the peer", "Waiting", "Dropped"];
    let mut out =
        String::from("<table class=\"cards\" role=\"table\"><thead role=\"rowgroup\"><tr role=\"row\">");
    for title in titles {
        let _ = write!(out, "<th role=\"columnheader\" scope=\"col\">{title}</th>");
    }
    out += "</tr></thead><tbody role=\"rowgroup\">";
    for peer in &status.peers {
        let traffic = state.traffic.get(&peer.peer);
        let mut cells = cells(peer, traffic).into_iter().zip(titles);
        out += "<tr role=\"row\">";
        if let Some((cell, _)) = cells.next() {
            let _ = write!(out, "<th role=\"rowheader\" scope=\"row\">{cell}</th>");
        }
        for (cell, title) in cells {
            let _ = write!(out, "<td role=\"cell\" data-title=\"{title}\"><div>{cell}</div></td>");
        }
        out += "</tr>";
    }
    out + "</tbody></table>"
}

/// The cells of a peer's row.
fn cells(peer: &PeerStatus, traffic: Option<&Traffic>) -> [String; 8] {
    let mood = match peer.state {
        PeerState::Connected => Mood::Good,
        PeerState::Off => Mood::Neutral,
        _ => Mood::Bad,
    };
    let mut state = badge(mood, peer.state.word());
    if let Some(age) = peer.age_s.filter(|_| peer.connected) {
        let _ = write!(state, " for {}", span(age));
    }
    for (holds, words) in [
        (peer.connected && peer.key.is_some(), "encrypted"),
        (peer.same_config == Some(false), "other configuration"),
    ] {
        if holds {
            let _ = write!(state, " <span class=\"tag\">{words}</span>");
        }
    }
    let cause = match &peer.last_transition {
        Some(last) if peer.connected => format!("{} {}", escape(&last.cause), clock(&last.time)),
        last => {
            let since = last.as_ref().map(|last| format!(" since {}", clock(&last.time)));
            format!("{}{}", escape(&trouble(peer)), since.filter(|_| !peer.held).unwrap_or_default())
        }
    };
    let rtt = match peer.rtt_us {
        None => "-".into(),
        Some(us @ 0..10_000) => format!("{us} µs"),
        Some(us) => format!("{} ms", us / 1000),
    };
    let rate = |what: &str, of: fn(&Rates) -> f64| {
        let now = traffic
            .and_then(|traffic| traffic.now.as_ref())
            .map_or("-".into(), |now| format!("{}/s", size(of(now))));
        let points = traffic.iter().flat_map(|traffic| &traffic.points);
        format!(
            "<span class=\"number\">{now}</span> {}",
            plot(what, points.map(|point| point.as_ref().map(of)))
        )
    };
    let dropped: u64 = peer.counters.0.iter().flat_map(|(_, counts)| counts.dropped.values()).sum();
    [
        escape(&peer.peer.to_string()),
        state,
        cause,
        rtt,
        rate("from the peer", |rates| rates.inbound),
        rate("to the peer", |rates| rates.out),
        size(queued(peer) as f64),
        if dropped == 0 { "0".into() } else { format!("{dropped} packets") },
    ]
}

/// The mesh: the picture, the same as a table, and what is one-sided in words.
fn mesh(table: &MeshTable) -> String {
    let mut out = match &table.resource {
        None => "<h3>Nodes of this site</h3>".into(),
        Some(resource) => {
            let owner = if resource.owned { "" } else { ", whose log this node does not own" };
            format!(
                "<h3>Sites of {}</h3>",
                escape(&format!("{} ({}){owner}", resource.resource, resource.name))
            )
        }
    };
    for pair in &table.one_sided {
        let _ =
            write!(out, "<p>{}</p>", badge(Mood::Bad, &format!("{} (for {})", pair.text, span(pair.for_s))));
    }
    let _ = write!(out, "<div class=\"pair\">{}", draw_mesh(table));
    out += "<div class=\"scroll\" role=\"region\" aria-label=\"Who sees whom, as a table\" tabindex=\"0\"><table class=\"matrix\"><thead><tr><th scope=\"col\">sees</th>";
    for row in &table.rows {
        let _ = write!(out, "<th scope=\"col\">{}</th>", row.id);
    }
    out += "<th scope=\"col\">how it is known</th></tr></thead><tbody>";
    for row in &table.rows {
        let name = escape(&format!("{} {} ({})", table.scope(), row.id, row.name));
        let _ = write!(out, "<tr><th scope=\"row\">{name}</th>");
        for column in &table.rows {
            let unseen = |pair: &OneSided| pair.sees == row.id && pair.unseen_by == column.id;
            let (class, sign, word) = match &row.sees {
                _ if row.id == column.id => ("dim", "–", "itself"),
                None => ("dim", "?", "not known"),
                Some(_) if table.one_sided.iter().any(unseen) => ("bad", "!", "sees and is not seen"),
                Some(sees) if sees.contains(&column.id) => ("good", "+", "sees"),
                Some(_) => ("bad", "·", "does not see"),
            };
            let _ = write!(
                out,
                "<td class=\"{class}\"><span aria-hidden=\"true\">{sign}</span><span class=\"unseen\">{word}</span></td>"
            );
        }
        let _ = write!(out, "<td class=\"origin\">{}</td></tr>", escape(&origin(row)));
    }
    out + "</tbody></table></div></div>"
}

fn origin(row: &MeshRow) -> String {
    match row.known {
        Known::Here => "this node's own".into(),
        Known::Told => "told by itself".into(),
        Known::Unknown | Known::Stale | Known::Gone => {
            format!("{}: {}", row.known, row.why.as_deref().unwrap_or_default())
        }
    }
}

/// The mirrored disks; nothing where no program serves any.
fn disks(disks: &Disks) -> String {
    let status = match disks {
        Disks::None => return String::new(),
        Disks::Trouble(why) => {
            return format!("<h2>Disks</h2><p class=\"notice\">{}</p>", badge(Mood::Bad, why));
        }
        Disks::Known(status) => status,
    };
    let list =
        |value: &Value, name: &str| value.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let mut out = String::from("<h2>Disks</h2>");
    if status.get("attached") == Some(&Value::Bool(false)) {
        let _ = write!(out, "<p class=\"notice\">{}</p>", badge(Mood::Bad, "hadm-nbd has no daemon"));
    }
    out += "<table class=\"cards\" role=\"table\"><thead role=\"rowgroup\"><tr role=\"row\">";
    let titles = ["Disk", "Role", "This copy", "Other sites", "Clients"];
    for title in titles {
        let _ = write!(out, "<th role=\"columnheader\" scope=\"col\">{title}</th>");
    }
    out += "</tr></thead><tbody role=\"rowgroup\">";
    for disk in list(status, "resources") {
        let copy = text(&disk, "disk");
        let sites = list(&disk, "peers");
        let sites = sites.iter().map(|peer| {
            let in_sync = peer.get("in_sync") == Some(&Value::Bool(true));
            let site = peer.get("site").and_then(Value::as_u64).unwrap_or_default();
            let behind = peer.get("out_of_sync").and_then(Value::as_u64).unwrap_or_default();
            let mut words = format!("site {site}: {}", text(peer, "state"));
            if behind > 0 {
                let _ = write!(words, ", {} to copy", size(behind as f64));
            }
            let is_getting_there =
                ["resync", "joining"].iter().any(|word| text(peer, "state").starts_with(word));
            let mood = match (in_sync, is_getting_there) {
                (true, _) => Mood::Good,
                (_, true) => Mood::Neutral,
                _ => Mood::Bad,
            };
            badge(mood, &words)
        });
        let clients = disk.get("clients").and_then(Value::as_u64).unwrap_or_default();
        let cells = [
            escape(text(&disk, "role")),
            badge(if copy == "up to date" { Mood::Good } else { Mood::Bad }, copy),
            sites.collect::<Vec<_>>().join("<br>"),
            clients.to_string(),
        ];
        let _ = write!(
            out,
            "<tr role=\"row\"><th role=\"rowheader\" scope=\"row\">{}</th>",
            escape(text(&disk, "name"))
        );
        for (cell, title) in cells.iter().zip(titles.iter().skip(1)) {
            let _ = write!(out, "<td role=\"cell\" data-title=\"{title}\"><div>{cell}</div></td>");
        }
        out += "</tr>";
    }
    out + "</tbody></table>"
}

fn log(state: &State) -> String {
    if state.log.is_empty() {
        return "<p>Nothing has happened yet.</p>".into();
    }
    let line = |Entry { time, subject, text, mood }: &Entry| {
        format!("<li>{} {} {}</li>", clock(time), badge(*mood, subject), escape(text))
    };
    format!("<ol class=\"log\">{}</ol>", state.log.iter().map(line).collect::<String>())
}

/// A time as people read it: the date and the second, in UTC.
fn clock(time: &str) -> String {
    let shown: String = time.chars().take(19).map(|c| if c == 'T' { ' ' } else { c }).collect();
    format!("<time datetime=\"{}\">{}</time>", escape(time), escape(&shown))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::samples;
    use std::time::Instant;

    #[test]
    fn nothing_from_outside_becomes_html() {
        let hostile = "<script>alert('x')</script>\"&\x1b";
        let mut status = samples::status();
        status.version = hostile.into();
        status.waiting = vec![crate::control::Wait::Other(hostile.into())];
        status.running.as_mut().unwrap().hostname = Some(hostile.into());
        status.peers[0].last_error = Some(hostile.into());
        let mut state = State::new(Instant::now());
        state.take(status, Instant::now(), hostile);
        state.miss(hostile.into(), Instant::now(), hostile);
        let disk = serde_json::json!({"name": hostile, "role": hostile, "disk": hostile,
            "peers": [{"site": 1, "state": hostile}]});
        state.disks = Disks::Known(serde_json::json!({"resources": [disk]}));
        let all: String = sections(&state).0.into_iter().map(|(_, text)| text).collect();
        assert!(all.matches("&lt;script&gt;").count() > 6, "{all}");
        assert!(!all.contains("<script") && !all.contains('\x1b') && !all.contains("('x'"), "{all}");
    }

    #[test]
    fn what_is_wrong_stands_before_everything() {
        let mut state = State::new(Instant::now());
        state.miss("cannot reach the daemon".into(), Instant::now(), "2026-01-02T03:04:05.678Z");
        let sections = sections(&state);
        assert!(sections.of("notice").contains("cannot reach the daemon"), "{sections:?}");
        assert!(sections.of("notice").contains(">2026-01-02 03:04:05<"), "{sections:?}");
        state.take(samples::status(), Instant::now(), "t");
        assert_eq!(super::sections(&state).of("notice"), "");
    }
}
