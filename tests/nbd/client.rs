//! An NBD client of plain bytes, for what no well-behaved client does.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::PATIENCE;

/// Numbers of options.
pub mod opt {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED: u32 = 8;
    pub const LIST_META: u32 = 9;
    pub const SET_META: u32 = 10;
    pub const EXTENDED: u32 = 11;
}

/// A reply in transmission.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    Simple { error: u32, cookie: u64 },
    Chunk { flags: u16, kind: u16, cookie: u64, data: Vec<u8> },
}

pub struct Client(pub UnixStream);

impl Client {
    /// A client that says nothing.
    pub fn silent(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client(stream)
    }

    /// A client that has read the greeting and sent its flags.
    pub fn greeted(socket: &Path) -> Self {
        let mut client = Client::silent(socket);
        assert_eq!(client.read(18), b"NBDMAGICIHAVEOPT\0\x03");
        client.send(&3u32.to_be_bytes());
        client
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    #[track_caller]
    pub fn read(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.read(2).try_into().unwrap())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.read(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.read(8).try_into().unwrap())
    }

    /// Reads to the end, which must come.
    #[track_caller]
    pub fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.0.read_to_end(&mut bytes) {
            Ok(_) => {}
            // Bytes that were sent and not read there.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => panic!("the connection does not end: {error}, after {bytes:?}"),
        }
        bytes
    }

    #[track_caller]
    pub fn expect_end(&mut self) {
        assert_eq!(self.rest(), [] as [u8; 0]);
    }

    pub fn half_close(&self) {
        self.0.shutdown(Shutdown::Write).unwrap();
    }

    /// Sends an option whose length is that of its data.
    pub fn option(&mut self, number: u32, data: &[u8]) {
        self.claim(number, u32::try_from(data.len()).unwrap());
        self.send(data);
    }

    /// Sends the head of an option.
    pub fn claim(&mut self, number: u32, len: u32) {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend_from_slice(&number.to_be_bytes());
        bytes.extend_from_slice(&len.to_be_bytes());
        self.send(&bytes);
    }

    /// Reads a reply to an option: its type and data.
    #[track_caller]
    pub fn option_reply(&mut self, number: u32) -> (u32, Vec<u8>) {
        assert_eq!(self.u64(), 0x0003_e889_0455_65a9);
        assert_eq!(self.u32(), number);
        let (kind, len) = (self.u32(), self.u32());
        (kind, self.read(len as usize))
    }

    /// Reads a reply that says an error with a message for people.
    #[track_caller]
    pub fn option_error(&mut self, number: u32, error: u32) {
        let (kind, message) = self.option_reply(number);
        assert_eq!(kind, 1 << 31 | error, "{}", String::from_utf8_lossy(&message));
        assert!(message.len() > 5 && message.len() <= 4096 && String::from_utf8(message).is_ok());
    }

    #[track_caller]
    pub fn option_ack(&mut self, number: u32) {
        assert_eq!(self.option_reply(number), (1, Vec::new()));
    }

    /// The data of INFO and GO.
    pub fn info_data(name: &str, wanted: &[u16]) -> Vec<u8> {
        let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
        data.extend_from_slice(name.as_bytes());
        data.extend_from_slice(&u16::try_from(wanted.len()).unwrap().to_be_bytes());
        wanted.iter().for_each(|number| data.extend_from_slice(&number.to_be_bytes()));
        data
    }

    /// The data of LIST_META and SET_META.
    pub fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
        let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
        data.extend_from_slice(name.as_bytes());
        data.extend_from_slice(&u32::try_from(queries.len()).unwrap().to_be_bytes());
        for query in queries {
            data.extend_from_slice(&u32::try_from(query.len()).unwrap().to_be_bytes());
            data.extend_from_slice(query.as_bytes());
        }
        data
    }

    /// Chooses an export; the information that came.
    #[track_caller]
    pub fn go(&mut self, name: &str, wanted: &[u16]) -> Vec<Vec<u8>> {
        self.option(opt::GO, &Client::info_data(name, wanted));
        self.infos(opt::GO)
    }

    /// Reads information until it is acknowledged.
    #[track_caller]
    pub fn infos(&mut self, number: u32) -> Vec<Vec<u8>> {
        let mut infos = Vec::new();
        loop {
            match self.option_reply(number) {
                (3, info) => infos.push(info),
                (1, _) => return infos,
                (kind, data) => panic!("{kind:#x}: {}", String::from_utf8_lossy(&data)),
            }
        }
    }

    #[track_caller]
    pub fn structured(&mut self) {
        self.option(opt::STRUCTURED, &[]);
        self.option_ack(opt::STRUCTURED);
    }

    #[track_caller]
    pub fn set_allocation(&mut self, name: &str) {
        self.option(opt::SET_META, &Client::meta_data(name, &["base:allocation"]));
        assert_eq!(self.option_reply(opt::SET_META), (4, b"\0\0\0\x01base:allocation".to_vec()));
        self.option_ack(opt::SET_META);
    }

    /// Sends a request without payload.
    pub fn request(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, len: u32) {
        let bytes = Client::request_bytes(command, flags, cookie, offset, len);
        self.send(&bytes);
    }

    pub fn request_bytes(command: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
        let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&command.to_be_bytes());
        bytes.extend_from_slice(&cookie.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes
    }

    pub fn write(&mut self, cookie: u64, offset: u64, data: &[u8]) {
        let mut bytes = Client::request_bytes(1, 0, cookie, offset, u32::try_from(data.len()).unwrap());
        bytes.extend_from_slice(data);
        self.send(&bytes);
    }

    /// Reads the head of a reply, and a chunk's data; those of a simple READ are left to be read.
    #[track_caller]
    pub fn reply(&mut self) -> Reply {
        match self.u32() {
            0x6744_6698 => Reply::Simple { error: self.u32(), cookie: self.u64() },
            0x668e_33ef => {
                let (flags, kind, cookie, len) = (self.u16(), self.u16(), self.u64(), self.u32());
                Reply::Chunk { flags, kind, cookie, data: self.read(len as usize) }
            }
            magic => panic!("{magic:#x} is no reply"),
        }
    }

    /// Reads a simple reply without data.
    #[track_caller]
    pub fn simple_reply(&mut self, cookie: u64, error: u32) {
        assert_eq!(self.reply(), Reply::Simple { error, cookie });
    }

    /// Sends a request without payload and reads its simple reply's error.
    #[track_caller]
    pub fn ask(&mut self, command: u16, flags: u16, offset: u64, len: u32) -> u32 {
        self.request(command, flags, 77, offset, len);
        match self.reply() {
            Reply::Simple { error, cookie: 77 } => error,
            other => panic!("{other:?}"),
        }
    }

    /// Reads bytes of the disk, with simple replies.
    #[track_caller]
    pub fn read_disk(&mut self, offset: u64, len: u32) -> Vec<u8> {
        assert_eq!(self.ask(0, 0, offset, len), 0);
        self.read(len as usize)
    }
}
