//! From the results of the benches to a page, its plots, and the README's table.

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

/// Where the plots are, seen from the page.
const PLOTS: &str = "benchmarks";

/// All that is made from one directory of results.
pub(crate) struct Report {
    pub(crate) page: String,
    /// The README's block, without its markers.
    pub(crate) block: String,
    /// By their file's name.
    pub(crate) plots: BTreeMap<String, String>,
    /// What the results are, byte for byte, by their file's name.
    pub(crate) data: BTreeMap<&'static str, String>,
    pub(crate) missing: Vec<&'static str>,
    /// How many rounds each file is from, at least.
    pub(crate) fewest_rounds: [(&'static str, usize); 4],
    /// Of which sources each bench is, as far as that is known.
    pub(crate) commits: Vec<Option<String>>,
}

impl Report {
    /// Reads the results and makes everything, but writes nothing.
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

    /// Writes the page under this name, and the plots beside it.
    pub(crate) fn write(&self, directory: &Path, page: &str) -> Result<(), String> {
        let plots = directory.join(PLOTS);
        renew(&plots, "svg")?;
        for (name, svg) in &self.plots {
            write(&plots.join(name), svg)?;
        }
        write(&directory.join(page), &self.page)
    }
}

/// Makes a directory in which no file of this kind is left from before.
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
