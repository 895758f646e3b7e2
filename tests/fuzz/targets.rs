//! The fuzzed functions: each takes any bytes and panics if a promise does not hold. Every promise is checked
//! against a second, plain reading of the bytes, written from the protocol and without the library's own help.
//!
//! The fuzzer's programs call these, and so does `tests/fuzz_corpus.rs` with the inputs kept in `fuzz/corpus`. They
//! must not depend on time, threads or files; the route target uses connections to itself.
#![allow(
    dead_code,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable
)]

#[path = "record.rs"]
mod handshake;
#[path = "nbd.rs"]
mod nbd;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::LazyLock;
use std::time::Duration;

use hadmd::config;
use hadmd::control::Request;
use hadmd::daemon::core::{Admission, AllowedPeer, ListenerKind};
use hadmd::daemon::link::{Closed, Framer, Item, Piped, Reading, Run, Sink, TakesPipes, read_link};
use hadmd::daemon::peer::{Direction, PeerStatistics};
use hadmd::daemon::route::{FromKernel, Router};
use hadmd::nbd::disk::Bitmap;
use hadmd::nbd::disk::format::{ActivityRecord, BITMAP_BYTES, BitmapBlock, Block, Label, Superblock};
use hadmd::wire::{
    Class, Extension, HELLO_LEN, Hello, Mark, NodeId, PeerKey, PeerView, ResourceId, Scope, SiteId,
};
use socket2::SockRef;

const MAX_PACKET: u32 = 4096;

/// A packet, read plainly.
#[derive(Debug, PartialEq)]
struct Plain<'a> {
    kind: u8,
    dev: u8,
    to: u32,
    bytes: &'a [u8],
}

/// Every whole packet up to the first that may not be taken, and whether there was one.
fn packets(mut bytes: &[u8]) -> (Vec<Plain<'_>>, bool) {
    let mut all = Vec::new();
    while bytes.len() >= 128 {
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let (low, high, len) = (number(0), number(4), number(8));
        if (low, high) != (0x6a42_27b9, 0x3e95_3ac1) || len > MAX_PACKET {
            return (all, true);
        }
        let Some((packet, rest)) = bytes.split_at_checked(128 + len as usize) else { break };
        all.push(Plain { kind: packet[12], dev: packet[14], to: number(36), bytes: packet });
        bytes = rest;
    }
    (all, false)
}

const fn is_data(kind: u8) -> bool {
    matches!(kind, 23..=38)
}

/// Heartbeats and connection states.
const fn is_daemons(kind: u8) -> bool {
    matches!(kind, 5..=7 | 14..=16)
}

const fn is_relayed(kind: u8) -> bool {
    is_data(kind) || matches!(kind, 1..=20)
}

/// Feeds the bytes in pieces of the lengths given; hands every item over, and says whether the stream was refused.
fn feed(bytes: &[u8], pieces: &[u8], mut take: impl FnMut(Item)) -> bool {
    let mut framer = Framer::new(MAX_PACKET);
    let (mut at, mut piece) = (0, 0);
    loop {
        match framer.next(&mut |_| {}) {
            Err(_) => return true,
            Ok(Some(item)) => take(item),
            Ok(None) if at == bytes.len() => return false,
            Ok(None) => {
                let room = framer.room().unwrap();
                let spare = room.capacity() - room.len();
                assert!(spare > 0, "there is room for more");
                let wanted =
                    pieces.get(piece % pieces.len().max(1)).map_or(spare, |&n| usize::from(n) * 3 + 1);
                let n = wanted.min(spare).min(bytes.len() - at);
                piece += 1;
                room.extend_from_slice(&bytes[at..at + n]);
                framer.filled(n);
                at += n;
            }
        }
    }
}

/// The first byte says how many of the next are lengths of pieces; the rest is the stream.
fn cut(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&count, rest) = data.split_first()?;
    rest.split_at_checked(usize::from(count % 8))
}

/// Any split of a stream gives the same packets: those of a plain reading, relayed byte for byte.
pub fn stream(data: &[u8]) {
    let Some((pieces, bytes)) = cut(data) else { return };
    let (expected, refused) = packets(bytes);
    for pieces in [pieces, &[0], &[]] {
        let (mut relayed, mut own, mut unrelayed) = (Vec::new(), Vec::new(), Vec::new());
        let ended = feed(bytes, pieces, |item| match item {
            Item::Run(run) => {
                let (inside, refused) = packets(&run.bytes);
                assert!(
                    !refused
                        && run.cost.packets as usize == inside.len()
                        && run.cost.bytes == run.bytes.len()
                );
                for packet in inside {
                    assert!(is_relayed(packet.kind) && !is_daemons(packet.kind), "{packet:?}");
                    assert_eq!((u8::from(run.device), run.node_to.0), (packet.dev, packet.to));
                    assert_eq!(run.class == Class::Data, is_data(packet.kind));
                    assert_eq!(run.scope == Scope::Site, matches!(packet.kind, 1..=12 | 23..=34));
                }
                relayed.extend_from_slice(&run.bytes);
            }
            Item::DaemonsOwn(header) => own.push((header.kind.0, u8::from(header.device), header.node_to.0)),
            Item::View(header, payload) => {
                let good = matches!(*payload, [1, ..]) && payload.len() == 12;
                let _ = PeerView::decode(&payload, true);
                assert_eq!((header.kind.0, PeerView::decode(&payload, false).is_ok()), (200, good));
                unrelayed.push((header.kind.0, u8::from(header.device), header.node_to.0));
            }
            Item::Unrelayed(header) => {
                unrelayed.push((header.kind.0, u8::from(header.device), header.node_to.0))
            }
        });
        let sum = |which: fn(u8) -> bool| {
            let some = expected.iter().filter(move |packet| which(packet.kind));
            some.map(|packet| (packet.kind, packet.dev, packet.to)).collect::<Vec<_>>()
        };
        let all = expected.iter().filter(|packet| is_relayed(packet.kind) && !is_daemons(packet.kind));
        assert_eq!(relayed, all.flat_map(|packet| packet.bytes).copied().collect::<Vec<u8>>());
        assert_eq!(own, sum(is_daemons));
        assert_eq!(unrelayed, sum(|kind| !is_relayed(kind)));
        assert_eq!(ended, refused);
    }
}

fn node(id: u32) -> NodeId {
    NodeId::try_from(id).unwrap()
}

fn site(id: u32) -> SiteId {
    SiteId::try_from(id).unwrap()
}

fn resource(id: u32) -> ResourceId {
    ResourceId::try_from(id).unwrap()
}

/// A hello, and the record after it where it announces one: read or refused, never let in against the rules, and
/// written again as it was meant.
pub fn hello(data: &[u8]) {
    let Some((bytes, rest)) = data.split_first_chunk::<HELLO_LEN>() else { return };
    let Ok(hello) = Hello::decode(bytes) else {
        return assert!(bytes[1] > 3 || bytes[2] > 1, "refused without need: {bytes:?}");
    };
    assert_eq!((hello.id, hello.ack), (bytes[0], bytes[1] % 2 == 1));
    let again = Hello::decode(&hello.encode()).unwrap();
    // There is no room for a long address, with a mark less than without: it goes into the record.
    let room = if hello.mark == Mark::None { 32 } else { 16 };
    let addr = hello.addr.filter(|addr| addr.to_string().len() < room);
    assert_eq!(again, Hello { addr, ..hello });
    let mut named = None;
    if hello.mark == Mark::Extended {
        let Some((len, body)) = rest.split_first_chunk() else { return };
        let Ok(len) = Extension::body_len(*len) else { return };
        let Some(body) = body.get(..len) else { return };
        let Ok(record) = Extension::decode(body) else { return };
        let encoded = record.encode();
        let (len, body) = encoded.split_first_chunk().unwrap();
        assert_eq!(Extension::body_len(*len), Ok(body.len()));
        assert_eq!(Extension::decode(body).as_ref(), Ok(&record));
        named = record.addr;
    }
    let at = |last| IpAddr::from(Ipv4Addr::new(10, 0, 0, last));
    let here = |port: u16| std::net::SocketAddr::new(at(200), port);
    let allowed = |key, last, port: u16| {
        let here = (port > 0).then(|| here(port));
        AllowedPeer { key, addr: at(last), at: here, wanted: true, held: false, compress: None }
    };
    let admission = Admission {
        node: node(2),
        site: site(1),
        allowed: vec![
            allowed(PeerKey::Node(node(1)), 1, 0),
            allowed(PeerKey::Node(node(3)), 3, 0),
            allowed(PeerKey::Site(resource(0), site(2)), 9, 7100),
        ],
        strict: data.len() % 2 == 0,
    };
    for source in [at(1), at(3), at(9)] {
        for kind in [ListenerKind::Node, ListenerKind::Site(here(7100)), ListenerKind::Site(here(7200))] {
            let Ok(admitted) = admission.admit(&hello, named, source, kind) else { continue };
            let (peer, scope, addr) = match kind {
                ListenerKind::Node => (PeerKey::Node(node(3)), Scope::Node, at(3)),
                _ => (PeerKey::Site(resource(0), site(2)), Scope::Site, at(9)),
            };
            assert!(!hello.ack && hello.scope == scope && kind != ListenerKind::Site(here(7200)));
            assert_eq!(admitted.peer, peer);
            assert!(!admission.strict || source == addr, "{source} is let in as {peer}");
        }
    }
}

/// A configuration: good, or refused with places that are in the text.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let resolve = |name: &str| match name.len() % 3 {
        0 => Ok(vec![Ipv4Addr::new(10, 0, 0, name.len() as u8).into()]),
        1 => Ok(Vec::new()),
        _ => Err(std::io::ErrorKind::NotFound.into()),
    };
    match config::parse(text, "alpha", &resolve) {
        Ok(loaded) => {
            let config = loaded.config;
            let local = config.local_node().expect("this node is in its own configuration");
            assert!(local.id == config.node && local.hostname.eq_ignore_ascii_case("alpha"), "{local:?}");
            assert!(!config.ping_interval.is_zero() && config.max_ping_count > 0);
            assert!(config.server.port() > 0 && (1 << 10..=1 << 30).contains(&config.max_packet));
            assert_eq!(config.digest(), config.clone().digest());
        }
        Err(problems) => {
            assert!(!problems.is_empty(), "refused without a reason");
            let lines = text.split('\n').count();
            for problem in problems {
                assert!((1..=lines).contains(&(problem.line as usize)), "{problem} in {lines} lines");
                assert!(!problem.to_string().is_empty());
            }
        }
    }
}

/// A request of the control protocol: refused, or what it means is what it means written anew.
pub fn control(data: &[u8]) {
    let Ok(line) = std::str::from_utf8(data) else { return };
    match Request::read(line.trim()) {
        Ok(request) => {
            let again = request.line().to_string();
            assert!(!again.contains('\n'), "a request is one line: {again}");
            assert_eq!(Request::read(&again), Ok(request));
        }
        Err(why) => assert!(!why.is_empty()),
    }
}

/// Packets from the kernel module: the counters of each peer have exactly the packets for it, with any headers, and
/// what is for nobody is counted.
pub fn route(data: &[u8]) {
    let Some((pieces, bytes)) = cut(data) else { return };
    routed(bytes, |sink| {
        feed(bytes, pieces, |item| sink.take(item).unwrap());
    });
    // The same through a socket, packets with any payload without a copy; as much as a socket takes at once.
    if bytes.len() <= 32 << 10 {
        routed(bytes, |sink| through_pipes(bytes, sink));
    }
}

/// A sink that takes all data packets in pipes.
struct Piping<'a>(&'a mut FromKernel);

impl Sink for Piping<'_> {
    fn take(&mut self, item: Item) -> Result<(), Closed> {
        self.0.take(item)
    }

    fn takes_pipes(&self, _: &Run) -> TakesPipes {
        TakesPipes::Yes
    }

    fn take_piped(&mut self, run: Run, piped: Piped) -> Result<(), Closed> {
        self.0.take_piped(run, piped)
    }
}

fn through_pipes(bytes: &[u8], sink: &mut FromKernel) {
    static LISTENER: LazyLock<TcpListener> = LazyLock::new(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let mut source = TcpStream::connect(LISTENER.local_addr().unwrap()).unwrap();
    let (stream, _) = LISTENER.accept().unwrap();
    source.write_all(bytes).unwrap();
    source.shutdown(Shutdown::Write).unwrap();
    let reading = Reading { max_packet: MAX_PACKET, busy_poll: Duration::ZERO, zero_copy: Some(0) };
    let closed = read_link(&stream, "fuzz", None, reading, None, &mut Piping(sink));
    assert_eq!(matches!(closed, Closed::Violation(_)), packets(bytes).1, "{closed}");
    // Closed at once: the system would remember each connection for a minute.
    SockRef::from(&source).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Checks the counters after `deliver` has given these bytes to the sink.
fn routed(bytes: &[u8], deliver: impl FnOnce(&mut FromKernel)) {
    // Node 2 of site 1: nodes 0, 1 and 31, sites 0 and 2 of resource 3, whose log it owns, and site 0 of resource 4.
    let nodes = [0, 1, 31].map(|id| PeerKey::Node(node(id)));
    let sites = [(3, 0), (3, 2), (4, 0)].map(|(res, id)| PeerKey::Site(resource(res), site(id)));
    let records: Vec<_> = nodes.into_iter().chain(sites).map(PeerStatistics::new).collect();
    let router = Router::new((node(2), site(1)), records.iter().cloned());
    router.set_owned([resource(3)].into());
    let mut sink = FromKernel::new(&router);
    deliver(&mut sink);

    let mut expected: BTreeMap<(PeerKey, bool), u64> = BTreeMap::new();
    let mut unroutable = BTreeMap::new();
    for packet in packets(bytes).0 {
        let of_site = matches!(packet.kind, 1..=12 | 23..=34);
        let mut stray = |what| *unroutable.entry(what).or_insert(0) += 1;
        match packet.kind {
            kind if is_daemons(kind) => stray("daemon's own type"),
            kind if !is_relayed(kind) => stray("type not relayed"),
            _ if of_site && !matches!(packet.dev, 3 | 255) => stray("unknown resource"),
            _ if packet.to == 0 => stray("no addressee"),
            kind => {
                for id in (0..32).filter(|id| packet.to >> id & 1 == 1) {
                    let peer = match (of_site, id) {
                        (true, 0 | 2) => PeerKey::Site(resource(3), site(id)),
                        (false, 0 | 1 | 31) => PeerKey::Node(node(id)),
                        (true, 1) | (false, 2) => {
                            stray("own bit");
                            continue;
                        }
                        _ => {
                            stray("unknown id");
                            continue;
                        }
                    };
                    *expected.entry((peer, is_data(kind))).or_default() += 1;
                }
            }
        }
    }
    for record in &records {
        for class in Class::BOTH {
            let snapshot = record.counters(Direction::Out, class).snapshot();
            let packets = expected.get(&(record.key, class == Class::Data)).copied().unwrap_or_default();
            assert!(snapshot.balances(), "{snapshot}");
            assert_eq!(
                (snapshot.received, snapshot.all_dropped()),
                (packets, packets),
                "{} {class}",
                record.key
            );
        }
    }
    for (what, count) in router.unroutable.list() {
        assert_eq!(count, unroutable.get(what).copied().unwrap_or_default(), "{what}");
    }
}

/// CRC-32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

/// A block of metadata, of each kind: what is believed has the right head and checksum, and is written as it was read.
/// The first byte says whether the head is made right first, so that the fields are reached.
pub fn metadata(data: &[u8]) {
    let Some((&how, rest)) = data.split_first() else { return };
    let mut block: Block = [0; 4096];
    let len = rest.len().min(4096);
    block[..len].copy_from_slice(&rest[..len]);
    let (number, tag) = (u64::from(how >> 4), 0x0bad_cafe_u32);
    if how & 8 != 0 {
        block[..6].copy_from_slice(&[b'H', b'A', b'D', b'M', how % 4 + 1, 0]);
        block[6..16].copy_from_slice(&[1, 0, how >> 4, 0, 0, 0, 0, 0, 0, 0]);
        // The tag of a label is that of its own UUID.
        let tag = if how % 4 == 0 { crc32c(&block[288..304]) } else { tag };
        block[24..28].copy_from_slice(&tag.to_le_bytes());
    }
    if how & 4 != 0 {
        block[28..32].fill(0);
        let crc = crc32c(&block);
        block[28..32].copy_from_slice(&crc.to_le_bytes());
    }
    let mut unsealed = block;
    unsealed[28..32].fill(0);
    let kind = u16::from_le_bytes([block[4], block[5]]);
    let right = block[..4] == *b"HADM"
        && block[6..8] == [1, 0]
        && block[8..16] == number.to_le_bytes()
        && block[28..32] == crc32c(&unsealed).to_le_bytes();
    let is = |wanted, tagged: bool| right && kind == wanted && (tagged || block[24..28] == tag.to_le_bytes());
    if let Ok(label) = Label::decode(&block, number) {
        assert!(is(1, true), "believed a label that is none");
        assert!(label.layout.check().is_ok() && label.layout.blocks() > 512);
        assert_eq!(Label::decode(&label.encode(number), number), Ok(label));
    }
    if let Ok(superblock) = Superblock::decode(&block, number, tag) {
        assert!(is(2, false), "believed a superblock that is none");
        let again = superblock.encode(number, tag);
        assert_eq!(Superblock::decode(&again, number, tag), Ok(superblock));
    }
    if let Ok(record) = ActivityRecord::decode(&block, number, tag) {
        assert!(is(3, false), "believed a record that is none");
        assert_eq!(record.extents().len(), usize::from(u16::from_le_bytes([block[32], block[33]])));
        assert_eq!(ActivityRecord::decode(&record.encode(number, tag), number, tag), Ok(record));
    }
    let bits = BitmapBlock::decode(&block, number, tag);
    assert_eq!(bits.is_ok(), is(4, false), "every right piece of a bitmap is believed, and no other");
    if let Ok(bits) = bits {
        assert_eq!(bits.encode(number, tag), block);
        let mut bitmap = Bitmap::new(BITMAP_BYTES as u64 * 8);
        bitmap.load(0, &bits);
        assert_eq!(bitmap.count(), block[32..].iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>());
        let (mut at, mut count) = (0, 0);
        while let Some(run) = bitmap.next_run(at, u64::MAX) {
            count += run.end - run.start;
            at = run.end;
        }
        assert_eq!(count, bitmap.count());
        assert_eq!(bitmap.take_block(0, bits.sequence, number, tag), block);
    }
}

/// A payload of SC_HS between disk programs.
pub fn record(data: &[u8]) {
    handshake::check(data);
}

/// An NBD client's bytes before it chooses: every option has its answers, in order, and nothing else comes. Its bytes
/// after its choice break nothing.
pub fn nbd_negotiation(data: &[u8]) {
    let Some((pieces, bytes)) = cut(data) else { return };
    let (answers, _) = nbd::converse(bytes.to_vec(), pieces);
    let (again, _) = nbd::converse(bytes.to_vec(), &[]);
    assert_eq!(answers, again, "pieces make a difference");
    let mut answers = answers.strip_prefix(b"NBDMAGICIHAVEOPT\0\x03").expect("the greeting");
    let Some((flags, mut bytes)) = bytes.split_first_chunk() else { return assert!(answers.is_empty()) };
    let flags = u32::from_be_bytes(*flags);
    if flags > 3 {
        return assert!(answers.is_empty());
    }
    while let Some((head, rest)) = bytes.split_first_chunk::<16>() {
        let number = u32::from_be_bytes(head[8..12].try_into().unwrap());
        let len = u32::from_be_bytes(head[12..].try_into().unwrap()) as usize;
        if !head.starts_with(b"IHAVEOPT") || (flags & 1 == 0 && number != 1) || rest.len() < len {
            break;
        }
        let option = &rest[..len];
        bytes = &rest[len..];
        if number == 1 {
            if option != b"r0" && !option.is_empty() {
                break;
            }
            let zeroes = if flags & 2 == 0 { 124 } else { 0 };
            return assert!(answers.len() >= 10 + zeroes && answers[..8] == 5000u64.to_be_bytes());
        }
        let (mut kind, mut infos) = (3, 0);
        while matches!(kind, 2..=4) {
            let (answered, next, len) = nbd::option_reply(&mut answers);
            assert!(answered == number && len <= 8192 && infos < 8);
            (kind, infos) = (next, infos + 1);
        }
        assert!(kind == 1 || kind >> 31 == 1, "{kind:#x}");
        assert!(kind == 1 << 31 | 1 || matches!(number, 2 | 3 | 5..=10), "option {number}: {kind:#x}");
        match number {
            2 => break,
            7 if kind == 1 => return,
            _ => {}
        }
    }
    assert!(answers.is_empty(), "{answers:?}");
}

/// An NBD client's bytes after its choice: the replies and the disk are those of a plain reading, byte by byte.
pub fn nbd_transmission(data: &[u8]) {
    let Some((pieces, bytes)) = cut(data) else { return };
    for structured in [false, true] {
        let meta = nbd::option(10, b"\0\0\0\x02r0\0\0\0\x01\0\0\0\x0fbase:allocation");
        let before = if structured { [nbd::option(8, &[]), meta].concat() } else { Vec::new() };
        let go = nbd::option(7, b"\0\0\0\x02r0\0\0");
        let (answers, disk) = nbd::converse([&[0, 0, 0, 3], &before[..], &go, bytes].concat(), pieces);
        let mut answers = &answers[18..];
        for _ in 0..if structured { 5 } else { 2 } {
            nbd::option_reply(&mut answers);
        }
        let (expected_answers, expected_disk) = nbd::expected(bytes, structured);
        assert_eq!(answers, expected_answers);
        assert!(disk == expected_disk, "the disk holds something else");
    }
}
