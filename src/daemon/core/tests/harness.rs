//! The harness of the core's tests: a core, its clock, and short names for events and actions.

use super::super::*;
use crate::wire::{NodeId, ResourceId, SiteId};

pub(super) fn accepted(epoch: Option<u64>) -> Via {
    Via::Accepted { epoch, source: [10, 0, 0, 3].into() }
}

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const PING: Duration = SECOND;
pub(super) const MAX: u32 = 3;

/// Called by node 2, the local one.
pub(super) const CALLED: u32 = 1;
/// Calls node 2.
pub(super) const CALLER: u32 = 3;

pub(super) fn node(id: u32) -> PeerKey {
    PeerKey::Node(NodeId::try_from(id).unwrap())
}

pub(super) fn site() -> PeerKey {
    PeerKey::Site(ResourceId::try_from(0).unwrap(), SiteId::try_from(0).unwrap())
}

/// A core with its clock.
pub(super) struct Harness {
    pub(super) core: Core,
    pub(super) now: Moment,
    pub(super) conns: u64,
}

impl Harness {
    pub(super) fn new(seed: u64) -> Self {
        let settings = Settings {
            peers: vec![(node(CALLED), Role::Caller), (node(CALLER), Role::Acceptor), (site(), Role::Caller)],
            resources: vec![(ResourceId::try_from(0).unwrap(), [10, 0, 0, 200].into())],
            ping_interval: PING,
            max_ping_count: MAX,
            slow_timeout: Duration::from_secs(10),
            kernel_users: Some([0].into()),
            check_modules: true,
            seed,
        };
        Harness { core: Core::new(settings, Moment::ZERO), now: Moment::ZERO, conns: 0 }
    }

    pub(super) fn handle(&mut self, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        self.core.handle(self.now, event, &mut out);
        out
    }

    /// Waits for this time without looking, then ticks once.
    pub(super) fn stall(&mut self, time: Duration) -> Vec<Action> {
        self.now += time;
        let mut out = Vec::new();
        self.core.tick(self.now, &mut out);
        out
    }

    /// Ticks in time until an action like this is decided, and returns all actions of that tick.
    pub(super) fn until(&mut self, like: impl Fn(&Action) -> bool) -> Vec<Action> {
        for _ in 0..10_000 {
            self.now = self.now.max(self.core.deadline());
            let mut out = Vec::new();
            self.core.tick(self.now, &mut out);
            assert!(self.core.deadline() > self.now, "the core spins");
            if out.iter().any(&like) {
                return out;
            }
        }
        panic!("never decided");
    }

    pub(super) fn conn(&mut self) -> ConnId {
        self.conns += 1;
        ConnId(self.conns)
    }

    pub(super) fn link(&mut self, peer: u32, class: Class, via: Via) -> (ConnId, Vec<Action>) {
        let conn = self.conn();
        (conn, self.handle(Event::LinkReady { peer: node(peer), class, conn, via }))
    }

    pub(super) fn next_dial(&mut self) -> (AttemptId, Moment) {
        let out = self.until(|action| matches!(action, Action::Dial { .. }));
        (dialed(&out).unwrap(), self.now)
    }

    /// Accepts both links of a caller.
    pub(super) fn accept(&mut self, epoch: u64) -> SessionId {
        self.link(CALLER, Class::Data, accepted(Some(epoch)));
        started(&self.link(CALLER, Class::Meta, accepted(Some(epoch))).1).unwrap()
    }

    pub(super) fn attach(&mut self) -> AttachId {
        for class in Class::BOTH {
            let conn = self.conn();
            let out = self.handle(Event::KernelHello { class, conn, uid: Some(0) });
            if let Some(Action::AttachKernel { attach, .. }) =
                out.iter().find(|action| matches!(action, Action::AttachKernel { .. }))
            {
                return *attach;
            }
        }
        panic!("no kernel module attached");
    }

    pub(super) fn ack(&mut self, session: SessionId, count: u32) {
        self.handle(Event::PingAcks { peer: node(CALLER), session, count });
    }
}

pub(super) fn dialed(out: &[Action]) -> Option<AttemptId> {
    out.iter().find_map(|action| match action {
        Action::Dial { attempt, .. } => Some(*attempt),
        _ => None,
    })
}

pub(super) fn started(out: &[Action]) -> Option<SessionId> {
    out.iter().find_map(|action| match action {
        Action::StartSession { session, .. } => Some(*session),
        _ => None,
    })
}

pub(super) fn pinged(out: &[Action]) -> Option<u32> {
    out.iter().find_map(|action| match action {
        Action::Ping { unanswered, .. } => Some(*unanswered),
        _ => None,
    })
}

pub(super) fn ended(out: &[Action]) -> Option<EndCause> {
    out.iter().find_map(|action| match action {
        Action::EndSession { cause, .. } => Some(cause.clone()),
        _ => None,
    })
}

/// Returns the nodes of each connection state that the kernel module gets.
pub(super) fn told(out: &[Action]) -> Vec<u32> {
    let told = out.iter().filter_map(|action| match action {
        Action::TellKernel { state } => Some(state.nodes.0),
        _ => None,
    });
    told.collect()
}

pub(super) fn lost(session: SessionId, peer: u32) -> Event {
    Event::SessionLost { peer: node(peer), session, cause: EndCause::Link(Class::Data, "gone".into(), None) }
}

/// Returns true if `wait` is `secs` with jitter.
pub(super) fn is_wait(wait: Duration, secs: f64) -> bool {
    (0.8 * secs..=1.2 * secs).contains(&wait.as_secs_f64())
}
