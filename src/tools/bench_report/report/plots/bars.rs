//! The rate of every forwarder at the load of the goals, with small and large frames.

use super::super::names::{NFTABLES, ordered};
use super::super::point::Point;
use super::super::point::Rate;
use super::super::rounds::ratio;
use super::axis::Axis;
use super::ticks::Tick;
use super::{Area, Drawn, INK, chart, letters, plot, ticks};
use plotters::element::{EmptyElement, PathElement, Rectangle, Text};
use plotters::style::text_anchor::HPos;
use plotters::style::{Color, RGBColor};

/// The height per forwarder in pixels, and the height around all of them.
const FORWARDER: u32 = 44;
const AROUND: u32 = 160;
/// Frame sizes with their colours, from top to bottom.
const SIZES: [(u32, RGBColor); 2] = [
    (64, RGBColor(0x00, 0x72, 0xb2)),
    (1514, RGBColor(0xe6, 0x9f, 0x00)),
];

pub(super) fn throughput(rates: &[Rate]) -> Drawn<Option<String>> {
    let points = SIZES.map(|(bytes, _)| Point::base(rates, bytes));
    let points: Vec<_> = points.into_iter().flatten().collect();
    let Some(point) = points.first() else {
        return Ok(None);
    };
    // A forwarder may have a rate for one size only.
    let rows = points.iter().flat_map(|point| point.rows(rates)).collect();
    let rows = ordered(rows, |row| &row.forwarder);
    let mut names: Vec<&str> = rows.iter().map(|row| row.forwarder.as_str()).collect();
    names.dedup();
    let height = AROUND + FORWARDER * u32::try_from(names.len())?;
    let title = format!("Packet rate, IPv4, {}, one queue", point.share());
    plot(&title, height, |area| {
        legend(area)?;
        bars(&area.margin(30, 0, 0, 0), rates, &names)
    })
    .map(Some)
}

fn legend(area: &Area<'_>) -> Drawn<()> {
    for (place, (bytes, color)) in (0..).zip(SIZES) {
        let x = 190 + place * 120;
        area.draw(&Rectangle::new([(x, 6), (x + 16, 18)], color.filled()))?;
        let words = format!("{bytes} B frames");
        area.draw(&Text::new(words, (x + 22, 12), letters(13, HPos::Left)))?;
    }
    Ok(())
}

fn bars(area: &Area<'_>, rates: &[Rate], names: &[&str]) -> Drawn<()> {
    let points = SIZES
        .iter()
        .filter_map(|(bytes, _)| Point::base(rates, *bytes));
    let rows = points.flat_map(|point| point.rows(rates).map(|row| row.max).collect::<Vec<_>>());
    let most = rows.fold(0.0, f64::max);
    let x_ticks = ticks::linear(most);
    let last = x_ticks.last().map_or(1.0, |tick| tick.0);
    let rows = f64::from(u32::try_from(names.len())?);
    // The first one is on top.
    let mut y_ticks: Vec<Tick> = Vec::new();
    for (row, name) in (0_u32..).zip(names) {
        y_ticks.push((rows - f64::from(row) - 0.5, (*name).to_owned()));
    }
    let x = Axis::over(0.0..last, &x_ticks);
    let x = (x, "Mpps: median, least and most of the rounds, × nftables");
    let y = (Axis::over(0.0..rows, &y_ticks), None);
    // Space for the label of the longest bar.
    let mut chart = chart(area, x, y, 190, (0, 150))?;
    for (above, (bytes, color)) in [0.2, -0.2].into_iter().zip(SIZES) {
        let Some(point) = Point::base(rates, bytes) else {
            continue;
        };
        let kernel = point.row(rates, NFTABLES);
        for (middle, forwarder) in &y_ticks {
            let Some(row) = point.row(rates, forwarder) else {
                continue;
            };
            let y = middle + above;
            let bar = [(0.0, y - 0.18), (row.mpps, y + 0.18)];
            chart.draw_series([Rectangle::new(bar, color.filled())])?;
            let spread = vec![(row.min, y), (row.max, y)];
            chart.draw_series([PathElement::new(spread, INK.stroke_width(1))])?;
            let words = match kernel.and_then(|kernel| ratio(&row.rounds, &kernel.rounds)) {
                Some(ratio) => format!("{:.2}, {ratio:.1} ×", row.mpps),
                None => format!("{:.2}", row.mpps),
            };
            let text = Text::new(words, (8, 0), letters(12, HPos::Left));
            chart.draw_series([EmptyElement::at((row.max.max(row.mpps), y)) + text])?;
        }
    }
    Ok(())
}
