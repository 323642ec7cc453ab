//! An axis with custom ticks and labels on a linear scale; nonlinear values are converted to
//! positions before.

use super::ticks::Tick;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use std::ops::Range;

pub(super) struct Axis {
    range: Range<f64>,
    ticks: Vec<Tick>,
}

impl Axis {
    /// From the first to the last tick, plus the fraction `more` of it on both sides.
    pub(super) fn new(ticks: &[Tick], more: f64) -> Self {
        let first = ticks.first().map_or(0.0, |tick| tick.0);
        let last = ticks.last().map_or(1.0, |tick| tick.0);
        // A single tick needs a range too.
        let room = if last > first {
            (last - first) * more
        } else {
            1.0
        };
        Self::over(first - room..last + room, ticks)
    }

    pub(super) fn over(range: Range<f64>, ticks: &[Tick]) -> Self {
        Self {
            range,
            ticks: ticks.to_vec(),
        }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    #[allow(
        clippy::cast_possible_truncation,
        reason = "pixels; `as` keeps them within the type's range"
    )]
    fn map(&self, value: &f64, (begin, end): (i32, i32)) -> i32 {
        let part = (value - self.range.start) / (self.range.end - self.range.start);
        (f64::from(begin) + part * f64::from(end - begin)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.iter().map(|tick| tick.0).collect()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        let at = self.ticks.iter().find(|tick| tick.0 == *value);
        at.map_or_else(String::new, |tick| tick.1.clone())
    }
}
