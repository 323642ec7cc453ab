//! The machine, and when each bench ran on it.

use super::super::sources::{Machine, Sources};
use super::super::table::text_table;

/// The fraction of all cores' time, used by other processes, above which rates are low and uneven.
const QUIET: f64 = 0.05;

pub(super) fn section(sources: &Sources) -> Option<String> {
    let (_, machine) = sources.machines.first()?;
    let mut text = text_table(&["what", "which"], facts(machine));
    text.push('\n');
    let runs = sources.machines.iter().map(|(bench, machine)| {
        vec![
            (*bench).to_owned(),
            machine.date.clone(),
            machine.commit.clone().unwrap_or_else(|| "-".to_owned()),
            format!("{:.0} %", machine.busy * 100.0),
        ]
    });
    text.push_str(&text_table(
        &["bench", "date", "source", "used by others"],
        runs,
    ));
    if sources.machines.iter().any(|(_, one)| one.busy > QUIET) {
        text.push_str(
            "\nOther processes used this machine meanwhile: compare only results of one bench.\n",
        );
    }
    let mut others = sources.machines.iter().map(|(_, one)| one);
    if others.any(|one| {
        (&one.kernel, &one.cpu, &one.commit) != (&machine.kernel, &machine.cpu, &machine.commit)
    }) {
        text.push_str("\nThe benches ran on different machines, kernels or sources: compare only results of one bench.\n");
    }
    Some(text)
}

fn facts(machine: &Machine) -> Vec<Vec<String>> {
    let cores = machine.cores.to_string();
    let facts = [
        ("kernel", Some(&machine.kernel)),
        ("CPU", Some(&machine.cpu)),
        ("cores", Some(&cores)),
        ("caches", machine.caches.as_ref()),
        ("memory", machine.memory.as_ref()),
        ("hypervisor", machine.hypervisor.as_ref()),
        ("mitigations", machine.mitigations.as_ref()),
        ("frequency governor", machine.governor.as_ref()),
        ("Rust", machine.rustc.as_ref()),
        ("clang", machine.clang.as_ref()),
        ("nftables", machine.nft.as_ref()),
        ("iproute2", machine.tc.as_ref()),
        ("DPDK testpmd", machine.testpmd.as_ref()),
    ];
    let known = facts
        .into_iter()
        .filter_map(|(what, which)| Some(vec![what.to_owned(), which?.clone()]));
    known.collect()
}
