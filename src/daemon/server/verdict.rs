//! The verdict on a peer, and the remedy: derived from its status alone.
//!
//! Pure: it asks no peer and no system. Used by `doctor` for each peer.

use std::net::SocketAddr;

use super::port::Port;
use crate::control::{CallVerdict, PeerResult, PeerState, PeerStatus, Role, Verdict, decimal};
use crate::wire::PeerKey;

/// Age in seconds after which a refused call says nothing about now.
const RECENT: f64 = 60.0;

/// The remedy where a call cannot be made, or was refused on its way.
const UNREACHABLE: &str = "Look at cables, addresses and routes of this machine, and for a firewall that rejects the call \
                           (REJECT): it answers at once, where an address without a machine takes seconds.";

/// The verdict, the evidence for it, and the remedy where something is wrong.
type Found = (Verdict, String, Option<&'static str>);

fn well(verdict: Verdict, says: String) -> Found {
    (verdict, says, None)
}

fn wrong(verdict: Verdict, says: impl Into<String>, advice: &'static str) -> Found {
    (verdict, says.into(), Some(advice))
}

/// Returns the result for a peer from its status, and from its port's answer if the port was tried. `own` is the
/// address at which this node listens; `encrypts` is true if it has a key.
pub(super) fn of(
    peer: &PeerStatus,
    port: Option<&Port>,
    own: Option<SocketAddr>,
    encrypts: bool,
) -> PeerResult {
    let (verdict, says, advice) = judge(peer, port, own, encrypts);
    let (advice, port) = (advice.map(Into::into), port.map(Port::state));
    PeerResult { verdict, well: advice.is_none(), says, advice, port }
}

fn judge(peer: &PeerStatus, port: Option<&Port>, own: Option<SocketAddr>, encrypts: bool) -> Found {
    if peer.connected {
        return connected(peer, port, encrypts);
    }
    if peer.held {
        let advice = "`hadmctl connect` with this peer links it again.";
        return wrong(Verdict::Held, "disconnected by the operator", advice);
    }
    if !peer.address_known {
        let advice =
            "Look at the name servers of this machine; `hadmctl status` has the names that are waited for.";
        return wrong(Verdict::NoAddress, "no name server has given an address for its name yet", advice);
    }
    if let (PeerState::Off, PeerKey::Site(resource, _)) = (peer.state, peer.peer) {
        let says = format!("this node does not own the log of {resource}: its owner links");
        return well(Verdict::NotOwner, says);
    }
    match peer.role {
        Role::Caller => called(peer),
        Role::Acceptor => awaited(peer, port, own),
    }
}

fn connected(peer: &PeerStatus, port: Option<&Port>, encrypts: bool) -> Found {
    let age = peer.age_s.unwrap_or_default();
    let rtt = peer.rtt_us.map_or("no ping answered yet".into(), |rtt| format!("rtt {rtt} us"));
    let version = match &peer.version {
        Some(version) => format!("hadmd {version}"),
        None => "no hello extension, so its configuration cannot be compared".into(),
    };
    let calls = if peer.role == Role::Caller { "this side calls" } else { "it calls" };
    let encrypted = if peer.cipher.is_some() { "encrypted" } else { "not encrypted" };
    let says = format!("connected for {} s, {calls}, {rtt}, {encrypted}, {version}", decimal(age, 0));
    // The last ping's ACK may be on its way.
    if peer.unanswered > 1 {
        return wrong(
            Verdict::Unanswered,
            format!("{says}; {} pings in a row are not answered", peer.unanswered.saturating_sub(1)),
            "Look whether its machine is overloaded or stopped, or the network loses packets.",
        );
    }
    if encrypts && peer.cipher.is_none() {
        let advice = "Disconnect and connect it with hadmctl: the next session has a key, or its verdict says why not.";
        return wrong(Verdict::NotEncrypted, format!("{says}, though this node has a key"), advice);
    }
    if peer.same_config == Some(false) {
        return wrong(
            Verdict::OtherConfiguration,
            match peer.differences[..] {
                [] => format!("{says}; its configuration is another one"),
                _ => format!("{says}; its configuration is another one: {}", peer.differences.join(", ")),
            },
            "Compare the files: heartbeat, sites, nodes and resources have to be the same on every node; then reload.",
        );
    }
    if let Some(port @ (Port::Refused | Port::Silent | Port::Failed(_))) = port {
        return wrong(
            Verdict::PortShut,
            format!("{says}; but its port does not take new connections: {}", port.state()),
            "Look for a firewall there: when this session ends, no other can begin.",
        );
    }
    match peer.same_config == Some(true) {
        true => well(Verdict::Healthy, format!("{says}, same configuration")),
        false => well(Verdict::Healthy, says),
    }
}

/// A peer that this side has to call.
fn called(peer: &PeerStatus) -> Found {
    let call = peer.call.as_ref();
    let verdict = call.and_then(|call| call.verdict);
    if peer.state == PeerState::Dialing && verdict.is_none() {
        let advice = "Ask again; if it stays so, please report it.";
        return wrong(Verdict::Unfinished, "a call has not come to its end", advice);
    }
    let Some(verdict) = verdict else {
        let says = match peer.next_attempt_s {
            Some(left) => format!("not called for another {} s", decimal(left, 0)),
            None => "not called yet".into(),
        };
        let advice = "It did not keep up, or its sessions ended too soon: `hadmctl why` with this peer has the causes.";
        return wrong(Verdict::NotCalled, says, advice);
    };
    let advice = match verdict {
        CallVerdict::Refused => {
            "Its machine is there, or a firewall answers for it (REJECT): start hadmd on it, or compare ipaddr and \
             port, and look at the firewalls' rules. A C daemon listens only at times."
        }
        CallVerdict::Silent => {
            "Look whether its machine is up, ipaddr is right, and no firewall drops the call."
        }
        CallVerdict::Unreachable => UNREACHABLE,
        CallVerdict::NoAnswer => {
            "Look what listens there: if it is hadmd, it hangs, and its log may say why; else compare port."
        }
        CallVerdict::HungUp => {
            "Its log says why: compare ids, addresses, elements peeraddr and authkey in both files."
        }
        CallVerdict::Stranger => "That is no hadmd: look what listens there, and compare port in both files.",
        CallVerdict::OtherKey => "Give both the same file for element authkey, and reload.",
        CallVerdict::OtherId => "Compare ids, host names and addresses in both files.",
    };
    wrong(verdict.into(), call.and_then(|call| call.why.clone()).unwrap_or_default(), advice)
}

/// A peer that has to call this side.
fn awaited(peer: &PeerStatus, port: Option<&Port>, own: Option<SocketAddr>) -> Found {
    let address = peer.address.map(|address| address.to_string()).unwrap_or_default();
    // Another site calls the floating address of the resource.
    let floating = peer.from.filter(|_| matches!(peer.peer, PeerKey::Site(..)));
    let own = floating.map(|from| from.to_string()).or(own.map(|own| own.to_string())).unwrap_or_default();
    if let Some(turned_away) = peer.turned_away.as_ref().filter(|call| call.age_s < RECENT) {
        return wrong(
            Verdict::TurnedAway,
            format!("{} s ago, a call {}", decimal(turned_away.age_s, 0), turned_away.why),
            "Compare ids, host names, addresses, elements peeraddr and authkey in both files.",
        );
    }
    match port {
        Some(Port::Refused) => wrong(
            Verdict::Refused,
            format!("it has to call and does not; its machine is there, nobody listens at {address}"),
            "Start hadmd there, or compare ipaddr and port; look for a firewall that rejects (REJECT). A C daemon \
             listens only at times.",
        ),
        Some(Port::Silent) => wrong(
            Verdict::Silent,
            format!("it has to call and does not; nothing answers at {address}"),
            "Look whether its machine is up, ipaddr is right, and no firewall drops what goes there.",
        ),
        Some(Port::Failed(why)) => {
            wrong(Verdict::Unreachable, format!("it has to call and does not; {address}: {why}"), UNREACHABLE)
        }
        Some(Port::Open) | None => wrong(
            Verdict::NotCalling,
            format!("it has to call {own} and does not; somebody listens at {address}"),
            "Look at its log, and for a firewall that drops its calls; compare ids and addresses in both files.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Call, TurnedAway, samples};

    const OWN: &str = "192.0.2.1:7000";

    fn word(peer: &PeerStatus, port: Option<Port>) -> (&'static str, bool) {
        let found = of(peer, port.as_ref(), OWN.parse().ok(), false);
        assert_eq!(found.well, found.advice.is_none(), "{found:?}");
        (found.verdict.word(), found.well)
    }

    #[test]
    fn a_session_is_judged_by_its_pings_configuration_and_port() {
        let up = |unanswered, same_config| PeerStatus {
            connected: true,
            role: Role::Caller,
            version: Some("1".into()),
            unanswered,
            same_config,
            ..samples::peer()
        };
        assert_eq!(word(&up(1, Some(true)), Some(Port::Open)), ("healthy", true));
        assert_eq!(word(&up(0, None), None), ("healthy", true));
        assert_eq!(word(&up(2, Some(true)), None), ("unanswered", false));
        assert_eq!(word(&up(0, Some(false)), None), ("other-configuration", false));
        assert_eq!(word(&up(0, Some(true)), Some(Port::Silent)), ("port-shut", false));
        let clear = of(&PeerStatus { cipher: None, ..up(0, None) }, None, OWN.parse().ok(), true);
        assert_eq!((clear.verdict.word(), clear.well), ("not-encrypted", false));
    }

    #[test]
    fn a_missing_peer_is_judged_by_the_call_or_by_its_silence() {
        let caller = |verdict| {
            let call = Call { number: 1, steps: Vec::new(), verdict, why: Some("w".into()) };
            PeerStatus { state: PeerState::Waiting, call: Some(call), ..samples::peer() }
        };
        for &verdict in CallVerdict::ALL {
            assert_eq!(word(&caller(Some(verdict)), None), (verdict.word(), false));
        }
        assert_eq!(word(&caller(None), None).0, "not-called");
        let dialing = PeerStatus { state: PeerState::Dialing, ..caller(None) };
        assert_eq!(word(&dialing, None).0, "unfinished");
        let acceptor = |age_s| PeerStatus {
            role: Role::Acceptor,
            turned_away: Some(TurnedAway { age_s, why: "w".into() }),
            ..samples::peer()
        };
        assert_eq!(word(&acceptor(3.0), Some(Port::Open)).0, "turned-away");
        assert_eq!(word(&acceptor(300.0), Some(Port::Open)).0, "not-calling");
        let site = PeerStatus { peer: "3:1".parse().unwrap(), ..acceptor(300.0) };
        let says = of(&site, Some(&Port::Open), OWN.parse().ok(), false).says;
        assert!(says.contains("has to call 192.0.2.100 and"), "{says}");
        assert_eq!(word(&acceptor(300.0), Some(Port::Refused)).0, "refused");
        assert_eq!(word(&acceptor(300.0), Some(Port::Silent)).0, "silent");
        assert_eq!(word(&acceptor(300.0), Some(Port::Failed("x".into()))).0, "unreachable");
    }

    #[test]
    fn being_off_is_wrong_only_where_the_operator_did_it() {
        let off = PeerStatus { peer: "3:1".parse().unwrap(), state: PeerState::Off, ..samples::peer() };
        assert_eq!(word(&PeerStatus { held: true, ..off.clone() }, None), ("held", false));
        assert_eq!(word(&off, None), ("not-owner", true));
    }
}
