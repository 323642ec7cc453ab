//! Percentiles of latency on a logarithmic scale, one plot per load.

use super::super::sources::{Latency, Percentiles};
use super::lines::Lines;
use super::loss::shown;
use super::{Drawn, ticks};

pub(crate) const NAMES: [&str; 6] = ["p50", "p90", "p99", "p99.9", "p99.99", "max"];

/// The loads in ascending order.
pub(crate) fn loads(rows: &[Latency]) -> Vec<f64> {
    let all = rows.iter().flat_map(|row| &row.latency);
    let mut loads: Vec<_> = all.map(|one| one.load).collect();
    loads.sort_by(f64::total_cmp);
    loads.dedup();
    loads
}

/// The file name of the plot for this load.
pub(crate) fn name(load: f64) -> String {
    format!("latency-{:.0}.svg", load * 100.0)
}

pub(super) fn plots(rows: &[Latency]) -> Drawn<Vec<(String, String)>> {
    let mut plots = Vec::new();
    for load in loads(rows) {
        let at = |row: &Latency| row.latency.iter().find(|one| one.load == load).map(points);
        let series: Vec<_> = rows
            .iter()
            .filter(shown)
            .filter_map(|row| Some((row.forwarder.clone(), at(row)?)))
            .filter(|(_, points)| !points.is_empty())
            .collect();
        let points = || series.iter().flat_map(|(_, points)| points);
        let times = || points().map(|point| point.1);
        let (Some(least), Some(most)) = (times().reduce(f64::min), times().reduce(f64::max)) else {
            continue;
        };
        let lines = Lines {
            title: format!(
                "Latency of 64 B frames at {:.0} % of each forwarder's rate without loss",
                load * 100.0
            ),
            x_axis: "percentile",
            y_axis: "latency, µs",
            x_ticks: positions().zip(NAMES.map(String::from)).collect(),
            y_ticks: ticks::decades(least, most),
            series,
        };
        plots.push((name(load), lines.draw()?));
    }
    Ok(plots)
}

fn positions() -> impl Iterator<Item = f64> {
    (0_u32..).map(f64::from)
}

/// The positions of known percentiles other than 0, which has no logarithm.
fn points(at: &Percentiles) -> Vec<(f64, f64)> {
    let point = |(position, us): (f64, Option<f64>)| Some((position, us?.max(0.01).log10()));
    positions().zip(at.times()).filter_map(point).collect()
}
