//! The project's performance goals, compared with the results of one run.

use super::names::{AF_XDP, SPILL, TESTPMD, TESTPMD_IO, TOUCH, WIRE, XDP};
use super::point::Point;
use super::rounds::{difference, median, ratio};
use super::sources::{Decision, Growth, KernelDecision, Latency, Sources, Tcp};
use super::table;

/// The kinds of frames with a goal for their decision.
pub(crate) const KINDS: [&str; 4] = ["exit4", "exit6", "relay4", "relay6"];
/// Those that only cross the box.
const INBOUND: [&str; 3] = ["from uplink", "from uplink, IPv6", "from a relay by uplink"];
/// The monitor's rows without a packet in the cache: with a few destinations, and with a cache miss
/// in every table too.
const COLD: [&str; 2] = ["mix-cold", "mix-worst-cold"];
/// The fraction of frames that may be lost if the goal requires a rate without loss.
const LOSS: f64 = 0.000_1;

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

pub(crate) struct Goal {
    what: String,
    bound: Bound,
    unit: &'static str,
    measured: Option<f64>,
    /// The figures that the value is computed from.
    from: Option<String>,
    /// The fraction of frames lost in the worst round, if the goal bounds it.
    loss: Option<f64>,
    beside: Option<String>,
}

impl Goal {
    fn new(what: impl Into<String>, bound: Bound, measured: Option<f64>) -> Self {
        Self {
            what: what.into(),
            bound,
            unit: "",
            measured,
            from: None,
            loss: None,
            beside: None,
        }
    }

    /// Whether the goal is met; `None` if it was not measured.
    pub(crate) fn is_met(&self) -> Option<bool> {
        let within = match self.bound {
            Bound::AtLeast(least) => self.measured? >= least,
            Bound::AtMost(most) => self.measured? <= most,
        };
        Some(within && self.loss.is_none_or(|loss| loss <= LOSS))
    }

    fn target(&self) -> String {
        let unit = self.unit;
        let loss = if self.loss.is_some() {
            ", loss ≤ 0.01 %"
        } else {
            ""
        };
        match self.bound {
            Bound::AtLeast(least) => format!("≥ {least}{unit}{loss}"),
            Bound::AtMost(most) => format!("≤ {most}{unit}{loss}"),
        }
    }

    fn found(&self) -> String {
        let Some(measured) = self.measured else {
            return "-".to_owned();
        };
        let mut found = format!("{measured:.3}{}", self.unit);
        if let Some(loss) = self.loss {
            found += &format!(", lost at worst: {}", table::percent(loss));
        }
        if let Some(beside) = &self.beside {
            found += &format!(", {beside}");
        }
        found
    }

    fn verdict(&self) -> &'static str {
        match self.is_met() {
            Some(true) => "met",
            Some(false) => "**not met**",
            None => "not measured",
        }
    }
}

pub(crate) fn table(sources: &Sources) -> String {
    let rows = all(sources).into_iter().map(|goal| {
        vec![
            goal.what.clone(),
            goal.target(),
            goal.from.clone().unwrap_or_else(|| "-".to_owned()),
            goal.found(),
            goal.verdict().to_owned(),
        ]
    });
    table::text_table(&["what", "goal", "figures", "measured", "verdict"], rows)
}

/// Every goal, in the order of the table.
pub(crate) fn all(sources: &Sources) -> Vec<Goal> {
    let mut goals = kernel(sources);
    goals.extend(rates(sources));
    goals.extend(growth(sources));
    goals.extend(decision(sources));
    goals.push(worker(sources));
    goals.push(monitor(sources));
    goals.extend(goodput(sources));
    goals.extend(round_trip(sources));
    goals.extend(idle(sources));
    goals
}

/// Goals for the time of one run of the XDP program, by the worst kind of frame.
fn kernel(sources: &Sources) -> Vec<Goal> {
    let over = |kind: &str, bytes: u32, set: &str| {
        let is_it = |row: &&KernelDecision| {
            (row.kind.as_str(), row.frame_bytes, row.set.as_str()) == (kind, bytes, set)
                && row.program == XDP
        };
        Some(sources.kernel.iter().find(is_it)?.over_redirect)
    };
    let decides = |what: &str, kinds: &[&'static str], bytes, most| {
        let (from, measured) = worst(kinds, &|kind| over(kind, bytes, "ring"));
        Goal {
            unit: " ns",
            from,
            ..Goal::new(
                format!("kernel's decision over a redirect, {what}"),
                Bound::AtMost(most),
                measured,
            )
        }
    };
    let grows = |kind: &str| {
        let (cold, ring) = (over(kind, 64, "cold")?, over(kind, 64, "ring")?);
        (ring > 0.0).then(|| cold / ring)
    };
    let (from, measured) = worst(&KINDS, &grows);
    vec![
        decides("exit and relay, 64 B", &KINDS, 64, 12.0),
        decides("inbound, 64 B", &INBOUND, 64, 4.0),
        decides("exit and relay, 1514 B", &KINDS, 1514, 12.0),
        Goal {
            from,
            ..Goal::new(
                "the same, 64 B, 65,536 flows and endpoints / 1,024",
                Bound::AtMost(1.3),
                measured,
            )
        },
    ]
}

fn rates(sources: &Sources) -> Vec<Goal> {
    let rates = &sources.rates;
    let at = |point: Option<Point>, what: String, [mine, its]: [&str; 2], least| {
        let row = |name| point.as_ref().and_then(|point| point.row(rates, name));
        let both = row(mine).zip(row(its));
        Goal {
            from: both.map(|(mine, its)| format!("{:.3} / {:.3} Mpps", mine.mpps, its.mpps)),
            ..Goal::new(
                what,
                Bound::AtLeast(least),
                both.and_then(|(mine, its)| ratio(&mine.rounds, &its.rounds)),
            )
        }
    };
    let goal = |mine: &str, its: &str, bytes, least| {
        let what = format!("{mine} / {its}, {bytes} B");
        at(Point::base(rates, bytes), what, [mine, its], least)
    };
    let mut goals = Vec::new();
    for (its, bytes, least) in [
        (TOUCH, 64, 0.97),
        (TOUCH, 1514, 0.97),
        (WIRE, 64, 0.93),
        (WIRE, 1514, 0.85),
    ] {
        goals.push(goal(XDP, its, bytes, least));
        // The rivals have one egress NIC. So has exitmark with this traffic.
        let what = format!("{XDP} / {its}, {bytes} B, exit traffic only");
        let point = Point::of_share(rates, bytes, 0.0);
        goals.push(at(point, what, [XDP, its], least));
    }
    goals.push(goal(AF_XDP, TESTPMD, 64, 1.1));
    for (bytes, least) in [(64, 0.9), (1514, 0.8)] {
        let spilling = Point::base(rates, bytes).and_then(|point| point.row(rates, SPILL));
        goals.push(Goal {
            loss: spilling.map(|row| row.max_loss),
            ..goal(SPILL, XDP, bytes, least)
        });
    }
    goals
}

fn growth(sources: &Sources) -> [Goal; 2] {
    let row = |axis: &str, value: u64| {
        let is_it = |row: &&Growth| {
            row.axis == axis
                && row.value == value
                && row.forwarder == XDP
                && row.frame_bytes == 64
                && row.family == "ipv4"
        };
        sources.growth.iter().find(is_it)
    };
    let goal = |words: &str, least, axis: &str, more, less| {
        let both = row(axis, more).zip(row(axis, less));
        Goal {
            from: both.map(|(more, less)| format!("{:.3} / {:.3} Mpps", more.mpps, less.mpps)),
            ..Goal::new(
                format!("{XDP}, {words}"),
                Bound::AtLeast(least),
                both.and_then(|(more, less)| ratio(&more.rounds, &less.rounds)),
            )
        }
    };
    let words = "65,536 relay endpoints / 1,024, 65,536 flows";
    [
        goal("2 queues / 1 queue", 1.85, "queues", 2, 1),
        goal(words, 0.9, "relays", 65_536, 1_024),
    ]
}

/// Goals for a decision in user space, by the worst kind of frame: its time, and the time more than
/// that of a pass that decides nothing.
fn decision(sources: &Sources) -> [Goal; 4] {
    let within = |what: &str, most, set: &str, figure: fn(&Decision) -> f64| {
        let is_it = |row: &&Decision, kind: &str| row.set == set && row.kind == kind;
        let (from, measured) = worst(&KINDS, &|kind| {
            let mut rows = sources.decisions.iter();
            rows.find(|row| is_it(row, kind)).map(figure)
        });
        Goal {
            unit: " ns",
            from,
            ..Goal::new(what, Bound::AtMost(most), measured)
        }
    };
    let (ring, cold) = (
        "one decision, a ring's worth of frames",
        "one decision, no frame in the cache",
    );
    let over = |what| format!("{what}, over a pass that decides nothing");
    [
        within(ring, 6.0, "ring", |row| row.ns),
        within(cold, 18.0, "cold", |row| row.ns),
        within(&over(ring), 5.0, "ring", |row| row.over_nothing),
        within(&over(cold), 12.0, "cold", |row| row.over_nothing),
    ]
}

/// The goal for the cycles of a packet in a worker, by the worst kind of frame.
fn worker(sources: &Sources) -> Goal {
    let row = |kind: &str| sources.worker.iter().find(|row| row.kind == kind);
    let base = row(TESTPMD_IO);
    let of = |kind: &str| ratio(&row(kind)?.rounds, &base?.rounds);
    let (from, measured) = worst(&KINDS, &of);
    Goal {
        from,
        ..Goal::new(
            "worker over ports in memory / testpmd's io over net_null, cycles a packet",
            Bound::AtMost(2.0),
            measured,
        )
    }
}

/// The goal for the packets per second of one core of the monitor if no packet is in its cache, by
/// the slower kind of packets.
fn monitor(sources: &Sources) -> Goal {
    let mut known = Vec::new();
    for kind in COLD {
        let row = sources.monitor.iter().find(|row| row.name == kind);
        known.extend(row.and_then(|row| Some((kind, row.mpps?))));
    }
    let from = known.iter().map(|(kind, mpps)| format!("{kind} {mpps:.2}"));
    let least = known.iter().map(|(_, mpps)| *mpps).reduce(f64::min);
    Goal {
        unit: " Mpps",
        from: (!known.is_empty()).then(|| from.collect::<Vec<_>>().join(", ")),
        ..Goal::new(
            "monitor, cold",
            Bound::AtLeast(10.0),
            least.filter(|_| known.len() == COLD.len()),
        )
    }
}

/// The known figures of these kinds of frames, and the largest if all are known.
fn worst(
    kinds: &[&'static str],
    of: &dyn Fn(&str) -> Option<f64>,
) -> (Option<String>, Option<f64>) {
    let known: Vec<_> = kinds.iter().map(|kind| (*kind, of(kind))).collect();
    let all: Option<Vec<_>> = known.iter().map(|(_, value)| *value).collect();
    let figure = |(kind, value): &(&str, Option<f64>)| Some(format!("{kind} {:.2}", (*value)?));
    let figures: Vec<_> = known.iter().filter_map(figure).collect();
    let from = (!figures.is_empty()).then(|| figures.join(", "));
    (from, all.and_then(|all| all.into_iter().reduce(f64::max)))
}

/// Goals for TCP goodput, by the worst result over the numbers of streams.
fn goodput(sources: &Sources) -> Vec<Goal> {
    let wires = || sources.tcp.iter().filter(|row| row.forwarder == WIRE);
    let mut goals = Vec::new();
    for forwarder in [XDP, SPILL] {
        for direction in ["upload", "download"] {
            let is_it = |row: &&Tcp| row.forwarder == forwarder && row.direction == direction;
            let ratios = sources.tcp.iter().filter(is_it).filter_map(|row| {
                let like =
                    |wire: &&Tcp| wire.direction == row.direction && wire.streams == row.streams;
                let wire = wires().find(like)?;
                let figures = (row.gbit_per_s?, wire.gbit_per_s?, row.streams);
                Some((ratio(&row.rounds, &wire.rounds)?, figures))
            });
            let worst = ratios.min_by(|one, other| one.0.total_cmp(&other.0));
            goals.push(Goal {
                from: worst.map(|(_, (mine, its, streams))| {
                    let streams = match streams {
                        1 => "1 stream".to_owned(),
                        many => format!("{many} streams"),
                    };
                    format!("{mine:.2} / {its:.2} Gbit/s, {streams}")
                }),
                ..Goal::new(
                    format!("TCP {direction}, {forwarder} / {WIRE}"),
                    Bound::AtLeast(0.95),
                    worst.map(|(ratio, _)| ratio),
                )
            });
        }
    }
    goals
}

fn round_trip(sources: &Sources) -> [Goal; 2] {
    let frames = |forwarder: &str| {
        let is_it = |row: &&Latency| {
            row.forwarder == forwarder && row.frame_bytes == 64 && row.family == "ipv4"
        };
        let row = sources.latency.iter().find(is_it)?;
        Some(&row.round_trip.as_ref()?.rounds)
    };
    let tcp = |forwarder: &str| {
        let is_it = |row: &&Tcp| row.forwarder == forwarder && row.direction == "round-trip";
        sources.tcp.iter().find(is_it).map(|row| &row.rounds)
    };
    let middle = |rounds: &[Option<f64>]| median(rounds.iter().copied().flatten());
    let added = |forwarder, most| Goal {
        unit: " µs",
        from: frames(forwarder)
            .zip(frames(WIRE))
            .and_then(|(mine, its)| Some((middle(mine)?, middle(its)?)))
            .map(|(mine, its)| format!("{mine:.2} − {its:.2} µs")),
        beside: tcp(forwarder)
            .zip(tcp(WIRE))
            .and_then(|(mine, its)| difference(mine, its))
            .map(|us| format!("over TCP {us:.3} µs")),
        ..Goal::new(
            format!("round trip, {forwarder} more than {WIRE}"),
            Bound::AtMost(most),
            frames(forwarder)
                .zip(frames(WIRE))
                .and_then(|(mine, its)| difference(mine, its)),
        )
    };
    [added(XDP, 1.0), added(AF_XDP, 12.0)]
}

/// The core time of the box without frames, of the engine that takes most: of threads that look at
/// their work ten times a second, not of workers. `None` if an older bench has not measured it.
fn idle(sources: &Sources) -> Option<Goal> {
    let engines = [XDP, AF_XDP, SPILL];
    let rows = sources.latency.iter();
    let rows = rows.filter(|row| engines.contains(&row.forwarder.as_str()));
    let most = rows.filter_map(|row| row.idle_core).reduce(f64::max)?;
    Some(Goal {
        unit: " %",
        ..Goal::new(
            "core time of the box without frames",
            Bound::AtMost(0.5),
            Some(most * 100.0),
        )
    })
}
