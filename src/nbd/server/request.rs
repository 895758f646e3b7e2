//! The bytes of transmission: requests read and checked, replies written.
//!
//! Must stay pure: no sockets, no disk, nothing allocated. Called by the connections.

use super::PAYLOAD_MAX;
use super::volume::Failure;

/// Bytes of a request before its payload.
pub const REQUEST_LEN: usize = 28;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Largest head of a reply in bytes: a structured one's 20 bytes and an offset or an error.
const HEAD_MAX: usize = 28;

/// Flags of commands.
pub const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST_ZERO: u16 = 16;

const DONE: u16 = 1;
const CHUNK_NONE: u16 = 0;
const CHUNK_DATA: u16 = 1;
const CHUNK_BLOCK_STATUS: u16 = 5;
const CHUNK_ERROR: u16 = 32769;

/// The header of a request in transmission, before the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Flags of the command.
    pub flags: u16,
    /// The command's number.
    pub command: u16,
    /// The cookie to repeat in the reply. No identity: clients use one for several requests.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

impl Header {
    /// Reads a header; `None` if the bytes are no request.
    pub fn decode(bytes: &[u8; REQUEST_LEN]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk()?;
        let (flags, rest) = rest.split_first_chunk()?;
        let (command, rest) = rest.split_first_chunk()?;
        let (cookie, rest) = rest.split_first_chunk()?;
        let (offset, rest) = rest.split_first_chunk()?;
        let len = rest.first_chunk()?;
        (u32::from_be_bytes(*magic) == REQUEST_MAGIC).then_some(Header {
            flags: u16::from_be_bytes(*flags),
            command: u16::from_be_bytes(*command),
            cookie: u64::from_be_bytes(*cookie),
            offset: u64::from_be_bytes(*offset),
            len: u32::from_be_bytes(*len),
        })
    }

    /// Returns the number of bytes that follow the header.
    pub const fn payload(&self) -> u32 {
        if self.command == 1 { self.len } else { 0 }
    }
}

/// The result of the negotiation, as far as requests and replies depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// Size of the disk in bytes, as it was sent to the client.
    pub size: u64,
    /// True if replies are structured.
    pub structured: bool,
    /// True if base:allocation was chosen.
    pub allocation: bool,
}

/// The command of a valid request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read.
    Read,
    /// Write; the payload follows.
    Write,
    /// End the connection.
    Disconnect,
    /// Flush.
    Flush,
    /// Trim.
    Trim,
    /// Cache.
    Cache,
    /// Write zeroes.
    WriteZeroes {
        /// True if space must be allocated.
        no_hole: bool,
        /// True if the request must be fast or fail.
        fast: bool,
    },
    /// Report which parts are allocated.
    BlockStatus {
        /// True if one extent is enough, which may not reach past the request.
        one: bool,
    },
}

/// Checks a request.
///
/// # Errors
/// The error for the client.
pub fn judge(header: &Header, agreed: &Agreed) -> Result<Command, Failure> {
    let (command, flags) = match header.command {
        0 => (Command::Read, if agreed.structured { FUA | DF } else { FUA }),
        1 => (Command::Write, FUA),
        2 => return Ok(Command::Disconnect),
        3 => (Command::Flush, FUA),
        4 => (Command::Trim, FUA),
        5 => (Command::Cache, FUA),
        6 => {
            let (no_hole, fast) = (header.flags & NO_HOLE != 0, header.flags & FAST_ZERO != 0);
            (Command::WriteZeroes { no_hole, fast }, FUA | NO_HOLE | FAST_ZERO)
        }
        7 => (Command::BlockStatus { one: header.flags & REQ_ONE != 0 }, FUA | REQ_ONE),
        _ => return Err(Failure::Invalid),
    };
    if header.flags & !flags != 0 {
        return Err(Failure::Invalid);
    }
    let inside = header.offset.checked_add(header.len.into()).is_some_and(|end| end <= agreed.size);
    match command {
        Command::Flush if header.offset != 0 || header.len != 0 => Err(Failure::Invalid),
        Command::BlockStatus { .. } if !agreed.allocation || header.len == 0 => Err(Failure::Invalid),
        Command::Read | Command::Write if header.len > PAYLOAD_MAX => Err(Failure::Invalid),
        Command::Write | Command::WriteZeroes { .. } if !inside => Err(Failure::NoSpace),
        _ if !inside => Err(Failure::Invalid),
        _ => Ok(command),
    }
}

/// The form of the replies to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A simple reply, with the bytes behind it where some were read.
    Simple,
    /// A structured reply to a READ of bytes from this offset on.
    Data(u64),
    /// A structured reply to a BLOCK_STATUS.
    Status,
}

/// The head of a reply.
#[derive(Clone, Copy)]
pub struct Head {
    bytes: [u8; HEAD_MAX],
    len: usize,
}

impl Head {
    /// Returns the bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn of<const N: usize>(parts: [&[u8]; N]) -> Self {
        let mut head = Head { bytes: [0; HEAD_MAX], len: 0 };
        for part in parts {
            let end = head.len.saturating_add(part.len());
            if let Some(place) = head.bytes.get_mut(head.len..end) {
                place.copy_from_slice(part);
                head.len = end;
            }
        }
        head
    }

    /// Makes the head of the reply with `len` bytes of payload, or of a failure.
    pub fn new(form: Form, cookie: u64, outcome: Result<usize, Failure>) -> Self {
        let cookie = cookie.to_be_bytes();
        let chunk = |kind: u16, len: usize, body: &[u8]| {
            // No payload is larger than PAYLOAD_MAX.
            let len = u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes();
            let (magic, done, kind) = (CHUNK_MAGIC.to_be_bytes(), DONE.to_be_bytes(), kind.to_be_bytes());
            Head::of([&magic, &done, &kind, &cookie, &len, body])
        };
        match (form, outcome) {
            (Form::Simple, outcome) => {
                let code = outcome.map_or_else(Failure::code, |_| 0);
                Head::of([&SIMPLE_MAGIC.to_be_bytes(), &code.to_be_bytes(), &cookie])
            }
            (Form::Data(_), Ok(0)) => chunk(CHUNK_NONE, 0, &[]),
            (Form::Data(offset), Ok(len)) => chunk(CHUNK_DATA, len.saturating_add(8), &offset.to_be_bytes()),
            (Form::Status, Ok(len)) => chunk(CHUNK_BLOCK_STATUS, len, &[]),
            (_, Err(failure)) => {
                // The error number, and a message of no bytes.
                let [a, b, c, d] = failure.code().to_be_bytes();
                chunk(CHUNK_ERROR, 6, &[a, b, c, d, 0, 0])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGREED: Agreed = Agreed { size: 1 << 20, structured: true, allocation: true };

    fn judged(command: u16, flags: u16, offset: u64, len: u32) -> Result<Command, Failure> {
        judge(&Header { flags, command, cookie: 7, offset, len }, &AGREED)
    }

    #[test]
    fn a_range_outside_the_disk_is_refused_as_the_command_demands() {
        for (offset, len) in
            [(1 << 20, 1), ((1 << 20) - 1, 2), (u64::MAX, 1), (u64::MAX, u32::MAX), (0, u32::MAX)]
        {
            assert!(judged(1, 0, offset, len.min(PAYLOAD_MAX)) == Err(Failure::NoSpace));
            assert_eq!(judged(6, 0, offset, len), Err(Failure::NoSpace), "{offset} {len}");
            for command in [0, 4, 5, 7] {
                assert_eq!(
                    judged(command, 0, offset, len),
                    Err(Failure::Invalid),
                    "{command}: {offset} {len}"
                );
            }
        }
        assert_eq!(judged(4, 0, 0, 1 << 20), Ok(Command::Trim));
        assert_eq!(judged(0, 0, 1 << 20, 0), Ok(Command::Read));
    }

    #[test]
    fn flags_that_a_command_does_not_have_are_refused() {
        let known = [1 | 4, 1, 0xffff, 1, 1, 1, 1 | 2 | 16, 1 | 8];
        for (command, known) in (0..).zip(known) {
            for bit in (0..16).map(|bit| 1 << bit) {
                let len = u32::from(command != 3);
                assert_eq!(judged(command, bit, 0, len).is_ok(), known & bit != 0, "{command} {bit}");
            }
        }
        assert_eq!(judged(8, 0, 0, 0), Err(Failure::Invalid));
        let simple = Agreed { structured: false, allocation: false, ..AGREED };
        let with = |command, flags| judge(&Header { flags, command, cookie: 0, offset: 0, len: 1 }, &simple);
        assert_eq!((with(0, DF), with(7, 0)), (Err(Failure::Invalid), Err(Failure::Invalid)));
    }
}
