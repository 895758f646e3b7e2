//! Clients written by others at the primary of a mirror: what they do is at both sites, and the loss of the other site is
//! nothing to them. A client that is not installed is said to be SKIPPED.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use super::nbd::programs::{FIO_JOBS, ext4_is_clean, fio_verifies, has, nbdcopy_both_ways, qemu_io_patterns};
use super::sites::{FLUSH, SIZE, Sites, uri};

/// Two sites in sync, of which the first is primary.
fn led(more: &str) -> Option<Sites> {
    let pair = Sites::start(more)?;
    pair.wait_in_sync();
    pair.hadmctl(0, &["primary", "data"]).unwrap();
    Some(pair)
}

/// Both disks have the same, once everything is written.
fn ends_equal(pair: Sites) {
    pair.wait_in_sync();
    assert_eq!(pair.client(0).ask(FLUSH, 0, 0, 0), 0);
    pair.assert_equal();
    pair.stop();
}

#[test]
fn qemu_io_writes_patterns_to_both_sites() {
    if !has("qemu-io", "qemu-utils") {
        return;
    }
    let Some(pair) = led("") else { return };
    qemu_io_patterns(&uri(&pair, 0), SIZE);
    ends_equal(pair);
}

#[test]
fn nbdcopy_fills_both_sites_and_reads_them_back() {
    if !has("nbdcopy", "libnbd-bin") {
        return;
    }
    let Some(pair) = led("") else { return };
    nbdcopy_both_ways(&uri(&pair, 0), &pair.dir.path, SIZE as usize);
    ends_equal(pair);
}

#[test]
fn fio_verifies_what_it_wrote_while_the_other_site_comes_and_goes() {
    if !has("fio", "fio") {
        return;
    }
    // Few extents, so that they leave the activity log all the time.
    let Some(mut pair) = led("<activeextents>4</activeextents>") else { return };
    let address = uri(&pair, 0);
    let (done, jobs) = channel();
    let work = std::thread::spawn(move || {
        FIO_JOBS.into_iter().for_each(|job| fio_verifies(&address, SIZE, job));
        drop(done);
    });
    let ended = |time| jobs.recv_timeout(time) == Err::<(), _>(RecvTimeoutError::Disconnected);
    while !ended(Duration::from_millis(300)) {
        pair.kill_site(1);
        if !ended(Duration::from_millis(300)) {
            pair.start_site(1);
            pair.wait_in_sync();
            continue;
        }
        pair.start_site(1);
        break;
    }
    work.join().unwrap();
    ends_equal(pair);
}

#[test]
fn a_file_system_on_nbdfuse_is_clean_at_both_sites() {
    let Some(pair) = led("") else { return };
    ext4_is_clean(&uri(&pair, 0), &pair.dir.path, SIZE);
    ends_equal(pair);
}
