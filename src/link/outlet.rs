//! The writing end of a link: a queue, and the stage that carries it to the socket.
//!
//! Whoever puts something into an empty queue carries it on to the socket at once, without blocking: a
//! hand-over to another thread costs a wake-up, which is most of a packet's time on an idle machine. What
//! the socket does not take is left to the link's own thread. Order is kept because only the holder of the
//! [`Token`] takes anything out of the queue.
//!
//! Putting something in never blocks and never fails; what bounds the queue is the [`Hold`] that comes with
//! each parcel.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use crossbeam::queue::SegQueue;

use super::token::{Job, Pumped, Token};
use super::{CoatError, Encode};
use crate::queue::Hold;
use crate::sys;

/// Parcels gathered into one write. The system takes up to 1024 parts; more than 64 gain nothing.
const GATHER: usize = 64;

/// Encoded bytes at which no more is encoded before the socket has taken some. Frames must not be made long
/// before they can leave: their packets could not be left out any more.
const ENCODED_MAX: usize = 256 * 1024;

/// Writes that one thread makes for whoever else puts something in, before it leaves the rest to the link's
/// own thread: a thread with work of its own must not be kept here by others.
const CARRY: usize = 8;

/// Bytes that are made only when their turn comes, so that they are never out of date.
pub trait Late: Send + Sync {
    /// The bytes, `None` if there is nothing left to say.
    fn take(&self) -> Option<Bytes>;
}

enum Parcel {
    Packets(Bytes, Hold),
    Late(Arc<dyn Late>),
}

/// What is being written.
#[derive(Default)]
pub(super) struct Stage {
    /// Gathered from the queue, in order. `None` is for what nobody keeps books of.
    gathered: VecDeque<(Bytes, Option<Hold>)>,
    /// Bytes of the first one that the socket has.
    written: usize,
    /// What the bytes wear on the wire, and where they put it on.
    coat: Option<(Box<dyn Encode>, BytesMut)>,
}

/// The writing end of a link.
pub struct Outlet {
    stream: TcpStream,
    queue: SegQueue<Parcel>,
    token: Token<Stage>,
    failed: Box<dyn Fn(io::Error) + Send + Sync>,
}

impl Outlet {
    /// A writing end without its thread. `encode` is what the bytes wear on the wire; `failed` is called when the
    /// socket cannot be written to, possibly more than once, by any thread, and must not block.
    pub fn new(
        stream: TcpStream,
        encode: Option<Box<dyn Encode>>,
        failed: impl Fn(io::Error) + Send + Sync + 'static,
    ) -> Arc<Self> {
        let coat = encode.map(|encode| (encode, BytesMut::new()));
        Arc::new(Outlet {
            stream,
            queue: SegQueue::new(),
            token: Token::new(Stage { coat, ..Stage::default() }),
            failed: Box::new(failed),
        })
    }

    /// Starts the thread that writes what the socket did not take at once.
    ///
    /// # Errors
    /// The system has no room for another thread.
    pub fn start(self: &Arc<Self>, name: &str) -> io::Result<()> {
        let outlet = Arc::clone(self);
        sys::spawn(name, move || outlet.token.work(&*outlet))
    }

    /// The socket.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Queues packets; they are written in the order in which they were put in.
    pub fn put(&self, bytes: Bytes, hold: Hold) {
        self.queue.push(Parcel::Packets(bytes, hold));
        self.token.kick(self);
    }

    /// Queues a place for bytes that are made when their turn comes.
    pub fn put_late(&self, late: Arc<dyn Late>) {
        self.queue.push(Parcel::Late(late));
        self.token.kick(self);
    }

    /// Closes the link; what is queued is dropped. Never blocks.
    pub fn close(&self) {
        // The socket's end wakes a thread that writes, and both readers' sides.
        self.token.close(self, || drop(self.stream.shutdown(Shutdown::Both)));
    }

    /// Tells the other side that nothing more will come.
    pub fn finish(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}

impl Job for Outlet {
    type Stage = Stage;
    type Error = io::Error;

    fn pump(&self, stage: &mut Stage, wait: bool) -> io::Result<Pumped> {
        for turn in 0.. {
            if self.token.is_closed() {
                while self.queue.pop().is_some() {}
                stage.gathered.clear();
                return Ok(Pumped::Empty);
            }
            if let Err(error) = stage.gather(&self.queue) {
                return stage.broken(io::Error::other(error));
            }
            if stage.gathered.is_empty() {
                return Ok(Pumped::Empty);
            }
            if turn == CARRY && !wait {
                break;
            }
            let mut parts = [IoSlice::new(&[]); GATHER];
            let mut skip = stage.written;
            for (part, (bytes, _)) in parts.iter_mut().zip(&stage.gathered) {
                *part = IoSlice::new(bytes.get(skip..).unwrap_or_default());
                skip = 0;
            }
            let parts = parts.get(..stage.gathered.len()).unwrap_or(&parts);
            match sys::send(&self.stream, parts, wait) {
                Ok(n) => stage.advance(n),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Pumped::Left),
                Err(error) => return stage.broken(error),
            }
        }
        Ok(Pumped::Left)
    }

    fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whoever is told closes the link.
    fn failed(&self, error: io::Error) {
        (self.failed)(error);
    }
}

impl Stage {
    /// Takes from the queue what one write is to carry.
    fn gather(&mut self, queue: &SegQueue<Parcel>) -> Result<(), CoatError> {
        while self.gathered.len() < GATHER && !self.is_coated_full() {
            let (bytes, hold) = match queue.pop() {
                Some(Parcel::Packets(bytes, hold)) if !hold.is_void() => (bytes, Some(hold)),
                Some(Parcel::Packets(..)) => continue,
                Some(Parcel::Late(late)) => match late.take() {
                    Some(bytes) => (bytes, None),
                    None => continue,
                },
                None => break,
            };
            let bytes = match &mut self.coat {
                None => bytes,
                Some((encode, out)) => {
                    encode.encode(&bytes, out)?;
                    out.split().freeze()
                }
            };
            self.gathered.push_back((bytes, hold));
        }
        Ok(())
    }

    /// Nothing more can leave here.
    fn broken(&mut self, error: io::Error) -> io::Result<Pumped> {
        self.gathered.clear();
        Err(error)
    }

    /// Whether enough is encoded for now.
    fn is_coated_full(&self) -> bool {
        self.coat.is_some()
            && self.gathered.iter().map(|(bytes, _)| bytes.len()).sum::<usize>() >= ENCODED_MAX
    }

    /// The socket took `n` more bytes.
    fn advance(&mut self, n: usize) {
        self.written = self.written.saturating_add(n);
        while let Some((bytes, _)) = self.gathered.front() {
            let Some(rest) = self.written.checked_sub(bytes.len()) else { return };
            self.written = rest;
            if let Some((_, Some(hold))) = self.gathered.pop_front() {
                hold.forwarded();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{Account, Books, DropCause, Load};
    use std::io::Read;
    use std::net::TcpListener;
    use std::sync::{Mutex, mpsc};
    use std::thread;
    use std::time::{Duration, Instant};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let out = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (out, listener.accept().unwrap().0)
    }

    fn load(chunk: u64, bytes: usize) -> Load {
        Load { packets: 1, bytes, chunk, chunk_bytes: bytes }
    }

    #[test]
    fn order_is_kept_between_cut_through_and_the_links_thread() {
        let (out, mut peer) = pair();
        let books = Arc::new(Books::default());
        let account = Account::new(1 << 20, Arc::clone(&books));
        let outlet = Outlet::new(out, None, |error| panic!("{error}"));
        outlet.start("test:data-tx").unwrap();
        // 64 MiB through an account of 1 MiB: the socket fills, so that both ways of writing are taken.
        const N: u32 = 16 * 1024;
        let reader = thread::spawn(move || {
            let mut block = [0; 4096];
            for n in 0..N {
                peer.read_exact(&mut block).unwrap();
                assert!(block.chunks(4).all(|word| word == n.to_le_bytes()), "block {n}");
            }
        });
        for n in 0..N {
            let block = Bytes::from(n.to_le_bytes().repeat(1024));
            let hold = account.hold(load(u64::from(n) + 1, block.len()), None).unwrap();
            outlet.put(block, hold);
        }
        reader.join().unwrap();
        assert!(account.wait_idle(Instant::now() + Duration::from_secs(10)));
        assert_eq!(books.tally().forwarded, u64::from(N));
        outlet.close();
    }

    /// Failure modes 5 and 27: what is queued when a session ends is dropped, counted and given back.
    #[test]
    fn fm05_fm27_closing_empties_the_queue_in_one_step() {
        let (out, _peer) = pair();
        let books = Arc::new(Books::default());
        let account = Account::new(64 << 20, Arc::clone(&books));
        let (failed, failures) = mpsc::channel();
        let outlet = Outlet::new(out, None, move |error| failed.send(error).unwrap());
        outlet.start("test:data-tx").unwrap();
        // Nobody reads: the sockets' buffers fill, and the link's thread blocks in its write.
        for n in 1..=48 {
            let hold = account.try_hold(load(n, 1 << 20)).unwrap();
            outlet.put(Bytes::from(vec![0; 1 << 20]), hold);
        }
        assert!(books.tally().queued > 0);
        account.close(DropCause::SessionEnded);
        outlet.close();
        assert!(account.wait_idle(Instant::now() + Duration::from_secs(10)));
        let tally = books.tally();
        assert!(tally.balances() && tally.all_dropped() > 0 && tally.queued == 0, "{tally}");
        drop(failures);
    }

    #[test]
    fn void_parcels_and_silent_latecomers_are_passed_over() {
        struct Said(Mutex<Option<Bytes>>);
        impl Late for Said {
            fn take(&self) -> Option<Bytes> {
                self.0.lock().unwrap().take()
            }
        }
        let (out, mut peer) = pair();
        let account = Account::new(1 << 20, Arc::default());
        let outlet = Outlet::new(out, None, |error| panic!("{error}"));
        let void = Account::new(1 << 20, Arc::default());
        let hold = void.try_hold(load(1, 4)).unwrap();
        void.void();
        outlet.put(Bytes::from_static(b"void"), hold);
        let said = Arc::new(Said(Mutex::new(Some(Bytes::from_static(b"late")))));
        outlet.put_late(said.clone());
        outlet.put_late(said);
        outlet.put(Bytes::from_static(b"last"), account.try_hold(load(2, 4)).unwrap());
        outlet.finish();
        let mut all = String::new();
        peer.read_to_string(&mut all).unwrap();
        assert_eq!(all, "latelast");
    }
}
