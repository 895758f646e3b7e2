//! Metrics over HTTP: the answers, and that no client costs another anything.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::support::*;

/// A place of this test alone; no node has this address.
fn place(net: &Subnet, host: u8) -> SocketAddr {
    (net.ip(host), 9464).into()
}

fn harness(nodes: u8) -> (Harness, SocketAddr) {
    let harness = Harness::with(nodes, 0, |config| config);
    let at = place(&harness.net, 20);
    rewrite(&harness, nodes, Some(at));
    assert!(hadmctl(&harness, &["reload"]).status.success());
    (harness, at)
}

fn rewrite(harness: &Harness, nodes: u8, metrics: Option<SocketAddr>) {
    let config = ConfigBuilder::new(&harness.net, nodes);
    let config = metrics.map_or(config.clone(), |at| config.set("metrics", at));
    std::fs::write(&harness.config.path, config.render()).unwrap();
}

fn hadmctl(harness: &Harness, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
    command.arg("--control").arg(harness.config.control(harness.node)).args(args).output().unwrap()
}

/// Returns the answer to these bytes, up to the end of the connection.
fn talk(at: SocketAddr, request: &[u8]) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(at)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A scrape that must succeed: the text.
#[track_caller]
fn scrape(at: SocketAddr) -> String {
    let answer = talk(at, b"GET /metrics HTTP/1.1\r\nHost: hadmd\r\nAccept: */*\r\n\r\n").unwrap();
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    let mut lines = head.split("\r\n");
    assert_eq!(lines.next(), Some("HTTP/1.1 200 OK"));
    let fields: Vec<&str> = lines.collect();
    assert!(fields.contains(&"Content-Type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
    assert!(fields.contains(&format!("Content-Length: {}", text.len()).as_str()), "{head}");
    text.into()
}

/// D1 beside it: data flows the whole time, and arrives whole and in order.
#[test]
fn a_scrape_is_what_hadmctl_prints_also_under_load() {
    let (harness, at) = harness(2);
    let peer = harness.call(1);
    harness.assert_carries(&peer);
    // Once a ping is answered, no gauge is added any more.
    let printed = redial("an answered ping", PATIENCE, || {
        let printed = String::from_utf8(hadmctl(&harness, &["metrics"]).stdout).unwrap();
        printed.contains("hadm_peer_rtt_seconds{").then_some(printed)
    });
    const N: u64 = 3000;
    std::thread::scope(|scope| {
        scope.spawn(|| (0..N).for_each(|n| harness.kernel.data.send(&Packet::data(n, bit(1), 4096))));
        let arrives =
            scope.spawn(|| (0..N).for_each(|n| assert_eq!(peer.data.recv(), Packet::data(n, bit(1), 4096))));
        let mut scrapes = 0;
        while !arrives.is_finished() || scrapes == 0 {
            let text = scrape(at);
            assert_eq!(assert_exposition(&text), assert_exposition(&printed));
            assert!(text.contains("hadm_peer_connected{peer=\"node 1\"} 1\n"), "{text}");
            scrapes += 1;
        }
        arrives.join().unwrap();
    });
    harness.stop();
}

#[test]
fn everything_else_is_refused_by_its_status() {
    let (harness, at) = harness(2);
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(5000));
    let endless = "GET /".to_string() + &"x".repeat(5000);
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("GET /metrics/ HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody", "405 Method Not Allowed"),
        ("HEAD /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        ("garbage\r\n\r\n", "400 Bad Request"),
        ("\x16\x03\x01\n\n", "400 Bad Request"),
        (&long, "431 Request Header Fields Too Large"),
        (&endless, "431 Request Header Fields Too Large"),
    ] {
        let answer = talk(at, request.as_bytes()).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request:?}: {answer}");
        assert!(answer.ends_with("\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"), "{answer}");
        assert_eq!(answer.contains("Allow: GET"), status.starts_with("405"), "{answer}");
    }
    scrape(at);
    harness.stop();
}

/// Clients that send a byte now and then, and clients that ask and do not read, are given up after 5 s; those above
/// the limit at once. Meanwhile packets are carried.
#[test]
fn slow_clients_cost_nobody_but_themselves() {
    let (harness, at) = harness(2);
    let peer = harness.call(1);
    let began = Instant::now();
    let mut slow: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(at).unwrap()).collect();
    for stream in &mut slow {
        stream.write_all(b"GET /met").unwrap();
        stream.set_read_timeout(Some(ms(100))).unwrap();
    }
    // Only a closed connection shows whether it is the ninth.
    let mut ninth = TcpStream::connect(at).unwrap();
    ninth.set_read_timeout(Some(PATIENCE)).unwrap();
    let hung_up = ninth.read(&mut [0]);
    assert!(matches!(&hung_up, Ok(0)) || hung_up.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset));
    assert!(began.elapsed() < ms(4000), "at once");
    while !slow.is_empty() {
        slow.retain_mut(|stream| {
            let waits = |error: std::io::Error| error.kind() == ErrorKind::WouldBlock;
            stream.write_all(b"x").is_ok() && stream.read(&mut [0]).is_err_and(waits)
        });
        harness.assert_carries(&peer);
        assert!(began.elapsed() < PATIENCE, "{} are still there", slow.len());
    }
    assert!(began.elapsed() >= ms(4900), "not before their time");
    scrape(at);
    harness.stop();
}

#[test]
fn a_place_in_use_is_told_and_ends_the_start() {
    let net = Subnet::claim();
    let at = place(&net, 20);
    let _taken = TcpListener::bind(at).unwrap();
    let config = ConfigBuilder::new(&net, 2).set("metrics", at).build();
    let output = Daemon::command(&net, &config, 0).arg("--no-kmod-check").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    let line = said.lines().find(|line| line.contains("ERROR")).unwrap();
    assert!(line.contains(&format!("cannot serve metrics at {at}: Address already in use")), "{line}");
    assert!(line.contains("element metrics"), "{line}");
}

#[test]
fn a_reload_moves_closes_and_refuses() {
    let (harness, at) = harness(2);
    let peer = harness.call(1);
    let elsewhere = place(&harness.net, 21);
    let reload = |to: Option<SocketAddr>| {
        rewrite(&harness, 2, to);
        hadmctl(&harness, &["reload"])
    };
    let moved = reload(Some(elsewhere));
    assert_eq!(
        String::from_utf8(moved.stdout).unwrap(),
        format!("setting: metrics: {at} -> {elsewhere}\nnode 1: kept\n")
    );
    scrape(elsewhere);
    assert_eq!(talk(at, b"").unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let taken = TcpListener::bind(at).unwrap();
    let refused = reload(Some(at));
    assert_eq!(refused.status.code(), Some(5));
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(why.contains("nothing was changed: cannot serve metrics"), "{why}");
    scrape(elsewhere);
    drop(taken);
    assert!(reload(None).status.success());
    assert_eq!(talk(elsewhere, b"").unwrap_err().kind(), ErrorKind::ConnectionRefused);
    harness.assert_carries(&peer);
    harness.stop();
}

/// Clients that keep places at the port, and come again when they are disconnected, keep no scraper out.
#[test]
fn hostile_clients_that_come_again_keep_no_scraper_out() {
    let (harness, at) = harness(2);
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let hostile = |request: &'static [u8]| {
            let end = &end;
            move || {
                while !end.load(Ordering::Relaxed) {
                    let Ok(mut stream) = TcpStream::connect(at) else { continue };
                    stream.set_read_timeout(Some(ms(1000))).unwrap();
                    let _ = stream.write_all(request);
                    let _ = stream.read(&mut [0]);
                }
            }
        };
        for request in [&b""[..], b"GET /met", b"GET /metrics HTTP/1.1\r\n\r\n", b"POST / HTTP/1.1\r\n\r\n"] {
            (0..4).for_each(|_| drop(scope.spawn(hostile(request))));
        }
        for _ in 0..40 {
            scrape(at);
        }
        end.store(true, Ordering::Relaxed);
    });
    // More at once than there are places: the newest is answered, and it shows how many were not.
    let crowd: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(at).unwrap()).collect();
    let text = scrape(at);
    let line = text.lines().find(|line| line.contains("\"metrics client\"")).unwrap();
    assert!(line.rsplit(' ').next().unwrap().parse::<u64>().unwrap() > 30, "{line}");
    drop(crowd);
    harness.stop();
}
