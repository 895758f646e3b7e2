//! One mirrored disk at work: events into the core, its actions onto disks, links and clients.
//!
//! The thread that brings an event carries out what follows from it: it queues packets under the core's lock, writes
//! them, and then the local disk where that waits for nothing; whatever waits goes to a pool. Must never reorder what the
//! core asks for on one link, nor answer anybody but by the core's word. Called by the NBD server, the attached links, the
//! timer and the control socket.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam::channel::{Receiver, Sender, bounded};
use log::info;

use super::counters::{Access, Counters};
use super::handlers::Handlers;
use super::journal::Journal;
use super::link::Link;
use super::progress::Progress;
use super::replies::Replies;
use super::served::Served;
use super::stopwatch::Stopwatch;
use crate::nbd::core::{Action, Command, Core, Event, Part, Refusal, Stage, Ticket};
use crate::nbd::disk::data::DataDisk;
use crate::nbd::disk::format::Label;
use crate::nbd::disk::pool::IoPool;
use crate::nbd::disk::store::Store;
use crate::nbd::server::{Answer, Buffer, Export, Failure, Reply, Together};
use crate::wire::{Header, Mask, ResourceId, SiteId};

/// Threads for reads and writes that wait for the disk.
const THREADS: usize = 8;

/// Longest read or write in bytes that is tried on the thread that has it: copying more would hold up its next event
/// for longer than a hand-over costs.
pub(super) const INLINE_MAX: usize = 128 << 10;

/// Seconds before the queue for a site is full at which people hear of it.
const SOON: u64 = 60;

/// The outcome of a command.
pub type CommandResult = Result<(), Refusal>;

/// The state behind the lock of a mirror.
pub(super) struct State {
    pub core: Core,
    pub replies: Replies,
    actions: Vec<Action>,
    /// The origin of the command that is under way.
    commander: Option<Sender<CommandResult>>,
    /// The sites that the daemon is connected with, and those that a person has disconnected.
    pub linked: Mask,
    pub held: Mask,
    /// The operator's programs.
    pub handlers: Handlers,
    /// Its latest events, for people.
    pub journal: Journal,
    /// The times that the other sites take.
    watches: Vec<(SiteId, Stopwatch)>,
    /// The resyncs that are under way, by site.
    pub progress: Vec<(SiteId, Progress)>,
    /// The room in the queues for sites that writes do not wait for.
    pub queues: Vec<(SiteId, Progress)>,
}

impl State {
    /// Returns the seconds until the queue for a site is full at the rate of late; `None` if it does not grow.
    pub fn seconds_to_full(&self, site: SiteId, room: u64) -> Option<u64> {
        let (_, queue) = self.queues.iter().find(|(known, _)| *known == site)?;
        room.checked_div(queue.rate())
    }
}

/// A mirrored disk.
pub struct Mirror {
    pub(super) id: ResourceId,
    pub(super) name: String,
    pub(super) site: SiteId,
    pub(super) peers: Vec<SiteId>,
    /// The queues' and the export's locks are taken under it, and no other. Never held while anything waits.
    state: Mutex<State>,
    pub(super) disk: DataDisk,
    pub(super) store: Store,
    /// The label as it is on disk, which grows with the disk. Held while that is looked at, and no other lock waits for it.
    pub(super) label: Mutex<Label>,
    pub(super) pool: IoPool,
    /// Syncs of the data disk, one at a time.
    syncs: IoPool,
    /// Writes of metadata: the superblock's, the activity log's and the ordered log's, each one at a time.
    stores: IoPool,
    link: Arc<Link>,
    pub(super) export: Arc<Export>,
    begun: Instant,
    /// Reads may be answered from the local disk: as the core said last.
    pub(super) reads_locally: AtomicBool,
    /// Bytes that clients see.
    pub(super) size: AtomicU64,
    pub(super) counters: Counters,
}

/// The work that is left once the core's lock is free.
enum Job {
    Do(Action),
    Answer(Reply, Answer),
}

impl Mirror {
    /// Begins with the core as it was made from what is on disk.
    ///
    /// # Errors
    /// The system has no room for its threads.
    pub(super) fn start(
        (id, name): (ResourceId, String),
        site: SiteId,
        peers: Vec<SiteId>,
        core: Core,
        (disk, store): (DataDisk, Store),
        link: Arc<Link>,
        begun: Instant,
    ) -> std::io::Result<Arc<Self>> {
        let state = State {
            core,
            replies: Replies::default(),
            actions: Vec::new(),
            commander: None,
            linked: Mask(0),
            held: Mask(0),
            handlers: Handlers::default(),
            journal: Journal::default(),
            watches: peers.iter().map(|site| (*site, Stopwatch::default())).collect(),
            progress: Vec::new(),
            queues: Vec::new(),
        };
        let mirror = Arc::new(Mirror {
            pool: IoPool::new(&name, THREADS)?,
            syncs: IoPool::new("sync", 1)?,
            stores: IoPool::new("meta", 3)?,
            export: Export::new(name.clone()),
            id,
            name,
            site,
            peers,
            state: Mutex::new(state),
            disk,
            label: Mutex::new(store.label().clone()),
            store,
            link,
            begun,
            reads_locally: AtomicBool::new(false),
            size: AtomicU64::new(0),
            counters: Counters::default(),
        });
        // The actions that the core wants at once.
        mirror.handle_all([]);
        Ok(mirror)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the core of something, and carries out what follows.
    pub fn handle(self: &Arc<Self>, event: Event) {
        self.handle_all([event]);
    }

    /// The same of several things: what follows is confirmed to other sites together.
    pub fn handle_all(self: &Arc<Self>, events: impl IntoIterator<Item = Event>) {
        self.handle_with(|state, now| {
            events.into_iter().for_each(|event| {
                self.time(state, &event);
                state.core.handle(now, event);
            });
        });
    }

    /// Looks how long a site took to confirm a write.
    fn time(&self, state: &mut State, event: &Event) {
        let Event::Packet { header, .. } = event else { return };
        let from = Header::decode(header).node_from;
        let found = state.watches.iter_mut().enumerate().find(|(_, (site, _))| u32::from(site.get()) == from);
        if let Some((place, (_, watch))) = found {
            if let Some(time) = watch.comes(header) {
                self.counters.confirmed(place, self.peers.len(), time);
            }
        }
    }

    pub(super) fn handle_with(self: &Arc<Self>, tell: impl FnOnce(&mut State, Duration)) {
        let _together = Together::new();
        let mut jobs = Vec::new();
        let mut done = Vec::new();
        {
            let mut state = self.lock();
            tell(&mut state, self.begun.elapsed());
            self.drain(&mut state, &mut jobs);
        }
        loop {
            self.link.flush();
            for job in jobs.drain(..) {
                match job {
                    Job::Do(action) => self.act(action, &mut done),
                    Job::Answer(reply, answer) => reply.complete(answer),
                }
            }
            if done.is_empty() {
                return;
            }
            let mut state = self.lock();
            let now = self.begun.elapsed();
            for (ticket, result) in done.drain(..) {
                state.core.handle(now, Event::Done(ticket, result));
            }
            self.drain(&mut state, &mut jobs);
        }
    }

    /// Takes the core's actions: what has an order is done here, under the lock.
    fn drain(self: &Arc<Self>, state: &mut State, jobs: &mut Vec<Job>) {
        let mut actions = std::mem::take(&mut state.actions);
        state.core.drain(&mut actions);
        for action in actions.drain(..) {
            match action {
                Action::Send(site, header, payload) => {
                    if let Some((_, watch)) = state.watches.iter_mut().find(|(known, _)| *known == site) {
                        watch.goes(&header);
                    }
                    if let Some((class, _)) = Header::decode(&header).kind.relayed() {
                        self.link.push(class, header, payload);
                    }
                }
                Action::Reply(id, answer) => {
                    if let Some((kind, since, reply)) = state.replies.take(id) {
                        self.counters.answered(kind, since.elapsed());
                        jobs.push(Job::Answer(reply, answer));
                    }
                }
                Action::Serve(true) => {
                    info!("{}: this site is primary", self.name);
                    state.journal.add(None, "primary", "clients are served");
                    self.reads_locally.store(state.core.reads_at_once(), Ordering::Release);
                    self.size.store(state.core.size(), Ordering::Release);
                    self.export.open(Arc::new(Served(Arc::clone(self))));
                }
                Action::Serve(false) => {
                    info!("{}: this site is not primary any more", self.name);
                    state.journal.add(None, "secondary", "clients are not served any more");
                    self.export.close();
                }
                Action::Answer(result) => {
                    if let Some(commander) = state.commander.take() {
                        // Its client may have gone.
                        _ = commander.try_send(result);
                    }
                }
                Action::Note(note) => state.journal.note(&self.name, note),
                other => jobs.push(Job::Do(other)),
            }
        }
        state.actions = actions;
        self.reads_locally.store(state.core.reads_at_once(), Ordering::Release);
        self.size.store(state.core.size(), Ordering::Release);
    }

    /// Carries out one action; what is done at once is noted in `done`.
    fn act(self: &Arc<Self>, action: Action, done: &mut Vec<(Ticket, Result<Bytes, Failure>)>) {
        let nothing = |result: std::io::Result<()>| answer(result.map(|()| Bytes::new()));
        let since = Instant::now();
        match action {
            Action::Write(ticket, offset, data) => {
                if data.len() <= INLINE_MAX {
                    let written = match self.disk.write_at_once(&data, offset) {
                        Ok(true) => Some(Ok(())),
                        // If nobody can tell, a write into memory is the most likely.
                        Ok(false) if self.disk.is_blind_for_writes() => Some(self.disk.write(&data, offset)),
                        Ok(false) => None,
                        Err(error) => Some(Err(error)),
                    };
                    if let Some(written) = written {
                        self.counters.accessed(Access::Write, since.elapsed());
                        return done.push((ticket, nothing(written)));
                    }
                }
                self.later(&self.pool, ticket, move |mirror| {
                    let written = mirror.disk.write(&data, offset);
                    mirror.counters.accessed(Access::Write, since.elapsed());
                    nothing(written)
                });
            }
            Action::Zero(ticket, offset, len, trim) => {
                self.later(&self.pool, ticket, move |mirror| {
                    let zeroed = mirror.disk.zero(offset, len, !trim, false);
                    mirror.counters.accessed(Access::Write, since.elapsed());
                    nothing(zeroed)
                });
            }
            Action::Read(ticket, offset, len) => {
                let Ok(len) = usize::try_from(len) else { return done.push((ticket, Err(Failure::Invalid))) };
                if len <= INLINE_MAX {
                    let mut buf = Buffer::new(len);
                    if let Ok(true) = self.disk.read_at_once(&mut buf, offset) {
                        self.counters.accessed(Access::Read, since.elapsed());
                        return done.push((ticket, Ok(buf.freeze())));
                    }
                }
                self.later(&self.pool, ticket, move |mirror| {
                    let mut buf = Buffer::new(len);
                    let read = mirror.disk.read(&mut buf, offset);
                    mirror.counters.accessed(Access::Read, since.elapsed());
                    answer(read.map(|()| buf.freeze()))
                });
            }
            Action::Sync(ticket) => {
                self.later(&self.syncs, ticket, move |mirror| {
                    let synced = mirror.disk.flush();
                    mirror.counters.accessed(Access::Flush, since.elapsed());
                    nothing(synced)
                });
            }
            Action::Store(ticket, blocks) => {
                self.later(&self.stores, ticket, move |mirror| {
                    nothing(mirror.store.write_all(&blocks).and_then(|()| mirror.store.sync()))
                });
            }
            Action::Fence(site) => self.fence(site),
            Action::Look => self.look_at_disk(),
            Action::CallHelper(site) => self.call_helper(site),
            // Under the lock, in [`Mirror::drain`].
            Action::Send(..) | Action::Reply(..) | Action::Answer(_) | Action::Serve(_) | Action::Note(_) => {
            }
        }
    }

    /// Has it done by another thread, which tells the core.
    fn later(
        self: &Arc<Self>,
        pool: &IoPool,
        ticket: Ticket,
        job: impl FnOnce(&Mirror) -> Result<Bytes, Failure> + Send + 'static,
    ) {
        let mirror = Arc::clone(self);
        pool.run(move || {
            let result = job(&mirror);
            mirror.handle(Event::Done(ticket, result));
        });
    }

    /// Looks how far resyncs are; to be called now and then.
    pub fn look(&self) {
        let now = self.begun.elapsed();
        let state = &mut *self.lock();
        for site in &self.peers {
            if let Some(lag) = state.core.lag(*site) {
                if !state.queues.iter().any(|(known, _)| known == site) {
                    state.queues.push((*site, Progress::default()));
                }
                let queues = state.queues.iter_mut().filter(|(known, _)| known == site);
                queues.for_each(|(_, queue)| queue.observe(now, lag.room));
                if state.seconds_to_full(*site, lag.room).is_some_and(|seconds| seconds < SOON) {
                    state.journal.add(
                        Some(*site),
                        "queue fills",
                        "in less than a minute bits take over at this rate",
                    );
                }
            }
            let resyncs =
                matches!(state.core.peer_state(*site), Some((Stage::Joined, Part::Source | Part::Target)));
            let known = state.progress.iter().position(|(known, _)| known == site);
            match (resyncs, known) {
                (false, Some(at)) => drop(state.progress.swap_remove(at)),
                (false, None) => {}
                (true, Some(at)) => {
                    if let Some((_, progress)) = state.progress.get_mut(at) {
                        progress.observe(now, state.core.out_of_sync(*site));
                    }
                }
                (true, None) => state.progress.push((*site, Progress::default())),
            }
        }
    }

    /// Keeps an event for people.
    pub fn record(&self, site: Option<SiteId>, what: &'static str, cause: &str) {
        self.lock().journal.add(site, what, cause);
    }

    /// Gives a command. What it comes to arrives at the receiver; `None`: another one is under way.
    pub fn command(self: &Arc<Self>, command: Command) -> Option<Receiver<CommandResult>> {
        let (sender, receiver) = bounded(1);
        let mut given = false;
        self.handle_with(|state, now| {
            if state.commander.is_none() {
                state.commander = Some(sender);
                given = true;
                state.core.handle(now, Event::Command(command));
            }
        });
        given.then_some(receiver)
    }

    /// The daemon is connected with these sites.
    pub fn set_linked(self: &Arc<Self>, linked: Mask) {
        self.handle_with(|state, now| {
            for site in &self.peers {
                let (was, is) = (state.linked.contains(site.get()), linked.contains(site.get()));
                if was != is {
                    let what = if is { "connected" } else { "not connected" };
                    state.journal.add(Some(*site), what, "says the daemon");
                }
            }
            state.linked = linked;
            let seen = Mask(linked.0 & !state.held.0);
            state.core.handle(now, Event::Connected(seen));
        });
    }

    /// Keeps sites apart from this one, or lets them in again.
    pub fn hold(self: &Arc<Self>, sites: Mask, apart: bool) {
        self.handle_with(|state, now| {
            let held = state.held;
            state.held = if apart { held | sites } else { Mask(held.0 & !sites.0) };
            let seen = Mask(state.linked.0 & !state.held.0);
            state.core.handle(now, Event::Connected(seen));
        });
    }
}

fn answer(done: std::io::Result<Bytes>) -> Answer {
    done.map_err(|error| Failure::from(&error))
}
