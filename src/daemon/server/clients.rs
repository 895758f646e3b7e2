//! The places at the control socket: which client gets one, keeps one, and has left one.
//!
//! No user can take all of them from the others, or any of the last few from root and the daemon's own user. A client
//! that has hung up leaves its place at once, also while it waits for an event. Used by the thread that accepts; the
//! clients' own threads only report that they have asked something.

use std::collections::HashMap;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Uid, geteuid};

use super::{MAX_CLIENTS, MAX_OF_A_USER, MAX_OTHERS};

/// One client with a place.
struct Client {
    stream: Arc<UnixStream>,
    uid: Uid,
    asked: Arc<AtomicBool>,
    /// Its thread waits for this to be dropped.
    _gone: Sender<()>,
}

/// The client's place, for its thread.
pub(super) struct Place {
    pub stream: Arc<UnixStream>,
    pub uid: Uid,
    /// Set when the client has asked something: until then another client may get the place.
    pub asked: Arc<AtomicBool>,
    /// Disconnected when the client has hung up.
    pub gone: Receiver<()>,
}

impl Drop for Place {
    fn drop(&mut self) {
        // The accepting thread notices that.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// The clients, oldest first.
#[derive(Default)]
pub(super) struct Clients(Vec<Client>);

impl Clients {
    /// Waits for the next connection, at most about `limit`, and removes clients that hang up meanwhile; `false` if
    /// none comes.
    pub fn wait(&mut self, listener: &UnixListener, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        loop {
            let mut fds = vec![PollFd::new(listener, PollFlags::IN)];
            // A client that has only shut down its sending side has not hung up: poll reports a hang-up without being
            // asked for it.
            fds.extend(self.0.iter().map(|client| PollFd::new(&*client.stream, PollFlags::empty())));
            let left = until.saturating_duration_since(Instant::now());
            // A time that the system has no number for, or an interruption: it has looked at nothing.
            let looked = Timespec::try_from(left).is_ok_and(|left| poll(&mut fds, Some(&left)).is_ok());
            let mut quiet: Vec<bool> = fds.iter().map(|fd| !looked || fd.revents().is_empty()).collect();
            let comes = !quiet.remove(0);
            let mut quiet = quiet.into_iter();
            self.0.retain(|_| quiet.next().unwrap_or(true));
            if comes || left.is_zero() {
                return comes;
            }
        }
    }

    /// Returns a place for a client of this user, for which a client that never asked anything may have to go.
    ///
    /// # Errors
    /// The sentence with which the client is refused.
    pub fn admit(&mut self, stream: UnixStream, uid: Uid) -> Result<Place, (UnixStream, String)> {
        let silent = |client: &Client| !client.asked.load(Ordering::Relaxed);
        let users: Vec<_> = self.0.iter().map(|client| (client.uid, silent(client))).collect();
        match admission(&users, uid, geteuid()) {
            Ok(None) => {}
            Ok(Some(dropped)) => {
                let dropped = self.0.remove(dropped);
                let _ = dropped.stream.shutdown(Shutdown::Both);
            }
            Err(why) => return Err((stream, why)),
        }
        let (stream, asked, (alive, gone)) = (Arc::new(stream), Arc::default(), bounded(0));
        let place = Place { stream: Arc::clone(&stream), uid, asked: Arc::clone(&asked), gone };
        self.0.push(Client { stream, uid, asked, _gone: alive });
        Ok(place)
    }
}

/// Returns true if the user may use all places and change something.
pub(super) fn is_privileged(uid: Uid, own: Uid) -> bool {
    uid.is_root() || uid == own
}

/// Returns the index of the client that has to go for one more client of this user, if one has to. The others are
/// given with their users, and with true if they never asked anything, oldest first.
///
/// # Errors
/// The sentence with which the client is refused.
fn admission(users: &[(Uid, bool)], uid: Uid, own: Uid) -> Result<Option<usize>, String> {
    let is_other = |uid: Uid| !is_privileged(uid, own);
    let others = users.iter().filter(|(uid, _)| is_other(*uid)).count();
    let mut shares: HashMap<u32, usize> = HashMap::new();
    users.iter().for_each(|(uid, _)| *shares.entry(uid.as_raw()).or_default() += 1);
    let share = |uid: Uid| shares.get(&uid.as_raw()).copied().unwrap_or_default();
    let oldest = |may_go: &dyn Fn(Uid) -> bool| users.iter().position(|&(uid, silent)| silent && may_go(uid));
    if is_other(uid) {
        if share(uid) >= MAX_OF_A_USER {
            return oldest(&|other| other == uid)
                .map(Some)
                .ok_or_else(|| format!("{MAX_OF_A_USER} clients of this user are connected already"));
        }
        if others >= MAX_OTHERS || users.len() >= MAX_CLIENTS {
            let most = users.iter().map(|(uid, _)| *uid).filter(|uid| is_other(*uid)).map(share).max();
            let may_go = |uid| is_other(uid) && Some(share(uid)) == most;
            return oldest(&may_go).map(Some).ok_or_else(|| {
                format!("{others} clients are connected already, and the other places are root's")
            });
        }
        return Ok(None);
    }
    if users.len() < MAX_CLIENTS {
        return Ok(None);
    }
    let gone = oldest(&is_other).or_else(|| oldest(&|_| true));
    gone.map(Some).ok_or_else(|| format!("{MAX_CLIENTS} clients are connected already"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The daemon's own user.
    const OWN: u32 = 7;

    fn admission(users: &[(Uid, bool)], uid: Uid) -> Result<Option<usize>, String> {
        super::admission(users, uid, Uid::from_raw(OWN))
    }

    fn of(uid: u32, silent: bool, count: usize) -> Vec<(Uid, bool)> {
        vec![(Uid::from_raw(uid), silent); count]
    }

    #[test]
    fn nobody_takes_the_places_of_root_and_the_daemons_user() {
        let mut users = [of(1000, false, 8), of(1001, false, 4)].concat();
        for uid in [1000, 1001, 1002] {
            assert!(admission(&users, Uid::from_raw(uid)).is_err(), "{uid}");
        }
        for uid in [0, OWN, OWN, 0].map(Uid::from_raw) {
            assert_eq!(admission(&users, uid), Ok(None));
            users.push((uid, false));
        }
        assert_eq!(admission(&users, Uid::ROOT).unwrap_err(), "16 clients are connected already");
    }

    #[test]
    fn no_user_takes_the_places_of_all_others() {
        let users = of(1000, false, 8);
        assert!(admission(&users, Uid::from_raw(1000)).unwrap_err().contains("of this user"));
        assert_eq!(admission(&users, Uid::from_raw(1001)), Ok(None));
    }

    #[test]
    fn a_client_that_never_asked_has_to_go_first_of_all_an_unprivileged_one() {
        let users = [of(0, true, 10), of(1000, false, 1), of(1000, true, 5)].concat();
        assert_eq!(admission(&users, Uid::ROOT), Ok(Some(11)));
        assert_eq!(admission(&of(0, true, 16), Uid::ROOT), Ok(Some(0)));
        // Of the user with the most, and never root's.
        let users = [of(0, true, 4), of(1001, true, 5), of(1000, true, 7)].concat();
        assert_eq!(admission(&users, Uid::from_raw(1001)), Ok(Some(9)));
        let users = [of(1001, true, 8), of(1000, true, 4)].concat();
        assert_eq!(admission(&users, Uid::from_raw(1001)), Ok(Some(0)));
        assert!(admission(&of(0, true, 16), Uid::from_raw(1000)).is_err());
    }
}
