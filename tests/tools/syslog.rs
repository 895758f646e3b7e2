//! Log lines in the system log, where stderr is no terminal: facility daemon, and again after the system log was
//! restarted.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests"
)]

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::*;
use rustix::process::Signal;

/// The system log's end.
fn listen(path: &Path) -> UnixDatagram {
    let _ = std::fs::remove_file(path);
    let socket = UnixDatagram::bind(path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

#[track_caller]
fn wait(log: &UnixDatagram, text: &str) -> String {
    let mut buf = [0; 2048];
    loop {
        let n = log.recv(&mut buf).unwrap_or_else(|error| panic!("no line with {text:?}: {error}"));
        let line = String::from_utf8_lossy(&buf[..n]).into_owned();
        if line.contains(text) {
            return line;
        }
    }
}

#[test]
fn lines_go_to_the_system_log_and_find_it_again_after_its_restart() {
    // A mount namespace of its own: the system log of this machine is none of our business.
    let inside = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
        command
    };
    if !inside("mount -t tmpfs none /run").stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    {
        return eprintln!("skipped: needs root and the right to make namespaces");
    }
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let path = config.dir.path.join("syslog");
    let log = listen(&path);
    let mut command = inside(OWN_SYSTEM_LOG);
    command.arg(&path).arg(env!("CARGO_BIN_EXE_hadmd")).arg("-c").arg(&config.path);
    command.args(["--hostname", "n0", "--no-kmod-check", "--server", &net.server(0).to_string()]);
    command.arg("--control").arg(config.control(0));
    let mut daemon = Daemon::spawn(&mut command, "n0");
    let ready = wait(&log, "ready: node 0 (n0)");
    // Facility 3 (daemon), severity 6 (informational).
    assert!(ready.starts_with("<30>"), "{ready}");
    let (head, _) = ready.split_once(": hadmd").unwrap();
    let (stamp, tag) = head.strip_prefix("<30>").unwrap().split_at(16);
    assert!(tag.starts_with("hadmd["), "{ready}");
    assert!(stamp.ends_with(' ') && stamp.matches(':').count() == 2, "{ready}");
    drop(log);
    let log = listen(&path);
    let kernel = FakeKernel::attach(&net, 0);
    wait(&log, "kernel module attached");
    drop(kernel);
    // Severity 4 (warning).
    assert!(wait(&log, "kernel module detached").starts_with("<28>"));
    assert_eq!(daemon.log_count("ready"), 0, "nothing is told twice");
    // One message a line, each short enough for every system log.
    let good = std::fs::read_to_string(&config.path).unwrap();
    let node = |n| {
        let (id, host, ip) = (n + 3, format!("h{n}"), format!("192.0.2.{n}"));
        format!(
            "<node><id>{id}</id><hostname>{host}</hostname><ipaddr>{ip}</ipaddr><port>bad-{n}</port></node>\n"
        )
    };
    let bad: String = (1..=20).map(node).collect();
    std::fs::write(&config.path, good.replacen("</nodes>", &format!("{bad}</nodes>"), 1)).unwrap();
    daemon.signal(Signal::HUP);
    let first = wait(&log, "cannot reload the configuration");
    let mut told = vec![first];
    while !told.iter().any(|line| line.contains("bad-20")) {
        told.push(wait(&log, "hadmd["));
    }
    for n in 1..=20 {
        assert_eq!(told.iter().filter(|line| line.contains(&format!("\"bad-{n}\""))).count(), 1, "{told:?}");
    }
    for line in &told {
        assert!(line.len() < 1000 && !line.contains('\n'), "{}: {line}", line.len());
        assert!(line.starts_with("<27>") && line.contains(" hadmd["), "{line}");
    }
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0));
    wait(&log, "ending: SIGTERM");
}
