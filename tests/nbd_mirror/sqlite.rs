//! A database on a mirrored disk, through nbdfuse, a loop device and ext4, while sites are killed: every transaction that
//! was committed is there after the other site took over, and the database is whole.
//!
//! `SQLITE_KILLS=100 cargo test --test nbd_mirror database`; a few in `make test`. Says what it needs and does not find.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::nbd::programs::{Mounted, run};
use super::sites::{FLUSH, PATIENCE, SIZE, Sites, uri};

/// Commits a transaction after the other, each durable, and prints the number of each.
const WRITER: &str = r#"
import sqlite3, sys
base = sqlite3.connect(sys.argv[1], isolation_level=None)
# FULL does not sync the removal of a journal, which is the commit.
base.execute("PRAGMA synchronous=EXTRA")
base.execute("PRAGMA journal_mode=" + sys.argv[2])
base.execute("CREATE TABLE IF NOT EXISTS t(n INTEGER PRIMARY KEY, content BLOB)")
n = base.execute("SELECT coalesce(max(n), 0) FROM t").fetchone()[0]
while True:
    n += 1
    base.execute("BEGIN")
    base.execute("INSERT INTO t VALUES(?, ?)", (n, n.to_bytes(8, "big") * (16 + n % 400)))
    base.execute("DELETE FROM t WHERE n <= ?", (n - 500,))
    base.execute("COMMIT")
    print(n, flush=True)
"#;

/// Looks at the database, and prints its last number.
const CHECK: &str = r#"
import sqlite3, sys
base = sqlite3.connect(sys.argv[1])
assert base.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
rows = base.execute("SELECT n, content FROM t ORDER BY n").fetchall()
for n, content in rows:
    assert content == n.to_bytes(8, "big") * (16 + n % 400), n
numbers = [n for n, _ in rows]
assert not numbers or numbers == list(range(numbers[0], numbers[-1] + 1)), numbers
print(numbers[-1] if numbers else 0)
"#;

/// The program that commits.
struct Writer {
    program: Child,
    lines: Receiver<u64>,
    /// The last transaction that was reported as committed.
    last: u64,
}

impl Writer {
    fn start(base: &str, journal: &str) -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", WRITER, base, journal]).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut program = command.spawn().unwrap();
        let output = BufReader::new(program.stdout.take().unwrap());
        let (to, lines) = channel();
        std::thread::spawn(move || {
            let numbers = output.lines().map_while(Result::ok).filter_map(|line| line.parse().ok());
            numbers.for_each(|n| _ = to.send(n));
        });
        Writer { program, lines, last: 0 }
    }

    /// Waits for as many transactions.
    #[track_caller]
    fn commit(&mut self, n: u64) {
        for _ in 0..n {
            self.last = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|why| {
                panic!("no transaction after {}: {why}; {:?}", self.last, self.program.try_wait())
            });
        }
    }

    /// The last transaction there was: the program ends by itself, or is ended.
    fn end(mut self, by_itself: bool) -> u64 {
        if !by_itself {
            self.program.kill().unwrap();
        }
        let end = Instant::now() + PATIENCE;
        while self.program.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "the program hangs that has lost its disk");
            std::thread::park_timeout(Duration::from_millis(20));
        }
        self.lines.iter().last().unwrap_or(self.last)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        _ = self.program.kill();
        _ = self.program.wait();
    }
}

/// The database is whole and has at least as many transactions; their number.
#[track_caller]
fn assert_committed(base: &str, committed: u64) -> u64 {
    let found = run("python3", &["-c", CHECK, base]).trim().parse().unwrap();
    assert!(found >= committed, "{committed} were committed, and {found} are there");
    found
}

#[test]
fn a_database_survives_kills_of_either_site() {
    let kills: u32 = std::env::var("SQLITE_KILLS").map_or(4, |n| n.parse().unwrap());
    let has_sqlite = Command::new("python3").args(["-c", "import sqlite3"]).status();
    if !has_sqlite.is_ok_and(|status| status.success()) {
        return eprintln!("SKIPPED: a database: there is no python3 with sqlite3");
    }
    let Some(mut pair) = Sites::start("") else { return };
    pair.wait_in_sync();
    pair.hadmctl(0, &["primary", "data"]).unwrap();
    let Some(disk) = Mounted::file(&uri(&pair, 0), &pair.dir.path, SIZE) else { return };
    run("mkfs.ext4", &["-q", "-F", disk.path()]);
    drop(disk);
    let (mut random, mut primary, mut committed) = (fastrand::Rng::with_seed(1), 0, 0);
    let mut counts = [0; 2];
    let mut left = kills;
    while left > 0 {
        let Some(mut disk) = Mounted::file(&uri(&pair, primary), &pair.dir.path, SIZE) else { return };
        if !disk.mount("noatime") {
            return;
        }
        let base = disk.mount.join("base");
        let base = base.to_str().unwrap();
        if committed > 0 {
            assert_committed(base, committed);
        }
        let journal = *random.choice(&["DELETE", "WAL", "TRUNCATE"]).unwrap();
        let mut writer = Writer::start(base, journal);
        loop {
            writer.commit(random.u64(1..40));
            left -= 1;
            let dies = if left > 0 { random.usize(0..2) } else { primary };
            pair.kill_site(dies);
            counts[usize::from(dies == primary)] += 1;
            if dies == primary {
                break;
            }
            writer.commit(random.u64(1..20));
            pair.start_site(dies);
            pair.wait_in_sync();
        }
        committed = writer.end(true);
        disk.unmount();
        drop(disk);
        let dead = primary;
        primary = 1 - dead;
        pair.wait(primary, "no primary");
        pair.hadmctl(primary, &["primary", "--force", "data"]).unwrap();
        pair.start_site(dead);
        pair.wait_in_sync();
    }
    let Some(mut disk) = Mounted::file(&uri(&pair, primary), &pair.dir.path, SIZE) else { return };
    disk.mount("noatime");
    let base = disk.mount.join("base");
    let found = assert_committed(base.to_str().unwrap(), committed);
    disk.unmount();
    run("e2fsck", &["-fn", disk.path()]);
    drop(disk);
    println!("{} kills of the primary's site, {} of the other: {found} transactions", counts[1], counts[0]);
    assert_eq!(pair.client(primary).ask(FLUSH, 0, 0, 0), 0);
    pair.assert_equal();
    pair.stop();
}
