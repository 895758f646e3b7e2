//! The contestants: direct TCP, a chain of two HAProxy processes, and two daemons, each with a connection
//! at either end for the load generator. All stay up during the whole run and idle while others are measured.

use std::any::Any;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use socket2::SockRef;

use crate::Build;
use crate::ends::Kernel;
use crate::process;
use crate::support::{ConfigBuilder, Daemon, PATIENCE, Subnet, TempDir, bit, ms, redial};

/// Something that carries a stream of packets from `a` to `b` and back.
pub struct Contestant {
    pub name: String,
    pub a: TcpStream,
    pub b: TcpStream,
    /// `node_to` of what `a` sends, and of what `b` sends.
    pub there: u32,
    pub back: u32,
    /// What has to be paid for.
    pub processes: Vec<Daemon>,
    _keep: Box<dyn Any>,
}

impl Contestant {
    /// Processor time of all its processes.
    pub fn cpu_seconds(&self) -> f64 {
        self.processes.iter().map(process::cpu_seconds).sum()
    }
}

pub fn direct() -> Contestant {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let b = listener.accept().unwrap().0;
    contestant("direct TCP", [a, b], Vec::new(), Box::new(()))
}

fn contestant(name: &str, ends: [TcpStream; 2], processes: Vec<Daemon>, keep: Box<dyn Any>) -> Contestant {
    let [a, b] = ends;
    for end in [&a, &b] {
        end.set_nodelay(true).unwrap();
    }
    Contestant { name: name.into(), a, b, there: bit(1), back: bit(0), processes, _keep: keep }
}

pub fn has_haproxy() -> bool {
    let probe = Command::new("haproxy").arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status();
    probe.is_ok_and(|status| status.success())
}

/// Two processes in TCP mode, one thread each. Splicing is told, not left to `splice-auto`, which begins it
/// late, if at all, on a busy machine: the harder contestant.
pub fn haproxy(name: &str, splice: bool) -> Contestant {
    let net = Subnet::claim();
    let dir = TempDir::new();
    let listener = TcpListener::bind((net.host(3), 7000)).unwrap();
    let hop = |n: u8| SocketAddr::from((net.host(n), 7000));
    let processes = [2, 1].map(|n| {
        let config = format!(
            "global\n nbthread 1\n maxconn 64\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 1h\n \
             timeout server 1h\n {}\nlisten hop\n bind {}\n server next {}\n",
            if splice { "option splice-request\n option splice-response" } else { "" },
            hop(n),
            hop(n + 1)
        );
        let file = dir.path.join(format!("hop{n}.cfg"));
        std::fs::write(&file, config).unwrap();
        Daemon::spawn(Command::new("haproxy").arg("-db").arg("-f").arg(&file), name)
    });
    SockRef::from(&listener).set_read_timeout(Some(ms(200))).unwrap();
    // Until both listen: what is accepted of a call that came to nothing is not this one's other end.
    let ends = redial("a connection through both proxies", PATIENCE, || {
        let a = TcpStream::connect(hop(1)).ok()?;
        let b = listener.accept().ok()?.0;
        let alive = a.set_read_timeout(Some(ms(50))).is_ok()
            && a.peek(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        a.set_read_timeout(None).ok()?;
        alive.then_some([a, b])
    });
    contestant(name, ends, processes.into(), Box::new((net, dir)))
}

/// Two daemons with an encrypted link.
pub fn encrypted(build: &Build) -> Contestant {
    let dir = TempDir::new();
    let key = dir.path.join("key");
    let made = Command::new(env!("CARGO_BIN_EXE_hadmctl")).arg("keygen").arg(&key).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    hadmd(&Build { name: format!("{} authkey", build.name), path: build.path.clone() }, Some(&key))
}

/// Two daemons, a kernel module played at each.
pub fn hadmd(build: &Build, key: Option<&Path>) -> Contestant {
    let net = Subnet::claim();
    let config = ConfigBuilder::new(&net, 2);
    let config = match key {
        Some(key) => config.set("authkey", key.display()).build(),
        None => config.build(),
    };
    let daemons = [0, 1].map(|id| process::start(build, &net, &config, id));
    let kernels = [0, 1].map(|id| Kernel::attach(&net, id));
    kernels[0].wait_mask(bit(1), PATIENCE);
    kernels[1].wait_mask(bit(0), PATIENCE);
    let ends = kernels.each_ref().map(|kernel| kernel.data.try_clone().unwrap());
    contestant(&build.name, ends, daemons.into(), Box::new((net, config, kernels)))
}
