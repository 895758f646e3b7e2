//! The contestants: direct TCP, chains of two HAProxy or two socat processes, and two daemons, each with a connection
//! at either end for the load generator, on loopback addresses or with a veth pair and a bridge between its two halves.
//! All stay up during the whole run and idle while others are measured. Must give every contestant the same way.

use std::any::Any;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};

use socket2::SockRef;

use crate::Build;
use crate::ends::Kernel;
use crate::namespaces::{A0, B0, Network, own_ip};
use crate::process;
use crate::support::{ConfigBuilder, Daemon, PATIENCE, Subnet, TempDir, bit, ms, redial};

/// The way between a contestant's two halves.
#[derive(Clone, Copy)]
pub enum Way<'a> {
    Loopback,
    /// Two network namespaces.
    Veth(&'a Network),
}

impl Way<'_> {
    /// Runs `act` where half 0 or half 1 is.
    fn at<T: Send>(self, half: usize, act: impl FnOnce() -> T + Send) -> T {
        match self {
            Way::Loopback => act(),
            Way::Veth(network) => network.machines[[A0, B0][half]].inside(act),
        }
    }

    /// The address of a half, for the other one.
    fn addr(self, half: usize, net: &Subnet) -> Ipv4Addr {
        match self {
            Way::Loopback => net.ip(half as u8),
            Way::Veth(_) => own_ip([A0, B0][half]),
        }
    }
}

/// Something that carries a stream of packets from `a` to `b` and back.
pub struct Contestant {
    pub name: String,
    pub a: TcpStream,
    pub b: TcpStream,
    /// `node_to` of what `a` sends, and of what `b` sends.
    pub there: u32,
    pub back: u32,
    /// The cost that is counted.
    pub processes: Vec<Daemon>,
    _keep: Box<dyn Any>,
}

impl Contestant {
    /// Processor time of all its processes.
    pub fn cpu_seconds(&self) -> f64 {
        self.processes.iter().map(process::cpu_seconds).sum()
    }
}

pub fn direct(way: Way<'_>) -> Contestant {
    let net = Subnet::claim();
    let listener = way.at(1, || TcpListener::bind((way.addr(1, &net), 0))).unwrap();
    let a = way.at(0, || TcpStream::connect(listener.local_addr().unwrap())).unwrap();
    let b = listener.accept().unwrap().0;
    contestant("direct TCP", [a, b], Vec::new(), Box::new(net))
}

fn contestant(name: &str, ends: [TcpStream; 2], processes: Vec<Daemon>, keep: Box<dyn Any>) -> Contestant {
    let [a, b] = ends;
    for end in [&a, &b] {
        end.set_nodelay(true).unwrap();
    }
    Contestant { name: name.into(), a, b, there: bit(1), back: bit(0), processes, _keep: keep }
}

/// Returns true if a program is here; says what is left out and how it is installed if not.
pub fn has(program: &str, version: &str) -> bool {
    let probe = Command::new(program).arg(version).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let here = probe.is_ok_and(|status| status.success());
    if !here {
        println!("{program} is not installed: its rows and bars are left out (apt-get install {program})");
    }
    here
}

/// The set-up of HAProxy.
#[derive(Clone, Copy, Default)]
pub struct Proxy {
    /// Wanted outright, not left to `splice-auto`, which begins it late, if at all, on a busy machine: the harder
    /// contestant.
    pub splice: bool,
    /// `busy-polling`.
    pub busy: bool,
}

/// Two processes in TCP mode, one thread each.
pub fn haproxy(name: &str, proxy: Proxy, way: Way<'_>) -> Contestant {
    let dir = TempDir::new();
    chain(name, way, |half, from, to| {
        let config = format!(
            "global\n nbthread 1\n maxconn 64\n {}\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 1h\n \
             timeout server 1h\n {}\nlisten hop\n bind {from}\n server next {to}\n",
            if proxy.busy { "busy-polling" } else { "" },
            if proxy.splice { "option splice-request\n option splice-response" } else { "" },
        );
        let file = dir.path.join(format!("half{half}.cfg"));
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&file);
        command
    })
}

/// Two processes that copy, with the largest block that socat takes as a matter of course.
pub fn socat(way: Way<'_>) -> Contestant {
    chain("socat", way, |_, from, to| {
        let mut command = Command::new("socat");
        command.args(["-b", "131072"]).arg(format!("TCP4-LISTEN:{},bind={},nodelay", from.port(), from.ip()));
        // The next one may not listen yet.
        command.arg(format!("TCP4:{to},nodelay,retry=200,interval=0.05"));
        command
    })
}

/// Two processes in a row, each of which listens at its first address and connects to its second.
fn chain(
    name: &str,
    way: Way<'_>,
    command: impl Fn(usize, SocketAddr, SocketAddr) -> Command + Sync,
) -> Contestant {
    let net = Subnet::claim();
    let end = SocketAddr::from((net.host(3), 7001));
    let listener = way.at(1, || TcpListener::bind(end)).unwrap();
    // Not the daemons' port: over a veth pair all have the same addresses.
    let hops = [0, 1].map(|half| SocketAddr::from((way.addr(half, &net), 7001)));
    let processes = [(1, hops[1], end), (0, hops[0], hops[1])]
        .map(|(half, from, to)| way.at(half, || Daemon::spawn(&mut command(half, from, to), name)));
    SockRef::from(&listener).set_read_timeout(Some(ms(1000))).unwrap();
    // Until both listen: a connection of a failed call is not this one's other end.
    let ends = redial("a connection through both processes", PATIENCE, || {
        let a = way.at(0, || TcpStream::connect(hops[0])).ok()?;
        let b = listener.accept().ok()?.0;
        let alive = a.set_read_timeout(Some(ms(50))).is_ok()
            && a.peek(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        a.set_read_timeout(None).ok()?;
        alive.then_some([a, b])
    });
    contestant(name, ends, processes.into(), Box::new(net))
}

/// Two daemons with an encrypted link.
pub fn encrypted(build: &Build) -> Contestant {
    let dir = TempDir::new();
    let key = dir.path.join("key");
    let made = Command::new(env!("CARGO_BIN_EXE_hadmctl")).arg("keygen").arg(&key).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let name = format!("{} authkey", build.name);
    let element = ("authkey", key.display().to_string());
    hadmd(&Build { name, path: build.path.clone() }, Some(element), Way::Loopback)
}

/// Two daemons, a kernel module played at each. `element`: one of the configuration's that is not as usual.
pub fn hadmd(build: &Build, element: Option<(&'static str, String)>, way: Way<'_>) -> Contestant {
    let net = Subnet::claim();
    let config = [0, 1].into_iter().fold(ConfigBuilder::new(&net, 0), |config, half| {
        config.node(half, &way.addr(half.into(), &net).to_string())
    });
    let config = element.into_iter().fold(config, |config, (name, value)| config.set(name, value)).build();
    let daemons = [0, 1].map(|id| way.at(id.into(), || process::start(build, &net, &config, id)));
    let kernels = [0, 1].map(|id| way.at(id.into(), || Kernel::attach(&net, id)));
    kernels[0].wait_mask(bit(1), PATIENCE);
    kernels[1].wait_mask(bit(0), PATIENCE);
    let ends = kernels.each_ref().map(|kernel| kernel.data.try_clone().unwrap());
    contestant(&build.name, ends, daemons.into(), Box::new((net, config, kernels)))
}
