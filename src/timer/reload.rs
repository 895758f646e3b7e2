//! A new configuration while the daemon runs: what would change, and the change itself.
//!
//! The file has been checked whole before it comes here. Peers that did not change keep their sessions; what
//! cannot change without a restart refuses the whole of it by name.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use log::info;
use serde_json::{Value, json};

use super::{Timer, owner};
use crate::config::{Config, PeerAddr};
use crate::control::Scrape;
use crate::core::{Action, Event, Known, PeerKey};
use crate::peer::Record;
use crate::wire::Compression;

/// What becomes of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Added,
    Removed,
    /// It is called elsewhere, or from elsewhere: its session ends and is made anew.
    Changed,
    Kept,
}

impl Fate {
    const fn word(self) -> &'static str {
        match self {
            Fate::Added => "added",
            Fate::Removed => "removed",
            Fate::Changed => "changed, its session is made anew",
            Fate::Kept => "kept",
        }
    }
}

/// What a new configuration would do.
pub(super) struct Difference {
    /// What cannot change without a restart.
    refused: Vec<String>,
    peers: BTreeMap<PeerKey, Fate>,
    settings: Vec<String>,
}

fn value<T: PartialEq + std::fmt::Debug>(list: &mut Vec<String>, what: &str, old: T, new: T) {
    if old != new {
        list.push(format!("{what}: {old:?} -> {new:?}"));
    }
}

/// The same for what may be missing.
fn place(list: &mut Vec<String>, what: &str, old: Option<SocketAddr>, new: Option<SocketAddr>) {
    if old != new {
        let [old, new] = [old, new].map(|addr| addr.map_or("none".into(), |addr| addr.to_string()));
        list.push(format!("{what}: {old} -> {new}"));
    }
}

/// What a peer is known by: at which port it calls, where it is called and from where.
fn peers(config: &Config) -> BTreeMap<PeerKey, (u16, Option<(SocketAddr, IpAddr)>)> {
    let known = owner::known(config).into_iter();
    let entry = |known: Known| (known.key, (known.port, owner::call(config, known.key)));
    let mut peers = BTreeMap::new();
    peers.extend(known.map(entry));
    peers
}

impl Difference {
    pub(super) fn between(old: &Config, new: &Config) -> Self {
        let (mut refused, mut settings) = (Vec::new(), Vec::new());
        value(&mut refused, "serverip and serverport", old.server, new.server);
        value(&mut refused, "id of the local node", old.node.get(), new.node.get());
        value(&mut refused, "id of the local site", old.site.get(), new.site.get());
        let local = |config: &Config| config.local_node().map(|node| node.addr);
        place(&mut refused, "ipaddr and port of the local node", local(old), local(new));
        value(&mut settings, "time between pings", old.ping_interval, new.ping_interval);
        value(&mut settings, "maxpingcount", old.max_ping_count, new.max_ping_count);
        value(&mut settings, "maxpacket (sessions begun from now on)", old.max_packet, new.max_packet);
        value(&mut settings, "slowtimeout (sessions begun from now on)", old.slow_timeout, new.slow_timeout);
        let compress = |config: &Config| {
            let here = owner::runsites_here(config);
            let each = here.map(|(resource, here)| {
                format!("{} {}", resource.id.get(), here.compress.map_or("none", Compression::name))
            });
            each.collect::<Vec<_>>().join(", ")
        };
        let [before, after] = [old, new].map(compress);
        if before != after {
            settings.push(format!("compress by resource (sessions begun from now on): {before} -> {after}"));
        }
        value(&mut settings, "peeraddr", old.peer_addr, new.peer_addr);
        place(&mut settings, "metrics", old.metrics, new.metrics);
        if old.keys != new.keys {
            let keys = |config: &Config| config.keys.as_ref().map_or("none".into(), super::key_list);
            settings.push(format!("authkey (links made from now on): {} -> {}", keys(old), keys(new)));
        }
        let here = |config: &Config, id| {
            owner::runsites_here(config).find(|(resource, _)| resource.id == id).map(|(_, here)| here.addr)
        };
        let mut ids = BTreeSet::new();
        ids.extend(old.resources.iter().chain(&new.resources).map(|resource| resource.id));
        for id in ids {
            place(&mut settings, &format!("{id} at this site"), here(old, id), here(new, id));
        }
        let (before, after) = (peers(old), peers(new));
        let mut fates = BTreeMap::new();
        fates.extend(before.keys().map(|&key| (key, Fate::Removed)));
        for (key, known) in &after {
            let fate = match before.get(key) {
                None => Fate::Added,
                Some(same) if same == known => Fate::Kept,
                Some(_) => Fate::Changed,
            };
            fates.insert(*key, fate);
        }
        Difference { refused, peers: fates, settings }
    }

    pub(super) fn json(&self) -> Value {
        let peers =
            self.peers.iter().map(|(key, fate)| json!({"peer": key.to_string(), "fate": fate.word()}));
        json!({"refused": self.refused, "settings": self.settings, "peers": peers.collect::<Vec<_>>()})
    }

    fn of(&self, fate: Fate) -> impl Iterator<Item = PeerKey> {
        self.peers.iter().filter(move |(_, found)| **found == fate).map(|(key, _)| *key)
    }
}

impl Timer {
    /// Puts a new configuration in force.
    ///
    /// # Errors
    /// What cannot change without a restart; nothing has changed then.
    pub(super) fn reload(&mut self, config: Config, actions: &mut Vec<Action>) -> Result<Value, String> {
        let difference = Difference::between(&self.config, &config);
        if !difference.refused.is_empty() {
            return Err(format!(
                "nothing was changed: this needs a restart: {}",
                difference.refused.join("; ")
            ));
        }
        self.open_listeners(&config).map_err(|why| format!("nothing was changed: {why}"))?;
        let now = self.now();
        for key in difference.of(Fate::Removed).chain(difference.of(Fate::Changed)) {
            self.core.handle(now, Event::Wanted { peer: key, wanted: false }, actions);
        }
        // Ended sessions leave the table before their peers do. A stop is no answer to being unwanted.
        let _ = self.carry_out(actions);
        self.core.reconfigure(now, owner::settings(&config, self.modules.is_some()), actions);
        for key in difference.of(Fate::Added) {
            self.switch.add_peer(Record::new(key));
            self.stories.entry(key).or_default();
        }
        for key in difference.of(Fate::Removed) {
            self.switch.remove_peer(key);
            self.stories.remove(&key);
        }
        self.digest = config.digest();
        self.limits = super::limits(&config);
        self.admission.known = owner::known(&config);
        self.admission.strict = config.peer_addr == PeerAddr::Strict;
        self.config = config;
        self.check_ownership(actions);
        self.apply_wanted(actions);
        let mut news = difference.settings.clone();
        news.extend(
            difference
                .peers
                .iter()
                .filter(|(_, fate)| **fate != Fate::Kept)
                .map(|(key, fate)| format!("{key} {}", fate.word())),
        );
        let news = if news.is_empty() { "nothing changed".into() } else { news.join("; ") };
        info!("configuration reloaded: {news}");
        self.note_daemon("configuration reloaded", &news);
        Ok(difference.json())
    }
    /// Listens where the new configuration says: the part of a reload that can fail. Then all is as before.
    fn open_listeners(&mut self, config: &Config) -> Result<(), String> {
        self.reactor.listen_for_sites(owner::listeners(config))?;
        if config.metrics == self.config.metrics {
            return Ok(());
        }
        // First the old place is given up: the new one may be at the same port.
        self.scrape = None;
        let start =
            |addr: Option<SocketAddr>| addr.map(|addr| Scrape::start(addr, self.ask.clone())).transpose();
        let started = start(config.metrics);
        if started.is_err() {
            // Both were open a moment ago.
            self.scrape = start(self.config.metrics).unwrap_or_default();
            let _ = self.reactor.listen_for_sites(owner::listeners(&self.config));
        }
        self.scrape = started?;
        Ok(())
    }
}
