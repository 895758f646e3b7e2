//! `/hadm/sites` and `/hadm/resources`: the part of the file that is the same on every node.
//!
//! Reads and checks both, ids as ids and never as positions. Ids refer only to what could be read: where an id
//! itself is wrong, references are not judged, so that one slip gives one error. Called by `file`.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::element::Element;
use super::model::{Mode, Node, Protocol, Resource, RunSite, Site};
use super::value::{Resolver, address, choice, id, port, text};
use crate::wire::{ALL_DEVICES, Compression, MAX_IDS, NodeId, ResourceId, SiteId};

const IDS: usize = MAX_IDS as usize;

pub(super) struct Cluster<'r> {
    resolve: &'r Resolver<'r>,
    site_ids: BTreeSet<SiteId>,
    node_ids: BTreeSet<(Option<SiteId>, NodeId)>,
    ids_unread: bool,
    hosts: Vec<Host>,
    hosts_unread: bool,
}

/// A host name of the file, with the number of the `site` element it stands in.
struct Host {
    name: String,
    site: usize,
}

impl<'r> Cluster<'r> {
    pub(super) fn new(resolve: &'r Resolver<'r>) -> Self {
        Cluster {
            resolve,
            site_ids: BTreeSet::new(),
            node_ids: BTreeSet::new(),
            ids_unread: false,
            hosts: Vec::new(),
            hosts_unread: false,
        }
    }

    /// Reads `sites`. What comes back is whole only if no error was noted.
    pub(super) fn sites(&mut self, sites: Element<'_>) -> Vec<Site> {
        sites.holds_only(&["site"]);
        let elements = sites.list("site", 1..=IDS).enumerate();
        in_order(elements.filter_map(|(i, site)| self.site(site, i)), |site| site.id)
    }

    fn site(&mut self, site: Element<'_>, number: usize) -> Option<Site> {
        // C daemons read neither address nor port of a site.
        site.holds_only(&["id", "mode", "ipaddr", "port", "nodes"]);
        let id = site.get_unique("id", id(SiteId::LAST), &mut self.site_ids, "another site");
        self.ids_unread |= id.is_none();
        // "stand along" is what older files say.
        let words =
            [("share", Mode::Share), ("standalone", Mode::StandAlone), ("standalong", Mode::StandAlone)];
        let mode = site.get("mode", choice(words, "share or stand alone"));
        let nodes = site.required("nodes");
        // Without the list, nothing is known of the ids and names in it.
        self.ids_unread |= nodes.is_none();
        self.hosts_unread |= nodes.is_none();
        let nodes = in_order(self.nodes(nodes?, id, number).into_iter(), |node| node.id);
        Some(Site { id: id?, mode: mode?, nodes })
    }

    fn nodes(&mut self, nodes: Element<'_>, site: Option<SiteId>, number: usize) -> Vec<Node> {
        nodes.holds_only(&["node"]);
        let (mut ids, mut names, mut addrs) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let elements = nodes.list("node", 1..=IDS);
        let node = |el: Element<'_>| {
            el.holds_only(&["id", "hostname", "ipaddr", "port"]);
            let id = el.get_unique("id", id(NodeId::LAST), &mut ids, "another node of this site");
            match id {
                Some(id) => _ = self.node_ids.insert((site, id)),
                None => self.ids_unread = true,
            }
            let hostname = el.required("hostname").and_then(|name_el| {
                let name = name_el.read(text)?;
                if !names.insert(name.to_ascii_lowercase()) {
                    name_el.refuse("another node of this site has it already; give each its own");
                }
                self.hosts.push(Host { name: name.clone(), site: number });
                Some(name)
            });
            self.hosts_unread |= hostname.is_none();
            let addr = self.socket_addr(el, "ipaddr");
            if let Some(addr) = addr.filter(|addr| !addrs.insert(*addr)) {
                el.error(format!(
                    "<node> listens at {addr}, as another node of this site does; give each its own"
                ));
            }
            Some(Node { id: id?, hostname: hostname?, addr: addr? })
        };
        elements.filter_map(node).collect()
    }

    fn socket_addr(&self, el: Element<'_>, ip: &str) -> Option<SocketAddr> {
        let ip = el.get(ip, address(self.resolve));
        let port = el.get("port", port);
        Some(SocketAddr::new(ip?, port?))
    }

    /// Finds the local node by its host name, in the sites that were read.
    pub(super) fn local(&self, at: Element<'_>, sites: &[Site], hostname: &str) -> Option<(SiteId, NodeId)> {
        let is_local = |name: &str| name.eq_ignore_ascii_case(hostname);
        let mut places = self.hosts.iter().filter(|host| is_local(&host.name)).map(|host| host.site);
        match (places.next(), places.next_back()) {
            (None, _) if !self.hosts_unread && !self.hosts.is_empty() => {
                let names: Vec<_> = self.hosts.iter().map(|host| host.name.as_str()).collect();
                at.error(format!(
                    "no node has this machine's host name {hostname:?} (there are: {}); correct a <hostname>, or \
                     give the name to use with --hostname",
                    names.join(", ")
                ));
            }
            (Some(first), Some(last)) if first != last => at.error(format!(
                "nodes of two sites have this machine's host name {hostname:?}; give each its own, and the one \
                 to use with --hostname"
            )),
            _ => {}
        }
        let mut nodes = sites.iter().flat_map(|site| site.nodes.iter().map(|node| (site.id, node)));
        nodes.find(|(_, node)| is_local(&node.hostname)).map(|(site, node)| (site, node.id))
    }

    /// Reads `resources`, after `sites`. What comes back is whole only if no error was noted.
    pub(super) fn resources(&self, resources: Element<'_>) -> Vec<Resource> {
        resources.holds_only(&["resource"]);
        let mut ids = BTreeSet::new();
        let elements = resources.list("resource", 0..=usize::from(ALL_DEVICES));
        in_order(elements.filter_map(|resource| self.resource(resource, &mut ids)), |resource| resource.id)
    }

    fn resource(&self, resource: Element<'_>, ids: &mut BTreeSet<ResourceId>) -> Option<Resource> {
        resource.holds_only(&["id", "name", "runsites"]);
        let id = resource.get_unique("id", id(ResourceId::LAST), ids, "another resource");
        let name = resource.get("name", text);
        let runsites = resource.required("runsites")?;
        runsites.holds_only(&["runsite"]);
        let mut sites = BTreeSet::new();
        let elements = runsites.list("runsite", 1..=IDS);
        let runsites = elements.filter_map(|runsite| self.runsite(runsite, &mut sites));
        let runsites = in_order(runsites, |runsite| runsite.site);
        Some(Resource { id: id?, name: name?, runsites })
    }

    fn runsite(&self, runsite: Element<'_>, sites: &mut BTreeSet<SiteId>) -> Option<RunSite> {
        runsite.holds_only(&["id", "ip", "port", "protocol", "compress", "disk", "bwr_disk", "runnodes"]);
        let site = runsite.required("id").and_then(|el| {
            let site = el.read_unique(id(SiteId::LAST), sites, "another runsite of this resource")?;
            if !self.ids_unread && !self.site_ids.contains(&site) {
                el.refuse("no site has this id; write the id of a <site>");
                return None;
            }
            Some(site)
        });
        let addr = self.socket_addr(runsite, "ip");
        let words = [("async", Protocol::Async), ("sync", Protocol::Sync)];
        let protocol = runsite.get("protocol", choice(words, "async or sync"));
        let words = [(Compression::Lz4.name(), Some(Compression::Lz4))];
        let compress = runsite.get_or("compress", None, choice(words, "lz4, or left out for no compression"));
        let disk = runsite.get("disk", text);
        let bwr_disk = runsite.get("bwr_disk", text);
        let run_nodes = runsite.required("runnodes").map(|run_nodes| self.run_nodes(run_nodes, site));
        Some(RunSite {
            site: site?,
            addr: addr?,
            protocol: protocol?,
            compress: compress?,
            disk: disk?,
            bwr_disk: bwr_disk?,
            run_nodes: run_nodes?,
        })
    }

    fn run_nodes(&self, run_nodes: Element<'_>, site: Option<SiteId>) -> Vec<NodeId> {
        run_nodes.holds_only(&["id"]);
        let mut ids = BTreeSet::new();
        for el in run_nodes.list("id", 1..=IDS) {
            let node = el.read_unique(id(NodeId::LAST), &mut ids, "another runnode of this runsite");
            let Some((site, node)) = site.zip(node) else { continue };
            if !self.ids_unread && !self.node_ids.contains(&(Some(site), node)) {
                el.refuse(&format!("{site} has no node of this id; write the id of a <node> of that site"));
            }
        }
        ids.into_iter().collect()
    }
}

/// What was read, by id. There are few of each: a sort would be ten times the code.
fn in_order<T, K: Ord>(items: impl Iterator<Item = T>, id: impl Fn(&T) -> K) -> Vec<T> {
    let mut list = Vec::new();
    for item in items {
        list.insert(list.partition_point(|other| id(other) <= id(&item)), item);
    }
    list
}
