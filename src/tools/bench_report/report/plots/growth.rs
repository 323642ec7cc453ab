//! The rate while one parameter grows, on a logarithmic axis.

use super::super::sources::Growth;
use super::super::table::count;
use super::lines::Lines;
use super::{Drawn, ticks};

pub(crate) const AXES: [(&str, &str); 4] = [
    ("relays", "relay endpoints"),
    ("prefixes", "prefixes of the host"),
    ("flows", "flows"),
    ("queues", "queues"),
];

/// The file name of the plot for this axis.
pub(crate) fn name(axis: &str) -> String {
    format!("growth-{axis}.svg")
}

pub(super) fn plots(rows: &[Growth]) -> Drawn<Vec<(String, String)>> {
    let mut plots = Vec::new();
    for (axis, words) in AXES {
        let is_shown =
            |row: &&Growth| row.axis == axis && row.frame_bytes == 64 && row.family == "ipv4";
        let rows: Vec<_> = rows.iter().filter(is_shown).collect();
        let mut values: Vec<_> = rows.iter().map(|row| row.value).collect();
        values.sort_unstable();
        values.dedup();
        let (Some(&least), Some(most)) = (
            values.iter().find(|value| **value > 0),
            rows.iter().map(|row| row.mpps).reduce(f64::max),
        ) else {
            continue;
        };
        let mut names: Vec<_> = rows.iter().map(|row| &row.forwarder).collect();
        names.sort();
        names.dedup();
        let series = names.into_iter().map(|name| {
            let mine = rows.iter().filter(|row| row.forwarder == *name);
            let mut points: Vec<_> = mine
                .map(|row| (position(row.value, least), row.mpps))
                .collect();
            points.sort_by(|one, other| one.0.total_cmp(&other.0));
            (name.clone(), points)
        });
        let x_ticks = values
            .iter()
            .map(|value| (position(*value, least), count(*value)))
            .collect();
        let lines = Lines {
            title: format!("Rate against {words}, 64 B frames"),
            x_axis: words,
            y_axis: "Mpps",
            x_ticks: ticks::thinned(x_ticks),
            y_ticks: ticks::linear(most),
            series: series.collect(),
        };
        plots.push((name(axis), lines.draw()?));
    }
    Ok(plots)
}

/// The logarithm of a value; 0, which has none, is placed left of the smallest.
fn position(value: u64, least: u64) -> f64 {
    let log = |value: u64| f64::from(u32::try_from(value).unwrap_or(u32::MAX)).log2();
    if value == 0 {
        log(least) - 1.0
    } else {
        log(value)
    }
}
