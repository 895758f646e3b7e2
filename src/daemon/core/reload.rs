//! The difference that a reload makes: refused changes, the fate of each peer, changed settings.
//!
//! Compares two plain models of a configuration; reads no file and changes nothing. Called by the timer thread, for a
//! plan as well as for the reload itself.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::control::Fate;
use crate::wire::{Compression, NodeId, PeerKey, ResourceId, SiteId};

/// A configuration as far as it is compared. `K` is the type of the keys, which compares and shows them.
#[derive(Clone, Debug)]
pub struct Configured<K> {
    /// The address at which the kernel module connects.
    pub server: SocketAddr,
    /// The local node.
    pub node: NodeId,
    /// The local site.
    pub site: SiteId,
    /// The address at which the local node listens for other nodes.
    pub local: Option<SocketAddr>,
    /// Time between pings.
    pub ping_interval: Duration,
    /// Unanswered pings that end a session.
    pub max_ping_count: u32,
    /// Longest payload of a packet, in bytes.
    pub max_packet: u32,
    /// Longest time that a peer may hold up the others.
    pub slow_timeout: Duration,
    /// Time for which a reader looks for further bytes before it sleeps.
    pub busy_poll: Duration,
    /// True if large packets may go from link to link without a copy.
    pub zero_copy: bool,
    /// The configured compression of each local resource, in the order of their ids.
    pub compress: Vec<(ResourceId, Option<Compression>)>,
    /// Users that may attach as the kernel module, as one word.
    pub kernel_user: String,
    /// The rule whether callers must come from their configured address, as one word.
    pub peer_addr: String,
    /// The address at which metrics are served.
    pub metrics: Option<SocketAddr>,
    /// The keys for encrypted links.
    pub keys: K,
    /// Each local resource and its floating address, in the order of their ids.
    pub resources: Vec<(ResourceId, SocketAddr)>,
    /// Every peer, in the order of their keys.
    pub peers: Vec<(PeerKey, Place)>,
}

/// The addresses at which a peer and this side meet. A peer for which they change is another peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The port at which it calls this side's floating address, 0 for a node.
    pub port: u16,
    /// The address at which it is called, and the one from which it is called.
    pub call: Option<(SocketAddr, IpAddr)>,
}

/// Something that a configuration sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// The address at which the kernel module connects.
    Server,
    /// The local node.
    Node,
    /// The local site.
    Site,
    /// The address at which the local node listens for other nodes.
    Local,
    /// Time between pings.
    PingInterval,
    /// Unanswered pings that end a session.
    MaxPingCount,
    /// Longest payload of a packet.
    MaxPacket,
    /// Longest time that a peer may hold up the others.
    SlowTimeout,
    /// Time for which a reader looks for further bytes before it sleeps.
    BusyPoll,
    /// The rule whether large packets may go from link to link without a copy.
    ZeroCopy,
    /// The compression of data.
    Compress,
    /// Users that may attach as the kernel module.
    KernelUser,
    /// The rule whether callers must come from their configured address.
    PeerAddr,
    /// The address at which metrics are served.
    Metrics,
    /// The keys for encrypted links.
    Keys,
    /// The floating address of a resource.
    Resource(ResourceId),
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Setting::Server => "serverip and serverport",
            Setting::Node => "id of the local node",
            Setting::Site => "id of the local site",
            Setting::Local => "ipaddr and port of the local node",
            Setting::PingInterval => "time between pings",
            Setting::MaxPingCount => "maxpingcount",
            Setting::MaxPacket => "maxpacket (sessions begun from now on)",
            Setting::SlowTimeout => "slowtimeout (sessions begun from now on)",
            Setting::BusyPoll => "busypoll (sessions begun and kernel modules attached from now on)",
            Setting::ZeroCopy => "zerocopy (sessions begun and kernel modules attached from now on)",
            Setting::Compress => "compress by resource (sessions begun from now on)",
            Setting::KernelUser => "kerneluser (kernel modules that attach from now on)",
            Setting::PeerAddr => "peeraddr",
            Setting::Metrics => "metrics",
            Setting::Keys => "authkey (sessions in clear text are made anew)",
            Setting::Resource(id) => return write!(f, "{id} at this site"),
        })
    }
}

/// A setting that changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The setting.
    pub setting: Setting,
    /// Its old value, as operators read it.
    pub before: String,
    /// Its new value.
    pub after: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} -> {}", self.setting, self.before, self.after)
    }
}

/// The effect of a new configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Changes that need a restart: if there is one, nothing is changed at all.
    pub refused: Vec<Change>,
    /// Changes, in the order in which operators see them.
    pub settings: Vec<Change>,
    /// The fate of each peer of the old and the new configuration, in the order of their keys.
    pub peers: Vec<(PeerKey, Fate)>,
}

impl Difference {
    /// Returns the peers that have this fate.
    pub fn of(&self, fate: Fate) -> impl Iterator<Item = PeerKey> {
        self.peers.iter().filter(move |(_, found)| *found == fate).map(|(key, _)| *key)
    }
}

/// Adds a change if the two values, as operators read them, differ.
fn compare(list: &mut Vec<Change>, setting: Setting, [before, after]: [String; 2]) {
    if before != after {
        list.push(Change { setting, before, after });
    }
}

/// Shows an address, or that there is none.
fn place(value: Option<SocketAddr>) -> String {
    value.map_or("none".into(), |addr| addr.to_string())
}

/// Returns the value for this key of a list in the order of its keys.
fn find<K: Copy + Ord, V: Copy>(list: &[(K, V)], key: K) -> Option<V> {
    let at = list.binary_search_by_key(&key, |(found, _)| *found).ok()?;
    list.get(at).map(|(_, value)| *value)
}

fn compression(all: &[(ResourceId, Option<Compression>)]) -> String {
    let each = all.iter().map(|(id, how)| format!("{} {}", id.get(), how.map_or("none", Compression::name)));
    each.collect::<Vec<_>>().join(", ")
}

/// Returns the changes that a reload from one configuration to the other makes.
pub fn difference<K: PartialEq + fmt::Display>(old: &Configured<K>, new: &Configured<K>) -> Difference {
    let both = [old, new];
    let seconds = |value: Duration| format!("{value:?}");
    let mut refused = Vec::new();
    compare(&mut refused, Setting::Server, both.map(|it| it.server.to_string()));
    compare(&mut refused, Setting::Node, both.map(|it| it.node.get().to_string()));
    compare(&mut refused, Setting::Site, both.map(|it| it.site.get().to_string()));
    compare(&mut refused, Setting::Local, both.map(|it| place(it.local)));
    let mut settings = Vec::new();
    compare(&mut settings, Setting::PingInterval, both.map(|it| seconds(it.ping_interval)));
    compare(&mut settings, Setting::MaxPingCount, both.map(|it| it.max_ping_count.to_string()));
    compare(&mut settings, Setting::MaxPacket, both.map(|it| it.max_packet.to_string()));
    compare(&mut settings, Setting::SlowTimeout, both.map(|it| seconds(it.slow_timeout)));
    compare(&mut settings, Setting::BusyPoll, both.map(|it| seconds(it.busy_poll)));
    let on_off = |on: bool| if on { "on" } else { "off" }.to_string();
    compare(&mut settings, Setting::ZeroCopy, both.map(|it| on_off(it.zero_copy)));
    compare(&mut settings, Setting::Compress, both.map(|it| compression(&it.compress)));
    compare(&mut settings, Setting::KernelUser, both.map(|it| it.kernel_user.clone()));
    compare(&mut settings, Setting::PeerAddr, both.map(|it| it.peer_addr.clone()));
    compare(&mut settings, Setting::Metrics, both.map(|it| place(it.metrics)));
    // Keys have secrets, which no text shows.
    if old.keys != new.keys {
        let [before, after] = both.map(|it| it.keys.to_string());
        settings.push(Change { setting: Setting::Keys, before, after });
    }
    // Not collected: that would sort, with some KiB of code for each type.
    let mut resources = BTreeSet::new();
    resources.extend(both.iter().flat_map(|it| &it.resources).map(|(id, _)| *id));
    for id in resources {
        compare(&mut settings, Setting::Resource(id), both.map(|it| place(find(&it.resources, id))));
    }
    let fate = |&(key, place): &(PeerKey, Place)| match find(&old.peers, key) {
        None => (key, Fate::Added),
        Some(same) if same == place => (key, Fate::Kept),
        Some(_) => (key, Fate::Changed),
    };
    let mut peers: Vec<_> = new.peers.iter().map(fate).collect();
    for &(key, _) in &old.peers {
        if let Err(at) = peers.binary_search_by_key(&key, |(known, _)| *known) {
            peers.insert(at, (key, Fate::Removed));
        }
    }
    Difference { refused, settings, peers }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u32) -> NodeId {
        NodeId::try_from(id).unwrap()
    }

    fn resource(id: u32) -> ResourceId {
        ResourceId::try_from(id).unwrap()
    }

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    fn meets(port: u16) -> Place {
        Place { port: 0, call: Some((at(port), at(0).ip())) }
    }

    fn configured() -> Configured<&'static str> {
        Configured {
            server: at(1),
            node: node(1),
            site: SiteId::try_from(0).unwrap(),
            local: Some(at(2)),
            ping_interval: Duration::from_secs(5),
            max_ping_count: 4,
            max_packet: 1 << 20,
            slow_timeout: Duration::from_secs(10),
            busy_poll: Duration::ZERO,
            zero_copy: true,
            compress: [(resource(0), None)].into(),
            kernel_user: "Own".into(),
            peer_addr: "Any".into(),
            metrics: None,
            keys: "none",
            resources: [(resource(0), at(7))].into(),
            peers: [(PeerKey::Node(node(2)), meets(3)), (PeerKey::Node(node(3)), meets(3))].into(),
        }
    }

    #[test]
    fn the_same_configuration_makes_no_difference() {
        let found = difference(&configured(), &configured());
        assert!(found.refused.is_empty() && found.settings.is_empty());
        assert!(found.peers.iter().all(|(_, fate)| *fate == Fate::Kept));
    }

    #[test]
    fn each_setting_is_told_with_both_values() {
        type Edit = fn(&mut Configured<&'static str>);
        let refused: [(Edit, &str); 4] = [
            (|it| it.server = at(9), "serverip and serverport: 10.0.0.1:1 -> 10.0.0.1:9"),
            (|it| it.node = node(4), "id of the local node: 1 -> 4"),
            (|it| it.site = SiteId::try_from(2).unwrap(), "id of the local site: 0 -> 2"),
            (|it| it.local = None, "ipaddr and port of the local node: 10.0.0.1:2 -> none"),
        ];
        let settings: [(Edit, &str); 13] = [
            (|it| it.ping_interval /= 2, "time between pings: 5s -> 2.5s"),
            (|it| it.max_ping_count = 9, "maxpingcount: 4 -> 9"),
            (|it| it.max_packet = 1024, "maxpacket (sessions begun from now on): 1048576 -> 1024"),
            (|it| it.slow_timeout *= 2, "slowtimeout (sessions begun from now on): 10s -> 20s"),
            (
                |it| it.busy_poll = Duration::from_micros(50),
                "busypoll (sessions begun and kernel modules attached from now on): 0ns -> 50µs",
            ),
            (
                |it| it.zero_copy = false,
                "zerocopy (sessions begun and kernel modules attached from now on): on -> off",
            ),
            (
                |it| it.compress = [(resource(0), Some(Compression::Lz4))].into(),
                "compress by resource (sessions begun from now on): 0 none -> 0 lz4",
            ),
            (
                |it| it.kernel_user = "Any".into(),
                "kerneluser (kernel modules that attach from now on): Own -> Any",
            ),
            (|it| it.peer_addr = "Strict".into(), "peeraddr: Any -> Strict"),
            (|it| it.metrics = Some(at(8)), "metrics: none -> 10.0.0.1:8"),
            (|it| it.keys = "key 1", "authkey (sessions in clear text are made anew): none -> key 1"),
            (|it| it.resources.clear(), "resource 0 at this site: 10.0.0.1:7 -> none"),
            (|it| it.resources.extend([(resource(1), at(9))]), "resource 1 at this site: none -> 10.0.0.1:9"),
        ];
        let told = |edit: Edit| {
            let mut new = configured();
            edit(&mut new);
            let found = difference(&configured(), &new);
            [found.refused, found.settings].map(|list| list.iter().map(Change::to_string).collect::<Vec<_>>())
        };
        for (edit, text) in refused {
            assert_eq!(told(edit), [vec![text.to_owned()], vec![]]);
        }
        for (edit, text) in settings {
            assert_eq!(told(edit), [vec![], vec![text.to_owned()]]);
        }
    }

    #[test]
    fn each_peer_has_its_fate() {
        let mut new = configured();
        new.peers = [(PeerKey::Node(node(3)), meets(4)), (PeerKey::Node(node(4)), meets(3))].into();
        let found = difference(&configured(), &new);
        let fate = |id| find(&found.peers, PeerKey::Node(node(id))).unwrap();
        assert_eq!([2, 3, 4].map(fate), [Fate::Removed, Fate::Changed, Fate::Added]);
        assert!(found.of(Fate::Removed).eq([PeerKey::Node(node(2))]));
        assert!(difference(&configured(), &configured()).of(Fate::Kept).count() == 2);
    }
}
