//! Bar charts as inline SVG, with coordinates in tenths of a pixel.

use super::format;
use crate::cell::Counts;
use std::fmt::Write;

/// A bar: a day, a month or a year.
#[derive(Clone, Debug, Default)]
pub(super) struct Bar {
    /// Label below the axis: a day's number, the beginning of a month's name, or a year.
    pub(super) label: String,
    /// Name in the tooltip and in the table.
    pub(super) name: String,
    /// Its bytes in both directions set the height.
    pub(super) total: Counts,
    /// Bytes that are encrypted, plain and unknown; proportions only, as they are rounded by
    /// themselves.
    pub(super) encryption: [u64; 3],
    /// Whether the tap was watched for less than 95 % of the time.
    pub(super) is_partial: bool,
}

/// Pixels of the plot area, and of its margins.
const HEIGHT: u64 = 220;
const TOP: u64 = 12;
const LEFT: u64 = 62;
const BOTTOM: u64 = 28;
/// Width of a label, in pixels.
const LABEL: u64 = 29;

/// The classes of `Bar::encryption`.
const CLASSES: [&str; 3] = ["encrypted", "plain", "unknown"];

/// Distance of grid lines, for 3 to 6 of them: 1, 2 or 5 times a power of ten.
fn step(most: u64) -> u64 {
    let mut power = 1_u64;
    loop {
        for factor in [1, 2, 5] {
            let step = power.saturating_mul(factor);
            if most.div_ceil(step) <= 5 {
                return step;
            }
        }
        power = power.saturating_mul(10);
    }
}

/// Writes `200 GB`, not `200.00 GB`.
fn tick(value: u64) -> String {
    let text = format::bytes(value);
    let Some((number, unit)) = text.split_once('\u{a0}') else {
        return text;
    };
    let number = match number.contains('.') {
        true => number.trim_end_matches('0').trim_end_matches('.'),
        false => number,
    };
    format!("{number}\u{a0}{unit}")
}

/// Writes tenths of a pixel as a decimal.
fn px(tenths: u64) -> String {
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// Scales `part` of `whole` to `length`.
fn on(length: u64, part: u64, whole: u64) -> u64 {
    let scaled = (u128::from(length) * u128::from(part)).checked_div(u128::from(whole));
    u64::try_from(scaled.unwrap_or(0)).map_or(length, |scaled| scaled.min(length))
}

/// Draws a chart, `width` pixels wide. `id` prefixes its ids; `title` and `description` are plain
/// text and are escaped.
pub(super) fn svg(bars: &[Bar], width: u64, id: &str, title: &str, description: &str) -> String {
    let most = bars
        .iter()
        .map(|bar| bar.total.all_bytes())
        .max()
        .unwrap_or(0)
        .max(1);
    let step = step(most);
    let top = step.saturating_mul(most.div_ceil(step));
    let base = TOP + HEIGHT;
    let count = u64::try_from(bars.len()).unwrap_or(u64::MAX).max(1);
    let inner = width - LEFT - 4;
    let slot = inner * 10 / count;
    let bar_width = (slot * 7 / 10).clamp(10, 480);
    let every = LABEL.div_ceil((inner / count).max(1));

    let mut svg = format!(
        "<svg class=\"plot {id}\" viewBox=\"0 0 {width} {}\" role=\"img\" \
         aria-labelledby=\"{id}-title {id}-text\"><title id=\"{id}-title\">{}</title>\
         <desc id=\"{id}-text\">{}</desc>",
        base + BOTTOM,
        escape(title),
        escape(description),
    );
    let mut value = 0_u64;
    loop {
        let y = px(base * 10 - on(HEIGHT * 10, value, top));
        // Writing to a String cannot fail.
        let _ = write!(
            svg,
            "<line class=\"{}\" x1=\"{LEFT}\" x2=\"{width}\" y1=\"{y}\" y2=\"{y}\"/>\
             <text class=\"tick\" x=\"{}\" y=\"{y}\" dy=\"4\" text-anchor=\"end\">{}</text>",
            if value == 0 { "axis" } else { "grid" },
            LEFT - 8,
            tick(value),
        );
        value = value.saturating_add(step);
        if value > top || value == u64::MAX {
            break;
        }
    }
    for (index, bar) in bars.iter().enumerate() {
        let index = u64::try_from(index).unwrap_or(0);
        let x = LEFT * 10 + slot * index + (slot.saturating_sub(bar_width)) / 2;
        let height = on(HEIGHT * 10, bar.total.all_bytes(), top);
        let whole = bar
            .encryption
            .iter()
            .fold(0_u64, |sum, part| sum.saturating_add(*part));
        let class = if bar.is_partial { "bar partial" } else { "bar" };
        let _ = write!(
            svg,
            "<g class=\"{class}\"><title>{}: {}</title>",
            escape(&bar.name),
            format::bytes(bar.total.all_bytes())
        );
        let mut drawn = 0;
        let parts = if whole == 0 {
            [0, 0, 1]
        } else {
            bar.encryption
        };
        let mut up_to = 0_u64;
        for (part, class) in parts.into_iter().zip(CLASSES) {
            up_to = up_to.saturating_add(part);
            let reached = on(height, up_to, whole.max(1));
            if reached > drawn {
                let _ = write!(
                    svg,
                    "<rect class=\"{class}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>",
                    px(x),
                    px(base * 10 - reached),
                    px(bar_width),
                    px(reached - drawn)
                );
                drawn = reached;
            }
        }
        svg.push_str("</g>");
        if index.is_multiple_of(every) {
            let _ = write!(
                svg,
                "<text class=\"tick\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                px(x + bar_width / 2),
                base + 19,
                escape(&bar.label)
            );
        }
    }
    svg.push_str("</svg>");
    svg
}

/// A horizontal bar of parts, in thousandths.
pub(super) fn strip(parts: &[(&str, u64)]) -> String {
    let mut svg = "<svg class=\"strip\" viewBox=\"0 0 1000 10\" preserveAspectRatio=\"none\" \
                   aria-hidden=\"true\">"
        .to_owned();
    let mut x = 0;
    for (class, width) in parts {
        let _ = write!(
            svg,
            "<rect class=\"{class}\" x=\"{x}\" y=\"0\" width=\"{width}\" height=\"10\"/>"
        );
        x += width;
    }
    svg.push_str("</svg>");
    svg
}

/// Escapes text for content and attributes.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grid_lines_are_few_and_round() {
        for (most, expected) in [
            (1, 1),
            (5, 1),
            (6, 2),
            (11, 5),
            (26, 10),
            (999, 200),
            (1_000, 200),
            (u64::MAX, 5_000_000_000_000_000_000),
        ] {
            assert_eq!(step(most), expected, "{most}");
        }
        assert_eq!(tick(200_000_000_000), "200\u{a0}GB");
        assert_eq!(tick(1_500_000_000_000), "1.5\u{a0}TB");
        assert_eq!(tick(20), "20\u{a0}B");
    }

    #[test]
    fn extreme_bars_are_drawn_too() {
        for bytes in [0, 1, u64::MAX] {
            let bar = Bar {
                total: [0, bytes, 0].into(),
                encryption: [bytes, bytes, 0],
                ..Bar::default()
            };
            let svg = svg(&vec![bar; 400], 400, "id", "<t>", "\"");
            assert!(svg.contains("&lt;t&gt;") && svg.ends_with("</svg>"));
        }
    }
}
