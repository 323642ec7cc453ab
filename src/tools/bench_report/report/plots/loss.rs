//! The fraction of lost frames against the offered load.

use super::super::sources::Latency;
use super::lines::Lines;
use super::{Drawn, ticks};

/// Whether a row is drawn; the others are only in the tables.
pub(super) fn shown(row: &&Latency) -> bool {
    row.frame_bytes == 64 && row.family == "ipv4"
}

pub(super) fn plot(rows: &[Latency]) -> Drawn<Option<String>> {
    let curves = rows
        .iter()
        .filter(shown)
        .filter(|row| !row.loss_curve.is_empty());
    let series: Vec<_> = curves
        .map(|row| {
            let mut points: Vec<_> = row
                .loss_curve
                .iter()
                .map(|point| (point.offered_mpps, point.loss * 100.0))
                .collect();
            points.sort_by(|one, other| one.0.total_cmp(&other.0));
            (row.forwarder.clone(), points)
        })
        .collect();
    let points = || series.iter().flat_map(|(_, points)| points);
    let most = |part: fn(&(f64, f64)) -> f64| points().map(part).fold(0.0, f64::max);
    if series.is_empty() {
        return Ok(None);
    }
    let lines = Lines {
        title: "Loss against load, 64 B frames".to_owned(),
        x_axis: "offered, Mpps",
        y_axis: "lost, %",
        x_ticks: ticks::linear(most(|point| point.0)),
        y_ticks: ticks::linear(most(|point| point.1)),
        series,
    };
    lines.draw().map(Some)
}
