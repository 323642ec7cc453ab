//! The results of a run.

use serde::Serialize;

/// One line of `survive.json`.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Row {
    pub(crate) event: &'static str,
    pub(crate) engine: &'static str,
    pub(crate) load: &'static str,
    /// Sent frames per second.
    pub(crate) rate_pps: u64,
    /// Frames that a NIC accepted.
    pub(crate) sent: u64,
    /// Sent frames that never arrived.
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
    pub(crate) mismarked: u64,
    pub(crate) missteered: u64,
    /// Received frames of no flow.
    pub(crate) garbled: u64,
    pub(crate) lost_inbound: u64,
    /// Lost frames that were sent after every flow had arrived again.
    pub(crate) lost_after: Option<u64>,
    /// The time between sending the first and the last lost frame.
    pub(crate) outage_ms: Option<u64>,
    /// The length of the longest outage, a sequence of lost frames less than 50 ms apart.
    pub(crate) longest_outage_ms: Option<u64>,
    /// The largest number of frames lost in one outage.
    pub(crate) most_lost_at_once: Option<u64>,
    /// Lost frames that found the cable before the box full, because of the load.
    pub(crate) dropped_before_box: u64,
    /// Lost frames that found the cables behind the box full or down.
    pub(crate) dropped_behind_box: u64,
    /// Lost frames by the box's own counters, of the last process.
    pub(crate) dropped_in_box: Option<u64>,
    /// Flows without a received frame that was sent well after the event.
    pub(crate) silent_flows: u64,
    /// The permitted losses, if bounded; at saturation, besides frames that found a cable full.
    pub(crate) allowed: Option<u64>,
    /// How often the row was played: more than once if a pause of the machine may have spoilt it.
    pub(crate) plays: u32,
    /// The most frames that an earlier play lost.
    pub(crate) lost_before: u64,
    /// Whether the result is as expected.
    pub(crate) holds: bool,
    pub(crate) error: Option<String>,
}

impl Row {
    pub(crate) fn line(&self) -> String {
        let outage = self.longest_outage_ms.map(|ms| format!(", outage {ms} ms"));
        format!(
            "{:21} {:7} {:10} {:>8} pps: sent {}, lost {} (before box {}, in {}, behind {}), duplicated {}, \
             reordered {}, mismarked {}, missteered {}{}",
            self.event,
            self.engine,
            self.load,
            self.rate_pps,
            self.sent,
            self.lost,
            self.dropped_before_box,
            self.dropped_in_box.unwrap_or(0),
            self.dropped_behind_box,
            self.duplicated,
            self.reordered,
            self.mismarked,
            self.missteered,
            outage.unwrap_or_default(),
        )
    }
}
