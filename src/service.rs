//! Messages to the service manager (protocol of sd_notify): ready, reloading, stopping, a line of status, and signs of
//! life.
//!
//! Only the notifier's own thread writes to the service manager's socket, since a manager that does not read it
//! blocks the writer. A message that could not be written yet is replaced by a newer one of its kind, so that at most
//! one of each waits; READY and RELOADING keep their order. Without a service manager none of it does anything. Used
//! by `hadmd` and `hadm-nbd`.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use log::Level;
use rustix::time::{ClockId, clock_gettime};

use crate::limited;
use crate::sys;

/// The variable with the address of the service manager's socket.
const SOCKET: &str = "NOTIFY_SOCKET";

/// The shortest time between two signs of life: for a watchdog that allows less, the processor's time is not there.
const SHORTEST: Duration = Duration::from_millis(10);

/// Returns half of the time that the service manager's watchdog allows, if this process has one.
pub fn watchdog() -> Option<Duration> {
    let pid = env::var("WATCHDOG_PID").ok();
    half_of(&env::var("WATCHDOG_USEC").ok()?, pid.as_deref(), std::process::id())
}

/// `pid` is the process that the watchdog is for; without it, every one.
fn half_of(usec: &str, pid: Option<&str>, own: u32) -> Option<Duration> {
    let usec: u64 = usec.parse().ok().filter(|usec| *usec > 0)?;
    let is_ours = pid.is_none_or(|pid| pid.parse() == Ok(own));
    is_ours.then(|| Duration::from_micros(usec / 2).max(SHORTEST))
}

/// Time until READY is written again after the system had no descriptor for it.
const RETRY: Duration = Duration::from_secs(1);

/// A message to the service manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// The daemon is ready, for the first time or again after a reload.
    Ready,
    /// A reload begins.
    Reloading,
    /// The daemon ends.
    Stopping,
    /// A line of status.
    Status(String),
    /// A sign of life.
    Alive,
}

/// Messages that wait to be written: at most two of `Ready` and one of each other kind.
#[derive(Default)]
struct Pending {
    news: Vec<News>,
    writing: bool,
}

impl Pending {
    /// Adds a message, and removes those that it makes out of date.
    fn add(&mut self, news: News) {
        match &news {
            // The first READY stays if a reload follows it: the service manager starts other services with it.
            News::Reloading => {
                let first = self.news.iter().position(|waiting| *waiting == News::Reloading);
                let from = first.unwrap_or(self.news.len());
                let mut at = 0;
                self.news.retain(|waiting| {
                    at += 1;
                    at <= from || !matches!(waiting, News::Ready | News::Reloading)
                });
            }
            News::Ready if self.news.iter().rev().find(|waiting| is_state(waiting)) == Some(&News::Ready) => {
                return;
            }
            News::Ready | News::Stopping => {}
            News::Status(_) => self.news.retain(|waiting| !matches!(waiting, News::Status(_))),
            News::Alive => self.news.retain(|waiting| *waiting != News::Alive),
        }
        self.news.push(news);
    }
}

fn is_state(news: &News) -> bool {
    matches!(news, News::Ready | News::Reloading)
}

/// The channel to the service manager; never waits for it.
#[derive(Clone, Default)]
pub struct Notifier {
    /// Locked for a moment only, and never while the socket is written to.
    pending: Arc<(Mutex<Pending>, Condvar)>,
    /// True if there is a service manager, and a thread that writes to it.
    on: bool,
}

impl Notifier {
    /// Starts the thread that writes, if there is a service manager.
    ///
    /// # Errors
    /// A sentence for the operator: the system refused another thread.
    pub fn start() -> Result<Self, String> {
        let on = std::env::var_os(SOCKET).is_some_and(|place| !place.is_empty());
        let notifier = Notifier { on, ..Notifier::default() };
        if on {
            let own = notifier.clone();
            sys::spawn("notify", move || own.write()).map_err(|error| {
                format!("cannot start the thread that tells the service manager: {error}")
            })?;
        }
        Ok(notifier)
    }

    /// Has a message sent to the service manager; returns at once.
    pub fn tell(&self, news: News) {
        if self.on {
            let (_, changed) = &*self.pending;
            self.lock().add(news);
            changed.notify_all();
        }
    }

    /// Waits until all messages are written, but not longer than `limit`: for the end of the process.
    pub fn flush(&self, limit: Duration) {
        if self.on {
            let (_, changed) = &*self.pending;
            let busy = |pending: &mut Pending| pending.writing || !pending.news.is_empty();
            drop(changed.wait_timeout_while(self.lock(), limit, busy));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes one message after the other, for as long as the process lives.
    fn write(&self) {
        let (_, changed) = &*self.pending;
        loop {
            let idle = |pending: &mut Pending| pending.news.is_empty();
            let waited = changed.wait_while(self.lock(), idle);
            let mut pending = waited.unwrap_or_else(PoisonError::into_inner);
            let news = pending.news.remove(0);
            pending.writing = true;
            drop(pending);
            let said = say(&news);
            if let Err(error) = &said {
                limited!(Level::Warn, ("notify", 0), "cannot notify the service manager: {error}");
            }
            let short = said.is_err_and(|error| sys::is_shortage(&error));
            let mut pending = self.lock();
            pending.writing = false;
            // No message in the queue can be older than it. A status or a sign of life comes again by itself.
            if short && is_state(&news) {
                pending.news.insert(0, news);
                drop(pending);
                std::thread::park_timeout(RETRY);
                continue;
            }
            drop(pending);
            changed.notify_all();
        }
    }
}

/// Writes to the service manager's socket; blocks while its queue is full.
fn say(news: &News) -> io::Result<()> {
    let message = match news {
        News::Ready => "READY=1".into(),
        News::Reloading => {
            let now = clock_gettime(ClockId::Monotonic);
            format!("RELOADING=1\nMONOTONIC_USEC={}", now.tv_sec * 1_000_000 + now.tv_nsec / 1000)
        }
        News::Stopping => "STOPPING=1".into(),
        News::Status(line) => format!("STATUS={line}"),
        News::Alive => "WATCHDOG=1".into(),
    };
    let place = env::var_os(SOCKET).unwrap_or_default();
    UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address(&place)?).map(drop)
}

/// Returns the socket's address: a path, or after `@` a name of the abstract kind.
fn address(place: &OsStr) -> io::Result<SocketAddr> {
    match place.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(place),
        _ => {
            let why = format!("{SOCKET} is {place:?}: it has to be an absolute path, or a name after @");
            Err(io::Error::new(io::ErrorKind::InvalidInput, why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::News::{Alive, Ready, Reloading, Status, Stopping};
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_watchdog_of_no_time_is_none_and_one_of_little_time_does_not_spin() {
        let half = |usec, pid| half_of(usec, pid, 7);
        assert_eq!(half("30000000", None), Some(Duration::from_secs(15)));
        assert_eq!(half("30000000", Some("7")), Some(Duration::from_secs(15)));
        assert_eq!(half("30000000", Some("8")), None);
        for none in ["0", "", "-1", "x", "18446744073709551616"] {
            assert_eq!(half(none, None), None, "{none}");
        }
        assert_eq!(half("1", None), Some(SHORTEST));
        assert!(Instant::now().checked_add(half("18446744073709551615", None).unwrap()).is_some());
    }

    #[test]
    fn what_waits_is_replaced_by_its_kind_and_ready_is_never_lost() {
        let mut pending = Pending::default();
        let status = |n: u32| Status(n.to_string());
        for n in 0..100 {
            for news in [Ready, status(n), Alive, Reloading, status(n + 1), Ready, Alive] {
                pending.add(news);
            }
            assert!(pending.news.len() <= 5, "{:?}", pending.news);
        }
        pending.add(Stopping);
        assert_eq!(pending.news, [Ready, Reloading, status(100), Ready, Alive, Stopping]);
    }
}
