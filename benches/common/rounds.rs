//! The order of measurements: contestants alternate within every round, every second round in the
//! reverse order; one that failed once is excluded.

use super::machine::Machine;
use super::results::{self, Missing};
use exitmark_lab::LabError;
use serde::Serialize;
use std::fmt::Display;
use std::time::Duration;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The number of rounds; the table shows their median
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=99))]
    runs: u32,
    /// The seconds of one run
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
    /// Only these forwarders.
    #[arg(long, value_delimiter = ',')]
    forwarders: Vec<String>,
    /// One short run of each, to test that everything works
    #[arg(long)]
    pub(crate) quick: bool,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=60.0).contains(&seconds) => Ok(seconds),
        _ => Err("seconds from 0.1 to 60 are possible".to_owned()),
    }
}

impl Options {
    fn rounds(&self) -> u32 {
        if self.quick { 1 } else { self.runs }
    }

    fn length(&self) -> Duration {
        Duration::from_secs_f64(if self.quick { 0.3 } else { self.seconds })
    }

    /// The requested elements of `all`, or all.
    pub(crate) fn chosen<T>(
        &self,
        all: Vec<T>,
        name: impl Fn(&T) -> &'static str,
    ) -> Result<Vec<T>, LabError> {
        let known: Vec<_> = all.iter().map(&name).collect();
        let unknown = |wanted: &&String| !known.contains(&wanted.as_str());
        if let Some(unknown) = self.forwarders.iter().find(unknown) {
            return Err(LabError(format!(
                "there is no forwarder {unknown}; there are {}",
                known.join(", ")
            )));
        }
        let wanted = |one: &T| self.forwarders.iter().any(|wanted| wanted == name(one));
        let any = self.forwarders.is_empty();
        Ok(all.into_iter().filter(|one| any || wanted(one)).collect())
    }
}

/// One contestant over all rounds, and its measurements.
pub(crate) struct Contest<K, S> {
    pub(crate) contestant: K,
    pub(crate) samples: Vec<S>,
    failed: bool,
}

impl<K, S> Contest<K, S> {
    pub(crate) fn new(contestant: K) -> Self {
        Self {
            contestant,
            samples: Vec::new(),
            failed: false,
        }
    }
}

pub(crate) struct Outcome<K, S> {
    /// The contestants that never failed.
    pub(crate) contests: Vec<Contest<K, S>>,
    pub(crate) failed: Vec<Missing>,
    pub(crate) machine: Machine,
}

impl<K, S> Outcome<K, S> {
    /// Writes the rows and the description of the machine into these files, and notes what failed
    /// and what the machine lacked before. Returns whether no measurement failed.
    pub(crate) fn write(
        self,
        bench: &str,
        [rows_file, machine_file]: [&str; 2],
        rows: &[impl Serialize],
        mut missing: Vec<Missing>,
    ) -> Result<bool, LabError> {
        results::write_rows(rows_file, rows)?;
        let directory = results::write(machine_file, &self.machine)?;
        println!("\nwritten to {}", directory.display());
        let is_whole = self.failed.is_empty();
        missing.extend(self.failed);
        results::note_missing(bench, &missing)?;
        Ok(is_whole)
    }
}

/// Measures all contestants in turn, round after round.
pub(crate) fn run<K: Display, S: Display>(
    bench: &'static str,
    options: &Options,
    contestants: impl Iterator<Item = K>,
    measure: impl Fn(&K, Duration) -> Result<S, LabError>,
) -> Result<Outcome<K, S>, LabError> {
    let mut machine = Machine::new();
    let mut contests: Vec<_> = contestants.map(Contest::new).collect();
    let mut failed = Vec::new();
    let rounds = options.rounds();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        machine.listen();
        let mut turns: Vec<_> = contests.iter_mut().filter(|one| !one.failed).collect();
        // Late in a round the machine may be warmer or busier.
        if round % 2 == 0 {
            turns.reverse();
        }
        for contest in turns {
            match measure(&contest.contestant, options.length()) {
                Ok(sample) => {
                    eprintln!("  {}: {sample}", contest.contestant);
                    contest.samples.push(sample);
                }
                Err(error) => {
                    eprintln!("  {}: FAILED: {error}", contest.contestant);
                    contest.failed = true;
                    failed.push(Missing {
                        bench,
                        forwarder: contest.contestant.to_string(),
                        reason: error.to_string(),
                    });
                }
            }
        }
    }
    contests.retain(|contest| !contest.failed);
    if contests.is_empty() {
        return Err(LabError("no forwarder could be measured".to_owned()));
    }
    Ok(Outcome {
        contests,
        failed,
        machine,
    })
}

/// Prints the outcome of a bench, and returns its exit code.
pub(crate) fn exit(bench: &str, outcome: Result<bool, LabError>) -> std::process::ExitCode {
    match outcome {
        Ok(true) => return std::process::ExitCode::SUCCESS,
        Ok(false) => eprintln!("{bench}: not every forwarder could be measured"),
        Err(error) => eprintln!("{bench}: {error}"),
    }
    std::process::ExitCode::FAILURE
}

/// Fails without the privilege to create network namespaces.
pub(crate) fn need_root() -> Result<(), LabError> {
    match nix::unistd::geteuid().is_root() {
        true => Ok(()),
        false => Err(LabError(
            "only root may make network namespaces; run it as root".to_owned(),
        )),
    }
}
