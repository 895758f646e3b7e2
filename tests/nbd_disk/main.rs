//! `hadm-nbd init`, `check` and `dump` from outside: what they make, what they refuse, and what they say of damage.
//!
//! Images are made by the real tools where these are there. Every file lies in a folder of the test's own.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod adopt;
mod pair;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use pair::{Pair, assert_parts, tool};

const BLOCK: u64 = 4096;

#[test]
fn fresh_metadata_are_made_checked_and_shown() {
    let pair = Pair::with_disks(100 << 20);
    let said = pair.done(&["init", "data"]);
    assert_parts(
        &said,
        &["left.meta: 100 MiB of data in chunks of 64 KiB, slots for 3 other sites", "primary --force data"],
    );
    assert_parts(
        &pair.done(&["check"]),
        &["resource 0 (data) at site 0: inconsistent, 100 MiB on ", "just created"],
    );
    let dump = pair.done(&["dump", "0"]);
    let parts = [
        "  resource     0 (data)",
        "  site         0",
        "  data         104857600 bytes (100 MiB) of a disk of 104857600 bytes",
        "  chunk        64 KiB, 1600 of them",
        "superblock   1, copy A",
        "  current      just created",
        "  members      sites 0, 1",
        "activity log empty",
        "slot 0       site 1, flags full sync due",
        "  bits         0 of 1600 (0 bytes)",
    ];
    assert_parts(&dump, &parts);
    assert!(!dump.contains("damaged") && !dump.contains("slot 1"), "{dump}");
    // Anybody who looks at the bytes sees what it is.
    let text = String::from_utf8_lossy(&pair.read("left.meta")[..200]).into_owned();
    assert_parts(&text, &["Metadata of hadm-nbd: resource 0 at site 0."]);
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(pair.path("left.meta")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn sizes_and_layouts_are_chosen_or_refused() {
    let pair = Pair::with_disks((10 << 20) + 1000);
    let said = pair.done(&["init", "--chunk", "4K", "--slots", "1", "--log-size", "1M", "data"]);
    assert_parts(
        &said,
        &["10 MiB of data in chunks of 4 KiB, slots for 1 other sites, 3.0 MiB", "The last 1000 bytes of "],
    );
    let dump = pair.done(&["dump"]);
    assert_parts(
        &dump,
        &["of a disk of 10486760 bytes", "ordered log  1 MiB from block 512", "from block 768"],
    );
    let small = Pair::with_disks(4095);
    assert_parts(&small.refused(&["init", "data"]), &["left.disk cannot be mirrored", "from 4096 bytes"]);
    assert!(!small.path("left.meta").exists(), "nothing is left of an attempt");
    let one = Pair::with_disks(4096);
    one.done(&["init", "data"]);
    one.done(&["check", "data"]);
    let huge = Pair::with_disks(1 << 43);
    assert_parts(&huge.refused(&["init", "--chunk", "4K", "--log-size", "9000000T", "data"]), &["overlap"]);
}

/// A disk that replaces another has to count from above what that one counted: other sites remember it.
#[test]
fn the_writes_of_a_new_disk_are_counted_from_the_time_of_its_init() {
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let pair = Pair::with_disks(1 << 20);
    pair.done(&["init", "data"]);
    let dump = pair.done(&["dump"]);
    let count = dump.lines().find_map(|line| line.trim().strip_prefix("write count")).unwrap();
    assert!(count.trim().parse::<u64>().unwrap() >= before, "{count}");
}

#[test]
fn usage_and_configuration_are_exit_2() {
    let pair = Pair::with_disks(1 << 20);
    let wrong: [(&[&str], &str); 6] = [
        (&[], "no command"),
        (&["init"], "needs a resource"),
        (&["init", "mail"], "no resource \"mail\"; there are: data (0)"),
        (&["dump", "1"], "no resource \"1\""),
        (&["check", "--force"], "--force belongs to init"),
        (&["format", "data"], "is no command"),
    ];
    for (args, part) in wrong {
        let (code, out, err) = pair.run_at("left", args);
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}");
        assert_parts(&err, &[part]);
    }
    let (code, _, err) = pair.run_at("nobody", &["check"]);
    assert_eq!(code, 2, "{err}");
    for arg in ["--version", "--help"] {
        let (code, out, err) = pair.run_at("left", &[arg]);
        assert_eq!((code, err.as_str()), (0, ""));
        assert_parts(&out, &["hadm-nbd"]);
    }
}

#[test]
fn disks_that_are_missing_the_same_or_anothers_are_named() {
    let pair = Pair::new();
    assert_parts(&pair.refused(&["init", "data"]), &["left.disk cannot be opened", "truncate -s 10G"]);
    assert_parts(&pair.refused(&["check"]), &["left.meta cannot be opened", "hadm-nbd init"]);
    let pair = Pair::with_disks(1 << 20);
    fs::hard_link(pair.path("left.disk"), pair.path("left.meta")).unwrap();
    assert_parts(
        &pair.refused(&["init", "data"]),
        &["left.meta is in use by another hadm-nbd", "names this disk twice"],
    );
    fs::remove_file(pair.path("left.meta")).unwrap();
    fs::create_dir(pair.path("left.meta")).unwrap();
    assert_parts(
        &pair.refused(&["init", "--force", "data"]),
        &["left.meta is neither a file nor a block device"],
    );
    fs::remove_dir(pair.path("left.meta")).unwrap();
    pair.done(&["init", "data"]);
    // A copy of the other site's metadata.
    fs::copy(pair.path("left.meta"), pair.path("right.meta")).unwrap();
    let (code, out, err) = pair.run_at("right", &["check"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert_parts(&err, &["belongs to resource 0 (\"data\") at site 0, not to resource 0 at site 1"]);
    let (code, out, err) = pair.run_at("right", &["dump"]);
    assert_eq!(code, 1, "{err}");
    assert_parts(&out, &["  site         0"]);
    // A data disk that was cut.
    fs::OpenOptions::new().write(true).open(pair.path("left.disk")).unwrap().set_len(4096).unwrap();
    assert_parts(&pair.refused(&["check"]), &["left.disk has 4096 bytes", "speaks of 1048576"]);
}

/// The content of either disk is named and kept, unless somebody insists.
#[test]
fn init_refuses_what_looks_like_data() {
    type Make = fn(&str) -> bool;
    // In MiB the smallest size that each tool takes.
    let tools: [(&str, u64, &str, Make); 7] = [
        ("ext4", 8, "an ext4 file system", |path| tool("mkfs.ext4", &["-q", "-F", path])),
        ("ext2", 8, "an ext2 file system", |path| tool("mkfs.ext4", &["-q", "-F", "-t", "ext2", path])),
        ("swap", 8, "swap space", |path| tool("mkswap", &[path])),
        ("xfs", 320, "an XFS file system", |path| tool("mkfs.xfs", &["-q", "-f", path])),
        ("btrfs", 128, "a btrfs file system", |path| tool("mkfs.btrfs", &["-q", "-f", path])),
        ("gpt", 8, "a GPT partition table", |path| tool("sgdisk", &["-o", path])),
        ("qcow2", 8, "a qcow2 image", |path| tool("qemu-img", &["create", "-q", "-f", "qcow2", path, "8M"])),
    ];
    for (name, size, what, make) in tools {
        let size = size << 20;
        let pair = Pair::with_disks(size);
        for side in ["left.disk", "left.meta"] {
            let path = pair.path(side);
            fs::File::create(&path).unwrap().set_len(size).unwrap();
            if !make(path.to_str().unwrap()) {
                break;
            }
            let before = pair.read(side);
            let said = pair.refused(&["init", "data"]);
            assert_parts(&said, &[what, side, "Nothing was changed; --force"]);
            assert!(pair.read(side) == before, "{name} was changed");
            if side == "left.meta" {
                let disk = pair.read("left.disk");
                pair.done(&["init", "--force", "data"]);
                pair.done(&["check"]);
                assert!(pair.read("left.disk") == disk, "init never writes to the disk");
            }
            fs::File::create(pair.path("left.disk")).unwrap().set_len(size).unwrap();
        }
    }
    let pair = Pair::with_disks(1 << 20);
    fs::write(pair.path("left.meta"), "Letters, of which there is no copy.").unwrap();
    assert_parts(&pair.refused(&["init", "data"]), &["left.meta holds data of unknown kind (byte 0)"]);
    pair.done(&["init", "--force", "data"]);
    assert_parts(
        &pair.refused(&["init", "data"]),
        &["left.meta holds metadata of hadm-nbd, of resource 0 (\"data\") at site 0"],
    );
    let first = pair.read("left.meta");
    pair.done(&["init", "--force", "data"]);
    assert!(first != pair.read("left.meta"), "another device has another UUID");
}

/// That nobody is asked is no permission to cut off a file system.
#[test]
fn a_file_system_is_cut_off_only_by_its_own_option() {
    let pair = Pair::with_disks((20 << 20) + 1024);
    let disk = pair.path("left.disk");
    // Blocks of 1 KiB: the last one lies behind the last whole block of the mirror.
    if !tool("mkfs.ext4", &["-q", "-F", "-b", "1024", disk.to_str().unwrap(), "20481"]) {
        return;
    }
    for args in [&["init", "data"][..], &["init", "--force", "data"]] {
        assert_parts(
            &pair.refused(args),
            &["an ext4 file system of 20972544 bytes, of which only 20971520", "--cut-off"],
        );
    }
    assert!(!pair.path("left.meta").exists());
    assert_parts(&pair.refused(&["init", "--cut-off", "data"]), &["an ext4 file system", "--force"]);
    pair.done(&["init", "--cut-off", "--force", "data"]);
}

#[test]
fn a_clean_disk_is_one_that_reads_as_zeroes() {
    let pair = Pair::with_disks(64 << 20);
    let at = (32 << 20) + 5;
    pair.write("left.disk", at, b"x");
    assert_parts(&pair.refused(&["init", "--clean", "data"]), &["left.disk does not from byte 33554437 on"]);
    // Zeroes that were written are zeroes, too.
    pair.write("left.disk", at, b"\0");
    pair.done(&["init", "--clean", "data"]);
    let dump = pair.done(&["dump"]);
    assert_parts(
        &dump,
        &["flags        consistent, up to date, all zeroes", "slot 0       site 1, flags none"],
    );
}

#[test]
fn damage_is_told_with_what_it_means() {
    let pair = Pair::with_disks(100 << 20);
    pair.done(&["init", "data"]);
    let whole = pair.read("left.meta");
    // block, what is said of it, whether it is a problem.
    let blocks = [
        (0, "a copy of the label", true),
        (256, "a copy of the label", true),
        (16, "a copy of the superblock", true),
        (32, "a copy of the superblock", true),
        (512, "a piece of a bitmap", true),
        (70, "", false),
    ];
    for (block, meaning, is_problem) in blocks {
        pair.write("left.meta", block * BLOCK + 700, b"torn");
        let (code, out, err) = pair.run_at("left", &["check"]);
        assert_eq!((code, err.as_str()), (i32::from(is_problem), ""), "block {block}: {out}");
        assert_parts(&out, &[meaning]);
        assert_parts(&pair.done(&["dump"]), &[&format!("damaged      block {block}: ")]);
        fs::write(pair.path("left.meta"), &whole).unwrap();
    }
    // A bitmap that is not believed has all bits set.
    pair.write("left.meta", 512 * BLOCK + 700, b"torn");
    assert_parts(
        &pair.done(&["dump"]),
        &["  bits         1600 of 1600 (100 MiB)", "chunks 0 to 1599 (bytes 0 to 104857599)"],
    );
    let (_, out, _) = pair.run_at("left", &["check"]);
    assert_parts(&out, &["100 MiB out of sync with site 1"]);
    fs::write(pair.path("left.meta"), &whole).unwrap();
    for block in [16, 32] {
        pair.write("left.meta", block * BLOCK, &[0; 4096]);
    }
    let (code, out, _) = pair.run_at("left", &["check"]);
    assert_eq!(code, 1);
    assert_parts(&out, &["no superblock is valid", "all of it is copied from another site"]);
    // Cut, and without a label.
    fs::write(pair.path("left.meta"), &whole[..whole.len() - 1]).unwrap();
    assert_parts(&pair.refused(&["check"]), &["left.meta has ", "it was cut"]);
    fs::write(pair.path("left.meta"), vec![0; whole.len()]).unwrap();
    assert_parts(&pair.refused(&["dump"]), &["left.meta holds no metadata"]);
}

#[test]
fn a_disk_in_use_is_shown_and_not_made_anew() {
    use rustix::fs::{FlockOperation, flock};
    let pair = Pair::with_disks(1 << 20);
    pair.done(&["init", "data"]);
    let held = fs::File::open(pair.path("left.meta")).unwrap();
    flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
    pair.done(&["dump"]);
    pair.done(&["check"]);
    for args in [&["init", "data"][..], &["init", "--force", "data"]] {
        assert_parts(&pair.refused(args), &["left.meta is in use by another hadm-nbd"]);
    }
    drop(held);
    let held = fs::File::open(pair.path("left.disk")).unwrap();
    flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert_parts(&pair.refused(&["init", "--force", "data"]), &["left.disk is in use by another hadm-nbd"]);
}

/// A device that is mounted is named with the place where it is.
#[test]
fn a_mounted_device_is_refused() {
    let pair = Pair::with_disks(64 << 20);
    let disk = pair.path("left.disk");
    if !rustix::process::geteuid().is_root() || !Path::new("/usr/sbin/losetup").exists() {
        eprintln!("SKIPPED: only root has loop devices, and by losetup");
        return;
    }
    if !tool("mkfs.ext4", &["-q", "-F", disk.to_str().unwrap()]) {
        return;
    }
    let made = Command::new("/usr/sbin/losetup").args(["--find", "--show"]).arg(&disk).output().unwrap();
    if !made.status.success() {
        eprintln!("SKIPPED: no loop device: {}", String::from_utf8_lossy(&made.stderr));
        return;
    }
    let device = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let place = pair.path("mount");
    fs::create_dir(&place).unwrap();
    let mounted = Command::new("mount").arg(&device).arg(&place).status().unwrap().success();
    let file = pair.refused(&["init", "data"]);
    let xml = fs::read_to_string(pair.path("hadm.xml")).unwrap();
    fs::write(pair.path("hadm.xml"), xml.replace(disk.to_str().unwrap(), &device)).unwrap();
    let on_device = pair.refused(&["init", "data"]);
    if mounted {
        Command::new("umount").arg(&place).status().unwrap();
    }
    let free = pair.run_at("left", &["init", "--force", "data"]);
    Command::new("/usr/sbin/losetup").args(["--detach", &device]).status().unwrap();
    assert_parts(&file, &[&format!("left.disk is in use: {device} is made of it")]);
    if mounted {
        let at = format!("it is mounted at {}", place.display());
        assert_parts(&on_device, &[&format!("disk {device} is in use: "), &at]);
    } else {
        eprintln!("SKIPPED: nothing can be mounted here");
    }
    assert_eq!((free.0, free.2.as_str()), (0, ""), "a device is as good as a file");
}
