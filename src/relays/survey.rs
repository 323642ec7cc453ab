//! `Survey`: shows a loaded set as text or JSON.
//!
//! Shows counts and times. Never shows an endpoint, except whether a given one is in the set.

use super::{Loaded, SourceReport, utc};
use exitmark_policy::Endpoint;
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
    /// The view at `now`, from which ages are computed.
    pub fn new(loaded: &'a Loaded, now: SystemTime) -> Self {
        Self { loaded, now }
    }

    /// Whether `endpoint` is in the set.
    pub fn contains(&self, endpoint: Endpoint) -> bool {
        self.loaded.listed.binary_search(&endpoint).is_ok()
    }

    /// The number of endpoints in the set.
    pub fn count(&self) -> usize {
        self.loaded.listed.len()
    }

    /// The survey as JSON; `contains` is whether `endpoint` is in the set, null without one. Times
    /// are UTC text, durations are milliseconds.
    pub fn json(&self, endpoint: Option<Endpoint>) -> Value {
        let sources = self.loaded.sources.iter();
        json!({
            "sources": sources.map(|source| source_json(source, self.now)).collect::<Vec<_>>(),
            "distinct": self.loaded.listed.len(),
            "contains": endpoint.map(|endpoint| self.contains(endpoint)),
        })
    }
}

/// One source as JSON. Ages are in seconds, counted from `valid-after`; signatures are null if they
/// were not checked.
pub(super) fn source_json(source: &SourceReport, now: SystemTime) -> Value {
    let (validity, signatures) = (source.validity, source.signatures);
    json!({
        "path": source.path.display().to_string(),
        "flavor": source.flavor.name(),
        "valid_after": utc(validity.valid_after),
        "fresh_until": utc(validity.fresh_until),
        "valid_until": utc(validity.valid_until),
        "age": validity.age(now).name(),
        "age_s": now.duration_since(validity.valid_after).unwrap_or_default().as_secs(),
        "signatures_checked": signatures.is_some(),
        "signatures_good": signatures.map(|signatures| signatures.good),
        "signatures_needed": signatures.map(|signatures| signatures.needed),
        "signatures_unknown": signatures.map(|signatures| signatures.unknown),
        "orports": source.counts.orports,
        "further_orports": source.counts.further,
        "authority_ports": source.counts.authorities,
        "distinct": source.distinct,
        "parse_ms": source.parse_time.as_secs_f64() * 1e3,
    })
}

/// One source as text, several lines with a line break behind each.
pub(super) fn write_source(
    f: &mut fmt::Formatter<'_>,
    source: &SourceReport,
    now: SystemTime,
) -> fmt::Result {
    let (validity, counts) = (source.validity, source.counts);
    let (further, ms) = (counts.further, source.parse_time.as_secs_f64() * 1e3);
    writeln!(f, "{}", source.path.display())?;
    writeln!(f, "  flavour             {}", source.flavor)?;
    match source.signatures {
        Some(signatures) => writeln!(f, "  signatures          {signatures}")?,
        None => writeln!(f, "  signatures          not checked")?,
    }
    writeln!(f, "  valid-after         {} UTC", utc(validity.valid_after))?;
    writeln!(f, "  fresh-until         {} UTC", utc(validity.fresh_until))?;
    writeln!(f, "  valid-until         {} UTC", utc(validity.valid_until))?;
    writeln!(f, "  age                 {}", validity.age(now))?;
    writeln!(f, "  relay ORPorts       {:>6}", counts.orports)?;
    writeln!(f, "  further ORPorts     {further:>6}  (`a` lines)")?;
    writeln!(f, "  authority ports     {:>6}", counts.authorities)?;
    writeln!(f, "  distinct endpoints  {:>6}", source.distinct)?;
    writeln!(f, "  read in             {ms:>6.1} ms")
}

impl fmt::Display for Survey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for source in &self.loaded.sources {
            write_source(f, source, self.now)?;
        }
        let (count, files) = (self.count(), self.loaded.sources.len());
        let files = match files {
            1 => "1 file".to_owned(),
            n => format!("{n} files"),
        };
        writeln!(f, "The relay set of {files} has {count} endpoints.")
    }
}
