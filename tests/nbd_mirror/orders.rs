//! Orders of a person, and of a configuration: pause, resync, plan, fencing, disk errors, local flushes, three sites.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::time::{Duration, Instant};

use super::sites::{CHUNK, FLUSH, PATIENCE, Sites, assert_content, write};

/// A plan says what a connect would do, on both sides alike, and does not do it.
#[test]
fn a_plan_says_the_consequences_and_changes_nothing() {
    let Some(pair) = Sites::start("") else { return };
    pair.wait_in_sync();
    let plan = pair.hadmctl(0, &["plan", "data"]).unwrap();
    assert!(plan.contains("site 1:\n  sites 0 and 1 are in sync: nothing to copy"), "{plan}");
    pair.hadmctl(0, &["primary", "data"]).unwrap();
    let mut client = pair.client(0);
    pair.hadmctl(0, &["disconnect", "data"]).unwrap();
    pair.wait(0, "site 1 disconnected by command");
    for chunk in 100..164 {
        write(&mut client, chunk, 3);
    }
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    let plan = pair.hadmctl(0, &["plan", "data", "1"]).unwrap();
    for part in
        ["site 0 has newer data: ", "MiB to copy, from 0 to 1", "because one went on without the other"]
    {
        assert!(plan.contains(part), "no {part:?} in {plan}");
    }
    assert!(
        pair.status(0)["sentence"]
            .as_str()
            .unwrap()
            .contains("site 1 disconnected by command, 4.0 MiB to copy")
    );
    pair.hadmctl(0, &["connect", "data"]).unwrap();
    pair.wait_in_sync();
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    pair.assert_equal();
    pair.stop();
}

/// A paused resync stands still, also for longer than a site is waited for, and goes on.
#[test]
fn a_resync_is_paused_and_resumed() {
    let Some((mut pair, mut client)) = Sites::serving("<resyncrate>2M</resyncrate>") else { return };
    pair.kill_site(1);
    for chunk in 0..256 {
        write(&mut client, chunk, 6);
    }
    pair.start_site(1);
    pair.wait(1, "resync from it, ");
    let said = pair.hadmctl(1, &["pause", "data"]).unwrap();
    assert!(said.contains("resync from it, paused, "), "{said}");
    let left = |pair: &Sites| pair.status(1)["peers"][0]["out_of_sync"].as_u64().unwrap();
    // Requests under way come in; then nothing moves for longer than a site is waited for.
    let (mut before, mut since) = (left(&pair), Instant::now());
    let end = Instant::now() + PATIENCE;
    while since.elapsed() < Duration::from_secs(6) {
        std::thread::park_timeout(Duration::from_millis(100));
        let now = left(&pair);
        if now != before {
            (before, since) = (now, Instant::now());
        }
        assert!(Instant::now() < end && now > 0, "{now}");
    }
    write(&mut client, 300, 8);
    pair.hadmctl(1, &["resume", "data"]).unwrap();
    pair.wait_in_sync();
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    pair.assert_equal();
    pair.stop();
}

/// The chunks that verify marked are copied by `resync`; with `--full`, also those of which nobody knows.
#[test]
fn a_resync_by_command_mends_what_differs() {
    let Some((pair, mut client)) = Sites::serving("") else { return };
    write(&mut client, 9, 9);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    let rot = |offset: u64| {
        let disk = fs::File::options().write(true).open(pair.disk(1)).unwrap();
        disk.write_all_at(b"rot", offset).unwrap();
    };
    let wait_equal = || {
        let end = Instant::now() + PATIENCE;
        while fs::read(pair.disk(0)).unwrap() != fs::read(pair.disk(1)).unwrap() {
            assert!(Instant::now() < end, "{}", pair.status(0));
            std::thread::park_timeout(Duration::from_millis(100));
        }
        pair.wait_in_sync();
    };
    rot(20 << 20);
    pair.hadmctl(0, &["verify", "data"]).unwrap();
    let end = Instant::now() + PATIENCE;
    while !pair.status(0)["verified"].as_str().unwrap_or_default().contains("1 differ") {
        assert!(Instant::now() < end, "{}", pair.status(0));
        std::thread::park_timeout(Duration::from_millis(20));
    }
    pair.hadmctl(0, &["resync", "data"]).unwrap();
    wait_equal();
    rot(25 << 20);
    pair.hadmctl(0, &["resync", "data", "1", "--full"]).unwrap();
    wait_equal();
    assert_content(&mut client, 9, 9);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    pair.assert_equal();
    pair.stop();
}

/// A handler's exit status decides: excluded (4), primary elsewhere (6), not reached (5).
#[test]
fn the_fencing_handler_decides_whether_a_site_is_promoted() {
    let Some(mut pair) = Sites::prepare(2, "") else { return };
    let handler = pair.dir.path.join("fence");
    let (calls, status) = (pair.dir.path.join("calls"), pair.dir.path.join("status"));
    let script = format!(
        "#!/bin/sh\necho \"$HADM_RESOURCE $HADM_RESOURCE_ID $HADM_SITE $HADM_LOST_SITE $HADM_LOST_HOSTS ${{#HADM_GENERATION}}\" >> {}\nexit $(cat {})\n",
        calls.display(),
        status.display()
    );
    fs::write(&handler, script).unwrap();
    fs::set_permissions(&handler, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(&status, "5").unwrap();
    pair.configure(&format!(
        "<fencing>resource-and-stonith</fencing><fencepeer>{}</fencepeer>",
        handler.display()
    ));
    pair.all().for_each(|site| pair.init(site, &["--clean"]));
    pair.all().for_each(|site| pair.start_site(site));
    pair.wait_in_sync();
    pair.hadmctl(0, &["primary", "data"]).unwrap();
    let mut client = pair.client(0);
    write(&mut client, 1, 1);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    pair.kill_site(0);
    pair.wait(1, "no primary");
    for (answer, part) in [("5", "could not keep site 0 from going on"), ("6", "site 0 is primary")] {
        fs::write(&status, answer).unwrap();
        let refused = pair.hadmctl(1, &["primary", "data"]).unwrap_err();
        assert!(refused.contains(part), "{refused}");
    }
    fs::write(&status, "4").unwrap();
    pair.hadmctl(1, &["primary", "data"]).unwrap();
    let called = fs::read_to_string(&calls).unwrap();
    assert!(called.lines().count() >= 3 && called.lines().all(|line| line == "data 0 1 0 a0 16"), "{called}");
    let why = pair.hadmctl(1, &["why", "data"]).unwrap();
    assert!(why.contains("site 0: fencing: it cannot go on as primary"), "{why}");
    let mut client = pair.client(1);
    assert_content(&mut client, 1, 1);
    // The site that was excluded comes back as the target of a resync.
    write(&mut client, 2, 2);
    pair.start_site(0);
    pair.wait_in_sync();
    // A primary that loses a site calls it, too, before it goes on.
    let before = called.lines().count();
    pair.kill_site(0);
    write(&mut client, 3, 3);
    let called = fs::read_to_string(&calls).unwrap();
    assert!(called.lines().count() > before, "{called}");
    pair.stop();
}

/// `<flush>local</flush>` is taken: a flush is answered by this site's disk alone.
#[test]
fn a_local_flush_does_not_wait_for_the_other_site() {
    let Some((pair, mut client)) = Sites::serving("<flush>local</flush>") else { return };
    write(&mut client, 1, 1);
    let other = pair.mirrors[1].as_ref().unwrap();
    other.signal(rustix::process::Signal::STOP);
    let begun = Instant::now();
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    let took = begun.elapsed();
    other.signal(rustix::process::Signal::CONT);
    assert!(took < Duration::from_secs(3), "{took:?}");
    write(&mut client, 2, 2);
    pair.wait_in_sync();
    pair.stop();
}

/// Three sites: a write is at all of them, one dies, and of the survivors one goes on for both.
#[test]
fn survivors_of_a_dead_primary_go_on_with_all_that_was_answered() {
    let more = "<quorum>majority</quorum>";
    let Some(mut three) = Sites::prepare(3, more) else { return };
    three.all().for_each(|site| three.init(site, &["--clean"]));
    three.all().for_each(|site| three.start_site(site));
    three.wait_in_sync();
    three.hadmctl(0, &["primary", "data"]).unwrap();
    let mut client = three.client(0);
    for chunk in 0..32 {
        write(&mut client, chunk, chunk as u8 + 1);
        for site in [1, 2] {
            let mut found = [0];
            fs::File::open(three.disk(site))
                .unwrap()
                .read_exact_at(&mut found, (chunk * CHUNK) as u64)
                .unwrap();
            assert_eq!(found[0], chunk as u8 + 1, "site {site}");
        }
    }
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    three.assert_equal();
    // Writes without an answer, each perhaps at one survivor only.
    for chunk in 40..60 {
        client.write(chunk, chunk * CHUNK as u64, &[99; CHUNK]);
    }
    three.kill_site(0);
    three.wait(1, "no primary");
    three.wait(1, "site 2 in sync");
    three.hadmctl(1, &["primary", "data"]).unwrap();
    let mut client = three.client(1);
    (0..32).for_each(|chunk| assert_content(&mut client, chunk, chunk as u8 + 1));
    write(&mut client, 70, 70);
    three.wait(2, "secondary of site 1");
    three.wait(2, "site 1 in sync");
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    let [a, b] = [1, 2].map(|site| fs::read(three.disk(site)).unwrap());
    assert!(a == b, "the survivors differ");
    // The dead one comes back and takes what it missed.
    three.start_site(0);
    three.wait(0, "secondary of site 1");
    three.wait(0, "site 1 in sync");
    three.wait(1, "site 0 in sync");
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    three.assert_equal();
    // Alone it is no majority: it answers no write, and goes on when another is back.
    three.kill_site(0);
    three.kill_site(2);
    three.wait(1, "writes wait for a majority");
    client.write(1, 0, b"late");
    // No command helps, and none is named.
    let refused = three.hadmctl(1, &["resume", "data"]).unwrap_err();
    assert!(refused.contains("start another site"), "{refused}");
    let found = three.hadmctl(1, &["doctor", "data"]).unwrap_err();
    assert!(found.contains("start hadm-nbd at another site") && !found.contains("disk resume"), "{found}");
    three.start_site(2);
    client.simple_reply(1, 0);
    three.stop();
}

/// The end of a daemon and its return within seconds costs no client an error, at either site, under load.
#[test]
fn a_restart_of_a_daemon_costs_no_client_an_error() {
    let Some((mut pair, mut client)) = Sites::serving("") else { return };
    let mut byte = 0;
    for site in [1, 0, 1, 0] {
        let mut daemon = pair.daemons[site].take().unwrap();
        daemon.term();
        for chunk in 0..40 {
            byte = (byte + 1) % 250;
            write(&mut client, chunk, byte);
        }
        assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
        daemon.wait_exit(PATIENCE);
        pair.start_daemon(site);
        for chunk in 40..80 {
            byte = (byte + 1) % 250;
            write(&mut client, chunk, byte);
        }
        assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
        pair.wait_in_sync();
        pair.assert_equal();
    }
    pair.stop();
}
