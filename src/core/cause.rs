//! Why sessions end, in words for people and in words for scripts.

use std::fmt;

use crate::wire::Class;

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// A link broke or was closed by the peer: why, and the system's error number where that is the reason.
    Link(Class, String, Option<i32>),
    /// The peer sent what no peer may send.
    Violation(Class, String),
    /// The peer left too many pings unanswered.
    Heartbeat,
    /// The peer's data queue stayed full for `slowtimeout`.
    Slow,
    /// The peer said hello anew.
    Replaced,
    /// The kernel module detached.
    KernelDetached,
    /// Data was dropped while no kernel module was attached.
    DataDropped,
    /// The peer is no longer wanted here.
    Unwanted,
    /// This machine could not carry the session (threads, descriptors): why, and the system's error number.
    Resources(String, Option<i32>),
    /// The daemon ends.
    Stopping,
}

impl EndCause {
    /// Who ended the session: `peer`, `network` or `here`.
    pub const fn by(&self) -> &'static str {
        match self {
            EndCause::Link(..) | EndCause::Replaced => "peer",
            EndCause::Heartbeat => "network",
            _ => "here",
        }
    }

    /// The same causes have the same words here, whatever else is told of them.
    pub const fn kind(&self) -> &'static str {
        match self {
            EndCause::Link(..) => "link lost",
            EndCause::Violation(..) => "refused packet",
            EndCause::Heartbeat => "pings not answered",
            EndCause::Slow => "too slow",
            EndCause::Replaced => "replaced",
            EndCause::KernelDetached => "kernel module detached",
            EndCause::DataDropped => "data dropped",
            EndCause::Unwanted => "unwanted",
            EndCause::Resources(..) => "no resources",
            EndCause::Stopping => "stopping",
        }
    }

    /// The link where it began, if it was one of the two.
    pub const fn link(&self) -> Option<Class> {
        match self {
            EndCause::Link(class, ..) | EndCause::Violation(class, _) => Some(*class),
            _ => None,
        }
    }

    /// The system's error number, where it began with one.
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
            EndCause::Slow => f.write_str("its data queue stayed full for slowtimeout"),
            EndCause::Replaced => f.write_str("it said hello anew"),
            EndCause::KernelDetached => f.write_str("the kernel module detached"),
            EndCause::DataDropped => f.write_str("data was dropped while no kernel module was attached"),
            EndCause::Unwanted => f.write_str("this node is no longer to be linked with it"),
            EndCause::Resources(why, _) => write!(f, "this machine could not carry it: {why}"),
            EndCause::Stopping => f.write_str("the daemon ends"),
        }
    }
}
