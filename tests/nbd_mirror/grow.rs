//! A mirror that becomes larger while clients use it, with real programs: the new part, refusals, kills meanwhile.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::far::{self, wait_caught_up};
use super::nbd::Client;
use super::sites::{CHUNK, FLUSH, PATIENCE, SIZE, Sites, assert_content, output, write};

/// The first chunk of the new part, and one far in it.
const FIRST: usize = SIZE as usize / CHUNK;
const FAR: usize = FIRST + 200;

fn enlarge(sites: &Sites, site: usize, size: u64) {
    fs::File::options().write(true).open(sites.disk(site)).unwrap().set_len(size).unwrap();
}

/// The size that a new client gets.
fn offered(sites: &Sites, site: usize) -> u64 {
    let mut client = Client::greeted(&sites.path("sockets", site).join("data.nbd"));
    let export = client.go("data", &[]);
    u64::from_be_bytes(export[0][2..10].try_into().unwrap())
}

#[track_caller]
fn refused(sites: &Sites, site: usize, parts: &[&str]) {
    let why = sites.hadmctl(site, &["grow", "data"]).unwrap_err();
    assert!(parts.iter().all(|part| why.contains(part)), "{parts:?} in {why}");
}

/// Both disks are made larger, in use: old clients go on, new ones see the size, what they write outlives the primary.
#[test]
fn a_mirror_becomes_larger_while_it_is_in_use() {
    let Some((mut pair, mut old)) = Sites::serving("") else { return };
    (0..40).for_each(|chunk| write(&mut old, chunk, 3));
    refused(&pair, 0, &["the disk of site 0 has 33554432 bytes", "truncate or lvextend"]);
    // An odd end is cut off.
    enlarge(&pair, 0, 3 * SIZE + 100);
    refused(&pair, 0, &["the disk of site 1 has 33554432 bytes"]);
    assert_eq!(offered(&pair, 0), SIZE);
    for words in [["plan", "data"], ["doctor", "data"]] {
        let said = pair.hadmctl(0, &words).unwrap();
        assert!(said.contains("could grow by 64.0 MiB"), "{said}");
        let said = pair.hadmctl(1, &words).unwrap();
        assert!(!said.contains("could grow"), "{said}");
    }
    enlarge(&pair, 1, 2 * SIZE);
    let disk = fs::File::options().write(true).open(pair.disk(1)).unwrap();
    disk.write_all_at(&[9; 5000], SIZE + 70_000).unwrap();
    refused(&pair, 1, &["give it at site 0"]);
    pair.hadmctl(0, &["grow", "data"]).unwrap();
    assert_eq!(offered(&pair, 0), 2 * SIZE);
    let mut new = pair.client(0);
    write(&mut new, FIRST, 5);
    write(&mut new, FAR, 6);
    write(&mut old, 41, 7);
    pair.wait_in_sync();
    // Content from before is copied over.
    assert_content(&mut new, FIRST + 1, 0);
    assert_eq!(new.ask(FLUSH, 0, 0, 0), 0);
    refused(&pair, 0, &["the disk of site 1 has 67108864 bytes", "67108864 are mirrored"]);
    let equal = |pair: &Sites| {
        let read = |site: usize| fs::read(pair.disk(site)).unwrap()[..2 * SIZE as usize].to_vec();
        assert!(read(0) == read(1));
    };
    equal(&pair);
    write(&mut new, FAR, 8);
    pair.kill_site(0);
    pair.wait(1, "site 0 not connected");
    pair.hadmctl(1, &["primary", "data", "--force"]).unwrap();
    assert_eq!(offered(&pair, 1), 2 * SIZE);
    let mut client = pair.client(1);
    for (chunk, byte) in [(0, 3), (41, 7), (FIRST, 5), (FAR, 8)] {
        assert_content(&mut client, chunk, byte);
    }
    pair.start_site(0);
    pair.wait_in_sync();
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    equal(&pair);
    // A second time, at the other site, and the metadata are sound.
    enlarge(&pair, 1, 3 * SIZE);
    pair.hadmctl(1, &["grow", "data"]).unwrap();
    assert_eq!(offered(&pair, 1), 3 * SIZE);
    pair.wait_in_sync();
    for site in [0, 1] {
        let dump = output(&pair.program(site).args(["dump", "data"]).output().unwrap());
        assert!(dump.contains("agreed size  100663296 bytes"), "{dump}");
    }
    pair.stop();
}

#[test]
fn a_mirror_whose_other_site_is_away_does_not_grow() {
    let Some(mut pair) = Sites::start("<resyncrate>64K</resyncrate><resyncmin>64K</resyncmin>") else {
        return;
    };
    pair.wait_in_sync();
    refused(&pair, 0, &["make this site primary first"]);
    pair.hadmctl(0, &["primary", "data"]).unwrap();
    let mut client = pair.client(0);
    pair.all().for_each(|site| enlarge(&pair, site, 2 * SIZE));
    pair.kill_site(1);
    pair.wait(0, "site 1 not connected");
    refused(&pair, 0, &["site 1: not connected", "bring it back"]);
    (0..64).for_each(|chunk| write(&mut client, chunk, 4));
    pair.start_site(1);
    pair.wait(1, "resync from it, ");
    refused(&pair, 0, &["site 1: not in sync: wait for the end of the resync"]);
    assert_eq!(offered(&pair, 0), SIZE);
    pair.stop();
}

/// Either program ends while the mirror grows: both sites have one size then, and it can grow.
#[test]
fn a_kill_while_a_mirror_grows_leaves_one_size() {
    let Some(mut pair) = Sites::start("") else { return };
    pair.wait_in_sync();
    let mut size = SIZE;
    for (killed, pause) in [(0, 0), (1, 2), (0, 5), (1, 10), (0, 30), (1, 60)] {
        let end = Instant::now() + PATIENCE;
        while let Err(why) = pair.hadmctl(0, &["primary", "data"]) {
            assert!(Instant::now() < end, "{why}");
            std::thread::park_timeout(Duration::from_millis(50));
        }
        pair.wait_in_sync();
        size += 1 << 20;
        pair.all().for_each(|site| enlarge(&pair, site, size));
        std::thread::scope(|scope| {
            let command = scope.spawn(|| pair.hadmctl(0, &["grow", "data"]));
            std::thread::park_timeout(Duration::from_millis(pause));
            pair.mirrors[killed].as_ref().unwrap().signal(Signal::KILL);
            _ = command.join().unwrap();
        });
        drop(pair.mirrors[killed].take());
        pair.start_mirror(killed);
        pair.wait_in_sync();
    }
    let end = Instant::now() + PATIENCE;
    while pair.hadmctl(0, &["primary", "data"]).is_err() || pair.hadmctl(0, &["grow", "data"]).is_err() {
        if pair.status(0)["role"] == "primary" && offered(&pair, 0) == size {
            break;
        }
        assert!(Instant::now() < end, "{}", pair.status(0));
        std::thread::park_timeout(Duration::from_millis(50));
    }
    pair.wait_in_sync();
    assert_eq!(offered(&pair, 0), size);
    let mut client = pair.client(0);
    write(&mut client, size as usize / CHUNK - 1, 9);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    pair.assert_equal();
    pair.stop();
}

/// A far site is too small, then it takes the size in order; a kill before leaves its copy the older one, of the old size.
#[test]
fn a_mirror_with_a_far_site_becomes_larger() {
    let Some(mut pair) = far::start(2, &[1]) else { return };
    let mut client = pair.client(0);
    (0..40).for_each(|chunk| write(&mut client, chunk, 3));
    wait_caught_up(&pair, 0, 1);
    enlarge(&pair, 0, 2 * SIZE);
    refused(&pair, 0, &["the disk of site 1 has 33554432 bytes", "truncate or lvextend"]);
    enlarge(&pair, 1, 2 * SIZE);
    // Content from before is copied over, as part of the step.
    let disk = fs::File::options().write(true).open(pair.disk(0)).unwrap();
    disk.write_all_at(&[9; 5000], SIZE + 70_000).unwrap();
    pair.hadmctl(0, &["grow", "data"]).unwrap();
    assert_eq!(offered(&pair, 0), 2 * SIZE);
    let mut new = pair.client(0);
    write(&mut new, FAR, 6);
    write(&mut client, 3, 7);
    wait_caught_up(&pair, 0, 1);
    pair.assert_equal();
    let events = pair.hadmctl(1, &["why", "data"]).unwrap();
    assert!(events.contains("67108864 bytes are mirrored"), "{events}");
    assert!(!events.contains("its copy cannot be used until the end"), "{events}");
    // The far site is away while the last part of the way is made, and is promoted without it.
    pair.all().for_each(|site| enlarge(&pair, site, 3 * SIZE));
    let paused = pair.hadmctl(0, &["pause", "data", "1"]);
    paused.unwrap();
    pair.hadmctl(0, &["grow", "data"]).unwrap();
    let mut newest = pair.client(0);
    write(&mut newest, 2 * FIRST, 8);
    pair.kill_site(0);
    pair.wait(1, "site 0 not connected");
    let end = Instant::now() + PATIENCE;
    while let Err(why) = pair.hadmctl(1, &["primary", "data", "--force"]) {
        assert!(Instant::now() < end, "{why}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
    assert_eq!(offered(&pair, 1), 2 * SIZE);
    let mut client = pair.client(1);
    for (chunk, byte) in [(0, 3), (3, 7), (FAR, 6)] {
        assert_content(&mut client, chunk, byte);
    }
    pair.kill_site(1);
}
