//! Daemon and mirror in one process: the same promises, beside sites with two programs.

use std::process::Command;
use std::time::Instant;

use rustix::process::Signal;

use super::namespaces::SERVER;
use super::nbd::{Client, Reply};
use super::sites::{FLUSH, PATIENCE, SLOW, Sites, assert_content, machine, output, write};

/// Two sites in sync, site 0 primary, with a client of it.
fn serving(in_one: &[usize]) -> Option<(Sites, Client)> {
    let mut pair = Sites::prepare(2, "")?;
    pair.in_one = in_one.to_vec();
    pair.all().for_each(|site| pair.init(site, &["--clean"]));
    pair.all().for_each(|site| pair.start_site(site));
    pair.wait_in_sync();
    pair.hadmctl(0, &["primary", "data"]).unwrap();
    let client = pair.client(0);
    Some((pair, client))
}

/// Asks the daemon of a site.
fn daemon(pair: &Sites, site: usize, args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hadmctl"));
    output(&command.arg("--control").arg(pair.path("daemon", site)).args(args).output().unwrap())
}

#[test]
fn answered_writes_are_at_both_sites_and_survive_the_machine() {
    for in_one in [&[0, 1][..], &[0], &[1]] {
        let Some((mut pair, mut client)) = serving(in_one) else { return };
        for chunk in 0..64 {
            write(&mut client, chunk, chunk as u8 + 1);
        }
        // More than the daemon's queue takes, in requests of the largest size.
        for at in 0..8_u64 {
            client.write(at, at << 22, &vec![at as u8 + 101; 4 << 20]);
        }
        for _ in 0..8 {
            assert!(matches!(client.reply(), Reply::Simple { error: 0, .. }));
        }
        write(&mut client, 1, 7);
        assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
        pair.assert_equal();
        // Both know of each other what two programs know.
        assert!(daemon(&pair, 0, &["status"]).contains("connected"), "{in_one:?}");
        pair.kill_site(0);
        pair.wait(1, "site 0 not connected");
        pair.hadmctl(1, &["primary", "--force", "data"]).unwrap();
        let mut client = pair.client(1);
        assert_content(&mut client, 1, 7);
        write(&mut client, 2, 8);
        // It comes back and gets what it lacks.
        pair.start_site(0);
        pair.wait_in_sync();
        assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
        pair.assert_equal();
        pair.stop();
    }
}

#[test]
fn a_site_that_takes_nothing_is_left_behind_in_time() {
    let Some((pair, mut client)) = serving(&[0]) else { return };
    let programs = [&pair.mirrors[1], &pair.daemons[1]];
    programs.iter().for_each(|program| program.as_ref().unwrap().signal(Signal::STOP));
    // Its queue fills, so that packets wait for it.
    let began = Instant::now();
    for at in 0..7_u64 {
        client.write(at, at << 22, &vec![1; 4 << 20]);
    }
    for _ in 0..7 {
        assert!(matches!(client.reply(), Reply::Simple { error: 0, .. }));
    }
    assert!(began.elapsed() < 3 * SLOW, "{:?}", began.elapsed());
    // The timer was never held up.
    assert!(daemon(&pair, 0, &["status"]).contains("attached"));
    programs.iter().for_each(|program| program.as_ref().unwrap().signal(Signal::CONT));
    pair.wait_in_sync();
    assert_eq!(client.ask(FLUSH, 0, 0, 0), 0);
    pair.assert_equal();
    pair.stop();
}

#[test]
fn one_signal_reloads_both_and_nobody_else_attaches() {
    let Some((pair, _client)) = serving(&[0, 1]) else { return };
    // A second kernel module is refused as by any daemon.
    let refused = pair.net.machines[machine(0)].inside(|| {
        let mut probe = Command::new(env!("CARGO_BIN_EXE_hadm-probe"));
        output(&probe.args(["--server", &SERVER.to_string(), "state"]).output().unwrap())
    });
    assert!(refused.contains("refused"), "{refused}");
    pair.configure("<resyncmin>2M</resyncmin>");
    let one = pair.mirrors[0].as_ref().unwrap();
    one.signal(Signal::HUP);
    one.wait_log("reload: done", PATIENCE);
    one.wait_log("configuration reloaded", PATIENCE);
    pair.stop();
}

#[test]
fn a_daemon_that_cannot_start_ends_the_process() {
    let Some(mut pair) = Sites::prepare(2, "") else { return };
    pair.in_one = vec![0];
    pair.init(0, &["--clean"]);
    let at = pair.net.machines[machine(0)].inside(|| std::net::TcpListener::bind(SERVER).unwrap());
    let mut run = pair.run(0);
    let ended = pair.net.machines[machine(0)].inside(|| run.output().unwrap());
    assert!(!ended.status.success());
    let said = output(&ended);
    assert!(said.contains(&SERVER.to_string()) && said.contains("in use"), "{said}");
    drop(at);
}
