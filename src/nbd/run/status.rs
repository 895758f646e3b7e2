//! The state of a mirror: as JSON for programs, as one sentence for people, as metrics.
//!
//! Only tells; must never change anything. Called by the control socket.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::mirror::Mirror;
use crate::nbd::core::{Lag, Part, Stage, WitnessState};
use crate::nbd::disk::format::DiskFlags;
use crate::nbd::mirror::Role;
use crate::nbd::mirror::facts::disk_word;
use crate::nbd::mirror::outcome::Bytes;
use crate::wire::SiteId;

/// The state of another site.
pub(super) struct PeerView {
    pub site: SiteId,
    pub is_linked: bool,
    pub is_held: bool,
    pub stage: Stage,
    pub part: Part,
    pub out_of_sync: u64,
    pub resync: Option<ResyncView>,
    /// Of a site that writes do not wait for: how far it is behind, and in how many seconds the queue for it is full.
    pub behind: Option<(Lag, Option<u64>)>,
    /// Of such a site: the bytes that bits may still mark for a catch-up as one batch, and in how many seconds they are used up.
    pub catch_up: Option<(u64, Option<u64>)>,
    pub checkpoints: Vec<String>,
    pub is_paused: bool,
    pub said: String,
}

/// The progress of a resync.
pub(super) struct ResyncView {
    pub total: u64,
    pub left: u64,
    /// All of it is carried out at once at its end.
    pub is_at_once: bool,
    pub rate: u64,
    pub seconds_left: Option<u64>,
}

/// The state of a mirror.
pub(super) struct View {
    pub role: Role,
    pub follows: Option<SiteId>,
    pub disk: &'static str,
    pub flags: DiskFlags,
    pub generation: u64,
    pub is_frozen: bool,
    /// No command lets them go on.
    pub waits_for_majority: bool,
    pub verified: Option<String>,
    pub checkpoint: Option<String>,
    pub peers: Vec<PeerView>,
    /// The site that votes and has no disk.
    pub witness: Option<(SiteId, WitnessState)>,
}

/// Looks at a mirror.
pub(super) fn view(mirror: &Mirror) -> View {
    let state = mirror.lock();
    let superblock = state.core.superblock();
    let peers = mirror.peers.iter().map(|site| {
        let (stage, part) = state.core.peer_state(*site).unwrap_or((Stage::Apart, Part::Idle));
        let progress = state.progress.iter().find(|(known, _)| known == site).map(|(_, progress)| progress);
        let out_of_sync = state.core.out_of_sync(*site);
        PeerView {
            site: *site,
            is_linked: state.linked.contains(site.get()),
            is_held: state.held.contains(site.get()),
            stage,
            part,
            out_of_sync,
            resync: progress.map(|progress| ResyncView {
                total: progress.total().max(out_of_sync),
                left: state.core.left_to_copy(*site),
                is_at_once: state.core.catches_up_at_once(*site),
                rate: progress.rate(),
                seconds_left: progress.seconds_left(),
            }),
            behind: state.core.lag(*site).map(|lag| (lag, state.warnings.seconds_to_full(*site, lag.room))),
            catch_up: state
                .core
                .catch_up_room_left(*site)
                .map(|room| (room, state.warnings.seconds_to_large(*site, room))),
            checkpoints: state.core.checkpoints_on_the_way(*site).map(|name| name.to_string()).collect(),
            is_paused: state.core.is_paused(*site),
            said: state.journal.said(*site).to_owned(),
        }
    });
    View {
        role: state.core.role(),
        follows: state.core.follows(),
        disk: disk_word(superblock.flags, superblock.current),
        flags: superblock.flags,
        generation: superblock.current.bits(),
        is_frozen: state.core.is_frozen(),
        waits_for_majority: state.core.waits_for_majority(),
        verified: state.journal.verified.clone(),
        checkpoint: superblock.checkpoint.map(|name| name.to_string()),
        peers: peers.collect(),
        witness: state.core.witness_state(),
    }
}

impl PeerView {
    /// One word for the session.
    fn word(&self) -> &'static str {
        match (self.stage, self.part) {
            (Stage::Apart, _) if self.is_held => "disconnected by command",
            (Stage::Apart, _) if self.is_linked => "connected, not replicating",
            (Stage::Apart, _) => "not connected",
            (Stage::Preparing | Stage::Ready, _) => "joining",
            (Stage::Joined, Part::Equal) if self.behind.is_some() => "follows in order",
            (Stage::Joined, Part::Equal) => "in sync",
            (Stage::Joined, Part::Source) if self.is_paused => "resync to it, paused",
            (Stage::Joined, Part::Target) if self.is_paused => "resync from it, paused",
            (Stage::Joined, Part::Source) => "resync to it",
            (Stage::Joined, Part::Target) => "resync from it",
            (Stage::Joined, Part::Idle) => "connected",
        }
    }

    /// One part of the sentence.
    pub fn sentence(&self) -> String {
        let mut text = format!("{} {}", self.site, self.word());
        let left = Bytes(self.out_of_sync);
        match &self.resync {
            Some(resync) if self.out_of_sync > 0 => {
                _ = write!(text, ", {} of {} left", Bytes(resync.left), Bytes(resync.total));
                if resync.is_at_once {
                    text += ", carried out at once";
                }
                if let Some(seconds) = resync.seconds_left {
                    _ = write!(text, ", {}/s, {} to go", Bytes(resync.rate), duration(seconds));
                }
            }
            _ if self.out_of_sync > 0 => {
                _ = write!(text, ", {left} {}", if self.stage == Stage::Joined { "left" } else { "to copy" });
            }
            _ => {}
        }
        if let Some((lag, full)) = self.behind.filter(|(lag, _)| lag.bytes > 0 || !lag.age.is_zero()) {
            _ = write!(text, ", {} and {} behind", Bytes(lag.bytes), age(lag.age));
            if let Some(seconds) = full {
                _ = write!(text, ", its queue is full in {}", duration(seconds));
            }
        }
        if let Some((room, large)) =
            self.catch_up.filter(|_| self.stage == Stage::Apart && self.out_of_sync > 0)
        {
            match large {
                _ if room == 0 => text += ", more than its log takes at once",
                Some(seconds) => {
                    _ = write!(text, ", more than its log takes at once in {}", duration(seconds))
                }
                None => {}
            }
        }
        if let Some(last) = self.checkpoints.last() {
            _ = write!(text, ", checkpoint {last} on its way");
        }
        let tells = match self.stage {
            Stage::Apart => self.is_linked && !self.is_held,
            Stage::Joined => matches!(self.part, Part::Source | Part::Target),
            Stage::Preparing | Stage::Ready => true,
        };
        if tells && !self.said.is_empty() {
            _ = write!(text, " ({})", self.said);
        }
        text
    }
}

/// A time that passed, for people.
fn age(passed: Duration) -> String {
    if passed.as_secs() < 10 { format!("{:.1} s", passed.as_secs_f64()) } else { duration(passed.as_secs()) }
}

/// Seconds for people.
fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

/// The state of the witness in words.
pub(super) fn witness_word(state: WitnessState) -> &'static str {
    match state {
        WitnessState::Away => "not connected",
        WitnessState::Blank => "knows nothing yet",
        WitnessState::Agrees => "agrees",
        WitnessState::Newer(_) => "knows of later writes",
    }
}

impl View {
    fn sentence(&self) -> String {
        let mut text = match (self.role, self.follows) {
            (Role::Primary, _) => "primary".to_owned(),
            (Role::Secondary, Some(site)) => format!("secondary of {site}"),
            (Role::Secondary, None) => "secondary, no primary".to_owned(),
        };
        _ = write!(text, "; disk {}", self.disk);
        if let Some(checkpoint) = &self.checkpoint {
            _ = write!(text, ", checkpoint {checkpoint}");
        }
        if self.waits_for_majority {
            text += "; writes wait for a majority of the sites";
        } else if self.is_frozen {
            text += "; writes wait for a lost site, or for `hadmctl disk resume`";
        }
        for peer in &self.peers {
            text += "; ";
            text += &peer.sentence();
        }
        if let Some((site, state)) = self.witness {
            _ = write!(text, "; witness {site} {}", witness_word(state));
            if let WitnessState::Newer(sites) = state {
                _ = write!(text, " at sites {sites}");
            }
        }
        text
    }
}

/// The state of a mirror.
pub fn status(mirror: &Mirror) -> Value {
    let view = view(mirror);
    let peers = view.peers.iter().map(|peer| {
        json!({
            "site": peer.site.get(),
            "state": peer.word(),
            "linked": peer.is_linked,
            "disconnected": peer.is_held,
            "in_sync": peer.stage == Stage::Joined && peer.part == Part::Equal,
            "out_of_sync": peer.out_of_sync,
            "paused": peer.is_paused,
            "said": peer.said,
            "behind": peer.behind.map(|(lag, full)| json!({
                "bytes": lag.bytes,
                "seconds": lag.age.as_secs_f64(),
                "room": lag.room,
                "seconds_to_full": full,
                "log_room": peer.catch_up.map(|(room, _)| room),
                "seconds_to_large": peer.catch_up.and_then(|(_, seconds)| seconds),
                "checkpoints": peer.checkpoints,
            })),
            "resync": peer.resync.as_ref().map(|resync| json!({
                "total": resync.total,
                "left": resync.left,
                "at_once": resync.is_at_once,
                "rate": resync.rate,
                "seconds_left": resync.seconds_left,
            })),
        })
    });
    let requests: serde_json::Map<_, _> = mirror
        .counters
        .times()
        .map(|(kind, times)| (kind.to_owned(), json!(times.cumulative().last())))
        .collect();
    let [read, written] = mirror.counters.bytes();
    json!({
        "id": mirror.id.get(),
        "name": mirror.name,
        "site": mirror.site.get(),
        "role": view.role.word(),
        "follows": view.follows.map(SiteId::get),
        "disk": view.disk,
        "flags": view.flags.to_string(),
        "generation": format!("{:016x}", view.generation),
        "frozen": view.is_frozen,
        "verified": view.verified,
        "checkpoint": view.checkpoint,
        "clients": mirror.export.connections(),
        "peers": peers.collect::<Vec<_>>(),
        "witness": view.witness.map(|(site, state)| json!({
            "site": site.get(),
            "state": witness_word(state),
            "linked": state != WitnessState::Away,
        })),
        "requests": requests,
        "bytes": { "read": read, "written": written },
        "sentence": view.sentence(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resync_is_told_with_amount_pace_and_reason() {
        let mut peer = PeerView {
            site: SiteId::try_from(1).unwrap(),
            is_linked: true,
            is_held: false,
            stage: Stage::Joined,
            part: Part::Target,
            out_of_sync: 3 << 19,
            resync: Some(ResyncView {
                total: 3 << 20,
                left: 3 << 19,
                is_at_once: false,
                rate: 1 << 19,
                seconds_left: Some(3),
            }),
            behind: None,
            catch_up: None,
            checkpoints: Vec::new(),
            is_paused: false,
            said: "site 1 has newer data: 3.0 MiB to copy, from 1 to 0".into(),
        };
        assert_eq!(
            peer.sentence(),
            "site 1 resync from it, 1.5 MiB of 3.0 MiB left, 512.0 KiB/s, 3 s to go (site 1 has newer data: 3.0 MiB to copy, \
             from 1 to 0)"
        );
        (peer.part, peer.resync) = (Part::Equal, None);
        assert_eq!(peer.sentence(), "site 1 in sync, 1.5 MiB left");
        let mut lag = Lag { bytes: 3 << 20, age: Duration::from_millis(2500), room: 61 << 20 };
        (peer.out_of_sync, peer.behind) = (0, Some((lag, Some(40))));
        assert_eq!(
            peer.sentence(),
            "site 1 follows in order, 3.0 MiB and 2.5 s behind, its queue is full in 40 s"
        );
        (lag.bytes, lag.age) = (0, Duration::ZERO);
        peer.behind = Some((lag, None));
        assert_eq!(peer.sentence(), "site 1 follows in order");
        (peer.stage, peer.is_linked, peer.out_of_sync) = (Stage::Apart, false, 1 << 20);
        peer.catch_up = Some((31 << 20, Some(40)));
        assert_eq!(
            peer.sentence(),
            "site 1 not connected, 1.0 MiB to copy, more than its log takes at once in 40 s"
        );
        peer.catch_up = Some((0, None));
        assert_eq!(peer.sentence(), "site 1 not connected, 1.0 MiB to copy, more than its log takes at once");
        assert_eq!([119, 120, 7199, 7200].map(duration), ["119 s", "2 min", "119 min", "2 h"]);
    }
}
