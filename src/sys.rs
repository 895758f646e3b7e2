//! The few calls to the system that std has no word for. The only room where `unsafe` is allowed, each with
//! its reason; whoever calls this room sees safe functions.
#![allow(unsafe_code, reason = "each use is argued where it stands")]

use std::io;
use std::io::IoSlice;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;

use bytes::BytesMut;
use polling::{AsRawSource, AsSource, Event, Poller};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType, bind, sendmsg, socket_with,
};
use socket2::{SockRef, Socket};

/// Stack of every thread. Its deepest use is writing a log line; pages that are not used cost nothing.
const STACK: usize = 128 * 1024;

/// Memory that has to be there beside the stack of a new thread.
const SPARE: usize = 1 << 20;

/// Asks the system for memory and gives it back. A new thread maps a signal stack before it does its job, and std
/// panics in it when there is no memory for that: with a stack left by another thread, it came so far.
fn spare_memory() -> io::Result<()> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the system chooses the place, where nothing else is, and exactly that is given back, unused.
    unsafe {
        let spare = mmap_anonymous(std::ptr::null_mut(), SPARE, protection, MapFlags::PRIVATE)?;
        munmap(spare, SPARE)?;
    }
    Ok(())
}

/// Whether the error says that the system, or this process's share of it, has no more descriptors or memory for now.
pub fn is_shortage(error: &io::Error) -> bool {
    let short = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::AGAIN];
    error.raw_os_error().is_some_and(|code| short.iter().any(|errno| errno.raw_os_error() == code))
}

/// Starts a thread. The system cuts its name after 15 bytes.
///
/// # Errors
/// The system has no room for another thread.
pub fn spawn(name: &str, job: impl FnOnce() + Send + 'static) -> io::Result<()> {
    spare_memory()?;
    thread::Builder::new().name(name.into()).stack_size(STACK).spawn(job).map(drop)
}

/// Runs a job on a thread of its own and waits for what it gives back.
///
/// # Errors
/// The system has no room for another thread, or the job panicked.
pub fn run<T: Send + 'static>(name: &str, job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let thread = thread::Builder::new().name(name.into()).stack_size(STACK).spawn(job)?;
    thread.join().map_err(|_| io::Error::other("it panicked"))
}

/// Has memory given back to the system when it is free. By itself, glibc keeps up to twice as much for each
/// thread as the largest piece it has ever seen freed, here that of the largest packet. To be called before
/// there are threads.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes and leaves plain numbers, and must not run beside another thread's use of itself.
    // Where it refuses a number, as 32-bit systems do the first, what glibc does by itself is good enough.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 4 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 20);
    }
}

/// Reads what is there, at most as much as the buffer has spare room, blocking for the first byte. 0 is the
/// end of the stream, or a buffer without room.
///
/// # Errors
/// What `recv(2)` says, but never `EINTR`.
pub fn receive(stream: &TcpStream, buf: &mut BytesMut) -> io::Result<usize> {
    loop {
        match SockRef::from(stream).recv(buf.spare_capacity_mut()) {
            Ok(n) => {
                // SAFETY: recv has initialised the first n bytes of the spare room, and n is not more than
                // that room. std has no stable way to read into uninitialised memory.
                unsafe { buf.set_len(buf.len() + n) };
                return Ok(n);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Writes the parts in one call, as far as the socket takes them: with `wait` it blocks until it takes
/// some, without it says `WouldBlock`.
///
/// # Errors
/// What `sendmsg(2)` says, but never `EINTR`, and no signal is raised.
pub fn send(stream: &TcpStream, parts: &[IoSlice<'_>], wait: bool) -> io::Result<usize> {
    let flags = if wait { SendFlags::NOSIGNAL } else { SendFlags::NOSIGNAL | SendFlags::DONTWAIT };
    loop {
        match sendmsg(stream, parts, &mut SendAncillaryBuffer::default(), flags) {
            Err(Errno::INTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
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

/// The name of an error number of the system, for those that connections meet.
pub fn errno_name(number: i32) -> Option<&'static str> {
    ERRORS.iter().find(|(errno, _)| errno.raw_os_error() == number).map(|(_, name)| *name)
}

/// Whether an error number of the system tells of the network, not of either end.
pub fn is_networks(number: i32) -> bool {
    let networks = [Errno::HOSTDOWN, Errno::HOSTUNREACH, Errno::NETDOWN, Errno::NETUNREACH, Errno::TIMEDOUT];
    networks.iter().any(|errno| errno.raw_os_error() == number)
}

/// Whether the other side has closed its end, or the connection is broken; never blocks.
pub fn hung_up(stream: &TcpStream) -> bool {
    let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let mut fds = [PollFd::new(stream, gone)];
    poll(&mut fds, Some(&Default::default())).is_ok_and(|n| n > 0)
}

/// A socket that becomes readable when an address appears at one of this machine's interfaces, or goes.
///
/// # Errors
/// What the system says; a kernel without netlink.
pub fn watch_addresses() -> io::Result<Socket> {
    /// `RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR` of rtnetlink(7).
    const GROUPS: u32 = 0x10 | 0x100;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    // No protocol given is protocol 0, NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    Ok(socket.into())
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
    /// What the poller says.
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
    /// What the poller says.
    pub fn rearm(&self, interest: Event) -> io::Result<()> {
        self.socket.as_ref().map_or(Ok(()), |socket| self.poller.modify(socket, interest))
    }

    /// The socket.
    pub fn get(&self) -> Option<&S> {
        self.socket.as_ref()
    }

    /// Takes the socket out of the poller.
    pub fn release(mut self) -> Option<S> {
        let socket = self.socket.take()?;
        // An error means that it is registered no longer, which is what was asked for.
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
