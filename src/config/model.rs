//! What a configuration says, after every check: ids are in range and unique, addresses are addresses.

use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;

use crate::keys::Keys;
use crate::wire::{Compression, NodeId, ResourceId, SiteId};

/// A checked configuration, seen from the local node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the kernel module connects (`serverip`, `serverport`).
    pub server: SocketAddr,
    /// The kernel module's own command port, 0 where the file has none. The daemon only keeps it.
    pub kmod_port: u16,
    /// Time between two pings on a session, at least 10 ms.
    pub ping_interval: Duration,
    /// Unanswered pings that end a session, at least 1.
    pub max_ping_count: u32,
    /// Longest payload of a packet in bytes (`maxpacket`, default 16 MiB).
    pub max_packet: u32,
    /// How long a peer's full data queue may hold up the others (`slowtimeout`, default 10 s).
    pub slow_timeout: Duration,
    /// Whether a caller must come from its configured address (`peeraddr`).
    pub peer_addr: PeerAddr,
    /// The keys for encrypted links (`authkey`); `None`: links are not encrypted.
    pub keys: Option<Keys>,
    /// Where metrics can be scraped over HTTP (`metrics`).
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

/// Element `site`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Its id.
    pub id: SiteId,
    /// How its nodes see their disks.
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
    /// Where it listens for nodes with larger ids.
    pub addr: SocketAddr,
}

/// Element `resource`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Its id, the packets' `dev_id`.
    pub id: ResourceId,
    /// Its name.
    pub name: String,
    /// Where it runs, by site id.
    pub runsites: Vec<RunSite>,
}

/// Element `runsite`: a resource at one site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSite {
    /// The site.
    pub site: SiteId,
    /// The floating address and port at which that site's log owner listens for other sites.
    pub addr: SocketAddr,
    /// When a write counts as done.
    pub protocol: Protocol,
    /// How data between here and other sites is to be compressed, where they want the same (`compress`).
    pub compress: Option<Compression>,
    /// The mirrored disk.
    pub disk: String,
    /// The disk of the write-record buffer.
    pub bwr_disk: String,
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
    /// The local site.
    pub fn local_site(&self) -> Option<&Site> {
        self.sites.iter().find(|site| site.id == self.site)
    }

    /// The nodes of the local site, the local node among them.
    pub fn local_nodes(&self) -> &[Node] {
        self.local_site().map_or(&[], |site| &site.nodes)
    }

    /// The local node.
    pub fn local_node(&self) -> Option<&Node> {
        self.local_nodes().iter().find(|node| node.id == self.node)
    }

    /// The local node's own address.
    pub fn local_ip(&self) -> Option<IpAddr> {
        self.local_node().map(|node| node.addr.ip())
    }
}

impl Resource {
    /// The resource's runsite at this site.
    pub fn runsite(&self, site: SiteId) -> Option<&RunSite> {
        self.runsites.iter().find(|runsite| runsite.site == site)
    }
}
