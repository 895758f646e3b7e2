//! The generation of a disk's data: a random number that is drawn anew each time two sites' data may begin to differ.
//!
//! Equal generations are the only ground on which two disks may be called equal, so none may be drawn twice: the
//! random bits come from the caller. Must never be compared with the lowest bit, which only notes a role. Used by
//! the superblock, the record of the handshake, and every decision.

use std::fmt;

/// The bit that says that the site was primary when it drew the generation; no part of its identity.
const WAS_PRIMARY: u64 = 1;

/// A generation of the data. Only equality is defined between two of them, and it ignores the note of the role.
#[derive(Clone, Copy, Default)]
pub struct Generation(u64);

impl Generation {
    /// No generation: an empty place in a slot or in the history.
    pub const NONE: Self = Self(0);

    /// The generation of a disk that was just initialised and never held data of the mirror. Drawing never returns it;
    /// any other low number would do as well.
    pub const JUST_CREATED: Self = Self(4);

    /// Returns a new generation from random bits, drawn by a site that is primary or not. The few values that have a
    /// meaning of their own are mapped to others.
    pub const fn draw(random: u64, primary: bool) -> Self {
        let identity = random & !WAS_PRIMARY;
        let identity = if identity <= Self::JUST_CREATED.0 { identity | (1 << 63) } else { identity };
        Self(identity).noting(primary)
    }

    /// Returns the generation as it is stored and sent.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Returns the bits to store and to send, the note of the role among them.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Returns the same generation, with the note that its site is primary, or without.
    #[must_use]
    pub const fn noting(self, primary: bool) -> Self {
        if self.is_some() && !self.is_just_created() && primary {
            Self(self.0 | WAS_PRIMARY)
        } else {
            Self(self.0 & !WAS_PRIMARY)
        }
    }

    /// Returns true if it is a generation, [`Generation::JUST_CREATED`] included.
    pub const fn is_some(self) -> bool {
        self.0 & !WAS_PRIMARY != 0
    }

    /// Returns true if it is the generation of a disk without data of the mirror.
    pub const fn is_just_created(self) -> bool {
        self.0 & !WAS_PRIMARY == Self::JUST_CREATED.0
    }

    /// Returns true if it stands for data: neither empty nor just created.
    pub const fn has_data(self) -> bool {
        self.is_some() && !self.is_just_created()
    }

    /// Returns true if the site was primary when it drew the generation.
    pub const fn was_primary(self) -> bool {
        self.0 & WAS_PRIMARY != 0
    }

    /// Returns true if both stand for the same data. Two empty ones do not: nothing is known of either.
    pub fn is_same_data(self, other: Self) -> bool {
        self == other && self.has_data()
    }
}

impl PartialEq for Generation {
    fn eq(&self, other: &Self) -> bool {
        self.0 & !WAS_PRIMARY == other.0 & !WAS_PRIMARY
    }
}

impl Eq for Generation {}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 & !WAS_PRIMARY {
            0 => f.write_str("none"),
            _ if self.is_just_created() => f.write_str("just created"),
            identity => write!(f, "{identity:016x}"),
        }
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}{}", if self.was_primary() { "*" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_note_of_the_role_is_no_part_of_the_identity() {
        let drawn = Generation::draw(0x1234_5679, true);
        assert!(drawn.was_primary() && !drawn.noting(false).was_primary());
        assert_eq!(drawn, drawn.noting(false));
        assert_eq!(drawn.to_string(), "0000000012345678");
        assert_eq!(Generation::from_bits(drawn.bits()).bits(), 0x1234_5679);
    }

    #[test]
    fn no_random_number_gives_a_generation_with_a_meaning_of_its_own() {
        for random in (0..16).chain([u64::MAX, 1 << 63]) {
            for primary in [false, true] {
                let drawn = Generation::draw(random, primary);
                assert!(drawn.has_data(), "{random} gives {drawn}");
                assert_eq!(drawn.was_primary(), primary);
            }
        }
    }

    #[test]
    fn empty_and_just_created_never_stand_for_the_same_data() {
        for lone in [Generation::NONE, Generation::JUST_CREATED, Generation::from_bits(1)] {
            assert!(!lone.is_same_data(lone) && !lone.has_data() && !lone.noting(true).was_primary());
        }
        assert_eq!(Generation::NONE.to_string(), "none");
        assert_eq!(Generation::JUST_CREATED.to_string(), "just created");
    }
}
