//! The rate without loss, latency at fractions of it, bursts and recovery.

use super::super::names::ordered;
use super::super::plots::percentiles;
use super::super::sources::Latency;
use super::super::table::{count, family, known, micros, mpps, percent, table, whole};
use super::Page;

fn rows<'p>(page: &'p Page<'_>) -> Option<Vec<&'p Latency>> {
    let rows: Vec<_> = page.sources.latency.iter().collect();
    (!rows.is_empty()).then(|| ordered(rows, |row| &row.forwarder))
}

const NAMED: [&str; 3] = ["forwarder", "B", "family"];

/// The cells that identify a forwarder and its frames.
fn named(row: &Latency) -> Vec<String> {
    vec![
        row.forwarder.clone(),
        row.frame_bytes.to_string(),
        family(&row.family).to_owned(),
    ]
}

pub(super) fn lossless(page: &Page<'_>) -> Option<String> {
    let rows = rows(page)?;
    let rates = rows.iter().map(|row| {
        let mut cells = named(row);
        let mark = if row.generator_bound { " †" } else { "" };
        cells.extend([
            format!("{}{mark}", mpps(row.lossless_mpps)),
            row.min
                .zip(row.max)
                .map_or_else(|| "-".to_owned(), |(min, max)| format!("{min:.3}–{max:.3}")),
        ]);
        cells
    });
    let note = if rows.iter().any(|row| row.generator_bound) {
        "\n† Limited by the generator; the limit of the forwarder may be higher.\n"
    } else {
        ""
    };
    let words = "The part of the frames that is lost against what is offered";
    Some(format!(
        "The highest rate at which no frame is lost.\n\n{}{}{note}",
        page.plot("loss.svg", words),
        table(&[&NAMED[..], &["Mpps", "min–max"]].concat(), rates)
    ))
}

pub(super) fn section(page: &Page<'_>) -> Option<String> {
    let rows = rows(page)?;
    let mut text = "Time from sending a frame until its arrival, in µs, at fractions of each \
                    forwarder's own rate without loss.\n`batch`: the number of clock reads per \
                    batch of the generator; with fewer, frames leave it sooner, but\nits highest \
                    rate is lower.\n\n"
        .to_owned();
    for load in percentiles::loads(&page.sources.latency) {
        let percent = load * 100.0;
        text.push_str(&format!(
            "### At {percent:.0} % of the rate without loss\n\n"
        ));
        let words = format!("Percentiles of latency at {percent:.0} % of the rate without loss");
        text.push_str(&page.plot(&percentiles::name(load), &words));
        let times = rows.iter().filter_map(|row| {
            let at = row.latency.iter().find(|one| one.load == load)?;
            let mut cells = named(row);
            cells.extend([mpps(at.offered_mpps), batch(at.batch)]);
            cells.extend(at.times().map(|us| known(us, micros)));
            cells.push(count(at.samples));
            Some(cells)
        });
        let rate = ["offered, Mpps", "batch"];
        let headings = [&NAMED[..], &rate, &percentiles::NAMES, &["samples"]].concat();
        text.push_str(&table(&headings, times));
        text.push('\n');
    }
    let trips = rows.iter().filter_map(|row| {
        let trip = row.round_trip.as_ref()?;
        let mut cells = named(row);
        cells.extend([
            known(trip.offered_mpps, |mpps| format!("{mpps:.4}")),
            batch(trip.batch),
            known(trip.p50_us, micros),
            known(trip.p99_us, micros),
            count(trip.samples),
        ]);
        Some(cells)
    });
    text.push_str(
        "### Round trip of one frame\n\nIn µs: probes at a fixed low rate, in batches of one, \
         with nothing else on the wire.\n\n",
    );
    let figures = ["offered, Mpps", "batch", "p50", "p99", "samples"];
    let headings = [&NAMED[..], &figures].concat();
    text.push_str(&table(&headings, trips));
    text.extend(fixed_loads(&rows));
    Some(text)
}

/// Round trips by load, and what they cost; `None` if an older bench has not measured them.
fn fixed_loads(rows: &[&Latency]) -> Option<String> {
    let each = rows.iter().flat_map(|row| {
        row.round_trips.iter().map(|trips| {
            let mut cells = named(row);
            cells.extend([
                count(whole((trips.offered_mpps * 1e6 / 100.0).round() * 100.0)),
                micros(trips.p50_us),
                known(trips.p99_us, micros),
                known(trips.p99_99_us, micros),
                micros(trips.max_us),
                core_time(trips.core),
                known(row.idle_core, core_time),
                count(trips.samples),
            ]);
            cells
        })
    });
    let each: Vec<_> = each.collect();
    let figures = [
        "frames/s",
        "p50",
        "p99",
        "p99.99",
        "max",
        "core time",
        "without frames",
        "samples",
    ];
    let headings = [&NAMED[..], &figures].concat();
    (!each.is_empty()).then(|| {
        format!(
            "\n### Round trip by load\n\nIn µs, over all rounds; `-`: too few samples. Core time: \
             what the processes of the forwarder take of\na core, a forwarder in the kernel \
             none; without frames, what they take then.\n\n{}",
            table(&headings, each.into_iter())
        )
    })
}

pub(super) fn bursts(page: &Page<'_>) -> Option<String> {
    let rows = rows(page)?.into_iter().filter_map(|row| {
        let mut cells = named(row);
        let bound = if row.burst_is_bound { "≥ " } else { "" };
        cells.extend([
            known(row.burst_frames, |frames| {
                format!("{bound}{}", count(whole(frames)))
            }),
            mpps(row.overload.map(|overload| overload.offered_mpps)),
            known(row.overload.map(|overload| overload.loss), percent),
            known(row.recovery_us, |us| count(whole(us))),
        ]);
        let any = row.burst_frames.is_some() || row.overload.is_some() || row.recovery_us.is_some();
        any.then_some(cells)
    });
    let rows: Vec<_> = rows.collect();
    let overload = ["overload, Mpps", "lost of it", "recovery, µs"];
    let headings = [&NAMED[..], &["burst, frames"], &overload].concat();
    (!rows.is_empty()).then(|| {
        format!(
            "Burst: the longest one, back to back, without a lost frame; `≥`: no longer one was \
             tried.\nOverload: twice the rate without loss, or the generator's limit, followed at \
             once by half of that rate.\nRecovery: from the end of the overload to the departure \
             of the first frame after which none is\nlost; none if the overload lost no frame.\n\n\
             {}",
            table(&headings, rows)
        )
    })
}

/// A fraction of a core.
fn core_time(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

fn batch(batch: Option<f64>) -> String {
    known(batch, |batch| count(whole(batch)))
}
