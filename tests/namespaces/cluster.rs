//! Configuration files with two sites and resources, and their daemons with kernel modules in the network.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Output};

use super::kernel::SiteKernel;
use super::net::{ALL, NAMES, Network, SERVER, SITE_PORT, floating, node, own_ip, site};
use crate::support::{ConfigFile, Daemon, PATIENCE, Packet, TempDir, bit, kind};

/// A resource: its id, and address and port at sites 0 and 1.
pub type Resource = (u8, [SocketAddr; 2]);

/// A resource at its IPv4 addresses and the port of all.
pub fn resource(id: u8) -> Resource {
    (id, [0, 1].map(|site| (floating(site, id), SITE_PORT).into()))
}

/// A hadm.xml: callers checked by address, heartbeats so slow that a busy machine ends no session; later
/// values of `global` win.
pub fn config(resources: &[Resource], global: &[(&str, &str)]) -> ConfigFile {
    let server = (SERVER.ip().to_string(), SERVER.port().to_string());
    let mut values = vec![
        ("serverip", &*server.0),
        ("serverport", &*server.1),
        ("pingtimeout", "1"),
        ("maxpingcount", "5"),
        ("peeraddr", "strict"),
    ];
    values.retain(|(name, _)| global.iter().all(|(other, _)| other != name));
    let mut xml = String::from("<hadm>\n<global>\n");
    for (name, value) in values.iter().chain(global) {
        writeln!(xml, "  <{name}>{value}</{name}>").unwrap();
    }
    xml += "</global>\n<sites>\n";
    for id in [0, 1] {
        writeln!(xml, "<site><id>{id}</id><mode>share</mode><nodes>").unwrap();
        for at in ALL.into_iter().filter(|&at| site(at) == id) {
            let (node, name, ip) = (node(at), NAMES[at], own_ip(at));
            writeln!(xml, "  <node><id>{node}</id><hostname>{name}</hostname><ipaddr>{ip}</ipaddr><port>7000</port></node>")
                .unwrap();
        }
        xml += "</nodes></site>\n";
    }
    xml += "</sites>\n<resources>\n";
    for (id, addrs) in resources {
        writeln!(xml, "<resource><id>{id}</id><name>r{id}</name><runsites>").unwrap();
        for (site, addr) in addrs.iter().enumerate() {
            let (ip, port) = (addr.ip(), addr.port());
            writeln!(
                xml,
                "  <runsite><id>{site}</id><ip>{ip}</ip><port>{port}</port><protocol>async</protocol>\
                 <disk>/dev/sdb</disk><bwr_disk>/dev/sdc</bwr_disk><runnodes><id>0</id><id>1</id></runnodes></runsite>"
            )
            .unwrap();
        }
        xml += "</runsites></resource>\n";
    }
    xml += "</resources>\n</hadm>\n";
    let dir = TempDir::new();
    let path = dir.path.join("hadm.xml");
    std::fs::write(&path, xml).unwrap();
    ConfigFile { dir, path }
}

/// One machine's daemon and the kernel module attached to it.
pub struct Seat {
    pub kernel: SiteKernel,
    pub daemon: Daemon,
}

impl Seat {
    /// Starts both.
    #[track_caller]
    pub fn start(net: &Network, config: &ConfigFile, at: usize) -> Self {
        Self::start_as(net, config, at, Daemon::binary())
    }

    /// Starts both; `command` is the daemon's, up to its options.
    #[track_caller]
    pub fn start_as(net: &Network, config: &ConfigFile, at: usize, mut command: Command) -> Self {
        command.arg("-c").arg(&config.path).args(["--hostname", NAMES[at]]);
        command.args(["--no-kmod-check", "--log", "stderr", "-v", "--control"]);
        command.arg(config.dir.path.join(NAMES[at]));
        net.machines[at].inside(|| {
            let daemon = Daemon::spawn(&mut command, NAMES[at]);
            daemon.wait_log(" ready:", PATIENCE);
            let kernel = SiteKernel::attach(NAMES[at], SERVER, site(at), node(at));
            // Until it has its first state it is not attached, and a session would lose its data.
            kernel.wait_count(super::Whom::Nodes, 1);
            Seat { kernel, daemon }
        })
    }
}

/// All four machines at work.
pub struct Cluster {
    pub seats: [Seat; 4],
    pub net: Network,
    config: ConfigFile,
}

impl Cluster {
    /// Starts the cluster; `owners` has for each resource its log owners at sites 0 and 1. Does not wait for
    /// links. `None` where there can be no namespaces.
    #[track_caller]
    pub fn start(resources: &[Resource], owners: &[[usize; 2]]) -> Option<Self> {
        Self::start_with(resources, owners, &[])
    }

    /// The same with values for `global`.
    #[track_caller]
    pub fn start_with(
        resources: &[Resource],
        owners: &[[usize; 2]],
        global: &[(&str, &str)],
    ) -> Option<Self> {
        let config = config(resources, global);
        Self::start_from(config, resources, owners)
    }

    /// The same with a configuration file of these resources.
    #[track_caller]
    pub fn start_from(config: ConfigFile, resources: &[Resource], owners: &[[usize; 2]]) -> Option<Self> {
        let net = Network::new()?;
        for ((_, addrs), owners) in resources.iter().zip(owners) {
            for (addr, &owner) in addrs.iter().zip(owners) {
                net.add(owner, addr.ip());
            }
        }
        let seats = ALL.map(|at| Seat::start(&net, &config, at));
        Some(Cluster { seats, net, config })
    }

    /// The kernel module of a machine.
    pub fn kernel(&self, at: usize) -> &SiteKernel {
        &self.seats[at].kernel
    }

    /// Carries a data and a meta packet of a resource each way between two log owners.
    #[track_caller]
    pub fn assert_carries(&self, resource: u8, a: usize, b: usize, seq: u64) {
        for (from, to) in [(a, b), (b, a)] {
            let mask = bit(site(to));
            let (data, meta) = (site_data(seq, resource, mask, 100), site_meta(seq, resource, mask));
            self.kernel(from).data.send(&data);
            self.kernel(from).meta.send(&meta);
            assert_eq!(self.kernel(to).data.recv(), data, "{} to {}", NAMES[from], NAMES[to]);
            assert_eq!(self.kernel(to).meta.recv(), meta, "{} to {}", NAMES[from], NAMES[to]);
        }
    }

    /// Writes a configuration with other resources over the one in force.
    pub fn rewrite(&self, resources: &[Resource]) {
        std::fs::copy(config(resources, &[]).path, &self.config.path).unwrap();
    }

    /// Runs `hadmctl` for a machine's daemon.
    pub fn hadmctl(&self, at: usize, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
        command.arg("--control").arg(self.config.dir.path.join(NAMES[at])).args(args).output().unwrap()
    }

    /// Ends every daemon in order, and checks their counters.
    #[track_caller]
    pub fn stop(self) {
        for seat in self.seats {
            seat.daemon.stop();
        }
    }
}

/// Waits until both owners of a resource have heard of each other, and so has every machine of its nodes.
#[track_caller]
pub fn wait_linked(cluster: &Cluster, resource: u8, owners: [usize; 2]) {
    for at in ALL {
        let other = 1 - site(at);
        let sites = if owners.contains(&at) { bit(other) } else { 0 };
        cluster.kernel(at).wait_state(super::Whom::Sites(resource), sites);
        cluster.kernel(at).wait_state(super::Whom::Nodes, bit(1 - node(at)));
    }
}

/// A data packet of a resource for sites; the kernel module leaves node_type 0 in these, too.
pub fn site_data(seq: u64, resource: u8, sites: u32, len: usize) -> Packet {
    Packet::filled(kind::SD_DATA, seq, len).with_dev(resource).with_to(sites)
}

/// A meta packet of a resource for sites.
pub fn site_meta(seq: u64, resource: u8, sites: u32) -> Packet {
    Packet::filled(kind::SC_STATE, seq, 0).with_dev(resource).with_to(sites)
}
