//! The two links of a peer or of the kernel module: data and meta, each with its reading and writing end.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Closed, Connection, Decode, LinkSender, Reading, Sink, read_link};
use crate::sys;
use crate::wire::{Class, PeerKey};

/// The callback for a link that is gone; may be called more than once and by any thread, and must not block.
pub type Lost = Arc<dyn Fn(Class, Closed) + Send + Sync>;

/// The data link and the meta link.
pub struct Pair {
    senders: [Arc<LinkSender>; 2],
    /// The decoders, until the reading ends take them.
    decoders: Mutex<[Option<Box<dyn Decode>>; 2]>,
    lost: Lost,
}

impl Pair {
    /// Starts the writing ends. The threads' names begin with `name`.
    ///
    /// # Errors
    /// The system is out of threads or descriptors; nothing is left behind then.
    pub fn start(name: &str, links: [Connection; 2], lost: Lost) -> io::Result<Self> {
        let [data, meta] = links;
        let ends = |class: Class, link: Connection| {
            let lost = Arc::clone(&lost);
            let (encode, decode) = link.codec.map(|codec| (codec.encode, codec.decode)).unzip();
            let failed = move |error| lost(class, Closed::Broken(error));
            (LinkSender::new(class, link.stream, encode, failed), decode)
        };
        let (data, from_data) = ends(Class::Data, data);
        let (meta, from_meta) = ends(Class::Meta, meta);
        let pair = Pair { senders: [data, meta], decoders: Mutex::new([from_data, from_meta]), lost };
        for class in Class::BOTH {
            if let Err(error) = pair.sender(class).start(&format!("{name}:{class}-tx")) {
                pair.close();
                return Err(error);
            }
        }
        Ok(pair)
    }

    /// Starts the reading ends. `peer` is at the other end, unless that is the kernel module; `sink` makes
    /// the sink of one link, `guard` is kept by each thread until it ends.
    ///
    /// # Errors
    /// As [`Pair::start`]; the caller closes the pair then.
    pub fn open<S: Sink + Send + 'static, G: Clone + Send + 'static>(
        &self,
        name: &str,
        peer: Option<PeerKey>,
        reading: Reading,
        guard: &G,
        sink: impl Fn(Class) -> S,
    ) -> io::Result<()> {
        let decoders = std::mem::take(&mut *self.decoders.lock().unwrap_or_else(PoisonError::into_inner));
        for (class, decode) in Class::BOTH.into_iter().zip(decoders) {
            let stream = self.sender(class).stream().try_clone()?;
            let (mut sink, lost, guard) = (sink(class), Arc::clone(&self.lost), guard.clone());
            let title = peer.map_or_else(|| name.to_string(), |peer| peer.to_string());
            let title = format!("{title} {class} in");
            sys::spawn(&format!("{name}:{class}-rx"), move || {
                let _guard = guard;
                let closed = read_link(&stream, &title, peer, reading, decode, &mut sink);
                drop(sink);
                lost(class, closed);
            })?;
        }
        Ok(())
    }

    /// Returns the writing end of one link.
    pub fn sender(&self, class: Class) -> &Arc<LinkSender> {
        let [data, meta] = &self.senders;
        match class {
            Class::Data => data,
            Class::Meta => meta,
        }
    }

    /// Closes both links; queued packets are dropped. Never blocks.
    pub fn close(&self) {
        self.senders.iter().for_each(|sender| sender.close());
    }

    /// Ends the sending direction of the data link: the other side reads the link to its end, and then ends both.
    pub fn finish(&self) {
        self.sender(Class::Data).finish();
    }

    /// Returns true if the other side has closed one of the links.
    pub fn hung_up(&self) -> bool {
        self.senders.iter().any(|sender| sys::hung_up(sender.stream()))
    }
}
