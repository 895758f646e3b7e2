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
use super::ledger::Ledger;
use super::plan::{Change, Fault, KINDS, Links, Manner, Step};
use super::support::{DATA, HELLO, META, PATIENCE, Packet, bit, connect_from, hello};
use super::world::{self, NODE_PORT, STRANGER, ip, ip_batch};

/// Whoever brings the faults about.
pub struct Injector {
    pub ledger: Arc<Ledger>,
    pub daemons: Arc<Vec<Daemon>>,
    pub clients: Vec<Arc<Orders>>,
    pub counts: BTreeMap<usize, u64>,
    /// Faults that last, with when to take them back and where they are in the ledger.
    lasting: Vec<(Instant, usize, Fault)>,
}

impl Injector {
    pub fn new(ledger: &Arc<Ledger>, daemons: &Arc<Vec<Daemon>>, clients: Vec<Arc<Orders>>) -> Self {
        let (ledger, daemons) = (ledger.clone(), daemons.clone());
        Injector { ledger, daemons, clients, counts: BTreeMap::new(), lasting: Vec::new() }
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
                self.ask(node, json!({"v": 1, "cmd": "disconnect", "peer": peer.to_string()}))
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
            Fault::Stranger(..) | Fault::Impostor(..) | Fault::ClockStep(..) => {}
            Fault::FullLogDisk(node) => drop(fs::remove_file(self.daemons[node].home.join("log/filler"))),
            Fault::FewDescriptors(node, _) => self.daemons[node].limit("nofile", None),
            Fault::FewThreads(node) => self.daemons[node].limit("nproc", None),
            Fault::Reload(node, _, control) => self.reload(node, Settings::default(), control),
            Fault::Disconnect(node, peer) => {
                self.ask(node, json!({"v": 1, "cmd": "connect", "peer": peer.to_string()}))
            }
        }
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
                self.ask(daemon.node, json!({"v": 1, "cmd": "connect", "peer": peer.to_string()}));
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

/// What goes from one node to another is lost without a word: it is sent to a machine that is not there.
fn lose(from: usize, to: usize, lost: bool) {
    let to = ip(to);
    let line = match lost {
        true => format!("neigh replace {to} lladdr 02:66:00:00:00:ff dev eth0 nud permanent\n"),
        false => format!("neigh del {to} dev eth0\n"),
    };
    ip_batch(Some(from), &line, true);
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
    connect_from(ip(from), (ip(to), NODE_PORT).into(), None)
}

fn reset(stream: &TcpStream) -> std::io::Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

fn stranger(to: usize, manner: Manner) -> std::io::Result<()> {
    let mut stream = call(STRANGER, to)?;
    // As node 1 would say it, or node 2 to that.
    let claim = hello(if to == 1 { 2 } else { 1 }, DATA, 0, &ip(STRANGER).to_string(), false);
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
    let mut links = [call(from, to)?, call(from, to)?];
    for (link, kind) in links.iter_mut().zip([DATA, META]) {
        link.write_all(&hello(from as u8, kind, 0, &ip(from).to_string(), false))?;
    }
    for link in &mut links {
        link.read_exact(&mut [0; HELLO])?;
    }
    let [data, _] = &mut links;
    let packet = Packet::data(0, bit(to as u8), 10_000).bytes();
    data.write_all(&packet[..packet.len() / 2])?;
    links.iter().try_for_each(reset)
}
