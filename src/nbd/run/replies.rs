//! The ways back to clients, by the numbers that the core knows their requests by.
//!
//! Must never give one twice, nor that of a later request for an earlier one. Used by the mirror alone.

use std::time::Instant;

use super::counters::Kind;
use crate::nbd::core::RequestId;
use crate::nbd::server::Reply;

/// A request's kind, when it came, and the way back.
pub(super) type Entry = (Kind, Instant, Reply);

/// The ways back. A number has the entry's place in its low half, and counts the entries in the other.
#[derive(Default)]
pub(super) struct Replies {
    entries: Vec<Option<(RequestId, Entry)>>,
    free: Vec<u32>,
    count: u32,
}

impl Replies {
    /// Keeps one; its number.
    pub fn put(&mut self, reply: Entry) -> RequestId {
        let place = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            // There are far fewer requests in flight than that.
            (self.entries.len() - 1) as u32
        });
        // The topmost numbers are the core's own.
        self.count = self.count.wrapping_add(1) & (u32::MAX >> 1);
        let id = RequestId(u64::from(self.count) << 32 | u64::from(place));
        if let Some(entry) = self.entries.get_mut(place as usize) {
            *entry = Some((id, reply));
        }
        id
    }

    /// Gives one back, if it is still there.
    pub fn take(&mut self, id: RequestId) -> Option<Entry> {
        let place = id.0 as u32;
        let (_, reply) = self.entries.get_mut(place as usize)?.take_if(|(kept, _)| *kept == id)?;
        self.free.push(place);
        Some(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        (Kind::Read, Instant::now(), Reply::new(|_| {}))
    }

    #[test]
    fn each_is_given_once_and_none_for_another() {
        let mut replies = Replies::default();
        let first = replies.put(entry());
        assert!(replies.take(first).is_some());
        let second = replies.put(entry());
        assert_eq!(first.0 as u32, second.0 as u32, "the place is used again");
        assert!(replies.take(first).is_none());
        assert!(replies.take(second).is_some());
        assert!(replies.take(RequestId(u64::MAX)).is_none());
    }
}
