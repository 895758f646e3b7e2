//! Writes, losses, promotions and their ends, as clients and operators see them.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::namespaces::NAMES;
use super::nbd::Client;
use super::sites::{CHUNK, FLUSH, PATIENCE, SLOW, Sites, assert_content, machine, write};
use super::support::TempDir;

#[test]
fn what_is_answered_is_at_both_sites() {
    let Some(pair) = Sites::start("") else { return };
    pair.wait_in_sync();
    let refused = pair.hadmctl(1, &["primary", "nothing"]).unwrap_err();
    assert!(refused.contains("no resource \"nothing\" is served here; there are: data (0)"), "{refused}");
    let said = pair.hadmctl(0, &["primary", "--force", "data"]).unwrap();
    assert!(said.contains("data: primary; disk up to date; site 1 in sync"), "{said}");
    pair.wait(1, "secondary of site 0");
    let refused = pair.hadmctl(1, &["primary", "data"]).unwrap_err();
    assert!(refused.contains("site 0 is primary"), "{refused}");
    let mut client = pair.client(0);
    for chunk in 0..64 {
        write(&mut client, chunk, chunk as u8 + 1);
        // Answered: both have it, if not yet on stable storage.
        let there = fs::read(pair.disk(1)).unwrap();
        assert_eq!(there[chunk * CHUNK], chunk as u8 + 1);
    }
    // Part of a sector, a hole, and zeroes.
    client.write(7, 1001, b"odd");
    client.simple_reply(7, 0);
    assert_eq!(client.ask(4, 0, 3 * CHUNK as u64, CHUNK as u32), 0);
    assert_eq!(client.ask(6, 0, 5 * CHUNK as u64, 3 * CHUNK as u32), 0);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    assert_content(&mut client, 3, 0);
    assert_content(&mut client, 7, 0);
    assert_content(&mut client, 8, 9);
    pair.assert_equal();
    let metrics = pair.hadmctl(0, &["metrics"]).unwrap();
    for line in [
        "hadm_nbd_primary{resource=\"0\",name=\"data\"} 1",
        "hadm_nbd_in_sync{resource=\"0\",name=\"data\",site=\"1\"} 1",
        "hadm_nbd_request_seconds_count{resource=\"0\",name=\"data\",kind=\"write\"} 65",
        "hadm_nbd_request_seconds_count{resource=\"0\",name=\"data\",kind=\"flush\"} 1",
        "hadm_nbd_frozen{resource=\"0\",name=\"data\"} 0",
        "hadm_nbd_linked{resource=\"0\",name=\"data\",site=\"1\"} 1",
        "hadm_nbd_resync_total_bytes{resource=\"0\",name=\"data\",site=\"1\"} 0",
        "hadm_nbd_bytes_total{resource=\"0\",name=\"data\",direction=\"written\"} 4194307",
    ] {
        assert!(metrics.lines().any(|found| found == line), "no {line} in\n{metrics}");
    }
    let number = |name: &str| -> u64 {
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_else(|| panic!("no {name}\n{metrics}"));
        line.trim().parse().unwrap()
    };
    let confirmed = number("hadm_nbd_confirm_seconds_count{resource=\"0\",name=\"data\",site=\"1\"}");
    assert!((1..=80).contains(&confirmed), "{confirmed}");
    assert!(number("hadm_nbd_disk_seconds_count{resource=\"0\",name=\"data\",kind=\"write\"}") >= 65);
    assert!(number("hadm_nbd_disk_seconds_count{resource=\"0\",name=\"data\",kind=\"flush\"}") >= 1);
    // In order to the other side.
    drop(client);
    pair.hadmctl(0, &["secondary", "data"]).unwrap();
    pair.wait(1, "no primary");
    pair.wait_in_sync();
    let said = pair.hadmctl(1, &["primary", "data"]).unwrap();
    assert!(said.contains("primary; disk up to date; site 0 in sync"), "{said}");
    let mut client = pair.client(1);
    assert_content(&mut client, 8, 9);
    write(&mut client, 8, 200);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    pair.assert_equal();
    pair.stop();
}

/// The daemon's socket has its permissions, and its file goes with the daemon or is replaced by the next one.
#[test]
fn daemon_and_mirror_meet_at_a_unix_socket() {
    let Some(mut pair) = Sites::prepare(2, "") else { return };
    pair.is_unix = true;
    pair.all().for_each(|site| pair.init(site, &["--clean"]));
    pair.all().for_each(|site| pair.start_site(site));
    pair.wait_in_sync();
    let socket = pair.path("link", 0);
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    pair.daemons[0].as_ref().unwrap().wait_log("attached from this machine's Unix socket (user 0)", PATIENCE);
    pair.hadmctl(0, &["primary", "--force", "data"]).unwrap();
    let mut client = pair.client(0);
    // Also one that no socket takes at once.
    client.write(1, 0, &vec![5; 2 << 20]);
    client.simple_reply(1, 0);
    for chunk in 40..104 {
        write(&mut client, chunk, chunk as u8);
    }
    pair.daemons[0].take().unwrap().kill9();
    write(&mut client, 50, 1);
    assert!(socket.exists(), "nobody has removed it");
    pair.start_daemon(0);
    pair.wait_in_sync();
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    pair.assert_equal();
    // TCP stays beside it.
    assert!(
        pair.daemons[0]
            .as_ref()
            .unwrap()
            .log()
            .iter()
            .any(|line| line.contains("kernel module at 127.0.0.1:"))
    );
    pair.stop();
    assert!(!socket.exists());
}

#[test]
fn a_lost_site_costs_no_error_and_is_resynced_by_bitmap() {
    let Some((mut pair, mut client)) = Sites::serving("") else { return };
    write(&mut client, 1, 1);
    pair.kill_site(1);
    for chunk in 10..20 {
        write(&mut client, chunk, 7);
    }
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    let status = pair.status(0);
    let out_of_sync = status["peers"][0]["out_of_sync"].as_u64().unwrap();
    assert!((10 * CHUNK as u64..16 * CHUNK as u64).contains(&out_of_sync), "{status}");
    pair.start_site(1);
    pair.wait_in_sync();
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    pair.assert_equal();
    // The daemon's end is a site that is away for seconds: no client sees it.
    pair.daemons[0].take().unwrap().kill9();
    write(&mut client, 30, 30);
    assert!(pair.hadmctl(0, &["status"]).unwrap().contains("no daemon at"));
    pair.start_daemon(0);
    pair.wait_in_sync();
    write(&mut client, 31, 31);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    pair.assert_equal();
    pair.stop();
}

#[test]
fn disks_that_nothing_is_known_of_are_compared_by_digest_and_made_equal() {
    let content: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(9 << 20).collect();
    let fill = |pair: &Sites| {
        let write = |site: usize, offset: u64, bytes: &[u8]| {
            let disk = fs::File::options().write(true).open(pair.disk(site)).unwrap();
            disk.write_all_at(bytes, offset).unwrap();
        };
        write(0, 3 << 20, &content);
        // Some of it is there already, and other things are.
        write(1, 3 << 20, &content[..5 << 20]);
        write(1, 30 << 20, &content[..CHUNK]);
        false
    };
    let Some(mut pair) = Sites::start_with("", fill) else { return };
    pair.wait(0, "just created: make the one whose content counts primary");
    let refused = pair.hadmctl(0, &["primary", "data"]).unwrap_err();
    assert!(refused.contains("just created"), "{refused}");
    pair.hadmctl(0, &["primary", "--force", "data"]).unwrap();
    pair.wait_in_sync();
    pair.assert_equal();
    let mut client = pair.client(0);
    assert_eq!(client.read_disk(3 << 20, 9 << 20), content);
    // Chunks that went out of step behind the mirrors' backs are found, and copied when they meet next.
    let disk = fs::File::options().write(true).open(pair.disk(1)).unwrap();
    disk.write_all_at(b"rot", 20 << 20).unwrap();
    pair.hadmctl(0, &["verify", "data"]).unwrap();
    let end = Instant::now() + PATIENCE;
    while pair.status(0)["verified"].as_str() != Some("site 1: 512 chunks compared, 1 differ") {
        assert!(Instant::now() < end, "{}", pair.status(0));
        std::thread::park_timeout(Duration::from_millis(20));
    }
    pair.kill_site(1);
    pair.start_site(1);
    pair.wait_in_sync();
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    pair.assert_equal();
    pair.stop();
}

/// Programs that are stopped and not gone: a site's mirror, and the primary's own daemon.
#[test]
fn what_hangs_costs_no_more_than_slowtimeout() {
    let Some((pair, mut client)) = Sites::serving("") else { return };
    write(&mut client, 1, 1);
    for program in [&pair.mirrors[1], &pair.daemons[0]] {
        let program = program.as_ref().unwrap();
        program.signal(Signal::STOP);
        let begun = Instant::now();
        write(&mut client, 2, 2);
        assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
        let took = begun.elapsed();
        program.signal(Signal::CONT);
        assert!(took < 2 * SLOW, "{took:?}");
        // The next one does not wait.
        write(&mut client, 3, 3);
        pair.wait_in_sync();
        assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
        pair.assert_equal();
    }
    pair.stop();
}

#[test]
fn the_other_site_is_promoted_when_the_primary_is_gone() {
    let Some((mut pair, mut client)) = Sites::serving("") else { return };
    for chunk in 0..20 {
        write(&mut client, chunk, 50 + chunk as u8);
    }
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    // Writes that nobody has an answer to.
    for chunk in 20..40 {
        client.write(chunk, chunk * CHUNK as u64, &vec![9; CHUNK]);
    }
    pair.kill_site(0);
    pair.wait(1, "no primary");
    let refused = pair.hadmctl(1, &["primary", "data"]).unwrap_err();
    assert!(refused.contains("site 0 may have newer data and is not connected"), "{refused}");
    pair.hadmctl(1, &["primary", "--force", "data"]).unwrap();
    let mut client = pair.client(1);
    (0..20).for_each(|chunk| assert_content(&mut client, chunk, 50 + chunk as u8));
    write(&mut client, 45, 45);
    pair.start_site(0);
    pair.wait_in_sync();
    pair.wait(0, "secondary of site 1");
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    pair.assert_equal();
    assert!(fs::read(pair.disk(0)).unwrap()[45 * CHUNK] == 45);
    pair.stop();
}

#[test]
fn two_histories_stay_apart_until_one_is_given_up() {
    let Some((pair, mut client)) = Sites::serving("") else { return };
    write(&mut client, 1, 1);
    // Apart, and both primary.
    pair.hadmctl(0, &["disconnect", "data"]).unwrap();
    pair.hadmctl(1, &["disconnect", "data", "0"]).unwrap();
    pair.wait(1, "site 0 disconnected by command");
    pair.wait(1, "no primary");
    pair.hadmctl(1, &["primary", "--force", "data"]).unwrap();
    let mut other = pair.client(1);
    write(&mut client, 2, 20);
    write(&mut other, 2, 21);
    write(&mut other, 3, 31);
    for site in [0, 1] {
        pair.hadmctl(site, &["connect", "data"]).unwrap();
    }
    for site in [0, 1] {
        pair.wait(site, "connected, not replicating");
        pair.wait(site, "split brain");
    }
    // Both go on, each with its own.
    assert_content(&mut client, 2, 20);
    assert_content(&mut other, 2, 21);
    write(&mut client, 4, 40);
    drop(other);
    let refused = pair.hadmctl(1, &["discard", "data"]).unwrap_err();
    assert!(refused.contains("does not fit its present role"), "{refused}");
    pair.hadmctl(1, &["secondary", "data"]).unwrap();
    pair.hadmctl(1, &["discard", "data"]).unwrap();
    pair.wait_in_sync();
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    pair.assert_equal();
    assert_content(&mut client, 2, 20);
    assert_content(&mut client, 3, 0);
    pair.stop();
}

/// Sites that are taken out of the configuration have no say any more, and no place in the metadata.
#[test]
fn a_site_that_is_no_longer_configured_is_forgotten() {
    let Some(mut sites) = Sites::prepare(3, "") else { return };
    sites.all().for_each(|site| sites.init(site, &["--clean", "--slots", "2"]));
    sites.all().for_each(|site| sites.start_site(site));
    sites.wait_in_sync();
    sites.hadmctl(0, &["primary", "data"]).unwrap();
    let mut client = sites.client(0);
    write(&mut client, 1, 1);
    sites.kill_site(2);
    write(&mut client, 2, 2);
    for site in [1, 0] {
        sites.kill_site(site);
    }
    (_, _) = (sites.daemons.pop(), sites.mirrors.pop());
    sites.configure("");
    for site in [0, 1] {
        sites.start_site(site);
        sites.mirrors[site].as_ref().unwrap().wait_log("site 2 is forgotten", PATIENCE);
    }
    sites.wait_in_sync();
    // It is not asked for, and misses nothing.
    for site in [1, 0] {
        sites.hadmctl(site, &["primary", "data"]).unwrap();
        write(&mut sites.client(site), 3, 3 + site as u8);
        sites.hadmctl(site, &["secondary", "data"]).unwrap();
    }
    // It comes back as one of which nothing is known.
    (_, _) = (sites.daemons.push(None), sites.mirrors.push(None));
    sites.configure("");
    for site in [0, 1] {
        sites.kill_site(site);
        sites.start_site(site);
    }
    sites.start_site(2);
    sites.wait_in_sync();
    sites.hadmctl(2, &["primary", "data"]).unwrap();
    let mut client = sites.client(2);
    [(1, 1), (2, 2), (3, 3)].into_iter().for_each(|(chunk, byte)| assert_content(&mut client, chunk, byte));
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    sites.assert_equal();
    sites.stop();
}

/// The primary whose changes are to go has its program called, which here makes it leave the role.
#[test]
fn a_helper_ends_the_role_of_the_primary_whose_changes_go() {
    let dir = TempDir::new();
    let (helper, called) = (dir.path.join("helper"), dir.path.join("called"));
    let policies = format!(
        "<splitbrain0>discard-site-1</splitbrain0><splitbrain1>call-helper</splitbrain1>\
         <splitbrain2>call-helper</splitbrain2><splitbrainhelper>{}</splitbrainhelper>",
        helper.display()
    );
    let Some(mut pair) = Sites::prepare_in(2, &policies, dir) else { return };
    let script = format!(
        "#!/bin/sh\necho $HADM_RESOURCE $HADM_RESOURCE_ID $HADM_SITE $HADM_PEER_SITE $HADM_PEER_HOSTS >> {}\n\
         exec {} --control {} disk secondary $HADM_RESOURCE\n",
        called.display(),
        env!("CARGO_BIN_EXE_hadmctl"),
        pair.path("control", 1).display()
    );
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    pair.all().for_each(|site| pair.init(site, &["--clean"]));
    pair.all().for_each(|site| pair.start_site(site));
    pair.wait_in_sync();
    pair.hadmctl(0, &["primary", "data"]).unwrap();
    let mut client = pair.client(0);
    write(&mut client, 1, 1);
    pair.hadmctl(0, &["disconnect", "data"]).unwrap();
    pair.hadmctl(1, &["disconnect", "data", "0"]).unwrap();
    pair.wait(1, "no primary");
    pair.hadmctl(1, &["primary", "--force", "data"]).unwrap();
    let mut other = pair.client(1);
    write(&mut client, 2, 20);
    write(&mut other, 2, 21);
    pair.all().for_each(|site| _ = pair.hadmctl(site, &["connect", "data"]).unwrap());
    pair.wait(1, "secondary of site 0");
    pair.wait_in_sync();
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    pair.assert_equal();
    assert_content(&mut client, 2, 20);
    let host = NAMES[machine(0)];
    assert_eq!(fs::read_to_string(&called).unwrap(), format!("data 0 1 0 {host}\n"));
    pair.stop();
}

#[test]
fn clients_see_an_error_and_an_end_when_the_role_goes() {
    let Some((mut pair, mut client)) = Sites::serving("") else { return };
    write(&mut client, 1, 1);
    pair.hadmctl(0, &["secondary", "data"]).unwrap();
    client.expect_end();
    let mut late = Client::greeted(&pair.path("sockets", 0).join("data.nbd"));
    late.option(7, &Client::info_data("data", &[]));
    late.option_error(7, 6);
    // One that has the role leaves it when it ends.
    pair.hadmctl(0, &["primary", "data"]).unwrap();
    let mut program = pair.mirrors[0].take().unwrap();
    program.signal(Signal::TERM);
    assert!(program.wait_exit(PATIENCE).success());
    pair.wait(1, "no primary");
    pair.start_mirror(0);
    pair.wait_in_sync();
    pair.hadmctl(0, &["primary", "data"]).unwrap();
    pair.stop();
}
