//! The kernel module's links: they are answered, attached and closed as the core decides.
//!
//! Never waits for the kernel module: an answer is the first that is written to its socket. Called by the timer
//! thread's `carry`, and for each kernel link that comes in.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use log::Level;

use super::links::Waiting;
use super::{Coordinator, reading};
use crate::control::Change;
use crate::daemon::connect::NOWHERE;
use crate::daemon::core::{Action, AttachId, ConnId, Event, KernelRefusal, Moment};
use crate::daemon::kernel::{KernelModule, handshake_ack};
use crate::daemon::link::Closed;
use crate::daemon::route::FromKernel;
use crate::limited;
use crate::sys::Counter;
use crate::wire::Class;

/// The state of kernel modules beside the attached one, which the router has.
#[derive(Default)]
pub(super) struct Kernel {
    /// A kernel module whose threads run and which is not attached yet.
    prepared: Option<Arc<KernelModule>>,
    /// The time since which one is attached.
    pub attached_since: Option<Instant>,
    /// Links refused because one is attached.
    second: Counter,
    /// Links refused because of the user that owns the socket.
    foreign: Counter,
}

impl Kernel {
    /// Returns how many links were refused, by cause.
    pub fn refused(&self) -> [(&'static str, u64); 2] {
        [("second kernel module", self.second.get()), ("kernel module's user", self.foreign.get())]
    }
}

impl Coordinator {
    /// Looks for the end of the attached kernel module's links, so that a module that comes back is not refused
    /// because of its predecessor: a reader that waits for a queue does not see the end of its link.
    pub(super) fn notice_lost_kernel(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let table = self.router.table();
        if let Some(kernel) = table.kernel.as_ref().filter(|kernel| kernel.hung_up()) {
            let why = "closed by the other side".into();
            self.core.handle(now, Event::KernelLost { attach: kernel.id, why }, actions);
        }
    }

    fn attached(&self, attach: AttachId) -> Option<Arc<KernelModule>> {
        self.router.table().kernel.clone().filter(|kernel| kernel.id == attach)
    }

    pub(super) fn refuse_kernel(&self, refused: &Waiting, why: KernelRefusal) {
        let source = shown(refused.source);
        let user = user(refused.uid);
        match why {
            KernelRefusal::User => {
                self.kernel.foreign.add(1);
                let remedy = match refused.uid {
                    Some(_) => "element kerneluser lets another attach",
                    None => {
                        "its socket is not on this machine or is closed; element kerneluser with any lets it attach"
                    }
                };
                limited!(
                    Level::Warn,
                    ("foreign kernel", 0),
                    "refused a kernel module from {source} ({user}): only root and the daemon's user may attach; {remedy}"
                );
            }
            KernelRefusal::OtherUser(other) => {
                self.kernel.foreign.add(1);
                let other = self::user(other);
                limited!(
                    Level::Warn,
                    ("foreign kernel", 1),
                    "refused a kernel module's link from {source} ({user}): its other link is another user's ({other})"
                );
            }
            KernelRefusal::Second | KernelRefusal::Ending => {
                self.kernel.second.add(1);
                let why = if why == KernelRefusal::Second { "one is attached" } else { "this daemon ends" };
                limited!(
                    Level::Warn,
                    ("second kernel", 0),
                    "refused a second kernel module from {source}: {why}"
                );
            }
        }
    }

    pub(super) fn ack_kernel(&mut self, conn: ConnId, class: Class) {
        if let Some(waiting) = self.waiting.get_mut(conn) {
            let ack = handshake_ack(class, waiting.device).encode();
            // The first bytes on this connection: they fit into the socket's buffer. If it is broken, the reader
            // reports it.
            let _ = waiting.link.stream.write_all(&ack);
        }
    }

    /// Prepares everything that a kernel module needs before its second link is answered. On failure both links are
    /// refused, nothing else changes, and `false` is returned.
    pub(super) fn prepare_kernel(&mut self, class: Class, conn: ConnId, actions: &mut Vec<Action>) -> bool {
        let uid = self.waiting.get(conn).and_then(|waiting| waiting.uid);
        let Some((other, attach)) = self.core.completes_kernel(class, uid) else { return true };
        let (data, meta) = if class == Class::Data { (conn, other) } else { (other, conn) };
        match self.make_kernel(attach, data, meta) {
            Ok(kernel) => {
                self.kernel.prepared = Some(kernel);
                true
            }
            Err(error) => {
                limited!(
                    Level::Error,
                    ("threads", u64::MAX),
                    "cannot start the kernel module's threads, refused both its links: {error}"
                );
                self.waiting.take(conn);
                self.core.handle(self.now(), Event::ConnLost { conn: other }, actions);
                false
            }
        }
    }

    fn make_kernel(&self, attach: AttachId, data: ConnId, meta: ConnId) -> io::Result<Arc<KernelModule>> {
        let stream = |conn| {
            let waiting = self.waiting.get(conn).ok_or(io::ErrorKind::NotConnected)?;
            waiting.link.stream.try_clone()
        };
        let streams = [stream(data)?, stream(meta)?];
        let is_ours = |conn| self.waiting.get(conn).is_some_and(|waiting| waiting.source == NOWHERE);
        let own = self.in_process.as_ref().filter(|_| is_ours(data) && is_ours(meta));
        let program = own.and_then(|(in_process, make)| Some((in_process.program()?, make)));
        let events = self.events.clone();
        let lost = move |class: Class, closed: Closed| {
            let _ = events.send(Event::KernelLost { attach, why: format!("{class} link: {closed}") });
        };
        let kernel = KernelModule::start(attach, streams, self.local_ids(), lost)?;
        if let Some((program, make)) = program {
            kernel.set_program(program);
            let max = self.config.max_packet;
            program.attach(Class::BOTH.map(|class| make(&self.router, class, max)));
        }
        if let Some(guard) = &self.shutdown.guard {
            kernel
                .open(reading(&self.config), guard, |_| FromKernel::new(&self.router))
                .inspect_err(|_| kernel.close())?;
        }
        Ok(kernel)
    }

    pub(super) fn attach_kernel(&mut self, attach: AttachId, data: ConnId, meta: ConnId) {
        let source = self.waiting.take(meta).map(|waiting| (waiting.source, waiting.uid));
        self.waiting.take(data);
        let prepared = self.kernel.prepared.take().filter(|kernel| kernel.id == attach);
        let Some((kernel, (source, uid))) = prepared.zip(source) else { return };
        let source = shown(source);
        self.router.set_kernel(Some(kernel));
        limited!(Level::Info, ("attached", 0), "kernel module attached from {source} ({})", user(uid));
        self.kernel.attached_since = Some(Instant::now());
        self.note_daemon(Change::KernelAttached, &source);
    }

    pub(super) fn detach_kernel(&mut self, attach: AttachId, why: &str) {
        limited!(Level::Warn, ("detached", 0), "kernel module detached: {why}");
        if let Some(kernel) = self.attached(attach) {
            self.router.set_kernel(None);
            kernel.close();
        }
        self.kernel.attached_since = None;
        self.note_daemon(Change::KernelDetached, why);
    }
}

/// Returns the other end of a kernel module's link in words.
fn shown(source: SocketAddr) -> String {
    if source == NOWHERE { "this machine's Unix socket".into() } else { source.to_string() }
}

fn user(uid: Option<u32>) -> String {
    uid.map_or_else(|| "user unknown".into(), |uid| format!("user {uid}"))
}
