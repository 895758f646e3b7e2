//! What is to be said of a peer, and what helps: a pure look at what is known of it.
#![allow(clippy::indexing_slicing, reason = "a JSON value gives null for what it has not")]

use serde_json::{Value, json};

use super::port::Port;

/// A call that was turned away longer ago than this, in seconds, says nothing of now.
const RECENT: f64 = 60.0;

/// One thing that was looked at.
#[derive(Debug)]
pub(super) struct Finding {
    /// The verdict on a peer, or what of this node was looked at, in a few words that stay the same.
    pub word: &'static str,
    pub well: bool,
    says: String,
    advice: Option<&'static str>,
}

impl Finding {
    pub fn well(word: &'static str, says: String) -> Self {
        Finding { word, well: true, says, advice: None }
    }

    pub fn wrong(word: &'static str, says: String, advice: &'static str) -> Self {
        Finding { word, well: false, says, advice: Some(advice) }
    }

    pub fn into_check(self) -> Value {
        json!({"check": self.word, "well": self.well, "says": self.says, "advice": self.advice})
    }

    /// The peer's entry: the verdict, and what it rests on.
    pub fn into_json(self, mut peer: Value, port: Option<&Port>) -> Value {
        if let Some(fields) = peer.as_object_mut() {
            fields.remove("books");
            fields.insert("verdict".into(), self.word.into());
            fields.insert("well".into(), self.well.into());
            fields.insert("says".into(), self.says.into());
            fields.insert("advice".into(), self.advice.into());
            fields.insert("port".into(), port.map(Port::word).into());
        }
        peer
    }
}

/// The verdict on a peer as the status has it, with how its port answers if that was tried. `own` is where
/// this node listens.
pub(super) fn of(peer: &Value, port: Option<&Port>, own: &str) -> Finding {
    if peer["connected"] == true {
        return connected(peer, port);
    }
    if peer["held"] == true {
        let advice = "`hadmctl connect` with this peer links it again.";
        return Finding::wrong("held", "disconnected by the operator".into(), advice);
    }
    if peer["state"] == "off" {
        let says =
            format!("this node does not own the log of resource {}: its owner links", peer["resource"]);
        return Finding::well("not-owner", says);
    }
    if peer["role"] == "caller" { called(peer) } else { awaited(peer, port, own) }
}

fn connected(peer: &Value, port: Option<&Port>) -> Finding {
    let unanswered = peer["unanswered"].as_u64().unwrap_or_default();
    let age = peer["age_s"].as_f64().unwrap_or_default();
    let rtt = peer["rtt_us"].as_u64().map_or("no ping answered yet".into(), |rtt| format!("rtt {rtt} us"));
    let version = match peer["version"].as_str() {
        Some(version) => format!("hadmd {version}"),
        None => "no hello extension, so its configuration cannot be compared".into(),
    };
    let calls = if peer["role"] == "caller" { "this side calls" } else { "it calls" };
    let says = format!("connected for {age:.0} s, {calls}, {rtt}, {version}");
    // The last ping may be on its way.
    if unanswered > 1 {
        return Finding::wrong(
            "unanswered",
            format!("{says}; {} pings in a row are not answered", unanswered.saturating_sub(1)),
            "Look whether its machine is overloaded or stopped, or the network loses packets.",
        );
    }
    if peer["same_config"] == false {
        return Finding::wrong(
            "other-configuration",
            format!("{says}; its configuration is another one"),
            "Compare the files: heartbeat, sites, nodes and resources have to be the same on every node.",
        );
    }
    if let Some(port @ (Port::Refused | Port::Silent | Port::Failed(_))) = port {
        return Finding::wrong(
            "port-shut",
            format!("{says}; but its port does not take new connections: {}", port.word()),
            "Look for a firewall there: when this session ends, no other can begin.",
        );
    }
    match peer["same_config"] == true {
        true => Finding::well("healthy", format!("{says}, same configuration")),
        false => Finding::well("healthy", says),
    }
}

/// A peer that this side has to call.
fn called(peer: &Value) -> Finding {
    let call = &peer["call"];
    let why = call["why"].as_str().unwrap_or_default().to_string();
    let wrong = |word, advice| Finding::wrong(word, why.clone(), advice);
    if peer["state"] == "dialing" {
        let advice = "Ask again; if it stays so, please report it.";
        return Finding::wrong("unfinished", "a call has not come to its end".into(), advice);
    }
    match call["verdict"].as_str() {
        Some("refused") => wrong(
            "refused",
            "Its machine is there: start hadmd on it, or compare ipaddr and port. A C daemon listens only at times.",
        ),
        Some("silent") => wrong(
            "silent",
            "Look whether its machine is up, ipaddr is right, and no firewall drops the call.",
        ),
        Some("unreachable") => wrong("unreachable", "Look at cables, addresses and routes of this machine."),
        Some("no-answer") => wrong(
            "no-answer",
            "Look what listens there: if it is hadmd, it hangs, and its log may say why; else compare port.",
        ),
        Some("hung-up") => wrong(
            "hung-up",
            "Its log says why: compare ids, addresses, elements peeraddr and authkey in both files.",
        ),
        Some("stranger") => {
            wrong("stranger", "That is no hadmd: look what listens there, and compare port in both files.")
        }
        Some("other-key") => wrong("other-key", "Give both the same file for element authkey, and reload."),
        Some("other-id") => wrong("other-id", "Compare ids, host names and addresses in both files."),
        _ => Finding::wrong(
            "not-called",
            match peer["next_attempt_s"].as_f64() {
                Some(left) => format!("not called for another {left:.0} s"),
                None => "not called yet".into(),
            },
            "It did not keep up, or its sessions ended too soon: `hadmctl why` with this peer has the causes.",
        ),
    }
}

/// A peer that has to call this side.
fn awaited(peer: &Value, port: Option<&Port>, own: &str) -> Finding {
    let address = peer["address"].as_str().unwrap_or_default();
    // Another site calls the floating address of the resource.
    let floating = peer["from"].as_str().filter(|_| !peer["resource"].is_null());
    let own = floating.unwrap_or(own);
    let turned_away = &peer["turned_away"];
    if let Some(age) = turned_away["age_s"].as_f64().filter(|age| *age < RECENT) {
        return Finding::wrong(
            "turned-away",
            format!("{age:.0} s ago, a call {}", turned_away["why"].as_str().unwrap_or_default()),
            "Compare ids, host names, addresses, elements peeraddr and authkey in both files.",
        );
    }
    match port {
        Some(Port::Refused) => Finding::wrong(
            "refused",
            format!("it has to call and does not; its machine is there, nobody listens at {address}"),
            "Start hadmd there, or compare ipaddr and port. A C daemon listens only at times.",
        ),
        Some(Port::Silent) => Finding::wrong(
            "silent",
            format!("it has to call and does not; nothing answers at {address}"),
            "Look whether its machine is up, ipaddr is right, and no firewall drops what goes there.",
        ),
        Some(Port::Failed(why)) => Finding::wrong(
            "unreachable",
            format!("it has to call and does not; {address}: {why}"),
            "Look at cables, addresses and routes of this machine.",
        ),
        Some(Port::Open) | None => Finding::wrong(
            "not-calling",
            format!("it has to call {own} and does not; somebody listens at {address}"),
            "Look at its log, and for a firewall that drops its calls; compare ids and addresses in both files.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(peer: Value, port: Option<Port>) -> (&'static str, bool) {
        let finding = of(&peer, port.as_ref(), "192.0.2.1:7000");
        assert_eq!(finding.well, finding.advice.is_none(), "{finding:?}");
        (finding.word, finding.well)
    }

    #[test]
    fn a_session_is_judged_by_its_pings_configuration_and_port() {
        let up = |unanswered, same: Option<bool>| json!({"connected": true, "role": "caller", "version": "1", "unanswered": unanswered, "same_config": same});
        assert_eq!(word(up(1, Some(true)), Some(Port::Open)), ("healthy", true));
        assert_eq!(word(up(0, None), None), ("healthy", true));
        assert_eq!(word(up(2, Some(true)), None), ("unanswered", false));
        assert_eq!(word(up(0, Some(false)), None), ("other-configuration", false));
        assert_eq!(word(up(0, Some(true)), Some(Port::Silent)), ("port-shut", false));
    }

    #[test]
    fn a_missing_peer_is_judged_by_the_call_or_by_its_silence() {
        let caller =
            |verdict| json!({"role": "caller", "state": "waiting", "call": {"verdict": verdict, "why": "w"}});
        for verdict in
            ["refused", "silent", "unreachable", "no-answer", "hung-up", "stranger", "other-key", "other-id"]
        {
            assert_eq!(word(caller(verdict), None), (verdict, false));
        }
        assert_eq!(word(json!({"role": "caller", "state": "waiting"}), None).0, "not-called");
        assert_eq!(word(json!({"role": "caller", "state": "dialing"}), None).0, "unfinished");
        let acceptor = |age: f64| json!({"role": "acceptor", "state": "idle", "turned_away": {"age_s": age}});
        assert_eq!(word(acceptor(3.0), Some(Port::Open)).0, "turned-away");
        assert_eq!(word(acceptor(300.0), Some(Port::Open)).0, "not-calling");
        let site = json!({"role": "acceptor", "resource": 3, "from": "192.0.2.100"});
        assert!(of(&site, Some(&Port::Open), "192.0.2.1:7000").says.contains("has to call 192.0.2.100 and"));
        assert_eq!(word(acceptor(300.0), Some(Port::Refused)).0, "refused");
        assert_eq!(word(acceptor(300.0), Some(Port::Silent)).0, "silent");
        assert_eq!(word(acceptor(300.0), Some(Port::Failed("x".into()))).0, "unreachable");
    }

    #[test]
    fn being_off_is_wrong_only_where_the_operator_did_it() {
        assert_eq!(word(json!({"state": "off", "held": true}), None), ("held", false));
        assert_eq!(word(json!({"state": "off", "resource": 3}), None), ("not-owner", true));
    }
}
