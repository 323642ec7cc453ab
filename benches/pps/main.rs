//! Packet rates of exitmark and of what one would use instead, side by side on one machine.
//!
//! Owns the order of things: the forwarders take turns within every round, each on a fresh
//! site, and what counts is the median of the rounds. All hosts are network namespaces of
//! this process; no frame leaves them. `cargo bench --bench pps -- --help` tells the options.

mod machine;
mod measure;
mod peers;
mod report;
mod site;
mod traffic;

use clap::Parser;
use exitmark::lab::LabError;
use machine::Machine;
use peers::Forwarder;
use report::Row;
use std::process::ExitCode;
use std::time::Duration;
use traffic::Load;

#[derive(Parser)]
#[command(
    name = "pps",
    about = "Packet rates of forwarders between network namespaces"
)]
struct Arguments {
    /// Rounds; the table shows their median.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=99))]
    runs: u32,
    /// How long one run lasts.
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Frame sizes in bytes, without the FCS.
    #[arg(long, value_delimiter = ',', default_value = "64,1514",
          value_parser = clap::value_parser!(u16).range(60..=1514))]
    sizes: Vec<u16>,
    /// How many of 100 flows go to relays.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    relay_percent: u8,
    /// Only these forwarders.
    #[arg(long, value_delimiter = ',')]
    forwarders: Vec<String>,
    /// One short run of each: does everything work?
    #[arg(long)]
    quick: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=60.0).contains(&seconds) => Ok(seconds),
        _ => Err("seconds from 0.1 to 60 are possible".to_owned()),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match bench(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("pps: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs everything; false when a forwarder failed.
fn bench(arguments: &Arguments) -> Result<bool, LabError> {
    let forwarders = chosen(&arguments.forwarders)?;
    if !nix::unistd::geteuid().is_root() {
        return Err(LabError(
            "only root may make network namespaces; run it as root".to_owned(),
        ));
    }
    let program = traffic::compile()?;
    let (rounds, length) = if arguments.quick {
        (1, Duration::from_millis(300))
    } else {
        (arguments.runs, Duration::from_secs_f64(arguments.seconds))
    };
    let mut contests: Vec<Contest> = Vec::new();
    for &size in &arguments.sizes {
        let load = Load {
            frame_bytes: size.into(),
            relay_percent: arguments.relay_percent,
        };
        contests.extend(forwarders.iter().map(|forwarder| Contest {
            forwarder: forwarder.as_ref(),
            load,
            samples: Vec::new(),
            failure: None,
        }));
    }
    let mut machine = Machine::new();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        machine.listen();
        for contest in contests.iter_mut().filter(|one| one.failure.is_none()) {
            contest.run(&program, length);
        }
    }
    let rows: Vec<_> = contests.iter().filter_map(Contest::row).collect();
    if rows.is_empty() {
        return Err(LabError("no forwarder could be measured".to_owned()));
    }
    report::print(&rows);
    let directory = report::write(&rows, &machine)?;
    println!("\nwritten to {}", directory.display());
    Ok(contests.iter().all(|contest| contest.failure.is_none()))
}

/// One forwarder with one load, over all rounds.
struct Contest<'f> {
    forwarder: &'f dyn Forwarder,
    load: Load,
    samples: Vec<report::Sample>,
    failure: Option<LabError>,
}

impl Contest<'_> {
    fn run(&mut self, program: &[u8], length: Duration) {
        let (name, bytes) = (self.forwarder.name(), self.load.frame_bytes);
        match measure::run(program, self.forwarder, self.load, length) {
            Ok(sample) => {
                let loss = sample.loss * 100.0;
                eprintln!(
                    "  {name} {bytes} B: {:.3} Mpps, {loss:.2} % lost",
                    sample.mpps
                );
                self.samples.push(sample);
            }
            Err(error) => {
                eprintln!("  {name} {bytes} B: {error}");
                self.failure = Some(error);
            }
        }
    }

    /// A forwarder that failed once has no row.
    fn row(&self) -> Option<Row> {
        match self.failure {
            Some(_) => None,
            None => Row::new(self.forwarder.name(), self.load, &self.samples),
        }
    }
}

/// The forwarders with these names, or all; without those for which something is missing here.
fn chosen(names: &[String]) -> Result<Vec<Box<dyn Forwarder>>, LabError> {
    let known: Vec<_> = peers::all().iter().map(|one| one.name()).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(LabError(format!(
            "there is no forwarder {unknown}; there are {}",
            known.join(", ")
        )));
    }
    let mut forwarders = Vec::new();
    for forwarder in peers::all() {
        let name = forwarder.name();
        if !names.is_empty() && !names.iter().any(|wanted| wanted == name) {
            continue;
        }
        match forwarder.missing() {
            Some(missing) => eprintln!("{name} is left out; this machine lacks {missing}"),
            None => forwarders.push(forwarder),
        }
    }
    Ok(forwarders)
}
