//! A run: rounds of faults under traffic, each with an end at which all is healed, looked at and compared.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use super::client::{Connection, FLUSH, READ};
use super::faults::{Fault, Shim, can_cut, control, end_all};
use super::ledger::{BLOCK, Ledger};
use super::sites::{Sites, output};
use super::support::TempDir;
use super::worker::{Traffic, work};

const CLIENTS: usize = 4;
/// Longest time from the end of all faults until everything is in sync, with a resync of all active extents.
const CONVERGES: Duration = Duration::from_secs(150);
/// From then on clients rest, so that a resync on a busy machine need not give way to them.
const GIVES_WAY: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

struct Run {
    sites: Sites,
    traffic: &'static Traffic,
    random: fastrand::Rng,
    begun: Instant,
    counts: BTreeMap<String, u64>,
    events: Vec<String>,
    can_cut: bool,
    has_shim: bool,
}

/// A directory in memory, where there is a place for it.
pub fn directory_in_memory() -> TempDir {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let place = Path::new("/dev/shm");
    if !place.is_dir() {
        return TempDir::new();
    }
    let path = place.join(format!("hadmd-chaos-{}-{}", std::process::id(), COUNT.fetch_add(1, SeqCst)));
    fs::create_dir_all(&path).unwrap();
    TempDir { path }
}

/// Two sites with disks of this size in memory, which can be made to fail; site 0 is primary. A resync gives way to
/// clients little: rounds are to be short. At the sites in `in_one`, daemon and mirror are one process.
pub fn start(size: u64, more: &str, in_one: &[usize]) -> Option<(Sites, bool)> {
    let more = format!("<resyncmin>64M</resyncmin>{more}");
    let mut sites = Sites::prepare_in(2, &more, directory_in_memory())?;
    sites.in_one = in_one.to_vec();
    for site in sites.all() {
        File::options().write(true).open(sites.disk(site)).unwrap().set_len(size).unwrap();
        sites.init(site, &["--clean"]);
    }
    let shim = Shim::build(&sites);
    if let Some(shim) = &shim {
        sites.environment = sites.all().map(|site| shim.environment(&sites, site)).collect();
    }
    sites.all().for_each(|site| sites.start_site(site));
    sites.wait_in_sync();
    sites.hadmctl(0, &["primary", "data"]).unwrap();
    Some((sites, shim.is_some()))
}

pub fn run(secs: u64, seed: u64) {
    // 1500 extents of 4 MiB, or 8: an activity log holds 1000.
    let size = if std::env::var_os("LARGE").is_some() { 6000 * MIB } else { 32 * MIB };
    // With odd seeds writes here and there make extents active and inactive all the time.
    let more = if seed % 2 == 1 { "<activeextents>4</activeextents>" } else { "" };
    // One process at no site, at site 1, at both, in turn.
    let in_one = [&[][..], &[1], &[0, 1]][(seed % 3) as usize];
    let Some((sites, has_shim)) = start(size, more, in_one) else { return };
    let mut random = fastrand::Rng::with_seed(seed);
    let mut places: Vec<u64> = (0..(size - MIB) / BLOCK as u64).collect();
    random.shuffle(&mut places);
    places.truncate(4000);
    let ledger = Ledger::new(places.iter().map(|place| place * BLOCK as u64).collect());
    let sockets = sites.all().map(|site| sites.path("sockets", site).join("data.nbd")).collect();
    // Leaked: a client that hangs must not keep the run from saying so.
    let traffic: &'static Traffic = Box::leak(Box::new(Traffic {
        ledger,
        sockets,
        primary: 0.into(),
        over: false.into(),
        quiet: false.into(),
        resting: 0.into(),
        answered: 0.into(),
        connections: 0.into(),
        errors: Default::default(),
        hot: size - MIB,
    }));
    for own in 0..CLIENTS {
        thread::spawn(move || work(traffic, own, CLIENTS, seed));
    }
    let mut run = Run {
        sites,
        traffic,
        random,
        begun: Instant::now(),
        counts: BTreeMap::new(),
        events: Vec::new(),
        can_cut: can_cut(),
        has_shim,
    };
    let mut result = Ok(());
    while result.is_ok() && run.begun.elapsed() < Duration::from_secs(secs) {
        result = run.round();
    }
    run.traffic.over.store(true, SeqCst);
    run.report(seed);
    if let Err(error) = result {
        let last = run.events.len().saturating_sub(60);
        panic!("seed {seed}: {error}\nwhat happened last:\n{}", run.events[last..].join("\n"));
    }
    run.sites.stop();
}

impl Run {
    fn say(&mut self, what: String) {
        let line = format!("{:8.3} {what}", self.begun.elapsed().as_secs_f64());
        if std::env::var_os("VERBOSE").is_some() {
            println!("{line}");
        }
        self.events.push(line);
    }

    fn count(&mut self, what: &str) {
        *self.counts.entry(what.into()).or_default() += 1;
    }

    /// Waits until the condition holds, or all of the time.
    ///
    /// # Errors
    /// A violation that a client has found meanwhile.
    fn wait(&self, limit: Duration, mut holds: impl FnMut() -> bool) -> Result<bool, String> {
        let end = Instant::now() + limit;
        loop {
            if let Some(violation) = self.traffic.ledger.violation() {
                return Err(violation);
            }
            if holds() {
                return Ok(true);
            }
            if Instant::now() >= end {
                return Ok(false);
            }
            thread::park_timeout(Duration::from_millis(20));
        }
    }

    fn round(&mut self) -> Result<(), String> {
        if self.has_shim && self.random.u32(0..4) == 0 {
            // Nothing happens to the other site: a disk that fails while that is away has the only copy of the last writes.
            let kind = *self.random.choice(&['r', 'w', 'f', 's']).unwrap_or(&'f');
            let site = self.random.usize(0..2);
            self.begin(Fault::Disk(site, kind))?;
            // The other site has all of it: a secondary's copy is one too many, and a primary has noticed.
            let is_spare = site != self.traffic.primary.load(SeqCst)
                || self.sites.status(site)["flags"].as_str().is_some_and(|flags| flags.contains("failed"));
            for _ in 0..self.random.usize(0..=2) {
                if is_spare {
                    let fault = self.choose(site);
                    self.count("a disk fails, and more at its site");
                    self.begin(fault)?;
                    if self.random.bool() {
                        self.restart();
                    }
                }
            }
        } else {
            if self.random.u32(0..3) == 0 {
                let pause = Duration::from_millis(self.random.u64(10..500));
                self.wait(pause, || false)?;
                self.fail_over()?;
            }
            for _ in 0..self.random.usize(1..=4) {
                let site = self.random.usize(0..2);
                let fault = self.choose(site);
                self.begin(fault)?;
                if self.random.bool() {
                    self.restart();
                }
            }
        }
        match self.random.u32(0..3) {
            0 => self.fail_over()?,
            1 => self.change_over(),
            _ => {}
        }
        self.settle()
    }

    /// Lets a fault happen, and some time go by.
    fn begin(&mut self, fault: Fault) -> Result<(), String> {
        self.say(format!("{fault:?}"));
        self.count(&format!("{fault:?}"));
        fault.begin(&mut self.sites);
        let most = if self.random.u32(0..4) == 0 { 7000 } else { 800 };
        let pause = Duration::from_millis(self.random.u64(10..most));
        self.wait(pause, || false).map(|_| ())
    }

    fn choose(&mut self, site: usize) -> Fault {
        let most = if self.can_cut { 10 } else { 7 };
        match self.random.u32(0..most) {
            0 => Fault::KillMirror(site),
            1 => Fault::KillDaemon(site),
            2 => Fault::KillSite(site),
            3 | 4 => Fault::StopMirror(site),
            5 | 6 => Fault::StopDaemon(site),
            7 => Fault::Cut(site),
            8 => Fault::Deaf(site),
            _ => Fault::Mute(site),
        }
    }

    /// Starts what is not there, or has ended.
    fn restart(&mut self) {
        for site in self.sites.all() {
            for is_mirror in [false, true] {
                if !is_mirror && self.sites.in_one.contains(&site) {
                    continue;
                }
                let programs = if is_mirror { &mut self.sites.mirrors } else { &mut self.sites.daemons };
                if programs[site].as_mut().is_some_and(|program| program.is_running()) {
                    continue;
                }
                if is_mirror {
                    // Its disk must be there at the start.
                    if self.has_shim {
                        control(&self.sites, site, '-');
                    }
                    self.sites.start_mirror(site);
                } else {
                    self.sites.start_daemon(site);
                }
                self.say(format!("started {} {site}", if is_mirror { "mirror" } else { "daemon" }));
            }
        }
    }

    /// The superblock of a site: its generation, and true if its disk is whole.
    fn generation(&self, site: usize) -> (String, bool) {
        let dumped = self.sites.program(site).args(["dump", "data"]).output().unwrap();
        let text = output(&dumped);
        let value = |name: &str| {
            let mut lines = text.lines().filter_map(|line| line.trim().strip_prefix(name));
            lines.next().unwrap_or_else(|| panic!("no {name} in {text}")).trim().to_owned()
        };
        let flags = value("flags ");
        let is_whole =
            flags.starts_with("consistent") && !flags.contains("outdated") && !flags.contains("failed");
        // The mark of a primary is no part of it.
        (value("current ").trim_end_matches('*').to_owned(), is_whole)
    }

    /// The primary's machine dies. If it went no further than the other site, that one takes over and has all.
    fn fail_over(&mut self) -> Result<(), String> {
        let dead = self.traffic.primary.load(SeqCst);
        let survivor = 1 - dead;
        // Faults of the survivor would be a second one.
        end_all(&self.sites);
        self.restart();
        Fault::KillSite(dead).begin(&mut self.sites);
        let [(was, _), (is, is_whole)] = [dead, survivor].map(|site| self.generation(site));
        self.say(format!("site {dead} dies with {was}; site {survivor} has {is}, whole {is_whole}"));
        if was != is || !is_whole {
            self.count("a primary dies alone");
            return Ok(());
        }
        let mut said = String::new();
        let end = Instant::now() + CONVERGES;
        while Instant::now() < end {
            match self.sites.hadmctl(survivor, &["primary", "--force", "data"]) {
                Ok(_) => {
                    self.traffic.primary.store(survivor, SeqCst);
                    self.say(format!("site {survivor} took over"));
                    self.count("a survivor takes over");
                    let pause = Duration::from_millis(self.random.u64(0..500));
                    self.wait(pause, || false)?;
                    return Ok(());
                }
                Err(error) => said = error,
            }
            self.wait(Duration::from_millis(100), || false)?;
        }
        Err(format!("site {survivor} has all and cannot take over: {said}"))
    }

    /// The role is given to the other site in order, if that is possible at the moment.
    fn change_over(&mut self) {
        let from = self.traffic.primary.load(SeqCst);
        if self.sites.mirrors[from].is_none() || self.sites.mirrors[1 - from].is_none() {
            return;
        }
        end_all(&self.sites);
        self.restart();
        let left = self.sites.hadmctl(from, &["secondary", "data"]);
        let taken = self.sites.hadmctl(1 - from, &["primary", "data"]);
        self.say(format!("change-over from {from}: {left:?}, {taken:?}"));
        if taken.is_ok() {
            self.traffic.primary.store(1 - from, SeqCst);
            self.count("the role changes over");
        }
    }

    /// Ends all faults and waits until there is a primary and everything is in sync; then looks at every block.
    fn settle(&mut self) -> Result<(), String> {
        end_all(&self.sites);
        self.restart();
        self.say("all is healed".into());
        let begun = Instant::now();
        let (mut said, mut seen) = (String::new(), [String::new(), String::new()]);
        let mut restarted = [false; 2];
        'look: loop {
            let states = [0, 1].map(|site| self.sites.status(site));
            let sentence = |site: usize| states[site]["sentence"].as_str().unwrap_or_default().to_owned();
            let is_primary = |site: usize| states[site]["role"] == "primary";
            for site in [0, 1] {
                // Without what changes with every look.
                let new = sentence(site).split(',').next().unwrap_or_default().to_owned();
                if seen[site] != new {
                    self.say(format!("site {site}: {}", sentence(site)));
                    seen[site] = new;
                }
                if sentence(site).contains("split brain") {
                    return Err(format!("M4: site {site}: {}", sentence(site)));
                }
                // A disk that failed is looked at again by the next start alone.
                if sentence(site).contains("failed") && !restarted[site] {
                    restarted[site] = true;
                    self.say(format!("site {site} with a failed disk starts again: {}", sentence(site)));
                    self.sites.mirrors[site].take();
                    self.restart();
                    // The states from before are true no more.
                    continue 'look;
                }
            }
            let primaries: Vec<usize> = [0, 1].into_iter().filter(|site| is_primary(*site)).collect();
            match primaries[..] {
                [] => {
                    for site in [self.random.usize(0..2), 0, 1] {
                        match self.sites.hadmctl(site, &["primary", "data"]) {
                            Ok(_) => break,
                            Err(error) => said = error,
                        }
                    }
                }
                [site] => {
                    if self.traffic.primary.swap(site, SeqCst) != site {
                        self.say(format!("site {site} is primary"));
                    }
                    if self.sites.are_in_sync().is_ok() && self.look()? {
                        return Ok(());
                    }
                }
                _ => return Err(format!("M4: two primaries: {}; {}", sentence(0), sentence(1))),
            }
            if begun.elapsed() > CONVERGES {
                return Err(format!(
                    "M6: not in sync within {CONVERGES:?}: site 0: {}; site 1: {}; last refusal: {said}",
                    sentence(0),
                    sentence(1)
                ));
            }
            if begun.elapsed() > GIVES_WAY {
                self.traffic.quiet.store(true, SeqCst);
            }
            self.wait(Duration::from_millis(50), || false)?;
        }
    }

    /// Lets all clients finish, reads every block, and compares the disks. Returns false if the sites were not in sync all
    /// the time.
    fn look(&mut self) -> Result<bool, String> {
        self.traffic.quiet.store(true, SeqCst);
        let traffic = self.traffic;
        if !self.wait(super::client::HANGS * 2, || traffic.resting.load(SeqCst) == CLIENTS)? {
            return Err("M6: a client's requests have no answers".into());
        }
        let primary = traffic.primary.load(SeqCst);
        self.read_all(primary).map_err(|error| format!("M6: reading all at site {primary}: {error}"))?;
        if let Some(violation) = traffic.ledger.violation() {
            return Err(violation);
        }
        let before = self.sites.are_in_sync();
        let compared = self.compare();
        if let Err(why) = before.and(self.sites.are_in_sync()) {
            self.say(format!("no more in sync: {why}"));
            return Ok(false);
        }
        compared?;
        self.count("looks at all");
        self.say(format!("all is right; {} answers", traffic.answered.load(SeqCst)));
        traffic.quiet.store(false, SeqCst);
        Ok(true)
    }

    fn read_all(&self, primary: usize) -> std::io::Result<()> {
        let ledger = &self.traffic.ledger;
        let mut connection = Connection::open(&self.traffic.sockets[primary])?;
        for block in 0..ledger.len() {
            connection.ask(READ, 1, ledger.place(block), BLOCK as u32, &[])?;
            let (_, error) = connection.reply()?;
            if error != 0 {
                return Err(std::io::Error::other(format!("error {error} at block {block}")));
            }
            ledger.check(block, &connection.payload(BLOCK)?, "M1, M2: at rest");
        }
        connection.ask(FLUSH, 2, 0, 0, &[])?;
        let (_, error) = connection.reply()?;
        if error == 0 { Ok(()) } else { Err(std::io::Error::other(format!("error {error} of a flush"))) }
    }

    /// Every place that was written to must be the same in both files.
    fn compare(&self) -> Result<(), String> {
        let files = [0, 1].map(|site| File::open(self.sites.disk(site)).unwrap());
        let ledger = &self.traffic.ledger;
        let hot = (0..MIB).step_by(BLOCK).map(|at| self.traffic.hot + at);
        for place in (0..ledger.len()).map(|block| ledger.place(block)).chain(hot) {
            let [a, b] = [0, 1].map(|site: usize| {
                let mut bytes = vec![0; BLOCK];
                files[site].read_exact_at(&mut bytes, place).unwrap();
                bytes
            });
            if let Some(at) = a.iter().zip(&b).position(|(a, b)| a != b) {
                let at_byte = place + at as u64;
                return Err(format!(
                    "M3, M5: sites in sync differ at byte {at_byte}: {} and {}",
                    a[at], b[at]
                ));
            }
        }
        Ok(())
    }

    fn report(&self, seed: u64) {
        println!("seed {seed}, {:.0} s:", self.begun.elapsed().as_secs_f64());
        for (what, n) in &self.counts {
            println!("  {n:5} {what}");
        }
        let traffic = self.traffic;
        println!("  {:5} connections", traffic.connections.load(SeqCst));
        println!(
            "  {:5} answers; errors by number: {:?}",
            traffic.answered.load(SeqCst),
            traffic.errors.lock().unwrap()
        );
    }
}
