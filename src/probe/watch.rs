//! What is known of the connections, for a command whose own thread is busy on the data link.
//!
//! A thread of its own drains the meta link. When a node that the command cannot do without goes, that thread
//! ends both links, so that the command's blocking read comes back. It must never wait for the command. Used
//! by `recv`, `echo` and `latency`.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::wire::Mask;

use super::link::{ConnState, Link};
use super::{Failure, nodes, spawn, without};

/// How long the first connection state may take: the daemon sends it as soon as it has attached someone.
const FIRST_LIMIT: Duration = Duration::from_secs(10);

/// The view of one probe.
pub struct Watch {
    link: Link,
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Default)]
struct Seen {
    state: Option<ConnState>,
    needed: Mask,
    end: Option<Failure>,
}

impl Seen {
    /// Takes over a new state; the result are the needed nodes that are gone.
    fn update(&mut self, state: ConnState) -> Mask {
        let before = self.state.replace(state).map_or(Mask(0), |state| state.up);
        self.needed & without(before, state.up)
    }
}

impl Watch {
    /// Starts the thread and waits for the first state; also gives the own node's id.
    pub fn start(link: &Link) -> Result<(Arc<Watch>, u8), Failure> {
        let watch = Arc::new(Watch { link: link.clone(), seen: Mutex::default(), changed: Condvar::new() });
        let told = Arc::clone(&watch);
        spawn("meta", move || {
            let why = told.link.each_state(|state| {
                let gone = told.seen().update(state);
                told.changed.notify_all();
                if gone.is_empty() {
                    Ok(())
                } else {
                    Err(Failure::Failed(format!("the connection to {} was lost", nodes(gone))))
                }
            });
            told.seen().end = Some(why);
            told.changed.notify_all();
        })?;
        let own = watch.wait(Some(Instant::now() + FIRST_LIMIT), |seen| seen.state.map(|state| state.own))?;
        let own = own.ok_or_else(|| {
            Failure::Failed(format!("the daemon sent no connection state for {} s", FIRST_LIMIT.as_secs()))
        })?;
        Ok((watch, own))
    }

    /// Waits until the node is connected; `false` when the deadline (`None` = never) passes first.
    pub fn connected(&self, node: u8, deadline: Option<Instant>) -> Result<bool, Failure> {
        self.connected_and(deadline, node, |_| ())
    }

    /// Like [`Self::connected`], and from then on the loss of this node ends both links.
    pub fn require(&self, node: u8, deadline: Option<Instant>) -> Result<bool, Failure> {
        self.connected_and(deadline, node, |seen| seen.needed = Mask::of(node))
    }

    fn connected_and(
        &self,
        deadline: Option<Instant>,
        node: u8,
        then: impl Fn(&mut Seen),
    ) -> Result<bool, Failure> {
        let found = self
            .wait(deadline, |seen| seen.state.filter(|state| state.up.contains(node)).map(|_| then(seen)))?;
        Ok(found.is_some())
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `found` gives something; `None` at the deadline.
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

    #[test]
    fn only_the_going_of_a_needed_node_counts() {
        let mut seen = Seen { needed: Mask::of(2), ..Seen::default() };
        let mut told = |up| seen.update(ConnState { own: 0, up: Mask(up) });
        assert_eq!(told(0b0010), Mask(0), "not connected yet is not gone");
        assert_eq!(told(0b0110), Mask(0));
        assert_eq!(told(0b0100), Mask(0), "another node went");
        assert_eq!(told(0b0000), Mask::of(2));
    }
}
