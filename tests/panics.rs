//! A panic in any thread ends the whole process: a line in the log, exit status 1, and nothing half-dead that the
//! service manager would take for a daemon. No option of the daemon provokes one, so a child process is made of
//! this test: it starts log and hook as the daemon does, and panics in a thread that nobody waits for.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests"
)]

mod support;

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use support::*;

use hadmd::logging::Target;

/// Says where the child logs to.
const LOG: &str = "HADMD_TEST_PANIC_LOG";

/// The child's part; nothing happens where it is run as a test among others.
#[test]
fn child() {
    let Some(log) = std::env::var_os(LOG) else { return };
    let target = if log == "syslog" { Target::Syslog } else { Target::Stderr };
    hadmd::logging::install("hadmd", target, log::LevelFilter::Info).unwrap();
    hadmd::logging::end_on_panic("hadmd");
    hadmd::sys::spawn("node7:data-tx", || panic!("provoked by a test")).unwrap();
    // The other threads of a daemon go on waiting for their sockets.
    std::thread::park_timeout(PATIENCE);
    panic!("a thread's panic was survived");
}

fn child_command(wrapper: &[&str], log: &str) -> Command {
    let mut command = Command::new(wrapper.first().copied().unwrap_or("env"));
    command.args(wrapper.get(1..).unwrap_or_default()).arg(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]).env(LOG, log);
    command
}

#[test]
fn a_panic_in_a_thread_is_logged_and_ends_the_process() {
    let mut child = Daemon::spawn(&mut child_command(&[], "stderr"), "panicking child");
    let line = child.wait_log("ERROR", PATIENCE);
    assert!(line.contains("defect in hadmd, ending: ") && line.contains("tests/panics.rs:"), "{line}");
    assert_eq!(child.wait_exit(PATIENCE).code(), Some(1));
    assert_eq!(child.log_count("was survived"), 0);
    // Said once by the log, and once by Rust itself, with the thread's name.
    assert_eq!(child.log_count("provoked by a test"), 2);
    assert_eq!(child.log_count("node7:data-tx"), 1);
}

#[test]
fn a_panic_reaches_the_system_log_before_the_process_ends() {
    // A mount namespace of its own: the system log of this machine is none of our business.
    let unshare = ["unshare", "--mount", "--propagation", "private"];
    let mut tried = Command::new(unshare[0]);
    tried.args(&unshare[1..]).args(["mount", "-t", "tmpfs", "none", "/run"]).stderr(Stdio::null());
    if !tried.status().is_ok_and(|status| status.success()) {
        return eprintln!("skipped: needs root and the right to make namespaces");
    }
    let dir = TempDir::new();
    let path = dir.path.join("syslog");
    let log = UnixDatagram::bind(&path).unwrap();
    log.set_read_timeout(Some(PATIENCE)).unwrap();
    let path = path.to_str().unwrap();
    let wrapper = [&unshare[..], &["sh", "-c", OWN_SYSTEM_LOG, path]].concat();
    let mut child = Daemon::spawn(&mut child_command(&wrapper, "syslog"), "panicking child");
    assert_eq!(child.wait_exit(PATIENCE).code(), Some(1));
    let mut buf = [0; 2048];
    let n = log.recv(&mut buf).unwrap();
    let line = String::from_utf8_lossy(&buf[..n]);
    // Facility 3 (daemon), severity 3 (error).
    assert!(line.starts_with("<27>") && line.contains("defect in hadmd, ending: "), "{line}");
}
