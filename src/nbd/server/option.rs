//! The bytes of options and of the replies to them.
//!
//! Pure: no sockets, no exports. Called by the negotiation.

/// Longest option in bytes that is read: a name and a few queries of the longest kind.
pub(super) const OPTION_MAX: u32 = 32 * 1024;

/// Longest name in bytes.
pub(super) const NAME_MAX: usize = 4096;

const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

pub(super) const REP_ACK: u32 = 1;
pub(super) const REP_SERVER: u32 = 2;
pub(super) const REP_INFO: u32 = 3;
pub(super) const REP_META_CONTEXT: u32 = 4;

pub(super) const ERR_UNSUP: u32 = 1 << 31 | 1;
pub(super) const ERR_INVALID: u32 = 1 << 31 | 3;
pub(super) const ERR_UNKNOWN: u32 = 1 << 31 | 6;
pub(super) const ERR_TOO_BIG: u32 = 1 << 31 | 9;

pub(super) const INFO_EXPORT: u16 = 0;
pub(super) const INFO_NAME: u16 = 1;
pub(super) const INFO_BLOCK_SIZE: u16 = 3;

/// The options that are known here. Extended headers (11) are not among them, as if they did not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opt {
    ExportName,
    Abort,
    List,
    StartTls,
    Info,
    Go,
    StructuredReply,
    ListMeta,
    SetMeta,
}

impl Opt {
    pub const fn of(number: u32) -> Option<Self> {
        Some(match number {
            1 => Opt::ExportName,
            2 => Opt::Abort,
            3 => Opt::List,
            5 => Opt::StartTls,
            6 => Opt::Info,
            7 => Opt::Go,
            8 => Opt::StructuredReply,
            9 => Opt::ListMeta,
            10 => Opt::SetMeta,
            _ => return None,
        })
    }
}

/// The reason for which an option cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Malformed {
    NameTooLong,
    NotUtf8,
    /// A length in it is larger, or smaller, than the data.
    Lengths,
}

/// Returns a reply to an option.
pub(super) fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    // No reply is longer than a name and a few numbers.
    let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let numbers = [option, kind, len].map(u32::to_be_bytes);
    [&REPLY_MAGIC.to_be_bytes()[..], &numbers.concat(), data].concat()
}

/// Appends a name and before it its length.
pub(super) fn push_name(data: &mut Vec<u8>, name: &str) {
    data.extend_from_slice(&u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes());
    data.extend_from_slice(name.as_bytes());
}

fn u32_of(data: &mut &[u8]) -> Result<u32, Malformed> {
    let (number, rest) = data.split_first_chunk().ok_or(Malformed::Lengths)?;
    *data = rest;
    Ok(u32::from_be_bytes(*number))
}

fn name_of<'a>(data: &mut &'a [u8]) -> Result<&'a str, Malformed> {
    let len = u32_of(data)? as usize;
    let (name, rest) = data.split_at_checked(len).ok_or(Malformed::Lengths)?;
    *data = rest;
    if len > NAME_MAX {
        return Err(Malformed::NameTooLong);
    }
    std::str::from_utf8(name).map_err(|_| Malformed::NotUtf8)
}

/// Reads the name in INFO or GO, and the wanted kinds of information.
pub(super) fn info(mut data: &[u8]) -> Result<(&str, Vec<u16>), Malformed> {
    let name = name_of(&mut data)?;
    let (count, rest) = data.split_first_chunk().ok_or(Malformed::Lengths)?;
    let mut numbers = rest.chunks_exact(2);
    let wanted: Vec<_> =
        numbers.by_ref().filter_map(|n| n.first_chunk().copied().map(u16::from_be_bytes)).collect();
    if wanted.len() != usize::from(u16::from_be_bytes(*count)) || !numbers.remainder().is_empty() {
        return Err(Malformed::Lengths);
    }
    Ok((name, wanted))
}

/// Reads the name in LIST_META_CONTEXT or SET_META_CONTEXT, and the queries.
pub(super) fn meta(mut data: &[u8]) -> Result<(&str, Vec<&str>), Malformed> {
    let name = name_of(&mut data)?;
    let count = u32_of(&mut data)?;
    let mut queries = Vec::new();
    // Each takes at least the four bytes of its length, so that data ends before memory does.
    for _ in 0..count {
        queries.push(name_of(&mut data)?);
    }
    if data.is_empty() { Ok((name, queries)) } else { Err(Malformed::Lengths) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cut_and_every_wrong_length_is_found() {
        let good = b"\0\0\0\x03abc\0\x02\0\x01\0\x03";
        assert_eq!(info(good), Ok(("abc", vec![1, 3])));
        assert!((0..good.len()).all(|len| info(&good[..len]).is_err()));
        assert_eq!(info(&[&good[..], b"x"].concat()), Err(Malformed::Lengths));
        assert_eq!(info(b"\xff\xff\xff\xffabc\0\0"), Err(Malformed::Lengths));
        let good = b"\0\0\0\x01a\0\0\0\x02\0\0\0\0\0\0\0\x05base:";
        assert_eq!(meta(good), Ok(("a", vec!["", "base:"])));
        assert!((0..good.len()).all(|len| meta(&good[..len]).is_err()));
        assert_eq!(meta(b"\0\0\0\0\xff\xff\xff\xff"), Err(Malformed::Lengths));
        assert_eq!(meta(b"\0\0\0\x01\xff\0\0\0\0"), Err(Malformed::NotUtf8));
        let mut long = Vec::new();
        push_name(&mut long, &"x".repeat(4096));
        long.extend_from_slice(&[0; 2]);
        assert!(info(&long).is_ok());
        long.splice(..4, [0, 0, 16, 1]);
        long.insert(4, b'x');
        assert_eq!(info(&long), Err(Malformed::NameTooLong));
    }
}
