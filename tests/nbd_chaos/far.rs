//! A far site under faults that a seed chooses: whenever its copy is looked at, after a kill or by a promotion, it is a
//! state that the primary's disk has had (M5).
//!
//! Each of several writers goes round over blocks of its own, a write at a time. A state that there was holds the first
//! writes of each of them, and all that were answered before the newest of its writes was asked.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::client::{Connection, READ, WRITE};
use super::faults::{Fault, can_cut, end_all};
use super::ledger::{BLOCK, content};
use super::sites::{PATIENCE, SIZE, Sites};
use super::support::redial;

const WRITERS: usize = 4;
/// Blocks that a writer goes round over.
const RING: usize = 16;

/// A write: its version, and the moments at which it was asked and answered.
#[derive(Clone, Copy, Debug)]
struct Write {
    version: u64,
    asked: u64,
    answered: Option<u64>,
}

/// The writes of all writers in their order, and the moments.
#[derive(Default)]
struct History {
    logs: [Mutex<Vec<Write>>; WRITERS],
    clock: AtomicU64,
    primary: AtomicUsize,
    is_over: AtomicBool,
    is_quiet: AtomicBool,
    resting: AtomicUsize,
}

/// The place of a writer's block: neighbours lie in different extents of the activity log.
fn place(writer: usize, slot: usize) -> u64 {
    (((slot % 8) as u64) << 22) + ((writer * RING + slot) as u64) * 3 * BLOCK as u64
}

impl History {
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, SeqCst)
    }

    /// Writes to the primary, wherever it is, until all is over.
    fn write(&self, writer: usize, sockets: &[std::path::PathBuf]) {
        let mut is_resting = false;
        let pause = || thread::park_timeout(Duration::from_millis(5));
        while !self.is_over.load(SeqCst) {
            let Ok(mut connection) = Connection::open(&sockets[self.primary.load(SeqCst)]) else {
                self.rest(&mut is_resting);
                pause();
                continue;
            };
            while !self.is_over.load(SeqCst) {
                self.rest(&mut is_resting);
                if is_resting {
                    pause();
                } else if self.write_next(writer, &mut connection).is_err() {
                    break;
                }
            }
        }
    }

    /// Counts a writer as resting or not, as it is to be.
    fn rest(&self, is_resting: &mut bool) {
        let is_quiet = self.is_quiet.load(SeqCst);
        if std::mem::replace(is_resting, is_quiet) != is_quiet {
            _ = if is_quiet { self.resting.fetch_add(1, SeqCst) } else { self.resting.fetch_sub(1, SeqCst) };
        }
    }

    /// Asks for the last write again if it has no answer, or for a new one.
    fn write_next(&self, writer: usize, connection: &mut Connection) -> std::io::Result<()> {
        let (index, write) = {
            let mut log = self.logs[writer].lock().unwrap();
            if log.last().is_none_or(|last| last.answered.is_some()) {
                let asked = self.now();
                log.push(Write { version: asked + 1, asked, answered: None });
            }
            (log.len() - 1, *log.last().unwrap())
        };
        let data = content(writer, write.version);
        connection.ask(WRITE, 1, place(writer, index % RING), BLOCK as u32, &data)?;
        let (_, error) = connection.reply()?;
        if error != 0 {
            return Err(std::io::Error::from_raw_os_error(error as i32));
        }
        let answered = Some(self.now());
        self.logs[writer].lock().unwrap()[index].answered = answered;
        Ok(())
    }

    /// Returns for each writer the number of its writes that a disk holds.
    ///
    /// # Errors
    /// The disk is in no state that there was.
    fn prefix(&self, mut read: impl FnMut(u64) -> Vec<u8>) -> Result<[usize; WRITERS], String> {
        let mut held = [0; WRITERS];
        let mut newest = 0;
        for (writer, held) in held.iter_mut().enumerate() {
            let log = self.logs[writer].lock().unwrap();
            let mut found = Vec::new();
            for slot in 0..RING {
                let bytes = read(place(writer, slot));
                let version = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
                if bytes != content(writer, version) {
                    return Err(format!(
                        "writer {writer}, block {slot}: not one write's content: {:?}",
                        &bytes[..32]
                    ));
                }
                found.push(version);
            }
            let last = found.iter().copied().max().unwrap_or(0);
            *held = match log.iter().position(|write| write.version == last) {
                Some(index) => index + 1,
                None if last == 0 => 0,
                None => return Err(format!("writer {writer}: version {last} was never written")),
            };
            for (slot, version) in found.into_iter().enumerate() {
                let mut writes = log[..*held].iter().skip(slot).step_by(RING);
                let expected = writes.next_back().map_or(0, |write| write.version);
                if version != expected {
                    return Err(format!(
                        "writer {writer}, block {slot}: version {version} where its first {held} writes leave {expected}"
                    ));
                }
            }
            newest = newest.max(log[..*held].last().map_or(0, |write| write.asked));
        }
        for (writer, held) in held.iter().enumerate() {
            let log = self.logs[writer].lock().unwrap();
            if let Some(missing) =
                log[*held..].iter().find(|write| write.answered.is_some_and(|at| at < newest))
            {
                return Err(format!(
                    "writer {writer}: {missing:?} is missing, and a write asked at {newest}, after its answer, is there"
                ));
            }
        }
        Ok(held)
    }

    /// Lets writers have nothing under way.
    fn quieten(&self) {
        self.is_quiet.store(true, SeqCst);
        redial("the writers' rest", super::client::HANGS, || {
            (self.resting.load(SeqCst) == WRITERS).then_some(())
        });
    }
}

struct Run {
    sites: Sites,
    history: Arc<History>,
    random: fastrand::Rng,
    can_cut: bool,
    events: Vec<String>,
    looks: [u32; 4],
}

/// Two sites in memory, of which one is far; site 0 is primary.
fn start() -> Option<Sites> {
    let mut sites = Sites::prepare_in(2, "", super::run::directory_in_memory())?;
    sites.far = vec![1];
    sites.configure("<resyncmin>64M</resyncmin>");
    sites.all().for_each(|site| sites.init(site, &["--clean", "--log-size", "8M"]));
    sites.all().for_each(|site| sites.start_site(site));
    sites.wait(0, "site 1 follows in order");
    sites.hadmctl(0, &["primary", "--force", "data"]).unwrap();
    sites.wait(1, "secondary of site 0");
    Some(sites)
}

/// Runs this many histories of faults, each ended by a look at the far copy.
pub fn run(histories: u64, seed: u64) {
    let Some(sites) = start() else { return };
    let history = Arc::new(History::default());
    let sockets: Vec<_> = sites.all().map(|site| sites.path("sockets", site).join("data.nbd")).collect();
    for writer in 0..WRITERS {
        let (history, sockets) = (history.clone(), sockets.clone());
        thread::spawn(move || history.write(writer, &sockets));
    }
    let random = fastrand::Rng::with_seed(seed);
    let mut run = Run { sites, history, random, can_cut: can_cut(), events: Vec::new(), looks: [0; 4] };
    for number in 0..histories {
        if let Err(error) = run.round() {
            panic!("seed {seed}, history {number}: {error}\nwhat happened:\n{}", run.events.join("\n"));
        }
    }
    run.history.is_over.store(true, SeqCst);
    let [killed, promoted, moved, copying] = run.looks;
    println!(
        "seed {seed}: {histories} histories: the far copy was a state of the primary's in {killed} after a kill, {promoted} \
         promoted by force, {moved} promoted in order; {copying} were in the middle of a resync, and not called consistent"
    );
    run.sites.stop();
}

impl Run {
    fn far(&self) -> usize {
        1 - self.history.primary.load(SeqCst)
    }

    fn say(&mut self, what: String) {
        if std::env::var_os("VERBOSE").is_some() {
            println!("{what}");
        }
        self.events.push(what);
    }

    fn pause(&mut self, most: u64) {
        let pause = Duration::from_millis(self.random.u64(5..most));
        let end = Instant::now() + pause;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            thread::park_timeout(left);
        }
    }

    fn round(&mut self) -> Result<(), String> {
        self.events.clear();
        self.pause(600);
        for _ in 0..self.random.usize(0..=2) {
            let site = self.random.usize(0..2);
            let fault = match self.random.u32(0..if self.can_cut { 9 } else { 6 }) {
                0 => Fault::KillMirror(self.far()),
                1 => Fault::KillSite(self.far()),
                2 => Fault::KillDaemon(site),
                3 | 4 => Fault::StopMirror(self.far()),
                5 => Fault::StopDaemon(site),
                6 => Fault::Cut(site),
                7 => Fault::Deaf(site),
                _ => Fault::Mute(site),
            };
            self.say(format!("{fault:?}"));
            fault.begin(&mut self.sites);
            self.pause(1500);
            if self.random.bool() {
                end_all(&self.sites);
                self.restart();
                self.pause(500);
            }
        }
        match self.random.u32(0..4) {
            0 | 1 => self.look_after_kill()?,
            2 => self.promote_by_force()?,
            _ => self.switch_over()?,
        }
        self.heal()
    }

    /// Starts what is not there.
    fn restart(&mut self) {
        self.sites.all().for_each(|site| self.restart_site(site));
    }

    fn restart_site(&mut self, site: usize) {
        if self.sites.daemons[site].is_none() {
            self.sites.start_daemon(site);
        }
        if self.sites.mirrors[site].is_none() {
            self.sites.start_mirror(site);
        }
    }

    /// Returns true if a site calls its copy one that can be promoted.
    fn is_consistent(&self, site: usize) -> bool {
        let flags = self.sites.status(site)["flags"].as_str().unwrap_or_default().to_owned();
        flags.starts_with("consistent")
    }

    /// The far site's machine dies, and its mirror comes back alone.
    fn look_after_kill(&mut self) -> Result<(), String> {
        let far = self.far();
        end_all(&self.sites);
        Fault::KillSite(far).begin(&mut self.sites);
        self.sites.start_mirror(far);
        redial("the ordered log's end", PATIENCE, || {
            let flags = self.sites.status(far)["flags"].as_str().unwrap_or_default().to_owned();
            (!flags.contains("write indicator")).then_some(())
        });
        if !self.is_consistent(far) {
            self.looks[3] += 1;
            return Ok(());
        }
        let disk = fs::read(self.sites.disk(far)).unwrap();
        let held = self.history.prefix(|at| disk[at as usize..][..BLOCK].to_vec());
        self.say(format!("a look at site {far} after a kill: {held:?}"));
        self.looks[0] += 1;
        held.map(|_| ())
    }

    /// The primary's machine dies, and the far copy is promoted by force; the writers go on from its state.
    fn promote_by_force(&mut self) -> Result<(), String> {
        let (dead, far) = (1 - self.far(), self.far());
        Fault::KillSite(dead).begin(&mut self.sites);
        end_all(&self.sites);
        self.restart_site(far);
        if !self.is_consistent(far) {
            self.looks[3] += 1;
            return Ok(());
        }
        self.history.quieten();
        let promote = || self.sites.hadmctl(far, &["primary", "--force", "data"]);
        redial("the far copy's promotion", PATIENCE, || promote().ok());
        let held = self.read(far)?;
        self.say(format!("site {far} is promoted by force: {held:?}"));
        self.looks[1] += 1;
        for (log, held) in self.history.logs.iter().zip(held) {
            let mut log = log.lock().unwrap();
            log.truncate(held);
            if let Some(last) = log.last_mut().filter(|last| last.answered.is_none()) {
                last.answered = Some(self.history.now());
            }
        }
        self.history.primary.store(far, SeqCst);
        self.history.is_quiet.store(false, SeqCst);
        self.pause(300);
        // Its changes that the far copy did not have are given up.
        self.restart();
        self.sites.hadmctl(dead, &["discard", "data"]).map(|_| ())
    }

    /// Returns for each writer the number of its writes that a primary's clients find.
    fn read(&self, primary: usize) -> Result<[usize; WRITERS], String> {
        let socket = self.sites.path("sockets", primary).join("data.nbd");
        let mut connection = Connection::open(&socket).map_err(|error| format!("site {primary}: {error}"))?;
        self.history.prefix(|at| {
            connection.ask(READ, 1, at, BLOCK as u32, &[]).unwrap();
            assert_eq!(connection.reply().unwrap().1, 0);
            connection.payload(BLOCK).unwrap()
        })
    }

    /// The role moves in order: no write that was answered is missing.
    fn switch_over(&mut self) -> Result<(), String> {
        self.heal()?;
        let (from, to) = (1 - self.far(), self.far());
        self.sites.hadmctl(from, &["secondary", "data"])?;
        self.history.quieten();
        redial("the promotion in order", PATIENCE, || self.sites.hadmctl(to, &["primary", "data"]).ok());
        let held = self.read(to)?;
        self.say(format!("the role moved to site {to}: {held:?}"));
        self.looks[2] += 1;
        for (writer, (log, held)) in self.history.logs.iter().zip(held).enumerate() {
            let log = log.lock().unwrap();
            if log[held..].iter().any(|write| write.answered.is_some()) {
                return Err(format!("writer {writer}: {held} of {log:?}: an answered write is missing"));
            }
        }
        self.history.primary.store(to, SeqCst);
        self.history.is_quiet.store(false, SeqCst);
        Ok(())
    }

    /// Ends all faults, and waits until the far site follows, has all, and the copies are the same.
    fn heal(&mut self) -> Result<(), String> {
        end_all(&self.sites);
        self.restart();
        let primary = 1 - self.far();
        let begun = Instant::now();
        self.history.is_quiet.store(false, SeqCst);
        loop {
            let state = self.sites.status(primary);
            let peer = &state["peers"][0];
            if peer["in_sync"] == true && peer["out_of_sync"] == 0 && peer["behind"]["bytes"] == 0 {
                break;
            }
            if state["role"] != "primary" {
                _ = self.sites.hadmctl(primary, &["primary", "--force", "data"]);
            }
            if begun.elapsed() > PATIENCE / 20 {
                // With writes without end it may never have all.
                self.history.is_quiet.store(true, SeqCst);
            }
            if begun.elapsed() > PATIENCE * 2 {
                return Err(format!("M6: {state}; {}", self.sites.status(1 - primary)));
            }
            thread::park_timeout(Duration::from_millis(20));
        }
        self.history.is_quiet.store(false, SeqCst);
        Ok(())
    }
}

/// The disk is large enough for all blocks.
const _: () = assert!((7 << 22) + (WRITERS * RING * 3 * BLOCK) as u64 <= SIZE);

/// The checker finds a copy that is no state of its primary.
#[test]
fn a_copy_without_an_earlier_write_is_no_state() {
    let history = History::default();
    let write = |version, asked, answered| Write { version, asked, answered: Some(answered) };
    history.logs[0].lock().unwrap().extend([write(1, 0, 1), write(3, 2, 3)]);
    history.logs[1].lock().unwrap().extend([write(5, 4, 5), write(7, 5, 6)]);
    let prefix = |held: [&[u64]; 2]| {
        history.prefix(|at| {
            let found = held.iter().enumerate().find_map(|(writer, versions)| {
                let slot = (0..RING).find(|slot| place(writer, *slot) == at)?;
                versions.get(slot).map(|version| content(writer, *version))
            });
            found.unwrap_or_else(|| vec![0; BLOCK])
        })
    };
    assert_eq!(prefix([&[], &[]]), Ok([0, 0, 0, 0]));
    assert_eq!(prefix([&[1, 3], &[5]]), Ok([2, 1, 0, 0]));
    // A hole in the writes of one, a write of another that was answered before, and what nobody wrote.
    for wrong in [[&[0, 3][..], &[]], [&[1], &[5]], [&[1, 3], &[0, 7]], [&[9], &[]]] {
        assert!(prefix(wrong).is_err(), "{wrong:?}");
    }
}
