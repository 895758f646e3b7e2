//! The connection states, for a command whose own thread is busy on the data link.
//!
//! A thread of its own drains the meta link. When a peer that the command needs disconnects, that thread
//! ends both links, so that the command's blocking read returns. It must never wait for the command. Used
//! by every command but `state`.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::link::Link;
use super::{Failure, spawn};
use crate::attach::{ConnState, States};
use crate::attach::{Group, Peer};

/// Longest time until the first connection state: the daemon sends it as soon as a program has attached.
const FIRST_LIMIT: Duration = Duration::from_secs(10);

/// Longest time from the first state until the state of a resource's sites.
const SITES_LIMIT: Duration = Duration::from_secs(1);

/// The connection states that one probe has received.
pub struct Watch {
    link: Link,
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Default)]
struct Seen {
    states: States,
    needed: Option<Peer>,
    end: Option<Failure>,
}

impl Seen {
    /// Takes over new states; returns the needed peer if it is gone.
    fn update(&mut self, states: &States) -> Option<Peer> {
        self.states = states.clone();
        self.needed.filter(|peer| states.facing(*peer).is_none())
    }
}

impl Watch {
    /// Starts the thread and waits for the first state of the group; also returns the own id in that group.
    /// `report` is called with every state of the group, the first one included.
    ///
    /// Fails when the daemon sends no state of the group: then it has no runsite of that resource.
    pub fn start(
        link: &Link,
        group: Group,
        mut report: impl FnMut(ConnState) + Send + 'static,
    ) -> Result<(Arc<Watch>, u8), Failure> {
        let watch = Arc::new(Watch { link: link.clone(), seen: Mutex::default(), changed: Condvar::new() });
        let view = Arc::clone(&watch);
        spawn("meta", move || {
            let why = view.link.each_state(|states| {
                let gone = view.seen().update(states);
                view.changed.notify_all();
                if let Some(state) = states.0.get(&group) {
                    report(*state);
                }
                match gone {
                    None => Ok(()),
                    Some(peer) => Err(Failure::Failed(format!("the connection to {peer} was lost"))),
                }
            });
            view.seen().end = Some(why);
            view.changed.notify_all();
        })?;
        watch.first(Group::Nodes, FIRST_LIMIT)?;
        let own = watch.first(group, SITES_LIMIT)?;
        Ok((watch, own))
    }

    /// Waits for the first state of the group; returns the own id in it.
    fn first(&self, group: Group, limit: Duration) -> Result<u8, Failure> {
        let own = self.wait(Some(Instant::now() + limit), |seen| seen.states.own(group))?;
        own.ok_or_else(|| {
            self.link.end(Failure::Failed(match group {
                Group::Nodes => format!("the daemon sent no connection state for {} s", limit.as_secs()),
                Group::Sites(resource) => {
                    format!("the daemon at {} has no runsite of {resource}", self.link.server())
                }
            }))
        })
    }

    /// Returns the own id in the group, if the daemon has sent a state of the group.
    pub fn own(&self, group: Group) -> Option<u8> {
        self.seen().states.own(group)
    }

    /// Waits until the peer is connected; returns the own id in its group, or `None` when the deadline (`None`
    /// = never) passes first.
    pub fn connected(&self, peer: Peer, deadline: Option<Instant>) -> Result<Option<u8>, Failure> {
        self.wait(deadline, |seen| seen.states.facing(peer))
    }

    /// Does the same as [`Self::connected`]; from then on the loss of this peer ends both links.
    pub fn require(&self, peer: Peer, deadline: Option<Instant>) -> Result<Option<u8>, Failure> {
        self.wait(deadline, |seen| {
            let own = seen.states.facing(peer)?;
            seen.needed = Some(peer);
            Some(own)
        })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `found` returns a value; `None` at the deadline.
    fn wait<T>(
        &self,
        deadline: Option<Instant>,
        mut found: impl FnMut(&mut Seen) -> Option<T>,
    ) -> Result<Option<T>, Failure> {
        let mut seen = self.seen();
        loop {
            if let Some(value) = found(&mut seen) {
                return Ok(Some(value));
            }
            if let Some(why) = &seen.end {
                return Err(why.clone());
            }
            seen = match deadline {
                None => self.changed.wait(seen).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    self.changed.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Mask, ResourceId};

    #[test]
    fn only_the_going_of_the_needed_peer_counts() {
        let sites = Group::Sites(ResourceId::try_from(3).unwrap());
        let needed = Peer { group: sites, id: 2 };
        let mut seen = Seen { needed: Some(needed), ..Seen::default() };
        let mut report = |nodes, up| {
            let state = |up| ConnState { own: 0, up: Mask(up) };
            seen.update(&States([(Group::Nodes, state(nodes)), (sites, state(up))].into()))
        };
        assert_eq!(report(0b0100, 0b0110), None);
        assert_eq!(report(0b0100, 0b0100), None, "another site went");
        assert_eq!(report(0b0000, 0b0100), None, "a node went");
        assert_eq!(report(0b0100, 0b0000), Some(needed));
    }
}
