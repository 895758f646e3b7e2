//! Peers as the configuration has them, and which resources' logs this node owns.
//!
//! A node is the log owner of a resource while one of its interfaces holds the floating address of the
//! resource's local runsite. Only then does it call, and accept, the other runsites of that resource.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use log::{Level, info};

use super::Timer;
use crate::config::{Config, Resource, RunSite};
use crate::core::{Action, Known, PeerKey, Role, Settings};
use crate::limited;

/// The resources that have a runsite at the local site, each with it.
pub(super) fn runsites_here(config: &Config) -> impl Iterator<Item = (&Resource, &RunSite)> {
    config.resources.iter().filter_map(|resource| Some((resource, resource.runsite(config.site)?)))
}

/// Every peer: the other nodes of the local site, and the other sites of each resource that is here.
pub(super) fn known(config: &Config) -> Vec<Known> {
    let others = config.local_nodes().iter().filter(|node| node.id != config.node);
    let nodes = others.map(|node| Known {
        key: PeerKey::Node(node.id),
        addr: node.addr.ip(),
        port: 0,
        wanted: true,
        compress: None,
    });
    let sites = runsites_here(config).flat_map(|(resource, here)| {
        let others = resource.runsites.iter().filter(|runsite| runsite.site != config.site);
        others.map(|there| Known {
            key: PeerKey::Site(resource.id, there.site),
            addr: there.addr.ip(),
            port: here.addr.port(),
            wanted: false,
            compress: here.compress,
        })
    });
    nodes.chain(sites).collect()
}

/// What the core is told of the configuration.
pub(super) fn settings(config: &Config, check_modules: bool) -> Settings {
    Settings {
        peers: known(config).iter().map(|known| (known.key, role(config, known.key))).collect(),
        resources: runsites_here(config).map(|(resource, _)| resource.id).collect(),
        ping_interval: config.ping_interval,
        max_ping_count: config.max_ping_count,
        slow_timeout: config.slow_timeout,
        check_modules,
        seed: fastrand::u64(..),
    }
}

/// Who calls: the larger id of the two.
fn role(config: &Config, peer: PeerKey) -> Role {
    let calls = match peer {
        PeerKey::Node(node) => node < config.node,
        PeerKey::Site(_, site) => site < config.site,
    };
    if calls { Role::Caller } else { Role::Acceptor }
}

/// Where to listen for other sites: the floating addresses may not be here yet, so it is the wildcard
/// address, once for each port.
pub(super) fn listeners(config: &Config) -> Vec<SocketAddr> {
    let here: Vec<SocketAddr> = runsites_here(config).map(|(_, runsite)| runsite.addr).collect();
    let mut ports = BTreeSet::new();
    ports.extend(here.iter().map(SocketAddr::port));
    let listener = |port| {
        let v6 = here.iter().any(|addr| addr.port() == port && addr.is_ipv6());
        let any = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { IpAddr::from(Ipv4Addr::UNSPECIFIED) };
        SocketAddr::new(any, port)
    };
    ports.into_iter().map(listener).collect()
}

/// Where a peer is called, and from which address.
pub(super) fn call(config: &Config, peer: PeerKey) -> Option<(SocketAddr, IpAddr)> {
    match peer {
        PeerKey::Node(id) => {
            let node = config.local_nodes().iter().find(|node| node.id == id)?;
            Some((node.addr, config.local_ip()?))
        }
        PeerKey::Site(id, site) => {
            let resource = config.resources.iter().find(|resource| resource.id == id)?;
            Some((resource.runsite(site)?.addr, resource.runsite(config.site)?.addr.ip()))
        }
    }
}

/// Whether a held address can be called from. An IPv6 address cannot as long as the system still asks whether
/// another machine has it; the address watch tells when that is over.
fn is_ready(held: IpAddr) -> bool {
    let refused = |error: std::io::Error| error.kind() == std::io::ErrorKind::AddrNotAvailable;
    held.is_ipv4() || !UdpSocket::bind((held, 0)).is_err_and(refused)
}

impl Timer {
    /// Looks which floating addresses this machine holds, and tells the core what changed.
    pub(super) fn check_ownership(&mut self, actions: &mut Vec<Action>) {
        let before = self.switch.table().owned.clone();
        if before.is_empty() && runsites_here(&self.config).next().is_none() {
            return;
        }
        let held: Vec<IpAddr> = match if_addrs::get_if_addrs() {
            Ok(interfaces) => interfaces.iter().map(if_addrs::Interface::ip).collect(),
            Err(error) => {
                return limited!(
                    Level::Error,
                    ("addresses", 0),
                    "cannot list this machine's addresses, log ownership stays as it is: {error}"
                );
            }
        };
        let owns = |addr: IpAddr| held.contains(&addr) && is_ready(addr);
        let mut owned = BTreeSet::new();
        owned.extend(
            runsites_here(&self.config)
                .filter(|(_, here)| owns(here.addr.ip()))
                .map(|(resource, _)| resource.id),
        );
        if owned == before {
            return;
        }
        let mut news = Vec::new();
        for (resource, here) in runsites_here(&self.config) {
            match (before.contains(&resource.id), owned.contains(&resource.id)) {
                (false, true) => news.push((resource, here, "log owner now", "is here")),
                (true, false) => news.push((resource, here, "log owner no longer", "is gone")),
                _ => {}
            }
        }
        let news = news.into_iter().map(|(resource, here, what, address)| {
            let (what, why) = (format!("{} ({}): {what}", resource.id, resource.name), here.addr.ip());
            (what, format!("{why} {address}"))
        });
        for (what, why) in news.collect::<Vec<_>>() {
            info!("{what}, {why}");
            self.note_daemon(&what, &why);
        }
        self.switch.set_owned(owned);
        self.apply_wanted(actions);
    }
}
