//! The command `growth`: the rate while one parameter grows.

use crate::common::results::{Series, ratio, rounded};
use crate::common::rounds::Contest;
use crate::common::{bpf, rounds};
use crate::load::{Family, Load};
use crate::measure::Contestant;
use crate::peers::{self, Forwarder};
use crate::rates::is_possible;
use crate::sample::{Sample, percent};
use exitmark_lab::LabError;
use serde::Serialize;
use std::fmt;

/// Flows while the relay set grows: half of them go to four in ten endpoints of the largest one.
const FLOWS_TO_MANY_RELAYS: u32 = 65_536;

const BENCH: &str = "growth";

#[derive(clap::Args)]
pub(crate) struct Growth {
    #[command(flatten)]
    options: rounds::Options,
    /// Only these axes
    #[arg(long, value_delimiter = ',')]
    axes: Vec<Axis>,
    /// Address families
    #[arg(long, value_delimiter = ',', default_value = "ipv4")]
    families: Vec<Family>,
}

/// The parameter that grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Axis {
    Relays,
    Prefixes,
    Flows,
    Queues,
}

impl Axis {
    const ALL: [Self; 4] = [Self::Relays, Self::Prefixes, Self::Flows, Self::Queues];

    /// The values of an axis. Relay sets are not empty, because exitmark refuses that.
    fn values(self) -> &'static [u32] {
        match self {
            Self::Relays => &[1, 1024, 4096, 16_384, 65_536],
            Self::Prefixes => &[1, 16, 64, 256],
            Self::Flows => &[1, 1024, 65_536, 1_048_576],
            Self::Queues => &[1, 2],
        }
    }

    fn load(self, value: u32, family: Family) -> Load {
        let mut load = Load::BASE;
        load.family = family;
        match self {
            Self::Relays => (load.relays, load.flows) = (value, FLOWS_TO_MANY_RELAYS),
            Self::Prefixes => load.prefixes = value,
            Self::Flows => load.flows = value,
            Self::Queues => load.queues = value,
        }
        load
    }

    /// Whether an axis applies to a forwarder. The wire shows the generators' cost of more flows
    /// and queues; it has no other parameter.
    fn is_for(self, forwarder: &Forwarder) -> bool {
        let generators = matches!(self, Self::Flows | Self::Queues);
        peers::is_exitmark(forwarder) || (generators && forwarder.name == "wire")
    }
}

struct Step<'f> {
    axis: Axis,
    value: u32,
    contestant: Contestant<'f>,
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.contestant.fmt(f)
    }
}

/// Runs the bench; returns false if a forwarder failed.
pub(crate) fn bench(arguments: &Growth) -> Result<bool, LabError> {
    let options = &arguments.options;
    let mut all = peers::all();
    all.retain(|one| Axis::ALL.iter().any(|axis| axis.is_for(one)));
    let (forwarders, missing) = peers::chosen(BENCH, options, all)?;
    let compiled = bpf::compile(bpf::TRAFFIC)?;
    let steps = arguments.steps(&forwarders).into_iter();
    let outcome = rounds::run(BENCH, options, steps, |step, length| {
        step.contestant.run(&compiled, length)
    })?;
    let rows: Vec<_> = outcome.contests.iter().filter_map(Row::new).collect();
    print(&rows);
    let files = ["growth.json", "growth-machine.json"];
    outcome.write(BENCH, files, &rows, missing)
}

impl Growth {
    /// All steps, in the order of the table; a quick run has only the ends of every axis.
    fn steps<'f>(&self, forwarders: &'f [Forwarder]) -> Vec<Step<'f>> {
        let mut steps = Vec::new();
        let wanted = |axis: &Axis| self.axes.is_empty() || self.axes.contains(axis);
        for axis in Axis::ALL.into_iter().filter(wanted) {
            let last = axis.values().len() - 1;
            for &family in &self.families {
                for (place, &value) in axis.values().iter().enumerate() {
                    let load = axis.load(value, family);
                    if (self.options.quick && place != 0 && place != last) || !is_possible(&load) {
                        continue;
                    }
                    let fit = forwarders.iter().filter(|one| axis.is_for(one));
                    steps.extend(fit.map(|forwarder| Step {
                        axis,
                        value,
                        contestant: Contestant { forwarder, load },
                    }));
                }
            }
        }
        steps
    }
}

#[derive(Debug, Serialize)]
struct Row {
    axis: Axis,
    value: u32,
    forwarder: &'static str,
    frame_bytes: usize,
    family: &'static str,
    mpps: f64,
    min: f64,
    max: f64,
    runs: usize,
    /// The median of the rounds.
    loss: f64,
    #[serde(rename = "rounds")]
    rates: Series,
}

impl Row {
    /// `None` without samples.
    fn new(contest: &Contest<Step<'_>, Sample>) -> Option<Self> {
        let Step {
            axis,
            value,
            contestant: Contestant { forwarder, load },
        } = contest.contestant;
        let rates = Series::new(contest.samples.iter().map(|sample| sample.mpps))?;
        let losses = Series::new(contest.samples.iter().map(Sample::loss))?;
        Some(Self {
            axis,
            value,
            forwarder: forwarder.name,
            frame_bytes: load.frame_bytes(),
            family: load.family.name(),
            mpps: rounded(rates.median()),
            min: rounded(rates.min()),
            max: rounded(rates.max()),
            runs: rates.runs(),
            loss: losses.median(),
            rates,
        })
    }

    /// Whether this is another value of the same axis, for the same forwarder.
    fn continues(&self, other: &Self) -> bool {
        (self.axis, self.family, self.forwarder) == (other.axis, other.family, other.forwarder)
    }
}

/// Prints the rows by axis, each with its ratio to the first value of its axis.
fn print(rows: &[Row]) {
    for group in rows.chunk_by(|one, next| (one.axis, one.family) == (next.axis, next.family)) {
        let (axis, first) = (group[0].axis, group[0].value);
        println!("\n{axis:?}, {} {} B", group[0].family, group[0].frame_bytes);
        println!(
            "  {:<22} {:>8}   Mpps  (min .. max)           loss  x {first}",
            "forwarder", "number"
        );
        for row in group {
            let begin = group.iter().find(|other| row.continues(other));
            println!(
                "  {:<22} {:>8}  {:>5.3}  ({:.3} .. {:.3})  {:>10}  {}",
                row.forwarder,
                row.value,
                row.mpps,
                row.min,
                row.max,
                percent(row.loss),
                ratio(begin.and_then(|begin| row.rates.ratio_to(&begin.rates))),
            );
        }
    }
}
