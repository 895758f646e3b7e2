//! The handshake with another site, and the way from its decision to a session.
//!
//! Both ends decide from both records and state it; what follows is durable before this end says that it is ready. Must
//! never decide from facts that changed since they were sent. Called by the core.

use bytes::Bytes;

use super::event::{Action, Note};
use super::packet::{self, Fields};
use super::peer::{Part, Stage};
use super::resync::Resync;
use super::superblock::Then;
use super::{Core, mutated};
use crate::nbd::disk::format::SlotFlags;
use crate::nbd::mirror::facts::{KNOWS_CATCH_UP, KNOWS_CHECKPOINTS};
use crate::nbd::mirror::policy::primary_to_help;
use crate::nbd::mirror::record::{self, RecordError};
use crate::nbd::mirror::{
    ACK_ERRCODE, Decision, Disagreement, Facts, Generation, Outcome, Reach, Role, Rotate, Statement, decide,
    session,
};
use crate::wire::{Mask, PacketType};

impl Core {
    pub(super) fn connected(&mut self, sites: Mask) {
        self.witness_connected(sites);
        for i in 0..self.peers.len() {
            let Some(peer) = self.peers.get_mut(i) else { continue };
            let linked = sites.contains(peer.site.get());
            let was_linked = std::mem::replace(&mut peer.linked, linked);
            if !was_linked {
                peer.apart_since = self.now;
            }
            match (was_linked, linked) {
                (_, true) => self.greet_if_alone(i),
                (true, false) => {
                    self.lose(i, "the connection ended");
                    if let Some(peer) = self.peers.get_mut(i) {
                        (peer.own, peer.theirs, peer.decision) = (None, None, None);
                    }
                }
                (false, false) => {}
            }
        }
    }

    /// Begins, or repeats, the handshake with a site that there is no session with.
    pub(super) fn greet_if_alone(&mut self, i: usize) {
        let Some(peer) = self.peers.get(i) else { return };
        let wait = if peer.decision.is_some() { 5 } else { 1 };
        let is_due = peer.own.is_none() || self.now.saturating_sub(peer.progress).as_secs() >= wait;
        if peer.linked && peer.session == 0 && is_due && self.now >= peer.not_before {
            self.greet(i);
        }
    }

    /// Begins the handshake with each site that there is no session with, and anew with those whose session depends on
    /// what has changed.
    pub(super) fn greet_all(&mut self) {
        for i in 0..self.peers.len() {
            let Some(peer) = self.peers.get(i).filter(|peer| peer.linked) else { continue };
            let is_idle = peer.session != 0 && peer.part == Part::Idle;
            if is_idle {
                self.lose(i, "the primary that both followed is gone");
            }
            if self.peers.get(i).is_some_and(|peer| peer.session == 0) && self.is_stale(i) {
                self.greet(i);
            }
        }
    }

    pub(super) fn facts(&mut self, i: usize) -> Facts {
        let nonce = self.random.u64(1..);
        let last_session = self.peers.get(i).map_or(0, |peer| peer.last_session);
        self.facts_with(nonce, last_session)
    }

    /// The facts of this site as they are now.
    pub(super) fn facts_with(&self, nonce: u64, last_session: u64) -> Facts {
        let facts = Facts {
            site: self.config.site,
            resource: self.config.resource,
            device: self.config.device,
            nonce,
            last_session,
            role: self.role,
            follows: self.follows,
            asynchronous: self.config.asynchronous.contains(self.config.site.get()),
            flags: self.store.wanted.flags,
            members: self.store.wanted.members,
            current: Generation::NONE,
            history: Vec::new(),
            slots: Vec::new(),
            size: self.config.layout.data_size,
            agreed_size: 0,
            chunk_shift: self.config.layout.chunk_shift,
            write_counter: 0,
            policies: self.config.tuning.policies,
            software: self.config.software.clone(),
            abilities: KNOWS_CHECKPOINTS | KNOWS_CATCH_UP,
            log_room: self.catch_up_room(),
        };
        let mut facts = facts.with_superblock(&self.store.wanted, |site| self.out_of_sync(site));
        for slot in &mut facts.slots {
            slot.flags.set(SlotFlags::ASYNCHRONOUS, self.config.asynchronous.contains(slot.site.get()));
        }
        if mutated!(self, TakeTwin) {
            facts.slots.iter_mut().for_each(|slot| slot.stable = 0);
        }
        facts
    }

    /// Returns true if what this site said of itself last does not hold any more.
    fn is_stale(&mut self, i: usize) -> bool {
        let mut fresh = self.facts(i);
        let Some((said, _)) = self.peers.get(i).and_then(|peer| peer.own.as_ref()) else { return true };
        let mut said = said.clone();
        fresh.nonce = said.nonce;
        for slot in said.slots.iter_mut().chain(&mut fresh.slots) {
            // They change all the time, and the bitmaps are exchanged.
            (slot.out_of_sync, slot.stable) = (0, 0);
        }
        said != fresh
    }

    fn greet(&mut self, i: usize) {
        let is_leaving = self.role_change == super::role::Change::Left || self.role_change.is_witnessing();
        if self.settling.is_some()
            || !self.is_local
            || self.stopped
            || is_leaving
            || self.is_target_besides(i)
        {
            return;
        }
        if self.store.version > self.store.durable {
            return self.change(Then::Greet);
        }
        let facts = self.facts(i);
        let record = record::encode(&facts);
        let Some(peer) = self.peers.get_mut(i) else { return };
        if peer.decision.is_some() {
            // It was there a while ago: it gets the time of a handshake once more.
            peer.apart_since = self.now;
        }
        (peer.own, peer.decision, peer.progress) = (Some((facts, record)), None, self.now);
        self.send_hello(i);
        self.decide_with(i);
    }

    /// Returns true if another site than this is copied to here, or is about to: until that ends nobody else can use what is here.
    fn is_target_besides(&self, i: usize) -> bool {
        (0..self.peers.len()).any(|n| n != i && self.is_target_of(n)) || self.is_grown_by_another(i)
    }

    /// Returns true if another site is about to give its content up for what is here.
    fn is_promised_to_another(&self, i: usize) -> bool {
        let is_promised = |peer: &super::Peer| {
            peer.part == Part::Source && matches!(peer.stage, Stage::Preparing | Stage::Ready)
        };
        self.peers.iter().enumerate().any(|(n, peer)| n != i && is_promised(peer))
    }

    /// Greets the sites whose content is to come here, and which waited for the begin of a copy from here.
    fn greet_sources(&mut self) {
        let own = Some(self.config.site);
        for i in 0..self.peers.len() {
            let waits = |peer: &super::Peer| {
                peer.linked
                    && peer.session == 0
                    && peer.decision.is_some_and(|(decision, _)| decision.target() == own)
            };
            if self.peers.get(i).is_some_and(waits) && !self.is_promised_to_another(i) {
                self.greet(i);
            }
        }
    }

    fn send_hello(&mut self, i: usize) {
        let Some(peer) = self.peers.get(i) else { return };
        let heard = peer.theirs.as_ref().map_or(0, |(facts, _)| facts.nonce);
        let Some((_, record)) = &peer.own else { return };
        let payload = Bytes::from(record.clone());
        // With the last nonce it heard, so that the other end knows whether its own record has come.
        self.send(i, PacketType::SC_HS, Fields { value: heard, ..Fields::default() }, payload);
    }

    pub(super) fn hello(&mut self, i: usize, fields: &Fields, payload: &[u8]) {
        if fields.flags & packet::REPLY != 0 {
            return self.record_asked(i, fields, payload);
        }
        let Some(peer) = self.peers.get(i) else { return };
        if self.is_target_besides(i) && peer.session == 0 {
            // It tries again.
            return;
        }
        let site = peer.site;
        let facts = match record::decode(payload, site, self.config.resource) {
            Ok(facts) => facts,
            Err(error) => {
                if error == RecordError::CModule {
                    let fields = Fields { errcode: ACK_ERRCODE, ..Fields::default() };
                    self.send(i, PacketType::SC_HS_ACK, fields, Bytes::new());
                }
                return self.note(Note::Refused(site, error.to_string()));
            }
        };
        if let Some(why) = self.misfit(&facts) {
            self.lose_for(i, "its disk or metadata are of another kind now", false);
            return self.note(Note::Refused(site, why));
        }
        let is_known = peer.theirs.as_ref().is_some_and(|(known, _)| known.nonce == facts.nonce);
        if !is_known {
            if peer.session != 0 {
                self.lose_for(i, "it begins anew", false);
            }
            if let Some(peer) = self.peers.get_mut(i) {
                peer.known = Some(Box::new(facts.clone()));
                peer.theirs = Some((facts, payload.to_vec()));
                peer.decision = None;
            }
        } else if peer.session != 0 {
            return;
        }
        if self.peers.get(i).is_none_or(|peer| peer.own.is_none()) || self.is_stale(i) {
            return self.greet(i);
        }
        let own = self.peers.get(i).and_then(|peer| peer.own.as_ref()).map_or(0, |(own, _)| own.nonce);
        if fields.value != own {
            self.send_hello(i);
        }
        if !is_known {
            self.decide_with(i);
        }
    }

    /// Returns the reason why this disk and that one cannot mirror each other, if there is one: bits count chunks.
    pub(super) fn misfit(&self, theirs: &Facts) -> Option<String> {
        let layout = &self.config.layout;
        let (own, site) = (self.config.site, theirs.site);
        if theirs.asynchronous != self.config.asynchronous.contains(site.get()) {
            return Some(format!(
                "the configuration of {site} and that of {own} differ in the <protocol> of {site}: make them the same, and start \
                 both anew"
            ));
        }
        let (mine, other) = (layout.chunk(), 1_u64.checked_shl(theirs.chunk_shift.into()).unwrap_or(0));
        (mine != other).then(|| {
            format!(
                "the metadata of {own} has chunks of {mine} bytes and that of {site} of {other}: make the metadata anew where the \
                 content is to be overwritten: `hadm-nbd init --force --chunk {other}` at {own}, or `--chunk {mine}` at {site}"
            )
        })
    }

    /// Decides, if both records are there, and states it.
    fn decide_with(&mut self, i: usize) {
        let Some(peer) = self.peers.get(i) else { return };
        let (Some((own, own_bytes)), Some((theirs, their_bytes))) = (&peer.own, &peer.theirs) else { return };
        let decision = decide(own, theirs);
        let nonce = session((own.site, own_bytes), (theirs.site, their_bytes));
        let statement = Statement::new(theirs.nonce, nonce, &decision);
        let (site, words) = (peer.site, decision.sentence(own, theirs));
        if let Some(peer) = self.peers.get_mut(i) {
            peer.decision = Some((decision, statement));
        }
        let fields = Fields { errcode: ACK_ERRCODE, ..Fields::default() };
        self.send(i, PacketType::SC_HS_ACK, fields, Bytes::from(statement.encode()));
        self.note(Note::Decision(site, words));
        let is_latched = self.store.wanted.flags.contains(crate::nbd::disk::format::DiskFlags::SPLIT_BRAIN);
        self.call_helper(i, &decision);
        if matches!(decision.outcome, Outcome::SplitBrain { .. }) && !is_latched {
            self.store.wanted.latch_split_brain();
            self.change(Then::Nothing);
        }
    }

    /// Has the program of the split brain called, once for each state of the other site.
    fn call_helper(&mut self, i: usize, decision: &Decision) {
        let Some(peer) = self.peers.get_mut(i) else { return };
        let (Some((own, _)), Some((theirs, _))) = (&peer.own, &peer.theirs) else { return };
        let is_hit = decision.outcome == Outcome::SplitBrain { bitmap: true }
            && primary_to_help(own, theirs) == Some(own.site);
        if is_hit && peer.helped != Some(theirs.current) {
            peer.helped = Some(theirs.current);
            let site = peer.site;
            self.out.push(Action::CallHelper(site));
        }
    }

    pub(super) fn statement(&mut self, i: usize, payload: &[u8]) {
        let Some(peer) = self.peers.get(i).filter(|peer| peer.session == 0) else { return };
        let (Some((decision, statement)), Some((own, _))) = (peer.decision, &peer.own) else { return };
        let site = peer.site;
        match statement.check(payload, own.nonce) {
            Ok(()) => {}
            Err(Disagreement::Stale | Disagreement::Form) => return,
            Err(disagreement) => return self.note(Note::Refused(site, disagreement.to_string())),
        }
        if !decision.replicates() && !matches!(decision.outcome, Outcome::Defer { .. }) {
            return;
        }
        if decision.demote == Some(self.config.site) {
            return self.step_down();
        }
        if self.takes_size(i, decision.size) {
            return;
        }
        let is_undone =
            self.is_primary() && decision.outcome == Outcome::NoSync && self.out_of_sync(site) > 0;
        if self.is_stale(i) || is_undone || decision.demote.is_some() {
            return self.greet(i);
        }
        if decision.target() == Some(self.config.site) && self.is_promised_to_another(i) {
            // It tries again when that one has begun.
            return;
        }
        self.prepare(i, statement.session);
    }

    /// Both ends have agreed: makes durable what follows.
    fn prepare(&mut self, i: usize, session: u64) {
        let own_site = self.config.site;
        let now = self.now;
        let Some(peer) = self.peers.get_mut(i) else { return };
        let (Some((decision, _)), Some((theirs, _))) = (peer.decision, peer.theirs.clone()) else { return };
        (peer.session, peer.stage, peer.progress) = (session, Stage::Preparing, now);
        (peer.is_ready, peer.sent, peer.received) = (false, [0; 2], [0; 2]);
        peer.awaits_source = false;
        let slot = peer.slot;
        match decision.outcome {
            Outcome::Sync { source, reach, .. } => {
                let is_target = source != own_site;
                if is_target {
                    self.lose_others(i);
                }
                let Some(peer) = self.peers.get_mut(i) else { return };
                peer.part = if is_target { Part::Target } else { Part::Source };
                peer.resync = Some(Resync::new(reach == Reach::Full));
                if is_target {
                    self.begin_larger(decision.size);
                    self.choose_way(i);
                }
                let third = match reach {
                    Reach::Full => None,
                    Reach::Bitmap { of } => of,
                };
                let third = third.filter(|_| !is_target).and_then(|site| self.bitmap(site)).cloned();
                if let Some(map) = self.bitmaps.get_mut(slot) {
                    if reach == Reach::Full && !mutated!(self, BelieveBits) {
                        map.set(0..u64::MAX);
                    }
                    third.iter().for_each(|third| _ = map.unite(third));
                }
                if is_target && theirs.role == Role::Primary {
                    self.follow(i);
                }
                self.flush_bits_for(i, session);
            }
            Outcome::NoSync => {
                peer.part = Part::Equal;
                self.store.wanted.join(&theirs, &decision);
                self.limit_bitmaps();
                if theirs.role == Role::Primary {
                    self.follow(i);
                }
                self.change(Then::Prepared(i, session));
            }
            _ => {
                peer.part = Part::Idle;
                self.change(Then::Prepared(i, session));
            }
        }
    }

    /// The state of this disk that other sites have does not hold any more.
    fn lose_others(&mut self, i: usize) {
        for n in 0..self.peers.len() {
            if n != i {
                self.lose(n, "another site is copied to here first");
                // Of a primary that ended in that session this disk will not say that it outlived it, unless the source does.
                if let Some(peer) = self.peers.get_mut(n) {
                    peer.last_session = 0;
                }
            }
        }
    }

    /// The bits of a resync are durable.
    pub(super) fn bits_prepared(&mut self, i: usize, session: u64) {
        if i == usize::MAX && session == super::loss::BITS_OF_SETTLED {
            return self.settled_bits_stored();
        }
        if i == usize::MAX && session == super::grow::BITS_OF_GROWTH {
            return self.bits_of_growth_stored();
        }
        if i == usize::MAX {
            return self.bits_of_leaver_stored();
        }
        let Some(peer) = self.peers.get(i).filter(|peer| peer.session == session && session != 0) else {
            return;
        };
        if peer.stage == Stage::Joined {
            return self.bits_known(i);
        }
        let (Some((decision, _)), Some((theirs, _))) = (&peer.decision, &peer.theirs) else { return };
        if peer.resync.as_ref().is_some_and(|resync| resync.staged.is_some()) {
            // Nothing of it is on the disk here before all of it has come.
            self.void_log();
            return self.change(Then::Prepared(i, session));
        }
        let (is_target, theirs, decision) = (peer.part == Part::Target, theirs.clone(), *decision);
        if is_target && !peer.is_ready {
            // Of three that meet at once each may be about to copy from the next: a source that becomes a target says nothing, and
            // what is here is not given up before it has.
            if let Some(peer) = self.peers.get_mut(i) {
                peer.awaits_source = true;
            }
            return;
        }
        if is_target {
            self.take_larger();
            self.outcount(&theirs);
        }
        self.store.wanted.begin_resync(&theirs, &decision);
        if is_target {
            // The content that it was for may be given up; the source names its last one when it ends.
            self.store.wanted.checkpoint = None;
        }
        self.void_log();
        self.limit_bitmaps();
        self.change(Then::Prepared(i, session));
    }

    /// Counts above what the source of a resync remembers of another disk in this one's place.
    pub(super) fn outcount(&mut self, source: &Facts) {
        if mutated!(self, CountAnew) {
            return;
        }
        let remembered = source.slot(self.config.site).map_or(0, |slot| slot.stable);
        self.store.wanted.outcount(remembered);
    }

    pub(super) fn prepared(&mut self, i: usize, session: u64) {
        let Some(peer) = self.peers.get_mut(i).filter(|peer| peer.session == session) else { return };
        peer.stage = Stage::Ready;
        let is_ready = peer.is_ready;
        self.send(i, PacketType::SC_STARTREP, Fields::default(), Bytes::new());
        if is_ready {
            self.joined(i);
        }
    }

    pub(super) fn peer_is_ready(&mut self, i: usize) {
        let Some(peer) = self.peers.get_mut(i) else { return };
        peer.is_ready = true;
        let session = peer.session;
        if std::mem::take(&mut peer.awaits_source) {
            self.bits_prepared(i, session);
        } else if peer.stage == Stage::Ready {
            self.joined(i);
        }
    }

    fn joined(&mut self, i: usize) {
        let before = self.epochs.current() - 1;
        let now = self.now;
        let Some(peer) = self.peers.get_mut(i) else { return };
        (peer.stage, peer.stable, peer.progress) = (Stage::Joined, before, now);
        peer.last_session = peer.session;
        let (part, site) = (peer.part, peer.site);
        self.note_void(i);
        if self.is_primary() {
            self.note(Note::Joined(site));
            // It tells at once who has the data.
            self.barrier();
        }
        match part {
            Part::Target => self.send_bits(i, PacketType::SD_DBM_REQ),
            Part::Source => {
                self.answer_bits(i);
                self.greet_sources();
            }
            Part::Equal | Part::Idle => {}
        }
        if part == Part::Equal {
            self.caught_up(i);
        }
        if part != Part::Idle {
            self.came_back(site);
        }
        self.release();
    }

    /// Returns true while a site with equal data is about to join: a write now would be on this disk alone.
    pub(super) fn is_joining(&self) -> bool {
        let joins = |peer: &super::Peer| {
            peer.part == Part::Equal && matches!(peer.stage, Stage::Preparing | Stage::Ready)
        };
        self.peers.iter().any(joins)
    }
}
