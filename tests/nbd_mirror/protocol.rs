//! The NBD protocol at a mirror that runs: what a client may ask, and what a bad one costs others. The server by itself
//! has its tests in `nbd_server`.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use super::nbd::{Client, Reply, opt};
use super::sites::{CHUNK, FLUSH, PATIENCE, SIZE, Sites, assert_content, write};

const READ: u16 = 0;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZEROES: u16 = 6;
const STATUS: u16 = 7;
const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const FAST: u16 = 16;

fn primary(more: &str) -> Option<Sites> {
    let pair = Sites::start(more)?;
    pair.wait_in_sync();
    pair.hadmctl(0, &["primary", "data"]).unwrap();
    Some(pair)
}

#[test]
fn every_option_is_answered_at_a_mirror() {
    let Some(pair) = primary("") else { return };
    let socket = pair.path("sockets", 0).join("data.nbd");
    let flags = {
        // EXPORT_NAME: size, flags, no zeroes.
        let mut client = Client::greeted(&socket);
        client.option(opt::EXPORT_NAME, b"data");
        let info = client.read(10);
        assert_eq!(info[..8], SIZE.to_be_bytes());
        assert_eq!(client.ask(READ, 0, 0, 4), 0);
        u16::from_be_bytes([info[8], info[9]])
    };
    // Flags there, flush, FUA, trim, zeroes, several connections, cache, fast zeroes; DF with structured replies.
    assert_eq!(flags, 0b1101_0110_1101, "{flags:#b}");
    let mut client = Client::greeted(&socket);
    client.option(opt::LIST, &[]);
    assert_eq!(client.option_reply(opt::LIST), (2, b"\0\0\0\x04data".to_vec()));
    client.option_ack(opt::LIST);
    client.option(opt::GO, &Client::info_data(&"x".repeat(4096), &[]));
    client.option_error(opt::GO, 6);
    client.structured();
    // The empty name is the only export's.
    client.option(opt::INFO, &Client::info_data("", &[3]));
    let infos = client.infos(opt::INFO);
    assert_eq!(infos[0], [&[0, 0][..], &SIZE.to_be_bytes(), &(flags | 1 << 7).to_be_bytes()].concat());
    let sizes = infos.iter().find(|info| info[..2] == [0, 3]).unwrap();
    let number = |at: usize| u32::from_be_bytes(sizes[at..at + 4].try_into().unwrap());
    assert_eq!((number(2), number(10)), (1, 32 << 20));
    client.option(opt::LIST_META, &Client::meta_data("data", &[]));
    assert_eq!(client.option_reply(opt::LIST_META), (4, b"\0\0\0\0base:allocation".to_vec()));
    client.option_ack(opt::LIST_META);
    client.set_allocation("data");
    client.go("data", &[]);
    client.request(STATUS, 0, 9, 0, 8192);
    let reply = client.reply();
    let expected = [&1_u32.to_be_bytes()[..], &8192_u32.to_be_bytes(), &3_u32.to_be_bytes()].concat();
    assert_eq!(reply, Reply::Chunk { flags: 1, kind: 5, cookie: 9, data: expected });
    let mut client = Client::greeted(&socket);
    client.option(opt::ABORT, &[]);
    client.option_ack(opt::ABORT);
    client.expect_end();
    pair.stop();
}

#[test]
fn every_range_is_trimmed_zeroed_and_read_at_both_sites() {
    let Some(pair) = primary("") else { return };
    let mut client = pair.client(0);
    let all = u32::try_from(SIZE).unwrap();
    let fill = |client: &mut Client| {
        for chunk in [0, 1, 64, 65, 511] {
            write(client, chunk, 7);
        }
        // From byte 5 to the middle of an extent, over a border of extents.
        client.write(1, (4 << 20) - 3, b"border");
        client.simple_reply(1, 0);
    };
    for (command, flags) in [(TRIM, 0), (TRIM, FUA), (ZEROES, 0), (ZEROES, NO_HOLE), (ZEROES, FUA)] {
        fill(&mut client);
        assert_eq!(client.ask(command, flags, 0, all), 0, "{command} {flags}");
        assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
        assert!(client.read_disk(0, all).iter().all(|byte| *byte == 0));
        pair.assert_equal();
    }
    let allocated = |site: usize| fs::metadata(pair.disk(site)).unwrap().blocks() * 512;
    assert_eq!(client.ask(TRIM, 0, 0, all), 0);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    assert!(allocated(0) < 1 << 20 && allocated(1) < 1 << 20, "{} {}", allocated(0), allocated(1));
    assert_eq!(client.ask(ZEROES, NO_HOLE, 0, all), 0);
    assert!(allocated(0) >= SIZE, "{}", allocated(0));
    // Odd ends.
    fill(&mut client);
    assert_eq!(client.ask(ZEROES, 0, 5, (4 << 20) - 6), 0);
    let around = client.read_disk((4 << 20) - 3, 6);
    assert_eq!(around, b"\0\0rder");
    assert_eq!(client.ask(CACHE, 0, 0, all), 0);
    for (command, error) in [(READ, 22), (TRIM, 22), (CACHE, 22), (ZEROES, 28)] {
        assert_eq!(client.ask(command, 0, 0, u32::MAX), error, "{command}");
        assert_eq!(client.ask(command, 0, SIZE - 1, 2), error, "{command}");
        assert_eq!(client.ask(command, 0, u64::MAX, 1), error, "{command}");
    }
    client.write(3, SIZE - 1, b"xy");
    client.simple_reply(3, 28);
    client.write(4, SIZE - 1, b"x");
    client.simple_reply(4, 0);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    pair.assert_equal();
    pair.stop();
}

/// Fast zeroes are promised where the disk's file system has them, and refused, with nothing changed, where not.
#[test]
fn fast_zeroes_are_what_the_disk_offers() {
    let Some(pair) = primary("") else { return };
    let mut client = pair.client(0);
    let disk = fs::File::options().write(true).open(pair.disk(0)).unwrap();
    for (flags, mode) in [
        (FAST, rustix::fs::FallocateFlags::PUNCH_HOLE),
        (FAST | NO_HOLE, rustix::fs::FallocateFlags::ZERO_RANGE),
    ] {
        // A hole at another place tells what there is here.
        let offers =
            rustix::fs::fallocate(&disk, mode | rustix::fs::FallocateFlags::KEEP_SIZE, 30 << 20, 4096)
                .is_ok();
        write(&mut client, 3, 3);
        let error = client.ask(ZEROES, flags, 3 * CHUNK as u64, CHUNK as u32);
        assert_eq!(error, if offers { 0 } else { 95 }, "{flags}");
        assert_content(&mut client, 3, if offers { 0 } else { 3 });
    }
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    pair.assert_equal();
    assert_eq!(disk.metadata().unwrap().len(), SIZE, "a try behind the end leaves nothing");
    pair.stop();
}

/// DF gets one chunk, block status the holes of the disk here.
#[test]
fn structured_replies_of_a_mirror() {
    let Some(pair) = primary("") else { return };
    let mut client = Client::greeted(&pair.path("sockets", 0).join("data.nbd"));
    client.structured();
    client.set_allocation("data");
    client.go("data", &[]);
    client.write(1, 1 << 20, &[9; 4 * CHUNK]);
    client.simple_reply(1, 0);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    client.request(READ, DF, 2, 1 << 20, 4 * CHUNK as u32);
    let Reply::Chunk { flags: 1, kind: 1, cookie: 2, data } = client.reply() else { panic!("not one chunk") };
    assert!(data.len() == 8 + 4 * CHUNK && data[8..].iter().all(|byte| *byte == 9));
    client.request(STATUS, 0, 3, 0, 2 << 20);
    let Reply::Chunk { kind: 5, data, .. } = client.reply() else { panic!("no status") };
    let extents: Vec<(u32, u32)> = data[4..]
        .chunks(8)
        .map(|pair| [&pair[..4], &pair[4..]].map(|word| u32::from_be_bytes(word.try_into().unwrap())))
        .map(|[len, kind]| (len, kind))
        .collect();
    let expected = [(1 << 20, 3), (4 * CHUNK as u32, 0), ((1 << 20) - 4 * CHUNK as u32, 3)];
    assert_eq!(extents, expected);
    pair.stop();
}

/// Half a request, garbage, a client that never reads: each costs itself alone.
#[test]
fn a_bad_client_costs_only_itself() {
    let Some(pair) = primary("") else { return };
    let mut good = pair.client(0);
    write(&mut good, 1, 1);
    for bytes in [
        &Client::request_bytes(1, 0, 1, CHUNK as u64, 4096)[..],
        &[&Client::request_bytes(1, 0, 1, CHUNK as u64, 4096)[..], &[0; 4095]].concat(),
        &Client::request_bytes(1, 0, 1, CHUNK as u64, u32::MAX)[..27],
        &[0xff; 4096],
    ] {
        let mut bad = pair.client(0);
        bad.send(bytes);
        bad.half_close();
        bad.expect_end();
    }
    assert_content(&mut good, 1, 1);
    // It asks for far more than it ever reads.
    let greedy = pair.client(0);
    greedy.0.set_nonblocking(true).unwrap();
    let request = Client::request_bytes(READ, 0, 1, 0, 1 << 20);
    let mut sent = 0;
    while sent < 4096 && std::io::Write::write_all(&mut &greedy.0, &request).is_ok() {
        sent += 1;
    }
    let begun = Instant::now();
    for chunk in 0..32 {
        write(&mut good, chunk, 40 + chunk as u8);
    }
    assert_eq!(good.ask(FLUSH, 0, 0, 0), 0);
    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
    pair.assert_equal();
    pair.stop();
}

/// A role that goes answers what it has begun, and ends the connections of all clients, busy or not.
#[test]
fn a_change_of_the_role_ends_connections_in_order() {
    let Some(pair) = primary("") else { return };
    let mut idle = pair.client(0);
    let mut deaf = pair.client(0);
    for cookie in 0..64 {
        deaf.request(READ, 0, cookie, 0, 1 << 20);
    }
    let mut busy = pair.client(0);
    for cookie in 0..200_u64 {
        busy.write(cookie, cookie * 4096, &[cookie as u8 + 1; 4096]);
    }
    let begun = Instant::now();
    pair.hadmctl(0, &["secondary", "data"]).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    // Each write was done, or refused because the disk is served no more; whole replies, then the end.
    let replies = busy.rest();
    assert_eq!(replies.len() % 16, 0);
    let disk = fs::File::open(pair.disk(1)).unwrap();
    for reply in replies.chunks(16) {
        assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes());
        let error = u32::from_be_bytes(reply[4..8].try_into().unwrap());
        let cookie = u64::from_be_bytes(reply[8..16].try_into().unwrap());
        let mut found = [0];
        disk.read_exact_at(&mut found, cookie * 4096).unwrap();
        match error {
            0 => assert_eq!(found[0], cookie as u8 + 1, "answered, and not at the other site"),
            108 => {}
            other => panic!("{cookie}: error {other}"),
        }
    }
    idle.expect_end();
    drop(deaf);
    // The other site serves at once.
    pair.hadmctl(1, &["primary", "data"]).unwrap();
    let mut client = pair.client(1);
    write(&mut client, 9, 9);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    pair.assert_equal();
    pair.stop();
}
