//! Connections beside each other, their limits, and their ends.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use hadmd::nbd::server::{Export, Exports, Limits, Request, Server};

use super::nbd::{Client, Folder, HeldVolume, PATIENCE, SIZE, Served, opt, wait_until};

const FLUSH: u16 = 3;
const ESHUTDOWN: u32 = 108;

fn is_write(request: &Request) -> bool {
    matches!(request, Request::Write { .. })
}

#[test]
fn replies_come_in_the_order_in_which_the_disk_is_done() {
    let disk = HeldVolume::new(8192, is_write);
    let served = Served::volume(disk.clone(), Limits::default());
    let mut client = served.simple();
    client.write(1, 0, b"data");
    client.write(2, 0, b"late");
    assert_eq!(client.read_disk(0, 4), [0; 4]);
    disk.wait_held(2);
    let mut other = served.simple();
    assert_eq!(other.ask(FLUSH, 0, 0, 0), 0, "others do not wait");
    disk.forget();
    client.simple_reply(1, 5);
    disk.release();
    client.simple_reply(2, 0);
    assert_eq!(other.read_disk(0, 4), b"late");
}

#[test]
fn a_cookie_is_no_identity() {
    let disk = HeldVolume::new(8192, is_write);
    let served = Served::volume(disk.clone(), Limits::default());
    let mut client = served.simple();
    (0..3).for_each(|_| client.write(5, 0, b"same"));
    disk.wait_held(3);
    disk.release_all();
    (0..3).for_each(|_| client.simple_reply(5, 0));
}

#[test]
fn a_closing_export_answers_what_is_in_flight_refuses_the_rest_and_ends() {
    let disk = HeldVolume::new(8192, is_write);
    let served = Served::volume(disk.clone(), Limits::default());
    let (mut busy, mut idle, mut choosing) = (served.simple(), served.simple(), served.connect());
    busy.write(1, 0, b"data");
    disk.wait_held(1);
    served.export.close();
    idle.expect_end();
    for cookie in [2, 3] {
        busy.request(FLUSH, 0, cookie, 0, 0);
        busy.simple_reply(cookie, ESHUTDOWN);
    }
    busy.write(4, 0, b"more");
    busy.simple_reply(4, ESHUTDOWN);
    assert!(!served.export.wait_idle(Duration::ZERO));
    disk.release();
    busy.simple_reply(1, 0);
    busy.expect_end();
    assert!(served.export.wait_idle(PATIENCE));
    choosing.option(opt::GO, &Client::info_data("r0", &[]));
    choosing.option_error(opt::GO, 6);
    // And again, with another disk.
    served.export.open(HeldVolume::new(4096, |_| false));
    choosing.go("r0", &[]);
    assert_eq!(choosing.ask(FLUSH, 0, 4096, 1), 22);
    assert_eq!(choosing.ask(FLUSH, 0, 0, 0), 0);
}

#[test]
fn a_client_that_never_stops_asking_does_not_keep_a_closing_export() {
    let served = Served::new();
    let mut clients: Vec<_> = (0..3).map(|_| served.structured()).collect();
    let ended: Vec<_> = clients
        .drain(..)
        .map(|mut client| {
            thread::spawn(move || {
                let request = Client::request_bytes(0, 0, 1, 0, 16).repeat(64);
                let mut reader = Client(client.0.try_clone().unwrap());
                let drain = thread::spawn(move || reader.rest());
                while client.0.write_all(&request).is_ok() {}
                drain.join().unwrap()
            })
        })
        .collect();
    wait_until("clients are served", || served.export.connections() == 3);
    served.export.close();
    assert!(served.export.wait_idle(PATIENCE));
    for end in ended {
        end.join().unwrap();
    }
}

#[test]
fn what_an_ended_connection_left_in_flight_is_settled_before_others_are_served() {
    let disk = HeldVolume::new(8192, is_write);
    let served = Served::volume(disk.clone(), Limits::default());
    // A client with two connections, one of which breaks.
    let mut second = served.simple();
    assert_eq!(second.ask(FLUSH, 0, 0, 0), 0);
    let mut first = served.simple();
    first.write(1, 0, b"old!");
    disk.wait_held(1);
    drop(first);
    let mut third = served.simple();
    // A change on the one that was there, anything on the one that is new.
    second.request(4, 0, 2, 0, 4);
    third.request(0, 0, 2, 0, 4);
    for client in [&mut second, &mut third] {
        client.0.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut early = [0];
        let read = std::io::Read::read(&mut client.0, &mut early);
        assert!(
            matches!(&read, Err(error) if error.kind() == ErrorKind::WouldBlock),
            "{read:?} came too early"
        );
        client.0.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    assert_eq!(disk.log().len(), 2, "{:?}", disk.log());
    disk.release();
    second.simple_reply(2, 0);
    third.simple_reply(2, 0);
    assert_eq!(third.read(4), b"old!");
}

/// The reader of the connection that breaks is kept from its end by a full disk queue: its last request is read after the
/// client has gone, and still comes before the new connection's first.
#[test]
fn what_a_gone_client_sent_comes_before_its_next_connection() {
    for _ in 0..20 {
        let served = Served::new();
        let mut first = served.simple();
        for n in 0..200u8 {
            first.write(1, 0, &[n; 8192]);
        }
        drop(first);
        let mut next = served.simple();
        next.write(2, 0, &[255; 8192]);
        next.simple_reply(2, 0);
        assert_eq!(next.read_disk(0, 8192), [255; 8192]);
        wait_until("the first has left", || served.export.connections() == 1);
        assert_eq!(next.read_disk(0, 8192), [255; 8192]);
    }
}

#[test]
fn more_connections_than_there_may_be_are_turned_away_unless_somebody_dawdles() {
    let limits = Limits { connections: 3, ..Limits::default() };
    let served = Served::volume(HeldVolume::new(8192, |_| false), limits);
    let mut chosen = [served.simple(), served.simple()];
    let mut dawdler = served.connect();
    // The third place is taken from who has not chosen.
    let mut third = served.simple();
    dawdler.expect_end();
    Client::silent(&served.socket).expect_end();
    for client in chosen.iter_mut().chain([&mut third]) {
        assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    }
    drop(chosen);
    wait_until("places are free", || served.server.connections() == 1);
    assert_eq!(served.simple().ask(FLUSH, 0, 0, 0), 0);
}

/// Sends until the server stops reading; the number of bytes that it took.
fn stuff(client: &Client, bytes: &[u8]) -> usize {
    client.0.set_nonblocking(true).unwrap();
    let mut taken = 0;
    let mut last = std::time::Instant::now();
    while last.elapsed() < Duration::from_millis(300) {
        match (&client.0).write(bytes) {
            Ok(n) => {
                taken += n;
                last = std::time::Instant::now();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                thread::park_timeout(Duration::from_millis(5))
            }
            Err(error) => panic!("{error}"),
        }
    }
    client.0.set_nonblocking(false).unwrap();
    taken
}

#[test]
fn a_client_that_reads_no_replies_costs_only_itself() {
    let limits =
        Limits { bytes: 64 << 20, connections: 8, stall: Duration::from_millis(500), ..Limits::default() };
    let disk = HeldVolume::new(40 << 20, |_| false);
    let served = Served::volume(disk.clone(), limits);
    // Asks for 64 GiB, and takes none of it.
    let deaf = served.simple();
    let asked = Client::request_bytes(0, 0, 1, 0, 1 << 20).repeat(1024);
    let mut taken = 0;
    while taken < 64 * asked.len() {
        match stuff(&deaf, &asked) {
            0 => break,
            n => taken += n,
        }
    }
    let read = disk.log().len();
    assert!(read <= 66, "{read} MiB are read for a client that takes none");
    // Small requests of others never wait; large ones as long as a client may hold up the bytes.
    let mut other = served.simple();
    for _ in 0..100 {
        assert_eq!(other.read_disk(0, 4096).len(), 4096);
    }
    assert_eq!(other.read_disk(0, 32 << 20).len(), 32 << 20);
    let mut deaf = deaf;
    // The bytes sent before are there, and then the end.
    assert!(deaf.rest().len() < 64 << 20);
}

#[test]
fn a_client_that_sends_no_payload_costs_only_itself() {
    let limits = Limits { bytes: 0, connections: 4, stall: Duration::from_millis(500), ..Limits::default() };
    let served = Served::volume(HeldVolume::new(40 << 20, |_| false), limits);
    let mut mute = served.simple();
    mute.request(1, 0, 1, 0, 32 << 20);
    mute.send(&[1; 4096]);
    let mut other = served.simple();
    assert_eq!(other.read_disk(0, 32 << 20)[0], 0, "nothing of half a payload is written");
    mute.expect_end();
}

#[test]
fn bytes_in_flight_have_a_ceiling_over_all_connections() {
    let limits = Limits { bytes: 64 << 20, connections: 4, ..Limits::default() };
    let disk = HeldVolume::new(40 << 20, is_write);
    let served = Served::volume(disk.clone(), limits);
    let mut writers: Vec<_> = (0..3)
        .map(|_| {
            let mut client = served.simple();
            thread::spawn(move || {
                for n in 0..40 {
                    client.write(n, 0, &vec![1; 1 << 20]);
                }
                for _ in 0..40 {
                    assert!(matches!(client.reply(), super::nbd::Reply::Simple { error: 0, .. }));
                }
            })
        })
        .collect();
    // 48 MiB of all, and 4 MiB of each connection's own, less what a request takes beside its payload.
    disk.wait_held(47 + 3 * 3);
    thread::park_timeout(Duration::from_millis(300));
    assert!(disk.held() <= 64, "{} MiB are held", disk.held());
    let done = Arc::new(AtomicBool::new(false));
    let releaser = {
        let (disk, done) = (disk.clone(), Arc::clone(&done));
        thread::spawn(move || {
            while !done.load(Ordering::SeqCst) {
                disk.release_all();
                thread::park_timeout(Duration::from_millis(1));
            }
        })
    };
    writers.drain(..).for_each(|writer| writer.join().unwrap());
    done.store(true, Ordering::SeqCst);
    releaser.join().unwrap();
}

#[test]
fn connections_are_served_beside_each_other() {
    let served = Served::sized(64 << 20);
    let workers: Vec<_> = (0..8u8)
        .map(|n| {
            let mut client = if n % 2 == 0 { served.simple() } else { served.structured() };
            thread::spawn(move || {
                let base = u64::from(n) << 22;
                for turn in 0..200u64 {
                    let data = vec![n ^ turn as u8; 4096 + usize::from(n) * 777];
                    let offset = base + turn * 20_000;
                    client.write(turn, offset, &data);
                    client.simple_reply(turn, 0);
                    let len = u32::try_from(data.len()).unwrap();
                    if n % 2 == 0 {
                        assert_eq!(client.read_disk(offset, len), data);
                    } else {
                        client.request(0, 0, turn, offset, len);
                        let super::nbd::Reply::Chunk { data: read, .. } = client.reply() else { panic!() };
                        assert_eq!(read[8..], data);
                    }
                }
            })
        })
        .collect();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
}

#[test]
fn a_unix_socket_is_its_owners_and_the_groups_and_goes_with_its_listener() {
    let folder = Folder::new();
    let socket = folder.join("r0.nbd");
    // The rest of an ended server.
    drop(UnixListener::bind(&socket).unwrap());
    let server = Server::new(Limits::default());
    let exports = Exports::new([Export::new("r0")]);
    let listener = server.listen_unix(&socket, Some("hadm"), exports.clone()).unwrap();
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    let error = server.listen_unix(&socket, None, exports.clone()).err().unwrap();
    assert!(error.contains("is in use") && error.contains("r0.nbd"), "{error}");
    drop(listener);
    assert!(!socket.exists());
    fs::write(&socket, "precious").unwrap();
    let error = server.listen_unix(&socket, None, exports.clone()).err().unwrap();
    assert!(error.contains("no socket"), "{error}");
    assert_eq!(fs::read(&socket).unwrap(), b"precious");
    let error = server.listen_unix(&folder.join("no/such/folder"), None, exports.clone()).err().unwrap();
    assert!(error.contains("no/such/folder"), "{error}");
    let error = server.listen_tcp("192.0.2.1:1".parse().unwrap(), exports).err().unwrap();
    assert!(error.contains("192.0.2.1:1"), "{error}");
}

#[test]
fn tcp_is_served_and_a_closed_listener_lets_nobody_in() {
    let folder = Folder::new();
    let export = Export::new("r0");
    export.open(super::nbd::file_volume(&folder.join("disk"), SIZE));
    let server = Server::new(Limits::default());
    let listener = server.listen_tcp("127.0.0.1:0".parse().unwrap(), Exports::new([export])).unwrap();
    let address = listener.address().unwrap();
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut greeting = [0; 18];
    std::io::Read::read_exact(&mut stream, &mut greeting).unwrap();
    assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03");
    drop(listener);
    wait_until("nobody is let in", || match std::net::TcpStream::connect(address) {
        Err(_) => true,
        Ok(mut stream) => matches!(std::io::Read::read(&mut stream, &mut [0]), Ok(0) | Err(_)),
    });
    // Connected clients go on.
    stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0").unwrap();
    let mut answer = [0; 10];
    std::io::Read::read_exact(&mut stream, &mut answer).unwrap();
    assert_eq!(answer[..8], SIZE.to_be_bytes());
}
