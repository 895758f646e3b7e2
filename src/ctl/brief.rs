//! A line for each peer, with what moved since an earlier look.
//!
//! For screens of 80 columns. Only lays out what the daemon says. Used by `status --watch`.

use super::show::{coloured, daemon_lines, size, span, state_code};
use super::watch::Picture;
use crate::control::{PeerState, PeerStatus, Status, Stream};
use crate::wire::PeerKey;

/// Bytes a second in each direction, data and meta together; nothing across a restart of the daemon.
pub(super) struct Rates {
    pub inbound: f64,
    pub out: f64,
}

/// The rates of a peer between two looks at the same daemon.
pub(super) fn rates(peer: &PeerStatus, now: &Status, before: Option<&Status>) -> Option<Rates> {
    let before = before.filter(|before| before.pid == now.pid)?;
    let earlier = before.peers.iter().find(|earlier| earlier.peer == peer.peer)?;
    let seconds = now.uptime_s - before.uptime_s;
    let moved = |out: bool| {
        let bytes = |peer: &PeerStatus| {
            let streams = Stream::ALL.into_iter().filter(|stream| stream.out == out);
            streams.filter_map(|stream| peer.counters.of(stream)).map(|counts| counts.forwarded_bytes).sum()
        };
        let bytes: (u64, u64) = (bytes(peer), bytes(earlier));
        // A peer that a reload made anew counts from 0.
        bytes.0.checked_sub(bytes.1).map(|bytes| bytes as f64 / seconds)
    };
    if seconds > 0.0 { Some(Rates { inbound: moved(false)?, out: moved(true)? }) } else { None }
}

/// Bytes that wait to be written, of all streams.
pub(super) fn queued(peer: &PeerStatus) -> u64 {
    peer.counters.0.iter().map(|(_, counts)| counts.queued_bytes).sum()
}

/// The reason why a peer is not connected, as far as one sentence can say it.
pub(super) fn trouble(peer: &PeerStatus) -> String {
    if peer.held {
        return "disconnected by the operator".into();
    }
    let last = peer.last_transition.as_ref().map(|last| last.cause.clone());
    let known = peer.last_error.clone().or(last);
    known.unwrap_or_else(|| match peer.state {
        PeerState::Off => "not to be connected now".into(),
        PeerState::Idle => "its call is waited for".into(),
        PeerState::Waiting => "will be called again".into(),
        PeerState::Dialing => "is being called".into(),
        PeerState::Half => "one of its two links is there".into(),
        PeerState::Connected => String::new(),
    })
}

/// The peer's key and name in 23 columns.
fn short(peer: &PeerStatus) -> String {
    let whole = match peer.peer {
        PeerKey::Node(_) => peer.label(),
        PeerKey::Site(resource, site) => {
            format!("{}:{} ({})", resource.get(), site.get(), peer.name.as_deref().unwrap_or_default())
        }
    };
    match whole.char_indices().nth(23) {
        None => whole,
        Some(_) => whole.chars().take(20).chain("...".chars()).collect(),
    }
}

/// The daemon in some lines, and each peer in one.
pub(super) fn picture(now: &Status, before: Option<&Status>, colour: bool) -> Picture {
    let mut head = daemon_lines(now, colour);
    let connected = now.peers.iter().filter(|peer| peer.connected).count();
    head.push(format!("connected: {connected} of {}", now.peers.len()));
    head.push(format!(
        "{:<23} {:<9} {:<11} {:>7} {:>8} {:>8} {:>8}",
        "peer", "state", "for", "rtt", "in/s", "out/s", "waiting"
    ));
    let row = |peer: &PeerStatus| {
        // The colour must not count as width.
        let state = coloured(&format!("{:<9}", peer.state.word()), state_code(peer.state), colour);
        let age = peer.age_s.filter(|_| peer.connected).map(span).unwrap_or_default();
        let begin = format!("{:<23} {state} {age:<11}", short(peer));
        if !peer.connected {
            return format!("{begin} {}", trouble(peer));
        }
        let rtt = match peer.rtt_us {
            None => "-".into(),
            Some(us @ 0..10_000) => format!("{us} us"),
            Some(us) => format!("{} ms", us / 1000),
        };
        let rates = rates(peer, now, before);
        let rate = |of: fn(&Rates) -> f64| rates.as_ref().map_or("-".into(), |rates| size(of(rates)));
        let (inbound, out) = (rate(|rates| rates.inbound), rate(|rates| rates.out));
        format!("{begin} {rtt:>7} {inbound:>8} {out:>8} {:>8}", size(queued(peer) as f64))
    };
    Picture { rows: now.peers.iter().map(row).collect(), head }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::samples;

    #[test]
    fn a_row_fits_80_columns_and_has_the_rates() {
        let mut now = samples::status();
        now.peers[0].connected = true;
        now.peers[0].peer = "254:31".parse().unwrap();
        now.peers[0].name = Some("mail at backup.example.com".into());
        now.peers[0].age_s = Some(3599.0);
        let mut before = now.clone();
        before.uptime_s -= 0.5;
        before.peers[0].counters.0[0].1.forwarded_bytes = 12;
        let shown = picture(&now, Some(&before), false);
        let expected = "254:31 (mail at back... waiting   59 min 59 s  250 us      0 B   1.0 kB    128 B";
        assert_eq!(shown.rows, [expected]);
        assert_eq!(expected.len(), 80);
        before.pid += 1;
        assert!(picture(&now, Some(&before), false).rows[0].contains("250 us        -        -"));
    }
}
