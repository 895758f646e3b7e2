//! The cost of single steps of a packet's way, without sockets where that is possible: `cargo bench --bench
//! micro` times them, each figure the best of several runs, since every disturbance makes a run longer.
//! `make profile` counts their instructions with valgrind's callgrind instead, outside the system, so that two
//! versions can be compared on a busy machine; the copy that stands for a read counts there with an instruction
//! a byte in "split". A word as argument chooses the steps with it in their names.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "it prints and ends on error"
)]

use std::hint::black_box;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam::channel::unbounded;
use hadmd::daemon::core::SessionId;
use hadmd::daemon::link::{Connection, Framer, Item, LinkSender, Run, Sink};
use hadmd::daemon::peer::{DATA_CEILING, Limits, META_CEILING, PeerStatistics, Session};
use hadmd::daemon::queue::{Budget, Cost};
use hadmd::daemon::route::{FromKernel, Router};
use hadmd::wire::{Class, HEADER_LEN, Header, Mask, NodeId, PacketType, PeerKey, Scope, SiteId};

/// Bytes that one read brings under load.
const READ: usize = 256 * 1024;
const MAX_PACKET: u32 = 16 << 20;

/// The use of the steps.
enum Mode {
    Time,
    Count,
    /// The step that [`Mode::Count`] runs under callgrind, by its name, this many times.
    Run(String, usize),
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).peekable();
    let mode = match args.next_if(|arg| ["count", "run"].contains(&&**arg)).as_deref() {
        Some("run") => Mode::Run(args.next().unwrap(), args.next().unwrap().parse().unwrap()),
        Some(_) => Mode::Count,
        None => Mode::Time,
    };
    let wanted = args.next().unwrap_or_default();
    let run = |name: &str, per: &str, step: &mut dyn FnMut() -> usize| match &mode {
        Mode::Run(wanted, n) if wanted == name => println!("{}", (0..*n).map(|_| step()).sum::<usize>()),
        Mode::Time if name.contains(&wanted) => println!("{name:<44}{:>10.1} ns per {per}", best(step)),
        Mode::Count if name.contains(&wanted) => {
            // The part that both runs have in common, the program's start and end, is not the step's.
            let ((few, units), (many, more)) = (counted(name, 500), counted(name, 2500));
            println!("{name:<44}{:>10.1} instructions per {per}", (many - few) / (more - units));
        }
        _ => {}
    };
    let bytes = packet(512);
    let header: &[u8; HEADER_LEN] = bytes.first_chunk().unwrap();
    run("decode and check a header", "packet", &mut || {
        black_box(Header::decode(black_box(header)).check(MAX_PACKET)).is_ok().into()
    });
    for payload in [512, 4096] {
        let mut read = Reads::new(payload);
        run(&format!("split 256 KiB of {payload} B packets"), "packet", &mut || read.split(&mut |_| {}));
    }
    let budget = Budget::new(4 << 20, Arc::default());
    run("hold and settle", "entry", &mut || {
        budget.try_acquire(Cost::alone(1, 4224)).unwrap().forwarded();
        1
    });
    let sender = LinkSender::new(Class::Data, drained(), None, |_| {});
    sender.start("micro:data-tx").unwrap();
    let small = Bytes::from(packet(0));
    run("hold, queue, write 128 B to a socket", "entry", &mut || {
        sender.put(small.clone(), budget.acquire(Cost::alone(1, small.len())).unwrap());
        1
    });
    let large = Bytes::from(vec![0; READ]);
    run("hold, queue, write 256 KiB to a socket", "entry", &mut || {
        sender.put(large.clone(), budget.acquire(Cost::alone(62, large.len())).unwrap());
        1
    });
    let node = |id| NodeId::try_from(id).unwrap();
    let here = (node(0), SiteId::try_from(0).unwrap());
    let records: Vec<_> = (1..32).map(|id| PeerStatistics::new(PeerKey::Node(node(id)))).collect();
    let router = Router::new(here, records.iter().cloned());
    let mut sink = FromKernel::new(&router);
    let run_of_packets = |payload: usize, n: u32| {
        let bytes = Bytes::from(packet(payload).repeat(n as usize));
        let cost = Cost::alone(n, bytes.len());
        Run {
            class: Class::Data,
            scope: Scope::Node,
            device: hadmd::wire::Device::FIRST,
            node_to: Mask(u32::MAX - 1),
            bytes,
            cost,
        }
    };
    let many = run_of_packets(4096, 31);
    let mut route = |run: &Run| sink.take(Item::Run(run.clone())).is_ok().then_some(31).unwrap();
    run("route to 31 peers, none of them connected", "peer", &mut || route(&many));
    let limits = Limits {
        data: DATA_CEILING,
        meta: META_CEILING,
        slow: Duration::from_secs(60),
        meta_patience: Duration::from_secs(60),
    };
    let (events, _events) = unbounded();
    for record in &records {
        let links = [drained(), drained()].map(|stream| Connection { stream, codec: None });
        let session = Session::start(record, SessionId(1), links, here, &limits, &events, None).unwrap();
        router.set_session(record.key, Some(session));
    }
    let one = run_of_packets(0, 1);
    run("route and write 128 B to 31 connected peers", "peer", &mut || route(&one));
    run("the same, 31 packets of 4 KiB", "peer", &mut || route(&many));
}

/// Instructions of a process that does nothing but this step, this many times, and the units in them.
fn counted(name: &str, n: usize) -> (f64, f64) {
    let mut valgrind = Command::new("valgrind");
    // With every thread in its turn, else the readers starve.
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--fair-sched=yes"]);
    valgrind.arg(std::env::current_exe().unwrap()).args(["run", name, &n.to_string()]);
    let output = valgrind.output().expect("counting takes valgrind (Debian package valgrind)");
    let words = String::from_utf8(output.stderr).unwrap();
    let total = words.lines().find_map(|line| line.split_once("Collected :")).expect(&words).1.trim();
    (total.parse().unwrap(), String::from_utf8(output.stdout).unwrap().trim().parse().unwrap())
}

/// Nanoseconds per unit, of which one `step` does as many as it says.
fn best(step: &mut dyn FnMut() -> usize) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..20 {
        let (begin, mut units) = (Instant::now(), 0);
        while begin.elapsed().as_millis() < 20 {
            for _ in 0..16 {
                units += step();
            }
        }
        best = best.min(begin.elapsed().as_nanos() as f64 / units as f64);
    }
    best
}

fn packet(payload: usize) -> Vec<u8> {
    let header = Header { len: payload as u32, node_to: Mask::of(1), ..Header::new(PacketType::ND_SBIO) };
    let mut bytes = header.encode().to_vec();
    bytes.resize(HEADER_LEN + payload, 7);
    bytes
}

/// An framer that is fed as if reads always filled its buffer.
struct Reads {
    framer: Framer,
    stream: Vec<u8>,
    at: usize,
}

impl Reads {
    fn new(payload: usize) -> Self {
        let packet = packet(payload);
        let stream = packet.repeat(READ / packet.len());
        Reads { framer: Framer::new(MAX_PACKET), stream, at: 0 }
    }

    /// One read; gives the packets in it.
    fn split(&mut self, take: &mut dyn FnMut(Run)) -> usize {
        let room = self.framer.room().unwrap();
        let n = (room.capacity() - room.len()).min(self.stream.len() - self.at);
        room.extend_from_slice(&self.stream[self.at..self.at + n]);
        self.at = (self.at + n) % self.stream.len();
        self.framer.filled(n);
        let mut packets = 0;
        while let Some(Item::Run(run)) = self.framer.next(&mut |_| packets += 1).unwrap() {
            take(run);
        }
        packets
    }
}

/// A socket from whose other end a thread reads as fast as it can.
fn drained() -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let out = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    out.set_nodelay(true).unwrap();
    let mut peer = listener.accept().unwrap().0;
    thread::spawn(move || {
        let mut buf = vec![0; READ];
        while peer.read(&mut buf).is_ok_and(|n| n > 0) {}
    });
    out
}
