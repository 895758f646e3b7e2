//! The place of a run: one network namespace a machine, one more for an unknown client, and a bridge, below a set of
//! namespaces that ends with the run. Nothing in here may be visible outside.
//!
//! ```text
//!   n0 10.66.0.10    n1 10.66.0.11    ...     unknown 10.66.0.99
//!     eth0             eth0                    eth0
//!       |                |                       |
//!   ====+================+======= bridge ========+====
//! ```

use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The address at which every kernel module connects: each machine has its own.
pub const SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9998);
/// Port of every node.
pub const NODE_PORT: u16 = 7000;
/// Port of every site, in runs in which each machine is a site of its own.
pub const SITE_PORT: u16 = 7100;
/// The machine that is nobody's peer.
pub const STRANGER: usize = 99;
/// Set in the environment of the process inside.
const INSIDE: &str = "HADM_CHAOS_INSIDE";

/// The address of a machine.
pub fn ip(machine: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 66, 0, if machine == STRANGER { 99 } else { 10 + machine as u8 })
}

/// The choices for the cluster, by the seed unless the environment says otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape {
    /// Each machine is a site of its own, and its packets are of resource 0. (`SITES=1` or 0)
    pub sites: bool,
    /// Links are encrypted. (`AUTHKEY=1` or 0)
    pub authkey: bool,
    /// Sites compress. (`COMPRESS=1` or 0)
    pub compress: bool,
    /// Few and small packets: no queue fills, so that no peer is taken for slow before it is taken for dead. (`FEW=1`
    /// or 0)
    pub few: bool,
}

static SHAPE: OnceLock<Shape> = OnceLock::new();

impl Shape {
    /// Settles it for this run.
    pub fn choose(seed: u64) -> Self {
        let flag = |name, default| super::number(name, u64::from(default)) != 0;
        *SHAPE.get_or_init(|| Shape {
            sites: flag("SITES", seed % 3 == 2),
            authkey: flag("AUTHKEY", seed / 3 % 2 == 1) && cfg!(feature = "authkey"),
            compress: flag("COMPRESS", seed / 6 % 2 == 1),
            few: flag("FEW", seed % 4 == 0),
        })
    }

    /// As it was settled.
    pub fn get() -> Self {
        SHAPE.get().copied().unwrap_or_default()
    }

    /// Returns the address at which a peer is called.
    pub fn port(self) -> u16 {
        if self.sites { SITE_PORT } else { NODE_PORT }
    }

    /// Returns true if `nft` can drop packets here.
    pub fn can_drop() -> bool {
        static CAN: OnceLock<bool> = OnceLock::new();
        *CAN.get_or_init(|| works("nft", &["add table inet probe; delete table inet probe"]))
    }
}

/// A directory of this run's own, in memory.
pub fn dir() -> PathBuf {
    "/run/chaos".into()
}

fn works(program: &str, args: &[&str]) -> bool {
    let quiet = || Stdio::null();
    let status = Command::new(program).args(args).stdin(quiet()).stdout(quiet()).stderr(quiet()).status();
    status.is_ok_and(|status| status.success())
}

const NAMESPACES: [&str; 6] = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// Goes on in namespaces of its own, in which every process dies with the first.
///
/// # Errors
/// Why this cannot be.
pub fn enter() -> Result<(), &'static str> {
    if std::env::var_os(INSIDE).is_some() {
        run("mount", &["-t", "tmpfs", "chaos", "/run"]);
        fs::create_dir_all(dir()).unwrap();
        return Ok(());
    }
    match () {
        () if !rustix::process::geteuid().is_root() => return Err("needs root"),
        () if !works("ip", &["-Version"]) => return Err("needs `ip` (package iproute2)"),
        () if !works("unshare", &[&NAMESPACES[..], &["true"]].concat()) => {
            return Err("needs `unshare` and the right to make namespaces");
        }
        () => {}
    }
    let own = std::env::current_exe().unwrap();
    panic!("{}", Command::new("unshare").args(NAMESPACES).arg(own).env(INSIDE, "1").exec())
}

/// Runs a program to its end.
pub fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Carries out lines of `ip -batch`, on a machine or outside all of them. What fails is passed over with
/// `force`: the rest must be done.
pub fn ip_batch(machine: Option<usize>, lines: &str, force: bool) {
    let mut ip = Command::new("ip");
    if let Some(machine) = machine {
        ip.args(["-n", &format!("n{machine}")]);
    }
    if force {
        ip.arg("-force");
    }
    let mut ip = ip.args(["-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    ip.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = ip.wait_with_output().unwrap();
    assert!(output.status.success() || force, "{lines}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes the machines and the bridge; with `narrow`, sockets that hold little, so that the daemons' queues fill.
pub fn build(nodes: usize, narrow: bool) {
    let machines = || (0..nodes).chain([STRANGER]);
    let mut lines = String::from("link add bridge type bridge\nlink set bridge up\n");
    for machine in machines() {
        run("ip", &["netns", "add", &format!("n{machine}")]);
        lines += &format!("link add port{machine} type veth peer name eth0 netns n{machine}\n");
        lines += &format!("link set port{machine} master bridge up\n");
    }
    ip_batch(None, &lines, false);
    for machine in machines() {
        let lines = format!("link set lo up\nlink set eth0 up\naddr add {}/24 dev eth0\n", ip(machine));
        ip_batch(Some(machine), &lines, false);
        for limit in ["tcp_rmem", "tcp_wmem"].into_iter().filter(|_| narrow) {
            at(machine, || fs::write(format!("/proc/sys/net/ipv4/{limit}"), "4096 16384 65536").unwrap());
        }
    }
}

/// Moves this thread to a machine: what it opens and starts from now on is there.
pub fn go_to(machine: usize) {
    let net = File::open(format!("/run/netns/n{machine}")).unwrap();
    move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}

/// Runs `act` on a thread of a machine.
pub fn at<T: Send>(machine: usize, act: impl FnOnce() -> T + Send) -> T {
    let there = || {
        go_to(machine);
        act()
    };
    thread::scope(|scope| scope.spawn(there).join()).unwrap()
}
