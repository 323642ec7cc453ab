//! Rates while one parameter grows.

use super::super::names::ordered;
use super::super::plots::growth::{AXES, name};
use super::super::rounds::ratio;
use super::super::sources::Growth;
use super::super::table::{self, count, family};
use super::Page;

pub(super) fn section(page: &Page<'_>) -> Option<String> {
    let all = &page.sources.growth;
    let mut text = String::new();
    for (axis, words) in AXES {
        let rows: Vec<_> = all.iter().filter(|row| row.axis == axis).collect();
        if rows.is_empty() {
            continue;
        }
        text.push_str(&format!("### More {words}\n\n{}", note(axis)));
        let most = rows.iter().map(|row| row.value).max().unwrap_or(0);
        text.push_str(&page.plot(&name(axis), &format!("Packet rate against {words}")));
        let rows = ordered(rows, |row| &row.forwarder);
        let rows = rows.into_iter().map(|row| {
            vec![
                row.forwarder.clone(),
                row.frame_bytes.to_string(),
                family(&row.family).to_owned(),
                count(row.value),
                format!("{:.3}", row.mpps),
                format!("{:.3}–{:.3}", row.min, row.max),
                table::percent(row.loss),
                table::ratio(ratio(&row.rounds, &least(all, row).rounds)),
            ]
        });
        let headings = [
            "forwarder",
            "B",
            "family",
            words,
            "Mpps",
            "min–max",
            "lost",
            "× the fewest",
        ];
        text.push_str(&table::table(&headings, rows));
        text.push('\n');
        if axis == "queues" {
            text.push_str(page.shared_cores(most));
        }
    }
    (!all.is_empty()).then_some(text)
}

/// An explanation of the axis, if its name needs one.
fn note(axis: &str) -> &'static str {
    match axis {
        "relays" => {
            "The axis begins with one endpoint, because exitmark refuses an empty relay set.\n\n"
        }
        "prefixes" => "The host's own prefixes, over which the flows are spread.\n\n",
        _ => "",
    }
}

/// The row of the same forwarder and frames with the smallest value, possibly `row` itself.
fn least<'g>(all: &'g [Growth], row: &'g Growth) -> &'g Growth {
    let kind = |row: &'g Growth| (&row.axis, &row.forwarder, row.frame_bytes, &row.family);
    let like = all.iter().filter(|other| kind(other) == kind(row));
    like.min_by_key(|other| other.value).unwrap_or(row)
}
