//! Formats numbers, dates and names.

use super::countries;
use super::sums::{Month, Span};
use crate::cell::Country;
use crate::row::Encryption;
use crate::services;
pub(super) use exitmark_service::grouped;
use jiff::civil::Date;

/// Joins a number and its unit: a no-break space.
const JOIN: char = '\u{a0}';

/// The beginning of a month's English name: `Nov`.
pub(super) fn short_month(month: Month) -> String {
    month.first().strftime("%b").to_string()
}

/// A span: `November 2026`, `2026`, `All time`.
pub(super) fn span(span: Span) -> String {
    match span {
        Span::Everything => "All time".to_owned(),
        Span::Year(year) => year.to_string(),
        Span::Month(month) => month.first().strftime("%B %Y").to_string(),
    }
}

/// A date: `3 November 2026`.
pub(super) fn date(date: Date) -> String {
    date.strftime("%-d %B %Y").to_string()
}

/// Formats `value` with three digits in units of `unit`, a power of ten.
fn three(value: u64, unit: u64) -> String {
    let thousandths = u128::from(value) * 1000 / u128::from(unit);
    let (whole, rest) = (thousandths / 1000, thousandths % 1000);
    match whole {
        0..=9 => format!("{whole}.{:02}", rest / 10),
        10..=99 => format!("{whole}.{}", rest / 100),
        _ => whole.to_string(),
    }
}

fn scaled(value: u64, units: [&str; 6], last: &str) -> String {
    let mut unit = 1_000_000_000_000_000_000;
    for name in units {
        if value >= unit {
            return format!("{}{JOIN}{name}", three(value, unit));
        }
        unit /= 1000;
    }
    format!("{value}{last}")
}

/// A size with three digits in decimal units: `3.42 TB` for 3,420,000,000,000 bytes.
pub(super) fn bytes(value: u64) -> String {
    scaled(value, ["EB", "PB", "TB", "GB", "MB", "kB"], "\u{a0}B")
}

/// A count: `12,345` below a million, else three digits and a word, `3.42 million`.
pub(super) fn count(value: u64) -> String {
    if value < 1_000_000 {
        return grouped(value);
    }
    scaled(
        value,
        [
            "quintillion",
            "quadrillion",
            "trillion",
            "billion",
            "million",
            "thousand",
        ],
        "",
    )
}

/// `part` of `whole` in thousandths.
pub(super) fn thousandths(part: u64, whole: u64) -> u64 {
    let share = (u128::from(part) * 1000 + u128::from(whole / 2)).checked_div(u128::from(whole));
    u64::try_from(share.unwrap_or(0)).unwrap_or(1000).min(1000)
}

/// A percentage, `12.3 %`; a dash if `whole` is 0.
pub(super) fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "–".to_owned();
    }
    match thousandths(part, whole) {
        0 if part > 0 => format!("<{JOIN}0.1{JOIN}%"),
        1000 if part < whole => format!(">{JOIN}99.9{JOIN}%"),
        share => format!("{}.{}{JOIN}%", share / 10, share % 10),
    }
}

/// A country's name, or its code if it is unknown.
pub(super) fn country(country: Country) -> String {
    countries::name(country).map_or_else(|| country.to_string(), str::to_owned)
}

pub(super) fn service(port: u16) -> Option<&'static str> {
    match port {
        0 => Some("no port"),
        _ => services::name(port),
    }
}

/// The value in files and in CSS classes, such as `encrypted`.
pub(super) fn encryption(encryption: Encryption) -> &'static str {
    match encryption {
        Encryption::Encrypted => "encrypted",
        Encryption::Plain => "plain",
        Encryption::Unknown => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        for (value, expected) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (1_999_999, "1.99 MB"),
            (12_345_678_901, "12.3 GB"),
            (999_999_999_999, "999 GB"),
            (1_000_000_000_000, "1.00 TB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(bytes(value).replace(JOIN, " "), expected);
        }
        assert_eq!(count(999_999), "999,999");
        assert_eq!(count(1_234_567).replace(JOIN, " "), "1.23 million");
        let numbers = [0, 12, 123, 1234, 1_234_567].map(grouped);
        assert_eq!(numbers, ["0", "12", "123", "1,234", "1,234,567"]);
    }

    #[test]
    fn a_share_is_never_rounded_to_nothing_or_all() {
        for (part, whole, expected) in [
            (0, 0, "–"),
            (0, 5, "0.0 %"),
            (1, 3, "33.3 %"),
            (2, 3, "66.7 %"),
            (5, 5, "100.0 %"),
            (1, 100_000, "< 0.1 %"),
            (99_999, 100_000, "> 99.9 %"),
            (u64::MAX, u64::MAX, "100.0 %"),
        ] {
            assert_eq!(share(part, whole).replace(JOIN, " "), expected);
        }
    }
}
