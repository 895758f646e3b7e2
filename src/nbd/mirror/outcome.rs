//! The outcome of a handshake as both ends state it, and its words for people.
//!
//! Names sites by id, never "mine" and "yours", so that two ends that agree have equal values and equal sentences. Must
//! stay small enough to be sent back whole. Used by the decision, the acknowledgement, the status and the log.

use std::fmt;

use super::facts::Facts;
use crate::wire::{ResourceId, SiteId};

/// The part of the target that is compared or copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The chunks marked by the bitmaps and active extents of both sites, and by the source's bits for a third site.
    Bitmap {
        /// The third site whose bits count in addition.
        of: Option<SiteId>,
    },
    /// Everything, compared by digest: only the differences are sent.
    Full,
}

/// The consequence of the facts of two sites that have met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The disks are equal.
    NoSync,
    /// A third site is primary: each of the two syncs with it, and the two with one another once it has gone.
    Defer {
        /// That primary.
        primary: SiteId,
    },
    /// One site copies from the other.
    Sync {
        /// The site that has the data.
        source: SiteId,
        /// The site that is overwritten.
        target: SiteId,
        /// The part that is compared or copied.
        reach: Reach,
    },
    /// Both sites changed their disk without the other: a person has to say whose changes go.
    SplitBrain {
        /// True if bitmaps mark the differences.
        bitmap: bool,
    },
    /// The disks never had a state in common.
    Unrelated,
    /// Neither disk ever held data: a person has to say which one counts.
    JustCreatedBoth,
    /// No replication.
    Refuse(Why),
}

/// The reason for which there is no replication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Both say they are this site.
    SameSite(SiteId),
    /// The two mean different resources.
    Resource {
        /// The resource of the site with the lower id.
        a: ResourceId,
        /// The resource of the other site.
        b: ResourceId,
    },
    /// One metadata device is a copy of the other.
    SameDevice,
    /// The policies about a split brain differ.
    Policies,
    /// A disk is smaller than was agreed before.
    TooSmall {
        /// The site.
        site: SiteId,
        /// Bytes it has.
        size: u64,
        /// Bytes agreed.
        agreed: u64,
    },
    /// This site's metadata is older than the state it once sent.
    RolledBack(SiteId),
    /// Neither has a disk to copy from.
    NoGoodData,
    /// This site has the newer generation, but its resync did not end.
    HalfSynced(SiteId),
    /// This site has the newer generation, but knows that a third has a newer one.
    Outdated(SiteId),
    /// A primary would have to take newer data.
    PrimaryIsOlder {
        /// The primary.
        primary: SiteId,
        /// The site with newer data.
        newer: SiteId,
    },
    /// Both are to give up their changes.
    BothDiscard,
}

/// The row of the table that decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "`Row::says` says what each means")]
pub enum Row {
    Obstacle = 0,
    BothJustCreated = 1,
    OneJustCreated = 2,
    MissedEnd = 3,
    Reconnected = 4,
    AsynchronousCrash = 5,
    LostQuorum = 6,
    Survivor = 7,
    BothDown = 8,
    Bitmap = 9,
    BitmapOfThird = 10,
    History = 13,
    SplitBrainBitmap = 14,
    SplitBrainHistory = 15,
    Unrelated = 16,
    BothZeroed = 17,
    DualPrimary = 18,
    OtherPrimary = 19,
    PrimaryPresent = 20,
    DiskState = 21,
    RolledBack = 22,
    Survivors = 23,
    Contradiction = 24,
    Discard = 25,
}

impl Row {
    /// Returns true if what the target of a resync has of its own is given up.
    pub const fn is_given_up(self) -> bool {
        matches!(
            self,
            Row::SplitBrainBitmap
                | Row::SplitBrainHistory
                | Row::Contradiction
                | Row::Unrelated
                | Row::DualPrimary
                | Row::Discard
        )
    }

    /// All rows.
    pub const ALL: [Self; 24] = [
        Row::Obstacle,
        Row::BothJustCreated,
        Row::OneJustCreated,
        Row::MissedEnd,
        Row::Reconnected,
        Row::AsynchronousCrash,
        Row::LostQuorum,
        Row::Survivor,
        Row::BothDown,
        Row::Bitmap,
        Row::BitmapOfThird,
        Row::History,
        Row::SplitBrainBitmap,
        Row::SplitBrainHistory,
        Row::Unrelated,
        Row::BothZeroed,
        Row::DualPrimary,
        Row::OtherPrimary,
        Row::PrimaryPresent,
        Row::DiskState,
        Row::RolledBack,
        Row::Survivors,
        Row::Contradiction,
        Row::Discard,
    ];

    /// Returns the reason, for people.
    pub const fn says(self) -> &'static str {
        match self {
            Row::Obstacle => "the two do not fit together",
            Row::BothJustCreated => "both disks are just created",
            Row::BothZeroed => "both disks are just created and read as zeroes",
            Row::OneJustCreated => "one disk is just created",
            Row::MissedEnd => "one side missed the end of a resync",
            Row::Reconnected => "nothing was written while the connection was away",
            Row::AsynchronousCrash => "the crashed primary answered writes that the other may not have",
            Row::LostQuorum => "a primary had lost its quorum",
            Row::Survivor => "the primary crashed, the other went on",
            Row::BothDown => "both were down",
            Row::Bitmap => "one went on without the other",
            Row::BitmapOfThird => "one went on without the other, which stands where a third site stood",
            Row::History => "one has a state that the other had long ago",
            Row::SplitBrainBitmap => "both went on without each other",
            Row::SplitBrainHistory => "both went on, long after they had parted",
            Row::Unrelated => "nothing in common",
            Row::DualPrimary => "two sites are primary",
            Row::OtherPrimary => "a third site is primary",
            Row::PrimaryPresent => "the generations are equal, and the primary's content counts",
            Row::DiskState => "the generations are equal, but only one disk is good",
            Row::RolledBack => "one disk's metadata was rolled back",
            Row::Survivors => "both outlived the primary, and may differ in its last writes",
            Row::Contradiction => "each has what the other had before",
            Row::Discard => "one is to give up its changes",
        }
    }
}

/// The decision that both ends have to agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The outcome.
    pub outcome: Outcome,
    /// The row that led to it.
    pub row: Row,
    /// The primary that has to leave the role first, by policy.
    pub demote: Option<SiteId>,
    /// Bytes that are mirrored: the smaller disk counts, unless sizes were agreed before.
    pub size: u64,
    /// Binary logarithm of the bytes a bit stands for when bitmaps are exchanged: the coarser of the two.
    pub chunk_shift: u8,
}

impl Decision {
    /// Returns true if writes are replicated between the two from now on.
    pub const fn replicates(&self) -> bool {
        matches!(self.outcome, Outcome::NoSync | Outcome::Sync { .. })
    }

    /// Returns the site that content is copied to, if there is one.
    pub const fn target(&self) -> Option<SiteId> {
        match self.outcome {
            Outcome::Sync { target, .. } => Some(target),
            _ => None,
        }
    }

    /// Returns the bytes that have to be compared or copied, at most.
    pub fn bytes(&self, one: &Facts, other: &Facts) -> u64 {
        match self.outcome {
            Outcome::Sync { reach: Reach::Full, .. } => self.size,
            Outcome::Sync { source, target, reach: Reach::Bitmap { of } } => {
                let from = if one.site == source { one } else { other };
                let third = of.map_or(0, |site| from.out_of_sync(site));
                let own = |site: &Facts| site.out_of_sync(if site.site == source { target } else { source });
                own(one).saturating_add(own(other)).saturating_add(third).min(self.size)
            }
            _ => 0,
        }
    }

    /// Returns the outcome in one sentence that is the same at both ends.
    pub fn sentence(&self, one: &Facts, other: &Facts) -> String {
        let mut sentence = self.outcome_in_words(one, other);
        if one.size != other.size && self.replicates() {
            sentence += &format!("; the disks differ in size, and {} are mirrored", Bytes(self.size));
        }
        sentence
    }

    fn outcome_in_words(&self, one: &Facts, other: &Facts) -> String {
        let (a, b) = if one.site <= other.site { (one, other) } else { (other, one) };
        let (low, high) = (a.site.get(), b.site.get());
        match self.outcome {
            Outcome::NoSync => format!("sites {low} and {high} are in sync: nothing to copy"),
            Outcome::Defer { primary } => {
                format!("{primary} is primary: sites {low} and {high} each follow it")
            }
            Outcome::Sync { source, target, reach } => {
                let bytes = Bytes(self.bytes(one, other));
                let amount = match reach {
                    Reach::Full => format!("{bytes} to compare"),
                    Reach::Bitmap { of: None }
                        if a.out_of_sync(b.site) == 0 || b.out_of_sync(a.site) == 0 =>
                    {
                        format!("{bytes} to copy")
                    }
                    Reach::Bitmap { .. } => format!("up to {bytes} to copy"),
                };
                let subject = if a.current == b.current { "counts" } else { "has newer data" };
                let demoted =
                    self.demote.map_or(String::new(), |site| format!("; {site} leaves the primary's role"));
                format!("{source} {subject}: {amount}, from {} to {}{demoted}", source.get(), target.get())
            }
            Outcome::SplitBrain { .. } => format!(
                "split brain between sites {low} and {high} ({}): nothing is overwritten until one of them is told \
                 to give up its changes (hadmctl disk discard)",
                self.row.says()
            ),
            Outcome::Unrelated => format!(
                "the disks of sites {low} and {high} have nothing in common: nothing is overwritten until one of them is \
                 told to give up its content (hadmctl disk discard)"
            ),
            Outcome::JustCreatedBoth => format!(
                "the disks of sites {low} and {high} are just created: make the one whose content counts primary \
                 (hadmctl disk primary --force)"
            ),
            Outcome::Refuse(why) => format!("sites {low} and {high} do not replicate: {why}"),
        }
    }

    /// Returns the dry run: the events of a connect, a line each.
    pub fn plan(&self, one: &Facts, other: &Facts) -> Vec<String> {
        let mut lines = vec![self.sentence(one, other), format!("because {}", self.row.says())];
        for site in [one, other] {
            lines.push(format!(
                "{}: {}, {}, generation {}, {} of {} bytes used",
                site.site,
                site.role.word(),
                site.disk_word(),
                site.current,
                self.size,
                site.size
            ));
        }
        if one.size != other.size {
            lines.push(format!("the disks differ in size: {} counts", Bytes(self.size)));
        }
        if one.chunk_shift != other.chunk_shift {
            lines.push(format!(
                "the bitmaps differ in grain: {} counts",
                Bytes(1 << self.chunk_shift.min(63))
            ));
        }
        lines
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::SameSite(site) => write!(f, "both say that they are {site}: check the runsites' addresses"),
            Why::Resource { a, b } => {
                write!(f, "one means {a}, the other {b}: check the ids of the resources")
            }
            Why::SameDevice => f.write_str(
                "one's metadata is a copy of the other's: initialise the copied site anew (hadm-nbd init)",
            ),
            Why::Policies => f.write_str("their split-brain policies differ: configure both alike"),
            Why::TooSmall { site, size, agreed } => write!(
                f,
                "the disk of {site} has {size} bytes, {agreed} were agreed on: give it a disk of that size"
            ),
            Why::RolledBack(site) => write!(
                f,
                "the metadata of {site} is older than it once was, as after restoring a snapshot: initialise it anew \
                 (hadm-nbd init --force), or the other site if what was restored is to count"
            ),
            Why::NoGoodData => f.write_str(
                "neither has good data: connect a site that has, or make one primary with --force",
            ),
            Why::HalfSynced(site) => {
                write!(f, "{site} has newer data, but its resync did not end: connect it to its source first")
            }
            Why::Outdated(site) => write!(
                f,
                "{site} has newer data, but knows that another has the newest: connect that one first"
            ),
            Why::PrimaryIsOlder { primary, newer } => {
                write!(
                    f,
                    "{primary} is primary, but would have to take the data of {newer}: make {primary} secondary first"
                )
            }
            Why::BothDiscard => f.write_str(
                "both are to give up their changes: make the one primary whose changes stay (hadmctl disk primary)",
            ),
        }
    }
}

/// A number of bytes, for people: one decimal from KiB on.
pub struct Bytes(
    /// The bytes.
    pub u64,
);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let mut value = self.0 as f64;
        if self.0 < 1024 {
            return write!(f, "{} bytes", self.0);
        }
        let mut unit = "";
        for name in UNITS {
            value /= 1024.0;
            unit = name;
            // A value that would be shown as 1024.0 is 1.0 of the next unit.
            if value < 1023.95 {
                break;
            }
        }
        write!(f, "{value:.1} {unit}")
    }
}
