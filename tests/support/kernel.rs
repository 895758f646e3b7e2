//! The kernel module's side of a daemon: both links with their handshakes, and the connection states that come.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::link::{Filter, Link};
use super::packet::{HEADER, MAGIC, Packet, kind};
use super::{PATIENCE, Subnet, ms, redial};

/// An attached module. Dropping it closes both links, as a module that goes does.
pub struct FakeKernel {
    pub data: Link,
    pub meta: Link,
    states: Arc<States>,
}

#[derive(Default)]
struct States {
    seen: Mutex<Vec<(Instant, u32)>>,
    changed: Condvar,
}

/// Opens one link and says its handshake (`HS_D` or `HS_M`) for `dev`. Gives the connection and the 128 bytes
/// of the answer; an error when the daemon closes it without one.
pub fn kernel_hello(server: SocketAddr, handshake: u8, dev: u8) -> io::Result<(TcpStream, [u8; HEADER])> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&Packet::new(handshake).with_magic(0).with_dev(dev).head)?;
    let mut answer = [0; HEADER];
    stream.read_exact(&mut answer)?;
    Ok((stream, answer))
}

#[track_caller]
fn assert_ack(answer: [u8; HEADER], kind: u8, dev: u8) {
    let ack = Packet { head: answer, payload: Vec::new() };
    assert_eq!(ack.magic(), MAGIC, "magic of {ack:?}");
    assert_eq!((ack.kind(), ack.dev(), ack.len()), (kind, dev, 0), "{ack:?}");
}

impl FakeKernel {
    /// Attaches to node `id`'s daemon.
    #[track_caller]
    pub fn attach(net: &Subnet, id: u8) -> Self {
        Self::try_attach(net, id).unwrap_or_else(|e| panic!("attaching to node {id}: {e}"))
    }

    /// Attaches as a module does that was just closed: the links are dialled until both are taken and it is
    /// sent the state; one may first be paired with the rest of the old module.
    #[track_caller]
    pub fn reattach(net: &Subnet, id: u8) -> Self {
        redial("attaching again", PATIENCE, || {
            let kernel = Self::try_attach(net, id).ok()?;
            let told = kernel.told_within(ms(1000));
            told.then_some(kernel)
        })
    }

    /// Returns true if any state comes in time.
    fn told_within(&self, limit: Duration) -> bool {
        let seen = self.states.seen.lock().unwrap();
        let (seen, _) = self.states.changed.wait_timeout_while(seen, limit, |seen| seen.is_empty()).unwrap();
        !seen.is_empty()
    }

    /// One attempt to attach.
    pub fn try_attach(net: &Subnet, id: u8) -> io::Result<Self> {
        let (data, answer) = kernel_hello(net.server(id), kind::HS_D, 7)?;
        assert_ack(answer, kind::HS_D_ACK, 7);
        let (meta, answer) = kernel_hello(net.server(id), kind::HS_M, 9)?;
        assert_ack(answer, kind::HS_M_ACK, 9);
        let states = Arc::new(States::default());
        Ok(FakeKernel {
            data: Link::start(format!("k{id}:data"), data, data_filter()),
            meta: Link::start(format!("k{id}:meta"), meta, meta_filter(id, states.clone())),
            states,
        })
    }

    /// Returns every connection state so far: when, and the mask.
    pub fn states(&self) -> Vec<(Instant, u32)> {
        self.states.seen.lock().unwrap().clone()
    }

    /// Returns the masks so far, without repetitions.
    pub fn masks(&self) -> Vec<u32> {
        let mut masks: Vec<u32> = self.states().into_iter().map(|(_, mask)| mask).collect();
        masks.dedup();
        masks
    }

    #[track_caller]
    fn wait<T>(
        &self,
        what: &str,
        limit: Duration,
        mut good: impl FnMut(&[(Instant, u32)]) -> Option<T>,
    ) -> T {
        let end = Instant::now() + limit;
        let mut seen = self.states.seen.lock().unwrap();
        loop {
            if let Some(value) = good(&seen) {
                return value;
            }
            let Some(left) = end.checked_duration_since(Instant::now()) else {
                let told: Vec<String> = seen.iter().map(|(_, mask)| format!("{mask:#x}")).collect();
                drop(seen);
                panic!("no {what} within {limit:?}; told {told:?}, meta closed {}", self.meta.is_closed());
            };
            seen = self.states.changed.wait_timeout(seen, left).unwrap().0;
        }
    }

    /// Waits until the last state is `mask`, and returns when it came first in this run.
    #[track_caller]
    pub fn wait_state(&self, mask: u32, limit: Duration) -> Instant {
        self.wait(&format!("state {mask:#x}"), limit, |seen| {
            let run = seen.iter().rev().take_while(|(_, told)| *told == mask);
            run.last().map(|(at, _)| *at)
        })
    }

    /// Waits until a state `mask` came at or after `since`, and returns when.
    #[track_caller]
    pub fn wait_state_since(&self, since: Instant, mask: u32, limit: Duration) -> Instant {
        self.wait(&format!("new state {mask:#x}"), limit, |seen| {
            seen.iter().find(|(at, told)| *at >= since && *told == mask).map(|(at, _)| *at)
        })
    }

    /// Waits until `count` states came in all.
    #[track_caller]
    pub fn wait_states(&self, count: usize, limit: Duration) -> Vec<(Instant, u32)> {
        self.wait(&format!("{count} states"), limit, |seen| (seen.len() >= count).then(|| seen.to_vec()))
    }

    /// Goes away, as an unloaded or killed module.
    pub fn detach(self) {}

    /// Waits until the daemon has closed both links.
    #[track_caller]
    pub fn wait_closed(&self) {
        self.data.wait_closed(PATIENCE);
        self.meta.wait_closed(PATIENCE);
    }
}

fn data_filter() -> Filter {
    Box::new(|_, packet, _| match packet.kind() {
        23..=38 => Ok(true),
        _ => Err("not a data packet on the data link".into()),
    })
}

fn meta_filter(id: u8, states: Arc<States>) -> Filter {
    Box::new(move |now, packet, _| {
        let fields = (packet.from(), packet.dev(), packet.node_type(), packet.len());
        match packet.kind() {
            kind::NC_PING | kind::NC_PING_ACK => Err("a heartbeat reached the kernel".into()),
            kind::NC_CONN_STATE if fields != (id.into(), 255, 0, 0) => Err("wrong connection state".into()),
            kind::NC_CONN_STATE => {
                states.seen.lock().unwrap().push((now, packet.to()));
                states.changed.notify_all();
                Ok(false)
            }
            1..=20 => Ok(true),
            _ => Err("not a meta packet on the meta link".into()),
        }
    })
}
