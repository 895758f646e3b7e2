//! The two links to a daemon: connecting and attaching as the kernel module does it.
//!
//! It must never try again on its own for longer than it was asked to. The packets that follow are the caller's
//! matter. Used by `probe` and `nbd`.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use crate::wire::{HEADER_LEN, Header, MAGIC, PacketType};

/// Longest time for a daemon to accept a connection and to answer the handshake: a daemon that works does both within
/// a millisecond, one on a busy machine within a second.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// Bytes that a Unix socket may have in flight, as far as the system grants them: more than one packet of 1 MiB.
const UNIX_BUFFER: usize = 4 << 20;

/// The place at which a daemon takes the kernel module's links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// Its address.
    Tcp(SocketAddr),
    /// Its Unix socket.
    Unix(PathBuf),
}

impl From<SocketAddr> for Server {
    fn from(address: SocketAddr) -> Self {
        Server::Tcp(address)
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Server::Tcp(address) => address.fmt(f),
            // A name without a file: see `InProcess::listen`.
            Server::Unix(path) if path.as_os_str().as_bytes().first() == Some(&0) => {
                f.write_str("this process")
            }
            Server::Unix(path) => path.display().fmt(f),
        }
    }
}

impl Server {
    fn connect(&self) -> io::Result<TcpStream> {
        let link = match self {
            Server::Tcp(address) => {
                let link = TcpStream::connect_timeout(address, HANDSHAKE_LIMIT)?;
                link.set_nodelay(true)?;
                link
            }
            Server::Unix(path) => {
                let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
                // The wait for a daemon that does not accept has the same limit as over TCP.
                socket.set_write_timeout(Some(HANDSHAKE_LIMIT))?;
                socket.connect(&SockAddr::unix(path)?)?;
                socket.set_write_timeout(None)?;
                // The system may grant less.
                let _ = socket.set_send_buffer_size(UNIX_BUFFER);
                // Reading, writing and closing are the same for both kinds.
                TcpStream::from(OwnedFd::from(socket))
            }
        };
        link.set_read_timeout(Some(HANDSHAKE_LIMIT))?;
        Ok(link)
    }
}

/// The two links of an attached program. Reads and writes block.
#[derive(Debug)]
pub struct Links {
    /// Packets of data types, both ways.
    pub data: TcpStream,
    /// Packets of meta types, both ways.
    pub meta: TcpStream,
}

/// The reason why a program could not attach to a daemon.
#[derive(Debug)]
pub enum AttachError {
    /// No program listens there.
    NotThere(Server),
    /// The daemon closed a link: another program or the kernel module is attached, perhaps not for long, or this
    /// program's user may not attach.
    Taken(Server),
    /// No answer within [`HANDSHAKE_LIMIT`].
    Silent(Server),
    /// The answer is not that of a daemon.
    Stranger(Server),
    /// A system error.
    Io(Server, io::Error),
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttachError::NotThere(server) => {
                write!(
                    f,
                    "no daemon listens at {server}: is hadmd running, is serverip/serverport or --server right?"
                )
            }
            AttachError::Taken(server) => write!(
                f,
                "the daemon at {server} refused: a kernel module (or another hadm-probe) is attached already"
            ),
            AttachError::Silent(server) => write!(
                f,
                "what listens at {server} does not answer the handshake within {} s: is it hadmd?",
                HANDSHAKE_LIMIT.as_secs()
            ),
            AttachError::Stranger(server) => {
                write!(f, "what listens at {server} is not hadmd: its handshake is wrong")
            }
            AttachError::Io(server, error) => write!(f, "the connection with {server} failed: {error}"),
        }
    }
}

impl std::error::Error for AttachError {}

/// Returns true if the error says that the other side closed the connection.
pub fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnexpectedEof
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::NotConnected
    )
}

impl Links {
    /// Makes one attempt: both connections, both handshakes, both answers. Takes at most four times
    /// [`HANDSHAKE_LIMIT`].
    ///
    /// # Errors
    /// Every way in which the daemon did not accept this program.
    pub fn attach(server: &Server) -> Result<Links, AttachError> {
        let open = || server.connect();
        let no_connection = |error: io::Error| match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::NotFound => AttachError::NotThere(server.clone()),
            ErrorKind::WouldBlock => AttachError::Silent(server.clone()),
            _ => AttachError::Io(server.clone(), error),
        };
        let links = Links { data: open().map_err(no_connection)?, meta: open().map_err(no_connection)? };
        let trouble = |error: io::Error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => AttachError::Silent(server.clone()),
            _ if is_closed(&error) => AttachError::Taken(server.clone()),
            _ => AttachError::Io(server.clone(), error),
        };
        let hello =
            |mut link: &TcpStream, kind| link.write_all(&Header { magic: 0, ..Header::new(kind) }.encode());
        // Both send a hello before either waits: the daemon may answer only when it has the two.
        hello(&links.data, PacketType::KERN_HANDSHAKE_D).map_err(trouble)?;
        hello(&links.meta, PacketType::KERN_HANDSHAKE_M).map_err(trouble)?;
        let answers = [
            (&links.data, PacketType::KERN_HANDSHAKE_D_ACK),
            (&links.meta, PacketType::KERN_HANDSHAKE_M_ACK),
        ];
        for (mut link, answer) in answers {
            let mut bytes = [0; HEADER_LEN];
            link.read_exact(&mut bytes).map_err(trouble)?;
            let header = Header::decode(&bytes);
            if header.magic != MAGIC || header.kind != answer || header.len != 0 {
                return Err(AttachError::Stranger(server.clone()));
            }
            link.set_read_timeout(None).map_err(trouble)?;
        }
        Ok(links)
    }

    /// Ends both links; every thread that is blocked on one returns.
    pub fn shutdown(&self) {
        for link in [&self.data, &self.meta] {
            // Fails when the daemon was faster.
            let _ = link.shutdown(Shutdown::Both);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    /// Attaches to a listener whose two connections are given to `serve`, and returns the result.
    fn attach_to(serve: impl FnOnce([TcpStream; 2]) + Send + 'static) -> Result<Links, AttachError> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let daemon = thread::spawn(move || {
            let links = [(); 2].map(|()| listener.accept().unwrap().0);
            serve(links);
        });
        let attached = Links::attach(&server.into());
        daemon.join().unwrap();
        attached
    }

    fn answer(links: &mut [TcpStream; 2], kinds: [PacketType; 2]) {
        for (link, kind) in links.iter_mut().zip(kinds) {
            let mut hello = [0; HEADER_LEN];
            link.read_exact(&mut hello).unwrap();
            assert_eq!(Header::decode(&hello).magic, 0, "the kernel module's handshake has no magic");
            link.write_all(&Header::new(kind).encode()).unwrap();
        }
    }

    #[test]
    fn every_refusal_has_its_own_error() {
        let good = [PacketType::KERN_HANDSHAKE_D_ACK, PacketType::KERN_HANDSHAKE_M_ACK];
        assert!(attach_to(move |mut links| answer(&mut links, good)).is_ok());
        let swapped = [good[1], good[0]];
        let stranger = attach_to(move |mut links| answer(&mut links, swapped));
        assert!(matches!(stranger, Err(AttachError::Stranger(_))), "{stranger:?}");
        let taken = attach_to(drop);
        assert!(matches!(taken, Err(AttachError::Taken(_))), "{taken:?}");
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(matches!(Links::attach(&free.into()), Err(AttachError::NotThere(_))));
    }
}
