//! Findings on a configuration, alone and on this machine.

use super::{Finding, Severity};
use crate::settings::{Settings, SettingsError};
use exitmark_nic::Own;

const SUBJECT: &str = "config";

/// Judges a configuration on a machine with these NICs.
pub(crate) fn configuration(settings: &Settings, nics: &[Own]) -> Vec<Finding> {
    let objections = settings.objections(nics);
    if objections.is_empty() {
        let what = "the values do not conflict with each other or with this machine's addresses";
        return vec![Finding::ok(SUBJECT, what)];
    }
    objections
        .into_iter()
        .map(|objection| {
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
        })
        .collect()
}
