//! The ends that the load generator plays: the kernel module of a daemon, and scripted peers that answer
//! pings and leave their data link to the measurement. Must take no processor time while nothing is measured.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Caller, DATA, HEADER, MAGIC, META, Packet, Subnet, bit, kernel_hello, kind};

/// The kernel module of one daemon. Its meta link is read only by [`Kernel::wait_mask`] and by who measures.
pub struct Kernel {
    pub data: TcpStream,
    pub meta: TcpStream,
}

impl Kernel {
    pub fn attach(net: &Subnet, id: u8) -> Self {
        let link = |handshake| {
            let (stream, _) = kernel_hello(net.server(id), handshake, 0).unwrap();
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(None).unwrap();
            stream
        };
        Kernel { data: link(kind::HS_D), meta: link(kind::HS_M) }
    }

    /// Reads connection states until one says exactly `mask`; gives the moment it came.
    #[track_caller]
    pub fn wait_mask(&self, mask: u32, patience: Duration) -> Instant {
        self.wait_state(kind::NC_CONN_STATE, mask, patience)
    }

    /// The same for connection states of either type.
    #[track_caller]
    pub fn wait_state(&self, kind: u8, mask: u32, patience: Duration) -> Instant {
        let end = Instant::now() + patience;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no connection state {mask:#x} within {patience:?}");
            self.meta.set_read_timeout(Some(left)).unwrap();
            match read_meta(&self.meta) {
                Ok(packet) if packet.kind() == kind && packet.to() == mask => {
                    self.meta.set_read_timeout(None).unwrap();
                    return Instant::now();
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("the kernel's meta link: {error}"),
            }
        }
    }
}

/// The next packet of a meta link; none has a payload here.
pub fn read_meta(mut stream: &TcpStream) -> std::io::Result<Packet> {
    let mut head = [0; HEADER];
    stream.read_exact(&mut head)?;
    Ok(Packet { head, payload: Vec::new() })
}

/// A peer of node 0. Its meta link answers pings and sends every NC_STATE back.
pub struct Peer {
    pub data: TcpStream,
    meta: TcpStream,
}

impl Peer {
    /// `buffer`: bytes of its receive buffers, where the system is not to choose.
    pub fn call(net: &Subnet, id: u8, buffer: Option<usize>) -> Self {
        let caller = Caller { buffer, ..Caller::new(net, id, 0) };
        // Both hellos go out before either answer is waited for.
        let open = [DATA, META].map(|class| (class, caller.open(class).unwrap()));
        let [data, meta] = open.map(|(class, mut link)| {
            caller.finish(&mut link, class).unwrap();
            link.set_nodelay(true).unwrap();
            link.set_read_timeout(None).unwrap();
            link
        });
        let reading = meta.try_clone().unwrap();
        thread::spawn(move || answer(&reading, id));
        Peer { data, meta }
    }

    pub fn close(&self) {
        for link in [&self.data, &self.meta] {
            let _ = link.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.close();
    }
}

fn answer(mut meta: &TcpStream, id: u8) {
    let ack = Packet::new(kind::NC_PING_ACK).with_from(id.into()).with_to(bit(0));
    while let Ok(packet) = read_meta(meta) {
        let answer = match packet.kind() {
            kind::NC_PING => ack.clone(),
            kind::NC_STATE => packet.with_to(bit(0)),
            _ => continue,
        };
        if meta.write_all(&answer.head).is_err() {
            return;
        }
    }
}

/// Lets a connection keep at most this many bytes that were written and not sent yet.
#[allow(unsafe_code, reason = "no library has this option")]
pub fn limit_unsent(stream: &TcpStream, bytes: u32) {
    let (value, len) = (&raw const bytes, size_of::<u32>() as libc::socklen_t);
    // SAFETY: the option is a number of four bytes, which live longer than the call.
    let result = unsafe {
        libc::setsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, value.cast(), len)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Finds the packets in a stream of mixed ones, read in pieces.
pub struct Walker {
    head: [u8; HEADER],
    have: usize,
    skip: usize,
}

impl Walker {
    pub fn new() -> Self {
        Walker { head: [0; HEADER], have: 0, skip: 0 }
    }

    /// Calls `whole` for every packet that ends in these bytes.
    pub fn walk(&mut self, mut bytes: &[u8], mut whole: impl FnMut(&Packet)) {
        loop {
            if self.have < HEADER {
                let n = bytes.len().min(HEADER - self.have);
                self.head[self.have..self.have + n].copy_from_slice(&bytes[..n]);
                self.have += n;
                bytes = &bytes[n..];
                if self.have < HEADER {
                    return;
                }
                let packet = Packet { head: self.head, payload: Vec::new() };
                assert_eq!(packet.magic(), MAGIC, "the stream is out of step");
                self.skip = packet.len() as usize;
            }
            let n = bytes.len().min(self.skip);
            self.skip -= n;
            bytes = &bytes[n..];
            if self.skip > 0 {
                return;
            }
            whole(&Packet { head: self.head, payload: Vec::new() });
            self.have = 0;
        }
    }
}

/// Reads a stream of packets for others, and counts its bytes, until it ends.
pub fn drain(mut stream: &TcpStream, counted: &AtomicU64) {
    let (mut buf, mut walker, mut last) = (vec![0; 256 * 1024], Walker::new(), None);
    while let Ok(n) = stream.read(&mut buf) {
        if n == 0 {
            return;
        }
        walker.walk(&buf[..n], |packet| {
            assert!(last.is_none_or(|last| last + 1 == packet.seq()), "a packet is missing or doubled");
            last = Some(packet.seq());
        });
        counted.fetch_add(n as u64, SeqCst);
    }
}
