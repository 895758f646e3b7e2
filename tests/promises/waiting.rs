//! Nothing that waits for another program may stop the daemon: a service manager that does not read, a silent name
//! server, a disk that does not answer, a host name or an address that is not there yet.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests"
)]

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use crate::support::*;
use hadmd::control::{Json, Status};
use rustix::process::Signal;
use serde_json::Value;

/// A service manager that never reads its notify socket: connection states, control answers and SIGTERM go on as if
/// it did, and when it reads at last, READY is among what it finds.
#[test]
fn a_service_manager_that_does_not_read_stops_nothing() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 3).build();
    let path = config.dir.path.join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    // Its queue is full before the daemon says a word.
    let stuffing = UnixDatagram::unbound().unwrap();
    stuffing.set_nonblocking(true).unwrap();
    let stuffed = (0..).take_while(|_| stuffing.send_to(b"STUFFING=1", &path).is_ok()).count();
    assert!(stuffed > 0);
    let mut command = Daemon::command(&net, &config, 0);
    command.arg("--no-kmod-check").env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "50000");
    let daemon = Daemon::spawn(&mut command, "n0");
    daemon.wait_log(" ready:", PATIENCE);
    let kernel = FakeKernel::attach(&net, 0);
    let harness = Harness::of(daemon, kernel, 0, config, net);
    let peer = harness.call(2);
    harness.assert_carries(&peer);
    for _ in 0..5 {
        harness.daemon.signal(Signal::HUP);
        let output = Command::new(env!("CARGO_BIN_EXE_hadmctl"))
            .arg("--control")
            .arg(harness.config.control(0))
            .arg("status")
            .output()
            .unwrap();
        assert!(output.status.success());
    }
    harness.daemon.wait_log("configuration reloaded", PATIENCE);
    peer.kill();
    harness.kernel.wait_state(0, ms(1000));
    let peer = harness.caller(2).call_until_taken();
    harness.kernel.wait_state(bit(2), ms(5000));
    // It reads what is there, and only then comes what has waited.
    let mut buf = [0; 1024];
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut read = 0;
    loop {
        let n = manager.recv(&mut buf).unwrap();
        read += 1;
        if buf[..n].starts_with(b"READY=1") {
            break;
        }
        assert!(read < stuffed + 10, "no READY");
    }
    while stuffing.send_to(b"STUFFING=1", &path).is_ok() {}
    let began = Instant::now();
    drop(peer);
    harness.stop();
    assert!(began.elapsed() < ms(5000), "ended only after {:?}", began.elapsed());
}

/// A directory that says which calls of a daemon wait, and which names there are.
struct Slow {
    dir: TempDir,
}

impl Slow {
    /// Builds the library that is preloaded; `None`, and a line that says why, where that cannot be.
    fn new() -> Option<Self> {
        let dir = TempDir::new();
        let source = dir.path.join("slow.c");
        std::fs::write(&source, include_str!("waiting/slow.c")).unwrap();
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-o"]).arg(dir.path.join("slow.so")).arg(&source).arg("-ldl");
        if !cfg!(target_env = "gnu") || !cc.status().is_ok_and(|status| status.success()) {
            eprintln!("skipped: needs a C compiler and glibc: {:?}", std::thread::current().name());
            return None;
        }
        Some(Slow { dir })
    }

    fn preload<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("LD_PRELOAD", self.dir.path.join("slow.so")).env("SLOW", &self.dir.path)
    }

    /// From now on this call waits.
    fn hold(&self, call: &str) {
        std::fs::write(self.dir.path.join(call), "").unwrap();
    }

    /// It goes on.
    fn release(&self, call: &str) {
        std::fs::remove_file(self.dir.path.join(call)).unwrap();
    }

    /// A name has this address from now on; none: the name server says that there is no such name.
    fn name(&self, name: &str, address: &str) {
        let path = self.dir.path.join(format!("name-{name}"));
        std::fs::write(path.with_extension("new"), address).unwrap();
        std::fs::rename(path.with_extension("new"), path).unwrap();
    }
}

fn hadmctl(config: &ConfigFile, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
    command.arg("--control").arg(config.control(0)).args(args).output().unwrap()
}

fn shown(config: &ConfigFile) -> String {
    let output = hadmctl(config, &["status"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Daemon 0 of three nodes with calls that can be held, its kernel module and node 2.
fn slow_harness(
    change: impl FnOnce(ConfigBuilder, &Subnet) -> ConfigBuilder,
) -> Option<(Slow, Harness, FakePeer)> {
    let slow = Slow::new()?;
    let net = Subnet::claim();
    let config = change(ConfigBuilder::new(&net, 3).heartbeat(0.2, 3), &net).build();
    let modules = config.dir.path.join("modules");
    std::fs::write(&modules, "hadm_kmod 16384 0 - Live 0x0\n").unwrap();
    let mut command = Daemon::command(&net, &config, 0);
    let daemon = Daemon::spawn(slow.preload(command.arg("--modules").arg(&modules)), "n0");
    daemon.wait_log(" ready:", PATIENCE);
    let kernel = FakeKernel::attach(&net, 0);
    let harness = Harness::of(daemon, kernel, 0, config, net);
    let peer = harness.call(2);
    harness.assert_carries(&peer);
    Some((slow, harness, peer))
}

/// Neither the list of addresses nor that of modules is waited for by what decides: a dead peer is noticed in its
/// time, questions are answered, and it is logged once that the system does not answer.
#[test]
fn a_system_that_does_not_answer_delays_no_verdict() {
    for (call, told) in [
        ("getifaddrs", "the system does not answer for the addresses of this machine"),
        ("open-modules", "the system does not answer for the list of kernel modules"),
    ] {
        let Some((slow, harness, peer)) = slow_harness(|config, _| config) else { return };
        slow.hold(call);
        // A reload looks at the addresses, every second at the list of modules.
        harness.daemon.signal(Signal::HUP);
        harness.daemon.wait_log("configuration reloaded", PATIENCE);
        harness.daemon.wait_log(told, PATIENCE);
        assert!(shown(&harness.config).contains(told), "{}", shown(&harness.config));
        harness.assert_carries(&peer);
        let silent = harness.caller(1);
        let silent = Caller { answers: false, ..silent };
        let _silent = harness.connect(&silent);
        let began = Instant::now();
        harness.wait_bit(began, 1, false);
        assert!(began.elapsed() < ms(2500), "noticed only after {:?}", began.elapsed());
        assert_eq!(harness.daemon.log_count(told), 1, "told once");
        slow.release(call);
        harness.assert_carries(&peer);
        harness.stop();
    }
}

/// SIGTERM ends a daemon at once whose reload waits for a name server, and so does everything else go on.
#[test]
fn a_silent_name_server_delays_neither_the_end_nor_anything_else() {
    let Some((slow, harness, peer)) = slow_harness(|config, _| config) else { return };
    slow.hold("getaddrinfo");
    let text = std::fs::read_to_string(&harness.config.path).unwrap();
    let named = text.replace(&format!("<ipaddr>{}</ipaddr>", harness.net.ip(1)), "<ipaddr>one.test</ipaddr>");
    assert_ne!(text, named);
    std::fs::write(&harness.config.path, named).unwrap();
    harness.daemon.signal(Signal::HUP);
    harness.assert_carries(&peer);
    shown(&harness.config);
    let began = Instant::now();
    drop(peer);
    harness.stop();
    assert!(began.elapsed() < ms(4000), "ended only after {:?}", began.elapsed());
}

/// Requests to reload are one queue: the last one wins with the file as it was when it was asked, and an older one,
/// which waits for a name server, is never put in force on top of it.
#[test]
fn the_last_request_to_reload_wins() {
    let Some((slow, harness, _peer)) = slow_harness(|config, _| config) else { return };
    slow.name("one.test", &harness.net.ip(1).to_string());
    slow.hold("getaddrinfo");
    let text = std::fs::read_to_string(&harness.config.path).unwrap();
    let own = format!("<ipaddr>{}</ipaddr>", harness.net.ip(1));
    let count = |n: u32| text.replace("<maxpingcount>3<", &format!("<maxpingcount>{n}<"));
    let older = count(40).replace(&own, "<ipaddr>one.test</ipaddr>");
    std::fs::write(&harness.config.path, older).unwrap();
    let config = &harness.config;
    std::thread::scope(|scope| {
        let first = scope.spawn(|| hadmctl(config, &["reload"]));
        // Its file has been read when its name is being looked up, by a thread that is there as long as it waits.
        redial("look-up", PATIENCE, || {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", harness.daemon.pid())).unwrap();
            let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")));
            names.flatten().any(|name| name.trim() == "names").then_some(())
        });
        std::fs::write(&config.path, count(50)).unwrap();
        let second = hadmctl(config, &["reload"]);
        assert!(second.status.success(), "{}", String::from_utf8_lossy(&second.stderr));
        // A file that is written after the request is not the requested one.
        std::fs::write(&config.path, count(60)).unwrap();
        slow.release("getaddrinfo");
        let first = first.join().unwrap();
        assert_eq!(first.status.code(), Some(5));
        let why = String::from_utf8_lossy(&first.stderr).into_owned();
        assert!(why.contains("a newer one took its place"), "{why}");
    });
    harness.daemon.wait_log("maxpingcount: 3 -> 50", PATIENCE);
    let plan = hadmctl(config, &["plan", config.path.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&plan.stdout).contains("maxpingcount: 50 -> 60"), "{plan:?}");
    // Many at once, of both kinds: what stands in the end is the file.
    std::thread::scope(|scope| {
        for n in 70..90 {
            std::fs::write(&config.path, count(n)).unwrap();
            harness.daemon.signal(Signal::HUP);
            scope.spawn(|| hadmctl(config, &["reload"]));
        }
    });
    std::fs::write(&config.path, count(90)).unwrap();
    harness.daemon.signal(Signal::HUP);
    harness.daemon.wait_log("-> 90", PATIENCE);
    harness.stop();
}

/// A daemon that is stopped takes connections and answers nothing: `hadmctl` says so after its time, with a status of
/// its own, for every command; a stream that has begun may be silent.
#[test]
fn hadmctl_does_not_wait_for_a_frozen_daemon() {
    let harness = Harness::new(2);
    let config = &harness.config;
    let mut events = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
    events.args(["--timeout", "0.3", "--control"]).arg(config.control(0)).arg("events");
    let mut events = events.stdout(Stdio::piped()).spawn().unwrap();
    // The stream has begun with its first byte.
    std::io::Read::read_exact(&mut events.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    harness.daemon.signal(Signal::STOP);
    let plan = config.path.to_str().unwrap();
    for command in
        [&["status"][..], &["events"], &["doctor"], &["reload"], &["plan", plan], &["connect", "1"]]
    {
        let began = Instant::now();
        let output = hadmctl(config, &[&["--timeout", "0.3"], command].concat());
        assert_eq!(output.status.code(), Some(4), "{command:?}: {output:?}");
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(why.contains("does not answer within 0.3 s"), "{why}");
        assert!(began.elapsed() < ms(3000), "{command:?}: {:?}", began.elapsed());
    }
    let began = Instant::now();
    assert_eq!(hadmctl(config, &["status"]).status.code(), Some(4));
    assert!((4..8).contains(&began.elapsed().as_secs()), "5 s by default, took {:?}", began.elapsed());
    assert!(events.try_wait().unwrap().is_none(), "a stream that has begun goes on");
    harness.daemon.signal(Signal::CONT);
    shown(config);
    for wrong in ["0", "-1", "soon", "inf", "NaN"] {
        assert_eq!(hadmctl(config, &["--timeout", wrong, "status"]).status.code(), Some(2), "{wrong}");
    }
    events.kill().unwrap();
    events.wait().unwrap();
    harness.stop();
}

/// The control socket's file is made again where it was removed, even with its folder; and is gone with the daemon.
#[test]
fn a_removed_control_socket_is_made_again() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let folder = config.dir.path.join("run");
    let socket = folder.join("hadmd.sock");
    let mut command = Daemon::command(&net, &config, 0);
    let daemon = Daemon::spawn(command.arg("--no-kmod-check").arg("--control").arg(&socket), "n0");
    daemon.wait_log(" ready:", PATIENCE);
    let asks =
        || Command::new(env!("CARGO_BIN_EXE_hadmctl")).arg("--control").arg(&socket).arg("status").output();
    redial("first", PATIENCE, || asks().unwrap().status.success().then_some(()));
    for whole in [false, true, false] {
        match whole {
            true => std::fs::remove_dir_all(&folder).unwrap(),
            false => std::fs::remove_file(&socket).unwrap(),
        }
        redial("again", PATIENCE, || asks().unwrap().status.success().then_some(()));
    }
    redial("log", PATIENCE, || (daemon.log_count("was removed: made it again") == 3).then_some(()));
    let threads = daemon.status("Threads");
    assert!(threads < 20, "{threads} threads: those of the old sockets have ended");
    // Another program's file in its place is not touched.
    std::fs::write(folder.join("new"), "another's").unwrap();
    std::fs::rename(folder.join("new"), &socket).unwrap();
    daemon.stop();
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "another's");
}

/// Two nodes and this one, which find no name server at the start: a peer with an address links at once, a peer with
/// a name as soon as the name server answers. It is logged once and shown, and no session ends by it.
#[test]
fn at_boot_a_silent_name_server_holds_up_only_who_has_a_name() {
    let Some(slow) = Slow::new() else { return };
    // Silent, or unreachable.
    for silent in [true, false] {
        if silent {
            slow.hold("getaddrinfo");
        }
        let net = Subnet::claim();
        let config = ConfigBuilder::new(&net, 1).node(1, "one.test").node(2, &net.ip(2).to_string());
        // Not in the order of the alphabet, and never known.
        let config = config.node(3, "none.test").node(4, "absent.test").build();
        let mut command = Daemon::command(&net, &config, 0);
        let daemon = Daemon::spawn(slow.preload(command.arg("--no-kmod-check")), "n0");
        daemon.wait_log(" ready:", PATIENCE);
        let kernel = FakeKernel::attach(&net, 0);
        let harness = Harness::of(daemon, kernel, 0, config, net);
        let two = harness.call(2);
        harness.assert_carries(&two);
        let wait = "no name server has given an address for one.test yet";
        assert!(shown(&harness.config).contains(wait), "{}", shown(&harness.config));
        harness.daemon.wait_log("waiting: no name server has given an address yet for absent.test", PATIENCE);
        // That one of them does not exist turns out too late to be an error of the start.
        slow.name("none.test", "");
        slow.name("one.test", &harness.net.ip(1).to_string());
        if silent {
            slow.release("getaddrinfo");
        }
        let one = harness.caller(1).call_until_taken();
        harness.kernel.wait_state(bit(1) | bit(2), PATIENCE);
        harness.assert_carries(&one);
        harness.assert_carries(&two);
        assert!(!shown(&harness.config).contains(wait));
        assert_eq!(harness.daemon.log_count("node 2: session ended"), 0);
        harness.stop();
        for name in ["one", "none"] {
            std::fs::remove_file(slow.dir.path.join(format!("name-{name}.test"))).unwrap();
        }
    }
}

/// Conditions without which the daemon cannot run are waited for before it starts: it answers the control socket, names
/// them, ends at once when it is asked to, and starts when they hold.
#[test]
fn at_boot_the_own_address_and_the_modules_are_waited_for() {
    let Some(slow) = Slow::new() else { return };
    for (call, word) in [("getaddrinfo", "zero.test"), ("open-modules", "kernel modules")] {
        let net = Subnet::claim();
        let builder = ConfigBuilder::new(&net, 0).node(0, "zero.test").node(1, &net.ip(1).to_string());
        let config = builder.build();
        let modules = config.dir.path.join("modules");
        std::fs::write(&modules, "hadm_kmod 16384 0 - Live 0x0\n").unwrap();
        slow.name("zero.test", &net.ip(0).to_string());
        for ends in [true, false] {
            slow.hold(call);
            let mut command = Daemon::command(&net, &config, 0);
            let mut daemon = Daemon::spawn(slow.preload(command.arg("--modules").arg(&modules)), "n0");
            daemon.wait_log(word, PATIENCE);
            redial("control socket", PATIENCE, || {
                hadmctl(&config, &["status"]).status.success().then_some(())
            });
            let status = shown(&config);
            assert!(status.contains("not started yet") && status.contains(word), "{status}");
            let answer: Value =
                serde_json::from_slice(&hadmctl(&config, &["status", "--json"]).stdout).unwrap();
            // Before the start there is no more than this to tell.
            let fields: Vec<_> = answer.as_object().unwrap().keys().collect();
            assert_eq!(fields, ["kernel", "peers", "pid", "uptime_s", "version", "waiting"]);
            assert_eq!(Status::read(&answer).unwrap().json().to_string(), answer.to_string());
            let refused = hadmctl(&config, &["reload"]);
            assert_eq!(refused.status.code(), Some(5));
            if ends {
                let began = Instant::now();
                daemon.term();
                assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(0));
                assert!(began.elapsed() < ms(2000), "ended only after {:?}", began.elapsed());
                assert_eq!(daemon.log_count("not started yet"), 1, "told once");
                slow.release(call);
                continue;
            }
            slow.release(call);
            daemon.wait_log(" ready:", PATIENCE);
            let kernel = FakeKernel::attach(&net, 0);
            assert!(!shown(&config).contains("waiting"), "{}", shown(&config));
            drop(kernel);
            daemon.stop();
        }
    }
}

/// A name that does not exist does not pass by itself: exit status 2, as for every wrong configuration.
#[test]
fn at_boot_a_name_that_does_not_exist_is_an_error() {
    let Some(slow) = Slow::new() else { return };
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 1).node(1, "one.test").build();
    slow.name("one.test", "");
    let mut command = Daemon::command(&net, &config, 0);
    let mut daemon = Daemon::spawn(slow.preload(command.arg("--no-kmod-check")), "n0");
    assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(2));
    assert_eq!(daemon.log_count("one.test"), 1, "{:?}", daemon.log());
    assert!(!config.control(0).exists());
}

/// The machine's host name is set after the daemon's start, and changed later: the node is found when there is a name,
/// and stays what it was found as.
#[test]
fn the_host_name_may_come_late_and_change() {
    let works = Command::new("unshare").args(["--uts", "true"]).status();
    if !rustix::process::geteuid().is_root() || !works.is_ok_and(|status| status.success()) {
        eprintln!("skipped: needs root and `unshare`: the_host_name_may_come_late_and_change");
        return;
    }
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    for unset in ["localhost", "(none)"] {
        let mut command = Command::new("unshare");
        command.args([
            "--uts",
            "sh",
            "-c",
            &format!("printf '{unset}' > /proc/sys/kernel/hostname; exec \"$@\""),
            "sh",
        ]);
        command.arg(env!("CARGO_BIN_EXE_hadmd")).arg("-c").arg(&config.path).arg("--no-kmod-check");
        command.args(["--server", &net.server(0).to_string(), "--log", "stderr"]);
        let daemon = Daemon::spawn(command.arg("--control").arg(config.control(0)), "n0");
        daemon.wait_log(&format!("waiting: this machine has no host name yet, but \"{unset}\""), PATIENCE);
        let named = |name: &str| {
            let mut nsenter = Command::new("nsenter");
            nsenter.args(["--uts", "--target", &daemon.pid().to_string(), "hostname", name]);
            assert!(nsenter.status().unwrap().success());
        };
        redial("control socket", PATIENCE, || hadmctl(&config, &["status"]).status.success().then_some(()));
        assert!(shown(&config).contains("no host name yet"), "{}", shown(&config));
        named("n0");
        daemon.wait_log("ready: node 0 (n0)", PATIENCE);
        named("elsewhere");
        let reload = hadmctl(&config, &["reload"]);
        assert!(reload.status.success(), "{}", String::from_utf8_lossy(&reload.stderr));
        let plan = hadmctl(&config, &["plan", config.path.to_str().unwrap()]);
        assert!(plan.status.success(), "{}", String::from_utf8_lossy(&plan.stderr));
        let doctor = String::from_utf8(hadmctl(&config, &["doctor"]).stdout).unwrap();
        assert!(
            doctor.contains("this machine is elsewhere; the daemon runs as n0 since its start"),
            "{doctor}"
        );
        daemon.signal(Signal::HUP);
        redial("SIGHUP", PATIENCE, || (daemon.log_count("configuration reloaded") == 2).then_some(()));
        daemon.stop();
    }
}

/// A log that nobody reads, a pipe that is full, delays neither the kernel module's states nor the end.
#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 3).build();
    let mut command = Daemon::command(&net, &config, 0);
    // Every packet header is a line.
    command.args(["-v", "--no-kmod-check"]).stderr(Stdio::piped()).stdin(Stdio::null());
    let mut daemon = command.spawn().unwrap();
    let kernel = redial("attaching", PATIENCE, || FakeKernel::try_attach(&net, 0).ok());
    let peer = Caller::new(&net, 2, 0).call_until_taken();
    kernel.wait_state(bit(2), PATIENCE);
    // Far more lines than pipe and queue hold.
    for seq in 0..10_000 {
        peer.data.send(&Packet::data(seq, bit(0), 0));
        assert_eq!(kernel.data.recv(), Packet::data(seq, bit(0), 0));
    }
    peer.kill();
    kernel.wait_state(0, ms(1000));
    shown(&config);
    let pid = rustix::process::Pid::from_child(&daemon);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    let status = redial("end", ms(8000), || daemon.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

/// The address for metrics may come later, as every own address.
#[test]
fn metrics_are_served_at_an_address_that_is_not_there_yet() {
    let net = Subnet::claim();
    // A documentation address, which no interface has.
    let config = ConfigBuilder::new(&net, 2).set("metrics", "192.0.2.77:9464").build();
    let daemon = Daemon::start(&net, &config, 0);
    daemon.wait_log("waiting: address 192.0.2.77 (metrics) is on no interface of this machine", PATIENCE);
    daemon.stop();
}
