//! The PID file: locked while the daemon runs, whole or not there, and removed at its end.
//!
//! Another program's file is neither replaced nor removed: an existing file has to be a PID file, a small one that
//! holds a number or nothing, and no link. Called by `hadmd` once.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::warn;
use rustix::fs::{CWD, FlockOperation, OFlags, RenameFlags, flock, renameat_with};

/// Longest content in bytes that a PID file has: a number of 64 bits, and its line end.
const CONTENT_MAX: u64 = 24;

/// One tick in Linux's data about processes. The time since the system's start has two decimals: the same unit.
const TICK: Duration = Duration::from_millis(10);
/// Time by which the clocks of files and processes may differ.
const PRECISION: Duration = Duration::from_secs(1);

/// A PID file with this process's number in it.
pub struct PidFile {
    path: PathBuf,
    lock: File,
}

impl PidFile {
    /// Locks the file and writes this process's number to it.
    ///
    /// # Errors
    /// A sentence for the operator: the existing file is no PID file, another daemon has it, or it cannot be written.
    /// It is unchanged then.
    pub fn take(path: &Path) -> Result<Self, String> {
        let place = path.display();
        let content = format!("{}\n", std::process::id());
        let fail = |error| format!("cannot write PID file {place}: {error}");
        // Neither through a link that somebody may have put there, nor waiting for a pipe's reader.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
        let held = match OpenOptions::new().read(true).write(true).custom_flags(flags).open(path) {
            Ok(old) => {
                let file = check(&old).map(|()| old);
                let file = file.map_err(|why| {
                    format!("{place} is no PID file: {why}; option --pidfile names another")
                })?;
                lock(&file, path)?;
                // Its directory may be one in which this user makes no files. This few bytes are written as a whole
                // or not at all.
                file.write_all_at(content.as_bytes(), 0)
                    .and_then(|()| file.set_len(content.len() as u64))
                    .map_err(fail)?;
                file
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => make(path, &content).map_err(fail)?,
            Err(error) => return Err(format!("cannot open PID file {place}: {error}")),
        };
        Ok(PidFile { path: path.into(), lock: held })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // A file that somebody has put in its place stays.
        let id = |about: fs::Metadata| (about.dev(), about.ino());
        let ours = self.lock.metadata().map(id).ok();
        if ours.is_none() || fs::symlink_metadata(&self.path).map(id).ok() != ours {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            warn!("cannot remove PID file {}: {error}", self.path.display());
        }
    }
}

/// Checks that it is a file that holds a number, or nothing.
///
/// # Errors
/// The kind of the file.
fn check(mut file: &File) -> Result<(), String> {
    let about = file.metadata().map_err(|error| error.to_string())?;
    if !about.is_file() {
        return Err("it is not a regular file".into());
    }
    let mut content = Vec::new();
    let read = (&mut file).take(CONTENT_MAX.saturating_add(1)).read_to_end(&mut content);
    read.map_err(|error| error.to_string())?;
    let number = content.trim_ascii();
    if content.len() as u64 > CONTENT_MAX || !number.iter().all(u8::is_ascii_digit) {
        return Err("it holds something else than a number".into());
    }
    let id = String::from_utf8_lossy(number).parse().ok().filter(|id| *id != std::process::id());
    match id.filter(|&id| runs_since_before(id, &about)) {
        Some(id) => Err(format!("it is that of process {id}, which runs")),
        None => Ok(()),
    }
}

/// Returns true if a process of this number runs that is older than the file's content: then the content is its own.
/// A younger process has the number of one that is gone.
fn runs_since_before(id: u32, file: &fs::Metadata) -> bool {
    let age = || {
        let uptime = fs::read_to_string("/proc/uptime").ok()?.split(' ').next()?.replace('.', "");
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // The name, in brackets, may hold anything. 19 fields follow it up to the start, in ticks after the system's
        // start.
        let start = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?;
        let ticks = uptime.parse::<u64>().ok()?.saturating_sub(start.parse().ok()?);
        Some(TICK.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX)))
    };
    let written = file.modified().ok().and_then(|at| at.elapsed().ok()).unwrap_or_default();
    age().is_some_and(|age| age.saturating_add(PRECISION) >= written)
}

fn lock(file: &File, path: &Path) -> Result<(), String> {
    flock(file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| format!("PID file {} is in use: another hadmd runs with it", path.display()))
}

/// Makes the file under another name beside its path, locks it, and renames it.
fn make(path: &Path, content: &str) -> io::Result<File> {
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}.new", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&new)?;
    let mut put = || {
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        file.write_all(content.as_bytes())?;
        // Not over another daemon's, made since.
        Ok(renameat_with(CWD, &new, CWD, path, RenameFlags::NOREPLACE)?)
    };
    put().inspect_err(|_: &io::Error| drop(fs::remove_file(&new)))?;
    Ok(file)
}
