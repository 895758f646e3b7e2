//! Clients written by others: what each of them does to an export, and what must come of it. Used by the tests of the
//! server alone and by those of a mirror.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::wait_until;

/// Seconds that a program may take: many times what it takes.
pub const LIMIT: &str = "120";

/// Returns true if the program is there; says so if not.
pub fn has(program: &str, package: &str) -> bool {
    let there = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap();
    if !there.status.success() {
        eprintln!("SKIPPED: {program} is not installed (Debian package {package})");
    }
    there.status.success()
}

/// Runs a program to its end; its output if it succeeds.
#[track_caller]
pub fn run<S: AsRef<str>>(program: &str, args: &[S]) -> String {
    run_for(program, args).unwrap_or_else(|output| panic!("{program} failed:\n{output}"))
}

/// Runs a program to its end; its output, of both kinds, whether it succeeds or not.
pub fn run_for<S: AsRef<str>>(program: &str, args: &[S]) -> Result<String, String> {
    let mut command = Command::new("timeout");
    command.arg(LIMIT).arg(program).args(args.iter().map(AsRef::as_ref)).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    if output.status.success() { Ok(text) } else { Err(text) }
}

/// A file that has data, holes and zeroes in it.
pub fn sample(path: &Path, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut random = fastrand::Rng::with_seed(7);
    for chunk in bytes.chunks_mut(96 * 1024).step_by(3) {
        random.fill(chunk);
    }
    fs::write(path, &bytes).unwrap();
    bytes
}

/// qemu-io writes patterns, zeroes and discards, many at once, and reads them; at least 17 MiB.
pub fn qemu_io_patterns(uri: &str, size: u64) {
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
    ];
    let last = ["write", "read"].map(|command| format!("{command} -P 0x55 {} 512", size - 512));
    let mut args = vec!["-f", "raw"];
    commands
        .into_iter()
        .chain(last.iter().map(String::as_str))
        .for_each(|command| args.extend(["-c", command]));
    args.push(uri);
    let output = run("qemu-io", &args);
    assert!(!output.contains("failed") && !output.contains("error"), "{output}");
    let behind = format!("read {size} 512");
    let refused = run_for("qemu-io", &["-f", "raw", "-c", &behind, uri]);
    assert!(refused.is_err() || refused.as_ref().is_ok_and(|output| output.contains("rror")), "{refused:?}");
}

/// nbdcopy fills all of an export and reads it back, in three ways.
pub fn nbdcopy_both_ways(uri: &str, folder: &Path, size: usize) {
    let (source, back) = (folder.join("source"), folder.join("back"));
    let bytes = sample(&source, size);
    let (source, back_name) = (source.to_str().unwrap(), back.to_str().unwrap());
    for more in [
        &["--connections=8", "--requests=64"][..],
        &["--synchronous"],
        &["--no-extents", "--allocated", "--flush"],
    ] {
        run("nbdcopy", &[more, &[source, uri]].concat());
        fs::File::create(&back).unwrap().set_len(size as u64).unwrap();
        run("nbdcopy", &[more, &[uri, back_name]].concat());
        assert!(fs::read(&back).unwrap() == bytes, "{more:?}");
    }
}

/// fio's jobs, each with its name, its way to verify, and its arguments.
pub const FIO_JOBS: [(&str, &str, &[&str]); 3] = [
    ("md5", "md5", &["--rw=randwrite", "--bs=4k", "--fsync=32"]),
    ("crc32c", "crc32c", &["--rw=randrw", "--bsrange=512-64k", "--bs_unaligned=1"]),
    ("trim", "crc32c", &["--rw=randwrite", "--bs=16k", "--trim_percentage=10", "--trim_verify_zero=1"]),
];

/// Two processes of fio write half of an export each, and verify what they wrote; the size is a multiple of 8 KiB.
pub fn fio_verifies(uri: &str, size: u64, (name, verify, more): (&str, &str, &[&str])) {
    let mut args: Vec<String> = ["--ioengine=nbd", "--thread=0", "--randrepeat=1"].map(String::from).to_vec();
    let own = ["--verify_state_save=0", "--iodepth=32", "--numjobs=2", "--verify_fatal=1"];
    args.extend(own.iter().chain(more).map(|arg| (*arg).to_string()));
    args.extend([format!("--uri={uri}"), format!("--size={}", size / 4)]);
    args.extend([format!("--offset_increment={}", size / 2)]);
    args.extend([format!("--name={name}"), format!("--verify={verify}")]);
    let output = run("fio", &args);
    assert!(output.matches("err= 0").count() == 2 && !output.contains("verify:"), "{output}");
}

/// An export as a file (nbdfuse), as a loop device, and its file system mounted; undone with it, whatever became of the
/// test.
pub struct Mounted {
    fuse: Child,
    disk: PathBuf,
    device: Option<String>,
    pub mount: PathBuf,
    is_mounted: bool,
}

impl Mounted {
    /// Makes the file, in a folder; `None`, and a line that says why, where that cannot be had.
    pub fn file(uri: &str, folder: &Path, size: u64) -> Option<Self> {
        let programs = [
            ("nbdfuse", "nbdfuse"),
            ("mkfs.ext4", "e2fsprogs"),
            ("e2fsck", "e2fsprogs"),
            ("losetup", "mount"),
        ];
        if !programs.iter().all(|(program, package)| has(program, package)) {
            return None;
        }
        if !Path::new("/dev/fuse").exists() {
            eprintln!("SKIPPED: nbdfuse: there is no /dev/fuse");
            return None;
        }
        let (disk, mount) = (folder.join("fuse"), folder.join("mnt"));
        fs::write(&disk, "").unwrap();
        fs::create_dir_all(&mount).unwrap();
        let mut command = Command::new("nbdfuse");
        let mut fuse = command.arg(&disk).arg(uri).stderr(Stdio::null()).spawn().unwrap();
        let mut ended = false;
        wait_until("nbdfuse serves the disk or ends", || {
            ended = fuse.try_wait().unwrap().is_some();
            ended || fs::metadata(&disk).is_ok_and(|file| file.len() == size)
        });
        if ended {
            eprintln!("SKIPPED: nbdfuse may not mount here");
            return None;
        }
        Some(Mounted { fuse, disk, device: None, mount, is_mounted: false })
    }

    /// The file's path.
    pub fn path(&self) -> &str {
        self.disk.to_str().unwrap()
    }

    /// Mounts the file system that is in it; false, and a line that says why, where there is no loop device.
    pub fn mount(&mut self, options: &str) -> bool {
        let Ok(device) = run_for("losetup", &["--find", "--show", self.path()]) else {
            eprintln!("SKIPPED: a file system on nbdfuse: loop devices are not to be had");
            return false;
        };
        let device = self.device.insert(device.trim().to_owned());
        run("mount", &["-o", options, device, self.mount.to_str().unwrap()]);
        self.is_mounted = true;
        true
    }

    /// Unmounts the file system; what is below may be gone.
    pub fn unmount(&mut self) {
        if std::mem::take(&mut self.is_mounted) {
            let mount = self.mount.to_str().unwrap();
            run_for("umount", &[mount]).or_else(|_| run_for("umount", &["-l", mount])).unwrap();
        }
        if let Some(device) = self.device.take() {
            run("losetup", &["-d", &device]);
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.unmount();
        } else if self.is_mounted {
            _ = run_for("umount", &["-l", self.mount.to_str().unwrap_or_default()]);
        }
        if let Some(device) = self.device.take() {
            _ = run_for("losetup", &["-d", &device]);
        }
        _ = run_for("umount", &["-l", self.disk.to_str().unwrap_or_default()]);
        _ = self.fuse.kill();
        _ = self.fuse.wait();
    }
}

/// A file system on nbdfuse: made, filled, thinned out, and clean.
pub fn ext4_is_clean(uri: &str, folder: &Path, size: u64) {
    let Some(mut disk) = Mounted::file(uri, folder, size) else { return };
    run("mkfs.ext4", &["-q", "-F", disk.path()]);
    run("e2fsck", &["-fn", disk.path()]);
    if !disk.mount("discard") {
        return;
    }
    for n in 0..50usize {
        fs::write(disk.mount.join(format!("file{n}")), vec![n as u8; n * 4000]).unwrap();
    }
    for n in (0..50).step_by(3) {
        fs::remove_file(disk.mount.join(format!("file{n}"))).unwrap();
    }
    fs::File::open(disk.mount.join("file49")).unwrap().sync_all().unwrap();
    disk.unmount();
    run("e2fsck", &["-fn", disk.path()]);
}
