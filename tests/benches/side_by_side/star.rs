//! One daemon with up to 31 scripted peers around it: fan-out, what one peer's load does to another's round
//! trip, stalled peers, idling, and how fast the death of a peer's daemon is reported.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use hadmd::daemon::link::MAX_CHUNK;
use hadmd::daemon::peer::{DATA_CEILING, META_CEILING};

use crate::Build;
use crate::ends::{Kernel, Peer, Walker, drain, limit_unsent, read_meta};
use crate::figures::Figures;
use crate::flow::{Packets, echo, quantile, receive, round_trips, send, throughput};
use crate::process::{cpu_seconds, start};
use crate::support::{ConfigBuilder, ConfigFile, Daemon, PATIENCE, Packet, Subnet, bit, kind, ms};

/// Peers at most: ids 1 to 31.
const PEERS: u8 = 31;
/// Bytes that the load generator keeps unsent where its own socket would count.
const UNSENT: u32 = 256 << 10;
const FAN: [u8; 4] = [1, 2, 8, PEERS];
/// The ceiling that README.md gives, for packets that are smaller than a receive buffer, and what the program
/// itself takes, bytes.
const CEILING: usize =
    PEERS as usize * (2 * (DATA_CEILING + META_CEILING) + 6 * MAX_CHUNK) + 2 * MAX_CHUNK + (8 << 20);

struct Star {
    peers: Vec<Peer>,
    kernel: Kernel,
    daemon: Daemon,
    _net: Subnet,
    _config: ConfigFile,
}

impl Star {
    /// `element`: one of the configuration's that is not as usual. `buffer`: bytes of the receive buffers of
    /// all peers but the first, where the system is not to choose.
    fn new(build: &Build, peers: u8, element: (&'static str, u32), buffer: Option<usize>) -> Self {
        let net = Subnet::claim();
        let config = ConfigBuilder::new(&net, peers + 1).set(element.0, element.1).build();
        let daemon = start(build, &net, &config, 0);
        let kernel = Kernel::attach(&net, 0);
        let peers: Vec<_> = (1..=peers).map(|id| Peer::call(&net, id, buffer.filter(|_| id > 1))).collect();
        kernel.wait_mask(mask(peers.len() as u8), PATIENCE);
        Star { peers, kernel, daemon, _net: net, _config: config }
    }

    fn peer(&self, id: u8) -> &TcpStream {
        &self.peers[usize::from(id) - 1].data
    }
}

/// Nodes 1 to `n`.
fn mask(n: u8) -> u32 {
    (1..=n).map(bit).fold(0, |mask, bit| mask | bit)
}

/// Fan-out to more and more of 31 peers, and round trips to one of them while another carries full load.
pub fn fan_out_and_load(build: &Build, rounds: usize, slice: Duration, figures: &mut Figures) {
    let star = Star::new(build, PEERS, ("slowtimeout", 10), None);
    for round in 0..rounds {
        eprintln!("round {} of {rounds}: fan-out, round trips under load", round + 1);
        for n in FAN {
            let ends: Vec<_> = (1..=n).map(|id| star.peer(id)).collect();
            let packets = Packets::new(4096, mask(n));
            let before = cpu_seconds(&star.daemon);
            let run = throughput(&star.kernel.data, &ends, &packets, slice);
            let gb = run.bytes as f64 * f64::from(n) / 1e9;
            let cpu = cpu_seconds(&star.daemon) - before;
            figures.add(
                "fan-out of 4 KiB, MB/s delivered",
                &n.to_string(),
                &build.name,
                gb * 1e3 / run.seconds,
            );
            figures.add("fan-out of 4 KiB, CPU s per GB", &n.to_string(), &build.name, cpu / gb);
        }
        under_load(&star, slice, &build.name, figures);
    }
    let resident = star.daemon.status("VmRSS") as f64 / 1024.0;
    figures.add("memory, MiB", "idle after load", &build.name, resident);
}

/// Round trips with peer 1 without load, and beside each kind of load of peer 2.
fn under_load(star: &Star, slice: Duration, name: &str, figures: &mut Figures) {
    let packets = Packets::new(4096, bit(1));
    let alone = round_trips(&star.kernel.data, star.peer(1), &packets, bit(0), 1, slice);
    let meta_alone = meta_round_trips(star, slice);
    let mut add = |column, times: &[f64], cost: u64| {
        let section = "round trip p50 beside another peer's full load, us";
        figures.add(section, column, name, quantile(times, 0.5));
        if cost > 0 {
            figures.add("that load, MB/s", column, name, cost as f64 / 1e6 / slice.as_secs_f64());
        }
    };
    add("data, no load", &alone, 0);
    add("meta, no load", &meta_alone, 0);
    let (times, cost) = under_inbound_load(star, slice);
    add("data, load in", &times, cost);
    let (times, cost) = under_outbound_load(star, slice);
    add("data, load out", &times, cost);
    let (packets, total) = (Packets::new(4096, bit(2)), AtomicU64::new(u64::MAX));
    let times = thread::scope(|scope| {
        scope.spawn(|| receive(star.peer(2), &packets, &total));
        scope.spawn(|| send(&star.kernel.data, &packets, slice, &total));
        meta_round_trips(star, slice * 9 / 10)
    });
    add("meta, load out", &times, total.into_inner());
}

/// Round trips with peer 1 on the meta links.
fn meta_round_trips(star: &Star, slice: Duration) -> Vec<f64> {
    let (begin, mut times) = (Instant::now(), Vec::new());
    let mut meta = &star.kernel.meta;
    while begin.elapsed() < slice {
        let packet = Packet::meta(times.len() as u64, bit(1));
        let sent = Instant::now();
        meta.write_all(&packet.head).unwrap();
        let answer = loop {
            let packet = read_meta(meta).unwrap();
            if packet.kind() != kind::NC_CONN_STATE {
                break packet;
            }
        };
        assert_eq!(answer, packet.with_to(bit(0)));
        times.push(sent.elapsed().as_secs_f64() * 1e6);
    }
    times
}

/// Round trips with peer 1 while peer 2 sends to the kernel module as fast as it can: the answers share the
/// kernel's data link with that.
fn under_inbound_load(star: &Star, slice: Duration) -> (Vec<f64>, u64) {
    let flood = Packets::new(4096, bit(0)).from(2);
    let total = AtomicU64::new(u64::MAX);
    let times = thread::scope(|scope| {
        scope.spawn(|| send(star.peer(2), &flood, slice, &total));
        loaded(star, &total, true, |packet| (&star.kernel.data).write_all(&packet).unwrap())
    });
    (times, total.into_inner())
}

/// Round trips with peer 1 while the kernel module sends to peer 2 as fast as it can: the questions share the
/// kernel's data link with that. The generator keeps little unsent: otherwise the questions would wait longest in its
/// own socket, which is no matter of the daemon's.
fn under_outbound_load(star: &Star, slice: Duration) -> (Vec<f64>, u64) {
    let flood = Packets::new(4096, bit(2));
    let total = AtomicU64::new(u64::MAX);
    let (ask, asked) = mpsc::channel::<Vec<u8>>();
    limit_unsent(&star.kernel.data, UNSENT);
    let times = thread::scope(|scope| {
        let (flood, total) = (&flood, &total);
        scope.spawn(|| receive(star.peer(2), flood, total));
        scope.spawn(move || {
            let mut link = &star.kernel.data;
            let (begin, mut block, mut seq) = (Instant::now(), flood.block(), 0);
            while total.load(SeqCst) == u64::MAX {
                seq = flood.number(&mut block, seq);
                if begin.elapsed() >= slice {
                    total.store(seq * flood.size() as u64, SeqCst);
                }
                asked.try_iter().for_each(|packet| link.write_all(&packet).unwrap());
                link.write_all(&block).unwrap();
            }
            asked.iter().for_each(|packet| link.write_all(&packet).unwrap());
        });
        let times = loaded(star, total, false, |packet| ask.send(packet).unwrap());
        drop(ask);
        times
    });
    limit_unsent(&star.kernel.data, u32::MAX);
    (times, total.into_inner())
}

/// Round trips with peer 1, one at a time, until the load has its total. `inbound`: the load comes in on the
/// kernel's data link, and is read to its end.
fn loaded(star: &Star, total: &AtomicU64, inbound: bool, mut ask: impl FnMut(Vec<u8>)) -> Vec<f64> {
    let questions = Packets::new(4096, bit(1));
    let questions_total = AtomicU64::new(u64::MAX);
    let (mut times, mut asked, mut last) = (Vec::new(), 0u64, false);
    let (mut walker, mut buf, mut loads) = (Walker::new(), vec![0; 256 * 1024], 0u64);
    let size = questions.size() as u64;
    let mut link = &star.kernel.data;
    thread::scope(|scope| {
        scope.spawn(|| echo(star.peer(1), &questions, bit(0), &questions_total));
        let mut sent = Instant::now();
        loop {
            if times.len() as u64 == asked && !last {
                last = total.load(SeqCst) != u64::MAX;
                asked += 1;
                if last {
                    questions_total.store(asked * size, SeqCst);
                }
                sent = Instant::now();
                ask(questions.packet(asked - 1));
            }
            if times.len() as u64 == asked && (!inbound || loads * size == total.load(SeqCst)) {
                return times;
            }
            let n = link.read(&mut buf).unwrap();
            walker.walk(&buf[..n], |packet| {
                if inbound && packet.from() == 2 {
                    assert_eq!(packet.seq(), loads, "the load is out of order");
                    loads += 1;
                } else {
                    assert_eq!(packet.seq(), times.len() as u64, "the answers are out of order");
                    times.push(sent.elapsed().as_secs_f64() * 1e6);
                }
            });
        }
    })
}

/// 31 peers of which 30 do not read, the kernel module sends to all of them as fast as it can: the memory at
/// its peak, and the rate of the one that reads, once the others are out, against its rate alone.
pub fn stalled(build: &Build, rounds: usize, slice: Duration, figures: &mut Figures) {
    for round in 0..rounds {
        eprintln!("round {} of {rounds}: 30 of 31 peers stalled", round + 1);
        // Elsewhere, stalled peers would not fill this machine's TCP memory with what they do not read.
        let star = Star::new(build, PEERS, ("slowtimeout", 1), Some(16 * 1024));
        let (counted, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let rate = || {
            let (begin, before) = (Instant::now(), counted.load(SeqCst));
            thread::sleep(slice);
            (counted.load(SeqCst) - before) as f64 / 1e6 / begin.elapsed().as_secs_f64()
        };
        thread::scope(|scope| {
            scope.spawn(|| drain(star.peer(1), &counted));
            let flood = |to: u32, first: u64| {
                let packets = Packets::new(4096, to);
                let (mut block, mut seq) = (packets.block(), first);
                while !stop.load(SeqCst) {
                    seq = packets.number(&mut block, seq);
                    (&star.kernel.data).write_all(&block).unwrap();
                }
                seq
            };
            let all = scope.spawn(move || flood(mask(PEERS), 0));
            let begin = Instant::now();
            star.kernel.wait_mask(bit(1), PATIENCE);
            let waited = begin.elapsed().as_secs_f64();
            let beside = rate();
            stop.store(true, SeqCst);
            let sent = all.join().unwrap();
            let peak = star.daemon.status("VmHWM") as f64 / 1024.0;
            stop.store(false, SeqCst);
            let one = scope.spawn(move || flood(bit(1), sent));
            let alone = rate();
            stop.store(true, SeqCst);
            one.join().unwrap();
            star.peers[0].close();
            let mut add = |column, value| figures.add("30 of 31 peers stalled", column, &build.name, value);
            add("until they are out, s", waited);
            add("live peer then, MB/s", beside);
            add("alone, MB/s", alone);
            figures.add("memory, MiB", "peak, 30 of 31 stalled", &build.name, peak);
        });
    }
    figures.add("memory, MiB", "ceiling", &build.name, CEILING as f64 / f64::from(1 << 20));
}

/// The cost of a daemon that has nothing to do but heartbeats every second.
pub fn idle(build: &Build, slice: Duration, figures: &mut Figures) {
    eprintln!("idling");
    for n in [1, PEERS] {
        let star = Star::new(build, n, ("pingtimeout", 1), None);
        figures.add("threads", &format!("{n} peers"), &build.name, star.daemon.status("Threads") as f64);
        if n == PEERS {
            thread::sleep(ms(1000));
            let (begin, before) = (Instant::now(), cpu_seconds(&star.daemon));
            thread::sleep(slice);
            let cost = (cpu_seconds(&star.daemon) - before) / begin.elapsed().as_secs_f64() * 100.0;
            let resident = star.daemon.status("VmRSS") as f64 / 1024.0;
            figures.add("memory, MiB", "idle, 31 peers", &build.name, resident);
            figures.add("idle CPU, % of a core", "31 peers", &build.name, cost);
        }
    }
}

/// From kill -9 of a peer's daemon to the connection state at the kernel module.
pub fn kill(build: &Build, rounds: usize, figures: &mut Figures) {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let _daemon = start(build, &net, &config, 0);
    let kernel = Kernel::attach(&net, 0);
    for round in 0..rounds {
        eprintln!("round {} of {rounds}: kill -9", round + 1);
        let peer = start(build, &net, &config, 1);
        kernel.wait_mask(bit(1), PATIENCE);
        let told = thread::scope(|scope| {
            let waiting = scope.spawn(|| kernel.wait_mask(0, PATIENCE));
            let begin = Instant::now();
            peer.kill9();
            waiting.join().unwrap() - begin
        });
        figures.add("kill -9 to connection state, ms", "1 peer", &build.name, told.as_secs_f64() * 1e3);
    }
}
