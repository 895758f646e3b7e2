//! The books of one stream of packets: received = forwarded + queued + dropped by cause.

use std::fmt;

use crossbeam::atomic::AtomicCell;

/// A counter of 64 bits that also exists where the processor has no 64-bit atomics.
#[derive(Debug, Default)]
pub struct Counter(AtomicCell<u64>);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n);
    }

    /// Takes `n` off; the caller has added it before.
    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n);
    }

    /// Replaces the value.
    pub fn set(&self, n: u64) {
        self.0.store(n);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load()
    }
}

/// Why packets were dropped.
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

    /// The cause in words.
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

/// The books of one peer, class and direction, in packets; they outlive sessions.
#[derive(Debug, Default)]
pub struct Books {
    received: Counter,
    received_bytes: Counter,
    forwarded: Counter,
    forwarded_bytes: Counter,
    queued: Counter,
    queued_bytes: Counter,
    dropped: [Counter; DropCause::ALL.len()],
}

impl Books {
    /// Packets came in and wait to be forwarded.
    pub(super) fn queue(&self, packets: u32, bytes: usize) {
        self.received.add(packets.into());
        self.received_bytes.add(bytes as u64);
        self.queued.add(packets.into());
        self.queued_bytes.add(bytes as u64);
    }

    /// Packets that waited left: forwarded, or dropped for this cause.
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

    /// Packets came in and were dropped without having waited.
    pub fn drop_at_once(&self, packets: u32, bytes: usize, cause: DropCause) {
        self.received.add(packets.into());
        self.received_bytes.add(bytes as u64);
        self.drop_counter(cause).add(packets.into());
    }

    #[allow(clippy::indexing_slicing, reason = "there is one counter for each cause")]
    fn drop_counter(&self, cause: DropCause) -> &Counter {
        &self.dropped[cause as usize]
    }

    /// The figures now. While packets move, they may be a few packets apart; at rest they balance.
    pub fn tally(&self) -> Tally {
        Tally {
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

/// The books at one moment. Bytes are headers and payloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
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

impl Tally {
    /// Packets dropped for whatever cause.
    pub fn all_dropped(&self) -> u64 {
        self.dropped.iter().map(|&(_, n)| n).sum()
    }

    /// Whether received = forwarded + queued + dropped.
    pub fn balances(&self) -> bool {
        let gone = [self.forwarded, self.queued, self.all_dropped()];
        self.received == gone.iter().sum::<u64>()
    }
}

impl fmt::Display for Tally {
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
