//! One TCP connection that carries packets: a reader thread that parses them into a queue, and a writer.

use std::collections::VecDeque;
use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::packet::{HEADER, MAGIC, Packet};
use super::{PATIENCE, ms};

/// The connection with its reader.
pub struct Link {
    name: String,
    writer: Arc<Writer>,
    inbox: Arc<Inbox>,
}

/// Writes whole packets, from the test and from the reader's filter.
pub struct Writer {
    stream: TcpStream,
    turn: Mutex<()>,
}

#[derive(Default)]
struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    packets: VecDeque<(Instant, Packet)>,
    /// The reason why there will be no more packets.
    end: Option<(Instant, String)>,
    /// A packet that must never come did.
    fault: Option<String>,
    paused: bool,
}

/// Looks at a packet before it is queued; `Ok(false)` keeps it out of the queue, `Err` is a fault that
/// fails the test at its next wait.
pub type Filter = Box<dyn FnMut(Instant, &Packet, &Writer) -> Result<bool, String> + Send>;

impl Writer {
    /// Writes bytes, waiting for no other writer's half packet.
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let _turn = self.turn.lock().unwrap();
        (&self.stream).write_all(bytes)
    }
}

impl Link {
    /// Starts the reader on a connection that is past its hello.
    pub fn start(name: String, stream: TcpStream, mut filter: Filter) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(None).unwrap();
        stream.set_write_timeout(Some(2 * PATIENCE)).unwrap();
        let reading = stream.try_clone().unwrap();
        let writer = Arc::new(Writer { stream, turn: Mutex::new(()) });
        let inbox = Arc::new(Inbox::default());
        let (writing, filling) = (writer.clone(), inbox.clone());
        thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                let mut reading = BufReader::with_capacity(64 * 1024, reading);
                let end = loop {
                    filling.wait_unpaused();
                    match read_packet(&mut reading) {
                        Ok(packet) => filling.take(packet, &mut filter, &writing),
                        Err(end) => break end,
                    }
                };
                filling.state.lock().unwrap().end = Some((Instant::now(), end));
                // As modules and C daemons do: a link that the other side closed is closed on this one.
                let _ = writing.stream.shutdown(Shutdown::Both);
                filling.changed.notify_all();
            })
            .unwrap();
        Link { name, writer, inbox }
    }

    #[track_caller]
    fn wait<T>(
        &self,
        what: &str,
        limit: Duration,
        mut ready: impl FnMut(&mut State) -> Option<T>,
    ) -> Option<T> {
        let end = Instant::now() + limit;
        let mut state = self.inbox.state.lock().unwrap();
        loop {
            if let Some(fault) = state.fault.clone() {
                drop(state);
                panic!("{}: {fault} (while waiting for {what})", self.name);
            }
            if let Some(value) = ready(&mut state) {
                return Some(value);
            }
            let left = end.checked_duration_since(Instant::now())?;
            state = self.inbox.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    /// The next packet with its time of arrival; `None` when none comes in time.
    ///
    /// # Panics
    /// When the connection ends first.
    #[track_caller]
    pub fn poll_timed(&self, limit: Duration) -> Option<(Instant, Packet)> {
        let next = self.wait("a packet", limit, |state| match (state.packets.pop_front(), &state.end) {
            (Some(packet), _) => Some(Ok(packet)),
            (None, Some((_, end))) => Some(Err(end.clone())),
            (None, None) => None,
        });
        next.map(|next| next.unwrap_or_else(|end| panic!("{}: {end} while waiting for a packet", self.name)))
    }

    /// The next packet; `None` when none comes in time.
    #[track_caller]
    pub fn poll(&self, limit: Duration) -> Option<Packet> {
        self.poll_timed(limit).map(|(_, packet)| packet)
    }

    /// The next packet.
    #[track_caller]
    pub fn recv(&self) -> Packet {
        self.poll(PATIENCE).unwrap_or_else(|| panic!("{}: no packet within {PATIENCE:?}", self.name))
    }

    /// The next packet with its time of arrival.
    #[track_caller]
    pub fn recv_timed(&self) -> (Instant, Packet) {
        self.poll_timed(PATIENCE).unwrap_or_else(|| panic!("{}: no packet within {PATIENCE:?}", self.name))
    }

    /// Every packet that arrived before the connection ended, once it has ended.
    #[track_caller]
    pub fn drain_to_end(&self, limit: Duration) -> Vec<Packet> {
        self.wait_closed(limit);
        self.inbox.state.lock().unwrap().packets.drain(..).map(|(_, packet)| packet).collect()
    }

    /// Waits until the other side has closed the connection, and says when it did.
    #[track_caller]
    pub fn wait_closed(&self, limit: Duration) -> Instant {
        let ended = self.wait("the end", limit, |state| state.end.as_ref().map(|(at, _)| *at));
        ended.unwrap_or_else(|| panic!("{}: still open after {limit:?}", self.name))
    }

    /// Returns true if the other side closes the connection in time.
    #[track_caller]
    pub fn closes_within(&self, limit: Duration) -> bool {
        self.wait("the end", limit, |state| state.end.is_some().then_some(())).is_some()
    }

    /// Returns true if the connection has ended, as far as the reader has seen.
    pub fn is_closed(&self) -> bool {
        self.inbox.state.lock().unwrap().end.is_some()
    }

    /// Sends a packet.
    #[track_caller]
    pub fn send(&self, packet: &Packet) {
        self.send_raw(&packet.bytes());
    }

    /// Sends any bytes.
    #[track_caller]
    pub fn send_raw(&self, bytes: &[u8]) {
        self.writer.write(bytes).unwrap_or_else(|e| panic!("{}: send: {e}", self.name));
    }

    /// Sends a packet to a daemon that may be closing the connection.
    pub fn try_send(&self, packet: &Packet) -> io::Result<()> {
        self.writer.write(&packet.bytes())
    }

    /// Stops reading (what the reader has begun to read it still reads), or goes on.
    pub fn pause(&self, paused: bool) {
        self.inbox.state.lock().unwrap().paused = paused;
        self.inbox.changed.notify_all();
    }

    /// Ends the connection from this side.
    pub fn close(&self) {
        let _ = self.writer.stream.shutdown(Shutdown::Both);
        self.pause(false);
    }

    /// Sends the same whole packets again and again, as [`Link::flood`] does; each time counts as one.
    pub fn flood_raw(&self, bytes: Vec<u8>) -> Flood {
        let (sent, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (writer, counter, stopped) = (self.writer.clone(), sent.clone(), stop.clone());
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) && writer.write(&bytes).is_ok() {
                counter.fetch_add(1, Ordering::SeqCst);
            }
        });
        Flood { sent, stop, thread }
    }

    /// Sends the packets `make(0)`, `make(1)`, ... from a thread until [`Flood::stop`], the last one, or the
    /// end of the connection.
    pub fn flood(&self, mut make: impl FnMut(u64) -> Option<Packet> + Send + 'static) -> Flood {
        let (sent, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (writer, counter, stopped) = (self.writer.clone(), sent.clone(), stop.clone());
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                let Some(packet) = make(counter.load(Ordering::SeqCst)) else { break };
                if writer.write(&packet.bytes()).is_err() {
                    break;
                }
                counter.fetch_add(1, Ordering::SeqCst);
            }
        });
        Flood { sent, stop, thread }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
    }
}

impl Inbox {
    fn wait_unpaused(&self) {
        let mut state = self.state.lock().unwrap();
        while state.paused {
            state = self.changed.wait(state).unwrap();
        }
    }

    fn take(&self, packet: Packet, filter: &mut Filter, writer: &Writer) {
        let now = Instant::now();
        let verdict = match packet.magic() {
            MAGIC => filter(now, &packet, writer),
            magic => Err(format!("packet with magic {magic:#x}")),
        };
        let mut state = self.state.lock().unwrap();
        match verdict {
            Ok(true) => state.packets.push_back((now, packet)),
            Ok(false) => {}
            Err(fault) => state.fault = Some(format!("{fault}: {packet:?}")),
        }
        drop(state);
        self.changed.notify_all();
    }
}

fn read_packet(stream: &mut impl Read) -> Result<Packet, String> {
    let mut head = [0; HEADER];
    let mut have = 0;
    while have < HEADER {
        match stream.read(&mut head[have..]) {
            Ok(0) if have == 0 => return Err("closed".into()),
            Ok(0) => return Err(format!("closed after {have} bytes of a header")),
            Ok(n) => have += n,
            Err(e) => return Err(e.to_string()),
        }
    }
    let mut packet = Packet { head, payload: Vec::new() };
    if packet.len() > 64 << 20 {
        return Err(format!("unreasonable length: {packet:?}"));
    }
    packet.payload.resize(packet.len() as usize, 0);
    stream.read_exact(&mut packet.payload).map_err(|e| format!("closed within a packet: {e}"))?;
    Ok(packet)
}

/// A thread that sends as fast as the daemon takes.
pub struct Flood {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Flood {
    /// Packets sent so far; the one being written is not counted.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    /// Waits until nothing was taken for `quiet`: the daemon pushes back. Gives the packets sent.
    #[track_caller]
    pub fn wait_stalled(&self, quiet: Duration) -> u64 {
        let end = Instant::now() + 2 * PATIENCE;
        let (mut last, mut since) = (self.sent(), Instant::now());
        loop {
            assert!(Instant::now() < end, "never pushed back: {} packets sent", self.sent());
            thread::park_timeout(ms(10));
            let now = self.sent();
            if now != last {
                (last, since) = (now, Instant::now());
            } else if since.elapsed() >= quiet {
                return now;
            }
        }
    }

    /// Ends after the packet now being written, and gives the packets sent. The daemon must be taking
    /// packets, or the connection be closed.
    pub fn stop(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.finish()
    }

    /// Waits for the last packet, and gives the packets sent.
    pub fn finish(self) -> u64 {
        self.thread.join().unwrap();
        self.sent.load(Ordering::SeqCst)
    }
}
