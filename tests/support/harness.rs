//! The start of most tests: one daemon, its kernel module attached, and peers calling in.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{
    Caller, ConfigBuilder, ConfigFile, Daemon, FakeKernel, FakePeer, PATIENCE, Packet, PacketCounters,
    Subnet, bit,
};

/// One daemon under test and its module.
pub struct Harness {
    pub daemon: Daemon,
    pub kernel: FakeKernel,
    pub node: u8,
    /// The peers that packets were carried for both ways.
    pub carried: AtomicU32,
    pub config: ConfigFile,
    pub net: Subnet,
}

/// Sequence numbers of [`Harness::assert_carries`], far from those of tests.
static MARKERS: AtomicU64 = AtomicU64::new(1 << 40);

impl Harness {
    /// Node 0 of `nodes`, so that every peer is a caller.
    #[track_caller]
    pub fn new(nodes: u8) -> Self {
        Self::with(nodes, 0, |config| config)
    }

    /// Node `node` of `nodes`, with changes to the configuration.
    #[track_caller]
    pub fn with(nodes: u8, node: u8, change: impl FnOnce(ConfigBuilder) -> ConfigBuilder) -> Self {
        let net = Subnet::claim();
        let config = change(ConfigBuilder::new(&net, nodes)).build();
        let daemon = Daemon::start(&net, &config, node);
        let kernel = FakeKernel::attach(&net, node);
        Harness::of(daemon, kernel, node, config, net)
    }

    /// Takes the parts that a test has started itself.
    pub fn of(daemon: Daemon, kernel: FakeKernel, node: u8, config: ConfigFile, net: Subnet) -> Self {
        Harness { daemon, kernel, node, carried: AtomicU32::new(0), config, net }
    }

    /// Node `id`, about to call the daemon.
    pub fn caller(&self, id: u8) -> Caller {
        Caller::new(&self.net, id, self.node)
    }

    /// Node `id` calls; the kernel hears of it.
    #[track_caller]
    pub fn call(&self, id: u8) -> FakePeer {
        self.connect(&self.caller(id))
    }

    /// The caller calls; the kernel hears of it.
    #[track_caller]
    pub fn connect(&self, caller: &Caller) -> FakePeer {
        let before = Instant::now();
        let peer = caller.call();
        self.wait_bit(before, caller.id, true);
        peer
    }

    /// Waits until the kernel heard at or after `since` that node `id` is there, or is not.
    #[track_caller]
    pub fn wait_bit(&self, since: Instant, id: u8, there: bool) -> Instant {
        let end = Instant::now() + PATIENCE;
        let mut have = 0;
        loop {
            let states = self.kernel.states();
            let told = |&&(at, mask): &&(Instant, u32)| at >= since && (mask & bit(id) != 0) == there;
            if let Some((at, _)) = states.iter().find(told) {
                return *at;
            }
            have = states.len().max(have);
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.kernel.wait_states(have + 1, left);
        }
    }

    /// Carries a data and a meta packet each way between the kernel and a peer with nothing else queued.
    #[track_caller]
    pub fn assert_carries(&self, peer: &FakePeer) {
        let seq = MARKERS.fetch_add(1, Ordering::SeqCst);
        let (out, back) = (bit(peer.id), bit(self.node));
        self.kernel.data.send(&Packet::data(seq, out, 100));
        self.kernel.meta.send(&Packet::meta(seq, out));
        assert_eq!(peer.data.recv(), Packet::data(seq, out, 100));
        assert_eq!(peer.meta.recv(), Packet::meta(seq, out));
        peer.data.send(&Packet::data(seq, back, 100));
        peer.meta.send(&Packet::meta(seq, back));
        assert_eq!(self.kernel.data.recv(), Packet::data(seq, back, 100));
        assert_eq!(self.kernel.meta.recv(), Packet::meta(seq, back));
        self.carried.fetch_or(out, Ordering::SeqCst);
    }

    /// Ends the daemon orderly and checks its counters: those that balance, and that they are there.
    #[track_caller]
    pub fn stop(self) -> PacketCounters {
        let counters = self.daemon.stop();
        let carried = self.carried.into_inner();
        for id in (0..32).filter(|&id| carried & bit(id) != 0) {
            for (class, direction) in [("data", "in"), ("data", "out"), ("meta", "in"), ("meta", "out")] {
                let line = counters.line(id, class, direction);
                assert!(line.forwarded > 0, "{line:?}");
            }
        }
        counters
    }
}
