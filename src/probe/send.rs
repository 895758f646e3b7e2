//! `hadm-probe send`: one file to several nodes or sites, in numbered chunks, with a receipt from each.
//!
//! A receiver that disconnects or fails in the middle must not keep the file from the others.

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::wire::HEADER_LEN;

use super::args::SendFile;
use super::frame::{ASK, CHUNK, Message, Receipt};
use super::progress::Progress;
use super::talk::{Outcome, Outgoing, Plan, Talk};
use super::{Failure, print, rate};

/// Payload bytes of the file in each packet.
const CHUNK_SIZE: usize = 64 << 10;

/// Packets in one write.
const BATCH: usize = 4;

/// The chunks that were sent.
struct Sent {
    chunks: u64,
    sha256: [u8; 32],
}

/// Sends the file; fails unless every receiver has all of it.
pub fn run(server: SocketAddr, json: bool, options: &SendFile) -> Result<(), Failure> {
    let (file, size) = open(&options.file).map_err(Failure::Failed)?;
    let name = options.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let plan = Plan {
        to: options.to,
        timeout: options.timeout,
        offer: Message::Offer { size, name: name.clone() },
        partner: "hadm-probe recv",
    };
    let talk = Talk::open(server, &plan)?;
    let progress = Progress::new(name, size);
    let bar = progress.clone();
    let path = options.file.clone();
    let started = Instant::now();
    let outcome = talk.run(move |out| write(out, file, &path, size, &bar), |text| progress.note(text))?;
    progress.finish();
    report(json, options, size, &outcome, started.elapsed())
}

fn open(path: &Path) -> Result<(File, u64), String> {
    let wrong = |e| format!("cannot read {}: {e}", path.display());
    let file = File::open(path).map_err(wrong)?;
    let about = file.metadata().map_err(wrong)?;
    if about.is_file() { Ok((file, about.len())) } else { Err(format!("{} is not a file", path.display())) }
}

/// Writes all chunks and the end, or stops when no receiver is left.
fn write(out: &Outgoing, mut file: File, path: &Path, size: u64, bar: &Progress) -> Result<Sent, Failure> {
    const HEAD: usize = HEADER_LEN + 1;
    let mut hash = Sha256::new();
    let mut block = vec![0; BATCH * (HEAD + CHUNK_SIZE)];
    let (mut left, mut chunks) = (size, 0);
    while left > 0 {
        let (mut used, before) = (0, left);
        for slot in block.chunks_exact_mut(HEAD + CHUNK_SIZE) {
            let n = CHUNK_SIZE.min(usize::try_from(left).unwrap_or(CHUNK_SIZE));
            if n == 0 {
                break;
            }
            let Some(label) = out.label(chunks + 1) else {
                return Ok(Sent { chunks, sha256: [0; 32] });
            };
            let Some((header, [kind, bytes @ ..])) = slot.split_first_chunk_mut() else { break };
            *header = label.header(ASK, 1 + n as u32);
            *kind = CHUNK;
            let bytes = bytes.get_mut(..n).unwrap_or_default();
            file.read_exact(bytes)
                .map_err(|e| Failure::Failed(format!("cannot read {} to its end: {e}", path.display())))?;
            hash.update(&*bytes);
            used += HEAD + n;
            left -= n as u64;
            chunks += 1;
        }
        out.send(block.get(..used).unwrap_or_default())?;
        bar.add(before - left);
    }
    let sha256 = hash.finalize().into();
    if let Some(label) = out.label(chunks + 1) {
        out.message(label.to, label.seq, &Message::End { chunks, sha256 })?;
    }
    Ok(Sent { chunks, sha256 })
}

fn report(
    json: bool,
    options: &SendFile,
    size: u64,
    outcome: &Outcome<Sent>,
    time: Duration,
) -> Result<(), Failure> {
    let result = |r: &Result<Receipt, String>| match r {
        Ok(receipt) if receipt.fault.is_empty() => Ok(receipt.clone()),
        Ok(receipt) => Err(receipt.fault.clone()),
        Err(why) => Err(why.clone()),
    };
    let results: Vec<(u8, Result<Receipt, String>)> =
        outcome.receipts.iter().map(|(id, r)| (*id, result(r))).collect();
    let speed = |r: &Receipt| rate(r.bytes as f64 / 1e6, Duration::from_nanos(r.nanos));
    let failed = results.iter().filter(|r| r.1.is_err()).count();
    if json {
        let word = options.to.group().word();
        let receivers: Vec<_> = results
            .iter()
            .map(|(id, r)| match r {
                Ok(r) => json!({
                    (word): id, "ok": true, "bytes": r.bytes, "packets": r.packets,
                    "seconds": r.nanos as f64 / 1e9, "mb_per_s": speed(r),
                }),
                Err(why) => json!({ (word): id, "ok": false, "error": why }),
            })
            .collect();
        print(json!({
            "command": "send",
            "file": options.file.to_string_lossy(),
            "ok": failed == 0,
            "bytes": size,
            "packets": outcome.written.as_ref().map(|sent| sent.chunks),
            "sha256": outcome.written.as_ref().map(|sent| super::hex(&sent.sha256)),
            "seconds": time.as_secs_f64(),
            "receivers": receivers,
        }))?;
    } else {
        print(format_args!("{:>8} {:>14} {:>10} {:>9}  digest", "receiver", "bytes", "packets", "MB/s"))?;
        for (id, r) in &results {
            match r {
                Ok(r) => {
                    print(format_args!("{id:>8} {:>14} {:>10} {:>9.1}  ok", r.bytes, r.packets, speed(r)))?;
                }
                Err(why) => print(format_args!("{id:>8} {:>14} {:>10} {:>9}  {why}", "-", "-", "-"))?,
            }
        }
    }
    match failed {
        0 => Ok(()),
        _ => Err(Failure::Failed(format!("{failed} of {} receivers did not get the file", results.len()))),
    }
}
