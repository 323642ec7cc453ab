//! The table of rates, one for every load.

use super::super::names::{NFTABLES, WIRE, ordered};
use super::super::point::Point;
use super::super::rounds::ratio;
use super::super::sources::Rate;
use super::super::table;
use super::Page;

pub(super) fn section(page: &Page<'_>) -> Option<String> {
    let rates = &page.sources.rates;
    let mut text = page.plot(
        "throughput.svg",
        "Packet rate of every forwarder, 64 B and 1514 B frames",
    );
    for point in Point::all(rates) {
        text.push_str(&format!("### {}\n\n{}\n", point.words(), at(&point, rates)));
    }
    (!rates.is_empty()).then_some(text)
}

fn at(point: &Point, rates: &[Rate]) -> String {
    let against = |row: &Rate, other: &str| {
        let other = point.row(rates, other)?;
        ratio(&row.rounds, &other.rounds)
    };
    let rows = ordered(point.rows(rates).collect(), |row| &row.forwarder);
    let rows = rows.into_iter().map(|row| {
        vec![
            row.forwarder.clone(),
            format!("{:.3}", row.mpps),
            format!("{:.3}–{:.3}", row.min, row.max),
            table::percent(row.loss),
            table::percent(row.max_loss),
            table::ratio(against(row, NFTABLES)),
            table::ratio(against(row, WIRE)),
        ]
    });
    table::table(
        &[
            "forwarder",
            "Mpps",
            "min–max",
            "lost",
            "at worst",
            "× nftables",
            "× wire",
        ],
        rows,
    )
}
