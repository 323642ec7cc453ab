//! Line plots with one line per forwarder, and their names at the side.

use super::super::names;
use super::axis::Axis;
use super::marks::mark;
use super::ticks::Tick;
use super::{Area, Drawn, chart, letters, plot};
use plotters::element::{EmptyElement, PathElement, Text};
use plotters::series::LineSeries;
use plotters::style::Color;
use plotters::style::text_anchor::HPos;

const HEIGHT: u32 = 460;
const LEGEND: i32 = 210;
/// The distance between two names in pixels.
const ENTRY: i32 = 26;

/// A plot. Positions are on the axes' linear scale, which need not be values.
pub(super) struct Lines {
    pub(super) title: String,
    pub(super) x_axis: &'static str,
    pub(super) y_axis: &'static str,
    pub(super) x_ticks: Vec<Tick>,
    pub(super) y_ticks: Vec<Tick>,
    /// Each forwarder with its positions from left to right.
    pub(super) series: Vec<(String, Vec<(f64, f64)>)>,
}

impl Lines {
    pub(super) fn draw(mut self) -> Drawn<String> {
        self.series
            .sort_by_key(|(forwarder, _)| names::place(forwarder));
        plot(&self.title, HEIGHT, |area| {
            let width = i32::try_from(area.dim_in_pixel().0)?;
            let (left, right) = area.split_horizontally(width - LEGEND);
            self.chart(&left)?;
            self.legend(&right)
        })
    }

    fn chart(&self, area: &Area<'_>) -> Drawn<()> {
        let (x, y) = (
            Axis::new(&self.x_ticks, 0.03),
            Axis::new(&self.y_ticks, 0.0),
        );
        let (x, y) = ((x, self.x_axis), (y, Some(self.y_axis)));
        let mut chart = chart(area, x, y, 72, (8, 10))?;
        for (forwarder, points) in &self.series {
            let color = names::color(forwarder).stroke_width(2);
            chart.draw_series(LineSeries::new(points.iter().copied(), color))?;
        }
        // Draw marks after all lines, so that no line hides one.
        for (forwarder, points) in &self.series {
            let marks = points.iter().map(|point| {
                let (ground, outline) = mark(forwarder);
                EmptyElement::at(*point) + ground + outline
            });
            chart.draw_series(marks)?;
        }
        Ok(())
    }

    fn legend(&self, area: &Area<'_>) -> Drawn<()> {
        for (row, (forwarder, _)) in (0..).zip(&self.series) {
            let y = 20 + row * ENTRY;
            let line = vec![(10, y), (40, y)];
            area.draw(&PathElement::new(
                line,
                names::color(forwarder).stroke_width(2),
            ))?;
            let (ground, outline) = mark(forwarder);
            area.draw(&(EmptyElement::at((25, y)) + ground + outline))?;
            area.draw(&Text::new(
                forwarder.clone(),
                (50, y),
                letters(13, HPos::Left),
            ))?;
        }
        Ok(())
    }
}
