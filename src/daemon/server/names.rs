//! Names on their way to addresses: each is looked up on a thread of its own, since a name server may never answer.
//!
//! A caller waits as long as it likes and goes on without; the answer is kept for the next call. Names that a name
//! server does not answer for now are looked up again with a later call.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::config::stand_in;
use crate::sys;

/// Most look-ups at the same time. A silent name server holds each of them for some 10 s.
const AT_ONCE: usize = 8;
/// Longest time for the names of one file together, if a name server answers for none of several.
const LIMIT: Duration = Duration::from_secs(60);
/// Longest time for all names of a file at the start, after which those without an answer get a placeholder.
const GRACE: Duration = Duration::from_millis(500);
/// Longest name in bytes that name servers know.
const NAME_MAX: usize = 253;

/// The state of a look-up.
#[derive(Clone)]
enum State {
    Asked,
    Found(Vec<IpAddr>),
    /// It failed for good, in words.
    Failed(String),
    /// The name server may answer later: the reason, and the time of the look-up.
    NotNow(String, Instant),
}

#[derive(Default)]
struct Known {
    names: BTreeMap<String, State>,
    /// The placeholder address of each name, in the order in which they were first needed.
    stand_ins: BTreeMap<String, IpAddr>,
    /// True if a name that does not exist counts as one without an answer, too: the daemon runs already.
    patient: bool,
    /// Names that wait for a thread.
    queued: Vec<String>,
    threads: usize,
    given_up: bool,
}

/// The names of one configuration file.
#[derive(Default)]
pub struct Names {
    /// True if a name without an answer gets a placeholder address, so that the rest of the file can be used.
    lenient: bool,
    /// Locked for a moment only, and never during a look-up.
    known: Arc<(Mutex<Known>, Condvar)>,
}

/// The answer for a name.
pub enum Answer {
    /// Its addresses.
    Addresses(Vec<IpAddr>),
    /// It has none and never will by itself: the reason, in words.
    None(String),
    /// Nothing yet: the reason, in words.
    NotYet(String),
}

impl Names {
    /// Returns the answer for a name that is there by `until`; starts a look-up if there is none, or if the last one
    /// failed for now and is older than `retry`.
    pub fn answer(&self, name: &str, until: Instant, retry: Duration) -> Answer {
        if name.len() > NAME_MAX {
            return Answer::None("no name is so long".into());
        }
        let (_, changed) = &*self.known;
        let mut state = self.lock();
        match state.names.get(name) {
            Some(State::NotNow(_, at)) if at.elapsed() >= retry => self.look_up(&mut state, name),
            None => self.look_up(&mut state, name),
            Some(_) => {}
        }
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match state.names.get(name) {
                Some(State::Found(found)) => return Answer::Addresses(found.clone()),
                Some(State::Failed(why)) => return Answer::None(why.clone()),
                Some(State::NotNow(why, _)) => return Answer::NotYet(why.clone()),
                Some(State::Asked) | None if left.is_zero() || state.given_up => {
                    return Answer::NotYet("the name server does not answer".into());
                }
                Some(State::Asked) | None => {}
            }
            state = changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Returns names for the start: those without an answer in time get one placeholder address each.
    pub fn lenient() -> Self {
        Names { lenient: true, ..Names::default() }
    }

    /// Returns a resolver that waits for the name server, but not longer than the limit for all names of a file.
    pub fn resolver(&self) -> impl Fn(&str) -> io::Result<Vec<IpAddr>> + '_ {
        // A reload gets one answer of a name server; at the start it is asked again by every attempt.
        let (limit, retry) = if self.lenient { (GRACE, GRACE) } else { (LIMIT, LIMIT) };
        let until = Instant::now() + limit;
        move |name| match self.answer(name, until, retry) {
            Answer::Addresses(found) => Ok(found),
            Answer::NotYet(_) if self.lenient => Ok(vec![self.stand_in(name)]),
            Answer::None(_) if self.lock().patient => Ok(vec![self.stand_in(name)]),
            Answer::None(why) | Answer::NotYet(why) => Err(io::Error::other(why)),
        }
    }

    /// Returns the placeholder address of a name: the same each time, and no other name's.
    fn stand_in(&self, name: &str) -> IpAddr {
        let stand_ins = &mut self.lock().stand_ins;
        let number = u16::try_from(stand_ins.len()).unwrap_or(u16::MAX);
        *stand_ins.entry(name.into()).or_insert_with(|| stand_in(number))
    }

    /// Makes a name that does not exist wait like one without an answer, from now on.
    pub fn be_patient(&self) {
        self.lock().patient = true;
    }

    /// Returns the names without an answer, in alphabetical order.
    pub fn missing(&self) -> Vec<String> {
        let state = self.lock();
        let missing = state.names.iter().filter(|(_, state)| !matches!(state, State::Found(_)));
        missing.map(|(name, _)| name.clone()).collect()
    }

    /// Starts another look-up of a name if its last answer is older than `age`; returns at once.
    pub fn ask_again(&self, name: &str, age: Duration) {
        let mut state = self.lock();
        if let Some(State::Failed(why)) = state.names.get(name).cloned() {
            let at = Instant::now();
            state.names.insert(name.into(), State::NotNow(why, at));
        }
        drop(state);
        self.answer(name, Instant::now(), age);
    }

    /// Lets every waiting caller go on without an answer: its request is out of date.
    pub fn give_up(&self) {
        self.lock().given_up = true;
        self.known.1.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a thread look a name up, now or when one is free.
    fn look_up(&self, state: &mut Known, name: &str) {
        state.names.insert(name.into(), State::Asked);
        state.queued.push(name.into());
        if state.threads == AT_ONCE {
            return;
        }
        let own = Arc::clone(&self.known);
        match sys::spawn("names", move || work(&own)) {
            Ok(()) => state.threads = state.threads.saturating_add(1),
            Err(error) if state.threads == 0 => {
                state.queued.clear();
                state.names.insert(name.into(), State::NotNow(error.to_string(), Instant::now()));
            }
            // A thread that runs takes it from the queue.
            Err(_) => {}
        }
    }
}

/// Looks up what is queued.
fn work(known: &(Mutex<Known>, Condvar)) {
    let lock = || known.0.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let mut state = lock();
        let Some(name) = state.queued.pop() else {
            state.threads = state.threads.saturating_sub(1);
            return;
        };
        drop(state);
        let found = (name.as_str(), 0).to_socket_addrs().map(|found| found.map(|addr| addr.ip()).collect());
        let found = match found {
            Ok(found) => State::Found(found),
            Err(error) if passes(&error) => State::NotNow(error.to_string(), Instant::now()),
            Err(error) => State::Failed(error.to_string()),
        };
        lock().names.insert(name, found);
        known.1.notify_all();
    }
}

/// Returns true if a failed look-up says nothing about the name: no name server answered, or this machine is short of
/// something. Neither std nor the system has a number for it: these are the words of glibc and musl.
fn passes(error: &io::Error) -> bool {
    let words = error.to_string();
    sys::is_shortage(error) || ["Temporary failure", "Try again"].iter().any(|text| words.contains(text))
}
