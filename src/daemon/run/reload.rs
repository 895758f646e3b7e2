//! A new configuration while the daemon runs: carries out the difference that the core finds.
//!
//! The file has been checked as a whole before. Unchanged peers keep their sessions; a change that needs a restart
//! refuses the whole configuration by name. Called by the timer thread.

use std::sync::Arc;

use log::info;

use super::{Coordinator, owner};
use crate::config::{Config, PeerAddr};
use crate::control::{self, Fate, PeerFate, PeerName, Plan, Warnings};
use crate::daemon::core::reload::{Change, Difference, difference};
use crate::daemon::core::{Action, EndCause, Event};
use crate::daemon::server::Loaded;
use crate::wire::PeerKey;

/// Returns the difference that a reload from one configuration to the other makes.
pub(super) fn between(old: &Config, new: &Config) -> Difference {
    difference(&owner::configured(old), &owner::configured(new))
}

fn texts(changes: &[Change]) -> Vec<String> {
    changes.iter().map(Change::to_string).collect()
}

/// Returns a peer's name in the new configuration, or in the old one that alone has it.
fn name(peer: PeerKey, fate: Fate, old: &Config, new: &Config) -> String {
    if fate == Fate::Removed { old.name(peer) } else { new.name(peer) }
}

/// Returns the difference as operators see it, with the warnings about the file.
pub(super) fn plan(difference: &Difference, warnings: &[String], old: &Config, new: &Config) -> Plan {
    let fate = |&(key, fate)| PeerFate { peer: PeerName(key), name: Some(name(key, fate, old, new)), fate };
    let peers = difference.peers.iter().map(fate);
    Plan {
        refused: texts(&difference.refused),
        settings: texts(&difference.settings),
        peers: peers.collect(),
        warnings: Warnings(warnings.to_vec()),
    }
}

impl Coordinator {
    /// Puts a new configuration in force, with the warnings about its file.
    ///
    /// # Errors
    /// The changes that need a restart; nothing has changed then.
    pub(super) fn reload(
        &mut self,
        (config, warnings): Loaded,
        actions: &mut Vec<Action>,
    ) -> Result<Plan, String> {
        let difference = between(&self.config, &config);
        if !difference.refused.is_empty() {
            return Err(format!(
                "nothing was changed: this needs a restart: {}",
                texts(&difference.refused).join("; ")
            ));
        }
        self.commands
            .serve_metrics(self.config.metrics, config.metrics)
            .map_err(|why| format!("nothing was changed: {why}"))?;
        let now = self.now();
        for key in difference.of(Fate::Removed).chain(difference.of(Fate::Changed)) {
            self.core.handle(now, Event::Wanted { peer: key, wanted: false }, actions);
        }
        // Ended sessions leave the table before their peers do. A stop cannot follow from a peer that is unwanted.
        let _ = self.carry_out(actions);
        self.core.reconfigure(now, owner::settings(&config, self.machine.checks_modules()), actions);
        for key in difference.of(Fate::Removed) {
            self.peers.remove(key, &self.router, &self.reactor.refusals);
        }
        for key in difference.of(Fate::Added) {
            self.peers.add(key, &self.router);
        }
        self.digest = config.digest();
        self.record = Arc::new(super::extension(&config));
        self.admission.allowed = owner::allowed(&config);
        self.admission.strict = config.peer_addr == PeerAddr::Strict;
        let old = std::mem::replace(&mut self.config, Arc::new(config));
        self.sessions().iter().for_each(|session| self.watch_links(session));
        // Log ownership has to be known before the wanted peers are.
        let _ = self.carry_out(actions);
        self.apply_wanted(actions);
        self.end_clear_text(actions);
        // A peer that was added on both sides, or corrected, is not to wait for the end of a backoff.
        self.call_now(None, actions);
        self.machine.look_at_addresses();
        let mut news = texts(&difference.settings);
        news.extend(
            difference
                .peers
                .iter()
                .filter(|(_, fate)| *fate != Fate::Kept)
                .map(|(key, fate)| format!("{}, {key} {fate}", name(*key, *fate, &old, &self.config))),
        );
        let news = if news.is_empty() { "nothing changed".into() } else { news.join("; ") };
        info!("configuration reloaded: {news}");
        self.note_daemon(control::Change::Reloaded, &news);
        let plan = plan(&difference, &warnings, &old, &self.config);
        self.warnings = warnings;
        Ok(plan)
    }

    /// Ends the sessions that are in clear text where links are to be encrypted: they are made anew, with a key.
    fn end_clear_text(&mut self, actions: &mut Vec<Action>) {
        let now = self.now();
        for session in self.sessions() {
            let (peer, id) = (session.statistics.key, session.id);
            let encryption = self.peers.history(peer).and_then(|history| history.encryption);
            if self.config.keys.is_some() && encryption.is_none() {
                let lost = Event::SessionLost { peer, session: id, cause: EndCause::ClearText };
                self.core.handle(now, lost, actions);
            }
        }
    }
}
