//! What the service manager is told over its socket (sd_notify): ready, status, reloading, stopping, and that
//! all is well.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::os::unix::net::UnixDatagram;

use rustix::process::Signal;
use support::*;

/// The service manager's end.
struct Manager(UnixDatagram);

impl Manager {
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
