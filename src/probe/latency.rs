//! `hadm-probe latency`: sends one request at a time to one node or site, and measures the time of each answer.
//!
//! The calling thread writes and reads the data link itself: nothing is handed to another thread between a
//! request and its answer.

use crate::wire::MirrorFields;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;

use super::args::{Measure, Target};
use super::frame::{Label, Message};
use super::histogram::Histogram;
use super::link::Link;
use super::watch::Watch;
use super::{Failure, deadline, print, say};
use crate::attach::PacketReader;
use crate::attach::Peer;

/// Pause before the first request is repeated: it is lost while no `echo` is attached at the peer.
const FIRST_REPEAT: Duration = Duration::from_secs(1);

/// Longest time for an answer once the peer has answered a request.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Measures the round trips and prints the result.
pub fn run(server: SocketAddr, json: bool, options: &Measure) -> Result<(), Failure> {
    let Target { scope, dev, ids } = options.to;
    let peer = Peer { group: options.to.group(), id: ids.0.trailing_zeros() as u8 };
    let limit = deadline(options.timeout);
    let link = Link::attach(server)?;
    let (watch, own) = Watch::start(&link, peer.group, |_| ())?;
    let fail = |why: String| Err(link.end(Failure::Failed(why)));
    if peer.id == own {
        return fail(format!("{peer} is this {} itself", peer.group.word()));
    }
    let waited = options.timeout.unwrap_or_default().as_secs_f64();
    let missing = format!("not connected after {waited} s: {peer}");
    if watch.connected(peer, Some(Instant::now()))?.is_none() {
        say(format_args!("waiting for {peer}"));
        if watch.connected(peer, limit)?.is_none() {
            return fail(missing);
        }
    }
    let label = Label { scope, from: own, to: ids, dev, transfer: fastrand::u64(..), seq: 0 };
    let filler = vec![0; options.size - 1];
    let mut round = Round { link: &link, packets: PacketReader::new(link.data()), packet: Vec::new(), label };
    label.packet(&Message::Request(&filler), &mut round.packet);
    round.limit(FIRST_REPEAT)?;
    while !round.trip()? {
        if limit.is_some_and(|limit| Instant::now() >= limit) {
            return fail(format!("no answer from {peer} for {waited} s: does `hadm-probe echo` run there?"));
        }
    }
    // Not before: the daemon of the peer reconnects when `echo` attaches where requests were lost.
    if watch.require(peer, limit)?.is_none() {
        return fail(missing);
    }
    round.limit(ANSWER_LIMIT)?;
    let (times, time) = measure(&mut round, options.time)?;
    let micros = [0.5, 0.99, 0.999].map(|share| times.percentile(share));
    let [p50, p99, p999] = micros;
    let (count, max) = (times.count(), times.max());
    if json {
        return print(json!({
            "command": "latency", "to": peer.id, "scope": peer.group.word(), "size": options.size, "seconds": time.as_secs_f64(),
            "count": count, "p50_us": p50, "p99_us": p99, "p999_us": p999, "max_us": max,
        }));
    }
    print(format_args!(
        "{peer}: {count} round trips of {} bytes in {:.1} s: p50 {p50:.1} us, p99 {p99:.1} us, \
         p99.9 {p999:.1} us, max {max:.1} us",
        options.size,
        time.as_secs_f64()
    ))
}

/// Makes round trips for `limit`; also returns the time that they took in the end.
fn measure(round: &mut Round<'_>, limit: Duration) -> Result<(Histogram, Duration), Failure> {
    let mut times = Histogram::new();
    let started = Instant::now();
    let mut now = started;
    while now - started < limit {
        if !round.trip()? {
            let why = format!(
                "{} has not answered for {} s",
                round.label.group().names(round.label.to),
                ANSWER_LIMIT.as_secs()
            );
            return Err(round.link.end(Failure::Failed(why)));
        }
        let after = Instant::now();
        times.add(after - now);
        now = after;
    }
    Ok((times, now - started))
}

struct Round<'a> {
    link: &'a Link,
    packets: PacketReader<&'a TcpStream>,
    packet: Vec<u8>,
    label: Label,
}

impl Round<'_> {
    /// Sets the longest time that an answer may take from now on.
    fn limit(&self, limit: Duration) -> Result<(), Failure> {
        self.link.data().set_read_timeout(Some(limit)).map_err(|e| self.link.lost(&e))
    }

    /// Sends one request and waits for its answer; returns false if the answer takes too long.
    fn trip(&mut self) -> Result<bool, Failure> {
        self.label.seq += 1;
        MirrorFields::renumber(&mut self.packet, self.label.seq);
        self.link.send(&self.packet)?;
        let Label { transfer, seq, .. } = self.label;
        loop {
            match self.packets.next_packet().map(|packet| Label::of(&packet)) {
                Ok(Some((label, Message::Reply(_)))) if (label.transfer, label.seq) == (transfer, seq) => {
                    return Ok(true);
                }
                Ok(_) => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Ok(false);
                }
                Err(e) => return Err(self.link.lost(&e)),
            }
        }
    }
}
