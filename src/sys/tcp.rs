//! The system's counters of one TCP connection, and its times for keep-alive probes and retransmissions.
//!
//! Reads and sets options of sockets, and must never judge: that is the core's. Called by the timer thread.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// `TCP_RTO_MAX_MS` of tcp(7), since Linux 6.15.
const TCP_RTO_MAX_MS: i32 = 44;
/// Values that the option takes: 1 to 120 s.
const RTO_MAX: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(120)];
/// `TCP_INFO` of tcp(7).
const TCP_INFO: i32 = 11;
/// More than any system's struct has today; bytes that are not returned stay zero and are not read.
const INFO_LEN: usize = 512;
/// Longest time between two probes on an idle connection: firewalls forget silent connections, aggressive ones after
/// 15 s.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// Probes that are sent within the time for which nothing may be acknowledged.
const QUESTIONS: u32 = 4;
/// The part (1 / this) of that time that is the longest wait between two retransmissions: then the system, which
/// gives up after 15 of them, does not do so before that time is over.
const REPEATS: u32 = 8;

/// The system's counters of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpAccount {
    /// Segments that were sent and not acknowledged.
    pub unacked: u32,
    /// Bytes acknowledged since the connection began; since Linux 4.1.
    pub acked: Option<u64>,
    /// Keep-alive and window probes that were not answered since the other side was heard last.
    pub unanswered: u32,
    /// Time that the system waits before its next retransmission.
    pub repeat: Duration,
    /// Time since the last acknowledgement came.
    pub acked_ago: Duration,
    /// Time since anything came.
    pub heard_ago: Duration,
    /// True if the other side's window is too small for a whole segment; since Linux 5.4.
    pub shut: Option<bool>,
}

/// Reads the system's counters of a connection.
///
/// # Errors
/// Those of `getsockopt(2)`; a system that has no such counters.
pub fn tcp_account(stream: &TcpStream) -> io::Result<TcpAccount> {
    let mut info = [0u8; INFO_LEN];
    let mut len = INFO_LEN as libc::socklen_t;
    // SAFETY: the buffer is as long as `len` says, and the system writes at most that many plain bytes.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let info = info.get(..len as usize).unwrap_or_default();
    parse(info).ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
}

/// Reads `struct tcp_info` as far as this system has it: each version of it begins as the one before.
fn parse(info: &[u8]) -> Option<TcpAccount> {
    let u32_at = |at: usize| info.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
    let u64_at = |at: usize| info.get(at..)?.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
    let millis = |at| u32_at(at).map(|ms| Duration::from_millis(ms.into()));
    let segment = u32_at(16)?;
    Some(TcpAccount {
        unacked: u32_at(24)?,
        acked: u64_at(120),
        unanswered: (*info.get(3)?).into(),
        repeat: Duration::from_micros(u32_at(8)?.into()),
        acked_ago: millis(56)?,
        heard_ago: millis(56)?.min(millis(52)?),
        shut: u32_at(228).map(|window| window < segment),
    })
}

/// Makes the system probe an idle connection, and repeat unacknowledged bytes, often enough that its counters show
/// within `limit` whether the other side lives, and that bytes held up by an outage flow soon after it. As far as
/// this system can do it.
pub fn watch_tcp(stream: &TcpStream, limit: Duration) {
    let socket = SockRef::from(stream);
    let idle = (limit / QUESTIONS).clamp(Duration::from_secs(1), IDLE_MAX);
    // Twice as many, so that the system does not give up first.
    let count =
        (2.0 * limit.as_secs_f64() / idle.as_secs_f64()).ceil().clamp(2.0 * f64::from(QUESTIONS), 127.0);
    let keepalive = TcpKeepalive::new().with_time(idle).with_interval(idle).with_retries(count as u32);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let [least, most] = RTO_MAX;
    let repeat = (limit / REPEATS).clamp(least, most).as_millis() as libc::c_int;
    // SAFETY: the option is one C int, which lives until the call is over.
    let capped = unsafe {
        let len = size_of_val(&repeat) as libc::socklen_t;
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_RTO_MAX_MS,
            (&raw const repeat).cast(),
            len,
        )
    };
    if capped != 0 {
        // Older systems can at least repeat the first six times without longer waits, where little is on its way.
        let _ = socket.set_tcp_thin_linear_timeouts(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;
    use std::time::Instant;

    #[test]
    fn the_account_shows_what_was_acknowledged_and_a_shut_window() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut out = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _peer = listener.accept().unwrap().0;
        watch_tcp(&out, Duration::from_secs(4));
        let before = tcp_account(&out).unwrap();
        out.write_all(&[0; 1000]).unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        while tcp_account(&out).unwrap().unacked > 0 {
            assert!(Instant::now() < end, "never acknowledged");
            std::thread::yield_now();
        }
        let after = tcp_account(&out).unwrap();
        if let (Some(before), Some(after)) = (before.acked, after.acked) {
            assert_eq!(after - before, 1000);
        }
        assert_ne!(after.shut, Some(true));
        out.set_nonblocking(true).unwrap();
        while out.write(&[0; 65536]).is_ok() {}
        while tcp_account(&out).unwrap().shut == Some(false) {
            assert!(Instant::now() < end, "never shut");
            let _ = out.write(&[0; 65536]);
        }
    }

    #[test]
    fn a_short_account_of_an_old_system_is_read_as_far_as_it_goes() {
        assert_eq!(parse(&[0; 40]), None);
        let mut old = [0; 104];
        old[24] = 3;
        let account = parse(&old).unwrap();
        assert_eq!((account.unacked, account.acked, account.shut), (3, None, None));
        assert_eq!(parse(&[0; 232]).unwrap().acked, Some(0));
        assert_eq!(parse(&[0; 232]).unwrap().shut, Some(false));
    }
}
