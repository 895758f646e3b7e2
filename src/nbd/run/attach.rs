//! The attachment to the daemon: made, kept, and made again for as long as the program runs.
//!
//! The daemon comes and goes; meanwhile every site counts as disconnected. Must never give up, and never mix packets of two
//! attachments. With a daemon in this process, packets are handed over by calls, on the thread that has them, and the links
//! only show that it is there. Started by the program once.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use crossbeam::channel::bounded;
use log::{debug, info, warn};

use super::link::Link;
use super::mirror::Mirror;
use super::witness::Witness;
use crate::attach::{InProcess, Intake, Links, PacketReader, Program, Server};
use crate::nbd::core::Event;
use crate::nbd::server::Buffer;
use crate::sys;
use crate::wire::{Class, HEADER_LEN, Header, Mask, PacketType};

/// Pauses between two attempts: a daemon that is started anew is back within a second.
const PAUSES: [u64; 5] = [50, 100, 200, 500, 1000];

/// Packets that are handled before what follows from them is carried out: enough for their answers to be put together,
/// few enough for the first not to wait.
const BATCH: usize = 64;

/// Smallest payload in bytes that is not copied out of the bytes that came with it: those of a daemon's buffer, which
/// grows to no more than four times as many.
const SLICE_MIN: usize = 32 << 10;

/// The reading end of a link. At a Unix socket it waits in poll(2): see [`sys::receive`].
struct Incoming {
    stream: std::net::TcpStream,
    polls: bool,
}

impl Read for Incoming {
    fn read(&mut self, room: &mut [u8]) -> std::io::Result<usize> {
        match self.polls {
            true => sys::receive_polled(&self.stream, room, || Ok(None)),
            false => self.stream.read(room),
        }
    }
}

/// The attachment.
pub struct Attachment {
    server: Server,
    /// The meeting point with a daemon in this process.
    in_process: Option<Arc<InProcess>>,
    link: Arc<Link>,
    mirrors: Vec<Arc<Mirror>>,
    witnesses: Vec<Arc<Witness>>,
    is_attached: AtomicBool,
}

impl Attachment {
    /// Begins to attach, on a thread of its own.
    ///
    /// # Errors
    /// The system has no room for the thread.
    pub fn start(
        (server, in_process): (Server, Option<Arc<InProcess>>),
        link: Arc<Link>,
        mirrors: Vec<Arc<Mirror>>,
        witnesses: Vec<Arc<Witness>>,
    ) -> std::io::Result<Arc<Self>> {
        let is_attached = AtomicBool::new(false);
        let attachment = Arc::new(Attachment { server, in_process, link, mirrors, witnesses, is_attached });
        if let Some(in_process) = &attachment.in_process {
            in_process.set_program(Arc::clone(&attachment) as _);
        }
        let own = Arc::clone(&attachment);
        sys::spawn("attach", move || own.keep())?;
        Ok(attachment)
    }

    /// Returns true while there is a daemon.
    pub fn is_attached(&self) -> bool {
        self.is_attached.load(Ordering::Relaxed)
    }

    /// Returns the daemon's place.
    pub fn server(&self) -> &Server {
        &self.server
    }

    fn keep(self: &Arc<Self>) {
        let mut said = String::new();
        let mut pauses = PAUSES.iter();
        let mut pause = 0;
        loop {
            match Links::attach(&self.server).map_err(|error| error.to_string()).and_then(|links| {
                let place = if self.in_process.is_some() { "in" } else { "at" };
                info!("attached to the daemon {place} {}", self.server);
                self.serve(&links).map_err(|error| format!("detached from the daemon: {error}"))
            }) {
                Ok(()) => {}
                Err(why) if why == said => debug!("{why}"),
                Err(why) => {
                    warn!("{why}; trying again");
                    said = why;
                }
            }
            if self.is_attached.swap(false, Ordering::Relaxed) {
                (pauses, said) = (PAUSES.iter(), String::new());
            }
            pause = *pauses.next().unwrap_or(&pause).max(&pause.min(1000));
            std::thread::park_timeout(Duration::from_millis(pause));
        }
    }

    /// Carries packets until a link ends.
    fn serve(self: &Arc<Self>, links: &Links) -> std::io::Result<()> {
        if self.in_process.is_none() {
            self.link.open(Class::Data, links.data.try_clone()?);
            self.link.open(Class::Meta, links.meta.try_clone()?);
        }
        self.is_attached.store(true, Ordering::Relaxed);
        let (end, ended) = bounded::<()>(1);
        let (own, data, both) = (Arc::clone(self), links.data.try_clone()?, links.meta.try_clone()?);
        let begun = sys::spawn("link-in", move || {
            let error = own.read(Class::Data, data);
            debug!("the data link has ended: {error}");
            // The other reader ends, too.
            let _ = both.shutdown(std::net::Shutdown::Both);
            drop(end);
        });
        let error = match begun {
            Ok(()) => self.read(Class::Meta, links.meta.try_clone()?),
            Err(error) => error,
        };
        links.shutdown();
        // Nothing of this attachment is handled after what follows.
        let _ = ended.recv();
        self.link.close();
        self.mirrors.iter().for_each(|mirror| mirror.set_linked(Mask(0)));
        self.witnesses.iter().for_each(|witness| witness.set_linked(Mask(0)));
        Err(error)
    }

    /// Hands packets to their mirrors until the link ends; why it did.
    fn read(&self, class: Class, stream: std::net::TcpStream) -> std::io::Error {
        let mut reader = PacketReader::new(Incoming { polls: sys::is_unix(&stream), stream });
        let mut batches = Batches::new(self);
        loop {
            let outcome = self.read_batch(class, &mut reader, &mut batches);
            batches.hand_over();
            if let Err(error) = outcome {
                return error;
            }
        }
    }

    /// Takes the packets that are there, and waits for the first one.
    fn read_batch(
        &self,
        class: Class,
        reader: &mut PacketReader<Incoming>,
        batches: &mut Batches<'_>,
    ) -> std::io::Result<()> {
        for _ in 0..BATCH {
            let (header, head, payload) = reader.next_into(Buffer::new)?;
            batches.add(class, &header, head, || payload.freeze());
            if !reader.is_ready()? {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// With a daemon in this process, the link is open before the daemon's first packet comes: what follows from that is sent.
impl Program for Attachment {
    fn attach(&self, [data, meta]: [Box<dyn Intake>; 2]) {
        self.link.open_in_process(Class::Data, data);
        self.link.open_in_process(Class::Meta, meta);
    }

    fn take(&self, class: Class, packets: &Bytes) {
        let mut batches = Batches::new(self);
        let mut at = 0;
        while let Some(head) = packets.get(at..).and_then(|rest| rest.first_chunk()) {
            let header = Header::decode(head);
            let begin = at.saturating_add(head.len());
            let end = begin.saturating_add(header.len as usize);
            let Some(payload) = packets.get(begin..end) else { break };
            // A small payload must not keep all that came with it in memory.
            batches.add(class, &header, *head, || match payload.len() {
                SLICE_MIN.. => packets.slice(begin..end),
                len => {
                    let mut own = Buffer::new(len);
                    own.copy_from_slice(payload);
                    own.freeze()
                }
            });
            at = end;
        }
        batches.hand_over();
    }
}

/// Packets that came together, by mirror, until they are handed over.
struct Batches<'a> {
    to: &'a Attachment,
    /// One for each mirror.
    events: Vec<Vec<Event>>,
}

impl<'a> Batches<'a> {
    fn new(to: &'a Attachment) -> Self {
        Batches { to, events: to.mirrors.iter().map(|_| Vec::new()).collect() }
    }

    /// Adds a packet.
    fn add(
        &mut self,
        class: Class,
        header: &Header,
        head: [u8; HEADER_LEN],
        payload: impl FnOnce() -> Bytes,
    ) {
        let resource = header.device.resource();
        let at = self.to.mirrors.iter().position(|mirror| Some(mirror.id) == resource);
        let found = at.and_then(|at| Some((self.to.mirrors.get(at)?, self.events.get_mut(at)?)));
        let witness = self.to.witnesses.iter().find(|witness| Some(witness.id) == resource);
        match found {
            None if header.kind == PacketType::SC_CONN_STATE && class == Class::Meta => {
                witness.iter().for_each(|witness| witness.set_linked(header.node_to));
            }
            None if class == Class::Meta => {
                if let Some(witness) = witness {
                    witness.handle(&head, &payload());
                }
            }
            // Of a resource that is not served here.
            None => {}
            Some((mirror, batch)) if header.kind == PacketType::SC_CONN_STATE && class == Class::Meta => {
                mirror.handle_all(batch.drain(..));
                mirror.set_linked(header.node_to);
            }
            Some((_, batch)) => {
                batch.push(Event::Packet { class, header: Box::new(head), payload: payload() });
            }
        }
    }

    /// Hands them over.
    fn hand_over(&mut self) {
        for (mirror, batch) in self.to.mirrors.iter().zip(&mut self.events) {
            if !batch.is_empty() {
                mirror.handle_all(batch.drain(..));
            }
        }
    }
}
