//! The thread that makes answers from snapshots, so that the timer thread does not have to.
//!
//! Answers and events leave in the order in which it got them: a listening client gets the state first and then
//! every change. It never waits for a client: one that does not keep up is disconnected.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crossbeam::channel::{Receiver, Sender, unbounded};

use crate::control::{Answer, Event, Line};
use crate::sys;

/// Makes the data of an answer.
type Make = Box<dyn FnOnce() -> Answer + Send>;

enum Report {
    Answer(Sender<Line>, Make),
    /// Answers, and sends every event from then on.
    Listen(Sender<Line>, Make),
    Event(Event),
}

/// The channel to the thread, which ends when this is dropped.
pub(super) struct Reports {
    reports: Sender<Report>,
    /// Number of listening clients, as far as the thread has come.
    listeners: Arc<AtomicUsize>,
}

impl Reports {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system refused another thread.
    pub fn start() -> io::Result<Self> {
        let (reports, incoming) = unbounded();
        let listeners = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&listeners);
        sys::spawn("reports", move || work(&incoming, &counted))?;
        Ok(Reports { reports, listeners })
    }

    /// Answers with the result of `make`.
    pub fn answer(&self, reply: Sender<Line>, make: impl FnOnce() -> Answer + Send + 'static) {
        // The thread runs for as long as this exists.
        let _ = self.reports.send(Report::Answer(reply, Box::new(make)));
    }

    /// Answers with the result of `make`, and then sends every event.
    pub fn listen(&self, reply: Sender<Line>, make: impl FnOnce() -> Answer + Send + 'static) {
        self.listeners.fetch_add(1, Relaxed);
        let _ = self.reports.send(Report::Listen(reply, Box::new(make)));
    }

    /// Sends an event to every listening client.
    pub fn tell(&self, event: Event) {
        if self.listeners.load(Relaxed) > 0 {
            let _ = self.reports.send(Report::Event(event));
        }
    }
}

fn work(incoming: &Receiver<Report>, counted: &AtomicUsize) {
    let mut listeners: Vec<Sender<Line>> = Vec::new();
    for report in incoming {
        match report {
            // A client that has hung up already needs no answer.
            Report::Answer(reply, make) => drop(reply.try_send(Line::good(make()))),
            Report::Listen(reply, make) => {
                let _ = reply.try_send(Line::good(make()));
                listeners.push(reply);
            }
            Report::Event(event) => {
                let line = Line::Event(event);
                let before = listeners.len();
                // A client that does not keep up is disconnected: a stream with a hole would be worse.
                listeners.retain(|listener| listener.try_send(line.clone()).is_ok());
                counted.fetch_sub(before.saturating_sub(listeners.len()), Relaxed);
            }
        }
    }
}
