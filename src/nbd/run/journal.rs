//! The history of a mirror, for people: the last word about each other site, and the latest events.
//!
//! Only remembers; decides nothing. Must stay small whatever happens: what repeats is counted, what is old goes. Written
//! by the mirror under its lock; read by the status.

use std::collections::VecDeque;
use std::time::SystemTime;

use humantime::format_rfc3339_millis;
use log::{error, info, warn};
use serde_json::{Value, json};

use crate::nbd::core::{Note, Way};
use crate::nbd::mirror::outcome::Bytes;
use crate::nbd::mirror::promotion::Fencing;
use crate::wire::SiteId;

/// The words for what happened, as etc/schema/hadmctl.json has them.
const WORDS: &[&str] = &[
    "decision",
    "refused",
    "joined",
    "lost",
    "resynced",
    "disk failed",
    "frozen",
    "thawed",
    "fencing",
    "split brain",
    "verified",
    "grown",
    "forgotten",
    "checkpoint",
    "catch-up",
    "catch-up grows",
    "catch-up is large",
    "queue fills",
    "command",
    "primary",
    "secondary",
    "reload",
    "connected",
    "not connected",
];

/// Events that are kept: as many as the daemon keeps of a peer.
const EVENTS: usize = 32;

/// Something that happened, and how often in a row.
struct Happening {
    first: SystemTime,
    last: SystemTime,
    times: u64,
    site: Option<SiteId>,
    what: &'static str,
    cause: String,
}

/// The memory of one mirror.
#[derive(Default)]
pub(super) struct Journal {
    said: Vec<(SiteId, String)>,
    /// The last word of a verify.
    pub verified: Option<String>,
    events: VecDeque<Happening>,
}

impl Journal {
    /// Keeps an event; one that is like the last of its site is counted there.
    pub fn add(&mut self, site: Option<SiteId>, what: &'static str, cause: &str) {
        debug_assert!(WORDS.contains(&what), "{what}");
        let now = SystemTime::now();
        let mut same_site = self.events.iter_mut().rev().filter(|event| event.site == site);
        if let Some(last) = same_site.next().filter(|last| last.what == what && last.cause == cause) {
            (last.last, last.times) = (now, last.times.saturating_add(1));
            return;
        }
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(Happening {
            first: now,
            last: now,
            times: 1,
            site,
            what,
            cause: cause.to_owned(),
        });
    }

    /// The same of an event that is the last word about a site.
    pub fn say(&mut self, site: SiteId, what: &'static str, cause: &str) {
        self.said.retain(|(known, _)| *known != site);
        self.said.push((site, cause.to_owned()));
        self.add(Some(site), what, cause);
    }

    /// Tells people what the core says, and keeps it.
    pub fn note(&mut self, name: &str, note: Note) {
        match note {
            Note::Decision(site, words) => {
                info!("{name}: {site}: {words}");
                self.say(site, "decision", &words);
            }
            Note::Refused(site, words) => {
                // Each try has the same result, once a second.
                if self.said(site) != words {
                    warn!("{name}: {site}: no replication: {words}");
                }
                self.say(site, "refused", &words);
            }
            Note::Joined(site) => {
                info!("{name}: {site}: replicates");
                self.add(Some(site), "joined", "writes go there from now on");
            }
            Note::Lost(site, why) => {
                warn!("{name}: {site}: lost: {why}");
                self.say(site, "lost", why);
            }
            Note::Resynced(site) => {
                info!("{name}: {site}: both disks are equal");
                self.say(site, "resynced", "both disks are equal");
            }
            Note::DiskFailed(why) => {
                error!("{name}: the disk here is out: {why}");
                self.add(None, "disk failed", why);
            }
            Note::Frozen(why) => {
                warn!("{name}: writes wait: {why}");
                self.add(None, "frozen", why);
            }
            Note::Grown(size) => {
                info!("{name}: the mirror has grown: {size} bytes are mirrored");
                self.add(
                    None,
                    "grown",
                    &format!("{size} bytes are mirrored; clients see them when they connect again"),
                );
            }
            Note::Forgotten(site) => {
                let words = "it is not in the configuration any more: what differs there is not known from now on, and all of it is \
                             compared if it comes back";
                info!("{name}: {site} is forgotten: {words}");
                self.add(Some(site), "forgotten", words);
            }
            Note::Thawed => {
                info!("{name}: writes go on");
                self.add(None, "thawed", "writes go on");
            }
            Note::Fenced(site, result) => {
                let words = match result {
                    Fencing::Done => "it cannot go on as primary",
                    Fencing::IsPrimary => "it is primary and goes on",
                    Fencing::Failed => "nothing was reached",
                };
                info!("{name}: {site}: fencing: {words}");
                self.add(Some(site), "fencing", words);
            }
            Note::CatchUp { site, bytes, room, way } => {
                let (bytes, room) = (Bytes(bytes), Bytes(room));
                let words = match way {
                    Way::AtOnce => format!(
                        "{bytes} are copied and carried out at once, as its ordered log takes {room}: until then the copy of \
                         the far site stays the older state that it is"
                    ),
                    Way::Compared => format!(
                        "{bytes} are marked, and compared first: what differs is copied and carried out at once, if it is not more \
                         than the {room} that the far site's ordered log takes; until then its copy stays the older state that it is"
                    ),
                    Way::InPieces => format!(
                        "{bytes} are to be copied, and the ordered log of the far site takes {room} at once: its copy cannot \
                         be used until the end"
                    ),
                };
                info!("{name}: {site}: catch-up: {words}");
                self.add(Some(site), "catch-up", &words);
            }
            Note::Reached(site, checkpoint) => {
                info!("{name}: {site} has checkpoint {checkpoint}");
                self.add(Some(site), "checkpoint", &format!("{checkpoint}: all before it is on its disk"));
            }
            Note::Verified(site, chunks, different) => {
                let words = format!("{site}: {chunks} chunks compared, {different} differ");
                info!("{name}: verify: {words}");
                self.add(Some(site), "verified", &words);
                self.verified = Some(words);
            }
        }
    }

    /// Returns the last word about a site.
    pub fn said(&self, site: SiteId) -> &str {
        self.said.iter().find(|(known, _)| *known == site).map_or("", |(_, words)| words)
    }

    /// Returns the events, the oldest first.
    pub fn events(&self) -> Value {
        let seconds = |at: SystemTime| {
            at.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
        };
        let event = |event: &Happening| {
            json!({
                "time": format_rfc3339_millis(event.first).to_string(),
                "unix_s": seconds(event.first),
                "last_time": format_rfc3339_millis(event.last).to_string(),
                "last_unix_s": seconds(event.last),
                "times": event.times,
                "site": event.site.map(SiteId::get),
                "what": event.what,
                "cause": event.cause,
            })
        };
        self.events.iter().map(event).collect::<Vec<_>>().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_repeats_is_counted_and_what_is_old_goes() {
        let (one, two) = (SiteId::try_from(1).unwrap(), SiteId::try_from(2).unwrap());
        let mut journal = Journal::default();
        for _ in 0..3 {
            journal.say(one, "refused", "policies differ");
            journal.say(two, "lost", "the connection ended");
        }
        assert_eq!((journal.said(one), journal.said(two)), ("policies differ", "the connection ended"));
        let events = journal.events();
        assert_eq!((events.as_array().unwrap().len(), &events[0]["times"]), (2, &json!(3)));
        for n in 0..40 {
            journal.add(None, "primary", &n.to_string());
        }
        let events = journal.events();
        assert_eq!(events.as_array().unwrap().len(), EVENTS);
        assert_eq!((&events[31]["cause"], &events[31]["site"]), (&json!("39"), &Value::Null));
    }

    #[test]
    fn the_schema_has_every_word() {
        let schema: Value = serde_json::from_str(include_str!("../../../etc/schema/hadmctl.json")).unwrap();
        let text = schema.to_string();
        assert!(text.contains(&json!(WORDS).to_string()), "etc/schema/hadmctl.json has other words");
    }
}
