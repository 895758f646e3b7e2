//! `init --adopt`: stopped sites of the kernel module, whole and damaged.
//!
//! Their bytes are written down from the kernel module's format alone. Used by nobody else.

use std::fs;

use crate::pair::{Pair, assert_parts};

/// A stopped site of the kernel module.
struct KernelSite {
    pair: Pair,
    image: Vec<u8>,
    start: u64,
    end: u64,
    sequence: u64,
    at: u64,
}

impl KernelSite {
    const UUID: u64 = 77;
    const DISK: u64 = 16 << 20;

    /// A ring of 20 entries in which the next one goes to place `at`.
    fn new(at: u64) -> Self {
        let pair = Pair::with_disks(Self::DISK + 8192);
        // Ring from the first multiple of nine sectors behind 3 MiB.
        let start = (3_u64 << 11).next_multiple_of(9);
        let end = start + 20 * 9;
        let mut image = vec![0; (end * 512 + 2048) as usize];
        let mut number = |at: usize, n: u64| image[at..at + 8].copy_from_slice(&n.to_le_bytes());
        number(0, 0x3e95_3ac1_6a42_27b9);
        number(16, Self::DISK);
        number(24, end * 512 + 2048);
        number(40, 2048);
        number(48, start);
        (0..32).for_each(|site| number(56 + site * 8, u64::MAX));
        let at = start + at * 9;
        number(56, at);
        number(312, at);
        number(392, Self::UUID);
        number(400, 100);
        // The last primary is nobody, the local one is site 0.
        image[328] = 255;
        image[384] = 0;
        KernelSite { pair, image, start, end, sequence: 100, at }
    }

    /// Adds a page of this byte for a sector of the disk, and moves the tail behind it if it is counted.
    fn add(&mut self, sector: u64, byte: u8, counted: bool) {
        let page = [byte; 4096];
        self.sequence += 1;
        let at = (self.at * 512) as usize;
        for (field, n) in
            [(0, Self::UUID), (8, self.sequence), (16, crc(&page).into()), (24, self.at), (32, sector)]
        {
            self.image[at + field..at + field + 8].copy_from_slice(&n.to_le_bytes());
        }
        self.image[at + 512..at + 4608].copy_from_slice(&page);
        self.at = if self.at + 9 < self.end { self.at + 9 } else { self.start };
        if counted {
            self.image[312..320].copy_from_slice(&self.at.to_le_bytes());
            self.image[400..408].copy_from_slice(&self.sequence.to_le_bytes());
        }
    }

    fn stop(&self) {
        fs::write(self.pair.path("left.meta"), &self.image).unwrap();
    }

    fn byte(&self, sector: u64) -> u8 {
        self.pair.read("left.disk")[(sector * 512) as usize]
    }
}

/// CRC-32 bit by bit, begun with zero and not inverted.
fn crc(bytes: &[u8]) -> u32 {
    let mut crc = 0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    crc
}

#[test]
fn a_primary_of_the_kernel_module_is_adopted_with_its_last_writes() {
    // Across the end of the ring, two writes to one place, and two behind the tail that the superblock does not know.
    let mut site = KernelSite::new(17);
    site.pair.write("left.disk", 0, b"kept");
    for (sector, byte, counted) in
        [(80, 1, true), (800, 2, true), (80, 3, true), (88, 4, true), (96, 5, false), (104, 6, false)]
    {
        site.add(sector, byte, counted);
    }
    site.stop();
    assert_parts(&site.pair.refused(&["init", "data"]), &["a bwr_disk of the kernel module", "--adopt"]);
    let said = site.pair.done(&["init", "--adopt", "data"]);
    assert_parts(
        &said,
        &[
            "this site was primary; 6 pages of its ring were written",
            "16 MiB of data",
            "take this site's data",
        ],
    );
    let found = [80, 88, 96, 104, 800].map(|sector| site.byte(sector));
    assert_eq!((found, site.byte(0)), ([3, 4, 5, 6, 2], b'k'));
    site.pair.done(&["check"]);
    let dump = site.pair.done(&["dump"]);
    assert_parts(&dump, &["flags        consistent, up to date\n", "flags full sync due"]);
    assert!(!dump.contains("just created"), "its data have a generation: {dump}");
    // Once is enough.
    assert_parts(&site.pair.refused(&["init", "--adopt", "data"]), &["no disk of the kernel module"]);
}

#[test]
fn a_secondary_of_the_kernel_module_is_adopted_without_a_replay() {
    let mut site = KernelSite::new(0);
    site.add(80, 1, true);
    site.image[384] = 255;
    site.stop();
    assert_parts(&site.pair.done(&["init", "--adopt", "data"]), &["this site was secondary"]);
    assert_eq!(site.byte(80), 0);
    assert_parts(&site.pair.done(&["dump"]), &["flags        none", "current      just created"]);
}

#[test]
fn a_kernel_modules_disk_that_is_damaged_or_anothers_is_left_as_it_is() {
    let spoil = |change: fn(&mut KernelSite), part: &str| {
        let mut site = KernelSite::new(3);
        site.add(80, 1, true);
        site.add(88, 2, true);
        change(&mut site);
        site.stop();
        assert_parts(&site.pair.refused(&["init", "--adopt", "data"]), &[part]);
        assert_eq!((site.byte(80), site.pair.read("left.meta") == site.image), (0, true), "{part}");
    };
    spoil(|site| site.image[(site.start * 512 + 3 * 4608 + 1000) as usize] ^= 1, "is damaged at sector");
    spoil(|site| site.image[(site.start * 512 + 4 * 4608) as usize] ^= 1, "does not continue its sequence");
    spoil(|site| site.image[312] ^= 1, "which cannot be");
    spoil(|site| site.image[8] = 5, "belongs to resource 5");
    spoil(|site| site.image[16 + 3] = 2, "is that of a disk of");
    spoil(|site| site.image[320] = 1, "is inconsistent");
    spoil(|site| site.image[0] ^= 1, "no disk of the kernel module");
    let mut far = KernelSite::new(3);
    far.add(KernelSite::DISK, 1, true);
    far.stop();
    assert_parts(&far.pair.refused(&["init", "--adopt", "data"]), &["behind the end of the disk"]);
}
