//! Checks that the machine meets the box's requirements, and names a command for each repair.
//!
//! [`Facts`] reads the state of the machine; [`findings`] evaluates it without a system call.
//! Reading changes nothing and sends no packet. The programs of the engine are loaded as a test, but
//! not attached or pinned.

mod facts;
mod machine;
mod next_hops;
mod ports;
mod sources;
mod tap;
#[cfg(test)]
mod tests;
mod tor_facts;
mod tor_host;

use crate::settings::{Objection, Settings, SettingsError};
use exitmark_nic::LocalNic;
use serde::Serialize;
use std::fmt;

pub(crate) use facts::{CheckScope, Facts};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Severity {
    /// Meets the requirement, or `run` sets it.
    Ok,
    /// The box runs, with a limit or a cost that `why` names.
    Warning,
    /// The box does not run, or does not do its job.
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

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// The severity; one `Fault` makes the exit status 1.
    pub(crate) severity: Severity,
    /// A NIC's name, or a part of the machine such as `kernel`.
    pub(crate) subject: String,
    pub(crate) what: String,
    /// The reason or the consequence; may be empty.
    pub(crate) why: String,
    /// The command that repairs the fault, if one command is enough.
    pub(crate) fix: Option<String>,
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

/// Evaluates the facts: the machine first, then each port or the Tor host.
pub(crate) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut findings = machine::judge(facts);
    findings.extend(facts.tor.iter().flat_map(tor_host::judge));
    findings.extend(ports::judge(facts));
    findings.extend(facts.tap.iter().flat_map(tap::judge));
    match &facts.sources {
        Ok(sources) => findings.extend(sources.iter().flat_map(sources::judge)),
        Err(error) => findings
            .push(Finding::fault("steer.source", "its addresses cannot be checked").because(error)),
    }
    findings
}

/// The findings on the ports of another wire, without those that are known: of an `incoming` or a tap
/// that wires share.
pub(crate) fn of_another_wire(facts: &Facts, known: &[Finding]) -> Vec<Finding> {
    let mut findings = ports::judge(facts);
    findings.extend(facts.tap.iter().flat_map(tap::judge));
    findings.retain(|finding| !known.contains(finding));
    findings
}

/// Judges a configuration on a machine with these NICs.
pub(crate) fn configuration(settings: &Settings, nics: &[LocalNic]) -> Vec<Finding> {
    const SUBJECT: &str = "config";
    let objections = settings.objections(nics);
    if objections.is_empty() {
        let what = "the values do not conflict with each other or with this machine's addresses";
        return vec![Finding::ok(SUBJECT, what)];
    }
    let finding = |objection: Objection| {
        let severity = match objection.is_fatal {
            true => Severity::Fault,
            false => Severity::Warning,
        };
        match objection.what {
            SettingsError::Value { key, value, reason } => {
                Finding::new(severity, SUBJECT, format!("{key} = {value}")).because(reason)
            }
            other => Finding::new(severity, SUBJECT, other.to_string()),
        }
    };
    objections.into_iter().map(finding).collect()
}

/// Quotes a word for a shell if necessary.
fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._/:@%+=,-".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Formats the findings: one line each, with its command below.
pub(crate) fn render(findings: &[Finding]) -> String {
    let subjects = findings.iter().map(|finding| finding.subject.chars());
    let width = subjects.map(Iterator::count).max().unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let (severity, subject) = (finding.severity, &finding.subject);
        text += &format!("{severity:7}  {subject:width$}  {}", finding.what);
        if !finding.why.is_empty() {
            text += &format!(": {}", finding.why);
        }
        text.push('\n');
        if let Some(fix) = &finding.fix {
            text += &format!("{:7}  {:width$}  fix: {fix}\n", "", "");
        }
    }
    text
}
