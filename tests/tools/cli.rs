//! The command line: exit codes (0 orderly, 1 what fails later, 2 usage and configuration), what goes where,
//! the module list, and the orderly end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::net::TcpStream;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::support::*;
use rustix::process::Signal;

fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn version_and_help_go_to_stdout() {
    let (code, out, err) = run(Daemon::binary().arg("--version"));
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.contains("hadmd") && out.contains(env!("CARGO_PKG_VERSION")), "{out}");
    let (code, out, err) = run(Daemon::binary().arg("--help"));
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let options =
        "-c --check --hostname --server --modules --no-kmod-check --log -v --pidfile --version --help";
    for option in options.split(' ') {
        assert!(out.contains(option), "no {option} in {out}");
    }
}

#[test]
fn bad_usage_ends_with_2_and_usage_on_stderr() {
    let wrong: [&[&str]; 9] = [
        &["--no-such-option"],
        &["surplus"],
        &["-c"],
        &["--server"],
        &["--server", "127.0.0.1"],
        &["--server", "127.0.0.1:70000"],
        &["--server", "nonsense:9998"],
        &["--log", "nowhere"],
        &["--check=yes"],
    ];
    for args in wrong {
        let (code, out, err) = run(Daemon::binary().args(args));
        assert_eq!((code, out.as_str()), (Some(2), ""), "{args:?}: {err}");
        assert!(err.to_lowercase().contains("usage") || err.contains("--help"), "{args:?}: {err}");
    }
}

/// `--check` reads the file, says what is wrong with it and where, and starts nothing.
#[test]
fn check_reads_the_file_and_starts_nothing() {
    let net = Subnet::claim();
    let good = ConfigBuilder::new(&net, 2).build();
    let check = |config: &ConfigFile, host: &str| {
        run(Daemon::binary().arg("-c").arg(&config.path).args(["--check", "--hostname", host]))
    };
    let (code, _, err) = check(&good, "n0");
    assert_eq!(code, Some(0), "{err}");
    let bad = ConfigBuilder::new(&net, 2).set("pingtimeout", "soon").set("serverport", 70_000).build();
    let (code, _, err) = check(&bad, "n0");
    assert_eq!(code, Some(2), "{err}");
    for part in ["hadm.xml:", "soon", "70000"] {
        assert!(err.contains(part), "every error at once, with its value and place: no `{part}` in {err}");
    }
    let (code, _, err) = check(&good, "n7");
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("n7"), "{err}");
}

/// Failure mode 30: a host name counts as a whole.
#[test]
fn fm30_host_names_are_whole_names() {
    let net = Subnet::claim();
    let config =
        ConfigBuilder::new(&net, 0).node(10, &net.ip(10).to_string()).node(1, &net.ip(1).to_string());
    let config = config.build();
    let daemon = Daemon::start(&net, &config, 1);
    assert!(daemon.wait_log(" ready:", PATIENCE).contains("node 1 (n1)"));
    TcpStream::connect(net.node(1)).expect("listens at node 1's address");
    daemon.stop();
}

#[test]
fn a_configuration_that_cannot_be_used_ends_with_2() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let missing = config.dir.path.join("missing.xml");
    let (code, _, err) = run(Daemon::binary().arg("-c").arg(&missing).arg("--no-kmod-check"));
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("missing.xml"), "{err}");
    std::fs::write(&config.path, "<hadm><global>").unwrap();
    let (code, _, err) = run(Daemon::command(&net, &config, 0).arg("--no-kmod-check"));
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("hadm.xml:1:"), "file, line and column: {err}");
    assert!(TcpStream::connect(net.server(0)).is_err(), "nothing was started");
}

/// Failure mode 28: values that are too long, or empty, are errors like others.
#[test]
fn fm28_long_and_empty_values_are_refused() {
    let net = Subnet::claim();
    for value in ["", " ", &"9".repeat(10_000)] {
        let config = ConfigBuilder::new(&net, 2).set("serverip", value).build();
        let (code, _, err) = run(Daemon::command(&net, &config, 0).args(["--check"]));
        assert_eq!(code, Some(2), "{err}");
        assert!(err.contains("serverip"), "{err}");
    }
}

/// `--pidfile` holds the process's number while it runs.
/// hadm-nbd calls no peer: without a name server it is not refused for good.
#[test]
fn a_mirrored_disk_needs_no_name_of_a_peer() {
    let dir = TempDir::new();
    let file = dir.path.join("hadm.xml");
    let sample = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/etc/mirror.xml")).unwrap();
    let at = |folder: &std::path::Path| sample.replace("/var/lib/hadm", &folder.display().to_string());
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_hadm-nbd"));
        run(command.arg("-c").arg(&file).args(["--hostname", "left", "run", "--log", "stderr"]))
    };
    let text = at(&dir.path).replace("<ipaddr>192.0.2.2<", "<ipaddr>right.invalid<");
    let (code, _, err) = check(&text);
    // There are no disks, which is another matter.
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("data.meta") && !err.contains("right.invalid"), "{err}");
    let text = text.replace("<serverip>127.0.0.1<", "<serverip>here.invalid<");
    let (code, _, err) = check(&text);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("<serverip> has no address yet"), "{err}");
}

#[test]
fn pidfile_holds_the_process_number() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let path = config.dir.path.join("hadmd.pid");
    let mut command = Daemon::command(&net, &config, 0);
    let daemon = Daemon::spawn(command.arg("--no-kmod-check").arg("--pidfile").arg(&path), "n0");
    daemon.wait_log(" ready:", PATIENCE);
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.trim().parse(), Ok(daemon.pid()));
    daemon.stop();
    let nowhere = config.dir.path.join("no/such/dir/hadmd.pid");
    let mut command = Daemon::command(&net, &config, 0);
    let (code, _, err) = run(command.arg("--no-kmod-check").arg("--pidfile").arg(&nowhere));
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("no/such/dir/hadmd.pid"), "{err}");
}

/// A program that finds the process number in the file may send signals: they are waited for by then.
#[test]
fn a_reload_as_soon_as_there_is_a_pidfile_does_no_harm() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let path = config.dir.path.join("hadmd.pid");
    // The moment between is short: the first tries may miss it.
    for _ in 0..20 {
        let mut command = Daemon::command(&net, &config, 0);
        let daemon = Daemon::spawn(command.arg("--no-kmod-check").arg("--pidfile").arg(&path), "n0");
        redial("the PID file", PATIENCE, || {
            let end = Instant::now() + Duration::from_millis(500);
            while Instant::now() < end {
                if std::fs::read(&path).is_ok_and(|text| text.ends_with(b"\n")) {
                    return Some(());
                }
            }
            None
        });
        daemon.signal(Signal::HUP);
        daemon.wait_log("configuration reloaded", PATIENCE);
        daemon.stop();
    }
}

/// Failure mode 37: an address that cannot be bound is named, and ends the start with 1.
#[test]
fn fm37_an_address_in_use_is_named() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    for taken in [net.server(0), net.node(0)] {
        let _holder = std::net::TcpListener::bind(taken).unwrap();
        let (code, _, err) = run(Daemon::command(&net, &config, 0).arg("--no-kmod-check"));
        assert_eq!(code, Some(1), "{err}");
        assert!(err.contains(&taken.to_string()), "{err}");
    }
}

const MODULE: &str = "hadm_kmod 163840 0 - Live 0x0000000000000000 (OE)\n";
const OTHERS: &str =
    "ext4 991232 1 - Live 0x0000000000000000\nhadm_kmod2 16384 0 - Live 0x0000000000000000\n";

/// When the module leaves the list, the daemon ends orderly, with 1 and one line.
#[test]
fn the_daemon_ends_with_its_module() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let list = config.dir.path.join("modules");
    std::fs::write(&list, format!("{OTHERS}{MODULE}")).unwrap();
    let mut command = Daemon::command(&net, &config, 0);
    let mut daemon = Daemon::spawn(command.arg("--modules").arg(&list), "n0");
    daemon.wait_log(" ready:", PATIENCE);
    let kernel = FakeKernel::attach(&net, 0);
    let peer = Caller::new(&net, 1, 0).call();
    kernel.wait_state(bit(1), PATIENCE);
    let start = Instant::now();
    let gone = config.dir.path.join("gone");
    std::fs::write(&gone, OTHERS).unwrap();
    std::fs::rename(&gone, &list).unwrap();
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(1));
    assert!(start.elapsed() < Duration::from_secs(6), "ended {:?} after", start.elapsed());
    assert_eq!(daemon.log_count("hadm_kmod"), 1, "{:?}", daemon.log());
    PacketCounters::assert_balance(&daemon.log());
    peer.wait_closed(PATIENCE);
}

/// Failure modes 30 and 33: without the module, or with one whose name only begins so, nothing starts;
/// without a list, the error names the way out.
#[test]
fn fm33_no_module_means_no_start() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let list = config.dir.path.join("modules");
    for text in ["", OTHERS] {
        std::fs::write(&list, text).unwrap();
        let (code, _, err) = run(Daemon::command(&net, &config, 0).arg("--modules").arg(&list));
        assert_eq!(code, Some(1), "{err}");
        assert!(err.contains("hadm_kmod") && !err.contains("ready"), "{err}");
    }
    let missing = config.dir.path.join("no-modules");
    let (code, _, err) = run(Daemon::command(&net, &config, 0).arg("--modules").arg(&missing));
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("--no-kmod-check") && err.contains("no-modules"), "{err}");
}

/// Failure mode 37: SIGTERM and SIGINT end it with 0, at once when there is nothing to drain.
#[test]
fn fm37_signals_end_it_orderly() {
    for signal in [Signal::TERM, Signal::INT] {
        let harness = Harness::new(2);
        let peer = harness.call(1);
        harness.assert_carries(&peer);
        let Harness { mut daemon, kernel, net, .. } = harness;
        let start = Instant::now();
        daemon.signal(signal);
        assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0));
        assert!(start.elapsed() < ms(2000), "nothing to drain, yet {:?}", start.elapsed());
        PacketCounters::assert_balance(&daemon.log());
        peer.wait_closed(PATIENCE);
        kernel.wait_closed();
        assert!(TcpStream::connect(net.node(0)).is_err());
    }
}

/// Packets taken from the kernel are handed to peers that read before the end.
#[test]
fn queues_drain_before_the_end() {
    let harness = Harness::with(2, 0, |config| config.set("slowtimeout", 60));
    let peer = harness.connect(&harness.caller(1).small_buffer());
    peer.data.pause(true);
    // 4 MiB: more than the socket takes, less than the queue.
    let flood = harness.kernel.data.flood(|seq| (seq < 256).then(|| Packet::data(seq, bit(1), 16_384)));
    let sent = flood.finish();
    // Behind the flood on the same link: a packet of the other class comes at once.
    harness.kernel.data.send(&Packet::meta(1, bit(1)));
    assert_eq!(peer.meta.recv().seq(), 1);
    harness.daemon.term();
    peer.data.pause(false);
    let got = peer.data.drain_to_end(PATIENCE);
    assert_eq!(got.len() as u64, sent);
    assert!(got.iter().zip(0..).all(|(packet, seq)| packet.seq() == seq));
    let Harness { mut daemon, .. } = harness;
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0));
    let counters = PacketCounters::assert_balance(&daemon.log());
    assert_eq!(counters.line(1, "data", "out").dropped, 0);
}

/// A peer that does not read holds the end up for 2 s, not longer.
#[test]
fn a_stalled_peer_does_not_hold_up_the_end() {
    let harness = Harness::with(2, 0, |config| config.set("slowtimeout", 60));
    let peer = harness.connect(&harness.caller(1).small_buffer());
    peer.data.pause(true);
    let flood = harness.kernel.data.flood(|seq| Some(Packet::data(seq, bit(1), 16_384)));
    flood.wait_stalled(ms(300));
    let Harness { mut daemon, .. } = harness;
    let start = Instant::now();
    daemon.term();
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0));
    assert!(start.elapsed() < ms(4500), "ended after {:?}", start.elapsed());
    let counters = PacketCounters::assert_balance(&daemon.log());
    assert!(counters.line(1, "data", "out").dropped > 0);
    flood.stop();
}

/// A reader of standard output that went away is no failure of the check.
#[test]
fn a_check_whose_output_nobody_reads_succeeds() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(reader);
    let mut command = Daemon::command(&net, &config, 0);
    let status = command.arg("--check").stdout(std::os::fd::OwnedFd::from(writer)).status().unwrap();
    assert_eq!(status.code(), Some(0));
}

/// A port that no module could find, and a list of modules that is no file.
#[test]
fn port_0_and_a_module_list_that_is_no_file_are_refused() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let mut command = Daemon::command(&net, &config, 0);
    let port = command.args(["--no-kmod-check", "--server", "127.0.0.1:0"]).output().unwrap();
    assert_eq!(port.status.code(), Some(2));
    let mut command = Daemon::command(&net, &config, 0);
    let list = command.arg("--modules").arg(&config.dir.path).output().unwrap();
    assert_eq!(list.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&list.stderr).contains("--no-kmod-check"));
}

#[test]
fn help_that_cannot_be_written_is_a_failure() {
    for program in [env!("CARGO_BIN_EXE_hadmd"), env!("CARGO_BIN_EXE_hadmctl")] {
        for option in ["--help", "--version"] {
            let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
            let (code, _, err) = run(Command::new(program).arg(option).stdout(full));
            assert!(code == Some(1) && err.contains("No space left"), "{program} {option}: {code:?} {err}");
        }
    }
}
