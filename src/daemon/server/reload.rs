//! Reloads, one after the other: the requests of signals and clients are in one queue, and the last one counts.
//!
//! A thread reads the file as soon as it is requested, so that the file of that moment is put in force; another turns
//! the bytes into a configuration, which may have to wait for a name server, and has the timer thread apply it.
//! A newer request replaces an older one that is not in force yet, and never the other way round. No caller waits
//! in here.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crossbeam::channel::{Receiver, Sender, bounded, never, unbounded};

use super::names::Names;
use super::{ControlRequest, Loaded};
use crate::config::Config;
use crate::control::{Line, Request};
use crate::sys;

/// Turns the bytes of a configuration file into a configuration with its warnings; an error is ready to be shown.
pub type Parse = Arc<dyn Fn(&[u8], &Names) -> Result<Loaded, String> + Send + Sync>;

/// The answer to a request that a newer one has replaced.
const REPLACED: &str = "nothing was changed by this request: a newer one took its place";

/// The answer to a request before the daemon has started.
const EARLY: &str = "the daemon has not started yet; it reads the file again with each attempt to start";

/// A request on its way.
struct Job {
    bytes: Vec<u8>,
    names: Arc<Names>,
    reply: Sender<Line>,
    /// True if it is the file of the start once more, for names that are known now.
    again: bool,
}

#[derive(Default)]
struct Queue {
    /// True if there is a daemon whose configuration can be replaced.
    started: bool,
    next: Option<Job>,
    /// The names of the request at work.
    at_work: Option<Arc<Names>>,
    /// True if another file than that of the start is in force.
    replaced: bool,
}

/// The channel for reload requests.
#[derive(Clone)]
pub struct Reloads {
    asks: Sender<Sender<Line>>,
    /// Locked for a moment only, and never while a file is read or a name looked up.
    queue: Arc<(Mutex<Queue>, Condvar)>,
}

impl Reloads {
    /// Starts both threads, for this file.
    ///
    /// # Errors
    /// A sentence for the operator: the system refused another thread.
    pub fn start(file: PathBuf, parse: Parse, control: Sender<ControlRequest>) -> Result<Self, String> {
        let (asks, asked) = unbounded();
        let reloads = Reloads { asks, queue: Arc::default() };
        let fail = |error| format!("cannot start the threads that reload: {error}");
        let reading = reloads.queue.clone();
        sys::spawn("reload-read", move || read_all(&file, &asked, &reading)).map_err(fail)?;
        let loading = reloads.queue.clone();
        sys::spawn("reload", move || load_all(&loading, &parse, &control)).map_err(fail)?;
        Ok(reloads)
    }

    /// Accepts requests from now on: before, they are refused.
    pub fn open(&self) {
        lock(&self.queue.0).started = true;
    }

    /// Has the file read now and put in force; returns at once. One line of answer comes.
    pub fn ask(&self, reply: Sender<Line>) {
        // The thread lives as long as the daemon.
        let _ = self.asks.send(reply);
    }

    /// Has the file of the start put in force once more with the names that are known now; `Some(false)` if another
    /// reload is at work, `None` if another file has been put in force meanwhile.
    pub fn again(&self, bytes: &[u8], names: &Arc<Names>) -> Option<bool> {
        let mut queue = lock(&self.queue.0);
        if queue.replaced {
            return None;
        }
        let free = queue.next.is_none() && queue.at_work.is_none();
        if free {
            let (reply, _) = bounded(1);
            queue.next = Some(Job { bytes: bytes.into(), names: names.clone(), reply, again: true });
            self.queue.1.notify_all();
        }
        Some(free)
    }
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads the file for every request at once, in their order.
fn read_all(file: &std::path::Path, asked: &Receiver<Sender<Line>>, queue: &(Mutex<Queue>, Condvar)) {
    for reply in asked {
        if !lock(&queue.0).started {
            let _ = reply.try_send(Line::bad(EARLY));
            continue;
        }
        let bytes = match Config::read_bytes(file) {
            Ok(bytes) => bytes,
            Err(error) => {
                let _ = reply.try_send(Line::bad(error.to_string()));
                continue;
            }
        };
        let job = Job { bytes, names: Arc::default(), reply, again: false };
        let mut waiting = lock(&queue.0);
        if let Some(older) = waiting.next.replace(job) {
            let _ = older.reply.try_send(Line::bad(REPLACED));
        }
        if let Some(names) = &waiting.at_work {
            names.give_up();
        }
        queue.1.notify_all();
    }
}

/// Loads and applies the files that were read, one after the other.
fn load_all(queue: &(Mutex<Queue>, Condvar), parse: &Parse, control: &Sender<ControlRequest>) {
    loop {
        let idle = |queue: &mut Queue| queue.next.is_none();
        let mut waiting = queue.1.wait_while(lock(&queue.0), idle).unwrap_or_else(PoisonError::into_inner);
        let Some(job) = waiting.next.take() else { continue };
        waiting.at_work = Some(job.names.clone());
        drop(waiting);
        let parsed = parse(&job.bytes, &job.names);
        let mut waiting = lock(&queue.0);
        let replaced = waiting.next.is_some();
        if replaced {
            waiting.at_work = None;
        }
        drop(waiting);
        if replaced {
            let _ = job.reply.try_send(Line::bad(REPLACED));
            continue;
        }
        let answer = parsed.map_or_else(|why| Some(Line::bad(why)), |loaded| apply(loaded, control));
        // The daemon ends.
        let Some(answer) = answer else { return };
        let good = matches!(answer, Line::Answer(Ok(_)));
        let mut waiting = lock(&queue.0);
        waiting.at_work = None;
        waiting.replaced |= good && !job.again;
        drop(waiting);
        if let (true, Line::Answer(Err(why))) = (job.again, &answer) {
            log::error!("cannot put in force what names are known now: {why}");
        }
        let _ = job.reply.try_send(answer);
    }
}

/// Has the timer thread put a configuration in force; returns its answer, or `None` when the daemon ends.
fn apply(loaded: Loaded, control: &Sender<ControlRequest>) -> Option<Line> {
    let (reply, answer) = bounded(1);
    let config = Some(Box::new(loaded));
    control.send(ControlRequest { request: Request::Reload, config, reply, gone: never() }).ok()?;
    answer.recv().ok()
}
