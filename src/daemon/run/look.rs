//! Looks at the machine: its addresses, and whether the kernel module is loaded.
//!
//! Both ask the system, which may be slow or never answer: each look runs on a thread of its own and comes back as a
//! message. The timer thread asks and goes on; a look that is overdue leaves everything as it is.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use log::{Level, error, info, warn};

use super::{Coordinator, has_stand_ins, owner};
use crate::control::{Wait, decimal};
use crate::daemon::core::{Action, Event, Moment};
use crate::daemon::kmod::{self, Missing};
use crate::daemon::server::Names;
use crate::{limited, sys};

/// Time after which a look is reported as overdue: both take milliseconds on a healthy machine.
const OVERDUE: Duration = Duration::from_secs(3);
/// Time between two looks for an address that is waited for, where the system reports no change of addresses.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The result of a look.
pub(super) enum Seen {
    /// Every address of the machine, each with true if it can be bound already.
    Addresses(io::Result<Vec<(IpAddr, bool)>>),
    Modules(Result<(), Missing>),
}

/// A thread that looks on request.
struct Looker {
    ask: Sender<()>,
    /// The time of the request that has no answer yet, and true if that was reported as overdue.
    asked: Option<(Instant, bool)>,
    what: &'static str,
}

impl Looker {
    fn start(
        name: &str,
        what: &'static str,
        seen: Sender<Seen>,
        mut look: impl FnMut() -> Seen + Send + 'static,
    ) -> Result<Self, String> {
        // One more than is at work, so that the next look sees a change during this one.
        let (ask, asked) = bounded(1);
        let job = move || {
            while asked.recv().is_ok() {
                if seen.send(look()).is_err() {
                    return;
                }
            }
        };
        sys::spawn(name, job).map_err(|error| format!("cannot start the {name} thread: {error}"))?;
        Ok(Looker { ask, asked: None, what })
    }

    /// Looks at the machine's addresses.
    fn addresses(seen: Sender<Seen>) -> Result<Self, String> {
        Self::start("addresses", "the addresses of this machine", seen, || Seen::Addresses(addresses()))
    }

    /// Looks for the kernel module in this module list.
    fn modules(list: PathBuf, seen: Sender<Seen>) -> Result<Self, String> {
        Self::start("modules", "the list of kernel modules", seen, move || Seen::Modules(kmod::check(&list)))
    }

    /// Requests a look; returns at once. Reports once that an answer is overdue.
    fn ask(&mut self) {
        let _ = self.ask.try_send(());
        let (since, told) = self.asked.get_or_insert((Instant::now(), false));
        if !*told && since.elapsed() >= OVERDUE {
            *told = true;
            warn!("the system does not answer for {}: all stays as it is until it does", self.what);
        }
    }

    /// Returns true if an answer is missing and was not yet reported as overdue.
    fn is_untold(&self) -> bool {
        self.asked.is_some_and(|(_, told)| !told)
    }

    fn answered(&mut self) {
        if let Some((since, true)) = self.asked.take() {
            let after = decimal(since.elapsed().as_secs_f64(), 0);
            info!("the system answered for {} after {after} s", self.what);
        }
    }

    /// Returns the name of the look if its answer is overdue.
    fn overdue(&self) -> Option<String> {
        let (since, _) = self.asked?;
        (since.elapsed() >= OVERDUE).then(|| format!("the system does not answer for {}", self.what))
    }
}

/// The state of the machine, and the threads that look at it.
pub(super) struct Machine {
    address_looker: Looker,
    module_looker: Option<Looker>,
    /// The addresses at the last look, each with true if it can be bound.
    addresses: Vec<(IpAddr, bool)>,
    /// The time of that look.
    pub looked: Moment,
    /// Own addresses that the machine does not have yet, in words.
    missing: Vec<String>,
    /// Addresses at which listening fails for now, with the reason.
    unopened: BTreeMap<SocketAddr, String>,
    /// The names of the configuration at the start.
    names: Arc<Names>,
}

impl Machine {
    /// Starts the looking threads; their results come as messages. `modules` is the module list to look at.
    ///
    /// # Errors
    /// A sentence for the operator: the system refused another thread.
    pub fn start(modules: Option<PathBuf>, names: Arc<Names>) -> Result<(Self, Receiver<Seen>), String> {
        let (see, seen) = unbounded();
        let machine = Machine {
            address_looker: Looker::addresses(see.clone())?,
            module_looker: modules.map(|list| Looker::modules(list, see)).transpose()?,
            addresses: Vec::new(),
            looked: Moment::ZERO,
            missing: Vec::new(),
            unopened: BTreeMap::new(),
            names,
        };
        Ok((machine, seen))
    }

    /// Returns true if the daemon looks for the kernel module.
    pub fn checks_modules(&self) -> bool {
        self.module_looker.is_some()
    }

    /// Requests a look at the addresses.
    pub fn look_at_addresses(&mut self) {
        self.address_looker.ask();
    }

    /// Requests a look for the kernel module.
    pub fn look_for_module(&mut self) {
        if let Some(looker) = &mut self.module_looker {
            looker.ask();
        }
    }

    /// Returns the time of the next look at the addresses, if one of them or an answer is waited for.
    pub fn next_look(&self) -> Option<Moment> {
        let waits = !self.missing.is_empty() || self.address_looker.is_untold();
        waits.then_some(self.looked + LOOK_AGAIN)
    }
}

fn addresses() -> io::Result<Vec<(IpAddr, bool)>> {
    let interfaces = if_addrs::get_if_addrs()?;
    Ok(interfaces.iter().map(if_addrs::Interface::ip).map(|ip| (ip, is_ready(ip))).collect())
}

/// Returns true if a held address can be bound. An IPv6 address cannot be bound while the system still checks that no
/// other machine has it; the address watch reports the end of that.
fn is_ready(held: IpAddr) -> bool {
    let refused = |error: io::Error| error.kind() == io::ErrorKind::AddrNotAvailable;
    held.is_ipv4() || !UdpSocket::bind((held, 0)).is_err_and(refused)
}

impl Coordinator {
    /// Handles the result of a look.
    pub(super) fn on_seen(&mut self, seen: Seen, actions: &mut Vec<Action>) {
        match seen {
            Seen::Addresses(found) => {
                self.machine.address_looker.answered();
                self.machine.looked = self.now();
                match found {
                    Ok(addresses) => {
                        self.machine.addresses = addresses;
                        self.tell_missing();
                        let ready = self.machine.addresses.iter().filter(|(_, ready)| *ready);
                        let addrs = ready.map(|(addr, _)| *addr).collect();
                        self.core.handle(self.now(), Event::AddressesHeld { addrs }, actions);
                    }
                    Err(error) => limited!(
                        Level::Error,
                        ("addresses", 0),
                        "cannot list this machine's addresses, log ownership stays as it is: {error}"
                    ),
                }
            }
            Seen::Modules(found) => {
                self.machine.module_looker.iter_mut().for_each(Looker::answered);
                match found {
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
    }

    /// Logs once which of the daemon's own addresses are missing, and when they are there.
    fn tell_missing(&mut self) {
        let missing: Vec<String> = owner::own_addresses(&self.config)
            .filter_map(|(addr, what)| {
                let found = self.machine.addresses.iter().find(|(held, _)| *held == addr);
                match found {
                    Some((_, true)) => None,
                    Some((_, false)) => Some(format!("{addr} ({what}) is tentative")),
                    // The machine has all of 127.0.0.0/8, though no interface lists it.
                    None if addr.is_loopback() || addr.is_unspecified() => None,
                    None => Some(format!("{addr} ({what}) is on no interface of this machine")),
                }
            })
            .collect();
        if missing == self.machine.missing {
            return;
        }
        for gone in self.machine.missing.iter().filter(|gone| !missing.contains(gone)) {
            info!("no longer waiting: address {gone}");
        }
        for news in missing.iter().filter(|news| !self.machine.missing.contains(news)) {
            warn!("waiting: address {news}");
        }
        self.machine.missing = missing;
        self.tell_status();
    }

    /// Logs once at which addresses listening fails for now, and when it works again.
    pub(super) fn tell_unopened(&mut self, unopened: BTreeMap<SocketAddr, String>) {
        for addr in self.machine.unopened.keys().filter(|addr| !unopened.contains_key(addr)) {
            info!("no longer waiting for {addr}: it is listened at, or need not be");
        }
        for (_, why) in unopened.iter().filter(|(addr, why)| self.machine.unopened.get(addr) != Some(why)) {
            warn!("{why}; trying again");
        }
        self.machine.unopened = unopened;
        self.tell_status();
    }

    /// Returns the conditions that are waited for.
    pub(super) fn waits(&self) -> Vec<Wait> {
        let overdue = [Some(&self.machine.address_looker), self.machine.module_looker.as_ref()];
        let overdue = overdue.into_iter().flatten().filter_map(Looker::overdue);
        let missing = self.machine.missing.iter().map(|missing| Wait::Address(missing.clone()));
        let unknown = if has_stand_ins(&self.config) { self.machine.names.missing() } else { Vec::new() };
        let unknown =
            unknown.into_iter().map(|name| format!("no name server has given an address for {name} yet"));
        missing
            .chain(self.machine.unopened.values().cloned().chain(overdue).chain(unknown).map(Wait::Other))
            .collect()
    }
}
