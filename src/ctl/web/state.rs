//! The known state of the cluster: the last status, the rates of the last minutes, and the log of transitions.
//!
//! Only keeps what it is given, and forgets what is old: its memory is bounded by the peers of the configuration. Knows no
//! socket. Filled by the thread that looks, read by what makes the page.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::control::{Mesh, Outcome, Status, Transition};
use crate::ctl::brief::{Rates, rates};
use crate::wire::PeerKey;

/// Time of one point of a plot.
const POINT: Duration = Duration::from_secs(5);
/// Points of a plot: five minutes.
pub(super) const POINTS: usize = 60;
/// Entries of the log: what a person reads of it.
const ENTRIES: usize = 200;

/// The sign and colour of something: well, to be known, or wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mood {
    Good,
    Neutral,
    Bad,
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    /// In the form of RFC 3339, so that the order of the texts is that of the times.
    pub time: String,
    pub subject: String,
    pub text: String,
    pub mood: Mood,
}

/// The rates of a peer.
#[derive(Default)]
pub(super) struct Traffic {
    /// Between the last two looks.
    pub now: Option<Rates>,
    /// For each point, the oldest first; nothing where nobody was there to be asked.
    pub points: VecDeque<Option<Rates>>,
}

/// The known state of the mirrored disks.
pub(super) enum Disks {
    /// No program serves any.
    None,
    /// The program does not answer as it should: why.
    Trouble(String),
    Known(Value),
}

pub(super) struct State {
    /// The last one that the daemon sent, also when it is old.
    pub status: Option<Status>,
    /// The reason why there is no newer one, and its time.
    pub trouble: Option<(String, String)>,
    pub mesh: Option<Mesh>,
    pub traffic: BTreeMap<PeerKey, Traffic>,
    pub disks: Disks,
    /// The newest first.
    pub log: VecDeque<Entry>,
    /// As it was at the last point.
    point: Option<Status>,
    point_at: Instant,
}

impl State {
    pub fn new(now: Instant) -> Self {
        State {
            status: None,
            trouble: Some(("the daemon has not been asked yet".into(), String::new())),
            mesh: None,
            traffic: BTreeMap::new(),
            disks: Disks::None,
            log: VecDeque::new(),
            point: None,
            point_at: now,
        }
    }

    /// Takes a status. Gives the peers of which there is a transition that is not in the log.
    pub fn take(&mut self, status: Status, now: Instant, time: &str) -> Vec<PeerKey> {
        self.compare(&status, time);
        let is_due = now.saturating_duration_since(self.point_at) >= POINT || self.point.is_none();
        self.traffic.retain(|key, _| status.peers.iter().any(|peer| peer.peer == *key));
        for peer in &status.peers {
            let traffic = self.traffic.entry(peer.peer).or_default();
            traffic.now = rates(peer, &status, self.status.as_ref());
            if is_due {
                traffic.push(rates(peer, &status, self.point.as_ref()));
            }
        }
        if is_due {
            self.point = Some(status.clone());
            self.point_at = now;
        }
        let is_news = |last: &Transition| !self.log.contains(&entry(last));
        let news = status.peers.iter().filter(|peer| peer.last_transition.as_deref().is_some_and(is_news));
        let news = news.map(|peer| peer.peer).collect();
        self.trouble = None;
        self.status = Some(status);
        news
    }

    /// Takes that there is no status, and why.
    pub fn miss(&mut self, why: String, now: Instant, time: &str) {
        if self.trouble.is_none() {
            self.note(time, "hadmd", why.clone(), Mood::Bad);
        }
        let since = self.trouble.take().map(|(_, since)| since).filter(|since| !since.is_empty());
        self.trouble = Some((why, since.unwrap_or_else(|| time.to_owned())));
        self.mesh = None;
        let is_due = now.saturating_duration_since(self.point_at) >= POINT;
        for traffic in self.traffic.values_mut() {
            traffic.now = None;
            if is_due {
                traffic.push(None);
            }
        }
        if is_due {
            self.point_at = now;
        }
        // No rate goes across it.
        self.point = None;
    }

    /// Takes the transitions of a peer.
    pub fn add(&mut self, transitions: &[Transition]) {
        let news: Vec<Entry> =
            transitions.iter().map(entry).filter(|entry| !self.log.contains(entry)).collect();
        self.log.extend(news);
        self.log.make_contiguous().sort_by(|one, other| other.cmp(one));
        self.log.truncate(ENTRIES);
    }

    /// Notes what is otherwise than in the last status.
    fn compare(&mut self, status: &Status, time: &str) {
        let attached = |status: &Status| status.running.as_ref().is_some_and(|all| all.kernel.attached);
        let Some(last) = self.status.take() else { return };
        if last.pid != status.pid {
            self.note(time, "hadmd", format!("started anew as process {}", status.pid), Mood::Neutral);
        }
        match (attached(&last), attached(status)) {
            (false, true) => self.note(time, "kernel module", "attached".into(), Mood::Good),
            (true, false) => self.note(time, "kernel module", "detached".into(), Mood::Bad),
            _ => {}
        }
        if let (Some(before), Some(now)) = (&last.running, &status.running) {
            for resource in now.owned.iter().filter(|resource| !before.owned.contains(resource)) {
                self.note(time, &resource.to_string(), "log owner now".into(), Mood::Neutral);
            }
            for resource in before.owned.iter().filter(|resource| !now.owned.contains(resource)) {
                self.note(time, &resource.to_string(), "log owner no longer".into(), Mood::Neutral);
            }
        }
        self.status = Some(last);
    }

    fn note(&mut self, time: &str, subject: &str, text: String, mood: Mood) {
        self.log.push_front(Entry { time: time.into(), subject: subject.into(), text, mood });
        self.log.truncate(ENTRIES);
    }
}

impl Traffic {
    fn push(&mut self, rates: Option<Rates>) {
        if self.points.len() >= POINTS {
            self.points.pop_front();
        }
        self.points.push_back(rates);
    }
}

/// A transition as a line of the log.
fn entry(transition: &Transition) -> Entry {
    let Transition { peer, name, time, from, to, cause, details, .. } = transition;
    let mood = if *to == Outcome::Connected { Mood::Good } else { Mood::Bad };
    Entry {
        time: time.clone(),
        subject: peer.label(name.as_deref()),
        text: format!("{from} → {to}: {cause}{details}"),
        mood,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{CauseKind, Details, PeerState, samples};

    fn transition(time: &str) -> Transition {
        Transition {
            peer: "1".parse().unwrap(),
            name: None,
            time: time.into(),
            unix_s: 0.0,
            from: PeerState::Waiting,
            to: Outcome::Connected,
            kind: CauseKind::PeerCalled,
            cause: "the peer called".into(),
            details: Details::default(),
        }
    }

    #[test]
    fn a_plot_has_a_point_in_five_seconds_and_a_gap_where_nobody_answered() {
        let start = Instant::now();
        let mut state = State::new(start);
        let mut status = samples::status();
        for second in 0..(POINTS as u64 + 10) * 5 {
            status.uptime_s += 1.0;
            status.peers[0].counters.0[0].1.forwarded_bytes += 100;
            let now = start + Duration::from_secs(second);
            match second {
                100..110 => state.miss("gone".into(), now, "t"),
                _ => drop(state.take(status.clone(), now, "t")),
            }
        }
        let traffic = state.traffic.values().next().unwrap();
        assert_eq!(traffic.now.as_ref().unwrap().out, 100.0);
        assert_eq!(traffic.points.len(), POINTS);
        let gaps = traffic.points.iter().filter(|point| point.is_none()).count();
        assert!((2..=4).contains(&gaps), "{gaps}");
        assert!(traffic.points.iter().flatten().all(|rates| rates.out == 100.0 && rates.inbound == 0.0));
    }

    #[test]
    fn a_transition_is_in_the_log_once_and_the_newest_comes_first() {
        let now = Instant::now();
        let mut state = State::new(now);
        let mut status = samples::status();
        let new = transition("2026-01-02T00:00:00.000Z");
        status.peers[0].last_transition = Some(new.clone().into());
        assert_eq!(state.take(status.clone(), now, "t"), [status.peers[0].peer]);
        state.add(&[transition("2026-01-01T00:00:00.000Z"), new.clone()]);
        state.add(&[new]);
        assert_eq!(state.take(status.clone(), now, "t"), []);
        assert_eq!(state.log.len(), 2);
        assert!(state.log[0].time > state.log[1].time);
        status.pid += 1;
        status.running.as_mut().unwrap().kernel.attached = false;
        state.take(status, now, "2026-01-03T00:00:00.000Z");
        let news: Vec<_> = state.log.iter().take(2).map(|entry| entry.subject.as_str()).collect();
        assert_eq!(news, ["kernel module", "hadmd"]);
        let many: Vec<_> = (0..ENTRIES + 5).map(|n| transition(&format!("{n:05}"))).collect();
        state.add(&many);
        assert_eq!(state.log.len(), ENTRIES);
    }
}
