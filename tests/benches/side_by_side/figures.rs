//! The measurements: every value of every round, the medians, the bars, the table and the JSON file.
//!
//! A ratio is taken within each round, since only what ran side by side can be compared; then their median. A bar is met
//! if it is met by the median of each run. Must never leave a round out.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::flow::quantile;

/// The name of the build to which ratios are taken.
pub const BASE: &str = "base";

/// The values of all rounds of one run, in the order in which they were first added.
#[derive(Default)]
pub struct Figures {
    rows: Vec<Row>,
}

struct Row {
    section: String,
    column: String,
    name: String,
    values: Vec<f64>,
}

/// The place of a value: section, column, contestant.
type Place<'a> = (&'a str, &'a str, &'a str);

struct Bar {
    what: String,
    /// Its value in each round of each run; empty where nothing was measured.
    runs: Vec<Vec<f64>>,
    limit: f64,
    at_least: bool,
}

impl Bar {
    /// The median of each run.
    fn medians(&self) -> Vec<f64> {
        self.runs.iter().filter(|values| !values.is_empty()).map(|values| quantile(values, 0.5)).collect()
    }

    /// The smallest and the largest value of all rounds.
    fn spread(&self) -> Option<(f64, f64)> {
        let mut values = self.runs.iter().flatten().copied();
        let first = values.next()?;
        Some(values.fold((first, first), |(low, high), value| (low.min(value), high.max(value))))
    }

    /// True if the median of every run meets it.
    fn met(&self) -> Option<bool> {
        let medians = self.medians();
        let meets = |&median: &f64| if self.at_least { median >= self.limit } else { median <= self.limit };
        (!medians.is_empty()).then(|| medians.iter().all(meets))
    }
}

/// A size in words.
pub fn bytes(n: usize) -> String {
    match n {
        0..1024 => format!("{n} B"),
        1024..1_048_576 => format!("{} KiB", n >> 10),
        _ => format!("{} MiB", n >> 20),
    }
}

/// The folder of results and drawings.
pub fn directory() -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
    fs::create_dir_all(&dir).unwrap();
    dir
}

impl Figures {
    pub fn add(&mut self, section: &str, column: &str, name: &str, value: f64) {
        let here = |row: &&mut Row| (&*row.section, &*row.column, &*row.name) == (section, column, name);
        match self.rows.iter_mut().find(here) {
            Some(row) => row.values.push(value),
            None => self.rows.push(Row {
                section: section.into(),
                column: column.into(),
                name: name.into(),
                values: vec![value],
            }),
        }
    }

    fn values(&self, (section, column, name): Place<'_>) -> &[f64] {
        let here = |row: &&Row| (&*row.section, &*row.column, &*row.name) == (section, column, name);
        self.rows.iter().find(here).map_or(&[], |row| &row.values)
    }

    fn median(&self, place: Place<'_>) -> Option<f64> {
        let values = self.values(place);
        (!values.is_empty()).then(|| quantile(values, 0.5))
    }

    /// The ratios of two places, round by round.
    fn ratios(&self, over: Place<'_>, under: Place<'_>) -> Vec<f64> {
        self.values(over).iter().zip(self.values(under)).map(|(over, under)| over / under).collect()
    }

    /// Adds the rounds of another run.
    fn extend(&mut self, other: &Figures) {
        for row in &other.rows {
            row.values.iter().for_each(|&value| self.add(&row.section, &row.column, &row.name, value));
        }
    }

    /// Calls `bar` with every bar: its text, its value in each round, and its limit: at least that, or at most.
    fn bars(&self, mut bar: impl FnMut(String, Vec<f64>, bool, f64)) {
        const US: &str = "hadmd";
        let (throughput, cpu, splice) = ("throughput, MB/s", "CPU seconds per GB", "haproxy splice");
        for (size, rate, cost) in [("4 KiB", 1.1, 1.15), ("64 KiB", 1.2, 1.0), ("1 MiB", 1.2, 1.0)] {
            let ratios = |section| self.ratios((section, size, US), (section, size, splice));
            bar(format!("throughput, {size} : HAProxy with splice"), ratios(throughput), true, rate);
            bar(format!("CPU per GB, {size} : HAProxy with splice"), ratios(cpu), false, cost);
        }
        for (size, limit) in [("4 KiB", 0.9), ("64 KiB", 0.7)] {
            let ratios = self.ratios((cpu, size, US), (cpu, size, BASE));
            bar(format!("CPU per GB, {size} : base"), ratios, false, limit);
        }
        let encrypted = |section| {
            let base = format!("{BASE} authkey");
            self.ratios((section, "64 KiB", "hadmd authkey"), (section, "64 KiB", &base))
        };
        bar("encrypted throughput, 64 KiB : base".into(), encrypted(throughput), true, 1.2);
        bar("encrypted CPU per GB, 64 KiB : base".into(), encrypted(cpu), false, 0.85);
        let trip = "round trip of 4 KiB, us";
        for (part, limit) in [("p50", 0.8), ("p99", 1.0)] {
            let column = format!("{part}, depth 1");
            let ratios = self.ratios((trip, &column, US), (trip, &column, "haproxy"));
            bar(format!("round trip {part}, 4 KiB, depth 1 : HAProxy"), ratios, false, limit);
        }
        let trip = "round trip of 4 KiB, busy polling, us";
        for (part, limit) in [("p50", 0.8), ("p99", 1.0)] {
            let column = format!("{part}, depth 1");
            let ratios = self.ratios((trip, &column, US), (trip, &column, "haproxy"));
            bar(format!("round trip {part}, both busy polling : HAProxy"), ratios, false, limit);
        }
        let cost = "round trip p50 beside another peer's full load, us";
        for (class, way, limit) in [("data", "in", 3.0), ("data", "out", 5.0), ("meta", "out", 3.0)] {
            let column = format!("{class}, load {way}");
            let ratios = self.ratios((cost, &column, US), (cost, &format!("{class}, no load"), US));
            let text = format!("{class} round trip p50, another peer's full load {way} : none");
            bar(text, ratios, false, limit);
        }
        let fan = "fan-out of 4 KiB, CPU s per GB";
        let ratios = self.ratios((fan, "31", US), (fan, "1", US));
        bar("CPU per GB delivered, fan-out to 31 : to 1".into(), ratios, false, 1.1);
        let rate = "packets, thousands/s";
        let ratios = self.ratios((rate, "512 B", US), (rate, "4 KiB", US));
        bar("packets/s at 512 B : at 4 KiB".into(), ratios, true, 3.0);
        let memory = "memory, MiB";
        let idle = self.values((memory, "idle, 31 peers", US)).to_vec();
        bar("idle RSS with 31 peers, MiB".into(), idle, false, 5.0);
        let peak = self.values((memory, "peak, 30 of 31 stalled", US)).iter().copied().reduce(f64::max);
        let ceiling = self.median((memory, "ceiling", US)).unwrap_or(f64::NAN);
        let text = "peak RSS with 30 of 31 peers stalled, MiB";
        bar(text.into(), peak.into_iter().collect(), false, ceiling);
        let stall = "30 of 31 peers stalled";
        let ratios = self.ratios((stall, "live peer then, MB/s", US), (stall, "alone, MB/s", US));
        bar("rate of the live peer after slowtimeout : alone".into(), ratios, true, 0.9);
        let idle = self.values(("idle CPU, % of a core", "31 peers", US)).to_vec();
        bar("idle CPU with 31 peers, % of a core".into(), idle, false, 0.2);
        let line = "file system image over 100 Mbit/s, MB/s";
        let ratios = self.ratios((line, "4 KiB", "hadmd, compress lz4"), (line, "4 KiB", US));
        bar("file system image over 100 Mbit/s, compress : without".into(), ratios, true, 1.5);
        let reported = self.values(("kill -9 to connection state, ms", "1 peer", US)).to_vec();
        bar("kill -9 of a peer's daemon to connection state, ms".into(), reported, false, 100.0);
    }

    /// The tables: medians of all rounds, and ratios to the base where there is one.
    fn print(&self) {
        for section in firsts(self.rows.iter().map(|row| &row.section)) {
            let rows = || self.rows.iter().filter(|row| row.section == *section);
            let columns = firsts(rows().map(|row| &row.column));
            let width = columns.iter().map(|column| column.len().max(8) + 2);
            print!("\n{section:<48}");
            columns.iter().zip(width.clone()).for_each(|(column, width)| print!("{column:>width$}"));
            println!();
            let line = |name: &str, cell: &dyn Fn(&str) -> Option<f64>| {
                print!("  {name:<46}");
                for (column, width) in columns.iter().zip(width.clone()) {
                    print!("{:>width$}", cell(column).map_or("-".into(), short));
                }
                println!();
            };
            let names = firsts(rows().map(|row| &row.name));
            for name in &names {
                line(name, &|column| self.median((section, column, name)));
                let base = name.replacen("hadmd", BASE, 1);
                if base != **name && names.contains(&&base) {
                    line(&format!("{name} : {base}"), &|column| {
                        let ratios = self.ratios((section, column, name), (section, column, &base));
                        (!ratios.is_empty()).then(|| quantile(&ratios, 0.5))
                    });
                }
            }
        }
    }

    fn json(&self) -> Vec<Value> {
        let row = |row: &Row| {
            json!({
                "section": row.section, "column": row.column, "name": row.name,
                "median": quantile(&row.values, 0.5), "values": row.values,
            })
        };
        self.rows.iter().map(row).collect()
    }
}

/// The tables and bars of all runs, and the JSON file; returns where that is.
pub fn report(runs: &[Figures]) -> String {
    let mut all = Figures::default();
    runs.iter().for_each(|run| all.extend(run));
    all.print();
    let mut bars: Vec<Bar> = Vec::new();
    for run in runs {
        run.bars(|what, values, at_least, limit| match bars.iter_mut().find(|bar| bar.what == what) {
            Some(bar) => bar.runs.push(values),
            None => bars.push(Bar { what, runs: vec![values], limit, at_least }),
        });
    }
    println!("\n{:<60}{:>14}{:>16}{:>12}", "bars", "each run", "all rounds", "bar");
    for bar in &bars {
        let medians = bar.medians().iter().map(|&median| short(median)).collect::<Vec<_>>().join(" ");
        let spread =
            bar.spread().map_or("-".into(), |(low, high)| format!("{} .. {}", short(low), short(high)));
        let limit = format!("{} {}", if bar.at_least { ">=" } else { "<=" }, short(bar.limit));
        let verdict = match bar.met() {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "not measured",
        };
        println!("  {:<58}{medians:>14}{spread:>16}{limit:>12}  {verdict}", bar.what);
    }
    let bars: Vec<Value> = bars
        .iter()
        .map(|bar| {
            json!({
                "what": bar.what, "medians": bar.medians(), "spread": bar.spread(), "limit": bar.limit,
                "at_least": bar.at_least, "met": bar.met(),
            })
        })
        .collect();
    let path = directory().join("results.json");
    let text = serde_json::to_string_pretty(&json!({ "figures": all.json(), "bars": bars })).unwrap();
    fs::write(&path, text + "\n").unwrap();
    path.display().to_string()
}

/// Each value once, in the order of first appearance.
pub fn firsts<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut found = Vec::new();
    for value in values {
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found
}

/// Three digits that count.
pub fn short(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
