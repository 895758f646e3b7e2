//! The harness of the integration tests: built daemons, the kernel module's side and scripted peers on
//! loopback addresses of their own. It speaks bytes written down from the protocol alone and must never
//! use the library's own encoder, so that it judges the daemon independently. Every wait has a deadline
//! and ends as soon as its condition holds. Used by every test file but those of configuration and probe.
#![allow(dead_code, reason = "every test file compiles this and uses a part")]
#![allow(unused_imports, reason = "the same")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod config;
mod counters;
mod daemon;
mod harness;
mod kernel;
mod link;
mod metrics;
mod packet;
mod peer;
mod schema;
mod subnet;

pub use config::{ConfigBuilder, ConfigFile};
pub use counters::PacketCounters;
pub use daemon::{Daemon, TempDir};
pub use harness::Harness;
pub use kernel::{FakeKernel, kernel_hello};
pub use link::{Filter, Flood, Link};
pub use metrics::assert_exposition;
pub use packet::{HEADER, MAGIC, Packet, kind};
pub use peer::{Acceptor, Caller, DATA, FakePeer, HELLO, META, connect_from, hello};
pub use schema::{assert_fits, fits, schema};
pub use subnet::Subnet;

use std::io::{ErrorKind, Read};
use std::time::{Duration, Instant};

/// The deadline of waits whose length is not what a test is about.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A script for `sh -c` in a mount namespace of its own: runs a command line with `$0`, a socket, as the system log.
/// Whatever this machine has at /dev/log, in there it is a link to that socket.
pub const OWN_SYSTEM_LOG: &str = "\
    mount -t tmpfs none /run && mkdir /run/dev && ln -s \"$0\" /run/dev/log && \
    for node in null urandom; do : > /run/dev/$node && mount --bind /dev/$node /run/dev/$node; done && \
    mount --rbind /run/dev /dev && exec \"$@\"";

/// The bit of a node id.
pub const fn bit(id: u8) -> u32 {
    1 << id
}

/// Milliseconds.
pub const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// The middle one of several durations.
pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Repeats `attempt` until it gives a value, as a module or a C daemon that dials again and again.
///
/// # Panics
/// When `limit` is over.
pub fn redial<T>(what: &str, limit: Duration, mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < end, "{what}: not within {limit:?}");
        std::thread::park_timeout(ms(20));
    }
}

/// Asserts that the other side closes `stream` in order, without another byte.
///
/// A read with a time limit ends with `Interrupted` when the process was stopped and goes on: it is read again.
#[track_caller]
pub fn assert_ends(stream: &mut impl Read, what: &str) {
    let answer = loop {
        match stream.read(&mut [0; 256]) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            answer => break answer,
        }
    };
    assert!(matches!(answer, Ok(0)), "{what}: {answer:?}");
}
