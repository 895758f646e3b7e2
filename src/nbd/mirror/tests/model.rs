//! Histories of writes, losses, promotions, crashes and reconnections, all of the short ones and many long, against a
//! reference that knows which site has which answered write.
//!
//! Disks have two blocks. The decisions and the changes to the superblock are the program's; the model only moves data
//! accordingly, and checks: disks that are called equal are, a resync ends with equal disks, and no answered write is
//! overwritten that the source does not have, unless a person gave it up.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::super::promotion::{Candidacy, Reachable, force};
use super::*;
use crate::nbd::disk::format::{Slot, Superblock};

const BLOCKS: usize = 2;
const ALL: u8 = (1 << BLOCKS) - 1;

/// A fault of the model, to show that it would be noticed.
#[derive(Clone, Copy, PartialEq)]
enum Mutation {
    None,
    /// A loss gives no new generation.
    NoGeneration,
    /// The sites that stay learn of a new generation only with the next write.
    LateGeneration,
    /// The active extents do not become bits.
    NoActivityLog,
    /// The survivors' active extents are taken for equal.
    NoSurvivors,
    /// A site that learns of a loss sets no bits for what it has written before.
    NoBitsOnAdopt,
    /// A target is consistent from the start.
    NotInconsistent,
}

#[derive(Clone, PartialEq)]
struct Node {
    block: Superblock,
    up: bool,
    role: Role,
    sessions: [u64; 3],
    disk: [u8; BLOCKS],
    /// The answered writes that the disk has, by a write or a resync.
    has: u32,
    bits: [u8; 3],
    active: u8,
    /// True while a resync has not ended: a mixture that the mirror never had.
    mixed: bool,
    /// A new generation that has not reached it yet.
    pending: Option<(Generation, Mask)>,
}

#[derive(Clone, Copy, PartialEq)]
struct Flight {
    primary: usize,
    block: usize,
    id: u8,
    applied: u8,
}

#[derive(Clone)]
struct World {
    nodes: Vec<Node>,
    linked: [[bool; 3]; 3],
    flight: Option<Flight>,
    writes: u8,
    answered: u32,
    given_up: u32,
    drawn: u64,
    mutation: Mutation,
    path: Vec<Op>,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Write(usize, usize),
    Deliver(usize),
    Lose(usize, usize),
    Crash(usize),
    Restart(usize),
    Promote(usize),
    Demote(usize),
    Discard(usize),
    Connect(usize, usize, Ending),
}

/// The end of a resync.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    Whole,
    /// After the first block.
    Halfway,
    /// The end does not reach the source.
    Missed,
}

impl World {
    fn new(sites: usize, mutation: Mutation) -> Self {
        let node = |own: usize| {
            let mut block = Superblock {
                flags: DiskFlags::CONSISTENT | DiskFlags::UP_TO_DATE,
                current: generation(1),
                agreed_size: 1 << 30,
                members: Mask((1 << sites) - 1),
                ..Superblock::default()
            };
            let others = (0..sites).filter(|other| *other != own);
            for (slot, other) in block.slots.iter_mut().zip(others) {
                *slot = Slot { site: Some(site(other as u32)), flags: SlotFlags::SEEN, ..Slot::default() };
            }
            Node {
                block,
                up: true,
                role: Role::Secondary,
                sessions: [0; 3],
                disk: [0; BLOCKS],
                has: 0,
                bits: [0; 3],
                active: 0,
                mixed: false,
                pending: None,
            }
        };
        let mut world = World {
            nodes: (0..sites).map(node).collect(),
            linked: [[false; 3]; 3],
            flight: None,
            writes: 0,
            answered: 0,
            given_up: 0,
            drawn: 1,
            mutation,
            path: Vec::new(),
        };
        let mut rows = BTreeSet::new();
        for (one, other) in world.pairs() {
            world.connect(one, other, Ending::Whole, &mut rows).unwrap();
        }
        world.promote(0).unwrap();
        world
    }

    fn pairs(&self) -> Vec<(usize, usize)> {
        let sites = self.nodes.len();
        (0..sites).flat_map(|one| (one + 1..sites).map(move |other| (one, other))).collect()
    }

    fn fresh(&mut self) -> Generation {
        self.drawn += 1;
        generation(self.drawn)
    }

    fn peers(&self, own: usize) -> Vec<usize> {
        (0..self.nodes.len()).filter(|other| self.linked[own][*other]).collect()
    }

    fn mask(sites: &[usize]) -> Mask {
        sites.iter().fold(Mask::default(), |mask, site| mask | Mask::of(*site as u8))
    }

    fn facts(&self, own: usize, about: usize) -> Facts {
        let node = &self.nodes[own];
        let primary = self.peers(own).into_iter().find(|peer| self.nodes[*peer].role == Role::Primary);
        let mut facts = facts(own as u32, self.nodes.len() as u32);
        facts.role = node.role;
        facts.follows = primary.filter(|_| node.role == Role::Secondary).map(|primary| site(primary as u32));
        facts.last_session = node.sessions[about];
        facts.with_superblock(&node.block, |peer| {
            u64::from(node.bits[usize::from(peer.get())].count_ones()) << 16
        })
    }

    fn missing(&self, own: usize) -> Mask {
        let present = Self::mask(&self.peers(own)) | Mask::of(own as u8);
        Mask(self.nodes[own].block.members.0 & !present.0)
    }

    /// Sends the new generation of a primary to the sites that stay with it.
    fn tell(&mut self, primary: usize) {
        let (current, missing) = (self.nodes[primary].block.current, self.missing(primary));
        for peer in self.peers(primary) {
            self.nodes[peer].pending = Some((current, missing));
            if self.mutation != Mutation::LateGeneration {
                self.hear(peer);
            }
        }
    }

    fn hear(&mut self, own: usize) {
        if let Some((current, missing)) = self.nodes[own].pending.take() {
            let late = self.mutation == Mutation::NoBitsOnAdopt;
            let node = &mut self.nodes[own];
            node.block.adopt(current, missing);
            let marked = if late { 0 } else { node.active };
            missing.ids().for_each(|site| node.bits[usize::from(site)] |= marked);
        }
    }

    fn part(&mut self, own: usize, lost: usize) {
        let fresh = self.fresh();
        let led = self.nodes[lost].role == Role::Primary;
        let node = &mut self.nodes[own];
        if !node.up {
            return;
        }
        node.block.disconnect(site(lost as u32));
        if node.role == Role::Primary {
            if self.mutation != Mutation::NoGeneration {
                node.block.lose(Mask::of(lost as u8), fresh);
            }
            if let Some(flight) = self.flight.filter(|flight| flight.primary == own) {
                node.bits[lost] |= 1 << flight.block;
            }
            self.tell(own);
        } else if led {
            node.pending = None;
            node.block.outlive_primary();
            // The relation to other survivors has to be decided anew.
            for other in self.peers(own) {
                (self.linked[own][other], self.linked[other][own]) = (false, false);
            }
        }
    }

    fn lose(&mut self, one: usize, other: usize) {
        (self.linked[one][other], self.linked[other][one]) = (false, false);
        self.part(one, other);
        self.part(other, one);
        self.complete();
    }

    fn apply(&mut self, own: usize) {
        let Some(mut flight) = self.flight else { return };
        self.hear(own);
        let missing = self.missing(flight.primary);
        let node = &mut self.nodes[own];
        if !node.block.flags.contains(DiskFlags::WRITING) {
            node.block.begin_writes();
        }
        node.active |= 1 << flight.block;
        for site in missing.ids().filter(|site| usize::from(*site) != own) {
            node.bits[usize::from(site)] |= 1 << flight.block;
        }
        node.disk[flight.block] = flight.id;
        flight.applied |= 1 << own;
        self.flight = Some(flight);
        self.complete();
    }

    /// Answers the write once all that are connected have it; then its extent may leave the activity logs.
    fn complete(&mut self) {
        let Some(flight) = self.flight else { return };
        let mut with = self.peers(flight.primary);
        with.push(flight.primary);
        if with.iter().all(|site| flight.applied & (1 << site) != 0) {
            self.flight = None;
            self.answered |= 1 << flight.id;
            for site in with {
                self.nodes[site].active = 0;
                self.nodes[site].has |= 1 << flight.id;
            }
        }
    }

    /// Promotes by force, where that is allowed.
    fn promote(&mut self, own: usize) -> Result<(), String> {
        let peers: Vec<_> = self.peers(own).into_iter().map(|peer| self.facts(peer, own)).collect();
        let mine = self.facts(own, own);
        let decisions: Vec<_> = peers.iter().map(|peer| decide(&mine, peer)).collect();
        let equal = |decision: Decision| Decision { outcome: Outcome::NoSync, ..decision };
        // They are connected: every copy that was due has been made.
        let reachable: Vec<_> = peers
            .iter()
            .zip(decisions)
            .map(|(facts, decision)| Reachable { facts, decision: equal(decision) })
            .collect();
        let candidacy = Candidacy {
            own: &mine,
            reachable: &reachable,
            fenced: Mask::default(),
            can_fence: false,
            asynchronous: Mask::default(),
            quorum: false,
            has_witness: false,
            witness: None,
        };
        let Ok((missing, risks)) = force(&candidacy) else { return Ok(()) };
        let fresh = self.fresh();
        let node = &mut self.nodes[own];
        if std::mem::take(&mut node.mixed) && !risks.iter().any(|risk| risk.contains("half-synced")) {
            return Err(format!("a half-synced disk is promoted, and the risks are {risks:?}"));
        }
        node.role = Role::Primary;
        node.block.promote(missing, !risks.is_empty(), 1 << 30, fresh);
        self.tell(own);
        Ok(())
    }

    fn connect(
        &mut self,
        one: usize,
        other: usize,
        ending: Ending,
        rows: &mut BTreeSet<Row>,
    ) -> Result<bool, String> {
        let (a, b) = (self.facts(one, other), self.facts(other, one));
        let decision = decide(&a, &b);
        rows.insert(decision.row);
        if decision != decide(&b, &a) {
            return Err("the two decide differently".into());
        }
        let session = self.drawn;
        self.drawn += 1;
        match decision.outcome {
            Outcome::NoSync => {
                if ending != Ending::Whole {
                    return Ok(false);
                }
                let (x, y) = (&self.nodes[one], &self.nodes[other]);
                if x.disk != y.disk {
                    return Err(format!("called equal ({:?}): {:?} and {:?}", decision.row, x.disk, y.disk));
                }
                self.nodes[one].block.join(&b, &decision);
                self.nodes[other].block.join(&a, &decision);
            }
            Outcome::Sync { source, target, reach } => {
                let (from, to) = (usize::from(source.get()), usize::from(target.get()));
                if self.mutation == Mutation::NoSurvivors && decision.row == Row::Survivors {
                    self.link(one, other, session);
                    return Ok(self.nodes[one].disk == self.nodes[other].disk)
                        .and_then(|equal| if equal { Ok(true) } else { Err("survivors differ".into()) });
                }
                return self.resync(from, to, reach, ending, session);
            }
            Outcome::SplitBrain { .. } => {
                self.nodes[one].block.latch_split_brain();
                self.nodes[other].block.latch_split_brain();
                return Ok(ending == Ending::Whole);
            }
            _ => return Ok(false),
        }
        self.link(one, other, session);
        Ok(true)
    }

    fn link(&mut self, one: usize, other: usize, session: u64) {
        (self.linked[one][other], self.linked[other][one]) = (true, true);
        for (own, peer) in [(one, other), (other, one)] {
            let node = &mut self.nodes[own];
            (node.sessions[peer], node.bits[peer]) = (session, 0);
            // Two secondaries at rest have synced the last writes of a dead primary.
            let led = self.peers(own).into_iter().any(|peer| self.nodes[peer].role == Role::Primary);
            if !led && self.missing(own).is_empty() && self.nodes[own].role == Role::Secondary {
                self.nodes[own].active = 0;
                self.nodes[own].block.settle();
            }
        }
    }

    fn resync(
        &mut self,
        from: usize,
        to: usize,
        reach: Reach,
        ending: Ending,
        session: u64,
    ) -> Result<bool, String> {
        let (source, target) = (self.facts(from, to), self.facts(to, from));
        let decision = decide(&source, &target);
        let lost = self.answered & self.nodes[to].has & !self.nodes[from].has & !self.given_up;
        if lost != 0 {
            return Err(format!("{:?} loses the answered writes {lost:b}", decision.row));
        }
        let (s, t) = (&self.nodes[from], &self.nodes[to]);
        let third = |of: Option<SiteId>| of.map_or(0, |site| s.bits[usize::from(site.get())]);
        let marked = match reach {
            Reach::Full => ALL,
            Reach::Bitmap { of } => s.bits[to] | t.bits[from] | s.active | t.active | third(of),
        };
        for other in self.peers(to) {
            (self.linked[to][other], self.linked[other][to]) = (false, false);
        }
        self.nodes[from].bits[to] = marked;
        self.nodes[from].block.begin_resync(&target, &decision);
        self.nodes[to].block.begin_resync(&source, &decision);
        if self.mutation == Mutation::NotInconsistent {
            self.nodes[to].block.flags |= DiskFlags::CONSISTENT;
        }
        // A mixture has none of the writes that only one of the two had.
        self.nodes[to].has &= self.nodes[from].has;
        if ending == Ending::Halfway {
            if marked != ALL {
                return Ok(false);
            }
            self.nodes[to].disk[0] = self.nodes[from].disk[0];
            self.nodes[to].mixed = true;
            self.nodes[from].bits[to] &= !1;
            (self.nodes[from].sessions[to], self.nodes[to].sessions[from]) = (session, session);
            return Ok(true);
        }
        for place in (0..BLOCKS).filter(|place| marked & (1 << place) != 0) {
            self.nodes[to].disk[place] = self.nodes[from].disk[place];
        }
        if self.nodes[to].disk != self.nodes[from].disk {
            return Err(format!("{:?} ends with disks that differ", decision.row));
        }
        self.nodes[to].has = self.nodes[from].has;
        let source = self.facts(from, to);
        let equal = self.nodes[to].block.finish_target(&source);
        (self.nodes[to].active, self.nodes[to].mixed) = (0, false);
        for other in (0..self.nodes.len()).filter(|other| *other != to) {
            let bits = &mut self.nodes[to].bits[other];
            *bits = if equal.contains(other as u8) { 0 } else { *bits | marked };
        }
        if ending == Ending::Missed {
            (self.nodes[from].sessions[to], self.nodes[to].sessions[from]) = (session, session);
            // The target may have ended it: it is lost like one that had the data.
            self.part(from, to);
            return Ok(true);
        }
        self.nodes[from].block.finish_source(site(to as u32));
        self.link(from, to, session);
        for other in self.peers(from).into_iter().filter(|other| *other != to) {
            if self.nodes[from].role == Role::Primary {
                self.nodes[other].block.finish_source(site(to as u32));
                self.nodes[other].bits[to] = 0;
            }
        }
        Ok(true)
    }

    fn ops(&self) -> Vec<Op> {
        let sites = 0..self.nodes.len();
        let mut ops = Vec::new();
        for own in sites {
            let node = &self.nodes[own];
            if !node.up {
                ops.push(Op::Restart(own));
                continue;
            }
            ops.push(Op::Crash(own));
            let flies = self.flight.is_some_and(|flight| {
                let takes = flight.primary == own || self.linked[flight.primary][own];
                takes && flight.applied & (1 << own) == 0
            });
            match node.role {
                _ if flies => ops.push(Op::Deliver(own)),
                Role::Primary if self.flight.is_none() => {
                    ops.push(Op::Demote(own));
                    if self.writes < 4 {
                        ops.extend((0..BLOCKS).map(|block| Op::Write(own, block)));
                    }
                }
                Role::Secondary if self.flight.is_none() => {
                    ops.push(Op::Promote(own));
                    if node.block.flags.contains(DiskFlags::SPLIT_BRAIN)
                        && !node.block.flags.contains(DiskFlags::DISCARD)
                    {
                        ops.push(Op::Discard(own));
                    }
                }
                _ => {}
            }
        }
        for (one, other) in self.pairs() {
            let both = self.nodes[one].up && self.nodes[other].up;
            match self.linked[one][other] {
                true => ops.push(Op::Lose(one, other)),
                false if both && self.flight.is_none() => ops.extend(
                    [Ending::Whole, Ending::Halfway, Ending::Missed]
                        .map(|ending| Op::Connect(one, other, ending)),
                ),
                false => {}
            }
        }
        ops
    }

    /// Carries a step out. `Ok(false)`: it changed nothing.
    fn step(&mut self, op: Op, rows: &mut BTreeSet<Row>) -> Result<bool, String> {
        self.path.push(op);
        match op {
            Op::Write(own, block) => {
                self.writes += 1;
                self.flight = Some(Flight { primary: own, block, id: self.writes, applied: 0 });
                // The extent is in the durable log before the write goes anywhere.
                self.nodes[own].active |= 1 << block;
                let missing: Vec<_> = self.missing(own).ids().map(usize::from).collect();
                missing.into_iter().for_each(|site| self.nodes[own].bits[site] |= 1 << block);
            }
            Op::Deliver(own) => self.apply(own),
            Op::Lose(one, other) => self.lose(one, other),
            Op::Crash(own) => {
                let peers = self.peers(own);
                if self.flight.is_some_and(|flight| flight.primary == own) {
                    self.flight = None;
                }
                self.nodes[own].up = false;
                peers.into_iter().for_each(|peer| self.lose(own, peer));
                let node = &mut self.nodes[own];
                (node.role, node.sessions, node.pending) = (Role::Secondary, [0; 3], None);
            }
            Op::Restart(own) => {
                let node = &mut self.nodes[own];
                node.up = true;
                if node.block.flags.contains(DiskFlags::WRITING) && self.mutation != Mutation::NoActivityLog {
                    node.bits.iter_mut().for_each(|bits| *bits |= node.active);
                }
                node.active = 0;
            }
            Op::Promote(own) => {
                self.promote(own)?;
                return Ok(self.nodes[own].role == Role::Primary);
            }
            Op::Demote(own) => {
                self.nodes[own].role = Role::Secondary;
                self.nodes[own].block.demote();
                self.peers(own).into_iter().for_each(|peer| self.nodes[peer].block.settle());
            }
            Op::Discard(own) => {
                self.nodes[own].block.discard();
                self.given_up |= self.nodes[own].has;
            }
            Op::Connect(one, other, ending) => return self.connect(one, other, ending, rows),
        }
        Ok(true)
    }

    /// Returns a number that is the same for states which differ only by the numbers that were drawn.
    fn key(&self) -> u64 {
        let mut names: Vec<u64> = Vec::new();
        let mut hash = DefaultHasher::new();
        let mut name = |number: u64| {
            let known = names.iter().position(|known| *known == number);
            known.unwrap_or_else(|| {
                names.push(number);
                names.len()
            })
        };
        for node in &self.nodes {
            let block = &node.block;
            (name(block.current.bits()), block.flags.bits()).hash(&mut hash);
            for slot in block.slots.iter().take(2) {
                (name(slot.generation.bits()), slot.flags.bits()).hash(&mut hash);
            }
            let history = block.history.iter().take_while(|former| former.is_some());
            history.for_each(|former| name(former.bits()).hash(&mut hash));
            node.sessions.map(|session| name(session | 1 << 63)).hash(&mut hash);
            (node.role == Role::Primary, node.up, node.has, node.disk, node.bits, node.active)
                .hash(&mut hash);
            (node.pending.is_some(), node.mixed).hash(&mut hash);
        }
        let flight = self.flight.map(|flight| (flight.primary, flight.block, flight.applied));
        (self.linked, self.answered, self.given_up, flight).hash(&mut hash);
        hash.finish()
    }
}

/// Walks all histories with this beginning, breadth first, up to a number of states.
fn explore(sites: usize, first: &[Op], limit: usize, mutation: Mutation) -> Result<BTreeSet<Row>, String> {
    let (mut seen, mut rows) = (HashSet::new(), BTreeSet::new());
    let mut world = World::new(sites, mutation);
    let mut todo = VecDeque::new();
    for op in first {
        world.step(*op, &mut rows)?;
    }
    todo.push_back(world);
    while let Some(world) = todo.pop_front().filter(|_| seen.len() < limit) {
        for op in world.ops() {
            let mut next = world.clone();
            let changed =
                next.step(op, &mut rows).map_err(|error| format!("{error} after {:?}", next.path))?;
            if changed && seen.insert(next.key()) {
                todo.push_back(next);
            }
        }
    }
    Ok(rows)
}

/// Walks single long histories, each by its seed.
fn wander(sites: usize, seeds: std::ops::Range<u64>, mutation: Mutation) -> Result<BTreeSet<Row>, String> {
    let mut rows = BTreeSet::new();
    for seed in seeds {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut world = World::new(sites, mutation);
        for _ in 0..60 {
            let ops = world.ops();
            let op = ops[random.usize(..ops.len())];
            world
                .step(op, &mut rows)
                .map_err(|error| format!("seed {seed}: {error} after {:?}", world.path))?;
        }
    }
    Ok(rows)
}

#[test]
fn no_history_of_two_sites_loses_an_answered_write_or_calls_different_disks_equal() {
    let mut rows = explore(2, &[], 40_000, Mutation::None).unwrap();
    rows.append(&mut wander(2, 0..1000, Mutation::None).unwrap());
    for row in
        [Row::Reconnected, Row::Survivor, Row::BothDown, Row::Bitmap, Row::SplitBrainBitmap, Row::DiskState]
    {
        assert!(rows.contains(&row), "{row:?} is not reached");
    }
}

#[test]
fn no_history_of_three_sites_loses_an_answered_write_or_calls_different_disks_equal() {
    let under_way = [Op::Write(0, 0), Op::Deliver(2), Op::Lose(0, 1)];
    let mut rows = explore(3, &[], 20_000, Mutation::None).unwrap();
    rows.append(&mut explore(3, &under_way, 20_000, Mutation::None).unwrap());
    rows.append(&mut wander(3, 0..1000, Mutation::None).unwrap());
    for row in [Row::Survivors, Row::OtherPrimary, Row::BitmapOfThird] {
        assert!(rows.contains(&row), "{row:?} is not reached");
    }
}

#[test]
fn the_model_notices_each_mistake() {
    for (mutation, sites, first) in [
        (Mutation::NoGeneration, 2, &[][..]),
        (Mutation::NoActivityLog, 2, &[]),
        (Mutation::NoSurvivors, 3, &[]),
        (Mutation::LateGeneration, 3, &[Op::Write(0, 0), Op::Deliver(2), Op::Lose(0, 1)]),
        (
            Mutation::NotInconsistent,
            2,
            &[Op::Lose(0, 1), Op::Write(0, 0), Op::Deliver(0), Op::Write(0, 1), Op::Deliver(0)],
        ),
        (Mutation::NoBitsOnAdopt, 3, &[Op::Write(0, 0), Op::Deliver(2), Op::Lose(0, 1)]),
    ] {
        explore(sites, first, 20_000, mutation).unwrap_err();
    }
}
