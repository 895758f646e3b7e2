//! Two sites with files of their own, `hadm-nbd` run at either, and the tools that make images.
//!
//! Used by the tests of this folder only.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::TempDir;

/// Two sites, `left` and `right`, each with files of its own for resource 0, `data`.
pub struct Pair {
    dir: TempDir,
}

impl Pair {
    pub fn new() -> Self {
        let pair = Pair { dir: TempDir::new() };
        let sample =
            fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("etc/mirror.xml")).unwrap();
        let (left, right) = sample.split_once("<id>1</id>\n          <ip>").expect("two runsites");
        let at = |text: &str, side: &str| {
            let text =
                text.replace("/var/lib/hadm/data.disk", pair.path(&format!("{side}.disk")).to_str().unwrap());
            text.replace("/var/lib/hadm/data.meta", pair.path(&format!("{side}.meta")).to_str().unwrap())
        };
        let text = format!("{}<id>1</id>\n          <ip>{}", at(left, "left"), at(right, "right"));
        fs::write(pair.path("hadm.xml"), text).unwrap();
        pair
    }

    /// With data disks of this many bytes.
    pub fn with_disks(size: u64) -> Self {
        let pair = Self::new();
        for side in ["left", "right"] {
            fs::File::create(pair.path(&format!("{side}.disk"))).unwrap().set_len(size).unwrap();
        }
        pair
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path.join(name)
    }

    pub fn run_at(&self, side: &str, args: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hadm-nbd"));
        command.arg("-c").arg(self.path("hadm.xml")).args(["--hostname", side]).args(args);
        let Output { status, stdout, stderr } = command.output().unwrap();
        (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
    }

    #[track_caller]
    pub fn done(&self, args: &[&str]) -> String {
        let (code, out, err) = self.run_at("left", args);
        assert_eq!((code, err.as_str()), (0, ""), "{args:?}: {out}");
        out
    }

    /// Returns the stderr of a command that fails.
    #[track_caller]
    pub fn refused(&self, args: &[&str]) -> String {
        let (code, out, err) = self.run_at("left", args);
        assert_eq!((code, out.as_str()), (1, ""), "{args:?}: {err}");
        err
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    pub fn write(&self, name: &str, at: u64, bytes: &[u8]) {
        let file = fs::OpenOptions::new().write(true).open(self.path(name)).unwrap();
        file.write_all_at(bytes, at).unwrap();
    }
}

/// Runs a tool; false and a line if it is missing.
pub fn tool(name: &str, args: &[&str]) -> bool {
    let places = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    let Some(path) = places.iter().map(|place| Path::new(place).join(name)).find(|path| path.exists()) else {
        eprintln!("SKIPPED: {name} is not installed");
        return false;
    };
    let done = Command::new(path).args(args).output().unwrap();
    assert!(done.status.success(), "{name} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    true
}

#[track_caller]
pub fn assert_parts(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}
