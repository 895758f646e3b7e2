//! The kernel module's side of a daemon in a cluster of sites: as the harness's own, but it keeps what it is
//! gets about sites, too, and checks every field of it.

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::support::{Filter, Link, PATIENCE, kernel_hello, kind};

/// The peers that a connection state is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// The nodes of the own site.
    Nodes,
    /// The sites of this resource.
    Sites(u8),
}

/// An attached module. Dropping it closes both links.
pub struct SiteKernel {
    pub data: Link,
    pub meta: Link,
    name: String,
    told: Arc<Told>,
}

#[derive(Default)]
struct Told {
    seen: Mutex<Vec<(Instant, Whom, u32)>>,
    changed: Condvar,
}

impl SiteKernel {
    /// Attaches to the daemon of this site and node.
    #[track_caller]
    pub fn attach(name: &str, server: SocketAddr, site: u8, node: u8) -> Self {
        let told = Arc::new(Told::default());
        let link = |handshake, class, filter| {
            let (stream, _) = kernel_hello(server, handshake, 0).unwrap();
            Link::start(format!("k-{name}:{class}"), stream, filter)
        };
        SiteKernel {
            data: link(kind::HS_D, "data", data_filter()),
            meta: link(kind::HS_M, "meta", meta_filter(site, node, told.clone())),
            name: name.into(),
            told,
        }
    }

    /// Goes away, as an unloaded module.
    pub fn detach(self) {}

    /// The states so far: when, and the mask.
    pub fn states(&self, whom: Whom) -> Vec<(Instant, u32)> {
        let seen = self.told.seen.lock().unwrap();
        seen.iter().filter(|(_, who, _)| *who == whom).map(|&(at, _, mask)| (at, mask)).collect()
    }

    /// The masks so far, without repetitions.
    pub fn masks(&self, whom: Whom) -> Vec<u32> {
        let mut masks: Vec<u32> = self.states(whom).into_iter().map(|(_, mask)| mask).collect();
        masks.dedup();
        masks
    }

    #[track_caller]
    fn wait<T>(&self, what: String, mut good: impl FnMut(&[(Instant, Whom, u32)]) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        let mut seen = self.told.seen.lock().unwrap();
        loop {
            if let Some(value) = good(&seen) {
                return value;
            }
            let Some(left) = end.checked_duration_since(Instant::now()) else {
                let told: Vec<String> =
                    seen.iter().map(|(_, whom, mask)| format!("{whom:?} {mask:#x}")).collect();
                drop(seen);
                panic!("{}: no {what} within {PATIENCE:?}; told {told:?}", self.name);
            };
            seen = self.told.changed.wait_timeout(seen, left).unwrap().0;
        }
    }

    /// Waits until the last state of `whom` is `mask`.
    #[track_caller]
    pub fn wait_state(&self, whom: Whom, mask: u32) {
        self.wait(format!("{whom:?} {mask:#x}"), |seen| {
            let last = seen.iter().rev().find(|(_, who, _)| *who == whom);
            last.filter(|(_, _, told)| *told == mask).map(|_| ())
        });
    }

    /// Waits until `mask` came for `whom` at or after `since`, and returns when.
    #[track_caller]
    pub fn wait_since(&self, whom: Whom, since: Instant, mask: u32) -> Instant {
        self.wait(format!("new {whom:?} {mask:#x}"), |seen| {
            seen.iter()
                .find(|(at, who, told)| *at >= since && *who == whom && *told == mask)
                .map(|(at, ..)| *at)
        })
    }

    /// Waits until `count` states of `whom` came in all.
    #[track_caller]
    pub fn wait_count(&self, whom: Whom, count: usize) {
        self.wait(format!("{count} states of {whom:?}"), |seen| {
            (seen.iter().filter(|(_, who, _)| *who == whom).count() >= count).then_some(())
        });
    }

    /// Returns true if nothing comes on either link for this long.
    #[track_caller]
    pub fn assert_silent(&self, limit: Duration) {
        assert_eq!(self.data.poll(limit), None, "{}", self.name);
        assert_eq!(self.meta.poll(Duration::ZERO), None, "{}", self.name);
    }
}

fn data_filter() -> Filter {
    Box::new(|_, packet, _| match packet.kind() {
        23..=38 => Ok(true),
        _ => Err("not a data packet on the data link".into()),
    })
}

fn meta_filter(site: u8, node: u8, told: Arc<Told>) -> Filter {
    Box::new(move |now, packet, _| {
        let fields = (packet.from(), packet.node_type(), packet.len());
        let whom = match packet.kind() {
            kind::NC_PING | kind::NC_PING_ACK | kind::SC_PING | kind::SC_PING_ACK => {
                return Err("a heartbeat reached the kernel".into());
            }
            kind::NC_CONN_STATE if fields == (node.into(), 0, 0) && packet.dev() == 255 => Whom::Nodes,
            kind::SC_CONN_STATE if fields == (site.into(), 1, 0) => Whom::Sites(packet.dev()),
            kind::NC_CONN_STATE | kind::SC_CONN_STATE => return Err("wrong connection state".into()),
            1..=20 => return Ok(true),
            _ => return Err("not a meta packet on the meta link".into()),
        };
        told.seen.lock().unwrap().push((now, whom, packet.to()));
        told.changed.notify_all();
        Ok(false)
    })
}
