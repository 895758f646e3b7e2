//! A copy of packet headers as they are read, for traces. Costs a look at a number while there is no trace.
//!
//! Reading threads copy the wanted headers into a bounded ring, without a lock, and nothing when the ring is full: a
//! trace must never slow down what it watches. A thread of the client's own turns the headers into text.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use crossbeam::queue::ArrayQueue;

use crate::wire::{Header, PacketType, PeerKey};

/// Most traces at the same time: more than there can be clients.
const PLACES: usize = 16;
/// Most headers that wait for one trace, which is what it may show each time it looks. Small, since turning headers
/// into text takes processor time that the packets would have had.
const RING: usize = 512;

/// A header that was read, with its link and time.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The name of the link.
    pub link: Arc<str>,
    /// The peer at its other end; `None` for the kernel module.
    pub peer: Option<PeerKey>,
    /// The time of the read.
    pub at: SystemTime,
    /// The header.
    pub header: Header,
}

/// The filter of one trace, and the headers that it has not taken yet.
struct Place {
    taken: AtomicBool,
    on: AtomicBool,
    /// [`number`] of the peer whose links are wanted, 0 for all.
    peer: AtomicUsize,
    /// The type wanted, [`ANY`] for all.
    kind: AtomicUsize,
    /// The headers that wait. Kept for the next trace in this place: threads may still look at it.
    ring: OnceLock<Box<ArrayQueue<Seen>>>,
    left_out: AtomicUsize,
}

/// The value that is no packet type.
const ANY: usize = usize::MAX;

/// Number of places in use, so that a reading thread looks at one number.
static ON: AtomicUsize = AtomicUsize::new(0);
static ALL: [Place; PLACES] = [const {
    Place {
        taken: AtomicBool::new(false),
        on: AtomicBool::new(false),
        peer: AtomicUsize::new(0),
        kind: AtomicUsize::new(ANY),
        ring: OnceLock::new(),
        left_out: AtomicUsize::new(0),
    }
}; PLACES];

/// Returns the number of a peer among all; never 0, also that of node 0.
const fn number(peer: PeerKey) -> usize {
    peer.code() as usize | 1 << 31
}

/// A link's reading end, as traces see it.
pub struct Source {
    name: Arc<str>,
    peer: Option<PeerKey>,
}

impl Source {
    /// Returns the source for the link of this name, from this peer, or from the kernel module.
    pub fn new(name: &str, peer: Option<PeerKey>) -> Self {
        Source { name: name.into(), peer }
    }

    /// Shows a header to every trace.
    #[inline]
    pub fn show(&self, header: &Header) {
        if ON.load(Relaxed) != 0 {
            self.show_all(header);
        }
    }

    #[cold]
    fn show_all(&self, header: &Header) {
        for place in ALL.iter().filter(|place| place.on.load(Relaxed)) {
            let (peer, kind) = (place.peer.load(Relaxed), place.kind.load(Relaxed));
            if (peer != 0 && self.peer.map(number) != Some(peer))
                || (kind != ANY && kind != usize::from(header.kind.0))
            {
                continue;
            }
            let room = place.ring.get().filter(|ring| !ring.is_full());
            let seen = || Seen {
                link: Arc::clone(&self.name),
                peer: self.peer,
                at: SystemTime::now(),
                header: *header,
            };
            if room.is_none_or(|ring| ring.push(seen()).is_err()) {
                place.left_out.fetch_add(1, Relaxed);
            }
        }
    }
}

/// A trace. It ends when it is dropped.
pub struct Trace {
    place: &'static Place,
    ring: &'static ArrayQueue<Seen>,
    /// The peer; `None` for all peers.
    peer: Option<PeerKey>,
    kind: Option<PacketType>,
}

impl Trace {
    /// Starts to collect the headers of type `kind`, or of all, on the links of `peer`, or of all. Returns `None` if
    /// there are too many traces already.
    pub fn begin(peer: Option<PeerKey>, kind: Option<PacketType>) -> Option<Self> {
        let free = |place: &&Place| place.taken.compare_exchange(false, true, SeqCst, SeqCst).is_ok();
        let place: &'static Place = ALL.iter().find(free)?;
        let ring = place.ring.get_or_init(|| Box::new(ArrayQueue::new(RING)));
        while ring.pop().is_some() {}
        place.left_out.store(0, SeqCst);
        place.peer.store(peer.map_or(0, number), SeqCst);
        place.kind.store(kind.map_or(ANY, |kind| kind.0.into()), SeqCst);
        place.on.store(true, SeqCst);
        ON.fetch_add(1, SeqCst);
        Some(Trace { place, ring, peer, kind })
    }

    /// Returns the next header, and how many were left out before it; `None` if none waits.
    pub fn next(&self) -> Option<(Seen, usize)> {
        loop {
            let seen = self.ring.pop()?;
            // A thread may have been about to put in something for the trace that had this place before.
            let wanted = self.peer.is_none() || self.peer == seen.peer;
            if wanted && self.kind.is_none_or(|kind| kind == seen.header.kind) {
                return Some((seen, self.place.left_out.swap(0, Relaxed)));
            }
        }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        ON.fetch_sub(1, SeqCst);
        self.place.on.store(false, SeqCst);
        self.place.taken.store(false, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_gets_what_it_wants_and_the_count_of_what_it_left_out() {
        let [peer, another] = ["27", "2"].map(|key| key.parse().ok());
        let trace = Trace::begin(peer, Some(PacketType(36))).unwrap();
        let all = Trace::begin(peer, None).unwrap();
        let (wanted, other) = (Source::new("node 27 data in", peer), Source::new("node 2 data in", another));
        for len in 0..RING as u32 + 10 {
            let header = Header { len, ..Header::new(PacketType(36)) };
            other.show(&header);
            wanted.show(&header);
        }
        wanted.show(&Header::new(PacketType(37)));
        for len in 0..RING as u32 {
            let (seen, left_out) = trace.next().unwrap();
            assert_eq!((&*seen.link, seen.header.len), ("node 27 data in", len));
            assert_eq!(left_out, if len == 0 { 10 } else { 0 });
        }
        assert!(trace.next().is_none());
        assert_eq!(all.next().map(|(_, left_out)| left_out), Some(11));
    }

    #[test]
    fn places_are_free_again_and_hold_nothing_of_the_trace_before() {
        let peer = "28".parse().ok();
        let source = Source::new("node 28 meta in", peer);
        for _ in 0..2 * PLACES {
            let trace = Trace::begin(peer, None).unwrap();
            assert!(trace.next().is_none());
            source.show(&Header::new(PacketType(19)));
            assert!(trace.next().is_some());
            source.show(&Header::new(PacketType(19)));
        }
    }
}
