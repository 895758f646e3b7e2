//! The users that may attach as the kernel module: root, the daemon's user, and those configured, by the user
//! that owns the calling socket. Packets of others never come in, and none go to them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests"
)]

use std::io;
use std::net::SocketAddr;

use crate::support::*;
use rustix::process::Uid;
use rustix::thread::set_thread_res_uid;

/// A user that no machine has.
const STRANGER: u32 = 54_321;
const OTHER: u32 = 54_322;

/// Runs something as another user, on a thread of its own.
fn as_user<T: Send>(uid: u32, job: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let job = || {
            let uid = Uid::from_raw(uid);
            set_thread_res_uid(uid, uid, uid).unwrap();
            job()
        };
        scope.spawn(job).join().unwrap()
    })
}

/// Returns true if this test may become another user.
fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: only root can become another user");
    }
    root
}

/// The outcome of a first packet of the kernel module.
fn hello(server: SocketAddr, handshake: u8) -> io::Result<std::net::TcpStream> {
    kernel_hello(server, handshake, 7).map(|(stream, _)| stream)
}

/// Neither whole nor with one link, neither before nor beside the module, and root's module does not notice.
#[test]
fn another_user_never_attaches_as_the_kernel_module() {
    if !is_root() {
        return;
    }
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let daemon = Daemon::start(&net, &config, 0);
    let server = net.server(0);
    for handshake in [kind::HS_D, kind::HS_M, kind::HS_D] {
        assert!(as_user(STRANGER, || hello(server, handshake)).is_err());
    }
    let line = daemon.wait_log("refused a kernel module from", PATIENCE);
    assert!(line.contains(&format!("user {STRANGER}")) && line.contains("kerneluser"), "{line}");
    // One link of the module is there: nobody else brings the other.
    let data = hello(server, kind::HS_D).unwrap();
    assert!(as_user(STRANGER, || hello(server, kind::HS_M)).is_err());
    let meta = hello(server, kind::HS_M).unwrap();
    daemon.wait_log("(user 0)", PATIENCE);
    drop((data, meta));
    daemon.wait_log("detached", PATIENCE);
    let kernel = FakeKernel::reattach(&net, 0);
    let harness = Harness::of(daemon, kernel, 0, config, net);
    let peer = harness.call(1);
    for handshake in [kind::HS_D, kind::HS_M] {
        assert!(as_user(STRANGER, || hello(server, handshake)).is_err());
    }
    harness.assert_carries(&peer);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_hadmctl"))
        .arg("--control")
        .arg(harness.config.control(0))
        .args(["status", "--json"])
        .output()
        .unwrap();
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["refused"]["kernel module's user"], 6, "{}", status["refused"]);
    harness.stop();
}

/// Element `kerneluser` lets one user in, or all; both links still have to be one user's.
#[test]
fn the_configuration_names_who_may_attach() {
    if !is_root() {
        return;
    }
    let net = Subnet::claim();
    let server = net.server(0);
    let attach = || FakeKernel::try_attach(&net, 0);
    for (named, others) in [(STRANGER.to_string(), false), ("any".into(), true)] {
        let config = ConfigBuilder::new(&net, 2).set("kerneluser", named).build();
        let daemon = Daemon::start(&net, &config, 0);
        let kernel = as_user(STRANGER, attach).unwrap();
        daemon.wait_log(&format!("(user {STRANGER})"), PATIENCE);
        drop(kernel);
        daemon.wait_log("detached", PATIENCE);
        let first = redial("one link", PATIENCE, || as_user(STRANGER, || hello(server, kind::HS_D)).ok());
        assert!(hello(server, kind::HS_M).is_err(), "root's meta link beside another user's data link");
        daemon.wait_log("its other link is another user's", PATIENCE);
        drop(first);
        let other = redial("an end", PATIENCE, || match as_user(OTHER, attach) {
            Err(_) if others => None,
            done => Some(done.is_ok()),
        });
        assert_eq!(other, others);
        daemon.stop();
    }
    let config = ConfigBuilder::new(&net, 2).set("kerneluser", "no-such-user").build();
    let mut command = Daemon::binary();
    let output =
        command.arg("--check").arg("-c").arg(&config.path).args(["--hostname", "n0"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(2) && said.contains("<kerneluser>") && said.contains("/etc/passwd"),
        "{said}"
    );
}

/// A caller whose socket cannot be found on this machine is refused, here one in another network namespace.
#[test]
fn a_caller_from_elsewhere_is_refused_unless_any_may_attach() {
    if !is_root() {
        return;
    }
    let id = std::process::id();
    let (here, there) = (format!("hku{id}a"), format!("hku{id}b"));
    let run = |args: &str| {
        let output = std::process::Command::new("ip").args(args.split(' ')).output();
        output.is_ok_and(|output| output.status.success())
    };
    struct Netns(String);
    impl Drop for Netns {
        fn drop(&mut self) {
            let _ = std::process::Command::new("ip").args(["netns", "del", &self.0]).output();
        }
    }
    let space = Netns(there.clone());
    let (low, high) = (id % 250, id / 250 % 250);
    let made = run(&format!("netns add {there}"))
        && run(&format!("link add {here} type veth peer name {there} netns {there}"))
        && run(&format!("addr add 10.{high}.{low}.1/30 dev {here}"))
        && run(&format!("link set {here} up"))
        && run(&format!("-n {there} addr add 10.{high}.{low}.2/30 dev {there}"))
        && run(&format!("-n {there} link set {there} up"));
    if !made {
        return eprintln!("SKIPPED: no network namespace can be made");
    }
    let net = Subnet::claim();
    let server: SocketAddr = format!("10.{high}.{low}.1:9998").parse().unwrap();
    // Root's, there: a hello, and what comes back is counted.
    let script = format!(
        "exec 3<>/dev/tcp/10.{high}.{low}.1/9998; head -c 12 /dev/zero >&3; printf '\\x39' >&3; \
         head -c 115 /dev/zero >&3; timeout 5 head -c 128 <&3 | wc -c"
    );
    for (named, answer) in [("0", "0"), ("any", "128")] {
        let config = ConfigBuilder::new(&net, 2).set("kerneluser", named).build();
        let mut command = Daemon::command(&net, &config, 0);
        let daemon = Daemon::spawn(command.args(["--no-kmod-check", "--server", &server.to_string()]), "n0");
        daemon.wait_log(" ready:", PATIENCE);
        let output = redial("a connection", PATIENCE, || {
            let output = std::process::Command::new("ip")
                .args(["netns", "exec", &there, "bash", "-c", &script])
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            // The link comes up in its own time.
            (!said.is_empty() && output.stderr.is_empty()).then_some(said)
        });
        assert_eq!(output, answer);
        if named == "0" {
            let line = daemon.wait_log("refused a kernel module from", PATIENCE);
            assert!(line.contains("user unknown") && line.contains("kerneluser with any"), "{line}");
        }
        daemon.stop();
    }
    drop(space);
}
