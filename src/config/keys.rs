//! The cluster's key file: one key or two, newest first, each known by a short id.
//!
//! A node with a key belongs to the cluster. A secret leaves this module only for the cipher and for a key file:
//! it is never logged, shown or sent, and its memory is wiped when it is no longer needed. Everywhere else
//! ids stand for keys.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::OFlags;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::wire::{KEYS_MAX, KeyId};

/// Bytes of a key.
pub const KEY_LEN: usize = 32;
/// Longest key file in bytes: two keys, and space for comments.
const FILE_MAX: usize = 4096;

/// The use of a key file that is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyFile {
    /// Its keys are needed.
    Read,
    /// It is checked. Faults that only the daemon's user can see are no errors.
    Checked,
    /// It is not opened.
    Unseen,
}

/// A secret shared by all nodes of the cluster.
#[derive(PartialEq, Eq)]
pub struct Key {
    /// Its id.
    pub id: KeyId,
    secret: Zeroizing<[u8; KEY_LEN]>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {}", self.id)
    }
}

impl From<Zeroizing<[u8; KEY_LEN]>> for Key {
    fn from(secret: Zeroizing<[u8; KEY_LEN]>) -> Self {
        let hash = Sha256::new().chain_update("hadmd key id").chain_update(*secret).finalize();
        Key { id: KeyId(hash.first_chunk().copied().unwrap_or_default()), secret }
    }
}

impl Key {
    /// Draws a new key from the system's source of random numbers.
    ///
    /// # Errors
    /// The system's error.
    pub fn fresh() -> io::Result<Self> {
        let mut secret = Zeroizing::new([0; KEY_LEN]);
        // This few bytes come as a whole, or not at all.
        rustix::rand::getrandom(&mut secret[..], rustix::rand::GetRandomFlags::empty())?;
        let key = Key::from(secret);
        match key.is_weak() {
            true => Err(io::Error::other("the system's random numbers are none")),
            false => Ok(key),
        }
    }

    /// Returns true if it is so regular that nobody drew it: a pattern of at most four bytes that is repeated, or bytes that
    /// go up or down by one step each. Of drawn keys, one in 2^200 is.
    fn is_weak(&self) -> bool {
        let pairs = || self.secret.iter().zip(self.secret.iter().skip(1));
        let step = |(a, b): (&u8, &u8)| b.wrapping_sub(*a);
        let is_even = pairs().map(step).zip(pairs().skip(1).map(step)).all(|(one, next)| one == next);
        is_even || (1..=4).any(|n| self.secret.iter().zip(self.secret.iter().skip(n)).all(|(a, b)| a == b))
    }

    /// Returns the secret itself, for the cipher.
    pub fn secret(&self) -> &[u8; KEY_LEN] {
        &self.secret
    }

    /// Adds the line of a key file that holds this key.
    pub fn write_line(&self, out: &mut String) {
        let digit = |n: u8| char::from_digit(n.into(), 16).unwrap_or_default();
        out.extend(self.secret.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
        out.push('\n');
    }

    fn from_hex(text: &[u8]) -> Option<Self> {
        let mut secret = Zeroizing::new([0; KEY_LEN]);
        if text.len() != 2 * KEY_LEN {
            return None;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16);
        for (byte, pair) in secret.iter_mut().zip(text.chunks_exact(2)) {
            let &[high, low] = pair else { return None };
            *byte = (digit(high)? << 4 | digit(low)?) as u8;
        }
        Some(secret.into())
    }
}

/// The keys of one file, newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys(Arc<[Key]>);

/// The reason why there are no keys; names the remedy, but never a part of the file.
#[derive(Debug)]
pub enum KeyError {
    /// The file cannot be opened or read.
    Unreadable(io::Error),
    /// It belongs to this user, who is neither root nor the user that this program runs as.
    Owner(u32),
    /// It can be read, but is not a valid key file.
    Bad(String),
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyError::Unreadable(error) => {
                write!(
                    f,
                    "it cannot be read ({error}); `hadmctl keygen` makes one, the daemon's user must own it"
                )
            }
            KeyError::Owner(uid) => {
                write!(f, "it belongs to user {uid}: it must be the daemon's user's or root's, use chown")
            }
            KeyError::Bad(why) => f.write_str(why),
        }
    }
}

impl Keys {
    /// Reads a key file that only root and the user that this program runs as can read or change.
    ///
    /// # Errors
    /// No such file, one that others have access to, or one without one or two keys in it.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        Self::read_of(path, |owner| [0, rustix::process::geteuid().as_raw()].contains(&owner))
    }

    /// Reads a key file as [`Keys::read`] does, to change it: root may do that with any owner's file.
    ///
    /// # Errors
    /// As [`Keys::read`].
    pub fn read_to_change(path: &Path) -> Result<Self, KeyError> {
        let user = rustix::process::geteuid();
        Self::read_of(path, |owner| user.is_root() || [0, user.as_raw()].contains(&owner))
    }

    fn read_of(path: &Path, may_own: impl Fn(u32) -> bool) -> Result<Self, KeyError> {
        // Does not wait for a pipe's writer. The opened file is judged, not its name.
        let flags = OFlags::NONBLOCK.bits() as i32;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let file = file.map_err(KeyError::Unreadable)?;
        let about = file.metadata().map_err(KeyError::Unreadable)?;
        if !about.is_file() {
            return Err(KeyError::Bad("it is no file".into()));
        }
        let mode = about.mode() & 0o7777;
        if mode & !0o600 != 0 {
            return Err(KeyError::Bad(format!(
                "its mode is {mode:04o}, so that others may know the key: use chmod 600, and make a new key if \
                 others had access"
            )));
        }
        if !may_own(about.uid()) {
            return Err(KeyError::Owner(about.uid()));
        }
        Keys::parse(&read_whole(file).map_err(KeyError::Unreadable)?).map_err(KeyError::Bad)
    }

    /// Parses the text of a key file.
    fn parse(text: &[u8]) -> Result<Self, String> {
        if text.len() > FILE_MAX {
            return Err(format!("it is longer than {FILE_MAX} bytes: no key file is"));
        }
        let mut keys: Vec<Key> = Vec::new();
        for (line, number) in text.split(|&byte| byte == b'\n').zip(1..) {
            let line = line.split(|&byte| byte == b'#').next().unwrap_or_default().trim_ascii();
            if line.is_empty() {
                continue;
            }
            let key = Key::from_hex(line).ok_or_else(|| {
                format!("its line {number} is no key, which has {} hex digits", 2 * KEY_LEN)
            })?;
            if key.is_weak() {
                return Err(format!(
                    "its line {number} is a pattern that anybody may guess, such as zeros: `hadmctl keygen` makes a key"
                ));
            }
            if keys.len() == KEYS_MAX {
                return Err(format!("its line {number} is one key too many: {KEYS_MAX} are the most"));
            }
            if keys.iter().any(|other| other.id == key.id) {
                return Err(format!("its line {number} repeats the key before"));
            }
            keys.push(key);
        }
        match keys.is_empty() {
            true => Err("it has no key: `hadmctl keygen` makes one".into()),
            false => Ok(Keys(keys.into())),
        }
    }

    /// Returns the newest key.
    pub fn newest(&self) -> Option<&Key> {
        self.0.first()
    }

    /// Returns the key with this id.
    pub fn find(&self, id: KeyId) -> Option<&Key> {
        self.0.iter().find(|key| key.id == id)
    }

    /// Returns the ids of the keys, newest first.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.0.iter().map(|key| key.id)
    }
}

fn read_whole(file: File) -> io::Result<Zeroizing<Vec<u8>>> {
    // Never moved while it grows: that would leave a copy behind.
    let mut text = Zeroizing::new(Vec::with_capacity(2 * FILE_MAX));
    file.take((FILE_MAX as u64).saturating_add(1)).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "00112233445566778899aabbccddeeffFFEEDDCCBBAA99887766554433221100";

    #[test]
    fn files_with_one_or_two_keys_are_read() {
        let two = ONE.replace('0', "1");
        let keys = Keys::parse(format!("# newest\n\n  {ONE} # why\r\n{two}").as_bytes()).unwrap();
        assert_eq!(keys.newest().unwrap().secret()[..3], [0, 0x11, 0x22]);
        let ids: Vec<_> = keys.ids().collect();
        assert_eq!(ids.len(), 2);
        assert!(ids.iter().all(|&id| keys.find(id).is_some_and(|key| key.id == id)));
        let mut text = String::new();
        keys.newest().unwrap().write_line(&mut text);
        assert_eq!(text, format!("{}\n", ONE.to_ascii_lowercase()));
    }

    #[test]
    fn what_is_no_key_file_is_refused_without_a_word_of_it() {
        let bad = |text: &str| Keys::parse(text.as_bytes()).unwrap_err();
        assert!(bad("# nothing\n").contains("no key"));
        for line in [&ONE[1..], "x", &format!("{}g", &ONE[1..]), &format!("{ONE}0"), &"é".repeat(32)] {
            let why = bad(&format!("\n{line}\n"));
            assert!(why.contains("line 2") && !why.contains("1122"), "{why}");
        }
        assert!(bad(&format!("{ONE}\n{ONE}")).contains("repeats"));
        let more = |from: &str| ONE.replace('0', from);
        assert!(bad(&[ONE.into(), more("1"), more("2")].join("\n")).contains("too many"));
        assert!(bad(&"#".repeat(FILE_MAX + 1)).contains("longer"));
    }

    #[test]
    fn keys_that_anybody_may_guess_are_refused() {
        let counted: String = (0..32).map(|n| format!("{n:02x}")).collect();
        let down: String = (0..32).map(|n| format!("{:02x}", 255 - 2 * n)).collect();
        let weak = [
            "00".repeat(32),
            "ff".repeat(32),
            "a5".repeat(32),
            "0f1e".repeat(16),
            "deadbeef".repeat(8),
            counted,
            down,
        ];
        for text in weak {
            for file in [text.clone(), format!("{ONE}\n{text}")] {
                let why = Keys::parse(file.as_bytes()).unwrap_err();
                assert!(why.contains("guess") && why.contains("keygen"), "{text}: {why}");
            }
        }
    }

    #[test]
    fn a_key_is_never_shown() {
        let keys = Keys::parse(ONE.as_bytes()).unwrap();
        let shown = format!("{keys:?}").to_ascii_lowercase();
        assert!(
            shown.contains(&keys.newest().unwrap().id.to_string()) && !shown.contains("33445566"),
            "{shown}"
        );
    }

    #[test]
    fn fresh_keys_differ() {
        assert_ne!(Key::fresh().unwrap(), Key::fresh().unwrap());
    }
}
