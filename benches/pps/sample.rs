//! The result of one run: the rate, and lost frames.

use crate::common::results::number;
use crate::traffic::Counts;
use exitmark_lab::site::Dropped;
use serde::Serialize;
use std::fmt;

/// Lost frames by location.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Lost {
    /// Frames that the box's NIC dropped.
    pub(crate) before_box: u64,
    /// Frames that the forwarder received and did not send, mostly because of full rings.
    pub(crate) in_box: u64,
    /// Frames that the forwarder sent and the sink's NIC dropped.
    pub(crate) after_box: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Received frames in millions per second.
    pub(crate) mpps: f64,
    pub(crate) sent: u64,
    pub(crate) lost: Lost,
}

impl Sample {
    /// The sample of a run; `rate` is that of its steady part, in frames per second.
    pub(crate) fn new(rate: f64, counts: &Counts, dropped: &Dropped) -> Self {
        let cables = dropped.before_box + dropped.behind_box;
        Self {
            mpps: rate / 1e6,
            sent: counts.sent,
            lost: Lost {
                before_box: dropped.before_box,
                in_box: counts.sent.saturating_sub(counts.arrived() + cables),
                after_box: dropped.behind_box,
            },
        }
    }

    /// The fraction of sent frames that did not arrive.
    pub(crate) fn loss(&self) -> f64 {
        let lost = self.lost.before_box + self.lost.in_box + self.lost.after_box;
        number(lost) / number(self.sent)
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} Mpps, {}", self.mpps, percent(self.loss()))?;
        let (before, inside, after) = (self.lost.before_box, self.lost.in_box, self.lost.after_box);
        match before + inside + after {
            0 => write!(f, " lost"),
            _ => write!(
                f,
                " lost: {before} before the box, {inside} in it, {after} after it"
            ),
        }
    }
}

/// A fraction, with enough digits to distinguish ten in a million from none.
pub(crate) fn percent(part: f64) -> String {
    format!("{:.4} %", part * 100.0)
}
