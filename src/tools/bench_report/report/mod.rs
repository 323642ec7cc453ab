//! Renders the benches' results as a page, its plots, and the README's table.

mod goals;
mod names;
mod page;
mod plots;
mod point;
pub(crate) mod publish;
pub(crate) mod readme;
mod rounds;
mod sources;
mod table;

use sources::Sources;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The directory of the plots, relative to the page.
const PLOTS: &str = "benchmarks";

/// Everything generated from one directory of results.
pub(crate) struct Report {
    pub(crate) page: String,
    /// The README's block, without its markers.
    pub(crate) block: String,
    /// The plots as SVG, by file name.
    pub(crate) plots: BTreeMap<String, String>,
    /// The unchanged result files, by file name.
    pub(crate) data: BTreeMap<&'static str, String>,
    pub(crate) missing: Vec<&'static str>,
    /// The smallest number of rounds of each file.
    pub(crate) fewest_rounds: [(&'static str, usize); 8],
    /// The commit of each bench's sources, if known.
    pub(crate) commits: Vec<Option<String>>,
}

impl Report {
    /// Reads the results and renders everything, but writes no file.
    pub(crate) fn of(directory: &Path) -> Result<Self, String> {
        let sources = Sources::read(directory)?;
        let plots = plots::all(&sources)?;
        Ok(Self {
            page: page::of(&sources, &plots),
            block: readme::block(&sources),
            plots,
            fewest_rounds: sources.fewest_rounds(),
            commits: sources
                .machines
                .iter()
                .map(|(_, machine)| machine.commit.clone())
                .collect(),
            missing: sources.missing,
            data: sources.texts,
        })
    }

    /// Writes the page under this name, and the plots next to it.
    pub(crate) fn write(&self, directory: &Path, page: &str) -> Result<(), String> {
        let plots = directory.join(PLOTS);
        renew(&plots, "svg")?;
        for (name, svg) in &self.plots {
            write(&plots.join(name), svg)?;
        }
        write(&directory.join(page), &self.page)
    }
}

/// Creates a directory, and removes old files with this extension from it.
fn renew(directory: &Path, extension: &str) -> Result<(), String> {
    let failed = |error| format!("cannot renew {}: {error}", directory.display());
    fs::create_dir_all(directory).map_err(failed)?;
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|end| end == extension) {
            fs::remove_file(path).map_err(failed)?;
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
}
