//! The mirror as the NBD server sees it: a disk whose requests go to the core.
//!
//! Requests that came together are given to the core together, so that what follows from them goes to the other sites in one
//! write. Must never wait. Called by the NBD server.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;

use super::counters::Kind;
use super::mirror::{INLINE_MAX, Mirror};
use super::replies::Entry;
use crate::nbd::core::{Event, Request as Wanted};
use crate::nbd::server::{Buffer, Extent, Failure, Reply, Request, Volume};

impl Mirror {
    /// Returns what the core has to do for a request; `None` if it is answered without the core.
    fn wanted(self: &Arc<Self>, request: Request, reply: Reply) -> Option<(Entry, Wanted)> {
        let since = Instant::now();
        let (kind, wanted) = match request {
            Request::Read { offset, len } => {
                self.counters.count(Kind::Read, len as usize);
                if len as usize <= INLINE_MAX && self.reads_locally.load(Ordering::Acquire) {
                    let mut buf = Buffer::new(len as usize);
                    if let Ok(true) = self.disk.read_at_once(&mut buf, offset) {
                        self.counters.answered(Kind::Read, since.elapsed());
                        reply.complete(Ok(buf.freeze()));
                        return None;
                    }
                }
                (Kind::Read, Wanted::Read { offset, len })
            }
            Request::Write { offset, data, fua } => {
                self.counters.count(Kind::Write, data.len());
                (Kind::Write, Wanted::Write { offset, data, fua })
            }
            Request::Flush => (Kind::Flush, Wanted::Flush),
            Request::Trim { offset, len, fua } => {
                (Kind::Zero, Wanted::Zeroes { offset, len, fua, trim: true })
            }
            // The other sites are not sent any zeroes, so that it is faster there in any case.
            Request::WriteZeroes { fast: true, no_hole, .. } if !self.disk.zeroes_fast(no_hole) => {
                reply.complete(Err(Failure::NotSupported));
                return None;
            }
            Request::WriteZeroes { offset, len, fua, no_hole, .. } => {
                (Kind::Zero, Wanted::Zeroes { offset, len, fua, trim: !no_hole })
            }
            Request::Cache { offset, len } => {
                let mirror = Arc::clone(self);
                self.pool.run(move || {
                    mirror.disk.will_need(offset, len.into());
                    reply.complete(Ok(Bytes::new()));
                });
                return None;
            }
        };
        Some(((kind, since, reply), wanted))
    }
}

/// The mirror as the NBD server sees it.
pub(super) struct Served(pub Arc<Mirror>);

impl Volume for Served {
    fn size(&self) -> u64 {
        self.0.size.load(Ordering::Acquire)
    }

    fn submit(&self, request: Request, reply: Reply) {
        self.submit_all(&mut vec![(request, reply)]);
    }

    fn submit_all(&self, requests: &mut Vec<(Request, Reply)>) {
        let wanted: Vec<_> =
            requests.drain(..).filter_map(|(request, reply)| self.0.wanted(request, reply)).collect();
        if wanted.is_empty() {
            return;
        }
        self.0.handle_with(|state, now| {
            for (entry, wanted) in wanted {
                let id = state.replies.put(entry);
                state.core.handle(now, Event::Request(id, wanted));
            }
        });
    }

    fn status(&self, offset: u64, len: u64, most: usize) -> Result<Vec<Extent>, Failure> {
        if self.0.reads_locally.load(Ordering::Acquire) {
            return self.0.disk.status(offset, len, most).map_err(|error| Failure::from(&error));
        }
        Ok(vec![Extent { len, hole: false, zero: false }])
    }
}
