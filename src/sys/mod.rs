//! The few system calls that std does not have. The only module where `unsafe` is allowed, each time with its reason;
//! all public functions are safe.
#![allow(unsafe_code, reason = "each use is argued where it stands")]

mod counter;
pub mod exit;
mod load;
mod memory;
mod netlink;
mod owner;
mod pipe;
mod tcp;

pub use counter::Counter;
pub use load::runnable_threads;
pub use memory::{become_io_flusher, lock_memory, set_oom_score};
pub use netlink::{changes, watch_network};
pub use owner::Owners;
pub use pipe::{Pipe, is_unable, peek, readable_bytes};
pub use tcp::{TcpAccount, tcp_account, watch_tcp};

use std::fs;
use std::io;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use polling::{AsRawSource, AsSource, Event, Poller};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Gid;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};
use socket2::SockRef;

/// Stack of every thread. Its deepest use is writing a log line; pages that are not used cost nothing.
static STACK: AtomicUsize = AtomicUsize::new(128 * 1024);

/// Sets the stack size in bytes of threads that start from now on: digests of a disk need more than a daemon does.
pub fn set_stack(bytes: usize) {
    STACK.store(bytes, Ordering::Relaxed);
}

/// Memory that is needed beside the stack of a new thread.
const SPARE: usize = 1 << 20;

/// Asks the system for memory and gives it back. A new thread maps a signal stack before it does its job, and std
/// panics in it when there is no memory for that: with a stack left by another thread, it came that far.
fn spare_memory() -> io::Result<()> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the system chooses an unused address, and exactly that mapping is given back, unused.
    unsafe {
        let spare = mmap_anonymous(std::ptr::null_mut(), SPARE, protection, MapFlags::PRIVATE)?;
        munmap(spare, SPARE)?;
    }
    Ok(())
}

/// Returns true if the error says that the system, or this process's share of it, has no more descriptors or memory
/// for now.
pub fn is_shortage(error: &io::Error) -> bool {
    let short = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::AGAIN];
    error.raw_os_error().is_some_and(|code| short.iter().any(|errno| errno.raw_os_error() == code))
}

/// Starts a thread. The system cuts its name after 15 bytes.
///
/// # Errors
/// The system refused another thread.
pub fn spawn(name: &str, job: impl FnOnce() + Send + 'static) -> io::Result<()> {
    spare_memory()?;
    // Boxed, so that the code that starts a thread is not there once for each kind of job.
    let job: Box<dyn FnOnce() + Send> = Box::new(job);
    thread::Builder::new().name(name.into()).stack_size(STACK.load(Ordering::Relaxed)).spawn(job).map(drop)
}

/// Runs a job on a thread of its own, waits for its end and returns its result.
///
/// # Errors
/// The system refused another thread, or the job panicked.
pub fn run<T: Send + 'static>(name: &str, job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let thread =
        thread::Builder::new().name(name.into()).stack_size(STACK.load(Ordering::Relaxed)).spawn(job)?;
    thread.join().map_err(|_| io::Error::other("it panicked"))
}

/// Makes freed memory go back to the system. By itself, glibc keeps up to twice as much for each thread as the
/// largest piece it has ever seen freed, here that of the largest packet. To be called before there are threads.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes and leaves plain numbers, and must not run beside another thread's use of itself. Where
    // it refuses a number, as 32-bit systems do the first, glibc's default is good enough.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 4 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 20);
    }
}

/// Returns month (0 to 11), day of the month, hour, minute and second of a moment in this machine's time zone.
pub fn local_time(at: SystemTime) -> [i32; 5] {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let seconds = libc::time_t::try_from(seconds).unwrap_or(0);
    let mut fields = MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are good for the call, and fields that are all zero are a valid `tm`, whatever it does. It
    // reads the variable TZ, and nothing in this program changes a variable.
    let fields = unsafe {
        libc::localtime_r(&seconds, fields.as_mut_ptr());
        fields.assume_init()
    };
    [fields.tm_mon, fields.tm_mday, fields.tm_hour, fields.tm_min, fields.tm_sec]
}

/// Reads available bytes, at most `limit` and as many as the buffer has spare capacity, blocking for the first byte. 0 is
/// the end of the stream, or a buffer without capacity. With `polls` it waits in poll(2), as a reader of a Unix socket
/// should: one that waits in recv(2) is also woken when the other side takes bytes out of its end.
///
/// # Errors
/// Those of `recv(2)`, but never `EINTR`.
pub fn receive(stream: &impl AsFd, buf: &mut BytesMut, limit: usize, polls: bool) -> io::Result<usize> {
    let flags = if polls { libc::MSG_DONTWAIT } else { 0 };
    loop {
        let spare = buf.spare_capacity_mut();
        let room = spare.len().min(limit);
        match SockRef::from(stream).recv_with_flags(spare.split_at_mut(room).0, flags) {
            Ok(n) => {
                // SAFETY: recv has initialised the first n bytes of the spare capacity, and n is not more than that
                // capacity. std has no stable way to read into uninitialised memory.
                unsafe { buf.set_len(buf.len() + n) };
                return Ok(n);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Also without `polls`: the writing side makes the socket non-blocking for moments.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait_readable(stream, None);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Reads available bytes, waiting in poll(2) for the first one, as [`receive`] can. `limit` gives the longest wait.
///
/// # Errors
/// The error of recv(2), but never `EINTR`; `WouldBlock` after `limit`.
pub fn receive_polled(
    stream: &impl AsFd,
    room: &mut [u8],
    limit: impl Fn() -> io::Result<Option<Duration>>,
) -> io::Result<usize> {
    loop {
        match recv(stream, &mut *room, RecvFlags::DONTWAIT) {
            Ok((n, _)) => return Ok(n),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                if !wait_readable(stream, limit()?) {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until there is something to read, or the end, or `limit` is over; returns true unless it is the limit.
fn wait_readable(stream: &impl AsFd, limit: Option<Duration>) -> bool {
    let limit = limit.map(|limit| Timespec::try_from(limit).unwrap_or_default());
    poll(&mut [PollFd::new(stream, PollFlags::IN)], limit.as_ref()) != Ok(0)
}

/// Returns true if a read would not block: there are bytes, or the end, or an error.
pub fn is_readable(stream: &impl AsFd) -> bool {
    wait_readable(stream, Some(Duration::ZERO))
}

/// Writes the parts in one call, as far as the socket takes them at once; `WouldBlock` if it takes nothing.
///
/// # Errors
/// Those of `sendmsg(2)`, but never `EINTR`, and no signal is raised.
pub fn send(stream: &impl AsFd, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    send_with(stream, parts, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

/// Does the same, but waits until the socket takes some; `WouldBlock` is the end of the time that was set for it.
///
/// # Errors
/// Those of `sendmsg(2)`, but never `EINTR`, and no signal is raised.
pub fn send_waiting(stream: &impl AsFd, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    send_with(stream, parts, SendFlags::NOSIGNAL)
}

fn send_with(stream: &impl AsFd, parts: &[IoSlice<'_>], flags: SendFlags) -> io::Result<usize> {
    loop {
        match sendmsg(stream, parts, &mut SendAncillaryBuffer::default(), flags) {
            Err(Errno::INTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

/// Bytes that a Unix socket may have in flight, as far as the system grants them: more than one packet of 1 MiB.
const UNIX_BUFFER: usize = 4 << 20;

/// Returns true if it is a Unix socket.
pub fn is_unix(stream: &TcpStream) -> bool {
    SockRef::from(stream).local_addr().is_ok_and(|address| address.is_unix())
}

/// Makes the buffer of a Unix socket as large as may be; returns false for other sockets.
pub fn enlarge_if_unix(stream: &TcpStream) -> bool {
    let is_unix = is_unix(stream);
    if is_unix {
        // The system may grant less.
        let _ = SockRef::from(stream).set_send_buffer_size(UNIX_BUFFER);
    }
    is_unix
}

/// Waits until a good part of the socket's buffer is free, its connection ends, or `limit` is over; returns true
/// unless it is the limit.
pub fn wait_writable(stream: &impl AsFd, limit: Duration) -> bool {
    let limit = Timespec::try_from(limit).unwrap_or_default();
    !matches!(poll(&mut [PollFd::new(stream, PollFlags::OUT)], Some(&limit)), Ok(0) | Err(Errno::INTR))
}

/// The errors that connections meet, each with its name.
const ERRORS: [(Errno, &str); 20] = [
    (Errno::ACCESS, "EACCES"),
    (Errno::ADDRINUSE, "EADDRINUSE"),
    (Errno::ADDRNOTAVAIL, "EADDRNOTAVAIL"),
    (Errno::AGAIN, "EAGAIN"),
    (Errno::BADF, "EBADF"),
    (Errno::CONNABORTED, "ECONNABORTED"),
    (Errno::CONNREFUSED, "ECONNREFUSED"),
    (Errno::CONNRESET, "ECONNRESET"),
    (Errno::HOSTDOWN, "EHOSTDOWN"),
    (Errno::HOSTUNREACH, "EHOSTUNREACH"),
    (Errno::INVAL, "EINVAL"),
    (Errno::MFILE, "EMFILE"),
    (Errno::NETDOWN, "ENETDOWN"),
    (Errno::NETUNREACH, "ENETUNREACH"),
    (Errno::NFILE, "ENFILE"),
    (Errno::NOBUFS, "ENOBUFS"),
    (Errno::NOMEM, "ENOMEM"),
    (Errno::PERM, "EPERM"),
    (Errno::PIPE, "EPIPE"),
    (Errno::TIMEDOUT, "ETIMEDOUT"),
];

/// Returns the name of a system error number, for those that connections meet.
pub fn errno_name(number: i32) -> Option<&'static str> {
    ERRORS.iter().find(|(errno, _)| errno.raw_os_error() == number).map(|(_, name)| *name)
}

/// Returns true if a system error number is about the network, not about either end.
pub fn is_networks(number: i32) -> bool {
    let networks = [Errno::HOSTDOWN, Errno::HOSTUNREACH, Errno::NETDOWN, Errno::NETUNREACH, Errno::TIMEDOUT];
    networks.iter().any(|errno| errno.raw_os_error() == number)
}

/// Returns true if the other side has closed its end, or the connection is broken; never blocks.
pub fn hung_up(stream: &impl AsFd) -> bool {
    let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let mut fds = [PollFd::new(stream, gone)];
    poll(&mut fds, Some(&Default::default())).is_ok_and(|n| n > 0)
}

/// Returns the id of a user, from /etc/passwd.
pub fn user_id(name: &str) -> Option<u32> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let mut lines = users.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| (fields.next() == Some(name)).then(|| fields.nth(1))?)?.parse().ok()
}

/// Returns the id of a group, from /etc/group.
pub fn group_id(name: &str) -> Option<Gid> {
    let groups = fs::read_to_string("/etc/group").ok()?;
    let mut lines = groups.lines().map(|line| line.split(':'));
    let number = lines.find_map(|mut fields| (fields.next() == Some(name)).then(|| fields.nth(1))?)?;
    number.parse().ok().map(Gid::from_raw)
}

/// A socket that is registered with a poller for as long as it is in here.
pub struct Registered<S: AsFd> {
    // Taken out only by `release`.
    socket: Option<S>,
    poller: Arc<Poller>,
}

impl<S: AsFd> Registered<S>
where
    for<'a> &'a S: AsRawSource,
    S: AsSource,
{
    /// Registers the socket for one event.
    ///
    /// # Errors
    /// Those of the poller.
    pub fn new(poller: &Arc<Poller>, socket: S, interest: Event) -> io::Result<Self> {
        // SAFETY: the source must be deleted from the poller before it is dropped. Drop and release do,
        // and nothing else takes the socket out of here.
        unsafe { poller.add(&socket, interest)? };
        Ok(Registered { socket: Some(socket), poller: Arc::clone(poller) })
    }
}

impl<S: AsSource> Registered<S> {
    /// Arms the registration for one more event.
    ///
    /// # Errors
    /// Those of the poller.
    pub fn rearm(&self, interest: Event) -> io::Result<()> {
        self.socket.as_ref().map_or(Ok(()), |socket| self.poller.modify(socket, interest))
    }

    /// Returns the socket.
    pub fn get(&self) -> Option<&S> {
        self.socket.as_ref()
    }

    /// Takes the socket out of the poller.
    pub fn release(mut self) -> Option<S> {
        let socket = self.socket.take()?;
        // An error means that it is registered no longer, which is the purpose.
        let _ = self.poller.delete(&socket);
        Some(socket)
    }
}

impl<S: AsFd> Drop for Registered<S> {
    fn drop(&mut self) {
        if let Some(socket) = self.socket.take() {
            let _ = self.poller.delete(socket.as_fd());
        }
    }
}
