//! Sites, links and a client in virtual time, driven by one seed: the very core that ships, everything else simulated.
//!
//! Stops at the first broken promise and says which. Used by the tests of the simulator.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::disk::{self, BLOCK, Data, Meta, Values};
use super::history::{Histories, Since};
use super::model::Model;
use crate::nbd::core::loss::Settling;
use crate::nbd::core::op::{Origin, Work as Written};
use crate::nbd::core::peer::{Part, Stage};
use crate::nbd::core::{
    Action, Command, Config, Core, Event, Mutation, Note, Refusal, Request, RequestId, Ticket, Tuning, Way,
};
use crate::nbd::disk::format::{
    ACTIVITY_START, ActivityRecord, Block, Checkpoint, DiskFlags, EXTENT_SHIFT, Layout, SUPERBLOCK_BLOCKS,
    Slot, SlotFlags, Superblock, tag_of,
};
use crate::nbd::mirror::choices::Policies;
use crate::nbd::mirror::promotion::Witness as Content;
use crate::nbd::mirror::witness::{Answer, Ask};
use crate::nbd::mirror::{Generation, Role};
use crate::nbd::server::Failure;
use crate::wire::{Class, HEADER_LEN, Header, Mask, ResourceId, SiteId};

const EXTENTS: u64 = 6;
pub const SIZE: u64 = EXTENTS << EXTENT_SHIFT;
/// Bytes that are mirrored before a mirror grows: the last chunk is cut.
pub const SMALL: u64 = SIZE / 2 - BLOCK;
pub const BLOCKS_OF_CHUNK: u64 = 16;
const DEPTH: usize = 12;
/// Blocks of the ordered log: a few writes fill it; most catch-ups fit into it, if little is written meanwhile; all do.
const LOG_BLOCKS: [u64; 3] = [40, 2500, 13000];
/// Scripted requests have numbers from here on.
const SCRIPTED: u64 = 1 << 40;

pub enum Work {
    Data(Values),
    Read(u64, u64),
    Sync(Vec<(u64, usize)>),
    Store(Vec<(u64, Box<Block>)>),
}

enum Task {
    Done(usize, u32, Ticket, bool),
    Deliver {
        from: usize,
        to: usize,
        class: Class,
        link: u32,
        header: Box<[u8; HEADER_LEN]>,
        payload: Bytes,
    },
    Tick(usize, u32),
    Client,
    Fault,
    Operator,
    Restart(usize),
    Heal(usize, usize),
    Fenced(usize, u32, SiteId),
    Cut(usize, u32, bool),
    Off(usize, u32),
    Looked(usize, u32),
    /// The witness has stored what a site asked for, and answers.
    Witnessed(usize, u32, Ask),
    WitnessStarts,
}

pub struct Site {
    pub core: Option<Core>,
    pub data: Data,
    pub meta: Meta,
    /// The identity of the metadata's device.
    pub device: [u8; 16],
    life: u32,
    running: BTreeMap<(Ticket, u64), Work>,
    /// Sites that were equal to this one when it was primary last.
    equals: u32,
    /// Of these the ones that writes wait for.
    pub heirs: u32,
    pub fail_sync: bool,
    /// Its syncs do not end.
    pub is_stuck: bool,
    is_promoting: bool,
    /// The sites that it could reach when it opened its ballot.
    pub reached: Option<u32>,
}

/// The events of a run, counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub writes: u64,
    pub flushes: u64,
    pub cuts: u64,
    pub in_superblock: u64,
    pub in_log: u64,
    pub in_eviction: u64,
    pub in_promotion: u64,
    pub resyncs: u64,
    pub promotions: u64,
    pub disk_failures: u64,
    /// A majority promoted a site while the old primary, without one, was still there.
    pub takeovers: u64,
    pub leaves: u64,
    /// Catch-ups as one batch that were begun, those that compared first, and those that were too large for it.
    pub catch_ups: u64,
    pub compared: u64,
    pub too_large: u64,
    /// Copies that were compared in one, and crashes in one.
    pub in_catch_up: u64,
    pub cut_in_catch_up: u64,
    /// Copies that may be behind, and were compared with all states of primaries.
    pub copies: u64,
    /// Of these, with a checkpoint.
    pub named: u64,
    /// A person gave the changes of one of three sites up, of which two had crashed.
    pub discards: u64,
    /// A site took a larger size.
    pub growths: u64,
    /// The disks of a site were lost, and replaced by new ones.
    pub replacements: u64,
}

impl Counts {
    /// Adds the events of another run.
    pub fn add(&mut self, run: &Counts) {
        for (sum, n) in [
            (&mut self.writes, run.writes),
            (&mut self.flushes, run.flushes),
            (&mut self.cuts, run.cuts),
            (&mut self.in_superblock, run.in_superblock),
            (&mut self.in_log, run.in_log),
            (&mut self.in_eviction, run.in_eviction),
            (&mut self.in_promotion, run.in_promotion),
            (&mut self.resyncs, run.resyncs),
            (&mut self.promotions, run.promotions),
            (&mut self.disk_failures, run.disk_failures),
            (&mut self.takeovers, run.takeovers),
            (&mut self.leaves, run.leaves),
            (&mut self.catch_ups, run.catch_ups),
            (&mut self.compared, run.compared),
            (&mut self.too_large, run.too_large),
            (&mut self.in_catch_up, run.in_catch_up),
            (&mut self.cut_in_catch_up, run.cut_in_catch_up),
            (&mut self.copies, run.copies),
            (&mut self.named, run.named),
            (&mut self.discards, run.discards),
            (&mut self.growths, run.growths),
            (&mut self.replacements, run.replacements),
        ] {
            *sum += n;
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { writes, flushes, cuts, in_superblock, in_log, in_eviction, in_promotion, .. } = self;
        let Counts {
            resyncs,
            promotions,
            disk_failures,
            takeovers,
            leaves,
            discards,
            copies,
            named,
            growths,
            replacements,
            catch_ups,
            compared,
            too_large,
            in_catch_up,
            cut_in_catch_up,
            ..
        } = self;
        write!(
            f,
            "{writes} writes, {flushes} flushes, {resyncs} resyncs, {promotions} promotions, {takeovers} take-overs from a \
             primary without a majority, {disk_failures} disk failures, {leaves} leaves, {discards} splits of three sites, {copies} copies compared, {named} with a checkpoint, {in_catch_up} in one of {catch_ups} catch-ups as one batch and {compared} after a comparison, {too_large} too large for that, {growths} larger sizes, {replacements} new disks; {cuts} crashes, of which inside an \
             update of the superblock {in_superblock}, of the activity log {in_log}, an eviction {in_eviction}, a promotion \
             {in_promotion}, a catch-up as one batch {cut_in_catch_up}"
        )
    }
}

/// A site without a disk, behind the others in the numbers of sites.
#[derive(Clone, Copy, Debug, Default)]
pub struct Witness {
    pub content: Content,
    pub is_down: bool,
    /// It stores, and its answers are lost.
    pub is_mute: bool,
    life: u32,
}

pub struct World {
    pub random: fastrand::Rng,
    now: u64,
    order: u64,
    tasks: BinaryHeap<Reverse<(u64, u64)>>,
    todo: BTreeMap<u64, Task>,
    pub sites: Vec<Site>,
    /// Counts the breaks of a pair of sites; odd: apart.
    links: BTreeMap<(usize, usize), u32>,
    arrivals: BTreeMap<(usize, usize, usize), u64>,
    pub model: Model,
    requests: BTreeMap<u64, Asked>,
    /// Writes whose primary another one took over from.
    orphans: BTreeSet<u64>,
    /// The primary that another one took over from, as long as that has answered nothing.
    former: Option<Former>,
    next: u64,
    pub serving: Option<usize>,
    pub last_primary: usize,
    /// The content that the present primary began with, until it answers, and when in the model's time.
    promoted: Option<(u64, Vec<(u64, u64)>)>,
    hold_down: Option<usize>,
    pub client_on: bool,
    faults_on: bool,
    pub failure: Option<String>,
    mutation: Option<Mutation>,
    pub counts: Counts,
    trace: bool,
    has_quorum: bool,
    pub witness: Option<Witness>,
    /// Sites have different numbers of active extents as primary.
    is_uneven: bool,
    /// No way leads on without force.
    pub is_over: bool,
    tweak: fn(&mut Config),
    /// Sites whose copy may be behind.
    pub asynchronous: u32,
    /// The disks were made larger since, and an operator wants it mirrored.
    grows: bool,
    /// Disks are replaced by new ones.
    pub replaces: bool,
    pub histories: Histories,
    /// Checkpoints, by the number in their names, and the states that they are for.
    checkpoints: Vec<Since>,
    /// Answers to commands, and notes, with the site.
    pub answers: Vec<(usize, Result<(), Refusal>)>,
    pub notes: Vec<(usize, Note)>,
    /// Answers to scripted requests.
    pub replies: BTreeMap<u64, Result<Bytes, Failure>>,
}

/// A primary that another one took over from.
struct Former {
    site: usize,
    /// Its requests that are not answered.
    requests: BTreeMap<u64, Asked>,
    /// As that of the world.
    promoted: Option<(u64, Vec<(u64, u64)>)>,
}

enum Asked {
    Write { fua: bool },
    Flush(u64),
    Read(u64, u64),
}

/// Writes that were under way when a site stopped: all of it, a part, or nothing.
fn cut_running<'a>(
    running: impl Iterator<Item = &'a Work>,
    data: &mut Data,
    meta: &mut Meta,
    power: bool,
    random: &mut fastrand::Rng,
) {
    for work in running {
        match work {
            Work::Data((first, values)) => {
                for (block, value) in (*first..).zip(values).filter(|_| random.bool()) {
                    data.write(&(block, vec![*value]));
                }
            }
            Work::Store(blocks) if power => meta.cut(blocks, random),
            Work::Store(blocks) if random.bool() => meta.write(blocks),
            Work::Store(_) | Work::Read(..) | Work::Sync(_) => {}
        }
    }
}

/// The site that is being copied to this one.
fn source_of(core: &Core, sites: usize) -> Option<usize> {
    (0..sites).find(|j| core.peer_state(site_id(*j)).is_some_and(|(_, part)| part == Part::Target))
}

/// Returns true if the slot says that its site may lack answered writes.
pub fn is_behind(slot: &Slot) -> bool {
    slot.generation.is_some() || slot.flags.contains(SlotFlags::FULL_SYNC_DUE)
}

pub fn site_id(n: usize) -> SiteId {
    SiteId::try_from(n as u32).unwrap()
}

impl World {
    pub fn new(seed: u64, mutation: Option<Mutation>) -> Self {
        let world = World::dark(seed, mutation, None, |_| {});
        world.begin()
    }

    /// The same, with sites whose copy may be behind.
    pub fn far(seed: u64, mutation: Option<Mutation>) -> Self {
        let mut world = World::dark(seed, mutation, None, |_| {});
        let masks: &[u32] = if world.sites.len() == 2 { &[2, 2, 1] } else { &[4, 6, 2, 1, 4] };
        world.set_asynchronous(masks[seed as usize % masks.len()], LOG_BLOCKS[seed as usize / 7 % 3]);
        world.begin()
    }

    /// The same with disks that become larger, and have content of their own there.
    pub fn growing(seed: u64, mutation: Option<Mutation>) -> Self {
        let mut world = World::dark(seed, mutation, None, |_| {});
        world.shrink();
        world.begin()
    }

    /// The same with sites whose copy may be behind.
    pub fn growing_far(seed: u64, mutation: Option<Mutation>) -> Self {
        let mut world = World::dark(seed, mutation, None, |_| {});
        let masks: &[u32] = if world.sites.len() == 2 { &[2, 2, 1] } else { &[4, 6, 2, 1, 4] };
        world.set_asynchronous(masks[seed as usize % masks.len()], LOG_BLOCKS[1 + seed as usize / 7 % 2]);
        world.shrink();
        world.begin()
    }

    /// The same, of two sites with disks and a witness.
    pub fn witnessed(seed: u64, mutation: Option<Mutation>) -> Self {
        let mut world = World::dark(seed, mutation, Some(2), |_| {});
        world.witness = Some(Witness::default());
        world.begin()
    }

    /// Starts all sites, and what happens to them.
    fn begin(mut self) -> Self {
        self.light();
        self.later(1_000_000, Task::Operator);
        self.later(1_500_000, Task::Client);
        self.later(2_000_000, Task::Fault);
        self
    }

    /// [`World::scripted`] with disks that became larger.
    pub fn scripted_small(sites: usize, tweak: fn(&mut Config)) -> Self {
        let mut world = World::dark(1, None, Some(sites), tweak);
        world.shrink();
        world.light();
        world.grows = false;
        world
    }

    /// The same of two sites, of which the second is a far one.
    pub fn scripted_small_far(mutation: Option<Mutation>) -> Self {
        let mut world = World::dark(1, mutation, Some(2), |_| {});
        world.set_asynchronous(2, LOG_BLOCKS[2]);
        world.shrink();
        world.light();
        world.grows = false;
        world
    }

    /// Half of each disk is mirrored; the other half is new, and unlike at each site where no client writes.
    fn shrink(&mut self) {
        self.grows = true;
        self.histories = Histories::new((SMALL / BLOCK) as usize);
        for (site, i) in self.sites.iter_mut().zip(1..) {
            // The rest is where it is for the whole disk.
            site.meta.layout.data_size = SMALL;
            for extent in EXTENTS / 2..EXTENTS {
                (50..60)
                    .for_each(|n| site.data.put((extent << EXTENT_SHIFT) / BLOCK + n, 1 << 50 | i << 20 | n));
            }
        }
    }

    /// The metadata of a site cover all of its disk.
    pub fn look(&mut self, i: usize) {
        if self.sites[i].meta.layout.data_size == SMALL {
            self.sites[i].meta.layout.data_size = SIZE;
        }
        self.event(i, Event::Looked(self.sites[i].meta.layout.data_size));
    }

    /// A scripted one, of two sites with disks and a witness.
    pub fn scripted_witnessed(mutation: Option<Mutation>) -> Self {
        let mut world = World::dark(1, mutation, Some(2), |_| {});
        world.witness = Some(Witness::default());
        world.light();
        world
    }

    fn set_asynchronous(&mut self, mask: u32, log_blocks: u64) {
        self.asynchronous = mask;
        for site in &mut self.sites {
            site.meta.layout = Layout::new(SIZE, 16, 4, log_blocks).unwrap();
        }
    }

    /// A world without faults in which nothing happens but by commands and scripted requests.
    pub fn scripted(sites: usize, mutation: Option<Mutation>, tweak: fn(&mut Config)) -> Self {
        let mut world = World::dark(1, mutation, Some(sites), tweak);
        world.light();
        world
    }

    /// [`World::scripted`] with two sites, of which the second is a far one whose log takes all at once, or little more than an extent.
    pub fn scripted_far(mutation: Option<Mutation>, takes_all: bool) -> Self {
        let mut world = World::dark(1, mutation, Some(2), |_| {});
        world.set_asynchronous(2, LOG_BLOCKS[if takes_all { 2 } else { 1 }]);
        world.light();
        world
    }

    fn light(&mut self) {
        (0..self.sites.len()).for_each(|i| self.start(i));
        self.tell_links();
    }

    fn dark(seed: u64, mutation: Option<Mutation>, sites: Option<usize>, tweak: fn(&mut Config)) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let n = sites.unwrap_or(if random.u8(..10) < 6 { 2 } else { 3 });
        let layout = Layout::new(SIZE, 16, 4, 0).unwrap();
        let zeroed = random.u8(..8) != 0;
        let sites = (0..n).map(|i| {
            let mut superblock =
                Superblock { current: Generation::JUST_CREATED, sequence: 1, ..Superblock::default() };
            if zeroed || i == 0 {
                superblock.flags |= DiskFlags::CONSISTENT | DiskFlags::ZEROED;
            }
            let device = [i as u8 + 1; 16];
            Site {
                core: None,
                data: Data::new(SIZE / BLOCK),
                meta: Meta::new(layout, tag_of(&device), &superblock),
                device,
                life: 0,
                running: BTreeMap::new(),
                equals: 0,
                heirs: 0,
                fail_sync: false,
                is_stuck: false,
                is_promoting: false,
                reached: None,
            }
        });
        World {
            sites: sites.collect(),
            random,
            now: 0,
            order: 0,
            tasks: BinaryHeap::new(),
            todo: BTreeMap::new(),
            links: BTreeMap::new(),
            arrivals: BTreeMap::new(),
            model: Model::default(),
            requests: BTreeMap::new(),
            orphans: BTreeSet::new(),
            former: None,
            next: 1,
            serving: None,
            last_primary: 0,
            promoted: None,
            hold_down: None,
            client_on: true,
            faults_on: false,
            failure: None,
            mutation,
            counts: Counts::default(),
            trace: std::env::var_os("TRACE").is_some(),
            is_over: false,
            has_quorum: seed % 2 == 0,
            witness: None,
            is_uneven: seed % 5 == 4,
            tweak,
            asynchronous: 0,
            grows: false,
            replaces: false,
            histories: Histories::new((SIZE / BLOCK) as usize),
            checkpoints: Vec::new(),
            answers: Vec::new(),
            notes: Vec::new(),
            replies: BTreeMap::new(),
        }
    }

    fn later(&mut self, delay: u64, task: Task) {
        self.order += 1;
        self.tasks.push(Reverse((self.now + delay, self.order)));
        self.todo.insert(self.order, task);
    }

    pub fn fail(&mut self, what: String) {
        if self.failure.is_none() {
            self.failure = Some(format!("at {} us: {what}", self.now));
        }
    }

    fn log(&self, site: usize, text: &str) {
        if self.trace {
            println!("{:>10} site {site}: {text}", self.now);
        }
    }

    fn start(&mut self, i: usize) {
        let n = self.sites.len();
        let seed = self.random.u64(..);
        let site = &mut self.sites[i];
        let Some(found) = site.meta.load(self.mutation == Some(Mutation::BelieveStale)) else {
            return self.fail(format!("I6: site {i} has no superblock that can be read"));
        };
        let mut config = Config {
            site: site_id(i),
            resource: ResourceId::try_from(0).unwrap(),
            device: site.device,
            layout: site.meta.layout,
            peers: (0..n).filter(|peer| *peer != i).map(site_id).collect(),
            asynchronous: Mask(self.asynchronous),
            active_max: if self.is_uneven { [4, 5, 6][i % 3] } else { 4 },
            follow_max: if self.is_uneven { 6 } else { 4 },
            quorum: n == 3 && self.has_quorum,
            witness: self.witness.as_ref().map(|_| site_id(n)),
            tuning: Tuning {
                slow: Duration::from_secs(3),
                freeze: false,
                can_fence: false,
                flush_local: false,
                stop_on_error: false,
                resync_rate: 0,
                resync_min: 250_000,
                policies: Policies::default(),
            },
            software: "simulated".into(),
            seed,
        };
        (self.tweak)(&mut config);
        site.life += 1;
        site.running.clear();
        let mut core = Core::new(config, found, Duration::from_micros(self.now));
        core.mutation = self.mutation;
        site.core = Some(core);
        let life = site.life;
        self.log(i, "starts");
        self.flush_actions(i);
        self.later(1000, Task::Tick(i, life));
    }

    fn link(&self, a: usize, b: usize) -> u32 {
        self.links.get(&(a.min(b), a.max(b))).copied().unwrap_or(0)
    }

    pub fn linked(&self, a: usize, b: usize) -> bool {
        self.link(a, b) % 2 == 0 && self.is_up(a) && self.is_up(b)
    }

    fn is_up(&self, i: usize) -> bool {
        match self.sites.get(i) {
            Some(site) => site.core.is_some(),
            None => self.witness.is_some_and(|witness| !witness.is_down),
        }
    }

    /// The witness got a packet: it stores what it has to, and answers.
    fn ask_witness(&mut self, from: usize, payload: &[u8]) {
        let Some((ask, life)) = Ask::decode(payload).zip(self.witness.map(|witness| witness.life)) else {
            return;
        };
        let delay = self.random.u64(20..3000);
        self.later(delay, Task::Witnessed(from, life, ask));
    }

    fn witnessed_by(&mut self, to: usize, life: u32, ask: Ask) {
        let Some(witness) = self.witness.as_mut().filter(|witness| witness.life == life) else { return };
        if let Some(fresh) = ask.change(witness.content) {
            witness.content = fresh;
        }
        let answer = Answer { number: ask.number, content: witness.content };
        let is_mute = witness.is_mute;
        self.log(self.sites.len(), &format!("answers {to}: {ask:?}: {answer:?}"));
        if is_mute {
            return;
        }
        if self.faults_on && self.random.u8(..20) == 0 {
            // It ends between the two.
            return self.crash_witness();
        }
        let fields = crate::nbd::core::packet::Fields::default();
        let payload = Bytes::from(answer.encode());
        let kind = crate::wire::PacketType::SC_PRI_PRO_ACK;
        let (own, resource) = (site_id(self.sites.len()), ResourceId::try_from(0).unwrap());
        let header =
            crate::nbd::core::packet::encode(kind, resource, own, site_id(to), &fields, payload.len());
        self.send(self.sites.len(), to, header, payload);
    }

    pub fn crash_witness(&mut self) {
        if let Some(witness) = self.witness.as_mut().filter(|witness| !witness.is_down) {
            (witness.is_down, witness.life) = (true, witness.life + 1);
            self.log(self.sites.len(), "the witness ends");
            let delay = self.random.u64(10_000..3_000_000);
            self.later(delay, Task::WitnessStarts);
            self.tell_links();
        }
    }

    pub fn start_witness(&mut self) {
        if let Some(witness) = self.witness.as_mut().filter(|witness| witness.is_down) {
            witness.is_down = false;
            self.log(self.sites.len(), "the witness starts");
            self.tell_links();
        }
    }

    fn tell_links(&mut self) {
        for i in 0..self.sites.len() {
            let linked = (0..=self.sites.len()).filter(|j| *j != i && self.linked(i, *j));
            let mask = linked.fold(Mask(0), |mask, j| mask | Mask::of(j as u8));
            self.event(i, Event::Connected(mask));
        }
    }

    pub fn event(&mut self, i: usize, event: Event) {
        let now = Duration::from_micros(self.now);
        if let Some(core) = self.sites[i].core.as_mut() {
            core.handle(now, event);
            self.flush_actions(i);
        }
    }

    fn flush_actions(&mut self, i: usize) {
        let mut actions = Vec::new();
        if let Some(core) = self.sites[i].core.as_mut() {
            core.drain(&mut actions);
        }
        for action in actions {
            self.act(i, action);
        }
        self.note_heirs(i);
        self.note_ballot(i);
        self.note_history(i);
    }

    /// Sites that count as having all data of the primary.
    fn note_heirs(&mut self, i: usize) {
        let Some(core) = &self.sites[i].core else { return };
        if core.role() == Role::Primary {
            let equal = |j: &usize| core.peer_state(site_id(*j)) == Some((Stage::Joined, Part::Equal));
            let equals =
                (0..self.sites.len()).filter(|j| *j != i).filter(equal).fold(0, |mask, j| mask | 1 << j);
            let is_far = self.asynchronous >> i & 1 == 1;
            self.sites[i].equals = equals;
            self.sites[i].heirs = if is_far { 0 } else { equals & !self.asynchronous };
            if self.serving == Some(i) {
                self.last_primary = i;
            }
        }
    }

    fn act(&mut self, i: usize, action: Action) {
        if self.trace && std::env::var_os("IO").is_some() {
            match &action {
                Action::Write(ticket, at, data) => {
                    self.log(i, &format!("{ticket:?} writes {:?} to {}", disk::values(data), at / BLOCK));
                }
                Action::Store(ticket, blocks) => self.log(
                    i,
                    &format!("{ticket:?} stores {:?}", blocks.iter().map(|b| b.0).collect::<Vec<_>>()),
                ),
                Action::Sync(ticket) => self.log(i, &format!("{ticket:?} syncs")),
                _ => {}
            }
        }
        let life = self.sites[i].life;
        let run = |world: &mut World, ticket: Ticket, work: Work, delay: u64, good: bool| {
            let key = world.order + 1;
            world.sites[i].running.insert((ticket, key), work);
            world.later(delay, Task::Done(i, life, ticket, good));
        };
        match action {
            Action::Write(ticket, offset, data) => {
                self.check_write(i, ticket, offset, data.len() as u64);
                let delay = self.random.u64(30..400);
                run(self, ticket, Work::Data((offset / BLOCK, disk::values(&data))), delay, true);
            }
            Action::Zero(ticket, offset, len, _) => {
                self.check_write(i, ticket, offset, len);
                let delay = self.random.u64(30..400);
                run(self, ticket, Work::Data((offset / BLOCK, vec![0; (len / BLOCK) as usize])), delay, true);
            }
            Action::Read(ticket, offset, len) => {
                let delay = self.random.u64(20..300);
                run(self, ticket, Work::Read(offset, len), delay, true);
            }
            Action::Sync(ticket) => {
                let snapshot = self.sites[i].data.snapshot();
                let good = !std::mem::take(&mut self.sites[i].fail_sync);
                let delay = if self.sites[i].is_stuck { 2_000_000 } else { self.random.u64(200..3000) };
                run(self, ticket, Work::Sync(snapshot), delay, good);
            }
            Action::Store(ticket, blocks) => {
                let delay = self.random.u64(200..3000);
                // Aimed: the power goes, or the program ends, while metadata is being written.
                let is_promoting = self.sites[i].is_promoting;
                if self.faults_on && self.random.u8(..if is_promoting { 12 } else { 60 }) == 0 {
                    let at = self.random.u64(0..delay + 100);
                    let power = self.random.bool();
                    self.later(at, Task::Cut(i, life, power));
                }
                // The batch of a catch-up, and what follows it.
                if self.faults_on && self.is_catching_up(i) && self.random.u8(..4) == 0 {
                    let at = self.random.u64(0..delay + 8000);
                    let power = self.random.bool();
                    self.later(at, Task::Cut(i, life, power));
                }
                run(self, ticket, Work::Store(blocks), delay, true);
            }
            Action::Send(to, header, payload) => self.send(i, usize::from(to.get()), header, payload),
            Action::Reply(id, result) => self.reply(i, id, result),
            Action::Answer(result) => {
                self.sites[i].is_promoting = false;
                self.hold_down = None;
                self.log(i, &format!("answers {result:?}"));
                self.answers.push((i, result));
            }
            Action::Serve(on) => {
                self.log(i, if on { "serves" } else { "serves no more" });
                if on {
                    let content = self.mirrored(i).to_vec();
                    self.histories.begin(i, &content);
                    self.counts.promotions += 1;
                    self.move_client(i);
                    self.check_promoted(i);
                } else if self.serving == Some(i) {
                    self.primary_gone();
                }
            }
            Action::Fence(site) => {
                let delay = self.random.u64(1000..2_000_000);
                self.later(delay, Task::Fenced(i, life, site));
            }
            Action::Look => {
                let delay = self.random.u64(200..3000);
                self.later(delay, Task::Looked(i, life));
            }
            // No policy of the worlds has it called.
            Action::CallHelper(_) => {}
            Action::Note(note) => {
                self.log(i, &format!("{note:?}"));
                if self.trace && matches!(note, Note::Decision(..)) {
                    self.log(i, &self.state(i));
                }
                if self.tasks.len() < 100 {
                    self.notes.push((i, note.clone()));
                }
                match note {
                    Note::Resynced(from) => {
                        self.counts.resyncs += 1;
                        // The content of a source that is not primary is no history of a primary, and counts all the same.
                        let from = usize::from(from.get());
                        if self.serving.is_none() {
                            let content = self.mirrored(from).to_vec();
                            self.histories.add(&content);
                        }
                    }
                    Note::CatchUp { way, .. } if self.asynchronous >> i & 1 == 1 => match way {
                        Way::AtOnce => self.counts.catch_ups += 1,
                        Way::Compared => self.counts.compared += 1,
                        Way::InPieces => self.counts.too_large += 1,
                    },
                    Note::DiskFailed(_) => self.counts.disk_failures += 1,
                    Note::Grown(_) => {
                        self.counts.growths += 1;
                        self.histories.grow(i, &self.sites[i].data.now);
                        let core = self.sites[i].core.as_ref();
                        if self.serving.is_none()
                            && core.is_some_and(|core| source_of(core, self.sites.len()).is_none())
                        {
                            // A site that counts, while there is no primary, takes a size with what its own disk has there.
                            let content = self.mirrored(i).to_vec();
                            self.histories.add(&content);
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    /// The content of the mirrored part of a running site's disk.
    fn mirrored(&self, i: usize) -> &[u64] {
        let size = self.sites[i].core.as_ref().map_or(SIZE, Core::size);
        &self.sites[i].data.now[..(size / BLOCK) as usize]
    }

    /// Returns true if a site takes what bits mark as one batch.
    pub fn is_catching_up(&self, i: usize) -> bool {
        let core = self.sites[i].core.as_ref();
        core.is_some_and(|core| {
            source_of(core, self.sites.len()).is_some_and(|j| core.catches_up_at_once(site_id(j)))
        })
    }

    /// The client goes to a new primary. What it asked of an old one may not be answered as done any more.
    fn move_client(&mut self, i: usize) {
        if self.serving.is_some_and(|old| old != i) {
            self.counts.takeovers += 1;
            self.part_with_former();
            let (requests, promoted) = (std::mem::take(&mut self.requests), self.promoted.take());
            self.former = self.serving.map(|site| Former { site, requests, promoted });
        }
        self.serving = Some(i);
    }

    /// The new primary has answered: what was asked of the one that it took over from may not be answered as done any more.
    fn part_with_former(&mut self) {
        let Some(former) = self.former.take() else { return };
        self.model.end(former.requests.keys());
        let writes = |(id, asked): (u64, Asked)| matches!(asked, Asked::Write { .. }).then_some(id);
        self.orphans.extend(former.requests.into_iter().filter_map(writes));
    }

    /// I1: only in extents that a durable record has. I4: a target of a resync is inconsistent, durably, or its ordered log has
    /// all of it.
    fn check_write(&mut self, i: usize, ticket: Ticket, offset: u64, len: u64) {
        let site = &self.sites[i];
        let core = site.core.as_ref().unwrap();
        let Some(block) = site.meta.superblock() else { return };
        let is_content =
            core.ops.get(ticket.number()).is_some_and(|op| matches!(op.origin, Origin::Resync(..)));
        if is_content && block.flags.contains(DiskFlags::CONSISTENT) && self.asynchronous >> i & 1 == 1 {
            if !site.meta.is_logged(offset, len) {
                self.fail(format!(
                    "I4: site {i} writes what is not in its ordered log, and is marked consistent"
                ));
            }
            return;
        }
        if source_of(core, self.sites.len()).is_some() && !self.is_catching_up(i) {
            if block.flags.contains(DiskFlags::CONSISTENT) {
                self.fail(format!("I4: site {i} writes what a resync sends and is not marked inconsistent"));
            }
            return;
        }
        if core.settling == Some(Settling::Start) {
            // The writes of the ordered log are in no record, and are carried out again at each start.
            return;
        }
        if !block.flags.contains(DiskFlags::CONSISTENT) {
            // The source is gone, and what it sent is still being written.
            return;
        }
        let active = site.meta.activity().map_or(&[][..], ActivityRecord::extents);
        let mut extents = offset >> EXTENT_SHIFT..=(offset + len - 1) >> EXTENT_SHIFT;
        if let Some(extent) = extents.find(|extent| !active.contains(&(*extent as u32))) {
            return self.fail(format!("I1: site {i} writes extent {extent}, the record has {active:?}"));
        }
        if !block.flags.contains(DiskFlags::WRITING) {
            self.fail(format!("I1: site {i} writes, and a crash would not look at its activity log"));
        }
    }

    /// The flags on a site's disk.
    pub fn flags(&self, i: usize) -> DiskFlags {
        self.sites[i].meta.superblock().map_or(DiskFlags::default(), |block| block.flags)
    }

    /// M2: what is served was good without the resync that it waits for.
    fn check_promoted(&mut self, i: usize) {
        let flags = self.flags(i);
        if !flags.contains(DiskFlags::PRIMARY | DiskFlags::CONSISTENT) {
            self.fail(format!("I6: site {i} serves, and its superblock says {flags}"));
        }
        self.excuse(i);
        let mut content = Vec::new();
        for block in self.model.blocks().collect::<Vec<_>>() {
            let value = self.sites[i].data.now[block as usize];
            if let Err(why) = self.model.check(i, block, value) {
                return self.fail(format!("M1, M2: site {i} became primary: {why}"));
            }
            content.push((block, value));
        }
        self.promoted = Some((self.model.mark(), content));
    }

    /// The primary has answered a client: what it served when it was promoted counts from now on.
    fn settle_promotion(&mut self) {
        if let Some((since, content)) = self.promoted.take() {
            self.part_with_former();
            content.into_iter().for_each(|(block, value)| self.model.settle(block, value, since));
        }
    }

    fn send(&mut self, from: usize, to: usize, header: Box<[u8; HEADER_LEN]>, payload: Bytes) {
        let Some((class, _)) = Header::decode(&header).kind.relayed() else { return };
        if !self.linked(from, to) {
            return;
        }
        let link = self.link(from, to);
        if self.faults_on && self.random.u16(..2000) == 0 {
            // Lost without a trace.
            return;
        }
        let delay = self.random.u64(40..if class == Class::Data { 400 } else { 1500 });
        let last = self.arrivals.entry((from, to, class.index())).or_default();
        *last = (self.now + delay).max(*last + 1);
        let delay = *last - self.now;
        if self.faults_on && self.random.u16(..1500) == 0 {
            let (header, payload) = (header.clone(), payload.clone());
            let later = delay + self.random.u64(..3_000_000);
            self.later(later, Task::Deliver { from, to, class, link: link + 1000, header, payload });
        }
        self.later(delay, Task::Deliver { from, to, class, link, header, payload });
    }

    fn reply(&mut self, i: usize, id: RequestId, result: Result<Bytes, Failure>) {
        let is_held = self.serving != Some(i)
            && self
                .former
                .as_ref()
                .is_some_and(|former| matches!(former.requests.get(&id.0), Some(Asked::Write { .. })));
        if (self.orphans.remove(&id.0) || is_held) && result.is_ok() {
            return self.fail(format!("M4: site {i} answers a write, and another one became primary before"));
        }
        if id.0 >= SCRIPTED {
            self.replies.insert(id.0, result);
            return;
        }
        let Some(asked) = self.requests.remove(&id.0) else { return };
        if self.serving != Some(i) {
            return;
        }
        let good = result.is_ok();
        if good {
            self.settle_promotion();
        }
        match asked {
            Asked::Write { fua } => {
                if good {
                    self.check_answer(i);
                }
                let has_disk = self.sites[i].core.as_ref().is_some_and(Core::reads_locally);
                let holders = self.sites[i].heirs | u32::from(has_disk) << i;
                self.model.answered(id.0, good, holders, fua);
            }
            Asked::Flush(mark) if good => self.model.flushed(mark),
            Asked::Flush(_) => {}
            Asked::Read(first, n) => {
                let Ok(data) = result else { return };
                for (block, value) in (first..first + n).zip(disk::values(&data)) {
                    if let Err(why) = self.model.check(i, block, value) {
                        return self.fail(format!("M2: read from site {i}: {why}"));
                    }
                }
            }
        }
    }

    /// I3: a write is answered only when it is durable that the sites without it lack it.
    fn check_answer(&mut self, i: usize) {
        // As they were before this event: a far site whose queue is full is lost behind the answer.
        let equals = self.sites[i].equals;
        let core = self.sites[i].core.as_ref().unwrap();
        if !core.reads_locally() {
            return;
        }
        let Some(block) = self.sites[i].meta.superblock() else { return };
        for slot in block.slots.iter().filter(|slot| slot.site.is_some()) {
            let site = slot.site.unwrap().get();
            let is_equal = core.peer_state(site_id(site.into())).is_some_and(|(_, part)| part == Part::Equal);
            if equals >> site & 1 == 0 && !is_behind(slot) && !is_equal {
                return self
                    .fail(format!("I3: site {i} answers a write, and site {site} counts as having it"));
            }
        }
    }

    /// The client's primary is gone. If that had answered nothing, and the one that it took over from is still there, the client
    /// goes back.
    fn primary_gone(&mut self) {
        let is_back = |former: &Former| {
            self.promoted.is_some()
                && self.sites[former.site].core.as_ref().is_some_and(|core| core.role() == Role::Primary)
        };
        match self.former.take().filter(is_back) {
            Some(former) => {
                self.model.end(self.requests.keys());
                self.serving = Some(former.site);
                (self.requests, self.promoted) = (former.requests, former.promoted);
            }
            None => {
                (self.serving, self.promoted) = (None, None);
                self.requests.clear();
                self.model.primary_gone();
            }
        }
    }

    fn done(&mut self, i: usize, life: u32, ticket: Ticket, good: bool, key: u64) {
        if self.sites[i].life != life || self.sites[i].core.is_none() {
            return;
        }
        let n = self.sites.len();
        let Some(work) = self.sites[i].running.remove(&(ticket, key)) else { return };
        if self.trace && std::env::var_os("IO").is_some() {
            self.log(i, &format!("{ticket:?} is done"));
        }
        let site = &mut self.sites[i];
        let result = match work {
            Work::Data(values) => {
                site.data.write(&values);
                let watched = std::env::var("BLOCK").ok().and_then(|b| b.parse::<u64>().ok());
                if let Some(value) = watched.and_then(|b| values.1.get(b.checked_sub(values.0)? as usize)) {
                    println!("{:>10} site {i}: writes {value}, {ticket:?}", self.now);
                }
                Ok(Bytes::new())
            }
            Work::Read(start, len) => Ok(site.data.read(start, len)),
            Work::Sync(snapshot) if good => {
                site.data.synced(&snapshot);
                Ok(Bytes::new())
            }
            Work::Sync(_) => {
                // M7: the disk is out until it is resynced, which loses this site as a power cut does.
                self.model.cut(i);
                Err(Failure::Io)
            }
            Work::Store(blocks) => {
                let targets = |meta: &Meta| {
                    let slots = meta.superblock().map(|block| &block.slots[..]).unwrap_or_default();
                    let is_target = |slot: &&Slot| slot.flags.contains(SlotFlags::SYNC_SOURCE);
                    slots
                        .iter()
                        .filter(is_target)
                        .fold(Mask(0), |mask, slot| mask | Mask::of(slot.site.unwrap().get()))
                };
                let before = targets(&site.meta);
                site.meta.write(&blocks);
                self.note_claim(i);
                let site = &self.sites[i];
                let ended = Mask(before.0 & !targets(&site.meta).0);
                for target in (0..n).filter(|target| ended.contains(*target as u8)) {
                    self.model.resynced(i, target, &self.sites[target].data.now);
                }
                let site = &mut self.sites[i];
                let block = site.meta.superblock().cloned().unwrap_or_default();
                let mut sources =
                    block.slots.iter().filter(|slot| slot.flags.contains(SlotFlags::SYNC_TARGET));
                let source = sources.next().and_then(|slot| slot.site).map(|site| usize::from(site.get()));
                if let Some(source) = source.filter(|_| !block.flags.contains(DiskFlags::CONSISTENT)) {
                    // Even if nothing was written yet: from here on nobody knows.
                    let live = site.core.as_ref().and_then(|core| source_of(core, n));
                    self.model.overwritten(live.unwrap_or(source), live.is_none(), i);
                }
                Ok(Bytes::new())
            }
        };
        self.event(i, Event::Done(ticket, result));
    }

    /// A site stops; with a power cut its caches are lost.
    pub fn crash(&mut self, i: usize, power: bool) {
        let is_catching_up = u64::from(self.is_catching_up(i));
        let reached = self.reached_by_winner(i);
        let Some(core) = self.sites[i].core.take() else { return };
        self.counts.cut_in_catch_up += is_catching_up;
        self.counts.in_catch_up += is_catching_up;
        self.log(i, if power { "loses its power" } else { "is killed" });
        self.counts.cuts += 1;
        self.counts.in_promotion += u64::from(std::mem::take(&mut self.sites[i].is_promoting));
        let random = &mut self.random;
        let site = &mut self.sites[i];
        let record = site.meta.activity().cloned().unwrap_or_default();
        for work in std::mem::take(&mut site.running).into_values() {
            match work {
                Work::Data((first, values)) => {
                    for (block, value) in (first..).zip(values).filter(|_| random.bool()) {
                        site.data.write(&(block, vec![value]));
                    }
                }
                Work::Store(blocks) => {
                    let is_superblock = SUPERBLOCK_BLOCKS.contains(&blocks[0].0);
                    let ring = ACTIVITY_START..ACTIVITY_START + 64;
                    let leaves = blocks.iter().any(|(number, block)| {
                        let new = ActivityRecord::decode(block, *number, site.meta.tag);
                        new.is_ok_and(|new| record.extents().iter().any(|e| !new.extents().contains(e)))
                    });
                    self.counts.in_superblock += u64::from(is_superblock);
                    self.counts.in_log += u64::from(ring.contains(&blocks[0].0));
                    self.counts.in_eviction += u64::from(leaves);
                    if power {
                        site.meta.cut(&blocks, random);
                    } else if random.bool() {
                        site.meta.write(&blocks);
                    }
                }
                Work::Read(..) | Work::Sync(_) => {}
            }
        }
        site.life += 1;
        if power {
            site.data.cut(random);
        }
        self.check_far(i);
        self.note_claim_of(i, reached);
        if self.flags(i).contains(DiskFlags::PRIMARY) {
            self.histories.add(&self.sites[i].meta.replayed(&self.sites[i].data));
        }
        let went_with_primary = self.went_with_primary(i);
        if power {
            self.model.cut(i);
        } else if went_with_primary {
            self.model.doubt(i);
        }
        if power && self.serving == Some(i) {
            // Its content counts, and not that of a site that it went on without, or that was leaving in order: M1 keeps only
            // flushed writes when both sites go. Perhaps also against one that went before it, and cannot know that nothing was
            // answered since.
            let block = self.sites[i].meta.superblock().cloned().unwrap_or_default();
            for slot in &block.slots {
                let Some(j) = slot.site.map(|site| usize::from(site.get())) else { continue };
                match is_behind(slot) || self.is_leaving(j) {
                    true => self.model.cut(j),
                    false if self.sites[j].core.is_none() => self.model.doubt(j),
                    false => {}
                }
            }
        }
        if power && core.settling == Some(Settling::Start) {
            self.doubt_before_settled(i);
        }
        if self.serving == Some(i) {
            self.primary_gone();
        }
        self.tell_links();
    }

    /// The writes of a primary, in their order.
    fn note_history(&mut self, i: usize) {
        let is_catching_up = self.is_catching_up(i);
        let Some(core) = self.sites[i].core.as_mut() else { return };
        for (start, end, work) in core.history.drain(..) {
            let values = match work {
                Written::Write(data) => disk::values(&data),
                _ => vec![0; ((end - start) / BLOCK) as usize],
            };
            self.histories.write(i, (start / BLOCK, values));
        }
        let is_due = self.asynchronous >> i & 1 == 1 && self.random.u8(..100) == 0;
        if is_due && self.failure.is_none() {
            self.counts.in_catch_up += u64::from(is_catching_up);
            // The power could go now.
            let mut random = self.random.fork();
            let (mut data, mut meta) = (self.sites[i].data.clone(), self.sites[i].meta.clone());
            cut_running(self.sites[i].running.values(), &mut data, &mut meta, true, &mut random);
            data.cut(&mut random);
            self.check_copy(i, &data, &meta);
        }
    }

    /// M5: a copy that may be behind is a state that a primary's disk has had.
    fn check_far(&mut self, i: usize) {
        if self.asynchronous >> i & 1 == 1 {
            let (data, meta) = (self.sites[i].data.clone(), self.sites[i].meta.clone());
            self.check_copy(i, &data, &meta);
        }
    }

    fn check_copy(&mut self, i: usize, data: &Data, meta: &Meta) {
        let flags = meta.superblock().map_or(DiskFlags::default(), |block| block.flags);
        if !flags.contains(DiskFlags::CONSISTENT)
            || flags.contains(DiskFlags::FAILED)
            || flags.contains(DiskFlags::PRIMARY)
        {
            return;
        }
        self.counts.copies += 1;
        let content = meta.replayed(data);
        let others = (0..self.sites.len()).filter(|j| *j != i);
        let named = meta.superblock().and_then(|block| block.checkpoint);
        let since = named.map_or(Since::default(), |name| {
            self.counts.named += 1;
            self.checkpoints[name.as_str().parse::<usize>().unwrap()]
        });
        if let Err(why) = self.histories.check(&content, since) {
            if !others.into_iter().any(|j| self.mirrored(j) == content) {
                let log = meta.describe_log();
                self.fail(format!(
                    "M5: the copy of site {i} is no state of a primary since checkpoint {named:?}: {why}; {log}"
                ));
            }
        }
    }

    /// The witness ends, or a site is cut off from it, alone or together with the other site.
    fn fault_of_witness(&mut self, i: usize) {
        let witness = self.sites.len();
        let delay = self.random.u64(1000..4_000_000);
        match self.random.u8(..4) {
            0 => self.crash_witness(),
            1 => self.cut_for(i, witness, delay),
            2 => (0..witness).for_each(|j| self.cut_for(j, witness, delay)),
            _ => {
                // The whole machine's network.
                let i = self.serving.unwrap_or(i);
                self.cut_for(i, witness, delay);
                self.cut_for(i, (i + 1) % witness, delay);
            }
        }
    }

    fn cut_for(&mut self, i: usize, j: usize, delay: u64) {
        if self.link(i, j) % 2 == 0 {
            self.log(i, &format!("is cut off from {j}"));
            self.cut(i, j);
            self.later(delay, Task::Heal(i, j));
        }
    }

    fn fault(&mut self) {
        let n = self.sites.len();
        let i = self.random.usize(..n);
        if self.witness.is_some() && self.random.u8(..3) == 0 {
            return self.fault_of_witness(i);
        }
        if self.replaces && self.random.bool() && self.replace(i) {
            self.log(i, "has new disks");
            let delay = self.random.u64(100_000..4_000_000);
            return self.later(delay, Task::Restart(i));
        }
        match self.random.u8(..12) {
            0..=3 => {
                let power = self.random.u8(..3) != 0;
                self.crash(i, power);
                let delay = self.random.u64(100_000..4_000_000);
                self.later(delay, Task::Restart(i));
            }
            4 => {
                for j in 0..n {
                    self.crash(j, true);
                    let delay = self.random.u64(100_000..2_000_000);
                    self.later(delay, Task::Restart(j));
                }
            }
            5..=8 => {
                let j = (i + 1 + self.random.usize(..n - 1)) % n;
                if self.link(i, j) % 2 == 0 {
                    *self.links.entry((i.min(j), i.max(j))).or_default() += 1;
                    self.log(i, &format!("is cut off from {j}"));
                    self.tell_links();
                    let delay = self.random.u64(1000..4_000_000);
                    self.later(delay, Task::Heal(i, j));
                }
            }
            9 if self.random.u8(..4) == 0 && self.sites[i].heirs != 0 => self.sites[i].fail_sync = true,
            9 if self.serving != Some(i) && self.sites[i].core.is_some() && !self.sites[i].is_promoting => {
                self.log(i, "is to leave");
                self.counts.leaves += 1;
                self.event(i, Event::Command(Command::Leave));
                let life = self.sites[i].life;
                let delay = self.random.u64(1000..200_000);
                self.later(delay, Task::Off(i, life));
            }
            10 => {
                if let Some(primary) = self.serving {
                    self.sites[primary].is_promoting = true;
                    self.event(primary, Event::Command(Command::Demote));
                }
            }
            _ => {}
        }
    }

    /// A person who knows what is where, and never forces anything after the beginning.
    fn operate(&mut self) {
        let n = self.sites.len();
        if self.sites.iter().any(|site| site.is_promoting) {
            return;
        }
        if let Some(primary) = self.serving {
            let is_small = |core: &Core| core.size() < SIZE;
            if self.grows
                && self.sites[primary].core.as_ref().is_some_and(is_small)
                && self.random.u8(..4) == 0
            {
                self.look(primary);
                return self.event(primary, Event::Command(Command::Grow));
            }
            // A manager with a majority of its own does not wait for a primary that is cut off from it.
            let is_alone = (0..n).all(|j| j == primary || !self.linked(primary, j));
            let is_by_majority = self.witness.is_some() || n > 2 && self.has_quorum;
            let is_patient = self.witness.is_none() && self.random.u8(..4) != 0;
            if !is_by_majority || !is_alone || is_patient {
                return;
            }
            let i = (primary + 1 + self.random.usize(..n - 1)) % n;
            if self.sites[i].core.is_some() {
                self.log(i, "is to take over");
                self.sites[i].is_promoting = true;
                self.event(i, Event::Command(Command::Promote { force: false, fenced: Mask(0) }));
            }
            return;
        }
        if self.counts.promotions == 0 {
            if self.sites[0].core.is_some() {
                self.sites[0].is_promoting = true;
                self.event(0, Event::Command(Command::Promote { force: true, fenced: Mask(0) }));
            }
            return;
        }
        let last = self.last_primary;
        let heirs = self.sites[last].heirs;
        let i = self.random.usize(..n);
        if self.sites[i].core.is_none() {
            return;
        }
        let mut fenced = Mask(0);
        if self.witness.is_none() && i != last && heirs >> i & 1 == 1 && self.sites[last].core.is_none() {
            fenced = Mask::of(last as u8);
            self.hold_down = Some(last);
        }
        self.log(i, "is to be primary");
        self.sites[i].is_promoting = true;
        self.event(i, Event::Command(Command::Promote { force: false, fenced }));
    }

    fn client(&mut self) {
        let Some(i) = self.serving.filter(|_| self.requests.len() < DEPTH && self.client_on) else { return };
        self.next += 1;
        let id = self.next;
        // A few hot blocks in each extent, so that much overlaps.
        let mirrored = self.sites[i].core.as_ref().map_or(SIZE, Core::size);
        let extent = self.random.u64(..mirrored >> EXTENT_SHIFT);
        let first = (extent << EXTENT_SHIFT) / BLOCK + self.random.u64(..40);
        let n = self.random.u64(1..6);
        let request = match self.random.u8(..16) {
            0..=10 => {
                let values: Vec<_> = (0..n).map(|k| id * 8 + k).collect();
                let fua = self.random.u8(..12) == 0;
                self.model.issue(id, first, &values);
                self.requests.insert(id, Asked::Write { fua });
                self.counts.writes += 1;
                Request::Write { offset: first * BLOCK, data: disk::payload(&values), fua }
            }
            11 => {
                self.model.issue(id, first, &vec![0; n as usize]);
                self.requests.insert(id, Asked::Write { fua: false });
                Request::Zeroes {
                    offset: first * BLOCK,
                    len: (n * BLOCK) as u32,
                    fua: false,
                    trim: self.random.bool(),
                }
            }
            12 => {
                let mark = self.model.mark();
                self.requests.insert(id, Asked::Flush(mark));
                self.counts.flushes += 1;
                Request::Flush
            }
            _ => {
                self.requests.insert(id, Asked::Read(first, n));
                Request::Read { offset: first * BLOCK, len: (n * BLOCK) as u32 }
            }
        };
        self.event(i, Event::Request(RequestId(id), request));
        if self.asynchronous != 0 && id % 8 == 0 && !self.sites[i].is_promoting && self.hold_down.is_none() {
            let name = Checkpoint::new(self.checkpoints.len().to_string().as_bytes()).unwrap();
            self.checkpoints.push(self.histories.now(i));
            self.event(i, Event::Command(Command::Checkpoint(name)));
        }
    }

    fn step(&mut self) -> bool {
        let Some(Reverse((at, key))) = self.tasks.pop() else { return false };
        self.now = at;
        let Some(task) = self.todo.remove(&key) else { return true };
        match task {
            Task::Done(i, life, ticket, good) => self.done(i, life, ticket, good, key),
            Task::Deliver { from, to, class, link, header, payload } => {
                // Sometimes the daemon delivers what it queued in an earlier session.
                let is_present = self.link(from, to) == link || self.random.u8(..8) == 0;
                if is_present && self.linked(from, to) && to == self.sites.len() {
                    self.ask_witness(from, &payload);
                } else if is_present && self.linked(from, to) {
                    self.event(to, Event::Packet { class, header, payload });
                }
            }
            Task::Tick(i, life) => {
                if self.sites[i].life == life && self.sites[i].core.is_some() {
                    if self.trace
                        && std::env::var("DUMP")
                            .is_ok_and(|at| at.parse::<u64>().is_ok_and(|at| at <= self.now))
                    {
                        self.dump(i);
                    }
                    self.event(i, Event::Tick);
                    self.later(100_000, Task::Tick(i, life));
                }
            }
            Task::Client => {
                self.client();
                let longest = if self.random.u8(..10) == 0 || !self.faults_on { 20_000 } else { 600 };
                let delay = self.random.u64(20..longest);
                self.later(if self.serving.is_some() { delay } else { 20_000 }, Task::Client);
            }
            Task::Fault => {
                if self.faults_on {
                    self.fault();
                }
                let delay = self.random.u64(2000..400_000);
                self.later(delay, Task::Fault);
            }
            Task::Operator => {
                self.operate();
                self.tell_links();
                self.later(200_000, Task::Operator);
            }
            Task::Restart(i) => {
                if self.hold_down == Some(i) {
                    self.later(300_000, Task::Restart(i));
                } else if self.sites[i].core.is_none() {
                    self.start(i);
                    self.tell_links();
                }
            }
            Task::Cut(i, life, power) => {
                if self.faults_on && self.sites[i].life == life {
                    self.crash(i, power);
                    let delay = self.random.u64(10_000..2_000_000);
                    self.later(delay, Task::Restart(i));
                }
            }
            Task::Off(i, life) => {
                if self.sites[i].life == life {
                    let power = self.random.bool();
                    self.crash(i, power);
                    let delay = self.random.u64(10_000..2_000_000);
                    self.later(delay, Task::Restart(i));
                }
            }
            Task::Fenced(i, life, site) => {
                let other = usize::from(site.get());
                let is_off = self.sites[other].core.is_none();
                if is_off {
                    self.hold_down = Some(other);
                }
                if self.sites[i].life == life {
                    self.event(i, Event::Fenced(site, if is_off { 7 } else { 5 }));
                }
            }
            Task::Looked(i, life) => {
                if self.sites[i].life == life {
                    self.look(i);
                }
            }
            Task::Witnessed(to, life, ask) => self.witnessed_by(to, life, ask),
            Task::WitnessStarts => self.start_witness(),
            Task::Heal(i, j) => {
                let count = self.links.entry((i.min(j), i.max(j))).or_default();
                if *count % 2 == 1 {
                    *count += 1;
                    self.tell_links();
                }
            }
        }
        true
    }

    /// Everything that a stuck core may wait for.
    fn dump(&self, i: usize) {
        let Some(core) = &self.sites[i].core else { return };
        println!("site {i}: {:?}\n {:?}\n {:?}\n {:?}", core.log, core.activity, core.flushes, core.epochs);
        println!(" held {:?} store {} {}", core.held, core.store.version, core.store.durable);
        core.peers.iter().for_each(|peer| {
            println!(
                " {:?} {:?} {:?} out {:?} stable {} barriers {:?} in {:?} {:?}",
                peer.site,
                peer.stage,
                peer.part,
                peer.outstanding.len(),
                peer.stable,
                peer.barriers,
                peer.inbound.front(),
                peer.resync
            )
        });
        core.ops.iter().for_each(|(id, op)| {
            println!(
                " op {id}: {:?} {:x}..{:x} blocks {} epoch {} done {} {:?}",
                op.origin, op.start, op.end, op.blocks, op.epoch, op.is_done, op.pending
            )
        });
    }

    /// Runs until it holds, a minute at most. Returns true if it came to hold.
    pub fn until(&mut self, holds: impl Fn(&World) -> bool) -> bool {
        let end = self.now + 60_000_000;
        while self.failure.is_none() && !holds(self) && self.now < end && self.step() {}
        self.failure.is_none() && holds(self)
    }

    /// Gives a command and waits for its answer.
    pub fn command(&mut self, i: usize, command: Command) -> Result<(), Refusal> {
        self.answers.clear();
        self.event(i, Event::Command(command));
        assert!(self.until(|world| !world.answers.is_empty()), "{command:?} is not answered");
        self.answers.remove(0).1
    }

    /// Asks a site for something; the answer is in [`World::replies`].
    pub fn request(&mut self, i: usize, request: Request) -> u64 {
        self.next += 1;
        let id = SCRIPTED + self.next;
        self.event(i, Event::Request(RequestId(id), request));
        id
    }

    /// Writes a number into a block, and gives the number of the request.
    pub fn write(&mut self, i: usize, block: u64, value: u64) -> u64 {
        self.request(i, Request::Write { offset: block * BLOCK, data: disk::payload(&[value]), fua: false })
    }

    /// Cuts two sites off from each other, or lets them meet again.
    pub fn cut(&mut self, a: usize, b: usize) {
        *self.links.entry((a.min(b), a.max(b))).or_default() += 1;
        self.tell_links();
    }

    /// A site that stopped starts again.
    pub fn restart(&mut self, i: usize) {
        self.start(i);
        self.tell_links();
    }

    /// Returns true while a read of a site's data disk is under way.
    pub fn is_reading(&self, i: usize) -> bool {
        self.sites[i].running.values().any(|work| matches!(work, Work::Read(..)))
    }

    /// Returns true if the two are in sync, as the first sees it.
    pub fn in_sync(&self, a: usize, b: usize) -> bool {
        let state = self.sites[a].core.as_ref().and_then(|core| core.peer_state(site_id(b)));
        state == Some((Stage::Joined, Part::Equal))
    }

    pub fn run_for(&mut self, micros: u64) {
        let end = self.now + micros;
        while self.failure.is_none() && self.tasks.peek().is_some_and(|Reverse((at, _))| *at <= end) {
            self.step();
        }
        self.now = self.now.max(end);
    }

    pub fn set_faults(&mut self, on: bool) {
        self.faults_on = on;
    }

    /// Heals everything, and waits until all sites are equal and one serves.
    pub fn converge(&mut self) {
        self.faults_on = false;
        self.hold_down = None;
        for count in self.links.values_mut() {
            *count += *count % 2;
        }
        for i in 0..self.sites.len() {
            self.sites[i].fail_sync = false;
            // A failed disk is replaced, or repaired, by a restart.
            let failed = |site: &Site| {
                site.core.as_ref().is_some_and(|core| core.superblock().flags.contains(DiskFlags::FAILED))
            };
            if failed(&self.sites[i]) {
                self.crash(i, false);
            }
            if self.sites[i].core.is_none() {
                self.start(i);
            }
        }
        self.start_witness();
        self.tell_links();
        for n in 0..600 {
            self.run_for(100_000);
            if self.failure.is_some() || self.is_equal() {
                return;
            }
            if n > 300 {
                self.end_split();
            }
            if n > 300 && (0..self.sites.len()).any(|i| self.flags(i).contains(DiskFlags::FAILED)) {
                // The newest data was on the disk that failed: only a person can say that it is to be given up.
                self.is_over = true;
                return;
            }
        }
        let states: Vec<_> = (0..self.sites.len()).map(|i| self.state(i)).collect();
        self.fail(format!("M6: not equal a minute after the last fault: {states:?}"));
    }

    /// Of three sites a follower has a generation in which its primary, for all it knows, answered; both lost their power, and
    /// the others went on. What is served was compared with the reference: a person gives the follower's up.
    fn end_split(&mut self) {
        let Some(primary) = self.serving.filter(|_| self.sites.len() > 2) else { return };
        for i in (0..self.sites.len()).filter(|i| *i != primary) {
            let flags = self.sites[i].core.as_ref().map(|core| core.superblock().flags).unwrap_or_default();
            if flags.contains(DiskFlags::SPLIT_BRAIN) && !flags.contains(DiskFlags::DISCARD) {
                self.counts.discards += 1;
                self.event(i, Event::Command(Command::Discard));
            }
        }
    }

    /// A site's role, sessions, flags and generations, for people.
    fn state(&self, i: usize) -> String {
        let core = self.sites[i].core.as_ref();
        let peers: Vec<_> = (0..self.sites.len()).filter_map(|j| core?.peer_state(site_id(j))).collect();
        let block = core.map(|core| core.superblock().clone()).unwrap_or_default();
        let slots: Vec<_> = block
            .slots
            .iter()
            .filter_map(|slot| Some(format!("{} {} {}", slot.site?.get(), slot.generation, slot.flags)))
            .collect();
        let generations: Vec<_> = std::iter::once(block.current)
            .chain(block.history)
            .filter(|generation| generation.is_some())
            .map(|generation| generation.to_string())
            .collect();
        format!("{i}: {:?} {peers:?} {}; {generations:?}; slots {slots:?}", core.map(Core::role), block.flags)
    }

    fn is_equal(&self) -> bool {
        let Some(i) = self.serving else { return false };
        let Some(core) = &self.sites[i].core else { return false };
        (0..self.sites.len()).filter(|j| *j != i).all(|j| {
            core.peer_state(site_id(j)) == Some((Stage::Joined, Part::Equal))
                && self.sites[j].core.as_ref().is_some_and(|core| {
                    !core.superblock().slots.iter().any(|s| s.flags.contains(SlotFlags::SYNC_TARGET))
                })
        })
    }

    /// M3: at rest the disks of sites that call each other equal are equal; M1, M2: and hold what they must.
    pub fn compare(&mut self) {
        self.client_on = false;
        self.run_for(300_000);
        // Writes that waited for a majority may have begun just now.
        let is_at_rest = |world: &World| {
            let core = world.serving.and_then(|i| world.sites[i].core.as_ref());
            core.is_none_or(|core| core.ops.iter().all(|(_, op)| op.epoch == 0))
        };
        if !self.until(is_at_rest) {
            return self.fail("M6: a write is under way for a minute".to_owned());
        }
        let Some(i) = self.serving else { return };
        let Some(core) = &self.sites[i].core else { return };
        let good = core.reads_locally();
        for j in (0..self.sites.len()).filter(|j| *j != i && good) {
            if core.peer_state(site_id(j)) != Some((Stage::Joined, Part::Equal)) {
                continue;
            }
            let (a, b) = (&self.sites[i].data.now, &self.sites[j].data.now);
            let sizes = [i, j].map(|site| self.sites[site].core.as_ref().map_or(0, Core::size));
            if sizes[0] != sizes[1] {
                return self.fail(format!("M3: sites {i} and {j} are equal, and mirror {sizes:?} bytes"));
            }
            let blocks = (sizes[0] / BLOCK) as usize;
            if let Some(block) = (0..blocks).find(|block| a[*block] != b[*block]) {
                let what = format!(
                    "M3: sites {i} and {j} are equal, and block {block} is {} and {}",
                    a[block], b[block]
                );
                return self.fail(what);
            }
        }
        if good {
            for block in self.model.blocks().collect::<Vec<_>>() {
                if let Err(why) = self.model.check(i, block, self.sites[i].data.now[block as usize]) {
                    return self.fail(format!("M1, M2: at rest on site {i}: {why}"));
                }
            }
        }
        self.client_on = true;
    }
}
