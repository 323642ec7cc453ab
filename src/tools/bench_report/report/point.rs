//! Rates, and the loads under which they are compared: rows with the same point share a table.

use super::table::{count, family};
use serde::Deserialize;

/// The parameters of a load, without the forwarder.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Point {
    frame_bytes: u32,
    relay_share: f64,
    pub(crate) queues: u32,
    family: String,
    flows: u64,
    relays: u64,
}

/// A row of `pps.json`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Rate {
    pub(crate) forwarder: String,
    #[serde(flatten)]
    pub(crate) point: Point,
    pub(crate) mpps: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) loss: f64,
    pub(crate) max_loss: f64,
    pub(crate) rounds: Vec<f64>,
}

impl Point {
    /// All points of the rows, in order of appearance.
    pub(crate) fn all(rates: &[Rate]) -> Vec<Self> {
        let mut points = Vec::new();
        for Rate { point, .. } in rates {
            if !points.contains(point) {
                points.push(point.clone());
            }
        }
        points
    }

    /// The point of the goals, if it was measured.
    pub(crate) fn base(rates: &[Rate], frame_bytes: u32) -> Option<Self> {
        Self::of_share(rates, frame_bytes, 0.5)
    }

    /// The same with this fraction of flows to relays.
    pub(crate) fn of_share(rates: &[Rate], frame_bytes: u32, relay_share: f64) -> Option<Self> {
        let point = Self {
            frame_bytes,
            relay_share,
            queues: 1,
            family: "ipv4".to_owned(),
            flows: 1024,
            relays: 10_000,
        };
        rates.iter().any(|row| row.point == point).then_some(point)
    }

    pub(crate) fn rows<'r>(&self, rates: &'r [Rate]) -> impl Iterator<Item = &'r Rate> {
        rates.iter().filter(move |row| row.point == *self)
    }

    pub(crate) fn row<'r>(&self, rates: &'r [Rate], forwarder: &str) -> Option<&'r Rate> {
        self.rows(rates).find(|row| row.forwarder == forwarder)
    }

    /// The fraction of flows to relays, in words.
    pub(crate) fn share(&self) -> String {
        match self.relay_share {
            0.0 => "none of the flows to relays".to_owned(),
            0.5 => "half of the flows to relays".to_owned(),
            1.0 => "all flows to relays".to_owned(),
            share => format!("{:.0} % of the flows to relays", share * 100.0),
        }
    }

    pub(crate) fn description(&self) -> String {
        let queues = match self.queues {
            1 => "1 queue".to_owned(),
            many => format!("{many} queues"),
        };
        format!(
            "{} B, {}, {}, {queues}, {} flows, {} relay endpoints",
            self.frame_bytes,
            family(&self.family),
            self.share(),
            count(self.flows),
            count(self.relays),
        )
    }
}
