//! The plots as SVG. They have a white background, to be readable on dark pages too, and use the
//! viewer's fonts.

mod axis;
mod bars;
pub(crate) mod growth;
mod lines;
mod loss;
mod marks;
pub(crate) mod percentiles;
mod ticks;

use super::sources::Sources;
use axis::Axis;
use plotters::backend::SVGBackend;
use plotters::chart::{ChartBuilder, ChartContext};
use plotters::coord::Shift;
use plotters::coord::cartesian::Cartesian2d;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::Text;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, IntoFont, RGBColor, TRANSPARENT, TextStyle, WHITE};
use std::collections::BTreeMap;

const WIDTH: u32 = 900;
const MARGIN: i32 = 20;
const TITLE: i32 = 30;
const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);
const AXIS: RGBColor = RGBColor(0x77, 0x77, 0x77);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, Axis>>;
/// A result with an error of plotters.
type Drawn<T> = Result<T, Box<dyn std::error::Error>>;

/// All plots with figures, by file name.
pub(crate) fn all(sources: &Sources) -> Result<BTreeMap<String, String>, String> {
    let draw = || -> Drawn<BTreeMap<String, String>> {
        let mut plots = BTreeMap::new();
        let throughput = bars::throughput(&sources.rates)?;
        plots.extend(throughput.map(|svg| ("throughput.svg".to_owned(), svg)));
        let loss = loss::plot(&sources.latency)?;
        plots.extend(loss.map(|svg| ("loss.svg".to_owned(), svg)));
        plots.extend(percentiles::plots(&sources.latency)?);
        plots.extend(growth::plots(&sources.growth)?);
        Ok(plots)
    };
    draw().map_err(|error| format!("cannot draw the plots: {error}"))
}

/// Draws a plot of this height: background and title, then the rest with `draw`.
fn plot(title: &str, height: u32, draw: impl FnOnce(&Area<'_>) -> Drawn<()>) -> Drawn<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE)?;
        let place = (MARGIN, MARGIN);
        area.draw(&Text::new(title.to_owned(), place, letters(18, HPos::Left)))?;
        let inner = area.margin(MARGIN + TITLE, MARGIN, MARGIN, MARGIN);
        draw(&inner)?;
        area.present()?;
    }
    Ok(svg)
}

/// A chart with its grid and axes, `above` pixels below the area's top and `beside` from its right.
/// Rows without a description, with labels of this width, have no lines of the grid.
fn chart<'a, 'b>(
    area: &'a Area<'b>,
    (x, x_words): (Axis, &str),
    (y, y_words): (Axis, Option<&str>),
    labels: u32,
    (above, beside): (u32, u32),
) -> Drawn<Chart<'a, 'b>> {
    let mut chart = ChartBuilder::on(area)
        .margin_top(above)
        .margin_right(beside)
        .x_label_area_size(52)
        .y_label_area_size(labels)
        .build_cartesian_2d(x, y)?;
    let mut mesh = chart.configure_mesh();
    mesh.light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(AXIS)
        .label_style(("sans-serif", 13).into_font().color(&INK))
        .axis_desc_style(("sans-serif", 14).into_font().color(&INK))
        .x_desc(x_words);
    match y_words {
        Some(words) => mesh.y_desc(words),
        None => mesh.disable_y_mesh(),
    };
    mesh.draw()?;
    drop(mesh);
    Ok(chart)
}

/// Text of this size, aligned left or right at its position and centred vertically.
fn letters(size: i32, side: HPos) -> TextStyle<'static> {
    ("sans-serif", size)
        .into_font()
        .color(&INK.to_rgba())
        .pos(Pos::new(side, VPos::Center))
}
