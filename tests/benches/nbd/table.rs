//! The measurements: every value, the medians, the ratios within each round with their spread, and the bars. Must never
//! leave a round out. Used by the benchmark's rows.

/// The values of all rounds, by row and contestant.
#[derive(Default)]
pub struct Table {
    values: Vec<(String, String, Vec<f64>)>,
    rows: Vec<(String, &'static str)>,
    bars: Vec<Bar>,
}

struct Bar {
    row: String,
    over: String,
    /// `None`: the value itself is judged.
    under: Option<String>,
    limit: f64,
    at_least: bool,
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Median, least and most.
fn spread(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{} ({} to {})", short(median(values)), short(least), short(most))
}

/// Three digits that count.
fn short(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

impl Table {
    pub fn add(&mut self, row: &str, name: &str, value: f64) {
        match self.values.iter_mut().find(|(known, of, _)| (&**known, &**of) == (row, name)) {
            Some((_, _, values)) => values.push(value),
            None => self.values.push((row.into(), name.into(), vec![value])),
        }
    }

    fn values(&self, row: &str, name: &str) -> &[f64] {
        let here = self.values.iter().find(|(known, of, _)| (&**known, &**of) == (row, name));
        here.map_or(&[], |(_, _, values)| values)
    }

    /// A row of the printed table.
    pub fn row(&mut self, row: &str, unit: &'static str) {
        self.rows.push((row.into(), unit));
    }

    /// The least ratio that is wanted.
    pub fn bar(&mut self, row: &str, over: &str, under: &str, limit: f64) {
        let (row, over) = (row.into(), over.into());
        self.bars.push(Bar { row, over, under: Some(under.into()), limit, at_least: true });
    }

    /// The largest ratio that is wanted.
    pub fn bar_at_most(&mut self, row: &str, over: &str, under: &str, limit: f64) {
        let (row, over) = (row.into(), over.into());
        self.bars.push(Bar { row, over, under: Some(under.into()), limit, at_least: false });
    }

    /// The largest value that is wanted.
    pub fn limit(&mut self, row: &str, name: &str, limit: f64) {
        let (row, over) = (row.into(), name.into());
        self.bars.push(Bar { row, over, under: None, limit, at_least: false });
    }

    pub fn print(&self) {
        for (row, unit) in &self.rows {
            println!("\n{row}, {unit}: median (least to most)");
            for (_, name, values) in self.values.iter().filter(|(known, ..)| known == row) {
                println!("  {name:<36}{}", spread(values));
            }
        }
        println!("\n{:<72}{:>26}{:>8}", "bars", "median (least to most)", "bar");
        for bar in &self.bars {
            let over = self.values(&bar.row, &bar.over);
            let under = bar.under.as_ref().map(|under| self.values(&bar.row, under));
            let found: Vec<f64> = match under {
                Some(under) => over.iter().zip(under).map(|(over, under)| over / under).collect(),
                None => over.to_vec(),
            };
            let verdict = match median(&found) {
                value if value.is_nan() => "not measured",
                value if bar.at_least && value >= bar.limit || !bar.at_least && value <= bar.limit => "met",
                _ => "MISSED",
            };
            let text = bar.under.as_ref().map_or(bar.over.clone(), |under| format!("{} : {under}", bar.over));
            let (text, sign) = (format!("{}, {text}", bar.row), if bar.at_least { ">=" } else { "<=" });
            let figures = if found.is_empty() { "-".to_owned() } else { spread(&found) };
            println!("  {text:<70}{figures:>26}{sign:>4} {:<4} {verdict}", short(bar.limit));
        }
    }
}
