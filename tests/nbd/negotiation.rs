//! Negotiation: what each option is answered, and what ends the connection.

use std::time::{Duration, Instant};

use hadmd::nbd::server::{Export, Exports, Limits, Server};

use super::nbd::{Client, HeldVolume, SIZE, Served, opt};

/// Flags of an export: there are flags, FLUSH, FUA, TRIM, WRITE_ZEROES, several connections, CACHE, FAST_ZERO.
const FLAGS: u16 = 0b1101_0110_1101;
/// The same and DF.
const FLAGS_STRUCTURED: u16 = FLAGS | 1 << 7;

fn export_info(flags: u16) -> Vec<u8> {
    [&[0, 0], &SIZE.to_be_bytes()[..], &flags.to_be_bytes()].concat()
}

#[test]
fn export_name_is_answered_with_size_and_flags_and_zeroes_unless_they_are_not_wanted() {
    let served = Served::new();
    for (flags, zeroes) in [(1u32, 124), (3, 0)] {
        for name in ["r0", ""] {
            let mut client = Client::silent(&served.socket);
            client.read(18);
            client.send(&flags.to_be_bytes());
            client.option(opt::EXPORT_NAME, name.as_bytes());
            let expected = [&SIZE.to_be_bytes()[..], &FLAGS.to_be_bytes(), &vec![0; zeroes]].concat();
            assert_eq!(client.read(expected.len()), expected);
            assert_eq!(client.read_disk(0, 3), [0; 3]);
        }
    }
    let mut client = served.connect();
    client.option(opt::EXPORT_NAME, b"other");
    client.expect_end();
}

#[test]
fn go_tells_the_export_and_what_is_asked_for_and_never_pads() {
    let served = Served::new();
    let mut client = served.connect();
    client.option(opt::INFO, &Client::info_data("", &[1, 3, 2, 999]));
    let sizes =
        [&[0, 3][..], &1u32.to_be_bytes(), &4096u32.to_be_bytes(), &(32u32 << 20).to_be_bytes()].concat();
    assert_eq!(client.infos(opt::INFO), [export_info(FLAGS), b"\0\x01r0".to_vec(), sizes.clone()]);
    client.structured();
    assert_eq!(client.go("r0", &[3]), [export_info(FLAGS_STRUCTURED), sizes]);
    client.request(3, 0, 5, 0, 0);
    client.simple_reply(5, 0);
}

#[test]
fn options_that_are_not_served_are_refused_and_the_next_one_is_answered() {
    let served = Served::new();
    let mut client = served.connect();
    for (option, data) in
        [(opt::EXTENDED, &b""[..]), (opt::STARTTLS, b""), (4, b"x"), (12, &[7; 60_000]), (1 << 31, b"")]
    {
        client.option(option, data);
        client.option_error(option, 1);
    }
    for option in [opt::LIST, opt::STARTTLS, opt::STRUCTURED] {
        client.option(option, b"x");
        client.option_error(option, 3);
    }
    client.option(opt::LIST, &[]);
    assert_eq!(client.option_reply(opt::LIST), (2, b"\0\0\0\x02r0".to_vec()));
    client.option_ack(opt::LIST);
    client.option(opt::ABORT, &[]);
    client.option_ack(opt::ABORT);
    client.expect_end();
}

#[test]
fn options_that_do_not_fit_together_are_refused_and_the_next_one_is_answered() {
    let served = Served::new();
    let mut client = served.connect();
    client.structured();
    let good = Client::info_data("r0", &[3]);
    let long = |data: &[u8]| [data, b"x"].concat();
    let name = |len: usize| Client::info_data(&"x".repeat(len), &[]);
    for option in [opt::INFO, opt::GO] {
        for (data, error) in [
            (good[..3].to_vec(), 3),
            (good[..good.len() - 1].to_vec(), 3),
            (long(&good), 3),
            (b"\xff\xff\xff\xffr0\0\0".to_vec(), 3),
            (b"\0\0\0\x01\xff\0\0".to_vec(), 3),
            (name(4096), 6),
            (name(4097), 9),
            (vec![0; 40_000], 9),
            (Client::info_data("r1", &[]), 6),
        ] {
            client.option(option, &data);
            client.option_error(option, error);
        }
    }
    let good = Client::meta_data("r0", &["base:allocation"]);
    for option in [opt::LIST_META, opt::SET_META] {
        for (data, error) in [
            (good[..good.len() - 1].to_vec(), 3),
            (long(&good), 3),
            (b"\0\0\0\x02r0\xff\xff\xff\xff".to_vec(), 3),
            (Client::meta_data(&"x".repeat(4096), &[]), 6),
            (Client::meta_data("r0", &[&"x".repeat(4097)]), 9),
            (Client::meta_data("r1", &["base:allocation"]), 6),
        ] {
            client.option(option, &data);
            client.option_error(option, error);
        }
    }
    client.go("r0", &[]);
}

#[test]
fn contexts_are_listed_and_chosen_for_one_export() {
    let folder = super::nbd::Folder::new();
    let server = Server::new(Limits::default());
    let exports = ["r0", "r1"].map(Export::new);
    exports.iter().for_each(|export| export.open(HeldVolume::new(8192, |_| false)));
    let socket = folder.join("s");
    let _listener = server.listen_unix(&socket, None, Exports::new(exports)).unwrap();
    let connect = || Client::greeted(&socket);

    let mut client = connect();
    client.option(opt::SET_META, &Client::meta_data("r0", &["base:allocation"]));
    client.option_error(opt::SET_META, 3);
    client.structured();
    let listed = (4, b"\0\0\0\0base:allocation".to_vec());
    for queries in [&[][..], &["base:"], &["x", "base:allocation"]] {
        client.option(opt::LIST_META, &Client::meta_data("r0", queries));
        assert_eq!(client.option_reply(opt::LIST_META), listed);
        client.option_ack(opt::LIST_META);
    }
    for (option, queries) in
        [(opt::LIST_META, &["qemu:"][..]), (opt::SET_META, &["base:", "x"]), (opt::SET_META, &[])]
    {
        client.option(option, &Client::meta_data("r0", queries));
        client.option_ack(option);
    }

    // The options after the choice, and true if block status may be asked for then.
    let allowed = |client: &mut Client| {
        client.request(7, 0, 1, 0, 4096);
        match client.reply() {
            super::nbd::Reply::Chunk { kind: 5, .. } => true,
            super::nbd::Reply::Chunk { kind: 32769, data, .. } => {
                assert_eq!(data, [0, 0, 0, 22, 0, 0]);
                false
            }
            other => panic!("{other:?}"),
        }
    };
    client.set_allocation("r1");
    client.go("r1", &[]);
    assert!(allowed(&mut client));
    // Chosen for another export, replaced by nothing, replaced by an error.
    for (chosen, then) in [("r0", None), ("r1", Some(("r1", 0))), ("r1", Some(("r9", 6)))] {
        let mut client = connect();
        client.structured();
        client.set_allocation(chosen);
        if let Some((name, error)) = then {
            client.option(opt::SET_META, &Client::meta_data(name, &["x"]));
            if error == 0 {
                client.option_ack(opt::SET_META)
            } else {
                client.option_error(opt::SET_META, error)
            }
        }
        client.go("r1", &[]);
        assert!(!allowed(&mut client), "{chosen} {then:?}");
    }
}

#[test]
fn several_exports_have_names_only_and_are_there_while_they_are_open() {
    let folder = super::nbd::Folder::new();
    let server = Server::new(Limits::default());
    let exports = ["a", "b", "c"].map(Export::new);
    exports[0].open(HeldVolume::new(4096, |_| false));
    exports[2].open(HeldVolume::new(8192, |_| false));
    let address = "127.0.0.1:0".parse().unwrap();
    let socket = folder.join("s");
    let all = Exports::new(exports.clone());
    let _tcp = server.listen_tcp(address, all.clone()).unwrap();
    let _listener = server.listen_unix(&socket, None, all.clone()).unwrap();
    let mut client = Client::greeted(&socket);
    let mut listed = |expected: &[&str]| {
        client.option(opt::LIST, &[]);
        for name in expected {
            let data = [&1u32.to_be_bytes()[..], name.as_bytes()].concat();
            assert_eq!(client.option_reply(opt::LIST), (2, data));
        }
        client.option_ack(opt::LIST);
    };
    listed(&["a", "c"]);
    exports[1].open(HeldVolume::new(512, |_| false));
    exports[0].close();
    listed(&["b", "c"]);
    all.set([exports[2].clone()]);
    listed(&["c"]);
    all.set(exports);
    listed(&["b", "c"]);
    for name in ["", "a"] {
        client.option(opt::GO, &Client::info_data(name, &[]));
        client.option_error(opt::GO, 6);
    }
    client.go("b", &[]);
}

#[test]
fn what_is_no_negotiation_ends_the_connection() {
    let served = Served::new();
    let after_flags = |flags: u32, bytes: &[u8]| {
        let mut client = Client::silent(&served.socket);
        client.read(18);
        client.send(&[&flags.to_be_bytes(), bytes].concat());
        client.expect_end();
    };
    after_flags(4, b"");
    after_flags(1 << 31 | 3, b"");
    after_flags(3, b"GET / HTTP/1.1\r\n\r\n");
    after_flags(3, &[0; 64]);
    // Without fixed newstyle there is only EXPORT_NAME.
    after_flags(0, b"IHAVEOPT\0\0\0\x03\0\0\0\0");
    // A name that is too long has no error here.
    after_flags(3, &[&b"IHAVEOPT\0\0\0\x01\0\0\x10\x01"[..], &[b'x'; 4097]].concat());
    let mut client = served.connect();
    client.claim(opt::GO, 100);
    client.half_close();
    client.expect_end();
}

#[test]
fn a_client_that_is_slow_or_silent_has_a_deadline() {
    let limits = Limits { negotiation: Duration::from_millis(300), ..Limits::default() };
    let served = Served::volume(HeldVolume::new(4096, |_| false), limits);
    let begun = Instant::now();
    let mut silent = Client::silent(&served.socket);
    silent.read(18);
    // Says that 4 GiB follow, and sends a byte now and then.
    let mut slow = served.connect();
    slow.claim(99, u32::MAX);
    // Asks on and on, and never reads an answer.
    let mut deaf = served.connect();
    let mut chosen = served.simple();
    deaf.0.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut ends = [false; 2];
    while ends.contains(&false) {
        assert!(begun.elapsed() < super::nbd::PATIENCE);
        for (client, end) in [&mut slow, &mut deaf].into_iter().zip(&mut ends) {
            use std::io::{ErrorKind, Write};
            let sent = client.0.write_all(b"IHAVEOPT\0\0\0\x03\0\0\0\0");
            *end |= sent.is_err_and(|error| error.kind() != ErrorKind::WouldBlock);
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    silent.expect_end();
    assert!(begun.elapsed() >= Duration::from_millis(300));
    // A client that has chosen has no deadline.
    assert_eq!(chosen.ask(3, 0, 0, 0), 0);
}
