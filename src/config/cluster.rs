//! `/hadm/sites` and `/hadm/resources`: the part of the file that is the same on every node.
//!
//! Reads and checks both, ids as ids and never as positions. Ids refer only to elements that could be read: where an
//! id itself is wrong, references are not judged, so that one mistake gives one error. Called by `file`.

use std::net::SocketAddr;

use super::element::Element;
use super::listeners::{Listener, What};
use super::mirror::{self, Mirror};
use super::model::{Mode, Node, Protocol, Resource, RunSite, Site};
use super::problem::NO_NODE;
use super::value::{Resolver, absolute, address, choice, id, port, text};
use super::{add_new, in_order};
use crate::wire::{Compression, MAX_IDS, NodeId, ResourceId, SiteId};

const IDS: usize = MAX_IDS as usize;

pub(super) struct Cluster<'r, 'a> {
    resolve: &'r Resolver<'r>,
    /// The places where something listens, in the order of the file.
    pub(super) listeners: Vec<Listener<'a>>,
    site_ids: Vec<SiteId>,
    node_ids: Vec<(Option<SiteId>, NodeId)>,
    ids_unread: bool,
    hosts: Vec<Host>,
    hosts_unread: bool,
}

/// A host name of the file, with the number of its `site` element.
struct Host {
    name: String,
    site: usize,
}

impl<'r, 'a> Cluster<'r, 'a> {
    /// Begins with the places where the rest of the file listens.
    pub(super) fn new(resolve: &'r Resolver<'r>, listeners: Vec<Listener<'a>>) -> Self {
        Cluster {
            resolve,
            listeners,
            site_ids: Vec::new(),
            node_ids: Vec::new(),
            ids_unread: false,
            hosts: Vec::new(),
            hosts_unread: false,
        }
    }

    /// Reads `sites`. The result is complete only if no error was noted.
    pub(super) fn sites(&mut self, sites: Element<'a>) -> Vec<Site> {
        sites.holds_only(&["site"]);
        let elements = sites.list("site", 1..=IDS).enumerate();
        self.note_unread(sites, "site");
        in_order(elements.filter_map(|(i, site)| self.site(site, i)), |site| site.id)
    }

    fn site(&mut self, site: Element<'a>, number: usize) -> Option<Site> {
        // C daemons read neither address nor port of a site.
        site.holds_only(&["id", "mode", "ipaddr", "port", "nodes"]);
        let id = site.get_unique("id", id(SiteId::LAST), &mut self.site_ids, "another site");
        self.ids_unread |= id.is_none();
        // Older files say "stand along".
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

    fn nodes(&mut self, nodes: Element<'a>, site: Option<SiteId>, number: usize) -> Vec<Node> {
        nodes.holds_only(&["node"]);
        let (mut ids, mut names, mut addrs) = (Vec::new(), Vec::new(), Vec::new());
        let elements = nodes.list("node", 1..=IDS);
        self.note_unread(nodes, "node");
        let node = |el: Element<'a>| {
            el.holds_only(&["id", "hostname", "ipaddr", "port"]);
            let id = el.get_unique("id", id(NodeId::LAST), &mut ids, "another node of this site");
            match id {
                Some(id) => _ = add_new(&mut self.node_ids, (site, id)),
                None => self.ids_unread = true,
            }
            let hostname = el.required("hostname").and_then(|name_el| {
                let name = name_el.read(text)?;
                if !add_new(&mut names, name.to_ascii_lowercase()) {
                    name_el.refuse_again("another node of this site");
                }
                self.hosts.push(Host { name: name.clone(), site: number });
                Some(name)
            });
            self.hosts_unread |= hostname.is_none();
            let addr = self.socket_addr(el, "ipaddr");
            self.listen(el, ["ipaddr", "port"], addr, site.map(What::Node));
            if let Some(addr) = addr.filter(|addr| !add_new(&mut addrs, *addr)) {
                el.error(format!(
                    "<node> listens at {addr}, as another node of this site does; give each its own"
                ));
            }
            Some(Node { id: id?, hostname: hostname?, addr: addr? })
        };
        elements.filter_map(node).collect()
    }

    /// Notes that the elements of a list that is too long are not known.
    fn note_unread(&mut self, list: Element<'_>, name: &str) {
        let unread = list.named(name).nth(IDS).is_some();
        self.ids_unread |= unread;
        self.hosts_unread |= unread;
    }

    fn socket_addr(&self, el: Element<'_>, ip: &str) -> Option<SocketAddr> {
        let ip = el.get(ip, address(self.resolve));
        let port = el.get("port", port);
        Some(SocketAddr::new(ip?, port?))
    }

    /// Notes that an element makes a machine listen, with the children that have its address and its port.
    fn listen(
        &mut self,
        el: Element<'a>,
        [ip, port]: [&str; 2],
        addr: Option<SocketAddr>,
        what: Option<What>,
    ) {
        if let (Some(addr), Some(what), Some(ip), Some(port)) = (addr, what, el.find(ip), el.find(port)) {
            self.listeners.push(Listener { addr, what, ip, port });
        }
    }

    /// Returns the local node by its host name, from the sites that were read.
    pub(super) fn local(&self, at: Element<'_>, sites: &[Site], hostname: &str) -> Option<(SiteId, NodeId)> {
        let is_local = |name: &str| name.eq_ignore_ascii_case(hostname);
        let mut places = self.hosts.iter().filter(|host| is_local(&host.name)).map(|host| host.site);
        match (places.next(), places.next_back()) {
            (None, _) if !self.hosts_unread && !self.hosts.is_empty() => {
                let names: Vec<_> = self.hosts.iter().map(|host| host.name.as_str()).collect();
                at.error(format!(
                    "{NO_NODE} {hostname:?} (there are: {}); correct a <hostname>, or \
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

    /// Reads `resources`, after `sites`. The result is complete only if no error was noted.
    pub(super) fn resources(&mut self, resources: Element<'a>) -> Vec<Resource> {
        resources.holds_only(&["resource"]);
        let (mut ids, mut exports) = (Vec::new(), Vec::new());
        let elements = resources.list("resource", 0..=usize::from(ResourceId::LAST) + 1);
        in_order(
            elements.filter_map(|resource| self.resource(resource, &mut ids, &mut exports)),
            |resource| resource.id,
        )
    }

    fn resource(
        &mut self,
        resource: Element<'a>,
        ids: &mut Vec<ResourceId>,
        exports: &mut Vec<(SiteId, SocketAddr)>,
    ) -> Option<Resource> {
        resource.holds_only(&[&["id", "name", "runsites"], &mirror::NAMES[..]].concat());
        let id = resource.get_unique("id", id(ResourceId::LAST), ids, "another resource");
        let name = resource.get("name", text);
        let runsites = resource.required("runsites")?;
        runsites.holds_only(&["runsite"]);
        let outer = mirror::read(resource, &Mirror::default());
        let mut sites = Vec::new();
        let elements = runsites.list("runsite", 1..=IDS);
        let runsites =
            elements.filter_map(|runsite| self.runsite(runsite, (resource, id, outer.as_ref()), &mut sites));
        let runsites = in_order(runsites, |runsite| runsite.site);
        let witnesses = runsites.iter().filter(|at| at.witness.is_some()).count();
        let voters =
            runsites.iter().filter(|at| at.witness.is_none() && at.protocol == Protocol::Sync).count();
        if witnesses > 1 || witnesses == 1 && (voters < 2 || voters % 2 == 1) {
            resource.error(format!(
                "{witnesses} runsites of this resource have <witness>, and {voters} have disks and <protocol>sync</protocol>: one                  witness decides between two such sites, or four; add or remove a runsite"
            ));
        }
        let mut listeners = runsites.iter().filter_map(|at| Some((at.site, at.mirror.nbd?)));
        if let Some((site, addr)) = listeners.find(|export| !add_new(exports, *export)) {
            resource.error(format!(
                "<nbd> of this resource is {addr} at {site}, as another resource's is; give each its own"
            ));
        }
        Some(Resource { id: id?, name: name?, runsites })
    }

    fn runsite(
        &mut self,
        runsite: Element<'a>,
        (resource, resource_id, outer): (Element<'a>, Option<ResourceId>, Option<&Mirror>),
        sites: &mut Vec<SiteId>,
    ) -> Option<RunSite> {
        let known = ["id", "ip", "port", "protocol", "compress", "disk", "bwr_disk", "witness", "runnodes"];
        runsite.holds_only(&[&known, &mirror::NAMES[..]].concat());
        let site = runsite.required("id").and_then(|el| {
            let site = el.read_unique(id(SiteId::LAST), sites, "another runsite of this resource")?;
            if !self.ids_unread && !self.site_ids.contains(&site) {
                el.refuse("no site has this id; write the id of a <site>");
                return None;
            }
            Some(site)
        });
        let addr = self.socket_addr(runsite, "ip");
        let what = resource_id.zip(site).map(|(resource, site)| What::RunSite(resource, site));
        self.listen(runsite, ["ip", "port"], addr, what);
        let words = [("async", Protocol::Async), ("sync", Protocol::Sync)];
        let protocol = runsite.get("protocol", choice(words, "async or sync"));
        let words = [(Compression::Lz4.name(), Some(Compression::Lz4))];
        let compress = runsite.get_or("compress", None, choice(words, "lz4, or left out for no compression"));
        let witness = runsite.get_or("witness", None, |value| absolute(value).map(Some));
        let disk_of = |name| match runsite.find(name) {
            None if runsite.find("witness").is_some() => Some(String::new()),
            Some(el) if runsite.find("witness").is_some() => {
                el.refuse(&format!(
                    "a site with <witness> has no disk: leave out <{name}>, or <witness>, where the site has a copy"
                ));
                None
            }
            _ => runsite.get(name, text),
        };
        let (disk, bwr_disk) = (disk_of("disk"), disk_of("bwr_disk"));
        let mirror = mirror::read(runsite, outer.unwrap_or(&Mirror::default()));
        let nbd = mirror.as_ref().and_then(|mirror| mirror.nbd);
        let of = if runsite.find("nbd").is_some() { runsite } else { resource };
        self.listen(of, ["nbd", "nbd"], nbd, site.map(What::Nbd));
        let run_nodes = runsite.required("runnodes").map(|run_nodes| self.run_nodes(run_nodes, site));
        Some(RunSite {
            site: site?,
            addr: addr?,
            protocol: protocol?,
            compress: compress?,
            disk: disk?,
            bwr_disk: bwr_disk?,
            witness: witness?,
            mirror: mirror?,
            run_nodes: run_nodes?,
        })
    }

    fn run_nodes(&self, run_nodes: Element<'_>, site: Option<SiteId>) -> Vec<NodeId> {
        run_nodes.holds_only(&["id"]);
        let mut ids = Vec::new();
        for el in run_nodes.list("id", 1..=IDS) {
            let node = el.read_unique(id(NodeId::LAST), &mut ids, "another runnode of this runsite");
            let Some((site, node)) = site.zip(node) else { continue };
            if !self.ids_unread && !self.node_ids.contains(&(Some(site), node)) {
                el.refuse(&format!("{site} has no node of this id; write the id of a <node> of that site"));
            }
        }
        ids
    }
}
