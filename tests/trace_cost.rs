//! The cost of clients that ask: however many look at packets or ask for the state of thousands of
//! peers, packets go on nearly as fast, and the kernel module hears of changes in time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use support::*;

/// Tests that measure run one after the other.
static MEASURING: Mutex<()> = Mutex::new(());

/// A client of the control socket that has asked for something, and the first line of the answer.
fn ask(control: &Path, request: &str) -> (BufReader<UnixStream>, String) {
    let mut stream = UnixStream::connect(control).unwrap();
    stream.set_read_timeout(Some(3 * PATIENCE)).unwrap();
    stream.write_all(format!("{request}\n").as_bytes()).unwrap();
    let mut client = BufReader::new(stream);
    let mut line = String::new();
    client.read_line(&mut line).unwrap();
    (client, line)
}

/// A configuration with all resources that there can be, at nine sites, seen from node 0 of site 0.
fn crowded(net: &Subnet) -> ConfigFile {
    let config = ConfigBuilder::new(net, 2).build();
    let mut sites = String::new();
    for site in 1..9 {
        let (name, ip) = (format!("far{site}"), format!("127.99.{site}.1"));
        writeln!(
            sites,
            "<site><id>{site}</id><mode>share</mode><nodes><node><id>0</id><hostname>{name}</hostname>\
             <ipaddr>{ip}</ipaddr><port>7000</port></node></nodes></site>"
        )
        .unwrap();
    }
    let mut resources = String::new();
    for id in 0..255 {
        write!(resources, "<resource><id>{id}</id><name>r{id}</name><runsites>").unwrap();
        for site in 0..9 {
            // Addresses that no machine has: nothing is linked, everything is reported.
            write!(
                resources,
                "<runsite><id>{site}</id><ip>192.0.2.{id}</ip><port>{}</port><protocol>async</protocol>\
                 <disk>/a</disk><bwr_disk>/b</bwr_disk><runnodes><id>0</id></runnodes></runsite>",
                7100 + site
            )
            .unwrap();
        }
        writeln!(resources, "</runsites></resource>").unwrap();
    }
    let text = std::fs::read_to_string(&config.path).unwrap();
    let text = text.replace(" </sites>", &format!("{sites}</sites>"));
    std::fs::write(&config.path, text.replace(" </resources>", &format!("{resources}</resources>"))).unwrap();
    config
}

/// Clients that ask for everything again and again, with thousands of peers to tell of, keep no news from the
/// kernel module.
#[test]
fn the_state_of_thousands_of_peers_is_told_beside_the_kernels_news() {
    let _alone = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
    let net = Subnet::claim();
    let config = crowded(&net);
    let daemon = Daemon::start(&net, &config, 0);
    let kernel = FakeKernel::attach(&net, 0);
    let harness = Harness::of(daemon, kernel, 0, config, net);
    let control = harness.config.control(0);
    let (stop, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    let late = std::thread::scope(|scope| {
        for request in ["status", "status", "mesh", "status", "status", "mesh", "status", "status"] {
            let (control, stop, answers) = (&control, &stop, &answers);
            scope.spawn(move || {
                while !stop.load(SeqCst) {
                    let (_, line) = ask(control, &format!(r#"{{"v":1,"cmd":"{request}"}}"#));
                    assert!(line.contains(r#""ok":true"#) && line.len() > 100_000, "{}", line.len());
                    answers.fetch_add(1, SeqCst);
                }
            });
        }
        // Until they are all at it.
        redial("answers", 3 * PATIENCE, || (answers.load(SeqCst) >= 4).then_some(()));
        let late: Vec<Duration> = (0..9)
            .map(|_| {
                let peer = harness.call(1);
                let gone = Instant::now();
                peer.kill();
                harness.wait_bit(gone, 1, false).duration_since(gone)
            })
            .collect();
        stop.store(true, SeqCst);
        late
    });
    assert!(median(late.clone()) < ms(100), "the kernel module heard late: {late:?}");
    harness.stop();
}

/// A client that hangs up frees its place, also while there are no packets to see.
#[test]
fn traces_that_were_interrupted_keep_nobody_out() {
    let _alone = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
    let harness = Harness::new(2);
    let control = harness.config.control(0);
    for _ in 0..8 {
        let traces: Vec<_> = (0..10)
            .map(|_| {
                redial("a trace", PATIENCE, || {
                    let (trace, line) = ask(&control, r#"{"v":1,"cmd":"trace"}"#);
                    line.contains(r#""ok":true"#).then_some(trace)
                })
            })
            .collect();
        drop(traces);
    }
    redial("the end of their threads", PATIENCE, || (harness.daemon.status("Threads") < 16).then_some(()));
    harness.stop();
}

/// Clients that ask to see packets and read nothing: the packets go on nearly as fast as without them. Measured in
/// turns, so that other load of the machine meets both.
#[test]
fn traces_that_nobody_reads_slow_nothing_down() {
    let _alone = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
    let harness = Harness::new(2);
    let control = harness.config.control(0);
    let peer = harness.caller(1);
    let before = Instant::now();
    let mut links = [DATA, META].map(|kind| peer.open(kind).unwrap());
    for (link, kind) in links.iter_mut().zip([DATA, META]) {
        peer.finish(link, kind).unwrap();
    }
    harness.wait_bit(before, 1, true);
    let [mut data, _meta] = links;
    let bytes = Packet::data(7, bit(1), 4096).bytes().repeat(16);
    let flood = harness.kernel.data.flood_raw(bytes);
    let mut block = vec![0; 1 << 20];
    let mut bytes_in = |span: Duration| {
        let (begun, mut n) = (Instant::now(), 0);
        while begun.elapsed() < span {
            n += data.read(&mut block).unwrap();
        }
        n as f64 / begun.elapsed().as_secs_f64()
    };
    bytes_in(ms(300));
    let mut ratios: Vec<f64> = (0..5)
        .map(|_| {
            let without = bytes_in(ms(600));
            let traces: Vec<_> = (0..6).map(|_| ask(&control, r#"{"v":1,"cmd":"trace"}"#)).collect();
            // Until the rings and the buffers behind them are full.
            bytes_in(ms(1200));
            let with = bytes_in(ms(600));
            drop(traces);
            bytes_in(ms(300));
            with / without
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    // On a busy machine a turn may meet others at work: traces that cost something show in all of them.
    assert!(ratios[3] > 0.6, "of the throughput without traces: {ratios:.2?}");
    harness.kernel.data.close();
    flood.stop();
    harness.stop();
}
