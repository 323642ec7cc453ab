//! The command `rates`: every forwarder with every load of the plan.

use crate::common::machine::Machine;
use crate::common::{bpf, results, rounds};
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
    let forwarders = options.chosen(peers::all(), |one| one.name())?;
    rounds::need_root()?;
    let (forwarders, mut missing) = peers::available(BENCH, forwarders);
    let compiled = bpf::compile(bpf::TRAFFIC)?;
    let mut loads = arguments.axes.loads(options.quick);
    loads.retain(|(load, _)| is_possible(load));
    let contestants = loads.into_iter().flat_map(|(load, whom)| {
        forwarders
            .iter()
            .map(move |forwarder| Contestant {
                forwarder: forwarder.as_ref(),
                load,
            })
            .filter(move |one| whom == Whom::All || peers::is_exitmark(one.forwarder))
    });
    let mut machine = Machine::new();
    let (contests, failed) =
        rounds::run(BENCH, options, &mut machine, contestants, |one, length| {
            one.run(&compiled, length)
        })?;
    let rows: Vec<_> = contests.iter().filter_map(Row::new).collect();
    report::print(&rows);
    results::write_rows("pps.json", &rows)?;
    let directory = results::write("machine.json", &machine)?;
    println!("\nwritten to {}", directory.display());
    let whole = failed.is_empty();
    missing.extend(failed);
    results::note_missing(BENCH, &missing)?;
    Ok(whole)
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
