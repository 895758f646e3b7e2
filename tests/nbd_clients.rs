//! The NBD server with clients written by others: what is written is there, what is refused is refused, and nothing hangs.
//! A client that is not installed is said to be SKIPPED.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test that cannot go on has failed"
)]

#[path = "nbd/mod.rs"]
mod nbd;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use hadmd::nbd::server::{Export, Exports, Limits, Server};
use nbd::{Folder, Served, file_volume, wait_until};

/// Seconds that a client may take: many times what it takes.
const LIMIT: &str = "120";

/// Returns true if the program is there; says so if not.
fn has(program: &str, package: &str) -> bool {
    let there = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap();
    if !there.status.success() {
        eprintln!("SKIPPED: {program} is not installed (Debian package {package})");
    }
    there.status.success()
}

/// Runs a program to its end; its output if it succeeds.
#[track_caller]
fn run<S: AsRef<str>>(program: &str, args: &[S]) -> String {
    run_for(program, args).unwrap_or_else(|output| panic!("{program} failed:\n{output}"))
}

/// Runs a program to its end; its output, of both kinds, whether it succeeds or not.
fn run_for<S: AsRef<str>>(program: &str, args: &[S]) -> Result<String, String> {
    let mut command = Command::new("timeout");
    command.arg(LIMIT).arg(program).args(args.iter().map(AsRef::as_ref)).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    if output.status.success() { Ok(text) } else { Err(text) }
}

/// A file that has data, holes and zeroes in it.
fn sample(path: &Path, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut random = fastrand::Rng::with_seed(7);
    for chunk in bytes.chunks_mut(96 * 1024).step_by(3) {
        random.fill(chunk);
    }
    fs::write(path, &bytes).unwrap();
    bytes
}

#[test]
fn qemu_io_reads_what_it_wrote() {
    if !has("qemu-io", "qemu-utils") {
        return;
    }
    let served = Served::sized(64 << 20);
    let commands = [
        "write -P 0x11 0 2M",
        "aio_write -P 0x22 1M 4M",
        "aio_write -P 0x33 8M 256k",
        "aio_flush",
        "write -f -P 0x44 12M 64k",
        "write -z 16M 1M",
        "write -z -u 1M 64k",
        "discard 0 512k",
        "flush",
        "read -P 0x22 1088k 3072k",
        "read -P 0 1M 64k",
        "read -P 0x33 8M 256k",
        "read -P 0x44 12M 64k",
        "read -P 0 0 512k",
        "read -P 0x11 512k 512k",
        "write -P 0x55 67108352 512",
        "read -P 0x55 67108352 512",
    ];
    let mut args = vec!["-f", "raw"];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    let uri = served.uri();
    args.push(&uri);
    let output = run("qemu-io", &args);
    assert!(!output.contains("failed") && !output.contains("error"), "{output}");
    let refused = run_for("qemu-io", &["-f", "raw", "-c", "read 64M 512", &uri]);
    assert!(refused.is_err() || refused.as_ref().is_ok_and(|output| output.contains("rror")), "{refused:?}");
}

#[test]
fn qemu_img_converts_compares_checks_and_maps() {
    if !has("qemu-img", "qemu-utils") {
        return;
    }
    let served = Served::sized(24 << 20);
    let (source, copy) = (served.folder.join("source"), served.folder.join("copy.qcow2"));
    sample(&source, 24 << 20);
    let (source, copy, uri) = (source.to_str().unwrap(), copy.to_str().unwrap(), served.uri());
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", "-W", source, &uri]);
    assert!(run("qemu-img", &["compare", "-f", "raw", "-F", "raw", source, &uri]).contains("identical"));
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, copy]);
    run("qemu-img", &["check", copy]);
    assert!(run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &uri, copy]).contains("identical"));
    let map = run("qemu-img", &["map", "-f", "raw", "--output=json", &uri]);
    assert!(map.contains("\"data\": true") && map.contains("\"data\": false"), "{map}");
}

#[test]
fn nbdcopy_copies_both_ways_over_many_connections() {
    if !has("nbdcopy", "libnbd-bin") {
        return;
    }
    let served = Served::sized(160 << 20);
    let (source, back) = (served.folder.join("source"), served.folder.join("back"));
    let bytes = sample(&source, 160 << 20);
    let (source, back_name, uri) = (source.to_str().unwrap(), back.to_str().unwrap(), served.uri());
    for more in [
        &["--connections=8", "--requests=64"][..],
        &["--synchronous"],
        &["--no-extents", "--allocated", "--flush"],
    ] {
        run("nbdcopy", &[more, &[source, &uri]].concat());
        fs::File::create(&back).unwrap().set_len(160 << 20).unwrap();
        run("nbdcopy", &[more, &[&uri, back_name]].concat());
        assert!(fs::read(&back).unwrap() == bytes, "{more:?}");
    }
}

#[test]
fn nbdinfo_shows_exports_sizes_and_abilities() {
    if !has("nbdinfo", "libnbd-bin") {
        return;
    }
    let folder = Folder::new();
    let server = Server::new(Limits::default());
    let exports = ["r0", "r1"].map(Export::new);
    for export in &exports {
        export.open(file_volume(&folder.join(export.name()), 5 << 20));
    }
    let socket = folder.join("s");
    let _listener = server.listen_unix(&socket, None, Exports::new(exports)).unwrap();
    let uri = |name: &str| format!("nbd+unix:///{name}?socket={}", socket.display());
    let list = run("nbdinfo", &["--list", &uri("")]);
    assert!(list.contains("export=\"r0\"") && list.contains("export=\"r1\""), "{list}");
    assert_eq!(run("nbdinfo", &["--size", &uri("r1")]).trim(), (5 << 20).to_string());
    for can in [
        "cache",
        "df",
        "fast-zero",
        "flush",
        "fua",
        "multi-conn",
        "trim",
        "zero",
        "write",
        "structured-reply",
    ] {
        run("nbdinfo", &[format!("--can={can}"), uri("r0")]);
    }
    let map = run("nbdinfo", &["--map", &uri("r0")]);
    assert!(map.contains("hole,zero"), "{map}");
    assert!(run_for("nbdinfo", &[uri("r2")]).is_err_and(|output| output.contains("r2")));
}

/// The script for libnbd's Python part; `h` is not connected, and each command is checked here and not by the client.
const ERRORS: &str = r#"
import errno, os
h.set_strict_mode(0)
h.set_request_structured_replies(os.environ["STRUCTURED"] == "yes")
h.add_meta_context("base:allocation")
h.connect_uri(os.environ["URI"])
size = h.get_size()

def fails(code, call):
    try:
        call()
    except nbd.Error as error:
        assert error.errnum == code, (error, errno.errorcode[code])
        return
    raise AssertionError("it was not refused")

for offset, count in [(size, 1), (size - 1, 2), (2**63, 512)]:
    fails(errno.EINVAL, lambda: h.pread(count, offset))
    fails(errno.ENOSPC, lambda: h.pwrite(bytearray(count), offset))
    fails(errno.EINVAL, lambda: h.trim(count, offset))
    fails(errno.EINVAL, lambda: h.cache(count, offset))
    fails(errno.ENOSPC, lambda: h.zero(count, offset))
for call in [h.trim, h.cache, h.zero]:
    fails(errno.ENOSPC if call == h.zero else errno.EINVAL, lambda: call(2**32 - 1, size - 1))
for flag in [nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_REQ_ONE, nbd.CMD_FLAG_FAST_ZERO]:
    fails(errno.EINVAL, lambda: h.pread(512, 0, flag))
    fails(errno.EINVAL, lambda: h.pwrite(bytearray(512), 0, flag))
    fails(errno.EINVAL, lambda: h.trim(512, 0, flag))
if not h.get_structured_replies_negotiated():
    fails(errno.EINVAL, lambda: h.pread(512, 0, nbd.CMD_FLAG_DF))
else:
    assert bytes(h.pread(512, 0, nbd.CMD_FLAG_DF)) == bytes(512)
    extents = []
    h.block_status(size, 0, lambda context, offset, entries, error: extents.append((context, offset, entries)))
    assert extents[0][:2] == ("base:allocation", 0) and sum(extents[0][2][::2]) == size, extents
    fails(errno.EINVAL, lambda: h.block_status(1, size, lambda *rest: 0))

h.pwrite(b"hello", 3, nbd.CMD_FLAG_FUA)
h.flush()
assert bytes(h.pread(7, 2)) == b"\0hello\0"
h.zero(2, 4, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
assert bytes(h.pread(7, 2)) == b"\0h\0\0lo\0"
h.shutdown()
print("DONE")
"#;

#[test]
fn nbdsh_gets_the_error_of_the_specification_for_each_mistake() {
    if !has("nbdsh", "python3-libnbd") {
        return;
    }
    // The distribution's own Python has the module.
    let nbdsh = |script: &str, uri: &str, structured: &str| {
        let mut command = Command::new("timeout");
        command.args([LIMIT, "nbdsh", "-c", script]).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("URI", uri).env("STRUCTURED", structured).output().unwrap()
    };
    if !nbdsh("pass", "", "").status.success() {
        return eprintln!("SKIPPED: nbdsh does not run (Debian package python3-libnbd)");
    }
    for structured in ["yes", "no"] {
        let served = Served::sized(1 << 20);
        let output = nbdsh(ERRORS, &served.uri(), structured);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.stdout == b"DONE\n" && output.status.success(), "{structured}: {text}");
    }
}

#[test]
fn fio_verifies_what_it_wrote_with_flushes_and_trims() {
    if !has("fio", "fio") {
        return;
    }
    let served = Served::sized(64 << 20);
    let uri = served.uri();
    let jobs =
        ["--ioengine=nbd".into(), format!("--uri={uri}"), "--thread=0".into(), "--randrepeat=1".into()];
    for (name, verify, more) in [
        ("md5", "md5", &["--rw=randwrite", "--bs=4k", "--fsync=32"][..]),
        ("crc32c", "crc32c", &["--rw=randrw", "--bsrange=512-64k", "--bs_unaligned=1"]),
        ("trim", "crc32c", &["--rw=randwrite", "--bs=16k", "--trim_percentage=10", "--trim_verify_zero=1"]),
    ] {
        let mut args = jobs.to_vec();
        let own = [
            "--verify_state_save=0",
            "--iodepth=32",
            "--numjobs=2",
            "--size=16m",
            "--offset_increment=32m",
            "--verify_fatal=1",
        ];
        args.extend(own.iter().chain(more).map(|arg| (*arg).to_string()));
        args.extend([format!("--name={name}"), format!("--verify={verify}")]);
        let output = run("fio", &args);
        assert!(output.matches("err= 0").count() == 2 && !output.contains("verify:"), "{output}");
    }
}

/// Unmounts and detaches, whatever became of the test.
struct Undo(Vec<Vec<String>>);

impl Drop for Undo {
    fn drop(&mut self) {
        for command in self.0.iter().rev() {
            let _ = run_for(&command[0], &command[1..]);
        }
    }
}

#[test]
fn a_file_system_on_nbdfuse_is_clean() {
    let programs =
        [("nbdfuse", "nbdfuse"), ("mkfs.ext4", "e2fsprogs"), ("e2fsck", "e2fsprogs"), ("losetup", "mount")];
    if programs.iter().any(|(program, package)| !has(program, package)) {
        return;
    }
    if !Path::new("/dev/fuse").exists() {
        return eprintln!("SKIPPED: nbdfuse: there is no /dev/fuse");
    }
    let served = Served::sized(64 << 20);
    let (disk, mount) = (served.folder.join("fuse"), served.folder.join("mnt"));
    fs::write(&disk, "").unwrap();
    fs::create_dir(&mount).unwrap();
    let (disk, mount_name) = (disk.to_str().unwrap(), mount.to_str().unwrap());
    let mut undo = Undo(Vec::new());
    let mut fuse = match Command::new("nbdfuse").args([disk, &served.uri()]).stderr(Stdio::null()).spawn() {
        Ok(child) => child,
        Err(error) => return eprintln!("SKIPPED: nbdfuse does not start: {error}"),
    };
    let mut ended = false;
    wait_until("nbdfuse serves the disk or ends", || {
        ended = fuse.try_wait().unwrap().is_some();
        ended || fs::metadata(disk).is_ok_and(|file| file.len() == 64 << 20)
    });
    if ended {
        return eprintln!("SKIPPED: nbdfuse may not mount here");
    }
    undo.0.push(["umount", disk].map(String::from).to_vec());
    run("mkfs.ext4", &["-q", "-F", disk]);
    run("e2fsck", &["-fn", disk]);
    let Ok(device) = run_for("losetup", &["--find", "--show", disk]) else {
        fuse_ends(undo, fuse);
        return eprintln!("SKIPPED: a file system on nbdfuse: loop devices are not to be had");
    };
    let device = device.trim();
    undo.0.push(["losetup", "-d", device].map(String::from).to_vec());
    run("mount", &["-o", "discard", device, mount_name]);
    undo.0.push(["umount", mount_name].map(String::from).to_vec());
    for n in 0..50usize {
        fs::write(mount.join(format!("file{n}")), vec![n as u8; n * 4000]).unwrap();
    }
    for n in (0..50).step_by(3) {
        fs::remove_file(mount.join(format!("file{n}"))).unwrap();
    }
    fs::File::open(mount.join("file49")).unwrap().sync_all().unwrap();
    // Half of them are undone by hand: the file system is looked at between.
    let umount = undo.0.pop().unwrap();
    run(&umount[0], &umount[1..]);
    let detach = undo.0.pop().unwrap();
    run(&detach[0], &detach[1..]);
    run("e2fsck", &["-fn", disk]);
    fuse_ends(undo, fuse);
    // And once more, without anything in between.
    let path = served.folder.join("disk");
    run("e2fsck", &["-fn", path.to_str().unwrap()]);
    wait_until("its connections have ended", || served.export.connections() == 0);
}

/// Unmounts nbdfuse and waits for its end.
fn fuse_ends(undo: Undo, mut fuse: std::process::Child) {
    drop(undo);
    wait_until("nbdfuse ends", || fuse.try_wait().unwrap().is_some());
}

#[test]
fn clients_see_an_error_and_not_a_hang_when_the_export_closes() {
    if !has("fio", "fio") {
        return;
    }
    let served = Served::sized(64 << 20);
    let mut command = Command::new("timeout");
    command.args([
        LIMIT,
        "fio",
        "--name=closing",
        "--ioengine=nbd",
        "--rw=randrw",
        "--iodepth=16",
        "--size=64m",
    ]);
    command.args(["--time_based", "--runtime=100"]).arg(format!("--uri={}", served.uri()));
    let mut client = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("fio is connected", || served.export.connections() == 1);
    served.export.close();
    assert!(served.export.wait_idle(nbd::PATIENCE));
    wait_until("fio has ended", || client.try_wait().unwrap().is_some_and(|status| !status.success()));
}
