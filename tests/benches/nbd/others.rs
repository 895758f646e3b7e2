//! The contestants that others have written: qemu-storage-daemon, GlusterFS, nbdkit and nbdcopy. One that is not here is
//! named with its package. They end when the value is dropped.

use std::fs::File;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};

use crate::RANGE;
use crate::fio::{self, Job, Run};
use crate::support::Daemon;

/// An address that is none of loopback's: GlusterFS refuses those. Given to the loopback interface.
pub const OWN: &str = "198.51.100.1";

/// Longest time for a program to be ready.
const PATIENCE: Duration = Duration::from_secs(30);

/// A contestant.
pub struct Other {
    pub name: &'static str,
    pub takes: fn(&Job) -> bool,
    /// fio's engine and its options.
    engine: Vec<String>,
    _programs: Vec<Daemon>,
    _files: Folder,
}

impl Other {
    pub fn run(&self, job: Job, time: Option<Duration>) -> Run {
        let engine: Vec<&str> = self.engine.iter().map(String::as_str).collect();
        fio::run(&engine, job, time)
    }
}

/// A folder for disks, which goes with its value.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(disks: &Path, name: &str) -> Self {
        let path = disks.join(format!("hadm-bench-{}-{name}-{}", std::process::id(), fastrand::u32(..)));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str, size: u64) -> String {
        let path = self.0.join(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        path.display().to_string()
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Returns true if a program is installed; else it says what would bring it.
pub fn has(program: &str, remedy: &str) -> bool {
    let mut command = Command::new(program);
    let found = command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_err() {
        println!("{program} is not installed ({remedy}): its rows are left out");
    }
    found.is_ok()
}

fn wait(what: &str, mut is_ready: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_ready() {
        assert!(Instant::now() < end, "{what} is not ready");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn spawn(program: &str, args: &[String]) -> Daemon {
    Daemon::spawn(Command::new(program).args(args), program)
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A local file and a file behind NBD over TCP, of which a write needs both.
pub fn quorum(disks: &Path) -> Option<Other> {
    const PROGRAM: &str = "qemu-storage-daemon";
    has(PROGRAM, "package qemu-utils").then_some(())?;
    let files = Folder::new(disks, "quorum");
    let port = free_port();
    let file = |name: &str| format!("driver=file,node-name=file,filename={}", files.file(name, RANGE));
    let args = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
    let export = |node: &str| format!("type=nbd,id=export,node-name={node},name=,writable=on");
    let far = spawn(
        PROGRAM,
        &args(&[
            "--blockdev",
            &file("far"),
            "--nbd-server",
            &format!("addr.type=inet,addr.host=127.0.0.1,addr.port={port}"),
            "--export",
            &export("file"),
        ]),
    );
    wait(PROGRAM, || TcpStream::connect(("127.0.0.1", port)).is_ok());
    let socket = files.path("socket");
    let near = spawn(
        PROGRAM,
        &args(&[
            "--blockdev",
            &file("near"),
            "--blockdev",
            &format!(
                "driver=nbd,node-name=far,server.type=inet,server.host=127.0.0.1,server.port={port},export="
            ),
            "--blockdev",
            "driver=quorum,node-name=both,vote-threshold=2,children.0=file,children.1=far",
            "--nbd-server",
            &format!("addr.type=unix,addr.path={socket}"),
            "--export",
            &export("both"),
        ]),
    );
    wait(PROGRAM, || UnixStream::connect(&socket).is_ok());
    Some(Other {
        name: "quorum",
        takes: |job| job.kind.ends_with("write"),
        engine: vec!["--ioengine=nbd".into(), format!("--uri=nbd+unix:///?socket={socket}")],
        _programs: vec![near, far],
        _files: files,
    })
}

/// nbdkit's file plugin: no mirror at all.
pub fn nbdkit(disks: &Path) -> Option<Other> {
    has("nbdkit", "package nbdkit").then_some(())?;
    let files = Folder::new(disks, "nbdkit");
    let (socket, file) = (files.path("socket"), files.file("disk", RANGE));
    let args = ["--foreground", "--exit-with-parent", "--unix", &socket, "file", &file];
    let program = spawn("nbdkit", &args.map(str::to_owned));
    wait("nbdkit", || UnixStream::connect(&socket).is_ok());
    Some(Other {
        name: "nbdkit",
        takes: |job| job.kind.ends_with("read") || job.block == "1m",
        engine: vec!["--ioengine=nbd".into(), format!("--uri=nbd+unix:///?socket={socket}")],
        _programs: vec![program],
        _files: files,
    })
}

/// Copies a file by nbdcopy to nbdkit's file plugin over TCP; the time that it takes.
pub fn copy(from: &Path, disks: &Path) -> Option<Duration> {
    let installed = has("nbdkit", "package nbdkit") && has("nbdcopy", "package libnbd-bin");
    installed.then_some(())?;
    let files = Folder::new(disks, "nbdcopy");
    let size = from.metadata().unwrap().len();
    let file = files.file("disk", size);
    // It has its room already, like the disk that a resync writes to.
    let room = File::options().write(true).open(&file).unwrap();
    fallocate(room, FallocateFlags::empty(), 0, size).unwrap();
    let port = free_port().to_string();
    let args =
        ["--foreground", "--exit-with-parent", "--ipaddr", "127.0.0.1", "--port", &port, "file", &file];
    let _program = spawn("nbdkit", &args.map(str::to_owned));
    wait("nbdkit", || TcpStream::connect(format!("127.0.0.1:{port}")).is_ok());
    let began = Instant::now();
    let done = Command::new("nbdcopy").arg(from).arg(format!("nbd://127.0.0.1:{port}")).status().unwrap();
    assert!(done.success(), "nbdcopy: {done}");
    Some(began.elapsed())
}

/// A replicated volume of two bricks, with its own library as the client. Its write-behind is switched off: it would
/// answer writes that no brick has.
pub fn gluster(disks: &Path) -> Option<Other> {
    has("glusterd", "package glusterfs-server").then_some(())?;
    let gluster = |words: &str| {
        let mut command = Command::new("gluster");
        command.arg("--mode=script").args(words.split(' ')).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    // Its state and its sockets have fixed places: without a mount namespace that is this one's own it would be the
    // machine's.
    if std::env::var_os("HADM_BENCH_INSIDE").is_none() {
        println!("GlusterFS needs root, unshare and ip: its rows are left out");
        return None;
    }
    let files = Folder::new(disks, "gluster");
    for (name, place) in [("state", "/var/lib/glusterd"), ("log", "/var/log/glusterfs"), ("run", "/run")] {
        let own = files.path(name);
        std::fs::create_dir_all(&own).unwrap();
        if name == "state" {
            let copied = Command::new("cp").args(["-a", &format!("{place}/."), &own]).status();
            assert!(copied.unwrap().success());
        }
        assert!(Command::new("mount").args(["--bind", &own, place]).status().unwrap().success());
    }
    let program = spawn("glusterd", &["-N".to_owned()]);
    wait("glusterd", || gluster("volume list"));
    let bricks = format!("{OWN}:{} {OWN}:{}", files.path("brick0"), files.path("brick1"));
    assert!(gluster(&format!("volume create bench replica 2 {bricks} force")), "no volume");
    assert!(gluster("volume set bench performance.write-behind off"));
    assert!(gluster("volume start bench"));
    let engine = ["--ioengine=gfapi_async", "--volume=bench", "--filename=disk", "--thread"];
    let engine = engine.map(str::to_owned).into_iter().chain([format!("--brick={OWN}")]).collect();
    Some(Other {
        name: "gluster",
        takes: |job| job.kind == "randwrite",
        engine,
        _programs: vec![program],
        _files: files,
    })
}
