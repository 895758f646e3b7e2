//! The mirrored disk of this site, file or block device: reading, writing, zeroes, holes, flush.
//!
//! Every call is positioned and may run beside any other; callers order overlapping ones. A flush that failed once
//! must fail for good: no later flush brings back the data that the system dropped. A full disk is the error of the
//! one request that met it. Called by the runner of the mirror and by the unmirrored volume.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{Advice, FallocateFlags, SeekFrom, fadvise, fallocate, fstatfs, seek};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2};

use super::device::{Access, Device, Part};
use crate::nbd::server::Extent;

/// Offered sizes are multiples of this number of bytes: clients round others up, and write behind the end.
pub const UNIT: u64 = 4096;

/// `TMPFS_MAGIC` of statfs(2).
const TMPFS: u64 = 0x0102_1994;

/// Zeroes to write where the system has nothing quicker, in pieces of 64 KiB: not too much for the program's own
/// image.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// The data disk, open.
#[derive(Debug)]
pub struct DataDisk {
    device: Device,
    size: AtomicU64,
    failed: AtomicBool,
    /// True if the file is in memory: no read waits, though the system does not say so.
    is_in_memory: bool,
    /// True for each call that the system was found not to support here.
    no_punch: AtomicBool,
    no_zero_range: AtomicBool,
    no_wait_free_reads: AtomicBool,
    no_wait_free_writes: AtomicBool,
    /// True if a hole, or an allocated range, is made without writing zeroes.
    fast: OnceLock<[bool; 2]>,
}

impl DataDisk {
    /// Opens a disk and offers `size` bytes of it; without a size, all but the part that is no multiple of [`UNIT`].
    ///
    /// # Errors
    /// The disk cannot be opened, or is smaller: a sentence that names it, and the remedy.
    pub fn open(path: &Path, access: Access, size: Option<u64>) -> Result<DataDisk, String> {
        Self::new(Device::open(path, Part::Data, access)?, size)
    }

    /// Takes a device that is open, and offers `size` bytes of it.
    ///
    /// # Errors
    /// The device is smaller: a sentence that names it, and the remedy.
    pub fn new(device: Device, size: Option<u64>) -> Result<DataDisk, String> {
        let whole = device.size.saturating_sub(device.size % UNIT);
        let size = size.unwrap_or(whole);
        if size > device.size {
            return Err(format!(
                "disk {} has {} bytes, and its metadata speaks of {size}: it was cut, or is another one; correct the \
                 configuration, or restore it",
                device.path.display(),
                device.size
            ));
        }
        let flag = || AtomicBool::new(false);
        let is_in_memory =
            !device.is_block && fstatfs(&device.file).is_ok_and(|fs| fs.f_type as u64 == TMPFS);
        Ok(DataDisk {
            device,
            size: AtomicU64::new(size),
            failed: flag(),
            is_in_memory,
            no_punch: flag(),
            no_zero_range: flag(),
            no_wait_free_reads: flag(),
            no_wait_free_writes: flag(),
            fast: OnceLock::new(),
        })
    }

    /// Returns the number of bytes that are offered.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Returns the number of bytes that the disk has by now, without a part that is no multiple of [`UNIT`].
    ///
    /// # Errors
    /// The system cannot say.
    pub fn size_now(&self) -> io::Result<u64> {
        self.device.size_now().map(|size| size.saturating_sub(size % UNIT))
    }

    /// Offers more of a disk that has grown.
    pub fn grow(&self, size: u64) {
        self.size.fetch_max(size, Ordering::AcqRel);
    }

    /// Returns the device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    fn file(&self) -> &File {
        &self.device.file
    }

    /// Returns true if a flush has failed: the disk's content is not known any more.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Fails if the disk has failed.
    fn alive(&self) -> io::Result<()> {
        match self.has_failed() {
            true => Err(Errno::IO.into()),
            false => Ok(()),
        }
    }

    /// Reads as many bytes as the buffer has. May wait for the disk.
    ///
    /// # Errors
    /// The error of the disk.
    pub fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.alive()?;
        self.file().read_exact_at(buf, offset)
    }

    /// Reads if all of the range is in memory; false: it is not, or the system cannot say. Never waits for the disk.
    ///
    /// # Errors
    /// The error of the disk.
    pub fn read_at_once(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        if self.is_in_memory {
            return self.read(buf, offset).map(|()| true);
        }
        self.alive()?;
        if self.no_wait_free_reads.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let len = buf.len();
        let read = preadv2(self.file(), &mut [IoSliceMut::new(buf)], offset, ReadWriteFlags::NOWAIT);
        at_once(read, len, &self.no_wait_free_reads)
    }

    /// Writes all of it. May wait for the disk.
    ///
    /// # Errors
    /// The error of the disk; a full disk has written nothing or a part.
    pub fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.alive()?;
        self.file().write_all_at(data, offset)
    }

    /// Writes if the system can do so without waiting; false: it cannot, cannot say, or wrote only a part.
    ///
    /// # Errors
    /// The error of the disk.
    pub fn write_at_once(&self, data: &[u8], offset: u64) -> io::Result<bool> {
        self.alive()?;
        if self.no_wait_free_writes.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let written = pwritev2(self.file(), &[IoSlice::new(data)], offset, ReadWriteFlags::NOWAIT);
        at_once(written, data.len(), &self.no_wait_free_writes)
    }

    /// Returns true if the system cannot say whether a write would wait: then no write is done at once.
    pub fn is_blind_for_writes(&self) -> bool {
        self.no_wait_free_writes.load(Ordering::Relaxed)
    }

    /// Waits until all earlier writes are on stable storage, in the device's own cache, too.
    ///
    /// # Errors
    /// This or an earlier flush failed: the disk is out, and may hold anything.
    pub fn flush(&self) -> io::Result<()> {
        self.alive()?;
        self.file().sync_data().inspect_err(|_| self.failed.store(true, Ordering::Release))
    }

    /// Makes a range read as zeroes, in the quickest way there is; with `no_hole` its space stays allocated.
    ///
    /// # Errors
    /// With `fast`, [`Errno::OPNOTSUPP`] and nothing changed if only writing zeroes is left; else the error of the disk.
    pub fn zero(&self, offset: u64, len: u64, no_hole: bool, fast: bool) -> io::Result<()> {
        self.alive()?;
        let (start, end) = self.aligned(offset, len);
        let punch = (FallocateFlags::PUNCH_HOLE, &self.no_punch);
        let range = (FallocateFlags::ZERO_RANGE, &self.no_zero_range);
        for (mode, missing) in [punch, range].into_iter().skip(usize::from(no_hole)) {
            if start < end && self.allocate(mode, missing, start, end)? {
                // The parts of blocks that a device of larger blocks cannot zero.
                self.write_zeroes(offset, start)?;
                return self.write_zeroes(end, offset.saturating_add(len));
            }
        }
        if fast && start < end {
            return Err(Errno::OPNOTSUPP.into());
        }
        self.write_zeroes(offset, offset.saturating_add(len))
    }

    /// Returns true if a range is made to read as zeroes without writing them, with its space allocated (`no_hole`) or not.
    /// A file is tried behind its end, where nothing changes by it; of a device the system says it.
    pub fn zeroes_fast(&self, no_hole: bool) -> bool {
        let [punch, zero] = *self.fast.get_or_init(|| {
            if self.device.is_block {
                return [self.device.zeroes_fast(); 2];
            }
            let Ok(size) = self.device.size_now() else { return [false; 2] };
            let start = size.next_multiple_of(UNIT).saturating_add(UNIT);
            let end = start.saturating_add(UNIT);
            let zero = self.allocate(FallocateFlags::ZERO_RANGE, &self.no_zero_range, start, end);
            // This frees again what the other may have allocated.
            let punch = self.allocate(FallocateFlags::PUNCH_HOLE, &self.no_punch, start, end);
            [punch.unwrap_or(false), zero.unwrap_or(false)]
        });
        if no_hole { zero } else { punch || zero }
    }

    /// Gives a range back to the system. True: all of it reads as zeroes now. False: it may read as anything.
    ///
    /// # Errors
    /// The error of the disk.
    pub fn trim(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.alive()?;
        let (start, end) = self.aligned(offset, len);
        let done = start < end && self.allocate(FallocateFlags::PUNCH_HOLE, &self.no_punch, start, end)?;
        Ok(done && (start, end) == (offset, offset.saturating_add(len)))
    }

    /// Returns the part of a range that the system frees: a device frees whole blocks only.
    fn aligned(&self, offset: u64, len: u64) -> (u64, u64) {
        let end = offset.saturating_add(len);
        match self.device.is_block {
            true => (offset.next_multiple_of(UNIT), end.saturating_sub(end % UNIT)),
            false => (offset, end),
        }
    }

    /// Frees or zeroes a range; returns false if the system does not do so here.
    fn allocate(&self, mode: FallocateFlags, missing: &AtomicBool, start: u64, end: u64) -> io::Result<bool> {
        if missing.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let len = end.saturating_sub(start);
        loop {
            return match fallocate(self.file(), mode | FallocateFlags::KEEP_SIZE, start, len) {
                Ok(()) => Ok(true),
                Err(Errno::INTR) => continue,
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                    missing.store(true, Ordering::Relaxed);
                    Ok(false)
                }
                // A device whose blocks are larger.
                Err(Errno::INVAL) => Ok(false),
                Err(error) => Err(error.into()),
            };
        }
    }

    fn write_zeroes(&self, mut offset: u64, end: u64) -> io::Result<()> {
        while offset < end {
            let len = end.saturating_sub(offset).min(ZEROES.len() as u64);
            let part = usize::try_from(len).ok().and_then(|len| ZEROES.get(..len)).unwrap_or(&ZEROES);
            self.file().write_all_at(part, offset)?;
            offset = offset.saturating_add(len);
        }
        Ok(())
    }

    /// Lets the system read a range into memory soon. Parts for which that is not possible are left out.
    pub fn will_need(&self, offset: u64, len: u64) {
        _ = fadvise(self.file(), offset, std::num::NonZeroU64::new(len), Advice::WillNeed);
    }

    /// Returns the extents of a range, in order, at most `most`, the last of which may end before the range does. A
    /// block device does not report holes, and is all data.
    ///
    /// # Errors
    /// The error of the disk.
    pub fn status(&self, offset: u64, len: u64, most: usize) -> io::Result<Vec<Extent>> {
        self.alive()?;
        let end = offset.saturating_add(len).min(self.size());
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = offset;
        while at < end && extents.len() < most.max(1) {
            let (hole, next) = self.extent(at)?;
            let len = next.min(end).saturating_sub(at);
            extents.push(Extent { len, hole, zero: hole });
            at = at.saturating_add(len);
        }
        Ok(extents)
    }

    /// Returns true if a byte lies in a hole, and the end of that hole, or of the data.
    fn extent(&self, at: u64) -> io::Result<(bool, u64)> {
        if self.device.is_block {
            return Ok((false, u64::MAX));
        }
        match seek(self.file(), SeekFrom::Data(at)) {
            Ok(data) if data > at => return Ok((true, data)),
            Ok(_) => {}
            // No data up to the end.
            Err(Errno::NXIO) => return Ok((true, u64::MAX)),
            // Not every file system reports holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok((false, u64::MAX)),
            Err(error) => return Err(error.into()),
        }
        match seek(self.file(), SeekFrom::Hole(at)) {
            // Another process freed the range in between.
            Ok(hole) if hole <= at => Ok((false, at.saturating_add(1))),
            Ok(hole) => Ok((false, hole)),
            Err(Errno::NXIO) => Ok((false, u64::MAX)),
            Err(error) => Err(error.into()),
        }
    }
}

fn at_once(done: Result<usize, Errno>, wanted: usize, missing: &AtomicBool) -> io::Result<bool> {
    match done {
        Ok(n) => Ok(n == wanted),
        Err(Errno::AGAIN | Errno::INTR) => Ok(false),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
            missing.store(true, Ordering::Relaxed);
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}
