//! TCP: goodput, connections, round trips.

use super::super::names::{WIRE, ordered};
use super::super::rounds::{difference, ratio};
use super::super::sources::Tcp;
use super::super::table::{self, count, micros, whole};
use super::Page;

pub(super) fn section(page: &Page<'_>) -> Option<String> {
    let all = &page.sources.tcp;
    let bulk = all.iter().filter(|row| row.gbit_per_s.is_some());
    let bulk: Vec<_> = bulk.collect();
    let mut text =
        "Connections from the Tor host to a web server, both with stacks of their own.\n\n"
            .to_owned();
    let against = |row: &Tcp| {
        let is_like = |wire: &&Tcp| {
            wire.forwarder == WIRE && wire.direction == row.direction && wire.streams == row.streams
        };
        all.iter().find(is_like)
    };
    let times_wire =
        |row: &Tcp| table::ratio(against(row).and_then(|wire| ratio(&row.rounds, &wire.rounds)));
    if !bulk.is_empty() {
        let rows = ordered(bulk, |row| &row.forwarder).into_iter().map(|row| {
            vec![
                row.forwarder.clone(),
                row.direction.clone(),
                row.streams.to_string(),
                row.gbit_per_s
                    .map_or_else(String::new, |rate| format!("{rate:.2}")),
                format!("{:.2}–{:.2}", row.min, row.max),
                row.retransmits.map_or_else(String::new, count),
                times_wire(row),
            ]
        });
        let headings = [
            "forwarder",
            "direction",
            "streams",
            "Gbit/s",
            "min–max",
            "retransmits",
            "× wire",
        ];
        text.push_str(&table::table(&headings, rows));
        text.push('\n');
    }
    let connects = of(all, "connect");
    if !connects.is_empty() {
        let rows = connects.into_iter().map(|row| {
            vec![
                row.forwarder.clone(),
                row.streams.to_string(),
                row.connections_per_s
                    .map_or_else(String::new, |rate| count(whole(rate))),
                format!("{}–{}", count(whole(row.min)), count(whole(row.max))),
                times_wire(row),
            ]
        });
        text.push_str(
            "### Connections a second\n\nEach connection: connect, request, answer, close.\n\n",
        );
        let headings = ["forwarder", "at a time", "a second", "min–max", "× wire"];
        text.push_str(&table::table(&headings, rows));
        text.push('\n');
    }
    let trips = of(all, "round-trip");
    if !trips.is_empty() {
        let rows = trips.into_iter().map(|row| {
            let added = against(row).and_then(|wire| difference(&row.rounds, &wire.rounds));
            vec![
                row.forwarder.clone(),
                row.round_trip_us.map_or_else(String::new, micros),
                format!("{}–{}", micros(row.min), micros(row.max)),
                row.p99_us.map_or_else(String::new, micros),
                added.map_or_else(String::new, |us| format!("{us:+.2}")),
            ]
        });
        text.push_str("### Round trip of one byte\n\nIn µs, over one connection.\n\n");
        let headings = ["forwarder", "p50", "min–max", "p99", "more than wire"];
        text.push_str(&table::table(&headings, rows));
    }
    (!all.is_empty()).then_some(text)
}

fn of<'t>(all: &'t [Tcp], direction: &str) -> Vec<&'t Tcp> {
    let rows = all.iter().filter(|row| row.direction == direction);
    ordered(rows.collect(), |row| &row.forwarder)
}
