//! Two sites with disks and a third one without, which votes: who goes on when one of the two is gone, or cut off.

use std::fs;
use std::time::{Duration, Instant};

use super::namespaces::own_ip;
use super::sites::{FLUSH, MACHINES, PATIENCE, Sites, assert_content, machine, write};

/// The sites in sync, and site 0 primary.
fn start() -> Option<Sites> {
    let mut sites = Sites::prepare(3, "")?;
    sites.has_witness = true;
    sites.configure("");
    [0, 1].into_iter().for_each(|site| sites.init(site, &["--clean"]));
    sites.all().for_each(|site| sites.start_site(site));
    sites.wait(0, "site 1 in sync; witness site 2 knows nothing yet");
    sites.hadmctl(0, &["primary", "data"]).unwrap();
    sites.wait(0, "witness site 2 agrees");
    sites.wait(1, "witness site 2 agrees");
    Some(sites)
}

/// Cuts two machines off from each other, or lets them meet again.
fn cut(sites: &Sites, [a, b]: [usize; 2], apart: bool) {
    let word = if apart { "add" } else { "del" };
    for (from, to) in [(a, b), (b, a)] {
        sites.net.machines[machine(from)].ip(&format!("route {word} blackhole {}/32", own_ip(MACHINES[to])));
    }
}

/// Asks for a promotion until it succeeds: the loss of the primary may not have been noticed yet.
#[track_caller]
fn promote(sites: &Sites, site: usize) {
    let end = Instant::now() + PATIENCE;
    while let Err(why) = sites.hadmctl(site, &["primary", "data"]) {
        assert!(Instant::now() < end, "site {site} is not promoted: {why}");
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

#[test]
fn with_the_witness_the_other_site_is_promoted_and_a_stale_one_is_not() {
    let Some(mut sites) = start() else { return };
    let status = sites.hadmctl(2, &["status", "data"]).unwrap();
    assert!(status.contains("data: witness; generation "), "{status}");
    assert!(status.contains("at sites {0,1}; site 0 connected; site 1 connected"), "{status}");
    let refused = sites.hadmctl(2, &["primary", "data"]).unwrap_err();
    assert!(refused.contains("this site is the witness of \"data\""), "{refused}");
    let doctor = sites.hadmctl(0, &["doctor", "data"]).unwrap();
    assert!(doctor.contains("well  data: witness"), "{doctor}");
    let doctor = sites.hadmctl(2, &["doctor", "data"]).unwrap();
    assert!(doctor.contains("well  data: disk") && doctor.contains("well  data: site 1"), "{doctor}");
    let mut client = sites.client(0);
    write(&mut client, 3, 7);
    // The primary's machine dies: the other one goes on with the witness, and no person is asked.
    sites.kill_site(0);
    promote(&sites, 1);
    let mut client = sites.client(1);
    assert_content(&mut client, 3, 7);
    write(&mut client, 3, 8);
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    // The old one comes back, and its partner is gone: it does not have what was written since.
    sites.kill_site(1);
    sites.start_site(0);
    sites.wait(0, "witness site 2 knows of later writes at sites {1}");
    let doctor = sites.hadmctl(0, &["doctor", "data"]).unwrap_err();
    assert!(doctor.contains("WRONG data: witness") && doctor.contains("at sites {1}"), "{doctor}");
    let refused = sites.hadmctl(0, &["primary", "data"]).unwrap_err();
    assert!(refused.contains("the witness knows of later writes at sites {1} only"), "{refused}");
    // A witness that is started anew keeps its word.
    sites.kill_site(2);
    sites.wait(0, "witness site 2 not connected");
    let refused = sites.hadmctl(0, &["primary", "data"]).unwrap_err();
    assert!(
        refused.contains("1 sites are here and it takes 2: start another one or the witness"),
        "{refused}"
    );
    sites.start_site(2);
    sites.wait(0, "witness site 2 knows of later writes");
    sites.start_site(1);
    promote(&sites, 1);
    sites.wait(1, "site 0 in sync");
    let mut client = sites.client(1);
    assert_content(&mut client, 3, 8);
    sites.stop();
}

#[test]
fn of_two_sites_that_are_cut_off_from_each_other_one_goes_on() {
    let Some(sites) = start() else { return };
    let mut client = sites.client(0);
    write(&mut client, 1, 1);
    cut(&sites, [0, 1], true);
    // The primary asks the witness, and goes on.
    write(&mut client, 1, 2);
    sites.wait(0, "site 1 not connected");
    sites.wait(1, "witness site 2 knows of later writes at sites {0}");
    // The other end may notice the cut later.
    sites.wait(1, "site 0 not connected");
    let refused = sites.hadmctl(1, &["primary", "data"]).unwrap_err();
    assert!(refused.contains("the witness knows of later writes at sites {0} only"), "{refused}");
    cut(&sites, [0, 1], false);
    sites.wait(0, "site 1 in sync");
    // Now the primary is cut off from both: it answers nothing more, and the other one goes on.
    cut(&sites, [0, 1], true);
    cut(&sites, [0, 2], true);
    sites.wait(0, "writes wait");
    client.write(9, 0, b"never answered");
    promote(&sites, 1);
    let mut other = sites.client(1);
    write(&mut other, 1, 3);
    assert!(sites.status(0)["frozen"].as_bool().unwrap());
    cut(&sites, [0, 1], false);
    cut(&sites, [0, 2], false);
    sites.wait(0, "secondary of site 1");
    sites.wait(1, "site 0 in sync");
    assert_content(&mut other, 1, 3);
    assert_eq!(other.ask(FLUSH, 0, 0, 0), 0);
    let [a, b] = [0, 1].map(|site| fs::read(sites.disk(site)).unwrap());
    assert!(a == b, "the disks differ");
    sites.stop();
}

#[test]
fn without_the_witness_two_sites_in_sync_go_on_and_one_alone_waits() {
    let Some(mut sites) = start() else { return };
    let mut client = sites.client(0);
    sites.kill_site(2);
    sites.wait(0, "witness site 2 not connected");
    assert_eq!(sites.status(0)["witness"]["state"], "not connected");
    write(&mut client, 1, 1);
    sites.kill_site(1);
    sites.wait(0, "writes wait");
    client.write(9, 0, b"late");
    // The witness comes back, and votes for the one that is there.
    sites.start_site(2);
    client.simple_reply(9, 0);
    // From here on the primary has its vote, whatever becomes of the witness.
    sites.kill_site(2);
    sites.wait(0, "witness site 2 not connected");
    write(&mut client, 2, 2);
    sites.start_site(1);
    sites.wait(0, "site 1 in sync");
    sites.start_site(2);
    sites.wait(1, "witness site 2 agrees");
    sites.stop();
}

/// The witness's file is made by `init` or by the first start, shown, and refused where it is damaged.
#[test]
fn the_file_of_a_witness() {
    let Some(mut sites) = start() else { return };
    let run = |sites: &Sites, args: &[&str]| {
        let done = sites.program(2).args(args).arg("data").output().unwrap();
        (done.status.success(), super::sites::output(&done))
    };
    let file = sites.path("witness", 2);
    let (good, said) = run(&sites, &["dump"]);
    assert!(good && said.contains("witness; generation ") && said.contains("at sites {0,1}"), "{said}");
    assert!(run(&sites, &["check"]).0);
    let (good, said) = run(&sites, &["init"]);
    assert!(!good && said.contains("is there: with --force it forgets"), "{said}");
    let (good, said) = run(&sites, &["init", "--force"]);
    assert!(!good && said.contains("is in use by another hadm-nbd"), "{said}");
    sites.kill_site(2);
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("holders 00000003", "holders 00000001")).unwrap();
    for command in ["dump", "check", "run"] {
        let (good, said) = run(&sites, &[command]);
        assert!(!good && said.contains("is damaged") && said.contains("init --force data"), "{said}");
    }
    // Made anew it votes for nobody until the primary has sent its generation.
    let (good, said) = run(&sites, &["init", "--force"]);
    assert!(good && said.contains("knows nothing yet"), "{said}");
    sites.start_site(2);
    sites.wait(1, "witness site 2 agrees");
    sites.stop();
}
