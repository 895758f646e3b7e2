//! Opens a disk, file or block device, and keeps others from using it at the same time.
//!
//! Must never open anything but these two kinds, and never waits for another user of the disk, but for the moment in
//! which udev looks at a device. Errors name the disk, the fault, and the remedy. Called by the store, by the data
//! disk and by `init`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{FallocateFlags, FlockOperation, OFlags, SeekFrom, fallocate, flock, major, minor, seek};
use rustix::io::Errno;

use super::users;

/// Number of attempts to open a device that is in use, and their distance: udev uses it for milliseconds.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// One of a resource's two disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The mirrored disk.
    Data,
    /// The metadata.
    Metadata,
}

impl Part {
    /// Returns the element of the configuration that names this disk.
    pub fn element(self) -> &'static str {
        match self {
            Part::Data => "disk",
            Part::Metadata => "bwr_disk",
        }
    }
}

/// The purpose for which a disk is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To read only, even if it is in use.
    Look,
    /// To write; nobody else may use it, and no file system on it may be mounted.
    Own,
    /// To write, even if the system says that it is in use. Another `hadm-nbd` is never disturbed.
    Seize,
}

/// An open disk.
#[derive(Debug)]
pub struct Device {
    /// The open file.
    pub file: File,
    /// Its path, as the configuration has it.
    pub path: PathBuf,
    /// Its size in bytes when it was opened.
    pub size: u64,
    /// True if it is a block device, false if it is a file.
    pub is_block: bool,
}

impl Device {
    /// Opens a disk.
    ///
    /// # Errors
    /// The fault, in a sentence with the remedy.
    pub fn open(path: &Path, part: Part, access: Access) -> Result<Device, String> {
        let (name, place) = (part.element(), path.display());
        let kind = std::fs::metadata(path).map_err(|error| missing(path, part, &error))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(format!(
                "{name} {place} is neither a file nor a block device; correct <{name}> in the configuration"
            ));
        }
        let is_block = kind.is_block_device();
        let file = open_file(path, is_block, access).map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::BUSY) => busy(path, part),
            Some(Errno::ROFS) => {
                format!("{name} {place} is read-only; give it write access, or another disk")
            }
            _ => missing(path, part, &error),
        })?;
        if access != Access::Look {
            lock(&file, is_block).map_err(|error| match error {
                Errno::WOULDBLOCK => format!(
                    "{name} {place} is in use by another hadm-nbd; stop that one, or correct the configuration if it \
                     names this disk twice"
                ),
                other => format!("{name} {place} cannot be locked: {other}"),
            })?;
            if access == Access::Own && !is_block {
                if let Some(user) = users::of_file(path) {
                    return Err(format!("{name} {place} is in use: {user}; free it first"));
                }
            }
        }
        let size = size_of(&file, is_block).map_err(|error| missing(path, part, &error))?;
        Ok(Device { file, path: path.into(), size, is_block })
    }

    /// Gives a metadata file `wanted` bytes of space now, so that no later write finds the file system full. A larger
    /// file or device stays as it is.
    ///
    /// # Errors
    /// There is no space, or the device is smaller: a sentence with the remedy.
    pub fn reserve(&self, wanted: u64) -> Result<(), String> {
        let place = self.path.display();
        let size = self.size_now().map_err(|error| format!("bwr_disk {place}: {error}"))?;
        if size < wanted && self.is_block {
            return Err(format!(
                "bwr_disk {place} has {size} bytes, and {wanted} are needed; make it larger or take a larger one; at init, also \
                 larger chunks (--chunk) or a smaller log (--log-size) help"
            ));
        }
        if self.is_block {
            return Ok(());
        }
        let fail = |error: io::Error| format!("bwr_disk {place} cannot have its {wanted} bytes: {error}");
        match fallocate(&self.file, FallocateFlags::empty(), 0, wanted) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) if size < wanted => {
                self.file.set_len(wanted).map_err(fail)?
            }
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(error) => return Err(fail(error.into())),
        }
        Ok(())
    }

    /// Returns its size in bytes at present.
    ///
    /// # Errors
    /// The system cannot say.
    pub fn size_now(&self) -> io::Result<u64> {
        size_of(&self.file, self.is_block)
    }

    /// Returns true if the block device zeroes a range without being sent zeroes, as far as the system knows.
    pub fn zeroes_fast(&self) -> bool {
        let Ok(meta) = self.file.metadata() else { return false };
        let device = format!("/sys/dev/block/{}:{}", major(meta.rdev()), minor(meta.rdev()));
        // A partition has the queue of its disk.
        let queues = ["queue", "../queue"].map(|queue| format!("{device}/{queue}/write_zeroes_max_bytes"));
        let most = queues.iter().find_map(|file| std::fs::read_to_string(file).ok());
        most.and_then(|most| most.trim().parse::<u64>().ok()).is_some_and(|most| most > 0)
    }

    /// Returns true if both are one and the same file or device.
    pub fn is_same(&self, other: &Device) -> bool {
        let (Ok(a), Ok(b)) = (self.file.metadata(), other.file.metadata()) else { return false };
        match self.is_block && other.is_block {
            true => a.rdev() == b.rdev(),
            false => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        }
    }
}

fn open_file(path: &Path, is_block: bool, access: Access) -> io::Result<File> {
    let mut flags = OFlags::NONBLOCK;
    if is_block && access == Access::Own {
        // This keeps mounts and other exclusive users of the device away.
        flags |= OFlags::EXCL;
    }
    let mut options = OpenOptions::new();
    options.read(true).write(access != Access::Look).custom_flags(flags.bits() as i32);
    let mut tries = 1;
    loop {
        match options.open(path) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::BUSY) && tries < TRIES => {
                tries = tries.saturating_add(1);
                thread::sleep(PAUSE);
            }
            other => return other,
        }
    }
}

/// Takes the lock that keeps other programs of this kind from the disk; it lasts as long as the file is open.
pub(super) fn lock(file: &File, is_block: bool) -> Result<(), Errno> {
    let tries = if is_block { TRIES } else { 1 };
    for _ in 1..tries {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => thread::sleep(PAUSE),
            other => return other,
        }
    }
    flock(file, FlockOperation::NonBlockingLockExclusive)
}

fn size_of(file: &File, is_block: bool) -> io::Result<u64> {
    match is_block {
        true => Ok(seek(file, SeekFrom::End(0))?),
        false => Ok(file.metadata()?.len()),
    }
}

fn missing(path: &Path, part: Part, error: &io::Error) -> String {
    let (name, place) = (part.element(), path.display());
    let remedy = match (error.kind(), part) {
        (io::ErrorKind::NotFound, Part::Data) => {
            format!(
                "make it, for instance with `truncate -s 10G {place}`, or correct <disk> in the configuration"
            )
        }
        (io::ErrorKind::NotFound, Part::Metadata) => {
            "`hadm-nbd init` makes a file of it; or correct <bwr_disk> in the configuration".to_owned()
        }
        (io::ErrorKind::PermissionDenied, _) => "let this user read and write it".to_owned(),
        _ => format!("correct <{name}> in the configuration"),
    };
    format!("{name} {place} cannot be opened ({error}); {remedy}")
}

fn busy(path: &Path, part: Part) -> String {
    let device = std::fs::metadata(path).ok().map(|meta| (major(meta.rdev()), minor(meta.rdev())));
    let user = device.and_then(|(major, minor)| users::of_device(major, minor));
    let user = user.unwrap_or_else(|| "something in the system holds it".to_owned());
    format!("{} {} is in use: {user}; free it first", part.element(), path.display())
}
