//! The command `rates`: every forwarder with every load of the plan.

use crate::common::{bpf, rounds};
use crate::load::Load;
use crate::measure::Contestant;
use crate::peers;
use crate::plan::{Axes, Whom};
use crate::report::{self, Row};
use exitmark_lab::LabError;
use std::thread;

const BENCH: &str = "rates";

#[derive(clap::Args)]
pub(crate) struct Rates {
    #[command(flatten)]
    options: rounds::Options,
    #[command(flatten)]
    axes: Axes,
}

/// Runs the bench; returns false if a forwarder failed.
pub(crate) fn bench(arguments: &Rates) -> Result<bool, LabError> {
    let options = &arguments.options;
    let forwarders = peers::all()
        .into_iter()
        .chain([peers::of_groups()])
        .chain(peers::captured());
    let (forwarders, missing) = peers::chosen(BENCH, options, forwarders.collect())?;
    let compiled = bpf::compile(bpf::TRAFFIC)?;
    let mut loads = arguments.axes.loads(options.quick);
    loads.retain(|(load, _)| is_possible(load));
    let contestants = loads.into_iter().flat_map(|(load, whom)| {
        Contestant::all(&forwarders, load)
            .filter(move |one| whom == Whom::All || peers::is_exitmark(one.forwarder))
    });
    let outcome = rounds::run(BENCH, options, contestants, |one, length| {
        one.run(&compiled, length)
    })?;
    let rows: Vec<_> = outcome.contests.iter().filter_map(Row::new).collect();
    report::print(&rows);
    outcome.write(BENCH, ["pps.json", "machine.json"], &rows, missing)
}

/// Whether there is a core for each generator; prints SKIPPED if not.
pub(crate) fn is_possible(load: &Load) -> bool {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let possible = usize::try_from(load.queues).is_ok_and(|queues| queues <= cores);
    if !possible {
        eprintln!("{load}: SKIPPED; a queue takes a core of its own, and this machine has {cores}");
    }
    possible
}
