//! Each fault of a data disk by itself: the error that a client gets, and what is left of it.

use std::time::{Duration, Instant};

use super::faults::Fault;
use super::nbd::Client;
use super::run::start;
use super::sites::{CHUNK, FLUSH, PATIENCE, SIZE, Sites, assert_content, write};

/// The error of a write of this byte to a chunk.
fn try_write(client: &mut Client, chunk: usize, byte: u8) -> u32 {
    client.write(5, (chunk * CHUNK) as u64, &vec![byte; CHUNK]);
    match client.reply() {
        super::nbd::Reply::Simple { error, cookie: 5 } => error,
        other => panic!("{other:?}"),
    }
}

/// Ends the fault, and starts the mirror again, which alone looks at a failed disk anew.
fn start_again(sites: &mut Sites, site: usize) {
    Fault::Disk(site, '-').begin(sites);
    let mut program = sites.mirrors[site].take().unwrap();
    program.term();
    program.wait_exit(PATIENCE);
    sites.start_mirror(site);
}

/// A full disk is the error of the request that met it, and no state of its own.
#[test]
fn a_full_disk_is_an_error_to_the_client_and_passes() {
    let Some((mut sites, true)) = start(SIZE, "", &[]) else { return };
    let mut client = sites.client(0);
    write(&mut client, 1, 1);
    Fault::Disk(0, 's').begin(&mut sites);
    assert_eq!(try_write(&mut client, 2, 2), 28, "ENOSPC");
    assert_content(&mut client, 1, 1);
    Fault::Disk(0, '-').begin(&mut sites);
    write(&mut client, 2, 3);
    sites.wait_in_sync();
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    assert_content(&mut client, 2, 3);
    sites.assert_equal();
    sites.stop();
}

/// A failed flush is an error or is made good by the other site, but never tried again here: this disk is out until it is
/// resynced.
#[test]
fn a_failed_flush_puts_the_disk_out_until_it_is_resynced() {
    let Some((mut sites, true)) = start(SIZE, "", &[]) else { return };
    let mut client = sites.client(0);
    write(&mut client, 1, 1);
    Fault::Disk(0, 'f').begin(&mut sites);
    let error = client.ask(FLUSH, 0, 0, 0);
    assert!([0, 5].contains(&error), "{error}");
    sites.wait(0, "disk failed");
    Fault::Disk(0, '-').begin(&mut sites);
    // Through the other site alone.
    write(&mut client, 2, 2);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    assert_content(&mut client, 1, 1);
    assert!(sites.status(0)["sentence"].as_str().unwrap().contains("disk failed"), "{}", sites.status(0));
    drop(client);
    sites.hadmctl(0, &["secondary", "data"]).unwrap();
    // The other site is not called a copy, and it takes no force to go on without it, once that is noted.
    sites.wait(1, "site 0 connected, not replicating");
    let end = Instant::now() + PATIENCE;
    while let Err(refused) = sites.hadmctl(1, &["primary", "data"]) {
        assert!(!refused.contains("site 1 is primary"), "{refused}");
        assert!(Instant::now() < end, "{refused}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
    start_again(&mut sites, 0);
    sites.wait_in_sync();
    let mut client = sites.client(1);
    assert_content(&mut client, 2, 2);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    sites.assert_equal();
    sites.stop();
}

/// A disk of the other site that fails or is full costs the client nothing.
#[test]
fn a_disk_that_fails_at_the_other_site_costs_no_client_an_error() {
    for kind in ['w', 'f', 's'] {
        let Some((mut sites, true)) = start(SIZE, "", &[]) else { return };
        let mut client = sites.client(0);
        write(&mut client, 1, 1);
        Fault::Disk(1, kind).begin(&mut sites);
        for chunk in 2..6 {
            write(&mut client, chunk, chunk as u8);
        }
        assert_eq!(client.ask(FLUSH, 0, 0, 0), 0, "{kind}");
        start_again(&mut sites, 1);
        sites.wait_in_sync();
        assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
        sites.assert_equal();
        sites.stop();
    }
}
