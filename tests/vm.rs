//! The daemon beside a real kernel: two virtual machines with a module that has the mirror's name and calls the
//! daemon from inside the kernel. `make vm-test` runs it; tests/vm has the module and what starts the machines. Each
//! step prints a line once all it promises was seen. It must never judge by the daemon's own counts where the kernel
//! has some.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests, and what its user reads"
)]

mod support;
#[path = "vm/machine.rs"]
mod virt;

use std::cell::Cell;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use support::{TempDir, bit, ms};
use virt::{Kernel, Machine, prepare};

const CLASSES: [&str; 2] = ["data", "meta"];
/// For waits whose length is not what a step is about.
const PATIENCE: Duration = Duration::from_secs(60);
/// The README's promise: the longest time until the daemon ends after the module went.
const MODULE_GONE: Duration = Duration::from_secs(2);
/// Five pings of a second, and then some.
const HEARTBEAT_GONE: Duration = Duration::from_secs(10);
/// Packets without end.
const ALL_THE_TIME: u32 = 1_000_000_000;

const CONFIG: &str = "<hadm><global><serverip>127.0.0.1</serverip><serverport>9998</serverport>\
    <pingtimeout>1</pingtimeout><maxpingcount>5</maxpingcount><peeraddr>strict</peeraddr></global>\
    <sites><site><id>0</id><mode>share</mode><nodes>\
    <node><id>0</id><hostname>node0</hostname><ipaddr>10.77.0.10</ipaddr><port>7000</port></node>\
    <node><id>1</id><hostname>node1</hostname><ipaddr>10.77.0.11</ipaddr><port>7000</port></node>\
    </nodes></site></sites><resources/></hadm>";

/// Both machines, and what a step may ask of them.
struct Pair {
    machines: [Machine; 2],
    began: Instant,
    /// For how long machines did not answer at once: they had no processor to run on.
    stalled: Cell<Duration>,
}

impl Pair {
    /// One line for what was seen.
    fn report(&self, text: &str) {
        println!("  {:6.1} s  {text}", self.began.elapsed().as_secs_f64());
    }

    fn both(&self, command: &str) {
        self.machines.iter().for_each(|machine| drop(machine.must(command)));
    }

    fn kernels(&self) -> [Kernel; 2] {
        self.machines.each_ref().map(Machine::kernel)
    }

    /// Waits for a condition; how long it took. While a machine stalls, the limit is put off, to twice as much at most.
    #[track_caller]
    fn wait(&self, what: &str, limit: Duration, mut done: impl FnMut() -> bool) -> Duration {
        let began = Instant::now();
        let before = self.stalled.get();
        loop {
            let asked = Instant::now();
            if done() {
                return began.elapsed();
            }
            self.stalled.set(self.stalled.get() + asked.elapsed().saturating_sub(ms(100)));
            if began.elapsed() >= limit + limit.min(self.stalled.get() - before) {
                self.give_up(&format!("{what}: not within {limit:?}"));
            }
            thread::park_timeout(ms(20));
        }
    }

    #[track_caller]
    fn give_up(&self, what: &str) -> ! {
        for machine in &self.machines {
            let log =
                machine.run("cat /proc/hadm_test; hadmctl status; tail -n 40 /tmp/log; dmesg | tail -n 40").0;
            println!("machine {}:\n{log}", machine.node);
        }
        panic!("{what}");
    }

    /// The daemon runs on, and leaves its exit status when it ends.
    fn start_daemon(&self, node: usize) {
        self.machines[node].must(
            "rm -f /tmp/status; (hadmd --log stderr 2>> /tmp/log; echo $? > /tmp/status) > /dev/null 2>&1 &",
        );
    }

    /// Returns the time until the daemon ended with this status.
    #[track_caller]
    fn wait_ended(&self, node: usize, status: &str, limit: Duration) -> Duration {
        let look = || self.machines[node].run("cat /tmp/status 2> /dev/null").0;
        let took = self.wait("the daemon ends", limit, || !look().is_empty());
        assert_eq!(look().trim(), status, "exit status of the daemon of node {node}");
        took
    }

    /// Returns the time until the kernel of a node hears that the other is there, or not.
    #[track_caller]
    fn wait_told(&self, node: usize, there: bool, limit: Duration) -> Duration {
        let peers = i64::from(if there { bit(1 - node as u8) } else { 0 });
        let what = format!("the kernel of node {node} is told: {peers:#x}");
        self.wait(&what, limit, || self.machines[node].kernel().get("peers") == peers)
    }

    #[track_caller]
    fn wait_connected(&self) {
        for node in 0..2 {
            self.wait_told(node, true, PATIENCE);
        }
    }

    /// Every kernel sends this many rounds from now on.
    fn send(&self, rounds: u32) {
        self.both(&format!("echo {rounds},{rounds} > /sys/module/hadm_kmod/parameters/rounds"));
    }

    /// Waits until each class has carried this many packets each way from now on.
    #[track_caller]
    fn wait_flow(&self, packets: i64) {
        let before = received(&self.kernels());
        self.wait("packets flow", 2 * PATIENCE, || {
            received(&self.kernels()).iter().zip(&before).all(|(now, before)| *now >= before + packets)
        });
    }

    /// Returns true if all packets of the present session have come, to the last one.
    fn all_arrived(&self) -> bool {
        let kernels = self.kernels();
        (0..2).all(|from| {
            let (sender, receiver) = (&kernels[from], &kernels[1 - from]);
            CLASSES.iter().all(|class| {
                let sent = sender.values(&format!("{}_{class}_sent", 1 - from));
                let got = receiver.values(&format!("{from}_{class}_received"));
                sender.get(&format!("{class}_left")) == 0 && sent.len() == 3 && got.starts_with(&sent[..2])
            })
        })
    }

    /// Ends the flow, and sees to it that the last packet has come.
    #[track_caller]
    fn settle(&self) {
        self.send(0);
        let mut ended = None;
        self.wait("everything arrives", 2 * PATIENCE, || {
            // Packets that were queued when a session ended never come: these are of the present one.
            let now = ends(&self.kernels());
            if ended.as_ref() != Some(&now) {
                self.wait_connected();
                self.send(10);
                ended = Some(now);
            }
            self.all_arrived()
        });
    }

    /// The contract, by the kernels' own counts: byte for byte, in order, at most once; and where numbers are
    /// missing, a session ended, and that kernel heard of it.
    #[track_caller]
    fn judge(&self) -> [Kernel; 2] {
        let kernels = self.kernels();
        for (node, kernel) in kernels.iter().enumerate() {
            let other = 1 - node;
            let ends = kernel.get(&format!("{other}_ends"));
            let gaps = CLASSES.map(|class| kernel.get(&format!("{other}_{class}_gaps")));
            if !kernel.bad().is_empty() || gaps.iter().any(|gaps| *gaps > ends) {
                self.give_up(&format!(
                    "node {node}: {:?}, gaps {gaps:?}, sessions ended {ends}",
                    kernel.bad()
                ));
            }
        }
        self.machines.iter().for_each(Machine::assert_sound);
        kernels
    }
}

/// The contract between two moments at which nothing was on the way: no more holes than sessions that ended.
fn assert_kept(before: &[Kernel; 2], after: &[Kernel; 2]) {
    for (node, (before, after)) in before.iter().zip(after).enumerate() {
        let grown = |what: &str| {
            let key = format!("{}_{what}", 1 - node);
            after.get(&key) - before.get(&key)
        };
        let gaps = CLASSES.map(|class| grown(&format!("{class}_gaps")));
        assert!(gaps.iter().all(|gaps| *gaps <= grown("ends")), "node {node}: {gaps:?} {}", grown("ends"));
    }
}

/// Packets that came in: data and meta at node 0, data and meta at node 1.
fn received(kernels: &[Kernel; 2]) -> Vec<i64> {
    let of = |node: usize, class| kernels[node].get(&format!("{}_{class}_received", 1 - node));
    vec![of(0, "data"), of(0, "meta"), of(1, "data"), of(1, "meta")]
}

/// Sessions that ended, as the kernels heard.
fn ends(kernels: &[Kernel; 2]) -> Vec<i64> {
    vec![kernels[0].get("1_ends"), kernels[1].get("0_ends")]
}

fn grown(before: Vec<i64>, after: Vec<i64>) -> Vec<i64> {
    after.iter().zip(before).map(|(after, before)| after - before).collect()
}

fn module_comes_and_daemon_starts(pair: &Pair) {
    pair.both(&format!("mkdir -p /etc/hadm && echo '{CONFIG}' > /etc/hadm/hadm.xml"));
    for machine in &pair.machines {
        let (said, status) = machine.run("timeout 20 hadmd --log stderr");
        assert_eq!(status, 1, "{said}");
        assert!(said.contains("kernel module hadm_kmod is not loaded: load it first"), "{said}");
    }
    pair.report("without the module hadmd says so, and ends with status 1");
    pair.both("insmod /hadm_kmod.ko");
    let listed = pair.machines[0].must("grep '^hadm_kmod ' /proc/modules");
    (0..2).for_each(|node| pair.start_daemon(node));
    let attached = |node: usize| {
        let kernel = pair.machines[node].kernel();
        kernel.get("data_up") == 1 && kernel.get("meta_up") == 1
    };
    pair.wait("the modules attach", PATIENCE, || attached(0) && attached(1));
    pair.report(&format!("/proc/modules has \"{}\": hadmd starts, the module attaches", listed.trim()));
}

fn traffic(pair: &Pair) {
    pair.wait_connected();
    let before = pair.kernels();
    pair.send(4000);
    pair.wait("4000 rounds are sent", 2 * PATIENCE, || {
        pair.kernels()
            .iter()
            .all(|kernel| CLASSES.iter().all(|class| kernel.get(&format!("{class}_left")) == 0))
    });
    pair.settle();
    let after = pair.judge();
    assert_kept(&before, &after);
    let [came, ended] = [grown(received(&before), received(&after)), grown(ends(&before), ends(&after))];
    // Heartbeats may fail where a machine stalls.
    if (came.iter().any(|came| *came != 4010) || ended != [0, 0]) && pair.stalled.get() < ms(500) {
        pair.give_up(&format!("not all of 4010 came: {came:?}; sessions ended: {ended:?}"));
    }
    pair.report(&format!(
        "both kernels are told of each other; packets that came, data and meta each way: {came:?}; 0 errors, 0 holes, \
         sessions ended {ended:?}"
    ));
}

fn module_goes_under_traffic(pair: &Pair) {
    pair.send(ALL_THE_TIME);
    pair.wait_flow(500);
    pair.machines[0].must("rmmod hadm_kmod");
    let ended = pair.wait_ended(0, "1", MODULE_GONE);
    let told = ended + pair.wait_told(1, false, PATIENCE);
    pair.report(&format!(
        "rmmod under traffic: hadmd ends with status 1 after {} ms, the other kernel is told within {} ms",
        ended.as_millis(),
        told.as_millis()
    ));
    pair.machines[0].must("insmod /hadm_kmod.ko");
    pair.start_daemon(0);
    pair.wait_connected();
    pair.send(ALL_THE_TIME);
    pair.wait_flow(500);
    pair.judge();
    pair.report("insmod and a restart: both kernels are told, traffic goes on");
}

fn daemon_is_killed_under_traffic(pair: &Pair) {
    pair.machines[1].must("killall -9 hadmd");
    pair.wait_ended(1, "137", PATIENCE);
    for node in 0..2 {
        pair.wait_told(node, false, PATIENCE);
    }
    pair.start_daemon(1);
    pair.wait_connected();
    pair.wait_flow(500);
    pair.judge();
    pair.report("hadmd killed and restarted: the module attaches again by itself, traffic goes on");
}

fn loss_and_delay(pair: &Pair) {
    pair.settle();
    let before = pair.judge();
    pair.both("/sbin/tc qdisc add dev eth0 root netem delay 10ms 3ms loss 1%");
    pair.send(ALL_THE_TIME);
    pair.wait_flow(2000);
    pair.settle();
    let after = pair.judge();
    assert_kept(&before, &after);
    let lost = pair.machines.each_ref().map(|machine| {
        let said = machine.must("/sbin/tc -s qdisc show dev eth0");
        let dropped = said.split("dropped ").nth(1).and_then(|rest| rest.split(',').next()).unwrap();
        dropped.parse::<u64>().unwrap()
    });
    assert!(lost.iter().all(|lost| *lost > 0), "netem lost nothing: {lost:?}");
    pair.both("/sbin/tc qdisc del dev eth0 root");
    let [came, ended] = [grown(received(&before), received(&after)), grown(ends(&before), ends(&after))];
    pair.report(&format!(
        "10 ms +- 3 ms and 1 % loss each way, {lost:?} frames lost: {came:?} packets, 0 errors, no hole within a \
         session, sessions ended {ended:?}"
    ));
}

fn link_is_cut(pair: &Pair) {
    let before = pair.kernels();
    pair.send(ALL_THE_TIME);
    pair.wait_flow(500);
    let began = Instant::now();
    pair.machines[1].must("ip link set eth0 down");
    pair.wait_told(0, false, HEARTBEAT_GONE);
    let first = began.elapsed();
    pair.wait_told(1, false, HEARTBEAT_GONE);
    let second = began.elapsed();
    pair.machines[1].must("ip link set eth0 up");
    let back = Instant::now();
    pair.wait_connected();
    let back = back.elapsed();
    pair.wait_flow(500);
    pair.settle();
    let after = pair.judge();
    assert_kept(&before, &after);
    assert!(!grown(ends(&before), ends(&after)).contains(&0), "a session went on");
    pair.report(&format!(
        "link down under traffic: the kernels are told after {:.1} s and {:.1} s; link up: {:.1} s later both are \
         told, traffic goes on",
        first.as_secs_f64(),
        second.as_secs_f64(),
        back.as_secs_f64()
    ));
}

fn everything_goes(pair: Pair) {
    pair.send(ALL_THE_TIME);
    pair.wait_flow(500);
    let last = pair.judge();
    pair.both("rmmod hadm_kmod");
    for node in 0..2 {
        pair.wait_ended(node, "1", PATIENCE);
    }
    let began = pair.began;
    pair.machines.into_iter().for_each(Machine::power_off);
    println!(
        "  {:6.1} s  rmmod of both under traffic: both daemons end, both kernels are sound; packets in all: {:?}",
        began.elapsed().as_secs_f64(),
        received(&last)
    );
}

#[test]
#[ignore = "boots virtual machines: make vm-test"]
fn kernel_module_and_daemon_on_two_machines() {
    let dir = TempDir::new();
    let programs = [env!("CARGO_BIN_EXE_hadmd"), env!("CARGO_BIN_EXE_hadmctl")];
    let made = Path::new(programs[0]).ancestors().nth(2).unwrap().join("vm");
    let Some(prepared) = prepare(&made, &dir.path, &programs) else { return };
    let began = Instant::now();
    let machines = [0, 1].map(|node| Machine::start(&prepared, node));
    machines.iter().for_each(Machine::wait_booted);
    let pair = Pair { machines, began, stalled: Cell::default() };
    pair.report("two machines run");
    module_comes_and_daemon_starts(&pair);
    traffic(&pair);
    module_goes_under_traffic(&pair);
    daemon_is_killed_under_traffic(&pair);
    loss_and_delay(&pair);
    link_is_cut(&pair);
    everything_goes(pair);
}
