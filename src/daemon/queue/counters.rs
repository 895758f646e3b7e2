//! The counters of one stream of packets: received = forwarded + queued + dropped by cause.

use std::fmt;

use crate::sys::Counter;

/// The cause for which packets were dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DropCause {
    /// There was no session with the peer.
    NotConnected,
    /// The session ended before they were written.
    SessionEnded,
    /// No kernel module was attached.
    NoKernel,
    /// The kernel module did not read its meta link.
    KernelStalled,
    /// The daemon was about to end.
    Stopping,
}

impl DropCause {
    /// Every cause, by index.
    pub const ALL: [DropCause; 5] = [
        DropCause::NotConnected,
        DropCause::SessionEnded,
        DropCause::NoKernel,
        DropCause::KernelStalled,
        DropCause::Stopping,
    ];

    /// Returns the cause in words.
    pub const fn words(self) -> &'static str {
        match self {
            DropCause::NotConnected => "not connected",
            DropCause::SessionEnded => "session ended",
            DropCause::NoKernel => "no kernel module",
            DropCause::KernelStalled => "kernel module stalled",
            DropCause::Stopping => "stopping",
        }
    }
}

/// The counters of one peer, class and direction, in packets; they outlive sessions.
#[derive(Debug, Default)]
pub struct PacketCounters {
    received: Counter,
    received_bytes: Counter,
    forwarded: Counter,
    forwarded_bytes: Counter,
    queued: Counter,
    queued_bytes: Counter,
    dropped: [Counter; DropCause::ALL.len()],
}

impl PacketCounters {
    /// Counts packets that came in and wait to be forwarded.
    pub(super) fn queue(&self, packets: u32, bytes: usize) {
        self.received.add(packets.into());
        self.received_bytes.add(bytes as u64);
        self.queued.add(packets.into());
        self.queued_bytes.add(bytes as u64);
    }

    /// Counts packets that waited as forwarded, or as dropped for the cause in `dropped`.
    pub(super) fn settle(&self, packets: u32, bytes: usize, dropped: Option<DropCause>) {
        match dropped {
            None => {
                self.forwarded.add(packets.into());
                self.forwarded_bytes.add(bytes as u64);
            }
            Some(cause) => self.drop_counter(cause).add(packets.into()),
        }
        self.queued.sub(packets.into());
        self.queued_bytes.sub(bytes as u64);
    }

    /// Counts packets that came in and were dropped without having waited.
    pub fn drop_at_once(&self, packets: u32, bytes: usize, cause: DropCause) {
        self.received.add(packets.into());
        self.received_bytes.add(bytes as u64);
        self.drop_counter(cause).add(packets.into());
    }

    #[allow(clippy::indexing_slicing, reason = "there is one counter for each cause")]
    fn drop_counter(&self, cause: DropCause) -> &Counter {
        &self.dropped[cause as usize]
    }

    /// Returns the figures now. While packets move, they may be a few packets apart; at rest they balance.
    pub fn snapshot(&self) -> CounterSnapshot {
        CounterSnapshot {
            received: self.received.get(),
            received_bytes: self.received_bytes.get(),
            forwarded: self.forwarded.get(),
            forwarded_bytes: self.forwarded_bytes.get(),
            queued: self.queued.get(),
            queued_bytes: self.queued_bytes.get(),
            dropped: DropCause::ALL.map(|cause| (cause, self.drop_counter(cause).get())),
        }
    }
}

/// The counters at one moment. Bytes are headers and payloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterSnapshot {
    /// Packets taken from the source.
    pub received: u64,
    /// Bytes taken from the source.
    pub received_bytes: u64,
    /// Packets written to the destination's socket.
    pub forwarded: u64,
    /// Bytes written to the destination's socket.
    pub forwarded_bytes: u64,
    /// Packets that wait.
    pub queued: u64,
    /// Bytes that wait.
    pub queued_bytes: u64,
    /// Packets dropped, by cause.
    pub dropped: [(DropCause, u64); DropCause::ALL.len()],
}

impl CounterSnapshot {
    /// Returns the number of packets dropped, for all causes.
    pub fn all_dropped(&self) -> u64 {
        self.dropped.iter().map(|&(_, n)| n).sum()
    }

    /// Returns true if received = forwarded + queued + dropped.
    pub fn balances(&self) -> bool {
        let gone = [self.forwarded, self.queued, self.all_dropped()];
        self.received == gone.iter().sum::<u64>()
    }
}

impl fmt::Display for CounterSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "received {} = forwarded {} + queued {} + dropped {}",
            self.received,
            self.forwarded,
            self.queued,
            self.all_dropped()
        )?;
        let causes = self.dropped.iter().filter(|(_, n)| *n > 0);
        for (i, (cause, n)) in causes.enumerate() {
            write!(f, "{}{} {n}", if i == 0 { " (" } else { ", " }, cause.words())?;
        }
        if self.all_dropped() > 0 { f.write_str(")") } else { Ok(()) }
    }
}
