//! The checker of answers: a register for each block, whose content says which block and version it is.

use std::sync::Mutex;

pub const BLOCK: usize = 4096;

/// The content that a block may have.
#[derive(Clone, Debug, Default)]
struct Register {
    /// The version last answered, or last read while none was under way; 0 is a block of zeroes.
    known: u64,
    /// Versions whose writes have no answer: they may be there or not.
    maybe: Vec<u64>,
}

/// All blocks of the disk, and the first violation.
pub struct Ledger {
    blocks: Vec<Mutex<Register>>,
    /// The place of each, in bytes.
    places: Vec<u64>,
    violation: Mutex<Option<String>>,
}

/// The bytes of a version.
pub fn content(block: usize, version: u64) -> Vec<u8> {
    match version {
        0 => vec![0; BLOCK],
        _ => [(block as u64 + 1).to_le_bytes(), version.to_le_bytes()].concat().repeat(BLOCK / 16),
    }
}

impl Ledger {
    pub fn new(places: Vec<u64>) -> Self {
        let blocks = places.iter().map(|_| Mutex::default()).collect();
        Ledger { blocks, places, violation: Mutex::default() }
    }

    pub fn len(&self) -> usize {
        self.places.len()
    }

    pub fn place(&self, block: usize) -> u64 {
        self.places[block]
    }

    /// Notes the first violation.
    pub fn violate(&self, what: String) {
        self.violation.lock().unwrap().get_or_insert(what);
    }

    pub fn violation(&self) -> Option<String> {
        self.violation.lock().unwrap().clone()
    }

    /// A write is about to be sent.
    pub fn ask(&self, block: usize, version: u64) {
        self.blocks[block].lock().unwrap().maybe.push(version);
    }

    /// A write was answered: whatever was under way before it is over.
    pub fn answer(&self, block: usize, version: u64) {
        *self.blocks[block].lock().unwrap() = Register { known: version, maybe: Vec::new() };
    }

    /// A block was read with no request for it under way: the content must be one that it may have, and stays.
    pub fn check(&self, block: usize, bytes: &[u8], at: &str) {
        let mut register = self.blocks[block].lock().unwrap();
        let mut found: Vec<(u64, u64)> = bytes
            .chunks(16)
            .map(|pair| {
                let number = |at: usize| u64::from_le_bytes(pair[at..at + 8].try_into().unwrap());
                (number(0), number(8))
            })
            .collect();
        found.dedup();
        let own = block as u64 + 1;
        let may = |(of, version): &(u64, u64)| {
            let right = if *version == 0 { *of == 0 } else { *of == own };
            right && (*version == register.known || register.maybe.contains(version))
        };
        if !found.iter().all(may) {
            let first: Vec<_> = found.iter().take(8).collect();
            self.violate(format!(
                "{at}: block {block} (byte {}) reads as (block + 1, version) {first:?}; it was answered that it is {}, and \
                 may be {:?}",
                self.place(block),
                register.known,
                register.maybe
            ));
        } else if let [(_, version)] = found[..] {
            *register = Register { known: version, maybe: Vec::new() };
        }
    }
}
