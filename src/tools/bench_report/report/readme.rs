//! The short table in the README, between two markers.

use super::goals::{self, KINDS};
use super::names::{self, AF_XDP, BARE, NFTABLES, SPILL, WIRE, XDP};
use super::point::{Point, Rate};
use super::rounds::ratio;
use super::sources::{Sources, Tcp};
use super::table::{count, micros, percent, table, whole};

const BEGIN: &str = "<!-- benchmarks: begin -->\n";
const END: &str = "<!-- benchmarks: end -->";

/// The rows of the table; the page has all.
const RATES: [&str; 6] = [XDP, SPILL, AF_XDP, NFTABLES, BARE, WIRE];
const TCP: [(&str, &str); 4] = [
    (XDP, "exitmark, `xdp`"),
    (SPILL, "exitmark, `af_xdp` outbound, `xdp` inbound"),
    (
        "exitmark-af_xdp-both",
        "exitmark, `af_xdp` in both directions",
    ),
    (WIRE, "an XDP redirect in both directions"),
];

/// Replaces the block between the markers of `readme`.
pub(crate) fn with_block(readme: &str, block: &str) -> Result<String, String> {
    let (before, after) = around(readme)?;
    Ok(format!("{before}{BEGIN}{block}{END}{after}"))
}

fn around(readme: &str) -> Result<(&str, &str), String> {
    let once = |marker: &str| readme.matches(marker.trim_end()).count() == 1;
    readme
        .split_once(BEGIN)
        .and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)))
        .filter(|_| once(BEGIN) && once(END))
        .ok_or_else(|| {
            format!(
                "README.md must have one line {} and one line {END} after it; put them around the \
                 table",
                BEGIN.trim_end()
            )
        })
}

/// Machine, rates, TCP, one decision: each if it was measured.
pub(crate) fn block(sources: &Sources) -> String {
    let parts = [
        machine(sources),
        rates(sources),
        tcp(sources),
        decision(sources),
        Some(goals(sources)),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("\n")
}

fn machine(sources: &Sources) -> Option<String> {
    let (_, machine) = sources.machines.first()?;
    let rounds = sources.rates.iter().map(|row| row.rounds.len()).min()?;
    let kind = if machine.hypervisor.is_some() {
        "virtual machine"
    } else {
        "machine"
    };
    Some(format!(
        "One {kind} with {} cores ({}), Linux {},\nveth pairs in copy mode, the same generator and \
         the same counters for all, medians of\n{rounds} alternating rounds. Generator, forwarder in the kernel and sink \
         share one core; the process\nof a forwarder, if it has one, has the other cores.\n",
        machine.cores, machine.cpu, machine.kernel
    ))
}

fn rates(sources: &Sources) -> Option<String> {
    let rates = &sources.rates;
    let (small, large) = (Point::base(rates, 64)?, Point::base(rates, 1514)?);
    let heading = format!("forwarder, {}", small.share());
    let rows = RATES.into_iter().filter_map(|forwarder| {
        let sizes = [&small, &large].map(|point| point.row(rates, forwarder));
        sizes.iter().any(Option::is_some).then(|| {
            vec![
                names::description(forwarder),
                cell(sizes[0], small.row(rates, NFTABLES)),
                cell(sizes[1], large.row(rates, NFTABLES)),
                lost(sizes.into_iter().flatten()),
            ]
        })
    });
    Some(table(&[&heading, "64 B", "1514 B", "lost at worst"], rows))
}

fn cell(row: Option<&Rate>, kernel: Option<&Rate>) -> String {
    let Some(row) = row else {
        return "-".to_owned();
    };
    let ratio = kernel
        .filter(|kernel| kernel.forwarder != row.forwarder)
        .and_then(|kernel| ratio(&row.rounds, &kernel.rounds));
    ratio.map_or_else(
        || format!("{:.2} Mpps", row.mpps),
        |ratio| format!("{:.2} Mpps, {ratio:.1} × nftables", row.mpps),
    )
}

/// One figure if all sizes have the same.
fn lost<'r>(rows: impl Iterator<Item = &'r Rate>) -> String {
    let mut all: Vec<_> = rows.map(|row| percent(row.max_loss)).collect();
    all.dedup();
    all.join("; ")
}

fn tcp(sources: &Sources) -> Option<String> {
    let figure = |forwarder: &str, direction: &str, format_figure: fn(&Tcp) -> Option<String>| {
        let mut rows = sources.tcp.iter();
        let is_it = |row: &&Tcp| {
            // Connections are measured with more than one stream.
            (row.forwarder == forwarder && row.direction == direction)
                && (row.streams == 1 || direction == "connect")
        };
        let figure = rows.find(is_it).and_then(format_figure);
        figure.unwrap_or_else(|| "-".to_owned())
    };
    let rows: Vec<_> = TCP
        .into_iter()
        .filter(|(name, _)| sources.tcp.iter().any(|row| row.forwarder == *name))
        .map(|(forwarder, words)| {
            vec![
                words.to_owned(),
                figure(forwarder, "upload", gbit),
                figure(forwarder, "download", gbit),
                figure(forwarder, "connect", |row| {
                    Some(count(whole(row.connections_per_s?)))
                }),
                figure(forwarder, "round-trip", |row| {
                    Some(format!("{} µs", micros(row.round_trip_us?)))
                }),
            ]
        })
        .collect();
    let headings = [
        "forwarder",
        "upload",
        "download",
        "connections a second",
        "round trip",
    ];
    let mut connects = sources.tcp.iter().filter(|row| row.direction == "connect");
    let at_a_time = connects.next().map_or_else(String::new, |row| {
        format!("; connections {} at a time", row.streams)
    });
    (!rows.is_empty()).then(|| {
        format!(
            "TCP through the box, real stacks on both ends, one stream{at_a_time}:\n\n{}",
            table(&headings, rows)
        )
    })
}

fn gbit(row: &Tcp) -> Option<String> {
    Some(format!("{:.1} Gbit/s", row.gbit_per_s?))
}

/// A link to the page, and the number of goals met.
fn goals(sources: &Sources) -> String {
    let all = goals::all(sources);
    let met = all.iter().filter(|goal| goal.is_met() == Some(true));
    let met = met.count();
    format!(
        "[docs/benchmarks.md](docs/benchmarks.md) has latency, loss, growth and every other \
         figure, and the\ngoals, of which {met} of {} are met.\n",
        all.len()
    )
}

fn decision(sources: &Sources) -> Option<String> {
    let span = |set: &str| {
        let rows = sources
            .decisions
            .iter()
            .filter(|row| row.set == set && KINDS.contains(&row.kind.as_str()));
        let ns: Vec<f64> = rows.map(|row| row.ns).collect();
        let least = ns.iter().copied().reduce(f64::min)?;
        let most = ns.iter().copied().reduce(f64::max)?;
        Some(format!("{least:.1} to {most:.1} ns"))
    };
    Some(format!(
        "One decision in user space (headers, look-up in a full relay set, rewrite, checksum) \
         takes\n{} per TCP frame with as many frames as a ring holds, {} if no frame is\nin the \
         cache, and allocates nothing.\n",
        span("ring")?,
        span("cold")?
    ))
}
