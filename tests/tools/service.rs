//! The messages to the service manager over its socket (sd_notify): ready, status, reloading, stopping, and that
//! all is well.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::support::*;
use rustix::process::Signal;

/// The service manager's end.
struct Manager(UnixDatagram);

impl Manager {
    /// Listens at a name of the abstract kind, and returns what NOTIFY_SOCKET says of it.
    fn abstract_one() -> (Manager, String) {
        let name = format!("hadmd-test-{}-{:?}", std::process::id(), std::thread::current().id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = Manager(UnixDatagram::bind_addr(&address).unwrap());
        manager.0.set_read_timeout(Some(PATIENCE)).unwrap();
        (manager, format!("@{name}"))
    }

    /// Reads messages until one has this line, and gives it back.
    #[track_caller]
    fn wait(&self, line: &str) -> String {
        let mut buf = [0; 1024];
        loop {
            let n = self.0.recv(&mut buf).unwrap_or_else(|error| panic!("no {line}: {error}"));
            let message = String::from_utf8_lossy(&buf[..n]).into_owned();
            if message.lines().any(|found| found.starts_with(line)) {
                return message;
            }
        }
    }
}

#[test]
fn the_service_manager_is_told() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let path = config.dir.path.join("notify");
    let manager = Manager(UnixDatagram::bind(&path).unwrap());
    manager.0.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = Daemon::command(&net, &config, 0);
    command.arg("--no-kmod-check").env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    let mut daemon = Daemon::spawn(&mut command, "n0");
    manager.wait("READY=1");
    manager.wait("STATUS=0 of 1 peers connected, kernel module not attached");
    let kernel = FakeKernel::attach(&net, 0);
    manager.wait("STATUS=0 of 1 peers connected, kernel module attached");
    for _ in 0..5 {
        manager.wait("WATCHDOG=1");
    }
    daemon.signal(Signal::HUP);
    assert!(manager.wait("RELOADING=1").contains("MONOTONIC_USEC="));
    manager.wait("READY=1");
    daemon.term();
    manager.wait("STOPPING=1");
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0));
    drop(kernel);
}

/// The reactor was asked for nothing before the first look: that is no lack of progress.
#[test]
fn a_watchdog_is_content_from_the_start() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let (manager, place) = Manager::abstract_one();
    let mut command = Daemon::command(&net, &config, 0);
    // Long enough for a busy machine: only the first looks count here.
    command.arg("--no-kmod-check").env("NOTIFY_SOCKET", place).env("WATCHDOG_USEC", "4000000");
    let daemon = Daemon::spawn(&mut command, "n0");
    manager.wait("READY=1");
    for _ in 0..2 {
        manager.wait("WATCHDOG=1");
    }
    assert_eq!(daemon.log_count("makes no progress"), 0, "{:?}", daemon.log());
}

/// Zero means that there is no watchdog.
#[test]
fn a_watchdog_of_zero_is_none() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let (manager, place) = Manager::abstract_one();
    let mut command = Daemon::command(&net, &config, 0);
    command.arg("--no-kmod-check").env("NOTIFY_SOCKET", place).env("WATCHDOG_USEC", "0");
    let mut daemon = Daemon::spawn(&mut command, "n0");
    manager.wait("READY=1");
    let kernel = FakeKernel::attach(&net, 0);
    kernel.wait_state(0, PATIENCE);
    assert_eq!(daemon.log_count("makes no progress"), 0, "{:?}", daemon.log());
    daemon.term();
    // Every message until the end.
    loop {
        let mut buf = [0; 1024];
        let n = manager.0.recv(&mut buf).unwrap();
        let message = String::from_utf8_lossy(&buf[..n]).into_owned();
        assert!(!message.contains("WATCHDOG"), "{message}");
        if message.contains("STOPPING=1") {
            break;
        }
    }
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0));
}
