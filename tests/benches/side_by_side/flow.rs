//! The load: an endless stream of equal packets, every byte of which follows from its place in the stream.
//! Headers are checked whole, so that no packet can be lost, doubled, swapped or cut unnoticed; payloads are
//! checked at the beginning of every read and, of every eighth packet, whole, so that checking costs next
//! to nothing. Must treat every contestant alike.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{HEADER, Packet};

/// Bytes written, and read, in one call at most.
const BLOCK: usize = 256 * 1024;
/// Bytes of a payload that are always checked.
const GLANCE: usize = 64;

/// The stream of packets of one payload size for one set of receivers.
pub struct Packets {
    head: [u8; HEADER],
    /// The payload of packet n begins at `n % cycle * 8`.
    pattern: Vec<u8>,
    payload: usize,
    cycle: usize,
}

impl Packets {
    pub fn new(payload: usize, to: u32) -> Self {
        let cycle = (BLOCK / (HEADER + payload)).max(1);
        let Packet { head, .. } = Packet::data(0, to, 0).with_len(payload as u32);
        Packets { head, pattern: Packet::data(7, 0, payload + cycle * 8).payload, payload, cycle }
    }

    /// Sent by node `from`.
    pub fn from(mut self, from: u32) -> Self {
        self.head[32..36].copy_from_slice(&from.to_le_bytes());
        self
    }

    /// Bytes of one packet.
    pub fn size(&self) -> usize {
        HEADER + self.payload
    }

    fn head(&self, seq: u64) -> [u8; HEADER] {
        let mut head = self.head;
        head[24..32].copy_from_slice(&seq.to_le_bytes());
        head
    }

    fn payload(&self, seq: u64) -> &[u8] {
        let at = (seq % self.cycle as u64) as usize * 8;
        &self.pattern[at..at + self.payload]
    }

    /// One packet.
    pub fn packet(&self, seq: u64) -> Vec<u8> {
        [&self.head(seq)[..], self.payload(seq)].concat()
    }

    /// A whole number of cycles, to be sent again and again by [`Packets::number`].
    pub fn block(&self) -> Vec<u8> {
        (0..self.cycle as u64).flat_map(|seq| self.packet(seq)).collect()
    }

    /// Writes the sequence numbers from `seq` on into a block; gives the number after.
    pub fn number(&self, block: &mut [u8], seq: u64) -> u64 {
        let mut next = seq;
        for packet in block.chunks_exact_mut(self.size()) {
            packet[24..32].copy_from_slice(&next.to_le_bytes());
            next += 1;
        }
        next
    }

    /// Checks what was read at place `at` of the stream.
    #[track_caller]
    pub fn check(&self, mut at: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (seq, place) = (at / self.size() as u64, (at % self.size() as u64) as usize);
            let expected = match place {
                0..HEADER => &self.head(seq)[place..],
                _ => &self.payload(seq)[place - HEADER..],
            };
            let n = expected.len().min(bytes.len());
            let look = if place < HEADER || seq % 8 == 0 { n } else { n.min(GLANCE) };
            assert!(bytes[..look] == expected[..look], "packet {seq} is wrong at byte {place} and after");
            bytes = &bytes[n..];
            at += n as u64;
        }
    }
}

/// Sends packets for so long; sets `total` to the bytes of the whole stream before the last of them leave.
pub fn send(mut stream: &TcpStream, packets: &Packets, slice: Duration, total: &AtomicU64) {
    let mut block = packets.block();
    let (begin, mut seq) = (Instant::now(), 0);
    loop {
        seq = packets.number(&mut block, seq);
        let last = begin.elapsed() >= slice;
        if last {
            total.store(seq * packets.size() as u64, SeqCst);
        }
        stream.write_all(&block).unwrap();
        if last {
            return;
        }
    }
}

/// Reads and checks the stream to the end that `total` names.
pub fn receive(mut stream: &TcpStream, packets: &Packets, total: &AtomicU64) {
    let (mut buf, mut at) = (vec![0; BLOCK], 0);
    while at < total.load(SeqCst) {
        let n = stream.read(&mut buf).unwrap();
        assert!(n > 0, "the stream ended after {at} bytes");
        packets.check(at, &buf[..n]);
        at += n as u64;
    }
}

/// The amount that went through.
pub struct Run {
    /// To each receiver.
    pub bytes: u64,
    pub packets: u64,
    pub seconds: f64,
}

/// Sends for so long into `from` and reads it at every end in `to`.
pub fn throughput(from: &TcpStream, to: &[&TcpStream], packets: &Packets, slice: Duration) -> Run {
    let total = AtomicU64::new(u64::MAX);
    let begin = Instant::now();
    thread::scope(|scope| {
        for &end in to {
            scope.spawn(|| receive(end, packets, &total));
        }
        send(from, packets, slice, &total);
    });
    let bytes = total.into_inner();
    Run { bytes, packets: bytes / packets.size() as u64, seconds: begin.elapsed().as_secs_f64() }
}

/// Sends every packet back to the nodes in `back`, to the end that `total` names.
pub fn echo(mut stream: &TcpStream, packets: &Packets, back: u32, total: &AtomicU64) {
    let size = packets.size();
    let (mut buf, mut held, mut at) = (vec![0; 64 * size], 0, 0);
    while at < total.load(SeqCst) {
        let n = stream.read(&mut buf[held..]).unwrap();
        assert!(n > 0, "the stream ended after {at} bytes");
        packets.check(at, &buf[held..held + n]);
        (at, held) = (at + n as u64, held + n);
        let whole = held - held % size;
        for packet in buf[..whole].chunks_exact_mut(size) {
            packet[36..40].copy_from_slice(&back.to_le_bytes());
        }
        stream.write_all(&buf[..whole]).unwrap();
        buf.copy_within(whole..held, 0);
        held -= whole;
    }
}

/// Round trips in microseconds, `depth` packets on their way at any time.
pub fn round_trips(
    mut a: &TcpStream,
    b: &TcpStream,
    there: &Packets,
    back: u32,
    depth: usize,
    slice: Duration,
) -> Vec<f64> {
    let answers = Packets::new(there.payload, back);
    let total = AtomicU64::new(u64::MAX);
    let size = there.size() as u64;
    let mut times = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| echo(b, there, back, &total));
        let mut sent = Vec::new();
        let mut buf = vec![0; BLOCK];
        let (begin, mut at, mut last) = (Instant::now(), 0, false);
        loop {
            while !last && sent.len() < times.len() + depth {
                last = begin.elapsed() >= slice;
                if last {
                    total.store((sent.len() as u64 + 1) * size, SeqCst);
                }
                let packet = there.packet(sent.len() as u64);
                sent.push(Instant::now());
                a.write_all(&packet).unwrap();
            }
            if times.len() == sent.len() {
                return;
            }
            let n = a.read(&mut buf).unwrap();
            assert!(n > 0, "the stream ended");
            answers.check(at, &buf[..n]);
            at += n as u64;
            let now = Instant::now();
            while ((times.len() + 1) as u64) * size <= at {
                times.push((now - sent[times.len()]).as_secs_f64() * 1e6);
            }
        }
    });
    times
}

/// The value below which `part` of the values are.
pub fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() as f64 * part) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
