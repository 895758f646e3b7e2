//! The name of a checkpoint: a point in the stream of writes that a person has named.
//!
//! Visible ASCII alone, so that it needs no quotation marks anywhere. Called by the superblock, the core and the command.

use std::fmt;

/// Longest name in bytes.
pub const CHECKPOINT_MAX: usize = 64;

/// A name: 1 to [`CHECKPOINT_MAX`] visible ASCII characters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint([u8; CHECKPOINT_MAX]);

impl Checkpoint {
    /// Returns the name, if it is one.
    pub fn new(name: &[u8]) -> Option<Self> {
        let mut padded = [0; CHECKPOINT_MAX];
        let fits = !name.is_empty() && name.iter().all(u8::is_ascii_graphic);
        padded.get_mut(..name.len()).filter(|_| fits)?.copy_from_slice(name);
        Some(Checkpoint(padded))
    }

    /// Returns the name that is stored, or that none is; an error for anything else.
    pub(super) fn from_stored(stored: &[u8; CHECKPOINT_MAX]) -> Result<Option<Self>, ()> {
        let end = stored.iter().rposition(|byte| *byte != 0).map_or(0, |last| last.saturating_add(1));
        match stored.get(..end).unwrap_or_default() {
            [] => Ok(None),
            name => Self::new(name).map(Some).ok_or(()),
        }
    }

    /// Returns a name, or none, as it is stored: with zeroes at the end.
    pub(super) fn store(name: Option<Self>) -> [u8; CHECKPOINT_MAX] {
        name.map_or([0; CHECKPOINT_MAX], |name| name.0)
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default().trim_end_matches('\0')
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_visible_ascii_and_comes_back() {
        for name in ["a", "2026-11-29T08:00", &"x".repeat(64)] {
            let checkpoint = Checkpoint::new(name.as_bytes()).unwrap();
            assert_eq!(checkpoint.as_str(), name);
            assert_eq!(Checkpoint::from_stored(&Checkpoint::store(Some(checkpoint))), Ok(Some(checkpoint)));
        }
        for name in ["", "a b", "a\n", "\u{e9}", &"x".repeat(65)] {
            assert_eq!(Checkpoint::new(name.as_bytes()), None, "{name:?}");
        }
        assert_eq!(Checkpoint::from_stored(&[0; 64]), Ok(None));
        let mut torn = [0; 64];
        torn[3] = b'x';
        assert_eq!(Checkpoint::from_stored(&torn), Err(()));
    }
}
