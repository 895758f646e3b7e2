//! The words of the protocol: states, causes and verdicts, each an enum that knows its word.
//!
//! The program works with the values; the word is for JSON, labels of metrics, and people. Nothing here decides which
//! of them applies. Used by the daemon, also by its core, and by `hadmctl`.

use std::fmt;

use serde_json::Value;

use super::json::{Json, unexpected};

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $variant:ident = $word:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$about])* $variant,)*
        }

        impl $name {
            /// Every value.
            pub const ALL: &[$name] = &[$($name::$variant,)*];

            /// Returns the word for the value.
            pub const fn word(self) -> &'static str {
                match self {
                    $($name::$variant => $word,)*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }

        impl Json for $name {
            fn json(&self) -> Value {
                self.word().into()
            }

            fn read(value: &Value) -> Result<Self, String> {
                let found = Self::ALL.iter().copied().find(|one| value.as_str() == Some(one.word()));
                found.map_or_else(|| unexpected("a word of this version of the protocol", value), Ok)
            }
        }
    )*};
}

words! {
    /// The caller of the two sides: the one with the larger id.
    Role {
        /// This side calls the peer.
        Caller = "caller",
        /// The peer calls this side.
        Acceptor = "acceptor",
    }

    /// The state of a peer.
    PeerState {
        /// It is not to be linked now.
        Off = "off",
        /// It is to call this side.
        Idle = "idle",
        /// It will be called again.
        Waiting = "waiting",
        /// It is being called.
        Dialing = "dialing",
        /// One of its two links is there.
        Half = "half",
        /// There is a session.
        Connected = "connected",
    }

    /// The outcome of a transition of a peer.
    Outcome {
        /// A session began.
        Connected = "connected",
        /// A session ended.
        Disconnected = "disconnected",
        /// A call failed.
        Unreachable = "unreachable",
    }

    /// The kind of the cause of a transition: the same word for the same kind, in all details.
    CauseKind {
        /// A session began with a call of this side.
        ThisSideCalled = "this side called",
        /// A session began with a call of the peer.
        PeerCalled = "the peer called",
        /// A call failed.
        CallFailed = "call failed",
        /// A link broke or was closed by the peer.
        LinkLost = "link lost",
        /// The peer sent a packet that it may not send.
        RefusedPacket = "refused packet",
        /// Too many pings were not answered.
        PingsNotAnswered = "pings not answered",
        /// The peer's system acknowledged nothing for too long.
        NothingAcknowledged = "nothing acknowledged",
        /// The peer held up the others.
        TooSlow = "too slow",
        /// The peer reconnected.
        Replaced = "replaced",
        /// The kernel module detached.
        KernelDetached = "kernel module detached",
        /// The peer's kernel module attached or detached.
        PeersKernel = "the peer's kernel module",
        /// Data was dropped while no kernel module was attached.
        DataDropped = "data dropped",
        /// The peer is no longer to be linked.
        Unwanted = "unwanted",
        /// The session was not encrypted, and this side has a key since then.
        ClearText = "not encrypted",
        /// This machine could not carry the session.
        NoResources = "no resources",
        /// The daemon ends.
        Stopping = "stopping",
    }

    /// The side that ended a session.
    EndedBy {
        /// The peer.
        Peer = "peer",
        /// The network between the two.
        Network = "network",
        /// This daemon.
        Here = "here",
    }

    /// The verdict on the other side that follows from a failed call.
    CallVerdict {
        /// Its machine answers, and no program listens.
        Refused = "refused",
        /// No answer came in time.
        Silent = "silent",
        /// The call could not be made, or was refused on its way.
        Unreachable = "unreachable",
        /// Its system accepted the call, and no hello came.
        NoAnswer = "no-answer",
        /// It closed the connection after the hello.
        HungUp = "hung-up",
        /// It uses another protocol.
        Stranger = "stranger",
        /// It has another key, or none.
        OtherKey = "other-key",
        /// It has another id.
        OtherId = "other-id",
    }

    /// The doctor's verdict on a peer.
    Verdict {
        /// There is a session, and nothing wrong with it.
        Healthy = "healthy",
        /// Pings in a row are not answered.
        Unanswered = "unanswered",
        /// Its configuration is another one.
        OtherConfiguration = "other-configuration",
        /// The session is not encrypted, though this side has a key.
        NotEncrypted = "not-encrypted",
        /// Its port takes no new connections.
        PortShut = "port-shut",
        /// The operator disconnected it.
        Held = "held",
        /// Its name has no address yet.
        NoAddress = "no-address",
        /// Another node owns the log of its resource.
        NotOwner = "not-owner",
        /// Its machine answers, and no program listens.
        Refused = "refused",
        /// No answer came in time.
        Silent = "silent",
        /// The call could not be made, or was refused on its way.
        Unreachable = "unreachable",
        /// Its system accepted the call, and no hello came.
        NoAnswer = "no-answer",
        /// It closed the connection after the hello.
        HungUp = "hung-up",
        /// It uses another protocol.
        Stranger = "stranger",
        /// It has another key, or none.
        OtherKey = "other-key",
        /// It has another id.
        OtherId = "other-id",
        /// A call has not come to its end.
        Unfinished = "unfinished",
        /// It has not been called.
        NotCalled = "not-called",
        /// A call of it was refused.
        TurnedAway = "turned-away",
        /// It has to call and does not.
        NotCalling = "not-calling",
    }

    /// A check of this node itself by the doctor.
    Check {
        /// This machine has the node's address.
        Address = "address",
        /// A warning about the file.
        Configuration = "configuration",
        /// The name of this machine.
        Hostname = "hostname",
        /// The kernel module is attached.
        Kernel = "kernel module",
        /// Heartbeats were judged all the time.
        Heartbeats = "heartbeats",
        /// A condition that is waited for.
        Waiting = "waiting",
        /// The resources whose logs this node owns.
        Log = "log",
    }

    /// The answer of a port.
    PortState {
        /// A program listens.
        Open = "open",
        /// The machine answers, and no program listens.
        Refused = "refused",
        /// No answer came in time.
        Silent = "silent",
        /// It could not be tried, or the attempt was refused on its way.
        Unreachable = "unreachable",
    }

    /// The origin of a view of the mesh.
    Known {
        /// It is this daemon's own.
        Here = "here",
        /// Its peer has sent it.
        Told = "told",
        /// Its peer has sent nothing for too long.
        Stale = "stale",
        /// Its peer sent it before the session ended.
        Gone = "gone",
        /// It is not known.
        Unknown = "unknown",
    }

    /// The fate of a peer with a new configuration.
    Fate {
        /// It is new.
        Added = "added",
        /// It is removed.
        Removed = "removed",
        /// It is called at or from another address: its session ends and is made anew.
        Changed = "changed, its session is made anew",
        /// It stays as it is.
        Kept = "kept",
    }
}

impl From<CallVerdict> for Verdict {
    fn from(call: CallVerdict) -> Self {
        match call {
            CallVerdict::Refused => Verdict::Refused,
            CallVerdict::Silent => Verdict::Silent,
            CallVerdict::Unreachable => Verdict::Unreachable,
            CallVerdict::NoAnswer => Verdict::NoAnswer,
            CallVerdict::HungUp => Verdict::HungUp,
            CallVerdict::Stranger => Verdict::Stranger,
            CallVerdict::OtherKey => Verdict::OtherKey,
            CallVerdict::OtherId => Verdict::OtherId,
        }
    }
}

/// Returns a number that is not negative as text, with 0 to 9 decimals. The standard library's own way is exact to the
/// last digit, and takes 14 KiB of code.
pub fn decimal(value: f64, places: u32) -> String {
    let unit = 10_u64.saturating_pow(places);
    let (whole, part) = (value as u64, (value.fract() * unit as f64).round() as u64);
    match (part < unit, places) {
        (false, 0) => whole.saturating_add(1).to_string(),
        (true, 0) => whole.to_string(),
        (false, _) => decimal(value.ceil(), places),
        (true, _) => format!("{whole}.{part:0width$}", width = places as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::decimal;

    #[test]
    fn numbers_are_rounded_to_their_decimals() {
        for (value, places, text) in [
            (0.0, 0, "0"),
            (0.4, 0, "0"),
            (0.5, 0, "1"),
            (12.0, 1, "12.0"),
            (6.56, 1, "6.6"),
            (0.96, 1, "1.0"),
            (9.96, 1, "10.0"),
            (0.000_25, 6, "0.000250"),
            (1.25, 9, "1.250000000"),
            (9_007_199_254_740_991.0, 6, "9007199254740991.000000"),
        ] {
            assert_eq!(decimal(value, places), text, "{value} with {places} decimals");
        }
    }
}
