//! The rates, as a table and as `pps.json`.

use crate::common::results::{Series, ratio, rounded};
use crate::common::rounds::Contest;
use crate::load::Load;
use crate::measure::Contestant;
use crate::sample::{Lost, Sample, percent};
use serde::Serialize;

#[derive(Debug, Serialize)]
pub(crate) struct Row {
    forwarder: &'static str,
    frame_bytes: usize,
    relay_share: f64,
    queues: u32,
    family: &'static str,
    flows: u32,
    relays: u32,
    mpps: f64,
    min: f64,
    max: f64,
    /// The median and the maximum of the rounds, not rounded, to distinguish a few lost frames in
    /// millions from none.
    loss: f64,
    max_loss: f64,
    runs: usize,
    /// The frames of all runs.
    sent: u64,
    lost: Lost,
    #[serde(rename = "rounds")]
    rates: Series,
    #[serde(skip)]
    load: Load,
}

impl Row {
    /// `None` without samples.
    pub(crate) fn new(contest: &Contest<Contestant<'_>, Sample>) -> Option<Self> {
        let (samples, Contestant { forwarder, load }) = (&contest.samples, &contest.contestant);
        let rates = Series::new(samples.iter().map(|sample| sample.mpps))?;
        let losses = Series::new(samples.iter().map(Sample::loss))?;
        let total = |part: fn(&Sample) -> u64| samples.iter().map(part).sum();
        Some(Self {
            forwarder: forwarder.name,
            frame_bytes: load.frame_bytes(),
            relay_share: f64::from(load.relay_percent) / 100.0,
            queues: load.queues,
            family: load.family.name(),
            flows: load.flows,
            relays: load.relays,
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
            load: *load,
        })
    }

    /// The ratio to the row of that forwarder with the same load.
    fn ratio_to(&self, forwarder: &str, rows: &[Self]) -> Option<f64> {
        rows.iter()
            .find(|other| other.forwarder == forwarder && other.load == self.load)
            .and_then(|other| self.rates.ratio_to(&other.rates))
    }
}

/// Prints the rows by load, each with its ratios to `nftables` and `wire` with the same load.
pub(crate) fn print(rows: &[Row]) {
    for group in rows.chunk_by(|one, next| one.load == next.load) {
        println!("\n{}", group[0].load);
        println!(
            "  {:<22}   Mpps  (min .. max)     {:>10}  {:>10}  x nftables  x wire  \
             lost before / in / after the box",
            "forwarder", "loss", "max"
        );
        for row in group {
            println!(
                "  {:<22}  {:>5.3}  ({:.3} .. {:.3})  {:>10}  {:>10}  {:>10}  {:>6}  {} / {} / {}",
                row.forwarder,
                row.mpps,
                row.min,
                row.max,
                percent(row.loss),
                percent(row.max_loss),
                ratio(row.ratio_to("nftables", group)),
                ratio(row.ratio_to("wire", group)),
                row.lost.before_box,
                row.lost.in_box,
                row.lost.after_box,
            );
        }
    }
}
