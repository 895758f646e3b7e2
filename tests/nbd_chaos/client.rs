//! An NBD client that takes every end of its connection for an answer that is not there, and never panics for it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::nbd::Client;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const FLUSH: u16 = 3;
pub const ZEROES: u16 = 6;

/// Longest wait for an answer: many times what any fault lasts.
pub const HANGS: Duration = Duration::from_secs(60);

pub struct Connection(UnixStream);

impl Connection {
    /// Connects and chooses the export; fails where it is not offered.
    pub fn open(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(HANGS))?;
        stream.set_write_timeout(Some(HANGS))?;
        let mut new = Connection(stream);
        new.read(18)?;
        let data = Client::info_data("data", &[]);
        let head = [&3u32.to_be_bytes()[..], b"IHAVEOPT", &7u32.to_be_bytes()].concat();
        new.send(&[&head, &(data.len() as u32).to_be_bytes()[..], &data].concat())?;
        loop {
            let head = new.read(20)?;
            let number = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
            new.read(number(16) as usize)?;
            match number(12) {
                1 => return Ok(new),
                3 => {}
                _ => return Err(io::ErrorKind::NotFound.into()),
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn read(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Sends a request; a write has its payload.
    pub fn ask(&mut self, command: u16, cookie: u64, offset: u64, len: u32, data: &[u8]) -> io::Result<()> {
        let head = Client::request_bytes(command, 0, cookie, offset, len);
        self.send(&[&head, data].concat())
    }

    /// Reads a reply's cookie and error; the payload of a READ is left to be read.
    pub fn reply(&mut self) -> io::Result<(u64, u32)> {
        let head = self.read(16)?;
        let error = u32::from_be_bytes(head[4..8].try_into().unwrap());
        assert_eq!(head[..4], [0x67, 0x44, 0x66, 0x98]);
        Ok((u64::from_be_bytes(head[8..].try_into().unwrap()), error))
    }

    pub fn payload(&mut self, len: usize) -> io::Result<Vec<u8>> {
        self.read(len)
    }
}
