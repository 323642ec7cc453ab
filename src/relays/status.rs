//! `Status`: shows the live set as text or JSON. Never shows an endpoint.

use super::survey::{source_json, write_source};
use super::{LiveSet, Refusal, SourceReport, utc};
use exitmark_policy::Endpoint;
use serde_json::{Value, json};
use std::fmt;
use std::time::{Duration, SystemTime};

/// A view of a live set at one moment.
#[derive(Debug)]
pub struct Status<'a> {
    live: &'a LiveSet,
    extra: &'a [Endpoint],
    now: SystemTime,
}

impl<'a> Status<'a> {
    /// The view at `now` of a live set with these extras.
    pub fn new(live: &'a LiveSet, extra: &'a [Endpoint], now: SystemTime) -> Self {
        Self { live, extra, now }
    }

    /// Whether `endpoint` counts as a relay: listed, departed, or an extra.
    pub fn contains(&self, endpoint: Endpoint) -> bool {
        self.live.counts_as_relay(endpoint) || self.extra.contains(&endpoint)
    }

    /// The number of endpoints that count as relays.
    pub fn count(&self) -> usize {
        let known = |endpoint: &&Endpoint| !self.live.counts_as_relay(**endpoint);
        let (listed, departed) = self.live.counts();
        listed + departed + self.extra.iter().filter(known).count()
    }

    /// The status as JSON; `contains` is whether `endpoint` counts as a relay, null without one.
    pub fn json(&self, endpoint: Option<Endpoint>) -> Value {
        let (listed, departed) = self.live.counts();
        let (accepted, refused) = self.live.decisions();
        let source = |source: &SourceReport| {
            let mut json = source_json(source, self.now);
            json["in_force"] = self.live.is_in_force(source).into();
            json
        };
        let sources = self.live.sources().iter();
        json!({
            "sources": sources.map(source).collect::<Vec<_>>(),
            "age": self.live.age(self.now).map(super::Age::name),
            "accepted_at": self.live.accepted_at().map(utc),
            "listed": listed,
            "departed": departed,
            "extra": self.extra.len(),
            "distinct": self.count(),
            "accepted": accepted,
            "refused": refused,
            "last_refusal": self.live.last_refusal().map(|refusal| json!({
                "at": utc(refusal.at),
                "reason": refusal.reason,
            })),
            "contains": endpoint.map(|endpoint| self.contains(endpoint)),
        })
    }
}

impl fmt::Display for Status<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ago = |time: SystemTime| {
            let since = self.now.duration_since(time).unwrap_or_default();
            humantime::format_duration(Duration::from_secs(since.as_secs())).to_string()
        };
        for source in self.live.sources() {
            write_source(f, source, self.now)?;
            if !self.live.is_in_force(source) {
                writeln!(
                    f,
                    "  state               older, its endpoints are remembered"
                )?;
            }
        }
        let (listed, departed) = self.live.counts();
        let (accepted, refused) = self.live.decisions();
        if let Some(at) = self.live.accepted_at() {
            writeln!(f, "In force since {} UTC, {} ago.", utc(at), ago(at))?;
        }
        writeln!(f, "  listed              {listed:>6}")?;
        writeln!(f, "  departed, remembered {departed:>5}")?;
        writeln!(f, "  extra               {:>6}", self.extra.len())?;
        writeln!(f, "  sets accepted       {accepted:>6}")?;
        writeln!(f, "  sets refused        {refused:>6}")?;
        match self.live.last_refusal() {
            Some(Refusal { at, reason }) => {
                let (at, ago) = (utc(*at), ago(*at));
                writeln!(f, "Last refusal {at} UTC, {ago} ago: {reason}")?;
            }
            None => writeln!(f, "No relay set was refused.")?,
        }
        writeln!(f, "The relay set in force has {} endpoints.", self.count())
    }
}
