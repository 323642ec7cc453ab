//! The committed baseline of instruction counts.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, ExitCode};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.json");
/// The permitted difference from the baseline in percent, either way. The random key of the relay
/// set's table accounts for half a percent.
const MAY_DIFFER: f64 = 2.0;

/// The compiler and the target of the counted code.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Built {
    rustc: String,
    target: String,
}

impl Built {
    pub(crate) fn here() -> Self {
        let output = Command::new("rustc").arg("-vV").output();
        let said = output.map_or_else(
            |_| String::new(),
            |output| String::from_utf8_lossy(&output.stdout).into_owned(),
        );
        let field = |name: &str| {
            let value = said.lines().find_map(|line| line.strip_prefix(name));
            value.unwrap_or("unknown").to_owned()
        };
        Self {
            rustc: field("release: "),
            target: field("host: "),
        }
    }
}

/// The content of the baseline file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Baseline {
    #[serde(flatten)]
    built: Built,
    instructions_per_frame: BTreeMap<String, f64>,
}

impl Baseline {
    pub(crate) fn new(built: Built, counts: impl IntoIterator<Item = (&'static str, f64)>) -> Self {
        Self {
            built,
            instructions_per_frame: counts
                .into_iter()
                .map(|(kind, count)| (kind.to_owned(), count))
                .collect(),
        }
    }

    pub(crate) fn write(&self) -> ExitCode {
        self.print(None);
        let mut text = serde_json::to_string_pretty(self).unwrap();
        text.push('\n');
        fs::write(PATH, text).unwrap();
        println!("instructions: {PATH} has these now: commit it with the reason");
        ExitCode::SUCCESS
    }

    pub(crate) fn compare(&self) -> ExitCode {
        let text = match fs::read_to_string(PATH) {
            Ok(text) => text,
            Err(error) => {
                eprintln!("instructions: {PATH}: {error}; `make bench-baseline` writes it");
                return ExitCode::FAILURE;
            }
        };
        let then: Self = match serde_json::from_str(&text) {
            Ok(then) => then,
            Err(error) => {
                eprintln!("instructions: {PATH}: {error}; `make bench-baseline` writes it anew");
                return ExitCode::FAILURE;
            }
        };
        self.print(Some(&then));
        if then.built.target != self.built.target {
            println!(
                "instructions: SKIPPED: the baseline is of {}, this is {}",
                then.built.target, self.built.target
            );
            return ExitCode::SUCCESS;
        }
        if then.built.rustc != self.built.rustc {
            println!(
                "instructions: ANOTHER COMPILER: the baseline is of rustc {}, this is {}; what \
                 differs may be its doing",
                then.built.rustc, self.built.rustc
            );
        }
        let kinds = |baseline: &Self| {
            let kinds = baseline.instructions_per_frame.keys();
            kinds.cloned().collect::<Vec<_>>()
        };
        let has_changed = |kind: &str, now| {
            let percent = then.percent(kind, now);
            percent.is_none_or(|percent| percent.abs() > MAY_DIFFER)
        };
        let counts = self.instructions_per_frame.iter();
        let changed = counts.filter(|(kind, now)| has_changed(kind, **now));
        let changed: Vec<_> = changed.map(|(kind, _)| kind.as_str()).collect();
        if changed.is_empty() && kinds(self) == kinds(&then) {
            return ExitCode::SUCCESS;
        }
        eprintln!(
            "instructions: changed by more than {MAY_DIFFER} %, or not in the baseline, or no kind \
             any more: {}. If that is meant, `make bench-baseline` writes the new one; commit it \
             with the change, and say there what the instructions are for, or what spares them.",
            if changed.is_empty() {
                "see above".to_owned()
            } else {
                changed.join(", ")
            }
        );
        ExitCode::FAILURE
    }

    /// The difference of a count from the kind's baseline, in percent.
    fn percent(&self, kind: &str, now: f64) -> Option<f64> {
        let then = self.instructions_per_frame.get(kind)?;
        Some((now / then - 1.0) * 100.0)
    }

    fn print(&self, then: Option<&Self>) {
        let Built { rustc, target } = &self.built;
        println!("instructions per frame (rustc {rustc}, {target})");
        println!("{:<14} {:>8} {:>8} {:>8}", "kind", "baseline", "now", "%");
        for (kind, now) in &self.instructions_per_frame {
            let baseline = then.and_then(|then| then.instructions_per_frame.get(kind));
            let baseline = baseline.map_or_else(|| "-".to_owned(), |count| format!("{count:.1}"));
            let percent = then.and_then(|then| then.percent(kind, *now));
            let percent =
                percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent:+.1}"));
            println!("{kind:<14} {baseline:>8} {now:>8.1} {percent:>8}");
        }
    }
}
