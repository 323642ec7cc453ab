//! What a forwarder takes without loss, how long a frame takes at a part of that, and what becomes
//! of bursts.

use super::super::names::ordered;
use super::super::plots::percentiles;
use super::super::sources::Latency;
use super::super::table::{count, family, micros, table, whole};
use super::Page;

fn rows<'p>(page: &'p Page<'_>) -> Option<Vec<&'p Latency>> {
    let rows: Vec<_> = page.sources.latency.iter().collect();
    (!rows.is_empty()).then(|| ordered(rows, |row| &row.forwarder))
}

/// A forwarder and the frames that it is given.
fn named(row: &Latency) -> Vec<String> {
    vec![
        row.forwarder.clone(),
        row.frame_bytes.to_string(),
        family(&row.family).to_owned(),
    ]
}

pub(super) fn lossless(page: &Page<'_>) -> Option<String> {
    let rates = rows(page)?.into_iter().map(|row| {
        let mut cells = named(row);
        cells.extend([
            format!("{:.3}", row.lossless_mpps),
            format!("{:.3}–{:.3}", row.min, row.max),
        ]);
        cells
    });
    Some(format!(
        "The highest rate at which no frame is lost.\n\n{}{}",
        page.plot(
            "loss.svg",
            "The part of the frames that is lost against what is offered"
        ),
        table(&["forwarder", "B", "family", "Mpps", "min–max"], rates)
    ))
}

pub(super) fn section(page: &Page<'_>) -> Option<String> {
    let rows = rows(page)?;
    let mut text =
        "From when a frame is sent until it arrives, in µs, at parts of each forwarder's \
                    own rate without loss.\n\n"
            .to_owned();
    for load in percentiles::loads(&page.sources.latency) {
        let percent = load * 100.0;
        text.push_str(&format!(
            "### At {percent:.0} % of the rate without loss\n\n"
        ));
        text.push_str(&page.plot(
            &percentiles::name(load),
            &format!("Percentiles of latency at {percent:.0} % of the rate without loss"),
        ));
        let times = rows.iter().filter_map(|row| {
            let at = row.latency.iter().find(|one| one.load == load)?;
            let mut cells = named(row);
            cells.push(format!("{:.3}", at.offered_mpps));
            let times = [
                at.p50_us,
                at.p90_us,
                at.p99_us,
                at.p99_9_us,
                at.p99_99_us,
                at.max_us,
            ];
            cells.extend(times.map(micros));
            cells.push(count(at.samples));
            Some(cells)
        });
        let headings = [
            "forwarder",
            "B",
            "family",
            "Mpps",
            "p50",
            "p90",
            "p99",
            "p99.9",
            "p99.99",
            "max",
            "samples",
        ];
        text.push_str(&table(&headings, times));
        text.push('\n');
    }
    let trips = rows.iter().filter_map(|row| {
        let trip = row.round_trip.as_ref()?;
        let mut cells = named(row);
        cells.extend([
            micros(trip.p50_us),
            micros(trip.p99_us),
            count(trip.samples),
        ]);
        Some(cells)
    });
    text.push_str("### One frame to and fro\n\nThe round trip of a single frame, in µs, nothing else on the wire.\n\n");
    text.push_str(&table(
        &["forwarder", "B", "family", "p50", "p99", "samples"],
        trips,
    ));
    Some(text)
}

pub(super) fn bursts(page: &Page<'_>) -> Option<String> {
    let rows = rows(page)?.into_iter().filter_map(|row| {
        let mut cells = named(row);
        cells.extend([
            row.burst_frames
                .map_or("-".to_owned(), |frames| count(whole(frames))),
            row.recovery_us
                .map_or("-".to_owned(), |us| count(whole(us))),
        ]);
        (row.burst_frames.is_some() || row.recovery_us.is_some()).then_some(cells)
    });
    let rows: Vec<_> = rows.collect();
    (!rows.is_empty()).then(|| {
        format!(
            "The longest burst of frames back to back of which none is lost, and how long after \
             the end of an\noverload (twice what it takes) a second of half the rate without loss \
             begins in which none is lost.\n\n{}",
            table(
                &["forwarder", "B", "family", "burst, frames", "recovery, µs"],
                rows
            )
        )
    })
}
