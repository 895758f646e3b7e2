//! The content of a configuration after every check: ids are in range and unique, addresses are addresses.
//!
//! Plain values; knows no XML. Used by the daemon and the tools.

use std::net::IpAddr;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::keys::Keys;
use crate::config::mirror::Mirror;
use crate::wire::{Compression, NodeId, PeerKey, ResourceId, SiteId};

/// A checked configuration, seen from the local node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The address at which the kernel module connects (`serverip`, `serverport`).
    pub server: SocketAddr,
    /// The kernel module's own command port, 0 where the file has none. The daemon only keeps it.
    pub kmod_port: u16,
    /// Time between two pings on a session, at least 10 ms.
    pub ping_interval: Duration,
    /// Unanswered pings that end a session, at least 1.
    pub max_ping_count: u32,
    /// Longest payload of a packet in bytes (`maxpacket`, default 16 MiB).
    pub max_packet: u32,
    /// Longest time that a peer may hold up the others in any ten times that time (`slowtimeout`, default 10 s).
    pub slow_timeout: Duration,
    /// Time for which a reader looks for further bytes before it sleeps (`busypoll`, at most 1 ms, default 0).
    pub busy_poll: Duration,
    /// True if large packets may go from link to link without a copy (`zerocopy`, default on).
    pub zero_copy: bool,
    /// The rule whether a caller must come from its configured address (`peeraddr`).
    pub peer_addr: PeerAddr,
    /// The users that may attach as the kernel module (`kerneluser`).
    pub kernel_user: KernelUser,
    /// The keys for encrypted links (`authkey`); `None`: links are not encrypted.
    pub keys: Option<Keys>,
    /// The address at which metrics can be scraped over HTTP (`metrics`).
    pub metrics: Option<SocketAddr>,
    /// The local node's id.
    pub node: NodeId,
    /// The local node's site.
    pub site: SiteId,
    /// Every site of the cluster, by id.
    pub sites: Vec<Site>,
    /// Every resource, by id.
    pub resources: Vec<Resource>,
}

/// Element `peeraddr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PeerAddr {
    /// A caller's source address must be the configured one.
    Strict,
    /// Any source address is accepted, with one warning a session (C daemons do not bind).
    #[default]
    Any,
}

/// Element `kerneluser`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KernelUser {
    /// Root, which owns the kernel's own sockets, and the daemon's own user.
    #[default]
    Own,
    /// This user, too.
    Also(u32),
    /// Every user, and every machine that reaches the port.
    Any,
}

/// Element `site`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Its id.
    pub id: SiteId,
    /// The way in which its nodes see their disks.
    pub mode: Mode,
    /// Its nodes, by id.
    pub nodes: Vec<Node>,
}

/// Element `mode` of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `share`.
    Share,
    /// `stand alone`, which older files spell `stand along`.
    StandAlone,
}

/// Element `node`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its id, unique within the site.
    pub id: NodeId,
    /// The machine's whole host name.
    pub hostname: String,
    /// The address at which it listens for nodes with larger ids.
    pub addr: SocketAddr,
}

/// Element `resource`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Its id, the packets' `dev_id`.
    pub id: ResourceId,
    /// Its name.
    pub name: String,
    /// Its runsites, by site id.
    pub runsites: Vec<RunSite>,
}

/// Element `runsite`: a resource at one site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSite {
    /// The site.
    pub site: SiteId,
    /// The floating address and port at which that site's log owner listens for other sites.
    pub addr: SocketAddr,
    /// The moment at which a write counts as done.
    pub protocol: Protocol,
    /// The compression of data between here and other sites, used where they want the same (`compress`).
    pub compress: Option<Compression>,
    /// The mirrored disk.
    pub disk: String,
    /// The disk of the write-record buffer.
    pub bwr_disk: String,
    /// The file of a site without disks that votes as witness (`witness`); its `disk` and `bwr_disk` are empty.
    pub witness: Option<PathBuf>,
    /// The settings of `hadm-nbd` there.
    pub mirror: Mirror,
    /// Nodes of that site that may run the resource.
    pub run_nodes: Vec<NodeId>,
}

/// Element `protocol` of a runsite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `async`.
    Async,
    /// `sync`.
    Sync,
}

impl Config {
    /// Returns the local site.
    pub fn local_site(&self) -> Option<&Site> {
        self.sites.iter().find(|site| site.id == self.site)
    }

    /// Returns the nodes of the local site, the local node among them.
    pub fn local_nodes(&self) -> &[Node] {
        self.local_site().map_or(&[], |site| &site.nodes)
    }

    /// Returns the local node.
    pub fn local_node(&self) -> Option<&Node> {
        self.local_nodes().iter().find(|node| node.id == self.node)
    }

    /// Returns the host names of a peer: of the node, or of the nodes of the site that may run the resource.
    pub fn hosts(&self, peer: PeerKey) -> Vec<&str> {
        let (site, runs): (SiteId, &[NodeId]) = match &peer {
            PeerKey::Node(node) => (self.site, std::slice::from_ref(node)),
            PeerKey::Site(resource, site) => {
                (*site, self.runsite(*resource, *site).map_or(&[], |at| &at.run_nodes))
            }
        };
        let nodes = self.sites.iter().find(|known| known.id == site).map_or(&[][..], |site| &site.nodes);
        let meant = nodes.iter().filter(|node| runs.contains(&node.id));
        meant.map(|node| node.hostname.as_str()).collect()
    }

    /// Returns a peer's name for people: a node's host name, or a site's resource and hosts, as `data at beta`.
    pub fn name(&self, peer: PeerKey) -> String {
        let hosts = match self.hosts(peer)[..] {
            [first, second, _, ..] => format!("{first}, {second}, ..."),
            ref few => few.join(", "),
        };
        match peer {
            PeerKey::Node(_) => hosts,
            PeerKey::Site(resource, _) => {
                format!("{} at {hosts}", self.resource_name(resource).unwrap_or_default())
            }
        }
    }

    /// Returns the name of a resource.
    pub fn resource_name(&self, id: ResourceId) -> Option<&str> {
        self.resources.iter().find(|resource| resource.id == id).map(|resource| resource.name.as_str())
    }

    fn runsite(&self, resource: ResourceId, site: SiteId) -> Option<&RunSite> {
        self.resources.iter().find(|known| known.id == resource)?.runsite(site)
    }

    /// Returns the local node's own address.
    pub fn local_ip(&self) -> Option<IpAddr> {
        self.local_node().map(|node| node.addr.ip())
    }
}

impl Resource {
    /// Returns the resource's runsite at this site.
    pub fn runsite(&self, site: SiteId) -> Option<&RunSite> {
        self.runsites.iter().find(|runsite| runsite.site == site)
    }

    /// Returns the site that has no disk and votes as witness.
    pub fn witness(&self) -> Option<SiteId> {
        self.runsites.iter().find(|at| at.witness.is_some()).map(|at| at.site)
    }

    /// Returns the sites with a disk, but for this one.
    pub fn others(&self, site: SiteId) -> impl Iterator<Item = SiteId> {
        let with_disk = self.runsites.iter().filter(move |at| at.witness.is_none() && at.site != site);
        with_disk.map(|at| at.site)
    }
}
