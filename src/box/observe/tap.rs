//! The copies of exit packets, in the report, as metrics and as text.

use super::human::count;
use exitmark_service::prometheus::{Labels, Metrics, labels};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A tap: a NIC that gets copies of the exit packets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TapReport {
    /// The configured name of the NIC.
    pub interface: String,
    /// Whether copies can be sent: the NIC is there and has a link.
    pub is_up: bool,
    /// Copies that were sent, of exit packets of the hosts.
    pub copied_out: u64,
    /// Copies that were sent, of answers to exit packets.
    pub copied_in: u64,
    /// Copies that were lost, for every reason.
    pub lost: Vec<LostCopies>,
}

/// Copies that were not sent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LostCopies {
    /// `full` (the copies before them had not been sent yet), `down` (no NIC or no link) or `refused`
    /// (not taken by the NIC or its socket).
    pub reason: String,
    /// The number of copies lost for this reason.
    pub copies: u64,
}

impl TapReport {
    /// Copies lost, for all reasons.
    pub(super) fn all_lost(&self) -> u64 {
        self.lost.iter().map(|lost| lost.copies).sum()
    }

    /// Several wires can have one tap.
    pub(super) fn add(&mut self, more: &Self) {
        self.is_up &= more.is_up;
        self.copied_out += more.copied_out;
        self.copied_in += more.copied_in;
        for (sum, more) in self.lost.iter_mut().zip(&more.lost) {
            sum.copies += more.copies;
        }
    }

    /// One line about the copies.
    pub(super) fn text(&self) -> String {
        let state = if self.is_up { "" } else { " (down)" };
        let (out, answers) = (count(self.copied_out), count(self.copied_in));
        let lost = self.lost.iter().filter(|lost| lost.copies > 0);
        let lost: Vec<_> = lost
            .map(|lost| format!("{} {}", lost.reason, count(lost.copies)))
            .collect();
        let lost = match lost.as_slice() {
            [] => "none".to_owned(),
            some => some.join(", "),
        };
        let name = &self.interface;
        format!("{name}{state}: {out} copies of exit packets, {answers} of answers; lost: {lost}")
    }
}

pub(super) fn metrics(out: &mut Metrics<'_>, taps: &[TapReport]) -> fmt::Result {
    let of = |tap: &TapReport, more: &[(&'static str, &str)]| -> Labels {
        let mut labels = labels([("interface", &tap.interface)]);
        labels.extend(
            more.iter()
                .map(|(name, value)| (*name, (*value).to_owned())),
        );
        labels
    };
    out.gauge(
        "tap_up",
        "1 if copies of exit packets can be sent by the tap, else 0",
        taps.iter().map(|tap| (of(tap, &[]), tap.is_up.into())),
    )?;
    out.counter(
        "tap_copied_frames",
        "Copies sent by the tap: of exit packets of the hosts (out), of answers to them (in)",
        taps.iter().flat_map(|tap| {
            [("out", tap.copied_out), ("in", tap.copied_in)]
                .map(|(direction, copies)| (of(tap, &[("direction", direction)]), copies))
        }),
    )?;
    out.counter(
        "tap_lost_frames",
        "Copies for the tap that were lost, by reason: full, down, refused",
        taps.iter().flat_map(|tap| {
            let lost = tap.lost.iter();
            lost.map(|lost| (of(tap, &[("reason", &lost.reason)]), lost.copies))
        }),
    )
}
