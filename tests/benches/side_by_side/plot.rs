//! Draws the results as SVG, one file a section that compares something. Must never measure anything.

use std::fmt::Write as _;
use std::fs;

use serde_json::Value;

use crate::figures::{directory, firsts, short};

const COLOURS: [&str; 6] = ["#9aa0a6", "#e8a33d", "#c2571a", "#2a6fbb", "#3c9d63", "#8055a8"];
const WIDTH: usize = 760;
const HEIGHT: usize = 380;
const LEFT: usize = 20;
const TOP: usize = 70;
const FOOT: usize = 40;

struct Mark {
    section: String,
    column: String,
    name: String,
    median: f64,
}

/// Reads the last results and draws them.
pub fn draw() {
    let path = directory().join("results.json");
    let text = fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}: run `make bench` first", path.display()));
    let results: Value = serde_json::from_str(&text).unwrap();
    let word = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_string();
    let figures: Vec<Mark> = results["figures"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|figure| Mark {
            section: word(figure, "section"),
            column: word(figure, "column"),
            name: word(figure, "name"),
            median: figure["median"].as_f64().unwrap_or(f64::NAN),
        })
        .collect();
    for section in firsts(figures.iter().map(|figure| &figure.section)) {
        let bars: Vec<&Mark> = figures.iter().filter(|figure| figure.section == *section).collect();
        if bars.len() < 2 {
            continue;
        }
        let name: String = section.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let path = directory().join(format!("{}.svg", name.to_lowercase()));
        fs::write(&path, chart(section, &bars)).unwrap();
        println!("{}", path.display());
    }
}

/// Groups of bars, a group a column and a colour a contestant, each with its value above.
fn chart(title: &str, bars: &[&Mark]) -> String {
    let columns = firsts(bars.iter().map(|bar| &bar.column));
    let names = firsts(bars.iter().map(|bar| &bar.name));
    let most = bars.iter().map(|bar| bar.median).fold(0.0, f64::max);
    let group = (WIDTH - 2 * LEFT) / columns.len();
    let wide = (group * 4 / 5) / names.len();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{}</text>\n",
        escape(title)
    );
    for (i, name) in names.iter().enumerate() {
        let x = LEFT + i * (WIDTH - 2 * LEFT) / names.len();
        let colour = COLOURS[i % COLOURS.len()];
        let name = escape(name);
        writeln!(svg, "<rect x=\"{x}\" y=\"35\" width=\"11\" height=\"11\" fill=\"{colour}\"/>").unwrap();
        writeln!(svg, "<text x=\"{}\" y=\"45\">{name}</text>", x + 16).unwrap();
    }
    let floor = HEIGHT - FOOT;
    for bar in bars {
        let column = columns.iter().position(|column| **column == bar.column).unwrap_or(0);
        let series = names.iter().position(|name| **name == bar.name).unwrap_or(0);
        let x = LEFT + column * group + group / 10 + series * wide;
        let high = ((floor - TOP) as f64 * (bar.median / most).clamp(0.0, 1.0)) as usize;
        let (y, colour, middle) = (floor - high, COLOURS[series % COLOURS.len()], x + wide / 2);
        let inner = wide.saturating_sub(2).max(1);
        writeln!(svg, "<rect x=\"{x}\" y=\"{y}\" width=\"{inner}\" height=\"{high}\" fill=\"{colour}\"/>")
            .unwrap();
        let value = short(bar.median);
        writeln!(svg, "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{value}</text>", y - 4).unwrap();
    }
    for (i, column) in columns.iter().enumerate() {
        let (x, y) = (LEFT + i * group + group / 2, floor + 18);
        writeln!(svg, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">{}</text>", escape(column)).unwrap();
    }
    svg + "</svg>\n"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
