//! A scripted peer: a C daemon unless set to use the extension of the hello. As caller it plays a node
//! with a larger id than the daemon's, as acceptor one with a smaller id.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use super::link::{Filter, Link};
use super::packet::{Packet, kind};
use super::{PATIENCE, Subnet, bit, ms, redial};

/// Bytes of a hello.
pub const HELLO: usize = 35;
const MARK: &[u8; 4] = b"HDX1";

/// Hello types.
pub const DATA: u8 = 0;
pub const META: u8 = 2;

/// A hello's bytes.
pub fn hello(id: u8, kind: u8, node_type: u8, text: &str, mark: bool) -> [u8; HELLO] {
    let mut bytes = [0; HELLO];
    bytes[..3].copy_from_slice(&[id, kind, node_type]);
    bytes[3..3 + text.len()].copy_from_slice(text.as_bytes());
    if mark {
        bytes[19..23].copy_from_slice(MARK);
    }
    bytes
}

/// Connects from `source`, with a small receive buffer where one is given (bytes).
pub fn connect_from(source: Ipv4Addr, to: SocketAddr, buffer: Option<usize>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    if let Some(bytes) = buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A connected peer: both links past their hellos. Dropping it closes both.
pub struct FakePeer {
    pub id: u8,
    pub data: Link,
    pub meta: Link,
    /// The record the daemon sent, where the extension is spoken (from the data link).
    pub record: Option<Vec<u8>>,
    /// True if pings are answered.
    answers: Arc<AtomicBool>,
    pings: Arc<Pings>,
}

#[derive(Default)]
struct Pings {
    times: Mutex<Vec<Instant>>,
    changed: Condvar,
}

impl FakePeer {
    fn start(id: u8, to: u8, links: [TcpStream; 2], record: Option<Vec<u8>>, answers: bool) -> Self {
        let [data, meta] = links;
        let answers = Arc::new(AtomicBool::new(answers));
        let pings = Arc::new(Pings::default());
        let filter = ping_filter(id, to, answers.clone(), pings.clone());
        FakePeer {
            id,
            data: Link::start(format!("p{id}:data"), data, no_ping()),
            meta: Link::start(format!("p{id}:meta"), meta, filter),
            record,
            answers,
            pings,
        }
    }

    /// Answers pings from now on, or does not.
    pub fn answer_pings(&self, yes: bool) {
        self.answers.store(yes, Ordering::SeqCst);
    }

    /// When pings came.
    pub fn pings(&self) -> Vec<Instant> {
        self.pings.times.lock().unwrap().clone()
    }

    /// Waits until `count` pings came in all.
    #[track_caller]
    pub fn wait_pings(&self, count: usize, limit: Duration) {
        let end = Instant::now() + limit;
        let mut times = self.pings.times.lock().unwrap();
        while times.len() < count {
            let left = end.checked_duration_since(Instant::now());
            let left = left.unwrap_or_else(|| panic!("{} pings, not {count}, within {limit:?}", times.len()));
            times = self.pings.changed.wait_timeout(times, left).unwrap().0;
        }
    }

    /// Sends one answer to a ping of node `to`, asked for or not.
    #[track_caller]
    pub fn send_ping_ack(&self, to: u8) {
        self.meta.send(&ping_ack(self.id, to));
    }

    /// Stops reading both links, or goes on.
    pub fn pause(&self, paused: bool) {
        self.data.pause(paused);
        self.meta.pause(paused);
    }

    /// Waits until the daemon has closed both links, and says when the last one went.
    #[track_caller]
    pub fn wait_closed(&self, limit: Duration) -> Instant {
        self.data.wait_closed(limit).max(self.meta.wait_closed(limit))
    }

    /// Closes both links, as a peer that is killed.
    pub fn kill(self) {}
}

fn ping_ack(from: u8, to: u8) -> Packet {
    Packet::new(kind::NC_PING_ACK).with_from(from.into()).with_to(bit(to))
}

fn no_ping() -> Filter {
    Box::new(|_, packet, _| match packet.kind() {
        kind::NC_PING | kind::NC_PING_ACK => Err("heartbeat on the data link".into()),
        _ => Ok(true),
    })
}

fn ping_filter(id: u8, daemon: u8, answers: Arc<AtomicBool>, pings: Arc<Pings>) -> Filter {
    Box::new(move |now, packet, writer| {
        if packet.kind() != kind::NC_PING {
            return Ok(true);
        }
        let fields = (packet.from(), packet.to(), packet.node_type(), packet.len());
        if fields != (daemon.into(), bit(id), 0, 0) {
            return Err("wrong ping".into());
        }
        pings.times.lock().unwrap().push(now);
        pings.changed.notify_all();
        if answers.load(Ordering::SeqCst) {
            // The daemon may have closed the session meanwhile.
            let _ = writer.write(&ping_ack(id, daemon).bytes());
        }
        Ok(false)
    })
}

/// The calls of a peer with a larger id.
#[derive(Clone)]
pub struct Caller {
    pub id: u8,
    pub to: u8,
    pub target: SocketAddr,
    pub source: Ipv4Addr,
    /// The record to send when the extension is spoken: with its length field.
    pub record: Option<Vec<u8>>,
    /// Receive buffer of both connections, bytes.
    pub buffer: Option<usize>,
    pub answers: bool,
}

impl Caller {
    /// Node `id` calling node `to` from its own address, without the extension, answering pings.
    pub fn new(net: &Subnet, id: u8, to: u8) -> Self {
        Caller { id, to, target: net.node(to), source: net.ip(id), record: None, buffer: None, answers: true }
    }

    pub fn source(mut self, source: Ipv4Addr) -> Self {
        self.source = source;
        self
    }

    /// Speaks the extension, with these entries (type, length, value).
    pub fn extended(mut self, entries: &[u8]) -> Self {
        self.record = Some(with_len(entries));
        self
    }

    /// Takes little while it does not read.
    pub fn small_buffer(mut self) -> Self {
        self.buffer = Some(16 * 1024);
        self
    }

    pub fn silent(mut self) -> Self {
        self.answers = false;
        self
    }

    /// Connects both links: hello on both at once, then both answers.
    #[track_caller]
    pub fn call(&self) -> FakePeer {
        self.try_call().unwrap_or_else(|e| panic!("node {} calling node {}: {e}", self.id, self.to))
    }

    /// Calls until it is taken, as a daemon does.
    #[track_caller]
    pub fn call_until_taken(&self) -> FakePeer {
        redial(&format!("node {} calling node {}", self.id, self.to), PATIENCE, || self.try_call().ok())
    }

    /// Opens one link and says its hello; does not wait for the answer.
    pub fn open(&self, kind: u8) -> io::Result<TcpStream> {
        let mut stream = connect_from(self.source, self.target, self.buffer)?;
        stream.write_all(&hello(self.id, kind, 0, &self.source.to_string(), self.record.is_some()))?;
        Ok(stream)
    }

    /// Reads the answer to one link's hello, and does the exchange of records.
    pub fn finish(&self, stream: &mut TcpStream, kind: u8) -> io::Result<Option<Vec<u8>>> {
        let mut answer = [0; HELLO];
        stream.read_exact(&mut answer)?;
        assert_eq!(&answer[..3], [self.to, kind + 1, 0], "the answer to hello {kind}: {answer:?}");
        let marked = &answer[19..23] == MARK;
        assert_eq!(marked, self.record.is_some(), "mark in the answer: {answer:?}");
        let Some(record) = &self.record else { return Ok(None) };
        stream.write_all(record)?;
        Ok(Some(read_record(stream)?))
    }

    /// One attempt to connect both links.
    pub fn try_call(&self) -> io::Result<FakePeer> {
        let mut links = [self.open(DATA)?, self.open(META)?];
        let [data, meta] = &mut links;
        let record = self.finish(data, DATA)?;
        self.finish(meta, META)?;
        Ok(FakePeer::start(self.id, self.to, links, record, self.answers))
    }
}

fn with_len(entries: &[u8]) -> Vec<u8> {
    [&(entries.len() as u16).to_le_bytes()[..], entries].concat()
}

fn read_record(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut len = [0; 2];
    stream.read_exact(&mut len)?;
    let mut record = vec![0; u16::from_le_bytes(len).into()];
    stream.read_exact(&mut record)?;
    Ok(record)
}

/// Returns true if a connection on which nothing is due was not closed by the other side.
fn is_open(stream: &TcpStream) -> bool {
    stream.set_read_timeout(Some(ms(1))).unwrap();
    let open = matches!(stream.peek(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    open
}

/// A peer with a smaller id, waiting for calls.
pub struct Acceptor {
    pub id: u8,
    listener: TcpListener,
    record: Option<Vec<u8>>,
    answers: bool,
}

impl Acceptor {
    /// Node `id`, listening at its own address, without the extension, answering pings.
    pub fn listen(net: &Subnet, id: u8) -> Self {
        let listener = TcpListener::bind(net.node(id)).unwrap();
        Acceptor { id, listener, record: None, answers: true }
    }

    /// Speaks the extension when the caller does, with these entries.
    pub fn extended(mut self, entries: &[u8]) -> Self {
        self.record = Some(with_len(entries));
        self
    }

    pub fn silent(mut self) -> Self {
        self.answers = false;
        self
    }

    /// The next connection that says a hello, with it; `None` when none comes in time.
    pub fn accept_one(&self, limit: Duration) -> Option<(TcpStream, [u8; HELLO], IpAddr)> {
        let end = Instant::now() + limit;
        loop {
            // A receive time-out ends accept as well.
            let left = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            SockRef::from(&self.listener).set_read_timeout(Some(left)).unwrap();
            let Ok((mut stream, from)) = self.listener.accept() else { continue };
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut hello = [0; HELLO];
            // A call may have been given up while it waited here.
            if stream.read_exact(&mut hello).is_ok() {
                return Some((stream, hello, from.ip()));
            }
        }
    }

    /// Returns true if anybody has connected since the last call was taken, hello or not.
    pub fn was_called(&self) -> bool {
        SockRef::from(&self.listener).set_read_timeout(Some(ms(1))).unwrap();
        self.listener.accept().is_ok()
    }

    /// Takes both links of a call from node `from`: no answer goes out before both hellos are in.
    #[track_caller]
    pub fn accept(&self, net: &Subnet, from: u8) -> FakePeer {
        let end = Instant::now() + PATIENCE;
        let mut links: [Option<(TcpStream, bool)>; 2] = [None, None];
        while let [None, _] | [_, None] = links {
            let left = end.checked_duration_since(Instant::now());
            let left = left.unwrap_or_else(|| panic!("node {from} did not call node {}", self.id));
            let Some((stream, hello, source)) = self.accept_one(left) else { continue };
            assert_eq!(source, IpAddr::from(net.ip(from)), "node {from} calls from its own address");
            assert_eq!((hello[0], hello[2]), (from, 0), "hello {hello:?}");
            assert!(matches!(hello[1], DATA | META), "hello {hello:?}");
            assert!(hello[3..19].contains(&0), "the text ends before the mark: {hello:?}");
            // A call that was given up while it waited here is no half of this one.
            links = links.map(|link| link.filter(|(stream, _)| is_open(stream)));
            links[usize::from(hello[1] / 2)] = Some((stream, &hello[19..23] == MARK));
        }
        let mut record = None;
        let links = [DATA, META].map(|kind| {
            let (mut stream, marked) = links[usize::from(kind / 2)].take().unwrap();
            // As a C daemon: only node_id and type are set.
            let extended = marked && self.record.is_some();
            stream.write_all(&hello(self.id, kind + 1, 0, "", extended)).unwrap();
            if let (true, Some(own)) = (extended, &self.record) {
                let theirs = read_record(&mut stream).unwrap();
                stream.write_all(own).unwrap();
                record.get_or_insert(theirs);
            }
            stream
        });
        FakePeer::start(self.id, from, links, record, self.answers)
    }
}
