//! The cost of a packet in calls to the system, counted, not timed: at full load well under one call for ten
//! packets of 4 KiB and direction. Counted by strace, which slows the daemon down, never speeds it up;
//! skipped, with a line that says so, where strace is missing or may not trace.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]
#![allow(clippy::print_stderr, reason = "says why it is skipped")]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use support::*;

const PACKETS: usize = 50_000;
const SIZE: usize = HEADER + 4096;

/// Calls of the daemon's threads while `job` runs; `None` where they cannot be counted.
fn counted(daemon: &Daemon, config: &ConfigFile, job: impl FnOnce()) -> Option<u64> {
    let report = config.dir.path.join("strace.out");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-c", "-o"]).arg(&report).args(["-p", &daemon.pid().to_string()]);
    let mut strace = strace.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().ok()?;
    let mut words = BufReader::new(strace.stderr.take()?);
    let mut line = String::new();
    words.read_line(&mut line).ok()?;
    if !line.contains("attached") {
        eprintln!("{line}");
        let _ = strace.wait();
        return None;
    }
    job();
    kill_process(Pid::from_child(&strace), Signal::INT).unwrap();
    words.read_to_string(&mut line).unwrap();
    strace.wait().unwrap();
    let table = std::fs::read_to_string(&report).unwrap();
    eprintln!("{table}");
    let total = table.lines().find(|line| line.ends_with(" total")).unwrap();
    // % time, seconds, usecs/call, calls, errors (where there are any), total
    Some(total.split_whitespace().nth(3).unwrap().parse().unwrap())
}

/// Sends equal packets into one socket and reads as many bytes from the other.
fn flood(mut from: &TcpStream, mut to: &TcpStream, mask: u32) {
    let block = Packet::data(0, mask, SIZE - HEADER).bytes().repeat(50);
    thread::scope(|scope| {
        scope.spawn(|| (0..PACKETS / 50).for_each(|_| from.write_all(&block).unwrap()));
        let (mut buf, mut left) = (vec![0; 1 << 20], PACKETS * SIZE);
        while left > 0 {
            let n = to.read(&mut buf).unwrap();
            assert!(n > 0, "closed with {left} bytes missing");
            left -= n;
        }
    });
}

#[test]
fn calls_per_packet_and_direction() {
    let net = Subnet::claim();
    // The scripted peer answers no pings: none is due while this runs.
    let config = ConfigBuilder::new(&net, 2).heartbeat(600.0, 5).build();
    let daemon = Daemon::start(&net, &config, 0);
    let (kernel, _) = kernel_hello(net.server(0), kind::HS_D, 0).unwrap();
    let (_meta, _) = kernel_hello(net.server(0), kind::HS_M, 0).unwrap();
    let caller = Caller::new(&net, 1, 0);
    let [mut peer, mut peer_meta] = [DATA, META].map(|class| caller.open(class).unwrap());
    caller.finish(&mut peer, DATA).unwrap();
    caller.finish(&mut peer_meta, META).unwrap();
    daemon.wait_log("node 1: connected", PATIENCE);
    for (way, from, to, mask) in [("out", &kernel, &peer, bit(1)), ("in", &peer, &kernel, bit(0))] {
        let Some(calls) = counted(&daemon, &config, || flood(from, to, mask)) else {
            return eprintln!("SKIPPED: calls to the system per packet: strace is missing or may not trace");
        };
        let per_packet = calls as f64 / PACKETS as f64;
        eprintln!("{way}: {per_packet:.4} calls per packet");
        assert!(per_packet < 0.1, "{way}: {calls} calls for {PACKETS} packets");
    }
}
