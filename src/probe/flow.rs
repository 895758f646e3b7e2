//! Counts the numbered packets of a flood: received, missing and out of order.
//!
//! Counting must stay cheap: it is done for every packet. Used by `echo`.

use std::time::Instant;

use super::frame::Receipt;

/// One flood from one node.
pub struct Flow {
    /// The id of the transfer.
    pub transfer: u64,
    next: u64,
    packets: u64,
    bytes: u64,
    started: Option<Instant>,
    missing: u64,
    gaps: u64,
    first_gap: u64,
    misplaced: u64,
}

impl Flow {
    /// Returns a flood without packets; its packets are numbered from 1.
    pub fn new(transfer: u64) -> Flow {
        Flow {
            transfer,
            next: 1,
            packets: 0,
            bytes: 0,
            started: None,
            missing: 0,
            gaps: 0,
            first_gap: 0,
            misplaced: 0,
        }
    }

    /// Counts packet `seq` with this many payload bytes.
    pub fn count(&mut self, seq: u64, bytes: usize) {
        if self.started.is_none() {
            self.started = Some(Instant::now());
        }
        self.packets += 1;
        self.bytes += bytes as u64;
        if seq == self.next {
            self.next += 1;
        } else if seq > self.next {
            self.gap(seq);
            self.next = seq.saturating_add(1);
        } else {
            self.misplaced += 1;
        }
    }

    fn gap(&mut self, seq: u64) {
        self.missing += seq - self.next;
        self.gaps += 1;
        if self.gaps == 1 {
            self.first_gap = self.next;
        }
    }

    /// Returns the receipt; `sent` is the number of packets that were sent in all.
    pub fn end(mut self, sent: u64) -> Receipt {
        let nanos = self.started.map_or(0, |t| u64::try_from(t.elapsed().as_nanos()).unwrap_or(u64::MAX));
        let due = sent.saturating_add(1);
        if due > self.next {
            self.gap(due);
        }
        let mut faults = Vec::new();
        if self.missing > 0 {
            let Flow { missing, gaps, first_gap, .. } = self;
            faults.push(format!("{missing} packets missing in {gaps} gaps, the first at packet {first_gap}"));
        }
        if self.misplaced > 0 {
            faults.push(format!("{} packets repeated or late", self.misplaced));
        }
        if self.next > due {
            faults.push(format!("packets up to {} came, {sent} were sent", self.next - 1));
        }
        Receipt {
            packets: self.packets,
            bytes: self.bytes,
            nanos,
            missing: self.missing,
            fault: faults.join("; "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(seqs: &[u64], sent: u64) -> Receipt {
        let mut flow = Flow::new(1);
        for seq in seqs {
            flow.count(*seq, 10);
        }
        flow.end(sent)
    }

    #[test]
    fn a_complete_flood_has_no_fault() {
        let receipt = flow(&[1, 2, 3], 3);
        assert_eq!((receipt.packets, receipt.bytes, receipt.missing), (3, 30, 0));
        assert_eq!(receipt.fault, "");
        assert_eq!(flow(&[], 0).fault, "");
    }

    #[test]
    fn gaps_are_counted_also_at_the_end() {
        let receipt = flow(&[1, 2, 5, 6, 9], 10);
        assert_eq!(receipt.missing, 5);
        assert_eq!(receipt.fault, "5 packets missing in 3 gaps, the first at packet 3");
    }

    #[test]
    fn packets_out_of_turn_are_told() {
        assert_eq!(flow(&[1, 1, 2], 2).fault, "1 packets repeated or late");
        assert_eq!(flow(&[1, 2, 3], 2).fault, "packets up to 3 came, 2 were sent");
        assert!(flow(&[u64::MAX], 1).fault.contains("missing"));
    }
}
