//! Carries the faults out, and takes them back. Every fault can be taken back twice, and though others have hit
//! the same node meanwhile.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};
use std::{fs, thread};

use rustix::process::Signal;
use serde_json::json;
use socket2::SockRef;

use super::client::Orders;
use super::daemon::{Daemon, Settings};
use super::judge;
use super::ledger::Ledger;
use super::plan::{Change, Fault, KINDS, Links, Manner, Step, Way};
use super::support::{DATA, HELLO, META, PATIENCE, Packet, bit, connect_from, hello, kind};
use super::world::{self, STRANGER, Shape, ip, ip_batch};

/// The injector of the faults.
pub struct Injector {
    pub ledger: Arc<Ledger>,
    pub daemons: Arc<Vec<Daemon>>,
    pub clients: Vec<Arc<Orders>>,
    pub counts: BTreeMap<usize, u64>,
    /// Faults that last, with when to take them back and where they are in the ledger.
    lasting: Vec<(Instant, usize, Fault)>,
    /// Links that are dead, with the sessions that both nodes had heard of, and since when.
    dead: Vec<(Fault, [usize; 2], Instant)>,
}

impl Injector {
    pub fn new(ledger: &Arc<Ledger>, daemons: &Arc<Vec<Daemon>>, clients: Vec<Arc<Orders>>) -> Self {
        let (ledger, daemons) = (ledger.clone(), daemons.clone());
        Injector { ledger, daemons, clients, counts: BTreeMap::new(), lasting: Vec::new(), dead: Vec::new() }
    }

    /// When the next fault is to be taken back.
    pub fn next_end(&self) -> Option<Instant> {
        self.lasting.iter().map(|(end, ..)| *end).min()
    }

    pub fn begin(&mut self, step: &Step) {
        let now = Instant::now();
        let at = {
            let mut state = self.ledger.lock();
            state.say(format!("fault: {:?} for {} ms", step.fault, step.lasts.as_millis()));
            state.faults.push((*step, now, None));
            state.faults.len() - 1
        };
        *self.counts.entry(step.fault.kind()).or_default() += 1;
        if let Fault::DeadLink(a, b, meta, way) = step.fault {
            let epochs = judge::open_epochs(&self.ledger.lock(), a, b);
            if let (true, Some(epochs)) = (self.lose_link(a, b, meta, way), epochs) {
                self.dead.push((step.fault, epochs, Instant::now()));
            }
        }
        self.carry_out(step.fault);
        self.lasting.push((now + step.lasts, at, step.fault));
    }

    /// Takes back what is over by now, or all.
    pub fn end(&mut self, all: bool) {
        let now = Instant::now();
        self.lasting.sort_by_key(|(end, ..)| *end);
        while let Some(&(end, at, fault)) = self.lasting.first() {
            if end > now && !all {
                return;
            }
            self.lasting.remove(0);
            if let Fault::EndDaemon(node) = fault {
                match self.daemons[node].has_ended() {
                    Ok(true) => {}
                    Ok(false) => {
                        self.lasting.push((now + Duration::from_millis(20), at, fault));
                        self.lasting.sort_by_key(|(end, ..)| *end);
                        thread::park_timeout(Duration::from_millis(u64::from(all)));
                        continue;
                    }
                    Err(text) => self.ledger.violate(text),
                }
            }
            if let (Fault::DeadLink(a, b, ..), Some(at)) =
                (fault, self.dead.iter().position(|(dead, ..)| *dead == fault))
            {
                let (_, epochs, since) = self.dead.remove(at);
                judge::dead_link(&self.ledger, (a, b), epochs, since);
            }
            self.take_back(fault);
            let mut state = self.ledger.lock();
            state.faults[at].2 = Some(Instant::now());
            state.say(format!("over: {fault:?}"));
        }
    }

    fn carry_out(&self, fault: Fault) {
        match fault {
            Fault::KillDaemon(node) => self.daemons[node].kill(),
            Fault::EndDaemon(node) => self.daemons[node].ask_to_end(),
            Fault::StopDaemon(node) => self.daemons[node].signal(Signal::STOP),
            Fault::KillClient(node) => self.clients[node].away.store(true, SeqCst),
            Fault::StopClient(node) => self.clients[node].frozen.store(true, SeqCst),
            Fault::StallClient(node, links) => self.clients[node].stall(links, true),
            Fault::ResetClient(node, links) => {
                self.clients[node].reset.store(if links == Links::Data { 1 } else { 2 }, SeqCst);
            }
            Fault::LinkDown(node, cable) => link(node, cable, "down"),
            Fault::OneWayLoss(from, to) => lose(from, to, true),
            Fault::Partition(a, b) => {
                lose(a, b, true);
                lose(b, a, true);
            }
            // Begun already, so that it is known whether there was a link.
            Fault::DeadLink(..) => {}
            Fault::Stranger(to, manner) => apart(STRANGER, move || stranger(to, manner)),
            Fault::Impostor(from, to) => apart(from, move || impostor(from, to)),
            Fault::ClockStep(node, seconds) => self.daemons[node].step_clock(seconds),
            Fault::FullLogDisk(node) => {
                let zeros = vec![0; 4 << 20];
                let _ = fs::write(self.daemons[node].home.join("log/filler"), zeros);
            }
            Fault::FewDescriptors(node, more) => {
                let pid = self.daemons[node].pid();
                let open = pid.and_then(|pid| fs::read_dir(format!("/proc/{pid}/fd")).ok());
                if let Some(open) = open {
                    let limit = open.count() as u64 + u64::from(more);
                    self.daemons[node].limit("nofile", Some(limit));
                }
            }
            Fault::FewThreads(node) => self.daemons[node].limit("nproc", Some(1)),
            Fault::Reload(node, change, control) => {
                let settings = match change {
                    Change::Heartbeat => Settings { ping: 0.25, ..Settings::default() },
                    Change::Without(peer) => Settings { without: Some(peer), ..Settings::default() },
                    Change::Broken => Settings { broken: true, ..Settings::default() },
                };
                self.reload(node, settings, control);
            }
            Fault::Disconnect(node, peer) => {
                self.ask(node, json!({"v": 1, "cmd": "disconnect", "peer": Daemon::name(peer)}))
            }
        }
    }

    fn take_back(&self, fault: Fault) {
        match fault {
            Fault::KillDaemon(node) | Fault::EndDaemon(node) => self.daemons[node].start(),
            Fault::StopDaemon(node) => self.daemons[node].signal(Signal::CONT),
            Fault::KillClient(node) => self.clients[node].away.store(false, SeqCst),
            Fault::StopClient(node) => self.clients[node].frozen.store(false, SeqCst),
            Fault::StallClient(node, links) => self.clients[node].stall(links, false),
            Fault::ResetClient(node, _) => self.clients[node].reset.store(0, SeqCst),
            Fault::LinkDown(node, cable) => link(node, cable, "up"),
            Fault::OneWayLoss(from, to) => lose(from, to, false),
            Fault::Partition(a, b) => {
                lose(a, b, false);
                lose(b, a, false);
            }
            Fault::DeadLink(a, b, meta, way) => {
                for node in [a, b] {
                    nft(node, &format!("table inet {0}\ndelete table inet {0}\n", table(a, b, meta, way)));
                }
            }
            Fault::Stranger(..) | Fault::Impostor(..) | Fault::ClockStep(..) => {}
            Fault::FullLogDisk(node) => drop(fs::remove_file(self.daemons[node].home.join("log/filler"))),
            Fault::FewDescriptors(node, _) => self.daemons[node].limit("nofile", None),
            Fault::FewThreads(node) => self.daemons[node].limit("nproc", None),
            Fault::Reload(node, _, control) => self.reload(node, Settings::default(), control),
            Fault::Disconnect(node, peer) => {
                self.ask(node, json!({"v": 1, "cmd": "connect", "peer": Daemon::name(peer)}))
            }
        }
    }

    /// One link of a session loses its packets, for as long as it lasts; whether there was one.
    fn lose_link(&self, a: usize, b: usize, meta: bool, way: Way) -> bool {
        let (acceptor, caller) = (a.min(b), a.max(b));
        // Between sessions, or of a daemon that does not answer, there is no link to be lost.
        let Some(ports) =
            Some(()).filter(|()| Shape::can_drop()).and_then(|()| self.daemons[acceptor].ports(caller))
        else {
            return false;
        };
        let (port, table) = (ports[usize::from(meta)], table(a, b, meta, way));
        // Incoming packets are dropped: at the second node those of the first one, and the other way round.
        for (node, lost) in [(b, way != Way::Back), (a, way != Way::There)] {
            let which = if node == acceptor { "sport" } else { "dport" };
            if lost {
                let chain = format!("type filter hook input priority 0\ntcp {which} {port} drop");
                nft(node, &format!("table inet {table} {{\nchain incoming {{\n{chain}\n}}\n}}\n"));
            }
        }
        true
    }

    fn reload(&self, node: usize, settings: Settings, control: bool) {
        self.daemons[node].configure(settings);
        if control {
            return self.ask(node, json!({"v": 1, "cmd": "reload"}));
        }
        let daemons = self.daemons.clone();
        thread::spawn(move || {
            // A daemon that is only about to start knows no SIGHUP yet.
            if daemons[node].ask(json!({"v": 1, "cmd": "status"}), Some(PATIENCE)).is_ok() {
                daemons[node].signal(Signal::HUP);
            }
        });
    }

    /// Asks a daemon, which may be stopped, or gone: nobody waits for it.
    fn ask(&self, node: usize, request: serde_json::Value) {
        let daemons = self.daemons.clone();
        thread::spawn(move || daemons[node].ask(request, Some(PATIENCE)).is_ok());
    }

    /// Undoes what a fault taken back in vain may have left: a daemon that did not run or had no descriptors
    /// when it was asked to reload or connect.
    pub fn mend(&mut self) {
        self.end(true);
        for daemon in self.daemons.iter() {
            daemon.start();
            self.reload(daemon.node, Settings::default(), false);
            for peer in (0..self.daemons.len()).filter(|peer| *peer != daemon.node) {
                self.ask(daemon.node, json!({"v": 1, "cmd": "connect", "peer": Daemon::name(peer)}));
            }
        }
    }

    pub fn counted(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.counts.iter().map(|(kind, n)| (KINDS[*kind], *n))
    }
}

fn link(node: usize, cable: bool, to: &str) {
    match cable {
        true => ip_batch(None, &format!("link set port{node} {to}\n"), true),
        false => ip_batch(Some(node), &format!("link set eth0 {to}\n"), true),
    }
}

/// Packets from one node to another are lost without a word: they are sent to a machine that is not there.
fn lose(from: usize, to: usize, lost: bool) {
    let to = ip(to);
    let line = match lost {
        true => format!("neigh replace {to} lladdr 02:66:00:00:00:ff dev eth0 nud permanent\n"),
        false => format!("neigh del {to} dev eth0\n"),
    };
    ip_batch(Some(from), &line, true);
}

/// The name of what a dead link's packets are dropped by.
fn table(a: usize, b: usize, meta: bool, way: Way) -> String {
    format!("dead_{a}_{b}_{meta}_{way:?}")
}

/// Carries out lines of `nft` on a machine.
fn nft(machine: usize, lines: &str) {
    if Shape::can_drop() {
        let file = world::dir().join("nft");
        fs::write(&file, lines).unwrap();
        world::at(machine, || world::run("nft", &["-f", file.to_str().unwrap()]));
    }
}

/// Runs something on a machine, and waits for no end of it.
fn apart(machine: usize, act: impl FnOnce() -> std::io::Result<()> + Send + 'static) {
    thread::spawn(move || {
        world::go_to(machine);
        // Refused, timed out or reset: all that matters is what becomes of the daemon.
        let _ = act();
    });
}

fn call(from: usize, to: usize) -> std::io::Result<TcpStream> {
    connect_from(ip(from), (ip(to), Shape::get().port()).into(), None)
}

fn reset(stream: &TcpStream) -> std::io::Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

fn stranger(to: usize, manner: Manner) -> std::io::Result<()> {
    let mut stream = call(STRANGER, to)?;
    // As node 1 would say it, or node 2 to that.
    let scope = u8::from(Shape::get().sites);
    let claim = hello(if to == 1 { 2 } else { 1 }, DATA, scope, &ip(STRANGER).to_string(), false);
    match manner {
        Manner::Garbage => stream.write_all(&[0xa5; 4096])?,
        Manner::HalfHello => {
            stream.write_all(&claim[..HELLO / 2])?;
            reset(&stream)?;
        }
        Manner::WrongAddress => {
            stream.write_all(&claim)?;
            let _ = stream.read(&mut [0; HELLO]);
        }
    }
    Ok(())
}

fn impostor(from: usize, to: usize) -> std::io::Result<()> {
    let scope = u8::from(Shape::get().sites);
    let mut links = [call(from, to)?, call(from, to)?];
    for (link, kind) in links.iter_mut().zip([DATA, META]) {
        link.write_all(&hello(from as u8, kind, scope, &ip(from).to_string(), false))?;
    }
    for link in &mut links {
        link.read_exact(&mut [0; HELLO])?;
    }
    let [data, _] = &mut links;
    let kind = if scope == 1 { kind::SD_DATA } else { kind::ND_SBIO };
    let packet = Packet::filled(kind, 0, 10_000).with_dev(0).with_to(bit(to as u8)).bytes();
    data.write_all(&packet[..packet.len() / 2])?;
    links.iter().try_for_each(reset)
}
