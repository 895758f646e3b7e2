//! The machine gives no more descriptors, threads or memory: the established session lives on, the log says what is
//! missing, and once there is enough again everything works as before, without a restart.
//!
//! Limits are set on the running daemon, from outside, so that it has to notice by itself that they are over.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests"
)]

use std::collections::BTreeSet;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Instant;

use crate::support::*;
use rustix::process::{Resource, geteuid, getrlimit};

/// A limit that is in force while the value lives.
struct Limited<'a> {
    daemon: &'a Daemon,
    resource: &'static str,
    user: u32,
}

impl<'a> Limited<'a> {
    /// Limits the daemon that runs as `user`; `resource` is a word of prlimit(1).
    fn to(daemon: &'a Daemon, user: u32, resource: &'static str, limit: u64) -> Self {
        let limited = Limited { daemon, resource, user };
        limited.set(&limit.to_string());
        limited
    }

    /// Sets the soft limit. Root may do this to another user's process only if it has all its capabilities.
    fn set(&self, limit: &str) {
        let mut command = Command::new("prlimit");
        command.arg("--pid").arg(self.daemon.pid().to_string());
        command.arg(format!("--{}={limit}:", self.resource));
        if geteuid().as_raw() != self.user {
            command.uid(self.user);
        }
        assert!(command.status().unwrap().success());
    }
}

impl Drop for Limited<'_> {
    fn drop(&mut self) {
        // The daemon has inherited this process's limits.
        let current = match self.resource {
            "nofile" => getrlimit(Resource::Nofile),
            "nproc" => getrlimit(Resource::Nproc),
            _ => getrlimit(Resource::As),
        };
        self.set(&current.current.map_or("unlimited".into(), |limit| limit.to_string()));
    }
}

/// A daemon that also looks every second whether its kernel module is loaded, and a healthy peer with id 2.
fn harness(change: impl FnOnce(&mut Command, &ConfigFile)) -> (Harness, FakePeer) {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 3).set("maxpacket", 512 << 20).build();
    let modules = config.dir.path.join("modules");
    std::fs::write(&modules, "hadm_kmod 16384 0 - Live 0x0\n").unwrap();
    let mut command = Daemon::command(&net, &config, 0);
    command.arg("--modules").arg(&modules);
    change(&mut command, &config);
    let daemon = Daemon::spawn(&mut command, "n0");
    daemon.wait_log(" ready:", PATIENCE);
    let kernel = FakeKernel::attach(&net, 0);
    let harness = Harness::of(daemon, kernel, 0, config, net);
    let healthy = harness.call(2);
    harness.assert_carries(&healthy);
    (harness, healthy)
}

/// Everything works: peer 1 is taken at once, the healthy one was there all the time, the control socket answers.
fn assert_recovered(harness: Harness, healthy: &FakePeer) {
    let start = Instant::now();
    let peer = harness.caller(1).call_until_taken();
    harness.kernel.wait_state(bit(1) | bit(2), PATIENCE);
    harness.assert_carries(&peer);
    harness.assert_carries(healthy);
    assert!(start.elapsed() < ms(5000), "recovered only after {:?}", start.elapsed());
    let told = harness.kernel.masks();
    let without = told.iter().skip_while(|&&mask| mask == 0).any(|mask| mask & bit(2) == 0);
    assert!(!without, "the healthy session was lost meanwhile: {told:x?}");
    let mut status = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
    let status = status.arg("--control").arg(harness.config.control(0)).arg("status").output().unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    harness.stop();
}

/// Number of peers whose calls are tried at each limit; none of them is waited for.
fn try_to_call(harness: &Harness) {
    let caller = harness.caller(1);
    let links: Vec<_> = [DATA, META].iter().map(|&kind| caller.open(kind)).collect();
    // Long enough for the handshake of every accepted connection, and for a look at the modules.
    std::thread::park_timeout(ms(300));
    drop(links);
}

#[test]
fn without_descriptors_sessions_live_on_and_calls_wait() {
    let (harness, healthy) = harness(|_, _| {});
    let fds = std::fs::read_dir(format!("/proc/{}/fd", harness.daemon.pid())).unwrap();
    let used: BTreeSet<u64> =
        fds.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    // With none left nothing is accepted; with a few, a session gets some of what it needs.
    let free: Vec<u64> = (0..).filter(|fd| !used.contains(fd)).take(6).collect();
    for &limit in &free {
        let limited = Limited::to(&harness.daemon, geteuid().as_raw(), "nofile", limit);
        try_to_call(&harness);
        harness.assert_carries(&healthy);
        if limit == free[0] {
            harness.daemon.wait_log("cannot accept connections for now: Too many open files", PATIENCE);
            harness.daemon.wait_log("cannot look for the kernel module", PATIENCE);
            let ticks = harness.daemon.cpu_ticks();
            std::thread::park_timeout(ms(1000));
            assert!(harness.daemon.cpu_ticks() - ticks < 20, "busy while there is nothing to be done");
        }
        drop(limited);
    }
    assert_recovered(harness, &healthy);
}

#[test]
fn without_threads_sessions_live_on_and_new_ones_are_refused() {
    // The limit does not hold for root; threads of other daemons count where they have the same user.
    let me = geteuid();
    let user = if me.is_root() { fastrand::u32(1_000_000..2_000_000_000) } else { me.as_raw() };
    let (harness, healthy) = harness(|command, config| {
        if me.is_root() {
            chown(&config.dir.path, Some(user), None).unwrap();
            command.uid(user);
        }
    });
    let limited = Limited::to(&harness.daemon, user, "nproc", 1);
    try_to_call(&harness);
    harness.daemon.wait_log("node 1: cannot start its threads: ", PATIENCE);
    let _client = std::os::unix::net::UnixStream::connect(harness.config.control(0)).unwrap();
    harness.daemon.wait_log("cannot attend to a control client: ", PATIENCE);
    harness.assert_carries(&healthy);
    drop(limited);
    assert_recovered(harness, &healthy);
}

/// The parts of a kernel module are made before it is attached: where that fails both its links are refused, each of its
/// attempts, and no session ends by it.
#[test]
fn without_threads_a_kernel_module_is_refused_and_no_session_ends() {
    let me = geteuid();
    let user = if me.is_root() { fastrand::u32(1_000_000..2_000_000_000) } else { me.as_raw() };
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let mut command = Daemon::command(&net, &config, 0);
    if me.is_root() {
        chown(&config.dir.path, Some(user), None).unwrap();
        command.uid(user);
    }
    let daemon = Daemon::spawn(command.arg("--no-kmod-check"), "n0");
    daemon.wait_log(" ready:", PATIENCE);
    let peer = Caller::new(&net, 1, 0).call_until_taken();
    daemon.wait_log("node 1: connected", PATIENCE);
    let limited = Limited::to(&daemon, user, "nproc", 1);
    for _ in 0..5 {
        // The first is answered; that there is no second thread shows with the second.
        let first = kernel_hello(net.server(0), kind::HS_D, 0);
        assert!(kernel_hello(net.server(0), kind::HS_M, 0).is_err(), "not refused");
        drop(first);
    }
    daemon.wait_log("cannot start the kernel module's threads, refused both its links", PATIENCE);
    drop(limited);
    let kernel = FakeKernel::attach(&net, 0);
    let harness = Harness::of(daemon, kernel, 0, config, net);
    harness.kernel.wait_state(bit(1), PATIENCE);
    harness.assert_carries(&peer);
    assert_eq!(harness.daemon.log_count("session ended"), 0);
    harness.stop();
}

#[test]
fn without_memory_sessions_live_on() {
    let (harness, healthy) = harness(|_, _| {});
    let peer = harness.call(1);
    harness.assert_carries(&peer);
    peer.kill();
    let limit = |spare| {
        let bytes = (harness.daemon.status("VmSize") + spare) * 1024;
        Limited::to(&harness.daemon, geteuid().as_raw(), "as", bytes)
    };
    // The descriptors in use, and a little: not enough for the stacks of a session's threads.
    for spare in [0, 8, 16, 32, 64, 256, 1024, 1300] {
        // The stacks of ended threads are kept for the next ones, which then need but little more.
        harness.kernel.wait_state(bit(2), PATIENCE);
        let limited = limit(spare);
        try_to_call(&harness);
        harness.assert_carries(&healthy);
        drop(limited);
    }
    harness.daemon.wait_log("node 1: cannot start its threads: ", PATIENCE);
    let peer = harness.caller(1).call_until_taken();
    harness.kernel.wait_state(bit(1) | bit(2), PATIENCE);
    let limited = limit(2048);
    peer.data.send(&Packet::data(1, bit(0), 0).with_len(500 << 20));
    harness.daemon.wait_log("data link: this machine has no memory left for its packets", PATIENCE);
    peer.wait_closed(PATIENCE);
    harness.assert_carries(&healthy);
    drop(limited);
    assert_recovered(harness, &healthy);
}
