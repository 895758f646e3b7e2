//! `hadm-probe throughput`: numbered packets to `echo` at several nodes or sites, as fast as the daemon takes
//! them.
//!
//! The probe must not limit the rate: packets are encoded once, and only their numbers are written
//! anew before each large write. The result is taken from the receivers' receipts.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::wire::{HEADER_LEN, Mask, MirrorFields};

use super::args::Measure;
use super::frame::{ASK, FLOOD, Message, Receipt};
use super::talk::{Outcome, Outgoing, Plan, Talk};
use super::{Failure, print, rate, say};

/// Least bytes in one write.
const BATCH: usize = 256 << 10;

/// Floods and prints the result; fails unless every packet reached every receiver in order.
pub fn run(server: SocketAddr, json: bool, options: &Measure) -> Result<(), Failure> {
    let plan = Plan {
        to: options.to,
        timeout: options.timeout,
        offer: Message::FloodOffer,
        partner: "hadm-probe echo",
    };
    let talk = Talk::open(server, &plan)?;
    let (size, time) = (options.size, options.time);
    let outcome = talk.run(move |out| flood(out, size, time), |text| say(text))?;
    report(json, options, &outcome)
}

/// Writes packets for `time`, then the end; returns their number.
fn flood(out: &Outgoing, size: usize, time: Duration) -> Result<u64, Failure> {
    let packet = HEADER_LEN + size;
    let mut batch = vec![0; BATCH.div_ceil(packet) * packet];
    let mut to = Mask(0);
    let mut sent = 0;
    let started = Instant::now();
    while started.elapsed() < time {
        let Some(label) = out.label(sent) else { return Ok(sent) };
        if label.to != to {
            to = label.to;
            for packet in batch.chunks_exact_mut(packet) {
                if let Some((header, [kind, ..])) = packet.split_first_chunk_mut() {
                    *header = label.header(ASK, size as u32);
                    *kind = FLOOD;
                }
            }
        }
        for packet in batch.chunks_exact_mut(packet) {
            sent += 1;
            MirrorFields::renumber(packet, sent);
        }
        out.send(&batch)?;
    }
    if let Some(label) = out.label(sent + 1) {
        out.message(label.to, label.seq, &Message::FloodEnd { packets: sent })?;
    }
    Ok(sent)
}

fn report(json: bool, options: &Measure, outcome: &Outcome<u64>) -> Result<(), Failure> {
    let faulty = |r: &Result<Receipt, String>| match r {
        Ok(receipt) => Some(receipt.fault.clone()).filter(|fault| !fault.is_empty()),
        Err(why) => Some(why.clone()),
    };
    let failed = outcome.receipts.values().filter(|r| faulty(r).is_some()).count();
    let word = options.to.group().word();
    let mut receivers = Vec::new();
    if !json {
        print(format_args!(
            "{:>8} {:>10} {:>14} {:>9} {:>11}  gaps",
            "receiver", "packets", "bytes", "MB/s", "packets/s"
        ))?;
    }
    for (id, result) in &outcome.receipts {
        let receipt = result.clone().unwrap_or_default();
        let Receipt { packets, bytes, nanos, missing, .. } = receipt;
        let time = Duration::from_nanos(nanos);
        let (speed, often) = (rate(bytes as f64 / 1e6, time), rate(packets as f64, time));
        let fault = faulty(result);
        if json {
            receivers.push(json!({
                (word): id, "ok": fault.is_none(), "packets": packets, "bytes": bytes,
                "seconds": time.as_secs_f64(), "mb_per_s": speed, "packets_per_s": often,
                "missing": missing, "error": fault,
            }));
        } else {
            let gaps = fault.as_deref().unwrap_or("none");
            print(format_args!("{id:>8} {packets:>10} {bytes:>14} {speed:>9.1} {often:>11.0}  {gaps}"))?;
        }
    }
    if json {
        print(json!({
            "command": "throughput", "ok": failed == 0, "size": options.size,
            "packets": outcome.written, "receivers": receivers,
        }))?;
    }
    match failed {
        0 => Ok(()),
        _ => Err(Failure::Failed(format!("{failed} of {} receivers missed packets", outcome.receipts.len()))),
    }
}
