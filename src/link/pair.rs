//! The two links of a peer or of the kernel module: data and meta, each with its reading and writing end.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Closed, Connection, Decode, Outlet, Sink, read_link};
use crate::sys;
use crate::wire::Class;

/// Told when a link is gone; may be called more than once and by any thread, and must not block.
pub type Lost = Arc<dyn Fn(Class, Closed) + Send + Sync>;

/// Both links, by class.
pub struct Pair {
    outlets: [Arc<Outlet>; 2],
    /// Until the reading ends take them.
    decoders: Mutex<[Option<Box<dyn Decode>>; 2]>,
    lost: Lost,
}

impl Pair {
    /// Starts the writing ends. `name` opens the threads' names.
    ///
    /// # Errors
    /// The system has no room for another thread or descriptor; nothing is left behind then.
    pub fn start(name: &str, links: [Connection; 2], lost: Lost) -> io::Result<Self> {
        let [data, meta] = links;
        let ends = |class: Class, link: Connection| {
            let lost = Arc::clone(&lost);
            let (encode, decode) = link.coat.map(|coat| (coat.encode, coat.decode)).unzip();
            (Outlet::new(link.stream, encode, move |error| lost(class, Closed::Broken(error))), decode)
        };
        let (data, from_data) = ends(Class::Data, data);
        let (meta, from_meta) = ends(Class::Meta, meta);
        let pair = Pair { outlets: [data, meta], decoders: Mutex::new([from_data, from_meta]), lost };
        for class in Class::BOTH {
            if let Err(error) = pair.outlet(class).start(&format!("{name}:{class}-tx")) {
                pair.close();
                return Err(error);
            }
        }
        Ok(pair)
    }

    /// Starts the reading ends. `title` stands before each packet header in the log, `sink` makes what takes
    /// the packets of one link, `guard` is kept by each thread until it ends.
    ///
    /// # Errors
    /// As [`Pair::start`]; the caller closes the pair then.
    pub fn open<S: Sink + Send + 'static, G: Clone + Send + 'static>(
        &self,
        name: &str,
        title: &str,
        max_packet: u32,
        guard: &G,
        sink: impl Fn(Class) -> S,
    ) -> io::Result<()> {
        let decoders = std::mem::take(&mut *self.decoders.lock().unwrap_or_else(PoisonError::into_inner));
        for (class, decode) in Class::BOTH.into_iter().zip(decoders) {
            let stream = self.outlet(class).stream().try_clone()?;
            let (mut sink, lost, guard) = (sink(class), Arc::clone(&self.lost), guard.clone());
            let title = format!("{title} {class} in");
            sys::spawn(&format!("{name}:{class}-rx"), move || {
                let _guard = guard;
                let closed = read_link(&stream, &title, max_packet, decode, &mut sink);
                drop(sink);
                lost(class, closed);
            })?;
        }
        Ok(())
    }

    /// The writing end of one link.
    pub fn outlet(&self, class: Class) -> &Arc<Outlet> {
        let [data, meta] = &self.outlets;
        match class {
            Class::Data => data,
            Class::Meta => meta,
        }
    }

    /// Closes both links; what is queued is dropped. Never blocks.
    pub fn close(&self) {
        self.outlets.iter().for_each(|outlet| outlet.close());
    }

    /// Tells the other side that nothing more will come, on the data link: it reads that to its end, and
    /// then ends both.
    pub fn finish(&self) {
        self.outlet(Class::Data).finish();
    }

    /// Whether the other side has closed one of the links.
    pub fn hung_up(&self) -> bool {
        self.outlets.iter().any(|outlet| sys::hung_up(outlet.stream()))
    }
}
