//! `Churn`: counts how two relay sets differ. Never shows an endpoint.

use super::{Loaded, utc};
use exitmark_policy::Endpoint;
use serde_json::{Value, json};
use std::fmt;
use std::time::SystemTime;

/// The difference between an old and a new relay set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Churn {
    valid_after: [Option<SystemTime>; 2],
    v4: Flow,
    v6: Flow,
}

/// Counts of the endpoints of one family, or of both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Endpoints, with the same address and port, in both sets.
    pub stayed: usize,
    /// Endpoints in the old set only.
    pub left: usize,
    /// Endpoints in the new set only.
    pub joined: usize,
}

impl Churn {
    /// Compares the old set with the new one.
    pub fn between(old: &Loaded, new: &Loaded) -> Self {
        let newest = |set: &Loaded| set.sources.iter().map(|one| one.validity.valid_after).max();
        let of = |is_ours: fn(&&Endpoint) -> bool| {
            let ours = |set: &'_ Loaded| set.listed.iter().filter(is_ours).count();
            let is_there = |endpoint: &&Endpoint| new.listed.binary_search(endpoint).is_ok();
            let stayed = old.listed.iter().filter(is_ours).filter(is_there).count();
            Flow {
                stayed,
                left: ours(old) - stayed,
                joined: ours(new) - stayed,
            }
        };
        Self {
            valid_after: [newest(old), newest(new)],
            v4: of(|endpoint| endpoint.address.is_ipv4()),
            v6: of(|endpoint| endpoint.address.is_ipv6()),
        }
    }

    /// The sum over both families.
    pub const fn all(&self) -> Flow {
        Flow {
            stayed: self.v4.stayed + self.v6.stayed,
            left: self.v4.left + self.v6.left,
            joined: self.v4.joined + self.v6.joined,
        }
    }

    /// The hours from the old set's `valid-after` to the new one's; negative if it is older.
    pub fn hours(&self) -> Option<f64> {
        let [old, new] = self.valid_after;
        let (old, new) = (old?, new?);
        Some(match new.duration_since(old) {
            Ok(since) => since.as_secs_f64() / 3600.0,
            Err(before) => -before.duration().as_secs_f64() / 3600.0,
        })
    }

    /// The counts, the shares in percent, and the times as UTC text; null for the time of a set
    /// without a document.
    pub fn json(&self) -> Value {
        let flow = |flow: Flow| {
            json!({
                "stayed": flow.stayed,
                "left": flow.left,
                "joined": flow.joined,
                "left_percent": flow.left_percent(),
                "joined_percent": flow.joined_percent(),
            })
        };
        let [old, new] = self.valid_after;
        json!({
            "old_valid_after": old.map(utc),
            "new_valid_after": new.map(utc),
            "hours": self.hours(),
            "all": flow(self.all()),
            "ipv4": flow(self.v4),
            "ipv6": flow(self.v6),
        })
    }
}

impl Flow {
    /// The share of the old endpoints that left, in percent.
    pub fn left_percent(&self) -> f64 {
        percent(self.left, self.left + self.stayed)
    }

    /// The share of the new endpoints that joined, in percent.
    pub fn joined_percent(&self) -> f64 {
        percent(self.joined, self.joined + self.stayed)
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a set has at most 65,536 endpoints"
)]
fn percent(part: usize, whole: usize) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

impl fmt::Display for Churn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |time: Option<SystemTime>| time.map_or_else(String::new, utc);
        let [old, new] = self.valid_after.map(text);
        let hours = self.hours().unwrap_or_default();
        writeln!(f, "from {old} UTC to {new} UTC: {hours:.1} hours")?;
        for (name, flow) in [("all", self.all()), ("IPv4", self.v4), ("IPv6", self.v6)] {
            writeln!(
                f,
                "  {name:<5} {:>6} stayed  {:>5} left ({:.1} % of the old)  {:>5} joined ({:.1} % of \
                 the new)",
                flow.stayed,
                flow.left,
                flow.left_percent(),
                flow.joined,
                flow.joined_percent()
            )?;
        }
        Ok(())
    }
}
