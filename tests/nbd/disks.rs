//! A disk in memory that keeps chosen requests until the test lets them go.

use std::sync::{Arc, Condvar, Mutex};

use bytes::Bytes;
use hadmd::nbd::server::{Failure, Reply, Request, Volume};

use super::PATIENCE;

/// A request that waits for the test.
pub struct Held {
    pub request: Request,
    reply: Reply,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    held: Vec<Held>,
    log: Vec<Request>,
    batches: Vec<usize>,
}

/// The disk. Writes are held if `holds` says so; a write takes effect when it is let go.
pub struct HeldVolume {
    state: Mutex<State>,
    changed: Condvar,
    holds: fn(&Request) -> bool,
}

impl HeldVolume {
    pub fn new(size: usize, holds: fn(&Request) -> bool) -> Arc<Self> {
        let state = Mutex::new(State { bytes: vec![0; size], ..State::default() });
        Arc::new(HeldVolume { state, changed: Condvar::new(), holds })
    }

    fn carry_out(&self, held: Held) {
        let answer = {
            let bytes = &mut self.state.lock().unwrap().bytes;
            match &held.request {
                Request::Read { offset, len } => {
                    let from = usize::try_from(*offset).unwrap();
                    Ok(Bytes::copy_from_slice(&bytes[from..from + *len as usize]))
                }
                Request::Write { offset, data, .. } => {
                    let from = usize::try_from(*offset).unwrap();
                    bytes[from..from + data.len()].copy_from_slice(data);
                    Ok(Bytes::new())
                }
                Request::WriteZeroes { fast: true, .. } => Err(Failure::NotSupported),
                _ => Ok(Bytes::new()),
            }
        };
        held.reply.complete(answer);
    }

    /// Waits until this many requests are held.
    #[track_caller]
    pub fn wait_held(&self, count: usize) {
        let state = self.state.lock().unwrap();
        let (state, _) =
            self.changed.wait_timeout_while(state, PATIENCE, |state| state.held.len() < count).unwrap();
        assert!(state.held.len() >= count, "{} of {count} requests are held", state.held.len());
    }

    /// Number of requests that are held.
    pub fn held(&self) -> usize {
        self.state.lock().unwrap().held.len()
    }

    /// Lets the oldest go.
    pub fn release(&self) {
        let held = self.state.lock().unwrap().held.remove(0);
        self.carry_out(held);
    }

    /// Lets all go.
    pub fn release_all(&self) {
        let all = std::mem::take(&mut self.state.lock().unwrap().held);
        all.into_iter().for_each(|held| self.carry_out(held));
    }

    /// Forgets the oldest without an answer.
    pub fn forget(&self) {
        drop(self.state.lock().unwrap().held.remove(0));
    }

    /// Every request that came, in order.
    pub fn log(&self) -> Vec<Request> {
        self.state.lock().unwrap().log.clone()
    }

    /// How many came together each time.
    pub fn batches(&self) -> Vec<usize> {
        self.state.lock().unwrap().batches.clone()
    }
}

impl Volume for HeldVolume {
    fn size(&self) -> u64 {
        self.state.lock().unwrap().bytes.len() as u64
    }

    fn submit(&self, request: Request, reply: Reply) {
        self.state.lock().unwrap().log.push(request.clone());
        let held = Held { request, reply };
        if (self.holds)(&held.request) {
            self.state.lock().unwrap().held.push(held);
            self.changed.notify_all();
        } else {
            self.carry_out(held);
        }
    }

    fn submit_all(&self, requests: &mut Vec<(Request, Reply)>) {
        if !requests.is_empty() {
            self.state.lock().unwrap().batches.push(requests.len());
        }
        requests.drain(..).for_each(|(request, reply)| self.submit(request, reply));
    }
}
