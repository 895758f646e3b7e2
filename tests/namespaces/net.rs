//! Machines for the tests of sites: network namespaces, each with one interface, on one bridge.
//!
//! ```text
//!   site 0: 10.77.0.0/24, fd77::0:0/112          site 1: 10.77.1.0/24, fd77::1:0/112
//!   a0 10.77.0.10       a1 10.77.0.11            b0 10.77.1.10       b1 10.77.1.11
//!     eth0                eth0                     eth0                eth0
//!       |                   |                        |                   |
//!   ====+===================+======= bridge =========+===================+====
//!
//!   floating: 10.77.0.100 + n and fd77::0:100 + n of resource n at site 0, the same with 1 at site 1
//! ```
//! A namespace lasts as long as the process that holds it, and that one ends when its stdin does: nothing
//! is left behind, however a test ends. Needs root; without, tests say so and pass.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Port of every runsite, unless a test says otherwise.
pub const SITE_PORT: u16 = 7100;
/// The address at which every kernel module connects: each machine has its own.
pub const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9998);

/// The machines by their place in [`Network::machines`].
pub const A0: usize = 0;
pub const A1: usize = 1;
pub const B0: usize = 2;
pub const B1: usize = 3;
pub const ALL: [usize; 4] = [A0, A1, B0, B1];
pub const NAMES: [&str; 4] = ["a0", "a1", "b0", "b1"];

/// The site of a machine.
pub const fn site(machine: usize) -> u8 {
    machine as u8 / 2
}

/// The node id of a machine.
pub const fn node(machine: usize) -> u8 {
    machine as u8 % 2
}

/// A machine's own address.
pub const fn own_ip(machine: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, site(machine), 10 + node(machine))
}

/// The floating address of a resource at a site.
pub const fn floating(site: u8, resource: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, site, 100 + resource)
}

/// The same of a resource that runs over IPv6.
pub const fn floating_v6(site: u8, resource: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, site as u16, 0x100 + resource as u16)
}

/// One namespace.
pub struct Machine {
    holder: Child,
    net: File,
}

impl Machine {
    fn new() -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The line comes from within.
        holder.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let net = File::open(format!("/proc/{}/ns/net", holder.id())).unwrap();
        Machine { holder, net }
    }

    /// Runs `act` on a thread in the namespace: what it opens and starts is in there.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            move_into_link_name_space(self.net.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            act()
        };
        thread::scope(|scope| scope.spawn(enter).join()).unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Carries out lines of `ip -batch`.
    #[track_caller]
    pub fn ip(&self, lines: &str) {
        let output = self.inside(|| {
            let piped = || Stdio::piped();
            let mut ip = Command::new("ip")
                .args(["-batch", "-"])
                .stdin(piped())
                .stdout(piped())
                .stderr(piped())
                .spawn()
                .unwrap();
            ip.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
            ip.wait_with_output().unwrap()
        });
        assert!(output.status.success(), "{lines}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// The four machines and the bridge between them.
pub struct Network {
    pub machines: [Machine; 4],
    _bridge: Machine,
}

/// The reason why there can be no namespaces here.
fn missing() -> Option<&'static str> {
    let works = |program: &str, args: &[&str]| {
        let quiet = || Stdio::null();
        let status = Command::new(program).args(args).stdin(quiet()).stdout(quiet()).stderr(quiet()).status();
        status.is_ok_and(|status| status.success())
    };
    match () {
        () if !rustix::process::geteuid().is_root() => Some("needs root"),
        () if !works("ip", &["-Version"]) => Some("needs `ip` (package iproute2)"),
        () if !works("unshare", &["--net", "true"]) => Some("needs `unshare` and the right to use it"),
        () => None,
    }
}

impl Network {
    /// The network as drawn, without any floating address; `None`, and a line that says why, where this
    /// cannot be.
    pub fn new() -> Option<Self> {
        if let Some(missing) = missing() {
            let name = thread::current().name().unwrap_or_default().to_string();
            // Not the macro, whose output is shown for failed tests alone.
            let _ = writeln!(std::io::stderr(), "skipped: {missing}: {name}");
            return None;
        }
        let bridge = Machine::new();
        let machines = NAMES.map(|_| Machine::new());
        let mut lines = String::from("link add bridge type bridge\nlink set bridge up\n");
        for (name, machine) in NAMES.iter().zip(&machines) {
            let holder = machine.holder.id();
            lines += &format!("link add {name} type veth peer name eth0 netns {holder}\n");
            lines += &format!("link set {name} master bridge up\n");
        }
        bridge.ip(&lines);
        for (at, machine) in machines.iter().enumerate() {
            let (site, node) = (site(at), node(at));
            machine.ip(&format!(
                "link set lo up\nlink set eth0 up\naddr add {}/16 dev eth0\naddr add fd77::{site}:1{node}/64 dev eth0 nodad\n",
                own_ip(at)
            ));
        }
        Some(Network { machines, _bridge: bridge })
    }

    /// Gives a machine an address.
    #[track_caller]
    pub fn add(&self, machine: usize, addr: impl Into<IpAddr>) {
        let line = match addr.into() {
            IpAddr::V4(addr) => format!("addr add {addr}/16 dev eth0\n"),
            // Without the search for duplicates it can be used at once.
            IpAddr::V6(addr) => format!("addr add {addr}/64 dev eth0 nodad\n"),
        };
        self.machines[machine].ip(&line);
    }

    /// Takes an address from a machine.
    #[track_caller]
    pub fn remove(&self, machine: usize, addr: impl Into<IpAddr>) {
        let addr = addr.into();
        let bits = if addr.is_ipv4() { 16 } else { 64 };
        self.machines[machine].ip(&format!("addr del {addr}/{bits} dev eth0\n"));
    }

    /// Moves an address, as a cluster manager does: the others forget at which machine it was, which is
    /// what its gratuitous ARP is for.
    #[track_caller]
    pub fn move_address(&self, addr: impl Into<IpAddr>, from: usize, to: usize) {
        let addr = addr.into();
        self.remove(from, addr);
        self.add(to, addr);
        for at in ALL.into_iter().filter(|&at| at != to) {
            self.machines[at].ip(&format!("neigh flush to {addr} dev eth0\n"));
        }
    }
}
