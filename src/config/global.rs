//! `/hadm/global`: the settings of the local daemon, and the heartbeat pair.
//!
//! Reads, and checks everything that needs no other part of the file. Called by `file`.

use std::net::SocketAddr;
use std::time::Duration;

use super::element::Element;
use super::keys::{KeyError, KeyFile, Keys};
use super::listeners::{Listener, What};
use super::model::{KernelUser, PeerAddr};
use super::value::{Resolver, absolute, choice, own_address, place, port, seconds, whole};

/// The elements of `global`, both spellings of the heartbeat's among them.
pub const GLOBAL_ELEMENTS: [&str; 14] = [
    "serverip",
    "serverport",
    "kmodport",
    "pingtimeout",
    "maxpingcount",
    "ping",
    "maxpacket",
    "slowtimeout",
    "busypoll",
    "zerocopy",
    "peeraddr",
    "kerneluser",
    "authkey",
    "metrics",
];

const MAX_PACKET: u32 = 16 << 20;
const SLOW_TIMEOUT: Duration = Duration::from_secs(10);
/// Microseconds: a wait that is longer costs little beside a sleep.
const BUSY_POLL_MAX: u32 = 1000;

pub(super) struct Global {
    pub(super) server: SocketAddr,
    pub(super) kmod_port: u16,
    pub(super) ping_interval: Duration,
    pub(super) max_ping_count: u32,
    pub(super) max_packet: u32,
    pub(super) slow_timeout: Duration,
    pub(super) busy_poll: Duration,
    pub(super) zero_copy: bool,
    pub(super) peer_addr: PeerAddr,
    pub(super) kernel_user: KernelUser,
    pub(super) keys: Option<Keys>,
    pub(super) metrics: Option<SocketAddr>,
}

/// Reads `global`; adds the places where it listens to `listeners`.
pub(super) fn read<'a>(
    global: Element<'a>,
    resolve: &Resolver<'_>,
    key_file: KeyFile,
    listeners: &mut Vec<Listener<'a>>,
) -> Option<Global> {
    global.holds_only(&GLOBAL_ELEMENTS);
    let ip = global.get("serverip", own_address(resolve));
    if let Some(at) = global.find("serverip").filter(|_| ip.is_some_and(|ip| ip.is_unspecified())) {
        at.doubt("the daemon then listens at every address of this machine; write 127.0.0.1 for the kernel module alone");
    }
    let server_port = global.get("serverport", port);
    let server = ip.zip(server_port).map(SocketAddr::from);
    let kmod_port = global.get_or("kmodport", 0, port);
    let heartbeat = heartbeat(global);
    let max_packet = global.get_or("maxpacket", MAX_PACKET, whole(1 << 10..=1 << 30));
    let slow_timeout = global.get_or("slowtimeout", SLOW_TIMEOUT, seconds("0.1", "3600"));
    let busy_poll = global.get_or("busypoll", 0, whole(0..=BUSY_POLL_MAX));
    let zero_copy = global.get_or("zerocopy", true, choice([("on", true), ("off", false)], "on or off"));
    let words = [("strict", PeerAddr::Strict), ("any", PeerAddr::Any)];
    let peer_addr = global.get_or("peeraddr", PeerAddr::default(), choice(words, "strict or any"));
    let kernel_user = global.get_or("kerneluser", KernelUser::default(), kernel_user);
    let keys = global.optional("authkey").map_or(Some(None), |el| keys(el, key_file));
    let metrics = global.get_or("metrics", None, |value| place(value).map(Some));
    let mut listen = |[ip, port]: [&str; 2], what, addr: Option<SocketAddr>| {
        if let (Some(addr), Some(ip), Some(port)) = (addr, global.find(ip), global.find(port)) {
            listeners.push(Listener { addr, what, ip, port });
        }
    };
    listen(["serverip", "serverport"], What::Server, server);
    listen(["metrics", "metrics"], What::Metrics, metrics.flatten());

    let (ping_interval, max_ping_count) = heartbeat?;
    Some(Global {
        server: server?,
        kmod_port: kmod_port?,
        ping_interval,
        max_ping_count,
        max_packet: max_packet?,
        slow_timeout: slow_timeout?,
        busy_poll: Duration::from_micros(busy_poll?.into()),
        zero_copy: zero_copy?,
        peer_addr: peer_addr?,
        kernel_user: kernel_user?,
        keys: keys?,
        metrics: metrics?,
    })
}

/// Parses a user: a number, a name that this machine knows, or all.
fn kernel_user(value: &str) -> Result<KernelUser, String> {
    let wanted = "any, the number of a user, or a name that is in /etc/passwd";
    if value == "any" {
        return Ok(KernelUser::Any);
    }
    let uid = value.parse().ok().or_else(|| crate::sys::user_id(value));
    uid.map(KernelUser::Also).ok_or_else(|| wanted.into())
}

/// Reads the keys of the named file, as far as `key_file` wants it.
fn keys(el: Element<'_>, key_file: KeyFile) -> Option<Option<Keys>> {
    let path = el.read(absolute)?;
    if cfg!(not(feature = "authkey")) {
        el.refuse("this hadmd was built without encryption (feature authkey): take the element out, or another hadmd");
        return None;
    }
    if key_file == KeyFile::Unseen {
        return Some(None);
    }
    match Keys::read(&path) {
        Ok(keys) => Some(Some(keys)),
        Err(error) if key_file == KeyFile::Checked && is_hidden(&error) => {
            el.doubt(&format!("only as the daemon's user it can be checked: {error}"));
            Some(None)
        }
        Err(error) => {
            el.refuse(&error.to_string());
            None
        }
    }
}

/// Returns true if the daemon, as another user, may be able to read it.
fn is_hidden(error: &KeyError) -> bool {
    match error {
        KeyError::Unreadable(error) => error.kind() == std::io::ErrorKind::PermissionDenied,
        KeyError::Owner(_) => true,
        KeyError::Bad(_) => false,
    }
}

/// Reads the heartbeat pair. `pingtimeout` has two meanings: the element beside it shows which.
fn heartbeat(global: Element<'_>) -> Option<(Duration, u32)> {
    const RIGHT: &str = "write <pingtimeout> (seconds between pings) and <maxpingcount> (unanswered pings that end \
                         a connection), or in the old spelling <ping> (seconds between pings) and <pingtimeout> \
                         (unanswered pings)";
    let (interval, count) = match (global.find("maxpingcount"), global.find("ping")) {
        (Some(_), None) => ("pingtimeout", "maxpingcount"),
        (None, Some(_)) => ("ping", "pingtimeout"),
        (Some(_), Some(ping)) => {
            ping.error(format!("both <ping> and <maxpingcount> in <global>: {RIGHT}"));
            return None;
        }
        (None, None) => {
            global.error(format!("neither <maxpingcount> nor <ping> in <global>: {RIGHT}"));
            return None;
        }
    };
    let interval = global.get(interval, seconds("0.01", "3600"));
    let count = global.get(count, whole(1..=1_000_000));
    Some((interval?, count?))
}
