//! Sites that writes do not wait for: their copies are behind, in order, and can be promoted at any moment.

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::nbd::Client;
use super::sites::{CHUNK, FLUSH, PATIENCE, Sites, assert_content, output, write};

/// Blocks that a writer goes round and round over.
const RING: u32 = 64;

/// Sites of which some are asynchronous, with everything initialised and nothing started.
pub fn prepare(sites: usize, far: &[usize], options: &[&str]) -> Option<Sites> {
    let mut pair = Sites::prepare(sites, "")?;
    pair.far = far.to_vec();
    pair.configure("");
    pair.all().for_each(|site| pair.init(site, options));
    Some(pair)
}

/// The same, started, with site 0 as primary.
pub fn start(sites: usize, far: &[usize]) -> Option<Sites> {
    start_with(sites, far, "8M", "")
}

/// The same with logs of this size, and more elements for the resource.
fn start_with(sites: usize, far: &[usize], log: &str, more: &str) -> Option<Sites> {
    let mut pair = prepare(sites, far, &["--clean", "--log-size", log])?;
    pair.configure(more);
    pair.all().for_each(|site| pair.start_site(site));
    for site in pair.all().skip(1) {
        pair.wait(
            0,
            &format!("site {site} {}", if far.contains(&site) { "follows in order" } else { "in sync" }),
        );
    }
    pair.hadmctl(0, &["primary", "--force", "data"]).unwrap();
    pair.all().skip(1).for_each(|site| _ = pair.wait(site, "secondary of site 0"));
    Some(pair)
}

/// Writes numbers from `first` on, each into the next block of the ring, until it cannot or `until` is over.
fn write_ring(client: &mut Client, numbers: std::ops::Range<u32>) {
    for number in numbers {
        let block: Vec<u8> = number.to_le_bytes().into_iter().cycle().take(4096).collect();
        client.write(number.into(), place(number), &block);
        client.simple_reply(number.into(), 0);
    }
}

/// Blocks of the ring lie in different extents, so that no two of them have an order by themselves.
fn place(number: u32) -> u64 {
    let slot = u64::from(number % RING);
    ((slot % 8) << 22) + ((slot / 8) << 16)
}

/// Returns the last number of a disk's content. It must be a state that there was: the last numbers in a row, and no other.
#[track_caller]
fn newest(content: impl Fn(u64) -> u32) -> u32 {
    let found: Vec<_> = (0..RING).map(|slot| content(place(slot))).collect();
    let last = found.iter().copied().max().unwrap();
    for (slot, number) in (0..RING).zip(&found) {
        let back = (last % RING + RING - slot) % RING;
        assert_eq!(*number, last.saturating_sub(back), "slot {slot} of {found:?}: no state that there was");
    }
    last
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes[..4].try_into().unwrap())
}

#[track_caller]
pub fn wait_caught_up(pair: &Sites, primary: usize, site: usize) {
    let end = Instant::now() + PATIENCE;
    loop {
        let status = pair.status(primary);
        let peers = status["peers"].as_array().unwrap();
        let peer = peers.iter().find(|peer| peer["site"] == site).unwrap();
        if peer["in_sync"] == true && peer["behind"]["bytes"] == 0 && peer["out_of_sync"] == 0 {
            return;
        }
        assert!(Instant::now() < end, "{status}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Waits until a site has carried out what its ordered log had.
fn wait_settled(pair: &Sites, site: usize) {
    let end = Instant::now() + PATIENCE;
    while pair.status(site)["flags"].as_str().unwrap().contains("write indicator") {
        assert!(Instant::now() < end, "{}", pair.status(site));
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

#[test]
fn a_far_site_takes_an_ordered_log() {
    let Some(pair) = prepare(2, &[1], &["--clean"]) else { return };
    let refused = pair.run(0).output().unwrap();
    let refused = output(&refused);
    assert!(
        refused.contains("<protocol>async</protocol>") && refused.contains("--log-size 64M"),
        "{refused}"
    );
}

#[test]
fn writes_do_not_wait_for_a_far_site_and_the_role_moves_in_order() {
    let Some(pair) = start(2, &[1]) else { return };
    let mut client = pair.client(0);
    write(&mut client, 40, 7);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    wait_caught_up(&pair, 0, 1);
    // It stands still, and neither writes nor flushes do.
    pair.mirrors[1].as_ref().unwrap().signal(Signal::STOP);
    write_ring(&mut client, 1..200);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    let said = pair.wait(0, "behind");
    assert!(said.contains("site 1 follows in order, ") && said.contains(" s behind"), "{said}");
    let metrics = pair.hadmctl(0, &["metrics"]).unwrap();
    let behind = "hadm_nbd_behind_bytes{resource=\"0\",name=\"data\",site=\"1\"} ";
    let behind = metrics.lines().find_map(|line| line.strip_prefix(behind)).unwrap();
    assert!(behind.parse::<u64>().unwrap() > 100 * 4096, "{behind}");
    pair.mirrors[1].as_ref().unwrap().signal(Signal::CONT);
    write_ring(&mut client, 200..400);
    drop(client);
    // In order, without a wait for it before: the other site has everything when the role is left.
    let begun = Instant::now();
    pair.hadmctl(0, &["secondary", "data"]).unwrap();
    pair.wait(1, "no primary");
    pair.hadmctl(1, &["primary", "data"]).unwrap();
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(10), "the role moved in {took:?}");
    let mut client = pair.client(1);
    assert_content(&mut client, 40, 7);
    assert_eq!(number(&client.read_disk(place(399), 4096)), 399);
    // The other way round it is as far.
    write_ring(&mut client, 400..500);
    pair.wait(1, "site 0 follows in order");
    wait_caught_up(&pair, 1, 0);
    pair.assert_equal();
    drop(client);
    pair.stop();
}

/// A name in the stream is where it was put: the site that has it on its disk has all before it, and not what came after.
#[test]
fn a_checkpoint_is_told_by_both_sites_when_the_far_one_has_all_before_it() {
    let Some(mut pair) = start(2, &[1]) else { return };
    let mut client = pair.client(0);
    write_ring(&mut client, 1..200);
    pair.hadmctl(0, &["checkpoint", "data", "monday", "--for", "60"]).unwrap();
    assert_eq!(pair.status(1)["checkpoint"], "monday");
    assert_eq!(pair.status(0)["checkpoint"], "monday");
    for site in [0, 1] {
        let events = pair.hadmctl(site, &["why", "data"]).unwrap();
        assert!(events.contains("site 1: checkpoint: monday"), "{events}");
    }
    // One that cannot come yet is not called there.
    pair.mirrors[1].as_ref().unwrap().signal(Signal::STOP);
    write_ring(&mut client, 200..300);
    let late = pair.hadmctl(0, &["checkpoint", "data", "tuesday", "--for", "0"]).unwrap_err();
    assert!(late.contains("checkpoint tuesday on its way"), "{late}");
    assert_eq!(pair.status(0)["peers"][0]["behind"]["checkpoints"][0], "tuesday");
    pair.mirrors[1].as_ref().unwrap().signal(Signal::CONT);
    pair.wait(1, "checkpoint tuesday");
    // It is in the metadata, and outlives the program and the primary; and a site that was away hears of the last one.
    pair.mirrors[1].take().unwrap().kill9();
    write_ring(&mut client, 300..400);
    pair.hadmctl(0, &["checkpoint", "data", "wednesday"]).unwrap();
    pair.start_mirror(1);
    pair.wait(1, "checkpoint wednesday");
    wait_caught_up(&pair, 0, 1);
    drop(client);
    pair.kill_site(0);
    loop {
        match pair.hadmctl(1, &["primary", "--force", "data"]) {
            Ok(said) => break assert!(said.contains("checkpoint wednesday"), "{said}"),
            Err(refused) => {
                assert!(refused.contains("again") || refused.contains("is primary"), "{refused}")
            }
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    let client = std::cell::RefCell::new(pair.client(1));
    assert_eq!(newest(|at| number(&client.borrow_mut().read_disk(at, 4096))), 399);
    for name in ["", "two words", &"x".repeat(65)] {
        let refused = pair.hadmctl(1, &["checkpoint", "data", name]).unwrap_err();
        assert!(refused.contains("no name for a checkpoint"), "{refused}");
    }
    drop(client);
    pair.mirrors[1].take().unwrap().kill9();
    pair.daemons[1].take().unwrap().kill9();
}

#[test]
fn a_checkpoint_takes_a_primary_and_a_far_site() {
    let Some(pair) = start(2, &[]) else { return };
    let refused = pair.hadmctl(0, &["checkpoint", "data", "monday"]).unwrap_err();
    assert!(refused.contains("<protocol>async</protocol>"), "{refused}");
    let refused = pair.hadmctl(1, &["checkpoint", "data", "monday"]).unwrap_err();
    assert!(refused.contains("present role"), "{refused}");
    pair.stop();
}

#[test]
fn the_copy_of_a_far_site_is_a_state_of_the_primary_when_either_is_killed() {
    let Some(mut pair) = start(2, &[1]) else { return };
    let mut client = pair.client(0);
    let mut next = 1;
    // The far site's program goes at any moment; what it left is put right by its next start, alone.
    for round in 0..4 {
        write_ring(&mut client, next..next + 700 + 40 * round);
        next += 700 + 40 * round;
        pair.mirrors[1].take().unwrap().kill9();
        pair.daemons[1].take().unwrap().kill9();
        write_ring(&mut client, next..next + 20);
        next += 20;
        pair.start_mirror(1);
        wait_settled(&pair, 1);
        let disk = fs::read(pair.disk(1)).unwrap();
        let last = newest(|at| number(&disk[at as usize..]));
        assert!(last < next, "round {round}: {last} of {next}");
        pair.start_daemon(1);
        pair.wait(0, "site 1 follows in order");
        wait_caught_up(&pair, 0, 1);
    }
    // The primary's machine dies under writes, and the far copy is promoted: older, and whole.
    write_ring(&mut client, next..next + 900);
    next += 900;
    pair.kill_site(0);
    drop(client);
    let refused = loop {
        let refused = pair.hadmctl(1, &["primary", "data"]).unwrap_err();
        if !refused.contains("again") && !refused.contains("is primary") {
            break refused;
        }
        std::thread::park_timeout(Duration::from_millis(50));
    };
    assert!(refused.contains("the copy here is an asynchronous one"), "{refused}");
    pair.hadmctl(1, &["primary", "--force", "data"]).unwrap();
    let client = std::cell::RefCell::new(pair.client(1));
    let last = newest(|at| number(&client.borrow_mut().read_disk(at, 4096)));
    assert!(last < next && last + 900 >= next - 1, "{last} of {next}");
    drop(client);
    pair.start_site(0);
    pair.wait(1, "site 0");
    pair.daemons[1].take().unwrap().kill9();
}

#[test]
fn a_sync_and_a_far_site_of_one_primary() {
    let Some(mut sites) = start(3, &[2]) else { return };
    let mut client = sites.client(0);
    sites.mirrors[2].as_ref().unwrap().signal(Signal::STOP);
    for chunk in 0..32 {
        write(&mut client, chunk, chunk as u8 + 1);
        // Answered: the sync site has it.
        assert_eq!(fs::read(sites.disk(1)).unwrap()[chunk * CHUNK], chunk as u8 + 1);
    }
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    sites.mirrors[2].as_ref().unwrap().signal(Signal::CONT);
    wait_caught_up(&sites, 0, 2);
    sites.assert_equal();
    // The primary's machine dies: the sync site has all, and the far one gets it from there.
    for chunk in 0..32 {
        write(&mut client, chunk, chunk as u8 + 101);
    }
    sites.kill_site(0);
    drop(client);
    loop {
        match sites.hadmctl(1, &["primary", "--force", "data"]) {
            Ok(_) => break,
            Err(refused) => assert!(
                refused.contains("again") || refused.contains("settled") || refused.contains("is primary"),
                "{refused}"
            ),
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    sites.wait(1, "site 2 follows in order");
    wait_caught_up(&sites, 1, 2);
    let mut client = sites.client(1);
    (0..32).for_each(|chunk| assert_content(&mut client, chunk, chunk as u8 + 101));
    let (near, far) = (fs::read(sites.disk(1)).unwrap(), fs::read(sites.disk(2)).unwrap());
    assert!(near == far, "the two that are left differ");
}

/// The writes of an outage come in one step: before it, whatever happens, the copy is the older state.
#[test]
fn a_copy_is_whole_while_it_catches_up_at_once() {
    let slow = "<resyncrate>256K</resyncrate><resyncmin>256K</resyncmin>";
    let Some(mut pair) = start_with(2, &[1], "32M", slow) else { return };
    let mut client = pair.client(0);
    let mut next = 1;
    let mut write_some = |client: &mut Client, n: u32| {
        write_ring(client, next..next + n);
        next += n;
        next - 1
    };
    let on_disk = |pair: &Sites| {
        let disk = fs::read(pair.disk(1)).unwrap();
        newest(|at| number(&disk[at as usize..]))
    };
    // The line is away, and both sites stay: nothing is marked but what is written.
    let part = |pair: &Sites| {
        wait_caught_up(pair, 0, 1);
        pair.all().for_each(|site| _ = pair.hadmctl(site, &["disconnect", "data"]).unwrap());
        wait_settled(pair, 1);
    };
    let join = |pair: &Sites| {
        pair.all().for_each(|site| _ = pair.hadmctl(site, &["connect", "data"]).unwrap());
        pair.wait(0, "carried out at once")
    };
    let before = write_some(&mut client, 300);
    part(&pair);
    write_some(&mut client, 300);
    let said = pair.status(0);
    let room = said["peers"][0]["behind"]["log_room"].as_u64().unwrap();
    assert!(room > 8 << 20 && room < 16 << 20, "{said}");
    // The far site's programs go in the middle: what its disk has by then, and after a start alone, is what it was.
    join(&pair);
    for _ in 0..2 {
        let said = pair.wait(0, "carried out at once");
        assert!(said.contains("site 1 resync to it, ") && pair.status(1)["disk"] != "inconsistent", "{said}");
        write_some(&mut client, 50);
        pair.kill_site(1);
        assert_eq!(on_disk(&pair), before);
        pair.start_mirror(1);
        wait_settled(&pair, 1);
        assert_eq!(on_disk(&pair), before);
        pair.start_daemon(1);
    }
    pair.wait(0, "carried out at once");
    let events = pair.hadmctl(0, &["why", "data"]).unwrap();
    assert!(events.contains("site 1: catch-up: ") && events.contains("carried out at once"), "{events}");
    while pair.status(0)["peers"][0]["in_sync"] != true {
        write_some(&mut client, 1);
    }
    wait_caught_up(&pair, 0, 1);
    pair.assert_equal();
    // The primary's machine dies in the middle, and the older state is served.
    let before = write_some(&mut client, 1);
    part(&pair);
    write_some(&mut client, 300);
    join(&pair);
    write_some(&mut client, 50);
    pair.kill_site(0);
    drop(client);
    while let Err(refused) = pair.hadmctl(1, &["primary", "--force", "data"]) {
        assert!(
            refused.contains("again") || refused.contains("is primary") || refused.contains("settled"),
            "{refused}"
        );
        std::thread::park_timeout(Duration::from_millis(50));
    }
    let client = std::cell::RefCell::new(pair.client(1));
    assert_eq!(newest(|at| number(&client.borrow_mut().read_disk(at, 4096))), before);
    drop(client);
    pair.start_site(0);
    pair.wait(1, "site 0");
    pair.kill_site(1);
}

/// A log that is too small for it is announced before the site is back.
#[test]
fn a_catch_up_that_is_too_large_is_announced() {
    let Some(mut pair) = start_with(2, &[1], "4M", "") else { return };
    let mut client = pair.client(0);
    write_ring(&mut client, 1..65);
    wait_caught_up(&pair, 0, 1);
    pair.kill_site(1);
    write_ring(&mut client, 65..129);
    pair.wait(0, "more than its log takes at once");
    let metrics = pair.hadmctl(0, &["metrics"]).unwrap();
    let room = "hadm_nbd_catch_up_room_bytes{resource=\"0\",name=\"data\",site=\"1\"} 0\n";
    assert!(metrics.contains(room), "{metrics}");
    let told = |pair: &Sites, part: &str| {
        let end = Instant::now() + PATIENCE;
        while !pair.hadmctl(0, &["why", "data"]).unwrap().contains(part) {
            assert!(Instant::now() < end, "{part}");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    };
    told(&pair, "site 1: catch-up is large: ");
    // A small part of each chunk that is marked differs, and that fits.
    pair.start_site(1);
    told(&pair, "compared first");
    wait_caught_up(&pair, 0, 1);
    pair.assert_equal();
    let in_pieces = "its copy cannot be used until the end";
    assert!(!pair.hadmctl(0, &["why", "data"]).unwrap().contains(in_pieces));
    pair.kill_site(1);
    (0..64).for_each(|chunk| write(&mut client, chunk, 5));
    pair.start_site(1);
    told(&pair, in_pieces);
    wait_caught_up(&pair, 0, 1);
    pair.assert_equal();
    drop(client);
    pair.stop();
}

/// Each piece is compared in its place in the stream: writes that are under way are no differences, and what differs is found.
#[test]
fn a_far_copy_is_compared_under_load() {
    let Some(pair) = start(2, &[1]) else { return };
    let (is_over, written) = (AtomicBool::new(false), AtomicU32::new(0));
    // It writes without a pause, so that it does so all the time between two of these.
    let wait_written = || {
        let (before, end) = (written.load(Relaxed), Instant::now() + PATIENCE);
        while written.load(Relaxed) == before {
            assert!(Instant::now() < end, "nothing is written");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    };
    let verify = |before: &str| {
        pair.hadmctl(0, &["verify", "data"]).unwrap();
        let end = Instant::now() + PATIENCE;
        loop {
            let verified = pair.status(0)["verified"].take();
            if let Some(words) = verified.as_str().filter(|words| *words != before) {
                return words.to_owned();
            }
            assert!(Instant::now() < end, "no end of the verify");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    };
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut client = pair.client(0);
            let (mut number, end) = (1, Instant::now() + PATIENCE * 4);
            while !is_over.load(Relaxed) && Instant::now() < end {
                write_ring(&mut client, number..number + 10);
                number += 10;
                written.store(number, Relaxed);
            }
        });
        wait_written();
        let equal = verify("");
        let disk = fs::File::options().write(true).open(pair.disk(1)).unwrap();
        disk.write_all_at(b"rot", 22 << 20).unwrap();
        let different = verify(&equal);
        wait_written();
        is_over.store(true, Relaxed);
        writer.join().unwrap();
        assert_eq!(equal, "site 1: 512 chunks compared, 0 differ");
        assert_eq!(different, "site 1: 512 chunks compared, 1 differ");
    });
    // The marked chunks are copied, and no more.
    pair.hadmctl(0, &["resync", "data"]).unwrap();
    wait_caught_up(&pair, 0, 1);
    pair.assert_equal();
    pair.stop();
}
