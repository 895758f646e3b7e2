//! Connections that are through their handshake, until the core decides about them.
//!
//! No thread reads them here: whether one of them is gone is checked when another one comes. Called by the timer
//! thread for the reactor's reports.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{Coordinator, report};
use crate::control::{CauseKind, Details, Outcome, PeerState};
use crate::daemon::connect::{Encryption, ReactorEvent};
use crate::daemon::core::{Action, ConnId, Event, Moment, Via};
use crate::daemon::link::Connection;
use crate::limited;
use crate::wire::{Class, Compression, Device, Extension};

/// A connection that is through its handshake and waits for the core.
pub(super) struct Waiting {
    pub link: Connection,
    pub source: SocketAddr,
    /// The user that owns the socket of a kernel module's link.
    pub uid: Option<u32>,
    /// The device to repeat to a kernel module.
    pub device: Device,
    pub called: bool,
    pub extension: Option<Box<Extension>>,
    pub encryption: Option<Encryption>,
    pub compression: Option<Compression>,
    /// Counts against the reactor's limit.
    _ticket: Arc<()>,
}

/// All connections that wait.
#[derive(Default)]
pub(super) struct WaitingLinks {
    links: HashMap<ConnId, Waiting>,
    last: u64,
}

impl WaitingLinks {
    /// Returns the id of the next connection.
    fn next(&mut self) -> ConnId {
        self.last += 1;
        ConnId(self.last)
    }

    fn insert(&mut self, conn: ConnId, waiting: Waiting) {
        self.links.insert(conn, waiting);
    }

    pub fn get(&self, conn: ConnId) -> Option<&Waiting> {
        self.links.get(&conn)
    }

    pub fn get_mut(&mut self, conn: ConnId) -> Option<&mut Waiting> {
        self.links.get_mut(&conn)
    }

    /// Removes a connection and returns it, to be used or dropped.
    pub fn take(&mut self, conn: ConnId) -> Option<Waiting> {
        self.links.remove(&conn)
    }

    /// Returns those whose other side has closed them.
    fn hung_up(&self) -> Vec<ConnId> {
        let lost = self.links.iter().filter(|(_, waiting)| crate::sys::hung_up(&waiting.link.stream));
        lost.map(|(&conn, _)| conn).collect()
    }
}

impl Coordinator {
    /// Handles a connection that came through its handshake, or a call that failed.
    pub(super) fn on_reactor_event(
        &mut self,
        reactor_event: ReactorEvent,
        ticket: Arc<()>,
        actions: &mut Vec<Action>,
    ) {
        let conn = self.waiting.next();
        let now = self.now();
        self.notice_lost_halves(now, actions);
        let event = match reactor_event {
            ReactorEvent::Kernel { class, uid, device, stream, source } => {
                self.notice_lost_kernel(now, actions);
                let link = stream.into();
                let waiting = Waiting {
                    link,
                    source,
                    uid,
                    device,
                    called: false,
                    extension: None,
                    encryption: None,
                    compression: None,
                    _ticket: ticket,
                };
                self.waiting.insert(conn, waiting);
                if !self.prepare_kernel(class, conn, actions) {
                    return;
                }
                Event::KernelHello { class, conn, uid }
            }
            ReactorEvent::Link {
                peer,
                class,
                link,
                attempt,
                steps,
                encryption,
                extension,
                compression,
                source,
                expected,
            } => {
                if let Some(history) = self.peers.history_mut(peer) {
                    history.called(steps, None);
                }
                // Logged before there is a session, and whether or not one begins. Once for each pair.
                if let Some(expected) = expected.filter(|_| class == Class::Data) {
                    limited!(
                        log::Level::Warn,
                        ("other address", peer.code()),
                        "{} calls from {}, but its configured address is {expected}: accepted, since element \
                         peeraddr is not strict",
                        self.named(peer),
                        source.ip()
                    );
                }
                let via = match attempt {
                    Some(attempt) => Via::Dialed(attempt),
                    None => Via::Accepted {
                        epoch: extension.as_ref().and_then(|extension| extension.epoch),
                        source: source.ip().to_canonical(),
                    },
                };
                let called = attempt.is_some();
                let waiting = Waiting {
                    link,
                    source,
                    uid: None,
                    device: Device::FIRST,
                    called,
                    extension,
                    encryption,
                    compression,
                    _ticket: ticket,
                };
                self.waiting.insert(conn, waiting);
                Event::LinkReady { peer, class, conn, via }
            }
            ReactorEvent::DialFailed { peer, attempt, class, why, errno, verdict, steps } => {
                // A reload may have removed it.
                let Some(history) = self.peers.history_mut(peer) else { return };
                let news = !std::mem::replace(&mut history.unreachable, true);
                history.called(steps, Some((verdict, why.clone())));
                history.last_error = Some(why.clone());
                let level = if news { log::Level::Info } else { log::Level::Debug };
                log::log!(level, "{} cannot be reached: {why}; trying again", self.named(peer));
                let details = Details {
                    link: Some(class),
                    error: errno.map(report::system_error),
                    ..Details::default()
                };
                let states = (PeerState::Dialing, Outcome::Unreachable);
                self.note(peer, states, (CauseKind::CallFailed, why), details);
                Event::DialFailed { peer, attempt }
            }
            ReactorEvent::PeerAlive(peer) => Event::PeerAlive { peer },
            ReactorEvent::Addresses => return self.machine.look_at_addresses(),
            ReactorEvent::Paths => return self.call_now(None, actions),
            ReactorEvent::Unopened(unopened) => return self.tell_unopened(unopened),
        };
        self.core.handle(now, event, actions);
    }

    /// Looks for halves that are gone: no thread reads them, and a new link must not be paired with a dead one.
    fn notice_lost_halves(&mut self, now: Moment, actions: &mut Vec<Action>) {
        for conn in self.waiting.hung_up() {
            self.core.handle(now, Event::ConnLost { conn }, actions);
        }
    }
}
