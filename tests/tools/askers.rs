//! Those who may ask and those who only reach a port: none of them stops, fills or locks out a daemon.
//!
//! Files that cost more than they say, clients of the control socket and of the metrics that are silent, dead or too many.
//! Nothing here goes by the library's own code but the binaries.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests"
)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use serde_json::Value;

use crate::support::*;

/// Files that are as long as a configuration may be, and full of something of which the reader has to look at each.
fn hostile_files() -> Vec<(&'static str, String)> {
    let net = Subnet::claim();
    let whole = ConfigBuilder::new(&net, 2).render();
    let with = |place: &str, what: String| whole.replacen(place, &format!("{what}{place}"), 1);
    let attributes: String = (0..80_000).map(|n| format!(" a{n}=''")).collect();
    let nodes = |n: usize| -> String { (0..n).map(|n| format!("<node><id>{n}</id></node>")).collect() };
    vec![
        ("attributes", with("</global>", format!("<x{attributes}/>"))),
        ("namespaces", with("</global>", (0..20_000).map(|n| format!("<x xmlns:a{n}='b{n}'/>")).collect())),
        ("unknown elements", with("</global>", "<pingtime/>".repeat(70_000))),
        ("unknown elements, long", with("</global>", format!("<{}/>", "pingtimeou".repeat(80_000)))),
        ("unknown texts", with("</global>", "x<y/>".repeat(160_000))),
        ("depth", with("</global>", format!("{}{}", "<a>".repeat(100_000), "</a>".repeat(100_000)))),
        ("nodes", with("</nodes>", nodes(30_000))),
        ("values", with("</global>", "<serverip>no</serverip>".repeat(35_000))),
        ("one value", with("</global>", format!("<kmodport>{}</kmodport>", "1".repeat(800_000)))),
        ("no XML", with("</global>", "<".repeat(800_000))),
        ("wrong end", with("</global>", format!("</{}>", "x".repeat(800_000)))),
    ]
}

/// Judged in a second, in few lines: by the daemon's check, by its start and by `hadmctl check`.
#[test]
fn a_file_full_of_anything_is_judged_at_once_and_in_few_lines() {
    let dir = TempDir::new();
    let path = dir.path.join("hostile.xml");
    for (what, text) in hostile_files() {
        fs::write(&path, &text).unwrap();
        let file = path.to_str().unwrap();
        let (daemon, tool) = (env!("CARGO_BIN_EXE_hadmd"), env!("CARGO_BIN_EXE_hadmctl"));
        for command in [
            vec![daemon, "--check", "--hostname", "n9", "-c", file],
            vec![daemon, "--hostname", "n9", "--no-kmod-check", "-c", file],
            vec![tool, "check", file, "--hostname", "n9"],
        ] {
            let began = Instant::now();
            let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
            let took = began.elapsed();
            let said = [output.stdout, output.stderr].concat();
            let lines = said.iter().filter(|&&byte| byte == b'\n').count();
            assert_eq!(output.status.code(), Some(2), "{what}, {command:?}");
            assert!(lines <= 203, "{what}, {command:?}: {lines} lines");
            assert!(said.len() < 100_000, "{what}, {command:?}: {} bytes", said.len());
            // A second of this machine alone; it is built without optimisation here, and has other things to do.
            assert!(took < ms(3000), "{what}, {command:?}: {took:?}");
        }
    }
}

fn hadmctl(harness: &Harness, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
    command.arg("--control").arg(harness.config.control(harness.node)).args(args);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Eight at a time, by any user that may ask: the daemon stays small, goes on, and its log stays short.
#[test]
fn plans_of_hostile_files_cost_the_daemon_next_to_nothing() {
    let harness = Harness::new(2);
    let peer = harness.call(1);
    let files = hostile_files();
    let (before, lines) = (harness.daemon.status("VmRSS"), harness.daemon.log().len());
    let dir = TempDir::new();
    for (what, content) in files {
        let path = dir.path.join("plan.xml");
        fs::write(&path, content).unwrap();
        let ticks = harness.daemon.cpu_ticks();
        let plan = || hadmctl(&harness, &["plan", path.to_str().unwrap()]).output().unwrap();
        let answers: Vec<Output> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(plan)).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        for Output { stdout, stderr, .. } in answers {
            assert!(stdout.len() + stderr.len() < 100_000, "{what}: {} bytes", stdout.len() + stderr.len());
        }
        let ticks = harness.daemon.cpu_ticks() - ticks;
        // Eight times a second of processor time of a build without optimisation.
        assert!(ticks < 800, "{what}: {ticks} ticks");
        harness.assert_carries(&peer);
    }
    let peak = harness.daemon.status("VmHWM");
    assert!(peak < before + 60 * 1024, "{before} KiB before, {peak} KiB at the most");
    let log = harness.daemon.log();
    assert!(log.len() < lines + 40, "{} lines were logged", log.len() - lines);
    harness.stop();
}

/// A plan's warnings go to the client, a reload's also to the log.
#[test]
fn warnings_are_told_to_who_asked() {
    let harness = Harness::new(2);
    let doubtful = ConfigBuilder::new(&harness.net, 2).set("pingtimeoutt", 3).render();
    let path = harness.config.dir.path.join("doubtful.xml");
    fs::write(&path, &doubtful).unwrap();
    let output = hadmctl(&harness, &["plan", path.to_str().unwrap()]).output().unwrap();
    let said = text(&output.stdout);
    assert!(
        output.status.success() && said.contains("doubtful.xml:") && said.contains("<pingtimeoutt>"),
        "{said}"
    );
    let output = hadmctl(&harness, &["plan", "--json", path.to_str().unwrap()]).output().unwrap();
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(plan["warnings"][0].as_str().unwrap().contains("<pingtimeoutt>"), "{plan}");
    assert_eq!(harness.daemon.log_count("pingtimeoutt"), 0);
    fs::write(&harness.config.path, &doubtful).unwrap();
    assert!(hadmctl(&harness, &["reload"]).status().unwrap().success());
    assert_eq!(harness.daemon.log_count("pingtimeoutt"), 1);
    harness.stop();
}

/// Asks for the version until it is there, at most for this long.
#[track_caller]
fn is_answered_within(harness: &Harness, limit: std::time::Duration) {
    redial("an answer", limit, || {
        hadmctl(harness, &["version"]).output().unwrap().status.success().then_some(())
    });
}

fn stream(harness: &Harness, command: &str) -> Child {
    let mut child = hadmctl(harness, &[command, "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    if command == "events" {
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    }
    child
}

/// Streams that were interrupted give their places back though there is no event to send.
#[test]
fn interrupted_streams_give_their_places_back_at_once() {
    let harness = Harness::new(2);
    for command in ["events", "trace", "events"] {
        // With those of before there would be no room.
        let mut streams: Vec<Child> = (0..12).map(|_| stream(&harness, command)).collect();
        is_answered_within(&harness, ms(2000));
        for child in &mut streams {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        redial("room for a stream", ms(2000), || {
            let answer = ask(&harness, "{\"v\":1,\"cmd\":\"events\"}\n")?;
            answer.contains("\"ok\":true").then_some(())
        });
    }
    harness.stop();
}

/// The first line that comes back.
fn ask(harness: &Harness, request: &str) -> Option<String> {
    let mut client = UnixStream::connect(harness.config.control(harness.node)).ok()?;
    client.write_all(request.as_bytes()).ok()?;
    let mut line = String::new();
    BufReader::new(&client).read_line(&mut line).ok()?;
    Some(line)
}

/// Silent clients make space for one that asks, and are disconnected after their time.
#[test]
fn silent_clients_lock_nobody_out() {
    let harness = Harness::new(2);
    let began = Instant::now();
    let mut silent: Vec<UnixStream> =
        (0..16).map(|_| UnixStream::connect(harness.config.control(0)).unwrap()).collect();
    for _ in 0..3 {
        is_answered_within(&harness, ms(2000));
    }
    for client in &mut silent {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        // Half a request is none.
        let _ = client.write_all(b"{\"v\":1,");
        let mut said = String::new();
        let _ = client.read_to_string(&mut said);
        assert!(said.is_empty() || said.contains("no request within 5 s"), "{said}");
    }
    assert!(began.elapsed() < ms(12_000), "{:?}", began.elapsed());
    harness.stop();
}

/// Returns true if this test may become another user.
fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: only root can become another user");
    }
    root
}

/// Users who hold all the places they can get leave some to others, and some to root.
#[test]
fn no_user_takes_all_places() {
    if !is_root() {
        return;
    }
    let harness = Harness::new(2);
    let control = harness.config.control(0);
    // The right to ask is not the subject here.
    fs::set_permissions(&control, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let listen = |uid: u32| {
        let mut command = hadmctl(&harness, &["events"]);
        let mut child = command.uid(uid).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        (child, line.contains("kernel module"))
    };
    let one: Vec<_> = (0..10).map(|_| listen(54_321)).collect();
    assert_eq!(one.iter().filter(|(_, listens)| *listens).count(), 8);
    let other: Vec<_> = (0..6).map(|_| listen(54_322)).collect();
    assert_eq!(other.iter().filter(|(_, listens)| *listens).count(), 4);
    is_answered_within(&harness, ms(2000));
    for (mut child, _) in one.into_iter().chain(other) {
        let _ = child.kill();
        child.wait().unwrap();
    }
    harness.stop();
}

/// Starts a daemon that cannot run with this option, and gives what it says.
fn refused(option: &str, path: &Path) -> String {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let mut command = Daemon::binary();
    command.arg("-c").arg(&config.path).args(["--hostname", "n0", "--no-kmod-check", "--log", "stderr"]);
    command.args(["--server", &net.server(0).to_string()]);
    let output = command.arg(option).arg(path).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    text(&output.stderr)
}

/// An existing file is not replaced or removed, unless it is a socket at which nobody listens.
#[test]
fn a_control_socket_replaces_nothing_else() {
    let dir = TempDir::new();
    let at = |name: &str| dir.path.join(name);
    fs::write(at("file"), "precious").unwrap();
    fs::write(at("empty"), "").unwrap();
    symlink(at("file"), at("link")).unwrap();
    symlink(at("nowhere"), at("dangling")).unwrap();
    let _used = UnixListener::bind(at("used")).unwrap();
    let _datagrams = UnixDatagram::bind(at("datagrams")).unwrap();
    symlink(at("used"), at("link-to-socket")).unwrap();
    for name in ["file", "empty", "link", "dangling", "used", "datagrams", "link-to-socket"] {
        let said = refused("--control", &at(name));
        assert!(said.contains(name) && said.contains("--control names another"), "{name}: {said}");
        assert!(fs::symlink_metadata(at(name)).is_ok(), "{name} is gone");
    }
    assert_eq!(fs::read_to_string(at("file")).unwrap(), "precious");
    assert!(!at("nowhere").exists());
    drop(UnixListener::bind(at("left")).unwrap());
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let mut command = Daemon::command(&net, &config, 0);
    let daemon = Daemon::spawn(command.arg("--no-kmod-check").arg("--control").arg(at("left")), "n0");
    daemon.wait_log(" ready:", PATIENCE);
    redial("the socket", PATIENCE, || UnixStream::connect(at("left")).ok());
    // Somebody puts something else in its place.
    fs::remove_file(at("left")).unwrap();
    fs::write(at("left"), "precious").unwrap();
    daemon.stop();
    assert_eq!(fs::read_to_string(at("left")).unwrap(), "precious");
}

/// An existing file is not replaced or removed, unless it is a PID file that nobody has any more.
#[test]
fn a_pid_file_replaces_nothing_else() {
    let dir = TempDir::new();
    let at = |name: &str| dir.path.join(name);
    fs::write(at("file"), "precious").unwrap();
    fs::write(at("long"), "1".repeat(100)).unwrap();
    fs::write(at("digits"), "4194305\n").unwrap();
    symlink(at("digits"), at("link")).unwrap();
    symlink(at("nowhere"), at("dangling")).unwrap();
    drop(UnixListener::bind(at("socket")).unwrap());
    // Of this test, which runs.
    fs::write(at("alive"), format!("{}\n", std::process::id())).unwrap();
    for name in ["file", "long", "link", "dangling", "socket", "alive"] {
        let before = fs::read(at(name)).ok();
        let said = refused("--pidfile", &at(name));
        assert!(said.contains(name), "{name}: {said}");
        assert!(fs::symlink_metadata(at(name)).is_ok(), "{name} is gone");
        assert_eq!(fs::read(at(name)).ok(), before, "{name}");
    }
    assert!(!at("nowhere").exists());
    fs::write(at("blank"), "").unwrap();
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    for name in ["digits", "blank", "new"] {
        let mut command = Daemon::command(&net, &config, 0);
        let daemon = Daemon::spawn(command.arg("--no-kmod-check").arg("--pidfile").arg(at(name)), "n0");
        daemon.wait_log(" ready:", PATIENCE);
        assert_eq!(fs::read_to_string(at(name)).unwrap(), format!("{}\n", daemon.pid()));
        if name == "new" {
            // Somebody puts another in its place.
            fs::remove_file(at(name)).unwrap();
            fs::write(at(name), "1\n").unwrap();
        }
        daemon.stop();
        assert_eq!(at(name).exists(), name == "new");
    }
}

/// On a full disk there is no PID file, and none by another name.
#[test]
fn a_pid_file_on_a_full_disk_leaves_nothing_half_made() {
    if !is_root() {
        return;
    }
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let disk = config.dir.path.join("disk");
    fs::create_dir(&disk).unwrap();
    let script = r#"mount -t tmpfs -o size=16k full "$1" || { echo SKIPPED; exit; }
        disk=$1; shift
        cat /dev/zero > "$disk/filler" 2> /dev/null
        "$@" --pidfile "$disk/pid"; echo "status $?"; ls "$disk"
        umount "$disk""#;
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, "sh"]).arg(&disk).arg(env!("CARGO_BIN_EXE_hadmd"));
    command.arg("-c").arg(&config.path).args(["--hostname", "n0", "--no-kmod-check", "--log", "stderr"]);
    command.args(["--server", &net.server(0).to_string()]);
    let Ok(output) = command.output() else { return eprintln!("SKIPPED: no unshare") };
    let (said, why) = (text(&output.stdout), text(&output.stderr));
    if said.contains("SKIPPED") || said.is_empty() {
        return eprintln!("SKIPPED: no disk can be mounted: {why}");
    }
    assert_eq!(said, "status 1\nfiller\n", "{why}");
    assert!(why.contains("cannot write PID file") && why.contains("No space left"), "{why}");
}
