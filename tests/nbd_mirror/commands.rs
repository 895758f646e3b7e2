//! The commands of `hadmctl disk`, and what they show.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::nbd::Client;
use super::sites::{CHUNK, FLUSH, PATIENCE, SIZE, Sites, output, write};

/// Two fresh disks that were found to read as zeroes need no force: either may be the first primary.
#[test]
fn the_first_primary_of_clean_disks_needs_no_force() {
    let Some(pair) = Sites::start("") else { return };
    pair.wait_in_sync();
    let said = pair.hadmctl(1, &["primary", "data"]).unwrap();
    assert!(said.contains("data: primary; disk up to date; site 0 in sync"), "{said}");
    let mut client = pair.client(1);
    write(&mut client, 3, 3);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    pair.assert_equal();
    pair.stop();
}

/// A site that is alone knows nothing of the other's disk.
#[test]
fn the_first_primary_needs_force_while_the_other_site_is_away() {
    let Some(mut pair) = Sites::prepare(2, "") else { return };
    pair.all().for_each(|site| pair.init(site, &["--clean"]));
    pair.start_site(0);
    pair.wait(0, "site 1 not connected");
    let refused = pair.hadmctl(0, &["primary", "data"]).unwrap_err();
    assert!(refused.contains("--force"), "{refused}");
    pair.stop();
}

/// A disk that was clean at init and is not any more is noticed: it is looked at again.
#[test]
fn a_disk_that_is_clean_no_more_is_not_taken_for_it() {
    let Some(mut pair) = Sites::prepare(2, "") else { return };
    pair.all().for_each(|site| pair.init(site, &["--clean"]));
    let disk = fs::File::options().write(true).open(pair.disk(1)).unwrap();
    disk.write_all_at(b"dirt", 5 * CHUNK as u64 + 7).unwrap();
    pair.all().for_each(|site| pair.start_site(site));
    let said = "does not read as zeroes any more, from byte 327687 on";
    pair.mirrors[1].as_ref().unwrap().wait_log(said, PATIENCE);
    for site in [0, 1] {
        pair.wait(site, "just created: make the one whose content counts primary");
        let refused = pair.hadmctl(site, &["primary", "data"]).unwrap_err();
        assert!(refused.contains("--force"), "{refused}");
    }
    // The content is copied to the other, not passed over.
    pair.hadmctl(1, &["primary", "--force", "data"]).unwrap();
    pair.wait_in_sync();
    pair.assert_equal();
    let mut client = pair.client(1);
    assert_eq!(client.read_disk(5 * CHUNK as u64 + 7, 4), b"dirt");
    pair.stop();
}

/// Both sides say why, how much, how fast and how long; a terminal gets a bar.
#[test]
fn a_resync_is_told_in_words_on_both_sides() {
    let more = "<resyncrate>1M</resyncrate><resyncmin>64K</resyncmin>";
    let Some(mut pair) = Sites::start(more) else { return };
    pair.wait_in_sync();
    pair.hadmctl(0, &["primary", "data"]).unwrap();
    let mut client = pair.client(0);
    write(&mut client, 1, 1);
    pair.kill_site(1);
    for chunk in 0..128 {
        write(&mut client, chunk, 7);
    }
    pair.start_site(1);
    let at_source = pair.wait(0, " to go");
    let at_target = pair.wait(1, " to go");
    for (sentence, word) in [(&at_source, "site 1 resync to it, "), (&at_target, "site 0 resync from it, ")] {
        for part in [word, "(site 0 has newer data: ", "MiB to copy, from 0 to 1)", " MiB left, ", "iB/s, "] {
            assert!(sentence.contains(part), "no {part:?} in {sentence:?}");
        }
    }
    let resync = pair.status(1)["peers"][0]["resync"].take();
    let number = |name: &str| resync[name].as_u64().unwrap();
    assert!(number("total") > 7 << 20 && number("left") < number("total"), "{resync}");
    assert!((64 << 10..4 << 20).contains(&number("rate")) && number("seconds_left") < 120, "{resync}");
    // A terminal, by a program that makes one.
    let control = pair.path("control", 0);
    let watch = format!(
        "timeout 2 {} --control {} disk status --watch",
        env!("CARGO_BIN_EXE_hadmctl"),
        control.display()
    );
    match Command::new("script").arg("--version").output() {
        Ok(_) => {
            let bounded = ["-k", "5", "60", "script", "-qec", &watch, "/dev/null"];
            let shown = output(&Command::new("timeout").args(bounded).stdin(Stdio::null()).output().unwrap());
            assert!(shown.contains("  site 1 [") && shown.contains(" %"), "{shown}");
        }
        Err(error) => eprintln!("SKIPPED: the bar on a terminal: script (package bsdutils): {error}"),
    }
    let plain = Command::new("timeout").args(["-k", "5", "1", "sh", "-c", &watch]).output().unwrap();
    assert!(!output(&plain).contains("site 1 ["), "{}", output(&plain));
    pair.stop();
}

/// The last events with their causes, and an examination that says what helps.
#[test]
fn what_became_of_a_mirror_and_what_is_wrong_is_told() {
    let Some(mut pair) = Sites::start("") else { return };
    pair.wait_in_sync();
    pair.hadmctl(0, &["primary", "data"]).unwrap();
    let well = pair.hadmctl(0, &["doctor"]).unwrap();
    for part in [
        "well  daemon",
        "well  data: disk",
        "primary, up to date",
        "well  data: metadata",
        "well  data: site 1",
    ] {
        assert!(well.contains(part), "no {part:?} in\n{well}");
    }
    pair.kill_site(1);
    pair.wait(0, "site 1 not connected");
    let wrong = pair.hadmctl(0, &["doctor", "data"]).unwrap_err();
    for part in ["WRONG data: site 1", "site 1 not connected", "-> hadmctl doctor 0:1"] {
        assert!(wrong.contains(part), "no {part:?} in\n{wrong}");
    }
    let why = pair.hadmctl(0, &["why", "data"]).unwrap();
    let at = |part: &str| {
        why.lines().position(|line| line.contains(part)).unwrap_or_else(|| panic!("no {part:?} in\n{why}"))
    };
    let order = [
        "site 1: connected: says the daemon",
        "site 1: decision: sites 0 and 1 are in sync: nothing to copy",
        "command: primary",
        "primary: clients are served",
        "site 1: lost: the connection ended",
    ];
    assert!(order.map(at).is_sorted(), "{why}");
    let events = pair.hadmctl(0, &["why", "data", "--json"]).unwrap();
    let events: Value = serde_json::from_str(&events).unwrap();
    assert!(events[0]["unix_s"].as_f64().unwrap() > 1e9 && events[0]["times"].is_u64(), "{events}");
    // A name that is no peer's is a resource's.
    let short = |word: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
        command.arg("--control").arg(pair.path("control", 0)).args([word, "data"]);
        output(&command.output().unwrap())
    };
    assert!(short("why").contains("command: primary"), "{}", short("why"));
    assert!(short("doctor").contains("WRONG data: site 1"), "{}", short("doctor"));
    // Damage of the metadata is found while it is in use.
    let meta = fs::File::options().write(true).open(pair.path("meta", 0)).unwrap();
    meta.write_all_at(&[0xff; 4096], 256 * 4096).unwrap();
    let damaged = pair.hadmctl(0, &["doctor"]).unwrap_err();
    assert!(damaged.contains("WRONG data: metadata") && damaged.contains("block 256"), "{damaged}");
    // Without a daemon nothing else can be well.
    pair.daemons[0].take().unwrap().kill9();
    let end = Instant::now() + PATIENCE;
    while !pair.hadmctl(0, &["doctor"]).unwrap_err().contains("WRONG daemon") {
        assert!(Instant::now() < end);
        std::thread::park_timeout(Duration::from_millis(50));
    }
    pair.stop();
}

/// A larger disk is not offered by itself; the log says the way to it.
#[test]
fn a_disk_that_grew_is_offered_as_before_and_the_way_to_more_is_told() {
    let Some(mut pair) = Sites::start("") else { return };
    pair.wait_in_sync();
    for site in [0, 1] {
        let mut program = pair.mirrors[site].take().unwrap();
        program.term();
        program.wait_exit(PATIENCE);
        let disk = fs::File::options().write(true).open(pair.disk(site)).unwrap();
        disk.set_len(2 * SIZE).unwrap();
        pair.start_mirror(site);
        let said = "has 67108864 bytes, of which 33554432 are mirrored";
        pair.mirrors[site].as_ref().unwrap().wait_log(said, PATIENCE);
    }
    pair.wait_in_sync();
    pair.hadmctl(0, &["primary", "data"]).unwrap();
    let mut client = Client::greeted(&pair.path("sockets", 0).join("data.nbd"));
    let export = client.go("data", &[]);
    assert_eq!(export[0][2..10], SIZE.to_be_bytes());
    pair.stop();
}

/// At SIGHUP rates, patience and policies change; what cannot is named, and what is wrong changes nothing.
#[test]
fn a_reload_changes_what_can_change_and_names_the_rest() {
    let Some(mut pair) = Sites::start("<resyncrate>64K</resyncrate><resyncmin>64K</resyncmin>") else {
        return;
    };
    pair.wait_in_sync();
    pair.hadmctl(0, &["primary", "data"]).unwrap();
    let mut client = pair.client(0);
    pair.kill_site(1);
    for chunk in 0..256 {
        write(&mut client, chunk, 5);
    }
    pair.start_site(1);
    // At this rate it would take minutes; the target's rate counts.
    pair.wait(1, "resync from it, ");
    let hup = |pair: &Sites, text: &str| {
        let program = pair.mirrors[1].as_ref().unwrap();
        let before = program.log_count(text);
        program.signal(Signal::HUP);
        let end = Instant::now() + PATIENCE;
        while program.log_count(text) == before {
            assert!(Instant::now() < end, "no {text:?}");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    };
    let xml = pair.dir.path.join("hadm.xml");
    let good = fs::read_to_string(&xml).unwrap();
    fs::write(&xml, good.replace("64K</resyncrate>", "quick</resyncrate>")).unwrap();
    hup(&pair, "the old configuration stays in force");
    fs::write(&xml, good.replace(">sync<", ">async<")).unwrap();
    hup(&pair, "these need a restart, and stay as they are: <protocol>");
    pair.mirrors[1].as_ref().unwrap().wait_log("reload: done but for the parts named before", PATIENCE);
    pair.configure("<nbdclients>7</nbdclients><onloss>freeze</onloss>");
    let xml_now = fs::read_to_string(&xml).unwrap();
    fs::write(&xml, xml_now.replace("/disk1<", "/other1<")).unwrap();
    hup(&pair, "these need a restart, and stay as they are: <disk>, <nbdclients>");
    pair.wait_in_sync();
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    pair.assert_equal();
    let why = pair.hadmctl(1, &["why", "data"]).unwrap();
    assert!(why.contains("reload: rates, patience or policies have changed"), "{why}");
    pair.stop();
}

/// A mirror below a file system of its own machine must neither wait for that one's writing nor be paged out or ended.
#[test]
fn the_program_is_protected_where_that_is_permitted() {
    let Some(pair) = Sites::start("") else { return };
    pair.wait_in_sync();
    let program = pair.mirrors[0].as_ref().unwrap();
    let doctor = pair.hadmctl(0, &["doctor"]).unwrap();
    let read = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", program.pid())).unwrap();
    let is_permitted = |part: &str| {
        let permitted = !doctor.contains(part);
        if !permitted {
            eprintln!("SKIPPED: {part}: it is not permitted here");
        }
        permitted
    };
    if is_permitted("memory is not locked") {
        let locked = read("status")
            .lines()
            .find_map(|line| line.strip_prefix("VmLck:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        assert!(locked.unwrap() > 0, "{}", read("status"));
    }
    if is_permitted("PR_SET_IO_FLUSHER") {
        for thread in fs::read_dir(format!("/proc/{}/task", program.pid())).unwrap() {
            let stat = fs::read_to_string(thread.unwrap().path().join("stat")).unwrap();
            let flags: u64 =
                stat.rsplit(')').next().unwrap().split_whitespace().nth(6).unwrap().parse().unwrap();
            // PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE of every thread.
            assert_eq!(flags & 0x18_0000, 0x18_0000, "{stat}");
        }
    }
    if is_permitted("oom_score_adj") {
        assert_eq!(read("oom_score_adj").trim(), "-900");
    }
    pair.stop();
}
