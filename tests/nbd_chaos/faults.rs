//! The faults: programs that end or stop, networks that are cut in one or both directions, disks that fail or are full;
//! and their ends.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;

use super::namespaces::Machine;
use super::sites::{Sites, machine};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    KillMirror(usize),
    KillDaemon(usize),
    /// Both: the machine is gone.
    KillSite(usize),
    StopMirror(usize),
    StopDaemon(usize),
    /// Packets to and from it are lost.
    Cut(usize),
    /// Packets to it are lost, and those from it arrive.
    Deaf(usize),
    /// The other way round.
    Mute(usize),
    /// Calls of this kind on its data disk fail: `r`, `w`, `f`, or `s` for a full disk.
    Disk(usize, char),
}

/// The program that makes a disk fail, and its file for each site.
pub struct Shim {
    library: PathBuf,
}

impl Shim {
    /// Builds it; `None`, and a line that says so, where that is not possible.
    pub fn build(sites: &Sites) -> Option<Self> {
        let library = sites.dir.path.join("shim.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nbd_chaos/shim.c");
        let mut cc = Command::new("cc");
        let built = cc.args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).args([source, "-ldl"]).status();
        if !built.is_ok_and(|status| status.success()) || !sites.dir.path.starts_with("/dev/shm") {
            println!("skipped: disks that fail: they need a C compiler and a tmpfs at /dev/shm");
            return None;
        }
        sites.all().for_each(|site| fs::write(sites.path("fault", site), "-").unwrap());
        Some(Shim { library })
    }

    /// The environment of a site's mirror.
    pub fn environment(&self, sites: &Sites, site: usize) -> Vec<(&'static str, PathBuf)> {
        vec![
            ("LD_PRELOAD", self.library.clone()),
            ("HADM_SHIM_DISK", sites.disk(site)),
            ("HADM_SHIM_CONTROL", sites.path("fault", site)),
        ]
    }
}

/// Lets packets of a machine be lost by rules, or no longer.
fn nft(machine: &Machine, rules: &str) {
    let status = machine.inside(|| Command::new("nft").arg(rules).status());
    assert!(status.unwrap().success(), "{rules}");
}

/// Returns true if packets can be lost here.
pub fn can_cut() -> bool {
    let can = Command::new("nft").arg("--version").output().is_ok_and(|output| output.status.success());
    if !can {
        println!("skipped: cut links: they need nft (Debian package nftables)");
    }
    can
}

const INPUT: &str =
    "add chain inet lost i { type filter hook input priority 0; }; add rule inet lost i iif eth0 drop;";
const OUTPUT: &str =
    "add chain inet lost o { type filter hook output priority 0; }; add rule inet lost o oif eth0 drop;";

/// Sets the control byte of a disk. The file is mapped: it must not be cut, not even for a moment.
pub fn control(sites: &Sites, site: usize, kind: char) {
    let file = File::options().write(true).open(sites.path("fault", site)).unwrap();
    file.write_all_at(&[kind as u8], 0).unwrap();
}

fn signal(sites: &Sites, site: usize, is_mirror: bool, signal: Signal) {
    let is_mirror = is_mirror || sites.in_one.contains(&site);
    let programs = if is_mirror { &sites.mirrors } else { &sites.daemons };
    if let Some(program) = &programs[site] {
        program.signal(signal);
    }
}

impl Fault {
    /// Lets it happen.
    pub fn begin(self, sites: &mut Sites) {
        let lose = |site: usize, chains: &[&str]| {
            let rules = format!(
                "add table inet lost; delete table inet lost; add table inet lost; {}",
                chains.concat()
            );
            nft(&sites.net.machines[machine(site)], &rules);
        };
        match self {
            Fault::KillMirror(site) => drop(sites.mirrors[site].take()),
            Fault::KillDaemon(site) if sites.in_one.contains(&site) => drop(sites.mirrors[site].take()),
            Fault::KillDaemon(site) => drop(sites.daemons[site].take()),
            Fault::KillSite(site) => {
                drop(sites.mirrors[site].take());
                drop(sites.daemons[site].take());
            }
            Fault::StopMirror(site) => signal(sites, site, true, Signal::STOP),
            Fault::StopDaemon(site) => signal(sites, site, false, Signal::STOP),
            Fault::Cut(site) => lose(site, &[INPUT, OUTPUT]),
            Fault::Deaf(site) => lose(site, &[INPUT]),
            Fault::Mute(site) => lose(site, &[OUTPUT]),
            Fault::Disk(site, kind) => control(sites, site, kind),
        }
    }
}

/// Ends all faults but those of programs that are gone.
pub fn end_all(sites: &Sites) {
    for site in sites.all() {
        if sites.path("fault", site).exists() {
            control(sites, site, '-');
        }
        for is_mirror in [true, false] {
            signal(sites, site, is_mirror, Signal::CONT);
        }
        if can_cut() {
            nft(&sites.net.machines[machine(site)], "add table inet lost; delete table inet lost");
        }
    }
}
