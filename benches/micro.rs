//! What single steps of a packet's way cost, without sockets where that is possible: `cargo bench --bench
//! micro`. Each figure is the best of several runs, since whatever disturbs a run makes it longer. Figures of
//! different machines cannot be compared; `perf stat` on one of them counts instructions.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "it prints and ends on error")]

use std::hint::black_box;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use bytes::Bytes;
use hadmd::core::PeerKey;
use hadmd::link::{Intake, Item, Outlet, Run, Sink};
use hadmd::peer::Record;
use hadmd::queue::{Account, Load};
use hadmd::route::{FromKernel, Switch};
use hadmd::wire::{Class, HEADER_LEN, Header, Mask, NodeId, PacketType, Scope, SiteId};

/// Bytes that one read brings under load.
const READ: usize = 256 * 1024;
const MAX_PACKET: u32 = 16 << 20;

fn main() {
    let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let run = |name: &str, per: &str, step: &mut dyn FnMut() -> usize| {
        if wanted.as_ref().is_none_or(|wanted| name.contains(wanted.as_str())) {
            println!("{name:<44}{:>10.1} ns per {per}", best(step));
        }
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
    let account = Account::new(4 << 20, Arc::default());
    run("hold and settle", "entry", &mut || {
        account.try_hold(Load::alone(1, 4224)).unwrap().forwarded();
        1
    });
    let outlet = drained_outlet();
    let small = Bytes::from(packet(0));
    run("hold, queue, write 128 B to a socket", "entry", &mut || {
        outlet.put(small.clone(), account.hold(Load::alone(1, small.len()), None).unwrap());
        1
    });
    let large = Bytes::from(vec![0; READ]);
    run("hold, queue, write 256 KiB to a socket", "entry", &mut || {
        outlet.put(large.clone(), account.hold(Load::alone(62, large.len()), None).unwrap());
        1
    });
    let node = |id| NodeId::try_from(id).unwrap();
    let records = (1..32).map(|id| Record::new(PeerKey::Node(node(id))));
    let mut sink = FromKernel::new(&Switch::new((node(0), SiteId::try_from(0).unwrap()), records));
    let run_of_packets = Run {
        class: Class::Data,
        scope: Scope::Node,
        dev_id: 0,
        node_to: Mask(u32::MAX - 1),
        bytes: large,
        load: Load::alone(62, READ),
    };
    run("route to 31 peers, none of them connected", "peer", &mut || {
        sink.take(Item::Run(run_of_packets.clone())).is_ok().then_some(31).unwrap()
    });
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

/// An intake that is fed as if reads always filled its buffer.
struct Reads {
    intake: Intake,
    stream: Vec<u8>,
    at: usize,
}

impl Reads {
    fn new(payload: usize) -> Self {
        let packet = packet(payload);
        let stream = packet.repeat(READ / packet.len());
        Reads { intake: Intake::new(MAX_PACKET), stream, at: 0 }
    }

    /// One read; gives the packets in it.
    fn split(&mut self, take: &mut dyn FnMut(Run)) -> usize {
        let room = self.intake.room().unwrap();
        let n = (room.capacity() - room.len()).min(self.stream.len() - self.at);
        room.extend_from_slice(&self.stream[self.at..self.at + n]);
        self.at = (self.at + n) % self.stream.len();
        self.intake.filled(n);
        let mut packets = 0;
        while let Some(Item::Run(run)) = self.intake.next(&mut |_| packets += 1).unwrap() {
            take(run);
        }
        packets
    }
}

/// An outlet to a socket from which a thread reads as fast as it can.
fn drained_outlet() -> Arc<Outlet> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let out = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    out.set_nodelay(true).unwrap();
    let mut peer = listener.accept().unwrap().0;
    thread::spawn(move || {
        let mut buf = vec![0; READ];
        while peer.read(&mut buf).unwrap() > 0 {}
    });
    let outlet = Outlet::new(out, None, |_| {});
    outlet.start("micro:data-tx").unwrap();
    outlet
}
