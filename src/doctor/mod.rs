//! What is not as the box needs it, and the command that mends it.
//!
//! The machine is looked at first ([`Facts`]), and judged by what was seen ([`findings`]):
//! judging asks the system nothing. Looking changes nothing and sends nothing; the XDP programs are
//! loaded for trial, and attached and pinned nowhere.

mod configuration;
mod facts;
mod machine;
mod ports;
#[cfg(test)]
mod tests;

use serde::Serialize;
use std::fmt;

pub use configuration::configuration;
pub use facts::{Asked, Facts, Hop, Port, RelayFile, Trial};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As it should be, or as `run` makes it.
    Ok,
    /// The box runs, but not as well as it could.
    Warning,
    /// The box does not run, or does not do what it is to do.
    Fault,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Fault => "fault",
        })
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about: a NIC, or a part of the machine.
    pub subject: String,
    /// What is.
    pub what: String,
    /// Why it matters; empty where that needs no words.
    pub why: String,
    /// The command that mends it, where one command does.
    pub fix: Option<String>,
}

impl Finding {
    fn new(severity: Severity, subject: &str, what: impl Into<String>) -> Self {
        Self {
            severity,
            subject: subject.to_owned(),
            what: what.into(),
            why: String::new(),
            fix: None,
        }
    }

    fn ok(subject: &str, what: impl Into<String>) -> Self {
        Self::new(Severity::Ok, subject, what)
    }

    fn warning(subject: &str, what: impl Into<String>) -> Self {
        Self::new(Severity::Warning, subject, what)
    }

    fn fault(subject: &str, what: impl Into<String>) -> Self {
        Self::new(Severity::Fault, subject, what)
    }

    fn because(mut self, why: impl Into<String>) -> Self {
        self.why = why.into();
        self
    }

    fn mended_by(mut self, command: impl Into<String>) -> Self {
        self.fix = Some(command.into());
        self
    }
}

/// Judges what was seen: the machine first, then each port.
pub fn findings(facts: &Facts) -> Vec<Finding> {
    let mut findings = machine::judge(facts);
    findings.extend(ports::judge(facts));
    findings
}

/// A word as a shell takes it.
fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._/:@%+=,-".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// One line each, and the command that mends it below.
pub fn render(findings: &[Finding]) -> String {
    let width = findings
        .iter()
        .map(|finding| finding.subject.chars().count())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let Finding {
            severity,
            subject,
            what,
            why,
            fix,
        } = finding;
        text += &format!("{severity:7}  {subject:width$}  {what}");
        if !why.is_empty() {
            text += &format!(": {why}");
        }
        text.push('\n');
        if let Some(fix) = fix {
            text += &format!("{:7}  {:width$}  fix: {fix}\n", "", "");
        }
    }
    text
}
