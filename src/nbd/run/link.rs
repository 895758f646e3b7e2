//! The writing ends of the two links to the daemon, which all resources share.
//!
//! A thread with packets queues them in the order of their stream, under the lock of their resource, and writes them
//! afterwards, without blocking; what the socket does not take is left to the link's own thread. A payload is never
//! copied. Must keep no caller waiting for the daemon: one that takes nothing for too long is hung up on.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use log::warn;

use crate::attach::{Intake, Parts};
use crate::sys;
use crate::wire::{Class, HEADER_LEN};

/// Packets of one write: header and payload each. The system takes up to 1024 parts; more than these gain nothing.
const GATHER: usize = 32;

/// Writes that one thread makes for others before it leaves the rest to the link's own thread.
const CARRY: usize = 8;

/// Longest wait of the link's own thread for the socket before it looks whether the link has ended.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Queue {
    packets: VecDeque<Parts>,
    /// Without a daemon nothing is queued: what it would have carried is lost, as on any broken connection.
    is_open: bool,
}

#[derive(Default)]
struct Writer {
    stream: Option<TcpStream>,
    /// The way to a daemon in this process, in the place of the stream.
    intake: Option<Box<dyn Intake>>,
    /// That way has packets that a peer's queue has no space for.
    is_held_up: bool,
    /// Taken from the queue, in order.
    taken: VecDeque<Parts>,
    /// Bytes of the first one that the socket has.
    written: usize,
}

struct Lane {
    queue: Mutex<Queue>,
    /// Only its holder takes from the queue. The queue's lock is taken under it.
    writer: Mutex<Writer>,
    /// The link's own thread has something to do.
    is_left: Mutex<bool>,
    changed: Condvar,
}

/// Both links, attached or not.
pub struct Link {
    lanes: [Lane; 2],
    /// A daemon that takes nothing for so long is hung up on.
    patience: Duration,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    /// Links without a daemon, and their threads.
    ///
    /// # Errors
    /// The system has no room for another thread.
    pub fn new(patience: Duration) -> io::Result<Arc<Self>> {
        let lane = || Lane {
            queue: Mutex::default(),
            writer: Mutex::default(),
            is_left: Mutex::new(false),
            changed: Condvar::new(),
        };
        let link = Arc::new(Link { lanes: [lane(), lane()], patience });
        for (at, name) in ["link-data", "link-meta"].into_iter().enumerate() {
            let link = Arc::clone(&link);
            sys::spawn(name, move || {
                if let Some(lane) = link.lanes.get(at) {
                    lane.work(link.patience);
                }
            })?;
        }
        Ok(link)
    }

    fn lane(&self, class: Class) -> &Lane {
        let [first, second] = &self.lanes;
        if class.index() == 0 { first } else { second }
    }

    /// Begins to write to a daemon.
    pub fn open(&self, class: Class, stream: TcpStream) {
        self.begin(class, Writer { stream: Some(stream), ..Writer::default() });
    }

    /// Begins to give packets to a daemon in this process.
    pub fn open_in_process(&self, class: Class, intake: Box<dyn Intake>) {
        self.begin(class, Writer { intake: Some(intake), ..Writer::default() });
    }

    fn begin(&self, class: Class, fresh: Writer) {
        let lane = self.lane(class);
        let mut writer = lock(&lane.writer);
        *writer = fresh;
        lock(&lane.queue).is_open = true;
    }

    /// Ends both; what is queued is lost.
    pub fn close(&self) {
        for lane in &self.lanes {
            {
                let mut queue = lock(&lane.queue);
                queue.is_open = false;
                queue.packets.clear();
            }
            *lock(&lane.writer) = Writer::default();
        }
    }

    /// Queues a packet behind those of its class; [`Link::flush`] has to follow.
    pub fn push(&self, class: Class, header: Box<[u8; HEADER_LEN]>, payload: Bytes) {
        let mut queue = lock(&self.lane(class).queue);
        if queue.is_open {
            queue.packets.push_back((header, payload));
        }
    }

    /// Writes what is queued, as far as the sockets take it at once.
    pub fn flush(&self) {
        self.lanes.iter().for_each(Lane::flush);
    }
}

impl Lane {
    fn is_empty(&self) -> bool {
        lock(&self.queue).packets.is_empty()
    }

    fn flush(&self) {
        // A holder of the writer looks at the queue once more after it has let go: either it sees what was queued
        // before this, or the writer is free by now.
        while !self.is_empty() {
            let mut writer = match self.writer.try_lock() {
                Ok(writer) => writer,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            if !self.drive(&mut writer, false) {
                drop(writer);
                *lock(&self.is_left) = true;
                return self.changed.notify_one();
            }
        }
    }

    /// Writes until nothing is left, which it tells by true, or until the socket takes no more, or it was enough for
    /// one thread. With `wait` it waits for a peer of a daemon in this process.
    fn drive(&self, writer: &mut Writer, wait: bool) -> bool {
        for _ in 0..CARRY {
            {
                let mut queue = lock(&self.queue);
                let n = GATHER.saturating_sub(writer.taken.len()).min(queue.packets.len());
                writer.taken.extend(queue.packets.drain(..n));
            }
            if writer.taken.is_empty() && !writer.is_held_up {
                return true;
            }
            if let Some(intake) = &mut writer.intake {
                writer.is_held_up = !intake.give(&mut writer.taken, wait);
                if writer.is_held_up {
                    return false;
                }
                continue;
            }
            match writer.write() {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => {
                    // Its reader meets the end, and everything is begun anew.
                    if let Some(stream) = writer.stream.take() {
                        let _ = stream.shutdown(Shutdown::Both);
                    }
                    writer.taken.clear();
                    writer.written = 0;
                    let mut queue = lock(&self.queue);
                    queue.is_open = false;
                    queue.packets.clear();
                    return true;
                }
            }
        }
        writer.taken.is_empty() && self.is_empty()
    }

    /// The link's own thread: writes what others left.
    fn work(&self, patience: Duration) {
        loop {
            {
                let mut is_left = lock(&self.is_left);
                while !std::mem::take(&mut *is_left) {
                    is_left = self.changed.wait(is_left).unwrap_or_else(PoisonError::into_inner);
                }
            }
            let mut since = Instant::now();
            loop {
                let mut writer = lock(&self.writer);
                let before = (writer.taken.len(), writer.written);
                if self.drive(&mut writer, true) {
                    drop(writer);
                    if self.is_empty() {
                        break;
                    }
                    continue;
                }
                let Some(stream) = &writer.stream else { break };
                if before != (writer.taken.len(), writer.written) {
                    since = Instant::now();
                } else if since.elapsed() > patience {
                    warn!("the daemon has taken nothing for {} s: hung up on it", patience.as_secs_f64());
                    let _ = stream.shutdown(Shutdown::Both);
                }
                sys::wait_writable(stream, LOOK);
            }
        }
    }
}

impl Writer {
    /// Writes once.
    fn write(&mut self) -> io::Result<()> {
        let Some(stream) = &self.stream else { return Err(io::ErrorKind::NotConnected.into()) };
        let mut parts = Vec::with_capacity(2 * GATHER);
        let mut skip = self.written;
        for (header, payload) in &self.taken {
            for part in [&header[..], &payload[..]] {
                let rest = part.get(skip..).unwrap_or_default();
                skip = skip.saturating_sub(part.len());
                if !rest.is_empty() {
                    parts.push(IoSlice::new(rest));
                }
            }
        }
        let mut n = sys::send(stream, &parts)?.saturating_add(self.written);
        while let Some((header, payload)) = self.taken.front() {
            let len = header.len().saturating_add(payload.len());
            if n < len {
                break;
            }
            n = n.saturating_sub(len);
            self.taken.pop_front();
        }
        self.written = n;
        Ok(())
    }
}
