//! Far sites behind a slow line, and behind a long one: the line is used, and clients notice nothing of it.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use super::far::{prepare, wait_caught_up};
use super::namespaces::{SITE_PORT, own_ip};
use super::sites::{CHUNK, Sites, machine, write};

/// The port of a machine's end of the line.
const PORT: u16 = 7199;

/// Bytes that are taken from a socket at once, and how many such pieces the line holds.
const PIECE: usize = 16 << 10;
const PIECES: usize = 128;

/// A line between two machines.
#[derive(Clone)]
struct Line {
    /// Bytes a second, in each direction.
    rate: Arc<AtomicU64>,
    /// Milliseconds that each byte takes, in each direction.
    delay: Arc<AtomicU64>,
}

/// The moment at which a direction of the line is free again.
type Free = Arc<Mutex<Instant>>;

impl Line {
    /// A line that is as fast as this machine.
    fn fast() -> Self {
        Line { rate: Arc::new(AtomicU64::new(u64::MAX)), delay: Arc::default() }
    }

    /// Listens here, and carries what comes to that address; until the test's end.
    fn serve(&self, at: SocketAddr, to: SocketAddr) {
        let listener = TcpListener::bind(at).unwrap();
        let free = [(); 2].map(|()| Free::new(Mutex::new(Instant::now())));
        let line = self.clone();
        // Threads stay in the namespace that they begin in.
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(to) else { continue };
                let ends = [(&near, &far), (&far, &near)];
                for ((from, to), free) in ends.into_iter().zip(&free) {
                    line.clone().carry(from.try_clone().unwrap(), to.try_clone().unwrap(), Arc::clone(free));
                }
            }
        });
    }

    fn carry(self, mut from: TcpStream, mut to: TcpStream, free: Free) {
        let (sender, receiver) = mpsc::sync_channel::<(Instant, Vec<u8>)>(PIECES);
        std::thread::spawn(move || {
            let mut piece = vec![0; PIECE];
            while let Ok(n @ 1..) = from.read(&mut piece) {
                let mut free = free.lock().unwrap();
                *free = (*free).max(Instant::now())
                    + Duration::from_secs_f64(n as f64 / self.rate.load(Relaxed) as f64);
                let due = *free + Duration::from_millis(self.delay.load(Relaxed));
                drop(free);
                if sender.send((due, piece[..n].to_vec())).is_err() {
                    return;
                }
            }
        });
        std::thread::spawn(move || {
            to.set_nodelay(true).unwrap();
            for (due, piece) in receiver {
                // It is the line that takes the time.
                while let Some(left) = due.checked_duration_since(Instant::now()).filter(|t| !t.is_zero()) {
                    std::thread::park_timeout(left);
                }
                if to.write_all(&piece).is_err() {
                    break;
                }
            }
            _ = to.shutdown(Shutdown::Both);
        });
    }
}

/// A primary and a far site with this line between them.
fn start(line: &Line) -> Option<Sites> {
    let mut pair = prepare(2, &[1], &["--clean", "--log-size", "8M"])?;
    let xml = fs::read_to_string(pair.dir.path.join("hadm.xml")).unwrap();
    // The site with the larger id calls.
    let (near, far) = (own_ip(machine(0)), own_ip(machine(1)));
    let address = |ip: &dyn std::fmt::Display, port| format!("<ip>{ip}</ip><port>{port}</port>");
    let direct = address(&near, SITE_PORT);
    assert!(xml.contains(&direct));
    fs::write(pair.path("hadm.xml", 1), xml.replace(&direct, &address(&far, PORT))).unwrap();
    let (at, to) = (SocketAddr::new(far.into(), PORT), SocketAddr::new(near.into(), SITE_PORT));
    pair.net.machines[machine(1)].inside(|| line.serve(at, to));
    pair.all().for_each(|site| pair.start_site(site));
    pair.wait(0, "site 1 follows in order");
    pair.hadmctl(0, &["primary", "--force", "data"]).unwrap();
    pair.wait(1, "secondary of site 0");
    Some(pair)
}

/// Writes 24 MiB of this byte and others; the seconds until all is answered, and until the far site has it.
fn fill(pair: &Sites, byte: u8) -> (f64, f64) {
    let mut client = pair.client(0);
    let begun = Instant::now();
    (0..FILL).for_each(|chunk| write(&mut client, chunk, chunk as u8 ^ byte));
    let answered = begun.elapsed();
    wait_caught_up(pair, 0, 1);
    let there = begun.elapsed();
    println!("{FILL} chunks: answered in {answered:?}, at the far site in {there:?}");
    (answered.as_secs_f64(), there.as_secs_f64())
}

const FILL: usize = 384;

#[test]
fn a_far_site_gets_what_a_slow_line_takes_and_no_write_waits_for_it() {
    let line = Line::fast();
    let Some(pair) = start(&line) else { return };
    let (_, direct) = fill(&pair, 0x5a);
    // 100 Mbit/s.
    line.rate.store(12_500_000, Relaxed);
    let (answered, there) = fill(&pair, 0xa5);
    let least = (FILL * CHUNK) as f64 / 12_500_000.0;
    assert!(answered < there * 0.7, "answered in {answered} s, at the far site in {there} s");
    assert!(there > least * 0.9, "there in {there} s, and the line takes {least} s");
    assert!(there < (least + direct) * 1.5, "there in {there} s, {direct} s without the line's {least} s");
    pair.assert_equal();
    pair.stop();
}

#[test]
fn a_far_site_is_fed_over_a_long_line_and_no_write_waits_for_it() {
    let line = Line::fast();
    let Some(pair) = start(&line) else { return };
    let (_, direct) = fill(&pair, 0x5a);
    // 100 ms there and back: a write after the other would take 38 s.
    line.delay.store(50, Relaxed);
    let (answered, there) = fill(&pair, 0xa5);
    assert!(answered < FILL as f64 * 0.01, "answered in {answered} s: writes wait for the line");
    assert!(there < direct * 1.5 + 2.0, "there in {there} s, {direct} s without the delay");
    pair.assert_equal();
    pair.stop();
}
