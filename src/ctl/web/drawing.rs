//! The drawings of the page, as SVG: who sees whom, and rates as small plots.
//!
//! Each has its content in words, too, since not everybody sees it. Colours are classes of the page's style, which has
//! them for light and dark. Used by the sections.

use std::fmt::Write;

use super::state::POINTS;
use super::text::escape;
use crate::control::{MeshRow, MeshTable};
use crate::ctl::show::size;

/// The sight of two nodes or sites of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sight {
    Both,
    /// The first sees the second, and is not seen.
    First,
    Second,
    Neither,
    Unknown,
}

fn sight(one: &MeshRow, other: &MeshRow) -> Sight {
    let sees = |row: &MeshRow, id: u8| row.sees.as_ref().map(|sees| sees.contains(&id));
    match (sees(one, other.id), sees(other, one.id)) {
        (Some(true), Some(true) | None) | (None, Some(true)) => Sight::Both,
        (Some(true), Some(false)) => Sight::First,
        (Some(false), Some(true)) => Sight::Second,
        (Some(false), _) | (_, Some(false)) => Sight::Neither,
        (None, None) => Sight::Unknown,
    }
}

/// Draws the mesh: a circle of nodes or sites, and a line between two.
pub(super) fn mesh(table: &MeshTable) -> String {
    let rows = &table.rows;
    let count = rows.len().max(1) as f64;
    // So that neighbours keep some room between them, and a pair is not far apart.
    let radius = (count * 46.0 / std::f64::consts::TAU).clamp(70.0, 300.0);
    let (width, height) = (2.0 * radius + 240.0, if rows.len() <= 2 { 110.0 } else { 2.0 * radius + 90.0 });
    // Two side by side; of more, the first at the top.
    let turn = if rows.len() <= 2 { 0.5 } else { -0.25 };
    let at = |n: usize| {
        let angle = std::f64::consts::TAU * (n as f64 / count + turn);
        (width / 2.0 + radius * angle.cos(), height / 2.0 + radius * angle.sin())
    };
    let (mut lines, mut nodes, mut words) = (String::new(), String::new(), Vec::new());
    for (n, one) in rows.iter().enumerate() {
        for (m, other) in rows.iter().enumerate().skip(n.saturating_add(1)) {
            let sight = sight(one, other);
            let ((x1, y1), (x2, y2)) = match sight {
                Sight::Second => (at(m), at(n)),
                _ => (at(n), at(m)),
            };
            let (class, says) = match sight {
                Sight::Both => ("both", "see each other"),
                Sight::First => ("one", "the first sees the second and is not seen"),
                Sight::Second => ("one", "the second sees the first and is not seen"),
                Sight::Neither => ("none", "do not see each other"),
                Sight::Unknown => ("unknown", "not known"),
            };
            // An arrow has to end at the edge of its circle.
            let length = (x2 - x1).hypot(y2 - y1).max(1.0);
            let (x2, y2) = (x2 - (x2 - x1) / length * 20.0, y2 - (y2 - y1) / length * 20.0);
            let arrow = if class == "one" { " marker-end=\"url(#arrow)\"" } else { "" };
            let _ = write!(
                lines,
                "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"{arrow}/>"
            );
            if sight != Sight::Both {
                words.push(format!("{} and {}: {says}", one.id, other.id));
            }
        }
        let (x, y) = at(n);
        let known = if one.sees.is_some() { "" } else { " dim" };
        let name: String = one.name.chars().take(14).collect();
        // Names stand outside the circle, where no line is.
        let right = x - width / 2.0;
        let (anchor, shift) = match right {
            _ if rows.len() > 2 && right.abs() < 12.0 => ("middle", 0.0),
            _ if right > 0.0 => ("start", 23.0),
            _ => ("end", -23.0),
        };
        let down = match anchor {
            "middle" if y < height / 2.0 => -23.0,
            "middle" => 33.0,
            _ => 5.0,
        };
        let _ = write!(
            nodes,
            "<circle class=\"node{known}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"17\"/>\
             <text class=\"id\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            y + 5.0,
            one.id,
            x + shift,
            y + down,
            escape(&name),
        );
    }
    let words = if words.is_empty() { "all see each other".into() } else { words.join("; ") };
    format!(
        "<svg class=\"mesh\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" role=\"img\" \
         aria-label=\"Who sees whom: {}\"><defs><marker id=\"arrow\" viewBox=\"0 0 10 10\" refX=\"9\" refY=\"5\" \
         markerWidth=\"7\" markerHeight=\"7\" orient=\"auto\"><path class=\"arrow\" d=\"M0 0 10 5 0 10z\"/></marker></defs>\
         {lines}{nodes}</svg>",
        escape(&words)
    )
}

/// A small plot of a rate in bytes a second; a point that is not known is a gap.
pub(super) fn plot(what: &str, points: impl Iterator<Item = Option<f64>>) -> String {
    const WIDTH: f64 = 120.0;
    const HEIGHT: f64 = 28.0;
    let points: Vec<Option<f64>> = points.collect();
    let highest = points.iter().flatten().copied().fold(0.0, f64::max);
    let step = WIDTH / (POINTS as f64 - 1.0);
    let first = POINTS.saturating_sub(points.len());
    let mut path = String::new();
    let mut is_open = false;
    for (n, point) in points.iter().enumerate() {
        if let Some(rate) = point {
            let x = first.saturating_add(n) as f64 * step;
            // A rate that is almost nothing lies on the ground.
            let y = HEIGHT - 2.0 - (HEIGHT - 4.0) * rate / highest.max(1.0);
            let _ = write!(path, "{}{x:.0} {y:.1}", if is_open { "L" } else { "M" });
            if !is_open {
                // A point alone is seen, too.
                path += "h1";
            }
        }
        is_open = point.is_some();
    }
    format!(
        "<svg class=\"plot\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\" \
         aria-label=\"{what}: at most {}/s in the last five minutes\"><path class=\"ground\" d=\"M0 {ground}H{WIDTH}\"/>\
         <path class=\"rate\" d=\"{path}\"/></svg>",
        size(highest),
        ground = HEIGHT - 1.0,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Known;

    fn row(id: u8, sees: Option<Vec<u8>>) -> MeshRow {
        let name = format!("<n{id}>");
        MeshRow { id, name, known: Known::Told, why: None, sees, age_s: None, unchanged_s: None }
    }

    #[test]
    fn lines_say_who_sees_whom() {
        let rows = vec![
            row(0, Some(vec![1, 2])),
            row(1, Some(vec![0])),
            row(2, Some(vec![])),
            row(3, None),
            row(4, None),
        ];
        let drawn = mesh(&MeshTable { resource: None, rows, one_sided: Vec::new() });
        for (class, count) in [("both", 1), ("one", 1), ("none", 7), ("unknown", 1)] {
            assert_eq!(drawn.matches(&format!("<line class=\"{class}\"")).count(), count, "{class}: {drawn}");
        }
        assert!(drawn.contains("0 and 2: the first sees the second and is not seen"), "{drawn}");
        assert!(drawn.contains("&lt;n0&gt;") && !drawn.contains("<n0>"), "{drawn}");
        assert!(!drawn.contains("NaN"), "{drawn}");
    }

    #[test]
    fn a_plot_has_gaps_and_says_its_height() {
        let drawn = plot("in", [Some(0.0), Some(2000.0), None, Some(1.0)].into_iter());
        assert_eq!(drawn.matches('M').count() - 1, 2, "{drawn}");
        assert!(drawn.contains("in: at most 2.0 kB/s"), "{drawn}");
        assert!(!plot("in", std::iter::empty()).contains("NaN"));
    }
}
