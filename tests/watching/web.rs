//! `hadmctl web`: what a browser gets, what it may not ask, and what people see of it in a real one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::chromium::Chromium;
use crate::skip;
use crate::support::*;

struct Web {
    child: Child,
    at: SocketAddr,
}

impl Web {
    fn start(control: &Path, more: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
        command.arg("--control").arg(control).args(["--timeout", "2", "web", "--listen", "127.0.0.1:0"]);
        if !more.contains(&"--disk-control") {
            command.args(["--disk-control", "/nonexistent/hadm-nbd.sock"]);
        }
        let mut child = command.args(more).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let at = line.trim().strip_prefix("http://").and_then(|rest| rest.strip_suffix('/'));
        Web { child, at: at.unwrap().parse().unwrap() }
    }

    fn url(&self) -> String {
        format!("http://{}/", self.at)
    }

    /// Returns the answer to a request of these lines.
    fn ask(&self, lines: &str) -> String {
        let mut stream = TcpStream::connect(self.at).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(format!("{lines}\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn page(&self) -> String {
        self.ask("GET / HTTP/1.1\r\nHost: localhost")
    }

    /// Waits until the page has this.
    #[track_caller]
    fn wait(&self, part: &str) -> String {
        redial(part, PATIENCE, || Some(self.page()).filter(|page| page.contains(part)))
    }

    /// The first lines of a stream, until its client goes.
    fn stream(&self) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(self.at).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        BufReader::new(stream)
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_page_is_whole_without_scripts_and_says_where_it_may_load_from() {
    let harness = Harness::new(3);
    let _peer = harness.call(1);
    let web = Web::start(&harness.config.control(0), &[]);
    let page = web.wait("connected</span> for");
    let (head, body) = page.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n"), "{head}");
    for field in [
        "Content-Security-Policy: default-src 'none'; script-src 'sha256-",
        "X-Content-Type-Options: nosniff",
        "X-Frame-Options: DENY",
        "Referrer-Policy: no-referrer",
        "Cache-Control: no-store",
    ] {
        assert!(head.contains(field), "{head}");
    }
    assert!(!head.contains("unsafe-inline") && head.contains(&format!("Content-Length: {}\r\n", body.len())));
    for part in [
        "node 1</th>",
        "node 2</th>",
        "1 of 2",
        "Nodes of this site",
        "the peer called",
        "<noscript><meta http-equiv=\"refresh\"",
    ] {
        assert!(body.contains(part), "{part} in {body}");
    }
    harness.stop();
}

#[test]
fn only_a_browser_that_names_this_server_is_answered() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let web = Web::start(&config.control(0), &["--allow-host", "mirror.example"]);
    let long = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}", "x".repeat(20_000));
    for (lines, status) in [
        ("GET / HTTP/1.1\r\nHost: localhost", "200 OK"),
        (&format!("GET / HTTP/1.1\r\nHost: {}", web.at), "200 OK"),
        ("GET / HTTP/1.1\r\nHost: MIRROR.example:80", "200 OK"),
        ("GET / HTTP/1.1\r\nHost: evil.example", "403 Forbidden"),
        ("GET /events HTTP/1.1\r\nHost: evil.example:9465", "403 Forbidden"),
        ("GET / HTTP/1.1", "400 Bad Request"),
        ("GET http://evil.example/ HTTP/1.1\r\nHost: localhost", "400 Bad Request"),
        ("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody", "405 Method Not Allowed"),
        ("PUT /events HTTP/1.1\r\nHost: localhost", "405 Method Not Allowed"),
        ("GET /../etc/passwd HTTP/1.1\r\nHost: localhost", "404 Not Found"),
        (&long, "431 Request Header Fields Too Large"),
    ] {
        let answer = web.ask(lines);
        let shown: String = lines.chars().take(100).collect();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{shown}: {answer}");
        assert!(answer.contains("Content-Security-Policy: default-src 'none'"), "{shown}: {answer}");
    }
}

/// Silent clients give way to those that ask; streams have a limit, and a place is free again when its client goes.
#[test]
fn clients_that_do_nothing_keep_nobody_out() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let daemon = Daemon::start(&net, &config, 0);
    let web = Web::start(&config.control(0), &[]);
    let silent: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(web.at).unwrap()).collect();
    let began = Instant::now();
    assert!(web.page().contains("200 OK"));
    assert!(began.elapsed() < ms(4000), "at once");
    drop(silent);
    let mut streams: Vec<_> = (0..8).map(|_| web.stream()).collect();
    for stream in &mut streams {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        assert_eq!(line, "HTTP/1.1 200 OK\r\n");
    }
    let ninth = web.ask("GET /events HTTP/1.1\r\nHost: localhost");
    assert!(ninth.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{ninth}");
    assert!(web.page().contains("200 OK"), "a page is no stream");
    streams.pop();
    redial("a free place", PATIENCE, || {
        let mut line = String::new();
        web.stream().read_line(&mut line).unwrap();
        line.contains("200").then_some(())
    });
    daemon.stop();
}

#[test]
fn a_stream_tells_of_a_restart_of_the_daemon_and_only_what_changed() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let daemon = Daemon::start(&net, &config, 0);
    let web = Web::start(&config.control(0), &[]);
    let mut lines = web.stream().lines().map(|line| line.unwrap());
    let mut next = |what: &str, part: &str| {
        let end = Instant::now() + PATIENCE;
        lines
            .by_ref()
            .inspect(|_| assert!(Instant::now() < end, "{what}"))
            .filter_map(|line| line.strip_prefix("data: ").map(str::to_owned))
            .find(|line| line.contains(part))
            .unwrap_or_else(|| panic!("{what}"))
    };
    let all = next("the first", "\"peers\"");
    assert!(all.contains("\"log\"") && all.contains("\"node\""), "{all}");
    let later = next("one more", "\"node\"");
    assert!(!later.contains("\"log\""), "{later}");
    daemon.stop();
    next("trouble", "cannot reach the daemon");
    let daemon = Daemon::start(&net, &config, 0);
    next("no trouble", "\"notice\":\"\"");
    web.wait("started anew");
    daemon.stop();
}

/// A daemon that is stopped keeps no browser waiting.
#[test]
fn a_daemon_that_hangs_keeps_no_browser_waiting() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let daemon = Daemon::start(&net, &config, 0);
    let web = Web::start(&config.control(0), &[]);
    web.wait("node 1</th>");
    daemon.signal(rustix::process::Signal::STOP);
    let page = web.wait("does not answer");
    assert!(
        page.contains("node 1</th>") && page.contains("What is shown is what was known before"),
        "{page}"
    );
    let began = Instant::now();
    web.page();
    assert!(began.elapsed() < ms(1500), "{:?}", began.elapsed());
    daemon.signal(rustix::process::Signal::CONT);
    redial("all well", PATIENCE, || (!web.page().contains("What is shown is what")).then_some(()));
    daemon.stop();
}

/// Three nodes as people would have them: two connected, a third that is not there.
struct Cluster {
    harness: Harness,
    _peer: FakePeer,
    web: Web,
}

impl Cluster {
    fn start() -> Self {
        let harness = Harness::new(4);
        let peer = harness.call(1);
        harness.assert_carries(&peer);
        let web = Web::start(&harness.config.control(0), &[]);
        Cluster { harness, _peer: peer, web }
    }
}

#[test]
fn a_real_browser_shows_it_live_at_every_width() {
    let Some(mut browser) = Chromium::start() else {
        return skip(
            "a_real_browser_shows_it_live_at_every_width",
            "chromium is not installed (Debian package chromium)",
        );
    };
    let cluster = Cluster::start();
    browser.call("Log.enable", serde_json::json!({}));
    for (width, scheme) in [(1280, "light"), (380, "dark"), (380, "light"), (1280, "dark")] {
        browser.screen(width, scheme);
        browser.open(&cluster.web.url());
        browser.wait("document.getElementById('live')?.textContent === 'Live'");
        let overflow =
            browser.value("document.documentElement.scrollWidth - document.documentElement.clientWidth");
        assert_eq!(overflow, 0, "nothing is wider than the screen at {width}");
        let ground = browser.value("getComputedStyle(document.body).backgroundColor");
        let dark = ground.as_str().unwrap().trim_start_matches("rgb(").starts_with("18");
        assert_eq!(dark, scheme == "dark", "{ground}");
        let style =
            browser.value("getComputedStyle(document.querySelector('.both, .none, .unknown')).strokeWidth");
        assert_ne!(style, "1px", "the embedded style is in force");
        // A screen reader finds tables of rows and cells also where they are shown as cards.
        let heard = browser.heard();
        for (role, name) in [
            ("heading", "Peers"),
            ("rowheader", "node 1"),
            ("columnheader", "Round trip"),
            ("region", "Who sees whom, as a table"),
            ("status", ""),
        ] {
            assert!(heard.iter().any(|(r, n)| r == role && n == name), "{width}: {role} {name} in {heard:?}");
        }
        assert!(
            heard.iter().any(|(role, name)| role == "image" && name.starts_with("Who sees whom: ")),
            "{heard:?}"
        );
        assert!(heard.iter().filter(|(role, _)| role == "cell").count() >= 21, "{heard:?}");
    }
    // The keyboard reaches what scrolls, and keeps its place while the page changes.
    browser.value("document.querySelector('.scroll').focus()");
    let up = "document.getElementById('node').textContent";
    let before = browser.value(up);
    browser.wait(&format!("{up} !== {before}"));
    assert_eq!(browser.value("document.activeElement.className"), "scroll");
    // A change is there without loading anything, and is said.
    browser.value("window.kept = true");
    let second = cluster.harness.call(2);
    browser.wait("document.getElementById('peers').textContent.includes('node 2● connected')");
    browser.wait("document.getElementById('said').textContent.includes('node 2')");
    browser.wait("document.title.startsWith('2/3 n0')");
    drop(second);
    browser.wait("document.querySelector('#log li').textContent.includes('node 2')");
    let Harness { daemon, config, net, .. } = cluster.harness;
    daemon.stop();
    browser.wait("document.getElementById('notice').textContent.includes('cannot reach the daemon')");
    let daemon = Daemon::start(&net, &config, 0);
    browser.wait("document.getElementById('notice').textContent === ''");
    assert_eq!(browser.value("window.kept"), true, "the page was not loaded anew");
    daemon.stop();
}

#[test]
fn a_real_browser_without_scripts_shows_the_same() {
    let Some(mut browser) = Chromium::start() else {
        return skip(
            "a_real_browser_without_scripts_shows_the_same",
            "chromium is not installed (Debian package chromium)",
        );
    };
    let cluster = Cluster::start();
    cluster.web.wait("connected</span> for");
    browser.call("Emulation.setScriptExecutionDisabled", serde_json::json!({"value": true}));
    browser.screen(380, "light");
    browser.open(&cluster.web.url());
    let heard = redial("the page", PATIENCE, || {
        let heard = browser.heard();
        heard.iter().any(|(role, name)| role == "rowheader" && name == "node 3").then_some(heard)
    });
    for part in ["Loaded anew every ten seconds.", "● connected", "1 of 3"] {
        let all: String =
            heard.iter().filter(|(role, _)| role == "StaticText").map(|(_, name)| name.as_str()).collect();
        assert!(all.contains(part.trim_start_matches("● ")), "{part} in {all}");
    }
    cluster.harness.stop();
}

/// Answers for a disk as `hadm-nbd` would, at a socket of its own.
fn disks(path: &Path, name: &str) {
    let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
    let peers =
        serde_json::json!([{"site": 1, "state": "resync to it", "in_sync": false, "out_of_sync": 83886080}]);
    let disk = serde_json::json!({"id": 0, "name": name, "role": "primary", "disk": "up to date", "clients": 2,
        "peers": peers});
    let answer = serde_json::json!({"v": 1, "ok": true, "data": {"attached": true, "resources": [disk]}});
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.to_string() + "\n";
            std::thread::spawn(move || {
                let mut lines = BufReader::new(&stream).lines();
                while let Some(Ok(line)) = lines.next() {
                    assert_eq!(line, r#"{"v":1,"cmd":"status"}"#, "it only asks how things stand");
                    let _ = (&stream).write_all(answer.as_bytes());
                }
            });
        }
    });
}

#[test]
fn mirrored_disks_are_shown_where_there_are_some() {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2).build();
    let socket = config.dir.path.join("disks");
    let web = Web::start(&config.control(0), &["--disk-control", socket.to_str().unwrap()]);
    assert!(!web.wait("cannot reach the daemon").contains("<h2>Disks</h2>"));
    disks(&socket, "<data>");
    let page = web.wait("site 1: resync to it, 83.9 MB to copy");
    assert!(page.contains("&lt;data&gt;</th>") && page.contains("up to date"), "{page}");
}

/// The bytes of base64.
fn decode(text: &str) -> Vec<u8> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0_u32, 0);
    for c in text.bytes().filter(|c| *c != b'=') {
        bits = bits << 6 | u32::from(digit(c));
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    bytes
}

/// Pictures of four nodes of five under a load that changes, light and dark, wide and narrow, in directory SCREENSHOTS.
#[test]
#[ignore = "takes two minutes, and is for people to look at: make screenshots"]
fn screenshots() {
    let into =
        std::path::PathBuf::from(std::env::var_os("SCREENSHOTS").expect("SCREENSHOTS names a directory"));
    std::fs::create_dir_all(&into).unwrap();
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 5).build();
    let daemons: Vec<Daemon> = (0..4).map(|id| Daemon::start(&net, &config, id)).collect();
    let kernels: Vec<FakeKernel> = (0..4).map(|id| FakeKernel::attach(&net, id)).collect();
    kernels[0].wait_state(bit(1) | bit(2) | bit(3), PATIENCE);
    let socket = config.dir.path.join("disks");
    disks(&socket, "data");
    let web = Web::start(&config.control(0), &["--disk-control", socket.to_str().unwrap()]);
    let Some(mut browser) = Chromium::start() else {
        panic!("chromium is not installed (Debian package chromium)")
    };
    let end = Instant::now() + std::time::Duration::from_secs(120);
    let mut seq = 0;
    while Instant::now() < end {
        for to in 1..4_u8 {
            let swing = ((seq as f64 / 40.0 * f64::from(to)).sin() + 1.1) * 60_000.0;
            kernels[0].data.send(&Packet::data(seq, bit(to), swing as usize));
            kernels[to as usize].data.send(&Packet::data(seq, bit(0), swing as usize / usize::from(to) / 2));
        }
        seq += 1;
        std::thread::park_timeout(ms(50));
    }
    for (width, scheme) in [(1280, "light"), (1280, "dark"), (380, "light"), (380, "dark")] {
        browser.screen(width, scheme);
        browser.open(&web.url());
        browser.wait("document.getElementById('live')?.textContent === 'Live'");
        let png = decode(&browser.screenshot());
        std::fs::write(into.join(format!("web-{width}-{scheme}.png")), png).unwrap();
    }
    drop((kernels, daemons));
}
