//! `exitmark-monitor report`.

use super::{exit_failure, exit_usage_error, print};
use crate::report::{self, Summary};
use crate::settings::DIRECTORY;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Generate a page, or JSON, from period files
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Period files, and directories with period files, of any number of exits
    #[arg(value_name = "PERIODS", default_value = DIRECTORY)]
    periods: Vec<PathBuf>,

    /// Write the page, with its data, into this directory
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Print the sums as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command. The exit status is 1 if a file cannot be read or written, 2 if no output is
/// named.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    if arguments.out.is_none() && !arguments.json {
        return exit_usage_error("no output is named: give --out DIR for a page, or --json");
    }
    let statistics = match report::read(&arguments.periods) {
        Ok(statistics) => statistics,
        Err(error) => return exit_failure(error),
    };
    if let Some(directory) = &arguments.out {
        match report::write(&statistics, directory) {
            Ok(_) if arguments.json => {}
            Ok(summary) => return print(&summary_line(&summary, directory)),
            Err(error) => return exit_failure(error),
        }
    }
    print(&report::json(&statistics))
}

fn summary_line(summary: &Summary, directory: &Path) -> String {
    let count = |number: u64, name: &str| match number {
        1 => format!("1 {name}"),
        _ => format!("{number} {name}s"),
    };
    format!(
        "{} of {}: {}; open {}\n",
        count(summary.periods, "period"),
        count(summary.exits as u64, "exit"),
        count(summary.pages as u64, "page"),
        directory.join("index.html").display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_singular_or_plural() {
        let text = |pages, exits, periods| {
            let summary = Summary {
                pages,
                exits,
                periods,
                files: 3,
            };
            summary_line(&summary, Path::new("out"))
        };
        let one = "1 period of 1 exit: 1 page; open out/index.html\n";
        assert_eq!(text(1, 1, 1), one);
        let many = "30 periods of 2 exits: 7 pages; open out/index.html\n";
        assert_eq!(text(7, 2, 30), many);
    }
}
