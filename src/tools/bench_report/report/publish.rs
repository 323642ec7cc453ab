//! Publishes the report: `docs/benchmarks.md` with its plots, the results that it is generated
//! from, and the README's block.

use super::{PLOTS, Report, readme, renew, write};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The smallest number of rounds with a meaningful median.
const FEWEST_ROUNDS: usize = 5;

/// The directory of the results, relative to the project's directory.
pub(crate) const DATA: &str = "docs/benchmarks/data";

pub(crate) fn publish(report: &Report, project: &Path) -> Result<(), String> {
    let few = |(_, rounds): &&(_, usize)| *rounds < FEWEST_ROUNDS;
    if let Some((file, rounds)) = report.fewest_rounds.iter().find(few) {
        return Err(format!(
            "{file} is from {rounds} rounds, and what is published has {FEWEST_ROUNDS} at least; \
             measure without --quick: `make bench`"
        ));
    }
    one_commit(&report.commits)?;
    // The README first, because only this step can fail for its content.
    let path = project.join("README.md");
    let readme = fs::read_to_string(&path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    write(&path, &readme::with_block(&readme, &report.block)?)?;
    let docs = project.join("docs");
    report.write(&docs, &format!("{PLOTS}.md"))?;
    let data = project.join(DATA);
    renew(&data, "json")?;
    for (name, text) in &report.data {
        write(&data.join(name), text)?;
    }
    Ok(())
}

/// Fails unless all results are of one clean commit.
fn one_commit(commits: &[Option<String>]) -> Result<(), String> {
    let shown = |commit: &Option<String>| commit.clone().unwrap_or_else(|| "none".to_owned());
    let all: BTreeSet<_> = commits.iter().map(shown).collect();
    let is_whole = |commit: &&String| *commit != "none" && !commit.ends_with("-dirty");
    if all.len() == 1 && all.first().filter(is_whole).is_some() {
        return Ok(());
    }
    let all: Vec<_> = all.into_iter().collect();
    Err(format!(
        "the benches ran with the sources {}, and what is published is of one commit; commit, then \
         measure all of it: `make bench`",
        all.join(", ")
    ))
}
