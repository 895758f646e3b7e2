//! What was measured: every value of every round, the medians, the bars, the table and the JSON file.
//!
//! A ratio is taken within each round, since only what ran side by side can be compared; then their median.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::flow::quantile;

/// The values of all rounds, in the order in which they were first added.
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

/// Where a value stands: section, column, contestant.
type Place<'a> = (&'a str, &'a str, &'a str);

struct Bar {
    what: String,
    /// `None` where nothing was measured.
    value: Option<f64>,
    limit: f64,
    at_least: bool,
}

impl Bar {
    fn met(&self) -> Option<bool> {
        self.value.map(|value| if self.at_least { value >= self.limit } else { value <= self.limit })
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

/// Where results and drawings are.
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

    fn ratio(&self, over: Place<'_>, under: Place<'_>) -> Option<f64> {
        let pairs = self.values(over).iter().zip(self.values(under));
        let ratios: Vec<f64> = pairs.map(|(over, under)| over / under).collect();
        (!ratios.is_empty()).then(|| quantile(&ratios, 0.5))
    }

    fn bars(&self) -> Vec<Bar> {
        let mut bars = Vec::new();
        let mut bar = |what: &str, value, at_least, limit| {
            bars.push(Bar { what: what.into(), value, limit, at_least });
        };
        const US: &str = "hadmd";
        let (throughput, cpu) = ("throughput, MB/s", "CPU seconds per GB");
        for size in ["4 KiB", "64 KiB"] {
            let ratio = |section, other| self.ratio((section, size, US), (section, size, other));
            let text = format!("throughput, {size} : HAProxy with splice");
            bar(&text, ratio(throughput, "haproxy splice"), true, 1.2);
            bar(&format!("CPU per GB, {size} : HAProxy"), ratio(cpu, "haproxy"), false, 0.7);
            let text = format!("CPU per GB, {size} : HAProxy with splice");
            bar(&text, ratio(cpu, "haproxy splice"), false, 1.0);
        }
        let trip = "round trip of 4 KiB, us";
        for (part, limit) in [("p50", 0.8), ("p99", 1.0)] {
            let column = format!("{part}, depth 1");
            let ratio = self.ratio((trip, &column, US), (trip, &column, "haproxy"));
            bar(&format!("round trip {part}, 4 KiB, depth 1 : HAProxy"), ratio, false, limit);
        }
        let load = "round trip p50 beside another peer's full load, us";
        for (class, loads) in [("data", &["in", "out"][..]), ("meta", &["out"])] {
            for way in loads {
                let column = format!("{class}, load {way}");
                let ratio = self.ratio((load, &column, US), (load, &format!("{class}, no load"), US));
                let text = format!("{class} round trip p50, another peer's full load {way} : none");
                bar(&text, ratio, false, 3.0);
            }
        }
        let fan = "fan-out of 4 KiB, CPU s per GB";
        bar(
            "CPU per GB delivered, fan-out to 31 : to 1",
            self.ratio((fan, "31", US), (fan, "1", US)),
            false,
            1.1,
        );
        let rate = "packets, thousands/s";
        let ratio = self.ratio((rate, "512 B", US), (rate, "4 KiB", US));
        bar("packets/s at 512 B : at 4 KiB", ratio, true, 3.0);
        let memory = "memory, MiB";
        let idle = self.median((memory, "idle, 31 peers", US));
        bar("idle RSS with 31 peers, MiB", idle, false, 8.0);
        let peak = self.values((memory, "peak, 30 of 31 stalled", US)).iter().copied().reduce(f64::max);
        let ceiling = self.median((memory, "ceiling", US)).unwrap_or(f64::NAN);
        bar("peak RSS with 30 of 31 peers stalled, MiB", peak, false, ceiling);
        let stall = "30 of 31 peers stalled";
        let ratio = self.ratio((stall, "live peer then, MB/s", US), (stall, "alone, MB/s", US));
        bar("rate of the live peer after slowtimeout : alone", ratio, true, 0.9);
        bar(
            "idle CPU with 31 peers, % of a core",
            self.median(("idle CPU, % of a core", "31 peers", US)),
            false,
            0.2,
        );
        let line = "file system image over 100 Mbit/s, MB/s";
        let ratio = self.ratio((line, "4 KiB", "hadmd, compress lz4"), (line, "4 KiB", US));
        bar("file system image over 100 Mbit/s, compress : without", ratio, true, 1.5);
        let told = self.median(("kill -9 to connection state, ms", "1 peer", US));
        bar("kill -9 of a peer's daemon to connection state, ms", told, false, 100.0);
        bars
    }

    /// The tables, and the bars.
    pub fn print(&self) {
        for section in firsts(self.rows.iter().map(|row| &row.section)) {
            let rows = || self.rows.iter().filter(|row| row.section == *section);
            let columns = firsts(rows().map(|row| &row.column));
            let width = columns.iter().map(|column| column.len().max(8) + 2);
            print!("\n{section:<48}");
            columns.iter().zip(width.clone()).for_each(|(column, width)| print!("{column:>width$}"));
            println!();
            for name in firsts(rows().map(|row| &row.name)) {
                print!("  {name:<46}");
                for (column, width) in columns.iter().zip(width.clone()) {
                    let cell = self.median((section, column, name)).map_or("-".into(), short);
                    print!("{cell:>width$}");
                }
                println!();
            }
        }
        println!("\n{:<60}{:>10}{:>12}", "bars", "measured", "bar");
        for bar in self.bars() {
            let value = bar.value.map_or("-".into(), short);
            let limit = format!("{} {}", if bar.at_least { ">=" } else { "<=" }, short(bar.limit));
            let verdict = match bar.met() {
                Some(true) => "met",
                Some(false) => "MISSED",
                None => "not measured",
            };
            println!("  {:<58}{value:>10}{limit:>12}  {verdict}", bar.what);
        }
    }

    /// Writes the JSON file; says where.
    pub fn write(&self) -> String {
        let figures: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "section": row.section, "column": row.column, "name": row.name,
                    "median": quantile(&row.values, 0.5), "values": row.values,
                })
            })
            .collect();
        let bars: Vec<Value> = self
            .bars()
            .iter()
            .map(|bar| {
                json!({
                    "what": bar.what, "value": bar.value, "limit": bar.limit,
                    "at_least": bar.at_least, "met": bar.met(),
                })
            })
            .collect();
        let path = directory().join("results.json");
        let text = serde_json::to_string_pretty(&json!({ "figures": figures, "bars": bars })).unwrap();
        fs::write(&path, text + "\n").unwrap();
        path.display().to_string()
    }
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
