//! Protection of a program that a disk depends on: its memory, its standing with the memory killer, and its own writes.
//!
//! If the system does not permit one of them, that is an error to be logged, and the program works without. Called by
//! hadm-nbd at its start, before there are threads.

use std::fs;
use std::io;

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Resource, getrlimit};

/// The operation of prctl(2); libc has no name for it.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// The number of CAP_IPC_LOCK among the capabilities.
const IPC_LOCK: u32 = 14;

/// Returns true if this program may lock as much memory as it likes.
fn may_lock() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    effective.is_some_and(|bits| bits >> IPC_LOCK & 1 == 1) || getrlimit(Resource::Memlock).current.is_none()
}

/// Keeps all memory, present and future, from being paged out once it has been used. Without an unlimited right to it
/// nothing is locked: with a limit, later allocations would fail.
///
/// # Errors
/// The right to it is missing, or the kernel is older than 4.4.
pub fn lock_memory() -> io::Result<()> {
    if !may_lock() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it takes CAP_IPC_LOCK"));
    }
    // Without the last one every stack would be there as a whole.
    Ok(mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)?)
}

/// Tells the system that writing out other programs' memory depends on this one: an allocation here must not wait for that.
/// Threads that are started later inherit it.
///
/// # Errors
/// The right to it is missing (CAP_SYS_RESOURCE), or the kernel is older than 5.6.
pub fn become_io_flusher() -> io::Result<()> {
    // SAFETY: this operation takes and leaves plain numbers, and changes a flag of this thread alone.
    match unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Keeps the memory killer away: -1000 never, 0 as any program.
///
/// # Errors
/// The right to it is missing: CAP_SYS_RESOURCE.
pub fn set_oom_score(score: i16) -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", score.to_string())
}
