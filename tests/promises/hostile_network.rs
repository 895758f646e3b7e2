//! A network full of unknown clients: silent connections by the thousand, hellos that drip, noise, hellos of others, floods
//! of a peer that has gone mad. Meanwhile legitimate traffic keeps nine tenths of its rate, peers come in as quickly
//! as ever, memory stays in its bound, and afterwards every descriptor is back.
//!
//! The traffic has a rate of its own, far from what the daemon can carry, and the attackers are paced: neither a busy
//! machine nor their own use of the processor is measured. Calm and attacked spells alternate.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests"
)]

use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::support::*;

/// Length of one spell, and how many there are of each kind.
const SPELL: Duration = Duration::from_millis(400);
const SPELLS: usize = 3;
/// Round trips that the traffic consists of in a second.
const RATE: u64 = 200;
/// Acts of an attacker in a second.
const PACE: u64 = 300;
/// Memory that may be used on top of that before the first attack, in KiB.
const GROWTH: u64 = 24 * 1024;

/// A thread that does something [`PACE`] times a second while it is let loose.
struct Attacker {
    loose: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
    acts: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Attacker {
    fn new(mut act: impl FnMut() + Send + 'static) -> Self {
        let (loose, over, acts) = <(Arc<AtomicBool>, Arc<AtomicBool>, Arc<AtomicU64>)>::default();
        let (may, end, count) = (loose.clone(), over.clone(), acts.clone());
        let thread = thread::spawn(move || {
            while !end.load(SeqCst) {
                if may.load(SeqCst) {
                    act();
                    count.fetch_add(1, SeqCst);
                }
                // Its pace, not a wait for anything.
                thread::park_timeout(Duration::from_micros(1_000_000 / PACE));
            }
        });
        Attacker { loose, over, acts, thread: Some(thread) }
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        self.over.store(true, SeqCst);
        let _ = self.thread.take().unwrap().join();
    }
}

/// Carries a data packet from the kernel to the peer, and one back.
#[track_caller]
fn round_trip(harness: &Harness, peer: &FakePeer, seq: u64) {
    let (out, back) = (Packet::data(seq, bit(peer.id), 4096), Packet::data(seq, bit(harness.node), 4096));
    harness.kernel.data.send(&out);
    assert_eq!(peer.data.recv(), out);
    peer.data.send(&back);
    assert_eq!(harness.kernel.data.recv(), back);
}

/// Round trips in one spell, one after the other, none before its time.
fn carried(harness: &Harness, peer: &FakePeer) -> usize {
    let begun = Instant::now();
    let mut count = 0;
    while begun.elapsed() < SPELL {
        let due = Duration::from_micros(count * 1_000_000 / RATE);
        match due.checked_sub(begun.elapsed()) {
            Some(early) => thread::park_timeout(early),
            None => {
                round_trip(harness, peer, count);
                count += 1;
            }
        }
    }
    count as usize
}

/// Traffic under an attack, beside traffic without it; then a new peer comes in while it goes on.
#[track_caller]
fn endure(what: &str, harness: &Harness, peer: &FakePeer, act: impl FnMut() + Send + 'static) {
    let attacker = Attacker::new(act);
    let mut spells = [Vec::new(), Vec::new()];
    for n in 0..2 * SPELLS {
        attacker.loose.store(n % 2 == 1, SeqCst);
        spells[n % 2].push(carried(harness, peer));
    }
    let [calm, attacked] = spells.map(|mut counts| {
        counts.sort_unstable();
        counts[SPELLS / 2]
    });
    let acts = attacker.acts.load(SeqCst);
    eprintln!("{what}: {calm} round trips in peace, {attacked} under {} acts", acts / SPELLS as u64);
    attacker.loose.store(true, SeqCst);
    let begun = Instant::now();
    let new = harness.caller(3).call_until_taken();
    let took = harness.wait_bit(begun, 3, true) - begun;
    round_trip(harness, &new, 0);
    drop(attacker);
    assert!(attacked * 10 >= calm * 9, "{what}: {attacked} round trips instead of {calm}");
    assert!(took < ms(1000), "{what}: a new peer came in only after {took:?}");
}

/// An address of an unknown client, another one each time.
fn stranger(first: Ipv4Addr, n: u64) -> Ipv4Addr {
    let [a, b, c, _] = first.octets();
    Ipv4Addr::new(a, b, c, 100 + (n % 8) as u8)
}

#[test]
fn legitimate_traffic_endures_a_hostile_network() {
    let harness = Harness::new(4);
    let peer = harness.call(2);
    harness.assert_carries(&peer);
    carried(&harness, &peer);
    let (descriptors, memory) = (harness.daemon.descriptors(), harness.daemon.status("VmHWM"));
    let (to, home) = (harness.net.node(0), harness.net.ip(0));
    let open = move |n: u64| connect_from(stranger(home, n), to, None).unwrap();

    // A thousand are there from the beginning, and the oldest is replaced with each act.
    let mut held: std::collections::VecDeque<TcpStream> = (0..1000).map(open).collect();
    let mut n = 0;
    endure("silence", &harness, &peer, move || {
        n += 1;
        held.pop_front();
        held.push_back(open(n));
    });

    let mut dripping: Vec<(TcpStream, usize)> = Vec::new();
    let mut n = 0;
    endure("dripping hellos", &harness, &peer, move || {
        n += 1;
        if dripping.len() < 100 {
            dripping.push((open(n), 0));
        }
        let at = n as usize % dripping.len();
        let (stream, said) = &mut dripping[at];
        let hello = hello(1, DATA, 0, "10.0.0.1", false);
        if stream.write_all(&hello[*said..=*said]).is_err() || *said == HELLO - 2 {
            dripping.swap_remove(at);
        } else {
            *said += 1;
        }
    });

    let mut n = 0;
    endure("noise", &harness, &peer, move || {
        n += 1;
        let noise: Vec<u8> = (0..fastrand::usize(1..200)).map(|_| fastrand::u8(..)).collect();
        let _ = open(n).write_all(&noise);
    });

    let mut n = 0;
    endure("hellos from wrong addresses", &harness, &peer, move || {
        n += 1;
        let id = 1 + (n % 3) as u8;
        let _ = open(n).write_all(&hello(id, if n % 2 == 0 { DATA } else { META }, 0, "", n % 4 == 0));
    });

    // The healthy peer's own bytes, word for word.
    let (mut n, source) = (0, harness.net.ip(2).to_string());
    endure("replayed hellos", &harness, &peer, move || {
        n += 1;
        let mut stream = open(n);
        for kind in [DATA, META] {
            let _ = stream.write_all(&hello(2, kind, 0, &source, false));
        }
    });

    let mad = harness.call(1);
    let flood = Arc::new(mad);
    let writing = flood.clone();
    endure("a flood of meta packets", &harness, &peer, move || {
        for _ in 0..16 {
            let _ = writing.meta.try_send(&Packet::meta(0, bit(0)));
        }
    });
    drop(flood);

    let grown = harness.daemon.status("VmHWM") - memory;
    eprintln!("memory grew by {grown} KiB");
    assert!(grown < GROWTH, "{grown} KiB more than before");
    redial("giving descriptors back", PATIENCE, || {
        (harness.daemon.descriptors() <= descriptors).then_some(())
    });
    let masks = harness.kernel.masks();
    let lost = masks.iter().skip_while(|&&mask| mask == 0).any(|mask| mask & bit(2) == 0);
    assert!(!lost, "the healthy session was lost meanwhile: {masks:x?}");
    harness.stop();
}
