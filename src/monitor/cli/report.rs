//! `exitmark-monitor report`: show.

use super::{misused, print, unmet};
use crate::monitor::report::{self, Summary};
use crate::monitor::settings::DIRECTORY;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Make a page of period files, or JSON
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Period files, and directories of them; of as many exits as there are
    #[arg(value_name = "PERIODS", default_value = DIRECTORY)]
    periods: Vec<PathBuf>,

    /// Write the page, with its data, into this directory
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Print the sums as JSON
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    if arguments.out.is_none() && !arguments.json {
        return misused("say what to make: a page with --out DIR, or JSON with --json");
    }
    let statistics = match report::read(&arguments.periods) {
        Ok(statistics) => statistics,
        Err(error) => return unmet(error),
    };
    if let Some(directory) = &arguments.out {
        match report::write(&statistics, directory) {
            Ok(_) if arguments.json => {}
            Ok(summary) => return print(&words(&summary, directory)),
            Err(error) => return unmet(error),
        }
    }
    print(&report::json(&statistics))
}

fn words(summary: &Summary, directory: &Path) -> String {
    let Summary {
        pages,
        exits,
        periods,
        ..
    } = summary;
    format!(
        "{periods} periods of {exits} exits: {pages} pages; look at {}\n",
        directory.join("index.html").display()
    )
}
