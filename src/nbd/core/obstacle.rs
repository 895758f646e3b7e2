//! The reasons for which a mirror does not become larger, in words with the remedy.
//!
//! Plain values. Used by the core, and by the runner for people.

use std::fmt;

use crate::wire::{Mask, SiteId};

/// The reason for which a mirror does not become larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// This site is not primary; that one is.
    Secondary(Option<SiteId>),
    /// These sites are not connected.
    Apart(Mask),
    /// These sites are not in sync.
    Unequal(Mask),
    /// The disk here is out.
    Disk,
    /// These sites said nothing of their disks.
    Silent(Mask),
    /// The disk of this site has no more than what is mirrored.
    Small {
        /// The site.
        site: SiteId,
        /// Bytes that its metadata covers.
        size: u64,
        /// Bytes that are mirrored.
        mirrored: u64,
    },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |sites: &Mask| {
            let ids: Vec<_> = sites.ids().map(|id| id.to_string()).collect();
            format!("site{} {}", if ids.len() == 1 { "" } else { "s" }, ids.join(", "))
        };
        match self {
            Obstacle::Secondary(Some(primary)) => {
                write!(f, "a mirror grows by the command at its primary: give it at {primary}")
            }
            Obstacle::Secondary(None) => {
                write!(
                    f,
                    "a mirror grows by the command at its primary, and there is none: make this site primary first"
                )
            }
            Obstacle::Apart(sites) => {
                write!(
                    f,
                    "{}: not connected, and every site has to take the new size: bring it back first",
                    names(sites)
                )
            }
            Obstacle::Unequal(sites) => {
                write!(f, "{}: not in sync: wait for the end of the resync", names(sites))
            }
            Obstacle::Disk => f.write_str("the disk here failed, or was never filled: resync it first"),
            Obstacle::Silent(sites) => write!(
                f,
                "{} did not say how large its disk is: see its log, and whether hadm-nbd there is as new as here",
                names(sites)
            ),
            Obstacle::Small { site, size, mirrored } => write!(
                f,
                "the disk of {site} has {size} bytes for it, and {mirrored} are mirrored: make the disk larger there, with \
                 truncate or lvextend (if it is larger, the log there says what is in its way), and give the command again"
            ),
        }
    }
}
