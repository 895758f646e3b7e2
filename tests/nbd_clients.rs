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
use std::process::{Command, Stdio};

use hadmd::nbd::server::{Export, Exports, Limits, Server};
use nbd::programs::{
    FIO_JOBS, LIMIT, ext4_is_clean, fio_verifies, has, nbdcopy_both_ways, qemu_io_patterns, run, run_for,
    sample,
};
use nbd::{Folder, Served, file_volume, wait_until};

#[test]
fn qemu_io_reads_what_it_wrote() {
    if !has("qemu-io", "qemu-utils") {
        return;
    }
    let served = Served::sized(64 << 20);
    qemu_io_patterns(&served.uri(), 64 << 20);
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
    nbdcopy_both_ways(&served.uri(), &served.folder.join(""), 160 << 20);
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
    for job in FIO_JOBS {
        fio_verifies(&served.uri(), 64 << 20, job);
    }
}

#[test]
fn a_file_system_on_nbdfuse_is_clean() {
    let served = Served::sized(64 << 20);
    ext4_is_clean(&served.uri(), &served.folder.join(""), 64 << 20);
    // And once more, without anything in between.
    if has("e2fsck", "e2fsprogs") && served.export.connections() == 0 {
        let path = served.folder.join("disk");
        if fs::read(&path).unwrap()[1080..1082] == [0x53, 0xef] {
            run("e2fsck", &["-fn", path.to_str().unwrap()]);
        }
    }
    wait_until("its connections have ended", || served.export.connections() == 0);
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
