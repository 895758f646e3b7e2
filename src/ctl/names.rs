//! The peers that a name on the command line can mean: ids, host names, and names of resources.
//!
//! Guesses nothing: a name that can mean several is refused, with all that it can mean. Used by the commands.

use serde_json::Value;

use super::Failure;
use super::json::{list, text};
use crate::control::{PeerStatus, Status};
use crate::wire::PeerKey;

/// Returns true if a text can only be an id: digits, and the colon between two.
pub(super) fn is_id(text: &str) -> bool {
    text.parse::<PeerKey>().is_ok() || text.bytes().all(|byte| byte.is_ascii_digit() || byte == b':')
}

/// Returns true if one of these host names is meant: whole, or up to its first dot where `short`.
fn has_host(hosts: &[String], wanted: &str, short: bool) -> bool {
    hosts.iter().any(|host| {
        let host = if short { host.split('.').next().unwrap_or(host) } else { host };
        host.eq_ignore_ascii_case(wanted)
    })
}

/// Returns the peers that a text can mean: an id, a host name of the peer, or `RES:SITE` with names in place of ids. Host
/// names that end before their first dot count where no whole one fits.
pub(super) fn meant<'a>(text: &str, status: &'a Status) -> Vec<&'a PeerStatus> {
    let of = |short: bool| -> Vec<&PeerStatus> {
        status.peers.iter().filter(|peer| is_meant(peer, text, short)).collect()
    };
    let whole = of(false);
    if whole.is_empty() { of(true) } else { whole }
}

fn is_meant(peer: &PeerStatus, text: &str, short: bool) -> bool {
    if let Ok(key) = text.parse::<PeerKey>() {
        return peer.peer == key;
    }
    let has = |text: &str| has_host(peer.hosts.as_deref().unwrap_or_default(), text, short);
    match (peer.peer, text.split_once(':')) {
        (PeerKey::Site(resource, id), Some((of, site))) => {
            let resource = of.parse() == Ok(resource.get()) || peer.resource_name.as_deref() == Some(of);
            resource && (site.parse() == Ok(id.get()) || has(site))
        }
        _ => has(text),
    }
}

/// Returns the one peer that is meant.
///
/// # Errors
/// Several can be meant, or none: with all there are.
pub(super) fn one(text: &str, status: &Status) -> Result<PeerKey, Failure> {
    match meant(text, status)[..] {
        [only] => Ok(only.peer),
        // A daemon that has not started yet knows no peer, and answers that itself.
        [] if status.running.is_none() && text.parse::<PeerKey>().is_ok() => {
            text.parse().map_err(Failure::NoPeer)
        }
        [] => Err(unknown(text, status)),
        ref several => Err(ambiguous(text, several.iter().map(|peer| peer.label()))),
    }
}

/// The failure where a name can mean several things.
pub(super) fn ambiguous(text: &str, all: impl Iterator<Item = String>) -> Failure {
    let all: Vec<String> = all.collect();
    Failure::NoPeer(format!("{text:?} can mean {}; name one by its id, as N or R:S", all.join(", or ")))
}

/// The failure where a name means nothing that is configured.
pub(super) fn unknown(text: &str, status: &Status) -> Failure {
    if status.running.is_none() {
        return Failure::Refused(format!(
            "the daemon has not started yet, and knows no peer {text:?}: {}",
            status.waiting.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        ));
    }
    let list = |of: fn(&PeerStatus) -> Option<String>| {
        let all: Vec<String> = status.peers.iter().filter_map(of).collect();
        if all.is_empty() { "none".into() } else { all.join(", ") }
    };
    let wanted = text.parse::<PeerKey>().map_or_else(|_| format!("{text:?}"), |key| key.to_string());
    Failure::NoPeer(format!(
        "{wanted} is not configured; the peers are: {} (by name: {})",
        list(|peer| Some(peer.peer.to_string())),
        list(|peer| peer.name.clone())
    ))
}

/// The resource of a name or, where no name fits, of an id.
pub(super) fn resource<'a>(status: &'a Value, wanted: &str) -> Result<&'a Value, Failure> {
    let has_id =
        |resource: &&Value| wanted.parse().ok().is_some_and(|id: u64| resource.get("id") == Some(&id.into()));
    let find = |kind: &str| {
        let by_name = list(status, kind).find(|resource| text(resource, "name") == wanted);
        by_name.or_else(|| list(status, kind).find(has_id))
    };
    find("resources").ok_or_else(|| {
        if find("witnesses").is_some() {
            return Failure::Refused(format!(
                "this site is the witness of {wanted:?}, and has no disk of it: ask at a site with a disk"
            ));
        }
        let name = |resource: &Value| {
            format!("{} ({})", text(resource, "name"), resource.get("id").unwrap_or(&Value::Null))
        };
        let names: Vec<String> = list(status, "resources").map(name).collect();
        Failure::NoPeer(format!("no resource {wanted:?} is served here; there are: {}", names.join(", ")))
    })
}

/// The id of a resource's other site, which its id or the host name of a node there names.
pub(super) fn site(resource: &Value, wanted: &str) -> Result<u64, Failure> {
    let sites = |short: bool| -> Vec<u64> {
        let is_meant = |peer: &&Value| {
            let hosts: Vec<String> = list(peer, "hosts").filter_map(Value::as_str).map(Into::into).collect();
            wanted.parse().ok() == peer.get("site").and_then(Value::as_u64) || has_host(&hosts, wanted, short)
        };
        let meant = list(resource, "peers").filter(is_meant);
        meant.filter_map(|peer| peer.get("site").and_then(Value::as_u64)).collect()
    };
    let whole = sites(false);
    let name = text(resource, "name");
    match if whole.is_empty() { sites(true) } else { whole }[..] {
        [only] => Ok(only),
        [] => {
            let sites = list(resource, "peers").filter_map(|peer| peer.get("site")).map(ToString::to_string);
            let sites: Vec<String> = sites.collect();
            Err(Failure::NoPeer(format!(
                "{wanted:?} is no other site of resource {name:?}; those are: {}",
                sites.join(", ")
            )))
        }
        ref several => Err(ambiguous(wanted, several.iter().map(|site| format!("site {site} of {name}")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::samples;

    fn peer(key: &str, resource: Option<&str>, hosts: &[&str]) -> PeerStatus {
        PeerStatus {
            peer: key.parse().unwrap(),
            name: Some(hosts.join(", ")),
            hosts: Some(hosts.iter().map(|host| (*host).into()).collect()),
            resource_name: resource.map(Into::into),
            ..samples::peer()
        }
    }

    #[test]
    fn a_name_means_one_peer_or_is_refused_with_all_it_can_mean() {
        let status = Status {
            peers: vec![
                peer("1", None, &["beta"]),
                peer("10", None, &["beta10"]),
                peer("2", None, &["gamma.example.com"]),
                peer("3", None, &["gamma.example.org"]),
                peer("4", None, &["3com"]),
                peer("0:1", Some("data"), &["far-a", "far-b"]),
                peer("7:1", Some("mail"), &["far-a"]),
            ],
            ..samples::status()
        };
        for (text, key) in [
            ("1", "1"),
            ("node 1", "1"),
            ("beta", "1"),
            ("BETA", "1"),
            ("beta10", "10"),
            ("gamma.example.org", "3"),
            ("3com", "4"),
            ("far-b", "0:1"),
            ("data:far-a", "0:1"),
            ("data:1", "0:1"),
            ("7:far-a", "7:1"),
            ("0:1", "0:1"),
        ] {
            assert_eq!(one(text, &status).unwrap(), key.parse().unwrap(), "{text}");
        }
        for (text, parts) in [
            ("gamma", &["node 2 (gamma.example.com), or node 3"][..]),
            ("far-a", &["site 1 of resource 0", "site 1 of resource 7", "by its id"]),
            ("bet", &["\"bet\" is not configured; the peers are: node 1, node 10", "beta10"]),
            ("5", &["node 5 is not configured"]),
            ("mail:far-b", &["is not configured"]),
        ] {
            let failure = one(text, &status).unwrap_err();
            assert_eq!(failure.status(), crate::sys::exit::USAGE);
            parts.iter().for_each(|part| assert!(failure.to_string().contains(part), "{text}: {failure}"));
        }
    }
}
