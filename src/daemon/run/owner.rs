//! A configuration as the core and the reactor get it: peers, resources, listeners, and the model that a reload
//! compares.
//!
//! Pure: everything here follows from a [`Config`] alone. Used by the timer thread and its snapshots.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::key_list;
use crate::config::keys::Keys;
use crate::config::{Config, KernelUser, Resource, RunSite};
use crate::daemon::core::reload::{Configured, Place};
use crate::daemon::core::{AllowedPeer, Role, Settings};
use crate::wire::{Compression, PeerKey, ResourceId};

/// Returns the resources that have a runsite at the local site, each with it.
pub(super) fn runsites_here(config: &Config) -> impl Iterator<Item = (&Resource, &RunSite)> {
    config.resources.iter().filter_map(|resource| Some((resource, resource.runsite(config.site)?)))
}

/// Returns every peer: the other nodes of the local site, and the other sites of each local resource.
pub(super) fn allowed(config: &Config) -> Vec<AllowedPeer> {
    let others = config.local_nodes().iter().filter(|node| node.id != config.node);
    let nodes = others.map(|node| AllowedPeer {
        key: PeerKey::Node(node.id),
        addr: node.addr.ip(),
        at: None,
        wanted: true,
        held: false,
        compress: None,
    });
    let sites = runsites_here(config).flat_map(|(resource, here)| {
        let others = resource.runsites.iter().filter(|runsite| runsite.site != config.site);
        others.map(|there| AllowedPeer {
            key: PeerKey::Site(resource.id, there.site),
            addr: there.addr.ip(),
            at: Some(here.addr),
            wanted: false,
            held: false,
            compress: here.compress,
        })
    });
    nodes.chain(sites).collect()
}

/// Returns the core's settings.
pub(super) fn settings(config: &Config, check_modules: bool) -> Settings {
    Settings {
        peers: allowed(config).iter().map(|allowed| (allowed.key, role(config, allowed.key))).collect(),
        resources: runsites_here(config).map(|(resource, here)| (resource.id, here.addr.ip())).collect(),
        ping_interval: config.ping_interval,
        max_ping_count: config.max_ping_count,
        slow_timeout: config.slow_timeout,
        kernel_users: kernel_users(config),
        check_modules,
        seed: fastrand::u64(..),
    }
}

/// Returns the users that may attach as the kernel module.
fn kernel_users(config: &Config) -> Option<Vec<u32>> {
    let mut users = vec![0, rustix::process::geteuid().as_raw()];
    match config.kernel_user {
        KernelUser::Any => return None,
        KernelUser::Own => {}
        KernelUser::Also(uid) => users.push(uid),
    }
    Some(users)
}

/// Returns the caller of the two sides: the larger id calls.
pub(super) fn role(config: &Config, peer: PeerKey) -> Role {
    let calls = match peer {
        PeerKey::Node(node) => node < config.node,
        PeerKey::Site(_, site) => site < config.site,
    };
    if calls { Role::Caller } else { Role::Acceptor }
}

/// Returns the addresses at which to listen for other sites: the floating addresses of the owned resources that other
/// sites have, too.
pub(super) fn listeners(config: &Config, owned: &BTreeSet<ResourceId>) -> BTreeSet<SocketAddr> {
    let here = runsites_here(config);
    let shared = here.filter(|(resource, _)| owned.contains(&resource.id) && resource.runsites.len() > 1);
    let mut addrs = BTreeSet::new();
    addrs.extend(shared.map(|(_, here)| here.addr));
    addrs
}

/// Returns the addresses that this machine needs for peers to reach the daemon, each with its purpose.
pub(super) fn own_addresses(config: &Config) -> impl Iterator<Item = (IpAddr, &'static str)> {
    let server = (config.server.ip(), "serverip");
    let node = config.local_ip().map(|addr| (addr, "ipaddr of this node"));
    let metrics = config.metrics.map(|addr| (addr.ip(), "metrics"));
    [Some(server), node, metrics].into_iter().flatten()
}

/// Returns the compression that is configured for the data of this peer; none of a node's.
pub(super) fn compression(config: &Config, peer: PeerKey) -> Option<Compression> {
    let PeerKey::Site(id, _) = peer else { return None };
    let resource = config.resources.iter().find(|resource| resource.id == id)?;
    resource.runsite(config.site)?.compress
}

/// Returns the address at which a peer is called, and the one from which it is called.
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

/// The keys as a reload compares them: by their secrets, and shown by their ids.
#[derive(PartialEq)]
pub(super) struct ComparedKeys<'a>(Option<&'a Keys>);

impl fmt::Display for ComparedKeys<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.map_or("none".into(), key_list))
    }
}

/// Returns the model that a reload compares.
pub(super) fn configured(config: &Config) -> Configured<ComparedKeys<'_>> {
    let meets = |allowed: &AllowedPeer| {
        let place = Place { port: allowed.at.map_or(0, |at| at.port()), call: call(config, allowed.key) };
        (allowed.key, place)
    };
    Configured {
        server: config.server,
        node: config.node,
        site: config.site,
        local: config.local_node().map(|node| node.addr),
        ping_interval: config.ping_interval,
        max_ping_count: config.max_ping_count,
        max_packet: config.max_packet,
        busy_poll: config.busy_poll,
        zero_copy: config.zero_copy,
        slow_timeout: config.slow_timeout,
        compress: runsites_here(config).map(|(resource, here)| (resource.id, here.compress)).collect(),
        kernel_user: format!("{:?}", config.kernel_user),
        peer_addr: format!("{:?}", config.peer_addr),
        metrics: config.metrics,
        keys: ComparedKeys(config.keys.as_ref()),
        resources: runsites_here(config).map(|(resource, here)| (resource.id, here.addr)).collect(),
        peers: allowed(config).iter().map(meets).collect(),
    }
}
