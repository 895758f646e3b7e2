//! Carrying out what the core decided.

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use log::{Level, debug, error, warn};

use super::{Timer, Waiting, hex, owner, report};
use crate::connect::{Dial, Order};
use crate::control;
use crate::core::{Action, AttachId, AttemptId, ConnId, EndCause, Event, Moment, PeerKey, SessionId};
use crate::device::{Device, handshake_ack};
use crate::kmod::{self, Missing};
use crate::limited;
use crate::link::lz4;
use crate::peer::{Direction, Session};
use crate::route::{FromKernel, FromPeer};
use crate::sys;
use crate::wire::{Class, Compression, FEATURE_VIEWS};

impl Timer {
    /// Carries out every action, in order. An exit code ends the daemon.
    /// What follows from carrying them out is left in `actions`.
    pub(super) fn carry_out(&mut self, actions: &mut Vec<Action>) -> Option<u8> {
        for action in std::mem::take(actions) {
            match action {
                Action::Dial { peer, attempt } => self.dial(peer, attempt),
                Action::CancelDial { attempt } => self.reactor.order(Order::Cancel(attempt)),
                Action::Close { conn } => drop(self.waiting.remove(&conn)),
                Action::StartSession { peer, session, data, meta } => {
                    self.start_session(peer, session, data, meta);
                }
                Action::OpenSession { peer, session } => self.open_session(peer, session),
                Action::EndSession { peer, session, cause } => self.end_session(peer, session, &cause),
                Action::Ping { peer, session, unanswered } => {
                    if unanswered > 1 {
                        debug!(
                            "{peer}: {} of {} pings not answered",
                            unanswered - 1,
                            self.config.max_ping_count
                        );
                    }
                    if let Some(session) = self.session(peer, session) {
                        session.ping();
                    }
                }
                Action::Stalled => limited!(
                    Level::Warn,
                    ("stalled", 0),
                    "this daemon did not run for a while (machine busy or stopped): heartbeats start afresh"
                ),
                Action::AckKernel { conn, class } => self.ack_kernel(conn, class),
                Action::RefuseKernel { conn } => {
                    if let Some(refused) = self.waiting.remove(&conn) {
                        self.second_kernels.add(1);
                        limited!(
                            Level::Warn,
                            ("second kernel", 0),
                            "refused a second kernel module from {}: one is attached",
                            refused.source
                        );
                    }
                }
                Action::AttachKernel { attach, data, meta } => self.attach_kernel(attach, data, meta),
                Action::DetachKernel { attach, why } => {
                    limited!(Level::Warn, ("detached", 0), "kernel module detached: {why}");
                    if let Some(device) = self.attached(attach) {
                        self.switch.set_device(None);
                        device.close();
                    }
                    self.attached_since = None;
                    self.note_daemon("kernel module detached", &why);
                }
                Action::TellKernel { state } => {
                    if let Some(device) = &self.switch.table().device {
                        device.tell(state);
                    }
                }
                Action::CheckModules => self.check_modules(),
                Action::CheckOwnership => self.check_ownership(actions),
                Action::Stop { drain, code } => return Some(self.stop_all(Instant::now() + drain, code)),
            }
        }
        None
    }

    fn dial(&mut self, peer: PeerKey, attempt: AttemptId) {
        if let Some((to, from)) = owner::call(&self.config, peer) {
            self.stories.entry(peer).or_default().attempts += 1;
            let epoch = fastrand::u64(..);
            self.reactor.order(Order::Dial(Dial { peer, attempt, epoch, to, from }));
        }
    }

    fn session(&self, peer: PeerKey, id: SessionId) -> Option<Arc<Session>> {
        let table = self.switch.table();
        table.peers.get(&peer)?.session.clone().filter(|session| session.id == id)
    }

    fn start_session(&mut self, peer: PeerKey, id: SessionId, data: ConnId, meta: ConnId) {
        let (Some(mut data), Some(meta)) = (self.waiting.remove(&data), self.waiting.remove(&meta)) else {
            return;
        };
        let previous = self.previous.get(&peer).cloned();
        previous.iter().flatten().for_each(|account| account.void());
        self.tell_connected(peer, &data);
        let (from, how) =
            if data.called { ("dialing", "this side called") } else { ("half", "the peer called") };
        let source = data.source.to_string();
        let table = self.switch.table();
        let Some(entry) = table.peers.get(&peer) else { return };
        let features = meta.extension.as_ref().map_or(0, |extension| extension.features);
        if let Some(Compression::Lz4) = data.compression {
            let [out, inbound] = Direction::BOTH.map(|direction| entry.record.squeezed(direction));
            data.link.wear_inside(lz4::coat(self.config.max_packet, out, inbound));
        }
        let links = [data.link, meta.link];
        let started = Session::start(
            &entry.record,
            id,
            links,
            self.local_ids(),
            &self.limits,
            &self.events,
            previous.as_ref(),
        );
        match started {
            Ok(session) => {
                if features & FEATURE_VIEWS != 0 {
                    session.exchange_views();
                }
                self.views.due = Moment::ZERO;
                self.previous.insert(peer, session.inbound().clone());
                self.switch.set_session(peer, Some(session));
                let mut more = report::fault(from, None, None);
                more.insert("source".into(), source.into());
                self.note(peer, "connected", how, how, more);
            }
            Err(error) => self.session_failed(peer, id, &error),
        }
    }

    fn tell_connected(&mut self, peer: PeerKey, link: &Waiting) {
        let how = if link.called { "called" } else { "was called from" };
        let theirs = link.extension.as_ref();
        let digest = theirs.and_then(|extension| extension.digest);
        let story = self.stories.entry(peer).or_default();
        story.since = Some(Instant::now());
        story.source = link.source.to_string();
        story.version = theirs.map(|extension| extension.version.clone().unwrap_or_default());
        story.same_config = digest.map(|digest| digest == self.digest);
        story.encryption = link.encryption;
        story.compression = link.compression;
        story.sessions += 1;
        story.unreachable = false;
        self.reactor.refusals.forget(peer);
        let who = match &story.version {
            None => "without hello extension".to_string(),
            Some(version) => format!("hadmd {version}"),
        };
        let encrypted = link.encryption.map_or(String::new(), |encryption| {
            format!("; encrypted: {}, key {}", encryption.cipher, encryption.key)
        });
        let wanted = self.admission.known.iter().any(|known| known.key == peer && known.compress.is_some());
        let compress = match link.compression {
            Some(compression) => format!("; compress {}", compression.name()),
            None if wanted => "; no compression, the other side does not want it".into(),
            None => String::new(),
        };
        limited!(
            Level::Info,
            ("connected", peer.code()),
            "{peer}: connected ({how} {}; {who}{encrypted}{compress})",
            link.source
        );
        if let Some(theirs) = digest.filter(|theirs| *theirs != self.digest) {
            warn!(
                "{peer} has another configuration: its digest is {}, here it is {}; compare the files",
                hex(&theirs),
                hex(&self.digest)
            );
        }
    }

    fn session_failed(&self, peer: PeerKey, session: SessionId, error: &std::io::Error) {
        limited!(Level::Error, ("threads", peer.code()), "{peer}: cannot start its threads: {error}");
        let cause = EndCause::Resources(error.to_string(), error.raw_os_error());
        // It comes back as an event: the core is the one to end sessions.
        let _ = self.events.send(Event::SessionLost { peer, session, cause });
    }

    fn open_session(&mut self, peer: PeerKey, id: SessionId) {
        let (Some(session), Some(guard)) = (self.session(peer, id), &self.guard) else { return };
        let opened =
            session.open(self.config.max_packet, guard, |_: Class| FromPeer::new(&self.switch, &session));
        if let Err(error) = opened {
            self.session_failed(peer, id, &error);
        }
    }

    fn end_session(&mut self, peer: PeerKey, id: SessionId, cause: &EndCause) {
        let story = self.stories.entry(peer).or_default();
        let age = story.since.take().map_or(0.0, |since| since.elapsed().as_secs_f64());
        story.last_error = Some(cause.to_string());
        story.violations += u64::from(matches!(cause, EndCause::Violation(..)));
        let mut more = report::fault("connected", cause.link(), cause.errno());
        let network = cause.errno().is_some_and(sys::is_networks);
        more.insert("by".into(), if network { "network" } else { cause.by() }.into());
        if let Some(session) = self.session(peer, id) {
            self.stories.entry(peer).or_default().view = session.view();
            self.views.due = Moment::ZERO;
            more.insert("rtt_us".into(), session.rtt().map(|rtt| rtt.as_micros() as u64).into());
            more.insert("queued_bytes".into(), session.queued_bytes().into());
            self.switch.set_session(peer, None);
            session.end();
        }
        limited!(
            Level::Warn,
            ("session ended", peer.code()),
            "{peer}: session ended after {age:.1} s: {cause}{}",
            control::particulars(&more)
        );
        more.insert("age_s".into(), age.into());
        self.note(peer, "disconnected", cause.kind(), &cause.to_string(), more);
    }

    fn ack_kernel(&mut self, conn: ConnId, class: Class) {
        if let Some(waiting) = self.waiting.get_mut(&conn) {
            let ack = handshake_ack(class, waiting.dev_id).encode();
            // The first bytes on this connection: they fit into the socket's buffer. If it is broken, the
            // reading end will say so.
            let _ = waiting.link.stream.write_all(&ack);
        }
    }

    fn attach_kernel(&mut self, attach: AttachId, data: ConnId, meta: ConnId) {
        let (Some(data), Some(meta)) = (self.waiting.remove(&data), self.waiting.remove(&meta)) else {
            return;
        };
        let events = self.events.clone();
        let lost = move |class: Class, closed: crate::link::Closed| {
            let _ = events.send(Event::KernelLost { attach, why: format!("{class} link: {closed}") });
        };
        let opened = Device::start(attach, [data.link.stream, meta.link.stream], self.local_ids(), lost)
            .and_then(|device| {
                self.switch.set_device(Some(Arc::clone(&device)));
                let Some(guard) = &self.guard else { return Ok(()) };
                device.open(self.config.max_packet, guard, |_| FromKernel::new(&self.switch))
            });
        match opened {
            Ok(()) => {
                limited!(Level::Info, ("attached", 0), "kernel module attached from {}", meta.source);
                self.attached_since = Some(Instant::now());
                self.note_daemon("kernel module attached", &meta.source.to_string());
            }
            Err(error) => {
                limited!(
                    Level::Error,
                    ("threads", u64::MAX),
                    "cannot start the kernel module's threads: {error}"
                );
                let _ = self.events.send(Event::KernelLost { attach, why: error.to_string() });
            }
        }
    }

    fn check_modules(&mut self) {
        match self.modules.as_deref().map_or(Ok(()), kmod::check) {
            Ok(()) => {}
            // It says nothing about the module: the next look is a second away.
            Err(Missing::NoList(list, error)) if sys::is_shortage(&error) => limited!(
                Level::Error,
                ("modules", 0),
                "cannot look for the kernel module in {} for now: {error}",
                list.display()
            ),
            Err(missing) => {
                error!("ending, the kernel module is gone: {missing}");
                let _ = self.events.send(Event::ModuleGone);
            }
        }
    }
}
