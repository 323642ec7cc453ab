//! The report as the project shows it: `docs/benchmarks.md` with its plots, the results that it
//! was made from, and the README's block.

use super::{PLOTS, Report, readme, renew, write};
use std::fs;
use std::path::Path;

/// Fewer rounds have no median to speak of.
const FEWEST_ROUNDS: usize = 3;

/// Where the results are kept, seen from the project's directory.
pub(crate) const DATA: &str = "docs/benchmarks/data";

/// Writes all of it into the project's directory.
pub(crate) fn publish(report: &Report, project: &Path) -> Result<(), String> {
    if report.fewest_rounds < FEWEST_ROUNDS {
        return Err(format!(
            "the rates are from {} rounds, and what is published has {FEWEST_ROUNDS} at least; \
             measure without --quick: `make bench`",
            report.fewest_rounds
        ));
    }
    // The README first: it alone may refuse.
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
