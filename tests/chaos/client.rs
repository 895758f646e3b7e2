//! The kernel module's side of a node: attaches, sends numbered packets to random sets of peers, hands all that
//! comes to the ledger, and does what the injector asks of it. It must never be what holds up a packet: one thread
//! reads both links in turn, and others send.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use socket2::SockRef;

use super::ledger::{CLASSES, DATA, LONGEST, Ledger, META};
use super::plan::Links;
use super::support::{HEADER, MAGIC, Packet, bit, kernel_hello, kind};
use super::world::{SERVER, Shape, go_to};

/// The injector's orders to a client.
#[derive(Default)]
pub struct Orders {
    /// Not attached until it is taken back.
    pub away: AtomicBool,
    /// Neither reads nor sends.
    pub frozen: AtomicBool,
    /// Does not read these links, by class.
    pub stalled: [AtomicBool; 2],
    /// 1 + class of the link to reset in the middle of a packet, 0 for none.
    pub reset: AtomicU8,
    /// Sends nothing new.
    pub quiet: AtomicBool,
    /// Ends.
    pub over: AtomicBool,
}

impl Orders {
    pub fn stall(&self, links: Links, on: bool) {
        for (class, other) in [(DATA, Links::Meta), (META, Links::Data)] {
            if links != other {
                self.stalled[class].store(on, SeqCst);
            }
        }
    }
}

/// One link of an attachment.
struct Link {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// Starts the client of a node.
pub fn start(ledger: &Arc<Ledger>, node: usize, seed: u64) -> Arc<Orders> {
    let orders = Arc::new(Orders::default());
    let (ledger, given) = (ledger.clone(), orders.clone());
    let run = move || {
        go_to(node);
        let mut rng = Rng::with_seed(seed ^ (node as u64 + 1) << 32);
        while !given.over.load(SeqCst) {
            let wait = Duration::from_millis(rng.u64(20..400));
            if given.away.load(SeqCst)
                || given.frozen.load(SeqCst)
                || !attach(&ledger, node, &given, &mut rng)
            {
                thread::park_timeout(wait);
            }
        }
    };
    thread::Builder::new().name(format!("client{node}")).spawn(run).unwrap();
    orders
}

/// One attachment, from the handshakes to its end; whether there was one.
fn attach(ledger: &Arc<Ledger>, node: usize, orders: &Arc<Orders>, rng: &mut Rng) -> bool {
    let hello = |kind| kernel_hello(SERVER, kind, 0).ok().map(|(stream, _)| stream);
    let Some(data) = hello(kind::HS_D) else { return false };
    let Some(meta) = hello(kind::HS_M) else { return false };
    ledger.attach(node);
    let gone = Arc::new(AtomicBool::new(false));
    let mut senders = Vec::new();
    for (class, stream) in [(DATA, &data), (META, &meta)] {
        stream.set_nodelay(true).unwrap();
        let (ledger, orders, gone) = (ledger.clone(), orders.clone(), gone.clone());
        let (stream, rng) = (stream.try_clone().unwrap(), rng.fork());
        let name = format!("client{node}:{}", CLASSES[class]);
        let run = move || send(&ledger, node, class, &stream, &orders, &gone, rng);
        senders.push(thread::Builder::new().name(name).spawn(run).unwrap());
    }
    let mut links = [data, meta].map(|stream| Link { stream, buffer: Vec::new() });
    let why = read(ledger, node, &mut links, orders, &gone);
    ledger.detach(node, &why);
    gone.store(true, SeqCst);
    // The link that is to be reset must be closed alone; elsewhere a sender may be writing.
    let reset = if why == RESET { orders.reset.swap(0, SeqCst) } else { 0 };
    for (link, _) in links.iter().zip(1..).filter(|(_, class)| *class != reset) {
        let _ = link.stream.shutdown(Shutdown::Both);
    }
    drop(links);
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    true
}

const RESET: &str = "reset in mid packet";

fn read(ledger: &Ledger, node: usize, links: &mut [Link; 2], orders: &Orders, gone: &AtomicBool) -> String {
    loop {
        if gone.load(SeqCst) {
            return RESET.into();
        }
        if orders.away.load(SeqCst) || orders.over.load(SeqCst) {
            return "killed".into();
        }
        let frozen = orders.frozen.load(SeqCst);
        let stalled = orders.stalled.each_ref().map(|stalled| frozen || stalled.load(SeqCst));
        let mut fds = Vec::new();
        for (link, _) in links.iter().zip(stalled).filter(|(_, stalled)| !stalled) {
            fds.push(PollFd::new(&link.stream, PollFlags::IN));
        }
        // The orders are looked at as often.
        let limit = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
        let _ = poll(&mut fds, Some(&limit));
        drop(fds);
        for class in [DATA, META] {
            if !stalled[class] {
                if let Err(why) = read_link(ledger, node, class, &mut links[class]) {
                    return format!("{} link: {why}", CLASSES[class]);
                }
            }
        }
    }
}

/// Reads some of what is there: the other link has its turn, too.
fn read_link(ledger: &Ledger, node: usize, class: usize, link: &mut Link) -> Result<(), String> {
    for _ in 0..4 {
        let mut part = [0; 64 * 1024];
        match recv(&link.stream, &mut part, RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.to_string()),
            Ok((_, 0)) => return Err("closed".into()),
            Ok((_, n)) => {
                link.buffer.extend_from_slice(&part[..n]);
                take_packets(ledger, node, class, &mut link.buffer)?;
            }
        }
    }
    Ok(())
}

fn take_packets(ledger: &Ledger, node: usize, class: usize, buffer: &mut Vec<u8>) -> Result<(), String> {
    let (kinds, told) = kinds();
    let mut at = 0;
    while let Some(head) = buffer[at..].first_chunk::<HEADER>() {
        let packet = Packet { head: *head, payload: Vec::new() };
        let len = packet.len() as usize;
        if packet.magic() != MAGIC || len > LONGEST {
            ledger
                .violate(format!("D1: node {node} got no packet on its {} link: {packet:?}", CLASSES[class]));
            return Err("not a packet".into());
        }
        let Some(payload) = buffer.get(at + HEADER..at + HEADER + len) else { break };
        match (class, packet.kind()) {
            (META, kind::NC_CONN_STATE) if Shape::get().sites && packet.to() == 0 => {}
            (META, state) if state == told && packet.from() == node as u32 => ledger.told(node, packet.to()),
            (_, kind) if kinds[class].contains(&kind) => {
                ledger.receive(node, class, head, payload);
            }
            _ => ledger.violate(format!("D1: node {node} got on its {} link: {packet:?}", CLASSES[class])),
        }
        at += HEADER + len;
    }
    buffer.drain(..at);
    Ok(())
}

/// The types of packets that are sent and may come, by class, and those about the peers.
fn kinds() -> ([&'static [u8]; 2], u8) {
    /// SC_HS, SC_DEVDOWN and SC_PRI_PRO.
    const SITE_META: [u8; 4] = [1, kind::SC_STATE, 8, 11];
    /// SD_DATA and SD_RSDATA.
    const SITE_DATA: [u8; 2] = [kind::SD_DATA, 25];
    match Shape::get().sites {
        true => ([&SITE_DATA, &SITE_META], kind::SC_CONN_STATE),
        false => (
            [&[kind::ND_SBIO, kind::ND_SBIO_ACK], &[kind::NC_MASTER, kind::NC_STATE_REQ, kind::NC_STATE]],
            kind::NC_CONN_STATE,
        ),
    }
}

/// Sends bursts of packets until the attachment is gone.
fn send(
    ledger: &Ledger,
    node: usize,
    class: usize,
    mut stream: &TcpStream,
    orders: &Orders,
    gone: &AtomicBool,
    mut rng: Rng,
) {
    let mut until = Instant::now();
    while !gone.load(SeqCst) {
        if orders.frozen.load(SeqCst) || orders.quiet.load(SeqCst) || until > Instant::now() {
            thread::park_timeout(Duration::from_millis(2));
            continue;
        }
        let kinds = kinds().0[class];
        let few = Shape::get().few;
        let (count, longest, kinds) = match (class, rng.u8(..)) {
            (DATA, _) if few => (rng.usize(1..4), 900, kinds),
            // More than a queue and its sockets take.
            (DATA, 0..3) => (rng.usize(200..1500), 16 * 1024, &kinds[..1]),
            (DATA, 3..24) => (rng.usize(1..20), LONGEST, &kinds[..1]),
            (DATA, _) => (rng.usize(1..60), 8 * 1024, kinds),
            _ => (rng.usize(1..10), 900, kinds),
        };
        let mut mask = rng.u32(..) & ledger.all() & !bit(node as u8);
        if rng.u8(..) < 4 {
            // Bits that are ignored: its own, and nobody's.
            mask |= bit(node as u8) | bit(31);
        }
        let dev = if Shape::get().sites { 0 } else { rng.u8(..255) };
        for _ in 0..count {
            let len = rng.usize(..=longest) as u32;
            let bytes = ledger.send(node, class, (mask, len, *rng.choice(kinds).unwrap(), dev));
            if orders.reset.load(SeqCst) == class as u8 + 1 {
                let half = bytes.len() / 2;
                let _ = stream.write_all(&bytes[..half]);
                let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
                gone.store(true, SeqCst);
                return;
            }
            if stream.write_all(&bytes).is_err() || orders.frozen.load(SeqCst) || orders.quiet.load(SeqCst) {
                break;
            }
        }
        until = Instant::now()
            + Duration::from_millis(if few {
                rng.u64(20..200)
            } else if class == DATA {
                rng.u64(1..25)
            } else {
                rng.u64(2..30)
            });
    }
}
