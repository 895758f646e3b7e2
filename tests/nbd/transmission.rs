//! Transmission: requests and replies byte by byte, and the errors that requests can have.

use hadmd::nbd::server::{Limits, Request};

use super::nbd::{Client, HeldVolume, Reply, SIZE, Served};

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZEROES: u16 = 6;
const STATUS: u16 = 7;

const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST: u16 = 16;

const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ENOTSUP: u32 = 95;

#[test]
fn any_range_is_written_and_read_to_the_last_byte_of_an_odd_size() {
    let served = Served::sized(1_000_001);
    let mut client = served.simple();
    let bytes: Vec<u8> = (0..70_003u32).map(|n| (n % 251) as u8).collect();
    for offset in [0, 1, 4095, 900_000, 1_000_001 - 70_003] {
        client.write(9, offset, &bytes);
        client.simple_reply(9, 0);
        assert_eq!(client.read_disk(offset, 70_003), bytes, "{offset}");
    }
    assert_eq!(client.ask(ZEROES, 0, 999_999, 2), 0);
    assert_eq!(client.read_disk(999_998, 3), [bytes[70_000], 0, 0]);
}

#[test]
fn every_command_is_answered_with_every_flag_it_may_have() {
    let served = Served::new();
    let mut client = served.simple();
    for flags in [0, FUA] {
        client.send(&[&Client::request_bytes(WRITE, flags, 1, 512, 3)[..], b"abc"].concat());
        client.simple_reply(1, 0);
        assert_eq!(client.ask(READ, flags, 511, 5), 0);
        assert_eq!(client.read(5), b"\0abc\0");
        for command in [TRIM, CACHE] {
            assert_eq!(client.ask(command, flags, 0, 4096), 0, "{command}");
        }
        assert_eq!(client.ask(FLUSH, flags, 0, 0), 0);
        for more in [0, NO_HOLE, NO_HOLE | FAST, FAST] {
            assert_eq!(client.ask(ZEROES, flags | more, 0, 8192), 0, "{more}");
        }
    }
    assert_eq!(client.read_disk(0, 8192), [0; 8192]);
}

#[test]
fn what_is_asked_for_reaches_the_disk() {
    let disk = HeldVolume::new(8192, |_| false);
    let served = Served::volume(disk.clone(), Limits::default());
    let mut client = served.simple();
    client.send(&[&Client::request_bytes(WRITE, FUA, 1, 5, 2)[..], b"ab"].concat());
    client.simple_reply(1, 0);
    assert_eq!(client.read_disk(4, 4), b"\0ab\0");
    assert_eq!(client.ask(ZEROES, FAST | NO_HOLE | FUA, 1, 2), ENOTSUP);
    assert_eq!(client.ask(ZEROES, 0, 1, 2), 0);
    for command in [TRIM, CACHE] {
        assert_eq!(client.ask(command, 0, 3, 4), 0);
    }
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    let expected = [
        Request::Write { offset: 5, data: b"ab"[..].into(), fua: true },
        Request::Read { offset: 4, len: 4 },
        Request::WriteZeroes { offset: 1, len: 2, fua: true, no_hole: true, fast: true },
        Request::WriteZeroes { offset: 1, len: 2, fua: false, no_hole: false, fast: false },
        Request::Trim { offset: 3, len: 4, fua: false },
        Request::Cache { offset: 3, len: 4 },
        Request::Flush,
    ];
    assert_eq!(disk.log(), expected);
}

#[test]
fn ranges_at_and_behind_the_end_are_refused_and_change_nothing() {
    let disk = HeldVolume::new(usize::try_from(SIZE).unwrap(), |_| false);
    let served = Served::volume(disk.clone(), Limits::default());
    let mut client = served.simple();
    for (offset, len) in
        [(SIZE, 1), (SIZE - 1, 2), (0, u32::MAX), (u64::MAX, 1), (u64::MAX, u32::MAX), (1 << 63, 512)]
    {
        for command in [READ, TRIM, CACHE] {
            assert_eq!(client.ask(command, 0, offset, len), EINVAL, "{command}: {offset} {len}");
        }
        assert_eq!(client.ask(ZEROES, 0, offset, len), ENOSPC);
        if len < u32::MAX {
            client.write(3, offset, &vec![7; len as usize]);
            client.simple_reply(3, ENOSPC);
        }
    }
    // Nothing, at the very end.
    for command in [READ, TRIM, CACHE, ZEROES] {
        assert_eq!(client.ask(command, 0, SIZE, 0), 0);
    }
    client.write(4, SIZE, b"");
    client.simple_reply(4, 0);
    assert_eq!(client.ask(READ, 0, SIZE + 1, 0), EINVAL);
    assert_eq!(disk.log(), []);
}

#[test]
fn requests_that_make_no_sense_are_refused_and_the_next_one_is_answered() {
    let served = Served::new();
    let mut client = served.simple();
    for command in [8, 100, u16::MAX] {
        assert_eq!(client.ask(command, 0, 0, 1), EINVAL);
    }
    let allowed = [FUA, FUA, 0, FUA, FUA, FUA, FUA | NO_HOLE | FAST];
    for (command, allowed) in (0..).zip(allowed).filter(|&(command, _)| command != DISC) {
        for flag in (0..16).map(|bit| 1 << bit).filter(|flag| allowed & flag == 0) {
            client.request(command, flag, 6, 0, 4);
            if command == WRITE {
                client.send(b"data");
            }
            client.simple_reply(6, EINVAL);
        }
    }
    // No block status without its context; no offset or length in a flush; no more than 32 MiB.
    assert_eq!(client.ask(STATUS, 0, 0, 512), EINVAL);
    assert_eq!((client.ask(FLUSH, 0, 1, 0), client.ask(FLUSH, 0, 0, 1)), (EINVAL, EINVAL));
    assert_eq!(client.ask(READ, 0, 0, (32 << 20) + 1), EINVAL);
    assert_eq!(client.read_disk(0, 4), [0; 4]);
}

#[test]
fn a_payload_that_is_too_long_is_passed_over() {
    let served = Served::sized(64 << 20);
    let mut client = served.simple();
    let payload = vec![1; (32 << 20) + 1];
    client.write(1, 0, &payload);
    client.simple_reply(1, EINVAL);
    client.write(2, 5, &payload[1..]);
    client.simple_reply(2, 0);
    assert_eq!(client.read_disk(0, 32 << 20)[..6], [0, 0, 0, 0, 0, 1]);
    // 4 GiB - 1 are announced; the client ends after some of it.
    client.request(WRITE, 0, 3, 0, u32::MAX);
    client.send(&payload);
    client.half_close();
    client.expect_end();
    assert_eq!(served.simple().read_disk(0, 1), [0]);
}

#[test]
fn all_of_a_disk_is_trimmed_or_zeroed_with_one_request() {
    // The most that a request can say.
    let size = u64::from(u32::MAX) + 10;
    let served = Served::sized(size);
    let mut client = served.simple();
    for (command, flags) in [(TRIM, 0), (ZEROES, FAST), (CACHE, 0)] {
        client.write(1, 0, &[7; 8192]);
        client.simple_reply(1, 0);
        assert_eq!(client.ask(command, flags, 0, u32::MAX), 0);
        if command != CACHE {
            assert_eq!(client.read_disk(0, 8192), [0; 8192]);
        }
    }
}

#[test]
fn half_a_request_changes_nothing() {
    let disk = HeldVolume::new(8192, |_| false);
    let served = Served::volume(disk.clone(), Limits::default());
    for cut in [1, 27, 28, 30] {
        let mut client = served.simple();
        let whole = [&Client::request_bytes(WRITE, 0, 1, 0, 4)[..], b"data"].concat();
        client.send(&whole[..cut]);
        client.half_close();
        client.expect_end();
    }
    for garbage in [&b"IHAVEOPT\0\0\0\x02\0\0\0\0............"[..], &[0; 28]] {
        let mut client = served.simple();
        client.send(garbage);
        client.expect_end();
    }
    assert_eq!(disk.log(), []);
}

#[test]
fn requests_that_came_together_reach_the_disk_together_and_none_waits_for_a_later_one() {
    let disk = HeldVolume::new(8192, |_| false);
    let served = Served::volume(disk.clone(), Limits::default());
    let mut client = served.simple();
    let write = [&Client::request_bytes(WRITE, 0, 1, 0, 4)[..], b"data"].concat();
    let several = write.repeat(5);
    // The end of the last one comes after the answers to the others.
    client.send(&several[..several.len() - 1]);
    (0..4).for_each(|_| client.simple_reply(1, 0));
    client.send(&several[several.len() - 1..]);
    client.simple_reply(1, 0);
    assert_eq!(disk.batches(), [4, 1]);
    // Nor are they lost with what is no request behind them.
    client.send(&[&write[..], &[0; 28]].concat());
    client.simple_reply(1, 0);
    client.expect_end();
    assert_eq!(disk.log().len(), 6);
}

#[test]
fn disconnecting_answers_what_is_in_flight() {
    let disk = HeldVolume::new(8192, |request| matches!(request, Request::Write { .. }));
    let served = Served::volume(disk.clone(), Limits::default());
    let mut client = served.simple();
    client.write(1, 0, b"data");
    client.request(DISC, 0, 2, 0, 0);
    client.request(FLUSH, 0, 3, 0, 0);
    disk.wait_held(1);
    disk.release();
    client.simple_reply(1, 0);
    client.expect_end();
    assert_eq!(disk.log().len(), 1, "nothing is read after a DISC");
}

#[test]
fn structured_replies_byte_by_byte() {
    let served = Served::new();
    let mut client = served.structured();
    client.write(1, 2, b"abc");
    client.simple_reply(1, 0);
    for flags in [0, DF, FUA | DF] {
        client.request(READ, flags, 0x0102_0304_0506_0708, 1, 5);
        let expected = b"\x66\x8e\x33\xef\0\x01\0\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x0d\0\0\0\0\0\0\0\x01\0abc\0";
        assert_eq!(client.read(expected.len()), expected);
    }
    client.request(READ, 0, 7, SIZE, 1);
    let error = b"\x66\x8e\x33\xef\0\x01\x80\x01\0\0\0\0\0\0\0\x07\0\0\0\x06\0\0\0\x16\0\0";
    assert_eq!(client.read(error.len()), error);
    client.request(READ, 0, 7, 0, 0);
    assert_eq!(client.reply(), Reply::Chunk { flags: 1, kind: 0, cookie: 7, data: vec![] });
    // 64 KiB must come in one piece, and here more does.
    client.request(READ, DF, 7, 0, 1 << 20);
    let Reply::Chunk { flags: 1, kind: 1, cookie: 7, data } = client.reply() else {
        panic!("not in one piece")
    };
    assert_eq!(data.len(), 8 + (1 << 20));
}

#[test]
fn block_status_tells_holes_as_zeroes_and_covers_the_request() {
    let served = Served::new();
    let mut client = served.structured();
    client.write(1, 64 << 10, &[1; 64 << 10]);
    client.simple_reply(1, 0);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    let mut status = |flags, offset, len| {
        client.request(STATUS, flags, 8, offset, len);
        match client.reply() {
            Reply::Chunk { flags: 1, kind: 5, cookie: 8, data } => {
                assert_eq!(data[..4], [0, 0, 0, 1]);
                let number = |word: &[u8]| u32::from_be_bytes(word.try_into().unwrap());
                data[4..].chunks(8).map(|pair| (number(&pair[..4]), number(&pair[4..]))).collect()
            }
            Reply::Chunk { kind: 32769, data, .. } => vec![(u32::from(data[3]), u32::MAX)],
            other => panic!("{other:?}"),
        }
    };
    let all = u32::try_from(SIZE).unwrap();
    assert_eq!(status(0, 0, all), [(64 << 10, 3), (64 << 10, 0), (all - (128 << 10), 3)]);
    assert_eq!(status(REQ_ONE, 0, all), [(64 << 10, 3)]);
    assert_eq!(status(REQ_ONE, 70_000, 100), [(100, 0)]);
    assert_eq!(status(0, (128 << 10) - 1, 1), [(1, 0)]);
    for (flags, offset, len) in [(0, 0, 0), (0, SIZE, 1), (0, 0, u32::MAX), (FUA | DF, 0, 1)] {
        assert_eq!(status(flags, offset, len), [(22, u32::MAX)]);
    }
}
