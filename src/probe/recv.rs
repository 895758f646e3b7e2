//! `hadm-probe recv`: waits for one transfer and writes its file.
//!
//! The file must never appear under its name unless every packet came in order and the digest of the whole
//! is right; in every other case nothing is left behind. All data packets are read, hashed and written on
//! the calling thread; the thread of [`Watch`] ends its blocking read when the sender goes.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::wire::ResourceId;

use super::frame::{Label, Message, Receipt};
use super::link::Link;
use super::partial::{self, Partial};
use super::progress::Progress;
use super::watch::Watch;
use super::{Failure, hex, print, rate, say};
use crate::attach::Group;
use crate::attach::{Packet, PacketReader};

/// Longest time from a peer's offer until it is reported as connected: over one repetition of the state.
const CONNECTED_LIMIT: Duration = Duration::from_secs(10);

/// Longest wait for the sender to confirm the receipt. To detach earlier might lose the receipt.
const DONE_LIMIT: Duration = Duration::from_secs(5);

/// Receives one file into `output`; fails unless the file is complete.
pub fn run(server: SocketAddr, json: bool, output: &Path, dev: ResourceId) -> Result<(), Failure> {
    partial::check(output).map_err(Failure::Failed)?;
    let link = Link::attach(server)?;
    let (watch, own) = Watch::start(&link, Group::Nodes, |_| ())?;
    let mut session = Session { link: &link, own, packets: PacketReader::new(link.data()), ignored: None };
    let (label, size, name) = session.offer(&watch, dev)?;
    let progress = Progress::new(name.clone(), size);
    let whole = session.receive(label, size, output, &progress);
    progress.finish();
    let from = label.sender();
    let whole = match whole {
        Ok(whole) => whole,
        Err(Broken::Link(why)) => return Err(why),
        Err(Broken::Fault(fault)) => {
            session.settle(label, &Receipt { fault: fault.clone(), ..Receipt::default() });
            return Err(Failure::Failed(format!("the file from {from} is not kept: {fault}")));
        }
    };
    session.settle(label, &whole.receipt);
    let Receipt { packets, bytes, nanos, .. } = whole.receipt;
    let time = Duration::from_nanos(nanos);
    let speed = rate(bytes as f64 / 1e6, time);
    let output = output.display();
    if json {
        print(json!({
            "command": "recv", "ok": true, "from": label.from, "scope": from.group.word(), "name": name, "file": output.to_string(),
            "bytes": bytes, "packets": packets, "sha256": hex(&whole.sha256),
            "seconds": time.as_secs_f64(), "mb_per_s": speed,
        }))
    } else {
        print(format_args!(
            "{output}: {bytes} bytes in {packets} packets from {from}, {speed:.1} MB/s, digest ok"
        ))
    }
}

/// The reason for which a transfer ended before its file was complete.
enum Broken {
    /// The link is gone; nothing can be sent to the sender.
    Link(Failure),
    /// The fault that is sent to the sender.
    Fault(String),
}

impl From<String> for Broken {
    fn from(fault: String) -> Self {
        Broken::Fault(fault)
    }
}

/// The data link of one attached `recv`.
struct Session<'a> {
    link: &'a Link,
    own: u8,
    packets: PacketReader<&'a TcpStream>,
    /// The transfer whose packets were ignored last, so that one remark covers all of them.
    ignored: Option<u64>,
}

impl Session<'_> {
    /// Waits for an offer of a file from a peer that stays connected.
    fn offer(&mut self, watch: &Watch, dev: ResourceId) -> Result<(Label, u64, String), Failure> {
        loop {
            let packet = self.packets.next_packet().map_err(|e| self.link.lost(&e))?;
            match Label::of(&packet) {
                Some((label, Message::Offer { size, name })) if label.dev == dev => {
                    let deadline = Some(Instant::now() + CONNECTED_LIMIT);
                    if let Some(own) = watch.require(label.sender(), deadline)? {
                        self.own = own;
                        return Ok((label, size, name));
                    }
                    say(format_args!("ignored an offer of {}: it is not connected", label.sender()));
                }
                _ => ignore(&mut self.ignored, &packet, say),
            }
        }
    }

    /// Accepts the offer, and takes all packets of the transfer up to its end.
    fn receive(&mut self, offer: Label, size: u64, output: &Path, bar: &Progress) -> Result<Whole, Broken> {
        let partial =
            Partial::create(output).map_err(|e| format!("cannot write {}: {e}", output.display()))?;
        let mut incoming = Incoming::new(partial, size);
        self.answer(offer, &Message::Accept).map_err(Broken::Link)?;
        loop {
            let packet = self.packets.next_packet().map_err(|e| Broken::Link(self.link.lost(&e)))?;
            let ours = Label::of(&packet)
                .filter(|(label, _)| (label.sender(), label.transfer) == (offer.sender(), offer.transfer));
            match ours {
                Some((label, Message::Chunk(bytes))) => {
                    incoming.chunk(label.seq, bytes)?;
                    bar.add(bytes.len() as u64);
                }
                Some((label, Message::End { chunks, sha256 })) => {
                    return Ok(incoming.end(label.seq, chunks, sha256)?);
                }
                // The sender repeats its offer until every answer has come.
                Some((_, Message::Offer { .. })) if incoming.next == 1 => {
                    self.answer(offer, &Message::Accept).map_err(Broken::Link)?;
                }
                Some(_) => {}
                None => ignore(&mut self.ignored, &packet, |text| bar.note(text)),
            }
        }
    }

    fn answer(&self, to: Label, message: &Message<'_>) -> Result<(), Failure> {
        let mut packet = Vec::new();
        to.back(self.own).packet(message, &mut packet);
        self.link.send(&packet)
    }

    /// Sends the receipt and stays until the sender confirms it or is gone. Both outcomes are the same here.
    fn settle(&mut self, offer: Label, receipt: &Receipt) {
        let deadline = Instant::now() + DONE_LIMIT;
        if self.answer(offer, &Message::Receipt(receipt.clone())).is_err() {
            return;
        }
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.link.data().set_read_timeout(Some(left)).is_err() {
                return;
            }
            match self.packets.next_packet().map(|packet| Label::of(&packet)) {
                Ok(Some((label, Message::Done))) if label.transfer == offer.transfer => return,
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }
}

/// Ignores a packet that is not for this transfer, with one remark for all that follow of the same transfer.
fn ignore(last: &mut Option<u64>, packet: &Packet<'_>, note: impl Fn(String)) {
    let (id, text) = match Label::of(packet) {
        Some((label, _)) => {
            (label.transfer, format!("ignored packets of another probe at {}, {}", label.sender(), label.dev))
        }
        None => (0, format!("ignored packets that are no probe's: {}", packet.header)),
    };
    if last.replace(id) != Some(id) {
        note(text);
    }
}

/// A file that is being received.
struct Incoming {
    partial: Partial,
    size: u64,
    hash: Sha256,
    /// The number of the next packet.
    next: u64,
    bytes: u64,
    started: Option<Instant>,
}

/// A file that is complete and at its target.
#[derive(Debug)]
struct Whole {
    receipt: Receipt,
    sha256: [u8; 32],
}

impl Incoming {
    fn new(partial: Partial, size: u64) -> Self {
        Incoming { partial, size, hash: Sha256::new(), next: 1, bytes: 0, started: None }
    }

    fn in_order(&self, seq: u64) -> Result<(), String> {
        match seq.checked_sub(self.next) {
            Some(0) => Ok(()),
            Some(missing) => Err(format!("{missing} packets are missing before packet {seq}")),
            None => Err(format!("packet {seq} came where packet {} was due", self.next)),
        }
    }

    fn chunk(&mut self, seq: u64, bytes: &[u8]) -> Result<(), String> {
        self.in_order(seq)?;
        self.started.get_or_insert_with(Instant::now);
        self.next += 1;
        self.bytes += bytes.len() as u64;
        if self.bytes > self.size {
            return Err(format!("more than the {} bytes announced came", self.size));
        }
        self.hash.update(bytes);
        self.partial.write(bytes).map_err(|e| format!("the receiver cannot write the file: {e}"))
    }

    /// Renames the file to its target if it is complete.
    fn end(self, seq: u64, chunks: u64, sha256: [u8; 32]) -> Result<Whole, String> {
        self.in_order(seq)?;
        let packets = self.next - 1;
        if (chunks, self.size) != (packets, self.bytes) {
            return Err(format!("{} of {} bytes came, {packets} of {chunks} packets", self.bytes, self.size));
        }
        let found: [u8; 32] = self.hash.finalize().into();
        if found != sha256 {
            return Err(format!("its SHA-256 is {} instead of {}", hex(&found), hex(&sha256)));
        }
        let nanos = self.started.map_or(0, |t| u64::try_from(t.elapsed().as_nanos()).unwrap_or(u64::MAX));
        self.partial.keep().map_err(|e| format!("the receiver cannot write the file: {e}"))?;
        Ok(Whole { receipt: Receipt { packets, bytes: self.bytes, nanos, ..Receipt::default() }, sha256 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;

    /// A directory of the test's own that is removed with the value.
    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Folder {
            let path = std::env::temp_dir().join(format!("hadm-probe-{:016x}", fastrand::u64(..)));
            fs::create_dir(&path).unwrap();
            Folder(path)
        }

        fn incoming(&self, size: u64) -> Incoming {
            Incoming::new(Partial::create(&self.0.join("file")).unwrap(), size)
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn digest(bytes: &[u8]) -> [u8; 32] {
        Sha256::digest(bytes).into()
    }

    #[test]
    fn a_whole_file_replaces_the_old_one() {
        let folder = Folder::new();
        fs::write(folder.0.join("file"), "old").unwrap();
        let mut incoming = folder.incoming(6);
        incoming.chunk(1, b"abcd").unwrap();
        assert_eq!(fs::read(folder.0.join("file")).unwrap(), b"old");
        incoming.chunk(2, b"ef").unwrap();
        let whole = incoming.end(3, 2, digest(b"abcdef")).unwrap();
        assert_eq!((whole.receipt.packets, whole.receipt.bytes), (2, 6));
        assert_eq!(fs::read(folder.0.join("file")).unwrap(), b"abcdef");
        assert_eq!(folder.names(), ["file"]);
    }

    #[test]
    fn an_empty_file_is_a_file() {
        let folder = Folder::new();
        folder.incoming(0).end(1, 0, digest(b"")).unwrap();
        assert_eq!(fs::read(folder.0.join("file")).unwrap(), b"");
    }

    #[test]
    fn anything_wrong_leaves_nothing() {
        let folder = Folder::new();
        let wrong = |seq, size, end, sha| {
            let mut incoming = folder.incoming(size);
            incoming.chunk(1, b"abcd")?;
            incoming.chunk(seq, b"ef")?;
            incoming.end(end, 2, sha)
        };
        let right = digest(b"abcdef");
        for (result, part) in [
            (wrong(3, 6, 4, right), "1 packets are missing before packet 3"),
            (wrong(1, 6, 2, right), "packet 1 came where packet 2 was due"),
            (wrong(2, 5, 3, right), "more than the 5 bytes"),
            (wrong(2, 7, 3, right), "6 of 7 bytes"),
            (wrong(2, 6, 4, right), "missing before packet 4"),
            (wrong(2, 6, 3, digest(b"")), "SHA-256"),
        ] {
            let fault = result.unwrap_err();
            assert!(fault.contains(part), "{fault}");
            assert!(folder.names().is_empty());
        }
    }
}
