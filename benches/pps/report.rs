//! What was measured, for people and for programs: the table and `pps.json`.

use crate::Contestant;
use crate::common::results::{Series, ratio, rounded};
use crate::common::rounds::Contest;
use crate::drops::Drops;
use crate::traffic::Counts;
use serde::Serialize;
use std::fmt;

/// Lost frames, by where.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Lost {
    /// The box's NIC did not take them.
    before_box: u64,
    /// The forwarder received them, and they left by no port: rings that were full, above all.
    in_box: u64,
    /// The forwarder sent them, and the sink's NIC did not take them.
    after_box: u64,
}

/// One run of one forwarder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Million frames a second that arrived.
    mpps: f64,
    sent: u64,
    lost: Lost,
}

impl Sample {
    /// What happened in a run, of which `rate` is the steady part, in frames a second.
    pub(crate) fn new(rate: f64, counts: &Counts, drops: &Drops) -> Self {
        let cables = drops.before_box + drops.after_box;
        Self {
            mpps: rate / 1e6,
            sent: counts.sent,
            lost: Lost {
                before_box: drops.before_box,
                in_box: counts.sent.saturating_sub(counts.arrived() + cables),
                after_box: drops.after_box,
            },
        }
    }

    /// The part of the sent frames that did not arrive.
    fn loss(&self) -> f64 {
        let lost = self.lost.before_box + self.lost.in_box + self.lost.after_box;
        number(lost) / number(self.sent)
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} Mpps, {}", self.mpps, percent(self.loss()))?;
        let Lost {
            before_box,
            in_box,
            after_box,
        } = self.lost;
        if before_box + in_box + after_box > 0 {
            write!(
                f,
                " lost: {before_box} before the box, {in_box} in it, {after_box} after it"
            )
        } else {
            write!(f, " lost")
        }
    }
}

/// All runs of one forwarder with one load.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    forwarder: &'static str,
    frame_bytes: usize,
    relay_share: f64,
    queues: u32,
    mpps: f64,
    min: f64,
    max: f64,
    /// The median of the rounds, and the worst of them. Not rounded: few lost frames of
    /// millions are to be told from none.
    loss: f64,
    max_loss: f64,
    runs: usize,
    /// The frames of all runs.
    sent: u64,
    lost: Lost,
    #[serde(rename = "rounds")]
    rates: Series,
}

impl Row {
    /// None when there is no sample.
    pub(crate) fn new(contest: &Contest<Contestant<'_>, Sample>) -> Option<Self> {
        let (samples, contestant) = (&contest.samples, &contest.contestant);
        let rates = Series::new(samples.iter().map(|sample| sample.mpps))?;
        let losses = Series::new(samples.iter().map(Sample::loss))?;
        let total = |part: fn(&Sample) -> u64| samples.iter().map(part).sum();
        Some(Self {
            forwarder: contestant.forwarder.name(),
            frame_bytes: contestant.load.frame_bytes,
            relay_share: f64::from(contestant.load.relay_percent) / 100.0,
            queues: 1,
            mpps: rounded(rates.median()),
            min: rounded(rates.min()),
            max: rounded(rates.max()),
            loss: losses.median(),
            max_loss: losses.max(),
            runs: rates.runs(),
            sent: total(|sample| sample.sent),
            lost: Lost {
                before_box: total(|sample| sample.lost.before_box),
                in_box: total(|sample| sample.lost.in_box),
                after_box: total(|sample| sample.lost.after_box),
            },
            rates,
        })
    }

    /// Its ratio to the row of that forwarder with the same load.
    fn ratio_to(&self, forwarder: &str, rows: &[Self]) -> Option<f64> {
        rows.iter()
            .find(|other| other.forwarder == forwarder && other.frame_bytes == self.frame_bytes)
            .and_then(|other| self.rates.ratio_to(&other.rates))
    }
}

/// Prints the rows, each with its ratios to `nftables` and to `wire` with the same load.
pub(crate) fn print(rows: &[Row]) {
    println!(
        "\n{:<22} {:>5}  relay share   Mpps  (min .. max)     {:>10}  {:>10}  x nftables  x wire  \
         lost before / in / after the box",
        "forwarder", "bytes", "loss", "max"
    );
    for row in rows {
        println!(
            "{:<22} {:>5}  {:>11.2}  {:>5.3}  ({:.3} .. {:.3})  {:>10}  {:>10}  {:>10}  {:>6}  {} / {} / {}",
            row.forwarder,
            row.frame_bytes,
            row.relay_share,
            row.mpps,
            row.min,
            row.max,
            percent(row.loss),
            percent(row.max_loss),
            ratio(row.ratio_to("nftables", rows)),
            ratio(row.ratio_to("wire", rows)),
            row.lost.before_box,
            row.lost.in_box,
            row.lost.after_box,
        );
    }
}

/// A part, with digits enough to tell ten frames of a million from none.
fn percent(part: f64) -> String {
    format!("{:.4} %", part * 100.0)
}

fn number(count: u64) -> f64 {
    // No run sends 2^32 frames.
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
