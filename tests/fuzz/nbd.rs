//! An NBD client of any bytes, in memory, and what it has to be answered, read plainly from the protocol.
//!
//! Used by the fuzzed functions of `targets.rs`.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use hadmd::nbd::server::{Export, Exports, Failure, Limits, Reply, Request, Server, Volume, Wire};

/// Size of the disk: not a multiple of anything.
const SIZE: usize = 5000;

/// A connection: what the client sends, in pieces, and what it is answered.
struct Memory {
    input: Mutex<(Vec<u8>, usize)>,
    pieces: Vec<u8>,
    output: Mutex<Vec<u8>>,
}

impl Wire for Memory {
    fn receive(&self, room: &mut [u8]) -> io::Result<usize> {
        let mut input = self.input.lock().unwrap();
        assert!(!room.is_empty(), "there is room for more");
        let piece =
            self.pieces.get(input.1 % self.pieces.len().max(1)).map_or(room.len(), |&n| usize::from(n) + 1);
        let n = piece.min(room.len()).min(input.0.len());
        room[..n].copy_from_slice(&input.0[..n]);
        input.0.drain(..n);
        input.1 += 1;
        Ok(n)
    }

    fn send(&self, parts: &[IoSlice<'_>], _wait: bool) -> io::Result<usize> {
        let mut output = self.output.lock().unwrap();
        parts.iter().for_each(|part| output.extend_from_slice(part));
        Ok(parts.iter().map(|part| part.len()).sum())
    }

    fn limit(&self, _limit: Option<Duration>) -> io::Result<()> {
        Ok(())
    }

    fn shutdown(&self, _how: Shutdown) {}

    fn is_hung_up(&self) -> bool {
        false
    }
}

struct Disk(Mutex<Vec<u8>>);

impl Volume for Disk {
    fn size(&self) -> u64 {
        SIZE as u64
    }

    fn submit(&self, request: Request, reply: Reply) {
        let mut disk = self.0.lock().unwrap();
        let answer = match request {
            Request::Read { offset, len } => {
                let from = usize::try_from(offset).unwrap();
                Ok(Bytes::copy_from_slice(&disk[from..from + len as usize]))
            }
            Request::Write { offset, data, .. } => {
                let from = usize::try_from(offset).unwrap();
                disk[from..from + data.len()].copy_from_slice(&data);
                Ok(Bytes::new())
            }
            Request::WriteZeroes { fast: true, .. } => Err(Failure::NotSupported),
            Request::WriteZeroes { offset, len, .. } => {
                let from = usize::try_from(offset).unwrap();
                disk[from..from + len as usize].fill(0);
                Ok(Bytes::new())
            }
            Request::Flush | Request::Trim { .. } | Request::Cache { .. } => Ok(Bytes::new()),
        };
        drop(disk);
        reply.complete(answer);
    }
}

/// The answers to the client, and the disk's content afterwards.
pub fn converse(input: Vec<u8>, pieces: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let disk = Arc::new(Disk(Mutex::new(vec![0; SIZE])));
    let export = Export::new("r0");
    export.open(disk.clone());
    let wire =
        Arc::new(Memory { input: Mutex::new((input, 0)), pieces: pieces.to_vec(), output: Mutex::default() });
    let server = Server::new(Limits::default());
    // An error is how a connection ends that does not keep to the protocol.
    let _ = server.serve(wire.clone(), &Exports::new([export.clone()]));
    assert_eq!((server.connections(), export.connections()), (0, 0));
    let (output, disk) = (wire.output.lock().unwrap().clone(), disk.0.lock().unwrap().clone());
    (output, disk)
}

/// The required answers to a client of these requests, and the required content of the disk.
pub fn expected(mut bytes: &[u8], structured: bool) -> (Vec<u8>, Vec<u8>) {
    let (mut replies, mut disk) = (Vec::new(), vec![0; SIZE]);
    let size = SIZE as u64;
    while bytes.len() >= 28 && bytes[..4] == [0x25, 0x60, 0x95, 0x13] {
        let flags = u16::from_be_bytes([bytes[4], bytes[5]]);
        let command = u16::from_be_bytes([bytes[6], bytes[7]]);
        let cookie = &bytes[8..16];
        let offset = u64::from_be_bytes(bytes[16..24].try_into().unwrap());
        let len = u32::from_be_bytes(bytes[24..28].try_into().unwrap());
        let mut rest = &bytes[28..];
        if command == 2 {
            break;
        }
        let mut payload = &[][..];
        if command == 1 {
            let Some((data, after)) = rest.split_at_checked(len as usize) else { break };
            (payload, rest) = (data, after);
        }
        let outside = offset.checked_add(len.into()).is_none_or(|end| end > size);
        let known = match command {
            0 if structured => 1 | 4,
            6 => 1 | 2 | 16,
            7 => 1 | 8,
            _ => 1,
        };
        let mut data = None;
        let error = match command {
            8.. => 22,
            _ if flags & !known != 0 => 22,
            0 | 1 if len > 32 << 20 => 22,
            3 if offset != 0 || len != 0 => 22,
            7 if !structured || len == 0 || outside => 22,
            1 | 6 if outside => 28,
            _ if outside => 22,
            6 if flags & 16 != 0 && len > 0 => 95,
            _ => 0,
        };
        if error == 0 {
            let range = usize::try_from(offset).unwrap()..usize::try_from(offset).unwrap() + len as usize;
            match command {
                0 => data = Some(disk[range].to_vec()),
                1 => disk[range].copy_from_slice(payload),
                6 => disk[range].fill(0),
                _ => {}
            }
        }
        let chunk = |kind: u16, data: &[u8]| {
            let len = u32::try_from(data.len()).unwrap().to_be_bytes();
            [&[0x66, 0x8e, 0x33, 0xef, 0, 1][..], &kind.to_be_bytes(), cookie, &len, data].concat()
        };
        replies.extend(match (command, error) {
            (0 | 7, 1..) if structured => chunk(32769, &[0, 0, 0, error, 0, 0]),
            (0, 0) if structured && len == 0 => chunk(0, &[]),
            (0, 0) if structured => chunk(1, &[&offset.to_be_bytes()[..], &data.unwrap()].concat()),
            (7, 0) => chunk(5, &[&[0, 0, 0, 1][..], &len.to_be_bytes(), &[0; 4]].concat()),
            _ => [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, error][..], cookie, &data.unwrap_or_default()].concat(),
        });
        bytes = rest;
    }
    (replies, disk)
}

/// An option with its data.
pub fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap().to_be_bytes();
    [&b"IHAVEOPT"[..], &number.to_be_bytes(), &len, data].concat()
}

/// Takes a reply to an option off: the option, the type, the length of its data. Panics if there is none.
pub fn option_reply(bytes: &mut &[u8]) -> (u32, u32, usize) {
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!(bytes[..8], [0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9], "{bytes:?}");
    let (option, kind, len) = (number(8), number(12), number(16) as usize);
    *bytes = &bytes[20 + len..];
    (option, kind, len)
}
