//! The causes for which sessions end, in words for people and in words for scripts.
//!
//! Plain values: nothing here decides anything. Made by the core and by the threads that find a session broken.

use std::fmt;
use std::time::Duration;

use crate::control::{CauseKind, EndedBy, decimal};
use crate::wire::Class;

/// The cause for which a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// A link broke or was closed by the peer: the reason, and the system's error number where there is one.
    Link(Class, String, Option<i32>),
    /// The peer sent what no peer may send.
    Violation(Class, String),
    /// The peer left too many pings unanswered.
    Heartbeat,
    /// The peer's system acknowledged nothing on a link for this time.
    Dead(Class, Duration),
    /// The peer held up the kernel module's packets, and so the other peers, for `slowtimeout`.
    Slow,
    /// The peer reconnected.
    Replaced,
    /// The kernel module detached.
    KernelDetached,
    /// The peer reported that its kernel module attached or detached.
    PeersKernel,
    /// Data was dropped while no kernel module was attached.
    DataDropped,
    /// The peer is no longer wanted here.
    Unwanted,
    /// The session was in clear text, and this side has a key since then.
    ClearText,
    /// This machine could not carry the session (threads, descriptors): the reason, and the system's error number.
    Resources(String, Option<i32>),
    /// The daemon ends.
    Stopping,
}

impl EndCause {
    /// Returns the side that ended the session.
    pub const fn by(&self) -> EndedBy {
        match self {
            EndCause::Link(..) | EndCause::Replaced | EndCause::PeersKernel => EndedBy::Peer,
            EndCause::Heartbeat | EndCause::Dead(..) => EndedBy::Network,
            _ => EndedBy::Here,
        }
    }

    /// Returns true if the cause says nothing about the peer, the link or this machine's resources, but only that the
    /// local kernel module attached or detached.
    pub const fn is_kernel_modules(&self) -> bool {
        matches!(self, EndCause::KernelDetached | EndCause::DataDropped)
    }

    /// Returns the kind of the cause.
    pub const fn kind(&self) -> CauseKind {
        match self {
            EndCause::Link(..) => CauseKind::LinkLost,
            EndCause::Violation(..) => CauseKind::RefusedPacket,
            EndCause::Heartbeat => CauseKind::PingsNotAnswered,
            EndCause::Dead(..) => CauseKind::NothingAcknowledged,
            EndCause::Slow => CauseKind::TooSlow,
            EndCause::Replaced => CauseKind::Replaced,
            EndCause::KernelDetached => CauseKind::KernelDetached,
            EndCause::PeersKernel => CauseKind::PeersKernel,
            EndCause::DataDropped => CauseKind::DataDropped,
            EndCause::Unwanted => CauseKind::Unwanted,
            EndCause::ClearText => CauseKind::ClearText,
            EndCause::Resources(..) => CauseKind::NoResources,
            EndCause::Stopping => CauseKind::Stopping,
        }
    }

    /// Returns the link on which the cause arose, if it arose on one.
    pub const fn link(&self) -> Option<Class> {
        match self {
            EndCause::Link(class, ..) | EndCause::Violation(class, _) | EndCause::Dead(class, _) => {
                Some(*class)
            }
            _ => None,
        }
    }

    /// Returns the system's error number, if there was one.
    pub const fn errno(&self) -> Option<i32> {
        match self {
            EndCause::Link(_, _, errno) | EndCause::Resources(_, errno) => *errno,
            _ => None,
        }
    }
}

impl fmt::Display for EndCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EndCause::Link(class, why, _) => write!(f, "{class} link: {why}"),
            EndCause::Violation(class, why) => write!(f, "refused packet on the {class} link: {why}"),
            EndCause::Heartbeat => f.write_str("pings were not answered"),
            EndCause::Dead(class, time) => {
                write!(f, "{class} link: nothing acknowledged for {} s", decimal(time.as_secs_f64(), 1))
            }
            EndCause::Slow => f.write_str("it held up the kernel module's packets for slowtimeout"),
            EndCause::Replaced => f.write_str("the peer reconnected"),
            EndCause::PeersKernel => f.write_str("its kernel module came or went"),
            EndCause::KernelDetached => f.write_str("the kernel module detached"),
            EndCause::DataDropped => f.write_str("data was dropped while no kernel module was attached"),
            EndCause::Unwanted => f.write_str("this node is no longer to be linked with it"),
            EndCause::ClearText => f.write_str("it was not encrypted, and this node has a key (authkey) now"),
            EndCause::Resources(why, _) => write!(f, "out of resources: {why}"),
            EndCause::Stopping => f.write_str("the daemon ends"),
        }
    }
}
