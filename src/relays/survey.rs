//! `Survey`: what was loaded, written for a person or as JSON.
//!
//! Shows counts and times. Never shows an endpoint, except the one that was asked for.

use super::{Loaded, SourceReport, utc};
use crate::policy::Endpoint;
use serde_json::{Value, json};
use std::fmt;
use std::time::SystemTime;

/// A view of a loaded relay set at one moment.
#[derive(Debug)]
pub struct Survey<'a> {
    loaded: &'a Loaded,
    now: SystemTime,
}

impl<'a> Survey<'a> {
    /// The view at `now`, which decides the ages.
    pub fn new(loaded: &'a Loaded, now: SystemTime) -> Self {
        Self { loaded, now }
    }

    /// Whether `endpoint` is in the set, as a sentence.
    pub fn answer(&self, endpoint: Endpoint) -> String {
        let count = self.loaded.endpoints.len();
        if self.contains(endpoint) {
            format!("Yes, {endpoint} is one of the {count} endpoints of the relay set.")
        } else {
            format!("No, {endpoint} is not among the {count} endpoints of the relay set.")
        }
    }

    /// Whether `endpoint` is in the set.
    pub fn contains(&self, endpoint: Endpoint) -> bool {
        let Endpoint { address, port } = endpoint;
        self.loaded.endpoints.contains(address, port)
    }

    /// Everything as JSON; `contains` answers for `endpoint`, or is null where none is given.
    /// Times are UTC text, durations are milliseconds.
    pub fn json(&self, endpoint: Option<Endpoint>) -> Value {
        let source = |source: &SourceReport| {
            let SourceReport {
                path,
                flavor,
                validity,
                counts,
                distinct,
                parse_time,
            } = source;
            json!({
                "path": path.display().to_string(),
                "flavor": flavor.name(),
                "valid_after": utc(validity.valid_after),
                "fresh_until": utc(validity.fresh_until),
                "valid_until": utc(validity.valid_until),
                "age": validity.age(self.now).name(),
                "signatures_checked": false,
                "orports": counts.orports,
                "further_orports": counts.further,
                "dirports": counts.dirports,
                "authority_ports": counts.authorities,
                "distinct": distinct,
                "parse_ms": parse_time.as_secs_f64() * 1e3,
            })
        };
        json!({
            "sources": self.loaded.sources.iter().map(source).collect::<Vec<_>>(),
            "distinct": self.loaded.endpoints.len(),
            "contains": endpoint.map(|endpoint| self.contains(endpoint)),
        })
    }
}

impl fmt::Display for Survey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for source in &self.loaded.sources {
            let SourceReport {
                path,
                flavor,
                validity,
                counts,
                distinct,
                parse_time,
            } = source;
            writeln!(f, "{}", path.display())?;
            let age = validity.age(self.now);
            writeln!(f, "  flavour             {flavor}")?;
            writeln!(f, "  valid-after         {} UTC", utc(validity.valid_after))?;
            writeln!(f, "  fresh-until         {} UTC", utc(validity.fresh_until))?;
            writeln!(f, "  valid-until         {} UTC", utc(validity.valid_until))?;
            writeln!(f, "  age                 {age}")?;
            writeln!(f, "  signatures          not checked by this version")?;
            writeln!(f, "  relay ORPorts       {:>6}", counts.orports)?;
            writeln!(
                f,
                "  further ORPorts     {:>6}  (`a` lines)",
                counts.further
            )?;
            writeln!(f, "  relay DirPorts      {:>6}", counts.dirports)?;
            writeln!(f, "  authority ports     {:>6}", counts.authorities)?;
            writeln!(f, "  distinct endpoints  {distinct:>6}")?;
            writeln!(
                f,
                "  parsed in           {:>6.1} ms",
                parse_time.as_secs_f64() * 1e3
            )?;
        }
        let (count, files) = (self.loaded.endpoints.len(), self.loaded.sources.len());
        let files = match files {
            1 => "1 file".to_owned(),
            n => format!("{n} files"),
        };
        writeln!(f, "The relay set of {files} has {count} endpoints.")
    }
}
