//! The tables of rates, one per load.

use super::super::names::{NFTABLES, WIRE, ordered};
use super::super::point::Point;
use super::super::point::Rate;
use super::super::rounds::{difference, ratio};
use super::super::table;
use super::Page;

pub(super) fn section(page: &Page<'_>) -> Option<String> {
    let rates = &page.sources.rates;
    let mut text = page.plot(
        "throughput.svg",
        "Packet rate of every forwarder, 64 B and 1514 B frames",
    );
    for point in Point::all(rates) {
        text.push_str(&format!(
            "### {}\n\n{}\n",
            point.description(),
            at(&point, rates)
        ));
        text.push_str(page.shared_cores(u64::from(point.queues)));
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
        let wire = point.row(rates, WIRE);
        let added = wire.and_then(|wire| difference(&nanoseconds(row), &nanoseconds(wire)));
        vec![
            row.forwarder.clone(),
            format!("{:.3}", row.mpps),
            format!("{:.3}–{:.3}", row.min, row.max),
            table::percent(row.loss),
            table::percent(row.max_loss),
            table::ratio(against(row, NFTABLES)),
            table::ratio(against(row, WIRE)),
            table::known(added, |ns| format!("{ns:+.1}")),
        ]
    });
    let headings = [
        "forwarder",
        "Mpps",
        "min–max",
        "lost",
        "at worst",
        "× nftables",
        "× wire",
        "ns more than wire",
    ];
    table::table(&headings, rows)
}

/// The nanoseconds per frame of every round, if it has a rate.
fn nanoseconds(row: &Rate) -> Vec<Option<f64>> {
    let ns = |mpps: &f64| (*mpps > 0.0).then(|| 1e3 / mpps);
    row.rounds.iter().map(ns).collect()
}
