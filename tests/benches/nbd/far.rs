//! The rows of far sites: what a copy costs that writes do not wait for, how fast it catches up, and how fast the role moves.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::fio::{self, Job};
use crate::mirror::{Kind, Mirror};
use crate::nbd::Client;
use crate::others::Folder;
use crate::table::Table;
use crate::{Effort, MIRROR, RANGE, WRITES, builds};

/// Bytes that a far site has to catch up with: most of what the queue takes.
const BEHIND: usize = 48 << 20;

/// Bytes of the disk.
const SIZE: u64 = 1 << 30;

pub fn rows(disks: &Path, effort: &Effort, table: &mut Table) {
    let (row, job) = WRITES[1];
    let catch_up = "catch-up of 48 MiB";
    let switchover = |load: &str| format!("switchover, 1 GiB, {load}");
    for build in builds() {
        let name = build.name;
        let far = Mirror::start_as(build.clone(), disks, SIZE, Kind::Far);
        let alone = Mirror::start_as(build, disks, SIZE, Kind::Alone);
        let (far_name, alone_name) = (format!("{name}, async"), format!("{name}, unmirrored"));
        for mirror in [&far, &alone] {
            fio::nbd(&mirror.uri(0), Job { kind: "write", block: "1m", depth: 4 }.of(RANGE), None);
        }
        far.wait_caught_up();
        for round in 0..effort.rounds {
            eprintln!("round {} of {}: far sites, {name}", round + 1, effort.rounds);
            let mut both = [(&far, &far_name), (&alone, &alone_name)];
            both.rotate_left(round % 2);
            for (mirror, column) in both {
                table.add(row, column, fio::nbd(&mirror.uri(0), job, Some(effort.run)).per_s);
            }
            far.wait_caught_up();
            let rate = |time: Duration| 1e-6 * BEHIND as f64 / time.as_secs_f64();
            table.add(catch_up, &far_name, rate(caught_up(&far)));
            table.add(catch_up, "plain TCP copy", rate(plain_copy(disks)));
            for (load, is_loaded) in [("idle", false), ("under load", true)] {
                let writer = is_loaded.then(|| fio::begin(&far.uri(0), job));
                if is_loaded {
                    far.wait_behind();
                }
                table.add(&switchover(load), &far_name, far.switch_over(0, 1).as_secs_f64());
                writer.into_iter().for_each(fio::end);
                far.switch_over(1, 0);
            }
        }
    }
    table.row(row, "per s");
    table.row(catch_up, "MB/s");
    let column = format!("{MIRROR}, async");
    table.bar(row, &column, &format!("{MIRROR}, unmirrored"), 0.8);
    table.bar(catch_up, &column, "plain TCP copy", 0.5);
    for (load, limit) in [("idle", 1.0), ("under load", 3.0)] {
        table.row(&switchover(load), "s");
        table.limit(&switchover(load), &column, limit);
    }
}

/// Writes while the far site stands still; the time that it takes once it goes on.
fn caught_up(far: &Mirror) -> Duration {
    const PIECE: usize = 1 << 20;
    far.signal(1, Signal::STOP);
    let mut client = Client::greeted(&far.socket(0));
    client.go("data", &[]);
    let piece = vec![0x5a; PIECE];
    for at in (0..BEHIND).step_by(PIECE) {
        client.write(at as u64, at as u64, &piece);
        client.simple_reply(at as u64, 0);
    }
    let began = Instant::now();
    far.signal(1, Signal::CONT);
    far.wait_caught_up();
    began.elapsed()
}

/// Copies as much over a TCP connection into a file.
fn plain_copy(disks: &Path) -> Duration {
    let folder = Folder::new(disks, "copy");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let mut file = File::create(folder.0.join("copy")).unwrap();
    let content = vec![0x5a; BEHIND];
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| TcpStream::connect(to).unwrap().write_all(&content).unwrap());
        let mut from = listener.accept().unwrap().0;
        let mut piece = vec![0; 1 << 20];
        loop {
            match from.read(&mut piece).unwrap() {
                0 => break,
                n => file.write_all(&piece[..n]).unwrap(),
            }
        }
        file.sync_data().unwrap();
    });
    began.elapsed()
}
