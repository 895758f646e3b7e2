//! The faults: drawn from the seed, one at a time, until everything is healed.
//!
//! Faults touch the surroundings of the cores only: machines, ways, threads, kernel modules, the operator.

use std::time::Duration;

use hadmd::daemon::core::Event;

use crate::node::{HeldOf, key};
use crate::trace::Note;
use crate::world::{Edit, NODES, Task, World};

const SECOND: Duration = Duration::from_secs(1);

impl World {
    /// One fault, and the next one later.
    pub fn inject(&mut self) {
        if !self.chaos() {
            return;
        }
        let wait = self.up_to(SECOND);
        self.later(wait, Task::Fault);
        let id = self.rng.usize(0..NODES);
        let other = (id + self.rng.usize(1..NODES)) % NODES;
        let mut time = self.up_to(SECOND * 5);
        if self.rng.u32(0..4) == 0 {
            time *= 6;
        }
        let what = match self.rng.u32(0..32) {
            0 | 1 => "kill",
            2 => "power loss",
            3 => "stop",
            4..=6 => "partition",
            7..=9 => "one-way loss",
            10..=13 => "stall",
            14 => "lost reports",
            15..=17 => "hello",
            18 | 19 => "kernel detach",
            20 => "kernel absence",
            21 => "second kernel",
            22 => "unwanted",
            23 | 24 => "failover",
            25 | 26 => "kernel stuck",
            27..=30 => "reload",
            _ => "flap",
        };
        if self.nodes[id].core.is_none() {
            return;
        }
        if what != "hello" {
            self.trace.note(self.now, id, Note::Fault(what, time));
        }
        match what {
            "kill" | "power loss" => self.kill(id, what == "power loss", time),
            "stop" if self.nodes[id].stalled.is_none() => {
                let event = if self.rng.bool() { Event::Stop } else { Event::ModuleGone };
                self.step(id, Some(event));
                self.later(time, Task::Start { node: id });
            }
            "partition" => self.partition(time),
            "one-way loss" => self.blocked_until[id][other] = self.now + time,
            "stall" => self.stall(id, time),
            "lost reports" => self.nodes[id].lose_reports_until = self.now + time,
            "hello" => self.hellos(id, other),
            "kernel detach" => self.detach(id),
            "kernel absence" => {
                self.detach(id);
                self.nodes[id].module.present = false;
            }
            "second kernel" => {
                let class = if self.rng.bool() { hadmd::wire::Class::Data } else { hadmd::wire::Class::Meta };
                let run = self.nodes[id].run;
                self.later(Duration::ZERO, Task::KernelHello { node: id, run, class });
            }
            "unwanted" => {
                let run = self.nodes[id].run;
                let peer = key(other);
                self.report(id, Event::Wanted { peer, wanted: false });
                self.later(time, Task::Report { node: id, run, event: Event::Wanted { peer, wanted: true } });
            }
            "failover" => {
                // The address leaves one machine and comes up at another, as failover software moves it.
                for node in &mut self.nodes {
                    let floats = node.id == id;
                    if node.floats != floats {
                        (node.floats, node.moved) = (floats, self.now);
                    }
                }
            }
            "kernel stuck" => self.nodes[id].module.stuck_until = self.now + time,
            "reload" => self.edit(id, other, time),
            "flap" => self.flap(id, other),
            _ => {}
        }
        // A module that was away comes back some day.
        let back = self.rng.usize(0..NODES);
        self.nodes[back].module.present = true;
    }

    /// The configuration file of a node changes, and later it is whole again.
    fn edit(&mut self, node: usize, other: usize, time: Duration) {
        let run = self.nodes[node].run;
        let edit = match self.rng.u32(0..6) {
            0..=2 => Edit::Remove(other),
            3 | 4 => Edit::Change(other),
            _ => Edit::NoResource,
        };
        self.at_process(node, Task::Reload { node, run, edit });
        self.later(time, Task::Reload { node, run, edit: Edit::Whole });
    }

    fn kill(&mut self, id: usize, power: bool, time: Duration) {
        self.drop_ends(id, power);
        self.nodes[id].powered = !power;
        self.nodes[id].forget();
        self.later(time, Task::Start { node: id });
    }

    fn partition(&mut self, time: Duration) {
        let part: Vec<bool> = (0..NODES).map(|_| self.rng.u32(0..4) == 0).collect();
        for from in 0..NODES {
            for to in (0..NODES).filter(|&to| part[from] != part[to]) {
                self.blocked_until[from][to] = self.now + time;
            }
        }
    }

    fn stall(&mut self, id: usize, time: Duration) {
        if self.nodes[id].stalled.is_none() {
            let until = self.now + time;
            self.nodes[id].stalled = Some(until);
            self.later(time, Task::Wake { node: id, until });
        }
    }

    /// The kernel module closes what it has; of a link that waits for its other half, nobody may notice.
    fn detach(&mut self, id: usize) {
        let node = &mut self.nodes[id];
        node.module.links = [None; 2];
        if let Some(attach) = node.module.attach {
            self.report(id, Event::KernelLost { attach, why: "closed".into() });
            return;
        }
        let half = node.held.iter().find(|(_, held)| matches!(held.of, HeldOf::Kernel { acked: true }));
        if let Some((&conn, _)) = half {
            if self.rng.bool() {
                self.report(id, Event::ConnLost { conn });
            }
        }
    }

    /// A node that this one has to call calls several times, preferably one that is missing now; or someone
    /// with a wrong address does.
    fn hellos(&mut self, id: usize, other: usize) {
        let missing: Vec<usize> =
            (0..id).filter(|&peer| self.nodes[id].peers[peer].window.is_some()).collect();
        let from = self.rng.choice(missing).unwrap_or(other);
        for _ in 0..4 {
            let wait = self.up_to(SECOND * 2);
            let run = self.nodes[id].run;
            self.later(wait, Task::Hello { node: id, run, from });
        }
    }

    /// The links of one pair break soon after they came up, several times.
    fn flap(&mut self, id: usize, other: usize) {
        let Some(session) = self.nodes[id].peers[other].session.as_ref() else { return };
        let end = session.ends[self.rng.usize(0..2)];
        self.send(end, crate::net::Message::Closed);
        for _ in 0..self.rng.u32(0..4) {
            let wait = self.up_to(SECOND * 4);
            self.later(wait, Task::Break { node: id, peer: other });
        }
    }

    /// Breaks the session of a pair, if there is one.
    pub fn break_pair(&mut self, id: usize, other: usize) {
        let session = self.nodes[id].peers.get(other).and_then(|peer| peer.session.as_ref());
        if let Some(end) = session.map(|session| session.ends[0]).filter(|_| self.chaos()) {
            self.send(end, crate::net::Message::Closed);
        }
    }

    /// Everything that was injected ends.
    pub fn heal(&mut self) {
        for row in &mut self.blocked_until {
            row.fill(self.now);
        }
        for id in 0..NODES {
            self.start(id);
            self.nodes[id].lose_reports_until = self.now;
            self.nodes[id].module.stuck_until = self.now;
            self.nodes[id].module.present = true;
            if self.nodes[id].stalled.is_some() {
                self.wake(id);
            }
            self.reload(id, Edit::Whole);
            for peer in (0..NODES).filter(|&peer| peer != id) {
                if !self.nodes[id].peers[peer].wanted {
                    self.report(id, Event::Wanted { peer: key(peer), wanted: true });
                }
            }
        }
    }
}
